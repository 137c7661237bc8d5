"""The kernel TLS interface of Linux, as it is.

Each function is one system call, or reads one file; errors are the ``OSError`` of that call.  The
structs can be packed and taken apart on any system.  Sources: ``include/uapi/linux/tls.h``,
``net/tls/tls_main.c`` and ``Documentation/networking/tls.rst`` of Linux 7.3.

A socket is given as anything with ``fileno()``, or as a file descriptor.

The part that ``pyktls.install`` uses stands at the end: the same few questions are answered for
each system.
"""

from __future__ import annotations

import errno
import pathlib
import socket
import struct
from typing import TYPE_CHECKING, NoReturn

from ._kernel import ffi, lib
from .ciphers import AEAD, NONCE_LENGTH, TLS_1_2, TLS_1_3, aead_by_linux_type
from .errors import (
    HandoffRefused,
    InvalidType,
    InvalidValue,
    Unavailable,
    syscall_error,
)
from .session import Direction
from .socket_calls import descriptor, getsockopt, loopback_pair, setsockopt

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .session import DirectionKeys
    from .socket_calls import HasFileno

__all__ = [
    "SOL_TLS",
    "TCP_ULP",
    "TLS_1_2_VERSION",
    "TLS_1_3_VERSION",
    "TLS_GET_RECORD_TYPE",
    "TLS_RX",
    "TLS_SET_RECORD_TYPE",
    "TLS_TX",
    "CryptoInfo",
    "get_crypto_info",
    "get_ulp",
    "get_version_and_cipher",
    "set_crypto_info",
    "set_ulp",
    "tls_stat",
]

TCP_ULP: int = lib.TCP_ULP
SOL_TLS: int = lib.SOL_TLS
TLS_TX: int = lib.TLS_TX
TLS_RX: int = lib.TLS_RX
TLS_SET_RECORD_TYPE: int = lib.TLS_SET_RECORD_TYPE
TLS_GET_RECORD_TYPE: int = lib.TLS_GET_RECORD_TYPE
TLS_1_2_VERSION: int = lib.TLS_1_2_VERSION
TLS_1_3_VERSION: int = lib.TLS_1_3_VERSION

_DIRECTIONS = {TLS_TX: "TLS_TX", TLS_RX: "TLS_RX"}
_REC_SEQ_END = 2**64


# ---- the upper layer protocol ----------------------------------------------------------------


def set_ulp(sock: HasFileno | int, name: bytes = b"tls") -> None:
    """Attach the upper layer protocol ``name`` to a TCP connection: setsockopt(TCP_ULP).

    There is no way back.  On its own it changes nothing on the wire.  Raises OSError: ENOENT (the
    kernel has no such protocol, or may not load it for this process), ENOTCONN (the connection is
    not ESTABLISHED), EEXIST (one is attached already).
    """
    setsockopt(descriptor(sock), socket.IPPROTO_TCP, TCP_ULP, name, "setsockopt(TCP_ULP)")


def get_ulp(sock: HasFileno | int) -> bytes:
    """The attached upper layer protocol, empty if there is none: getsockopt(TCP_ULP)."""
    # TCP_ULP_NAME_MAX is 16.  Without a protocol the kernel answers with length 0.
    value = getsockopt(descriptor(sock), socket.IPPROTO_TCP, TCP_ULP, 16, "getsockopt(TCP_ULP)")
    return bytes(value).partition(b"\0")[0]


# ---- crypto_info -----------------------------------------------------------------------------


