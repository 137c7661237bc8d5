"""One end of a connection: does as it is told, and says what that cost its process.

The standard library alone, and no other file of this directory: the text of this one is also given
to other Pythons (``alone``, see other_python.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import sys
import tempfile
import time
from typing import Any, Self

#: Set where time counts instructions.  There a machine that waits for a disk has nothing to count,
#: and its clock leaps to the next timer: a timeout would come long before its time.
COUNTED = "PYKTLS_BENCH_COUNTED"
TIMEOUT = 1e6 if COUNTED in os.environ else 600.0
HOST = "localhost"


class Channel:
    """Messages to and from the program that gives the orders: a line of JSON each."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._in = sock.makefile("rb")

    def say(self, **message: Any) -> None:
        self.sock.sendall(json.dumps(message).encode() + b"\n")

    def hear(self) -> dict[str, Any]:
        """The next message; EOFError when there is nobody any more."""
        line = self._in.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        self._in.close()
        self.sock.close()


class Clock:
    """Processor time of this process and time on the wall, in nanoseconds, within a block."""

    received = 0  # bytes, where that is not known beforehand

    def __enter__(self) -> Self:
        self.wall = -time.perf_counter_ns()
        self.cpu = -time.process_time_ns()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu += time.process_time_ns()
        self.wall += time.perf_counter_ns()


def receive(sock: Any, view: memoryview, size: int) -> None:
    """Receive ``size`` bytes, into the same memory again and again."""
    room = len(view)
    while size:
        received = sock.recv_into(view if size >= room else view[:size])
        if not received:
            raise ConnectionAbortedError("the other end has closed the connection")
        size -= received


def perform(sock: Any, order: dict[str, Any], file: Any) -> Clock:
    """Do what an order says; nothing but the work itself is measured."""
    match order["do"]:
        case "sendfile":
            file.seek(0)  # where it falls back to reading, offset 0 means: from where it stands
            with Clock() as clock:
                sock.sendfile(file, 0, order["bytes"])
        case "send":
            data, count = bytes(order["size"]), order["count"]
            with Clock() as clock:
                for _ in range(count):
                    sock.sendall(data)
        case "recv":
            view, size = memoryview(bytearray(order["room"])), order["bytes"]
            with Clock() as clock:
                receive(sock, view, size)
        case "ping":
            view, count = memoryview(bytearray(1)), order["count"]
            with Clock() as clock:
                for _ in range(count):
                    sock.sendall(b"?")
                    receive(sock, view, 1)
        case "pong":
            view, count = memoryview(bytearray(1)), order["count"]
            with Clock() as clock:
                for _ in range(count):
                    receive(sock, view, 1)
                    sock.sendall(b"!")
        case "get":
            request = f"GET /{order['path']} HTTP/1.0\r\n\r\n".encode()
            with Clock() as clock:
                sock.sendall(request)
                clock.received = get(sock)
        case other:
            raise ValueError(other)
    return clock


def get(sock: Any) -> int:
    """How many bytes the other end sends until it closes."""
    room = bytearray(1 << 18)
    total = 0
    # s_server just closes.
    with contextlib.suppress(ssl.SSLEOFError, ConnectionResetError):
        while received := sock.recv_into(room):
            total += received
    return total


def obey(channel: Channel, sock: Any, file: Any) -> None:
    """Perform orders until there are no more."""
    while True:
        try:
            order = channel.hear()
        except EOFError:
            return
        done = perform(sock, order, file)
        channel.say(cpu=done.cpu, wall=done.wall, bytes=done.received)


# ---- contexts ----------------------------------------------------------------------------------


def server_context(chain: str) -> ssl.SSLContext:
    """``chain`` is the text of a PEM file: key and certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(chain)
        file.flush()
        context.load_cert_chain(file.name)
    return context


def client_context(authority: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority)
    return context


def prepare(sock: socket.socket) -> socket.socket:
    """What every connection here has: no waiting for more data, and no waiting for ever."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.settimeout(TIMEOUT)
    return sock


# ---- by itself ---------------------------------------------------------------------------------


def alone() -> None:
    """Be the server's end in another Python, with OpenSSL's own kernel TLS.

    The channel is descriptor 0; the descriptors that its first message names are inherited.
    """
    channel = Channel(socket.socket(fileno=0))
    start = channel.hear()
    listener = socket.socket(fileno=start["listener"])
    context = server_context(start["chain"])
    context.options |= getattr(ssl, "OP_ENABLE_KTLS")  # noqa: B009  (from 3.12 on)
    sock: Any = context.wrap_socket(prepare(listener.accept()[0]), server_side=True)
    if not sock._sslobj.uses_ktls_for_send():  # noqa: SLF001
        channel.say(missing="OP_ENABLE_KTLS is set, and OpenSSL does not switch to kernel TLS")
        return
    receives = sock._sslobj.uses_ktls_for_recv()  # noqa: SLF001
    channel.say(
        ready=True, python=sys.version.split()[0], openssl=ssl.OPENSSL_VERSION, receives=receives
    )
    with open(start["file"], "rb") as file:  # noqa: PTH123
        obey(channel, sock, file)
