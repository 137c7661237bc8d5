"""Real seccomp filters, written by hand: system calls of this process fail with a chosen errno.

``refuse`` is for child processes: a filter cannot be taken back.  (One that counts the calls of a
thread is in counting.py.)
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

# asm/unistd.h, linux/audit.h
NUMBERS = {
    "x86_64": {
        "socket": 41, "connect": 42, "bind": 49, "sendto": 44, "sendmsg": 46, "recvmsg": 47,
        "setsockopt": 54, "getsockopt": 55, "fcntl": 72, "splice": 275, "sendfile": 40,
        "memfd_create": 319, "pipe2": 293, "seccomp": 317, "write": 1, "writev": 20,
    },
    "aarch64": {
        "socket": 198, "connect": 203, "bind": 200, "sendto": 206, "sendmsg": 211, "recvmsg": 212,
        "setsockopt": 208, "getsockopt": 209, "fcntl": 25, "splice": 76, "sendfile": 71,
        "memfd_create": 279, "pipe2": 59, "seccomp": 277, "write": 64, "writev": 66,
    },
}  # fmt: skip
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# linux/bpf_common.h, linux/seccomp.h
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
NUMBER, ARCH, ARGUMENTS = 0, 4, 16  # struct seccomp_data
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def program(call: str, error: int, arguments: dict[int, int]) -> bytes:
    machine = platform.machine()
    refusal = instruction(RETURN, ERRNO | error)
    for index, value in arguments.items():  # the low half of each, on a little-endian machine
        skip = len(refusal) // 8
        refusal = (
            instruction(LOAD_WORD, ARGUMENTS + 8 * index)
            + instruction(JUMP_IF_EQUAL, value, 0, skip)
            + refusal
        )
    rest = len(refusal) // 8
    return (
        instruction(LOAD_WORD, ARCH)
        + instruction(JUMP_IF_EQUAL, AUDIT_ARCH[machine], 0, rest + 2)
        + instruction(LOAD_WORD, NUMBER)
        + instruction(JUMP_IF_EQUAL, NUMBERS[machine][call], 0, rest)
        + refusal
        + instruction(RETURN, ALLOW)
    )


def refuse(call: str, error: int, arguments: dict[int, int] | None = None) -> None:
    """From now on ``call`` fails: always, or with just these ``arguments``, by their index."""
    code = program(call, error, arguments or {})
    libc = ctypes.CDLL(None, use_errno=True)
    prog = Program(len(code) // 8, code)
    for prctl in (
        (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(prog), 0, 0),
    ):
        if libc.prctl(*prctl):
            number = ctypes.get_errno()
            raise OSError(number, f"prctl: {os.strerror(number)}")
