"""The kernel TLS interface of FreeBSD, as it is.

Each function is one system call; errors are the ``OSError`` of that call.  Everything that makes a
call works on FreeBSD only; the constants, ``TLSEnable`` and ``LAYOUTS`` are there on any system.
Sources: ``sys/ktls.h``, ``netinet/tcp.h``, ``ktls(4)`` and ``sys/kern/uipc_ktls.c`` of 14.0.

A socket is given as anything with ``fileno()``, or as a file descriptor.

What the kernel takes without a word and nobody can want is refused here: a socket that is not
connected (what is sent once it is would be TLS), an HMAC key of another length than its hash,
record type 0 (in TLS 1.3 the receiver takes the last byte of the data for the type instead), and a
sequence number from which the count would begin again at 0.

Reading needs care on a socket whose receiving half is in the kernel:

* a plain ``recv`` hands out an alert as if it were data, and an empty record as if it were the end
  of the stream: only ``recv_record`` can tell;
* a record that does not fit is continued by the next call, without a type; ``MSG_EOR`` is on the
  call that ends it;
* after an error the next read may block for ever, and ``EBADMSG`` comes after a later good record.

``recv_record`` and ``send_record`` keep to the timeout of a socket object, and are taken up again
after a signal (PEP 475); with a bare descriptor a non-blocking call raises BlockingIOError.

The part that ``pyktls.install`` uses stands at the end, as in ``linux/system.py``.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import stat
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from . import _records, arguments
from ._kernel import ffi, lib
from .ciphers import AEAD, AEADS, NONCE_LENGTH, TLS_1_2, TLS_1_3
from .errors import HandoffRefused, InvalidType, InvalidValue, Unavailable, syscall_error
from .protocol import Direction
from .socket_calls import MOST_BUFFERS, descriptor, loopback_pair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from _typeshed import ReadableBuffer

    from .session import DirectionKeys
    from .socket_calls import HasFileno

__all__ = [
    "CRYPTO_AES_CBC",
    "CRYPTO_AES_NIST_GCM_16",
    "CRYPTO_CHACHA20_POLY1305",
    "CRYPTO_SHA1_HMAC",
    "CRYPTO_SHA2_256_HMAC",
    "CRYPTO_SHA2_384_HMAC",
    "GATES",
    "LAYOUTS",
    "TCP_RXTLS_ENABLE",
    "TCP_RXTLS_MODE",
    "TCP_TLS_MODE_IFNET",
    "TCP_TLS_MODE_NONE",
    "TCP_TLS_MODE_SW",
    "TCP_TLS_MODE_TOE",
    "TCP_TXTLS_ENABLE",
    "TCP_TXTLS_MODE",
    "TLS_GET_RECORD",
    "TLS_SET_RECORD_TYPE",
    "Record",
    "TLSEnable",
    "gates",
    "get_mode",
    "recv_record",
    "send_record",
    "sendfile",
    "set_tls_enable",
    "set_tx_mode",
    "statistics",
    "sysctl",
]

TCP_TXTLS_ENABLE: int = lib.TCP_TXTLS_ENABLE
TCP_TXTLS_MODE: int = lib.TCP_TXTLS_MODE
TCP_RXTLS_ENABLE: int = lib.TCP_RXTLS_ENABLE
TCP_RXTLS_MODE: int = lib.TCP_RXTLS_MODE
TCP_TLS_MODE_NONE: int = lib.TCP_TLS_MODE_NONE
TCP_TLS_MODE_SW: int = lib.TCP_TLS_MODE_SW
TCP_TLS_MODE_IFNET: int = lib.TCP_TLS_MODE_IFNET
TCP_TLS_MODE_TOE: int = lib.TCP_TLS_MODE_TOE
TLS_SET_RECORD_TYPE: int = lib.TLS_SET_RECORD_TYPE
TLS_GET_RECORD: int = lib.TLS_GET_RECORD
CRYPTO_AES_CBC: int = lib.CRYPTO_AES_CBC
CRYPTO_AES_NIST_GCM_16: int = lib.CRYPTO_AES_NIST_GCM_16
CRYPTO_CHACHA20_POLY1305: int = lib.CRYPTO_CHACHA20_POLY1305
CRYPTO_SHA1_HMAC: int = lib.CRYPTO_SHA1_HMAC
CRYPTO_SHA2_256_HMAC: int = lib.CRYPTO_SHA2_256_HMAC
CRYPTO_SHA2_384_HMAC: int = lib.CRYPTO_SHA2_384_HMAC

#: struct tls_enable as the two kinds of machine lay it out: field, offset, size in bytes; last the
#: size of the whole, under the name "".  A 64-bit kernel takes only the first form.
LAYOUTS: dict[str, dict[str, tuple[int, int]]] = {
    "LP64": {
        "cipher_key": (0, 8),
        "iv": (8, 8),
        "auth_key": (16, 8),
        "cipher_algorithm": (24, 4),
        "cipher_key_len": (28, 4),
        "iv_len": (32, 4),
        "auth_algorithm": (36, 4),
        "auth_key_len": (40, 4),
        "flags": (44, 4),
        "tls_vmajor": (48, 1),
        "tls_vminor": (49, 1),
        "rec_seq": (50, 8),
        "": (0, 64),
    },
    "ILP32": {
        "cipher_key": (0, 4),
        "iv": (4, 4),
        "auth_key": (8, 4),
        "cipher_algorithm": (12, 4),
        "cipher_key_len": (16, 4),
        "iv_len": (20, 4),
        "auth_algorithm": (24, 4),
        "auth_key_len": (28, 4),
        "flags": (32, 4),
        "tls_vmajor": (36, 1),
        "tls_vminor": (37, 1),
        "rec_seq": (38, 8),
        "": (0, 48),
    },
}

_TLS_1_0 = 0x0301
_VERSIONS = {_TLS_1_0: "TLS 1.0", 0x0302: "TLS 1.1", TLS_1_2: "TLS 1.2", TLS_1_3: "TLS 1.3"}
_ENABLE_NAMES = {TCP_TXTLS_ENABLE: "TCP_TXTLS_ENABLE", TCP_RXTLS_ENABLE: "TCP_RXTLS_ENABLE"}
_MODE_NAMES = {TCP_TXTLS_MODE: "TCP_TXTLS_MODE", TCP_RXTLS_MODE: "TCP_RXTLS_MODE"}
_GATE = "kern.ipc.tls.enable"


def _only_on_freebsd() -> None:
    if lib.pyktls_system() != lib.PYKTLS_FREEBSD:
        raise Unavailable("this system is not FreeBSD", remedy="pyktls.linux is Linux's interface")


# ---- keys ------------------------------------------------------------------------------------


def _rows(version: int, cipher_algorithm: int, auth_algorithm: int) -> tuple[AEAD, set[int]]:
    """A row of the cipher table with these numbers, and the lengths of key that the cipher has.

    The kernel takes each length with each HMAC, also where no suite has the two together.
    """
    if version not in _VERSIONS:
        raise InvalidValue(f"version must be from 0x0301 to 0x0304, not {version:#06x}")
    rows = {
        aead: aead.freebsd.auth_algorithm
        for aead in AEADS
        if aead.freebsd is not None and aead.freebsd.algorithm == cipher_algorithm
    }
    for aead, hmac in rows.items():
        if hmac == auth_algorithm and _goes_with(version, aead, hmac):
            return aead, {row.key_length for row in rows}
    if not rows:
        raise InvalidValue(f"cipher_algorithm {cipher_algorithm} is not one that the kernel has")
    name = "an AEAD" if 0 in rows.values() else "AES-CBC"
    raise InvalidValue(
        f"{name} does not go with auth_algorithm {auth_algorithm} in {_VERSIONS[version]}"
    )


def _goes_with(version: int, aead: AEAD, hmac: int) -> bool:
    """Whether that version of TLS has the cipher (RFC 2246, 4346, 5246 and 8446)."""
    if not aead.mac_key_length:
        return version >= TLS_1_2
    return version == TLS_1_2 or (version < TLS_1_2 and hmac == CRYPTO_SHA1_HMAC)


def _iv_length(version: int, aead: AEAD) -> int:
    """Bytes of IV that the kernel wants for a cipher in a version."""
    if version == TLS_1_3:
        return NONCE_LENGTH
    # AES-CBC chains in TLS 1.0, with the IV that later every record brings.  In TLS 1.2 the kernel
    # makes AES-GCM's explicit part of the nonce, and sends it along.
    return aead.explicit_nonce_length if version == _TLS_1_0 else aead.implicit_iv_length


class TLSEnable:
    """One ``struct tls_enable``: the keys of one direction, as the kernel takes them.

    ``version`` is 0x0301 to 0x0304; ``cipher_algorithm`` and ``auth_algorithm`` are ``CRYPTO_``
    numbers; ``rec_seq`` is the number of the next record (an int here, 8 bytes big-endian in the
    struct).  What belongs into the rest:

    ================== ======= ================= ==========================
    cipher             version ``iv``            ``auth_key``
    ================== ======= ================= ==========================
    AES-GCM            1.2     4 bytes, implicit none
    AES-GCM            1.3     12 bytes          none
    ChaCha20-Poly1305  both    12 bytes          none
    AES-CBC            1.0     16 bytes, chained HMAC key: 20 bytes
    AES-CBC            1.1     none              20 bytes (SHA-1)
    AES-CBC            1.2     none              20, 32, 48 bytes (SHA-1, SHA-256, SHA-384)
    ================== ======= ================= ==========================

    In TLS 1.2 the kernel begins AES-GCM's explicit nonces at a random number of its own.

    Raises InvalidValue for every other combination and length.
    """

    __slots__ = (
        "_auth_key",
        "_iv",
        "_key",
        "auth_algorithm",
        "cipher_algorithm",
        "rec_seq",
        "version",
    )

    def __init__(
        self,
        version: int,
        cipher_algorithm: int,
        *,
        key: bytes | bytearray,
        iv: bytes | bytearray = b"",
        rec_seq: int,
        auth_algorithm: int = 0,
        auth_key: bytes | bytearray = b"",
    ) -> None:
        for name, value in (("key", key), ("iv", iv), ("auth_key", auth_key)):
            if not isinstance(value, (bytes, bytearray)):
                raise InvalidType(f"{name} must be bytes, not {type(value).__name__}")
        for name, number in (
            ("version", version),
            ("cipher_algorithm", cipher_algorithm),
            ("rec_seq", rec_seq),
            ("auth_algorithm", auth_algorithm),
        ):
            if not isinstance(number, int) or isinstance(number, bool):
                raise InvalidType(f"{name} must be an int, not {type(number).__name__}")
        aead, key_lengths = _rows(version, cipher_algorithm, auth_algorithm)
        for name, value, lengths in (
            ("key", key, key_lengths),
            ("iv", iv, {_iv_length(version, aead)}),
            ("auth_key", auth_key, {aead.mac_key_length}),
        ):
            if len(value) not in lengths:
                wanted = " or ".join(map(str, sorted(lengths)))
                raise InvalidValue(f"{name} must be {wanted} bytes here, not {len(value)}")
        if not 0 <= rec_seq < 2**64 - 1:
            raise InvalidValue(
                f"rec_seq must be from 0 to 2**64 - 2, not {rec_seq}: the kernel would go on at 0"
            )
        self.version: int = int(version)
        self.cipher_algorithm: int = int(cipher_algorithm)
        self.auth_algorithm: int = int(auth_algorithm)
        self.rec_seq: int = rec_seq
        self._key = bytearray(key)
        self._iv = bytearray(iv)
        self._auth_key = bytearray(auth_key)

    @property
    def key(self) -> bytes:
        """The cipher's key: a secret."""
        return bytes(self._key)

    @property
    def iv(self) -> bytes:
        """The struct's iv: a secret in TLS 1.3."""
        return bytes(self._iv)

    @property
    def auth_key(self) -> bytes:
        """The HMAC's key: a secret."""
        return bytes(self._auth_key)

    def _arguments(self) -> tuple[Any, ...]:
        """What the C functions take, from ``version`` to ``rec_seq``."""
        return (
            self.version,
            self.cipher_algorithm,
            ffi.from_buffer(self._key),
            len(self._key),
            ffi.from_buffer(self._iv),
            len(self._iv),
            self.auth_algorithm,
            ffi.from_buffer(self._auth_key),
            len(self._auth_key),
            self.rec_seq,
        )

    def struct(self) -> Any:
        """A cffi ``struct tls_enable *``, for scripts that make the call themselves.

        It points into this object, which has to stay alive and unwiped as long.
        """
        enable = ffi.new("struct tls_enable *")
        lib.pyktls_freebsd_fill(enable, *self._arguments())
        return enable

    def wipe(self) -> None:
        """Overwrite the secrets with zeros; the object is of no use afterwards."""
        for buffer in (self._key, self._iv, self._auth_key):
            buffer[:] = bytes(len(buffer))
        self._key, self._iv, self._auth_key = bytearray(), bytearray(), bytearray()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TLSEnable):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"<TLSEnable {_VERSIONS[self.version]} cipher_algorithm={self.cipher_algorithm} "
            f"auth_algorithm={self.auth_algorithm} rec_seq={self.rec_seq}>"
        )

    def __reduce__(self) -> NoReturn:
        raise InvalidType("a TLSEnable cannot be pickled or copied: it holds secrets")


