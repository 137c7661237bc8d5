"""Session tickets that arrive after the switch, put to use by the ssl module.

A server sends its tickets when the handshake is over, and so they usually come to a client whose
keys are already in the kernel.  Only OpenSSL can make a session of a ticket: it has the resumption
secret, and Python takes sessions from nobody else.  So the ticket is brought to it, as what it
expects: a record of the connection.  OpenSSL still has the receiving keys and the number of the
next record, as they were at the switch; the ticket is sealed anew under exactly those and given to
it through memory.  It never learns that the connection went on elsewhere.

That takes memory in the place of the socket.  ``MemoryBIOHandshake`` has it from the beginning, and
the ssl module's socket gets it where its OpenSSL can be reached.  Where that is hidden, OpenSSL
reads from the descriptor, which is the kernel's now, and from nowhere else: there is no way to
bring it anything, and its object is given up (engines/answers.py).  What remains is the session as
it was at the switch: in TLS 1.2 that is all of it, in TLS 1.3 what OpenSSL had read by then.

The numbers from the switch on were used once before, by the server, for what it sent on the wire,
and our copies use them for other content.  Therefore they never leave this process: they are sealed
by OpenSSL's own libcrypto, or where that is hidden by a package (sealing.py), go from one buffer to
another, and are wiped.  It happens when somebody asks for the session.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from .ciphers import TLS_1_3
from .protocol import HANDSHAKE, NEW_SESSION_TICKET
from .sealing import MOST_CONTENT, seal_record
from .session import DirectionKeys

if TYPE_CHECKING:
    import ssl
    from contextlib import AbstractContextManager

    from .ciphers import CipherSuite
    from .session import Session

__all__ = ["OldSession", "OpenSSLTickets", "Reader", "TicketKeeper", "Tickets", "seal"]

# The newest count: a server that sends more than these in one connection replaces old ones.
_MOST_TICKETS = 8


def seal(suite: CipherSuite, keys: DirectionKeys, message: bytes) -> tuple[bytes, int] | None:
    """A handshake message as TLS 1.3 records under ``keys``, and the number of them.

    None where the cipher cannot be had.
    """
    pieces = [
        message[start : start + MOST_CONTENT] for start in range(0, len(message), MOST_CONTENT)
    ]
    sealed = bytearray()
    for number, piece in enumerate(pieces, keys.sequence):
        record = seal_record(suite, keys, number, HANDSHAKE, piece)
        if record is None:
            return None
        sealed += record
    return bytes(sealed), len(pieces)


class Reader(Protocol):
    """A client's connection in the TLS library, which reads from memory."""

    @property
    def session(self) -> Any:
        """Its session: what the library takes for the next connection."""

    def works(self) -> bool:
        """Whether it can be fed, as far as can be known beforehand."""

    def feed(self, records: bytes) -> bool:
        """Let it take in whole records that are no data; tells whether it did."""


class Tickets(Protocol):
    """Where a client's tickets go, and what comes of them."""

    #: Held by whoever asks OpenSSL's object something: reading a ticket gives it a new session.
    lock: AbstractContextManager[Any]

    @property
    def session(self) -> ssl.SSLSession | None:
        """What ``ssl.SSLContext.wrap_socket(session=...)`` takes; None as long as there is none."""

    def add(self, body: bytes) -> None:
        """Keep the body of a NewSessionTicket (RFC 8446 section 4.6.1)."""

    def wipe(self) -> None:
        """Overwrite the keys that were kept for it."""


class OldSession:
    """The session of a connection whose object in OpenSSL is gone: no ticket changes it."""

    def __init__(self, session: ssl.SSLSession | None) -> None:
        self.lock: AbstractContextManager[Any] = contextlib.nullcontext()
        self.session = session

    def add(self, body: bytes) -> None:
        """Nothing: nobody could use it."""

    def wipe(self) -> None:
        """Nothing: there are no keys."""


class OpenSSLTickets:
    """The tickets of a connection on which OpenSSL itself receives: it has them already.

    ``lock`` is that of OpenSSL's object.
    """

    def __init__(self, sslobj: Any, lock: AbstractContextManager[Any]) -> None:
        self._sslobj = sslobj
        self.lock = lock

    @property
    def session(self) -> ssl.SSLSession | None:
        """OpenSSL's session."""
        with self.lock:
            session: ssl.SSLSession | None = self._sslobj.session
        return session

    def add(self, body: bytes) -> None:
        """Nothing."""

    def wipe(self) -> None:
        """Nothing: OpenSSL's secrets are its own."""


class TicketKeeper:
    """The tickets of one client connection, and the way to the TLS library's session object.

    ``reader`` is the connection in that library, ``session`` what was extracted from it.  Holds a
    copy of the receiving keys, until ``wipe``.  ``lock`` is that of the library's object where
    others use it too.
    """

    def __init__(
        self,
        reader: Reader,
        session: Session,
        lock: AbstractContextManager[Any] | None = None,
    ) -> None:
        self._reader = reader
        self._suite = session.cipher
        rx = session.rx
        self._keys = DirectionKeys(rx.key, rx.iv, rx.sequence)
        self._tickets: deque[bytes] = deque(maxlen=_MOST_TICKETS)
        self.lock = lock or threading.RLock()  # a signal handler may ask within a question
        self._usable = session.version == TLS_1_3 and reader.works()
        if not self._usable:  # TLS 1.2 has all its tickets in the handshake
            self._keys.wipe()

    def add(self, body: bytes) -> None:
        """Keep the body of a NewSessionTicket (RFC 8446 section 4.6.1)."""
        if self._usable:
            with self.lock:
                self._tickets.append(body)

    def give_to_openssl(self) -> None:
        """Have OpenSSL take in what has come so far; without an error if it does not want it."""
        with self.lock:
            while self._tickets and self._usable:
                body = self._tickets.popleft()
                head = bytes((NEW_SESSION_TICKET, *len(body).to_bytes(3, "big")))
                sealed = seal(self._suite, self._keys, head + body)
                # What OpenSSL refuses once, it refuses for ever.
                self._usable = sealed is not None and self._reader.feed(sealed[0])
                if sealed is not None:
                    old = self._keys
                    self._keys = DirectionKeys(old.key, old.iv, old.sequence + sealed[1])
                    old.wipe()

    @property
    def session(self) -> ssl.SSLSession | None:
        """What ``ssl.SSLContext.wrap_socket(session=...)`` takes; None as long as there is none.

        Of pyOpenSSL it is what ``Connection.set_session`` takes.
        """
        with self.lock:
            self.give_to_openssl()
            session: ssl.SSLSession | None = self._reader.session
        return session

    def wipe(self) -> None:
        """Overwrite the keys; tickets that were not given to OpenSSL are dropped."""
        with self.lock:
            self._usable = False
            self._tickets.clear()
            self._keys.wipe()
