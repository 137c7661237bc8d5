"""The selftest's scenarios that make sockets of their own."""

from __future__ import annotations

import errno
import os
import socket
import time

import pytest

from pyktls import Unavailable, linux
from support import records
from support.kernel import Background, both_ways, pattern
from support.selftest import (
    BY_NAME,
    FIRST_NUMBER,
    MOMENT,
    MOST,
    REFUSED,
    assert_nothing_to_read,
    bounded,
    fails,
    install,
    kernel_version,
    keys,
    take,
    tcp_pair,
    wait_queued,
)

AES_1_2, AES_1_3 = BY_NAME["12_aes_gcm"], BY_NAME["13_aes_gcm"]


def plaintext_lengths(sock, total):
    """Of the records that a plain socket receives, until there are ``total`` bytes in them."""
    lengths = []
    while sum(lengths) < total:
        record = records.read_record(lambda size: sock.recv(size, socket.MSG_WAITALL))
        lengths.append(len(record) - AES_1_2.overhead)
    return lengths


def test_tls_12_tx_max_payload_len(plain):
    """A limit of 128 bytes is read back, and kept on the wire."""
    near, far = plain
    install(near, linux.TLS_TX, AES_1_2)
    linux.set_tx_max_payload_len(near, 128)
    assert linux.get_tx_max_payload_len(near) == 128
    for size, lengths in ((64, [64]), (128, [128]), (129, [128, 1]), (1000, [128] * 7 + [104])):
        assert linux.send_record(near, pattern(size)) == size
        assert plaintext_lengths(far, size) == lengths
    assert linux.send_record(near, pattern(200), 100) == 200  # a control record too
    assert plaintext_lengths(far, 200) == [128, 72]
    linux.set_tx_max_payload_len(near, MOST)
    assert linux.send_record(near, pattern(1000)) == 1000
    assert plaintext_lengths(far, 1000) == [1000]


def test_tls_12_tx_max_payload_len_open_rec(plain):
    """The limit does not change while MSG_MORE holds a record open."""
    near, far = plain
    install(near, linux.TLS_TX, AES_1_2)
    assert linux.get_tx_max_payload_len(near) == MOST
    linux.set_tx_max_payload_len(near, 1024)
    assert linux.send_record(near, pattern(200), flags=socket.MSG_MORE) == 200
    with fails(errno.EBUSY, "setsockopt(SOL_TLS, TLS_TX_MAX_PAYLOAD_LEN)"):
        linux.set_tx_max_payload_len(near, 128)
    assert linux.get_tx_max_payload_len(near) == 1024
    linux.flush(near)
    assert plaintext_lengths(far, 200) == [200]
    linux.set_tx_max_payload_len(near, 128)
    assert linux.send_record(near, pattern(200)) == 200
    assert plaintext_lengths(far, 200) == [128, 72]


def test_non_established(plain):
    """The protocol needs a connection, and is attached once."""
    with socket.socket() as unconnected:
        with fails(errno.ENOTCONN, "setsockopt(TCP_ULP)"):
            linux.set_ulp(unconnected)
        unconnected.bind(("127.0.0.1", 0))
        unconnected.listen(1)
        with fails(errno.ENOTCONN, "setsockopt(TCP_ULP)"):
            linux.set_ulp(unconnected)
    for sock in plain:
        linux.set_ulp(sock)
        for _ in range(2):
            with fails(errno.EEXIST, "setsockopt(TCP_ULP)"):
                linux.set_ulp(sock)
    both_ways(*plain)


def test_keysizes(plain):
    """The longer struct of AES-256-GCM, in both directions of one socket."""
    variant = BY_NAME["12_aes_gcm_256"]
    for direction in (linux.TLS_TX, linux.TLS_RX):
        install(plain[0], direction, variant, which=direction)
        info = linux.get_crypto_info(plain[0], direction)
        assert info == keys(variant, direction)
        assert len(info.pack()) == 56
        assert len(info.key) == 32


def test_no_pad(plain):
    """TLS_RX_EXPECT_NO_PAD on and off, where receiving keys of TLS 1.3 are."""
    near, far = plain
    for sock, variant in ((near, AES_1_2), (far, AES_1_3)):
        linux.set_ulp(sock)
        for attempt in (
            lambda sock=sock: linux.set_rx_expect_no_pad(sock, True),
            lambda sock=sock: linux.get_rx_expect_no_pad(sock),
        ):
            with fails(errno.EINVAL):
                attempt()
        install(sock, linux.TLS_RX, variant)
    with fails(errno.EINVAL):
        linux.set_rx_expect_no_pad(near, True)
    assert linux.get_rx_expect_no_pad(far) is False
    for on in (True, True, False, True):
        linux.set_rx_expect_no_pad(far, on)
        assert linux.get_rx_expect_no_pad(far) is on


