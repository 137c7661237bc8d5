"""docs/pitfalls.md: all forty-five, and only tests that exist."""

from __future__ import annotations

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "pitfalls.md").read_text(encoding="utf-8")
# | number | pitfall | what happens here | `file::test` |
ROWS = re.findall(r"^\| (\d+) \| (.+) \| (.+) \| `(\S+?)::(\S+)` \|$", TEXT, re.MULTILINE)


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
    missing = [
        f"{file}::{name}"
        for _, _, _, file, name in ROWS
        if name not in names_in(ROOT / "tests" / file)
    ]
    assert missing == []
