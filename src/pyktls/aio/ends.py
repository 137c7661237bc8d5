"""Who carries a connection behind a transport: the kernel, or OpenSSL.

The transport (transport.py) waits for the descriptor and keeps the buffers; an end makes the calls.
None of them waits: a call that cannot be done now raises BlockingIOError, and the transport comes
back when the descriptor is ready.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from pyktls import _records, closing, file_transfer
from pyktls.ciphers import TLS_1_3
from pyktls.errors import Error, TruncationError
from pyktls.protocol import ALERT
from pyktls.record_layer import NO_WAIT
from pyktls.status import Status, status

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from _typeshed import ReadableBuffer, WriteableBuffer

    from pyktls.sockets import KTLSSocket

__all__ = ["End", "KernelEnd", "OpenSSLEnd"]

# What skim takes in at a time.
_MOST_AT_ONCE = 16
_PIECE = 1 << 16


class End(Protocol):
    """One end of a connection, without waiting."""

    #: ``pyktls.KTLSSocket`` or ``ssl.SSLSocket``.
    sock: Any
    #: Whether sendfile(2) can be used.
    sends_files: bool
    #: Whether it can go on sending after the peer's close_notify (RFC 8446 section 6.1).
    half_closes: bool
    #: Whether it can send close_notify and go on receiving.
    ends_first: bool
    #: Whether there may be something to read that select(2) does not see.
    hides_data: bool
    #: After BlockingIOError: whether the call waits for the other direction.
    wants_other: bool

    def recv(self, size: int, /) -> bytes:
        """Receive; empty at the peer's close_notify."""

    def recv_into(self, buffer: WriteableBuffer, /) -> int:
        """Receive into a buffer; 0 at the peer's close_notify."""

    def send(self, data: ReadableBuffer, /) -> int:
        """Send, or a beginning of it; how many bytes were taken."""

    def send_gathered(self, pieces: Sequence[ReadableBuffer], /) -> int:
        """Send several buffers, or a beginning of them; how many bytes were taken."""

    def has_hidden_data(self) -> bool:
        """Whether the next read has something that select(2) does not see."""

    def before_file(self) -> None:
        """What comes before a sendfile(2) that somebody else makes; BlockingIOError: not now."""

    def send_pages(self, source: int, offset: int, left: int) -> tuple[int, bool]:
        """One sendfile(2): how much was sent, and whether there is more to come."""

    def finish(self) -> None:
        """Get out what was sent, and close_notify after it; BlockingIOError until it is done."""

    def skim(self) -> bool:
        """Take in what there is, for nobody; whether the peer has ended, well or badly."""

    def discard(self) -> None:
        """Close the descriptor, and nothing else."""

    def close(self) -> None:
        """Close in good order, as far as that is possible without waiting."""

    def status(self) -> Status:
        """What ``get_extra_info("ktls")`` gives."""


class KernelEnd:
    """A KTLSSocket: the kernel encrypts and decrypts."""

    def __init__(self, sock: KTLSSocket, refusal: Exception | None = None) -> None:
        self.sock = sock
        self._refusal = refusal
        self._layer = layer = sock._layer  # noqa: SLF001
        self.sends_files = layer.outgoing.in_kernel
        self.half_closes = self.ends_first = layer.session.version == TLS_1_3
        self.hides_data = bool(layer.pending()) or not layer.incoming.in_kernel
        self.wants_other = False
        # As directly as can be: these are the hot path.
        self.recv: Callable[[int], bytes] = sock.recv
        self.recv_into: Callable[[WriteableBuffer], int] = sock.recv_into
        self.send: Callable[[ReadableBuffer], int] = sock.send
        self.send_gathered: Callable[[Sequence[ReadableBuffer]], int] = sock.sendmsg

    def has_hidden_data(self) -> bool:
        """See End."""
        if self._layer.pending():
            return True
        # What OpenSSL had decrypted before the switch does not come again.
        self.hides_data = not self._layer.incoming.in_kernel
        return False

    def before_file(self) -> None:
        """See End."""
        with self._layer.send_lock:
            file_transfer.before_file(self._layer)

    def send_pages(self, source: int, offset: int, left: int) -> tuple[int, bool]:
        """See End."""
        with self._layer.send_lock:
            return file_transfer.send_some_pages(self._layer, source, offset, left)

    def finish(self) -> None:
        """See End."""
        layer = self._layer
        if layer.fd < 0 or layer.is_dead() or closing.aborts(layer.fd):
            return
        with layer.send_lock:
            closing.finish_sending(layer, layer.deadline_in(NO_WAIT))

    def skim(self) -> bool:
        """See End."""
        layer = self._layer
        if layer.fd < 0 or layer.receive_ended or layer.receive_error:
            return True
        try:
            for _ in range(_MOST_AT_ONCE):
                data, record_type, _ = layer.incoming.recv(
                    layer.fd, _PIECE, socket.MSG_DONTWAIT, layer.deadline_in(NO_WAIT)
                )
                ended = not data and record_type == _records.NO_RECORD_TYPE
                if ended or record_type == ALERT:
                    return True
        except (BlockingIOError, InterruptedError):
            return False
        except (OSError, Error):
            return True
        return False

    def discard(self) -> None:
        """See End."""
        self.sock.abandon()

    def close(self) -> None:
        """See End."""
        with contextlib.suppress(OSError, Error):
            self.finish()
        self.sock.abandon()

    def status(self) -> Status:
        """See End."""
        found = status(self.sock)
        return found if self._refusal is None else replace(found, refusal=self._refusal)


