"""Keys in and out: the crypto_info structs, TLS_TX and TLS_RX (net/tls/tls_main.c)."""

from __future__ import annotations

import errno
import hmac
import struct
from typing import TYPE_CHECKING, NoReturn

from pyktls._kernel import ffi, lib
from pyktls.ciphers import AEAD, NONCE_LENGTH, TLS_1_2, TLS_1_3, aead_by_linux_type
from pyktls.errors import InvalidType, InvalidValue, Unavailable, syscall_error
from pyktls.socket_calls import descriptor

from .abi import DIRECTIONS, SOL_TLS
from .calls import getsockopt, setsockopt

if TYPE_CHECKING:
    from pyktls.socket_calls import HasFileno

__all__ = [
    "NO_REKEY",
    "CryptoInfo",
    "get_crypto_info",
    "get_rec_seq",
    "get_version_and_cipher",
    "rekey",
    "set_crypto_info",
]

#: See System in socket_calls.py.
NO_REKEY = "Linux can since 6.14"

_REC_SEQ_END = 2**64
#: It is the last field of every struct.
_REC_SEQ_SIZE = 8


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
        salt_size = salt_length(aead)
        for name, value, length in (
            ("key", key, aead.key_length),
            ("salt", salt, salt_size),
            ("iv", iv, NONCE_LENGTH - salt_size),
        ):
            if len(value) != length:
                raise InvalidValue(
                    f"{name} must be {length} bytes for {aead.name}, not {len(value)}"
                )
        if not 0 <= rec_seq < _REC_SEQ_END:
            raise InvalidValue(f"rec_seq must be from 0 to 2**64 - 1, not {rec_seq}")
        self.version: int = int(version)
        self.cipher_type: int = int(cipher_type)
        self.rec_seq: int = rec_seq
        self._key = bytearray(key)
        # The 12-byte nonce base, as csrc/kernel.h has it; put together without a copy in between.
        self._iv = bytearray(NONCE_LENGTH)
        with memoryview(self._iv) as view:
            view[:salt_size], view[salt_size:] = salt, iv

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
        return bytes(self._iv[: salt_length(self.aead)])

    @property
    def iv(self) -> bytes:
        """The struct's iv field: a secret in TLS 1.3."""
        return bytes(self._iv[salt_length(self.aead) :])

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
        if not isinstance(data, (bytes, bytearray)):
            raise InvalidType(f"data must be bytes, not {type(data).__name__}")
        version, cipher_type = ffi.new("uint16_t *"), ffi.new("uint16_t *")
        key, iv = ffi.new("unsigned char[32]"), ffi.new("unsigned char[12]")
        rec_seq = ffi.new("uint64_t *")
        parts: list[bytearray] = []  # which can be wiped, as bytes cannot
        key_length = lib.pyktls_linux_unpack(
            ffi.from_buffer(data), len(data), version, cipher_type, key, iv, rec_seq
        )
        try:
            aead = aead_by_linux_type(cipher_type[0]) if key_length > 0 else None
            if aead is None:
                raise InvalidValue(f"{len(data)} bytes that are no crypto_info struct")
            split = salt_length(aead)
            sizes = (key, key_length), (iv, split), (iv + split, NONCE_LENGTH - split)
            parts = [bytearray(ffi.buffer(memory, size)) for memory, size in sizes]
            return cls(
                version[0],
                cipher_type[0],
                key=parts[0],
                salt=parts[1],
                iv=parts[2],
                rec_seq=rec_seq[0],
            )
        finally:
            for part in parts:
                _wipe(part)
            lib.pyktls_tap_wipe(key, 32)
            lib.pyktls_tap_wipe(iv, 12)

    def wipe(self) -> None:
        """Overwrite the secrets with zeros; the object is of no use afterwards."""
        for buffer in (self._key, self._iv):
            _wipe(buffer)
        self._key = bytearray()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CryptoInfo):
            return NotImplemented
        numbers = (self.version, self.cipher_type, self.rec_seq)
        return (
            numbers == (other.version, other.cipher_type, other.rec_seq)
            and hmac.compare_digest(self._key, other._key)
            and hmac.compare_digest(self._iv, other._iv)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"<CryptoInfo version={self.version:#06x} cipher_type={self.cipher_type} "
            f"({self.aead.name}) rec_seq={self.rec_seq}>"
        )

    def __reduce__(self) -> NoReturn:
        raise InvalidType("a CryptoInfo cannot be pickled or copied: it holds secrets")


def _wipe(buffer: bytearray) -> None:
    buffer[:] = bytes(len(buffer))


def salt_length(aead: AEAD) -> int:
    # The struct's salt is what TLS 1.2 keeps implicit, unless that is the whole nonce.
    return 0 if aead.implicit_iv_length == NONCE_LENGTH else aead.implicit_iv_length