def set_tls_enable(sock: HasFileno | int, direction: int, info: TLSEnable) -> None:
    """Install keys: setsockopt(TCP_TXTLS_ENABLE or TCP_RXTLS_ENABLE).

    From the moment it returns the kernel encrypts what is sent, or decrypts what is received, what
    is already in the receive buffer included.  It can be done once for each direction.  The kernel
    does not check whether keys and sequence number have been used before.

    Raises OSError: ENOTCONN (not connected, found here), ECONNRESET (the connection was reset),
    EALREADY (keys are installed), EOPNOTSUPP (switched off by a sysctl; in 13.0 also: cipher
    unknown, or no software backend loaded), ENXIO (kern.ipc.mb_use_ext_pgs is off), EPROTONOSUPPORT
    (AES-CBC of TLS 1.0, which can only be sent), EINVAL (cipher unknown), ENOPROTOOPT (kernel
    without KERN_TLS).
    """
    if not isinstance(direction, int) or direction not in _ENABLE_NAMES:
        raise InvalidValue(
            f"direction must be TCP_TXTLS_ENABLE (39) or TCP_RXTLS_ENABLE (41), not {direction!r}"
        )
    if not isinstance(info, TLSEnable):
        raise InvalidType(f"info must be a TLSEnable, not {type(info).__name__}")
    fd = descriptor(sock)
    _only_on_freebsd()
    call = f"setsockopt(IPPROTO_TCP, {_ENABLE_NAMES[direction]})"
    _check_connected(fd, call)
    result = lib.pyktls_freebsd_set_keys(fd, direction, *info._arguments())  # noqa: SLF001
    if result < 0:
        raise syscall_error(-result, call)


