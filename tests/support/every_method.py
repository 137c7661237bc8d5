"""Every public method of a socket of ours, with arguments that some method may be right with.

For tests that nothing wrong reaches the wire, whatever is called: methods that nobody knew of too.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
import tempfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contextlib import ExitStack

PIECE = b"data"
#: Those that send PIECE, whole or in part.
SENDING = {"send", "sendall", "sendmsg", "write", "sendfile", "splice_from"}
#: Those after which there is nothing to go on with.
TERMINAL = {"abandon", "close", "detach", "shutdown", "unwrap"}


def public_names(kind: type) -> list[str]:
    return sorted(name for name in dir(kind) if not name.startswith("_"))


def argument_lists(name: str, stack: ExitStack) -> list[tuple[Any, ...]]:
    if name in ("splice_to", "splice_from"):
        out, into = os.pipe()
        stack.callback(os.close, out)
        stack.callback(os.close, into)
        os.write(into, PIECE)
        return [(out if name == "splice_from" else into, len(PIECE))]
    if name == "sendfile":
        file = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        file.write(PIECE)
        file.seek(0)
        return [(file,)]
    where = ("127.0.0.1", 9)
    return [
        (), (PIECE,), (8,), (bytearray(8),), ([PIECE],), ([bytearray(8)],), (PIECE, 0), (where,),
        (PIECE, where), (PIECE, 0, where), (8, bytearray(8)), ([PIECE], [], 0, where), (None,),
        (False,), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), ("rwb",), ([PIECE], 8),
    ]  # fmt: skip


def call(sock: socket.socket, name: str, timeout: float) -> None:
    """Call it with all of them; what it says to them is not the question here."""
    with contextlib.ExitStack() as stack:
        for arguments in argument_lists(name, stack):
            sock.settimeout(0.05)
            with contextlib.suppress(Exception):
                member = getattr(sock, name)
                if callable(member):
                    result = member(*arguments)
                    if isinstance(result, io.IOBase):
                        result.close()
        sock.settimeout(timeout)


def assert_nothing_else_was_sent(sock: socket.socket, peer: socket.socket, *, sends: bool) -> None:
    """After ``call``: the peer's records go on without a gap, and nothing but PIECE is in them."""
    marker = b"<and on>"
    sock.sendall(marker)
    received = b""
    while not received.endswith(marker):
        piece = peer.recv(1 << 16)
        assert piece
        received += piece
    before = received.removesuffix(marker)
    if sends:
        assert before
        assert before.replace(PIECE, b"").strip(b"\0") == b""
    else:
        assert before == b""
