"""A direction of a connection that OpenSSL goes on with, while the kernel has the other one.

OpenSSL is given memory in the place of the socket.  So it can write nothing there itself, which the
kernel would encrypt once more or which would come between the kernel's records; and all waiting is
done here, as the socket's timeout allows.

*Receiving.*  Bytes are read from the socket up to the end of the record at hand and no further, as
OpenSSL does itself, so that select(2) tells the truth about everything but ``pending``.  The
messages that OpenSSL hears besides data are given to the record layer as records of their own, as
the kernel does: its state machine decides about them.  OpenSSL has followed a KeyUpdate by itself;
what remains is the answer, which the kernel sends.  What OpenSSL wanted to *say* is not lost: the
alert with which it refuses a record is sent by the kernel.  Anything else would be a handshake,
which needs both directions, and ends the connection.

*Sending.*  A record that was only taken in part by the socket stays here, and the send is an error
(BlockingIOError, TimeoutError) that is to be repeated with the same data, as with any user-space
TLS: nobody else would send the rest.  After a ``sendall`` that failed, of which nobody knows how
far it came, it goes out before whatever is sent next.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections import deque
from typing import TYPE_CHECKING

from . import _records, arguments
from .ciphers import TLS_1_3
from .engines.half import Stopped
from .errors import InvalidValue, RecordError, Unavailable, syscall_error
from .post_handshake import alert
from .protocol import (
    ALERT,
    APPLICATION_DATA,
    CLOSE_NOTIFY,
    FATAL,
    HANDSHAKE,
    INTERNAL_ERROR,
    KEY_UPDATE,
    UNEXPECTED_MESSAGE,
    WARNING,
)
from .record_errors import RefusedRecord
from .sealing import MOST_CONTENT, seal_record

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed import ReadableBuffer, WriteableBuffer

    from .engines.half import Half
    from .session import Session

__all__ = ["OpenSSLIncoming", "OpenSSLOutgoing"]

_END = (0, _records.NO_RECORD_TYPE, 0)  # of the stream
_KEY_UPDATE = bytes((KEY_UPDATE,))
_CLOSE_NOTIFY = alert(WARNING, CLOSE_NOTIFY)
_PEEK_OR_ALL = socket.MSG_PEEK | socket.MSG_WAITALL
# What changes nothing for memory; whether it waits, the deadline says.
_PLAIN_FLAGS = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)


def _check_process(half: Half, doing: str) -> None:
    """OpenSSL's state was copied by a fork, and two that go on from it would be in conflict."""
    if os.getpid() != half.process:
        raise Unavailable(
            f"{doing} is OpenSSL's on this connection, and after a fork only the process that made "
            "the socket does it"
        )


def as_records(content_type: int, message: bytes) -> list[tuple[int, bytes]]:
    """A message in pieces that a record can hold (RFC 8446 section 5.1)."""
    starts = range(0, len(message), MOST_CONTENT)
    return [(content_type, message[start : start + MOST_CONTENT]) for start in starts]


