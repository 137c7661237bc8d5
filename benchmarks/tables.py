"""What was measured: tables of cells, each of which has samples or a reason why there are none."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any, Self

#: Where a clock that counts ticks has seen none.
TOO_LITTLE = "it took too little time to be measured"


class Missing(Exception):
    """A subject cannot be had, or cannot do this, here; the text says why."""


@dataclass
class Cell:
    """One figure: the median of its samples."""

    samples: list[float] = field(default_factory=list)
    reason: str = ""

    @property
    def value(self) -> float | None:
        return statistics.median(self.samples) if self.samples else None

    @property
    def spread(self) -> float:
        """How far the samples are apart, as a part of their median."""
        if not self.samples or not self.value:
            return 0.0
        return (max(self.samples) - min(self.samples)) / self.value


@dataclass
class Table:
    """One measure's figures: a row for each subject.

    ``unit`` is that of every cell, and ``digits`` how many places are shown of it.  ``base`` is the
    row that the others are compared with, if any.
    """

    key: str
    title: str
    unit: str
    columns: list[str]
    about: str = ""
    digits: int = 0
    base: str = ""
    rows: dict[str, dict[str, Cell]] = field(default_factory=dict)

    def add(self, row: str, column: str, *samples: float) -> None:
        if column not in self.columns:
            raise KeyError(column)
        self.rows.setdefault(row, {}).setdefault(column, Cell()).samples.extend(samples)

    def miss(self, row: str, reason: str, columns: list[str] | None = None) -> None:
        """Say why a subject has no figures; those that it has, and earlier reasons, stay."""
        cells = self.rows.setdefault(row, {})
        for column in columns or self.columns:
            cell = cells.setdefault(column, Cell())
            if not cell.samples and not cell.reason:
                cell.reason = reason

    def value(self, row: str, column: str) -> float | None:
        cell = self.rows.get(row, {}).get(column)
        return None if cell is None else cell.value

    def reason(self, row: str, column: str | None = None) -> str:
        cells = self.rows.get(row, {})
        if column is not None:
            cell = cells.get(column)
            return "not measured" if cell is None else cell.reason
        return next((cell.reason for cell in cells.values() if cell.reason), "")

    def whole(self) -> bool:
        """Whether each cell has a figure or a reason."""
        return bool(self.rows) and all(
            (cell := cells.get(column)) is not None and bool(cell.samples) != bool(cell.reason)
            for cells in self.rows.values()
            for column in self.columns
        )

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        rows = {
            row: {column: Cell(**cell) for column, cell in cells.items()}
            for row, cells in data.pop("rows").items()
        }
        return cls(**data, rows=rows)


@dataclass
class Results:
    """All of a run: where it ran, and its tables by their keys."""

    machine: dict[str, str]
    tables: dict[str, Table]
    failures: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        data = json.loads(text)
        tables = {key: Table.from_json(table) for key, table in data["tables"].items()}
        return cls(data["machine"], tables, data["failures"])

    def value(self, table: str, row: str, column: str) -> float | None:
        found = self.tables.get(table)
        return None if found is None else found.value(row, column)
