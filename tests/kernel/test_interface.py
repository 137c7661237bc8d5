"""pyktls.linux against the kernel: crypto_info in and out, and what it means on the wire.

What is asserted here the kernel documents in Documentation/networking/tls.rst and its own selftest
shows (tools/testing/selftests/net/tls.c, cases ``getsockopt``, ``keysizes``, ``bad_cipher``).
"""

from __future__ import annotations

import errno
import os
import socket

import pytest

from pyktls import Direction, Unavailable, linux
from pyktls.ciphers import TLS_1_2, TLS_1_3, aead_by_linux_type
from support import kernel, records, tls
from support.kernel import SUITES, TIMEOUT, both_ways, suite_id

OPTIONS = (linux.TLS_TX, linux.TLS_RX)
OPTION_NAMES = {linux.TLS_TX: "TLS_TX", linux.TLS_RX: "TLS_RX"}
REC_SEQ = 0x0102030405060708

over_options = pytest.mark.parametrize("option", OPTIONS, ids=OPTION_NAMES.get)
over_suites = pytest.mark.parametrize("suite", SUITES, ids=suite_id)

# Chosen by number, not from the table under test: linux/tls.h.
RARE = {55: "SM4_GCM", 56: "SM4_CCM", 57: "ARIA_128_GCM", 58: "ARIA_256_GCM"}


@pytest.fixture
def tcp():
    near, far = tls.tcp_pair()
    with near, far:
        near.settimeout(TIMEOUT)
        far.settimeout(TIMEOUT)
        yield near, far


def split_records(data: bytes) -> list[bytes]:
    out = []
    while data:
        size = 5 + int.from_bytes(data[3:5], "big")
        assert len(data) >= size
        out.append(data[:size])
        data = data[size:]
    return out


# ---- set and get -----------------------------------------------------------------------------


@over_suites
@over_options
def test_what_is_set_is_read_back_byte_for_byte(tcp, suite, option):
    info = kernel.crypto_info(suite, rec_seq=REC_SEQ)
    linux.set_ulp(tcp[0])
    linux.set_crypto_info(tcp[0], option, info)
    assert linux.get_crypto_info(tcp[0], option).pack() == info.pack()
    assert linux.get_version_and_cipher(tcp[0], option) == (
        suite.version,
        suite.aead.linux.cipher_type,
    )
    # The other direction has no keys.
    other = linux.TLS_TX + linux.TLS_RX - option
    with pytest.raises(OSError, match=rf"getsockopt\(SOL_TLS, {OPTION_NAMES[other]}\)") as caught:
        linux.get_crypto_info(tcp[0], other)
    assert caught.value.errno == errno.EBUSY


@over_suites
def test_sending_counts_the_records(tcp, suite):
    """rec_seq and, where TLS 1.2 sends an explicit nonce, iv go up by one for each record."""
    info = kernel.crypto_info(suite, rec_seq=REC_SEQ)
    linux.set_ulp(tcp[0])
    linux.set_crypto_info(tcp[0], linux.TLS_TX, info)
    for size, records_made in ((10, 1), (16384, 2), (16385, 4)):
        tcp[0].sendall(bytes(size))
        now = linux.get_crypto_info(tcp[0], linux.TLS_TX)
        assert now.rec_seq == REC_SEQ + records_made
        assert (now.key, now.salt) == (info.key, info.salt)
        if suite.version == TLS_1_2 and suite.aead.explicit_nonce_length:
            start = int.from_bytes(info.iv, "big")
            assert int.from_bytes(now.iv, "big") == (start + records_made) % 2**64
        else:
            assert now.iv == info.iv


