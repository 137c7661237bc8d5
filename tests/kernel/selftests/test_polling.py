"""The selftest's ``tls``: waiting, blocking or not, and several processes at one socket."""

from __future__ import annotations

import collections
import errno
import os
import select
import signal
import socket
import struct
import time
import traceback
from dataclasses import dataclass

from pyktls import linux
from support.kernel import Background, pattern, recv_exactly
from support.selftest import (
    DATA,
    MOMENT,
    PATIENCE,
    assert_nothing_to_read,
    readable,
    take,
    take_record,
)


def test_pollin(pair):
    """Readable while there is data, and no longer."""
    assert not readable(pair.far)
    pair.send(b"data")
    assert readable(pair.far, PATIENCE)
    assert take(pair.far, 4) == b"data"
    assert not readable(pair.far, 0.02)


def test_poll_wait(pair):
    """A poll that sleeps is woken by a record."""
    with Background(readable, pair.far, PATIENCE) as asleep:
        time.sleep(MOMENT)
        assert not asleep.done()
        pair.send(b"data")
        assert asleep.result() is True
    assert take_record(pair.far, 100, socket.MSG_DONTWAIT) == (b"data", DATA)


def test_poll_wait_split(pair):
    """Five bytes left of a record keep the socket readable, as do whole records behind it."""
    pair.send(b"15 bytes, and 5 more"[:15])
    pair.send(b"15 bytes, and 5 more"[15:] + b"12345")
    pair.arrived(15, 10)
    assert readable(pair.far, PATIENCE)
    assert take(pair.far, 20) == b"15 bytes, and 5 more"
    for _ in range(2):
        assert readable(pair.far)
    assert take(pair.far, 5) == b"12345"
    assert not readable(pair.far, 0.02)


# More than the receiving end has room for at first.  Of the 100 bytes of SO_SNDBUF the kernel makes
# a few thousand.
MUCH = pattern(300_000)


def test_blocking(pair):
    """A sender that has no room waits for the reader, and sends all of it in one call."""
    pair.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100)
    with Background(linux.send_record, pair.near, MUCH) as sender:
        time.sleep(MOMENT)
        assert not sender.done()
        assert recv_exactly(pair.far, len(MUCH)) == MUCH
        assert sender.result() == len(MUCH)


def test_nonblocking(pair):
    """Both sides meet EAGAIN, and all data arrives."""
    data = MUCH
    pair.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100)
    pair.near.setblocking(False)
    pair.far.setblocking(False)
    sent, got = 0, bytearray()
    full = empty = 0
    poll = select.poll()
    poll.register(pair.near, select.POLLOUT)
    poll.register(pair.far, select.POLLIN)
    limit = time.monotonic() + PATIENCE
    while len(got) < len(data):
        assert time.monotonic() < limit, f"{len(got)} bytes came, {sent} were sent"
        if sent < len(data):
            try:
                while sent < len(data):
                    sent += linux.send_record(pair.near, data[sent : sent + 10_000])
            except BlockingIOError as e:
                assert e.errno == errno.EAGAIN  # noqa: PT017
                full += 1
        else:
            poll.modify(pair.near, 0)
        try:
            while len(got) < len(data):
                got += linux.recv_record(pair.far, 7_000).data
        except BlockingIOError as e:
            assert e.errno == errno.EAGAIN  # noqa: PT017
            empty += 1
        poll.poll(100)
    assert sent == len(data)
    assert got == data
    assert full > 0
    assert empty > 0
    assert_nothing_to_read(pair.far)


# ---- several processes -----------------------------------------------------------------------

HEADER = struct.Struct("=HH")


