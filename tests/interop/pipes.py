"""A connection of a program that sends its standard input and prints what it receives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.kernel import Background, recv_exactly, recv_to_end

from .peer import TIMEOUT, End, Program

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable


class PipeEnd(End):
    """What all such programs have in common; how each sees a close is its own."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def exchange(self, sock: socket.socket, up: bytes, down: bytes) -> tuple[bytes, bytes]:
        """Both ways at once, with a thread for each pipe and each direction."""
        with (
            Background(self.program.say, down),
            Background(sock.sendall, up),
            Background(self.program.read, len(up)) as got,
        ):
            received = recv_exactly(sock, len(down))
            return got.result(TIMEOUT), received

    def take(self, sock: socket.socket, send: Callable[[], object], size: int) -> bytes:
        with Background(self.program.read, size) as got:
            send()
            return got.result(TIMEOUT)

    def take_then_see_close(self, sock: socket.socket, up: bytes) -> bytes:
        with Background(self.program.rest) as got:
            sock.sendall(up)
            sock.close()
            data = got.result(TIMEOUT)
        self.check_close()
        return data

    def give_then_close(self, sock: socket.socket, down: bytes) -> bytes:
        self.program.say(down)
        self.hang_up()
        data = recv_to_end(sock)
        sock.close()
        return data

    def check_close(self) -> None:
        """AssertionError unless it ended well and has seen a close_notify."""
        raise NotImplementedError

    def hang_up(self) -> None:
        """Have it close, after what it was told to send."""
        raise NotImplementedError
