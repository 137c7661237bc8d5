"""What the figures should be, and whether they are: computed from the tables, nothing by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import handshakes
from .calls import MODES, SIZES
from .connections import CLASS, KTLS, LIMIT, NAMES, PLAIN, SSL
from .servers import AIO, ASYNCIO, FAST_KTLS
from .serving import NAMES as SERVERS
from .tables import TOO_LITTLE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .tables import Results

MOST, LEAST = "at most", "at least"
#: (table, row, column)
Place = tuple[str, str, str]


@dataclass(frozen=True)
class Target:
    """A figure, or the ratio of two: ``pairs`` are (this, to that), and the worst counts."""

    title: str
    bound: float
    pairs: tuple[tuple[Place, Place | None], ...]
    sense: str = MOST
    unit: str = " x"

    def worst(self, results: Results) -> tuple[float, str]:
        """The figure that counts, and the column it is from; ValueError says what is missing."""
        found = []
        for of, to in self.pairs:
            figures = [read(results, place) for place in (of, to) if place is not None]
            if to is not None and not figures[1]:
                raise ValueError(TOO_LITTLE)
            found.append((figures[0] / figures[1] if to is not None else figures[0], of))
        if not found:
            raise ValueError("nothing was measured")
        figure, place = (max if self.sense == MOST else min)(found)
        return figure, place[2] if len({of[2] for of, _ in self.pairs}) > 1 else ""


@dataclass(frozen=True)
class Verdict:
    """``reached`` is None where there is no figure; ``note`` tells why, or where the worst is."""

    title: str
    wanted: str
    figure: str
    reached: bool | None
    note: str

    @property
    def word(self) -> str:
        return {True: "yes", False: "**no**", None: "not measured"}[self.reached]


def read(results: Results, place: Place) -> float:
    table, row, column = place
    value = results.value(table, row, column)
    if value is not None:
        return value
    if table not in results.tables:
        raise ValueError(f"the measure `{table}` was not run")
    raise ValueError(f"{row}: {results.tables[table].reason(row, column)}")


def judge(target: Target, results: Results) -> Verdict:
    wanted = f"{target.sense} {target.bound:g}{target.unit}"
    try:
        figure, where = target.worst(results)
    except ValueError as e:
        return Verdict(target.title, wanted, "-", None, str(e))
    reached = figure <= target.bound if target.sense == MOST else figure >= target.bound
    digits = 0 if not target.unit else 3 if target.bound < 10 else 2
    note = f"the worst: {where}" if where else ""
    return Verdict(target.title, wanted, f"{figure:,.{digits}f}{target.unit}", reached, note)


def ratios(
    tables: Iterable[str], row: str, base: str, columns: Iterable[str]
) -> tuple[tuple[Place, Place], ...]:
    """The same columns of two rows."""
    columns = list(columns)
    return tuple(
        ((table, row, column), (table, base, column)) for table in tables for column in columns
    )


def targets(results: Results) -> list[Target]:
    """All of them; which columns there are, the tables say."""

    def columns(table: str, *beginnings: str) -> list[str]:
        found = results.tables.get(table)
        names = [] if found is None else found.columns
        return [name for name in names if not beginnings or name.startswith(beginnings)]

    file = ["`sendfile`, sender"]
    memory = columns("memory", "process")[-1:]
    lost = columns("lost", "lost")[-1:]
    small = next(iter(SIZES))
    switched = {
        kind: tuple(
            (
                ("handshake", end, f"{handshakes.SWITCHED}, {kind}"),
                ("handshake", end, f"{handshakes.ALONE}, {kind}"),
            )
            for end in handshakes.ENDS
        )
        for kind in ("wall", "processor")
    }
    return [
        Target(
            "`sendfile`: the sender's processor time, to the C program's",
            1.03, ratios(["sending"], NAMES[KTLS], NAMES[LIMIT], file),
        ),
        Target(
            "`sendfile`: the sender's processor time, to `ssl`'s",
            0.5, ratios(["sending"], NAMES[KTLS], NAMES[SSL], file),
        ),
        Target(
            "serving a file on asyncio: processor time, to asyncio's TLS",
            0.25, ratios(["serving"], SERVERS[AIO], SERVERS[ASYNCIO], columns("serving")),
        ),
        Target(
            "serving a file on asyncio: processor time, to `aiofastnet`'s with kernel TLS",
            1.0, ratios(["serving"], SERVERS[AIO], SERVERS[FAST_KTLS], columns("serving")),
        ),
        Target(
            "records of 256 B a second, to `ssl`'s",
            2, ratios(["records"], NAMES[KTLS], NAMES[SSL], ["256 B"]), sense=LEAST,
        ),
        *(
            Target(
                f"`{name}` of 256 B through the class on plain TCP, to `socket.socket`'s",
                1.1,
                ratios([f"{name}-{mode}" for mode in MODES], NAMES[CLASS], NAMES[PLAIN], [small]),
            )
            for name in ("send", "recv_into")
        ),
        Target("handshake and switch, to the handshake: time on the wall", 1.05, switched["wall"]),
        Target("handshake and switch, to the handshake: processor", 1.05, switched["processor"]),
        Target(
            "memory of the process for an idle connection, to `ssl`'s",
            0.25, ratios(["memory"], NAMES[KTLS], NAMES[SSL], memory),
        ),
        Target(
            f"connections that failed: {lost[0] if lost else 'not run'}",
            0, tuple((("lost", NAMES[KTLS], column), None) for column in lost), unit="",
        ),
    ]  # fmt: skip


def verdicts(results: Results) -> list[Verdict]:
    return [judge(target, results) for target in targets(results)]
