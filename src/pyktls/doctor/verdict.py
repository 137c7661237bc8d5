"""Yes, partly or no: judged from what ``pyktls.probe`` and ``pyktls.engines`` have found.

What counts is what connections end up with unless somebody asks for something else: the suites
with AES-GCM and ChaCha20-Poly1305 that this Python's OpenSSL offers in a default context, with
TLS 1.2 and 1.3, both directions.  (It also offers AES-CBC with TLS 1.2, which peers take only if
they know nothing better, and which Linux's kernel TLS does not have.)
"""

from __future__ import annotations

import enum
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyktls.ciphers import find_suite
from pyktls.kernel_support import VERSIONS
from pyktls.session import Direction

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyktls.engines.choice import EngineInfo
    from pyktls.kernel_support import KernelSupport

__all__ = ["Level", "Verdict", "judge", "missing", "offered_by_default"]


class Level(enum.StrEnum):
    """How well kernel TLS works here."""

    YES = "yes"
    PARTLY = "partly"
    NO = "no"


@dataclass(frozen=True, slots=True)
class Verdict:
    """``text`` is the level in a sentence."""

    level: Level
    text: str


#: Version and name of the cipher.
Offered = tuple[int, str]
Missing = tuple[int, str, Direction]


def offered_by_default() -> tuple[Offered, ...]:
    """What ``ssl.create_default_context()`` offers, of what ``judge`` counts."""
    found: dict[Offered, None] = {}
    for cipher in ssl.create_default_context().get_ciphers():
        suite = find_suite(cipher["id"] & 0xFFFF)
        if suite is not None and not suite.aead.mac_key_length:
            found[suite.version, suite.aead.name] = None
    return tuple(found)


def missing(support: KernelSupport, offered: Iterable[Offered]) -> tuple[Missing, ...]:
    """What the kernel does not take of that."""
    return tuple(
        (version, name, direction)
        for version, name in offered
        for direction in Direction
        if not support.answer(version, name, direction)
    )


def judge(
    support: KernelSupport, engines: Iterable[EngineInfo], offered: Iterable[Offered]
) -> Verdict:
    """The verdict."""
    offered = tuple(offered)
    if not support.tls:
        return Verdict(Level.NO, "there is no kernel TLS for this process")
    lacks = missing(support, offered)
    if len(lacks) == 2 * len(offered):
        return Verdict(Level.NO, "the kernel takes none of the ciphers that OpenSSL offers")
    faults = []
    for direction, verb in ((Direction.TX, "send"), (Direction.RX, "receive")):
        theirs = [(v, name) for v, name, d in lacks if d is direction]
        if len(theirs) == len(offered):
            faults.append(f"the kernel does not {verb} with any cipher that OpenSSL offers")
        elif theirs:
            names = ", ".join(f"{name} with {VERSIONS[v]}" for v, name in theirs)
            faults.append(f"the kernel does not {verb} with {names}")
    if not any(engine.chosen and engine.usable for engine in engines):
        faults.append("the keys of an ssl.SSLSocket cannot be taken out of this Python's OpenSSL")
    if faults:
        return Verdict(Level.PARTLY, "kernel TLS works in part: " + "; ".join(faults))
    return Verdict(
        Level.YES,
        "kernel TLS works, in both directions, with all that OpenSSL offers by default",
    )
