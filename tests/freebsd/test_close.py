"""The end of a connection over FreeBSD's kernel TLS: the same tests as on Linux."""

from __future__ import annotations

from kernel.test_close import *  # noqa: F403

from .conftest import REAL

LEFT_OUT = {
    "Linux loses that": [
        r"test_the_same_with_a_plain_close_loses_records",
        r"test_the_same_with_a_plain_close_loses_what_was_held_back",
    ],
    "FreeBSD has no MSG_MORE": [r"test_what_msg_more_held_back_is_sent_at_the_end"],
    "FreeBSD closes in good order whatever is unread": [
        r"test_close_with_unread_data_is_a_reset_as_with_any_socket",
    ],
    "FreeBSD finds nothing wrong with a header before the record is there": [
        r"test_close_with_an_error_that_was_never_read\[(too long|no TLS)\]",
    ],
}
if not REAL:
    LEFT_OUT["the fake kernel is in one process only"] = [
        r"test_the_same_in_another_process_that_got_the_socket",
    ]
