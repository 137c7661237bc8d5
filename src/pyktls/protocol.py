"""The numbers of the protocol that more than one part of the library needs, and the directions."""

from __future__ import annotations

import enum

from .ciphers import TLS_1_2, TLS_1_3

__all__ = [
    "ALERT",
    "APPLICATION_DATA",
    "BAD_RECORD_MAC",
    "CERTIFICATE_REQUEST",
    "CHANGE_CIPHER_SPEC",
    "CLIENT_HELLO",
    "CLOSE_NOTIFY",
    "DECODE_ERROR",
    "ENCRYPTED_EXTENSIONS",
    "FATAL",
    "HANDSHAKE",
    "HELLO_REQUEST",
    "ILLEGAL_PARAMETER",
    "INTERNAL_ERROR",
    "KEY_UPDATE",
    "NEW_SESSION_TICKET",
    "NO_RENEGOTIATION",
    "PROTOCOL_VERSION",
    "RECORD_OVERFLOW",
    "SERVER_HELLO",
    "UNEXPECTED_MESSAGE",
    "USER_CANCELED",
    "VERSION_NAMES",
    "WARNING",
    "Direction",
]


class Direction(enum.StrEnum):
    """One half of a connection, seen from us."""

    TX = "tx"
    RX = "rx"


#: As ssl.SSLSocket.version says them.
VERSION_NAMES = {TLS_1_2: "TLSv1.2", TLS_1_3: "TLSv1.3"}

# Record types (RFC 8446 section 5.1).
CHANGE_CIPHER_SPEC = 20
ALERT = 21
HANDSHAKE = 22
APPLICATION_DATA = 23

# Alert levels and the descriptions that are named here (RFC 8446 section 6, RFC 5246 section 7.2).
WARNING = 1
FATAL = 2
CLOSE_NOTIFY = 0
UNEXPECTED_MESSAGE = 10
BAD_RECORD_MAC = 20
RECORD_OVERFLOW = 22
ILLEGAL_PARAMETER = 47
DECODE_ERROR = 50
PROTOCOL_VERSION = 70
INTERNAL_ERROR = 80
USER_CANCELED = 90
NO_RENEGOTIATION = 100

# Handshake message types (RFC 8446 section 4, RFC 5246 section 7.4).
HELLO_REQUEST = 0
CLIENT_HELLO = 1
SERVER_HELLO = 2
NEW_SESSION_TICKET = 4
ENCRYPTED_EXTENSIONS = 8
CERTIFICATE_REQUEST = 13
KEY_UPDATE = 24
