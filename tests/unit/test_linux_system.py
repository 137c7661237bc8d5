"""What pyktls.linux makes of old kernels, and of sockets without keys."""

from __future__ import annotations

import contextlib
import errno
import socket

import pytest

from pyktls import linux
from pyktls.ciphers import TLS_1_3
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


@pytest.mark.parametrize(("number", "passes"), [(errno.EINVAL, True), (errno.EBADF, False)])
def test_no_kernel_that_does_not_tell_its_keys_has_to_be_told_to_go_on(
    monkeypatch: pytest.MonkeyPatch, number: int, passes: bool
) -> None:
    """Linux before 5.16 tells those of AES-GCM alone; it has no rekey, and does not stop."""

    def get_crypto_info(*_: object) -> linux.CryptoInfo:
        raise OSError(number, "getsockopt(SOL_TLS, TLS_RX)")

    monkeypatch.setattr(linux.system, "get_crypto_info", get_crypto_info)
    with contextlib.nullcontext() if passes else pytest.raises(OSError, match="TLS_RX"):
        linux.system.go_on_receiving(99)


@pytest.mark.parametrize("number", [0, errno.EBUSY, errno.EBADF])
def test_going_on_with_the_same_keys_leaves_no_copy_of_them(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """0: since 6.14; EBUSY: before, and there is no need."""
    info = kernel.crypto_info(kernel.suite(TLS_1_3))
    key, iv = info._key, info._iv
    assert any(key)
    given = []

    def set_crypto_info(_: object, option: int, same: linux.CryptoInfo) -> None:
        given.append((option, same.key))
        if number:
            raise OSError(number, "setsockopt(SOL_TLS, TLS_RX)")

    before = info.key
    monkeypatch.setattr(linux.system, "get_crypto_info", lambda *_: info)
    monkeypatch.setattr(linux.system, "set_crypto_info", set_crypto_info)
    fails = number == errno.EBADF
    with pytest.raises(OSError, match="TLS_RX") if fails else contextlib.nullcontext():
        linux.system.go_on_receiving(99)
    assert given == [(linux.TLS_RX, before)]
    assert not any(key)
    assert not any(iv)


@pytest.mark.parametrize("direction", [Direction.TX, Direction.RX])
def test_the_number_of_the_next_record_leaves_no_copy_of_the_keys(
    monkeypatch: pytest.MonkeyPatch, direction: Direction
) -> None:
    """It is a part of the struct that has them."""
    info = kernel.crypto_info(kernel.suite(TLS_1_3), rec_seq=2**40 + 5)
    structs = []

    def getsockopt(_: int, level: int, option: int, size: int, __: str) -> bytearray:
        assert (level, option) == (linux.SOL_TLS, linux.system.option_of(direction))
        value = info.pack()[:size]
        if size > 4:
            structs.append(value)
        return value

    monkeypatch.setattr(linux.crypto_info, "getsockopt", getsockopt)
    assert linux.system.next_sequence(99, direction) == 2**40 + 5
    assert [any(struct) for struct in structs] == [False]