class OpenSSLIncoming:
    """Receiving is OpenSSL's."""

    in_kernel = False

    def __init__(self, half: Half) -> None:
        self._half = half
        self._messages: deque[tuple[int, bytes]] = deque()
        self._held = b""  # data that came after a message that is to be seen first
        self._refusal: RefusedRecord | None = None
        self._closed = False
        self._news = False

    def recv(
        self, fd: int, size: int, flags: int, deadline: _records.Deadline, /
    ) -> tuple[bytes, int, int]:
        """As _records.recv."""
        buffer = bytearray(min(size, MOST_CONTENT))
        received, record_type, msg_flags = self.recv_into(fd, buffer, size, flags, deadline)
        return bytes(memoryview(buffer)[:received]), record_type, msg_flags

    def recvmsg_into(
        self,
        fd: int,
        buffers: Iterable[WriteableBuffer],
        flags: int,
        deadline: _records.Deadline,
        /,
    ) -> tuple[int, int, int]:
        """As _records.recvmsg_into; one call fills one buffer."""
        return self.recv_into(fd, next(iter(buffers)), 0, flags, deadline)

    def recv_into(
        self,
        fd: int,
        buffer: WriteableBuffer,
        size: int,
        flags: int,
        deadline: _records.Deadline,
        /,
    ) -> tuple[int, int, int]:
        """As _records.recv_into."""
        _check_process(self._half, "receiving")
        if flags & ~(_PLAIN_FLAGS | _PEEK_OR_ALL):  # TCP would take it for its own
            raise InvalidValue(
                "OpenSSL has the receiving half of this connection, and knows no such flags of "
                "recv(2)"
            )
        peek = bool(flags & socket.MSG_PEEK)
        with arguments.buffer_view(buffer, writable=True) as whole, whole[: size or None] as view:
            while True:
                answer = self._waiting(view, peek=peek) or self._read(view, peek=peek)
                if answer is not None:
                    return answer
                if not (self._has_news() or self._fill(fd, flags & ~_PEEK_OR_ALL, deadline)):
                    return _END

    def _has_news(self) -> bool:
        """Whether ``_read`` has found something else than that it needs more."""
        news, self._news = self._news, False
        return news

    def _waiting(self, view: memoryview, *, peek: bool) -> tuple[int, int, int] | None:
        """What is there already."""
        if self._messages:
            return self._give_message(view, peek=peek)
        if self._held:
            return self._give_held(view, peek=peek)
        if self._refusal is not None:
            raise self._refusal
        return _END if self._closed else None

    def _read(self, view: memoryview, *, peek: bool) -> tuple[int, int, int] | None:
        """Have OpenSSL read; None if it has no data, or has put it aside for later."""
        result = self._half.read(view, peek=peek)
        self._news = self._hear()
        if isinstance(result, int):
            if not self._messages:
                return result, APPLICATION_DATA, socket.MSG_EOR
            if not peek:  # else it is still there
                self._held = bytes(view[:result])
                view[:result] = bytes(result)
        elif result is Stopped.CLOSED:
            self._closed = self._news = True
        elif result is Stopped.FAILED:
            self._refusal = self._refusal or RefusedRecord(INTERNAL_ERROR, self._half.reason)
            self._news = True
        return None

    def _give_message(self, view: memoryview, *, peek: bool) -> tuple[int, int, int]:
        record_type, content = self._messages[0]
        given = min(len(view), len(content))
        view[:given] = content[:given]
        if not peek:
            self._messages.popleft()
            if given < len(content):
                self._messages.appendleft((record_type, content[given:]))
        return given, record_type, socket.MSG_EOR if given == len(content) else 0

    def _give_held(self, view: memoryview, *, peek: bool) -> tuple[int, int, int]:
        given = min(len(view), len(self._held))
        view[:given] = self._held[:given]
        if not peek:
            self._held = self._held[given:]
        return given, APPLICATION_DATA, socket.MSG_EOR

    def _hear(self) -> bool:
        """Take in what OpenSSL has heard and said; tells whether there was anything."""
        messages = self._half.heard()
        if messages is None:
            self._refusal = RefusedRecord(INTERNAL_ERROR, "no memory to keep a message")
            return True
        for message in messages:
            if not message.sent:
                self._messages += as_records(message.content_type, message.content)
            elif message.content_type == HANDSHAKE and message.content[:1] == _KEY_UPDATE:
                continue  # its answer, which nobody gets: ours is the kernel's to send
            elif message.content_type != ALERT:
                self._refusal = RefusedRecord(
                    UNEXPECTED_MESSAGE,
                    "the peer wants a handshake message in answer, and OpenSSL has only the "
                    "receiving half",
                )
            elif message.content[0] == FATAL:
                self._refusal = RefusedRecord(message.content[1], self._half.reason)
            # Warnings the record layer sends itself.
        return bool(messages)

    def _fill(self, fd: int, flags: int, deadline: _records.Deadline) -> bool:
        """Bring OpenSSL what it needs next, or a part of it; False at the end of the stream."""
        data, _, _ = _records.recv(fd, self._half.missing(), flags, deadline)
        if data and not self._half.feed(data):
            raise RefusedRecord(INTERNAL_ERROR, "OpenSSL has no memory for a record")
        return bool(data)

    def pending(self) -> int:
        """What OpenSSL has decrypted."""
        if os.getpid() != self._half.process:
            return 0
        return len(self._held) + self._half.pending()

    def change_keys(self, fd: int, session: Session) -> None:
        """Nothing: OpenSSL has done it when it read the KeyUpdate."""

    def go_on(self, fd: int) -> None:
        """Nothing: OpenSSL takes only KeyUpdates for KeyUpdates."""

    def release(self) -> None:
        """Let OpenSSL forget the connection."""
        self._half.release()


