"""Giving a session to the kernel.

The order is the point.  Everything that can be known beforehand is asked beforehand: the state of
the socket, the session, whether this kernel takes the cipher at all.  Attaching the protocol
changes nothing on the wire.  Then the receiving keys, then the sending keys, and after those no
step that can fail.  So a refusal leaves the connection as it was; only a kernel that takes one
direction and then refuses the other leaves it dead, and the error says so.
"""

from __future__ import annotations

import errno
import secrets
import socket
import ssl

from .ciphers import NONCE_LENGTH, TLS_1_2
from .errors import HandoffRefused, InvalidType, InvalidValue, Unavailable
from .key_schedule import next_traffic_secret, traffic_keys, wipe
from .protocol import Direction
from .running_system import system
from .session import DirectionKeys, Session, check_lengths

__all__ = [
    "check_cipher",
    "check_socket",
    "install",
    "install_fd",
    "rekey_fd",
]


def install(sock: socket.socket, session: Session, tx: bool = True, rx: bool = True) -> None:
    """Switch a connected TCP socket to kernel TLS with the keys of ``session``.

    ``tx`` and ``rx`` choose the directions; the other one stays as it is.  When it returns, the
    kernel has been asked and has confirmed.  The keys of a direction can be installed once.

    Nobody may read from the socket while this runs: a reader that already waits would take
    ciphertext away from the kernel's TLS.  For an ``ssl.SSLSocket`` use ``pyktls.offload``.

    Raises HandoffRefused (the socket or the session is not in a state to switch) and Unavailable
    (this kernel cannot); then the socket is as usable as before, unless the message says that the
    connection is dead.  Raises InvalidType and InvalidValue for wrong arguments, OSError if the
    kernel refuses for another reason.
    """
    if isinstance(sock, ssl.SSLSocket):
        raise InvalidType("sock must not be an ssl.SSLSocket: use pyktls.offload for those")
    check_socket(sock)
    if not isinstance(session, Session):
        raise InvalidType(f"session must be a Session, not {type(session).__name__}")
    install_fd(sock.fileno(), session, tx=tx, rx=rx)


def check_socket(sock: socket.socket) -> None:
    """Raise HandoffRefused unless ``sock`` is a connected TCP socket."""
    if not isinstance(sock, socket.socket):
        raise InvalidType(f"sock must be a socket, not {type(sock).__name__}")
    if sock.fileno() < 0:
        raise HandoffRefused("the socket is closed")
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        raise HandoffRefused("the socket is not a TCP socket")
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise HandoffRefused("the socket is a listening socket")
    try:
        socket.socket.getpeername(sock)
    except OSError as e:
        if e.errno not in (errno.ENOTCONN, errno.EINVAL):
            raise
        raise HandoffRefused("the socket is not connected") from e


def check_cipher(session: Session, wanted: list[Direction]) -> None:
    """Raise Unavailable unless this kernel takes the session's cipher in those directions."""
    suite = session.cipher
    error = system.cipher_refusal(suite.version, suite.aead, wanted)
    if error is None:
        return
    raise Unavailable(
        f"this kernel does not take {suite.aead.name} with "
        f"{'TLS 1.2' if suite.version == TLS_1_2 else 'TLS 1.3'} ({error})",
        remedy=system.cipher_remedy(suite.aead, error),
    ) from error


def nonce_base(session: Session, direction: Direction) -> bytearray:
    """The 12 bytes that kernel.h calls iv: write IV, or implicit IV and an explicit nonce.

    The explicit nonce of TLS 1.2 begins at 8 fresh random bytes, as OpenSSL's does: the numbers
    that OpenSSL has already used under this key are unknown, and must not come again.  (FreeBSD
    chooses its own, and AES-CBC has nothing like it: there the random bytes go unused.)
    """
    iv = session.keys(direction).iv
    return iv + secrets.token_bytes(NONCE_LENGTH - len(iv))


def install_fd(fd: int, session: Session, *, tx: bool, rx: bool) -> None:
    """``install`` on a descriptor whose socket has been checked."""
    wanted = [d for d, on in ((Direction.RX, rx), (Direction.TX, tx)) if on]
    if not wanted:
        raise InvalidValue("neither tx nor rx is wanted: there is nothing to install")
    for direction in wanted:
        check_lengths(session.cipher, direction, session.keys(direction))
    if session.has_moved():
        raise HandoffRefused(
            "records have passed through the TLS library since the session was extracted: "
            "extract it again"
        )
    already = [d for d in system.directions(fd) if d in wanted]
    if already:
        raise HandoffRefused(f"kernel TLS is already on for {' and '.join(already)}")
    check_cipher(session, wanted)

    claimed: list[DirectionKeys] = []
    try:
        for direction in wanted:
            session.keys(direction).claim(direction)
            claimed.append(session.keys(direction))
        system.attach(fd)
    except BaseException:
        for keys in claimed:
            keys.unclaim()
        raise
    _install_keys(fd, session, wanted)
    if session.used_up():
        session.watch_over(None)  # which may be all that keeps the TLS library's object alive


def _install_keys(fd: int, session: Session, wanted: list[Direction]) -> None:
    nonces = {direction: nonce_base(session, direction) for direction in wanted}
    done: list[Direction] = []
    try:
        for direction in wanted:
            system.install(
                fd,
                direction,
                session.version,
                session.cipher.aead,
                session.keys(direction),
                nonces[direction],
            )
            done.append(direction)
    except (OSError, Unavailable) as e:
        if done:
            half = HandoffRefused(
                f"the kernel took the {done[0]} keys and refused the others ({e}): "
                "the connection is dead, close it"
            )
            half.dead = True
            raise half from e
        if isinstance(e, OSError):  # refused: the keys have not been used
            for direction in wanted:
                session.keys(direction).unclaim()
        raise
    finally:
        for nonce in nonces.values():
            nonce[:] = bytes(len(nonce))


def rekey_fd(fd: int, session: Session, direction: Direction) -> None:
    """Move one direction of an installed TLS 1.3 session on to its next keys (RFC 8446 7.2).

    Raises OSError where the kernel has no rekey: EBUSY (Linux before 6.14), EALREADY (FreeBSD).
    """
    old = session.keys(direction)
    if old.secret is None:
        raise InvalidValue("this session has no traffic secret to go on from")
    secret = next_traffic_secret(session.cipher, old.secret)
    key, iv = traffic_keys(session.cipher, secret)
    new = DirectionKeys(key, iv, 0, secret=secret)
    for buffer in (secret, key, iv):
        wipe(buffer)
    new.claim(direction)
    try:
        system.install(fd, direction, session.version, session.cipher.aead, new, new.iv)
    except BaseException:
        new.wipe()
        raise
    old.wipe()
    session.replace(direction, new)
