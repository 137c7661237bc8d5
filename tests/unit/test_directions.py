"""What OpenSSL does not do by itself, where it carries a direction; the rest is tests/kernel's."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time

import pytest

from pyktls import InvalidValue, Unavailable, _records
from pyktls.engines.half import Message, Stopped
from pyktls.openssl_directions import OpenSSLIncoming, OpenSSLOutgoing
from pyktls.protocol import ALERT, APPLICATION_DATA, HANDSHAKE, INTERNAL_ERROR, UNEXPECTED_MESSAGE
from pyktls.record_errors import RefusedRecord
from support import tls
from support.systems import linux_only

NOW = _records.Deadline(0)
TICKET = b"\x04\0\0\1t"


class Half:
    """Answers as it is told: for each read a result and the messages that are heard then."""

    def __init__(self, *steps):
        self.process = os.getpid()
        self.reason = "the reason"
        self.steps = list(steps)
        self.messages = []
        self.fed = b""
        self.fits = True

    def read(self, view, *, peek):
        result, *self.messages = (
            self.steps[0] if peek and len(self.steps) == 1 else self.steps.pop(0)
        )
        if isinstance(result, bytes):
            view[: len(result)] = result
            return len(result)
        return result

    def heard(self):
        return None if self.messages == [None] else self.messages

    def missing(self):
        return 5

    def feed(self, data):
        self.fed += data
        return self.fits

    def pending(self):
        return 0


@pytest.fixture
def tcp():
    near, far = tls.tcp_pair()
    with near, far:
        near.setblocking(False)
        yield near, far


def received(*content, kind=HANDSHAKE):
    return [Message(False, kind, each) for each in content]


def test_messages_come_before_the_data_that_was_read_after_them(tcp):
    incoming = OpenSSLIncoming(Half((b"data", *received(TICKET, b"second"))))
    fd = tcp[0].fileno()
    assert incoming.recv(fd, 4, 0, NOW) == (b"\x04\0\0\1", HANDSHAKE, 0)
    assert incoming.recv(fd, 9, socket.MSG_PEEK, NOW) == (b"t", HANDSHAKE, socket.MSG_EOR)
    assert incoming.recv(fd, 9, 0, NOW) == (b"t", HANDSHAKE, socket.MSG_EOR)
    assert incoming.recv(fd, 9, 0, NOW) == (b"second", HANDSHAKE, socket.MSG_EOR)
    assert incoming.pending() == 4
    assert incoming.recv(fd, 3, socket.MSG_PEEK, NOW)[:2] == (b"dat", APPLICATION_DATA)
    assert incoming.recv(fd, 3, 0, NOW)[:2] == (b"dat", APPLICATION_DATA)
    assert incoming.recv(fd, 3, 0, NOW)[:2] == (b"a", APPLICATION_DATA)
    assert incoming.pending() == 0


def test_a_message_longer_than_a_record_comes_in_pieces(tcp):
    message = bytes(range(256)) * 130
    incoming = OpenSSLIncoming(Half((Stopped.WANTS_MORE, *received(message))))
    pieces = []
    while sum(map(len, pieces)) < len(message):
        piece, kind, flags = incoming.recv(tcp[0].fileno(), 1 << 30, 0, NOW)
        assert (kind, flags) == (HANDSHAKE, socket.MSG_EOR)
        pieces.append(piece)
    assert b"".join(pieces) == message
    assert [len(piece) for piece in pieces] == [16384, 16384, 512]


def test_a_look_that_meets_a_message_leaves_the_data_with_openssl(tcp):
    incoming = OpenSSLIncoming(Half((b"da", *received(TICKET)), (b"da",)))
    fd = tcp[0].fileno()
    assert incoming.recv(fd, 9, socket.MSG_PEEK, NOW)[0] == TICKET
    assert incoming.recv(fd, 9, 0, NOW)[0] == TICKET
    assert incoming.recv(fd, 2, 0, NOW)[0] == b"da"


def test_a_handshake_message_that_openssl_wanted_to_send(tcp):
    incoming = OpenSSLIncoming(Half((b"data", Message(True, HANDSHAKE, b"\x0b\0\0\0"))))
    assert incoming.recv(tcp[0].fileno(), 9, 0, NOW)[0] == b"data"
    with pytest.raises(RefusedRecord, match="handshake message") as caught:
        incoming.recv(tcp[0].fileno(), 9, 0, NOW)
    assert caught.value.description == UNEXPECTED_MESSAGE


def test_openssls_own_answer_to_a_key_update_is_nothing(tcp):
    request = b"\x18\0\0\1\1"
    said = Message(True, HANDSHAKE, b"\x18\0\0\1\0")
    incoming = OpenSSLIncoming(Half((Stopped.WANTS_MORE, *received(request), said), (b"data",)))
    assert incoming.recv(tcp[0].fileno(), 9, 0, NOW)[0] == request
    assert incoming.recv(tcp[0].fileno(), 9, 0, NOW)[0] == b"data"


@pytest.mark.parametrize(
    ("step", "description", "words"),
    [
        ((Stopped.FAILED,), INTERNAL_ERROR, "the reason"),
        ((Stopped.FAILED, Message(True, ALERT, b"\2\x14")), 20, "the reason"),
        ((Stopped.WANTS_MORE, None), INTERNAL_ERROR, "no memory"),
    ],
)
def test_what_openssl_refuses_stays_refused(tcp, step, description, words):
    incoming = OpenSSLIncoming(Half(step))
    for _ in range(2):
        with pytest.raises(RefusedRecord, match=words) as caught:
            incoming.recv(tcp[0].fileno(), 9, 0, NOW)
        assert caught.value.description == description


def test_the_alert_of_the_peer_comes_before_openssls_refusal(tcp):
    incoming = OpenSSLIncoming(Half((Stopped.FAILED, *received(b"\2\x28", kind=ALERT))))
    fd = tcp[0].fileno()
    assert incoming.recv(fd, 9, 0, NOW) == (b"\2\x28", ALERT, socket.MSG_EOR)
    with pytest.raises(RefusedRecord):
        incoming.recv(fd, 9, 0, NOW)


def test_bytes_come_from_the_socket_and_their_end_is_the_end(tcp):
    near, far = tcp
    half = Half((Stopped.WANTS_MORE,), (Stopped.WANTS_MORE,), (b"data",), (Stopped.WANTS_MORE,))
    incoming = OpenSSLIncoming(half)
    with pytest.raises(BlockingIOError):
        incoming.recv(near.fileno(), 9, 0, NOW)
    far.sendall(b"01234567")
    wait = _records.Deadline(tls.TIMEOUT)
    _records.wait_readable(near.fileno(), wait)
    assert incoming.recv(near.fileno(), 9, 0, NOW)[0] == b"data"
    assert half.fed == b"01234"
    half.steps = [(Stopped.WANTS_MORE,)] * 3
    far.shutdown(socket.SHUT_WR)
    assert incoming.recv(near.fileno(), 9, 0, wait) == (b"", _records.NO_RECORD_TYPE, 0)
    assert half.fed == b"01234567"


def test_openssl_without_memory(tcp):
    near, far = tcp
    half = Half((Stopped.WANTS_MORE,))
    half.fits = False
    far.sendall(b"0")
    with pytest.raises(RefusedRecord, match="memory"):
        OpenSSLIncoming(half).recv(near.fileno(), 9, 0, _records.Deadline(tls.TIMEOUT))


def test_another_process_gets_neither(tcp):
    half = Half()
    half.process += 1
    with pytest.raises(Unavailable, match="receiving"):
        OpenSSLIncoming(half).recv(tcp[0].fileno(), 9, 0, NOW)
    outgoing = OpenSSLOutgoing(half)
    with pytest.raises(Unavailable, match="sending"):
        outgoing.send(tcp[0].fileno(), b"data", 0, _records.NO_RECORD_TYPE, NOW)
    with pytest.raises(BrokenPipeError):  # the other process ends the connection
        outgoing.send(tcp[0].fileno(), b"\1\0", 0, ALERT, NOW)


@pytest.mark.parametrize("flags", [socket.MSG_OOB, socket.MSG_TRUNC | socket.MSG_PEEK])
def test_flags_that_tcp_would_take_for_its_own(tcp, flags):
    incoming = OpenSSLIncoming(Half((b"data",)))
    with pytest.raises(InvalidValue, match="flags of recv"):
        incoming.recv(tcp[0].fileno(), 9, flags, NOW)
    known = socket.MSG_DONTWAIT | socket.MSG_WAITALL
    assert incoming.recv(tcp[0].fileno(), 9, known, NOW)[0] == b"data"


def test_flags_that_openssl_does_not_know(tcp):
    with pytest.raises(InvalidValue, match="flags"):
        OpenSSLOutgoing(Half()).sendall(tcp[0].fileno(), b"data", socket.MSG_OOB, NOW)


@linux_only  # the fake of FreeBSD's calls is in Python, and would swallow the exception
def test_what_was_sent_is_removed_before_a_signal_handler_can_raise(tcp):
    """Alarms all the time: each exception leaves just what the kernel has not taken."""
    near, far = tcp
    data = bytes(range(256)) * 40_000
    pending = bytearray(data)
    received = bytearray()
    alarms = 0
    armed = False

    class Alarm(Exception):
        pass

    def handler(*_):
        if armed:
            raise Alarm

    near.settimeout(None)
    far.settimeout(tls.TIMEOUT)
    reader = threading.Thread(target=read_all, args=(far, len(data), received), daemon=True)
    reader.start()
    before = signal.signal(signal.SIGALRM, handler)
    try:
        while pending:
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, 0.0005)  # once
                _records.send_out(near.fileno(), pending, 0, _records.Deadline(None))
                armed = False
            except Alarm:
                alarms += 1
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    reader.join(tls.TIMEOUT)
    assert received == data
    assert alarms


def read_all(sock, size, into):
    while len(into) < size:
        into += sock.recv(4096)
        time.sleep(0.0001)
