"""``pyktls.offload``: a connection that has made its handshake becomes a KTLSSocket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import HandoffRefused
from .handoff import leave, tcp_socket
from .record_layer import RecordLayer
from .sockets import KTLSSocket
from .takeover import Handshake, extract_checked, take_over

if TYPE_CHECKING:
    import ssl

    from .engines.membio import MemoryBIOHandshake

__all__ = ["offload"]


def offload(source: ssl.SSLSocket | MemoryBIOHandshake) -> KTLSSocket:
    """Switch a connected ``ssl.SSLSocket`` to kernel TLS, in both directions.

    The context must have been watched (``pyktls.watch``) before the connection was made.  The
    returned socket has taken over the descriptor, the timeout and the plaintext that OpenSSL had
    already decrypted, which it serves first; ``source`` is detached and of no further use.  It may
    also be a ``pyktls.MemoryBIOHandshake`` that is complete.

    Nobody may use ``source`` in another thread meanwhile.  Raises HandoffRefused (this connection
    is not in a state to switch) and Unavailable (this kernel, or this Python's OpenSSL, cannot):
    then ``source`` is as usable as before, unless the error is ``dead``.
    """
    tcp = tcp_socket(source)
    if tcp._io_refs:  # type: ignore[attr-defined]  # noqa: SLF001
        raise HandoffRefused(
            "file objects made by makefile() are open on the socket, and may hold data: close them"
        )
    session = extract_checked(source)
    handshake = Handshake.of(source)
    layer = take_over(source, session, RecordLayer)
    timeout = tcp.gettimeout()
    sock = KTLSSocket(session, leave(source), handshake=handshake, layer=layer)
    sock.settimeout(timeout)
    return sock
