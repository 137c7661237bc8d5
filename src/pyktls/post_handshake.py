"""What may arrive on a TLS connection besides data, and what follows from it.  No I/O.

Records go in, actions come out; whoever owns the socket carries them out.  The rules are those of
RFC 8446 (TLS 1.3) and RFC 5246 (TLS 1.2); application data does not pass through here, but
``data_arrives`` has to be told of it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .ciphers import TLS_1_3
from .errors import ALERT_NAMES, Error
from .session import Role

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "ALERT",
    "APPLICATION_DATA",
    "CHANGE_CIPHER_SPEC",
    "CLOSE_NOTIFY",
    "HANDSHAKE",
    "AlertReceived",
    "CloseNotifyReceived",
    "KeyUpdateReceived",
    "PostHandshake",
    "SendWarning",
    "TicketReceived",
    "Violation",
    "alert",
    "key_update",
]

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
NEW_SESSION_TICKET = 4
CERTIFICATE_REQUEST = 13
KEY_UPDATE = 24

# The largest NewSessionTicket there can be: lifetime, age_add, nonce, ticket, extensions with their
# lengths (RFC 8446 section 4.6.1).  No other message that is legal here comes near it.
_LARGEST_MESSAGE = 4 + 4 + (1 + 255) + (2 + 2**16 - 1) + (2 + 2**16 - 2)

# Warning alerts that a TLS 1.2 peer may send in a row.  They are legal and say nothing; without an
# end to them a peer could keep us busy for nothing.
_MOST_WARNINGS = 5


class Violation(Error):
    """The peer broke the protocol; ``description`` is the alert that tells it so."""

    def __init__(self, description: int, reason: str) -> None:
        super().__init__(f"{reason} ({ALERT_NAMES[description]})")
        self.description = description


@dataclass(frozen=True, slots=True)
class TicketReceived:
    """A NewSessionTicket; ``body`` is the message without its 4-byte header."""

    body: bytes

    def __repr__(self) -> str:
        return f"<TicketReceived {len(self.body)} bytes>"


@dataclass(frozen=True, slots=True)
class KeyUpdateReceived:
    """The peer sends under new keys from the next record on; it may want the same of us."""

    answer_wanted: bool


@dataclass(frozen=True, slots=True)
class CloseNotifyReceived:
    """The peer will send no more data."""


@dataclass(frozen=True, slots=True)
class AlertReceived:
    """An alert that ends the connection."""

    level: int
    description: int


@dataclass(frozen=True, slots=True)
class SendWarning:
    """Answer with a warning alert; the connection goes on."""

    description: int


Action = TicketReceived | KeyUpdateReceived | CloseNotifyReceived | AlertReceived | SendWarning


def alert(level: int, description: int) -> bytes:
    """An alert's two bytes (RFC 8446 section 6)."""
    return bytes((level, description))


def key_update(*, request: bool) -> bytes:
    """A KeyUpdate message, header included (RFC 8446 section 4.6.3)."""
    return bytes((KEY_UPDATE, 0, 0, 1, request))


