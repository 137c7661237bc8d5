"""The demo: a real file through kernel TLS to programs that know nothing of it, with proof.

How this works.  This process takes no part in the transfers.  For every step it forks a child that
is the Python end (server or client, pyktls or ssl) and measures its own CPU time, starts the
unmodified program that is the other end, and hashes what that program prints.  A child talks back
through a pipe: its port, its progress, then one Report or one Failure.  Children are forked, not
started afresh: in the emulated machine of tests/lab a new Python takes five seconds.  Nobody is
waited for without a limit, and whoever is still there when a step ends is killed by its pid.

The evidence is the kernel's, not ours: the socket's own options, its entry in the socket
diagnostics (asked by us and by `ss`), the record sequence numbers that the kernel holds before and
after the transfer, and /proc/net/tls_stat.  `doubts` decides whether it is enough.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import multiprocessing
import os
import pathlib
import platform
import random
import re
import resource
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, Self, TextIO

from . import __version__, linux
from ._kernel import lib
from .ciphers import AEADS, TLS_1_2, TLS_1_3, find_suite_by_openssl_name
from .errors import Error, Unavailable
from .handoff import watch
from .sock_diag import ulp_info
from .socket_calls import loopback_pair
from .sockets import KTLSSocket, offload
from .status import Mode, status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    # Bytes so far, and of how many.
    Progress = Callable[[int, int], None]
    # Of the next record: TX, RX.
    Numbers = tuple[int | None, int | None]

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "send a file through kernel TLS to unmodified peers, and prove it"
DESCRIPTION = """\
Send a real file through kernel TLS to programs that know nothing of it, and
prove it.  For TLS 1.3 and TLS 1.2, on the loopback interface:

  * a pyktls socket serves a file with sendfile; openssl s_client and curl
    fetch it
  * Python's own ssl serves the same file to s_client, for comparison
  * a pyktls client fetches the file from openssl s_server, and so does
    Python's ssl

Each time the SHA-256 is taken at the far end and compared with the file's.
That the kernel did the encryption is read from the kernel.
"""
EPILOG = """\
Temporary files are in $TMPDIR, or else in memory if there is room.  Exit
status: 0 if every SHA-256 matched and the kernel confirmed every pyktls
socket, 1 if not, 2 if the demo cannot run here (no kernel TLS, no openssl).
"""

OK, FAILED, CANNOT_RUN = 0, 1, 2

MIB = 1 << 20
CHUNK = 256 * 1024  # what is read at once from the peer, and by the client
RECORD = 1 << 14  # a record holds at most this much (RFC 8446 section 5.1)
SEED = 20250  # the file is the same every time
NAME = "localhost"
SERVED = "file"  # the name under which the file is served

# Seconds.  Nothing here is slow, except a busy emulated machine.
START_TIMEOUT = 60.0  # for a program to start and shake hands
STALL_TIMEOUT = 60.0  # without a single byte
END_TIMEOUT = 30.0  # for a program to end when all has been said
TOOL_TIMEOUT = 30.0  # for openssl req, ss and the like

VERSIONS = {TLS_1_3: ssl.TLSVersion.TLSv1_3, TLS_1_2: ssl.TLSVersion.TLSv1_2}
VERSION_NAMES = {TLS_1_3: "TLS 1.3", TLS_1_2: "TLS 1.2"}
_CONF_NAMES = {
    lib.TLS_CONF_BASE: "not in the kernel",
    lib.TLS_CONF_SW: "software",
    lib.TLS_CONF_HW: "device",
}


class CannotRun(Exception):
    """The demo cannot run on this machine; the text says why, and what would help."""


class StepFailed(Exception):
    """One step went wrong; the text says why."""


class Silence(StepFailed):
    """The Python end did not say anything in time."""


# ---- what is done, and what is known afterwards ----------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """One transfer.  ``python`` is the Python end ("pyktls" or "ssl"), ``peer`` the other."""

    version: int
    python: str
    peer: str

    @property
    def serves(self) -> bool:
        """Whether the Python end is the server (and sends the file)."""
        return self.peer != "s_server"

    @property
    def title(self) -> str:
        """Sender and receiver."""
        return f"{self.python} -> {self.peer}" if self.serves else f"{self.peer} -> {self.python}"

    @property
    def name(self) -> str:
        """Version, sender and receiver."""
        return f"{VERSION_NAMES[self.version]}, {self.title}"


@dataclass(frozen=True, slots=True)
class Setting:
    """What all steps share.  ``place`` holds the certificate, the key and a link to the file."""

    openssl: str
    curl: str | None
    ss: str | None
    place: pathlib.Path
    size: int
    sha256: str

    @property
    def file(self) -> pathlib.Path:
        """The file that is sent."""
        return self.place / SERVED

    @property
    def certificate(self) -> pathlib.Path:
        """The server's certificate, which is its own authority."""
        return self.place / "cert.pem"

    @property
    def key(self) -> pathlib.Path:
        """The certificate's private key."""
        return self.place / "key.pem"


