"""What this machine's own kernel can do; written without pyktls, which is under test."""

from __future__ import annotations

import socket

TCP_ULP = 31


def has_kernel_tls() -> bool:
    """Whether the upper layer protocol "tls" can be attached to a TCP connection."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as near,
        listener.accept()[0],
    ):
        try:
            near.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
        except OSError:
            return False
        return True
