"""Files over FreeBSD's kernel TLS: the same tests as on Linux, of the interface too."""

from __future__ import annotations

import socket

import pytest

import pyktls
from kernel import test_transfer as common
from kernel.test_transfer import *  # noqa: F403
from pyktls import freebsd
from pyktls.ciphers import TLS_1_3
from support import kernel, tls

from . import conftest
from .conftest import REAL

LEFT_OUT = {
    "FreeBSD has no AES-CCM": [r".*AES_128_CCM.*"],
    "FreeBSD has no splice(2)": [
        r"test_a_pipe_.*",
        r"test_more_keeps_the_record_open",
        r"test_closing_sends_what_splice_held_back",
        r"test_splice_.*",
        r"test_the_socket_into_a_pipe",
        r"test_control_records_between_are_dealt_with",
        r"test_empty_records_are_no_end",
        r"test_a_fatal_alert_is_raised",
        r"test_an_end_without_close_notify_is_truncation",
        r"test_a_broken_record_ends_the_connection",
        r"test_what_openssl_had_decrypted_comes_first",
        r"test_a_key_update_on_the_way_is_followed_or_said_to_be_impossible",
        r"test_a_proxy_of_two_sockets",
        r"test_the_interface_leaves_control_records_where_they_are",
        r"test_threads_splice_and_receive_without_losing_a_byte",
    ],
    "what goes around a file are records of their own: test_interface.py": [
        r"test_what_goes_before_shares_a_record_and_what_goes_after_has_its_own",
        r"test_ktls_socket_beyond_the_end_of_the_file",
    ],
    "FreeBSD has no MSG_MORE, and its own rules for flags: test_interface.py": [
        r"test_what_was_held_back_is_not_left_behind_by_an_error",
        r"test_msg_zerocopy_and_other_flags_are_refused",
    ],
    "FreeBSD takes a send buffer of one byte literally, and a record of each": [
        r"test_.*_with_a_small_send_buffer\[1(-.*)?\]",
    ],
    "FreeBSD does not tell the number of the next record": [
        r"test_what_goes_around_an_empty_file_is_sent",
    ],
}


@pytest.fixture(autouse=True)
def _on_freebsd(monkeypatch):
    """Both interfaces have the same sendfile."""
    monkeypatch.setattr(common, "linux", freebsd)


class OnTheFake(socket.socket):
    """Python's own calls do not come to the fake by themselves."""

    def sendall(self, data):
        while data:
            data = data[conftest.KERNEL.send(self.fileno(), data) :]


@pytest.fixture
def keyed():
    own, other = kernel.sessions(kernel.suite(TLS_1_3))
    near, far = tls.tcp_pair(tls.ORDINARY_MSS)
    kind = socket.socket if REAL else OnTheFake
    with kind(fileno=near.detach()) as sock, far:
        pyktls.install(sock, own)
        sock.settimeout(None)
        far.settimeout(kernel.TIMEOUT)
        yield sock, kernel.Wire(far, other)
