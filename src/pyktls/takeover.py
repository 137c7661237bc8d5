"""The moment of the switch: OpenSSL's keys into the kernel, and OpenSSL away from the socket.

Used by ``pyktls.offload``, which makes a new socket of it, and by ``pyktls.SSLSocket``, which goes
on as itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .engines import native
from .handoff import ssl_object
from .resumption import TicketKeeper
from .session import Role
from .switch import check_socket, install_fd

if TYPE_CHECKING:
    import ssl

    from .record_layer import RecordLayer

__all__ = ["Taken", "take_over"]


@dataclass(frozen=True, slots=True)
class Taken:
    """What is there after the switch."""

    layer: Any
    sslobj: Any
    tickets: TicketKeeper | None


def take_over(ssl_sock: ssl.SSLSocket, kind: type[RecordLayer]) -> Taken:
    """Switch the connection of ``ssl_sock``, and make its record layer, a ``kind``.

    Raises HandoffRefused and Unavailable; then nothing has changed, unless the error is ``dead``.
    """
    sslobj = ssl_object(ssl_sock)
    check_socket(ssl_sock)
    session = native.extract(sslobj, drained=True)
    tickets = TicketKeeper(sslobj, session) if session.role is Role.CLIENT else None
    layer = kind(
        session,
        ssl_sock.fileno(),
        ssl_sock.gettimeout(),
        on_ticket=None if tickets is None else tickets.add,
    )
    try:
        install_fd(ssl_sock.fileno(), session, tx=True, rx=True)
    except BaseException:
        session.wipe()
        if tickets is not None:
            tickets.wipe()
        raise
    # The kernel has the connection.  From here on nothing may fail.
    pending = sslobj.pending()
    if pending:
        # This comes out of OpenSSL's memory; the socket is not asked.
        layer.leftover = sslobj.read(pending)
    native.leave(sslobj)
    if tickets is not None:
        tickets.isolate()
    else:
        native.isolate(sslobj)
    return Taken(layer, sslobj, tickets)
