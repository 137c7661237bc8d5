"""A part of a large matrix of tests, such that every test is in it.

``--variants 1/4`` keeps of each parametrized test the 1st, 5th, 9th, ... variant, ``2/4`` the 2nd,
6th, ...; of one that has fewer it keeps one.  Which they are changes with the test, so that a
parameter that many tests have in common is not always left out.

``--tests 1/2`` keeps one half of the tests themselves, each with all its variants, ``2/2`` the
other.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")


def share(text: str) -> tuple[int, int]:
    """``"2/4"`` as numbers; ValueError for anything else."""
    part, _, of = text.partition("/")
    numbers = int(part), int(of)
    if not 1 <= numbers[0] <= numbers[1]:
        raise ValueError(f"{text} is no part of anything")
    return numbers


def sample(items: Sequence[T], part: int, of: int, name_of: Callable[[T], str]) -> list[T]:
    """The items that ``part`` of ``of`` keeps, in their order.

    Items whose names differ only in what is in brackets are variants of one test.
    """
    groups: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        groups.setdefault(name_of(item).partition("[")[0], []).append(number)
    kept: list[int] = []
    for name, variants in groups.items():
        first = part - 1 + zlib.crc32(name.encode())
        kept += variants[first % min(of, len(variants)) :: of]
    return [items[number] for number in sorted(kept)]


def divide(items: Sequence[T], part: int, of: int, name_of: Callable[[T], str]) -> list[T]:
    """The items of those tests that ``part`` of ``of`` keeps, in their order."""
    return [item for item in items if _number(name_of(item)) % of == part - 1]


def _number(name: str) -> int:
    # Not as above: which tests are kept says nothing about which of their variants are.
    return zlib.crc32(b"test " + name.partition("[")[0].encode())