def _check_connected(fd: int, call: str) -> None:
    # Not by way of a socket object: that would apply socket.setdefaulttimeout to the descriptor.
    address = bytearray(256)
    size = ffi.new("unsigned int *", len(address))
    if lib.getpeername(fd, ffi.from_buffer(address), size) < 0:
        # EINVAL: the connection is over.
        error = errno.ENOTCONN if ffi.errno == errno.EINVAL else ffi.errno
        if lib.pyktls_freebsd_get_mode(fd, TCP_TXTLS_MODE) == -errno.ECONNRESET:
            error = errno.ECONNRESET
        raise syscall_error(error, call)


# ---- modes -----------------------------------------------------------------------------------


def get_mode(sock: HasFileno | int, option: int) -> int:
    """The ``TCP_TLS_MODE_`` number of TCP_TXTLS_MODE or TCP_RXTLS_MODE: getsockopt.

    It answers for any TCP socket, whoever switched it on.  Raises OSError: EINVAL (a listening
    socket), ECONNRESET (the connection was dropped), ENOPROTOOPT (kernel without KERN_TLS).
    """
    if not isinstance(option, int) or option not in _MODE_NAMES:
        raise InvalidValue(
            f"option must be TCP_TXTLS_MODE (40) or TCP_RXTLS_MODE (42), not {option!r}"
        )
    fd = descriptor(sock)
    _only_on_freebsd()
    mode: int = lib.pyktls_freebsd_get_mode(fd, option)
    if mode < 0:
        raise syscall_error(-mode, f"getsockopt(IPPROTO_TCP, {_MODE_NAMES[option]})")
    return mode


