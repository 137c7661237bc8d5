"""The moment of the switch: OpenSSL's keys into the kernel, and OpenSSL away from the socket.

Used by ``pyktls.offload``, which makes a new socket of it, and by ``pyktls.SSLSocket``, which goes
on as itself.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from .engines import apart
from .handoff import extract_for_offload, release, ssl_object, take_plaintext, tcp_socket
from .record_layer import RecordLayer
from .resumption import TicketKeeper
from .session import Role
from .switch import check_socket, install_fd

if TYPE_CHECKING:
    from .engines.membio import MemoryBIOHandshake

__all__ = ["Handshake", "Taken", "take_over"]

Layer = TypeVar("Layer", bound=RecordLayer)


class Handshake:
    """What the handshake found out that users ask for afterwards."""

    __slots__ = ("alpn", "peer", "peer_der", "tickets")

    def __init__(self, source: ssl.SSLSocket | MemoryBIOHandshake) -> None:
        self.alpn = source.selected_alpn_protocol()
        self.peer: Any = source.getpeercert()
        self.peer_der = source.getpeercert(binary_form=True)
        self.tickets: TicketKeeper | None = None

    @classmethod
    def moved(cls, alpn: str | None, peer: dict[str, Any] | None, peer_der: bytes | None) -> Self:
        """Make it of what it was in another process; the tickets stay behind, with OpenSSL."""
        self = cls.__new__(cls)
        self.alpn, self.peer, self.peer_der, self.tickets = alpn, peer, peer_der, None
        return self


@dataclass(frozen=True, slots=True)
class Taken(Generic[Layer]):
    """What is there after the switch; ``sslobj`` is None where it is not the ssl module's."""

    layer: Layer
    sslobj: Any
    handshake: Handshake


def take_over(source: ssl.SSLSocket | MemoryBIOHandshake, kind: type[Layer]) -> Taken[Layer]:
    """Switch the connection of ``source``, and make its record layer, a ``kind``.

    Raises HandoffRefused and Unavailable; then nothing has changed, unless the error is ``dead``.
    """
    sock = tcp_socket(source)
    check_socket(sock)
    session = extract_for_offload(source)
    sslobj = ssl_object(source) if isinstance(source, ssl.SSLSocket) else None
    handshake = Handshake(source)
    tickets = None
    if sslobj is not None and session.role is Role.CLIENT:
        tickets = handshake.tickets = TicketKeeper(sslobj, session)
    layer = kind(
        session,
        sock.fileno(),
        sock.gettimeout(),
        on_ticket=None if tickets is None else tickets.add,
    )
    try:
        install_fd(sock.fileno(), session, tx=True, rx=True)
    except BaseException:
        session.wipe()
        if tickets is not None:
            tickets.wipe()
        raise
    # The kernel has the connection.  From here on nothing may fail.
    layer.leftover = take_plaintext(source)
    release(source)  # and again when it is detached, which does no harm
    if tickets is not None:
        tickets.isolate()
    elif sslobj is not None:
        apart.isolate(sslobj)
    return Taken(layer, sslobj, handshake)
