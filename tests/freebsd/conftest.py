"""Runs these tests on a FreeBSD kernel: the real one if this is FreeBSD, else the fake.

On FreeBSD nothing is put in between.  Elsewhere pyktls is built once more with FreeBSD's C files,
whose system calls end in fake/kernel.py, and that build is put in front of the installed one before
anything imports it, in a Python without what only Linux has (fake/likeness.py).  So this directory
runs in a process of its own: `make test-freebsd`.

Fixtures: ``fake`` is the fake kernel, for tests that close its gates or look inside; on FreeBSD
they are left out, as they would have to change the machine's settings.  ``tcp`` is a connected
pair.  ``plain`` makes the system calls that pyktls takes care not to make.  ``decrypted`` waits
until the kernel has so much plaintext.

Many modules here run tests of tests/kernel.  What of them cannot apply is left out, and the module
says why, in ``LEFT_OUT``: the reason, which is printed in the end, and regular expressions that fit
the name of a test, or of one of its variants.  One that fits nothing is an error.
"""

from __future__ import annotations

import array
import collections
import fcntl
import os
import re
import socket
import termios
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REAL = os.uname().sysname == "FreeBSD"

if not REAL:
    from freebsd.fake import likeness

    KERNEL = likeness.assume()

import pyktls  # noqa: E402
from pyktls import freebsd as system  # noqa: E402
from support import tls  # noqa: E402

_REASONS = pytest.StashKey[collections.Counter[str]]()


@pytest.hookimpl(tryfirst=True)  # before anything else is chosen, so that all are there
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = config.stash[_REASONS] = collections.Counter[str]()
    fits: dict[tuple[str, str], bool] = {}
    left_out = []
    for item in items:
        module: Any = getattr(item, "module", None)
        for reason, patterns in getattr(module, "LEFT_OUT", {}).items():
            for pattern in patterns:
                names = item.name, item.name.partition("[")[0]
                found = any(re.fullmatch(pattern, name) for name in names)
                key = module.__name__, pattern
                fits[key] = found or fits.get(key, False)
                if found:
                    reasons[reason] += 1
                    left_out.append(item)
    for (name, pattern), fit in fits.items():
        if not fit and not any("::" in argument for argument in config.args):
            raise pytest.UsageError(f"{name} leaves out what is not there: {pattern}")
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for reason, count in config.stash.get(_REASONS, {}).items():
        terminalreporter.write_line(f"LEFT OUT [{count}] {reason}")


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
    def send(sock: socket.socket, data: bytes) -> int:
        return sock.send(data) if REAL else KERNEL.send(sock.fileno(), data)

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
