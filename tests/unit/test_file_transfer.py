"""How files are sent when TCP does not tell that nobody receives them, without a kernel's TLS."""

from __future__ import annotations

import errno
import socket
import struct
import time
from typing import ClassVar

import pytest

from pyktls import _records, file_transfer
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
