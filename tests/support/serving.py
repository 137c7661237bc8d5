"""A server of ``pyktls serve`` in a thread, and a client that sends exactly what it is told to.

``Running`` fails if the server's loop has reported an error, has forgotten a connection or a
descriptor.  Nothing here waits for longer than TIMEOUT.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import select
import socket
import ssl
import stat
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from pyktls.serve import Limits, Server, create_server

from . import tls
from .probing import open_descriptors

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Coroutine

TIMEOUT = 30.0


class Running:
    """A server that runs while the ``with`` block does."""

    def __init__(self, root: pathlib.Path, **options: Any) -> None:
        self.root = root
        self.log = io.StringIO()
        self.errors: list[dict[str, Any]] = []
        self.server: Server
        self.port = 0
        limits = options.pop("limits", {})
        self._options = {
            "log": self.log,
            "limits": Limits(**{"linger_timeout": 0.5, **limits}),
            **options,
        }
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._failure: BaseException | None = None

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as e:  # noqa: BLE001  (raised where the block ends)
            self._failure = e
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self._end = asyncio.Event()
        options = {"ssl": tls.server_context(), "port": 0, **self._options}
        async with await create_server(self.root, **options) as self.server:
            self.port = self.server.sockets[0].getsockname()[1]
            self._started.set()
            await self._end.wait()
            await self.server.stop(1.0)
        self.left = self.server.connections

    def __enter__(self) -> Self:
        self._before = descriptors()
        self._thread.start()
        assert self._started.wait(TIMEOUT)
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._end.set)
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()
        if self._failure is not None:
            raise self._failure
        assert self.errors == [], self.errors
        assert self.left == 0
        assert descriptors() <= self._before

    def call(self, function: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """What a coroutine returns that runs in the server's loop."""
        return asyncio.run_coroutine_threadsafe(function(), self.loop).result(2 * TIMEOUT)

    def lines(self) -> list[str]:
        """What was logged."""
        return self.log.getvalue().splitlines()

    def wait(self, condition: Callable[[Self], bool]) -> None:
        """Until something is so that the client cannot see."""
        end = time.monotonic() + TIMEOUT
        while not condition(self):
            assert time.monotonic() < end, self.lines()
            time.sleep(0.01)

    def wait_until_alone(self) -> None:
        self.wait(lambda running: not running.server.connections)

    def connect(self, *, receive_buffer: int | None = None) -> Client:
        return Client(self.port, receive_buffer=receive_buffer)

    def ask(self, request: bytes, *, head: bool = False) -> Reply:
        """The reply to one request, on a connection of its own."""
        with self.connect() as client:
            client.send(request)
            return client.reply(head=head)

    def get(self, path: str, *fields: str) -> Reply:
        return self.ask(get(path, *fields))


def descriptors() -> set[tuple[int, int, int]]:
    """Those of regular files and directories that are open: what a server might forget."""
    found = set()
    for fd in open_descriptors():
        with contextlib.suppress(OSError):  # another thread may have closed it
            file = os.fstat(fd)
            if stat.S_ISREG(file.st_mode) or stat.S_ISDIR(file.st_mode):
                found.add((fd, file.st_dev, file.st_ino))
    return found


def get(path: str, *fields: str, method: str = "GET") -> bytes:
    """A request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def unfolded(lines: list[str]) -> list[str]:
    """What the command says at its start, each on one line again."""
    whole: list[str] = []
    for line in lines:
        if line.startswith("  "):
            whole[-1] += " " + line.strip()
        else:
            whole.append(line)
    return whole


@dataclass
class Reply:
    """A response, as it was received."""

    status: int
    fields: dict[str, str]
    body: bytes


class _Incoming(io.RawIOBase):
    """What a ``Client`` receives; while it waits for that, what is left to send goes out.

    No second thread does it: before CPython 3.13 nothing keeps two calls on one SSL object apart,
    and a read then may end as if nothing more were to come.
    """

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock
        self.outgoing = bytearray()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        timeout = self._sock.gettimeout()
        try:
            while self.outgoing:
                self._sock.setblocking(False)
                with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    del self.outgoing[: self._sock.send(self.outgoing[:16384])]
                with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    return self._sock.recv_into(buffer)
                if not any(select.select([self._sock], [self._sock], [], TIMEOUT)):
                    raise TimeoutError
        finally:
            self._sock.settimeout(timeout)
        return self._sock.recv_into(buffer)


class Client:
    """A TLS connection that knows a little of HTTP."""

    def __init__(self, port: int, *, receive_buffer: int | None = None) -> None:
        tcp = socket.socket()
        tcp.settimeout(TIMEOUT)
        if receive_buffer is not None:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        tcp.connect(("127.0.0.1", port))
        self.sock = tls.client_context().wrap_socket(tcp, server_hostname=tls.HOST)
        self._incoming = _Incoming(self.sock)
        self.file = io.BufferedReader(self._incoming)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.file.close()
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def send_while_reading(self, data: bytes) -> None:
        """Send it as far as the server takes it, during the reads that follow."""
        self._incoming.outgoing += data

    def reply(self, *, head: bool = False) -> Reply:
        """The next response, which must be there whole."""
        status, fields = self.header()
        size = 0 if head or status == 304 else int(fields["content-length"])
        body = self.file.read(size)
        assert len(body) == size
        return Reply(status, fields, body)

    def header(self) -> tuple[int, dict[str, str]]:
        line = self.file.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        status = int(line.split()[1])
        fields: dict[str, str] = {}
        while (line := self.file.readline()) != b"\r\n":
            assert line.endswith(b"\r\n")
            name, _, value = line.decode("latin-1").partition(":")
            assert name.lower() not in fields
            fields[name.lower()] = value.strip()
        assert "date" in fields
        return status, fields

    def rest(self) -> bytes:
        """Everything up to the end of the connection, however that comes."""
        received = bytearray()
        try:
            while data := self.file.read1(65536):
                received += data
        except (ConnectionError, ssl.SSLEOFError):
            pass
        return bytes(received)


def received_after_the_end(
    port: int,
    requests: bytes,
    *,
    first: bytes = b"",
    notify: bool = True,
    fin: bool = False,
) -> bytes:
    """What comes to a client that sends ``requests`` and its end at one go, and then reads.

    The end is close_notify, or that of its side of the TCP connection, or both.  ``first`` is a
    request that has been answered before: a kernel takes no connection that has ended.
    """
    # In memory: Python's unwrap would meet responses that are here already, which is an error.
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = tls.client_context().wrap_bio(incoming, outgoing, server_hostname=tls.HOST)
    with socket.create_connection(("127.0.0.1", port), TIMEOUT) as sock:

        def receive(call: Callable[[], Any]) -> Any:
            while True:
                try:
                    return call()
                except ssl.SSLWantReadError:
                    sock.sendall(outgoing.read())
                    data = sock.recv(65536)
                    assert data
                    incoming.write(data)

        receive(client.do_handshake)
        if first:
            client.write(first)
            assert receive(lambda: client.read(65536)).startswith(b"HTTP/1.1 200 ")
        client.write(requests)
        if notify:
            with contextlib.suppress(ssl.SSLWantReadError):
                client.unwrap()
        sock.sendall(outgoing.read())
        if fin:
            sock.shutdown(socket.SHUT_WR)
        received = bytearray()
        with contextlib.suppress(ConnectionError):
            while data := sock.recv(65536):
                incoming.write(data)
                with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
                    while data := client.read(65536):
                        received += data
    return bytes(received)
