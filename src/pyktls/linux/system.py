"""What ``pyktls.install`` asks of a system, answered for Linux (``System`` in socket_calls.py)."""

from __future__ import annotations

import errno
import math
import time
from typing import TYPE_CHECKING

from pyktls._kernel import ffi, lib
from pyktls.ciphers import TLS_1_3
from pyktls.errors import HandoffRefused, InvalidValue, Unavailable, syscall_error
from pyktls.protocol import Direction

from .abi import DIRECTIONS, TLS_RX, TLS_TX
from .crypto_info import (
    NO_REKEY,
    get_crypto_info,
    get_rec_seq,
    get_version_and_cipher,
    set_crypto_info,
)
from .transfer import is_gone, sendfile_all, sendfile_may_stall, sendfile_once
from .trial import Pretended, Spare, give_keys, zero_keys
from .ulp import NO_TLS_REMEDY, get_ulp, set_ulp

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Iterator

    from pyktls.ciphers import AEAD
    from pyktls.session import DirectionKeys

__all__ = [
    "NO_REKEY",
    "ONE_DIRECTION_ALONE",
    "attach",
    "can_rekey",
    "carries",
    "cipher_refusal",
    "cipher_remedy",
    "directions",
    "go_on_receiving",
    "install",
    "is_gone",
    "is_tried",
    "next_sequence",
    "option_of",
    "sendfile_all",
    "sendfile_may_stall",
    "sendfile_once",
    "try_cipher",
]

_OPTION = {Direction.TX: TLS_TX, Direction.RX: TLS_RX}


def option_of(direction: Direction) -> int:
    """TLS_TX or TLS_RX."""
    return _OPTION[direction]


def directions(fd: int) -> Iterator[Direction]:
    """Those directions of the socket that are in the kernel; none on a plain socket."""
    for direction, option in _OPTION.items():
        try:
            get_version_and_cipher(fd, option)
        except OSError as e:
            # EBUSY: no keys yet; EOPNOTSUPP or ENOPROTOOPT: no tls on this socket.
            if e.errno not in (errno.EBUSY, errno.EOPNOTSUPP, errno.ENOPROTOOPT):
                raise
        else:
            yield direction


def carries(fd: int, direction: Direction, version: int, aead: AEAD) -> bool:
    """Whether the keys of a direction that is in the kernel are for this version and cipher."""
    return get_version_and_cipher(fd, _OPTION[direction]) == (version, _cipher_type(aead))


def attach(fd: int) -> None:
    """Make the socket ready for keys; harmless on its own, and when it was done before.

    Raises Unavailable (this kernel has no TLS) or HandoffRefused (this connection cannot).
    """
    try:
        set_ulp(fd)
    except OSError as e:
        if e.errno == errno.ENOENT:
            raise Unavailable(
                "this kernel offers no TLS: the tls module is not there or not loaded",
                remedy=NO_TLS_REMEDY,
            ) from e
        if e.errno == errno.ENOTCONN:
            raise HandoffRefused(
                "the TCP connection is no longer established: one side has already closed it"
            ) from e
        if e.errno in (errno.ENOPROTOOPT, errno.EOPNOTSUPP):
            raise Unavailable(
                "this kernel has no upper layer protocols for this kind of socket"
            ) from e
        if e.errno != errno.EEXIST:
            raise
    # A kernel that answers success and does nothing (gVisor) would go on to send plain text.
    try:
        name = get_ulp(fd)
    except OSError as e:
        raise Unavailable(
            "the kernel accepted TCP_ULP and then denied knowing it: it has no kernel TLS"
        ) from e
    if name != b"tls":
        if name:
            raise HandoffRefused(
                f"the socket already has the upper layer protocol {name.decode(errors='replace')!r}"
            )
        raise Unavailable("the kernel accepted TCP_ULP and attached nothing: it has no kernel TLS")


def install(
    fd: int, direction: Direction, version: int, aead: AEAD, keys: DirectionKeys, nonce: bytearray
) -> None:
    """Install the keys of one direction; ``nonce`` is the 12-byte nonce base.

    Raises OSError of the call, or Unavailable if the kernel accepted them and did nothing.
    """
    option = _OPTION[direction]
    result = lib.pyktls_linux_set_keys(
        fd,
        option,
        version,
        _cipher_type(aead),
        ffi.from_buffer(keys.key),
        len(keys.key),
        ffi.from_buffer("unsigned char[]", nonce),
        keys.sequence,
    )
    if result < 0:
        raise syscall_error(-result, f"setsockopt(SOL_TLS, {DIRECTIONS[option]})")
    try:
        found = get_version_and_cipher(fd, option)
    except OSError as e:
        raise Unavailable(
            f"the kernel accepted the {direction} keys and then denied having them: "
            "it has no kernel TLS"
        ) from e
    if found != (version, _cipher_type(aead)):
        raise Unavailable(
            f"the kernel accepted the {direction} keys and reports version {found[0]:#06x}, "
            f"cipher {found[1]} instead"
        )


#: What this kernel has been seen to take.  What it refused is asked again, for a module may be
#: loaded in the meantime, but not at once: it starts modprobe(8), and peers choose the cipher.
_accepted: set[tuple[int, AEAD]] = set()
_refused: dict[tuple[int, AEAD], tuple[float, dict[Direction, OSError | Pretended | None]]] = {}
ASK_AGAIN = 1.0  # seconds


