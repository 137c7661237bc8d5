"""Kernel defects that lose or corrupt data without an error, looked for before they can harm.

Some features of ``pyktls.linux`` are harmless on a sound kernel and destroy data on another one of
the same release number.  Each has its trial here: what would go wrong is done on a connection of
our own, with data whose every byte is known.  The feature is offered only where its trial has
passed in this process; a result is kept, for the kernel does not change under a process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import termios
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyktls import _records
from pyktls._kernel import ffi, lib
from pyktls.ciphers import TLS_1_2, TLS_1_3
from pyktls.errors import Unavailable

from .abi import SOL_TLS, TLS_RX_EXPECT_NO_PAD
from .calls import setsockopt
from .trial import keyed_pair

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Defect", "expect_no_pad", "splice_from_pipe", "splice_to_pipe"]

#: A trial takes about a millisecond; this is for machines that are stuck.
_PATIENCE = 10.0
_APPLICATION_DATA = 23
# With TLS 1.3 around a plaintext: header, type, tag.  With TLS 1.2: header, explicit nonce if any,
# tag; no cipher adds less.
_LEAST_OVERHEAD = 5 + 16
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Defect:
    """Why a feature is not offered, and what would help (None: nothing known).

    ``error`` is what kept the trial from being carried out, None where it was.
    """

    text: str
    remedy: str | None = None
    error: Exception | None = None


_results: dict[str, Defect | None] = {}
_lock = threading.Lock()


def _new_lock() -> None:
    """In a child process: the thread that held it was not copied."""
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_new_lock)


class _Found(Exception):
    pass


def _once(name: str, trial: Callable[[], None], found: Defect) -> Defect | None:
    """The result of ``trial``; one that could not be carried out is tried again next time."""
    with _lock:
        if name not in _results:
            try:
                trial()
            except _Found:
                _results[name] = found
            except (OSError, Unavailable) as e:
                return Defect(f"it could not be tried out on this kernel ({e})", None, e)
            else:
                _results[name] = None
        return _results[name]


# ---- the trials' means -----------------------------------------------------------------------


def _send(sock: socket.socket, data: bytes, record_type: int) -> None:
    """One record of any type, 0 included."""
    iov = ffi.new("struct iovec *")
    iov.iov_base = base = ffi.from_buffer(data)
    iov.iov_len = len(data)
    sent = lib.pyktls_send_record(sock.fileno(), iov, 1, 0, record_type)
    del base
    if sent != len(data):
        raise OSError(-sent if sent < 0 else 0, "sendmsg: not all of a small record was taken")


def _queued(sock: socket.socket, request: int) -> int:
    """FIONREAD or TIOCOUTQ: bytes in one of the queues of TCP, still encrypted."""
    (count,) = struct.unpack("i", fcntl.ioctl(sock, request, bytes(4)))
    return int(count)


def _wait_for(sock: socket.socket, least: int) -> None:
    """Until ``least`` bytes are in the receive queue: what is tried needs them there together."""
    limit = time.monotonic() + _PATIENCE
    while _queued(sock, termios.FIONREAD) < least:
        if time.monotonic() > limit:
            raise TimeoutError("a loopback connection delivers nothing")
        time.sleep(0.0001)


def _recv(sock: socket.socket, buffers: list[bytearray]) -> tuple[int, int]:
    deadline = _records.Deadline(_PATIENCE)
    received, record_type, _ = _records.recvmsg_into(sock.fileno(), buffers, 0, deadline)
    return received, record_type


# ---- TLS_RX_EXPECT_NO_PAD --------------------------------------------------------------------


def _try_expect_no_pad() -> None:
    # A record of type 0 is a padded one: the receiver takes the last byte that is not zero for the
    # type, and what comes after it for padding (RFC 8446 section 5.4).
    padded = b"hello" + bytes([_APPLICATION_DATA]) + bytes(300)
    with keyed_pair(TLS_1_3) as (near, far):
        far.setblocking(False)  # with the Deadline of _recv
        on = struct.pack("=I", 1)
        setsockopt(
            far.fileno(), SOL_TLS, TLS_RX_EXPECT_NO_PAD, on, "setsockopt(TLS_RX_EXPECT_NO_PAD)"
        )
        # A padded record, and more data behind it in the same read.
        _send(near, padded, 0)
        near.sendall(b"0123456789")
        _wait_for(far, len(padded) + 10 + 2 * _LEAST_OVERHEAD)
        got = bytearray()
        while len(got) < 15:
            buffer = bytearray(400)
            received, record_type = _recv(far, [buffer])
            got += buffer[:received]
            if record_type != _APPLICATION_DATA or not received:
                raise _Found
        if got != b"hello0123456789":
            raise _Found
        # A control record into two buffers: the second attempt must not touch what is behind it.
        _send(near, b"0123456789", 100)
        _wait_for(far, 10 + _LEAST_OVERHEAD)
        first, second = bytearray(5), bytearray(b"." * 20)
        if _recv(far, [first, second]) != (10, 100) or second != b"56789" + b"." * 15:
            raise _Found


def expect_no_pad() -> Defect | None:
    """What is wrong with TLS_RX_EXPECT_NO_PAD here, None if it works (CVE-2026-74611)."""
    return _once(
        "expect_no_pad",
        _try_expect_no_pad,
        Defect(
            "this kernel writes what follows a padded record to the wrong place (CVE-2026-74611)",
            "it is mended in Linux 7.2 and in current stable kernels, 6.1.192 and 6.12.115 among "
            "them",
        ),
    )


# ---- splice ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _pipe(flags: int):  # type: ignore[no-untyped-def]  # noqa: ANN202
    ends = os.pipe2(flags | os.O_CLOEXEC)
    try:
        yield ends
    finally:
        for fd in ends:
            os.close(fd)


def _try_splice_to_pipe() -> None:
    # A pipe of one page: nearly every call meets a full one.
    data = os.urandom(3 * 16384)
    with keyed_pair() as (near, far), _pipe(os.O_NONBLOCK) as (out, into):
        fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, _PAGE)
        far.setblocking(False)
        got = bytearray()
        sent = 0
        limit = time.monotonic() + _PATIENCE
        while len(got) < len(data):
            if sent < len(data):
                with contextlib.suppress(BlockingIOError):
                    sent += near.send(data[sent:], socket.MSG_DONTWAIT)
            try:
                moved = os.splice(far.fileno(), into, len(data), flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                waiting = _queued(near, termios.TIOCOUTQ) or _queued(far, termios.FIONREAD)
                if sent == len(data) and not waiting:
                    raise _Found from None  # all was sent, nothing is under way: it is lost
                if time.monotonic() > limit:
                    raise TimeoutError("a loopback connection delivers nothing") from None
                time.sleep(0.0001)
                continue
            got += os.read(out, moved)
            if got != data[: len(got)]:
                raise _Found


def splice_to_pipe() -> Defect | None:
    """What is wrong with splicing from a TLS socket into a pipe here, None if it works."""
    return _once(
        "splice_to_pipe",
        _try_splice_to_pipe,
        Defect(
            "this kernel loses data when the pipe is full",
            "it is mended in Linux 7.2 and in current stable kernels, 6.1.190 and 6.12.113 among "
            "them; recv has no such defect",
        ),
    )


def _try_splice_from_pipe() -> None:
    # In packet mode each write is a page of its own, so one record is gathered from many.
    data = bytes(range(1, 49))
    for version in (TLS_1_3, TLS_1_2):
        with keyed_pair(version, TLS_1_2) as (near, far), _pipe(os.O_DIRECT) as (out, into):
            far.setblocking(False)
            # More pages than a record's scatter list holds.
            fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, 64 * _PAGE)
            for byte in data:
                os.write(into, bytes([byte]))
            left = len(data)
            while left:
                more = os.SPLICE_F_MORE
                left -= os.splice(out, near.fileno(), left, flags=more)
            near.sendall(b"tail")
            got = bytearray()
            try:
                while len(got) < len(data) + 4:
                    buffer = bytearray(100)
                    received, record_type = _recv(far, [buffer])
                    got += buffer[:received]
                    if record_type != _APPLICATION_DATA or not received:
                        raise _Found
            except TimeoutError:
                raise
            except OSError as e:  # EBADMSG: what arrived is not what was encrypted
                raise _Found from e
            if got != data + b"tail":
                raise _Found


def splice_from_pipe() -> Defect | None:
    """What is wrong with splicing from a pipe into a TLS socket here, None if it works."""
    return _once(
        "splice_from_pipe",
        _try_splice_from_pipe,
        Defect(
            "this kernel corrupts records that are spliced together from many pages",
            "it is mended in current stable kernels, 6.12.57 among them; send has no such defect",
        ),
    )
