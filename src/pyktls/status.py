"""Is kernel TLS on, on this socket, in each direction?  Asked of the kernel, for any socket."""

from __future__ import annotations

import enum
import errno
import socket
import ssl
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from . import freebsd, linux
from ._kernel import lib
from .ciphers import aead_by_linux_type
from .engines import native
from .errors import InvalidType, InvalidValue
from .linux.sock_diag import ulp_info
from .protocol import Direction

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Mode", "Status", "cipher_name", "mode_by_linux_conf", "status"]


class Mode(enum.StrEnum):
    """Who does the record protection of one direction."""

    NONE = "none"
    #: In the kernel; it did not say whether in software or in the network card.
    KERNEL = "kernel"
    SOFTWARE = "software"
    DEVICE = "device"
    #: In a network card that does all of TCP (FreeBSD).
    TOE = "toe"

    def __bool__(self) -> bool:
        return self is not Mode.NONE


@runtime_checkable
class SocketLike(Protocol):
    """What stands for a socket without being one, as asyncio's TransportSocket."""

    def fileno(self) -> int:
        """The descriptor."""

    @property  # so that every signature will do, an overloaded one too
    def getsockopt(self) -> Callable[..., Any]:
        """As socket.getsockopt."""


@dataclass(frozen=True, slots=True)
class Status:
    """What the kernel says of one socket.

    ``ulp`` is the name of the attached upper layer protocol ("tls", or empty).  ``version`` is
    0x0303 or 0x0304 and ``cipher`` the AEAD's name, both None while no keys are installed.
    ``tx`` and ``rx`` are true exactly if that direction is in the kernel.  FreeBSD tells the modes
    and nothing else: there ``ulp`` is empty, ``version`` and ``cipher`` are None.

    ``openssl_tx`` and ``openssl_rx`` are for an ``ssl.SSLSocket``: whether OpenSSL itself has
    switched that direction (``BIO_get_ktls_send``, ``BIO_get_ktls_recv``).  None for any other
    socket, and where OpenSSL cannot be asked.

    ``zerocopy_ro`` is whether files are sent without a copy (TLS_TX_ZEROCOPY_RO, in effect only
    where the network card encrypts), ``rx_no_pad`` whether TLS_RX_EXPECT_NO_PAD is on,
    ``tx_max_payload_len`` the most plaintext that is put into a record (TLS_TX_MAX_PAYLOAD_LEN).
    They are None while no keys are installed, and where the kernel does not tell.

    ``refusal`` is for a ``pyktls.SSLSocket`` that stayed with OpenSSL, or whose receiving half did:
    the error that says why.
    """

    ulp: str
    version: int | None
    cipher: str | None
    tx: Mode
    rx: Mode
    openssl_tx: bool | None = None
    openssl_rx: bool | None = None
    zerocopy_ro: bool | None = None
    rx_no_pad: bool | None = None
    tx_max_payload_len: int | None = None
    refusal: Exception | None = None


_CONF = {
    lib.TLS_CONF_BASE: Mode.NONE,
    lib.TLS_CONF_SW: Mode.SOFTWARE,
    lib.TLS_CONF_HW: Mode.DEVICE,
}
_FREEBSD_MODES = {
    freebsd.TCP_TLS_MODE_NONE: Mode.NONE,
    freebsd.TCP_TLS_MODE_SW: Mode.SOFTWARE,
    freebsd.TCP_TLS_MODE_IFNET: Mode.DEVICE,
    freebsd.TCP_TLS_MODE_TOE: Mode.TOE,
}


def status(sock: socket.socket | SocketLike) -> Status:
    """Ask the kernel how it does TLS on ``sock``, whoever switched it on.

    Works for any TCP socket, ``ssl.SSLSocket`` and what asyncio's transports give for "socket"
    included, and needs no privilege; without CAP_NET_ADMIN Linux up to 6.12 does not tell software
    from NIC (``Mode.KERNEL``), nor the last three fields.  Raises InvalidType for what is no
    socket, InvalidValue for a closed one.
    """
    if not isinstance(sock, socket.socket | SocketLike):
        raise InvalidType(f"a socket is needed, not {type(sock).__name__}")
    if sock.fileno() < 0:
        raise InvalidValue("the socket is closed")
    ask = _ask_freebsd if lib.pyktls_system() == lib.PYKTLS_FREEBSD else _ask_linux
    found = ask(sock)
    sslobj = getattr(sock, "_sslobj", None) if isinstance(sock, ssl.SSLSocket) else None
    # None too for what a pyktls.SSLSocket has there once its connection has left OpenSSL.
    openssl = native.openssl_ktls(sslobj)
    if openssl is None:
        return found
    return replace(found, openssl_tx=openssl[0], openssl_rx=openssl[1])


def _ask_freebsd(sock: socket.socket | SocketLike) -> Status:
    tx, rx = (_FREEBSD_MODES.get(freebsd.mode_of(sock.fileno(), d), Mode.KERNEL) for d in Direction)
    return Status("", None, None, tx, rx)


def _ask_linux(sock: socket.socket | SocketLike) -> Status:
    fd = sock.fileno()
    try:
        ulp = linux.get_ulp(fd).decode(errors="replace")
    except OSError as e:
        if e.errno not in (errno.ENOPROTOOPT, errno.EOPNOTSUPP):
            raise
        ulp = ""
    found = {
        d: linux.get_version_and_cipher(fd, linux.system.option_of(d))
        for d in linux.system.directions(fd)
    }
    if not found:
        return Status(ulp, None, None, Mode.NONE, Mode.NONE)
    version, cipher_type = next(iter(found.values()))
    modes = dict.fromkeys(found, Mode.KERNEL)
    try:
        info = ulp_info(fd)
    except OSError:
        info = None
    if info is not None:
        for direction, conf in ((Direction.TX, info.tx_conf), (Direction.RX, info.rx_conf)):
            if direction in modes:  # the keys are there: that was asked of the socket itself
                modes[direction] = mode_by_linux_conf(conf) or Mode.KERNEL
    return Status(
        ulp,
        version,
        cipher_name(cipher_type),
        modes.get(Direction.TX, Mode.NONE),
        modes.get(Direction.RX, Mode.NONE),
        zerocopy_ro=info.zerocopy_ro if info is not None else None,
        rx_no_pad=info.rx_no_pad if info is not None else None,
        tx_max_payload_len=info.tx_max_payload_len if info is not None else None,
    )


def mode_by_linux_conf(conf: int | None) -> Mode:
    """The mode for a TLS_CONF_ number of sock_diag."""
    return _CONF.get(conf, Mode.KERNEL) if conf is not None else Mode.NONE


def cipher_name(cipher_type: int) -> str:
    """The name of the AEAD that Linux gives that number, or the number."""
    aead = aead_by_linux_type(cipher_type)
    return aead.name if aead is not None else f"cipher {cipher_type}"