@dataclass
class Crowd:
    """Writers and readers of one connection, each a process.

    A writer sends blocks, one call for each, that carry the writer's number and their own.  A
    reader reads as much at a time as a block is long, checks the block, and reports its header
    through a pipe.  So each call has to be whole, whoever else is at the socket, and each block has
    to arrive once.
    """

    pair: object
    path: object
    size: int
    writers: int
    readers: int
    sendfile: bool
    blocks: int = 72  # of all writers together; a multiple of all the numbers of processes

    def block(self, writer: int, number: int) -> bytes:
        return HEADER.pack(writer, number) + bytes([writer * 16 + number % 16]) * (
            self.size - HEADER.size
        )

    def write(self, writer: int) -> None:
        with self.path.open("rb") as file:
            for number in range(self.blocks // self.writers):
                if self.sendfile:
                    offset = (writer * (self.blocks // self.writers) + number) * self.size
                    sent = linux.sendfile(self.pair.near, file, offset, self.size)
                    assert sent == (self.size, None)
                else:
                    self.pair.send(self.block(writer, number))

    def read(self, report: int) -> None:
        for _ in range(self.blocks // self.readers):
            data, record_type = take_record(self.pair.far, self.size)
            assert record_type == DATA
            header = data[: HEADER.size]
            assert data == self.block(*HEADER.unpack(header))
            os.write(report, header)

    def child(self, call, argument) -> int:
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            call(argument)
            status = 0
        except BaseException:  # noqa: BLE001  (nothing may leave this process but its status)
            traceback.print_exc()
        finally:
            os._exit(status)

    def run(self) -> None:
        self.path.write_bytes(
            b"".join(
                self.block(writer, number)
                for writer in range(self.writers)
                for number in range(self.blocks // self.writers)
            )
        )
        out, report = os.pipe()
        children = []
        try:
            calls = [(self.write, writer) for writer in range(self.writers)]
            calls += [(self.read, report)] * self.readers
            for call, argument in calls:
                children.append(self.child(call, argument))
            os.close(report)
            report = -1
            headers = b""
            while readable_pipe(out) and (piece := os.read(out, 1 << 16)):
                headers += piece
            while children:
                pid = children[-1]
                assert wait_child(pid) == 0, "a child process failed"
                children.pop()
        finally:
            for pid in children:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            os.close(out)
            if report >= 0:
                os.close(report)
        arrived = collections.Counter(HEADER.iter_unpack(headers))
        each = self.blocks // self.writers
        assert arrived == {(w, n): 1 for w in range(self.writers) for n in range(each)}


def readable_pipe(out: int) -> bool:
    """Bytes or the end, within PATIENCE."""
    poll = select.poll()
    poll.register(out, select.POLLIN)
    assert poll.poll(PATIENCE * 1000), "no reader has anything to report"
    return True


def wait_child(pid: int) -> int:
    """The status of a child that is about to end; it is still to be killed after a timeout."""
    fd = os.pidfd_open(pid)
    try:
        assert select.select([fd], [], [], PATIENCE)[0], "a child process does not end"
    finally:
        os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def crowd(pair, tmp_path, writers, readers, *, sendfile):
    # sendfile: one page for each call, which is one call of the protocol on every kernel.
    size = 4096 if sendfile else 5000
    Crowd(pair, tmp_path / "blocks", size, writers, readers, sendfile).run()
    assert_nothing_to_read(pair.far)
    if not sendfile:
        assert pair.sent == pair.received == Crowd.blocks


def test_mutliproc_even(pair, tmp_path):
    """As many writers as readers."""
    crowd(pair, tmp_path, 6, 6, sendfile=False)


def test_mutliproc_readers(pair, tmp_path):
    """More readers."""
    crowd(pair, tmp_path, 4, 12, sendfile=False)


def test_mutliproc_writers(pair, tmp_path):
    """More writers."""
    crowd(pair, tmp_path, 12, 4, sendfile=False)


def test_mutliproc_sendpage_even(pair, tmp_path):
    """As many writers with sendfile(2) as readers."""
    crowd(pair, tmp_path, 6, 6, sendfile=True)


def test_mutliproc_sendpage_readers(pair, tmp_path):
    """More readers."""
    crowd(pair, tmp_path, 4, 12, sendfile=True)


def test_mutliproc_sendpage_writers(pair, tmp_path):
    """More writers."""
    crowd(pair, tmp_path, 12, 4, sendfile=True)
