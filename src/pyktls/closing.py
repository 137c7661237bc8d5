"""Closing a connection without losing what was sent.

The kernel counts bytes as sent once they are encrypted.  If the last record is then only partly in
the TCP queue, close(2) and shutdown(2) throw the rest of it away, on every Linux; what MSG_MORE
holds back they always throw away.  So closing is a protocol: wait until the socket can be written
(the rest is through), send close_notify (which also flushes what MSG_MORE held back), wait again,
and only then close.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import socket
import struct

from . import _records
from .errors import Error
from .post_handshake import alert
from .protocol import ALERT, CLOSE_NOTIFY, WARNING
from .record_errors import BROKEN_RECORD, concerns_receiving
from .record_layer import NO_WAIT, RecordLayer
from .socket_calls import getsockopt

__all__ = [
    "UnreadData",
    "aborts",
    "await_end",
    "before_shutdown",
    "close",
    "end_sending",
    "finish_in_time",
    "finish_sending",
    "take_in_unseen_records",
    "unwrap",
]


def close(layer: RecordLayer, seconds: float) -> None:
    """Get the connection ready to be closed, within so many seconds; else TimeoutError.

    Not a word is said on a connection that is another process's since a fork.
    """
    if layer.fd < 0 or layer.is_dead() or layer.is_anothers() or aborts(layer.fd):
        return
    finish_in_time(layer, seconds, "close")
    take_in_unseen_records(layer)


# How long all connections together may put off the end of the interpreter.
_AT_EXIT = 5.0


@atexit.register
def _close_all() -> None:
    """At the end of the interpreter, what is still open gets its close_notify, and loses nothing.

    Whoever wants to wait longer for a slow peer closes the socket himself.  So does who has
    something to send from a function that was given to atexit before this module was there.
    """
    if not _records.channels():
        return
    deadline = _records.Deadline(_AT_EXIT)
    # To keep a list would cost each connection something.
    for layer in [each for each in gc.get_objects() if issubclass(type(each), RecordLayer)]:
        with contextlib.suppress(OSError, Error):
            close(layer, deadline.remaining() or NO_WAIT)


def before_shutdown(layer: RecordLayer, how: object, seconds: float) -> None:
    """Get the sending half ready for shutdown(2), if that is about to end; else TimeoutError."""
    if how in (socket.SHUT_WR, socket.SHUT_RDWR) and not layer.is_dead():
        finish_in_time(layer, seconds, "shutdown")


class UnreadData(Error):
    """The peer has sent data that nobody has read, before its close_notify."""


def unwrap(layer: RecordLayer) -> None:
    """Send close_notify and wait for the peer's, each as long as the timeout allows.

    Raises Error if there is data of the peer that has not been read.
    """
    end_sending(layer)
    await_end(layer)


def end_sending(layer: RecordLayer) -> None:
    """The first half of unwrap."""
    with layer.sending() as deadline:
        finish_sending(layer, deadline)


def await_end(layer: RecordLayer) -> None:
    """The second half of unwrap; UnreadData if data comes instead."""
    with layer.receiving() as deadline:
        if layer.receive(memoryview(bytearray(1)), socket.MSG_PEEK, deadline):
            raise UnreadData("the peer has sent data that has not been read: receive it first")


def finish_in_time(layer: RecordLayer, seconds: float, call: str) -> None:
    """finish_sending within so many seconds, else TimeoutError that names ``call``.

    Another thread's send that does not come to its end counts as that: closing is the way to
    interrupt it.
    """
    deadline = layer.deadline_in(seconds)
    too_late = f"{call}: the peer took no more data, and some was not delivered"
    if not layer.send_lock.acquire(deadline.remaining()):
        raise TimeoutError(errno.ETIMEDOUT, too_late)
    try:
        if layer.fd >= 0:  # else another thread has closed it meanwhile
            finish_sending(layer, deadline)
    except TimeoutError:
        raise TimeoutError(errno.ETIMEDOUT, too_late) from None
    finally:
        layer.send_lock.release()


def finish_sending(layer: RecordLayer, deadline: _records.Deadline) -> None:
    """Get everything out that was sent, and a close_notify after it.  Holds the send lock."""
    fd = layer.descriptor()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while not layer.send_ended:
            _records.wait_writable(fd, deadline)
            try:
                layer.answer(layer.deadline_in(NO_WAIT))
                layer.outgoing.send(
                    fd,
                    alert(WARNING, CLOSE_NOTIFY),
                    socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL,
                    ALERT,
                    layer.deadline_in(NO_WAIT),
                )
            except BlockingIOError:
                continue
            except OSError as e:
                # A broken record has come that nobody has read.  Taking the kernel's error for it
                # makes sending possible again.
                # FreeBSD takes it by telling it.  (EMSGSIZE again would be the alert's own.)
                told = concerns_receiving(e) and (
                    e.errno == errno.EBADMSG or not layer.receive_error
                )
                if told or (e.errno in BROKEN_RECORD and layer.take_error()):
                    layer.note_broken_record(e)
                    continue
                raise
            layer.end_sending()
        _records.wait_writable(fd, deadline)
    layer.end_sending()


def take_in_unseen_records(layer: RecordLayer) -> None:
    """Read what waits before the next data, such as session tickets, without waiting.

    Linux answers unread bytes with a reset when the socket closes, and a reset takes from the peer
    what it has not read yet.  For data that is as with any socket; for records that the user never
    sees it must not be.
    """
    if layer.receive_ended or layer.receive_error or not layer.receive_lock.acquire(NO_WAIT):
        return
    try:
        view = memoryview(bytearray(1))
        with contextlib.suppress(OSError, Error):
            flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
            while layer.receive_once(view, flags, layer.deadline_in(NO_WAIT)) is None:
                pass
    finally:
        layer.receive_lock.release()


def aborts(fd: int) -> bool:
    """Whether the user chose to close with a reset (SO_LINGER with 0 seconds)."""
    size = struct.calcsize("ii")
    value = getsockopt(fd, socket.SOL_SOCKET, socket.SO_LINGER, size, "getsockopt(SO_LINGER)")
    on, seconds = struct.unpack("ii", value)
    return bool(on) and seconds == 0