def set_tx_mode(sock: HasFileno | int, mode: int) -> None:
    """Move the sending half between kernel and network card: setsockopt(TCP_TXTLS_MODE).

    ``mode`` is TCP_TLS_MODE_SW or TCP_TLS_MODE_IFNET.  On a socket without kernel TLS it succeeds
    and does nothing.  Raises OSError: EOPNOTSUPP or ENXIO (the card cannot), EALREADY.
    """
    arguments.integer("mode", mode, -(2**31), 2**31 - 1, bounds="a C int")
    fd = descriptor(sock)
    _only_on_freebsd()
    result = lib.pyktls_freebsd_set_tx_mode(fd, mode)
    if result < 0:
        raise syscall_error(-result, "setsockopt(IPPROTO_TCP, TCP_TXTLS_MODE)")


# ---- records ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Record:
    """What one recvmsg(2) gave.

    ``record_type``, ``version`` (of the record's header, 0x0303 also in TLS 1.3) and ``length`` (of
    the whole record's plaintext) are None where the kernel sent no control message: in the rest of
    a record that did not fit, and at the end of the stream, where ``data`` is empty.
    """

    data: bytes
    record_type: int | None
    version: int | None
    length: int | None
    flags: int

    @property
    def ends(self) -> bool:
        """Whether this is the end of a record (MSG_EOR, which empty records lack)."""
        return bool(self.flags & socket.MSG_EOR) or self.length == 0


