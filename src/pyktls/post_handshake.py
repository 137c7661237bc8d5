"""What may arrive on a TLS connection besides data, and what follows from it.  No I/O.

Record types and payloads go in, actions come out; whoever owns the socket carries them out.  The
rules are those of RFC 8446 (TLS 1.3) and RFC 5246 (TLS 1.2).  There are two halves, which share one
object because a KeyUpdate concerns both:

* receiving: ``receive``, ``data_arrives``, ``empty_data_arrives``;
* changing the keys that we send under: ``begin_key_update``, ``answer``, ``key_update_sent``.

Application data itself does not pass through here, but its arrival matters: it ends every row of
things that are only counted "in a row", and in TLS 1.3 it may not come within a handshake message.
``quiet`` tells when neither is the case, so that a fast path need not even call ``data_arrives``.

The state of the receiving half
===============================

=========  =====================================================  ==================================
state      entered by                                             then
=========  =====================================================  ==================================
OPEN       the end of the handshake                               see the next table
CLOSED     close_notify (RFC 8446 6.1, RFC 5246 7.2.1)            everything further is ignored
ABORTED    an alert that ends the connection (RFC 8446 6.2)       everything further is ignored
VIOLATED   a record that the protocol does not allow              the same Violation is raised again
=========  =====================================================  ==================================

In TLS 1.3 close_notify ends one direction: we may go on sending, and an answer that is due is still
due.  In TLS 1.2 it ends both, and is to be answered at once.

What a record does in OPEN
==========================

====================  ==============================  ==============================  ==============
record, message       TLS 1.3                         TLS 1.2                         section
====================  ==============================  ==============================  ==============
data                  allowed between messages        allowed                         5.1; 6.2.1
data, empty           counted, in a row               counted, in a row               5.4; 6.2.1
alert, empty          unexpected_message              unexpected_message              5.4; 6.2.1
alert, not 2 bytes    decode_error                    decode_error                    5.1
close_notify          CLOSED, one direction           CLOSED, both directions         6.1; 7.2.1
user_canceled         counted, in a row               as any other alert              6.1
other alert           ABORTED, whatever its level     ABORTED; level 1: counted       6; 7.2.2
handshake, empty      unexpected_message              unexpected_message              5.1; 6.2.1
NewSessionTicket      client: action, counted         unexpected_message              4.6.1
KeyUpdate             action, counted                 unexpected_message              4.6.3
CertificateRequest    unexpected_message              unexpected_message              4.6.2
HelloRequest          unexpected_message              client: declined, counted       7.4.1.1
ClientHello           unexpected_message              server: declined, counted       7.2.2
other handshake       unexpected_message              unexpected_message              4; 7.4
ChangeCipherSpec      unexpected_message              unexpected_message              5; 7.1
other type            unexpected_message              unexpected_message              5; 6
over 2^14 bytes       record_overflow                 record_overflow                 5.1; 6.2.1
====================  ==============================  ==============================  ==============

(Sections before the semicolon are RFC 8446's, those behind it RFC 5246's; where there is one, it is
that of the version which has the message.)

Handshake messages may be cut and joined over records as the sender likes, with two exceptions in
TLS 1.3 (RFC 8446 5.1): no other record comes between the parts of a message, and a KeyUpdate ends
its record.  TLS 1.2 lets records of other types come in between (RFC 5246 6.2.1).  It would also
let alerts be cut and joined: nobody does so, OpenSSL and BoringSSL refuse it, and so do we.

Floods
======

Everything that is legal, costs us work and brings the user nothing has a limit.  No RFC gives one;
the numbers, and where they come from, stand at the constants below.  The alert is
unexpected_message, as it is for the floods that OpenSSL and BoringSSL stop: each message is well
formed (so neither decode_error nor illegal_parameter), and it is the peer's doing (so not
internal_error).

Changing keys (RFC 8446 4.6.3)
==============================

``tx_generation`` and ``rx_generation`` count the key changes of each direction.  The receiving one
moves with each ``KeyUpdateReceived``, the sending one with ``key_update_sent``:

======================  ==============================================================
``answer_due``          the peer has asked, and we have not sent a KeyUpdate since
``answer_awaited``      we have asked, and no KeyUpdate has come since
======================  ==============================================================

* Any number of requests that come before our answer are answered by one KeyUpdate.
* Our answer never asks in turn; and a KeyUpdate that does not ask is never answered.
* While ``answer_awaited`` we may change our own keys, but do not ask again.
* Requests that cross on the wire are both answered: each direction moves by two.

Deliberately not here: what is in a ticket (the session it resumes stayed in OpenSSL), and any
answer to a CertificateRequest (it needs the private key and the transcript, which stayed there
too).
"""

