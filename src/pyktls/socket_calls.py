"""What the interfaces of both systems stand on: descriptors, socket options, a pair to try on."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Protocol

from ._kernel import ffi, lib
from .arguments import integer
from .errors import InvalidType, InvalidValue, syscall_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .ciphers import AEAD
    from .protocol import Direction
    from .session import DirectionKeys

__all__ = [
    "BLOCKED",
    "MOST_BUFFERS",
    "HasFileno",
    "System",
    "descriptor",
    "getsockopt",
    "loopback_pair",
    "setsockopt",
]

#: How a seccomp filter, a security module or capability mode refuses a system call.  No call that
#: is used to try something out fails like that on its own account.
BLOCKED = frozenset(
    {errno.EPERM, errno.EACCES, errno.ENOSYS, getattr(errno, "ECAPMODE", errno.EPERM)}
)
#: The most buffers that one call takes (IOV_MAX), on both systems.
MOST_BUFFERS = 1024


class HasFileno(Protocol):
    """Anything with a file descriptor."""

    def fileno(self) -> int:
        """Return it."""


class System(Protocol):
    """What switch.py asks of a system's module (``pyktls.linux``, ``pyktls.freebsd``)."""

    #: Why a KeyUpdate cannot be followed, where it cannot.
    NO_REKEY: str
    #: Whether some of its kernels take a cipher for one direction and not for the other.
    ONE_DIRECTION_ALONE: bool

    def attach(self, fd: int, /) -> None:
        """Make a socket ready for keys; raises Unavailable or HandoffRefused."""

    def directions(self, fd: int, /) -> Iterable[Direction]:
        """The directions that are in the kernel already."""

    def carries(self, fd: int, direction: Direction, version: int, aead: AEAD, /) -> bool:
        """Whether the keys of a direction are of that kind; True where the kernel does not tell."""

    def cipher_refusal(
        self, version: int, aead: AEAD, wanted: Iterable[Direction] = ..., /
    ) -> OSError | None:
        """The error with which this kernel refuses a cipher, None if it takes it."""

    def is_tried(self, version: int, aead: AEAD, /) -> bool:
        """Whether cipher_refusal and can_rekey know, without a trial, that it takes the cipher."""

    def cipher_remedy(self, aead: AEAD, error: OSError, /) -> str:
        """What would help against that error."""

    def install(
        self,
        fd: int,
        direction: Direction,
        version: int,
        aead: AEAD,
        keys: DirectionKeys,
        nonce: bytearray,
        /,
    ) -> None:
        """Install the keys of one direction and ask the kernel whether it has them."""

    def next_sequence(self, fd: int, direction: Direction, /) -> int | None:
        """The number of the next record in a direction; None where the kernel does not tell."""

    def can_rekey(self, version: int, aead: AEAD, /) -> bool:
        """Whether this kernel can change the keys of a connection with this cipher."""

    def go_on_receiving(self, fd: int, /) -> None:
        """Receive on with the same keys, after a record that only looked like a KeyUpdate."""

    def sendfile_all(
        self, ask: Callable[[], int], file: int, offset: int, count: int, /
    ) -> tuple[int, OSError | None]:
        """Send from a file; the bytes that were taken, and the error that ended it, if one did.

        ``ask`` gives the socket's descriptor, for each system call anew.
        """

    def sendfile_once(
        self, sock: int, file: int, offset: int = ..., count: int = ..., /
    ) -> tuple[int, OSError | None]:
        """Do the same with one system call, which may take less although there is more room."""

    def sendfile_may_stall(self, fd: int, /) -> bool:
        """Whether a sendfile(2) that is made otherwise than by these two may stop for good."""

    def is_gone(self, fd: int, /) -> bool:
        """Whether the connection is lost, and sendfile would not tell."""


def descriptor(sock: HasFileno | int) -> int:
    """The file descriptor of a socket, or the number itself."""
    fd: object = sock
    if not isinstance(sock, int):
        fileno = getattr(sock, "fileno", None)
        if not callable(fileno):
            raise InvalidType(f"a socket or a file descriptor is needed, not {type(sock).__name__}")
        try:
            fd = fileno()
        except (OSError, ValueError) as e:  # a file that is closed, or has none
            raise InvalidValue(f"{type(sock).__name__} has no file descriptor: {e}") from e
    if not isinstance(fd, int) or isinstance(fd, bool):
        raise InvalidType(f"a socket or a file descriptor is needed, not {type(fd).__name__}")
    if fd < 0:
        raise InvalidValue("the socket is closed")
    return integer("the file descriptor", fd, 0, 2**31 - 1, bounds="a C int")


def setsockopt(fd: int, level: int, option: int, value: bytes | bytearray, call: str) -> None:
    """Set an option; an OSError names ``call``."""
    if lib.setsockopt(fd, level, option, ffi.from_buffer(value), len(value)) < 0:
        raise syscall_error(ffi.errno, call)


def getsockopt(fd: int, level: int, option: int, size: int, call: str) -> bytearray:
    """Read at most ``size`` bytes of an option; an OSError names ``call``."""
    value = bytearray(size)
    length = ffi.new("unsigned int *", size)
    if lib.getsockopt(fd, level, option, ffi.from_buffer(value), length) < 0:
        raise syscall_error(ffi.errno, call)
    del value[length[0] :]
    return value


#: Seconds for the connection to ourselves; where packets are dropped it would be two minutes.
_PATIENCE = 5.0


def loopback_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected TCP sockets on the loopback interface, blocking, to try things on.

    Raises OSError where there is none (a network namespace whose ``lo`` is down), TimeoutError
    where a firewall drops what is sent to it.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.settimeout(_PATIENCE)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        near = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            near.settimeout(_PATIENCE)
            near.connect(listener.getsockname())
            # Somebody else may have been faster to connect: take only our own connection.
            while True:
                far, address = listener.accept()
                if address == near.getsockname():
                    break
                far.close()
        except BaseException:
            near.close()
            raise
    # Also where socket.setdefaulttimeout has said otherwise.
    near.settimeout(None)
    far.settimeout(None)
    return near, far
