"""The selftest's ``tls_err``: records that are wrong, late or incomplete.

The records are made by the kernel on one connection and given to it, as they are or altered, on
another one.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time

import pytest

from pyktls import linux
from support.kernel import Background
from support.selftest import (
    CONTROL,
    DATA,
    ERROR_VARIANTS,
    MOMENT,
    PATIENCE,
    TAKEN,
    assert_nothing_to_read,
    at_once,
    bounded,
    fails,
    kernel_version,
    pipe,
    readable,
    take_record,
)

VARIANTS = tuple(variant for variant in ERROR_VARIANTS if variant in TAKEN)


def altered(record):
    record[-1] ^= 1
    return record


def test_bad_rec(relay):
    """A header that no record can have: EMSGSIZE once, and then nothing at all."""
    relay.forward(relay.record(b"good"), b"\xff" * 100)
    assert take_record(relay.far, 4) == (b"good", DATA)
    with fails(errno.EMSGSIZE, "recvmsg"):
        linux.recv_record(relay.far, 100)
    for _ in range(3):
        assert_nothing_to_read(relay.far)


def test_bad_auth(relay):
    """A record that was altered: EBADMSG at each attempt, and good ones behind it never come."""
    relay.forward(altered(relay.record(b"altered")), relay.record(b"good"))
    for flags in (0, 0, socket.MSG_PEEK, socket.MSG_DONTWAIT, 0):
        with fails(errno.EBADMSG, "recvmsg"):
            linux.recv_record(relay.far, 100, flags)


def test_bad_auth_splice(relay):
    """The same for a splice."""
    relay.forward(altered(relay.record(b"altered")))
    with pipe() as (out, into):
        for _ in range(3):
            with fails(errno.EBADMSG, "splice"):
                linux.splice_to_pipe(relay.far, into, 100)
        with fails(errno.EAGAIN):
            os.read(out, 100)


def test_bad_in_large_read(relay):
    """Good records before it are delivered by the same read, which ends early."""
    good = (b"first good record", b"second good record")
    relay.forward(*map(relay.record, good), altered(relay.record(b"altered")))
    assert take_record(relay.far, 1000) == (b"".join(good), DATA)
    for _ in range(2):
        with fails(errno.EBADMSG, "recvmsg"):
            linux.recv_record(relay.far, 1000)


def test_bad_cmsg(relay):
    """A control record that was altered, behind good data."""
    relay.forward(relay.record(b"good"), altered(relay.record(b"altered", CONTROL)))
    assert take_record(relay.far, 1000) == (b"good", DATA)
    for _ in range(2):
        with fails(errno.EBADMSG, "recvmsg"):
            linux.recv_record(relay.far, 1000)
    with fails(errno.EBADMSG):
        relay.far.recv(1000)


def test_timeo(relay):
    """SO_RCVTIMEO ends the reads of two threads at once, the one that waits for the other too."""
    bounded(relay.far, 0.3)

    def reader():
        begin = time.monotonic()
        with pytest.raises(BlockingIOError) as caught:
            linux.recv_record(relay.far, 100)
        assert caught.value.errno == errno.EAGAIN
        return time.monotonic() - begin

    with Background(reader) as first, Background(reader) as second:
        took = first.result(), second.result()
    assert min(took) >= 0.29
    assert max(took) < 10
    relay.forward(relay.record(b"goes on"))
    assert take_record(relay.far) == (b"goes on", DATA)


@pytest.fixture
def halves(relay):
    """A record in two parts, cut within its body."""
    record = relay.record(b"in two parts")
    return record[:20], record[20:]


def test_poll_partial_rec(relay, halves):
    """A part of a record is nothing to read; with the rest of it there is something."""
    assert not readable(relay.far)
    relay.forward(halves[0])
    assert not readable(relay.far, MOMENT), "poll says that a part of a record is there"
    assert_nothing_to_read(relay.far)
    relay.forward(halves[1])
    assert readable(relay.far, PATIENCE)
    assert take_record(relay.far) == (b"in two parts", DATA)
    assert not readable(relay.far)


def test_epoll_partial_rec(relay, halves):
    """The same for epoll(7)."""
    with select.epoll() as epoll:
        epoll.register(relay.far, select.EPOLLIN)
        assert epoll.poll(0) == []
        relay.forward(halves[0])
        assert epoll.poll(MOMENT) == []
        relay.forward(halves[1])
        assert epoll.poll(PATIENCE) == [(relay.far.fileno(), select.EPOLLIN)]
        assert take_record(relay.far) == (b"in two parts", DATA)
        assert epoll.poll(0) == []


def test_poll_partial_rec_async(relay, halves):
    """A poll that sleeps is not woken by a part of a record."""
    poll = select.poll()
    poll.register(relay.far, select.POLLIN)
    with Background(poll.poll, PATIENCE * 1000) as asleep:
        time.sleep(MOMENT)
        relay.source.sendall(halves[0])
        time.sleep(MOMENT)
        assert not asleep.done()
        relay.source.sendall(halves[1])
        assert asleep.result() == [(relay.far.fileno(), select.POLLIN)]
    assert take_record(relay.far) == (b"in two parts", DATA)


def test_oob_pressure(relay):
    """Urgent data and more bytes than there is room for, none of them a record."""
    source = relay.source
    assert source.send(b"\xff" * 5, socket.MSG_OOB) == 5
    assert source.send(b"\xff" * (1 << 16)) == 1 << 16
    for _ in range(64):
        assert source.send(b"\xff" * 5, socket.MSG_OOB) == 5
    with fails(errno.EMSGSIZE, "recvmsg"):
        linux.recv_record(relay.far, 100)
    assert_nothing_to_read(relay.far)


# ---- what the selftest does not ask ----------------------------------------------------------


def test_a_part_of_a_record_never_blocks_a_reader(relay, halves):
    """Whatever poll says (before 6.5: readable), a read that must not wait is EAGAIN."""
    relay.forward(halves[0])
    assert readable(relay.far) is (kernel_version() < (6, 5))
    relay.far.setblocking(False)
    for _ in range(2):
        with at_once(), fails(errno.EAGAIN, "recvmsg"):
            linux.recv_record(relay.far, 100)
    relay.forward(halves[1])
    assert take_record(relay.far) == (b"in two parts", DATA)


def test_a_reader_sleeps_while_a_part_of_a_record_is_there(relay, halves):
    """With a timeout of its own, a read neither spins until the rest comes nor misses it."""
    relay.forward(halves[0])
    relay.far.settimeout(1.0)
    begin, busy = time.monotonic(), time.thread_time()
    with pytest.raises(TimeoutError):
        linux.recv_record(relay.far, 100)
    took, busy = time.monotonic() - begin, time.thread_time() - busy
    assert took >= 0.99
    assert busy < took / 3
    relay.far.settimeout(PATIENCE)
    with Background(take_record, relay.far) as reader:
        time.sleep(MOMENT)
        assert not reader.done()
        relay.source.sendall(halves[1])
        assert reader.result() == (b"in two parts", DATA)
