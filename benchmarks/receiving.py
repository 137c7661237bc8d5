"""Receiving over one connection; the far end is always OpenSSL."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from .connections import KTLS, LIMIT, NAMES, OTHER, SSL, WRAPPED
from .material import KIB, MIB
from .sending import BUFFER, RECORDS, connected, per_gib
from .subjects import attempt
from .tables import TOO_LITTLE, Table

if TYPE_CHECKING:
    from .material import Setting

WAYS = (LIMIT, KTLS, WRAPPED, OTHER, SSL)
ROOMS = {"16 KiB": 16 * KIB, "256 KiB": 256 * KIB}


def measure(setting: Setting) -> list[Table]:
    setting.make_file(setting.scale.bulk)
    bulk = Table(
        "receiving",
        "Receiving: seconds of processor time for a GiB",
        "s/GiB",
        [f"buffer of {room}, {end}" for room in ROOMS for end in ("receiver", "both ends")],
        "The far end is `ssl.SSLSocket.sendall` of 1 MiB in every row.",
        digits=2,
        base=NAMES[SSL],
    )
    records = Table(
        "records-received",
        "Receiving small records: nanoseconds of processor time for one",
        "ns",
        [f"{size} B" for size in RECORDS],
        "All have come when the receiver begins, with a buffer of 256 KiB. OpenSSL gives one "
        "record for each call; the kernel gives as many as are there.",
        base=NAMES[SSL],
    )
    for way in WAYS:
        work = functools.partial(one_subject, setting, way, bulk, records)
        attempt(setting, NAMES[way], [bulk, records], work)
    return [bulk, records]


def one_subject(setting: Setting, way: str, bulk: Table, records: Table) -> None:
    scale, name = setting.scale, NAMES[way]
    with connected(setting, {"way": way}, {"way": SSL}) as (near, far):
        for kind, room in ROOMS.items():
            for repeat in range(scale.repeats + 1):
                far.tell(do="send", size=MIB, count=scale.bulk // MIB)
                receiver = near.ask(do="recv", room=room, bytes=scale.bulk)
                both = receiver["cpu"] + far.hear()["cpu"]
                if repeat:
                    column = f"buffer of {kind}"
                    bulk.add(name, f"{column}, receiver", per_gib(receiver["cpu"], scale.bulk))
                    bulk.add(name, f"{column}, both ends", per_gib(both, scale.bulk))
    with connected(setting, {"way": way, "buffer": BUFFER}, {"way": SSL, "buffer": BUFFER}) as ends:
        near, far = ends
        for size in RECORDS:
            for repeat in range(scale.repeats + 2):
                far.ask(do="send", size=size, count=scale.records)
                receiver = near.ask(do="recv", room=ROOMS["256 KiB"], bytes=size * scale.records)
                if repeat > 1:
                    records.add(name, f"{size} B", receiver["cpu"] / scale.records)


def rates(sent: Table, received: Table) -> Table:
    """Records a second, from the two tables of what one costs."""
    table = Table(
        "records",
        "Small records: how many a second of processor time at both ends is good for",
        "records/s",
        [f"{size} B" for size in RECORDS],
        "From the two tables before: one call to send each, and many received at once.",
        base=NAMES[SSL],
    )
    for way in WAYS:
        name = NAMES[way]
        for column in table.columns:
            costs = sent.value(name, column), received.value(name, column)
            if None in costs:
                reason = sent.reason(name, column) or received.reason(name, column)
                table.miss(name, reason, [column])
                continue
            both = sum(cost for cost in costs if cost is not None)
            if both:
                table.add(name, column, 1e9 / both)
            else:
                table.miss(name, TOO_LITTLE, [column])
    return table
