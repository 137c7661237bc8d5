"""The Python end of a transfer, as it runs in a forked child.

``serve`` and ``fetch`` are the two functions a child may run.  Each makes one connection with
Python's ssl, goes on with pyktls if the step says so (``switch``), asks the kernel about the
socket, transfers the file, and sends a Report of what that took.  CPU time is this process's own,
over the transfer alone; what hashing took is taken off.
"""

from __future__ import annotations

import contextlib
import hashlib
import resource
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any

from pyktls import linux
from pyktls.ciphers import TLS_1_2, find_suite_by_openssl_name
from pyktls.handoff import watch
from pyktls.offloading import offload

from . import limits
from .children import Port, Received, Report
from .evidence import look, record_numbers
from .steps import CHUNK, NAME, SERVED, VERSIONS, StepFailed

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from pyktls.sockets import KTLSSocket

    from .steps import Setting, Step

__all__ = ["fetch", "serve"]


def serve(step: Step, setting: Setting, pipe: Connection[Any, Any]) -> None:
    """Be the server of one connection."""
    context = make_context(step, setting)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(limits.START_TIMEOUT)
        pipe.send(Port(listener.getsockname()[1]))
        plain, _ = listener.accept()
    plain.settimeout(limits.STALL_TIMEOUT)
    header = (
        "HTTP/1.0 200 OK\r\nContent-Type: application/octet-stream\r\n"
        f"Content-Length: {setting.size}\r\nConnection: close\r\n\r\n"
    ).encode()
    with context.wrap_socket(plain, server_side=True) as tls:
        sock, stat = switch(step, tls)
        with sock, setting.file.open("rb") as file:
            cipher = _cipher(sock)
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
    pipe.send(Report(cipher, sent, started, ended, cpu, None, evidence))


def fetch(step: Step, setting: Setting, port: int, pipe: Connection[Any, Any]) -> None:
    """Be the client of one connection, and hash what comes."""
    context = make_context(step, setting)
    plain = socket.create_connection(("127.0.0.1", port), limits.START_TIMEOUT)
    plain.settimeout(limits.STALL_TIMEOUT)
    tls = context.wrap_socket(plain, server_hostname=NAME, suppress_ragged_eofs=False)
    with tls:
        sock, stat = switch(step, tls)
        with sock:
            cipher = _cipher(sock)
            evidence = look(sock, stat, setting.ss)
            numbers = record_numbers(sock)
            cpu, started = cpu_seconds(), time.monotonic()
            sock.sendall(f"GET /{SERVED} HTTP/1.0\r\n\r\n".encode())
            received, digest, hashing = receive(sock, pipe)
            ended = time.monotonic()
            cpu = cpu_seconds() - cpu - hashing
            evidence.count_records(numbers, record_numbers(sock))
    pipe.send(Report(cipher, received, started, ended, cpu, digest, evidence))


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
        # offload() and the first read ask this, with a pair of sockets of its own.  Asked now, they
        # are not among those that are counted.
        linux.system.cipher_refusal(suite.version, suite.aead)
        linux.system.can_rekey(suite.version, suite.aead)
    before = dict(linux.tls_stat())
    return offload(tls), before


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


def read_request(sock: socket.socket) -> None:
    """Read an HTTP request up to its empty line."""
    request = b""
    while b"\r\n\r\n" not in request:
        if len(request) > 65536:
            raise StepFailed("the peer's request does not end")
        more = sock.recv(4096)
        if not more:
            raise StepFailed("the peer closed before its request was complete")
        request += more


def cpu_seconds() -> float:
    """User and system time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _cipher(sock: KTLSSocket | ssl.SSLSocket) -> str:
    cipher = sock.cipher()
    return cipher[0] if cipher else "?"
