"""What the kernel says of a socket while it is alive.

Nothing here believes pyktls.  ``look`` asks the socket's own options, its entry in the socket
diagnostics (by us and by `ss`), and by how much /proc/net/tls_stat has moved since just before the
switch.  ``record_numbers`` asks for the sequence numbers that the kernel holds: asked before and
after the transfer, they tell how many records the kernel itself made and opened.  Whether all that
is enough is for `outcomes` to decide.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyktls import Unavailable, linux
from pyktls.linux.sock_diag import ulp_info
from pyktls.status import status

from .tools import what_it_prints

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    # Of the next record: TX, RX.
    Numbers = tuple[int | None, int | None]

__all__ = ["Evidence", "look", "record_numbers"]


@dataclass(slots=True)
class Evidence:
    """What the kernel says of one socket while it is alive.

    ``tx`` and ``rx`` are the values of pyktls.Mode, from getsockopt and sock_diag; ``sock_diag``
    and ``ss`` are None where the kernel does not tell this user.  ``counters`` is by how much
    /proc/net/tls_stat moved when this socket was switched.  ``tx_records`` and ``rx_records`` are
    by how much the kernel's sequence numbers moved during the transfer.
    """

    socket: str
    ulp: str
    version: int | None
    cipher: str | None
    tx: str
    rx: str
    sock_diag: dict[str, Any] | None = None
    ss: str | None = None
    counters: dict[str, int] = field(default_factory=dict)
    tx_records: int | None = None
    rx_records: int | None = None

    def count_records(self, before: Numbers, after: Numbers) -> None:
        """Note how far the kernel's sequence numbers (TX, RX) have moved."""
        self.tx_records, self.rx_records = (
            None if then is None or now is None else now - then
            for then, now in zip(before, after, strict=True)
        )


def look(sock: socket.socket, before: Mapping[str, int] | None, ss: str | None) -> Evidence:
    """Ask the kernel about a live socket; ``before`` is tls_stat from before it was switched."""
    found = status(sock)
    evidence = Evidence(
        socket=f"{_address(sock.getsockname())} to {_address(sock.getpeername())}",
        ulp=found.ulp,
        version=found.version,
        cipher=found.cipher,
        tx=found.tx.value,
        rx=found.rx.value,
    )
    if before is not None:
        evidence.counters = changes(before, linux.tls_stat())
        with contextlib.suppress(OSError):
            info = ulp_info(sock)
            evidence.sock_diag = dataclasses.asdict(info) if info is not None else None
        if ss is not None:
            evidence.ss = ask_ss(ss, sock)
    return evidence


def _address(address: Any) -> str:
    return f"{address[0]}:{address[1]}"


def ask_ss(ss: str, sock: socket.socket) -> str | None:
    """What `ss` prints of the socket's upper layer protocol, None if nothing."""
    near, far = _address(sock.getsockname()), _address(sock.getpeername())
    printed = what_it_prints([ss, "-tniH", "src", near, "dst", far])
    found = re.search(r"tcp-ulp-\S+(?: \w+: \S+)*", printed)
    return found[0] if found else None


def record_numbers(sock: socket.socket) -> Numbers:
    """The sequence numbers that the kernel holds for sending and receiving, None if not told."""
    numbers: list[int | None] = []
    for option in (linux.TLS_TX, linux.TLS_RX):
        try:
            numbers.append(linux.get_rec_seq(sock, option))
        except (OSError, Unavailable):
            # No keys there; a cipher that Linux before 5.16 withholds; another system.
            numbers.append(None)
    return numbers[0], numbers[1]


def changes(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """The counters that differ, and by how much."""
    return {k: v - before.get(k, 0) for k, v in after.items() if v != before.get(k, 0)}
