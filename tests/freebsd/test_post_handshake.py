"""What may come after the handshake, over FreeBSD's kernel TLS: the same tests as on Linux."""

from __future__ import annotations

from kernel.test_post_handshake import *  # noqa: F403
