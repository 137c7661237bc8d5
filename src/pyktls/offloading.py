"""``pyktls.offload``: a connection that has made its handshake becomes a KTLSSocket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .engines.foreign import check_modules
from .errors import HandoffRefused, InvalidType, InvalidValue
from .handoff import detach, tcp_socket
from .record_layer import RecordLayer
from .sockets import KTLSSocket
from .takeover import Handshake, extract_checked, take_over

if TYPE_CHECKING:
    import ssl

    from .engines.membio import MemoryBIOHandshake

__all__ = ["offload"]


def offload(
    source: ssl.SSLSocket | MemoryBIOHandshake, tx: bool = True, rx: bool = True
) -> KTLSSocket:
    """Switch a connected ``ssl.SSLSocket`` to kernel TLS.

    The context must have been watched (``pyktls.watch``) before the connection was made.  The
    returned socket has taken over the descriptor, the timeout and the plaintext that OpenSSL had
    already decrypted, which it serves first; ``source`` is detached and of no further use.  It may
    also be a ``pyktls.MemoryBIOHandshake`` that is complete.

    ``tx`` and ``rx`` choose what the kernel does: sending, receiving, or both.  With one of them
    OpenSSL goes on with the other direction, behind the same socket.  That takes the native engine
    and an ssl.SSLSocket; the socket cannot be moved to another process; what OpenSSL sends goes
    without sendfile(2), splice and flags, and after a BlockingIOError or a TimeoutError the same
    data has to be sent again.

    Nobody may use ``source`` in another thread meanwhile.  Raises HandoffRefused (this connection
    is not in a state to switch) and Unavailable (this kernel, or this Python's OpenSSL, cannot):
    then ``source`` is as usable as before, unless the error is ``dead``.  Raises InvalidType and
    InvalidValue for wrong arguments.
    """
    for name, value in (("tx", tx), ("rx", rx)):
        if not isinstance(value, bool):
            raise InvalidType(f"{name} must be a bool, not {type(value).__name__}")
    if not (tx or rx):
        raise InvalidValue("neither tx nor rx is wanted: there is nothing to switch")
    check_modules()
    tcp = tcp_socket(source)
    if tcp._io_refs:  # type: ignore[attr-defined]  # noqa: SLF001
        raise HandoffRefused(
            "file objects made by makefile() are open on the socket, and may hold data: close them"
        )
    session = extract_checked(source, tx=tx, rx=rx)
    handshake = Handshake.of(source)
    layer = take_over(source, session, RecordLayer, tx=tx, rx=rx)
    timeout = tcp.gettimeout()
    sock = KTLSSocket(session, detach(source), handshake=handshake, layer=layer)
    sock.settimeout(timeout)
    return sock