def _begin(sock: HasFileno | int, flags: int) -> tuple[int, float | None]:
    """What both calls begin with: their checks, the descriptor, and the socket's timeout."""
    arguments.flags(flags)
    fd = descriptor(sock)
    _only_on_freebsd()
    timeout = getattr(sock, "gettimeout", None)
    return fd, None if timeout is None else timeout()


def _repeat(
    call: Callable[[], int],
    name: str,
    wait: Callable[[int, _records.Deadline], None],
    fd: int,
    timeout: float | None,
) -> int:
    """What ``call`` gives; made again after a signal, and once it can go on within the timeout."""
    deadline = _records.Deadline(timeout)
    while (result := call()) < 0:
        if result == -errno.EAGAIN and timeout:
            # poll(2) says ready for less room than a record wants, and after an error for ever.
            deadline.back_off()
            wait(fd, deadline)
        elif result != -errno.EINTR:  # a handler that raises has done so (PEP 475)
            raise syscall_error(-result, name)
    return result


def recv_record(sock: HasFileno | int, size: int, flags: int = 0) -> Record:
    """At most ``size`` bytes of at most one record: recvmsg(2).

    Raises OSError: EBADMSG (a record failed authentication: it is gone, and records that were good
    may have been returned before this), EMSGSIZE (too long, too short, or the peer closed within
    it), EINVAL (another version or outer type).  Do not read again after these.
    """
    arguments.integer("size", size, 0, 2**31 - 1, bounds="from 0 to 2**31 - 1")
    fd, timeout = _begin(sock, flags)
    buffer = bytearray(size)
    numbers = ffi.new("int[4]")
    places = [numbers + i for i in range(4)]
    call = functools.partial(
        lib.pyktls_freebsd_recv, fd, ffi.from_buffer(buffer), size, flags, *places
    )
    received = _repeat(call, "recvmsg", _records.wait_readable, fd, timeout)
    record_type, version, length = (None if n < 0 else n for n in numbers[0:3])
    return Record(bytes(buffer[:received]), record_type, version, length, numbers[3])


def send_record(
    sock: HasFileno | int, data: ReadableBuffer, record_type: int, flags: int = 0
) -> int:
    """Send ``data`` as records of that type: sendmsg(2) with TLS_SET_RECORD_TYPE.

    All of it or nothing.  More than 16384 bytes become several records.  Raises InvalidValue for
    type 0 and above 255, OSError: EINVAL (no bytes, except with TLS 1.0; no kernel TLS for
    sending), EMSGSIZE (more than the send buffer holds), EAGAIN.
    """
    arguments.integer("record_type", record_type, 1, 255)
    fd, timeout = _begin(sock, flags)
    with arguments.buffer_view(data) as view:
        iov = ffi.new("struct iovec *")
        iov.iov_base = base = ffi.from_buffer(view)
        iov.iov_len = len(view)
        call = functools.partial(lib.pyktls_send_record, fd, iov, 1, flags, record_type)
        try:
            return _repeat(call, "sendmsg", _records.wait_writable, fd, timeout)
        finally:
            del base


def sendfile(
    sock: HasFileno | int,
    file: HasFileno | int,
    offset: int = 0,
    count: int = 0,
    *,
    headers: Sequence[ReadableBuffer] = (),
    trailers: Sequence[ReadableBuffer] = (),
    flags: int = 0,
) -> tuple[int, OSError | None]:
    """Send ``count`` bytes of a file, 0 for all up to its end, with the system call of that name.

    ``headers`` go before it and ``trailers`` after it, as records of their own.  Returns the number
    of bytes that were taken, those included, and the error that ended the call, if one did: both at
    once is normal (EAGAIN on a non-blocking socket whose buffer is full, EINTR).

    sendfile(2) sends no headers where the file has nothing from ``offset`` on: then they and the
    trailers go by sendmsg(2).
    """
    for name, number in (("offset", offset), ("count", count)):
        arguments.count(name, number)
    arguments.flags(flags)
    fd, source = descriptor(sock), descriptor(file)
    _only_on_freebsd()
    keep: list[Any] = []

    def vector(pieces: Sequence[ReadableBuffer]) -> Any:
        if len(pieces) > MOST_BUFFERS:
            pieces = [b"".join(pieces)]
        iov = ffi.new("struct iovec[]", len(pieces))
        for entry, piece in zip(iov, pieces, strict=True):
            memory = ffi.from_buffer(piece)
            keep.append(memory)
            entry.iov_base, entry.iov_len = memory, len(memory)
        return iov

    first, last = arguments.buffer_views(headers), arguments.buffer_views(trailers)
    if first and _has_nothing(source, offset):
        around = vector((*first, *last))
        taken: int = lib.pyktls_send_record(fd, around, len(around), 0, lib.PYKTLS_NO_RECORD_TYPE)
        return (taken, None) if taken >= 0 else (0, syscall_error(-taken, "sendmsg"))
    sent = ffi.new("int64_t *")
    before, after = vector(first), vector(last)
    result = lib.pyktls_freebsd_sendfile(
        source, fd, offset, count, before, len(before), after, len(after), flags, sent
    )
    return sent[0], syscall_error(-result, "sendfile") if result < 0 else None


