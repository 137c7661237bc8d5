"""docs/selftests.md against tests/kernel/selftests: the table tells all that there is."""

from __future__ import annotations

import ast
import pathlib
import re

import pytest

from support.selftest import BY_NAME, EXPECTED_FAILURES, VARIANTS, ExpectedFailure

ROOT = pathlib.Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests" / "kernel" / "selftests"
TEXT = (ROOT / "docs" / "selftests.md").read_text(encoding="utf-8")

# | selftest | cases | file::test | expected failure |
ROWS = re.findall(r"^\| (\S+) \| (\d+) \| (\S+)::(\S+) \| (.+) \|$", TEXT, re.MULTILINE)
# | file::test | what it shows |
OWN_ROWS = re.findall(r"^\| (test_\S+)::(\S+) \| .+ \|$", TEXT, re.MULTILINE)

#: How many functions the selftest has for each fixture, and cases of each function.
FIXTURES = {
    "": (8, 1),
    "tls_basic": (7, 1),
    "tls": (68, 13),
    "zero_len": (1, 8),
    "tls_err": (10, 2),
}


def names_in(file: pathlib.Path) -> list[str]:
    return [
        node.name
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


def test_every_test_is_in_the_table_and_the_other_way_round():
    there = [(file.name, name) for file in TESTS.glob("test_*.py") for name in names_in(file)]
    listed = [(file, name) for _, _, file, name, _ in ROWS] + OWN_ROWS
    assert sorted(listed) == sorted(there)
    names = [name for _, name in there]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("fixture", FIXTURES)
def test_all_functions_of_the_selftest_are_there(fixture):
    functions, cases = FIXTURES[fixture]
    names = [row[0].rpartition(".")[2] for row in ROWS if row[0].rpartition(".")[0] == fixture]
    assert len(set(names)) == len(names) == functions
    assert {int(row[1]) for row in ROWS if row[0].rpartition(".")[0] == fixture} == {cases}


def test_the_totals():
    assert len(VARIANTS) == 13
    assert len(ROWS) == sum(functions for functions, _ in FIXTURES.values()) == 94
    assert sum(int(row[1]) for row in ROWS) == 927
    assert "94 functions" in TEXT
    assert "927 cases" in TEXT


def test_a_test_has_the_name_of_its_scenario():
    for selftest, _, _, name, _ in ROWS:
        fixture, _, function = selftest.rpartition(".")
        assert name == ("test_zero_len" if fixture == "zero_len" else f"test_{function}")


def test_the_expected_failures_are_those_of_the_tests():
    in_the_table = {row[0].rpartition(".")[2]: row[4] for row in ROWS if row[4] != "-"}
    in_the_tests = {
        function: f"before {'.'.join(map(str, entry.before))}"
        for entry in EXPECTED_FAILURES
        if not entry.backports
        for function in entry.functions
    }
    assert {name: text.partition(",")[0] for name, text in in_the_table.items()} == in_the_tests


def test_the_defects_are_those_of_the_tests():
    """| defect | Linux before | scenarios that are refused |"""
    form = r"^\| [^|]+ \| (\d[\d., ]+) \| ([^|]+, [^|]+) \|$"
    in_the_table = {}
    for releases, text in re.findall(form, TEXT, re.MULTILINE):
        names = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", text))
        in_the_table[releases] = names, "all of the variant 13_nopad" in text
    in_the_tests = {}
    for entry in EXPECTED_FAILURES:
        if entry.backports:
            releases = ", ".join(
                ".".join(map(str, release))
                for release in (entry.before, *sorted(entry.backports, reverse=True))
            )
            names, no_pad = in_the_tests.get(releases, (set(), False))
            in_the_tests[releases] = names | set(entry.functions), no_pad or entry.no_pad
    assert in_the_table == in_the_tests


def failure(**changes):
    fields = {"functions": ("one",), "before": (7, 2), "kind": OSError, "message": "^no$"}
    return ExpectedFailure(**(fields | changes))


@pytest.mark.parametrize(
    ("release", "fails"),
    [
        ((6, 1, 176), True), ((6, 1, 189), True), ((6, 1, 190), False), ((6, 1, 192), False),
        ((6, 11, 9), True), ((6, 12, 107), True), ((6, 12, 113), False), ((6, 18, 15), True),
        ((7, 1, 13), True), ((7, 2, 0), False), ((7, 3, 4), False),
    ],
)  # fmt: skip
def test_on_which_kernels_a_defect_is(release, fails):
    assert failure(backports=((6, 1, 190), (6, 12, 113))).is_on(release) is fails
    assert failure().is_on(release) is (release < (7, 2))


def test_which_scenarios_fail():
    nopad, tls_1_2 = BY_NAME["13_nopad"], BY_NAME["12_aes_gcm"]
    assert failure().concerns("one", None)
    assert failure().concerns("one", tls_1_2)
    assert not failure().concerns("two", nopad)
    assert failure(no_pad=True).concerns("two", nopad)
    assert not failure(no_pad=True).concerns("two", tls_1_2)
    assert not failure(no_pad=True).concerns("two", None)
    assert not failure(version=nopad.version).concerns("one", tls_1_2)
    assert failure(version=nopad.version).concerns("one", nopad)
