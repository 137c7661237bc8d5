"""The moment of the switch: OpenSSL's keys into the kernel, and OpenSSL away from the socket.

Used by ``pyktls.offload``, which makes a new socket of it, and by ``pyktls.SSLSocket``, which goes
on as itself.  Both extract first, look at what the handshake found out if they want to know it, and
then take over.
"""

from __future__ import annotations

import ssl
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Self, TypeVar

from .engines import apart
from .engines.answers import Answers
from .engines.half import Half
from .engines.membio import MemoryBIOHandshake, reader_of
from .errors import HandoffRefused, Unavailable
from .handoff import (
    check_divisible,
    drop_openssl,
    extract_for_offload,
    release,
    ssl_object,
    take_plaintext,
    tcp_socket,
)
from .openssl_directions import OpenSSLIncoming, OpenSSLOutgoing
from .record_layer import RecordLayer
from .resumption import OldSession, OpenSSLTickets, TicketKeeper
from .running_system import system
from .session import Role, Session
from .switch import check_socket, install_fd

if TYPE_CHECKING:
    from collections.abc import Callable

    from .resumption import Tickets

__all__ = ["Handshake", "as_far_as_possible", "extract_checked", "is_dead", "take_over"]

Layer = TypeVar("Layer", bound=RecordLayer)
Made = TypeVar("Made")
Refusal = HandoffRefused | Unavailable


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


def extract_checked(
    source: ssl.SSLSocket | MemoryBIOHandshake, *, tx: bool = True, rx: bool = True
) -> Session:
    """The session of a connection that can be taken over, as far as can be known beforehand.

    Raises as ``pyktls.offload`` does; nothing has changed then.
    """
    check_socket(tcp_socket(source))
    if not (tx and rx):
        check_divisible(source)
    return extract_for_offload(source, receiving=rx)


def take_over(
    source: ssl.SSLSocket | MemoryBIOHandshake,
    session: Session,
    kind: type[Layer],
    *,
    tx: bool = True,
    rx: bool = True,
) -> Layer:
    """Switch the connection of ``source``, and make its record layer, a ``kind``.

    ``session`` is what ``extract_checked`` gave, for the same directions.  Where the TLS library
    has no direction left, it is released.  Raises HandoffRefused and Unavailable; then nothing has
    changed, unless the error is ``dead``.
    """
    sock = tcp_socket(source)
    sslobj = ssl_object(source) if isinstance(source, ssl.SSLSocket) else None
    half = None if tx and rx else Half(sslobj)
    # Where OpenSSL is hidden nobody can take the socket away from it.
    answers = None if sslobj is None or half or apart.works() else Answers(sslobj)
    layer = kind(
        session,
        sock.fileno(),
        sock.gettimeout(),
        tickets=_tickets(source, session, half, answers, rx=rx),
        post_handshake_auth=_offers_authentication(source),
    )
    try:
        install_fd(sock.fileno(), session, tx=tx, rx=rx)
    except BaseException:
        layer.forget()
        raise
    # The kernel has the connection.  From here on nothing may fail.
    if rx:
        layer.leftover = take_plaintext(source)
    if half is not None:
        _divide(half, layer, receives=not rx)
        return layer
    release(source)
    if not (sslobj is None or answers or apart.isolate(sslobj)):
        _die(layer, "OpenSSL has no memory to let go of the socket")
    if answers is not None and isinstance(source, ssl.SSLSocket):
        drop_openssl(source, answers)
    return layer


# ---- where less than everything will do --------------------------------------------------------


