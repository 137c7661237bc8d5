"""Records with their types: recvmsg(2) and sendmsg(2) with a control message (net/tls/tls_sw.c).

What has to be known of Linux here:

* One call returns records of one type.  Data records are joined as long as the buffer has room and
  complete records are there; control records never are.
* A control record that does not fit comes in parts, each with its type; ``MSG_EOR`` is on the last.
* 0 bytes *with* a type is an empty record, or empty data records before a control record; 0 bytes
  without one is the end of the stream.  The kernel does not tell whether it was cut off.
* An error in a record is reported once; after a bad header a later read waits for ever.

Timeouts are those of the socket object; with a bare descriptor a non-blocking call raises
BlockingIOError.  Interrupted calls are taken up again (PEP 475).
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyktls import _records, arguments
from pyktls.socket_calls import descriptor

from .calls import only_on_linux

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _typeshed import ReadableBuffer, WriteableBuffer

    from pyktls.socket_calls import HasFileno

__all__ = ["Record", "flush", "recv_record", "recv_record_into", "send_record"]


@dataclass(frozen=True, slots=True)
class Record:
    """What one recvmsg(2) gave.

    ``record_type`` is None where the kernel gave none: with no ``data`` that is the end of the
    stream, with data the socket has no receiving keys.  ``flags`` is msg_flags.
    """

    data: bytes
    record_type: int | None
    flags: int

    @property
    def ends(self) -> bool:
        """Whether this is the end of a record (MSG_EOR)."""
        return bool(self.flags & socket.MSG_EOR)


def _begin(sock: HasFileno | int, flags: int) -> tuple[int, _records.Deadline]:
    """What every call here begins with: its checks, the descriptor, and when it has to be over."""
    arguments.flags(flags)
    fd = descriptor(sock)
    only_on_linux()
    timeout = getattr(sock, "gettimeout", None)
    return fd, _records.Deadline(None if timeout is None else timeout())


def _type(number: int) -> int | None:
    return None if number == _records.NO_RECORD_TYPE else number


def recv_record(sock: HasFileno | int, size: int, flags: int = 0) -> Record:
    """At most ``size`` bytes of records of one type.

    ``flags`` may hold MSG_PEEK, MSG_WAITALL and MSG_DONTWAIT.  Raises OSError: EBADMSG (a record
    failed authentication, or is too short), EMSGSIZE (too long), EINVAL (another version),
    EKEYEXPIRED (a KeyUpdate came: new keys first), and those of a TCP socket.
    """
    arguments.integer("size", size, 0, 2**31 - 1, bounds="from 0 to 2**31 - 1")
    fd, deadline = _begin(sock, flags)
    data, record_type, msg_flags = _records.recv(fd, size, flags, deadline)
    return Record(data, _type(record_type), msg_flags)


def recv_record_into(
    sock: HasFileno | int, buffers: Sequence[WriteableBuffer], flags: int = 0
) -> tuple[int, int | None, int]:
    """The same into ``buffers``, one after the other; ``(bytes, record type, msg_flags)``."""
    fd, deadline = _begin(sock, flags)
    received, record_type, msg_flags = _records.recvmsg_into(fd, buffers, flags, deadline)
    return received, _type(record_type), msg_flags


def send_record(
    sock: HasFileno | int,
    data: ReadableBuffer | Sequence[ReadableBuffer],
    record_type: int | None = None,
    flags: int = 0,
) -> int:
    """Send ``data``, or several buffers as one; returns the number of bytes that the kernel took.

    Without a ``record_type`` it is application data, and ``flags`` may hold MSG_MORE, which keeps
    the record open for what comes next, MSG_EOR (Linux 6.6), MSG_DONTWAIT and MSG_NOSIGNAL.  A
    record type from 1 to 255 makes a control record, after what MSG_MORE held back.  More than
    16384 bytes become several records; TLS forbids that for alerts.  No bytes make no record.

    On a non-blocking socket the last record that was taken may be sent only in part: the kernel
    sends the rest by itself, and the caller goes on after the bytes that were taken.

    Raises InvalidValue for type 0 (in TLS 1.3 the receiver takes the last byte of the data for the
    type instead) and above 255, OSError: EINVAL (MSG_MORE with a record type, or with MSG_EOR),
    EOPNOTSUPP (any other flag, MSG_ZEROCOPY and MSG_OOB among them; MSG_EOR before 6.6), EAGAIN.
    """
    number = _records.NO_RECORD_TYPE
    if record_type is not None:
        number = arguments.integer("record_type", record_type, 1, 255)
    fd, deadline = _begin(sock, flags)
    buffers = data if isinstance(data, (list, tuple)) else (data,)
    return _records.sendmsg(fd, buffers, flags, number, deadline)


def flush(sock: HasFileno | int, flags: int = 0) -> None:
    """Send the record that MSG_MORE holds open; without one nothing is sent.

    Neither close(2) nor shutdown(2) nor TCP_NODELAY does that: such data would be lost.  It is a
    sendmsg(2) of no bytes with a record type.  Where a network card encrypts, this makes an empty
    data record.
    """
    fd, deadline = _begin(sock, flags)
    _records.sendmsg(fd, (), flags, 23, deadline)
