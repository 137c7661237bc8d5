"""Giving up what the daemon does not need.

The kernel wants CAP_NET_ADMIN of whoever fetches and answers its requests (DONE since Linux 7.2 and
6.12.100), so that one capability stays, and nothing else: not in the bounding set either, and no
program that is started can gain anything.  The process leaves no core file and cannot be traced by
others of its user: it holds private keys.

Sources: capabilities(7), capset(2), prctl(2); linux/capability.h for the numbers.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import resource

CAP_NET_ADMIN = 12
LINUX_CAPABILITY_VERSION_3 = 0x20080522
PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_CAPBSET_READ, PR_CAPBSET_DROP = 4, 8, 23, 24
PR_SET_NO_NEW_PRIVS = 38


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> int:
    result = int(getattr(_libc, name)(*arguments))
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result


def _prctl(option: int, argument: int) -> int:
    # The kernel takes longs, and prctl(2) has a variable number of arguments: all are given.
    return _call("prctl", option, *(ctypes.c_ulong(n) for n in (argument, 0, 0, 0)))


def drop(user: str | None = None) -> None:
    """Keep CAP_NET_ADMIN and nothing else; become ``user`` if one is named.

    It is for a process with one thread.  Raises OSError that names the call, KeyError for a user
    that does not exist.
    """
    entry = pwd.getpwnam(user) if user is not None else None
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _empty_bounding_set()
    if entry is not None and os.geteuid() != entry.pw_uid:
        _prctl(PR_SET_KEEPCAPS, 1)
        os.initgroups(entry.pw_name, entry.pw_gid)
        os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
        os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
        _prctl(PR_SET_KEEPCAPS, 0)
    _only(CAP_NET_ADMIN)
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _prctl(PR_SET_DUMPABLE, 0)


def _empty_bounding_set() -> None:
    """As far as this process may: without CAP_SETPCAP it stays, and no_new_privs has to do."""
    for number in range(64):
        try:
            if not _prctl(PR_CAPBSET_READ, number):
                continue
        except OSError:  # EINVAL: the kernel knows no more of them
            return
        if number != CAP_NET_ADMIN:
            try:
                _prctl(PR_CAPBSET_DROP, number)
            except PermissionError:
                return


def _only(capability: int) -> None:
    bit = 1 << capability
    data = (_Data * 2)(_Data(bit, bit, 0))
    _call("capset", ctypes.byref(_Header(LINUX_CAPABILITY_VERSION_3, 0)), data)
