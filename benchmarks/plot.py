"""The main figures as bars, in an SVG file; matplotlib draws, where it is installed."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from .tables import Results, Table

#: What is drawn: the table, its column, the words above.
PANELS = (
    ("sending", "`sendfile`, sender", "sendfile: s of sender's CPU / GiB"),
    ("sending", "16 KiB, sender", "sends of 16 KiB: s of sender's CPU / GiB"),
    ("serving", "16 connections", "16 asyncio connections: s of server's CPU / GiB"),
    ("records", "256 B", "records of 256 B / s of CPU"),
    ("roundtrip", "time on the wall", "round trip of a byte: µs"),
    ("memory", None, "idle connection: KiB of the process"),
)
OURS, OTHERS = "#2a6fbb", "#b8bec6"


def installed() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def bars(table: Table, column: str | None) -> list[tuple[str, float]]:
    """Names and values of a panel, the smallest last; ``column`` None: the last of processes."""
    if column is None:
        columns = [name for name in table.columns if name.startswith("process")]
        if not columns:
            return []
        column = columns[-1]
    found = [(row.replace("`", ""), table.value(row, column)) for row in table.rows]
    return [(name, value) for name, value in found if value is not None]


def draw(results: Results, path: Path) -> None:
    """Write the file: the same figures give the same bytes."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    panels = [
        (title, found)
        for key, column, title in PANELS
        if key in results.tables and (found := bars(results.tables[key], column))
    ]
    settings: Any = {"svg.hashsalt": "pyktls", "svg.fonttype": "none", "font.size": 8}
    with plt.rc_context(settings):
        rows = max(1, (len(panels) + 1) // 2)
        figure, axes = plt.subplots(rows, 2, figsize=(10, 2.1 * rows), squeeze=False)
        for place in axes.flat:
            place.set_axis_off()
        for place, (title, found) in zip(axes.flat, panels, strict=False):
            panel(place, title, found)
        figure.suptitle(results.machine["kernel"])
        figure.tight_layout()
        figure.savefig(path, format="svg", metadata={"Date": None})
        plt.close(figure)


def panel(place: Any, title: str, found: list[tuple[str, float]]) -> None:
    place.set_axis_on()
    names = [name for name, _ in found]
    values = [value for _, value in found]
    colours = [OURS if "pyktls" in name else OTHERS for name in names]
    drawn = place.barh(names, values, color=colours)
    digits = 2 if max(values) < 100 else 0
    place.bar_label(drawn, [f" {value:,.{digits}f}" for value in values])
    place.invert_yaxis()
    place.set_title(title, loc="left", fontsize=9)
    place.set_xlim(right=max(values) * 1.25)
    place.xaxis.set_visible(False)
    for side in ("top", "right", "bottom"):
        place.spines[side].set_visible(False)
