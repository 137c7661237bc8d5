"""Files and pipes to and from a TLS socket: sendfile(2) and splice(2).

Sending, the kernel encrypts the pages at the time of the call, so the file may change afterwards;
what a pipe gives under SPLICE_F_MORE is looked at only when the record is complete.  (With
TLS_TX_ZEROCOPY_RO and a network card that encrypts it is different: see options.py.)
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
from typing import TYPE_CHECKING

from pyktls import _records, arguments
from pyktls.errors import Unavailable, syscall_error
from pyktls.socket_calls import MOST_BUFFERS, descriptor, getsockopt, setsockopt

from . import defects
from .calls import only_on_linux
from .records import flush

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from _typeshed import ReadableBuffer

    from pyktls.socket_calls import HasFileno

    from .defects import Defect

__all__ = ["sendfile", "splice_from_pipe", "splice_to_pipe"]

# The most that one call of sendfile(2) or splice(2) moves.
_MOST = 0x7FFFF000
# What one record takes; this and more begins another one.
_RECORD = 16384
_PAGE = 4096
# Where sendfile may stall, a send buffer (SO_SNDBUF) that does not hold a pipe's pages: all but the
# last, 15 of 16, complete three records, of 49,218 bytes together.
_SMALL_BUFFER = 1 << 16
# linux/tcp.h: struct tcp_info begins with the state; net/tcp_states.h: this one is the last.
_TCP_CLOSE = 7


# ---- small send buffers ----------------------------------------------------------------------


def _gives_pages_singly(release: str) -> bool:
    """Whether sendfile gives each page to the socket by a call of its own, as before Linux 6.5."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return found is not None and (int(found[1]), int(found[2])) < (6, 5)


_PAGES_SINGLY = _gives_pages_singly(os.uname().release)


def sendfile_may_stall(fd: int) -> bool:
    """Whether one sendfile(2), or splice(2), of several records may stop and never go on.

    Before Linux 6.5 all pages that a pipe holds but the last are announced as not the last
    (MSG_SENDPAGE_NOTLAST).  A record that such a page completes is left for TCP to send later; if
    it fills the send buffer, the kernel waits for room (net/tls/tls_sw.c, tls_sw_do_sendpage),
    and nobody sends it.  So with a small send buffer no call goes beyond the end of a record.
    """
    if not _PAGES_SINGLY:
        return False
    try:
        size = getsockopt(fd, socket.SOL_SOCKET, socket.SO_SNDBUF, 4, "SO_SNDBUF")
    except OSError:
        return False  # sendfile itself will tell
    return int.from_bytes(size, sys.byteorder) < _SMALL_BUFFER


def _within_a_record(offset: int) -> int:
    """How much of a file a call takes that does not go beyond the end of a record.

    Records end where the offset is a multiple of their size, so that one that an earlier call has
    begun, but found no room to complete, ends as well.
    """
    return _RECORD - offset % _RECORD


def _push(fd: int) -> None:
    """Have TCP send what it keeps for more data to come; uncorking does it, corked or not."""
    corked = getsockopt(fd, socket.IPPROTO_TCP, socket.TCP_CORK, 4, "TCP_CORK")
    setsockopt(fd, socket.IPPROTO_TCP, socket.TCP_CORK, bytes(4), "TCP_CORK")
    if any(corked):
        setsockopt(fd, socket.IPPROTO_TCP, socket.TCP_CORK, corked, "TCP_CORK")


# ---- sendfile --------------------------------------------------------------------------------


def sendfile_once(
    sock: int, file: int, offset: int = 0, count: int = 0
) -> tuple[int, OSError | None]:
    """One sendfile(2) on descriptors: the bytes that were taken, or 0 and the error."""
    if sendfile_may_stall(sock):
        count = min(count or _MOST, _within_a_record(offset))
    try:
        return os.sendfile(sock, file, offset, count), None
    except OSError as e:
        return 0, syscall_error(e.errno or 0, "sendfile")


def is_gone(fd: int) -> bool:
    """Whether TCP has given up the connection, or False where the kernel does not tell.

    On 7.3 sendfile(2) was seen to go on taking a file, without an error, after the peer had reset
    the connection.
    """
    try:
        return getsockopt(fd, socket.IPPROTO_TCP, socket.TCP_INFO, 1, "TCP_INFO")[0] == _TCP_CLOSE
    except OSError:
        return False


def sendfile(
    sock: HasFileno | int,
    file: HasFileno | int,
    offset: int = 0,
    count: int = 0,
    *,
    headers: Sequence[ReadableBuffer] = (),
    trailers: Sequence[ReadableBuffer] = (),
) -> tuple[int, OSError | None]:
    """Send ``count`` bytes of a file, 0 for all up to its end, as pyktls.freebsd.sendfile does.

    ``headers`` go before it, in the same record as its beginning, and ``trailers`` after it, in a
    record of their own: sendfile(2) ends one.  What is asked for beyond the end of the file is no
    error, and a file that becomes shorter meanwhile ends early: compare the number.

    Returns the number of bytes that were taken, those around the file included, and the error that
    ended it, if one did: both at once is normal (EAGAIN on a non-blocking socket whose buffer is
    full, which one with a timeout is, too).
    """
    arguments.count("offset", offset)
    arguments.count("count", count)
    before, after = arguments.buffer_views(headers), arguments.buffer_views(trailers)
    fd, source = descriptor(sock), descriptor(file)
    only_on_linux()
    sent = 0
    record_is_open = False
    try:
        for taken in _send_all(fd, before, socket.MSG_MORE):
            sent += taken
            record_is_open = True
        for taken in _send_file(lambda: fd, source, offset, count):
            sent += taken
            record_is_open = False
        for taken in _send_all(fd, after, 0):
            sent += taken
            record_is_open = False
        if record_is_open:
            flush(fd)
    except OSError as e:
        if record_is_open:
            # What MSG_MORE holds back was counted: it must not stay behind.  Where there is no
            # room the next send does it.
            with contextlib.suppress(OSError):
                flush(fd, socket.MSG_DONTWAIT)
        return sent, e
    return sent, None