@dataclass(slots=True)
class Evidence:
    """What the kernel says of one socket while it is alive.

    ``tx`` and ``rx`` are the values of pyktls.Mode, from getsockopt and sock_diag; ``sock_diag``
    and ``ss`` are None where the kernel does not tell this user.  ``counters`` is by how much
    /proc/net/tls_stat moved when this socket was switched.  ``tx_records`` and ``rx_records`` are
    by how much the kernel's sequence numbers moved during the transfer.
    """

    socket: str
    ulp: str
    version: int | None
    cipher: str | None
    tx: str
    rx: str
    sock_diag: dict[str, Any] | None = None
    ss: str | None = None
    counters: dict[str, int] = field(default_factory=dict)
    tx_records: int | None = None
    rx_records: int | None = None

    def count_records(self, before: Numbers, after: Numbers) -> None:
        """Note how far the kernel's sequence numbers (TX, RX) have moved."""
        self.tx_records, self.rx_records = (
            None if then is None or now is None else now - then
            for then, now in zip(before, after, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Port:
    """From a server child: where it listens."""

    number: int


@dataclass(frozen=True, slots=True)
class Received:
    """From a client child: its progress."""

    bytes: int


@dataclass(frozen=True, slots=True)
class Failure:
    """From a child, as its last word: what went wrong."""

    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """From a child, as its last word: what it did.

    ``started`` and ``ended`` are of CLOCK_MONOTONIC, which all processes share.  ``cpu_seconds``
    is user and system time of the child over the transfer, without hashing.  ``sha256`` and
    ``bytes`` are of what was received, or of None and what was sent.
    """

    version: str
    cipher: str
    bytes: int
    started: float
    ended: float
    cpu_seconds: float
    sha256: str | None
    evidence: Evidence


@dataclass(slots=True)
class Outcome:
    """What came of a step; ``failure`` is None exactly if all of it went well."""

    step: Step
    failure: str | None = None
    cipher: str | None = None
    bytes: int = 0
    seconds: float | None = None
    cpu_seconds: float | None = None
    sha256: str | None = None
    evidence: Evidence | None = None

    @property
    def megabytes_per_second(self) -> float | None:
        """From the first byte sent to the last byte hashed."""
        return self.bytes / self.seconds / 1e6 if self.seconds else None

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "tls": VERSION_NAMES[self.step.version],
            "python": self.step.python,
            "peer": self.step.peer,
            "direction": "serve" if self.step.serves else "fetch",
            "ok": self.failure is None,
            "failure": self.failure,
            "cipher": self.cipher,
            "tx": self.evidence.tx if self.evidence else None,
            "rx": self.evidence.rx if self.evidence else None,
            "bytes": self.bytes,
            "seconds": self.seconds,
            "megabytes_per_second": self.megabytes_per_second,
            "cpu_seconds": self.cpu_seconds,
            "sha256": self.sha256,
            "evidence": dataclasses.asdict(self.evidence) if self.evidence else None,
        }


def all_steps(*, curl: bool) -> list[Step]:
    """The steps, in order."""
    return [
        Step(version, python, peer)
        for version in VERSIONS
        for python, peer in (
            ("pyktls", "s_client"),
            ("ssl", "s_client"),
            ("pyktls", "curl"),
            ("pyktls", "s_server"),
            ("ssl", "s_server"),
        )
        if curl or peer != "curl"
    ]


# ---- in the child: what the kernel says ------------------------------------------------------


def look(sock: socket.socket, before: dict[str, int] | None, ss: str | None) -> Evidence:
    """Ask the kernel about a live socket; ``before`` is tls_stat from before it was switched."""
    found = status(sock)
    evidence = Evidence(
        socket=f"{_address(sock.getsockname())} to {_address(sock.getpeername())}",
        ulp=found.ulp,
        version=found.version,
        cipher=found.cipher,
        tx=found.tx.value,
        rx=found.rx.value,
    )
    if before is not None:
        evidence.counters = changes(before, linux.tls_stat())
        with contextlib.suppress(OSError):
            info = ulp_info(sock)
            evidence.sock_diag = dataclasses.asdict(info) if info is not None else None
        if ss is not None:
            evidence.ss = ask_ss(ss, sock)
    return evidence


def _address(address: Any) -> str:
    return f"{address[0]}:{address[1]}"


def ask_ss(ss: str, sock: socket.socket) -> str | None:
    """What `ss` prints of the socket's upper layer protocol, None if nothing."""
    command = [
        ss, "-tniH", "src", _address(sock.getsockname()), "dst", _address(sock.getpeername()),
    ]  # fmt: skip
    try:
        printed = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            timeout=TOOL_TIMEOUT,
        ).stdout  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"tcp-ulp-\S+(?: \w+: \S+)*", printed)
    return found[0] if found else None


def record_numbers(sock: socket.socket) -> Numbers:
    """The sequence numbers that the kernel holds for sending and receiving, None if not told."""
    numbers: list[int | None] = []
    for option in (linux.TLS_TX, linux.TLS_RX):
        try:
            info = linux.get_crypto_info(sock, option)
        except OSError:  # no keys there; or one of the ciphers that Linux before 5.16 withholds
            numbers.append(None)
        else:
            numbers.append(info.rec_seq)
            info.wipe()
    return numbers[0], numbers[1]