def check_direction(direction: int) -> str:
    if not isinstance(direction, int) or direction not in DIRECTIONS:
        raise InvalidValue(f"direction must be TLS_TX (1) or TLS_RX (2), not {direction!r}")
    return DIRECTIONS[direction]


def set_crypto_info(sock: HasFileno | int, direction: int, info: CryptoInfo) -> None:
    """Install keys for ``direction`` (TLS_TX or TLS_RX): setsockopt(SOL_TLS).

    From the moment it returns the kernel encrypts what is sent, or decrypts what is received.
    The kernel does not check whether keys and sequence number have been used before.  Raises
    OSError: ENOPROTOOPT (no "tls" attached), EINVAL (the other direction has another version or
    cipher), ENOENT (the kernel has no such cipher), EBUSY (keys are installed, and this kernel or
    TLS 1.2 has no rekey).
    """
    name = check_direction(direction)
    if not isinstance(info, CryptoInfo):
        raise InvalidType(f"info must be a CryptoInfo, not {type(info).__name__}")
    packed = info.pack()
    try:
        setsockopt(descriptor(sock), SOL_TLS, direction, packed, f"setsockopt(SOL_TLS, {name})")
    finally:
        _wipe(packed)


def rekey(sock: HasFileno | int, direction: int, info: CryptoInfo) -> None:
    """Replace the keys of ``direction``: setsockopt(SOL_TLS) on a direction that has some.

    TLS 1.3 only (RFC 8446 section 7.2), with the same version and cipher, and a ``rec_seq`` that is
    0 on a real connection.  Sending: the KeyUpdate message goes out first, under the old keys, and
    nothing between the two.  Receiving: after a KeyUpdate the kernel gives no more data
    (EKEYEXPIRED) until the new keys are here.

    Raises Unavailable where this kernel has no rekey (before 6.14 it says EBUSY), InvalidValue for
    TLS 1.2, and OSError: EINVAL (another version or cipher: the old keys stay), ENOPROTOOPT and the
    others as set_crypto_info.  A direction without keys is refused: EBUSY, as getsockopt says it.
    """
    check_direction(direction)
    if not isinstance(info, CryptoInfo):
        raise InvalidType(f"info must be a CryptoInfo, not {type(info).__name__}")
    if info.version != TLS_1_3:
        raise InvalidValue("TLS 1.2 changes no keys without a handshake")
    get_version_and_cipher(sock, direction)
    try:
        set_crypto_info(sock, direction, info)
    except OSError as e:
        if e.errno == errno.EBUSY:
            raise Unavailable(f"this kernel cannot change keys: {NO_REKEY} ({e})") from e
        raise


def get_version_and_cipher(sock: HasFileno | int, direction: int) -> tuple[int, int]:
    """``(version, cipher_type)`` of the installed keys: the 4-byte form of getsockopt(SOL_TLS).

    No key leaves the kernel.  Raises OSError: EOPNOTSUPP (no "tls" attached), EBUSY (no keys are
    installed in this direction).
    """
    name = check_direction(direction)
    call = f"getsockopt(SOL_TLS, {name})"
    value = getsockopt(descriptor(sock), SOL_TLS, direction, 4, call)
    if len(value) != 4:
        raise syscall_error(errno.EPROTO, call)
    version, cipher_type = struct.unpack("=HH", value)
    return version, cipher_type


def _read(sock: HasFileno | int, direction: int) -> bytearray:
    """The whole struct of the installed keys; the caller wipes it."""
    name = check_direction(direction)
    fd = descriptor(sock)
    _, cipher_type = get_version_and_cipher(fd, direction)
    size = lib.pyktls_linux_crypto_info_size(cipher_type)
    call = f"getsockopt(SOL_TLS, {name})"
    value = getsockopt(fd, SOL_TLS, direction, size, call)
    if not size or len(value) != size:
        raise syscall_error(errno.EPROTO, call)
    return value


def get_rec_seq(sock: HasFileno | int, direction: int) -> int:
    """The number of the next record in ``direction``; no copy of the keys stays behind.

    Received records count once they are decrypted, read or not.  A record that MSG_MORE holds open
    does not count yet.  Raises OSError as get_crypto_info.
    """
    value = _read(sock, direction)
    try:
        return int.from_bytes(value[-_REC_SEQ_SIZE:], "big")
    finally:
        _wipe(value)


def get_crypto_info(sock: HasFileno | int, direction: int) -> CryptoInfo:
    """The installed keys and the number of the next record: getsockopt(SOL_TLS), whole struct.

    The kernel gives them to any holder of the descriptor.  ``repr`` of the result shows no secret,
    and its ``wipe`` overwrites them.  Raises OSError as get_version_and_cipher; Linux before 5.16
    answers EINVAL for some ciphers.
    """
    value = _read(sock, direction)
    try:
        return CryptoInfo.unpack(value)
    finally:
        _wipe(value)
