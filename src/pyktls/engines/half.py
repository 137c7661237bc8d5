"""OpenSSL's connection where it goes on with one direction, and the kernel has the other.

For connections that the native engine watches: its tap tells what OpenSSL hears and says besides
data.  ``csrc/openssl_half.c`` does it, on memory alone.  Every call takes the connection's lock,
since OpenSSL's objects are for one thread at a time; none of them waits.
"""

from __future__ import annotations

import enum
import errno
import functools
import os
import struct
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from pyktls._kernel import ffi, lib
from pyktls.errors import syscall_error

from . import native

if TYPE_CHECKING:
    from pyktls.ciphers import CipherSuite
    from pyktls.session import DirectionKeys

__all__ = ["Half", "Message", "Stopped", "works"]

_KEPT_HEADER = struct.Struct(">BBI")
_RECORD_HEADER = 5


class Message(NamedTuple):
    """A handshake message or an alert, whole, as OpenSSL sent or received it."""

    sent: bool
    content_type: int
    content: bytes


class Stopped(enum.Enum):
    """Why a read gave no plaintext."""

    WANTS_MORE = enum.auto()  # bytes from the socket, or just another call
    CLOSED = enum.auto()  # close_notify has been received
    FAILED = enum.auto()  # a record was refused; see ``reason``


@functools.cache
def works() -> bool:
    """Whether the functions of OpenSSL that are needed here can be reached."""
    return native.why_not() is None and bool(lib.pyktls_half_open() == lib.PYKTLS_HALF_OK)


class Half:
    """One direction of the connection of a ``_ssl._SSLSocket``, from ``begin`` to ``release``."""

    def __init__(self, sslobj: Any) -> None:
        self.lock = threading.RLock()  # a signal handler may call within a call
        self.process = os.getpid()
        self.reason = ""
        self._sslobj = sslobj
        self._ssl = native.ssl_pointer(sslobj)
        self._fed = 0

    def begin(self, *, reads: bool) -> bool:
        """Take the socket away from OpenSSL; False without memory."""
        with self.lock:
            _, self._fed = native.progress(self._sslobj)
            if reads and lib.pyktls_tap_follow(self._ssl) != lib.PYKTLS_TAP_OK:
                return False
            direction = lib.PYKTLS_HALF_READS if reads else lib.PYKTLS_HALF_WRITES
            return bool(lib.pyktls_half_begin(self._ssl, direction) == lib.PYKTLS_HALF_OK)

    def release(self) -> None:
        """Let OpenSSL forget the connection in good order."""
        if os.getpid() != self.process:  # the lock may be another thread's that is not here
            return
        with self.lock:
            if self._sslobj is not None:
                native.leave(self._sslobj)
                self._sslobj = self._ssl = None

    def _note(self, reason: Any) -> None:
        """Keep OpenSSL's words for what went wrong."""
        self.reason = ffi.string(reason[0]).decode() if reason[0] else "no reason given"

    def _connection(self) -> Any:
        if self._ssl is None:
            raise syscall_error(errno.EBADF, "SSL_read or SSL_write")
        return self._ssl

    # ---- reading -----------------------------------------------------------------------------

    def missing(self) -> int:
        """How many bytes OpenSSL needs next, to the end of a record's header or of the record."""
        with self.lock:
            ahead = self._fed - int(lib.pyktls_tap_read_bytes(self._connection()))
        return -ahead if ahead < 0 else max(1, _RECORD_HEADER - ahead)

    def feed(self, data: bytes) -> bool:
        """Bring bytes from the socket, no more than are missing; False without memory."""
        with self.lock:
            self._fed += len(data)
            ssl = self._connection()
            fed = lib.pyktls_half_feed(ssl, ffi.from_buffer(data), len(data))
        return bool(fed == lib.PYKTLS_HALF_OK)

    def read(self, view: memoryview, *, peek: bool) -> int | Stopped:
        """Read plaintext into ``view``, or look at it; the number of bytes, never 0."""
        reason = ffi.new("const char **")
        with self.lock:
            ssl = self._connection()
            with ffi.from_buffer(view, require_writable=True) as out:
                result = int(lib.pyktls_half_read(ssl, out, len(view), peek, reason))
        if result > 0:
            return result
        if result == lib.PYKTLS_HALF_WANTS_MORE:
            return Stopped.WANTS_MORE
        if result == lib.PYKTLS_HALF_CLOSED:
            return Stopped.CLOSED
        self._note(reason)
        return Stopped.FAILED

    def heard(self) -> list[Message] | None:
        """What has been received and sent besides data since the last call; None: some is lost."""
        with self.lock:
            ssl = self._connection()
            size = int(lib.pyktls_tap_kept(ssl))
            if size <= 0:
                return [] if size == 0 else None
            kept = ffi.new("unsigned char[]", size)
            lib.pyktls_tap_take(ssl, kept)
        data = bytes(ffi.buffer(kept))
        messages = []
        at = 0
        while at < len(data):
            sent, content_type, length = _KEPT_HEADER.unpack_from(data, at)
            at += _KEPT_HEADER.size
            messages.append(Message(bool(sent), content_type, data[at : at + length]))
            at += length
        return messages

    def pending(self) -> int:
        """Bytes of plaintext that can be read without more from the socket."""
        with self.lock:
            return int(lib.pyktls_half_pending(self._ssl)) if self._ssl is not None else 0

    # ---- writing -----------------------------------------------------------------------------

    def write(self, data: memoryview) -> bool:
        """Encrypt at most a record; False, with ``reason``, if OpenSSL refuses."""
        reason = ffi.new("const char **")
        with self.lock, ffi.from_buffer(data) as source:
            done = lib.pyktls_half_write(self._connection(), source, len(data), reason)
        if done != lib.PYKTLS_HALF_OK:
            self._note(reason)
        return bool(done == lib.PYKTLS_HALF_OK)

    def close_notify(self) -> bool:
        """Make a close_notify."""
        with self.lock:
            return bool(lib.pyktls_half_close_notify(self._connection()) == lib.PYKTLS_HALF_OK)

    def key_update(self, *, request_peer: bool) -> bool:
        """Make a KeyUpdate, and go on to the next keys."""
        with self.lock:
            done = lib.pyktls_half_key_update(self._connection(), request_peer)
        return bool(done == lib.PYKTLS_HALF_OK)

    def take(self) -> bytes:
        """What has been made for the socket."""
        with self.lock:
            ssl = self._connection()
            made = bytearray(lib.pyktls_half_made(ssl))
            if not made:
                return b""
            with ffi.from_buffer(made, require_writable=True) as out:
                done = lib.pyktls_half_take(ssl, out, len(made))
        return bytes(made) if done == lib.PYKTLS_HALF_OK else b""

    def sending_keys(self) -> tuple[CipherSuite, DirectionKeys]:
        """The keys that OpenSSL sends with, and the number of its next record; wipe them."""
        with self.lock:
            return native.sending_keys(self._sslobj)
