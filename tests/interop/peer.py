"""What every peer has in common: how it is started, and what it can be asked.

A ``Peer`` is a program, or Python's own ``ssl``.  ``serve`` and ``connect`` start it as a server or
a client; both give a ``Side``, whose ``begin`` announces one connection and returns the ``End``:
that connection, seen from the peer.  An End is asked to do something together with our socket and
returns what arrived, at the peer and here.

A peer that cannot do what it is asked for says so itself: its words go into ``Refused``.  Nothing
here knows beforehand what a peer cannot do.
"""

from __future__ import annotations

import abc
import contextlib
import enum
import functools
import os
import re
import select
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import trustme

from pyktls.ciphers import TLS_1_3, CipherSuite
from support import tls

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Iterator

TIMEOUT = 40.0  # an emulated machine that is busy besides
HOST = tls.HOST
CHUNK = 1 << 16
WORDS = 160  # so much of what a peer says is quoted


def numbered_lines(first: int, count: int) -> bytes:
    """Lines in which nothing is lost or swapped unseen, and which no program takes for commands."""
    return b"".join(b"%015d\n" % number for number in range(first, first + count))


FILE = "down.txt"
#: What goes to the peer and what comes from it: 6 records and a rest.  No more, because gnutls-cli
#: makes a system call for each byte that it prints.
UP = numbered_lines(10_000_000, 6_200)
DOWN = numbered_lines(20_000_000, 6_300)


class Refused(Exception):
    """The peer cannot do this, in its own words."""


class Untold(Refused):
    """It was done, and the peer does not tell whether it saw what it should have seen."""


class Feature(enum.StrEnum):
    """What is tried on a connection; the values are the columns of the table."""

    DATA = "data"
    SENDFILE = "sendfile"
    OUR_CLOSE = "our close"
    ITS_CLOSE = "its close"
    RESUMPTION = "resumption"
    KEY_UPDATE = "KeyUpdate"


class Purpose(enum.Enum):
    """What a peer is started for.

    A start is dear where the machine is emulated, so one serves for several features: with
    ``TRANSFER`` there are two connections.  On the first come DATA and SENDFILE; the second
    resumes it, for RESUMPTION and OUR_CLOSE.
    """

    TRANSFER = (Feature.DATA, Feature.SENDFILE, Feature.RESUMPTION, Feature.OUR_CLOSE)
    ITS_CLOSE = (Feature.ITS_CLOSE,)
    KEY_UPDATE = (Feature.KEY_UPDATE,)


@dataclass(frozen=True)
class Setting:
    """What both ends are told: where files are, and the one suite that they may use."""

    place: pathlib.Path
    suite: CipherSuite

    @property
    def is_tls_1_3(self) -> bool:
        return self.suite.version == TLS_1_3

    @property
    def rsa(self) -> bool:
        """Whether the suite is signed with, or encrypts to, an RSA key."""
        return not self.is_tls_1_3 and "ECDSA" not in self.suite.openssl_name

    @functools.cached_property
    def ca(self) -> pathlib.Path:
        path = self.place / "ca.pem"
        tls.authority().cert_pem.write_to_path(path)
        return path

    @functools.cached_property
    def certificate(self) -> pathlib.Path:
        """Key and certificate, in one file."""
        kind = trustme.KeyType.RSA if self.rsa else trustme.KeyType.ECDSA
        path = self.place / f"{kind.name}.pem"
        tls.certificate(kind).private_key_and_cert_chain_pem.write_to_path(path)
        return path

    @functools.cached_property
    def dh_parameters(self) -> pathlib.Path:
        """The group ffdhe2048 of RFC 7919, for those servers that bring none of their own."""
        path = self.place / "dh.pem"
        command = ["openssl", "genpkey", "-genparam", "-algorithm", "DH", "-outform", "PEM"]
        command += ["-pkeyopt", "group:ffdhe2048", "-out", str(path)]
        subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT)
        return path

    def file_to_send(self) -> pathlib.Path:
        """DOWN in a file, for those peers that send files."""
        path = self.place / FILE
        if not path.exists():
            path.write_bytes(DOWN)
        return path

    def scratch(self, name: str) -> pathlib.Path:
        """The path of a file that is not there yet."""
        for number in range(1000):
            path = self.place / f"{number}-{name}"
            if not path.exists():
                return path
        raise AssertionError("so many files?")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def find_program(name: str) -> str:
    """The path of a program; servers are often out of a user's PATH."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
    found = shutil.which(name, path=path)
    if found is None:
        raise FileNotFoundError(f"{name} is needed: tests/setup.sh lab,test installs it")
    return found


def ask(*command: str) -> tuple[int, str]:
    """Run a program to its end: its status and all that it printed."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=TIMEOUT, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout.decode(errors="replace")


