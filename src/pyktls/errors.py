"""Every exception that pyktls raises on its own account.

``Error`` is the root.  Below it the classes answer one question each:

* ``Unavailable``: can this kernel, or this build, do it at all?
* ``HandoffRefused``: is this connection in a state in which it can be switched?
* ``TLSAlert``, ``TruncationError``, ``RecordError``: what went wrong on a connection that runs?
* ``InvalidValue``, ``InvalidType``: what is wrong with the arguments?

Those that end a running connection are also ``ConnectionError``, so that code written for plain
sockets (``except OSError``) treats them as it would treat a reset.  A system call that fails is
reported as an ordinary ``OSError`` whose text names the call; see ``syscall_error``.

No message ever contains a key, an IV or a secret.
"""

from __future__ import annotations

import os

__all__ = [
    "Error",
    "HandoffRefused",
    "InvalidType",
    "InvalidValue",
    "RecordError",
    "TLSAlert",
    "TruncationError",
    "Unavailable",
    "syscall_error",
]


class Error(Exception):
    """Root of every error of this library."""


class InvalidValue(Error, ValueError):
    """An argument has the right type and a wrong value."""


class InvalidType(Error, TypeError):
    """An argument has the wrong type."""


class Unavailable(Error):
    """What was asked is beyond this kernel, or beyond this build of Python.

    ``remedy`` is one sentence that says what would help, or None where nothing would.
    """

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(f"{message}; {remedy}" if remedy else message)
        self.remedy = remedy


class HandoffRefused(Error):
    """The connection is not in a state in which its keys could be handed over.

    It is as usable as before, unless ``dead`` is true (and the message says so): then the kernel
    has taken one direction and refused the other, and the connection can only be closed.
    """

    dead = False


class TLSAlert(Error, ConnectionError):
    """The peer sent an alert that ends the connection (RFC 8446 section 6, RFC 5246 section 7.2).

    ``description`` is the alert's number, ``level`` 1 (warning) or 2 (fatal), ``name`` the
    alert's name in the RFC, or ``unknown(NNN)`` where there is none.
    """

    def __init__(self, level: int, description: int) -> None:
        self.level: int = level
        self.description: int = description
        self.name: str = alert_name(description)
        kind = {1: "warning", 2: "fatal"}.get(level, f"level {level}")
        super().__init__(f"the peer sent the {kind} alert {self.name} ({description})")

    def __reduce__(self) -> tuple[type[TLSAlert], tuple[int, int]]:
        return type(self), (self.level, self.description)


class TruncationError(Error, ConnectionError):
    """The peer closed the TCP connection without a close_notify alert.

    What was received before may be incomplete: anybody on the path can cut a connection
    (RFC 8446 section 6.1).
    """


class RecordError(Error, ConnectionError):
    """A record from the peer is not what the protocol allows here; the connection is dead."""


# RFC 8446 section 6 and the values that only RFC 5246 section 7.2 still uses.
ALERT_NAMES = {
    0: "close_notify",
    10: "unexpected_message",
    20: "bad_record_mac",
    21: "decryption_failed",
    22: "record_overflow",
    30: "decompression_failure",
    40: "handshake_failure",
    41: "no_certificate",
    42: "bad_certificate",
    43: "unsupported_certificate",
    44: "certificate_revoked",
    45: "certificate_expired",
    46: "certificate_unknown",
    47: "illegal_parameter",
    48: "unknown_ca",
    49: "access_denied",
    50: "decode_error",
    51: "decrypt_error",
    60: "export_restriction",
    70: "protocol_version",
    71: "insufficient_security",
    80: "internal_error",
    86: "inappropriate_fallback",
    90: "user_canceled",
    100: "no_renegotiation",
    109: "missing_extension",
    110: "unsupported_extension",
    111: "certificate_unobtainable",
    112: "unrecognized_name",
    113: "bad_certificate_status_response",
    114: "bad_certificate_hash_value",
    115: "unknown_psk_identity",
    116: "certificate_required",
    120: "no_application_protocol",
}


def alert_name(description: int) -> str:
    """The name that the RFCs give an alert, or ``unknown(NNN)`` for a number they do not use."""
    return ALERT_NAMES.get(description, f"unknown({description})")


def syscall_error(error: int, call: str) -> OSError:
    """The OSError for ``errno`` value ``error`` of the system call ``call``.

    ``call`` is the call as a reader would look it up, for instance
    ``"setsockopt(SOL_TLS, TLS_TX)"``.  The class is the one that Python itself would choose
    (``BlockingIOError`` for EAGAIN and so on).
    """
    return OSError(error, f"{call}: {os.strerror(error)}")
