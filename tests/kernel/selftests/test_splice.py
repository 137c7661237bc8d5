"""The selftest's ``tls``: pipes to and from a socket.

A pipe in packet mode (O_DIRECT) holds each write on a page of its own, which is how a record comes
to be made of many small pages here.
"""

from __future__ import annotations

import errno
import os
import socket
import time

from pyktls import linux
from support.kernel import pattern
from support.selftest import (
    CONTROL,
    DATA,
    MOST,
    PATIENCE,
    assert_nothing_to_read,
    fails,
    kernel_version,
    pipe,
    readable,
    splice_all,
    splice_one,
    take,
    take_record,
    write_pages,
)

MORE = os.SPLICE_F_MORE
#: Before 6.5 SPLICE_F_MORE has no effect: each splice ends its record.
MORE_IS_MORE = kernel_version() >= (6, 5)
#: MAX_SKB_FRAGS: so many pages fill a record.
FULL = 17


def test_splice_from_pipe(pair):
    """What is in a pipe, as one record."""
    data = pattern(8000)
    with pipe() as (out, into):
        assert os.write(into, data) == len(data)
        splice_all(out, pair.near, len(data))
    assert take(pair.far, len(data)) == data
    assert pair.sent == 1


def test_splice_more(pair):
    """Byte after byte with SPLICE_F_MORE, more of them than a record has room for pages."""
    data = pattern(1000)
    with pipe() as (out, into):
        assert os.write(into, data) == len(data)
        for count in range(len(data)):
            assert linux.splice_from_pipe(out, pair.near, 1, MORE) == 1
            if not MORE_IS_MORE:
                assert pair.sent == count + 1
            elif count < FULL - 2:
                assert pair.sent == 0
    linux.flush(pair.near)
    assert take(pair.far, len(data)) == data
    assert_nothing_to_read(pair.far)
    assert pair.sent == pair.received


def test_splice_from_pipe2(pair):
    """Two pipes, one after the other, in one record and in records of their own."""
    data = pattern(16000)
    for flags, count in ((MORE, 1 if MORE_IS_MORE else 2), (0, 2)):
        before = pair.sent
        with pipe() as (out, into), pipe() as (out2, into2):
            assert os.write(into, data[:8000]) == os.write(into2, data[8000:]) == 8000
            splice_all(out, pair.near, 8000, flags)
            splice_all(out2, pair.near, 8000)
        assert take(pair.far, len(data)) == data
        assert pair.sent - before == count


def test_send_and_splice(pair):
    """Data from memory and from a pipe, in one record where MSG_MORE says so."""
    data = pattern(8000)
    for flags, count in ((0, 2), (socket.MSG_MORE, 1)):
        before = pair.sent
        with pipe() as (out, into):
            assert os.write(into, data) == len(data)
            pair.send(b"sent ", flags=flags)
            splice_all(out, pair.near, len(data))
        assert take(pair.far, 5 + len(data)) == b"sent " + data
        assert pair.sent - before == count


def test_splice_onto_full_record(pair):
    """Pages that fill the record that is open, just not, or more; then something on top."""
    for pages in range(FULL - 3, FULL + 3):
        for top in ("splice", "send", "control"):
            data = pattern(pages, seed=pages)
            with pipe(64, os.O_DIRECT) as (out, into):
                write_pages(into, data)
                splice_all(out, pair.near, pages, MORE)
                if top == "splice":
                    write_pages(into, b"top")
                    splice_all(out, pair.near, 3)
                else:
                    pair.send(b"top", CONTROL if top == "control" else None)
            if top == "control":
                assert take(pair.far, pages) == data
                assert take_record(pair.far) == (b"top", CONTROL)
            else:
                assert take(pair.far, pages + 3) == data + b"top"
    assert_nothing_to_read(pair.far)
    assert pair.sent == pair.received


