"""Keys given to FreeBSD's kernel: the same tests as on Linux."""

from __future__ import annotations

from kernel.test_install import *  # noqa: F403

from .conftest import REAL

LEFT_OUT = {
    "FreeBSD has no AES-CCM": [r".*AES_128_CCM.*"],
    "FreeBSD takes keys after a FIN": [
        r"test_after_the_peers_fin_it_is_refused_and_the_open_half_still_works",
        r"test_after_our_own_fin_it_is_refused_and_the_open_half_still_works",
        r"test_offload_after_the_peers_fin_is_refused_and_openssl_still_reads",
    ],
    "FreeBSD has nothing to attach, and gives no keys back": [
        r"test_the_protocol_attached_before_without_keys_is_no_obstacle",
        r"test_the_session_keeps_the_keys_and_they_are_the_kernels",
    ],
    "Linux takes both directions of one cipher only": [
        r"test_directions_that_do_not_match_are_an_error_of_the_named_call",
    ],
    "changes a function of Linux's": [
        r"test_half_an_installation_is_a_dead_connection_and_said_to_be",
    ],
}
if not REAL:
    LEFT_OUT["Python's own calls do not come to the fake"] = [
        r"test_both_directions",
        r"test_only_sending",
        r"test_only_receiving",
        r"test_a_record_that_waits_already_is_read_with_the_new_keys",
        r"test_plain_data_in_the_send_queue_goes_out_as_it_is",
        r"test_a_direction_that_is_on_already_is_refused_and_goes_on",
    ]
