"""The selftest's ``tls``: sending, from one byte to many buffers and files.

The kernel's own number of the next record tells how many records were made of it.
"""

from __future__ import annotations

import errno
import os
import pathlib
import shutil
import socket

import pytest

from pyktls import linux
from support.kernel import Background, pattern, recv_exactly
from support.selftest import (
    CONTROL,
    DATA,
    ERROR_VARIANTS,
    MOST,
    PAGE,
    assert_nothing_to_read,
    fails,
    kernel_version,
    take,
    take_record,
)

# (bytes for each call, bytes that then remain): records of a byte, records that end where a page
# does, that end beside it, and a file that is one full record.
CHUNKS = (
    *((pages * 4096, more) for pages in (1, 2, 3) for more in (0, 1, 2048, 4096)),
    (1, 1024), (100, 16000), (1000, 15000), (2500, 10001), (6000, 6000), (9999, 6385),
    (MOST - 1, 1),
)  # fmt: skip


def test_sendfile(pair):
    """A program that is on this machine, in full records and the rest."""
    program = pathlib.Path(os.path.realpath(shutil.which("sh")))
    data = program.read_bytes()
    with program.open("rb") as file, Background(recv_exactly, pair.far, len(data)) as reader:
        assert linux.sendfile(pair.near, file) == (len(data), None)
        assert reader.result() == data
    assert pair.sent == pair.received >= -(-len(data) // MOST)


def test_send_then_sendfile(pair, tmp_path):
    """A file after data of its own record, and the same with the data as the file's header."""
    data = pattern(3 * MOST + 100)
    path = tmp_path / "file"
    path.write_bytes(data)
    with path.open("rb") as file:
        pair.send(b"before it ")
        with Background(take, pair.far, 10 + len(data)) as reader:
            assert linux.sendfile(pair.near, file) == (len(data), None)
            assert reader.result() == b"before it " + data
        assert pair.sent == 5
        with Background(take, pair.far, 10 + len(data)) as reader:
            sent = linux.sendfile(pair.near, file, headers=[b"before it "])
            assert sent == (10 + len(data), None)
            assert reader.result() == b"before it " + data


def test_multi_chunk_sendfile(pair, tmp_path):
    """A file in several calls: each ends a record, whatever its length."""
    path = tmp_path / "file"
    for chunk, extra in CHUNKS:
        size = chunk + extra
        assert size <= MOST
        data = pattern(size, seed=size)
        path.write_bytes(data)
        before = pair.sent
        calls = 0
        with path.open("rb") as file:
            for offset in range(0, size, chunk):
                count = min(chunk, size - offset)
                assert linux.sendfile(pair.near, file, offset, count) == (count, None)
                calls += 1
        assert pair.sent - before == calls
        assert take(pair.far, size) == data
    assert_nothing_to_read(pair.far)


def test_recv_max(pair):
    """The most that fits in one record, and one byte more."""
    for size, count in ((MOST, 1), (MOST + 1, 3)):
        data = pattern(size)
        pair.send(data)
        assert pair.sent == count
        assert take(pair.far, size) == data


def test_recv_small(pair):
    """A record of one byte, and a short one."""
    for number, data in enumerate((b"x", b"a short one"), 1):
        pair.send(data)
        assert take_record(pair.far, len(data)) == (data, DATA)
        assert pair.sent == pair.received == number


def test_msg_more(pair):
    """MSG_MORE keeps a record open; the next send without it completes the same record."""
    pair.send(b"first, ", flags=socket.MSG_MORE)
    pair.send(b"second, ", flags=socket.MSG_MORE)
    assert pair.sent == 0
    assert_nothing_to_read(pair.far)
    pair.send(b"third")
    assert pair.sent == 1
    pair.arrived(20)
    assert take_record(pair.far) == (b"first, second, third", DATA)
    # What does not fit is sent when the record is full.
    data = pattern(MOST + 1000)
    pair.send(data[:1000], flags=socket.MSG_MORE)
    pair.send(data[1000:], flags=socket.MSG_MORE)
    assert pair.sent == 2
    assert take(pair.far, MOST) == data[:MOST]
    assert_nothing_to_read(pair.far)
    linux.flush(pair.near)
    assert take(pair.far, 1000) == data[MOST:]


def test_cmsg_msg_more(pair):
    """A control record is never held open."""
    with fails(errno.EINVAL, "sendmsg"):
        linux.send_record(pair.near, b"control", CONTROL, socket.MSG_MORE)
    assert pair.sent == 0
    pair.send(b"control", CONTROL)
    assert take_record(pair.far) == (b"control", CONTROL)


def test_msg_more_then_cmsg(pair):
    """A control record goes out behind what MSG_MORE held open, which stays a record of its own."""
    pair.send(b"held back", flags=socket.MSG_MORE)
    assert pair.sent == 0
    pair.send(b"control", CONTROL)
    assert pair.sent == 2
    pair.arrived(9, 7)
    assert take_record(pair.far) == (b"held back", DATA)
    assert take_record(pair.far) == (b"control", CONTROL)
    # Of the same type, it is not joined to it either.
    pair.send(b"held back", flags=socket.MSG_MORE)
    pair.send(b"data", DATA)
    assert pair.sent == 4


def test_msg_more_unsent(pair):
    """Without anything behind it there is nothing on the wire, until linux.flush."""
    pair.send(b"held back", flags=socket.MSG_MORE)
    for _ in range(2):
        assert_nothing_to_read(pair.far)
    assert pair.sent == 0
    linux.flush(pair.near)
    assert pair.sent == 1
    assert take_record(pair.far) == (b"held back", DATA)
    linux.flush(pair.near)  # nothing is open: nothing is sent
    assert pair.sent == 1


def test_msg_eor(pair):
    """MSG_EOR ends a record, one that was held open as well; it does not go with MSG_MORE."""
    pair.send(b"a record", flags=socket.MSG_EOR)
    assert pair.sent == 1
    record = linux.recv_record(pair.far, 100)
    assert (record.data, record.record_type, record.ends) == (b"a record", DATA, True)
    pair.send(b"another ", flags=socket.MSG_MORE)
    pair.send(b"one", flags=socket.MSG_EOR)
    assert pair.sent == 2
    assert take_record(pair.far) == (b"another one", DATA)
    with fails(errno.EINVAL, "sendmsg"):
        linux.send_record(pair.near, b"neither", flags=socket.MSG_EOR | socket.MSG_MORE)
    assert pair.sent == 2


def send_in(pair, *sizes):
    """Send buffers of these sizes with one call, and read them as one."""
    data = pattern(sum(sizes), seed=len(sizes))
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    buffers = [data[start : start + size] for start, size in zip(starts, sizes, strict=True)]
    assert linux.send_record(pair.near, buffers) == len(data)
    assert take(pair.far, len(data)) == data


def test_sendmsg_single(pair):
    """One buffer in a list."""
    send_in(pair, 13)
    assert pair.sent == 1


def test_sendmsg_fragmented(pair):
    """From one to 64 buffers in one record: more than the 17 pieces that a socket buffer holds."""
    for count in range(1, 65):
        send_in(pair, *[100] * count)
        assert pair.sent == count
    send_in(pair, *[PAGE // 16 - 1, 1, 0, 2] * 16)


def test_sendmsg_large(pair):
    """128 full records in 128 calls."""
    data = pattern(128 * MOST)
    with Background(recv_exactly, pair.far, len(data)) as reader:
        for start in range(0, len(data), MOST):
            assert linux.send_record(pair.near, [data[start : start + MOST]]) == MOST
        assert reader.result() == data
    assert pair.sent == pair.received == 128


def test_sendmsg_multiple(pair):
    """Five buffers of different lengths make one record."""
    send_in(pair, 1, 20, 300, 4000, 5)
    assert pair.sent == 1


def test_sendmsg_multiple_stress(pair):
    """As many buffers as one call takes, in one record and in several."""
    send_in(pair, *[5] * 1024)
    send_in(pair, *[40 + i % 3 for i in range(1024)])
    assert pair.sent == pair.received >= 4


# ---- what the selftest does not ask ----------------------------------------------------------


@pytest.mark.parametrize("variant", ERROR_VARIANTS, ids=lambda variant: variant.name)
def test_a_flag_that_is_refused(pair):
    """EOPNOTSUPP, and not a byte is sent; before 6.6 for MSG_EOR too."""
    flags = [socket.MSG_OOB, socket.MSG_DONTROUTE, socket.MSG_CONFIRM, 0x4000000]  # MSG_ZEROCOPY
    if kernel_version() < (6, 6):
        flags.append(socket.MSG_EOR)
    for flag in flags:
        with fails(errno.EOPNOTSUPP, "sendmsg"):
            linux.send_record(pair.near, b"not sent", flags=flag)
    assert pair.sent == 0
    pair.send(b"sent")
    assert take_record(pair.far) == (b"sent", DATA)
