"""All connections with kernel TLS, whoever switched them on: asked of the kernel.

``status`` is for a socket in hand; this is for those of the whole network namespace.  (pyroute2,
as of 0.9, lists connections too, and hands out what the kernel says of their TLS as bytes.)
"""

from __future__ import annotations

import dataclasses
import enum
import errno
import os
import re
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ._kernel import lib
from .errors import Unavailable
from .linux import sock_diag
from .linux.counters import tls_stat
from .status import Mode, cipher_name, mode_by_linux_conf

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .linux.sock_diag import Connection

__all__ = ["Endpoint", "SocketInfo", "TCPState", "sockets"]


class TCPState(enum.IntEnum):
    """The state of a TCP connection, with Linux's numbers (include/net/tcp_states.h)."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11


class Endpoint(NamedTuple):
    """One end of a connection.

    ``scope_id`` is the interface's index for a link-local IPv6 address, which means nothing
    without, and 0 for any other.
    """

    ip: str
    port: int
    scope_id: int = 0

    def __str__(self) -> str:
        scope = f"%{self.scope_id}" if self.scope_id else ""
        return f"[{self.ip}{scope}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


@dataclass(frozen=True, slots=True)
class SocketInfo:
    """What the kernel tells of one TCP connection with "tls" attached.

    ``family`` is AF_INET or AF_INET6; a connection over IPv4 of an IPv6 socket is AF_INET6, with
    addresses like ``::ffff:192.0.2.1``.  ``state`` is a plain number where pyktls does not know it.
    ``interface`` is the index of the interface that the socket is bound to, None for any.  ``uid``
    is its owner's.  ``inode`` names it in /proc; both are 0 once the socket is closed and the
    kernel alone carries the connection to its end.  ``rqueue`` and ``wqueue`` are the bytes in
    TCP's queues: received and not yet read, sent and not yet acknowledged; a FIN counts as one.

    ``version`` is 0x0303 or 0x0304 and ``cipher`` the AEAD's name, "cipher N" for a number that
    pyktls does not know; both are None, and ``tx`` and ``rx`` are ``Mode.NONE``, while no keys are
    installed, and after the socket was closed.  The three options are as in ``Status``.

    ``processes`` are the processes that have the socket open, by their pid, as far as this process
    may look into /proc; empty where the socket is closed.  It is None where none was found (they
    are other users', or outside of this pid namespace, or the kernel itself uses the connection),
    and where it was not asked for.
    """

    family: socket.AddressFamily
    local: Endpoint
    remote: Endpoint
    state: TCPState | int
    interface: int | None
    uid: int
    inode: int
    rqueue: int
    wqueue: int
    version: int | None
    cipher: str | None
    tx: Mode
    rx: Mode
    zerocopy_ro: bool | None
    rx_no_pad: bool | None
    tx_max_payload_len: int | None
    processes: tuple[int, ...] | None = None


def sockets(*, processes: bool = False) -> list[SocketInfo]:
    """Every TCP connection with kernel TLS in this network namespace, IPv4 before IPv6.

    Each end of a connection is one of its own, and only those on this machine are seen.  It is no
    snapshot: connections come and go while the kernel lists them.  With ``processes`` also whose
    they are, which means to read all of /proc.

    Raises Unavailable where the kernel does not tell: it has no kernel TLS or no socket
    diagnostics, it tells only those with CAP_NET_ADMIN (Linux up to 6.12), this process may not
    ask, or it is not Linux.  An empty list says that there is none.
    """
    if lib.pyktls_system() == lib.PYKTLS_FREEBSD:
        raise Unavailable(
            "FreeBSD does not list the connections that have kernel TLS",
            remedy="pyktls.freebsd.statistics() tells how many there are, pyktls.status(sock) "
            "how it is on a socket of this process",
        )
    if lib.pyktls_system() != lib.PYKTLS_LINUX:
        raise Unavailable("this system has no kernel TLS")
    try:
        found = [
            _info(connection)
            for family in (socket.AF_INET, socket.AF_INET6)
            for connection in sock_diag.connections(family)
            if connection.ulp.name == "tls"
        ]
    except OSError as e:
        raise _unavailable(e) from e
    if not found:
        _be_sure_that_there_is_none()
    elif processes:
        owners = _owners({info.inode for info in found if info.inode})
        found = [
            dataclasses.replace(info, processes=owners.get(info.inode) if info.inode else ())
            for info in found
        ]
    return found


def _info(connection: Connection) -> SocketInfo:
    ulp = connection.ulp
    keys = ulp.version is not None
    state: int = connection.state
    if state in set(TCPState):
        state = TCPState(state)
    return SocketInfo(
        family=socket.AddressFamily(connection.family),
        local=_endpoint(connection.local, connection.interface),
        remote=_endpoint(connection.remote, connection.interface),
        state=state,
        interface=connection.interface or None,
        uid=connection.uid,
        inode=connection.inode,
        rqueue=connection.rqueue,
        wqueue=connection.wqueue,
        version=ulp.version,
        cipher=cipher_name(ulp.cipher_type) if ulp.cipher_type is not None else None,
        tx=mode_by_linux_conf(ulp.tx_conf),
        rx=mode_by_linux_conf(ulp.rx_conf),
        zerocopy_ro=ulp.zerocopy_ro if keys else None,
        rx_no_pad=ulp.rx_no_pad if keys else None,
        tx_max_payload_len=ulp.tx_max_payload_len if keys else None,
    )


def _endpoint(address: tuple[str, int], interface: int) -> Endpoint:
    # fe80::/10 (RFC 4291 section 2.5.6).  A connection to such an address is bound to an interface.
    link_local = re.match("fe[89ab]", address[0]) is not None
    return Endpoint(*address, scope_id=interface if link_local else 0)


# ---- when the kernel does not tell -----------------------------------------------------------


def _unavailable(error: OSError) -> Exception:
    """What to raise in place of an error of the socket diagnostics."""
    if error.errno in (errno.ENOENT, errno.EPROTONOSUPPORT, errno.ECONNREFUSED):
        return Unavailable(
            f"this kernel has no socket diagnostics for TCP ({error})",
            remedy="an administrator can load them with `modprobe tcp_diag`; a kernel built "
            "without CONFIG_INET_DIAG has to be replaced",
        )
    if error.errno in (errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT):
        return Unavailable(
            f"this process may not ask the kernel's socket diagnostics ({error})",
            remedy="its sandbox (seccomp, systemd's RestrictAddressFamilies=, AppArmor, SELinux) "
            "has to allow AF_NETLINK",
        )
    return error


def _be_sure_that_there_is_none() -> None:
    """Raise Unavailable unless an empty answer of the kernel means that there is none."""
    counters = tls_stat()  # raises Unavailable where there is no TLS at all
    try:
        told = sock_diag.is_told()
    except OSError:
        # No loopback interface to try it on.  Then the counters have to do: they tell of all who
        # have keys, and without keys "tls" does nothing.
        told = not any(counters.gauges.values())
    if not told:
        raise Unavailable(
            "this kernel tells which connections have TLS only to those with CAP_NET_ADMIN",
            remedy="ask as root, or with CAP_NET_ADMIN in the user namespace that this network "
            "namespace belongs to; Linux 6.18 tells everybody",
        )


# ---- whose they are --------------------------------------------------------------------------


def _owners(inodes: set[int]) -> dict[int, tuple[int, ...]]:
    """The processes that have those sockets open; a socket of which none is seen is left out."""
    names = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, list[int]] = {}
    for process in sorted(int(name) for name in _entries("/proc") if name.isdigit()):
        for inode in {names[link] for link in _open_files(process) if link in names}:
            found.setdefault(inode, []).append(process)
    return {inode: tuple(pids) for inode, pids in found.items()}


def _open_files(process: int) -> Iterable[str]:
    """Where the links of /proc/PID/fd lead; none where this process may not look."""
    directory = f"/proc/{process}/fd"
    for entry in _entries(directory):
        try:
            yield os.readlink(f"{directory}/{entry}")  # noqa: PTH115
        except OSError:  # closed in the meantime
            continue


def _entries(directory: str) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208  (there may be very many: no objects)
    except OSError:  # not ours to look at, or the process has just ended
        return []
