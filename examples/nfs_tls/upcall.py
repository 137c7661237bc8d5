"""How Linux's kernel asks for handshakes and is answered: generic netlink, family "handshake".

Three messages (include/uapi/linux/handshake.h, Documentation/netlink/specs/handshake.yaml): READY
is sent to the multicast group "tlshd" when there is something to do; ACCEPT fetches one request,
and with it a descriptor of the kernel's socket, which is made in this very process; DONE says how
it went, and names the descriptor.  They are for one network namespace, that of the process.

One READY comes for each request, but ACCEPT takes what is first in the queue: it is called until
the queue is empty, also at the start, when requests may be waiting for a daemon that has gone.

The kernel answers a netlink request before sendmsg(2) returns, so the replies here are read without
waiting, and asyncio only has to watch the socket of the events.  That is why there is a codec of
our own for a handful of attributes, and no library: it has to take a descriptor out of a message
and close it whatever else is wrong with that message.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .policy import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# linux/netlink.h, linux/genetlink.h
NETLINK_GENERIC = 16
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
NLMSG_ERROR = 2
NLM_F_REQUEST, NLM_F_ACK = 1, 4
NLA_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
GENL_ID_CTRL = 16
CTRL_CMD_GETFAMILY = 3
CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME, CTRL_ATTR_MCAST_GROUPS = 1, 2, 7
CTRL_ATTR_MCAST_GRP_NAME, CTRL_ATTR_MCAST_GRP_ID = 1, 2

# linux/handshake.h
FAMILY, VERSION, GROUP = "handshake", 1, "tlshd"
CMD_READY, CMD_ACCEPT, CMD_DONE = 1, 2, 3
HANDLER_CLASS_TLSHD = 1
MSG_TYPE_CLIENTHELLO, MSG_TYPE_SERVERHELLO = 1, 2
AUTH_UNAUTH, AUTH_PSK, AUTH_X509 = 1, 2, 3
(
    A_ACCEPT_SOCKFD,
    A_ACCEPT_HANDLER_CLASS,
    A_ACCEPT_MESSAGE_TYPE,
    A_ACCEPT_TIMEOUT,
    A_ACCEPT_AUTH_MODE,
    A_ACCEPT_PEER_IDENTITY,
    A_ACCEPT_CERTIFICATE,
    A_ACCEPT_PEERNAME,
    A_ACCEPT_KEYRING,
) = range(1, 10)
A_X509_CERT, A_X509_PRIVKEY = 1, 2
A_DONE_STATUS, A_DONE_SOCKFD, A_DONE_REMOTE_AUTH = 1, 2, 3

#: A peer was authenticated, and no key of the keyrings stands for it: what tlshd says, too.
PEER_WITHOUT_KEY = 0xFFFFFFFF

# What the kernel makes of it: sunrpc's client tries again after ETIMEDOUT and ends the mount after
# EACCES, and so after everything else; its server closes the connection after any of them.
ERRORS = {
    Verdict.OK: 0,
    Verdict.DENIED: errno.EACCES,
    Verdict.TRY_AGAIN: errno.ETIMEDOUT,
    Verdict.UNSUPPORTED: errno.EOPNOTSUPP,
    Verdict.INVALID: errno.EINVAL,
}

HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
GENERIC_HEADER = struct.Struct("=BBH")  # struct genlmsghdr
ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
LONGEST = 65536


class UpcallError(Exception):
    """There is no upcall here, or what came is no message of it."""


@dataclass(frozen=True)
class Upcall:
    """One request, as the kernel put it.  ``fd`` is the receiver's to close.

    ``timeout`` is in milliseconds, 0 where the kernel names none.  ``identities``, ``keyring`` and
    ``certificates`` (certificate and private key) are serials of keys.  The kernel has linked
    ``keyring`` into this process's; older ones (6.12) do so without saying which.
    """

    fd: int
    message_type: int = 0
    auth_mode: int = 0
    timeout: int = 0
    peername: str | None = None
    identities: tuple[int, ...] = ()
    certificates: tuple[tuple[int, int], ...] = ()
    keyring: int = 0


# ---- the codec ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Message:
    """A generic netlink message: ``kind`` is the family's number, or NLMSG_ERROR."""

    kind: int
    sequence: int
    command: int = 0
    attributes: tuple[tuple[int, bytes], ...] = ()
    #: Of NLMSG_ERROR: a positive errno, 0 for an acknowledgement.
    error: int = 0


def pack_attribute(kind: int, content: bytes) -> bytes:
    """One attribute, padded to a multiple of four bytes."""
    head = ATTRIBUTE.pack(ATTRIBUTE.size + len(content), kind)
    return head + content + bytes(-len(content) % 4)