class PostHandshake:
    """The receiving side of one connection after its handshake."""

    __slots__ = ("_partial", "_role", "_version", "_warnings")

    def __init__(self, version: int, role: Role) -> None:
        self._version = version
        self._role = role
        self._partial = bytearray()  # the beginning of a handshake message
        self._warnings = 0

    def data_arrives(self) -> None:
        """Tell of a record of application data; raises Violation if it may not come now."""
        self._warnings = 0
        if self._partial:
            self._interleaved()

    def receive(self, record_type: int, payload: bytes) -> Iterator[Action]:
        """Take in one whole record that is not application data; yields what to do, in order.

        Raises Violation if the protocol does not allow the record.  What was yielded before that
        still holds.
        """
        if record_type == HANDSHAKE:
            yield from self._handshake(payload)
            return
        if self._partial:
            self._interleaved()
        if record_type == ALERT:
            yield from self._alert(payload)
        elif record_type == CHANGE_CIPHER_SPEC:
            # Legal only before the peer's Finished (RFC 8446 section 5, RFC 5246 section 7.1).
            raise Violation(UNEXPECTED_MESSAGE, "ChangeCipherSpec after the handshake")
        else:
            raise Violation(UNEXPECTED_MESSAGE, f"a record of unknown type {record_type}")

    def _interleaved(self) -> None:
        # RFC 8446 section 5.1: nothing may come between the parts of a handshake message.
        raise Violation(UNEXPECTED_MESSAGE, "another record within a handshake message")

    # ---- alerts

    def _alert(self, payload: bytes) -> Iterator[Action]:
        # TLS 1.3 forbids both fragments and several alerts in a record (RFC 8446 section 5.1);
        # TLS 1.2 does not, but nobody has use for them and OpenSSL refuses them as well.
        if len(payload) != 2:
            raise Violation(DECODE_ERROR, f"an alert of {len(payload)} bytes")
        level, description = payload
        if description == CLOSE_NOTIFY:
            yield CloseNotifyReceived()
            return
        # In TLS 1.3 the level says nothing: all but close_notify and user_canceled, which announces
        # one, end the connection (RFC 8446 sections 6 and 6.1).
        if description != USER_CANCELED if self._version == TLS_1_3 else level != WARNING:
            yield AlertReceived(level, description)
            return
        self._warnings += 1
        if self._warnings > _MOST_WARNINGS:
            raise Violation(UNEXPECTED_MESSAGE, "too many warning alerts in a row")

    # ---- handshake messages

    def _handshake(self, payload: bytes) -> Iterator[Action]:
        if not payload:
            # RFC 8446 section 5.1: no empty fragments of handshake messages.
            raise Violation(UNEXPECTED_MESSAGE, "an empty handshake record")
        self._partial += payload
        while len(self._partial) >= 4:
            (head,) = struct.unpack_from(">I", self._partial)
            kind, length = head >> 24, head & 0xFFFFFF
            self._check_kind(kind)
            if 4 + length > _LARGEST_MESSAGE:
                raise Violation(DECODE_ERROR, f"a handshake message of {length} bytes")
            if len(self._partial) < 4 + length:
                break
            body = bytes(self._partial[4 : 4 + length])
            del self._partial[: 4 + length]
            yield from self._message(kind, body)

    def _check_kind(self, kind: int) -> None:
        """Refuse a message as soon as its type is known, not after all of it has come."""
        if self._version == TLS_1_3:
            if kind == NEW_SESSION_TICKET and self._role is Role.CLIENT:
                return
            if kind == KEY_UPDATE:
                return
            if kind == CERTIFICATE_REQUEST:
                # The answer needs a private key and the transcript, which stayed in OpenSSL.
                raise Violation(UNEXPECTED_MESSAGE, "client authentication after the handshake")
        elif (kind, self._role) in {(HELLO_REQUEST, Role.CLIENT), (CLIENT_HELLO, Role.SERVER)}:
            return
        raise Violation(UNEXPECTED_MESSAGE, f"handshake message {kind} after the handshake")

    def _message(self, kind: int, body: bytes) -> Iterator[Action]:
        if kind == NEW_SESSION_TICKET:
            yield TicketReceived(body)
        elif kind == KEY_UPDATE:
            if len(body) != 1:
                raise Violation(DECODE_ERROR, f"a KeyUpdate of {len(body)} bytes")
            if body[0] > 1:
                raise Violation(ILLEGAL_PARAMETER, f"a KeyUpdate that asks for {body[0]}")
            if self._partial:
                # RFC 8446 section 5.1: a key change comes at the end of a record.
                raise Violation(UNEXPECTED_MESSAGE, "data after a KeyUpdate in the same record")
            yield KeyUpdateReceived(answer_wanted=body[0] == 1)
        else:
            # A TLS 1.2 peer that wants to negotiate anew.  We never do, and may say so
            # (RFC 5246 section 7.4.1.1 and 7.2.2).
            self._warnings += 1
            if self._warnings > _MOST_WARNINGS:
                raise Violation(UNEXPECTED_MESSAGE, "too many requests for renegotiation")
            yield SendWarning(NO_RENEGOTIATION)
