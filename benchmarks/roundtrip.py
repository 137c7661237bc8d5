"""One byte there, one byte back."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from .connections import KTLS, LIMIT, NAMES, PLAIN, SSL, WRAPPED
from .sending import connected
from .subjects import attempt
from .tables import Table

if TYPE_CHECKING:
    from .material import Setting

WAYS = (PLAIN, LIMIT, KTLS, WRAPPED, SSL)


def measure(setting: Setting) -> list[Table]:
    setting.make_file(setting.scale.bulk)
    table = Table(
        "roundtrip",
        "A round trip of one byte: microseconds",
        "µs",
        ["processor time of the near end", "time on the wall"],
        "Both ends are of the same kind (with `--peer` the far end of the C program is "
        "`pyktls.KTLSSocket`).",
        digits=1,
        base=NAMES[SSL],
    )
    for way in WAYS:
        attempt(setting, NAMES[way], [table], functools.partial(one, setting, way, table))
    return [table]


def one(setting: Setting, way: str, table: Table) -> None:
    count = setting.scale.pings
    other = KTLS if way == LIMIT and setting.agents.peer is not None else way
    with connected(setting, {"way": way}, {"way": other}) as (near, far):
        for repeat in range(setting.scale.repeats + 1):
            far.tell(do="pong", count=count)
            done = near.ask(do="ping", count=count)
            far.hear()
            if repeat:
                for column, value in zip(table.columns, (done["cpu"], done["wall"]), strict=True):
                    table.add(NAMES[way], column, value / count / 1000)
