"""The tables as text: Markdown, which is also what is printed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .targets import verdicts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .tables import Results, Table

BEGIN = "<!-- measured: `make bench` writes from here -->"
END = "<!-- measured: to here -->"
NOTHING = "-"
COUNTED = (
    "One emulated processor whose clock goes on by a nanosecond for each instruction, so a "
    "nanosecond below is an instruction of program and kernel. The figures repeat within a per "
    "cent or two; they know nothing of caches, and of instructions that take long. Compare the "
    "rows with each other, not with a stopwatch."
)
TIMED = "Real time on a real processor; the figures are medians."


def markdown(results: Results, plot: str = "") -> str:
    """All of a run, as a section."""
    machine = dict(results.machine)
    kernel = machine.pop("kernel")
    counted = machine["clock"] != "time"
    parts = [f"## {kernel}", COUNTED if counted else TIMED]
    parts.append("\n".join(f"- {name}: {value}" for name, value in machine.items()))
    parts += ["### Targets", targets_table(results)]
    if plot:
        parts.append(f"![The main figures as bars]({plot})")
    for table in results.tables.values():
        parts += section(table)
    return "\n\n".join(part for part in parts if part) + "\n"


def targets_table(results: Results) -> str:
    rows = [
        [verdict.title, verdict.wanted, verdict.figure, verdict.word, verdict.note]
        for verdict in verdicts(results)
    ]
    return grid(["target", "wanted", "reached", "", ""], rows, left=(0, 3, 4))


def section(table: Table) -> list[str]:
    names = list(table.rows)
    rows = [[name, *(cell_text(table, name, column) for column in table.columns)] for name in names]
    return [
        f"### {table.title}",
        table.about,
        grid(["", *table.columns], rows),
        "\n".join(f"- {line}" for line in reasons(table)),
    ]


def cell_text(table: Table, row: str, column: str) -> str:
    """The median, and in times the base's."""
    value = table.value(row, column)
    if value is None:
        return NOTHING
    text = f"{value:,.{table.digits}f}"
    base = table.value(table.base, column) if table.base else None
    return f"{text} ({value / base:.2f} x)" if base else text


def reasons(table: Table) -> list[str]:
    """Why cells are empty: each reason once, with the rows and columns that it is about."""
    found: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for row, cells in table.rows.items():
        columns: dict[str, list[str]] = {}
        for column in table.columns:
            if (cell := cells.get(column)) is not None and cell.reason:
                columns.setdefault(cell.reason, []).append(column)
        for reason, names in columns.items():
            where = () if len(names) == len(table.columns) else tuple(names)
            found.setdefault((reason, where), []).append(row)
    return [
        f"{', '.join(rows)}" + (f" ({'; '.join(where)})" if where else "") + f": {reason}"
        for (reason, where), rows in found.items()
    ]


def grid(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """A table, its columns aligned in the source too."""
    everything = [list(head), *map(list, rows)]
    widths = [max(len(row[i]) for row in everything) for i in range(len(head))]
    lines = []
    for row in everything:
        cells = [
            text.ljust(width) if i in left else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(cells)} |")
    rules = [
        "-" * width if i in left else "-" * (max(width, 2) - 1) + ":"
        for i, width in enumerate(widths)
    ]
    lines.insert(1, f"| {' | '.join(rules)} |")
    return "\n".join(lines)


def write_page(page: Path, sections: Sequence[str]) -> None:
    """Put the sections between the marks of a page; what is around them stays."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} has no place for what is measured: {BEGIN}, {END}")
    body = "\n".join(sections)
    page.write_text(f"{before}{BEGIN}\n\n{body}\n{END}{after}", encoding="utf-8")
