"""Moving a connection over FreeBSD's kernel TLS: the same tests as on Linux."""

from __future__ import annotations

import contextlib
import socket

import pytest

import pyktls
from kernel import test_moving as common
from kernel.test_moving import *  # noqa: F403
from support import kernel

from .conftest import REAL

LEFT_OUT = {
    "FreeBSD has no AES-CCM": [r"test_every_cipher\[.*AES_128_CCM.*"],
    "FreeBSD has no MSG_MORE": [r"test_what_msg_more_holds_back_stays_with_the_connection"],
    "FreeBSD does not tell the cipher": [r"test_what_the_kernel_says_is_asked"],
    "FreeBSD does not tell the number of the next record": [
        r"test_the_limit_of_the_cipher_after_the_move",
    ],
    "FreeBSD does not tell of a connection that is over whether it had keys": [
        r"test_a_half_closed_connection_moves",  # the peer may be gone before it has moved
        r"test_a_reset_on_the_way",
    ],
}
if not REAL:
    LEFT_OUT["the fake kernel is in one process only"] = [
        r"test_twenty_at_once",
        r"test_a_program_that_inherits_the_descriptor",
        r"test_parent_and_child_send_and_receive_whole_records",
        r"test_a_fork_in_the_middle_of_another_threads_call",
    ]
    LEFT_OUT["Python's own calls do not come to the fake"] = [
        r"test_detach_sends_nothing_and_the_kernel_goes_on",
    ]


@contextlib.contextmanager
def receiver(then, kind=socket.SOCK_STREAM):
    """The other process is a thread."""
    one, two = socket.socketpair(socket.AF_UNIX, kind)
    with one, two:
        for sock in (one, two):
            sock.settimeout(kernel.TIMEOUT)
        with kernel.Background(lambda: then(pyktls.receive_socket(two))):
            yield one


@pytest.fixture(autouse=True)
def _in_one_process(monkeypatch):
    if not REAL:
        monkeypatch.setattr(common, "receiver", receiver)
