"""How much of what was sent has arrived, as the kernel knows it."""

from __future__ import annotations

import socket
import struct
import sys
from typing import Any

__all__ = ["acknowledged"]

# struct tcp_info of linux/tcp.h: __u64 tcpi_bytes_acked, since Linux 4.1.
OFFSET = 120
SIZE = OFFSET + 8


def acknowledged(sock: Any) -> int | None:
    """Bytes that the peer's TCP has acknowledged, or None if this system does not tell."""
    if sock is None or not sys.platform.startswith("linux"):
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, SIZE)
    except OSError:
        return None
    if len(info) < SIZE:
        return None
    (count,) = struct.unpack_from("=Q", info, OFFSET)
    return int(count)
