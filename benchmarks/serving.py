"""Serving a file to many connections: servers on asyncio, and the program."""

from __future__ import annotations

import contextlib
import functools
import select
from typing import TYPE_CHECKING

from .material import FILE_NAME, GIB
from .programs import SERVE
from .servers import AIO, ASYNCIO, FAST, FAST_KTLS
from .subjects import attempt
from .tables import Table
from .usage import processor_time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .agents import Agent
    from .material import Setting

NAMES = {
    AIO: "`pyktls.aio`",
    "pyktls-serve": SERVE,
    FAST_KTLS: "`aiofastnet`, kernel TLS",
    FAST: "`aiofastnet`",
    ASYNCIO: "asyncio's TLS, `loop.sendfile`",
}


def measure(setting: Setting) -> list[Table]:
    setting.make_file(setting.scale.request_size)
    counts = setting.scale.requests
    size = setting.scale.request_size >> 10
    server = Table(
        "serving",
        f"Serving a file of {size:,} KiB: the server's processor time, seconds for a GiB",
        "s/GiB",
        [named(count) for count in counts],
        "HTTP/1.1 over TLS on asyncio, connections that stay open, all of them busy at once; the "
        "handshakes are not in it. `aiofastnet` sends no file without kernel TLS: there it reads "
        "and writes pieces of 256 KiB.",
        digits=2,
        base=NAMES[ASYNCIO],
    )
    both = Table(
        "serving-both",
        "The same, server and clients together",
        "s/GiB",
        server.columns,
        "The clients are OpenSSL's in every row.",
        digits=2,
        base=NAMES[ASYNCIO],
    )
    for kind, name in NAMES.items():
        attempt(setting, name, [server, both], functools.partial(one, setting, kind, server, both))
    return [server, both]


def named(connections: int) -> str:
    return f"{connections} connection{'s' if connections > 1 else ''}"


def one(setting: Setting, kind: str, table: Table, both: Table) -> None:
    scale = setting.scale
    with setting.agents.near(
        "serve", kind=kind, host=setting.agents.host, material=setting.certificates,
        place=str(setting.place),
    ) as server, saying_why(server):  # fmt: skip
        ready = server.hear()
        for connections, (requests, rounds) in scale.requests.items():
            with setting.agents.far(
                "load", port=ready["port"], authority=setting.certificates["authority"],
                connections=connections, path=FILE_NAME,
            ) as clients:  # fmt: skip
                clients.hear()
                # One on each for getting warm, except where each is one of very many.
                if connections < 100:
                    clients.ask(requests=1)
                for _ in range(rounds):
                    before = processor_time(ready["pid"])
                    done = clients.ask(requests=requests)
                    taken = processor_time(ready["pid"]) - before
                    sent = connections * requests * scale.request_size / GIB
                    table.add(NAMES[kind], named(connections), taken * 1e-9 / sent)
                    both.add(NAMES[kind], named(connections), (taken + done["cpu"]) * 1e-9 / sent)


@contextlib.contextmanager
def saying_why(server: Agent) -> Iterator[None]:
    """Where the clients fail, the server may have said why."""
    try:
        yield
    except RuntimeError:
        if select.select([server.channel.sock], [], [], 0)[0]:
            server.hear()
        raise