def changes(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """The counters that differ, and by how much."""
    return {k: v - before.get(k, 0) for k, v in after.items() if v != before.get(k, 0)}


def doubts(outcome: Outcome) -> list[str]:
    """Why it is not certain that the kernel protected this pyktls transfer; empty if it is."""
    evidence = outcome.evidence
    if evidence is None:
        return ["it said nothing"]
    found = []
    if evidence.ulp != "tls":
        found.append(f"TCP_ULP is {evidence.ulp!r}")
    for direction, mode, records, least in (
        ("TX", evidence.tx, evidence.tx_records, outcome.bytes if outcome.step.serves else 1),
        ("RX", evidence.rx, evidence.rx_records, 1 if outcome.step.serves else outcome.bytes),
    ):
        if mode == Mode.NONE:
            found.append(f"{direction} is not in the kernel")
        # In a network card's hands the numbers are the card's.
        if mode != Mode.DEVICE and records is not None and records * RECORD < least:
            found.append(f"{records} {direction} records are too few for {least} bytes")
        name = direction.title()
        if sum(evidence.counters.get(f"Tls{name}{kind}", 0) for kind in ("Sw", "Device")) < 1:
            found.append(f"/proc/net/tls_stat counted no {direction} session")
        conf = (evidence.sock_diag or {}).get(f"{direction.lower()}_conf")
        if conf == lib.TLS_CONF_BASE:
            found.append(f"sock_diag says that {direction} is not in the kernel")
    return found


# ---- in the child: the Python end ------------------------------------------------------------


def cpu_seconds() -> float:
    """User and system time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def make_context(step: Step, setting: Setting) -> ssl.SSLContext:
    """The context of the Python end; only pyktls's is watched."""
    if step.serves:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(setting.certificate, setting.key)
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(setting.certificate)
    context.minimum_version = context.maximum_version = VERSIONS[step.version]
    if step.version == TLS_1_2:
        context.set_ciphers("ECDHE+AESGCM")
    if step.python == "pyktls":
        watch(context)
    return context


def switch(
    step: Step, tls: ssl.SSLSocket
) -> tuple[KTLSSocket | ssl.SSLSocket, dict[str, int] | None]:
    """Hand the connection to the kernel if that is what this step is about.

    Returns the socket to go on with, and the counters from just before.
    """
    if step.python != "pyktls":
        return tls, None
    cipher = tls.cipher()
    suite = find_suite_by_openssl_name(cipher[0]) if cipher else None
    if suite is not None:
        # offload() asks this too, with a pair of sockets of its own.  Asked now, they are not among
        # those that are counted.
        linux.cipher_refusal(suite.version, suite.aead)
    before = linux.tls_stat()
    return offload(tls), before


def serve(step: Step, setting: Setting, pipe: Connection[Any, Any]) -> None:
    """Be the server of one connection."""
    context = make_context(step, setting)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(START_TIMEOUT)
        pipe.send(Port(listener.getsockname()[1]))
        plain, _ = listener.accept()
    plain.settimeout(STALL_TIMEOUT)
    header = (
        "HTTP/1.0 200 OK\r\nContent-Type: application/octet-stream\r\n"
        f"Content-Length: {setting.size}\r\nConnection: close\r\n\r\n"
    ).encode()
    with context.wrap_socket(plain, server_side=True) as tls:
        sock, stat = switch(step, tls)
        with sock, setting.file.open("rb") as file:
            version, cipher = _negotiated(sock)
            evidence = look(sock, stat, setting.ss)
            numbers = record_numbers(sock)
            read_request(sock)
            cpu, started = cpu_seconds(), time.monotonic()
            sock.sendall(header)
            sent = sock.sendfile(file)
            ended = time.monotonic()
            evidence.count_records(numbers, record_numbers(sock))
            if isinstance(sock, ssl.SSLSocket):
                with contextlib.suppress(OSError):  # the peer may close without a close_notify
                    sock.unwrap()
            sock.close()  # a KTLSSocket's sends the close_notify
            cpu = cpu_seconds() - cpu
    pipe.send(Report(version, cipher, sent, started, ended, cpu, None, evidence))


def fetch(step: Step, setting: Setting, port: int, pipe: Connection[Any, Any]) -> None:
    """Be the client of one connection, and hash what comes."""
    context = make_context(step, setting)
    plain = socket.create_connection(("127.0.0.1", port), START_TIMEOUT)
    plain.settimeout(STALL_TIMEOUT)
    tls = context.wrap_socket(plain, server_hostname=NAME, suppress_ragged_eofs=False)
    with tls:
        sock, stat = switch(step, tls)
        with sock:
            version, cipher = _negotiated(sock)
            evidence = look(sock, stat, setting.ss)
            numbers = record_numbers(sock)
            cpu, started = cpu_seconds(), time.monotonic()
            sock.sendall(f"GET /{SERVED} HTTP/1.0\r\n\r\n".encode())
            received, digest, hashing = receive(sock, pipe)
            ended = time.monotonic()
            cpu = cpu_seconds() - cpu - hashing
            evidence.count_records(numbers, record_numbers(sock))
    pipe.send(Report(version, cipher, received, started, ended, cpu, digest, evidence))


def receive(sock: socket.socket, pipe: Connection[Any, Any]) -> tuple[int, str, float]:
    """Read to the end: bytes, their SHA-256, and the CPU seconds that hashing took."""
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    sha256 = hashlib.sha256()
    total, hashing, told = 0, 0.0, time.monotonic()
    more = True
    while more:
        filled = 0
        while more and filled < CHUNK:
            got = sock.recv_into(view[filled:])
            filled += got
            more = got > 0
        total += filled
        before = time.thread_time()
        sha256.update(view[:filled])
        hashing += time.thread_time() - before
        if time.monotonic() - told > 0.2:
            told = time.monotonic()
            pipe.send(Received(total))
    return total, sha256.hexdigest(), hashing


def read_request(sock: socket.socket) -> bytes:
    """Read an HTTP request up to its empty line."""
    request = b""
    while b"\r\n\r\n" not in request:
        if len(request) > 65536:
            raise StepFailed("the peer's request does not end")
        more = sock.recv(4096)
        if not more:
            raise StepFailed("the peer closed before its request was complete")
        request += more
    return request


def _negotiated(sock: KTLSSocket | ssl.SSLSocket) -> tuple[str, str]:
    cipher = sock.cipher()
    return sock.version() or "?", cipher[0] if cipher else "?"


# ---- in this process: children and peers -----------------------------------------------------


class Child:
    """A forked process that runs ``target(*args, pipe)``; killed when the block is left."""

    def __init__(self, target: Callable[..., None], *args: object) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, self._far = context.Pipe()
        self._process = context.Process(
            target=_child, args=(target, args, self._far, self._pipe), daemon=True
        )

    def __enter__(self) -> Self:
        self._process.start()
        self._far.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.join(0)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._pipe.close()

    def hear(self, seconds: float) -> Any:
        """Its next message; raises StepFailed if that is a Failure, or does not come."""
        if not self._pipe.poll(seconds):
            raise Silence(f"the Python end said nothing for {seconds:.0f} seconds")
        try:
            message = self._pipe.recv()
        except EOFError:
            self._process.join(END_TIMEOUT)
            raise StepFailed(
                f"the Python end died (exit status {self._process.exitcode})"
            ) from None
        if isinstance(message, Failure):
            raise StepFailed(message.reason)
        return message

    def report(self, progress: Callable[[int], None] | None = None) -> Report:
        """Its report."""
        while True:
            match self.hear(STALL_TIMEOUT):
                case Report() as report:
                    self._process.join(END_TIMEOUT)
                    return report
                case Received(received) if progress is not None:
                    progress(received)

    def explain(self, error: StepFailed) -> StepFailed:
        """``error``, with what the child says about it, which is more likely the cause."""
        try:
            self.hear(2.0)
        except Silence:
            return error
        except StepFailed as own:
            return StepFailed(f"{own}; {error}")
        return error  # a Report: it has done its part


def _child(
    target: Callable[..., None],
    args: tuple[object, ...],
    pipe: Connection[Any, Any],
    other_end: Connection[Any, Any],
) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    other_end.close()
    try:
        target(*args, pipe)
    except StepFailed as e:
        pipe.send(Failure(str(e)))
    except Exception as e:  # noqa: BLE001  (whatever it is, it belongs in the table)
        pipe.send(Failure(f"{type(e).__name__}: {e}"))


class Peer:
    """An unmodified program at the other end; killed when the block is left."""

    def __init__(self, name: str, command: list[str], setting: Setting) -> None:
        self.name = name
        self._errors = (setting.place / "peer.err").open("w+b")
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
                cwd=setting.place, bufsize=0,
            )  # fmt: skip
        except BaseException:
            self._errors.close()
            raise
        assert self._process.stdout is not None  # noqa: S101
        with contextlib.suppress(OSError):  # the usual 64 KiB make it wait for us at every turn
            fcntl.fcntl(self._process.stdout, fcntl.F_SETPIPE_SZ, MIB)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def say(self, text: str) -> None:
        """Write to its standard input, which stays open: its end would mean something."""
        assert self._process.stdin is not None  # noqa: S101
        with contextlib.suppress(BrokenPipeError):  # it will say why it ended
            self._process.stdin.write(text.encode())

    def output(self, timeout: float) -> bytes:
        """The next piece of its standard output, empty at the end."""
        assert self._process.stdout is not None  # noqa: S101
        fd = self._process.stdout.fileno()
        if not select.select([fd], [], [], timeout)[0]:
            raise StepFailed(f"{self.name} printed nothing for {timeout:.0f} seconds")
        return os.read(fd, CHUNK)

    def finish(self) -> None:
        """Wait for its end; raises StepFailed if it was not a good one."""
        try:
            status = self._process.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise StepFailed(f"{self.name} did not end") from None
        if status:
            raise StepFailed(self.complaint())

    def complaint(self) -> str:
        """How it ended, if it has ended and not well; else empty."""
        status = self._process.poll()
        if not status:
            return ""
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"{self.name} ended with status {status}" + (f": {said[-1]}" if said else "")