from __future__ import annotations

import enum
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, Self

from .ciphers import TLS_1_2, TLS_1_3
from .errors import Error, HandoffRefused, InvalidValue, Unavailable, alert_name
from .protocol import (
    ALERT,
    APPLICATION_DATA,
    CERTIFICATE_REQUEST,
    CHANGE_CIPHER_SPEC,
    CLIENT_HELLO,
    CLOSE_NOTIFY,
    DECODE_ERROR,
    HANDSHAKE,
    HELLO_REQUEST,
    ILLEGAL_PARAMETER,
    KEY_UPDATE,
    NEW_SESSION_TICKET,
    NO_RENEGOTIATION,
    RECORD_OVERFLOW,
    UNEXPECTED_MESSAGE,
    USER_CANCELED,
    WARNING,
)
from .session import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = [
    "AlertReceived",
    "CloseNotifyReceived",
    "KeyUpdateReceived",
    "PostHandshake",
    "SendWarning",
    "State",
    "TicketReceived",
    "Violation",
    "alert",
    "key_update",
]

# The most that a record carries (RFC 8446 section 5.1, RFC 5246 section 6.2.1).
_LARGEST_RECORD = 2**14

# The largest NewSessionTicket there can be, without its header: lifetime, age_add, nonce, ticket,
# extensions with their lengths (RFC 8446 section 4.6.1).  No other message that is legal here comes
# near it.
_LARGEST_MESSAGE = 4 + 4 + (1 + 255) + (2 + 2**16 - 1) + (2 + 2**16 - 2)

# Seven days in seconds: no ticket may live longer (RFC 8446 section 4.6.1).
_LONGEST_LIFETIME = 604_800
_EARLY_DATA = 42  # the only extension that RFC 8446 section 4.6.1 defines for a ticket

# KeyUpdates in a window of so many seconds.  Following one costs three HMACs and a system call, and
# as much again if it is to be answered: some 100 microseconds, so this holds a peer to about 1% of
# a core.  HAProxy allows 100 in a second, GnuTLS 8, BoringSSL and rustls 32 with no data in
# between.  A peer that changes keys every 16 MiB, thousands of times as often as RFC 8446 section
# 5.5 wants, can still send more than 1 GB in a second.
MOST_KEY_UPDATES = 100
KEY_UPDATE_WINDOW = 1.0

# NewSessionTickets in a window of so many seconds.  Servers send 0 to 2 unasked, and what they are
# told to at some event; a client can ask for 255 at once (RFC 9149 section 2), so a full answer to
# that has to pass.
MOST_TICKETS = 256
TICKET_WINDOW = 60.0

# Warning alerts and refused requests for renegotiation, together and in a row.  They are legal and
# say nothing.  OpenSSL and BoringSSL give up at the fifth.
MOST_WARNINGS = 5

# Empty records of data in a row; the same number in OpenSSL, BoringSSL and rustls.
MOST_EMPTY_RECORDS = 32

_FORMAT = 1  # of what ``export`` gives


class Violation(Error):
    """The peer broke the protocol.

    ``description`` is the number of the fatal alert that tells it so (RFC 8446 section 6.2),
    ``reason`` the same for people.
    """

    def __init__(self, description: int, reason: str) -> None:
        super().__init__(f"{reason} ({alert_name(description)})")
        self.description = description
        self.reason = reason

    def __reduce__(self) -> tuple[type[Violation], tuple[int, str]]:
        return type(self), (self.description, self.reason)


class State(enum.StrEnum):
    """Of the receiving half; the module's first table explains them."""

    OPEN = "open"
    CLOSED = "closed"
    ABORTED = "aborted"
    VIOLATED = "violated"


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
    """The peer will send no more data.

    ``both_directions``: nor will it take any (TLS 1.2, RFC 5246 section 7.2.1).  Then our own
    close_notify is due at once, and what has not been sent is not sent any more.
    """

    both_directions: bool


