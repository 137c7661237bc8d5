"""An error holds nobody: with it goes what the functions that it came through had in hand.

An exception that a frame of its own traceback has in a variable is in a cycle, and with it all
variables of all callers, until the collector comes by: a program that polls would grow by what its
functions hold, and sockets in them would stay open.
"""

from __future__ import annotations

import contextlib
import gc
import socket
import tempfile
import weakref
from typing import TYPE_CHECKING, Any

import pytest

import pyktls
from pyktls.ciphers import TLS_1_3
from support import kernel, tls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TIMEOUT = 0.05
RESET = b"\1\0\0\0\0\0\0\0"


class Held:
    """Something that a caller has in a variable."""


@pytest.fixture(params=["KTLSSocket", "SSLSocket"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    """(our end, the other end, which is OpenSSL's)"""
    contexts = tls.contexts(kernel.OPENSSL_VERSIONS[TLS_1_3])
    if request.param == "SSLSocket":
        pyktls.wrap_context(contexts[1])
    with tls.connect(*contexts) as pair:
        ours: Any = pair.server
        if request.param == "SSLSocket":
            assert (ours.ktls.tx, ours.ktls.rx) == (pyktls.Mode.SOFTWARE, pyktls.Mode.SOFTWARE)
            ours._layer.suppress_ragged_eofs = False
        else:
            ours = pyktls.offload(ours)
        ours.close_timeout = TIMEOUT
        yield ours, pair.client
        with contextlib.suppress(OSError):
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        kernel.close_quietly(ours)


def flood(sock: Any) -> None:
    while True:
        sock.send(bytes(1 << 20))


def send_a_file(sock: Any) -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(1 << 26)
        sock.sendfile(file)


def without_waiting(call: Callable[[Any], object]) -> Callable[[Any, Any], object]:
    def run(sock: Any, _: Any) -> None:
        sock.setblocking(False)
        call(sock)

    return run


def in_time(call: Callable[[Any], object]) -> Callable[[Any, Any], object]:
    def run(sock: Any, _: Any) -> None:
        sock.settimeout(TIMEOUT)
        call(sock)

    return run


def clogged(call: Callable[[Any], object]) -> Callable[[Any, Any], object]:
    def run(sock: Any, _: Any) -> None:
        kernel.clog(sock)
        call(sock)

    return run


def cut_off(sock: Any, peer: Any) -> None:
    socket.socket.shutdown(peer, socket.SHUT_RDWR)
    sock.recv(1)


def reset(sock: Any, peer: Any) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    peer.close()
    kernel.wait_readable(sock)
    sock.recv(1)


def closed(sock: Any, _: Any) -> None:
    sock.close()
    sock.recv(1)


FAILURES = {
    "recv": without_waiting(lambda sock: sock.recv(1)),
    "recv_into": without_waiting(lambda sock: sock.recv_into(bytearray(9))),
    "recv_into too little": in_time(lambda sock: sock.recv_into(bytearray(9), 10, 7)),
    "send": without_waiting(flood),
    "unwrap": without_waiting(lambda sock: sock.unwrap()),
    "recv in time": in_time(lambda sock: sock.recv(1)),
    "recv_into in time": in_time(lambda sock: sock.recv_into(bytearray(9))),
    "sendall in time": in_time(lambda sock: sock.sendall(bytes(1 << 26))),
    "sendfile in time": in_time(send_a_file),
    "unwrap in time": in_time(lambda sock: sock.unwrap()),
    "shutdown": clogged(lambda sock: sock.shutdown(socket.SHUT_WR)),
    "close": clogged(lambda sock: sock.close()),
    "cut off": cut_off,
    "reset": reset,
    "closed": closed,
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_the_caller_has_goes_with_the_error(name: str, ends: tuple[Any, Any]) -> None:
    def caller() -> weakref.ref[Held]:
        held = Held()
        known = weakref.ref(held)
        try:
            FAILURES[name](*ends)
        except (OSError, pyktls.Error):
            return known
        raise AssertionError("it does not fail")

    gc.collect()
    gc.disable()
    try:
        assert caller()() is None
    finally:
        gc.enable()