class CryptoInfo:
    """One ``struct tls12_crypto_info_*``: the keys of one direction, as the kernel takes them.

    ``version`` is 0x0303 or 0x0304, ``cipher_type`` a ``TLS_CIPHER_`` number.  The fields are the
    struct's: ``key`` (16 or 32 bytes), ``salt`` (4 bytes, empty for ChaCha20-Poly1305), ``iv``
    (8 bytes; 12 for ChaCha20-Poly1305) and ``rec_seq``, the number of the next record (an int
    here, 8 bytes big-endian in the struct).

    In TLS 1.3, and always with ChaCha20-Poly1305, ``salt`` + ``iv`` is the write IV.  For the
    other ciphers in TLS 1.2 ``salt`` is the implicit IV and ``iv`` the explicit nonce of the first
    record that is sent (the receiver takes it from each record).

    Raises InvalidValue for an unknown version or cipher and for every wrong length.
    """

    __slots__ = ("_iv", "_key", "cipher_type", "rec_seq", "version")

    def __init__(
        self,
        version: int,
        cipher_type: int,
        *,
        key: bytes | bytearray,
        salt: bytes | bytearray = b"",
        iv: bytes | bytearray,
        rec_seq: int,
    ) -> None:
        for name, value in (("key", key), ("salt", salt), ("iv", iv)):
            if not isinstance(value, (bytes, bytearray)):
                raise InvalidType(f"{name} must be bytes, not {type(value).__name__}")
        for name, number in (
            ("version", version),
            ("cipher_type", cipher_type),
            ("rec_seq", rec_seq),
        ):
            if not isinstance(number, int) or isinstance(number, bool):
                raise InvalidType(f"{name} must be an int, not {type(number).__name__}")
        if version not in (TLS_1_2, TLS_1_3):
            raise InvalidValue(
                f"version must be 0x0303 (TLS 1.2) or 0x0304 (TLS 1.3), not {version:#06x}"
            )
        aead = aead_by_linux_type(cipher_type)
        if aead is None:
            raise InvalidValue(f"cipher_type {cipher_type} is not one of linux/tls.h")
        salt_length = _salt_length(aead)
        for name, value, length in (
            ("key", key, aead.key_length),
            ("salt", salt, salt_length),
            ("iv", iv, NONCE_LENGTH - salt_length),
        ):
            if len(value) != length:
                raise InvalidValue(
                    f"{name} must be {length} bytes for {aead.name}, not {len(value)}"
                )
        if not 0 <= rec_seq < _REC_SEQ_END:
            raise InvalidValue(f"rec_seq must be from 0 to 2**64 - 1, not {rec_seq}")
        self.version = int(version)
        self.cipher_type = int(cipher_type)
        self.rec_seq = rec_seq
        self._key = bytearray(key)
        self._iv = bytearray(salt) + iv  # the 12-byte nonce base, as csrc/kernel.h has it

    @property
    def aead(self) -> AEAD:
        """The cipher's row in the table of ciphers."""
        aead = aead_by_linux_type(self.cipher_type)
        assert aead is not None  # noqa: S101  (checked when the object was made)
        return aead

    @property
    def key(self) -> bytes:
        """The key: a secret."""
        return bytes(self._key)

    @property
    def salt(self) -> bytes:
        """The struct's salt field: a secret."""
        return bytes(self._iv[: _salt_length(self.aead)])

    @property
    def iv(self) -> bytes:
        """The struct's iv field: a secret in TLS 1.3."""
        return bytes(self._iv[_salt_length(self.aead) :])

    def pack(self) -> bytearray:
        """The struct's bytes: the argument of setsockopt."""
        out = bytearray(lib.pyktls_linux_crypto_info_size(self.cipher_type))
        size = lib.pyktls_linux_pack(
            ffi.from_buffer(out),
            len(out),
            self.version,
            self.cipher_type,
            ffi.from_buffer(self._key),
            len(self._key),
            ffi.from_buffer("unsigned char[]", self._iv),
            self.rec_seq,
        )
        if size != len(out):  # the lengths were checked when the object was made, or it is wiped
            raise InvalidValue("this CryptoInfo has been wiped")
        return out

    @classmethod
    def unpack(cls, data: bytes | bytearray) -> CryptoInfo:
        """From the bytes of a struct; raises InvalidValue if they are not one."""
        version, cipher_type = ffi.new("uint16_t *"), ffi.new("uint16_t *")
        key, iv = ffi.new("unsigned char[32]"), ffi.new("unsigned char[12]")
        rec_seq = ffi.new("uint64_t *")
        key_length = lib.pyktls_linux_unpack(
            ffi.from_buffer(data), len(data), version, cipher_type, key, iv, rec_seq
        )
        try:
            aead = aead_by_linux_type(cipher_type[0]) if key_length > 0 else None
            if aead is None:
                raise InvalidValue(f"{len(data)} bytes that are no crypto_info struct")
            split = _salt_length(aead)
            nonce = bytes(ffi.buffer(iv))
            return cls(
                version[0],
                cipher_type[0],
                key=bytes(ffi.buffer(key, key_length)),
                salt=nonce[:split],
                iv=nonce[split:],
                rec_seq=rec_seq[0],
            )
        finally:
            lib.pyktls_tap_wipe(key, 32)
            lib.pyktls_tap_wipe(iv, 12)

    def wipe(self) -> None:
        """Overwrite the secrets with zeros; the object is of no use afterwards."""
        for buffer in (self._key, self._iv):
            buffer[:] = bytes(len(buffer))
        self._key = bytearray()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CryptoInfo):
            return NotImplemented
        return self.pack() == other.pack()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"<CryptoInfo version={self.version:#06x} cipher_type={self.cipher_type} "
            f"({self.aead.name}) rec_seq={self.rec_seq}>"
        )

    def __reduce__(self) -> NoReturn:
        raise InvalidType("a CryptoInfo cannot be pickled or copied: it holds secrets")