def s_client(step: Step, setting: Setting, port: int) -> list[str]:
    """The command line of openssl s_client; -quiet also makes it wait for the server's end."""
    return [
        setting.openssl, "s_client", "-connect", f"127.0.0.1:{port}", "-servername", NAME,
        "-CAfile", str(setting.certificate), "-verify_return_error", "-quiet",
        "-tls1_3" if step.version == TLS_1_3 else "-tls1_2",
    ]  # fmt: skip


def curl(step: Step, setting: Setting, port: int) -> list[str]:
    """The command line of curl, free of the user's own configuration."""
    assert setting.curl is not None  # noqa: S101  (all_steps has no curl without it)
    version = "1.3" if step.version == TLS_1_3 else "1.2"
    return [
        setting.curl, "-q", "--silent", "--show-error", "--noproxy", "*",
        "--cacert", str(setting.certificate), "--resolve", f"{NAME}:{port}:127.0.0.1",
        f"--tlsv{version}", "--tls-max", version, f"https://{NAME}:{port}/{SERVED}",
    ]  # fmt: skip


def s_server(step: Step, setting: Setting) -> list[str]:
    """The command line of openssl s_server, which with -HTTP sends files as they are."""
    return [
        setting.openssl, "s_server", "-accept", "127.0.0.1:0", "-naccept", "1", "-HTTP",
        "-cert", str(setting.certificate), "-key", str(setting.key),
        "-tls1_3" if step.version == TLS_1_3 else "-tls1_2",
    ]  # fmt: skip


