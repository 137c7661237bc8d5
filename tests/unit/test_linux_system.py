"""What pyktls.linux makes of old kernels, and of sockets without keys."""

from __future__ import annotations

import errno
import socket

import pytest

from pyktls import linux
from pyktls.protocol import Direction
from support import kernel, tls
from support.systems import linux_only

pytestmark = linux_only
SO_TIMESTAMP = 29  # asm-generic/socket.h; the socket module has no name for it


def test_messages_of_tcps_own_do_not_hide_the_data() -> None:
    near, far = tls.tcp_pair()
    with near, far:
        near.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMP, 1)
        far.sendall(b"plain")
        kernel.wait_readable(near)
        record = linux.recv_record(near, 100)
        assert (record.data, record.record_type) == (b"plain", None)


def test_a_kernel_that_does_not_tell_the_number_of_the_next_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before 5.16 getsockopt(TLS_TX) knows AES-GCM alone."""
    number = errno.EINVAL

    def get_rec_seq(*_: object) -> int:
        raise OSError(number, "getsockopt(SOL_TLS, TLS_TX)")

    monkeypatch.setattr(linux.system, "get_rec_seq", get_rec_seq)
    assert linux.system.next_sequence(99, Direction.TX) is None
    number = errno.EBADF
    with pytest.raises(OSError, match="TLS_TX"):
        linux.system.next_sequence(99, Direction.TX)
