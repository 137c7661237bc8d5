"""What one call costs: send and recv of pyktls, of the ssl module, and of a plain TCP socket.

Both ends are in one process: in a round the sender fills the socket's buffer as far as it goes, and
then the receiver empties it, each timed by itself.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import time
from typing import TYPE_CHECKING, Any

from .connections import CLASS, KTLS, NAMES, PLAIN, SSL, WRAPPED, let_go, pair, set_buffers
from .subjects import attempt
from .tables import Missing, Table

if TYPE_CHECKING:
    from .ends import Channel
    from .material import Setting

SIZES = {"256 B": 256, "16 KiB": 16 << 10, "1 MiB": 1 << 20}
WAYS = (PLAIN, CLASS, SSL, KTLS, WRAPPED)
MODES = {"blocking": "blocking", "timeout": "with a timeout"}
BUFFER = 4 << 20
DIRECTIONS = ("send", "sendall", "recv_into")


def measure(setting: Setting) -> list[Table]:
    tables = {
        (direction, mode): Table(
            f"{direction}-{mode}",
            f"`{direction}`, {words}: nanoseconds for one call",
            "ns",
            list(SIZES),
            base=NAMES[PLAIN],
        )
        for direction in DIRECTIONS
        for mode, words in MODES.items()
    }
    for way in WAYS:
        work = functools.partial(one, setting, way, tables)
        attempt(setting, NAMES[way], list(tables.values()), work)
    return list(tables.values())


def one(setting: Setting, way: str, tables: dict[tuple[str, str], Table]) -> None:
    with setting.agents.near(
        "calls", way=way, material=setting.certificates, rounds=setting.scale.calls
    ) as child:
        for mode in MODES:
            for name, size in SIZES.items():
                found = child.ask(mode=mode, size=size)
                for direction in DIRECTIONS:
                    tables[direction, mode].add(NAMES[way], name, *found[direction])


def calls(channel: Channel, *, way: str, material: dict[str, str], rounds: int) -> None:
    """Measure sizes as they are asked for, each on a fresh pair."""
    with contextlib.suppress(EOFError):
        while True:
            order = channel.hear()
            near, far = pair(way, material)
            try:
                for sock in (near, far):
                    sock.settimeout(60 if order["mode"] == "timeout" else None)
                    set_buffers(sock, BUFFER)
                if far.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) < 2 * order["size"]:
                    raise Missing("the buffers of sockets are limited (net.core.rmem_max)")
                # The first round is for the tickets, and for walking every path once.
                found: dict[str, list[float]] = {name: [] for name in DIRECTIONS}
                for number in range(-1, rounds):
                    one_round(far, near, order["size"], "sendall")
                    for name in ("send", "sendall"):
                        sent, received = one_round(near, far, order["size"], name)
                        if number >= 0:
                            found[name].append(sent)
                            found["recv_into"].append(received)
            finally:
                let_go(near)
                let_go(far)
            channel.say(**found)


def one_round(near: Any, far: Any, size: int, how: str) -> tuple[float, float]:
    """Nanoseconds of one send or sendall, and of receiving as much, by recv_into."""
    data = bytes(size)
    count = max(1, min(200, (BUFFER // 4) // (size + 600)))
    call = getattr(near, how)
    begin = time.perf_counter_ns()
    for _ in range(count):
        call(data)
    sent = time.perf_counter_ns()
    view = memoryview(bytearray(size))
    for _ in range(count):
        left = size
        while left:
            left -= far.recv_into(view[:left])
    received = time.perf_counter_ns()
    return (sent - begin) / count, (received - sent) / count