# ---- in this process: the steps --------------------------------------------------------------


def run_step(step: Step, setting: Setting, progress: Progress) -> Outcome:
    """Do one step and judge it."""
    outcome = Outcome(step)
    try:
        if step.serves:
            _run_server(outcome, setting, progress)
        else:
            _run_client(outcome, setting, progress)
    except StepFailed as e:
        outcome.failure = str(e)
    except OSError as e:  # a program that cannot be started, no more processes
        outcome.failure = f"{type(e).__name__}: {e}"
    else:
        outcome.failure = judge(outcome, setting)
    return outcome


def judge(outcome: Outcome, setting: Setting) -> str | None:
    """What is wrong with a step that ran to its end, None if nothing."""
    if outcome.bytes != setting.size:
        return f"{outcome.bytes} of {setting.size} bytes arrived"
    if outcome.sha256 != setting.sha256:
        return f"the SHA-256 at the far end is another: {outcome.sha256}"
    if outcome.step.python == "pyktls" and (found := doubts(outcome)):
        return f"the kernel did not confirm: {', '.join(found)}"
    return None


def _run_server(outcome: Outcome, setting: Setting, progress: Progress) -> None:
    step = outcome.step
    with Child(serve, step, setting) as child:
        port = child.hear(START_TIMEOUT).number
        program = {"s_client": s_client, "curl": curl}[step.peer]
        try:
            with Peer(step.peer, program(step, setting, port), setting) as peer:
                if step.peer == "s_client":
                    peer.say(f"GET /{SERVED} HTTP/1.0\r\n\r\n")
                outcome.bytes, outcome.sha256, last = hash_output(
                    peer, setting.size, progress, headed=step.peer == "s_client"
                )
                peer.finish()
        except StepFailed as e:
            raise child.explain(e) from None
        report = child.report()
    _take_over(outcome, report)
    outcome.seconds = last - report.started


def _run_client(outcome: Outcome, setting: Setting, progress: Progress) -> None:
    with Peer("s_server", s_server(outcome.step, setting), setting) as peer:
        port = listening_port(peer)
        with Child(fetch, outcome.step, setting, port) as child:
            try:
                report = child.report(lambda received: progress(received, setting.size))
            except StepFailed as e:
                raise StepFailed("; ".join(filter(None, (str(e), peer.complaint())))) from None
        outcome.bytes, outcome.sha256 = report.bytes, report.sha256
        peer.finish()
    _take_over(outcome, report)
    outcome.seconds = report.ended - report.started


def _take_over(outcome: Outcome, report: Report) -> None:
    outcome.cipher = report.cipher
    outcome.cpu_seconds = report.cpu_seconds
    outcome.evidence = report.evidence


def listening_port(peer: Peer) -> int:
    """The port that s_server has chosen, from the line that it prints."""
    printed = b""
    while not (found := re.search(rb"ACCEPT \S*:(\d+)\s", printed)):
        more = peer.output(START_TIMEOUT)
        if not more:
            peer.finish()
            raise StepFailed("s_server ended before it listened")
        printed += more
    return int(found[1])


def hash_output(
    peer: Peer, size: int, progress: Progress, *, headed: bool
) -> tuple[int, str, float]:
    """Hash what the peer prints, without the HTTP header: bytes, SHA-256, time of the last byte."""
    sha256 = hashlib.sha256()
    total, last, header = 0, time.monotonic(), b""
    while piece := peer.output(STALL_TIMEOUT):
        if headed:
            header += piece
            _, found, piece = header.partition(b"\r\n\r\n")
            if not found:
                if len(header) > 65536:
                    raise StepFailed(f"{peer.name} printed no HTTP header")
                continue
            headed = False
        sha256.update(piece)
        total += len(piece)
        last = time.monotonic()
        progress(total, size)
    return total, sha256.hexdigest(), last


# ---- before the steps ------------------------------------------------------------------------


