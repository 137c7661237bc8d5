"""Files and pipes: what goes between them and a connection without a copy in user space."""

from __future__ import annotations

import errno
import os
import select
import socket
from typing import TYPE_CHECKING, Any

from . import _records, arguments, linux
from .errors import InvalidType, InvalidValue, Unavailable, syscall_error
from .protocol import APPLICATION_DATA
from .record_layer import NO_WAIT, RecordLayer
from .running_system import system
from .socket_calls import descriptor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from _typeshed import ReadableBuffer

    from .directions import Incoming, Outgoing
    from .socket_calls import HasFileno

__all__ = [
    "before_file",
    "check_file",
    "file_size",
    "send_some_pages",
    "sendfile",
    "splice_from",
    "splice_to",
]

# What one sendfile(2) is asked for.
_STEP = 1 << 24
# What one splice(2) can move, for the count of records.
_SPLICE_STEP = 1 << 30
# After so many bytes of files it is asked whether the connection is still there.
_ASK_AFTER = 1 << 24
# What only Linux has.
_MSG_MORE: int = getattr(socket, "MSG_MORE", 0)
_SPLICE_NONBLOCK: int = getattr(os, "SPLICE_F_NONBLOCK", 0)
_SPLICE_MORE: int = getattr(os, "SPLICE_F_MORE", 0)
# A pipe can hold so many pieces, each of which may end up in a record of its own.
_PIPE_PIECES = 16


# ---- files -----------------------------------------------------------------------------------


def sendfile(
    layer: RecordLayer,
    file: Any,
    offset: int,
    count: int | None,
    headers: Sequence[ReadableBuffer],
    trailers: Sequence[ReadableBuffer],
    use_send: Callable[[Any, int, int | None], int],
) -> int:
    """KTLSSocket.sendfile; ``use_send`` is what reads and sends an object that is no real file."""
    check_file(file, offset, count)
    headers = arguments.buffer_views(headers)
    trailers = arguments.buffer_views(trailers)
    with layer.sending() as deadline:
        layer.before_sending(deadline, 0)
        size = file_size(file)
        source = file.fileno() if size else -1
        if layer.timeout == NO_WAIT:
            raise InvalidValue("non-blocking sockets are not supported")
        # No real file, or one like /proc's; or it is OpenSSL that sends: read it.
        if not size or not layer.outgoing.in_kernel:
            total = _send_pieces(layer, headers, 0)
            total += use_send(file, offset, count)
            return total + _send_pieces(layer, trailers, 0)
        left = max(0, size - offset) if count is None else min(count, max(0, size - offset))
        more = _MSG_MORE if left else 0  # the file's beginning goes into the same record
        total = _send_pieces(layer, headers, more)
        done = 0
        try:
            for taken in _send_pages(layer, source, offset, left):
                done += taken
        finally:
            if done and hasattr(file, "seek"):
                file.seek(offset + done)
        if done < left:  # the file has become shorter since
            _flush(layer)
        return total + done + _send_pieces(layer, trailers, 0)


def check_file(file: Any, offset: int, count: int | None) -> None:
    """Raise InvalidType or InvalidValue for what sendfile does not take."""
    arguments.count("offset", offset)
    if count is not None:
        arguments.count("count", count, lowest=1)
    if "b" not in getattr(file, "mode", "b"):
        raise InvalidValue("the file must be opened in binary mode")
    if not hasattr(file, "read"):
        raise InvalidType(f"a file is needed, not {type(file).__name__}")


def file_size(file: Any) -> int:
    """The size of a real file; 0 for what cannot be sent by sendfile(2).

    Raises InvalidValue if it is closed.
    """
    try:
        return _records.file_size(file.fileno())
    except (AttributeError, OSError):
        return 0
    except ValueError as e:
        raise InvalidValue(str(e)) from None


def _send_pieces(layer: RecordLayer, pieces: Sequence[ReadableBuffer], flags: int) -> int:
    total = 0
    for piece in pieces:
        layer.send_all(piece, flags)
        total += len(memoryview(piece))
    return total


def _send_pages(layer: RecordLayer, source: int, offset: int, left: int) -> Iterator[int]:
    """sendfile(2) until ``left`` bytes are sent, or the file has none; yields each step."""
    while left > 0:
        # As with socket.sendfile the timeout is for each step, not for the whole file.
        deadline = layer.deadline()
        step = min(left, _STEP)
        if layer.sent_unasked >= _ASK_AFTER:
            _ask(layer)
        layer.count_records(step, 1, deadline)
        sent, error = system.sendfile_all(layer.descriptor, source, offset, step)
        layer.sent_unasked += sent
        yield sent
        offset += sent
        left -= sent
        if isinstance(error, BlockingIOError):
            _records.wait_writable(layer.descriptor(), deadline)
        elif error is not None and not isinstance(error, InterruptedError):
            layer.note_send_error(error)
            try:
                raise error
            finally:
                del error  # the traceback has this frame
        elif error is None and not sent:
            return  # the file has become shorter


