"""A Python that is as FreeBSD's, as far as that goes: for tests/freebsd, and --like-freebsd.

pyktls is the build on the fake kernel, ``sys.platform`` is FreeBSD's, the names that only Linux has
are gone from the modules, and what is below /proc and /dev/fd cannot be opened: so a test or a
module that needs one of them is found without a FreeBSD machine.

What stays Linux's: the programs that a test starts (but launch.py), the numbers in ``errno``, and
how much the buffers of sockets hold.
"""

from __future__ import annotations

import asyncio  # noqa: F401  (as subprocess: it chooses by what it finds, and has to find Linux)
import errno
import fcntl
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import sysconfig
from typing import TYPE_CHECKING, Any

from . import build

if TYPE_CHECKING:
    from .kernel import Kernel

# Of Linux's names those that a test could come upon.  Python's own modules go on using some others.
LINUX_ONLY: dict[Any, str] = {
    errno: "EBADFD EKEYEXPIRED EKEYREJECTED EKEYREVOKED ENODATA ENOKEY ENOPKG EREMOTEIO ETIME",
    fcntl: "F_GETPIPE_SZ F_NOTIFY F_OFD_GETLK F_OFD_SETLK F_OFD_SETLKW F_SETPIPE_SZ",
    os: "O_LARGEFILE O_NOATIME P_PIDFD SPLICE_F_MORE SPLICE_F_MOVE SPLICE_F_NONBLOCK pidfd_open "
    "setns splice unshare",
    resource: "RLIMIT_NICE RLIMIT_RTPRIO RLIMIT_SIGPENDING prlimit",
    select: "POLLRDHUP epoll",
    signal: "pidfd_send_signal",
    socket: "AF_ALG AF_CAN AF_NETLINK AF_PACKET AF_VSOCK MSG_CONFIRM MSG_ERRQUEUE MSG_FASTOPEN "
    "MSG_MORE NETLINK_ROUTE SOL_ALG SO_BINDTODEVICE SO_INCOMING_CPU SO_MARK SO_PASSCRED SO_PASSSEC "
    "SO_PEERCRED SO_PEERSEC SO_PRIORITY TCP_CORK TCP_DEFER_ACCEPT TCP_LINGER2 TCP_QUICKACK "
    "TCP_SYNCNT TCP_USER_TIMEOUT TCP_WINDOW_CLAMP",
}
_kept: list[Kernel] = []  # the C code calls it, which holds no reference
MISSING = ("/proc", "/dev/fd")  # FreeBSD has procfs and fdescfs, and mounts neither


def assume() -> Kernel:
    """From now on; pyktls must not have been imported.  Gives the kernel that it runs on."""
    if _kept:
        return _kept[0]
    if "pyktls" in sys.modules:
        raise RuntimeError("the fake of FreeBSD's kernel needs a process of its own")
    sys.path.insert(0, str(build.build()))
    sysconfig.get_config_vars()  # the file that it is read from has the platform in its name
    for module, names in LINUX_ONLY.items():
        for name in names.split():
            if hasattr(module, name):
                delattr(module, name)
    subprocess._CAN_USE_PIDFD_OPEN = False  # type: ignore[attr-defined]  # since CPython 3.15
    sys.addaudithook(_nothing_there)
    sys.platform = "freebsd14"

    from .kernel import Kernel  # noqa: PLC0415  (it imports pyktls)

    kernel = Kernel()
    kernel.install(build.LIBRARY)
    kernel.boot()
    _kept.append(kernel)
    return kernel


def _nothing_there(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("open", "os.listdir", "os.scandir"):
        path = arguments[0]
        if isinstance(path, str) and f"{path}/".startswith(tuple(f"{at}/" for at in MISSING)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