class OpenSSLEnd:
    """An SSLSocket whose connection the kernel did not take: OpenSSL goes on with it."""

    def __init__(self, sock: ssl.SSLSocket, refusal: Exception | None) -> None:
        self.sock = sock
        self._refusal = refusal
        self.sends_files = False
        self.half_closes = sock.version() == "TLSv1.3"
        # Python calls SSL_shutdown twice, which is fatal where there is data that was not read.
        self.ends_first = False
        self.hides_data = True
        self.wants_other = False

    def recv(self, size: int) -> bytes:
        """See End."""
        try:
            return self.sock.recv(size)
        except ssl.SSLError as e:
            self._reading_failed(e)
            raise

    def recv_into(self, buffer: WriteableBuffer) -> int:
        """See End."""
        try:
            return self.sock.recv_into(buffer)
        except ssl.SSLError as e:
            self._reading_failed(e)
            raise

    def _reading_failed(self, error: ssl.SSLError) -> None:
        if isinstance(error, ssl.SSLWantReadError | ssl.SSLWantWriteError):
            self.wants_other = isinstance(error, ssl.SSLWantWriteError)
            raise BlockingIOError(errno.EAGAIN, "OpenSSL has nothing to read") from None
        if isinstance(error, ssl.SSLEOFError):
            raise TruncationError(
                "the peer closed the connection without close_notify: "
                "what was received may be incomplete"
            ) from error

    def send(self, data: ReadableBuffer) -> int:
        """See End."""
        try:
            return self.sock.send(data)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as e:
            self.wants_other = isinstance(e, ssl.SSLWantReadError)
            raise BlockingIOError(errno.EAGAIN, "OpenSSL cannot write now") from None

    def send_gathered(self, pieces: Sequence[ReadableBuffer]) -> int:
        """See End."""
        # OpenSSL has to be given the same data again after it could not write.
        return self.send(pieces[0])

    def has_hidden_data(self) -> bool:
        """See End."""
        return self.sock.pending() > 0

    def before_file(self) -> None:
        """See End."""
        raise NotImplementedError("OpenSSL has the connection, and it takes no files")

    def send_pages(self, source: int, offset: int, left: int) -> tuple[int, bool]:
        """See End."""
        raise NotImplementedError("OpenSSL has the connection, and it takes no files")

    def finish(self) -> None:
        """See End."""
        sslobj = self.sock._sslobj  # type: ignore[attr-defined]  # noqa: SLF001
        if sslobj is None:
            return
        try:
            sslobj.shutdown()
        except ssl.SSLWantWriteError:
            raise BlockingIOError(errno.EAGAIN, "OpenSSL cannot write now") from None
        except (ssl.SSLError, BrokenPipeError, ConnectionResetError):
            # Ours is out, and OpenSSL would wait for the peer's; or nothing can be sent any more.
            pass

    def skim(self) -> bool:
        """See End."""
        try:
            for _ in range(_MOST_AT_ONCE):
                if not self.sock.recv(_PIECE):
                    return True
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError:
            return True
        return False

    def discard(self) -> None:
        """See End."""
        self.sock.close()

    def close(self) -> None:
        """See End."""
        with contextlib.suppress(OSError):
            self.finish()
        self.sock.close()

    def status(self) -> Status:
        """See End."""
        return replace(status(self.sock), refusal=self._refusal)
