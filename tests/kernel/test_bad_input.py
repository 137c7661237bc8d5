"""The same as tests/unit/test_bad_input.py on a kernel with TLS, and KTLSSocket's own methods.

A socket that was thrown at still works, or says what it has become.
"""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pyktls
from pyktls.ciphers import TLS_1_3
from support import bad_input, kernel, records

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


@pytest.mark.parametrize("how", [None, "1", 7, -1, 2**70])
def test_a_wrong_shutdown_ends_nothing(how):
    with kernel.wired(kernel.suite(TLS_1_3)) as (sock, wire):
        with pytest.raises((pyktls.Error, OSError, TypeError, OverflowError)):
            sock.shutdown(how)
        with contextlib.closing(sock):
            sock.sendall(b"still works")
            assert wire.recv() == (records.APPLICATION_DATA, b"still works")
