"""Moving a switched connection to another process.

The kernel's half of a connection moves with its descriptor.  ``send_socket`` passes that over a
Unix socket (SCM_RIGHTS, unix(7)) together with the half that is in user space
(connection_state.py), and ``receive_socket`` makes a KTLSSocket of both: the handshake in one
process, the data in another.

Nothing is sent to the peer by it, and nothing is lost: records that are under way, data that
MSG_MORE holds back and what has arrived unread are in the kernel's socket, which is the same one
before and after.  Each process that has a descriptor has a share in the connection; it ends when
the last one is closed.

Keys stay where they are.  With ``secrets=True`` the traffic secrets of TLS 1.3 go along, and the
receiver can then follow the peer's KeyUpdate and change keys itself.  Without them a KeyUpdate ends
the connection there with RecordError, and at the cipher's limit (RFC 8446 section 5.5) sending is
refused.  Only one process should have them: two that change the sending keys from the same secret
would both begin at record 0 of the same keys, and repeat nonces.

Fork
====

After a fork both processes have the same socket.  Both can send, and both can receive; each call of
one takes whole records, so only calls that fit a record keep their bytes together.  What is in user
space exists twice: leftover plaintext (``pending()``) is read in both, and a handshake message that
comes in pieces has to be received by one.  O_NONBLOCK is shared, so both need the same kind of
timeout.  Only the process that made the socket changes keys; a KeyUpdate that the other one happens
to read ends the connection, there with RecordError, and for both.

Who is done first calls ``abandon()``, not ``close()``, which would end the connection for both.  If
the parent abandons it, the child can take over the right to change keys as well::

    state = sock.export_state(secrets=True)
    mine = pyktls.KTLSSocket.from_state(state, os.dup(sock.fileno()))
    sock.abandon()
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

from . import _records, connection_state
from .connection_state import HEAD_SIZE, LARGEST_STATE
from .errors import HandoffRefused, InvalidType, InvalidValue, syscall_error
from .key_schedule import wipe
from .record_layer import NO_WAIT
from .sockets import KTLSSocket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["receive_socket", "send_socket"]

# For the rest of a message that has begun, on a Unix socket that does not wait: who writes it has
# all of it at hand.
_REST = 5.0

# On FreeBSD a datagram for a full queue is ENOBUFS, while poll(2) says that there is room: it is
# tried again after a pause.  The queue holds SO_SNDBUF bytes, with addresses and control messages.
_PAUSE = 0.01
_BESIDES = 128

# Room for the most descriptors that one message can carry (SCM_MAX_FD of Linux, unix(7)), and what
# options like SO_PASSCRED add: of all that comes nothing must be cut off unseen.
_ANCILLARY_SIZE = socket.CMSG_SPACE(253 * struct.calcsize("i")) + 1024
_SCM_PIDFD = 4  # Linux, with SO_PASSPIDFD
_CLOEXEC: int = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class _EndOfSockets(HandoffRefused, EOFError):
    """The other side has closed the Unix socket."""


def send_socket(unix_sock: socket.socket, ktls_sock: KTLSSocket, *, secrets: bool = False) -> None:
    """Give a connection to the process at the other end of ``unix_sock``, an AF_UNIX socket.

    When it returns, ``ktls_sock`` is closed here, without close_notify, and the connection goes on
    with ``receive_socket`` there.  If nobody receives it, it ends when the Unix socket is closed,
    without close_notify.  ``secrets`` sends the traffic secrets along (see the top of moving.py);
    TLS 1.2 has none, and no change of keys.

    Waits for room as the timeout of ``unix_sock`` allows; if that is 0, BlockingIOError says that
    there was none.  A SOCK_STREAM socket may take a part first; then the rest is waited for, at
    most 5 seconds if the timeout is 0, and after an error nothing else can be sent through it.
    After every error ``ktls_sock`` is as usable as before.

    Raises HandoffRefused if the connection has ended by an error, another call on it is under way,
    or file objects made by makefile() are open; InvalidType and InvalidValue for wrong arguments;
    TimeoutError; OSError of sendmsg(2), EMSGSIZE where the send buffer of a SOCK_DGRAM or
    SOCK_SEQPACKET socket is smaller than the message (some 1000 bytes, ``pending()``, and the
    peer's certificate two or three times); on FreeBSD a message can have 8 KiB, if that is not
    changed (net.local.dgram.maxdgram).
    """
    _check_unix(unix_sock)
    if not isinstance(ktls_sock, KTLSSocket):
        raise InvalidType(f"ktls_sock must be a KTLSSocket, not {type(ktls_sock).__name__}")
    with connection_state.alone(ktls_sock._layer):  # noqa: SLF001
        state = ktls_sock._packed_state(secrets)  # noqa: SLF001
        try:
            _send(unix_sock, state, ktls_sock.fileno())
        finally:
            wipe(state)
        ktls_sock.abandon()


def receive_socket(unix_sock: socket.socket) -> KTLSSocket:
    """Take over a connection that ``send_socket`` sends to ``unix_sock``, an AF_UNIX socket.

    The KTLSSocket has the timeouts it had there, and its descriptor is closed on exec.

    Waits as the timeout of ``unix_sock`` allows; if that is 0, BlockingIOError says that nothing
    has come.  On a SOCK_STREAM socket the rest of what has begun to come is waited for, at most 5
    seconds if the timeout is 0; not a byte is taken from behind it.

    What comes is checked, not trusted: the form of the message, that there is one descriptor, and
    that the kernel does TLS on it as the message says.  Otherwise the descriptor is closed and
    InvalidValue or HandoffRefused raised; a SOCK_STREAM socket is then of no further use.  If the
    other side has closed, raises EOFError (which is a HandoffRefused too).  Raises OSError of
    recvmsg(2), TimeoutError, and InvalidType and InvalidValue for wrong arguments.
    """
    _check_unix(unix_sock)
    descriptors: list[int] = []
    state = bytearray()
    try:
        state = _receive(unix_sock, descriptors)
        if len(descriptors) != 1:
            raise InvalidValue(f"{len(descriptors)} descriptors came with a connection's state")
        fd = descriptors[0]
        os.set_inheritable(fd, False)
        try:
            sock = KTLSSocket.from_state(state, fd)
        except OSError as e:
            raise HandoffRefused(f"what came is no socket with kernel TLS: {e}") from e
        descriptors.clear()
        return sock
    finally:
        wipe(state)
        for fd in descriptors:
            os.close(fd)


def _check_unix(unix_sock: socket.socket) -> None:
    if not isinstance(unix_sock, socket.socket):
        raise InvalidType(f"unix_sock must be a socket, not {type(unix_sock).__name__}")
    if unix_sock.family != socket.AF_UNIX:
        raise InvalidValue("unix_sock must be an AF_UNIX socket: others carry no descriptors")
    if unix_sock.fileno() < 0:
        raise InvalidValue("unix_sock is closed")


# ---- the Unix socket -------------------------------------------------------------------------


class _Turn:
    """One message over a Unix socket, with one deadline for all of it."""

    def __init__(self, unix_sock: socket.socket) -> None:
        timeout = unix_sock.gettimeout()
        self.sock = unix_sock
        self._deadline = _records.Deadline(timeout)
        self._waits = timeout != NO_WAIT

    def begun(self) -> None:
        """Wait from now on, if only for a while: half a message is of no use."""
        if not self._waits:
            self._deadline = _records.Deadline(_REST)
            self._waits = True

    def sendmsg(self, buffer: memoryview, ancillary: Iterable[Any]) -> int:
        while True:
            self._wait(_records.wait_writable, "sendmsg")
            try:
                return self.sock.sendmsg(
                    [buffer], ancillary, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
                )
            except OSError as e:
                if e.errno == errno.ENOBUFS:
                    self._wait_for_the_queue(len(buffer), e)
                else:
                    self._judge(e, "sendmsg")

    def _wait_for_the_queue(self, size: int, error: OSError) -> None:
        """Wait a little, or raise what Linux says of a queue that is full, or will always be."""
        if self.sock.type != socket.SOCK_STREAM and size + _BESIDES > self.sock.getsockopt(
            socket.SOL_SOCKET, socket.SO_SNDBUF
        ):
            raise syscall_error(errno.EMSGSIZE, "sendmsg") from error
        if not self._waits:
            raise syscall_error(errno.EAGAIN, "sendmsg") from error
        left = self._deadline.remaining()
        if left == 0:
            raise _too_late("sendmsg") from error
        time.sleep(_PAUSE if left is None else min(_PAUSE, left))

    def recvmsg_into(
        self, buffer: bytearray | memoryview
    ) -> tuple[int, list[tuple[int, int, bytes]], int]:
        while True:
            self._wait(_records.wait_readable, "recvmsg")
            try:
                return self.sock.recvmsg_into(
                    [buffer], _ANCILLARY_SIZE, socket.MSG_DONTWAIT | _CLOEXEC
                )[:3]
            except OSError as e:
                self._judge(e, "recvmsg")

    def _wait(self, wait: Callable[[int, _records.Deadline], None], call: str) -> None:
        if not self._waits:
            return
        try:
            wait(self.sock.fileno(), self._deadline)
        except TimeoutError:
            raise _too_late(call) from None

    def _judge(self, error: OSError, call: str) -> None:
        """Raise a call's error, with the name of the call, unless it can be waited for."""
        if isinstance(error, BlockingIOError | TimeoutError) and self._waits:
            return
        raise syscall_error(error.errno or errno.EIO, call) from error


def _too_late(call: str) -> TimeoutError:
    return TimeoutError(
        errno.ETIMEDOUT, f"{call}: the other side of the Unix socket did not do its part"
    )


def _send(unix_sock: socket.socket, state: bytearray, fd: int) -> None:
    """Send the state, the descriptor with its first bytes."""
    turn = _Turn(unix_sock)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    done = 0
    with memoryview(state) as view:
        while done < len(view):
            with view[done:] as rest:
                done += turn.sendmsg(rest, ancillary)
            turn.begun()
            ancillary = []


def _receive(unix_sock: socket.socket, descriptors: list[int]) -> bytearray:
    """Receive a state; every descriptor that comes goes into ``descriptors``."""
    turn = _Turn(unix_sock)
    if unix_sock.type != socket.SOCK_STREAM:
        return _receive_message(turn, descriptors)
    head = bytearray(HEAD_SIZE)
    _fill(turn, head, 0, descriptors)
    state = bytearray(connection_state.total_size(head))
    state[:HEAD_SIZE] = head
    try:
        _fill(turn, state, HEAD_SIZE, descriptors)
    except BaseException:
        wipe(state)
        raise
    return state


def _fill(turn: _Turn, buffer: bytearray, done: int, descriptors: list[int]) -> None:
    """Receive from a stream until ``buffer``, of which so much is there, is full."""
    with memoryview(buffer) as view:
        while done < len(view):
            with view[done:] as rest:
                received, _ = _receive_once(turn, rest, descriptors)
            if not received:
                raise _EndOfSockets(
                    "the Unix socket ended within a connection's state"
                    if done
                    else "the Unix socket has ended: there is no connection to receive"
                )
            turn.begun()
            done += received


def _receive_message(turn: _Turn, descriptors: list[int]) -> bytearray:
    buffer = bytearray(LARGEST_STATE)
    received, flags = _receive_once(turn, buffer, descriptors)
    state = buffer[:received]
    buffer[:received] = bytes(received)
    if flags & socket.MSG_TRUNC:
        wipe(state)
        raise InvalidValue(f"a message of more than {LARGEST_STATE} bytes is no connection's state")
    if not received and turn.sock.type == socket.SOCK_SEQPACKET:
        raise _EndOfSockets("the Unix socket has ended: there is no connection to receive")
    return state


def _receive_once(
    turn: _Turn, buffer: bytearray | memoryview, descriptors: list[int]
) -> tuple[int, int]:
    """One recvmsg(2); returns the number of bytes and the flags."""
    received, ancillary, flags = turn.recvmsg_into(buffer)
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind in (socket.SCM_RIGHTS, _SCM_PIDFD):
            came = array.array("i")
            came.frombytes(data[: len(data) - len(data) % came.itemsize])
            if kind == socket.SCM_RIGHTS:
                descriptors.extend(came)
            else:
                for fd in came:
                    os.close(fd)
    if flags & socket.MSG_CTRUNC:
        raise InvalidValue("descriptors that came with a connection's state were cut off")
    if len(descriptors) > 1:
        raise InvalidValue(f"{len(descriptors)} descriptors came with a connection's state")
    return received, flags
