"""KTLSSocket over FreeBSD's kernel TLS: the same tests as on Linux."""

from __future__ import annotations

from kernel.test_socket import *  # noqa: F403

from .conftest import REAL

LEFT_OUT = {
    "FreeBSD has no AES-CCM": [r"test_data_goes_both_ways_and_both_ends_close_cleanly\[.*CCM.*"],
    "Linux tells the number of the next record, and what it is called for": [
        r"test_a_large_buffer_goes_to_the_kernel_in_one_call",
    ],
    "FreeBSD has no MSG_MORE": [r"test_msg_more_holds_data_back_until_the_next_send"],
    "FreeBSD refuses MSG_EOR with another error: test_interface.py": [
        r"test_msg_eor_ends_a_record_where_the_kernel_has_it",
    ],
    "FreeBSD's sendfile(2) is not Python's": [r"test_sendfile_uses_the_system_call"],
}
if not REAL:
    LEFT_OUT["how often the fake has no room is chance"] = [
        r"test_non_blocking_streams_both_ways_lose_nothing",
    ]