def _has_nothing(file: int, offset: int) -> bool:
    """Whether a file ends at ``offset`` or before."""
    try:
        what = os.fstat(file)
    except OSError:
        return False  # sendfile itself will tell
    return stat.S_ISREG(what.st_mode) and what.st_size <= offset


# For ``System``: it is one system call.
sendfile_once = sendfile


def sendfile_all(
    ask: Callable[[], int], file: int, offset: int, count: int
) -> tuple[int, OSError | None]:
    """``sendfile`` of a file alone to the descriptor that ``ask`` gives, or what it raises."""
    return sendfile(ask(), file, offset, count)


def is_gone(fd: int) -> bool:
    """Never: sendfile(2) tells."""
    del fd
    return False


def sendfile_may_stall(fd: int) -> bool:
    """Never."""
    del fd
    return False


# ---- gates and statistics --------------------------------------------------------------------

#: The sysctls that decide what may be switched on; not every release has all of them.
GATES = (
    _GATE,
    "kern.ipc.tls.rx_enable",
    "kern.ipc.tls.cbc_enable",
    "kern.ipc.tls.maxlen",
    "kern.ipc.tls.ifnet.permitted",
    "kern.ipc.mb_use_ext_pgs",
)

_STATISTICS = tuple(
    f"kern.ipc.tls.{name}"
    for name in (
        *(
            f"stats.{name}"
            for name in (
                "offload_total",
                "enable_calls",
                "active",
                "corrupted_records",
                "failed_crypto",
                "switch_to_ifnet",
                "switch_to_sw",
                "switch_failed",
                "ifnet_disable_ok",
                "ifnet_disable_failed",
                "destroy_task",
                "threads",
                "sw_tx_inqueue",
                "sw_rx_inqueue",
                "sw_tx_pending",
                "ocf.tls10_cbc_encrypts",
                "ocf.tls11_cbc_decrypts",
                "ocf.tls11_cbc_encrypts",
                "ocf.tls12_gcm_decrypts",
                "ocf.tls12_gcm_encrypts",
                "ocf.tls12_gcm_recrypts",
                "ocf.tls12_chacha20_decrypts",
                "ocf.tls12_chacha20_encrypts",
                "ocf.tls13_gcm_decrypts",
                "ocf.tls13_gcm_encrypts",
                "ocf.tls13_gcm_recrypts",
                "ocf.tls13_chacha20_decrypts",
                "ocf.tls13_chacha20_encrypts",
                "ocf.inplace",
                "ocf.separate_output",
                "ocf.retries",
            )
        ),
        *(f"{where}.{c}" for where in ("sw", "ifnet", "toe") for c in ("cbc", "gcm", "chacha20")),
        "ifnet.reset",
        "ifnet.reset_dropped",
        "ifnet.reset_failed",
        "tasks_active",
    )
)


def sysctl(name: str) -> int:
    """The value of a numeric or boolean sysctl: sysctlbyname(3).

    Raises OSError: ENOENT (this kernel has none of that name), EPERM (in capability mode).
    """
    if not isinstance(name, str):
        raise InvalidType(f"name must be a str, not {type(name).__name__}")
    if not name.isascii() or "\0" in name:
        raise InvalidValue(f"name must be ASCII without NUL, not {name!a}")
    _only_on_freebsd()
    value = ffi.new("unsigned char[8]")
    size = ffi.new("size_t *", 8)
    result = lib.pyktls_freebsd_sysctl(name.encode(), value, size)
    if result < 0:
        raise syscall_error(-result, f"sysctlbyname({name})")
    return int.from_bytes(ffi.buffer(value, size[0]), sys.byteorder)


def gates() -> dict[str, int | None]:
    """The sysctls of ``GATES``; None where this kernel lacks one, or may not tell."""
    return dict(_readable(GATES))


