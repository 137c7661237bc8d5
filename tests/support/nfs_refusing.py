"""The daemon with a kernel that refuses one direction's keys: NFS_TLS_REFUSED is TLS_TX or TLS_RX.

The refusal is a seccomp filter, set when the daemon gives up its privileges: after it has seen that
the kernel has TLS.
"""

from __future__ import annotations

import errno
import os
import sys

import pyktls
from nfs_tls import __main__ as program
from nfs_tls import privileges
from support import seccomp

SOL_TLS = 282
_drop = privileges.drop


def drop(user: str | None = None) -> None:
    _drop(user)
    option = getattr(pyktls.lowlevel.lib, os.environ["NFS_TLS_REFUSED"])
    seccomp.refuse("setsockopt", errno.EOPNOTSUPP, {1: SOL_TLS, 2: option})


privileges.drop = drop
sys.exit(program.main())
