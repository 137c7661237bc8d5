"""The moment of the switch: OpenSSL's keys into the kernel, and OpenSSL away from the socket.

Used by ``pyktls.offload``, which makes a new socket of it, and by ``pyktls.SSLSocket``, which goes
on as itself.  Both extract first, look at what the handshake found out if they want to know it, and
then take over.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from .engines import apart
from .handoff import extract_for_offload, ssl_object, take_plaintext, tcp_socket
from .record_layer import RecordLayer
from .resumption import TicketKeeper
from .session import Role, Session
from .switch import check_socket, install_fd

if TYPE_CHECKING:
    from .engines.membio import MemoryBIOHandshake

__all__ = ["Handshake", "extract_checked", "take_over"]

Layer = TypeVar("Layer", bound=RecordLayer)


class Handshake(NamedTuple):
    """What the handshake found out that users ask for afterwards."""

    alpn: str | None
    peer: dict[str, Any] | None
    peer_der: bytes | None

    @classmethod
    def of(cls, source: ssl.SSLSocket | MemoryBIOHandshake) -> Self:
        """Ask the TLS library."""
        peer: Any = source.getpeercert()
        return cls(source.selected_alpn_protocol(), peer, source.getpeercert(binary_form=True))


def extract_checked(source: ssl.SSLSocket | MemoryBIOHandshake) -> Session:
    """The session of a connection that can be taken over, as far as can be known beforehand.

    Raises as ``pyktls.offload`` does; nothing has changed then.
    """
    check_socket(tcp_socket(source))
    return extract_for_offload(source)


def take_over(
    source: ssl.SSLSocket | MemoryBIOHandshake, session: Session, kind: type[Layer]
) -> Layer:
    """Switch the connection of ``source``, and make its record layer, a ``kind``.

    ``session`` is what ``extract_checked`` gave.  The TLS library is still to be released.  Raises
    HandoffRefused and Unavailable; then nothing has changed, unless the error is ``dead``.
    """
    sock = tcp_socket(source)
    sslobj = ssl_object(source) if isinstance(source, ssl.SSLSocket) else None
    tickets = None
    if sslobj is not None and session.role is Role.CLIENT:
        tickets = TicketKeeper(sslobj, session)
    layer = kind(session, sock.fileno(), sock.gettimeout(), tickets=tickets)
    try:
        install_fd(sock.fileno(), session, tx=True, rx=True)
    except BaseException:
        layer.forget()
        raise
    # The kernel has the connection.  From here on nothing may fail.
    layer.leftover = take_plaintext(source)
    if tickets is not None:
        tickets.isolate()
    elif sslobj is not None:
        apart.isolate(sslobj)
    return layer
