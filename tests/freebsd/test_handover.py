"""The moment of the switch, over FreeBSD's kernel TLS: the same tests as on Linux."""

from __future__ import annotations

from kernel.test_handover import *  # noqa: F403

from .conftest import REAL

if not REAL:
    LEFT_OUT = {
        "Python's own calls do not come to the fake": [
            r"test_detach_refuses_to_lose_leftover_plaintext",
        ],
    }
