"""Taking a connection's keys out of OpenSSL, at a moment when nothing can be lost.

How this works
==============

After a handshake OpenSSL holds, for each direction, three things: the key and IV, the number of the
next record, and perhaps bytes.  A kernel that is to carry on needs the first two, exactly, and the
bytes must be nowhere: what OpenSSL has already taken from the socket, the kernel will never see.

*The keys* OpenSSL tells through its keylog callback (TLS 1.3), or they follow from the master
secret (TLS 1.2).  For TLS 1.3 the callback is the only source: the traffic secrets cannot be had
afterwards.  That is why a context has to be *watched* before the handshake.

*The numbers* nobody tells, so they are counted.  Each record passes OpenSSL's message callback as a
header.  The count of a direction begins at 0 where its keys change: in TLS 1.3 at the keylog line
that announces the new secret, in TLS 1.2 at the ChangeCipherSpec record.  So it is also right with
session tickets (a server has usually sent two under its application keys before the handshake call
returns), after a KeyUpdate, after HelloRetryRequest and on resumption.

*The bytes* are the reason for the ledger.  OpenSSL takes from the socket five bytes of header, then
exactly the record's body, and nothing beyond it (read-ahead is off, and CPython never turns it on).
So after each whole record the next byte in the kernel's queue is the first of the next record, and
the kernel can take over there.  It cannot in between, and OpenSSL's own calls do not reliably tell
"in between": after the header alone SSL_has_pending says 0.  What does tell is arithmetic.  Every
header announces 5 + length bytes; the socket BIO counts the bytes that crossed it.  The two sums
are equal on a record boundary, and nowhere else: not with half a header, half a body, half a
written record, or anything read ahead.  If they differ, the connection is refused, and stays with
OpenSSL as it was.

Two things can be left inside OpenSSL on a record boundary.  Plaintext that is decrypted and not yet
read: the caller reads it first (``pyktls.offload`` does, and serves it before anything else).  And
a handshake message whose second half is still to come: its bytes are counted too, and refused.

After the keys are out the TLS library must not touch the connection again.  If it does, the numbers
here are old; ``Session.has_moved`` notices, and ``pyktls.install`` asks.
"""

from __future__ import annotations

import _ssl
import ssl
import weakref
from typing import TYPE_CHECKING, Any

from .engines import native
from .errors import HandoffRefused, InvalidType

if TYPE_CHECKING:
    from .session import Session

__all__ = ["extract", "ssl_object", "watch"]


def watch(context: ssl.SSLContext) -> None:
    """Watch every connection made from ``context`` from now on.

    Call it once, before the first ``wrap_socket``; calling it again is harmless.  What the context
    does is otherwise unchanged, and a ``keylog_filename`` set earlier keeps being written (one set
    later takes the place of the watch: set it before).

    Raises InvalidType for what is no ``ssl.SSLContext``, HandoffRefused for a context with a
    ``_msg_callback``, Unavailable where this Python's OpenSSL cannot be reached.
    """
    if not isinstance(context, ssl.SSLContext):
        raise InvalidType(f"an ssl.SSLContext is needed, not {type(context).__name__}")
    native.watch(context)


def extract(ssl_sock: ssl.SSLSocket) -> Session:
    """The keys, IVs and sequence numbers of a connected ``ssl.SSLSocket``.

    ``ssl_sock`` is not changed.  Once the session is installed somewhere it must not be used again;
    ``detach()`` it.  Raises HandoffRefused, with the reason, if the connection is not in a state in
    which it can be handed over; it is then as usable as before.  Raises InvalidType for anything
    but an SSLSocket, Unavailable where this Python's OpenSSL cannot be reached.
    """
    session = native.extract(ssl_object(ssl_sock))
    progress = native.progress(ssl_object(ssl_sock))
    reference = weakref.ref(ssl_sock)

    def moved() -> bool:
        alive = reference()
        sslobj = None if alive is None else getattr(alive, "_sslobj", None)
        # Without its object nobody can have used the connection since.
        return sslobj is not None and native.progress(sslobj) != progress

    session.watch_over(moved)
    return session


def ssl_object(ssl_sock: ssl.SSLSocket) -> Any:
    """The ``_ssl._SSLSocket`` of an SSLSocket whose handshake has at least begun."""
    if not isinstance(ssl_sock, ssl.SSLSocket):
        raise InvalidType(f"an ssl.SSLSocket is needed, not {type(ssl_sock).__name__}")
    if ssl_sock.fileno() < 0:
        raise HandoffRefused("the socket is closed")
    sslobj = ssl_sock._sslobj  # type: ignore[attr-defined]  # noqa: SLF001
    if sslobj is None:
        raise HandoffRefused("the socket has no TLS session: it is not connected, or unwrapped")
    if type(sslobj) is not _ssl._SSLSocket:  # type: ignore[attr-defined]  # noqa: SLF001
        raise HandoffRefused("OpenSSL does not have the connection any more: the kernel has it")
    return sslobj