@over_suites
def test_receiving_counts_the_records(tcp, suite):
    near, far = tcp
    own, other = kernel.sessions(suite)
    sealer = records.Sealer(suite, other.tx)
    kernel.pyktls.install(near, own, tx=False)
    start = own.rx.sequence
    for count in range(1, 4):
        far.sendall(sealer.seal(records.APPLICATION_DATA, b"x" * 100))
        assert kernel.recv_exactly(near, 100) == b"x" * 100
        assert linux.get_crypto_info(near, linux.TLS_RX).rec_seq == start + count


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
@over_options
@pytest.mark.parametrize("cipher_type", RARE, ids=RARE.get)
def test_sm4_and_aria_are_taken_or_refused_with_the_name_of_the_call(
    tcp, cipher_type, version, option
):
    """ENOENT where the kernel has no such cipher; ARIA is for TLS 1.2 only (EINVAL)."""
    aead = aead_by_linux_type(cipher_type)
    assert aead is not None
    suite = kernel.suite(version)
    info = kernel.crypto_info(suite, aead=aead)
    linux.set_ulp(tcp[0])
    try:
        linux.set_crypto_info(tcp[0], option, info)
    except OSError as e:
        aria_1_3 = version == TLS_1_3 and "ARIA" in RARE[cipher_type]
        expected = errno.EINVAL if aria_1_3 else errno.ENOENT
        call = f"setsockopt(SOL_TLS, {OPTION_NAMES[option]})"
        assert str(e) == f"[Errno {expected}] {call}: {os.strerror(expected)}"  # noqa: PT017
        both_ways(*tcp)  # refused: still a plain connection
        info = kernel.crypto_info(suite)
        linux.set_crypto_info(tcp[0], option, info)  # and another cipher can follow
    assert linux.get_crypto_info(tcp[0], option).pack() == info.pack()


def test_a_refused_cipher_is_unavailable_to_install(tcp):
    suite = kernel.suite(TLS_1_2, "ARIA_128_GCM")
    session, _ = kernel.sessions(suite)
    if kernel.kernel_takes(suite):
        kernel.pyktls.install(tcp[0], session)
        return
    with pytest.raises(Unavailable) as caught:
        kernel.pyktls.install(tcp[0], session)
    assert str(caught.value) == (
        "this kernel does not take ARIA_128_GCM with TLS 1.2 ([Errno 2] setsockopt(SOL_TLS, "
        "TLS_RX): No such file or directory); Linux has ARIA_128_GCM since 6.1, if configured"
    )
    assert caught.value.remedy == "Linux has ARIA_128_GCM since 6.1, if configured"
    assert linux.get_ulp(tcp[0]) == b""  # found out elsewhere: this socket was not touched
    both_ways(*tcp)
    session.rx.claim(Direction.RX)  # and the keys were not used up
    session.tx.claim(Direction.TX)


# ---- the other errors of the calls -----------------------------------------------------------


@over_options
def test_no_keys_without_the_protocol(tcp, option):
    name = OPTION_NAMES[option]
    info = kernel.crypto_info(kernel.suite(TLS_1_3))
    with pytest.raises(OSError, match=rf"setsockopt\(SOL_TLS, {name}\)") as caught:
        linux.set_crypto_info(tcp[0], option, info)
    assert caught.value.errno == errno.ENOPROTOOPT
    with pytest.raises(OSError, match=rf"getsockopt\(SOL_TLS, {name}\)") as caught:
        linux.get_version_and_cipher(tcp[0], option)
    assert caught.value.errno == errno.EOPNOTSUPP
    both_ways(*tcp)


def test_the_protocol_is_attached_once_and_changes_nothing_on_the_wire(tcp):
    """The selftest's ``base_base`` and ``non_established``."""
    assert linux.get_ulp(tcp[0]) == b""
    linux.set_ulp(tcp[0])
    assert linux.get_ulp(tcp[0]) == b"tls"
    both_ways(*tcp)
    with pytest.raises(FileExistsError, match=r"setsockopt\(TCP_ULP\)"):
        linux.set_ulp(tcp[0])
    with pytest.raises(FileNotFoundError, match=r"setsockopt\(TCP_ULP\)"):
        linux.set_ulp(tcp[1], b"no-such-ulp")
    both_ways(*tcp)


def test_the_protocol_needs_a_connection():
    with socket.socket() as unconnected, socket.create_server(("127.0.0.1", 0)) as listener:
        for sock in (unconnected, listener):
            with pytest.raises(OSError, match=r"setsockopt\(TCP_ULP\)") as caught:
                linux.set_ulp(sock)
            assert caught.value.errno == errno.ENOTCONN


