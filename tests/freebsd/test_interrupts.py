"""Signals over FreeBSD's kernel TLS: the same tests as on Linux."""

from __future__ import annotations

from kernel.test_interrupts import *  # noqa: F403

LEFT_OUT = {
    "FreeBSD sends a record by its type whole or not at all: test_interface.py": [
        r"test_a_partial_send_is_continued_and_never_repeated",
    ],
}
