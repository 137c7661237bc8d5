"""The same as tests/unit/test_bad_input.py on a kernel with TLS, and KTLSSocket's own methods.

A socket that was thrown at still works, or says what it has become.
"""

from __future__ import annotations

import contextlib
import os
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pyktls
from pyktls.ciphers import TLS_1_3
from support import bad_input, bad_input_aio, kernel, records, tls

SETTINGS = settings(
    max_examples=3,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)


@pytest.fixture(scope="module")
def world():
    with bad_input.world() as made:
        yield made


@pytest.fixture(scope="module")
def contexts():
    client, server = tls.contexts(tls.TLS_1_3, watch=False)
    return pyktls.wrap_context(client, require=True), server


# FreeBSD's refuse at once here: tests/unit has them.
@pytest.mark.parametrize("name", [n for n in bad_input.FUNCTIONS if not n.startswith("freebsd.")])
@SETTINGS
@given(data=st.data())
def test_any_arguments(world, name, data):
    bad_input.throw(world, name, data)


@pytest.mark.parametrize("name", bad_input.METHODS)
@SETTINGS
@given(data=st.data())
def test_any_arguments_of_a_method(world, name, data):
    with kernel.wired(kernel.suite(TLS_1_3)) as (sock, wire):
        sock.setblocking(False)
        wire.send_data(b"0123456789")
        bad_input.throw_at_method(world, sock, name, data)
        # It goes on: what was not read is there, and what was taken has been sent whole.
        sock.settimeout(kernel.TIMEOUT)
        wire.close_notify()
        assert b"0123456789".endswith(kernel.recv_to_end(sock))
        sock.sendall(b"still works")
        sock.close()
        data_sent, others = wire.recv_all()
        assert data_sent.endswith(b"still works")
        assert others.pop() == (records.ALERT, b"\1\0")
        if name == "update_keys":
            assert {record_type for record_type, _ in others} <= {records.HANDSHAKE}
        else:
            assert not others


def read_the_end(sock, wire):
    wire.close_notify()
    kernel.recv_to_end(sock)


def read_an_error(sock):
    with pytest.raises(pyktls.Error):
        kernel.recv_to_end(sock)


#: What a connection has gone through before a call comes that it is not made for any more.
STATES = {
    "closed": lambda sock, _: sock.close(),
    "detached": lambda sock, _: os.close(sock.detach()),
    "abandoned": lambda sock, _: sock.abandon(),
    "sending has ended": lambda sock, _: sock.shutdown(socket.SHUT_WR),
    "the peer has ended": read_the_end,
    "cut off": lambda sock, wire: (wire.sock.close(), read_an_error(sock)),
    "an alert": lambda sock, wire: (wire.send_alert(2, 40), read_an_error(sock)),
    "a broken record": lambda sock, wire: (
        wire.raw(b"\x17\x03\x03\x00\x20" + bytes(32)), read_an_error(sock),
    ),
}  # fmt: skip


@pytest.mark.parametrize("state", STATES)
@settings(SETTINGS, max_examples=30)
@given(data=st.data())
def test_any_call_in_another_state(world, state, data):
    """It is an error, or what the state allows; and reading and writing still say what it is."""
    name = data.draw(st.sampled_from(bad_input.METHODS))
    with kernel.wired(kernel.suite(TLS_1_3)) as (sock, wire):
        STATES[state](sock, wire)
        if sock.fileno() >= 0:
            sock.setblocking(False)
        bad_input.throw_at_method(world, sock, name, data)
        for again in ("recv", "send"):
            if sock.fileno() >= 0:  # whatever settimeout has been given
                sock.setblocking(False)
            bad_input.call_method(sock, again, [1 if again == "recv" else b"more"])


@pytest.mark.parametrize("name", bad_input.SSL_METHODS)
@SETTINGS
@given(data=st.data())
def test_any_arguments_of_an_ssl_method(world, contexts, name, data):
    with tls.connect(*contexts) as pair:
        assert pair.client.ktls.refusal is None
        pair.server.sendall(b"0123456789")
        bad_input.throw_at_ssl_method(world, pair.client, name, data)
        bad_input.check_ssl(pair.client, pair.server)


@pytest.fixture(scope="module")
def loop(world):
    with bad_input_aio.world(world) as around:
        yield around


# asyncio leaves a socket behind where its own arguments are wrong, ssl one for a wrong hostname.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", bad_input_aio.FUNCTIONS)
@settings(SETTINGS, max_examples=15)
@given(data=st.data())
def test_any_arguments_for_asyncio(loop, name, data):
    loop.throw(name, data)


def test_the_loop_goes_on(loop):
    loop.check()


@pytest.mark.parametrize("how", [None, "1", 7, -1, 2**70])
def test_a_wrong_shutdown_ends_nothing(how):
    with kernel.wired(kernel.suite(TLS_1_3)) as (sock, wire):
        with pytest.raises((pyktls.Error, OSError, TypeError, OverflowError)):
            sock.shutdown(how)
        with contextlib.closing(sock):
            sock.sendall(b"still works")
            assert wire.recv() == (records.APPLICATION_DATA, b"still works")
