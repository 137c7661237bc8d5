"""The selftest's ``tls``: the many ways to read what was sent."""

from __future__ import annotations

import ctypes
import errno
import mmap
import socket
import time

import pytest

from pyktls import linux
from pyktls.ciphers import TLS_1_2
from support.kernel import Background, both_ways, pattern
from support.selftest import (
    DATA,
    MOMENT,
    MOST,
    PAGE,
    assert_nothing_to_read,
    at_once,
    fails,
    install,
    take,
    take_record,
)


def read_into(pair, *sizes):
    """One call of recv_record_into; what is in each of its buffers, and what it returned."""
    buffers = [bytearray(b"." * size) for size in sizes]
    received, record_type, _ = linux.recv_record_into(pair.far, buffers)
    return b"".join(buffers), received, record_type


def test_recvmsg_single(pair):
    """One buffer; what is behind the data in it stays."""
    pair.send(b"single")
    assert read_into(pair, 20) == (b"single" + b"." * 14, 6, DATA)


def test_recvmsg_single_max(pair):
    """A record of the greatest length in one buffer."""
    data = pattern(MOST)
    pair.send(data)
    assert pair.sent == 1
    assert read_into(pair, MOST) == (data, MOST, DATA)


def test_recvmsg_multiple(pair):
    """As many buffers as one call takes."""
    data = pattern(MOST)
    pair.send(data)
    assert read_into(pair, *[MOST // 1024] * 1024) == (data, MOST, DATA)
    # Over the borders of records as well, with buffers of uneven sizes, the last one not full.
    data = pattern(3000, seed=2)
    for start in range(0, 3000, 1000):
        pair.send(data[start : start + 1000])
    pair.arrived(1000, 1000, 1000)
    sizes = [1 + i % 7 for i in range(1000)]
    assert sum(sizes) > 3000
    filled, received, record_type = read_into(pair, *sizes)
    assert (received, record_type) == (3000, DATA)
    assert filled == data + b"." * (sum(sizes) - 3000)


def test_single_send_multiple_recv(pair):
    """One call to send two full records, two to read them."""
    data = pattern(2 * MOST)
    pair.send(data)
    assert pair.sent == 2
    assert take(pair.far, MOST) == data[:MOST]
    assert take(pair.far, MOST) == data[MOST:]
    assert_nothing_to_read(pair.far)


def test_multiple_send_single_recv(pair):
    """Records of data are joined in one read."""
    pair.send(b"first ")
    pair.send(b"second")
    assert pair.sent == 2
    assert take(pair.far, 12) == b"first second"
    pair.send(b"first ")
    pair.send(b"second")
    pair.arrived(6, 6)
    assert take_record(pair.far, 100) == (b"first second", DATA)


def test_single_send_multiple_recv_non_align(pair):
    """Reads that end within a record."""
    data = pattern(MOST + 5)
    pair.send(data)
    pair.arrived(MOST, 5)
    assert take_record(pair.far, 10) == (data[:10], DATA)
    assert take_record(pair.far, MOST - 7) == (data[10 : MOST + 3], DATA)  # over the border
    assert take_record(pair.far, 100) == (data[MOST + 3 :], DATA)
    assert_nothing_to_read(pair.far)


def test_recv_partial(pair):
    """MSG_WAITALL within one record, and over two."""
    pair.send(b"in two parts")
    assert take(pair.far, 6) == b"in two"
    assert take(pair.far, 6) == b" parts"
    pair.send(b"one, ")
    with Background(take, pair.far, 8) as reader:
        time.sleep(MOMENT)
        assert not reader.done()  # three bytes are missing
        pair.send(b"two")
        assert reader.result() == b"one, two"


def test_recv_nonblock(pair):
    """EAGAIN where nothing is there, whatever else is asked for; then what comes is read."""
    for flags in (0, socket.MSG_PEEK, socket.MSG_WAITALL):
        with at_once(), fails(errno.EAGAIN, "recvmsg"):
            linux.recv_record(pair.far, 100, flags | socket.MSG_DONTWAIT)
    pair.send(b"here")
    pair.arrived(4)
    for flags in (socket.MSG_PEEK, socket.MSG_WAITALL):
        assert take_record(pair.far, 100, flags | socket.MSG_DONTWAIT) == (b"here", DATA)
    assert_nothing_to_read(pair.far)


def test_recv_peek(pair):
    """A look does not take away, and may see a part only."""
    pair.send(b"look first")
    assert take_record(pair.far, 100, socket.MSG_PEEK) == (b"look first", DATA)
    assert take_record(pair.far, 4, socket.MSG_PEEK) == (b"look", DATA)
    assert take_record(pair.far, 100) == (b"look first", DATA)
    assert_nothing_to_read(pair.far)


def test_recv_peek_multiple(pair):
    """A hundred looks at the same record."""
    data = pattern(1500)
    pair.send(data)
    for _ in range(100):
        assert take_record(pair.far, 2000, socket.MSG_PEEK) == (data, DATA)
    assert pair.received == 1
    assert take(pair.far, len(data)) == data
    assert_nothing_to_read(pair.far)


def test_recv_peek_multiple_records(pair):
    """A look over several records, and looks between reads that end within one."""
    for data in (b"first ", b"second ", b"third"):
        pair.send(data)
    pair.arrived(6, 7, 5)
    whole = b"first second third"
    assert take_record(pair.far, 18, socket.MSG_PEEK | socket.MSG_WAITALL) == (whole, DATA)
    for start, end in ((0, 3), (3, 9), (9, 18)):
        # A look begins where the reading has come to, and may end earlier than a record does.
        assert take_record(pair.far, 2, socket.MSG_PEEK) == (whole[start : start + 2], DATA)
        peeked = take_record(pair.far, 100, socket.MSG_PEEK)
        assert peeked == (whole[start:], DATA)
        assert take(pair.far, end - start) == whole[start:end]
    assert_nothing_to_read(pair.far)
    # Records that come after a look are seen by the next one, in their order.
    pair.send(b"old ")
    assert take_record(pair.far, 100, socket.MSG_PEEK) == (b"old ", DATA)
    pair.send(b"new")
    assert take_record(pair.far, 7, socket.MSG_PEEK | socket.MSG_WAITALL) == (b"old new", DATA)
    assert take(pair.far, 7) == b"old new"


def test_recv_peek_large_buf_mult_recs(pair):
    """A look with more room than there is data, which has to wait for nothing more."""
    pair.send(b"first ")
    pair.send(b"second")
    pair.arrived(6, 6)
    with at_once():
        for flags in (0, socket.MSG_DONTWAIT, socket.MSG_DONTWAIT | socket.MSG_WAITALL):
            record = take_record(pair.far, 100, socket.MSG_PEEK | flags)
            assert record == (b"first second", DATA)
    assert take_record(pair.far, 100) == (b"first second", DATA)


def test_recv_lowat(pair):
    """SO_RCVLOWAT: a read waits for that much, unless it asks for less."""
    pair.far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 8)
    pair.send(b"12345")
    pair.arrived(5)
    assert take_record(pair.far, 2) == (b"12", DATA)
    with Background(take_record, pair.far, 100) as reader:
        time.sleep(MOMENT)
        assert not reader.done()  # three bytes are not enough
        pair.send(b"6789A")
        assert reader.result() == (b"3456789A", DATA)
    pair.send(b"1")
    pair.arrived(1)
    assert take_record(pair.far, 100, socket.MSG_DONTWAIT) == (b"1", DATA)


def test_bidir(pair):
    """Both directions, each with keys of its own."""
    install(pair.far, linux.TLS_TX, pair.variant, which=1)
    install(pair.near, linux.TLS_RX, pair.variant, which=1)
    for size in (1, 1000, MOST + 1):
        both_ways(pair.near, pair.far, pattern(size))
    assert linux.get_rec_seq(pair.far, linux.TLS_TX) == linux.get_rec_seq(pair.near, linux.TLS_TX)
    assert pair.sent == pair.received == 4


@pytest.fixture
def unusable():
    """A buffer that no system call can write to: its page is PROT_NONE."""
    page = mmap.mmap(-1, PAGE)
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), 0) == 0
    yield page
    assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), 3) == 0


def test_recv_efault(pair, unusable):
    """A buffer that cannot be written to ends a read early, and takes nothing away."""
    pair.send(b"the first record")
    pair.send(b"the second one")
    pair.arrived(16, 14)
    assert take_record(pair.far, 4) == (b"the ", DATA)
    usable = bytearray(15)
    received, record_type, _ = linux.recv_record_into(pair.far, [usable, unusable])
    assert record_type == DATA
    assert 12 <= received <= 15
    whole = b"first recordthe second one"
    assert usable[:received] == whole[:received]
    assert take(pair.far, len(whole) - received) == whole[received:]
    if pair.variant.version == TLS_1_2 or pair.variant.no_pad:
        # The second record was decrypted straight into these buffers, and the kernel takes the
        # fault for a bad record, which it reports once.
        with fails(errno.EBADMSG, "recvmsg"):
            linux.recv_record(pair.far, 1, socket.MSG_DONTWAIT)
    assert_nothing_to_read(pair.far)
    pair.send(b"goes on")
    assert take(pair.far, 7) == b"goes on"
