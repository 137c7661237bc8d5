"""How much of what was sent has arrived, and whether the peer is there, as the kernel knows it."""

from __future__ import annotations

import array
import fcntl
import socket
import struct
import sys
import termios
from typing import Any

__all__ = ["acknowledged", "has_left", "outstanding"]

# struct tcp_info of linux/tcp.h: __u8 tcpi_state is the first, and at this offset there is
# __u64 tcpi_bytes_acked, since Linux 4.1.
OFFSET = 120
SIZE = OFFSET + 8
# sys/filio.h of FreeBSD: _IOR('f', 119, int), bytes in the send buffer.
FIONWRITE = 0x4004_6677


def acknowledged(sock: Any) -> int | None:
    """Bytes that the peer's TCP has acknowledged, or None if this system does not tell."""
    if sock is None or not sys.platform.startswith("linux"):
        return None
    try:
        info: bytes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, SIZE)
    except OSError:
        return None
    return int(struct.unpack_from("=Q", info, OFFSET)[0]) if len(info) == SIZE else None


def outstanding(sock: Any) -> int | None:
    """Bytes that it has not acknowledged, or None if this system does not tell."""
    if sock is None:
        return None
    if sys.platform.startswith("linux"):
        request = termios.TIOCOUTQ
    elif sys.platform.startswith("freebsd"):
        request = FIONWRITE
    else:
        return None
    number = array.array("i", [0])
    try:
        fcntl.ioctl(sock.fileno(), request, number)
    except (OSError, ValueError):
        return None
    return number[0]


def has_left(sock: Any) -> bool:
    """Whether the peer has ended its side of the connection, and all that it sent has been read."""
    if sock is None:
        return True
    try:
        with socket.fromfd(sock.fileno(), sock.family, sock.type) as same:
            return not same.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
