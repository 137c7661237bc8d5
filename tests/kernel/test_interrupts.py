"""Signals, timeouts, and sends that are taken only in part (PEP 475; net/tls/tls_sw.c).

A call that a signal interrupts is taken up again unless the handler raises; the timeout counts from
the beginning; and whatever happens, each byte arrives once.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import time

import pytest

import pyktls
from pyktls.ciphers import TLS_1_3
from support import kernel, records, tls
from support.kernel import ONE_OF_EACH, TIMEOUT, Background, pattern, suite_id

over_versions = pytest.mark.parametrize("suite", ONE_OF_EACH, ids=suite_id)
DATA = records.APPLICATION_DATA


class Interrupted(Exception):
    pass


@contextlib.contextmanager
def alarms(every: float, *, raising: bool = False):
    """Signals at that interval; gives a list that grows by one with each."""
    seen: list[float] = []

    def handler(*_: object) -> None:
        seen.append(time.monotonic())
        if raising:
            raise Interrupted

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, every, 0 if raising else every)
    try:
        yield seen
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def later(seconds: float, call, *arguments):
    def wait_and_call():
        time.sleep(seconds)
        return call(*arguments)

    return Background(wait_and_call)


@over_versions
@pytest.mark.parametrize("timeout", [None, TIMEOUT], ids=["blocking", "timeout"])
def test_a_read_goes_on_after_a_signal(suite, timeout):
    with kernel.wired(suite) as (sock, wire):
        sock.settimeout(timeout)
        with alarms(0.05) as seen, later(0.5, wire.send_data, b"data"):
            assert sock.recv(100) == b"data"
        assert len(seen) >= 2
        with alarms(0.05) as seen, later(0.5, wire.send, records.HANDSHAKE, b"control"):
            record = kernel.interface.recv_record(sock, 100)
        assert (record.data, record.record_type) == (b"control", records.HANDSHAKE)
        assert len(seen) >= 2


@over_versions
def test_a_handler_that_raises_ends_the_read_and_nothing_is_lost(suite):
    with kernel.wired(suite) as (sock, wire):
        for timeout in (None, TIMEOUT):
            sock.settimeout(timeout)
            with alarms(0.1, raising=True), pytest.raises(Interrupted):
                sock.recv(100)
            wire.send_data(b"data")
            assert sock.recv(100) == b"data"


def test_the_timeout_counts_from_the_beginning_whatever_signals_come():
    with kernel.wired(kernel.suite(TLS_1_3)) as (sock, _):
        sock.settimeout(0.5)
        begin = time.monotonic()
        with alarms(0.1) as seen, pytest.raises(TimeoutError):
            sock.recv(1)
        assert 0.5 <= time.monotonic() - begin < 5
        assert len(seen) >= 2
        begin = time.monotonic()
        with alarms(0.1), pytest.raises(TimeoutError):
            kernel.interface.recv_record(sock, 1)
        assert 0.5 <= time.monotonic() - begin < 5


@over_versions
@pytest.mark.parametrize("timeout", [None, TIMEOUT], ids=["blocking", "timeout"])
def test_a_send_goes_on_after_signals_and_each_byte_arrives_once(suite, timeout):
    data = pattern(400_000)
    with kernel.wired(suite) as (sock, wire):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
        sock.settimeout(timeout)
        with alarms(0.01) as seen, later(0.3, wire.recv_data, len(data)) as received:
            sock.sendall(data)
            assert received.result() == data
        assert len(seen) >= 2


@over_versions
def test_a_handler_that_raises_ends_sendall_within_the_data(suite):
    """What arrived is a beginning of what was sent, and the next record follows it."""
    data = pattern(400_000)
    with kernel.wired(suite) as (sock, wire):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
        sock.settimeout(None)
        with alarms(0.5, raising=True), pytest.raises(Interrupted):
            sock.sendall(data)
        with Background(wire.recv_all) as received:
            sock.sendall(b"!end!")
            sock.close()
        got, others = received.result()
        assert got.endswith(b"!end!")
        assert data.startswith(got[:-5])
        assert len(got) < len(data)
        assert others == [(records.ALERT, b"\1\0")]


@over_versions
@pytest.mark.parametrize("size", [20_000, 100_000])
def test_a_partial_send_is_continued_and_never_repeated(suite, size):
    """A full buffer may hold half of a record: send counts it, and the kernel sends the rest."""
    own, other = kernel.sessions(suite)
    near, far = tls.tcp_pair(tls.ORDINARY_MSS)
    data = pattern(400_000)
    with near, far:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        pyktls.install(near, own)
        near.setblocking(False)
        far.settimeout(TIMEOUT)
        wire = kernel.Wire(far, other)
        sending = memoryview(data + b"tail")
        received = bytearray()
        full = 0
        # The peer reads a record whenever the buffer is full, so it is full again and again; the
        # rest of a record that is half in it goes out by itself as room comes.
        while sending:
            try:
                sending = sending[kernel.interface.send_record(near, sending) :]
            except BlockingIOError:
                full += 1
                record_type, payload = wire.recv()
                assert record_type == records.APPLICATION_DATA
                received += payload
        received += wire.recv_data(len(data) + 4 - len(received))
        assert received == data + b"tail"
        assert full > 1


def test_waitall_after_a_signal_keeps_what_has_come():
    with kernel.wired(kernel.suite(TLS_1_3)) as (sock, wire):
        wire.send_data(b"first ")
        with alarms(0.05) as seen, later(0.4, wire.send_data, b"second"):
            assert sock.recv(12, socket.MSG_WAITALL) == b"first second"
        assert len(seen) >= 2
