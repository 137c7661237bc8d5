"""How often system calls are made, told by the kernel (seccomp_unotify(2)), whoever makes them."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import platform
import select
import socket
import struct
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from .kernel import TIMEOUT
from .processes import fork, wait_for
from .seccomp import (
    ALLOW,
    ARCH,
    AUDIT_ARCH,
    JUMP_IF_EQUAL,
    LOAD_WORD,
    NUMBER,
    NUMBERS,
    PR_SET_NO_NEW_PRIVS,
    RETURN,
    Program,
    instruction,
)

if TYPE_CHECKING:
    from collections.abc import Callable

# linux/seccomp.h
SECCOMP_SET_MODE_FILTER, NEW_LISTENER = 1, 1 << 3
SECCOMP_IOCTL_NOTIF_RECV, SECCOMP_IOCTL_NOTIF_SEND = 0xC0502100, 0xC0182101
TELL = 0x7FC00000
NOTIFICATION = struct.Struct("=QIIi60x")  # struct seccomp_notif: id, pid, flags, data.nr
ANSWER = struct.Struct("=QqiI")  # struct seccomp_notif_resp: id, val, error, flags
CONTINUE = 1


def counted(work: Callable[[], object], *calls: str) -> Counter[str]:
    """Run ``work`` in a thread of its own, and count those of its system calls.

    The kernel tells another process of each before it makes it; another thread of this one would
    not do, for not every call lets it run meanwhile.  The filter ends with its thread.
    """
    with ThreadPoolExecutor(1) as pool:
        listener = pool.submit(listen, calls).result()
        ours, theirs = socket.socketpair()
        with ours:
            child = fork(count, listener, theirs, calls)
            os.close(listener)
            theirs.close()
            try:
                pool.submit(work).result()
            finally:
                ours.shutdown(socket.SHUT_WR)
                ours.settimeout(TIMEOUT)
                told = b"".join(iter(lambda: ours.recv(4096), b""))
                wait_for(child)
    return Counter(json.loads(told))


def listen(calls: tuple[str, ...]) -> int:
    """From now on the kernel tells of these calls of this thread; returns where it does."""
    machine = platform.machine()
    numbers = [NUMBERS[machine][call] for call in calls]
    code = instruction(LOAD_WORD, ARCH)
    code += instruction(JUMP_IF_EQUAL, AUDIT_ARCH[machine], 0, len(numbers) + 1)
    code += instruction(LOAD_WORD, NUMBER)
    for before, number in enumerate(numbers):
        code += instruction(JUMP_IF_EQUAL, number, len(numbers) - before, 0)
    code += instruction(RETURN, ALLOW) + instruction(RETURN, TELL)
    libc = ctypes.CDLL(None, use_errno=True)
    prog = Program(len(code) // 8, code)
    listener = -1
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        seccomp = NUMBERS[machine]["seccomp"]
        listener = libc.syscall(seccomp, SECCOMP_SET_MODE_FILTER, NEW_LISTENER, ctypes.byref(prog))
    if listener < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")
    return listener


def count(listener: int, report: socket.socket, calls: tuple[str, ...]) -> None:
    """Count them, and let each go on, until nothing more is to come on ``report``."""
    machine = platform.machine()
    names = {NUMBERS[machine][call]: call for call in calls}
    made: Counter[str] = Counter()
    while True:
        ready, _, _ = select.select([listener, report], [], [])
        if report in ready:  # then no call is under way
            report.sendall(json.dumps(made).encode())
            return
        notification = bytearray(NOTIFICATION.size)
        fcntl.ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, notification)
        id_, _, _, number = NOTIFICATION.unpack(notification)
        made[names[number]] += 1
        fcntl.ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, ANSWER.pack(id_, 0, 0, CONTINUE))
