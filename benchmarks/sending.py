"""Sending over one connection: a file, large and small pieces; the far end is always OpenSSL."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

from .connections import KTLS, LIMIT, NAMES, OTHER, SSL, WRAPPED
from .machine import name_and_number
from .material import FILE_NAME, GIB, KIB, MIB
from .programs import S_SERVER
from .subjects import attempt
from .tables import Table
from .usage import processor_time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .agents import Agent
    from .material import Setting

WAYS = (LIMIT, KTLS, WRAPPED, OTHER, SSL)
ROOM = 256 * KIB
RECORDS = (1, 64, 256, 1500)
#: Holds all the records of a batch, so that no end waits for the other.
BUFFER = 4 * MIB
FILE, SMALL, LARGE = "`sendfile`", "16 KiB", "1 MiB"


@contextlib.contextmanager
def connected(
    setting: Setting, near: dict[str, Any], far: dict[str, Any]
) -> Iterator[tuple[Agent, Agent]]:
    """A near and a far end, after the handshake; near is TLS's server."""
    common = {
        "material": setting.certificates,
        "program": setting.limit,
        "file": str(setting.place / FILE_NAME),
    }
    with setting.agents.near(
        "end", side="near", role="server", host=setting.agents.host, **common, **near
    ) as one:
        port = one.hear()["port"]
        # The file is the near end's alone; the C program is not on the other machine.
        common["file"] = ""
        if setting.agents.peer is not None:
            common["program"] = ""
        with setting.agents.far(
            "end", side="far", role="client", port=port, **common, **far
        ) as other:
            try:
                ready = one.hear()
            except RuntimeError:
                other.hear()  # it may know why
                raise
            if "python" in ready:  # another one than this
                openssl = name_and_number(ready["openssl"])
                setting.versions[NAMES[near["way"]]] = f"CPython {ready['python']}, {openssl}"
            other.hear()
            yield one, other


def measure(setting: Setting) -> list[Table]:
    setting.make_file(setting.scale.bulk)
    kinds = (FILE, SMALL, LARGE)
    bulk = Table(
        "sending",
        "Sending: seconds of processor time for a GiB",
        "s/GiB",
        [f"{kind}, {end}" for kind in kinds for end in ("sender", "both ends")],
        "The far end is `ssl.SSLSocket` in every row, with a buffer of 256 KiB. What TCP sends "
        "when an acknowledgement comes is charged to the process in whose time it comes, usually "
        "the far end's, so there is a column of both. Encryption is always the sender's.",
        digits=2,
        base=NAMES[SSL],
    )
    records = Table(
        "records-sent",
        "Sending small records: nanoseconds of processor time for one",
        "ns",
        [f"{size} B" for size in RECORDS],
        "A call each, as many as fit into the socket's buffer; the far end reads afterwards.",
        base=NAMES[SSL],
    )
    for way in WAYS:
        work = functools.partial(one_subject, setting, way, bulk, records)
        attempt(setting, NAMES[way], [bulk, records], work)
    attempt(setting, S_SERVER, [bulk], functools.partial(s_server, setting, bulk))
    records.miss(S_SERVER, "sends files only")
    return [bulk, records]


def one_subject(setting: Setting, way: str, bulk: Table, records: Table) -> None:
    scale, name = setting.scale, NAMES[way]
    with connected(setting, {"way": way}, {"way": SSL}) as (near, far):
        for kind, order in (
            (FILE, {"do": "sendfile", "bytes": scale.bulk}),
            (SMALL, {"do": "send", "size": 16 * KIB, "count": scale.bulk // (16 * KIB)}),
            (LARGE, {"do": "send", "size": MIB, "count": scale.bulk // MIB}),
        ):
            for repeat in range(scale.repeats + 1):
                far.tell(do="recv", room=ROOM, bytes=scale.bulk)
                sender = near.ask(**order)
                both = sender["cpu"] + far.hear()["cpu"]
                if repeat:  # the first one is for getting warm
                    bulk.add(name, f"{kind}, sender", per_gib(sender["cpu"], scale.bulk))
                    bulk.add(name, f"{kind}, both ends", per_gib(both, scale.bulk))
    with connected(setting, {"way": way, "buffer": BUFFER}, {"way": SSL, "buffer": BUFFER}) as ends:
        near, far = ends
        for size in RECORDS:
            for repeat in range(scale.repeats + 2):
                sender = near.ask(do="send", size=size, count=scale.records)
                far.ask(do="recv", room=ROOM, bytes=size * scale.records)
                if repeat > 1:
                    records.add(name, f"{size} B", sender["cpu"] / scale.records)


def per_gib(nanoseconds: float, size: int) -> float:
    return nanoseconds * 1e-9 * GIB / size


def s_server(setting: Setting, table: Table) -> None:
    """OpenSSL's own program, as a web server: a connection for each file."""
    arguments = {"material": setting.certificates, "place": str(setting.place)}
    table.miss(S_SERVER, "sends files only", [c for c in table.columns if not c.startswith(FILE)])
    with setting.agents.near(
        "serve", kind="s_server", host=setting.agents.host, **arguments
    ) as server:
        ready = server.hear()
        setting.versions[S_SERVER] = name_and_number(ready["version"])
        for repeat in range(setting.scale.repeats + 1):
            with setting.agents.far(
                "end", way=SSL, side="far", role="client", port=ready["port"],
                material=setting.certificates,
            ) as far:  # fmt: skip
                far.hear()
                before = processor_time(ready["pid"])
                fetched = far.ask(do="get", path=FILE_NAME)
                sender = processor_time(ready["pid"]) - before
                if fetched["bytes"] < setting.scale.bulk:
                    raise RuntimeError(f"s_server sent {fetched['bytes']} bytes")
                if repeat:
                    size, both = setting.scale.bulk, sender + fetched["cpu"]
                    table.add(S_SERVER, f"{FILE}, sender", per_gib(sender, size))
                    table.add(S_SERVER, f"{FILE}, both ends", per_gib(both, size))
