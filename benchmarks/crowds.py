"""Very many connections in one process: what an idle one takes, and whether all of them work."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import resource
import select
import socket
import ssl
import struct
import time
from typing import TYPE_CHECKING, Any

from .connections import KTLS, NAMES, SSL, finish, make_context, shake_hands
from .ends import TIMEOUT, prepare, receive
from .subjects import attempt
from .tables import Missing, Table
from .usage import kernel_memory, user_memory

if TYPE_CHECKING:
    from .ends import Channel
    from .material import Setting

SPARE = 100  # descriptors for other things
WARM = 30  # connections before the first look
MESSAGE = struct.Struct(">QQ")
MARK = 0x6B746C73_68656C6C


def measure(setting: Setting) -> list[Table]:
    counts = setting.scale.crowds
    memory = Table(
        "memory",
        "An idle connection: KiB of memory",
        "KiB",
        [
            f"{what}, {count:,} connections"
            for count in counts
            for what in ("process", "kernel, both ends")
        ],
        "What the server's process has grown by (RSS), divided by the number of connections, and "
        "what the kernel's small objects (Slab) have, of both ends: the client's are those of "
        "plain TCP in both rows. With `pyktls` OpenSSL's object is gone after the switch. All "
        "connections but the first resume its session, which takes less time.",
        digits=1,
        base=NAMES[SSL],
    )
    lost = Table(
        "lost",
        "Very many connections in one process, an exchange on each",
        "",
        [f"{what} of {count:,}" for count in counts for what in ("worked", "lost")],
        "16 bytes to the server on each connection, and 16 others back, after all connections have "
        "been made and were idle.",
    )
    for way in (SSL, KTLS):
        work = functools.partial(one, setting, way, memory, lost)
        attempt(setting, NAMES[way], [memory, lost], work)
    return [memory, lost]


def one(setting: Setting, way: str, memory: Table, lost: Table) -> None:
    name = NAMES[way]
    with setting.agents.near(
        "crowd", way=way, material=setting.certificates, host=setting.agents.host,
        most=max(setting.scale.crowds),
    ) as near:  # fmt: skip
        port = near.hear()["port"]
        with setting.agents.far(
            "visitors", material=setting.certificates, port=port, most=max(setting.scale.crowds)
        ) as far:
            far.hear()
            before, there = grow(near, far, WARM), WARM
            for count in setting.scale.crowds:
                after = grow(near, far, count + WARM - there)
                there = count + WARM
                user = (after["rss"] - before["rss"]) / count / 1024
                kernel = (after["slab"] - before["slab"]) / count / 1024
                memory.add(name, f"process, {count:,} connections", user)
                memory.add(name, f"kernel, both ends, {count:,} connections", kernel)
                far.tell(do="exchange")
                near.ask(do="exchange")
                worked = far.hear()["worked"]
                lost.add(name, f"worked of {count:,}", min(worked, count))
                lost.add(name, f"lost of {count:,}", there - worked)


def grow(near: Any, far: Any, count: int) -> dict[str, int]:
    """So many connections more; what memory there is in use then."""
    far.tell(do="grow", count=count)
    used: dict[str, int] = near.ask(do="grow", count=count)
    far.hear()
    return used


def allow(descriptors: int) -> None:
    """Raise the limit of open files; raises Missing where that is not ours to do."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = descriptors + SPARE
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
        except (ValueError, OSError):
            raise Missing(f"{wanted} open files are not allowed here (ulimit -n: {hard})") from None


def crowd(channel: Channel, *, way: str, material: dict[str, str], host: str, most: int) -> None:
    """The server's process."""
    allow(most)
    context = make_context(way, "server", material)
    connections: list[Any] = []
    with socket.create_server((host, 0), backlog=128) as listener:
        channel.say(port=listener.getsockname()[1])
        while True:
            try:
                order = channel.hear()
            except EOFError:
                os._exit(0)  # all of them end with the process
            if order["do"] == "grow":
                for _ in range(order["count"]):
                    tcp = prepare(listener.accept()[0])
                    connections.append(finish(way, shake_hands(context, "server", tcp)))
                gc.collect()
                channel.say(**user_memory(), **kernel_memory())
            else:
                answer(connections)
                channel.say(done=True)


def answer(connections: list[Any]) -> None:
    room = bytearray(MESSAGE.size)
    for sock in connections:
        with contextlib.suppress(OSError):  # the far end counts
            receive(sock, memoryview(room), len(room))
            first, second = MESSAGE.unpack(room)
            sock.sendall(MESSAGE.pack(second, first))


def visitors(
    channel: Channel, *, material: dict[str, str], host: str, port: int, most: int
) -> None:
    """The clients' process."""
    allow(most)
    context = make_context(SSL, "client", material)
    connections: list[Any] = []
    session = None
    channel.say(ready=True)
    while True:
        try:
            order = channel.hear()
        except EOFError:
            os._exit(0)
        if order["do"] == "grow":
            for _ in range(order["count"]):
                tcp = prepare(socket.create_connection((host, port)))
                connections.append(shake_hands(context, "client", tcp, session))
                session = session or ticket_of(connections[0])
            channel.say(done=True)
        else:
            channel.say(worked=exchange(connections))


def ticket_of(sock: ssl.SSLSocket) -> ssl.SSLSession | None:
    """The session that later connections resume; a ticket comes right after the handshake."""
    select.select([sock], [], [], TIMEOUT)
    sock.setblocking(False)
    with contextlib.suppress(ssl.SSLWantReadError):
        sock.recv(1)
    sock.settimeout(TIMEOUT)
    return sock.session


def exchange(connections: list[Any]) -> int:
    """Say something different on each; how many answers were right."""
    round_ = time.monotonic_ns()
    for number, sock in enumerate(connections):
        with contextlib.suppress(OSError):
            sock.sendall(MESSAGE.pack(MARK ^ round_, number))
    worked = 0
    room = bytearray(MESSAGE.size)
    for number, sock in enumerate(connections):
        with contextlib.suppress(OSError):
            receive(sock, memoryview(room), len(room))
            worked += MESSAGE.unpack(room) == (number, MARK ^ round_)
    return worked
