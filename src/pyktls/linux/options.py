"""The options of a TLS socket besides its keys (net/tls/tls_main.c).

Each has a ``set_`` and a ``get_``.  Where the running kernel does not know the option, both raise
Unavailable with the release that brought it; where the socket is not in a state for it, OSError.
"""

from __future__ import annotations

import contextlib
import errno
import struct
from typing import TYPE_CHECKING

from pyktls import arguments
from pyktls.errors import InvalidType, Unavailable
from pyktls.socket_calls import descriptor

from . import defects
from .abi import SOL_TLS, TLS_RX_EXPECT_NO_PAD, TLS_TX_MAX_PAYLOAD_LEN, TLS_TX_ZEROCOPY_RO
from .calls import getsockopt, setsockopt
from .ulp import get_ulp

if TYPE_CHECKING:
    from pyktls.socket_calls import HasFileno

__all__ = [
    "get_rx_expect_no_pad",
    "get_tx_max_payload_len",
    "get_tx_zerocopy_ro",
    "set_rx_expect_no_pad",
    "set_tx_max_payload_len",
    "set_tx_zerocopy_ro",
]

#: Each option's name, its format in C, and the upstream release that brought it.
_OPTIONS = {
    TLS_TX_ZEROCOPY_RO: ("TLS_TX_ZEROCOPY_RO", "=I", "5.19"),
    TLS_RX_EXPECT_NO_PAD: ("TLS_RX_EXPECT_NO_PAD", "=I", "6.0"),
    TLS_TX_MAX_PAYLOAD_LEN: ("TLS_TX_MAX_PAYLOAD_LEN", "=H", "6.19"),
}


def _unknown(fd: int, option: int, error: OSError) -> Unavailable | None:
    """The error to raise if ``error`` means that this kernel has no such option."""
    name, _, since = _OPTIONS[option]
    # Without "tls" on the socket the errno is the same, and says nothing about the option.
    if error.errno != errno.ENOPROTOOPT or get_ulp(fd) != b"tls":
        return None
    return Unavailable(f"this kernel has no {name} ({error})", remedy=f"Linux has it since {since}")


def _set(sock: HasFileno | int, option: int, value: int) -> None:
    fd = descriptor(sock)
    name, form, _ = _OPTIONS[option]
    try:
        setsockopt(fd, SOL_TLS, option, struct.pack(form, value), f"setsockopt(SOL_TLS, {name})")
    except OSError as e:
        if unavailable := _unknown(fd, option, e):
            raise unavailable from e
        raise


def _get(sock: HasFileno | int, option: int) -> int:
    fd = descriptor(sock)
    name, form, _ = _OPTIONS[option]
    try:
        value = getsockopt(
            fd, SOL_TLS, option, struct.calcsize(form), f"getsockopt(SOL_TLS, {name})"
        )
    except OSError as e:
        if unavailable := _unknown(fd, option, e):
            raise unavailable from e
        raise
    (number,) = struct.unpack(form, value)
    return int(number)


def _switch(on: bool) -> int:
    if not isinstance(on, bool):
        raise InvalidType(f"on must be a bool, not {type(on).__name__}")
    return int(on)


# ---- TLS_TX_ZEROCOPY_RO ----------------------------------------------------------------------


def set_tx_zerocopy_ro(sock: HasFileno | int, on: bool) -> None:
    """Have ``sendfile`` give a file's pages to the network card without a copy (Linux 5.19).

    It is accepted on every socket with "tls" and has an effect only where the card encrypts.  Then
    nobody may change the file until the peer has acknowledged it: TCP would send the changed bytes
    again with the old authentication, and the peer would end the connection.

    Raises OSError: ENOPROTOOPT (no "tls" attached).
    """
    _set(sock, TLS_TX_ZEROCOPY_RO, _switch(on))


def get_tx_zerocopy_ro(sock: HasFileno | int) -> bool:
    """Whether set_tx_zerocopy_ro is on.  Raises OSError: EOPNOTSUPP (no "tls" attached)."""
    return bool(_get(sock, TLS_TX_ZEROCOPY_RO))


# ---- TLS_RX_EXPECT_NO_PAD --------------------------------------------------------------------


def set_rx_expect_no_pad(sock: HasFileno | int, on: bool) -> None:
    """Tell the kernel that the peer pads no TLS 1.3 records (Linux 6.0).

    Data is then decrypted straight into the reader's buffer; a record that is padded, or no data,
    costs a second decryption.  Receiving keys of TLS 1.3 have to be installed.

    Kernels without the fix of CVE-2026-74611 write what follows such a record to the wrong place,
    without an error.  So before it is switched on the first time, this process tries it out on a
    connection of its own (about a millisecond).  Raises Unavailable where that goes wrong or cannot
    be done, OSError: EINVAL (no receiving keys, or of TLS 1.2), ENOPROTOOPT (no "tls" attached).
    """
    value = _switch(on)
    with contextlib.suppress(OSError):
        _get(sock, TLS_RX_EXPECT_NO_PAD)  # a kernel without the option has nothing to be tried out
    if on and (defect := defects.expect_no_pad()):
        raise Unavailable(
            f"TLS_RX_EXPECT_NO_PAD is not safe here: {defect.text}", remedy=defect.remedy
        )
    _set(sock, TLS_RX_EXPECT_NO_PAD, value)


def get_rx_expect_no_pad(sock: HasFileno | int) -> bool:
    """Whether set_rx_expect_no_pad is on.

    Raises OSError: EINVAL (no receiving keys, or of TLS 1.2), EOPNOTSUPP (no "tls" attached).
    """
    return bool(_get(sock, TLS_RX_EXPECT_NO_PAD))


# ---- TLS_TX_MAX_PAYLOAD_LEN ------------------------------------------------------------------


def set_tx_max_payload_len(sock: HasFileno | int, size: int) -> None:
    """Limit the plaintext of each record that is sent to ``size`` bytes (Linux 6.19).

    From 64 to 16384; with TLS 1.3 keys installed from 63, as record_size_limit less one byte for
    the type (RFC 8449 section 4): so set it after the keys.  Raises InvalidValue outside
    63 to 16384, OSError: EINVAL (63 without such keys), EBUSY (a record is held open by MSG_MORE),
    ENOPROTOOPT (no "tls" attached).
    """
    arguments.integer("size", size, 63, 16384)
    _set(sock, TLS_TX_MAX_PAYLOAD_LEN, size)


def get_tx_max_payload_len(sock: HasFileno | int) -> int:
    """The limit of set_tx_max_payload_len, 16384 if none was set.

    Raises OSError: EOPNOTSUPP (no "tls" attached).
    """
    return _get(sock, TLS_TX_MAX_PAYLOAD_LEN)
