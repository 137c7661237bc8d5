"""docs/pitfalls.md: all forty-five, and only tests that exist and are collected."""

from __future__ import annotations

import ast
import os
import pathlib
import re
import subprocess
import sys

from support.systems import linux_only

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "pitfalls.md").read_text(encoding="utf-8")
NAME = r"`(\S+?)::(\S+)`"
# | number | pitfall | what happens here | `file::test`, `file::test` |
ROWS = re.findall(rf"^\| (\d+) \| (.+) \| (.+) \| ({NAME}(?:, {NAME})*) \|$", TEXT, re.MULTILINE)
NAMED = [name for row in ROWS for name in re.findall(NAME, row[3])]


def names_in(file: pathlib.Path) -> set[str]:
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names |= {f"{node.name}::{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)}
    return names


def test_the_table_has_forty_five_rows_and_every_test_exists() -> None:
    assert [int(row[0]) for row in ROWS] == list(range(1, 46))
    assert len(NAMED) >= len(ROWS)
    missing = [
        f"{file}::{name}" for file, name in NAMED if name not in names_in(ROOT / "tests" / file)
    ]
    assert missing == []


@linux_only  # those of tests/kernel are for nothing else
def test_every_test_in_it_is_collected() -> None:
    """As the lab does it, where nothing is left out for the machine's sake."""
    files = sorted({f"tests/{file}" for file, _ in NAMED})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files],
        cwd=ROOT,
        env={**os.environ, "PYKTLS_LAB": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    collected = {line.partition("[")[0] for line in done.stdout.splitlines()}
    assert {f"tests/{file}::{name}" for file, name in NAMED} - collected == set()