def pack_u32(kind: int, value: int) -> bytes:
    """An attribute that holds a u32."""
    return pack_attribute(kind, struct.pack("=I", value & 0xFFFFFFFF))


def pack_message(
    kind: int, command: int, sequence: int, attributes: bytes, *, flags: int = NLM_F_REQUEST
) -> bytes:
    """A whole request."""
    content = GENERIC_HEADER.pack(command, VERSION, 0) + attributes
    return HEADER.pack(HEADER.size + len(content), kind, flags, sequence, 0) + content


def unpack_attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Attributes one after the other.  Raises UpcallError where lengths do not fit."""
    while data:
        if len(data) < ATTRIBUTE.size:
            raise UpcallError(f"an attribute of {len(data)} bytes")
        length, kind = ATTRIBUTE.unpack_from(data)
        if not ATTRIBUTE.size <= length <= len(data):
            raise UpcallError(f"an attribute with length {length} in {len(data)} bytes")
        yield kind & NLA_TYPE_MASK, data[ATTRIBUTE.size : length]
        data = data[length + -length % 4 :]


def unpack_message(data: bytes) -> Message:
    """The first message of a datagram.  Raises UpcallError."""
    if len(data) < HEADER.size:
        raise UpcallError(f"a message of {len(data)} bytes")
    length, kind, _, sequence, _ = HEADER.unpack_from(data)
    if not HEADER.size <= length <= len(data):
        raise UpcallError(f"a message with length {length} in {len(data)} bytes")
    content = data[HEADER.size : length]
    if kind == NLMSG_ERROR:
        if len(content) < 4:
            raise UpcallError("an error message without an error")
        return Message(kind, sequence, error=-struct.unpack_from("=i", content)[0])
    if len(content) < GENERIC_HEADER.size:
        raise UpcallError("a message without a command")
    command, _, _ = GENERIC_HEADER.unpack_from(content)
    return Message(
        kind, sequence, command, tuple(unpack_attributes(content[GENERIC_HEADER.size :]))
    )


def unpack_u32(content: bytes) -> int:
    """The content of a u32 attribute.  Raises UpcallError for another length."""
    if len(content) != 4:
        raise UpcallError(f"{len(content)} bytes where a number of 4 is expected")
    return int(struct.unpack("=I", content)[0])


def unpack_name(content: bytes) -> str:
    """The content of a string attribute, which ends with NUL."""
    return content.split(b"\0", 1)[0].decode(errors="replace")


def unpack_accept(attributes: Iterable[tuple[int, bytes]]) -> Upcall:
    """The request in a reply to ACCEPT.

    If there is a descriptor and the rest makes no sense, the descriptor is closed.  Raises
    UpcallError.
    """
    items = tuple(attributes)
    fds = [content for kind, content in items if kind == A_ACCEPT_SOCKFD]
    if len(fds) != 1 or len(fds[0]) != 4:
        raise UpcallError("a request without a socket")
    fd = int(struct.unpack("=i", fds[0])[0])
    if fd < 0:
        raise UpcallError(f"a request with the descriptor {fd}")
    try:
        return _unpack_accepted(fd, items)
    except UpcallError:
        with contextlib.suppress(OSError):
            os.close(fd)
        raise


def _unpack_accepted(fd: int, items: tuple[tuple[int, bytes], ...]) -> Upcall:
    numbers = {A_ACCEPT_MESSAGE_TYPE: 0, A_ACCEPT_AUTH_MODE: 0, A_ACCEPT_TIMEOUT: 0}
    numbers[A_ACCEPT_KEYRING] = 0
    identities: list[int] = []
    certificates: list[tuple[int, int]] = []
    peername = None
    for kind, content in items:
        if kind in numbers:
            numbers[kind] = unpack_u32(content)
        elif kind == A_ACCEPT_PEER_IDENTITY:
            identities.append(unpack_u32(content))
        elif kind == A_ACCEPT_CERTIFICATE:
            pair = {name: unpack_u32(value) for name, value in unpack_attributes(content)}
            certificates.append((pair.get(A_X509_CERT, 0), pair.get(A_X509_PRIVKEY, 0)))
        elif kind == A_ACCEPT_PEERNAME:
            peername = unpack_name(content)
    return Upcall(
        fd,
        numbers[A_ACCEPT_MESSAGE_TYPE],
        numbers[A_ACCEPT_AUTH_MODE],
        numbers[A_ACCEPT_TIMEOUT],
        peername,
        tuple(identities),
        tuple(certificates),
        numbers[A_ACCEPT_KEYRING],
    )


def pack_done(fd: int, verdict: Verdict, remote_auth: Iterable[int] = ()) -> bytes:
    """The attributes of DONE."""
    parts = [pack_u32(A_DONE_STATUS, ERRORS[verdict]), pack_u32(A_DONE_SOCKFD, fd)]
    parts += [pack_u32(A_DONE_REMOTE_AUTH, serial) for serial in remote_auth]
    return b"".join(parts)


def group_number(attributes: Iterable[tuple[int, bytes]], name: str) -> int | None:
    """The number of a multicast group, in a reply to CTRL_CMD_GETFAMILY."""
    for kind, content in attributes:
        if kind != CTRL_ATTR_MCAST_GROUPS:
            continue
        for _, group in unpack_attributes(content):
            entries = dict(unpack_attributes(group))
            if unpack_name(entries.get(CTRL_ATTR_MCAST_GRP_NAME, b"")) == name:
                return unpack_u32(entries.get(CTRL_ATTR_MCAST_GRP_ID, b""))
    return None


# ---- the sockets -------------------------------------------------------------------------------


@dataclass
class Netlink:
    """A generic netlink socket for requests.  ``sock`` is replaced by tests."""

    sock: socket.socket = field(
        default_factory=lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC)
    )
    _sequence: int = 0

    def ask(self, kind: int, command: int, attributes: bytes, *, flags: int = 0) -> Message:
        """Send a request and return the answer to it.  Raises OSError for an error in it."""
        self._sequence += 1
        packed = pack_message(
            kind, command, self._sequence, attributes, flags=NLM_F_REQUEST | flags
        )
        self.sock.send(packed)
        while True:
            answer = unpack_message(self.sock.recv(LONGEST, socket.MSG_DONTWAIT))
            if answer.sequence == self._sequence:
                break
        if answer.error:
            raise OSError(answer.error, f"handshake upcall: {os.strerror(answer.error)}")
        return answer

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()


class HandshakeUpcall:
    """The family's two sockets.  From when it is made, this process is one that the kernel asks.

    Raises UpcallError where the kernel has no such upcall, OSError where this process may not.
    """

    def __init__(self) -> None:
        self._requests = Netlink()
        self.events = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, NETLINK_GENERIC
        )
        try:
            # Before it joins: of a socket without an address the kernel finds that nobody listens.
            self.events.bind((0, 0))
            self._family, group = self._look_up()
            self.events.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        except BaseException:
            self.close()
            raise

    def _look_up(self) -> tuple[int, int]:
        name = pack_attribute(CTRL_ATTR_FAMILY_NAME, FAMILY.encode() + b"\0")
        try:
            answer = self._requests.ask(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, name)
        except FileNotFoundError as e:
            raise UpcallError(
                "this kernel has no handshake upcall: Linux 6.4 or later with CONFIG_NET_HANDSHAKE "
                "is needed (6.5 for an NFS client)"
            ) from e
        group = group_number(answer.attributes, GROUP)
        number = dict(answer.attributes).get(CTRL_ATTR_FAMILY_ID, b"")
        if group is None or len(number) != 2:
            raise UpcallError(f"the family {FAMILY} has no group {GROUP}")
        return int(struct.unpack("=H", number)[0]), group

    def drain(self) -> None:
        """Read all events away: they say that there is something, and ACCEPT finds out what."""
        while True:
            try:
                self.events.recv(LONGEST)
            except BlockingIOError:
                return
            except OSError as e:
                if e.errno != errno.ENOBUFS:  # there were more than the socket could hold
                    raise

    def accept(self) -> Upcall | None:
        """Fetch one request; None if there is none.  Raises UpcallError and OSError."""
        attributes = pack_u32(A_ACCEPT_HANDLER_CLASS, HANDLER_CLASS_TLSHD)
        try:
            answer = self._requests.ask(self._family, CMD_ACCEPT, attributes)
        except BlockingIOError:
            return None
        return unpack_accept(answer.attributes)

    def done(self, fd: int, verdict: Verdict, remote_auth: Iterable[int] = ()) -> bool:
        """Say how it went; ``fd`` stays open.  False if the kernel no longer waits for it."""
        attributes = pack_done(fd, verdict, remote_auth)
        try:
            self._requests.ask(self._family, CMD_DONE, attributes, flags=NLM_F_ACK)
        except OSError as e:
            if e.errno == errno.EBUSY:
                return False
            raise
        return True

    def leave(self) -> None:
        """Be asked no more; what was accepted can still be answered."""
        self.events.close()

    def close(self) -> None:
        """Close both sockets."""
        self.events.close()
        self._requests.close()