def _salt_length(aead: AEAD) -> int:
    # The struct's salt is what TLS 1.2 keeps implicit, unless that is the whole nonce.
    return 0 if aead.implicit_iv_length == NONCE_LENGTH else aead.implicit_iv_length


def _check_direction(direction: int) -> str:
    if direction not in _DIRECTIONS:
        raise InvalidValue(f"direction must be TLS_TX (1) or TLS_RX (2), not {direction!r}")
    return _DIRECTIONS[direction]


def set_crypto_info(sock: HasFileno | int, direction: int, info: CryptoInfo) -> None:
    """Install keys for ``direction`` (TLS_TX or TLS_RX): setsockopt(SOL_TLS).

    From the moment it returns the kernel encrypts what is sent, or decrypts what is received.
    The kernel does not check whether keys and sequence number have been used before.  Raises
    OSError: ENOPROTOOPT (no "tls" attached), EINVAL (the other direction has another version or
    cipher), ENOENT (the kernel has no such cipher), EBUSY (keys are installed, and this kernel or
    TLS 1.2 has no rekey).
    """
    name = _check_direction(direction)
    if not isinstance(info, CryptoInfo):
        raise InvalidType(f"info must be a CryptoInfo, not {type(info).__name__}")
    packed = info.pack()
    try:
        setsockopt(descriptor(sock), SOL_TLS, direction, packed, f"setsockopt(SOL_TLS, {name})")
    finally:
        packed[:] = bytes(len(packed))


def get_version_and_cipher(sock: HasFileno | int, direction: int) -> tuple[int, int]:
    """``(version, cipher_type)`` of the installed keys: the 4-byte form of getsockopt(SOL_TLS).

    No key leaves the kernel.  Raises OSError: EOPNOTSUPP (no "tls" attached), EBUSY (no keys are
    installed in this direction).
    """
    name = _check_direction(direction)
    call = f"getsockopt(SOL_TLS, {name})"
    value = getsockopt(descriptor(sock), SOL_TLS, direction, 4, call)
    if len(value) != 4:
        raise syscall_error(errno.EPROTO, call)
    version, cipher_type = struct.unpack("=HH", value)
    return version, cipher_type


