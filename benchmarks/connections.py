"""Connections of every kind that is compared, and the child that holds one end of one."""

from __future__ import annotations

import contextlib
import os
import socket
from concurrent import futures
from typing import TYPE_CHECKING, Any

import pyktls
from pyktls.ciphers import find_suite_by_openssl_name

from . import limit, other_python
from .ends import HOST, client_context, obey, prepare, server_context

if TYPE_CHECKING:
    import ssl

    from .ends import Channel

#: Ways to go on after the handshake, and what they are called in the tables.
PLAIN, SSL, KTLS, WRAPPED, LIMIT, OTHER = "plain", "ssl", "ktls", "wrapped", "limit", "other"
#: Plain TCP through KTLSSocket: what the class itself costs.
CLASS = "class"
NAMES = {
    LIMIT: "a C program (the limit)",
    KTLS: "`pyktls.KTLSSocket`",
    WRAPPED: "`pyktls.SSLSocket`",
    OTHER: "CPython 3.15, `OP_ENABLE_KTLS`",
    SSL: "`ssl.SSLSocket`",
    PLAIN: "`socket.socket`, no TLS",
    CLASS: "plain TCP through `pyktls.KTLSSocket`",
}


def make_context(way: str, role: str, material: dict[str, str], kind: str = "ecdsa") -> Any:
    """A context for one end; ``kind`` is the server's certificate's."""
    if role == "server":
        context = server_context(material[kind])
    else:
        context = client_context(material["authority"])
    if way in {KTLS, LIMIT}:
        pyktls.watch(context)
    elif way == WRAPPED:
        pyktls.wrap_context(context, require=True)
    return context


def shake_hands(
    context: ssl.SSLContext,
    role: str,
    sock: socket.socket,
    session: ssl.SSLSession | None = None,
) -> ssl.SSLSocket:
    if role == "server":
        return context.wrap_socket(sock, server_side=True)
    return context.wrap_socket(sock, server_hostname=HOST, session=session)


def finish(way: str, sock: Any) -> Any:
    """What is used after the handshake."""
    return pyktls.offload(sock) if way == KTLS else sock


def end(
    channel: Channel, *, way: str, side: str, role: str, material: dict[str, str], host: str,
    port: int = 0, file: str = "", program: str = "", buffer: int = 0,
) -> None:  # fmt: skip
    """Hold one end of one connection, and do with it what is ordered.

    The near end listens, the far one connects; which of them is TLS's server is another matter.
    """
    with contextlib.ExitStack() as stack:
        content = None if not file else stack.enter_context(open(file, "rb"))  # noqa: PTH123
        if side == "near":
            listener = stack.enter_context(socket.create_server((host, 0)))
            channel.say(port=listener.getsockname()[1])
            if way == OTHER:
                other_python.serve(channel, listener, material["ecdsa"], content)
                return
            tcp, _ = listener.accept()
        else:
            tcp = socket.create_connection((host, port))
        set_buffers(prepare(tcp), buffer)
        if way == PLAIN:
            sock = tcp
        else:
            sock = finish(way, shake_hands(make_context(way, role, material), role, tcp))
        stack.enter_context(contextlib.closing(sock))
        sock.setblocking(True)
        if way == LIMIT:
            limit.obey(channel, program, sock, content)
        else:
            channel.say(ready=True)
            obey(channel, sock, content)


#: SO_SNDBUFFORCE and SO_RCVBUFFORCE, which root may use.
_FORCED = {socket.SO_SNDBUF: 32, socket.SO_RCVBUF: 33}


def set_buffers(sock: socket.socket, size: int) -> None:
    """Buffers that hold what is sent before it is received; 0 leaves them as they are."""
    if not size:
        return
    for option, forced in _FORCED.items():
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, size)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, option, size)


# ---- both ends in one process ------------------------------------------------------------------


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return prepare(near), prepare(far)


def pair(way: str, material: dict[str, str]) -> tuple[Any, Any]:
    """Two connected sockets of one kind: a client's and a server's."""
    near, far = tcp_pair()
    if way == PLAIN:
        return near, far
    if way == CLASS:
        return through_class(near), through_class(far)
    client, server = handshaken_pair(way, material, near, far)
    return finish(way, client), finish(way, server)


def handshaken_pair(
    way: str, material: dict[str, str], near: socket.socket, far: socket.socket
) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    with futures.ThreadPoolExecutor(1) as executor:
        context = make_context(way, "server", material)
        server = executor.submit(shake_hands, context, "server", far)
        client = shake_hands(make_context(way, "client", material), "client", near)
        return client, server.result()


def through_class(sock: socket.socket) -> pyktls.KTLSSocket:
    """A plain TCP socket that thinks it is a KTLSSocket.

    The session has never been anybody's.  A kernel without TLS on the socket tells no record type;
    the record layer takes such bytes for the rest of a record of data, which is what FreeBSD gives,
    and so goes the way that it goes for all data.
    """
    suite = find_suite_by_openssl_name("TLS_AES_256_GCM_SHA384")
    assert suite is not None  # noqa: S101
    tx, rx = (pyktls.DirectionKeys(os.urandom(32), os.urandom(12), 0) for _ in range(2))
    timeout = sock.gettimeout()
    through = pyktls.KTLSSocket(pyktls.Session(suite, pyktls.Role.CLIENT, tx, rx), sock.detach())
    through.settimeout(timeout)
    through._layer.reading_data = True  # noqa: SLF001
    return through


def let_go(sock: Any) -> None:
    """Close a socket of ``pair``; without TLS there is no close_notify to send."""
    if isinstance(sock, pyktls.KTLSSocket):
        sock.abandon()
    else:
        sock.close()