def as_far_as_possible(
    source: ssl.SSLSocket, attempt: Callable[[bool], Made], *, alone: bool
) -> tuple[Made | None, Refusal | None]:
    """Have ``attempt(rx)`` switch a connection, with ``alone`` at least the sending half.

    ``attempt`` raises as ``pyktls.offload`` does.  Returns what it made, and why not everything:
    (made, None), (made, refusal) where only sending was switched, or (None, refusal).  A refusal is
    kept with the connection, so it keeps nothing else: it has no traceback.
    """
    outer = sys.exception()
    try:
        _check_plans(source)
    except HandoffRefused as e:
        return None, _without_frames(e, outer)
    made, refusal = _outcome(attempt, rx=True)
    if refusal is None or not (alone and _may_send_alone(refusal)):
        return made, refusal
    made, second = _outcome(attempt, rx=False)
    return made, second if second is not None and is_dead(second) else refusal


def is_dead(refusal: Refusal) -> bool:
    """Whether the connection can only be closed after that."""
    return isinstance(refusal, HandoffRefused) and refusal.dead


def _outcome(
    attempt: Callable[[bool], Made], *, rx: bool
) -> tuple[Made, None] | tuple[None, Refusal]:
    outer = sys.exception()
    try:
        return attempt(rx), None
    except (HandoffRefused, Unavailable) as e:
        return None, _without_frames(e, outer)
    except OSError as e:  # of a system call that came before the first key
        refusal = HandoffRefused(f"the kernel refused: {e}")
        refusal.__cause__ = e
        return None, _without_frames(refusal, outer)


def _without_frames(refusal: Refusal, outer: BaseException | None) -> Refusal:
    """Have it let go of what was running when it was raised, and so of the connection itself.

    ``outer`` is what the caller was already dealing with, which is no part of it.
    """
    errors: list[BaseException | None] = [refusal]
    while errors:
        error = errors.pop()
        if error is not None:
            error.__traceback__ = None
            if error.__context__ is outer:
                error.__context__ = None
            errors += {error.__cause__, error.__context__}
    return refusal


def _may_send_alone(refusal: Refusal) -> bool:
    """Whether, after that refusal, it is worth trying to have the kernel send and not receive."""
    if isinstance(refusal, Unavailable):
        return system.ONE_DIRECTION_ALONE
    return not refusal.dead


def _check_plans(sock: ssl.SSLSocket) -> None:
    """Refuse what the context's owner has planned to do later, and only OpenSSL can."""
    if _offers_authentication(sock) and sock.version() == "TLSv1.3":
        raise HandoffRefused(
            "the context allows client authentication after the handshake, which only OpenSSL "
            "can do; set post_handshake_auth = False on it if that is not needed"
        )


# ---- the parts of a switch ---------------------------------------------------------------------


def _offers_authentication(source: ssl.SSLSocket | MemoryBIOHandshake) -> bool:
    """Whether the context allows client authentication after the handshake; pyOpenSSL never."""
    owner = reader_of(source) if isinstance(source, MemoryBIOHandshake) else source
    return getattr(owner.context, "post_handshake_auth", False)


def _tickets(
    source: ssl.SSLSocket | MemoryBIOHandshake,
    session: Session,
    half: Half | None,
    answers: Answers | None,
    *,
    rx: bool,
) -> Tickets | None:
    if session.role is not Role.CLIENT:
        return None
    if isinstance(source, MemoryBIOHandshake):
        return TicketKeeper(reader_of(source), session)
    if answers is not None:
        return OldSession(answers.session)
    sslobj = ssl_object(source)
    if half is None:
        return TicketKeeper(apart.Isolated(sslobj), session)
    if rx:
        return TicketKeeper(apart.Isolated(sslobj), session, half.lock)
    return OpenSSLTickets(sslobj, half.lock)


def _divide(half: Half, layer: RecordLayer, *, receives: bool) -> None:
    """Leave a direction to OpenSSL."""
    if not half.begin(reads=receives):
        half.release()
        _die(layer, "OpenSSL has no memory to go on with one direction")
    if receives:
        layer.leave_to(incoming=OpenSSLIncoming(half))
    else:
        layer.leave_to(outgoing=OpenSSLOutgoing(half))


def _die(layer: RecordLayer, reason: str) -> NoReturn:
    layer.forget()
    dead = HandoffRefused(f"{reason}: the connection is dead, close it")
    dead.dead = True
    raise dead