def get_crypto_info(sock: HasFileno | int, direction: int) -> CryptoInfo:
    """The installed keys and the number of the next record: getsockopt(SOL_TLS), whole struct.

    The kernel gives them to any holder of the descriptor.  ``repr`` of the result shows no secret.
    Raises OSError as get_version_and_cipher; Linux before 5.16 answers EINVAL for some ciphers.
    """
    name = _check_direction(direction)
    fd = descriptor(sock)
    _, cipher_type = get_version_and_cipher(fd, direction)
    size = lib.pyktls_linux_crypto_info_size(cipher_type)
    value = getsockopt(fd, SOL_TLS, direction, size, f"getsockopt(SOL_TLS, {name})")
    try:
        return CryptoInfo.unpack(value)
    finally:
        value[:] = bytes(len(value))


# ---- counters --------------------------------------------------------------------------------


def tls_stat() -> dict[str, int]:
    """The kernel's TLS counters for this network namespace: /proc/net/tls_stat, by name.

    ``TlsCurr…`` are gauges, the others count from boot.  Which there are depends on the kernel.
    Raises Unavailable where the file is not there: the tls module is not loaded.
    """
    try:
        text = pathlib.Path("/proc/net/tls_stat").read_text(encoding="ascii")
    except FileNotFoundError:
        raise Unavailable("/proc/net/tls_stat does not exist", remedy=_REMEDY) from None
    return {name: int(value) for name, value in map(str.split, text.splitlines())}


# ---- what pyktls.install asks of a system ----------------------------------------------------

_REMEDY = (
    "an administrator can load it with `modprobe tls`, and for every boot with a line `tls` in "
    "/etc/modules-load.d/tls.conf; a kernel built without CONFIG_TLS has to be replaced"
)
_OPTION = {Direction.TX: TLS_TX, Direction.RX: TLS_RX}

#: See System in socket_calls.py.
NO_REKEY = "Linux can since 6.14"


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
                remedy=_REMEDY,
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
        raise syscall_error(-result, f"setsockopt(SOL_TLS, {_DIRECTIONS[option]})")
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


#: What this kernel has been seen to take.  What it refused is asked again: a module may be loaded
#: in the meantime.
_accepted: set[tuple[int, AEAD]] = set()


def cipher_refusal(
    version: int, aead: AEAD, wanted: Iterable[Direction] = tuple(Direction)
) -> OSError | None:
    """The error with which this kernel refuses the cipher, None if it takes it or nobody can tell.

    Found by trying both directions, for no Linux takes only one of them, with a key of zeros on a
    loopback pair that carries no data.
    Without loopback, or without TLS at all, there is nothing to be found here: ``attach`` will say.
    """
    del wanted
    if aead.linux is None:
        return OSError(errno.EOPNOTSUPP, "Linux has no such cipher")
    if (version, aead) in _accepted:
        return None
    try:
        near, far = loopback_pair()
    except OSError:
        return None
    split = _salt_length(aead)
    info = CryptoInfo(
        version,
        aead.linux.cipher_type,
        key=bytes(aead.key_length),
        salt=bytes(split),
        iv=bytes(NONCE_LENGTH - split),
        rec_seq=0,
    )
    with near, far:
        try:
            set_ulp(near)
        except OSError:
            return None
        try:
            for option in (TLS_RX, TLS_TX):
                set_crypto_info(near, option, info)
        except OSError as e:
            return e
    _accepted.add((version, aead))
    return None


def cipher_remedy(aead: AEAD, error: OSError) -> str:
    """What would help against a refusal of the cipher."""
    del error
    if aead.linux is None:
        return "have the peers agree on a cipher that Linux has, AES-GCM for instance"
    return f"Linux has {aead.name} since {aead.linux.since}, if configured"


def _cipher_type(aead: AEAD) -> int:
    if aead.linux is None:
        raise InvalidValue(f"Linux has no {aead.name}")
    return aead.linux.cipher_type
