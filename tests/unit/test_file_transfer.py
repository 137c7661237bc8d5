"""Files and pipes without a kernel's TLS: what the kernel may say, and what is made of it."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import socket
import struct
import time
from pathlib import Path
from typing import ClassVar

import pytest

from pyktls import _records, file_transfer, linux
from pyktls.errors import InvalidValue
from pyktls.record_layer import NO_WAIT
from pyktls.running_system import system
from support import tls
from support.kernel import TIMEOUT
from support.systems import linux_only

MiB = 1 << 20


class Layer:
    """What file_transfer asks of a RecordLayer."""

    sent_unasked = 0
    straight_out = True

    def count(self, *_):
        return True

    def descriptor(self):
        return 99

    def deadline(self):
        return _records.Deadline(None)

    def before_sending(self, *_):
        pass

    count_records = note_send_error = before_sending


@pytest.fixture
def world(monkeypatch):
    """A sendfile(2) that takes all, or ``most``, and a list of when it was asked who is there."""

    class World:
        asked: ClassVar[list[int]] = []
        gone = False
        most = 1 << 40
        sent = 0

        @classmethod
        def sendfile(cls, fd, source, offset, count):
            assert (fd, source) == (99, 98)
            assert offset == cls.sent
            count = min(count, cls.most)
            cls.sent += count
            return count, None

        @classmethod
        def is_gone(cls, fd):
            assert fd == 99
            cls.asked.append(cls.sent)
            return cls.gone

    def sendfile_all(ask, *arguments):
        return World.sendfile(ask(), *arguments)

    monkeypatch.setattr(system, "is_gone", World.is_gone)
    monkeypatch.setattr(system, "sendfile_all", sendfile_all)
    monkeypatch.setattr(system, "sendfile_once", World.sendfile)
    return World


def in_one(layer, size):
    return sum(file_transfer._send_pages(layer, 98, 0, size))


def in_steps(layer, size):
    offset = 0
    while offset < size:
        sent, more = file_transfer.send_some_pages(layer, 98, offset, size - offset)
        offset += sent
        assert more
    return offset


@pytest.mark.parametrize("send", [in_one, in_steps])
@pytest.mark.parametrize("most", [1 << 40, 3 * MiB])
def test_it_is_asked_after_each_16_mib(world, send, most):
    world.most = most
    layer = Layer()
    assert send(layer, 70 * MiB) == 70 * MiB
    step = -(-16 * MiB // min(most, 16 * MiB)) * min(most, 16 * MiB)
    assert world.asked == list(range(step, 70 * MiB, step))


@pytest.mark.parametrize("send", [in_one, in_steps])
def test_a_connection_that_is_gone_is_an_error(world, send):
    world.gone = True
    with pytest.raises(ConnectionResetError, match="sendfile") as caught:
        send(Layer(), 70 * MiB)
    assert caught.value.errno == errno.ECONNRESET
    assert world.sent == 16 * MiB


def test_many_small_files_count_as_a_large_one(world):
    layer = Layer()
    for _ in range(33):
        world.sent = 0
        assert in_steps(layer, MiB) == MiB
    assert len(world.asked) == 2


def test_before_a_sendfile_of_somebody_else(world):
    file_transfer.before_file(Layer())
    assert world.asked == [0]
    world.gone = True
    with pytest.raises(ConnectionResetError):
        file_transfer.before_file(Layer())


# ---- what a file is ----------------------------------------------------------------------------


def test_the_size_of_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    with path.open("r+b") as file:
        assert file_transfer.file_size(file) == 5
        file.truncate(5 << 30)  # sparse, and beyond 32 bits
        assert file_transfer.file_size(file) == 5 << 30 == os.fstat(file.fileno()).st_size
        assert file.tell() == 0
    with pytest.raises(InvalidValue, match="closed"):
        file_transfer.file_size(file)


def test_what_is_no_file_has_no_size():
    class Numbered:
        def __init__(self, number):
            self.number = number

        def fileno(self):
            return self.number

    with Path(os.devnull).open("rb") as null:
        spare = os.dup(null.fileno())
        os.close(spare)
        for thing in (null, io.BytesIO(b"data"), object(), Numbered(-1), Numbered(spare)):
            assert file_transfer.file_size(thing) == 0
    for number, error in (("x", TypeError), (None, TypeError), (1 << 40, OverflowError)):
        with pytest.raises(error):
            file_transfer.file_size(Numbered(number))


# ---- who is there ------------------------------------------------------------------------------


def until_gone(sock):
    end = time.monotonic() + TIMEOUT
    while not system.is_gone(sock.fileno()):
        assert time.monotonic() < end
        time.sleep(0.001)


@linux_only
@pytest.mark.parametrize("how", ["reset", "unread"])
def test_who_is_gone(how):
    near, far = tls.tcp_pair()
    with near:
        with far:
            assert not system.is_gone(near.fileno())
            if how == "reset":
                far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                near.sendall(b"something")
                far.recv(1)
        until_gone(near)
    assert not system.is_gone(near.fileno())  # closed: nobody can tell


@linux_only
def test_who_has_ended_in_good_order_is_not_gone():
    near, far = tls.tcp_pair()
    with near, far:
        far.shutdown(socket.SHUT_WR)
        assert near.recv(1) == b""
        assert not system.is_gone(near.fileno())
        near.shutdown(socket.SHUT_WR)
        assert far.recv(1) == b""
        until_gone(near)


# ---- splice ----------------------------------------------------------------------------------


class Receiving:
    """What splice_to asks of a RecordLayer, of which poll says that there is something to read."""

    incoming = type("Incoming", (), {"in_kernel": True})
    leftover = b""
    receive_ended = False

    def __init__(self, sock, timeout):
        self.sock, self.timeout = sock, timeout

    @contextlib.contextmanager
    def receiving(self):
        yield _records.Deadline(self.timeout)

    def raise_again(self):
        pass

    def descriptor(self):
        return self.sock.fileno()

    def data_arrives(self, size):
        assert size == 4


@pytest.fixture
def part_of_a_record(monkeypatch):
    """A socket with a part of a record, of which Linux before 6.5 says POLLIN, and a pipe.

    ``calls`` has the time of each splice(2); from the number ``complete`` on they move something.
    """

    class World:
        calls: ClassVar[list[float]] = []
        complete: float = float("inf")

    def splice(*_):
        World.calls.append(time.monotonic())
        if len(World.calls) < World.complete:
            raise BlockingIOError(errno.EAGAIN, "splice: no")
        return 4

    monkeypatch.setattr(linux, "splice_to_pipe", splice)
    near, far = tls.tcp_pair()
    World.out, World.into = os.pipe()
    with near, far:
        far.sendall(b"part")
        _records.wait_readable(near.fileno(), _records.Deadline(TIMEOUT))
        World.near = near
        yield World
    os.close(World.out)
    os.close(World.into)


@linux_only
@pytest.mark.parametrize("timeout", [None, TIMEOUT])
def test_a_peer_that_stops_within_a_record_does_not_keep_the_processor_busy(
    part_of_a_record, timeout
):
    part_of_a_record.complete = 12
    assert (
        file_transfer.splice_to(
            Receiving(part_of_a_record.near, timeout), part_of_a_record.into, 100
        )
        == 4
    )
    calls = part_of_a_record.calls
    pauses = [after - before for before, after in itertools.pairwise(calls)]
    # The first call may just have come too early; then ever longer, up to 15 ms.
    assert len(pauses) == 11
    for pause, least in zip(pauses, (0, 0.001, 0.003, 0.007, *[0.015] * 7), strict=True):
        assert pause >= least


@linux_only
def test_the_pause_ends_with_the_timeout(part_of_a_record):
    with pytest.raises(TimeoutError):
        file_transfer.splice_to(Receiving(part_of_a_record.near, 0.02), part_of_a_record.into, 100)


@linux_only
def test_a_part_of_a_record_does_not_hold_up_a_call_that_is_not_to_wait(part_of_a_record):
    part_of_a_record.complete = 1000  # should it ask again
    with pytest.raises(BlockingIOError, match="splice: no"):
        file_transfer.splice_to(
            Receiving(part_of_a_record.near, NO_WAIT), part_of_a_record.into, 100
        )
    assert len(part_of_a_record.calls) == 1