def _ask(layer: RecordLayer) -> None:
    """Raise ConnectionResetError if nobody is there to receive; to be done from time to time."""
    layer.sent_unasked = 0
    if system.is_gone(layer.descriptor()):
        raise syscall_error(errno.ECONNRESET, "sendfile")


def _flush(layer: RecordLayer) -> None:
    """Send a record that the kernel keeps open for more data, as Linux does within a file.

    What does it is a record type without data; empty data alone does nothing.
    """
    if _MSG_MORE:
        layer.outgoing.sendmsg(layer.descriptor(), (), 0, APPLICATION_DATA, layer.deadline())


def send_some_pages(layer: RecordLayer, source: int, offset: int, left: int) -> tuple[int, bool]:
    """One sendfile(2) that does not wait; holds the send lock.

    Returns how many bytes were sent, and whether there may be more of the file; 0 and True is for
    a connection that takes no data now.  Raises OSError of sendfile(2), and what send raises.
    """
    step = min(left, _STEP)
    try:
        if not (layer.straight_out and layer.count(step, 1)):
            layer.before_sending(layer.deadline(), step)  # a KeyUpdate may have to come first
        if layer.sent_unasked >= _ASK_AFTER:
            _ask(layer)
        sent, error = system.sendfile_once(layer.descriptor(), source, offset, step)
        if error is None and not sent:
            _flush(layer)
            return 0, False
    except BlockingIOError:
        return 0, True
    if error is not None and not isinstance(error, BlockingIOError | InterruptedError):
        layer.note_send_error(error)
        if not sent:
            raise error  # where some was sent, it comes again
    layer.sent_unasked += sent
    return sent, True


def before_file(layer: RecordLayer) -> None:
    """What comes before a sendfile(2) without waiting that somebody else makes; with the send lock.

    Raises BlockingIOError where it cannot be made now, and what send raises.
    """
    layer.before_sending(layer.deadline(), _STEP)
    _ask(layer)  # nobody tells how much the last one sent


# ---- pipes -----------------------------------------------------------------------------------


def splice_from(layer: RecordLayer, pipe: HasFileno | int, count: int, *, more: bool) -> int:
    """KTLSSocket.splice_from."""
    arguments.count("count", count, lowest=1)
    source = descriptor(pipe)
    _check_carrier("splice_from", layer.outgoing)
    with layer.sending() as deadline:
        layer.before_sending(deadline, min(count, _SPLICE_STEP), _PIPE_PIECES)
        flags = _SPLICE_NONBLOCK | (_SPLICE_MORE if more else 0)
        while True:
            try:
                return linux.splice_from_pipe(source, layer.descriptor(), count, flags)
            except BlockingIOError:
                _records.wait_readable(source, deadline.for_another())
                _records.wait_writable(layer.descriptor(), deadline)
            except OSError as e:
                layer.note_send_error(e)
                raise


def splice_to(layer: RecordLayer, pipe: HasFileno | int, count: int) -> int:
    """KTLSSocket.splice_to."""
    arguments.count("count", count, lowest=1)
    target = descriptor(pipe)
    _check_carrier("splice_to", layer.incoming)
    with layer.receiving() as deadline:
        if layer.leftover:  # out of OpenSSL's memory, and no kernel has it
            _records.wait_writable(target, deadline.for_another())
            moved = os.write(target, layer.leftover[: min(count, select.PIPE_BUF)])
            layer.leftover = layer.leftover[moved:]
            return moved
        while not layer.receive_ended:
            layer.raise_again()
            fd = layer.descriptor()
            error = None
            try:
                moved = linux.splice_to_pipe(fd, target, count, _SPLICE_NONBLOCK)
            except BlockingIOError:
                if layer.timeout == NO_WAIT:
                    raise
                # Linux before 6.5 says POLLIN for a part of a record, which splice does not give:
                # without a pause a peer that stops within a record would keep the processor busy.
                deadline.back_off()
                # For either end's sake.
                _records.wait_readable(fd, deadline)
                _records.wait_writable(target, deadline.for_another())
                continue
            except OSError as e:
                if e.errno != errno.EINVAL:
                    layer.receive_failed(e)
                moved, error = 0, e
            if moved:
                layer.data_arrives(moved)
                return moved
            _after_empty_splice(layer, error)
        return 0


def _check_carrier(call: str, direction: Incoming | Outgoing) -> None:
    if not direction.in_kernel:
        raise Unavailable(f"{call} needs the direction in the kernel, and OpenSSL has it")


def _after_empty_splice(layer: RecordLayer, error: OSError | None) -> None:
    """Find out why splice(2) moved nothing: with EINVAL, or without an error.

    EINVAL is for a control record, which stays; for a header that is broken, which is reported
    only once and has been now; and for a pipe that is none.  No error is for the end of the
    stream, and for empty records.
    """
    view = memoryview(bytearray(1))
    flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
    try:
        found = layer.receive_once(view, flags, layer.deadline_in(NO_WAIT))
    except BlockingIOError:
        if error is not None:
            layer.receive_failed(error)
        return
    if found and error is not None:
        try:
            raise error
        finally:
            del error  # the traceback has this frame
