"""The upper layer protocol of a TCP connection: TCP_ULP (net/ipv4/tcp_ulp.c)."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from pyktls.errors import InvalidType
from pyktls.socket_calls import descriptor

from .abi import TCP_ULP
from .calls import getsockopt, setsockopt

if TYPE_CHECKING:
    from pyktls.socket_calls import HasFileno

__all__ = ["NO_TLS_REMEDY", "get_ulp", "set_ulp"]

#: What helps where the kernel has no upper layer protocol "tls".
NO_TLS_REMEDY = (
    "an administrator can load it with `modprobe tls`, and for every boot with a line `tls` in "
    "/etc/modules-load.d/tls.conf; a kernel built without CONFIG_TLS has to be replaced"
)


def set_ulp(sock: HasFileno | int, name: bytes = b"tls") -> None:
    """Attach the upper layer protocol ``name`` to a TCP connection: setsockopt(TCP_ULP).

    There is no way back.  On its own it changes nothing on the wire.  Raises OSError: ENOENT (the
    kernel has no such protocol, or may not load it for this process), ENOTCONN (the connection is
    not ESTABLISHED), EEXIST (one is attached already).
    """
    if not isinstance(name, (bytes, bytearray)):
        raise InvalidType(f"name must be bytes, not {type(name).__name__}")
    setsockopt(descriptor(sock), socket.IPPROTO_TCP, TCP_ULP, name, "setsockopt(TCP_ULP)")


def get_ulp(sock: HasFileno | int) -> bytes:
    """The attached upper layer protocol, empty if there is none: getsockopt(TCP_ULP)."""
    # TCP_ULP_NAME_MAX is 16.  Without a protocol the kernel answers with length 0.
    value = getsockopt(descriptor(sock), socket.IPPROTO_TCP, TCP_ULP, 16, "getsockopt(TCP_ULP)")
    return bytes(value).partition(b"\0")[0]
