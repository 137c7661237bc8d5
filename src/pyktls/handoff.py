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

What is said here of OpenSSL's callbacks and counters is the native engine's way.  The other two
reach the same three things by other means, told in ``engines/portable.py`` and
``engines/membio.py``; which is used, ``engines/choice.py``.

After the keys are out the TLS library must not touch the connection again.  If it does, the numbers
here are old; ``Session.has_moved`` notices, and ``pyktls.install`` asks.
"""

from __future__ import annotations

import ssl
from functools import partial
from typing import TYPE_CHECKING, Any

from .engines import choice, half, native, portable
from .engines.membio import MemoryBIOHandshake, is_pyopenssl_context
from .errors import HandoffRefused, InvalidType, Unavailable

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from .engines.answers import Answers
    from .session import Session

__all__ = [
    "check_divisible",
    "counters",
    "detach",
    "drop_openssl",
    "engine_of",
    "extract",
    "extract_for_offload",
    "release",
    "ssl_object",
    "take_plaintext",
    "tcp_socket",
    "watch",
]


def watch(context: Any, *, engine: str | None = None) -> None:
    """Watch every connection made from ``context`` from now on.

    Call it once, before the first ``wrap_socket``; calling it again is harmless.  What the context
    does is otherwise unchanged, and a ``keylog_filename`` set earlier keeps being written (one set
    later takes the place of the watch: set it before).

    ``engine`` is ``"native"``, ``"portable"`` or ``"membio"`` (``pyktls.engines`` says what works
    here).  By default it is what the environment variable ``PYKTLS_ENGINE`` says, else native,
    else portable where this Python's OpenSSL is hidden.  ``"membio"`` prepares the context for
    ``pyktls.MemoryBIOHandshake``, and is what an ``OpenSSL.SSL.Context`` of pyOpenSSL gets.

    Raises InvalidType for what is no context, InvalidValue for an unknown engine, HandoffRefused
    for a context whose place for a callback is taken (native: a ``_msg_callback``; pyOpenSSL: a
    keylog callback) or that another engine watches, Unavailable where the engine does not work.
    """
    choice.watch(context, engine)


def extract(source: ssl.SSLSocket | MemoryBIOHandshake) -> Session:
    """The keys, IVs and sequence numbers of a connected ``ssl.SSLSocket``.

    It may also be a ``pyktls.MemoryBIOHandshake`` that is complete.  ``source`` is not changed.
    Once the session is installed somewhere it must not be used again; ``detach()`` it.
    ``Session.engine`` is the name of the engine that read it: the one that watched the context.

    Raises HandoffRefused, with the reason, if the connection is not in a state in which it can be
    handed over; it is then as usable as before.  Raises InvalidType for anything else, Unavailable
    where the engine does not work.
    """
    session = _extract(source, drained=False)
    progress = counters(source)
    before = progress()

    def moved() -> bool:
        # A socket that is detached or gone cannot be asked for all of the numbers any more.
        now = progress()
        return now != before[: len(now)]

    session.watch_over(moved)
    return session


def engine_of(source: Any) -> str | None:
    """The name of the engine that watches a context, or read the keys of a connection.

    ``source`` is a context, an ``ssl.SSLSocket`` (then it is about the context that it uses now) or
    a ``MemoryBIOHandshake``.  None if no engine watches.  Raises InvalidType for anything else.
    """
    if isinstance(source, MemoryBIOHandshake):
        return "membio"
    if isinstance(source, ssl.SSLSocket):
        source = source.context
    if not isinstance(source, ssl.SSLContext) and not is_pyopenssl_context(source):
        raise InvalidType(
            "a context, an ssl.SSLSocket or a MemoryBIOHandshake is needed, not "
            f"{type(source).__name__}"
        )
    return choice.engine_of_context(source)


# ---- for pyktls.offload ----------------------------------------------------------------------


def tcp_socket(source: ssl.SSLSocket | MemoryBIOHandshake) -> socket.socket:
    """The TCP socket under a connection: the SSLSocket itself, or the driver's plain socket.

    Raises as ``extract`` does for what is neither, for a closed one, and for one without TLS.
    """
    if isinstance(source, MemoryBIOHandshake):
        if source.sock.fileno() < 0:
            raise HandoffRefused("the socket is closed")
        return source.sock
    ssl_object(source)
    return source


def extract_for_offload(
    source: ssl.SSLSocket | MemoryBIOHandshake, *, receiving: bool = True
) -> Session:
    """As ``extract``, for one who takes OpenSSL's plaintext too (``take_plaintext``).

    Without ``receiving`` OpenSSL goes on to receive, and may be in the middle of a record.
    """
    return _extract(source, drained=True, receiving=receiving)


def check_divisible(source: ssl.SSLSocket | MemoryBIOHandshake) -> None:
    """Raise unless OpenSSL can go on with one direction of this connection.

    HandoffRefused if the native engine does not watch it, Unavailable where OpenSSL is hidden.
    """
    if isinstance(source, MemoryBIOHandshake) or _engine_of_socket(source) != "native":
        raise HandoffRefused(
            "one direction can be left to OpenSSL only on an ssl.SSLSocket that the native engine "
            "watches (pyktls.engines): nothing else tells what OpenSSL hears besides data"
        )
    if not half.works():
        raise Unavailable(
            "one direction cannot be left to this Python's OpenSSL: it is too old, or hidden"
        )


def take_plaintext(source: ssl.SSLSocket | MemoryBIOHandshake) -> bytes:
    """What the TLS library has decrypted and nobody has read; the socket is not asked."""
    if isinstance(source, MemoryBIOHandshake):
        return b""  # session() has seen to that
    sslobj = ssl_object(source)
    pending = sslobj.pending()
    return bytes(sslobj.read(pending)) if pending else b""


def release(source: ssl.SSLSocket | MemoryBIOHandshake) -> None:
    """Let the TLS library forget the connection in good order, without a byte on the wire."""
    if isinstance(source, MemoryBIOHandshake):
        source.leave()
        return
    sslobj = ssl_object(source)
    if _engine_of_socket(source) == "portable":
        portable.leave(source)
    else:
        native.leave(sslobj)


def drop_openssl(source: ssl.SSLSocket, answers: Answers) -> None:
    """Have nobody hold OpenSSL's object any more, so that it goes; it closes nothing."""
    source._sslobj = answers  # type: ignore[attr-defined]  # noqa: SLF001