class OpenSSLOutgoing:
    """Sending is OpenSSL's."""

    in_kernel = False

    def __init__(self, half: Half) -> None:
        self._half = half
        self._unsent = bytearray()  # ciphertext for the socket
        self._repeat = b""  # data in it whose send was an error, and which is to be sent again

    def _check(self, flags: int) -> None:
        _check_process(self._half, "sending")
        if flags & ~_PLAIN_FLAGS:
            raise InvalidValue(
                "OpenSSL has the sending half of this connection, and knows no flags of send(2)"
            )

    def send(
        self,
        fd: int,
        buffer: ReadableBuffer,
        flags: int,
        record_type: int,
        deadline: _records.Deadline,
        /,
    ) -> int:
        """As _records.send; at most one record at a time."""
        with arguments.buffer_view(buffer) as data:
            if record_type != _records.NO_RECORD_TYPE:
                self._send_control(fd, record_type, bytes(data), flags, deadline)
                return len(data)
            self._check(flags)
            return self._send_piece(fd, data, flags, deadline)

    def sendall(
        self, fd: int, buffer: ReadableBuffer, flags: int, deadline: _records.Deadline, /
    ) -> None:
        """As _records.sendall."""
        self._check(flags)
        before = self._repeat
        with arguments.buffer_view(buffer) as data:
            done = 0
            try:
                while done < len(data):
                    done += self._send_piece(fd, data[done:], flags, deadline)
            except BaseException:
                if self._repeat is not before:  # nobody can know which part it is
                    self._repeat = b""
                raise

    def sendmsg(
        self,
        fd: int,
        buffers: Iterable[ReadableBuffer],
        flags: int,
        record_type: int,
        deadline: _records.Deadline,
        /,
    ) -> int:
        """As _records.sendmsg; at most one record."""
        record = bytearray()
        for view in arguments.buffer_views(buffers):
            record += view[: MOST_CONTENT - len(record)]
        return self.send(fd, record, flags, record_type, deadline) if record else 0

    def _send_piece(
        self, fd: int, data: memoryview, flags: int, deadline: _records.Deadline
    ) -> int:
        if self._repeat:
            again = self._repeat
            if data[: len(again)] != again:
                raise InvalidValue(
                    f"the last send was an error, and its first {len(again)} bytes are encrypted "
                    "already: send the same data again"
                )
            self._flush(fd, flags, deadline)
            self._repeat = b""
            return len(again)
        self._flush(fd, flags, deadline)
        piece = data[:MOST_CONTENT]
        if not self._half.write(piece):
            raise RecordError(f"OpenSSL did not encrypt: {self._half.reason}")
        self._unsent += self._half.take()
        self._repeat = bytes(piece)
        self._flush(fd, flags, deadline)
        self._repeat = b""
        return len(piece)

    def _flush(self, fd: int, flags: int, deadline: _records.Deadline) -> None:
        _records.send_out(fd, self._unsent, flags, deadline)

    def _send_control(
        self, fd: int, record_type: int, content: bytes, flags: int, deadline: _records.Deadline
    ) -> None:
        if os.getpid() != self._half.process:
            raise syscall_error(errno.EPIPE, "sendmsg")  # another process ends the connection
        self._flush(fd, flags, deadline)
        if record_type == ALERT and content == _CLOSE_NOTIFY:
            made = self._half.take() if self._half.close_notify() else b""
        elif record_type == ALERT and content[0] == FATAL:
            made = self._seal(record_type, content)
        else:  # it would take a number of which OpenSSL knows nothing
            made = b""
        if not made:
            raise syscall_error(errno.EOPNOTSUPP, "sendmsg")
        self._unsent += made
        self._flush(fd, flags, deadline)

    def _seal(self, record_type: int, content: bytes) -> bytes:
        """The connection's last record."""
        suite, keys = self._half.sending_keys()
        try:
            return seal_record(suite, keys, keys.sequence, record_type, content) or b""
        finally:
            keys.wipe()

    def can_change_keys(self, session: Session) -> bool:
        """In TLS 1.3 OpenSSL always can."""
        return session.version == TLS_1_3

    def send_key_update(
        self, fd: int, message: bytes, flags: int, deadline: _records.Deadline
    ) -> None:
        """Have OpenSSL make it; it waits here if the socket does not take it at once."""
        self._check(flags)
        self._flush(fd, flags, deadline)
        _records.wait_writable(fd, deadline)
        if not self._half.key_update(request_peer=bool(message[-1])):
            raise syscall_error(errno.EIO, "SSL_key_update")
        self._unsent += self._half.take()
        with contextlib.suppress(BlockingIOError, TimeoutError):  # then before the next record
            self._flush(fd, flags, deadline)

    def change_keys(self, fd: int, session: Session) -> None:
        """Nothing: OpenSSL has done it."""

    def next_sequence(self, fd: int) -> int | None:  # noqa: ARG002
        """Ask OpenSSL, by way of what was counted."""
        _, keys = self._half.sending_keys()
        try:
            return keys.sequence
        finally:
            keys.wipe()

    def release(self) -> None:
        """Let OpenSSL forget the connection."""
        self._half.release()