@dataclass(frozen=True, slots=True)
class AlertReceived:
    """An alert that ends the connection."""

    level: int
    description: int

    @property
    def name(self) -> str:
        """The description's name in the RFCs, or ``unknown(NNN)``."""
        return alert_name(self.description)


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


class _Window:
    """Counts events, and begins anew when ``seconds`` have passed since the first of them.

    At worst twice ``most`` come within ``seconds``, at the end of one window and the beginning of
    the next.  For telling a flood from a stream that is exact enough.
    """

    __slots__ = ("count", "most", "seconds", "start")

    def __init__(self, most: int, seconds: float) -> None:
        self.most = most
        self.seconds = seconds
        self.count = 0
        self.start = 0.0

    def exceeded(self, now: float) -> bool:
        """Count one event at ``now`` (seconds of any clock); whether it is one too many."""
        # A clock that was set back begins a new window too, else this one might never end.
        if not self.count or not 0 <= now - self.start < self.seconds:
            self.start = now
            self.count = 0
        self.count += 1
        return self.count > self.most

    def age(self, now: float) -> float:
        """Seconds since the first event, 0.0 if there was none."""
        return max(0.0, float(now - self.start)) if self.count else 0.0


class PostHandshake:
    """One connection after its handshake.

    ``version`` is 0x0303 or 0x0304, ``role`` ours.  ``post_handshake_auth`` tells that our
    ClientHello had this extension (RFC 8446 section 4.2.6); it changes the text of a refusal.
    ``clock`` returns seconds and never goes back; it is asked only when something comes whose
    rate is limited.  ``most_key_updates`` is the number of KeyUpdates to take per second.

    ``receive`` and the two ``data`` methods are to be called by one thread at a time, likewise
    ``begin_key_update``, ``answer`` and ``key_update_sent``.  The two groups may run at once.
    """

    __slots__ = (
        "_answered",
        "_awaited_since",
        "_begun",
        "_clock",
        "_empty_records",
        "_key_updates",
        "_partial",
        "_post_handshake_auth",
        "_requested",
        "_role",
        "_state",
        "_tickets",
        "_version",
        "_violation",
        "_warnings",
        "quiet",
        "rx_generation",
        "tx_generation",
    )

    def __init__(
        self,
        version: int,
        role: Role,
        *,
        post_handshake_auth: bool = False,
        clock: Callable[[], float] = time.monotonic,
        most_key_updates: int = MOST_KEY_UPDATES,
    ) -> None:
        self._version = version
        self._role = role
        self._post_handshake_auth = post_handshake_auth
        self._clock = clock
        self._state = State.OPEN
        self._violation: tuple[int, str] | None = None
        self._partial = bytearray()  # the beginning of a handshake message
        self._warnings = 0
        self._empty_records = 0
        self._key_updates = _Window(most_key_updates, KEY_UPDATE_WINDOW)
        self._tickets = _Window(MOST_TICKETS, TICKET_WINDOW)
        # Requests for a KeyUpdate that the peer has made, and how many of them we have answered.
        # Numbers and no flag: one thread may read a request between another one's sending of an
        # answer and its telling us so, and then that request must stay unanswered.
        self._requested = 0
        self._answered = 0
        # rx_generation when we asked: as long as it stays the same, no answer has come.  For the
        # same reason no flag: an answer that is read before we are told of the request is seen.
        self._awaited_since: int | None = None
        # Of the message that begin_key_update gave out: whether it asks, and what _requested and
        # rx_generation were.
        self._begun: tuple[bool, int, int] | None = None

        # Whether data_arrives() would do nothing.  A plain attribute, for the fast path.
        self.quiet = True
        # Key changes of each direction since this object, or the one it was restored from, began.
        self.rx_generation = 0
        self.tx_generation = 0

    def __repr__(self) -> str:
        return (
            f"<PostHandshake {self._state} {self._role} "
            f"tx_generation={self.tx_generation} rx_generation={self.rx_generation}>"
        )

    @property
    def state(self) -> State:
        """The state of the receiving half."""
        return self._state

    @property
    def closed(self) -> bool:
        """Whether nothing that the peer may still send counts any more."""
        return self._state is not State.OPEN

    # ---- receiving ---------------------------------------------------------------------------

    def data_arrives(self) -> None:
        """Tell of one or more records of application data that are not empty.

        Need not be called while ``quiet``.  Raises Violation if data may not come now.  If
        ``closed``, does nothing: the data is to be thrown away (RFC 8446 section 6.1).
        """
        if self.quiet or self._is_over():
            return
        self._check_interleaving()
        self._warnings = self._empty_records = 0
        self._settle()

    def empty_data_arrives(self) -> None:
        """Tell of a record of application data without content, which is legal (RFC 8446 5.4).

        Raises Violation if it may not come now, or is one of too many in a row.
        """
        if self._is_over():
            return
        self._check_interleaving()
        self._empty_records += 1
        if self._empty_records > MOST_EMPTY_RECORDS:
            self._violate(UNEXPECTED_MESSAGE, "too many empty records in a row")
        self._settle()

    def receive(self, record_type: int, payload: bytes) -> Iterator[Action]:
        """Take in one whole record; returns what to do, in order.

        Of application data only the length matters; it gives no action.

        The iterator raises Violation if the protocol does not allow the record.  What it gave
        before that still holds.  The record is taken in when this is called, not when the iterator
        is used, so an iterator that is dropped leaves no half-read record.
        """
        actions: list[Action] = []
        try:
            if not self._is_over():
                self._record(record_type, payload, actions)
                self._settle()
        except Violation as e:
            return _then_raise(actions, e)
        return iter(actions)

    def _is_over(self) -> bool:
        if self._violation is not None:
            raise Violation(*self._violation)
        return self._state is not State.OPEN

    def _settle(self) -> None:
        """Work out ``quiet`` after anything it depends on may have changed."""
        self.quiet = not (
            self._warnings
            or self._empty_records
            or (self._partial and self._version == TLS_1_3)
            or self._state is not State.OPEN
        )

    def _end(self, state: State) -> None:
        self._state = state
        self._partial.clear()
        if state is not State.CLOSED:
            self._answered = self._requested  # nothing more will be sent
        self._settle()

    def _violate(self, description: int, reason: str) -> NoReturn:
        self._violation = description, reason
        self._end(State.VIOLATED)
        raise Violation(description, reason)

    def _check_interleaving(self) -> None:
        # RFC 8446 section 5.1; RFC 5246 section 6.2.1 allows it.
        if self._partial and self._version == TLS_1_3:
            self._violate(UNEXPECTED_MESSAGE, "another record within a handshake message")

    def _record(self, record_type: int, payload: bytes, actions: list[Action]) -> None:
        if len(payload) > _LARGEST_RECORD:
            self._violate(RECORD_OVERFLOW, f"a record of {len(payload)} bytes")
        if record_type == HANDSHAKE:
            self._handshake(payload, actions)
            return
        self._check_interleaving()
        if record_type == APPLICATION_DATA:
            if payload:
                self.data_arrives()
            else:
                self.empty_data_arrives()
        elif record_type == ALERT:
            self._alert(payload, actions)
        elif record_type == CHANGE_CIPHER_SPEC:
            # Legal only before the peer's Finished (RFC 8446 section 5, RFC 5246 section 7.1).
            self._violate(UNEXPECTED_MESSAGE, "ChangeCipherSpec after the handshake")
        else:
            self._violate(UNEXPECTED_MESSAGE, f"a record of unknown type {record_type}")

    # ---- alerts

    def _alert(self, payload: bytes, actions: list[Action]) -> None:
        if not payload:
            # RFC 8446 section 5.4; RFC 5246 section 6.2.1 names no alert.
            self._violate(UNEXPECTED_MESSAGE, "an empty alert record")
        if len(payload) != 2:
            self._violate(DECODE_ERROR, f"an alert of {len(payload)} bytes")
        level, description = payload
        if description == CLOSE_NOTIFY:
            self._end(State.CLOSED)
            actions.append(CloseNotifyReceived(both_directions=self._version == TLS_1_2))
            return
        # In TLS 1.3 the level says nothing: all but close_notify and user_canceled, which announces
        # one, end the connection (RFC 8446 sections 6 and 6.1).  In TLS 1.2 a warning ends nothing;
        # no_renegotiation, for one, answers what we never ask (RFC 5246 section 7.2.2).
        if description != USER_CANCELED if self._version == TLS_1_3 else level != WARNING:
            self._end(State.ABORTED)
            actions.append(AlertReceived(level, description))
            return
        self._count_warning("too many warning alerts in a row")

    def _count_warning(self, reason: str) -> None:
        self._warnings += 1
        if self._warnings > MOST_WARNINGS:
            self._violate(UNEXPECTED_MESSAGE, reason)

    # ---- handshake messages

    def _handshake(self, payload: bytes, actions: list[Action]) -> None:
        if not payload:
            # RFC 8446 section 5.1, RFC 5246 section 6.2.1: no empty fragments of these.
            self._violate(UNEXPECTED_MESSAGE, "an empty handshake record")
        self._partial += payload
        while self._partial:
            # A message is refused as soon as its first bytes tell, not after all of it has come.
            kind = self._partial[0]
            self._check_kind(kind)
            if len(self._partial) < 4:
                return
            length = int.from_bytes(self._partial[1:4], "big")
            self._check_length(kind, length)
            if len(self._partial) < 4 + length:
                return
            body = bytes(self._partial[4 : 4 + length])
            del self._partial[: 4 + length]
            self._message(kind, body, actions)

    def _check_kind(self, kind: int) -> None:
        if self._version == TLS_1_3:
            if kind == KEY_UPDATE:
                return
            if self._role is Role.CLIENT:
                if kind == NEW_SESSION_TICKET:
                    return
                if kind == CERTIFICATE_REQUEST:
                    self._refuse_authentication()
        elif (kind, self._role) in {(HELLO_REQUEST, Role.CLIENT), (CLIENT_HELLO, Role.SERVER)}:
            return
        self._violate(UNEXPECTED_MESSAGE, f"handshake message {kind} after the handshake")

    def _refuse_authentication(self) -> NoReturn:
        # RFC 8446 section 4.6.2 names the alert for a client that did not offer it.  For one that
        # did, it asks for an answer that cannot be made here; no alert is meant for that, and this
        # one is at least true of what we can take.
        self._violate(
            UNEXPECTED_MESSAGE,
            "client authentication after the handshake, "
            + (
                "which post_handshake_auth offered, but which needs the private key and the "
                "transcript that stayed in the TLS library"
                if self._post_handshake_auth
                else "which was not offered"
            ),
        )

    def _check_length(self, kind: int, length: int) -> None:
        if kind == KEY_UPDATE and length != 1:
            self._violate(DECODE_ERROR, f"a KeyUpdate of {length} bytes")
        if kind == HELLO_REQUEST and length:
            self._violate(DECODE_ERROR, f"a HelloRequest of {length} bytes")
        if length > _LARGEST_MESSAGE:
            self._violate(DECODE_ERROR, f"a handshake message of {length} bytes")

    def _message(self, kind: int, body: bytes, actions: list[Action]) -> None:
        if kind == NEW_SESSION_TICKET:
            fault = _fault_of_ticket(body)
            if fault is not None:
                self._violate(*fault)
            if self._tickets.exceeded(self._clock()):
                self._violate(UNEXPECTED_MESSAGE, "too many session tickets in a short time")
            actions.append(TicketReceived(body))
        elif kind == KEY_UPDATE:
            if body[0] > 1:
                self._violate(ILLEGAL_PARAMETER, f"a KeyUpdate that asks for {body[0]}")
            if self._partial:
                # RFC 8446 section 5.1: a key change comes at the end of a record.
                self._violate(UNEXPECTED_MESSAGE, "data after a KeyUpdate in the same record")
            if self._key_updates.exceeded(self._clock()):
                self._violate(UNEXPECTED_MESSAGE, "too many KeyUpdates in a short time")
            self.rx_generation += 1
            self._requested += body[0]
            actions.append(KeyUpdateReceived(answer_wanted=body[0] == 1))
        else:
            # A TLS 1.2 peer that wants to negotiate anew.  We never do, and may say so
            # (RFC 5246 section 7.4.1.1 and 7.2.2).
            self._count_warning("too many requests for renegotiation")
            actions.append(SendWarning(NO_RENEGOTIATION))

    # ---- changing our own keys ---------------------------------------------------------------

    @property
    def answer_due(self) -> bool:
        """Whether a KeyUpdate must be sent before the next data (RFC 8446 section 4.6.3)."""
        return self._requested != self._answered

    @property
    def answer_awaited(self) -> bool:
        """Whether we asked the peer for a KeyUpdate and none has come since."""
        return self._awaited_since == self.rx_generation

    def begin_key_update(self, request_peer: bool = False) -> bytes:
        """Return the KeyUpdate message that begins a change of our sending keys.

        It is to be sent in one handshake record under the present keys; when all of it is sent,
        the keys are to be changed and ``key_update_sent`` to be called, with no record in between.
        If it cannot be sent, nothing has happened, and this may be called again.

        ``request_peer`` asks the peer to change its keys too, unless it is asked already, has
        asked us (it has just changed them, and our answer must not ask), or has sent close_notify.

        Raises Unavailable in TLS 1.2, which has no KeyUpdate, and Error when the connection was
        ended by a fatal alert of either side.
        """
        if self._version != TLS_1_3:
            raise Unavailable("TLS 1.2 has no KeyUpdate")
        if self._state in {State.ABORTED, State.VIOLATED}:
            raise Error(f"the keys of a connection that is {self._state} cannot be changed")
        requested, generation = self._requested, self.rx_generation
        asks = (
            request_peer
            and requested == self._answered
            and self._awaited_since != generation
            and self._state is State.OPEN
        )
        self._begun = asks, requested, generation
        return key_update(request=asks)

    def answer(self) -> bytes | None:
        """Return the message that answers the peer's requests, None if no answer is due.

        It is to be sent as that of ``begin_key_update``.
        """
        return self.begin_key_update() if self.answer_due else None

    def key_update_sent(self) -> None:
        """Tell that the message of ``begin_key_update`` or ``answer`` has been sent.

        Raises Error if there was none.
        """
        if self._begun is None:
            raise Error("no KeyUpdate has been begun")
        asks, requested, generation = self._begun
        self._begun = None
        self.tx_generation += 1
        self._answered = requested
        if asks:
            self._awaited_since = generation

    # ---- moving to another process -----------------------------------------------------------

    def export(self) -> dict[str, Any]:
        """Return all that ``restore`` needs to go on elsewhere, as values that JSON can carry.

        It holds no keys.  It may hold the beginning of a session ticket, which is of no use
        without them.  To be called when no record is being taken in and no KeyUpdate is between
        ``begin_key_update`` and ``key_update_sent``.

        Raises HandoffRefused for a connection that an alert or a violation has ended.
        """
        if self._state in {State.ABORTED, State.VIOLATED}:
            raise HandoffRefused(f"the connection is {self._state}: there is nothing to go on with")
        now = self._clock()
        return {
            "format": _FORMAT,
            "version": self._version,
            "role": str(self._role),
            "post_handshake_auth": self._post_handshake_auth,
            "closed": self.closed,
            "partial": self._partial.hex(),
            "warnings": self._warnings,
            "empty_records": self._empty_records,
            "rx_generation": self.rx_generation,
            "tx_generation": self.tx_generation,
            "answer_due": self.answer_due,
            "answer_awaited": self.answer_awaited,
            # Counts, and the seconds since they began: another process may have another clock.
            "most_key_updates": self._key_updates.most,
            "key_updates": self._key_updates.count,
            "key_updates_age": self._key_updates.age(now),
            "tickets": self._tickets.count,
            "tickets_age": self._tickets.age(now),
        }

    @classmethod
    def restore(
        cls, exported: Mapping[str, Any], *, clock: Callable[[], float] = time.monotonic
    ) -> Self:
        """Make the object anew that ``export`` described.

        Raises InvalidValue for anything that ``export`` does not give.
        """
        _check_exported(exported)
        self = cls(
            exported["version"],
            Role(exported["role"]),
            post_handshake_auth=exported["post_handshake_auth"],
            clock=clock,
            most_key_updates=exported["most_key_updates"],
        )
        # The beginning of a message gives no action and violates nothing; anything else was never
        # exported.
        actions: list[Action] = []
        try:
            if exported["partial"]:
                self._handshake(bytes.fromhex(exported["partial"]), actions)
        except ValueError:
            raise InvalidValue("partial is not hexadecimal") from None
        except Violation as e:
            raise InvalidValue(f"partial is no beginning of a message: {e.reason}") from None
        if actions or (exported["partial"] and exported["closed"]):
            raise InvalidValue("partial is no beginning of a message")
        self._warnings = exported["warnings"]
        self._empty_records = exported["empty_records"]
        self.rx_generation = exported["rx_generation"]
        self.tx_generation = exported["tx_generation"]
        self._requested = int(exported["answer_due"])
        self._awaited_since = self.rx_generation if exported["answer_awaited"] else None
        now = clock()
        for window, name in ((self._key_updates, "key_updates"), (self._tickets, "tickets")):
            window.count = exported[name]
            window.start = now - exported[f"{name}_age"]
        if exported["closed"]:
            self._state = State.CLOSED
        self._settle()
        return self