def shorten(text: str) -> str:
    """Words of a peer on one line, without what differs from run to run."""
    text = re.sub(r"\b(0x)?[0-9A-Fa-f]{8,}\b[: ]*", "", text)  # addresses and thread numbers
    text = re.sub(r"[.]*/\S*/", "", text)  # directories
    text = re.sub(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d ", "", text)
    text = re.sub(r"\b\d+#\d+:\s*", "", text)
    text = re.sub(r"127\.0\.0\.1:\d+|port \d+", "127.0.0.1", text)
    text = " ".join(text.split())
    return text if len(text) <= WORDS else text[: WORDS - 3].rstrip() + "..."


class Program:
    """A running program with pipes; it is killed, by its pid, when the block ends."""

    def __init__(
        self, setting: Setting, command: list[str], environment: dict[str, str] | None = None
    ) -> None:
        self.name = os.path.basename(command[0])  # noqa: PTH119
        self._errors = setting.scratch(f"{self.name}.err")
        self.said_to = [self._errors]  # files with its words, the best first
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                cwd=setting.place, bufsize=0, env=os.environ | (environment or {}),
            )  # fmt: skip
        self._input = self._process.stdin
        self._output = self._process.stdout
        self._read = b""

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._input, self._output):
            with contextlib.suppress(OSError):
                pipe.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def say(self, data: bytes) -> None:
        """Write to its standard input; may be called in a thread."""
        view = memoryview(data)
        while view:
            view = view[self._input.write(view) :]

    def end_input(self) -> None:
        self._input.close()

    def _more(self, deadline: float) -> bytes:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self._output], [], [], left)[0]:
            raise AssertionError(f"{self.name} printed nothing more: {self.words()}")
        return os.read(self._output.fileno(), CHUNK)

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes of its standard output."""
        deadline = time.monotonic() + TIMEOUT
        data = bytearray(self._read)
        while len(data) < size:
            more = self._more(deadline)
            assert more, f"{self.name} ended after {len(data)} of {size} bytes: {self.words()}"
            data += more
        self._read = bytes(data[size:])
        return bytes(data[:size])

    def skip_to(self, marker: bytes) -> None:
        """Read up to the end of ``marker``."""
        deadline = time.monotonic() + TIMEOUT
        data = self._read
        while marker not in data:
            more = self._more(deadline)
            assert more, f"{self.name} ended before it printed {marker!r}: {self.words()}"
            data += more
        self._read = data.partition(marker)[2]

    def rest(self) -> bytes:
        """All that it still prints, up to its end."""
        deadline = time.monotonic() + TIMEOUT
        data = self._read
        while more := self._more(deadline):
            data += more
        return data

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self) -> int:
        """Its exit status."""
        try:
            return self._process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} does not end: {self.words()}") from None

    def finish(self) -> None:
        """Wait for its end, which must be a good one."""
        status = self.wait()
        assert status == 0, f"{self.name} ended with status {status}: {self.words()}"

    def log(self) -> str:
        """All that it has said, apart from its standard output."""
        return "\n".join(
            path.read_text("utf-8", "replace") for path in self.said_to if path.exists()
        )

    def words(self) -> str:
        """The line that says best what went wrong."""
        lines = [line.strip() for line in self.log().splitlines() if line.strip()]
        telling = [
            line for line in lines
            if re.search(r"error|fatal|unknown|invalid|fail|no shared|emerg|can't|cannot", line,
                         re.IGNORECASE)
        ]  # fmt: skip
        return shorten((telling or lines or ["(nothing)"])[-1])

    def refusal(self) -> str:
        """Its words, once it had the time to end or to say something."""
        deadline = time.monotonic() + 3.0
        while not self.has_ended() and time.monotonic() < deadline:
            time.sleep(0.05)
        status = self._process.poll()
        ended = f" (exit status {status})" if status else ""
        return self.words() + ended

    def _said_after(self, marker: str) -> str:
        if not marker:
            return self.log()
        _, found, rest = self.log().rpartition(marker)
        return rest if found else ""

    def wait_for_log(self, pattern: str, times: int = 1, *, after: str = "") -> bool:
        """Whether it says something so many times, in a while; ``after`` it last said that."""
        deadline = time.monotonic() + 10.0
        while len(re.findall(pattern, self._said_after(after))) < times:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


class End(abc.ABC):
    """One connection, seen from the peer.  ``sock`` is always our end."""

    @abc.abstractmethod
    def exchange(self, sock: socket.socket, up: bytes, down: bytes) -> tuple[bytes, bytes]:
        """Send ``up`` to the peer and have it send ``down``; returns what came at each end."""

    @abc.abstractmethod
    def take(self, sock: socket.socket, send: Callable[[], object], size: int) -> bytes:
        """Have the peer receive what ``send()`` sends on ``sock``: ``size`` bytes, returned."""

    @abc.abstractmethod
    def take_then_see_close(self, sock: socket.socket, up: bytes) -> bytes:
        """Send ``up`` and close ``sock``; returns what the peer got.

        AssertionError if the peer has not seen a close_notify; Untold if it does not tell.
        """

    @abc.abstractmethod
    def give_then_close(self, sock: socket.socket, down: bytes) -> bytes:
        """Have the peer send ``down`` and close; returns what came up to its close_notify."""

    @abc.abstractmethod
    def key_update(self, sock: socket.socket, *, request: bool) -> None:
        """Have the peer change its sending keys, and ask for ours to be changed."""

    #: Whether the peer ends the connection at once, because it only wants a session to resume.
    #: It may be gone before our end can be handed over, so it is not.
    idle = False

    def remember(self) -> None:
        """Keep what the peer's next connection can resume, before this one is closed."""

    def closed(self) -> None:
        """Our end of a connection that another is to follow has been closed."""

    def stop(self) -> None:
        """End what belongs to this connection alone."""


