"""One question to the kernel's socket diagnostics: how does it do TLS on this connection?

A netlink request (sock_diag(7)) for exactly one TCP socket, and of the reply the nested attribute
``INET_DIAG_ULP_INFO``.  It is the only place where the kernel tells software from NIC.  Kernels up
to 6.12 answer only callers with CAP_NET_ADMIN; a socket can only be looked up in its own network
namespace.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyktls._kernel import lib
from pyktls.errors import syscall_error

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["UlpInfo", "ulp_info"]

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
_EXT_INFO = 1 << (2 - 1)  # without INET_DIAG_INFO asked for, the ULP block does not come
_ALL_STATES = 0xFFFFFFFF
_NO_COOKIE = b"\xff" * 8
_NLMSGHDR = struct.Struct("=IHHII")
_REQUEST_HEAD = struct.Struct("=BBBxI")
_INET_DIAG_MSG_SIZE = 72
_NLA_TYPE_MASK = 0x3FFF


@dataclass(frozen=True, slots=True)
class UlpInfo:
    """What the kernel says of a socket: numbers as in linux/tls.h, None where it is silent.

    ``tx_conf`` and ``rx_conf`` are TLS_CONF_BASE (1, not in the kernel), TLS_CONF_SW (2) or
    TLS_CONF_HW (3, in the network card).
    """

    name: str
    version: int | None
    cipher_type: int | None
    tx_conf: int | None
    rx_conf: int | None


def _attributes(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if not 4 <= length <= len(data):
            return
        yield kind & _NLA_TYPE_MASK, data[4:length]
        data = data[(length + 3) & ~3 :]


def _request(sock: socket.socket) -> bytes:
    """The inet_diag_req_v2 that names exactly this connection."""
    near, far = sock.getsockname(), sock.getpeername()
    addresses = b"".join(
        socket.inet_pton(sock.family, address[0].partition("%")[0]).ljust(16, b"\0")
        for address in (near, far)
    )
    scope = near[3] if sock.family == socket.AF_INET6 else 0
    identity = struct.pack("!HH", near[1], far[1]) + addresses + struct.pack("=I", scope)
    body = (
        _REQUEST_HEAD.pack(sock.family, socket.IPPROTO_TCP, _EXT_INFO, _ALL_STATES)
        + identity
        + _NO_COOKIE
    )
    header = _NLMSGHDR.pack(_NLMSGHDR.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    return header + body


def _parse(reply: memoryview) -> UlpInfo | None:
    _, kind, _, _, _ = _NLMSGHDR.unpack_from(reply)
    body = reply[_NLMSGHDR.size :]
    if kind == _NLMSG_ERROR:
        (error,) = struct.unpack_from("=i", body)
        raise syscall_error(-error, "netlink(SOCK_DIAG_BY_FAMILY)")
    for number, value in _attributes(body[_INET_DIAG_MSG_SIZE:]):
        if number != lib.INET_DIAG_ULP_INFO:
            continue
        name = ""
        found: dict[int, int] = {}
        for inner, data in _attributes(value):
            if inner == lib.INET_ULP_INFO_NAME:
                name = bytes(data).partition(b"\0")[0].decode(errors="replace")
            elif inner == lib.INET_ULP_INFO_TLS:
                found = {k: struct.unpack("=H", v)[0] for k, v in _attributes(data) if len(v) == 2}
        return UlpInfo(
            name=name,
            version=found.get(lib.TLS_INFO_VERSION),
            cipher_type=found.get(lib.TLS_INFO_CIPHER),
            tx_conf=found.get(lib.TLS_INFO_TXCONF),
            rx_conf=found.get(lib.TLS_INFO_RXCONF),
        )
    return None


def ulp_info(sock: socket.socket) -> UlpInfo | None:
    """What the kernel reports of this connection's upper layer protocol.

    None where it reports nothing: none is attached, or it does not tell this caller.  Raises
    OSError where the question cannot be asked (ENOENT: the socket is of another network
    namespace; EPROTONOSUPPORT or EACCES: no netlink here).
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(5.0)
        netlink.sendto(_request(sock), (0, 0))
        return _parse(memoryview(netlink.recv(16384)))
