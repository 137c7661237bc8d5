"""The daemon with a kernel that is not for it: NFS_TLS_REFUSED says which direction is missing.

TLS_TX or TLS_RX: the kernel refuses the keys of that direction.  It is a seccomp filter, set when
the daemon gives up its privileges: after it has seen that the kernel has TLS.  "sending" or
"receiving": that direction stays with OpenSSL, and the kernel says so when it is asked.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING

import pyktls
from nfs_tls import __main__ as program
from nfs_tls import handshake, privileges
from support import seccomp

if TYPE_CHECKING:
    import ssl

SOL_TLS = 282
WHAT = os.environ["NFS_TLS_REFUSED"]
_drop = privileges.drop


def drop(user: str | None = None) -> None:
    _drop(user)
    seccomp.refuse(
        "setsockopt", errno.EOPNOTSUPP, {1: SOL_TLS, 2: getattr(pyktls.lowlevel.lib, WHAT)}
    )


def give_half(tls: ssl.SSLSocket) -> pyktls.Status:
    sock = pyktls.offload(tls, tx=WHAT != "sending", rx=WHAT != "receiving")
    try:
        return sock.ktls
    finally:
        sock.abandon()


if WHAT.startswith("TLS_"):
    privileges.drop = drop
else:
    handshake.give_to_kernel = give_half
sys.exit(program.main())