class Side(abc.ABC):
    """A peer that was started, as server or client."""

    port: int = 0

    @abc.abstractmethod
    def begin(self) -> End:
        """The next connection; called before its TCP connection is made."""

    @abc.abstractmethod
    def refusal(self) -> str:
        """Its words about a connection that came to nothing, empty if it has none."""

    def stop(self) -> None:
        """End everything."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Peer(abc.ABC):
    """A kind of peer."""

    name: str
    #: Whether it is told to use kernel TLS itself.
    ktls: bool = False
    #: Whether ``serve`` and ``connect`` exist.
    is_server: bool = True
    is_client: bool = True

    @abc.abstractmethod
    def version(self) -> str:
        """What it says about its version, as "name number"."""

    def server_name(self) -> str:
        """Its name in the table as a server."""
        return self.name

    def client_name(self) -> str:
        return self.name

    def note(self) -> str:
        """What the reader of the table should know of how it was started, empty if nothing."""
        return ""

    def serve(self, setting: Setting, purpose: Purpose) -> Side:
        raise NotImplementedError

    def connect(self, setting: Setting, purpose: Purpose, port: int) -> Side:
        raise NotImplementedError


def connect_to(side: Side) -> socket.socket:
    """A TCP connection to a server, as soon as it listens."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            return socket.create_connection(("127.0.0.1", side.port), TIMEOUT)
        except ConnectionRefusedError:
            if (words := server_has_ended(side)) is not None:
                raise Refused(words) from None
            assert time.monotonic() < deadline, f"it does not listen: {side.refusal()}"
            time.sleep(0.02)


def server_has_ended(side: Side) -> str | None:
    program = getattr(side, "program", None)
    return program.refusal() if program is not None and program.has_ended() else None


# ---- HTTP, as far as curl and nginx need it ---------------------------------------------------


def read_head(sock: socket.socket) -> tuple[str, dict[str, str], bytes]:
    """``(first line, header fields, what came behind)`` of a message."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(CHUNK)
        assert more, f"the peer closed in its header: {data!r}"
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines if ": " in line)
    return first, {name.lower(): value for name, value in fields.items()}, rest


def read_message(sock: socket.socket) -> tuple[str, bytes]:
    """``(first line, body)`` of a message with a Content-Length, or without a body."""
    first, fields, body = read_head(sock)
    size = int(fields.get("content-length", 0))
    data = bytearray(body)
    while len(data) < size:
        more = sock.recv(CHUNK)
        assert more, f"the peer closed after {len(data)} of {size} bytes"
        data += more
    assert len(data) == size, "more came than was announced"
    return first, bytes(data)


def read_answer_to_the_end(sock: socket.socket) -> bytes:
    """The body of an answer that ends with the connection, and that end."""
    first, _, body = read_head(sock)
    assert " 200 " in first, first
    data = bytearray(body)
    while more := sock.recv(CHUNK):
        data += more
    sock.close()
    return bytes(data)


@contextlib.contextmanager
def stopping(end: End) -> Iterator[End]:
    try:
        yield end
    finally:
        end.stop()