def statistics() -> dict[str, int]:
    """The kernel's TLS counters, by the names of their sysctls; those that this kernel has.

    Gauges are ``stats.active``, ``stats.threads``, ``tasks_active``, what ends in ``_inqueue`` or
    ``_pending``, and ``cbc``, ``gcm`` and ``chacha20`` below ``sw``, ``ifnet`` and ``toe``; the
    others count from boot.  Raises Unavailable where there is none: a kernel without KERN_TLS.
    """
    found = {name: value for name, value in _readable(_STATISTICS) if value is not None}
    if not found:
        raise Unavailable("this kernel has no counters of kernel TLS", remedy=_NO_KERN_TLS)
    return found


def _readable(names: Iterable[str]) -> Iterator[tuple[str, int | None]]:
    for name in names:
        try:
            yield name, sysctl(name)
        except OSError as e:
            if e.errno not in (errno.ENOENT, errno.EPERM):
                raise
            yield name, None


# ---- what pyktls.install asks of a system ----------------------------------------------------

#: See System in socket_calls.py.  FreeBSD 13.0 sends TLS 1.3 and AES-CBC, and receives neither.
ONE_DIRECTION_ALONE = True
NO_REKEY = "FreeBSD takes the keys of a direction once, and has no rekey"

_NO_KERN_TLS = (
    "FreeBSD's stock kernels for amd64, arm64 and powerpc64 have it, others need `options KERN_TLS`"
)
_OPTION = {Direction.TX: TCP_TXTLS_ENABLE, Direction.RX: TCP_RXTLS_ENABLE}
_MODE_OPTION = {Direction.TX: TCP_TXTLS_MODE, Direction.RX: TCP_RXTLS_MODE}


def option_of(direction: Direction) -> int:
    """TCP_TXTLS_ENABLE or TCP_RXTLS_ENABLE."""
    return _OPTION[direction]


def mode_of(fd: int, direction: Direction) -> int:
    """The TCP_TLS_MODE_ number of a direction; NONE too where the kernel knows no such thing."""
    try:
        return get_mode(fd, _MODE_OPTION[direction])
    except OSError as e:
        # No KERN_TLS; a listening socket; a connection that is no more.
        if e.errno in (errno.ENOPROTOOPT, errno.EINVAL, errno.ECONNRESET):
            return TCP_TLS_MODE_NONE
        raise


def directions(fd: int) -> Iterator[Direction]:
    """Those directions of the socket that are in the kernel; none on a plain socket."""
    for direction in Direction:
        if mode_of(fd, direction) != TCP_TLS_MODE_NONE:
            yield direction


def attach(fd: int) -> None:
    """Ask whether the kernel knows kernel TLS and the connection lives; there is nothing to attach.

    Raises Unavailable (this kernel has no TLS) or HandoffRefused (this connection cannot).
    """
    try:
        get_mode(fd, TCP_TXTLS_MODE)
    except OSError as e:
        if e.errno == errno.ENOPROTOOPT:
            raise Unavailable("this kernel is built without kernel TLS", remedy=_NO_KERN_TLS) from e
        if e.errno in (errno.ECONNRESET, errno.ENOTCONN):
            raise HandoffRefused("the TCP connection was reset") from e
        raise


def _enable(
    version: int, aead: AEAD, key: bytearray, nonce: bytearray, mac_key: bytearray, sequence: int
) -> TLSEnable:
    cipher = aead.freebsd
    if cipher is None:
        raise InvalidValue(f"FreeBSD has no {aead.name}")
    # The explicit nonce at the end of the nonce base stays unused: the kernel makes its own.
    return TLSEnable(
        version,
        cipher.algorithm,
        key=key,
        iv=nonce[: _iv_length(version, aead)],
        rec_seq=sequence,
        auth_algorithm=cipher.auth_algorithm,
        auth_key=mac_key,
    )


def install(
    fd: int, direction: Direction, version: int, aead: AEAD, keys: DirectionKeys, nonce: bytearray
) -> None:
    """Install the keys of one direction; ``nonce`` is the 12-byte nonce base.

    Raises OSError of the calls, or Unavailable if the kernel accepted them and did nothing.
    """
    info = _enable(version, aead, keys.key, nonce, keys.mac_key, keys.sequence)
    try:
        set_tls_enable(fd, _OPTION[direction], info)
    finally:
        info.wipe()
    # ECONNRESET is no such denial.
    if get_mode(fd, _MODE_OPTION[direction]) == TCP_TLS_MODE_NONE:
        raise Unavailable(
            f"the kernel accepted the {direction} keys and then denied having them: "
            "it has no kernel TLS"
        )


