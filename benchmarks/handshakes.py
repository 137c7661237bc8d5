"""The handshake alone, the handshake and the switch, and the steps of the switch."""

from __future__ import annotations

import contextlib
import functools
import socket
import time
from typing import TYPE_CHECKING, Any

import pyktls
from pyktls import offloading, takeover

from . import connections
from .connections import KTLS, SSL, finish, make_context, shake_hands
from .ends import Clock, prepare
from .material import certificates
from .subjects import attempt
from .tables import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .ends import Channel
    from .material import Setting

ENDS = {
    "server, ECDSA P-256": ("server", "ecdsa"),
    "server, RSA 2048": ("server", "rsa"),
    "client, ECDSA P-256": ("client", "ecdsa"),
    "client, RSA 2048": ("client", "rsa"),
}
ALONE, SWITCHED = "handshake", "handshake and switch"
ALL = "all of `pyktls.offload`"
#: The steps of pyktls.offload: where they are called from, and what they are called here.
STEPS = (
    (offloading, "extract_checked", "extract the session (`pyktls.extract`)"),
    (takeover, "install_fd", "give the keys to the kernel (`pyktls.install`)"),
    (takeover, "release", "have OpenSSL let go"),
    (offloading, "detach", "take the descriptor"),
)


def measure(setting: Setting) -> list[Table]:
    table = Table(
        "handshake",
        "Handshake, with the switch and without: microseconds",
        "µs",
        [f"{what}, {time_}" for time_ in ("processor", "wall") for what in (ALONE, SWITCHED)],
        "TLS 1.3. The row's end is the near one, whose process is measured; the other end makes "
        "its handshake with `ssl` and no switch. The time on the wall is from the accepted TCP "
        "connection to the connection that can be used, and the other end's work is in it. "
        "Without the switch the context is not watched.",
        digits=0,
    )
    for name, (role, kind) in ENDS.items():
        attempt(setting, name, [table], functools.partial(one, setting, name, role, kind, table))
    steps = Table(
        "steps",
        "The switch alone: microseconds of processor time",
        "µs",
        ["server", "client"],
        "`pyktls.offload` after the handshake, and what it consists of.",
        digits=1,
    )
    attempt(setting, ALL, [steps], functools.partial(all_steps, setting, steps))
    return [table, steps]


def one(setting: Setting, name: str, role: str, kind: str, table: Table) -> None:
    count = setting.scale.handshakes
    other = "client" if role == "server" else "server"
    material = setting.certificates if kind == "ecdsa" else certificates(kind)
    common = {"kind": kind, "material": material, "host": setting.agents.host}
    with setting.agents.near("handshakes", side="near", role=role, **common) as near:
        port = near.hear()["port"]
        del common["host"]
        with setting.agents.far("handshakes", side="far", role=other, port=port, **common) as far:
            # The first ones, of which there may be one only, fill caches and try what works.
            for way, wanted, what in (
                (SSL, 2, ""), (KTLS, 2, ""), (SSL, count, ALONE), (KTLS, count, SWITCHED),
            ):  # fmt: skip
                far.tell(way=SSL, count=wanted)
                done = near.ask(way=way, count=wanted)
                far.hear()
                if what:
                    table.add(name, f"{what}, processor", *(ns / 1000 for ns in done["cpu"]))
                    table.add(name, f"{what}, wall", *(ns / 1000 for ns in done["wall"]))


def handshakes(
    channel: Channel, *, side: str, role: str, kind: str, material: dict[str, str], host: str,
    port: int = 0,
) -> None:  # fmt: skip
    """Make as many handshakes as ordered, one after the other, each on its own connection."""
    contexts = {way: make_context(way, role, material, kind) for way in (SSL, KTLS)}
    with contextlib.ExitStack() as stack:
        if side == "near":
            listener = stack.enter_context(socket.create_server((host, 0)))
            channel.say(port=listener.getsockname()[1])
        # Connections are kept to the next order: who closes at once may disturb the other end.
        kept = stack.enter_context(contextlib.ExitStack())
        while True:
            try:
                order = channel.hear()
            except EOFError:
                return
            kept.close()
            way, cpu, wall = order["way"], [], []
            for _ in range(order["count"]):
                if side == "near":
                    tcp, _ = listener.accept()
                else:
                    tcp = socket.create_connection((host, port))
                prepare(tcp)
                with Clock() as clock:
                    sock = finish(way, shake_hands(contexts[way], role, tcp))
                cpu.append(clock.cpu)
                wall.append(clock.wall)
                kept.callback(connections.let_go, sock)
            channel.say(cpu=cpu, wall=wall)


# ---- the switch alone --------------------------------------------------------------------------


def all_steps(setting: Setting, table: Table) -> None:
    with setting.agents.near(
        "steps", material=setting.certificates, count=setting.scale.handshakes
    ) as child:
        found = child.hear()
    for role in ("server", "client"):
        for name, samples in found[role].items():
            table.add(name, role, *(ns / 1000 for ns in samples))


def steps(channel: Channel, *, material: dict[str, str], count: int) -> None:
    """Switch both ends of some connections, and say what each step took."""
    found: dict[str, dict[str, list[int]]] = {"server": {}, "client": {}}
    for number in range(count + 2):
        near, far = connections.tcp_pair()
        client, server = connections.handshaken_pair(KTLS, material, near, far)
        switched = []
        for role, sock in (("server", server), ("client", client)):
            with timed() as taken:
                begin = time.process_time_ns()
                switched.append(pyktls.offload(sock))
                taken[ALL] = time.process_time_ns() - begin
            if number > 1:
                for name in (*(step[2] for step in STEPS), ALL):
                    found[role].setdefault(name, []).append(taken[name])
                rest = taken[ALL] - sum(taken[step[2]] for step in STEPS)
                found[role].setdefault("all the rest: objects, and what is remembered", []).append(
                    rest
                )
        for end in switched:
            end.abandon()
    channel.say(**found)


@contextlib.contextmanager
def timed() -> Iterator[dict[str, int]]:
    """Have the steps note how long they take."""
    taken: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        for module, name, title in STEPS:
            function = getattr(module, name)
            stack.callback(setattr, module, name, function)
            setattr(module, name, noting(function, title, taken))
        yield taken


def noting(function: Callable[..., Any], title: str, taken: dict[str, int]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        begin = time.process_time_ns()
        try:
            return function(*arguments, **named)
        finally:
            taken[title] = time.process_time_ns() - begin

    return call
