"""The errors that code for the ssl module expects, of connections that the kernel carries.

``ssl.SSLWantReadError`` where a plain socket raises BlockingIOError; where the TLS connection
breaks, errors of ours (errors.py) that are ``ssl.SSLError`` as well.  ``pyktls.SSLSocket`` and the
transports of ``pyktls.aio`` raise them: what is written for ssl.SSLSocket and for asyncio's TLS
catches ssl.SSLError.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

from .errors import (
    Error,
    HandoffRefused,
    RecordError,
    TLSAlert,
    TruncationError,
    Unavailable,
)

if TYPE_CHECKING:
    from types import TracebackType

__all__ = [
    "SSLAlert",
    "SSLErrors",
    "SSLHandoffRefused",
    "SSLRecordError",
    "SSLTruncationError",
    "SSLUnavailable",
    "SSLUnreadData",
    "as_failed_handshake",
    "as_ssl_error",
]


# OpenSSL's SSLError has these two attributes, and so must ours.
class _Reasoned:
    library: Any = None
    reason: Any = None


# Alerts that were in SSL 3.0 already (RFC 6101 section 5.4), which OpenSSL names after that.
_SSL_3_ALERTS = frozenset((0, 10, 20, 30, 40, 41, 42, 43, 44, 45, 46, 47))


class SSLAlert(_Reasoned, TLSAlert, ssl.SSLError):
    """A TLSAlert that is also an ssl.SSLError, with OpenSSL's name of it and OpenSSL's words."""

    library = "SSL"

    def __init__(self, level: int, description: int) -> None:
        TLSAlert.__init__(self, level, description)
        version = "sslv3" if description in _SSL_3_ALERTS else "tlsv1"
        name = f"{version}_alert_{self.name}"
        self.reason = name.upper()
        text = f"[SSL: {self.reason}] {name.replace('_', ' ')}: {self.args[0]}"
        ssl.SSLError.__init__(self, ssl.SSL_ERROR_SSL, text)


class SSLRecordError(_Reasoned, RecordError, ssl.SSLError):
    """A RecordError that is also an ssl.SSLError."""


class SSLTruncationError(_Reasoned, TruncationError, ssl.SSLEOFError):
    """A TruncationError that is also an ssl.SSLEOFError."""

    library = "SSL"
    reason = "UNEXPECTED_EOF_WHILE_READING"


class SSLUnreadData(_Reasoned, Error, ssl.SSLError):
    """unwrap() met data of the peer; ssl.SSLSocket.unwrap raises an SSLError too."""

    library = "SSL"
    reason = "APPLICATION_DATA_AFTER_CLOSE_NOTIFY"


class SSLHandoffRefused(_Reasoned, HandoffRefused, ssl.SSLError):
    """A HandoffRefused that is also an ssl.SSLError: to a caller, the handshake failed."""


class SSLUnavailable(_Reasoned, Unavailable, ssl.SSLError):
    """An Unavailable that is also an ssl.SSLError."""

    def __init__(self, *arguments: Any, remedy: str | None = None) -> None:
        ssl.SSLError.__init__(self, *arguments)
        self.remedy = remedy


def as_failed_handshake(refusal: HandoffRefused | Unavailable) -> ssl.SSLError:
    """The same, for callers of a handshake.

    A server's accept loop survives OSError, and must survive one client's choice of a cipher.
    """
    if isinstance(refusal, Unavailable):
        return SSLUnavailable(ssl.SSL_ERROR_SSL, str(refusal), remedy=refusal.remedy)
    error = SSLHandoffRefused(ssl.SSL_ERROR_SSL, str(refusal))
    error.dead = refusal.dead
    return error


def _want(*, writing: bool) -> ssl.SSLError:
    error: ssl.SSLError = (
        ssl.SSLWantWriteError(ssl.SSL_ERROR_WANT_WRITE, "The operation did not complete (write)")
        if writing
        else ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "The operation did not complete (read)")
    )
    error.library = error.reason = None  # type: ignore[assignment]
    return error


def as_ssl_error(error: BaseException) -> BaseException:
    """The same error, as one of the ssl module's too if the TLS connection broke; else itself."""
    match error:
        case ssl.SSLError():
            return error
        case TLSAlert(level=level, description=description):
            return SSLAlert(level, description)
        case TruncationError():
            return SSLTruncationError(ssl.SSL_ERROR_EOF, str(error))
        case RecordError():
            return SSLRecordError(ssl.SSL_ERROR_SSL, str(error))
    return error


def _as_sockets_error(error: BaseException, *, writing: bool) -> BaseException:
    match error:
        case ssl.SSLError():
            return error
        case BlockingIOError():
            return _want(writing=writing)
        case TimeoutError():
            return TimeoutError(f"The {'write' if writing else 'read'} operation timed out")
    return as_ssl_error(error)


class SSLErrors:
    """Have a socket's call raise what ssl.SSLSocket's raises.

    No generator, as contextlib's: in Python 3.12 and 3.13 the error would come through the frame
    that has it in a variable, and so hold all that its callers have.
    """

    __slots__ = ("_writing",)

    def __init__(self, *, writing: bool) -> None:
        self._writing = writing

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: object, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not isinstance(error, (OSError, Error)):
            return
        other = _as_sockets_error(error, writing=self._writing)
        if other is error:
            return
        try:
            raise other from error
        finally:
            del other  # the traceback has this frame
