"""``pyktls.offload``: a connected ssl.SSLSocket becomes a KTLSSocket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import HandoffRefused
from .handoff import ssl_object
from .record_layer import RecordLayer
from .sockets import Handshake, KTLSSocket
from .takeover import take_over

if TYPE_CHECKING:
    import ssl

__all__ = ["offload"]


def offload(ssl_sock: ssl.SSLSocket) -> KTLSSocket:
    """Switch a connected ``ssl.SSLSocket`` to kernel TLS, in both directions.

    The context must have been watched (``pyktls.watch``) before the connection was made.  The
    returned socket has taken over the descriptor, the timeout and the plaintext that OpenSSL had
    already decrypted, which it serves first; ``ssl_sock`` is detached and of no further use.

    Nobody may use ``ssl_sock`` in another thread meanwhile.  Raises HandoffRefused (this connection
    is not in a state to switch) and Unavailable (this kernel, or this Python's OpenSSL, cannot):
    then ``ssl_sock`` is as usable as before, unless the message says that the connection is dead.
    """
    sslobj = ssl_object(ssl_sock)
    if ssl_sock._io_refs:  # type: ignore[attr-defined]  # noqa: SLF001
        raise HandoffRefused(
            "file objects made by makefile() are open on the socket, and may hold data: close them"
        )
    handshake = Handshake(sslobj)
    taken = take_over(ssl_sock, RecordLayer)
    handshake.tickets = taken.tickets
    timeout = ssl_sock.gettimeout()
    sock = KTLSSocket._from_layer(taken.layer, ssl_sock.detach(), handshake)  # noqa: SLF001
    sock.settimeout(timeout)
    ssl_sock._sslobj = None  # type: ignore[attr-defined]  # noqa: SLF001
    return sock
