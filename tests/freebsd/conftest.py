"""Runs these tests on a FreeBSD kernel: the real one if this is FreeBSD, else the fake.

On FreeBSD nothing is put in between.  Elsewhere pyktls is built once more with FreeBSD's C files,
whose system calls end in fake/kernel.py, and that build is put in front of the installed one before
anything imports it.  So this directory runs in a process of its own: `make test-freebsd`.

Fixtures: ``fake`` is the fake kernel, for tests that close its gates or look inside; on FreeBSD
they are left out, as they would have to change the machine's settings.  ``tcp`` is a connected
pair.  ``plain`` makes the system calls that pyktls takes care not to make.  ``decrypted`` waits
until the kernel has so much plaintext.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import sys
import termios
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REAL = os.uname().sysname == "FreeBSD"

if not REAL:
    if "pyktls" in sys.modules:
        raise pytest.UsageError("tests/freebsd needs a process of its own: run it by itself")
    from freebsd.fake import build

    sys.path.insert(0, str(build.build()))

import pyktls  # noqa: E402
from pyktls import freebsd as system  # noqa: E402
from support import tls  # noqa: E402

if not REAL:
    from freebsd.fake.kernel import Kernel

    KERNEL = Kernel()
    KERNEL.install(build.LIBRARY)


@pytest.fixture(autouse=True, scope="session")
def _right_kernel() -> None:
    assert pyktls.lowlevel.lib.pyktls_system() == pyktls.lowlevel.lib.PYKTLS_FREEBSD
    if REAL:
        assert system.gates()["kern.ipc.tls.enable"], (
            "kernel TLS is switched off: as root, sysctl kern.ipc.tls.enable=1"
        )


@pytest.fixture(autouse=True)
def _booted() -> Iterator[None]:
    if not REAL:
        KERNEL.boot()
        system._accepted.clear()  # another kernel, perhaps
    yield
    if not REAL:
        assert not KERNEL.blocked_for_ever, "a read waited for what never comes"


@pytest.fixture
def fake() -> Any:
    if REAL:
        pytest.skip("changes the kernel's settings: only with the fake")
    return KERNEL


class Plain:
    """System calls as a program would make them that knows nothing of kernel TLS."""

    @staticmethod
    def recv(sock: socket.socket, size: int) -> bytes:
        return sock.recv(size) if REAL else KERNEL.recv(sock.fileno(), size)

    @staticmethod
    def recvmsg(sock: socket.socket, size: int, room: int) -> tuple[bytes, int, bool]:
        """(data, control messages, whether one was cut) with ``room`` bytes for them."""
        if REAL:
            data, messages, flags, _ = sock.recvmsg(size, room)
            return data, len(messages), bool(flags & socket.MSG_CTRUNC)
        return KERNEL.recvmsg_with_room(sock.fileno(), size, room)

    @staticmethod
    def listen(sock: socket.socket) -> None:
        if REAL:
            sock.listen()
        else:
            KERNEL.listen(sock.fileno())

    @staticmethod
    def sendto(sock: socket.socket, data: bytes, address: tuple[str, int]) -> int:
        return sock.sendto(data, address) if REAL else KERNEL.sendto(sock.fileno(), data, address)


@pytest.fixture
def plain() -> Plain:
    return Plain()


@pytest.fixture
def decrypted() -> Callable[[socket.socket, int], None]:
    """A real kernel decrypts in threads of its own: a reader may come in between two records."""

    def wait(sock: socket.socket, size: int) -> None:
        count = array.array("i", [0])
        end = time.monotonic() + 20
        while REAL and count[0] < size:
            assert time.monotonic() < end, f"{count[0]} of {size} bytes"
            time.sleep(0.001)
            fcntl.ioctl(sock.fileno(), termios.FIONREAD, count)

    return wait


@pytest.fixture
def tcp() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = tls.tcp_pair()
    with near, far:
        near.settimeout(None)
        yield near, far
