"""Every kind of record over FreeBSD's kernel TLS: the same tests as on Linux."""

from __future__ import annotations

import errno

import pytest

from kernel import test_records as common
from kernel.test_records import *  # noqa: F403

LEFT_OUT = {
    "FreeBSD has no AES-CCM": [r".*AES_128_CCM.*"],
    "FreeBSD has no MSG_MORE": [
        r"test_unwrap_flushes_what_msg_more_held_back",
        r"test_the_answer_to_a_key_update_comes_after_data_that_msg_more_held_back",
    ],
    "FreeBSD resets the connection at a bad header, or waits for the rest: test_connection.py": [
        r"test_a_broken_record_ends_the_connection_after_what_was_good\[(too|plain|wrong).*",
        r"test_a_record_whose_plaintext_is_too_long_is_refused",
        r"test_an_unprotected_record_after_the_handshake_is_refused",
    ],
    "FreeBSD gives the error of a record to the next send: test_connection.py": [
        r"test_data_sent_before_the_error_is_not_taken_back",
    ],
}


@pytest.fixture(autouse=True)
def _other_words(monkeypatch):
    words = "a record failed authentication, and data read just before may be what followed it"
    for name in ("flipped bit", "missing record", "repeated record"):
        make, alert, _, number = common.BROKEN[name]
        assert number == errno.EBADMSG
        monkeypatch.setitem(common.BROKEN, name, (make, alert, words, number))