def carries(fd: int, direction: Direction, version: int, aead: AEAD) -> bool:
    """Whether a direction is in the kernel, which does not tell version and cipher."""
    del version, aead
    return direction in directions(fd)


def next_sequence(fd: int, direction: Direction) -> None:
    """None: FreeBSD does not tell the number of the next record."""
    del fd, direction


def can_rekey(version: int, aead: AEAD) -> bool:
    """Never: FreeBSD takes the keys of a direction once."""
    del version, aead
    return False


def go_on_receiving(fd: int) -> None:
    """Nothing: FreeBSD does not look into records, and does not stop."""
    del fd


#: What this kernel has been seen to take, with its gates as they were then.  What it refused is
#: asked again.
_accepted: set[tuple[int, AEAD, Direction, tuple[int | None, ...]]] = set()


def try_keys(sock: socket.socket, version: int, aead: AEAD, direction: Direction) -> None:
    """Give the kernel keys of zeros on a socket of our own, and ask whether it has them.

    Raises OSError, or Unavailable if it accepted them and did nothing.
    """
    info = _enable(
        version, aead, bytearray(aead.key_length), bytearray(16), bytearray(aead.mac_key_length), 0
    )
    set_tls_enable(sock, _OPTION[direction], info)
    if mode_of(sock.fileno(), direction) == TCP_TLS_MODE_NONE:
        raise Unavailable(f"the kernel accepted the {direction} keys and then denied having them")


def cipher_refusal(
    version: int, aead: AEAD, wanted: Iterable[Direction] = tuple(Direction)
) -> OSError | None:
    """The error with which this kernel refuses the cipher, None if it takes it or nobody can tell.

    Found by trying the ``wanted`` directions, for there are kernels that only send, with a key of
    zeros on a loopback pair that carries no data.  Without loopback there is nothing to be found.
    """
    if aead.freebsd is None:
        return OSError(errno.EOPNOTSUPP, "FreeBSD has no such cipher")
    now = tuple(gates().values())
    todo = [d for d in wanted if (version, aead, d, now) not in _accepted]
    if not todo:
        return None
    try:
        near, far = loopback_pair()
    except OSError:
        return None
    with near, far:
        for direction in todo:
            try:
                try_keys(near, version, aead, direction)
            except Unavailable:
                return None  # install will find out, and say so
            except OSError as e:
                return e
            _accepted.add((version, aead, direction, now))
    return None


def is_tried(version: int, aead: AEAD) -> bool:
    """Whether there is nothing to find out by a trial before a connection with this cipher."""
    if aead.freebsd is None:
        return True
    now = tuple(gates().values())
    return all((version, aead, direction, now) in _accepted for direction in Direction)


def cipher_remedy(aead: AEAD, error: OSError) -> str:
    """What would help against a refusal of the cipher."""
    if aead.freebsd is None:
        return "have the peers agree on a cipher that FreeBSD has, AES-GCM for instance"
    if error.errno == errno.ENOPROTOOPT:
        return _NO_KERN_TLS
    if error.errno == errno.ENXIO:
        return (
            "an administrator can set kern.ipc.mb_use_ext_pgs to 1 (where memory is mapped whole)"
        )
    if error.errno in (errno.EOPNOTSUPP, errno.ENOTSUP):
        names = [_GATE, "kern.ipc.tls.rx_enable"]
        if aead.mac_key_length:
            names.append("kern.ipc.tls.cbc_enable")
        values = gates()
        shut = [name for name in names if values[name] == 0]
        if shut:
            return f"an administrator can open it with `sysctl {' '.join(f'{n}=1' for n in shut)}`"
        return (
            f"if {_GATE} is 1 (`sysctl {_GATE}=1` sets it), this is FreeBSD 13: it has no software "
            f"backend loaded (`kldload ktls_ocf`), or not this cipher, which is there since "
            f"{aead.freebsd.since}"
        )
    return f"FreeBSD has {aead.name} since {aead.freebsd.since}"


@functools.cache
def aead_of(cipher_algorithm: int, key_length: int, auth_algorithm: int = 0) -> AEAD | None:
    """The row of the cipher table that these numbers of a ``TLSEnable`` stand for, or None."""
    for aead in AEADS:
        if aead.freebsd is not None and (
            aead.freebsd.algorithm,
            aead.key_length,
            aead.freebsd.auth_algorithm,
        ) == (cipher_algorithm, key_length, auth_algorithm):
            return aead
    return None
