"""Sockets: what pyktls gives goes where the standard library's types are asked for."""

from __future__ import annotations

import selectors
import socket
import ssl
from asyncio.trsock import TransportSocket
from typing import TYPE_CHECKING, BinaryIO, assert_type

import pyktls

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


def wants_socket(sock: socket.socket) -> int:
    return sock.fileno()


def wants_ssl_socket(sock: ssl.SSLSocket) -> str | None:
    return sock.version()


def client(address: tuple[str, int], context: ssl.SSLContext, file: BinaryIO) -> bytes:
    assert_type(pyktls.watch(context), None)
    tls = context.wrap_socket(socket.create_connection(address), server_hostname=address[0])
    with pyktls.offload(tls, rx=False) as sock:
        assert_type(sock, pyktls.KTLSSocket)
        wants_socket(sock)
        selectors.DefaultSelector().register(sock, selectors.EVENT_READ)
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        sock.sendmsg([b"a", bytearray(b"b"), memoryview(b"c")])
        assert_type(sock.send(bytearray(2), socket.MSG_DONTWAIT), int)
        assert_type(sock.recv_into(bytearray(10)), int)
        assert_type(sock.recvmsg_into([bytearray(10)])[0], int)
        assert_type(sock.sendfile(file, headers=[b"head"], trailers=[b"tail"]), int)
        assert_type(sock.splice_to(4, 10), int)
        assert_type(sock.close_timeout, float)
        assert_type(sock.cipher(), tuple[str, str, int])
        assert_type(sock.session, ssl.SSLSession | None)
        return assert_type(sock.recv(100), bytes)


def transport_socket(transport: asyncio.Transport) -> None:
    sock = transport.get_extra_info("socket")
    assert isinstance(sock, TransportSocket)
    assert_type(pyktls.status(sock), pyktls.Status)


def told(sock: pyktls.KTLSSocket) -> str:
    status = assert_type(sock.ktls, pyktls.Status)
    assert_type(pyktls.status(sock), pyktls.Status)
    assert_type(status.version, int | None)
    assert_type(status.tx, pyktls.Mode)
    assert_type(status.openssl_tx, bool | None)
    if status.refusal is not None:
        return str(status.refusal)
    return status.cipher or status.ulp


def drop_in(context: ssl.SSLContext, plain: socket.socket) -> None:
    assert_type(pyktls.wrap_context(context, require=True), ssl.SSLContext)
    sock = context.wrap_socket(plain)
    assert_type(sock, ssl.SSLSocket)
    if isinstance(sock, pyktls.SSLSocket):
        wants_ssl_socket(sock)
        wants_socket(sock)
        assert_type(sock.ktls, pyktls.Status)


def moved(unix: socket.socket, sock: pyktls.KTLSSocket) -> pyktls.KTLSSocket:
    pyktls.send_socket(unix, sock, secrets=True)
    state = assert_type(sock.export_state(), bytearray)
    assert_type(pyktls.KTLSSocket.from_state(state, sock.detach()), pyktls.KTLSSocket)
    return pyktls.receive_socket(unix)


class Counted(pyktls.KTLSSocket):
    """Users may derive: from_state gives the derived class."""

    @classmethod
    def again(cls, state: bytes, fd: int) -> Counted:
        return cls.from_state(state, fd)


def errors(attempt: Callable[[], None]) -> str | None:
    try:
        attempt()
    except pyktls.Unavailable as e:
        return assert_type(e.remedy, str | None)
    except pyktls.HandoffRefused as e:
        return "dead" if assert_type(e.dead, bool) else None
    except pyktls.TLSAlert as e:
        return f"{assert_type(e.level, int)} {assert_type(e.description, int)}"
    except (pyktls.TruncationError, pyktls.RecordError) as e:
        connection_error: ConnectionError = e
        return str(connection_error)
    except pyktls.Error as e:
        return str(e)
    return None