def _then_raise(actions: list[Action], violation: Violation) -> Iterator[Action]:
    yield from actions
    raise violation


def _fault_of_ticket(body: bytes) -> tuple[int, str] | None:
    """What is wrong with a NewSessionTicket (RFC 8446 section 4.6.1): alert and reason.

    RFC 8446 section 6 tells the alerts apart: decode_error for what does not parse or has a
    length out of its range, illegal_parameter for a value that may not be.  Extensions that are
    not known are ignored, as they must be.
    """
    try:
        _, at = _vector(body, 8, 1, 0, 0xFF)  # nonce, behind lifetime and age_add
        _, at = _vector(body, at, 2, 1, 0xFFFF)  # ticket
        at, end = _vector(body, at, 2, 0, 0xFFFE)  # extensions
        if end != len(body):
            return DECODE_ERROR, f"a NewSessionTicket with {len(body) - end} bytes behind its end"
        seen = set()
        while at < end:
            kind = body[at : at + 2]
            start, at = _vector(body, at + 2, 2, 0, 0xFFFF)
            if kind == _EARLY_DATA.to_bytes(2, "big") and at - start != 4:
                return DECODE_ERROR, f"an early_data extension of {at - start} bytes"
            if kind in seen:  # RFC 8446 section 4.2
                return ILLEGAL_PARAMETER, "a NewSessionTicket with an extension twice"
            seen.add(kind)
    except ValueError:
        return DECODE_ERROR, "a NewSessionTicket whose lengths do not fit"
    lifetime = int.from_bytes(body[:4], "big")
    if lifetime > _LONGEST_LIFETIME:
        return ILLEGAL_PARAMETER, f"a NewSessionTicket for {lifetime} seconds"
    return None