def try_cipher(
    spare: Spare,
    version: int,
    aead: AEAD,
    look: Callable[[socket.socket, Direction, AEAD], None] | None = None,
) -> dict[Direction, OSError | Pretended | None]:
    """What this kernel says to a cipher, None where it takes it: tried with a key of zeros.

    Each direction by itself, on a connection that carries no data; ``look`` gets the socket when it
    has the keys.  Raises OSError, or Pretended, where there is nothing to try it on.
    """
    info = zero_keys(version, aead)
    sock = spare.socket()
    said: dict[Direction, OSError | Pretended | None] = {}
    for direction in (Direction.RX, Direction.TX):
        try:
            give_keys(sock, _OPTION[direction], info)
        except (OSError, Pretended) as e:
            said[direction] = e
            if isinstance(e, OSError) and e.errno == errno.ENOENT:
                # No such cipher among the kernel's own, whatever it is for: and to look for it the
                # kernel has started modprobe(8) several times.
                return dict.fromkeys(Direction, e)
        else:
            said[direction] = None
            if look is not None:
                look(sock, direction, aead)
    if any(not isinstance(e, OSError) for e in said.values()):
        spare.used()
    if all(e is None for e in said.values()):
        _accepted.add((version, aead))
    return said


#: No Linux takes a cipher for one direction only.
ONE_DIRECTION_ALONE = False


def cipher_refusal(
    version: int, aead: AEAD, wanted: Iterable[Direction] = tuple(Direction)
) -> OSError | None:
    """The error with which this kernel refuses the cipher, None if it takes it or nobody can tell.

    Found by trying both directions.  Raises Unavailable for a wanted direction whose keys the
    kernel takes and then denies having: Linux before 5.11 cannot be asked about the receiving ones.
    Without loopback, or without TLS at all, there is nothing to be found here: ``attach`` will say.
    """
    if aead.linux is None:
        return OSError(errno.EOPNOTSUPP, "Linux has no such cipher")
    if (version, aead) in _accepted:
        return None
    asked, said = _refused.get((version, aead), (-math.inf, {}))
    if time.monotonic() - asked > ASK_AGAIN:
        with Spare() as spare:
            try:
                said = try_cipher(spare, version, aead)
            except (OSError, Pretended):
                return None
        errors = [error for error in said.values() if error is not None]
        for error in errors:
            error.__traceback__ = None  # the error is kept, what led to it is not
        if errors:
            _refused[version, aead] = time.monotonic(), said
    for direction in wanted:
        if isinstance(lie := said[direction], Pretended):
            raise Unavailable(f"{lie}: it has no kernel TLS, or one before Linux 5.11") from lie
    return next((e for e in said.values() if isinstance(e, OSError)), None)


def is_tried(version: int, aead: AEAD) -> bool:
    """Whether there is nothing to find out by a trial before a connection with this cipher."""
    if aead.linux is None:
        return True
    return (version, aead) in _accepted and (version != TLS_1_3 or aead in _rekeys)


def cipher_remedy(aead: AEAD, error: OSError) -> str:
    """What would help against a refusal of the cipher."""
    del error
    if aead.linux is None:
        return "have the peers agree on a cipher that Linux has, AES-GCM for instance"
    return f"Linux has {aead.name} since {aead.linux.since}, if configured"


def next_sequence(fd: int, direction: Direction) -> int | None:
    """The number of the next record of a direction whose keys are in the kernel.

    None for AES-CCM and ChaCha20-Poly1305 before Linux 5.16, which tells it only of AES-GCM.
    """
    try:
        return get_rec_seq(fd, _OPTION[direction])
    except OSError as e:
        if e.errno == errno.EINVAL:
            return None
        raise


#: Whether this kernel takes new keys on a running connection; found out at the first question.
_rekeys: dict[AEAD, bool] = {}


def can_rekey(version: int, aead: AEAD) -> bool:
    """Whether this kernel can change the keys of a connection with this version and cipher.

    Found by trying on a connection of our own, never on the one that would be lost by it; False too
    where there is nothing to try it on.
    """
    if version != TLS_1_3:
        return False
    if aead not in _rekeys:
        info = zero_keys(version, aead)
        with Spare() as spare:
            try:
                sock = spare.socket()
                give_keys(sock, TLS_TX, info)
                spare.used()
            except (OSError, Pretended):
                return False  # it may be otherwise the next time
            try:
                set_crypto_info(sock, TLS_TX, info)
            except OSError as e:
                if e.errno != errno.EBUSY:
                    return False
                _rekeys[aead] = False
            else:
                _rekeys[aead] = True
    return _rekeys[aead]


def go_on_receiving(fd: int) -> None:
    """Have the kernel go on with the keys it has, after what it took for a KeyUpdate.

    Since 6.14 it gives nothing more (EKEYEXPIRED) after a handshake record that begins as a
    KeyUpdate does, until it gets keys; those it has will do.  Kernels before do not stop, and those
    before 5.16 tell only the keys of AES-GCM.
    """
    try:
        info = get_crypto_info(fd, TLS_RX)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
        return
    try:
        set_crypto_info(fd, TLS_RX, info)
    except OSError as e:
        if e.errno != errno.EBUSY:
            raise
    finally:
        info.wipe()


def _cipher_type(aead: AEAD) -> int:
    if aead.linux is None:
        raise InvalidValue(f"Linux has no {aead.name}")
    return aead.linux.cipher_type
