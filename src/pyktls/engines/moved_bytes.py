"""How many bytes a TLS library has taken from a TCP socket, and given to it: asked of the kernel.

This is the other column of the byte ledger (handoff.py) where OpenSSL's own counters cannot be
reached.  Linux counts for each connection the bytes that came in order and those that the peer has
acknowledged (``TCP_INFO``, tcp(7); the counts since Linux 4.1), and tells how many of each are
still in the socket's queues (``FIONREAD`` and ``TIOCOUTQ``, tcp(7)).  So:

    taken from the socket  =  bytes that came  -  bytes in the receive queue
    given to the socket    =  bytes acknowledged  +  bytes in the send queue

Neither depends on what the network does meanwhile.  The numbers are asked for one after the other,
so ``TCP_INFO`` is asked again until it says the same before and after.
"""

from __future__ import annotations

import array
import fcntl
import functools
import socket
import struct
import sys
import termios

__all__ = ["counts_here", "moved_bytes"]

# struct tcp_info of linux/tcp.h: tcpi_state is the first byte, tcpi_bytes_acked and
# tcpi_bytes_received stand behind 8 bytes, 24 numbers of 32 bits and two of 64.
_COUNTS = struct.Struct("QQ")
_COUNTS_AT = 8 + 24 * 4 + 2 * 8
_ENOUGH = 512

# include/net/tcp_states.h.  Before these nothing is counted yet, after them nothing any more.
_ESTABLISHED, _FIN_WAIT1, _FIN_WAIT2, _CLOSE_WAIT = 1, 4, 5, 8
_STATES = (_ESTABLISHED, _FIN_WAIT1, _FIN_WAIT2, _CLOSE_WAIT)

_ATTEMPTS = 1000  # each takes some microseconds; a sender outruns them only until the queue is full


@functools.cache
def counts_here() -> bool:
    """Whether this kernel has such counts at all."""
    if sys.platform != "linux":
        return False
    with socket.socket() as sock:
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ENOUGH)
        except OSError:
            return False
    return len(info) >= _COUNTS_AT + _COUNTS.size


def _ask(sock: socket.socket) -> tuple[int, int, int] | None:
    # Past the methods of ssl.SSLSocket, and those of any class made from it.
    info = socket.socket.getsockopt(sock, socket.IPPROTO_TCP, socket.TCP_INFO, _ENOUGH)
    if len(info) < _COUNTS_AT + _COUNTS.size or info[0] not in _STATES:
        return None
    acknowledged, received = _COUNTS.unpack_from(info, _COUNTS_AT)
    # The peer's FIN is counted like a byte.
    return info[0], acknowledged, received - (info[0] == _CLOSE_WAIT)


def _queue(fd: int, request: int) -> int:
    answer = array.array("i", [0])
    fcntl.ioctl(fd, request, answer)
    return answer[0]


def moved_bytes(sock: socket.socket) -> tuple[int, int] | None:
    """Bytes that were written to the TCP socket, and read from it, since some fixed moment.

    Only differences mean something.  None where nobody counts: on another kernel than Linux, on
    another socket than TCP, and on one that is not connected (any more).
    """
    if sys.platform != "linux":
        return None
    try:
        before = _ask(sock)
        for _ in range(_ATTEMPTS):
            unread, unacknowledged = (
                _queue(sock.fileno(), request) for request in (termios.FIONREAD, termios.TIOCOUTQ)
            )
            after = _ask(sock)
            if before is None or after is None:
                return None
            if before == after:
                return after[1] + unacknowledged, after[2] - unread
            before = after
    except (OSError, ValueError):  # a closed socket, a Unix one
        return None
    return None
