"""Session tickets over FreeBSD's kernel TLS: the same tests as on Linux."""

from __future__ import annotations

from kernel.test_resumption import *  # noqa: F403
