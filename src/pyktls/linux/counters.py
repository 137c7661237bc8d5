"""The kernel's TLS counters: /proc/net/tls_stat."""

from __future__ import annotations

import pathlib

from pyktls.errors import Unavailable

from .ulp import NO_TLS_REMEDY

__all__ = ["tls_stat"]


def tls_stat() -> dict[str, int]:
    """The kernel's TLS counters for this network namespace: /proc/net/tls_stat, by name.

    ``TlsCurr…`` are gauges, the others count from boot.  Which there are depends on the kernel.
    Raises Unavailable where the file is not there: the tls module is not loaded.
    """
    try:
        text = pathlib.Path("/proc/net/tls_stat").read_text(encoding="ascii")
    except FileNotFoundError:
        raise Unavailable("/proc/net/tls_stat does not exist", remedy=NO_TLS_REMEDY) from None
    return {name: int(value) for name, value in map(str.split, text.splitlines())}
