"""What type checkers have to refuse: each line is an error, and an error that is not there is one.

Both tools are told to report an ``ignore`` that ignores nothing.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pyktls
from pyktls import aio
from pyktls.lowlevel import ffi, lib

if TYPE_CHECKING:
    import socket
    import ssl


def wants_ssl_socket(sock: ssl.SSLSocket) -> None:
    print(sock.version())


def sockets(plain: socket.socket, tls: ssl.SSLSocket, sock: pyktls.KTLSSocket) -> None:
    pyktls.offload(plain)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    pyktls.offload(tls, tx="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    wants_ssl_socket(sock)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sock.sendall("text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sock.splice_to("pipe", 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sock.ktls.cipher = ""  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    pyktls.send_socket(plain, tls)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    pyktls.status("socket")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def sessions(session: pyktls.Session, plain: socket.socket) -> None:
    pyktls.install(plain, None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    session.tx.sequence = "1"  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
    session.tx.key = b""  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
    session.kex = None  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    pyktls.engine()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


async def loops(context: ssl.SSLContext, writer: asyncio.StreamWriter) -> None:
    await aio.open_connection("localhost", 443, tls=context)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await aio.open_connection("localhost", 443, ssl="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await aio.create_connection(asyncio.Protocol, "localhost", 443, familiy=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await aio.create_server(print, "localhost", 443, ssl=context)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await aio.sendfile(writer, "name")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def interfaces(sock: socket.socket) -> None:
    pyktls.linux.set_crypto_info(sock, pyktls.linux.TLS_TX, b"")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    pyktls.freebsd.get_mode(sock, "tx")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    lib.TLS_TX = 3  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    print(lib.TLS_TXX)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownArgumentType]
    lib.setsockopt(sock, 6, 31, ffi.NULL, 0)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ffi.sizeof()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
