"""The kernel's socket diagnostics (sock_diag(7)): how does it do TLS on its connections?

A netlink request, and of each reply the nested attribute ``INET_DIAG_ULP_INFO``.  It is the only
place where the kernel tells software from NIC.  ``ulp_info`` asks for exactly one TCP socket,
``connections`` for all that have an upper layer protocol (NLM_F_DUMP).  Linux up to 6.12 tells it
only to callers with CAP_NET_ADMIN, and leaves it out for the others without a word; ``is_told``
finds out.  Only the sockets of the calling thread's network namespace can be seen.

The decoding is our own, for want of another: pyroute2 0.9.7 hands out INET_DIAG_ULP_INFO
undecoded, as hexadecimal digits.  It believes nobody: every length is checked against what is
there, and a reply that makes no sense is an OSError (EPROTO).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from pyktls._kernel import lib
from pyktls.errors import syscall_error
from pyktls.socket_calls import descriptor, loopback_pair

from .ulp import set_ulp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyktls.socket_calls import HasFileno

__all__ = ["Connection", "UlpInfo", "connections", "is_told", "ulp_info"]

T = TypeVar("T")

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 0x001
_NLM_F_DUMP_INTR = 0x010
_NLM_F_DUMP = 0x300
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLMSG_OVERRUN = 4
_EXT_INFO = 1 << (2 - 1)  # without INET_DIAG_INFO asked for, the ULP block does not come
_ALL_STATES = 0xFFFFFFFF
# A protocol is attached in ESTABLISHED, and stays until the connection is gone: of TIME_WAIT and
# LISTEN, which can be many, nothing needs to be told.  (ESTABLISHED, FIN_WAIT1, FIN_WAIT2,
# CLOSE_WAIT, LAST_ACK, CLOSING.)
_CONNECTED_STATES = sum(1 << state for state in (1, 4, 5, 8, 9, 11))
_NO_COOKIE = b"\xff" * 8
_NLMSGHDR = struct.Struct("=IHHII")
_REQUEST_HEAD = struct.Struct("=BBBxI")
# family, state, timer, retrans | ports, addresses | interface, cookie | expires, rqueue, wqueue,
# uid, inode: all in the machine's byte order, except for the ports.
_INET_DIAG_MSG = struct.Struct("=BBBB 2s2s 16s16s I8s IIIII")
_NLA_TYPE_MASK = 0x3FFF
_SO_BINDTOIFINDEX = 62  # asm-generic/socket.h, Linux 5.1
_U16 = {
    lib.TLS_INFO_VERSION: "version",
    lib.TLS_INFO_CIPHER: "cipher_type",
    lib.TLS_INFO_TXCONF: "tx_conf",
    lib.TLS_INFO_RXCONF: "rx_conf",
    lib.TLS_INFO_TX_MAX_PAYLOAD_LEN: "tx_max_payload_len",
}
_FLAGS = {lib.TLS_INFO_ZC_RO_TX: "zerocopy_ro", lib.TLS_INFO_RX_NO_PAD: "rx_no_pad"}

_CALL = "netlink(SOCK_DIAG_BY_FAMILY)"
#: How often a dump is asked for that the kernel could not give in one piece.
_ATTEMPTS = 5
#: The kernel fills at most 32 KiB at a time.
_BUFFER = 1 << 16
#: The kernel answers within the call; this is for what should never be.
_PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class UlpInfo:
    """What the kernel says of a socket: numbers as in linux/tls.h, None where it is silent.

    ``tx_conf`` and ``rx_conf`` are TLS_CONF_BASE (1, not in the kernel), TLS_CONF_SW (2) or
    TLS_CONF_HW (3, in the network card).  ``zerocopy_ro`` (in effect: only where the card encrypts)
    and ``rx_no_pad`` are flags: on or absent.
    """

    name: str
    version: int | None = None
    cipher_type: int | None = None
    tx_conf: int | None = None
    rx_conf: int | None = None
    zerocopy_ro: bool = False
    rx_no_pad: bool = False
    tx_max_payload_len: int | None = None


@dataclass(frozen=True, slots=True)
class Connection:
    """One reply: a TCP socket, with numbers as in linux/inet_diag.h and linux/tcp_states.h.

    The addresses are (address, port) as text and number; ``interface`` is the index of that which
    the socket is bound to, or 0.
    """

    family: int
    state: int
    local: tuple[str, int]
    remote: tuple[str, int]
    interface: int
    rqueue: int
    wqueue: int
    uid: int
    inode: int
    ulp: UlpInfo


class _Again(Exception):
    """What came is not the whole; ``larger`` if the buffer was too small."""

    def __init__(self, *, larger: bool = False) -> None:
        super().__init__()
        self.larger = larger


def _nonsense(what: str) -> OSError:
    return OSError(errno.EPROTO, f"{_CALL}: {what}")


# ---- requests --------------------------------------------------------------------------------


def _request_for(family: int, states: int, identity: bytes) -> bytes:
    """An inet_diag_req_v2; ``identity`` is the inet_diag_sockid without its cookie."""
    head = _REQUEST_HEAD.pack(family, socket.IPPROTO_TCP, _EXT_INFO, states)
    return head + identity + _NO_COOKIE


@contextlib.contextmanager
def _plain(fd: int) -> Iterator[socket.socket]:
    """A socket object with no methods but the usual ones, and with a descriptor of its own."""
    try:
        other = os.dup(fd)
    except OSError as e:
        raise syscall_error(e.errno or errno.EBADF, "dup") from e
    try:
        # SOCK_NONBLOCK: otherwise the object makes the connection a non-blocking one where
        # socket.setdefaulttimeout has been used.
        sock = socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK, fileno=other)
    except OSError as e:
        os.close(other)
        raise syscall_error(e.errno or errno.ENOTSOCK, "getsockname") from e
    with sock:
        yield sock


def _request_one(fd: int) -> bytes:
    """The request that names exactly this connection."""
    with _plain(fd) as sock:
        near, far = sock.getsockname(), sock.getpeername()
        addresses = b"".join(
            socket.inet_pton(sock.family, address[0].partition("%")[0]).ljust(16, b"\0")
            for address in (near, far)
        )
        # The kernel compares the interface too: for a socket that is bound to one, 0 finds nothing.
        try:
            interface = sock.getsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX)
        except OSError:
            interface = near[3] if sock.family == socket.AF_INET6 else 0
        identity = struct.pack("!HH", near[1], far[1]) + addresses + struct.pack("=I", interface)
        return _request_for(sock.family, _ALL_STATES, identity)


def _request_all(family: int) -> bytes:
    """The request for a dump; of the identity the kernel takes the ports into account: any."""
    return _request_for(family, _CONNECTED_STATES, bytes(4 + 32 + 4))


# ---- replies ---------------------------------------------------------------------------------


def _attributes(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    while data:
        if len(data) < 4:
            raise _nonsense("an attribute without a header")
        length, kind = struct.unpack_from("=HH", data)
        if not 4 <= length <= len(data):
            raise _nonsense(f"an attribute of {length} bytes in {len(data)}")
        yield kind & _NLA_TYPE_MASK, data[4:length]
        data = data[(length + 3) & ~3 :]


def _messages(datagram: memoryview) -> Iterator[tuple[int, int, int, memoryview]]:
    """Type, flags, sequence number and body of each message."""
    while datagram:
        if len(datagram) < _NLMSGHDR.size:
            raise _nonsense("a message without a header")
        length, kind, flags, sequence, _ = _NLMSGHDR.unpack_from(datagram)
        if not _NLMSGHDR.size <= length <= len(datagram):
            raise _nonsense(f"a message of {length} bytes in {len(datagram)}")
        yield kind, flags, sequence, datagram[_NLMSGHDR.size : length]
        datagram = datagram[(length + 3) & ~3 :]


def _parse_ulp(data: memoryview) -> UlpInfo:
    name = ""
    numbers: dict[str, int] = {}
    flags: dict[str, bool] = {}
    for kind, value in _attributes(data):
        if kind == lib.INET_ULP_INFO_NAME:
            name = bytes(value).partition(b"\0")[0].decode(errors="replace")
        elif kind == lib.INET_ULP_INFO_TLS:
            for inner, content in _attributes(value):
                if inner in _FLAGS:
                    flags[_FLAGS[inner]] = True
                elif inner in _U16:
                    if len(content) != 2:
                        raise _nonsense(f"{_U16[inner]} in {len(content)} bytes")
                    (numbers[_U16[inner]],) = struct.unpack("=H", content)
    return UlpInfo(
        name,
        numbers.get("version"),
        numbers.get("cipher_type"),
        numbers.get("tx_conf"),
        numbers.get("rx_conf"),
        flags.get("zerocopy_ro", False),
        flags.get("rx_no_pad", False),
        numbers.get("tx_max_payload_len"),
    )


def _parse_ulp_of(body: memoryview) -> UlpInfo | None:
    if len(body) < _INET_DIAG_MSG.size:
        raise _nonsense(f"an inet_diag_msg of {len(body)} bytes")
    for kind, value in _attributes(body[_INET_DIAG_MSG.size :]):
        if kind == lib.INET_DIAG_ULP_INFO:
            return _parse_ulp(value)
    return None


def _parse_connection(body: memoryview) -> Connection | None:
    """None if there is no upper layer protocol: of most connections nothing else is of interest."""
    ulp = _parse_ulp_of(body)
    if ulp is None:
        return None
    (
        family, state, _, _, near_port, far_port, near, far, interface, _, _, rqueue, wqueue, uid,
        inode,
    ) = _INET_DIAG_MSG.unpack_from(body)  # fmt: skip
    if family not in (socket.AF_INET, socket.AF_INET6):
        raise _nonsense(f"a socket of address family {family}")
    size = 4 if family == socket.AF_INET else 16
    return Connection(
        family,
        state,
        (socket.inet_ntop(family, near[:size]), int.from_bytes(near_port, "big")),
        (socket.inet_ntop(family, far[:size]), int.from_bytes(far_port, "big")),
        interface,
        rqueue,
        wqueue,
        uid,
        inode,
        ulp,
    )


def _raise_error(body: memoryview) -> None:
    """The error number at the start of an NLMSG_ERROR or NLMSG_DONE; 0 is none."""
    if len(body) < 4:
        raise _nonsense("an error without a number")
    (error,) = struct.unpack_from("=i", body)
    if error < 0:
        raise syscall_error(-error, _CALL)


# ---- asking ----------------------------------------------------------------------------------


def _open() -> socket.socket:
    try:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
    except OSError as e:
        raise syscall_error(e.errno or errno.EPROTONOSUPPORT, "socket(AF_NETLINK)") from e


def _datagrams(netlink: socket.socket, size: int) -> Iterator[memoryview]:
    """What the kernel sends, one after the other; what others send is passed over."""
    limit = time.monotonic() + _PATIENCE
    while True:
        netlink.settimeout(max(limit - time.monotonic(), 0.001))
        try:
            data, _, flags, (sender, _) = netlink.recvmsg(size)
        except OSError as e:  # TimeoutError has no number
            raise syscall_error(e.errno or errno.ETIMEDOUT, _CALL) from e
        if sender == 0:
            if flags & socket.MSG_TRUNC:
                raise _Again(larger=True)
            yield memoryview(data)
            limit = time.monotonic() + _PATIENCE
        elif time.monotonic() > limit:
            raise syscall_error(errno.ETIMEDOUT, _CALL)


def _bodies(
    netlink: socket.socket, sequence: int, size: int, *, dump: bool
) -> Iterator[memoryview]:
    """The bodies of all replies to the request with that sequence number."""
    for datagram in _datagrams(netlink, size):
        for kind, flags, number, body in _messages(datagram):
            if kind == _NLMSG_OVERRUN:
                raise _Again
            if number != sequence:
                continue
            if flags & _NLM_F_DUMP_INTR and dump:
                raise _Again
            if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                _raise_error(body)
                return
            if kind == _SOCK_DIAG_BY_FAMILY:
                yield body
                if not dump:
                    return


def _ask(request: bytes, parse: Callable[[memoryview], T], *, dump: bool) -> list[T]:
    """Send a request and parse all replies to it; a broken answer is asked for again."""
    size = _BUFFER
    for sequence in range(1, _ATTEMPTS + 1):
        flags = _NLM_F_REQUEST | (_NLM_F_DUMP if dump else 0)
        header = _NLMSGHDR.pack(
            _NLMSGHDR.size + len(request), _SOCK_DIAG_BY_FAMILY, flags, sequence, 0
        )
        # A socket of its own each time: the rest of a broken answer goes with it.
        with _open() as netlink:
            try:
                netlink.sendto(header + request, (0, 0))
            except OSError as e:
                raise syscall_error(e.errno or errno.EIO, _CALL) from e
            try:
                return [parse(b) for b in _bodies(netlink, sequence, size, dump=dump)]
            except _Again as e:
                size *= 4 if e.larger else 1
    raise OSError(
        errno.EBUSY, f"{_CALL}: {os.strerror(errno.EBUSY)}: no whole answer in {_ATTEMPTS} attempts"
    )


def ulp_info(sock: HasFileno | int) -> UlpInfo | None:
    """What the kernel reports of this connection's upper layer protocol.

    None where it reports nothing: none is attached, or it does not tell this caller.  Raises
    OSError where the question cannot be asked (ENOENT: the socket is of another network
    namespace; EPROTONOSUPPORT or EACCES: no netlink here).
    """
    found = _ask(_request_one(descriptor(sock)), _parse_ulp_of, dump=False)
    return found[0] if found else None


def connections(family: int) -> list[Connection]:
    """All TCP connections of this network namespace that have an upper layer protocol.

    ``family`` is AF_INET or AF_INET6.  Where the kernel does not tell this caller of protocols the
    list is empty; see ``is_told``.  Raises OSError as ``ulp_info``.
    """
    answer = _ask(_request_all(family), _parse_connection, dump=True)
    return [found for found in answer if found is not None]


def is_told() -> bool:
    """Whether the kernel tells this caller of upper layer protocols, tried on an own connection.

    Raises OSError where that cannot be tried: no loopback interface, or no kernel TLS.
    """
    near, far = loopback_pair()
    with near, far:
        # Reset in the end: a monitor may ask every second, and shall not leave a TIME_WAIT each
        # time.
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        set_ulp(near)
        told = ulp_info(near) is not None
        far.close()
    return told
