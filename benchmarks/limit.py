"""limit.c: compiled, given the keys of a connection, and told what to do."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyktls

from .tables import Missing

if TYPE_CHECKING:
    import ssl

    from .ends import Channel

SOURCE = Path(__file__).with_suffix(".c")
ORDERS = {
    "sendfile": ("bytes",),
    "send": ("size", "count"),
    "recv": ("room", "bytes"),
    "ping": ("count",),
    "pong": ("count",),
}


def build(place: Path) -> str:
    """Compile it; the path of the program, empty where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return ""
    program = place / "limit"
    subprocess.run(
        [compiler, "-std=c11", "-D_GNU_SOURCE", "-O2", "-o", program, SOURCE], check=True
    )
    return str(program)


def crypto_info(session: pyktls.Session, direction: pyktls.Direction) -> bytearray:
    """The argument of setsockopt for one direction of a TLS 1.3 session with an AES-GCM suite."""
    keys = session.keys(direction)
    numbers = {16: pyktls.linux.TLS_CIPHER_AES_GCM_128, 32: pyktls.linux.TLS_CIPHER_AES_GCM_256}
    info = pyktls.linux.CryptoInfo(
        session.version,
        numbers[len(keys.key)],
        key=keys.key,
        salt=keys.iv[:4],
        iv=keys.iv[4:],
        rec_seq=keys.sequence,
    )
    try:
        return info.pack()
    finally:
        info.wipe()


class Limit:
    """The program, on a connection; ``sock`` is a watched ssl.SSLSocket, or plain TCP."""

    def __init__(self, program: str, sock: Any, file: Any = None) -> None:
        if not program:
            raise Missing("no C compiler here")
        lines = self._keys(sock)
        sock.setblocking(True)
        descriptors = [sock.fileno(), *([] if file is None else [file.fileno()])]
        self.process = subprocess.Popen(
            [program, *map(str, descriptors)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=descriptors,
            text=True,
        )
        answer = self._ask("".join(lines))
        if answer != "ready":
            self.close()
            raise Missing(answer.removeprefix("error: "))

    @staticmethod
    def _keys(sock: ssl.SSLSocket | Any) -> list[str]:
        if not hasattr(sock, "cipher"):
            return ["\n", "\n"]
        session = pyktls.extract(sock)
        directions = pyktls.Direction.TX, pyktls.Direction.RX
        return [crypto_info(session, direction).hex() + "\n" for direction in directions]

    def _ask(self, text: str) -> str:
        assert self.process.stdin is not None  # noqa: S101
        assert self.process.stdout is not None  # noqa: S101
        with contextlib.suppress(BrokenPipeError):  # it has said why it ended
            self.process.stdin.write(text)
            self.process.stdin.flush()
        return self.process.stdout.readline().strip() or "the C program has ended"

    def perform(self, order: dict[str, Any]) -> tuple[int, int]:
        words = [order["do"], *(str(order[name]) for name in ORDERS[order["do"]])]
        answer = self._ask(" ".join(words) + "\n")
        try:
            cpu, wall = map(int, answer.split())
        except ValueError:
            raise RuntimeError(answer) from None
        return cpu, wall

    def close(self) -> None:
        with self.process as process:
            process.kill()


def obey(channel: Channel, program: str, sock: Any, file: Any) -> None:
    """As ends.obey, by the C program."""
    with contextlib.closing(Limit(program, sock, file)) as limit:
        channel.say(ready=True)
        while True:
            try:
                order = channel.hear()
            except EOFError:
                return
            cpu, wall = limit.perform(order)
            channel.say(cpu=cpu, wall=wall, bytes=0)