def test_splice_to_pipe(pair):
    """A record for each call, however much room there is; a part of one where less is asked for."""
    data = pattern(9000)
    with pipe() as (out, into):
        pair.send(data[:5000])
        pair.send(data[5000:])
        pair.arrived(5000, 4000)
        assert splice_one(pair.far, into, 20000) == 5000
        assert splice_one(pair.far, into, 1000) == 1000
        assert splice_one(pair.far, into, 20000) == 3000
        assert os.read(out, 20000) == data
        with fails(errno.EAGAIN, "splice"):
            linux.splice_to_pipe(pair.far, into, 1)
        pair.near.shutdown(socket.SHUT_WR)
        assert splice_one(pair.far, into, 20000) == 0


def assert_only_as_record(pair, into):
    """A control record is next: neither splice nor a plain read takes it, recv_record does."""
    assert readable(pair.far, PATIENCE)
    for _ in range(2):
        with fails(errno.EINVAL, "splice"):
            linux.splice_to_pipe(pair.far, into, 100)
        with fails(errno.EIO):
            pair.far.recv(100)
    assert take_record(pair.far) == (b"control", CONTROL)


def test_splice_cmsg_to_pipe(pair):
    """A control record is no data, and stays for who can read it."""
    with pipe() as (out, into):
        pair.send(b"control", CONTROL)
        pair.send(b"data")
        assert_only_as_record(pair, into)
        assert splice_one(pair.far, into, 100) == 4
        assert os.read(out, 100) == b"data"


def test_splice_dec_cmsg_to_pipe(pair):
    """The same once it has been decrypted."""
    with pipe() as (out, into):
        pair.send(b"control", CONTROL)
        pair.send(b"data")
        with fails(errno.EIO):
            pair.far.recv(100)
        assert pair.received >= 1
        assert_only_as_record(pair, into)
        assert splice_one(pair.far, into, 100) == 4
        assert os.read(out, 100) == b"data"


def test_recv_and_splice(pair):
    """Half of a record read, the other half spliced; and the other way round."""
    data = pattern(MOST)
    half = MOST // 2
    with pipe() as (out, into):
        for first, second in (("recv", "splice"), ("splice", "recv")):
            pair.send(data)
            got = b""
            for how in (first, second):
                if how == "recv":
                    got += take(pair.far, half)
                else:
                    assert splice_one(pair.far, into, half) == half
                    got += os.read(out, MOST)
            assert got == data
    assert_nothing_to_read(pair.far)


def test_peek_and_splice(pair):
    """A look takes nothing from what is spliced then."""
    data = pattern(8000)
    with pipe() as (out, into):
        pair.send(data)
        for size in (8000, 100):
            flags = socket.MSG_PEEK | socket.MSG_WAITALL
            assert take_record(pair.far, size, flags) == (data[:size], DATA)
        assert splice_one(pair.far, into, 4000) == 4000
        assert take_record(pair.far, 4000, flags) == (data[4000:], DATA)
        assert splice_one(pair.far, into, 20000) == 4000
        assert os.read(out, 20000) == data
    assert_nothing_to_read(pair.far)


def test_splice_to_pipe_small(pair):
    """A pipe of one page, full at nearly every call: nothing is lost."""
    data = pattern(3 * MOST)
    got = bytearray()
    limit = time.monotonic() + PATIENCE
    with pipe(1) as (out, into):
        pair.send(data)
        while len(got) < len(data):
            assert readable(pair.far, PATIENCE), f"{len(data) - len(got)} bytes are lost"
            moved = linux.splice_to_pipe(pair.far, into, len(data))
            with fails(errno.EAGAIN, "splice"):
                while True:  # until it is full
                    moved += linux.splice_to_pipe(pair.far, into, len(data))
            got += os.read(out, len(data))
            assert got == data[: len(got)]
            assert time.monotonic() < limit
    assert_nothing_to_read(pair.far)
    assert pair.received == 3


def test_splice_short(pair):
    """48 pages of one byte in one splice, which fill several records, and a tail: nothing more."""
    for flags in (0, MORE):
        data = pattern(48, seed=flags)
        with pipe(64, os.O_DIRECT) as (out, into):
            write_pages(into, data)
            splice_all(out, pair.near, 48, flags)
        pair.send(b"tail")
        assert take(pair.far, 52) == data + b"tail"
        assert_nothing_to_read(pair.far)
    assert pair.sent == pair.received
