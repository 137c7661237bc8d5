"""Forks and the end of the interpreter over FreeBSD's kernel TLS: the same tests as on Linux."""

from __future__ import annotations

from kernel.test_forks_and_exit import *  # noqa: F403

from .conftest import REAL

if not REAL:
    LEFT_OUT = {
        "the fake kernel is in one process only": [
            r"test_a_script_that_ends_without_a_close_loses_nothing",
        ],
    }
