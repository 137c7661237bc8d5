"""The two calls that carry options, refused where the numbers mean something else."""

from __future__ import annotations

from pyktls import socket_calls
from pyktls._kernel import lib
from pyktls.errors import Unavailable

__all__ = ["getsockopt", "only_on_linux", "setsockopt"]


def only_on_linux() -> None:
    """Raise Unavailable on another system, where the same numbers are other options."""
    if lib.pyktls_system() != lib.PYKTLS_LINUX:
        raise Unavailable("this system is not Linux", remedy="pyktls.freebsd is for FreeBSD")


def setsockopt(fd: int, level: int, option: int, value: bytes | bytearray, call: str) -> None:
    """As in socket_calls.py."""
    only_on_linux()
    socket_calls.setsockopt(fd, level, option, value, call)


def getsockopt(fd: int, level: int, option: int, size: int, call: str) -> bytearray:
    """As in socket_calls.py."""
    only_on_linux()
    return socket_calls.getsockopt(fd, level, option, size, call)
