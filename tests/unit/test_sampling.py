"""The part of the kernel tests that `make test` runs on the older kernels."""

from __future__ import annotations

import pytest

from support.sampling import divide, sample, share

TESTS = [
    *(f"test_many[{i}]" for i in range(11)),
    "test_plain",
    *(f"test_two[{i}]" for i in range(2)),
    *(f"test_four[{i}-a[b]]" for i in range(4)),
]


@pytest.mark.parametrize("of", [1, 2, 3, 4, 20])
def test_every_test_is_in_every_part_and_every_variant_in_one(of):
    parts = [sample(TESTS, part, of, str) for part in range(1, of + 1)]
    for part in parts:
        assert {name.partition("[")[0] for name in part} == {
            "test_many", "test_plain", "test_two", "test_four",
        }  # fmt: skip
        assert part == sorted(part, key=TESTS.index)
        assert len(set(part)) == len(part)
    assert {name for part in parts for name in part} == set(TESTS)
    if of == 4:
        assert [sum("many" in name for name in part) for part in parts].count(3) == 3
        assert all(sum("four" in name for name in part) == 1 for part in parts)


@pytest.mark.parametrize("of", [1, 2, 3])
def test_every_test_is_in_one_part_of_the_tests_with_all_its_variants(of):
    names = [f"test_{number}[{variant}]" for number in range(100) for variant in range(3)]
    parts = [divide(names, part, of, str) for part in range(1, of + 1)]
    assert sorted(name for part in parts for name in part) == sorted(names)
    for part in parts:
        assert len(part) == 3 * len({name.partition("[")[0] for name in part})
        assert part == sorted(part, key=names.index)
        assert len(part) > 300 / of * 0.7


def test_one_of_one_is_all():
    assert sample(TESTS, 1, 1, str) == divide(TESTS, 1, 1, str) == TESTS


@pytest.mark.parametrize("text", ["", "4", "0/4", "5/4", "a/b", "1/0", "-1/4"])
def test_what_is_no_part(text):
    with pytest.raises(ValueError, match=r".*"):
        share(text)


def test_a_part():
    assert share("2/4") == (2, 4)
