"""One direction in FreeBSD's kernel, the other left to OpenSSL: the same tests as on Linux."""

from __future__ import annotations

from kernel.test_directions import *  # noqa: F403
