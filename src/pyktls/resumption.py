"""Session tickets that arrive after the switch, put to use by the ssl module.

A server sends its tickets when the handshake is over, and so they usually come to a client whose
keys are already in the kernel.  Only OpenSSL can make a session of a ticket: it has the resumption
secret, and Python takes sessions from nobody else.  So the ticket is brought to it, as what it
expects: a record of the connection.  OpenSSL still has the receiving keys and the number of the
next record, as they were at the switch; the ticket is sealed anew under exactly those and given to
it through memory.  It never learns that the connection went on elsewhere.

The numbers from the switch on were used once before, by the server, for what it sent on the wire,
and our copies use them for other content.  Therefore they never leave this process: they are sealed
by OpenSSL's own libcrypto, go from one of its buffers to another, and are wiped.  It happens when
somebody asks for the session.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from .ciphers import TLS_1_3
from .engines import apart
from .protocol import HANDSHAKE, NEW_SESSION_TICKET
from .sealing import MOST_CONTENT, seal_record
from .session import DirectionKeys

if TYPE_CHECKING:
    import contextlib
    import ssl

    from .ciphers import CipherSuite
    from .session import Session

__all__ = ["OpenSSLTickets", "TicketKeeper", "Tickets", "seal"]

# The newest count: a server that sends more than these in one connection replaces old ones.
_MOST_TICKETS = 8


def seal(suite: CipherSuite, keys: DirectionKeys, message: bytes) -> tuple[bytes, int] | None:
    """A handshake message as TLS 1.3 records under ``keys``, and the number of them.

    None where OpenSSL does not have the cipher.
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


class Tickets(Protocol):
    """Where a client's tickets go, and what comes of them."""

    @property
    def session(self) -> ssl.SSLSession | None:
        """What ``ssl.SSLContext.wrap_socket(session=...)`` takes; None as long as there is none."""

    def add(self, body: bytes) -> None:
        """Keep the body of a NewSessionTicket (RFC 8446 section 4.6.1)."""

    def wipe(self) -> None:
        """Overwrite the keys that were kept for it."""


class OpenSSLTickets:
    """The tickets of a connection on which OpenSSL itself receives: it has them already."""

    def __init__(self, sslobj: Any) -> None:
        self._sslobj = sslobj

    @property
    def session(self) -> ssl.SSLSession | None:
        """OpenSSL's session."""
        session: ssl.SSLSession | None = self._sslobj.session
        return session

    def add(self, body: bytes) -> None:
        """Nothing."""

    def wipe(self) -> None:
        """Nothing: OpenSSL's secrets are its own."""


class TicketKeeper:
    """The tickets of one client connection, and the way to the ssl module's session object.

    ``sslobj`` is the ``_ssl._SSLSocket`` that made the connection, ``session`` what was extracted
    from it.  Holds a copy of the receiving keys, until ``wipe``.  ``lock`` is that of OpenSSL's
    object where others use it too.
    """

    def __init__(
        self,
        sslobj: Any,
        session: Session,
        lock: contextlib.AbstractContextManager[Any] | None = None,
    ) -> None:
        self._sslobj = sslobj
        self._suite = session.cipher
        rx = session.rx
        self._keys = DirectionKeys(rx.key, rx.iv, rx.sequence)
        self._tickets: deque[bytes] = deque(maxlen=_MOST_TICKETS)
        self._lock = lock or threading.Lock()
        self._usable = session.version == TLS_1_3 and apart.works()
        if not self._usable:  # TLS 1.2 has all its tickets in the handshake
            self._keys.wipe()

    def isolate(self) -> None:
        """Take the socket away from OpenSSL; from then on tickets can be given to it."""
        self._usable = apart.isolate(self._sslobj) and self._usable

    def add(self, body: bytes) -> None:
        """Keep the body of a NewSessionTicket (RFC 8446 section 4.6.1)."""
        if self._usable:
            with self._lock:
                self._tickets.append(body)

    def give_to_openssl(self) -> None:
        """Have OpenSSL take in what has come so far; without an error if it does not want it."""
        with self._lock:
            while self._tickets and self._usable:
                body = self._tickets.popleft()
                head = bytes((NEW_SESSION_TICKET, *len(body).to_bytes(3, "big")))
                sealed = seal(self._suite, self._keys, head + body)
                # What OpenSSL refuses once, it refuses for ever.
                self._usable = sealed is not None and apart.feed(self._sslobj, sealed[0])
                if sealed is not None:
                    old = self._keys
                    self._keys = DirectionKeys(old.key, old.iv, old.sequence + sealed[1])
                    old.wipe()

    @property
    def session(self) -> ssl.SSLSession | None:
        """What ``ssl.SSLContext.wrap_socket(session=...)`` takes; None as long as there is none."""
        self.give_to_openssl()
        session: ssl.SSLSession | None = self._sslobj.session
        return session

    def wipe(self) -> None:
        """Overwrite the keys; tickets that were not given to OpenSSL are dropped."""
        with self._lock:
            self._usable = False
            self._tickets.clear()
            self._keys.wipe()
