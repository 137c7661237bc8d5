"""The far end of a file server: many connections that fetch a file again and again."""

from __future__ import annotations

import selectors
import socket
import ssl
from typing import TYPE_CHECKING

from .ends import HOST, TIMEOUT, Clock, client_context, prepare

if TYPE_CHECKING:
    from .ends import Channel

ROOM = 1 << 18
HEADER_END = b"\r\n\r\n"


class Client:
    """One connection."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self.sock = sock
        self.left = 0  # bytes of the answer; -1 until its header has come
        self.todo = 0  # requests
        self.header = b""

    def ask(self, request: bytes) -> None:
        """Send a request: it is small, and there is room."""
        self.todo -= 1
        self.left = -1
        self.header = b""
        self.sock.sendall(request)

    def take(self, room: memoryview) -> bool:
        """Receive what there is; tells whether the answer is complete."""
        while True:
            try:
                received = self.sock.recv_into(room)
            except ssl.SSLWantReadError:
                return False
            if not received:
                raise ConnectionAbortedError("the server has closed the connection")
            if self.left < 0:
                self.header += room[:received]
                header, end, body = self.header.partition(HEADER_END)
                if not end:
                    continue
                self.left = self.length(header)
                received = len(body)
            self.left -= received
            if self.left <= 0:
                if self.left < 0:
                    raise RuntimeError("more has come than was asked for")
                return True

    @staticmethod
    def length(header: bytes) -> int:
        status, *lines = header.split(b"\r\n")
        if status.split()[1] != b"200":
            raise RuntimeError(status.decode())
        for line in lines:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                return int(value)
        raise RuntimeError("an answer without a length")


def load(
    channel: Channel, *, host: str, port: int, authority: str, connections: int, path: str
) -> None:
    """Open so many connections, and then fetch the file so often on each as is ordered."""
    context = client_context(authority)
    clients = []
    for _ in range(connections):
        tcp = prepare(socket.create_connection((host, port)))
        sock = context.wrap_socket(tcp, server_hostname=HOST)
        sock.setblocking(False)
        clients.append(Client(sock))
    channel.say(ready=True)
    request = f"GET /{path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    while True:
        try:
            order = channel.hear()
        except EOFError:
            return
        with Clock() as clock:
            fetch(clients, request, order["requests"])
        channel.say(cpu=clock.cpu, wall=clock.wall)


def fetch(clients: list[Client], request: bytes, requests: int) -> None:
    room = memoryview(bytearray(ROOM))
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.sock, selectors.EVENT_READ, client)
            client.todo = requests
            client.ask(request)
        waiting = len(clients)
        while waiting:
            ready = selector.select(TIMEOUT)
            if not ready:
                raise TimeoutError(f"{waiting} connections wait for the server")
            for key, _ in ready:
                client = key.data
                if not client.take(room):
                    continue
                if client.todo:
                    client.ask(request)
                else:
                    waiting -= 1
                    selector.unregister(client.sock)