def _send_all(fd: int, views: list[memoryview], flags: int) -> Iterator[int]:
    """Send the buffers whole, in as few calls as there can be; yields what each call took."""
    pieces = [view for view in views if len(view)]
    deadline = _records.Deadline(None)
    while pieces:
        last = len(pieces) <= MOST_BUFFERS
        taken = _records.sendmsg(
            fd,
            pieces[:MOST_BUFFERS],
            flags if last else socket.MSG_MORE,
            _records.NO_RECORD_TYPE,
            deadline,
        )
        yield taken
        while pieces and taken >= len(pieces[0]):
            taken -= len(pieces.pop(0))
        if taken:
            pieces[0] = pieces[0][taken:]


def sendfile_all(
    ask: Callable[[], int], file: int, offset: int, count: int
) -> tuple[int, OSError | None]:
    """``sendfile`` of a file alone, to a socket that another thread may close meanwhile.

    ``ask`` gives the descriptor anew for each call: its number may be another one's by then.
    """
    sent = 0
    try:
        for taken in _send_file(ask, file, offset, count):
            sent += taken
    except OSError as e:
        return sent, e
    return sent, None


def _send_file(ask: Callable[[], int], source: int, offset: int, count: int) -> Iterator[int]:
    """The file's part; yields what each call took.

    Only as much as there is is asked for: before 6.1.82 and 6.5 the kernel kept the last record
    back if it was asked for more.
    """
    end = offset + count if count else 2**63
    short = sendfile_may_stall(ask())
    # What was sent before may have left a record open; a single page does not hold it up.
    longest = _PAGE - offset % _PAGE
    while offset < end:
        available = _size(source) - offset
        step = min(end - offset, available, _MOST)
        if step <= 0:
            return
        if short:
            step = min(step, longest, _within_a_record(offset))
        try:
            sent = os.sendfile(ask(), source, offset, step)
        except InterruptedError:  # a handler that raises has done so (PEP 475)
            continue
        except OSError as e:
            raise syscall_error(e.errno or 0, "sendfile") from None
        if not sent:
            return  # the file has become shorter since its size was asked for
        yield sent
        offset += sent
        longest = _RECORD


def _size(file: int) -> int:
    try:
        return os.fstat(file).st_size
    except OSError as e:
        raise syscall_error(e.errno or 0, "fstat") from None


# ---- splice ----------------------------------------------------------------------------------


def _refuse_where_defective(call: str, trial: Callable[[], Defect | None]) -> None:
    only_on_linux()
    if not hasattr(os, "splice"):
        raise Unavailable("this Python is built without splice(2)")
    defect = trial()
    if defect is not None:
        raise Unavailable(f"{call} is not safe here: {defect.text}", remedy=defect.remedy)


def splice_from_pipe(
    pipe: HasFileno | int, sock: HasFileno | int, count: int, flags: int = 0
) -> int:
    """Send at most ``count`` bytes that are in a pipe, without a copy through this process.

    ``flags`` may hold os.SPLICE_F_MORE (as MSG_MORE; before Linux 6.5 it has no effect, and each
    call ends a record) and os.SPLICE_F_NONBLOCK (for the pipe).
    Returns the number of bytes that were moved, 0 at the end of the pipe.  Before the first time it
    is tried out on a connection of our own; raises Unavailable where records came out wrong, and
    OSError of splice(2).
    """
    arguments.count("count", count)
    source, fd = descriptor(pipe), descriptor(sock)
    _refuse_where_defective("splice_from_pipe", defects.splice_from_pipe)
    if not sendfile_may_stall(fd):
        return _splice(source, fd, count, flags)
    try:
        return _splice(source, fd, min(count, _RECORD), flags)
    finally:
        # A record that an earlier call left open may have been completed in the midst of this one.
        with contextlib.suppress(OSError):
            _push(fd)


def splice_to_pipe(sock: HasFileno | int, pipe: HasFileno | int, count: int, flags: int = 0) -> int:
    """Move at most ``count`` bytes of one data record into a pipe, without a copy through us.

    Returns the number of bytes, 0 at the end of the stream.  The receiving half has to be in the
    kernel.  ``flags`` may hold os.SPLICE_F_NONBLOCK.  Before the first time it is tried out on a
    connection of our own; raises Unavailable where data was lost.

    Raises OSError: EINVAL (a control record is next: it stays, and recv_record takes it),
    EKEYEXPIRED (a KeyUpdate came), EBADMSG and the others of recv_record, EAGAIN.
    """
    arguments.count("count", count)
    fd, target = descriptor(sock), descriptor(pipe)
    _refuse_where_defective("splice_to_pipe", defects.splice_to_pipe)
    return _splice(fd, target, count, flags)


def _splice(source: int, target: int, count: int, flags: int) -> int:
    while True:
        try:
            return os.splice(source, target, min(count, _MOST), flags=flags)
        except InterruptedError:  # a handler that raises has done so (PEP 475)
            continue
        except OSError as e:
            raise syscall_error(e.errno or 0, "splice") from None
