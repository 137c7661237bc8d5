"""Calls that another thread's calls meet: it waits for its turn, and is not led to another socket.

The sockets have no kernel TLS; a call that waits does not come to the point where that matters.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import socket
import struct
import sys
import tempfile
import time
import warnings
from typing import TYPE_CHECKING

import pytest

from pyktls import KTLSSocket, Role, Session
from pyktls.ciphers import TLS_1_3
from support import kernel, tls
from support.kernel import Background

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MiB = 1 << 20
BIG = bytes(16 * MiB)


@pytest.fixture
def ends() -> Iterator[tuple[KTLSSocket, socket.socket]]:
    near, far = tls.tcp_pair()
    suite = kernel.suite(TLS_1_3)
    session = Session(suite, Role.CLIENT, *(kernel.direction_keys(suite, 0) for _ in range(2)))
    with far:
        near.settimeout(None)
        sock = KTLSSocket(session, near.detach())
        try:
            yield sock, far
        finally:
            sock.abandon()


def until_it_waits(sock: socket.socket, event: int) -> None:
    """Wait until a call has made the socket unfit for this event."""
    poll = select.poll()
    poll.register(sock, event)
    end = time.monotonic() + kernel.TIMEOUT
    while poll.poll(0):
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.2)


def send_file(sock: KTLSSocket) -> int:
    with tempfile.TemporaryFile() as file:
        file.write(BIG)
        file.flush()
        return sock.sendfile(file)


def send_until_full(sock: KTLSSocket) -> None:
    while True:
        sock.send(BIG)


RECEIVING = {
    "recv": lambda sock: sock.recv(100),
    "recv with flags": lambda sock: sock.recv(100, socket.MSG_WAITALL),
    "recv_into": lambda sock: sock.recv_into(bytearray(100)),
    "recvmsg_into": lambda sock: sock.recvmsg_into([bytearray(10), bytearray(10)]),
}
SENDING = {
    "send": send_until_full,
    "sendall": lambda sock: sock.sendall(BIG),
    "sendmsg": lambda sock: [sock.sendmsg([BIG[:MiB], BIG[:MiB]]) for _ in range(64)],
    "sendfile": send_file,
}


@pytest.mark.parametrize("name", [*RECEIVING, *SENDING])
def test_a_call_never_goes_on_with_a_number_that_is_anothers_by_now(
    ends: tuple[KTLSSocket, socket.socket], name: str
) -> None:
    sock, far = ends
    sock.settimeout(kernel.TIMEOUT)
    with Background((RECEIVING | SENDING)[name], sock) as waiting:
        if name in SENDING:
            until_it_waits(sock, select.POLLOUT)
        else:
            time.sleep(0.2)
        with kernel.number_of_another(sock, sock.abandon):
            far.settimeout(kernel.TIMEOUT)
            if name in SENDING:
                with contextlib.suppress(ConnectionError):
                    while far.recv(MiB):
                        pass
            else:
                far.close()
            waiting.fails(OSError, match="Bad file descriptor")


@pytest.mark.parametrize("name", SENDING)
def test_a_call_that_waits_in_the_kernel_does_not_go_on_there_either(
    ends: tuple[KTLSSocket, socket.socket], name: str
) -> None:
    """Without a timeout the system call itself waits, and comes back when the peer is gone."""
    sock, far = ends
    with Background(SENDING[name], sock) as waiting:
        until_it_waits(sock, select.POLLOUT)
        with kernel.number_of_another(sock, sock.abandon):
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            far.close()
            waiting.fails(OSError, match=r"Bad file descriptor|reset|Broken pipe")


@pytest.mark.parametrize(
    "call",
    [
        lambda sock: sock.recv(10),
        lambda sock: sock.recv_into(bytearray(10)),
        lambda sock: sock.recvmsg_into([bytearray(10), bytearray(10)]),
        lambda sock: sock.recv(10, socket.MSG_PEEK),
    ],
    ids=["recv", "recv_into", "recvmsg_into", "peek"],
)
def test_the_timeout_counts_while_another_thread_receives(
    ends: tuple[KTLSSocket, socket.socket], call: Callable[[KTLSSocket], object]
) -> None:
    sock, far = ends
    with Background(RECEIVING["recv"], sock) as waiting:
        time.sleep(0.2)
        sock._layer.timeout = 0.2
        begin = time.monotonic()
        with pytest.raises(TimeoutError):
            call(sock)
        assert 0.15 < time.monotonic() - begin < 10
        for timeout in (0.0, None):
            sock._layer.timeout = timeout
            with pytest.raises(BlockingIOError):
                sock.recv(10, socket.MSG_DONTWAIT)
        far.close()
        waiting.fails(ConnectionError)


def test_the_timeout_counts_while_another_thread_sends(
    ends: tuple[KTLSSocket, socket.socket],
) -> None:
    sock, far = ends
    with Background(sock.sendall, BIG) as waiting:
        until_it_waits(sock, select.POLLOUT)
        sock._layer.timeout = 0.2
        for call in (
            lambda: sock.send(b"x"),
            lambda: sock.sendall(b"x"),
            lambda: sock.sendmsg([b"x"]),
            lambda: send_file(sock),
            sock.update_keys,
            sock.unwrap,
        ):
            with pytest.raises(TimeoutError):
                call()
        for timeout in (0.0, None):
            sock._layer.timeout = timeout
            with pytest.raises(BlockingIOError):
                sock.send(b"x", socket.MSG_DONTWAIT)
        kernel.recv_exactly(far, len(BIG))
        waiting.result()


def test_a_forgotten_socket_is_closed_where_warnings_are_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda u: told.append(u.exc_value))
    near, far = tls.tcp_pair()
    with far:
        suite = kernel.suite(TLS_1_3)
        session = Session(suite, Role.CLIENT, *(kernel.direction_keys(suite, 0) for _ in range(2)))
        sock = KTLSSocket(session, near.detach())
        number = sock.fileno()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            del sock
            gc.collect()
        assert [type(error) for error in told] == [ResourceWarning]
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
