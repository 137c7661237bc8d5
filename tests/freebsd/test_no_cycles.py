"""What an error holds over FreeBSD's kernel TLS: the same tests as on Linux."""

from __future__ import annotations

from kernel.test_no_cycles import *  # noqa: F403
