"""Keys that change, and FreeBSD's that do not: the same tests as on Linux."""

from __future__ import annotations

from kernel.test_key_changes import *  # noqa: F403

LEFT_OUT = {
    "FreeBSD has no AES-CCM": [r".*AES_128_CCM.*", r"test_a_long_stream_of_short_sends_asks_once"],
    "FreeBSD has no MSG_MORE": [r"test_what_msg_more_holds_back_goes_out_under_the_old_keys"],
    "FreeBSD does not tell the number of the next record": [
        r"test_records_that_are_shorter_than_full_ones_are_counted_too",
        # Each buffer is counted as a record, and nobody is asked how many there were.
        r"test_keys_change_by_themselves_or_sending_ends_in_time\[AES_128_GCM-sendmsg\]",
    ],
    "counts the calls of Linux": [r"test_the_hot_path_asks_the_kernel_only_now_and_then"],
    "FreeBSD keeps nothing of what it cannot decrypt, so that there is nothing to tell": [
        r"test_select_tells_of_what_comes_after_a_key_update\[waitall-0\.0\]",
    ],
}