def _vector(body: bytes, at: int, size: int, least: int, most: int) -> tuple[int, int]:
    """Begin and end of the vector whose ``size``-byte length is at ``at`` (RFC 8446 section 3.4).

    Raises ValueError if it ends beyond ``body``, or is shorter or longer than it may be.
    """
    start = at + size
    length = int.from_bytes(body[at:start], "big")
    if start + length > len(body) or not least <= length <= most:
        raise ValueError
    return start, start + length


# What ``export`` gives: for an int its highest value, for anything else its type.
_EXPORTED: dict[str, int | type] = {
    "format": _FORMAT,
    "version": TLS_1_3,
    "role": str,
    "post_handshake_auth": bool,
    "closed": bool,
    "partial": str,
    "warnings": MOST_WARNINGS,
    "empty_records": MOST_EMPTY_RECORDS,
    "rx_generation": 2**64,
    "tx_generation": 2**64,
    "answer_due": bool,
    "answer_awaited": bool,
    "most_key_updates": 2**64,
    "key_updates": 2**64,
    "key_updates_age": float,
    "tickets": MOST_TICKETS,
    "tickets_age": float,
}


def _check_exported(exported: Mapping[str, Any]) -> None:
    """Raise InvalidValue unless names, types and ranges are those of ``export``."""
    if exported.keys() != _EXPORTED.keys():
        names = ", ".join(sorted(map(str, exported.keys() ^ _EXPORTED.keys())))
        raise InvalidValue(f"missing or unknown in what was exported: {names}")
    for name, wanted in _EXPORTED.items():
        if not _fits(exported[name], wanted):
            raise InvalidValue(f"{name} cannot be {exported[name]!r}")
    if exported["format"] != _FORMAT:
        raise InvalidValue(f"format {exported['format']} is not known here")
    if exported["version"] not in {TLS_1_2, TLS_1_3}:
        raise InvalidValue(f"version cannot be {exported['version']!r}")
    if exported["role"] not in tuple(Role):
        raise InvalidValue(f"role cannot be {exported['role']!r}")
    if exported["key_updates"] > exported["most_key_updates"]:
        raise InvalidValue("more key_updates than most_key_updates")


def _fits(value: object, wanted: int | type) -> bool:
    if isinstance(wanted, int):
        return type(value) is int and 0 <= value <= wanted
    if wanted is float:
        return isinstance(value, float) and math.isfinite(value) and value >= 0
    return type(value) is wanted