def check_kernel() -> None:
    """Raise CannotRun unless this kernel and this Python can do it."""
    if not sys.platform.startswith("linux"):
        raise CannotRun("the demo needs Linux: it reads Linux's TLS counters")
    try:
        watch(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    except Unavailable as e:
        raise CannotRun(f"{e}.") from e
    try:
        near, far = loopback_pair()
        with near, far:
            linux.attach(near.fileno())  # loads the module where we may
        linux.tls_stat()
    except Unavailable as e:
        raise CannotRun(
            f"{e}. From a source checkout, `make demo` runs the demo in a virtual machine whose "
            "kernel has it."
        ) from e
    except (OSError, Error) as e:
        raise CannotRun(f"the loopback interface does not work here: {e}.") from e
    # What a child would find out with a pair of sockets each, it inherits from here.
    for version in VERSIONS:
        linux.cipher_refusal(version, next(a for a in AEADS if a.name == "AES_256_GCM"))


def find_openssl() -> str:
    """The path of the openssl program."""
    found = shutil.which("openssl")
    if found is None:
        raise CannotRun(
            "the `openssl` program was not found: it is the demo's peer, and makes its "
            "certificate. Debian and others have it in the package openssl."
        )
    return found


def choose_place(needed: int) -> str | None:
    """The directory for temporary files: $TMPDIR, or memory if there is room, or the default."""
    memory = "/dev/shm"  # noqa: S108  (mkdtemp makes a private directory in it)
    with contextlib.suppress(OSError):
        if (
            not os.environ.get("TMPDIR")
            and os.access(memory, os.W_OK | os.X_OK)
            and shutil.disk_usage(memory).free > needed + 16 * MIB
        ):
            return memory
    return None


def make_certificate(openssl: str, place: pathlib.Path) -> None:
    """A key and a self-signed certificate for localhost, with a configuration of our own."""
    config = place / "req.cnf"
    config.write_text(
        "[req]\nprompt = no\ndistinguished_name = name\nx509_extensions = extensions\n"
        f"[name]\nCN = {NAME}\n"
        f"[extensions]\nsubjectAltName = DNS:{NAME}, IP:127.0.0.1\n"
        "basicConstraints = critical, CA:true\n",
        encoding="ascii",
    )
    command = [
        openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-sha256", "-days", "2", "-config", str(config),
        "-keyout", str(place / "key.pem"), "-out", str(place / "cert.pem"),
    ]  # fmt: skip
    try:
        made = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            timeout=TOOL_TIMEOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise CannotRun("`openssl req` made no certificate in time.") from None
    if made.returncode:
        said = made.stderr.strip().splitlines()
        raise CannotRun(f"`openssl req` made no certificate: {said[-1] if said else 'no reason'}")


def make_file(path: pathlib.Path, size: int, progress: Progress) -> str:
    """Write ``size`` bytes that do not compress, the same each time; returns their SHA-256."""
    source = random.Random(SEED)  # noqa: S311  (no secret)
    sha256 = hashlib.sha256()
    with path.open("wb") as file:
        for done in range(0, size, MIB):
            piece = source.randbytes(min(MIB, size - done))
            file.write(piece)
            sha256.update(piece)
            progress(done + len(piece), size)
    return sha256.hexdigest()


def hash_file(path: pathlib.Path, progress: Progress) -> tuple[int, str]:
    """Size and SHA-256 of the user's file."""
    sha256 = hashlib.sha256()
    total, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while piece := file.read(MIB):
            sha256.update(piece)
            total += len(piece)
            progress(total, size)
    return total, sha256.hexdigest()


# ---- what is shown ---------------------------------------------------------------------------


class Display:
    """Lines of text; on a terminal also one line that changes while something is going on."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._live = out.isatty()
        self._shown = 0
        self._next = 0.0

    def line(self, text: str = "") -> None:
        """One line, for good."""
        self._erase()
        print(text, file=self._out, flush=True)

    def paragraph(self, text: str, first: str = "", indent: str = "") -> None:
        """Text broken into lines of less than 80 columns."""
        lines = textwrap.wrap(
            text, 79, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False
        )
        for line in lines:
            self.line(line)

    def progress(self, title: str) -> Progress:
        """What is to be called with the bytes so far: shows them and the speed, if anywhere."""
        begun: tuple[float, int] | None = None

        def show(done: int, size: int) -> None:
            nonlocal begun
            now = time.monotonic()
            if begun is None:
                begun = now, done
            if now >= self._next:
                speed = (done - begun[1]) / 1e6 / max(now - begun[0], 1e-3)
                self._passing(f"{title}: {done / 1e6:.0f} of {size / 1e6:.0f} MB, {speed:.0f} MB/s")
                self._next = now + 0.1

        self._next = 0.0
        self._passing(f"{title} ...")
        return show

    def _passing(self, text: str) -> None:
        if self._live:
            self._erase()
            text = text[:79]
            self._shown = len(text)
            print(text, end="", file=self._out, flush=True)

    def _erase(self) -> None:
        if self._shown:
            print("\r" + " " * self._shown + "\r", end="", file=self._out)
            self._shown = 0


def table(outcomes: list[Outcome]) -> list[str]:
    """The lines of the closing table, each of at most 79 columns."""
    head = ("TLS", "sent by -> to", "cipher", "TX", "RX", "MB/s", "CPU s", "result")
    rows: list[tuple[str, ...]] = [head, *(_row(outcome) for outcome in outcomes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    to_the_right = {5, 6}
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in to_the_right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines


def _row(outcome: Outcome) -> tuple[str, ...]:
    evidence, speed, cpu = outcome.evidence, outcome.megabytes_per_second, outcome.cpu_seconds
    return (
        VERSION_NAMES[outcome.step.version].removeprefix("TLS "),
        outcome.step.title,
        _short_cipher(outcome.cipher),
        _short_mode(evidence.tx) if evidence else "-",
        _short_mode(evidence.rx) if evidence else "-",
        _number(speed),
        _number(cpu, 2),
        "ok" if outcome.failure is None else "FAILED",
    )


def _number(value: float | None, digits: int = 1) -> str:
    """At most five characters, if the value is below 100000."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if value < 100 else f"{value:.0f}"


def _short_mode(mode: str) -> str:
    # "none" would look as if nobody encrypted.
    return "OpenSSL" if mode == Mode.NONE else mode


def _short_cipher(name: str | None) -> str:
    suite = find_suite_by_openssl_name(name) if name else None
    if suite is None:
        return (name or "-")[:11]
    return suite.aead.name.removesuffix("_POLY1305")


def cpu_pairs(outcomes: list[Outcome]) -> dict[str, tuple[float, float]]:
    """By version: CPU seconds to send the file to s_client, of ssl and of pyktls."""
    pairs = {}
    for version, name in VERSION_NAMES.items():
        spent = {
            outcome.step.python: outcome.cpu_seconds
            for outcome in outcomes
            if outcome.step.version == version
            and outcome.step.peer == "s_client"
            and outcome.failure is None
        }
        theirs, ours = spent.get("ssl"), spent.get("pyktls")
        if theirs is not None and ours:
            pairs[name] = theirs, ours
    return pairs


def cpu_ratio(pairs: dict[str, tuple[float, float]]) -> float | None:
    """How many times pyktls's CPU seconds ssl took, over all versions."""
    if not pairs:
        return None
    return sum(theirs for theirs, _ in pairs.values()) / sum(ours for _, ours in pairs.values())


def comparison(outcomes: list[Outcome]) -> str:
    """One sentence: the CPU time of ssl beside that of pyktls, for the same file."""
    pairs = cpu_pairs(outcomes)
    ratio = cpu_ratio(pairs)
    if ratio is None:
        return "There is nothing to compare in this run."
    parts = [
        f"{theirs:.2f} s against {ours:.2f} s with {name}" for name, (theirs, ours) in pairs.items()
    ]
    return (
        f"To send this file to s_client, Python's ssl took {ratio:.1f} times the CPU time of "
        f"pyktls's sendfile in this run: {', '.join(parts)}."
    )


def is_emulated() -> bool:
    """Whether this is QEMU without a hypervisor, where CPU time is not what it is elsewhere."""
    try:
        return "QEMU TCG" in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def show_evidence(outcome: Outcome, display: Display) -> None:
    """What the kernel said of one pyktls socket."""
    evidence = outcome.evidence
    if evidence is None:
        return
    keyed = [d for d, mode in (("TX", evidence.tx), ("RX", evidence.rx)) if mode != Mode.NONE]
    version = VERSION_NAMES.get(evidence.version or 0, "-")
    diag = evidence.sock_diag
    facts = {
        "getsockopt": f'ULP "{evidence.ulp}"; keys for {" and ".join(keyed) or "nothing"}: '
        f"{version}, {evidence.cipher}",
        "sock_diag": "silent (Linux up to 6.12 tells only those who have CAP_NET_ADMIN)"
        if diag is None
        else f'ULP "{diag["name"]}"; TX {_conf(diag["tx_conf"])}, RX {_conf(diag["rx_conf"])}',
        "ss -tni": evidence.ss or "",
        "records": ""
        if evidence.tx_records is None or evidence.rx_records is None
        else f"{evidence.tx_records} sent, {evidence.rx_records} received, by the kernel's own "
        "sequence numbers",
        "tls_stat": ", ".join(f"{name} {by:+d}" for name, by in evidence.counters.items())
        or "no change",
    }
    display.line(f"{outcome.step.name}: socket {evidence.socket}")
    for source, fact in facts.items():
        if fact:
            display.paragraph(fact, f"  {source:<11}", " " * 13)


def _conf(number: int | None) -> str:
    return _CONF_NAMES.get(number, "untold") if number is not None else "untold"


def show_counters(
    before: dict[str, int], after: dict[str, int], switched: int, display: Display
) -> None:
    """What /proc/net/tls_stat was before and after the whole demo."""
    display.line("/proc/net/tls_stat before and after all of it (what is not shown is 0):")
    for name, value in after.items():
        if before.get(name, 0) or value:
            display.line(f"  {name:<20}{before.get(name, 0):>8} -> {value}")
    display.paragraph(
        f"TlsTxSw and TlsRxSw count sessions that were set up, neither bytes nor records: one for "
        f"each socket and direction, and this demo switched {switched} sockets. TlsCurr... counts "
        "those that are alive."
    )


def show_results(outcomes: list[Outcome], display: Display) -> None:
    """The table, what is wrong, and the comparison."""
    for line in table(outcomes):
        display.line(line)
    display.line()
    display.paragraph(
        "TX, RX: who protects the records that the Python end sends and receives. MB/s: from the "
        "first byte sent to the last byte hashed at the far end; 1 MB is 10^6 bytes. CPU s: user "
        "and system time of the Python end, without hashing. result: ok if the SHA-256 at the far "
        "end is the file's, and for pyktls the kernel confirmed all of the above."
    )
    display.line()
    failed = [outcome for outcome in outcomes if outcome.failure is not None]
    for outcome in failed:
        display.paragraph(f"{outcome.step.name}: {outcome.failure}", "FAILED  ", " " * 8)
    if failed:
        display.line()
    display.paragraph(comparison(outcomes))
    if is_emulated():
        display.paragraph(
            "This machine is emulated, AES instructions too: what time things take says little "
            "about a real one."
        )


# ---- the command -----------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Tell ``parser`` what the demo takes."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("--file", type=pathlib.Path, help="send this file (default: make one)")
    parser.add_argument(
        "--size", type=_size, default=64, metavar="MIB",
        help="size of the file that is made (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true",
        help="print the result as JSON on standard output, all else on standard error",
    )  # fmt: skip


def _size(text: str) -> int:
    size = int(text)
    if size < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return size


def run(options: argparse.Namespace) -> int:
    """Run the demo and return its exit status."""
    display = Display(sys.stderr if options.json else sys.stdout)
    try:
        with _orderly_end():
            result = demonstrate(options.file, options.size * MIB, display)
    except CannotRun as e:
        print(f"pyktls demo: {e}", file=sys.stderr)
        if options.json:
            print(json.dumps({"ok": False, "cannot_run": str(e)}))
        return CANNOT_RUN
    except KeyboardInterrupt:
        display.line("interrupted")
        return 128 + signal.SIGINT
    if options.json:
        print(json.dumps(result, indent=2))
    return OK if result["ok"] else FAILED


@contextlib.contextmanager
def _orderly_end() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end this process as an exception does, so that all is cleaned up."""

    def end(number: int, _: object) -> NoReturn:
        sys.exit(128 + number)

    before = {
        number: signal.signal(number, end)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN  # nohup means it
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def demonstrate(file: pathlib.Path | None, size: int, display: Display) -> dict[str, Any]:
    """All of it, shown on ``display``; returns what --json prints."""
    if file is not None:
        size = _size_of(file)
    openssl, program = find_openssl(), shutil.which("curl")
    check_kernel()
    place = choose_place(0 if file is not None else size)
    with tempfile.TemporaryDirectory(prefix="pyktls-demo-", dir=place) as name:
        setting = prepare(pathlib.Path(name), openssl, program, file, size, display)
        display.line()
        before = linux.tls_stat()
        steps = all_steps(curl=program is not None)
        outcomes = [
            do(step, setting, f"[{number}/{len(steps)}]", display)
            for number, step in enumerate(steps, 1)
        ]
        after = linux.tls_stat()
    display.line()
    display.line("What the kernel said of the pyktls sockets while they were alive")
    display.line()
    ours = [outcome for outcome in outcomes if outcome.step.python == "pyktls"]
    for outcome in ours:
        show_evidence(outcome, display)
    display.line()
    show_counters(before, after, sum(o.evidence is not None for o in ours), display)
    display.line()
    show_results(outcomes, display)
    pairs = cpu_pairs(outcomes)
    return {
        "ok": all(outcome.failure is None for outcome in outcomes),
        "pyktls": __version__,
        "kernel": platform.release(),
        "machine": platform.machine(),
        "emulated": is_emulated(),
        "python": platform.python_version(),
        "python_openssl": ssl.OPENSSL_VERSION,
        "left_out": [] if program else ["curl"],
        "file": {"bytes": setting.size, "sha256": setting.sha256},
        "cpu_ratio": {
            "all": cpu_ratio(pairs),
            **{version: cpu_ratio({version: pair}) for version, pair in pairs.items()},
        },
        "steps": [outcome.as_dict() for outcome in outcomes],
        "tls_stat": {"before": before, "after": after},
    }


def prepare(
    place: pathlib.Path,
    openssl: str,
    program: str | None,
    file: pathlib.Path | None,
    size: int,
    display: Display,
) -> Setting:
    """Say what this machine is, and make the certificate and the file."""
    display.line(
        f"pyktls {__version__}, Linux {platform.release()}, Python {platform.python_version()}"
    )
    display.line(f"Python's ssl: {ssl.OPENSSL_VERSION}")
    display.line(f"the peers:    {first_line([openssl, 'version'])}")
    if program is None:
        display.line("              curl not found: left out")
    else:
        display.line("              " + " ".join(first_line([program, "--version"]).split()[:2]))
    try:
        make_certificate(openssl, place)
        if file is None:
            sha256 = make_file(place / SERVED, size, display.progress("making the file"))
            display.line(f"the file:     {size} random bytes, in {place}")
        else:
            (place / SERVED).symlink_to(file.resolve())
            size, sha256 = hash_file(file, display.progress("hashing the file"))
            display.line(f"the file:     {size} bytes, {file}")
    except OSError as e:
        raise CannotRun(f"the file could not be prepared: {e}.") from e
    display.line(f"SHA-256:      {sha256}")
    return Setting(openssl, program, shutil.which("ss"), place, size, sha256)


def _size_of(file: pathlib.Path) -> int:
    try:
        size = file.stat().st_size
    except OSError as e:
        raise CannotRun(f"--file: {e}.") from e
    if not file.is_file() or not size:
        raise CannotRun(f"--file: {file} is no regular file, or empty.")
    return size


def first_line(command: list[str]) -> str:
    """The first line that a program prints, empty if it fails."""
    try:
        printed = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            timeout=TOOL_TIMEOUT,
        ).stdout  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return printed.partition("\n")[0]


def do(step: Step, setting: Setting, number: str, display: Display) -> Outcome:
    """One step, and a line about it."""
    title = f"{number} {step.name}"
    outcome = run_step(step, setting, display.progress(title))
    if outcome.failure is not None:
        display.line(f"{title}: FAILED")
        display.paragraph(outcome.failure, "    ", "    ")
    else:
        seconds, speed = outcome.seconds or 0.0, outcome.megabytes_per_second or 0.0
        display.line(
            f"{title}: {outcome.bytes / 1e6:.0f} MB in {seconds:.1f} s, {speed:.0f} MB/s, "
            "SHA-256 equal"
        )
    return outcome