@over_options
def test_a_second_key_is_a_rekey_where_the_kernel_has_it_and_busy_elsewhere(tcp, option):
    """TLS 1.3 from Linux 6.14 on (selftest ``rekey``); never TLS 1.2 (``rekey_fail``)."""
    for version, sock in zip((TLS_1_2, TLS_1_3), tcp, strict=True):
        suite = kernel.suite(version)
        linux.set_ulp(sock)
        linux.set_crypto_info(sock, option, kernel.crypto_info(suite))
        second = kernel.crypto_info(suite)
        if version == TLS_1_3 and kernel.kernel_can_rekey():
            linux.set_crypto_info(sock, option, second)
            assert linux.get_crypto_info(sock, option) == second
        else:
            with pytest.raises(
                OSError, match=rf"setsockopt\(SOL_TLS, {OPTION_NAMES[option]}\)"
            ) as e:
                linux.set_crypto_info(sock, option, second)
            assert e.value.errno == errno.EBUSY


def test_functions_take_a_descriptor_as_well_as_a_socket(tcp):
    fd = tcp[0].fileno()
    info = kernel.crypto_info(kernel.suite(TLS_1_3))
    linux.set_ulp(fd)
    linux.set_crypto_info(fd, linux.TLS_TX, info)
    assert linux.get_crypto_info(fd, linux.TLS_TX) == info
    assert linux.get_ulp(fd) == linux.get_ulp(tcp[0]) == b"tls"


# ---- the wire --------------------------------------------------------------------------------


@over_suites
def test_what_the_kernel_sends_the_user_space_record_layer_opens(tcp, suite):
    near, far = tcp
    own, other = kernel.sessions(suite)
    wire = kernel.Wire(far, other)
    kernel.pyktls.install(near, own, rx=False)
    for size in (1, 16384, 40000):
        data = kernel.pattern(size)
        near.sendall(data)
        assert wire.recv_data(size) == data
    control = [(linux.SOL_TLS, linux.TLS_SET_RECORD_TYPE, bytes([records.ALERT]))]
    assert near.sendmsg([b"\x01\x00"], control) == 2
    assert wire.recv() == (records.ALERT, b"\x01\x00")


@over_suites
def test_the_kernel_opens_what_the_user_space_record_layer_sends(tcp, suite):
    near, far = tcp
    own, other = kernel.sessions(suite)
    wire = kernel.Wire(far, other)
    kernel.pyktls.install(near, own, tx=False)
    for size in (1, 100, 16384):
        data = kernel.pattern(size)
        wire.send_data(data)
        assert kernel.recv_exactly(near, size) == data
    if suite.version == TLS_1_3:
        wire.send(records.APPLICATION_DATA, b"padded", padding=300)
        assert near.recv(100) == b"padded"
    wire.send(records.HANDSHAKE, b"not data")
    received, control, _, _ = near.recvmsg(100, socket.CMSG_SPACE(1))
    assert received == b"not data"
    assert control == [(linux.SOL_TLS, linux.TLS_GET_RECORD_TYPE, bytes([records.HANDSHAKE]))]


@pytest.mark.parametrize("cipher", ["AES_128_GCM", "AES_256_GCM", "AES_128_CCM"])
def test_explicit_nonces_begin_at_random_and_count_up(cipher):
    """Two installations of the same keys would begin at different nonces (RFC 5288 section 3)."""
    suite = kernel.suite(TLS_1_2, cipher)
    starts = []
    own, _ = kernel.sessions(suite)
    for _ in range(2):
        near, far = tls.tcp_pair()
        with near, far:
            session = kernel.Session(
                suite, own.role, kernel.copy_keys(own.tx), kernel.copy_keys(own.rx)
            )
            kernel.pyktls.install(near, session, rx=False)
            near.sendall(bytes(20000))
            size = 20000 + 2 * (5 + 8 + 16)
            sent = split_records(kernel.recv_exactly(far, size))
            nonces = [int.from_bytes(record[5:13], "big") for record in sent]
            assert nonces[1] == (nonces[0] + 1) % 2**64
            starts.append(nonces[0])
    assert starts[0] != starts[1]
