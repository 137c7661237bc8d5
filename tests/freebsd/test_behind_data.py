"""What comes right behind data, over FreeBSD's kernel TLS: the same tests as on Linux."""

from __future__ import annotations

from kernel.test_behind_data import *  # noqa: F403

LEFT_OUT = {
    "FreeBSD resets the connection at a bad header, or waits for the rest: test_connection.py": [
        r"test_a_broken_header_right_behind_data_is_told",
    ],
}