def detach(source: ssl.SSLSocket | MemoryBIOHandshake) -> int:
    """Detach the socket, and return its descriptor, which is then the caller's."""
    if isinstance(source, MemoryBIOHandshake):
        return source.sock.detach()
    fd = source.detach()
    source._sslobj = None  # type: ignore[attr-defined]  # noqa: SLF001
    return fd


def counters(source: ssl.SSLSocket | MemoryBIOHandshake) -> Callable[[], tuple[int, ...]]:
    """What gives numbers that change whenever the TLS library sends or receives anything.

    It goes on to do so when ``source`` has been detached, closed or forgotten: what had been sent
    until then counts.
    """
    if isinstance(source, MemoryBIOHandshake):
        return source.progress
    if _engine_of_socket(source) == "portable":
        return portable.counters(source)
    return partial(native.progress, ssl_object(source))


# ---- the engine of a connection --------------------------------------------------------------


def _engine_of_socket(ssl_sock: ssl.SSLSocket) -> str:
    """Of a context that nobody watches either engine can say just that."""
    name = choice.engine_of_context(ssl_sock.context)
    if name in ("native", "portable"):
        return name
    return "native" if native.why_not() is None else "portable"


def _extract(
    source: ssl.SSLSocket | MemoryBIOHandshake, *, drained: bool, receiving: bool = True
) -> Session:
    if isinstance(source, MemoryBIOHandshake):
        return source.session()
    sslobj = ssl_object(source)
    if _engine_of_socket(source) == "portable":
        return portable.extract(source, drained=drained)
    choice.read_key_log(source.context)
    return native.extract(sslobj, drained=drained, receiving=receiving)


def ssl_object(ssl_sock: ssl.SSLSocket) -> Any:
    """The ``_ssl._SSLSocket`` of an SSLSocket whose handshake has at least begun."""
    if not isinstance(ssl_sock, ssl.SSLSocket):
        raise InvalidType(f"an ssl.SSLSocket is needed, not {type(ssl_sock).__name__}")
    if ssl_sock.fileno() < 0:
        raise HandoffRefused("the socket is closed")
    sslobj = ssl_sock._sslobj  # type: ignore[attr-defined]  # noqa: SLF001
    if sslobj is None:
        raise HandoffRefused("the socket has no TLS session: it is not connected, or unwrapped")
    if not native.is_openssls(sslobj):
        raise HandoffRefused("OpenSSL does not have the connection any more: the kernel has it")
    return sslobj