def test_tls_v6ops():
    """An IPv6 socket is still one once it has TLS."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        near = socket.create_connection(listener.getsockname()[:2], 30)
        with near:
            far, _ = listener.accept()
            with far:
                bounded(near)
                bounded(far)
                names = [(sock.getsockname(), sock.getpeername()) for sock in (near, far)]
                assert names[0] == names[1][::-1]
                install(near, linux.TLS_TX, AES_1_3)
                install(far, linux.TLS_RX, AES_1_3)
                after = [(sock.getsockname(), sock.getpeername()) for sock in (near, far)]
                assert after == names
                assert near.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_INET6
                assert linux.send_record(near, b"over IPv6") == 9
                assert take(far, 9) == b"over IPv6"
                # The option goes to the protocol of IPv6, behind that of TLS.
                far.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 8)
                assert far.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS) == 8


def test_prequeue():
    """Records that are there before the receiver has keys."""
    data = pattern(20_000)
    for variant in (AES_1_2, AES_1_3):
        near, far = tcp_pair()
        with near, far:
            install(near, linux.TLS_TX, variant)
            assert linux.send_record(near, data) == len(data)
            wait_queued(far, len(data) + 2 * variant.overhead)
            install(far, linux.TLS_RX, variant)
            assert take(far, len(data)) == data
            assert linux.get_rec_seq(far, linux.TLS_RX) == FIRST_NUMBER + 2


def test_data_steal(plain):
    """A read that began before the keys were there takes ciphertext away; then it is an error.

    Why nobody may be reading while keys are installed.
    """
    near, far = plain
    linux.set_ulp(near)
    linux.set_ulp(far)
    with Background(far.recv, 10, socket.MSG_WAITALL) as thief:
        time.sleep(MOMENT)
        assert not thief.done()
        install(near, linux.TLS_TX, AES_1_3)
        install(far, linux.TLS_RX, AES_1_3)
        assert linux.send_record(near, b"some data") == 9
        stolen = thief.result()
    assert len(stolen) == 10
    assert stolen[:5] == b"\x17\x03\x03\x00\x1a"  # the header of a record of 26 bytes
    # What is left begins in the middle of the record, with bytes that are no header.  (6.1 says so
    # when the wait is over, later kernels at once.)
    bounded(far, 0.5)
    with fails(errno.EMSGSIZE, "recvmsg"):
        linux.recv_record(far, 100)
    assert_nothing_to_read(far)


# ---- what the selftest does not ask ----------------------------------------------------------


def test_the_limit_where_there_is_none(plain):
    """Before 6.19 the limit is Unavailable; after it 16384 at first, and 63 is for TLS 1.3."""
    near, _ = plain
    install(near, linux.TLS_TX, AES_1_2)
    if kernel_version() >= (6, 19):
        assert linux.get_tx_max_payload_len(near) == MOST
        with fails(errno.EINVAL, "setsockopt(SOL_TLS, TLS_TX_MAX_PAYLOAD_LEN)"):
            linux.set_tx_max_payload_len(near, 63)
        return
    for call, attempt in (
        ("setsockopt", lambda: linux.set_tx_max_payload_len(near, 128)),
        ("getsockopt", lambda: linux.get_tx_max_payload_len(near)),
    ):
        with pytest.raises(Unavailable) as caught:
            attempt()
        assert str(caught.value) == (
            f"this kernel has no TLS_TX_MAX_PAYLOAD_LEN ([Errno 92] {call}(SOL_TLS, "
            "TLS_TX_MAX_PAYLOAD_LEN): Protocol not available); Linux has it since 6.19"
        )


# ---- versions and ciphers that this kernel does not have --------------------------------------


@pytest.mark.parametrize("variant", REFUSED, ids=lambda variant: variant.name)
def test_a_cipher_that_is_not_there(plain, variant):
    """ENOENT, from setsockopt(SOL_TLS), and the connection stays a plain one."""
    near, far = plain
    linux.set_ulp(near)
    # (Each attempt looks for a module to load, which takes time.)
    with fails(errno.ENOENT, "setsockopt(SOL_TLS, TLS_TX)"):
        linux.set_crypto_info(near, linux.TLS_TX, keys(variant))
    # The same from the kernel itself, without pyktls.
    with fails(errno.ENOENT):
        near.setsockopt(282, linux.TLS_RX, bytes(keys(variant).pack()))
    for direction in (linux.TLS_TX, linux.TLS_RX):
        with fails(errno.EBUSY):
            linux.get_version_and_cipher(near, direction)
    both_ways(near, far)


def test_only_sm4_and_aria_are_not_in_the_kernels_of_the_lab():
    """So that no scenario is left out unseen: these four variants, or none."""
    if "PYKTLS_LAB" in os.environ:
        rare = {"13_sm4_gcm", "13_sm4_ccm", "12_aria_gcm", "12_aria_gcm_256"}
        assert {variant.name for variant in REFUSED} == rare
    else:
        assert not {AES_1_2, AES_1_3} & set(REFUSED)
