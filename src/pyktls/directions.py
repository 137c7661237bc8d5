"""Who carries a direction of a connection: the kernel, or OpenSSL.

The record layer (record_layer.py) asks ``incoming`` for records and gives records to ``outgoing``.
Usually both are the kernel's, and then the hot path does not even come here.  Where only one
direction was switched (``pyktls.offload(tx=..., rx=...)``), OpenSSL goes on with the other one, and
an object of openssl_directions.py stands for it, with the same calls and the same answers as the
kernel's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from . import _records
from .protocol import HANDSHAKE, Direction
from .running_system import system
from .switch import rekey_fd

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed import ReadableBuffer, WriteableBuffer

    from .session import Session

__all__ = ["Incoming", "KernelIncoming", "KernelOutgoing", "Outgoing"]


class Incoming(Protocol):
    """The receiving half; the calls are those of ``_records``."""

    #: Whether it is the kernel's.
    in_kernel: bool

    def recv(
        self, fd: int, size: int, flags: int, deadline: _records.Deadline, /
    ) -> tuple[bytes, int, int]:
        """Receive: bytes, record type, msg_flags."""

    def recv_into(
        self,
        fd: int,
        buffer: WriteableBuffer,
        size: int,
        flags: int,
        deadline: _records.Deadline,
        /,
    ) -> tuple[int, int, int]:
        """Receive into a buffer: number of bytes, record type, msg_flags."""

    def recvmsg_into(
        self,
        fd: int,
        buffers: Iterable[WriteableBuffer],
        flags: int,
        deadline: _records.Deadline,
        /,
    ) -> tuple[int, int, int]:
        """Receive into buffers, none of them empty; otherwise as recv_into."""

    def pending(self) -> int:
        """Bytes of plaintext that select(2) does not see."""

    def change_keys(self, fd: int, session: Session) -> None:
        """Go on to the next keys after the peer's KeyUpdate; OSError if that cannot be done."""

    def go_on(self, fd: int) -> None:
        """Receive on with the same keys, after a record that only looked like a KeyUpdate."""

    def release(self) -> None:
        """The connection is over."""


class Outgoing(Protocol):
    """The sending half; the calls are those of ``_records``."""

    #: Whether it is the kernel's.
    in_kernel: bool

    def send(
        self,
        fd: int,
        buffer: ReadableBuffer,
        flags: int,
        record_type: int,
        deadline: _records.Deadline,
        /,
    ) -> int:
        """Send data, or a control record of that type; the number of bytes that were taken."""

    def sendall(
        self, fd: int, buffer: ReadableBuffer, flags: int, deadline: _records.Deadline, /
    ) -> None:
        """Send all of the data."""

    def sendmsg(
        self,
        fd: int,
        buffers: Iterable[ReadableBuffer],
        flags: int,
        record_type: int,
        deadline: _records.Deadline,
        /,
    ) -> int:
        """Send what is in several buffers."""

    def can_change_keys(self, session: Session) -> bool:
        """Whether there is a way to other keys."""

    def send_key_update(
        self, fd: int, message: bytes, flags: int, deadline: _records.Deadline
    ) -> None:
        """Send a KeyUpdate; it is sent whole or, with an error, not at all."""

    def change_keys(self, fd: int, session: Session) -> None:
        """Go on to the next keys; right after send_key_update."""

    def next_sequence(self, fd: int) -> int | None:
        """The number of the next record; None where it is not told."""

    def release(self) -> None:
        """The connection is over."""


# ---- the kernel ------------------------------------------------------------------------------


class KernelIncoming:
    """Receiving is the kernel's."""

    __slots__ = ()
    in_kernel = True
    recv = staticmethod(_records.recv)
    recv_into = staticmethod(_records.recv_into)
    recvmsg_into = staticmethod(_records.recvmsg_into)

    def pending(self) -> int:
        """Nothing: what the kernel has, select(2) sees."""
        return 0

    def change_keys(self, fd: int, session: Session) -> None:
        """Give the kernel the next keys."""
        rekey_fd(fd, session, Direction.RX)

    def go_on(self, fd: int) -> None:
        """Have the kernel go on."""
        system.go_on_receiving(fd)

    def release(self) -> None:
        """Nothing: the descriptor is all there is."""


class KernelOutgoing:
    """Sending is the kernel's."""

    __slots__ = ()
    in_kernel = True
    send = staticmethod(_records.send)
    sendall = staticmethod(_records.sendall)
    sendmsg = staticmethod(_records.sendmsg)

    def can_change_keys(self, session: Session) -> bool:
        """Whether this kernel can."""
        return system.can_rekey(session.version, session.cipher.aead)

    def send_key_update(
        self, fd: int, message: bytes, flags: int, deadline: _records.Deadline
    ) -> None:
        """Send it as a handshake record."""
        _records.send(fd, message, flags, HANDSHAKE, deadline)

    def change_keys(self, fd: int, session: Session) -> None:
        """Give the kernel the next keys."""
        rekey_fd(fd, session, Direction.TX)

    def next_sequence(self, fd: int) -> int | None:
        """Ask the kernel."""
        return system.next_sequence(fd, Direction.TX)

    def release(self) -> None:
        """Nothing: the descriptor is all there is."""
