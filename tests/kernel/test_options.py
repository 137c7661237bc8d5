"""The options besides the keys, and the change of keys: set, read back, refused.

The kernel's own selftest has these as ``no_pad``, ``tls_12_tx_max_payload_len``, ``rekey`` and
``rekey_fail``; here it is what pyktls adds: types, messages, and what the running kernel lacks.
"""

from __future__ import annotations

import errno
import socket

import pytest

import pyktls
from pyktls import InvalidType, InvalidValue, Unavailable, linux
from pyktls.ciphers import TLS_1_2, TLS_1_3
from support import kernel, records, tls
from support.kernel import ONE_OF_EACH, SUITES, both_ways, suite_id

over_suites = pytest.mark.parametrize("suite", SUITES, ids=suite_id)

OPTIONS = {
    "TLS_TX_ZEROCOPY_RO": (linux.set_tx_zerocopy_ro, linux.get_tx_zerocopy_ro, True),
    "TLS_RX_EXPECT_NO_PAD": (linux.set_rx_expect_no_pad, linux.get_rx_expect_no_pad, True),
    "TLS_TX_MAX_PAYLOAD_LEN": (linux.set_tx_max_payload_len, linux.get_tx_max_payload_len, 100),
}
over_options = pytest.mark.parametrize("name", OPTIONS)


@pytest.fixture
def tcp():
    near, far = tls.tcp_pair()
    with near, far:
        near.settimeout(kernel.TIMEOUT)
        far.settimeout(kernel.TIMEOUT)
        yield near, far


def knows(option: int) -> bool:
    """Whether this kernel has the option, asked without pyktls."""
    near, far = tls.tcp_pair()
    with near, far:
        near.setsockopt(socket.IPPROTO_TCP, 31, b"tls")
        try:
            near.getsockopt(282, option, 4)
        except OSError as e:
            return e.errno != errno.ENOPROTOOPT
        return True


def can_limit_payload() -> bool:
    return knows(linux.TLS_TX_MAX_PAYLOAD_LEN)


def installed(tcp, suite):
    """The first of the pair with keys, and the record layer opposite."""
    own, other = kernel.sessions(suite)
    pyktls.install(tcp[0], own)
    return kernel.Wire(tcp[1], other)


# ---- each option ------------------------------------------------------------------------------


@over_suites
def test_zerocopy_is_remembered_and_data_still_flows(tcp, suite, tmp_path):
    wire = installed(tcp, suite)
    assert linux.get_tx_zerocopy_ro(tcp[0]) is False
    for on in (True, False, True):
        linux.set_tx_zerocopy_ro(tcp[0], on)
        assert linux.get_tx_zerocopy_ro(tcp[0]) is on
        assert linux.get_tx_zerocopy_ro(tcp[0].fileno()) is on
    file = tmp_path / "file"
    file.write_bytes(kernel.pattern(20_000))
    with file.open("rb") as source:
        assert linux.sendfile(tcp[0], source) == (20_000, None)
    assert wire.recv_data(20_000) == kernel.pattern(20_000)


@pytest.mark.parametrize("suite", [s for s in SUITES if s.version == TLS_1_3], ids=suite_id)
def test_expect_no_pad_costs_no_byte_whatever_the_peer_sends(tcp, suite):
    """Padded, control and empty records between the data; retries are counted by the kernel."""
    wire = installed(tcp, suite)
    near = tcp[0]
    assert linux.get_rx_expect_no_pad(near) is False
    linux.set_rx_expect_no_pad(near, True)
    assert linux.get_rx_expect_no_pad(near) is True
    before = linux.tls_stat()
    sent = bytearray()
    got = bytearray()
    for size, padding in ((10, 0), (10, 300), (16384, 0), (1, 16000), (5000, 17)):
        data = kernel.pattern(size, seed=padding)
        wire.send(records.APPLICATION_DATA, data, padding=padding)
        sent += data
    wire.send(records.APPLICATION_DATA, b"", padding=100)
    wire.send(records.HANDSHAKE, b"control")
    while True:
        record = linux.recv_record(near, 7001)
        if record.record_type != records.APPLICATION_DATA:
            break
        got += record.data
    assert got == sent
    assert (record.data, record.record_type) == (b"control", records.HANDSHAKE)
    after = linux.tls_stat()
    assert after["TlsRxNoPadViolation"] > before["TlsRxNoPadViolation"]
    assert after["TlsDecryptRetry"] > before["TlsDecryptRetry"]
    linux.set_rx_expect_no_pad(near, False)
    assert linux.get_rx_expect_no_pad(near) is False


def test_expect_no_pad_is_for_tls_1_3_with_receiving_keys(tcp):
    linux.set_ulp(tcp[0])
    for keys in (None, TLS_1_2):
        if keys is not None:
            linux.set_crypto_info(tcp[0], linux.TLS_RX, kernel.crypto_info(kernel.suite(keys)))
        for on in (True, False):
            with pytest.raises(OSError, match=r"setsockopt\(SOL_TLS, TLS_RX_EXPECT_NO_PAD\)") as e:
                linux.set_rx_expect_no_pad(tcp[0], on)
            assert e.value.errno == errno.EINVAL
        with pytest.raises(OSError, match=r"getsockopt\(SOL_TLS, TLS_RX_EXPECT_NO_PAD\)") as e:
            linux.get_rx_expect_no_pad(tcp[0])
        assert e.value.errno == errno.EINVAL


@over_suites
@pytest.mark.parametrize("limit", [64, 100, 4096, 16384])
def test_no_record_is_longer_than_the_limit_or_the_option_is_unavailable(tcp, suite, limit):
    wire = installed(tcp, suite)
    near = tcp[0]
    if not can_limit_payload():
        for call in (
            lambda: linux.get_tx_max_payload_len(near),
            lambda: linux.set_tx_max_payload_len(near, limit),
        ):
            with pytest.raises(Unavailable, match=r"^this kernel has no TLS_TX_MAX_PAYLOAD_LEN "):
                call()
        return
    assert linux.get_tx_max_payload_len(near) == 16384
    linux.set_tx_max_payload_len(near, limit)
    assert linux.get_tx_max_payload_len(near) == limit
    data = kernel.pattern(20_000)
    near.sendall(data)
    sizes = []
    got = b""
    while len(got) < len(data):
        record_type, payload = wire.recv()
        assert record_type == records.APPLICATION_DATA
        sizes.append(len(payload))
        got += payload
    assert got == data
    assert set(sizes[:-1]) <= {limit}
    assert sizes[-1] <= limit


def test_the_least_limit_depends_on_the_version(tcp):
    if not can_limit_payload():
        with pytest.raises(Unavailable):
            linux.set_tx_max_payload_len(tcp[0], 63) if linux.set_ulp(tcp[0]) is None else None
        return
    for sock, suite in zip(tcp, ONE_OF_EACH, strict=True):
        linux.set_ulp(sock)
        linux.set_crypto_info(sock, linux.TLS_TX, kernel.crypto_info(suite))
    with pytest.raises(OSError, match=r"setsockopt\(SOL_TLS, TLS_TX_MAX_PAYLOAD_LEN\)") as e:
        linux.set_tx_max_payload_len(tcp[0], 63)
    assert e.value.errno == errno.EINVAL
    assert linux.get_tx_max_payload_len(tcp[0]) == 16384
    linux.set_tx_max_payload_len(tcp[1], 63)
    assert linux.get_tx_max_payload_len(tcp[1]) == 63


def test_the_limit_does_not_change_within_a_record(tcp):
    if not can_limit_payload():
        assert not knows(linux.TLS_TX_MAX_PAYLOAD_LEN)
        return
    wire = installed(tcp, kernel.suite(TLS_1_3))
    linux.send_record(tcp[0], b"held", flags=socket.MSG_MORE)
    with pytest.raises(OSError, match=r"setsockopt\(SOL_TLS, TLS_TX_MAX_PAYLOAD_LEN\)") as e:
        linux.set_tx_max_payload_len(tcp[0], 100)
    assert e.value.errno == errno.EBUSY
    linux.flush(tcp[0])
    assert wire.recv() == (records.APPLICATION_DATA, b"held")
    linux.set_tx_max_payload_len(tcp[0], 100)


# ---- arguments and states that are wrong -----------------------------------------------------


@over_options
def test_without_the_protocol_it_is_an_error_of_the_call(tcp, name):
    set_, get, value = OPTIONS[name]
    with pytest.raises(OSError, match=rf"setsockopt\(SOL_TLS, {name}\)") as e:
        set_(tcp[0], value)
    assert e.value.errno == errno.ENOPROTOOPT
    with pytest.raises(OSError, match=rf"getsockopt\(SOL_TLS, {name}\)") as e:
        get(tcp[0])
    assert e.value.errno == errno.EOPNOTSUPP
    both_ways(*tcp)


@pytest.mark.parametrize("value", [0, 1, None, "on", 1.0])
@pytest.mark.parametrize("set_", [linux.set_tx_zerocopy_ro, linux.set_rx_expect_no_pad])
def test_a_switch_is_a_bool(tcp, set_, value):
    with pytest.raises(InvalidType, match=r"^on must be a bool, not "):
        set_(tcp[0], value)


@pytest.mark.parametrize("value", [True, None, "100", 100.0])
def test_a_limit_is_an_int(tcp, value):
    with pytest.raises(InvalidType, match=r"^size must be an int, not "):
        linux.set_tx_max_payload_len(tcp[0], value)


@pytest.mark.parametrize("value", [-1, 0, 62, 16385, 65536, 2**40])
def test_a_limit_that_no_kernel_takes(tcp, value):
    with pytest.raises(InvalidValue, match=rf"^size must be from 63 to 16384, not {value}$"):
        linux.set_tx_max_payload_len(tcp[0], value)


# ---- the number of the next record -----------------------------------------------------------


@over_suites
def test_rec_seq_counts(tcp, suite):
    wire = installed(tcp, suite)
    near = tcp[0]
    start = linux.get_rec_seq(near, linux.TLS_TX)
    near.sendall(b"one")
    linux.send_record(near, b"two", flags=socket.MSG_MORE)
    assert linux.get_rec_seq(near, linux.TLS_TX) == start + 1  # one is still open
    linux.flush(near)
    linux.send_record(near, b"\1\0", records.ALERT)
    assert linux.get_rec_seq(near, linux.TLS_TX) == start + 3
    start = linux.get_rec_seq(near, linux.TLS_RX)
    wire.send_data(b"one")
    wire.send(records.HANDSHAKE, b"two")
    assert linux.recv_record(near, 10).data == b"one"
    assert linux.recv_record(near, 10).data == b"two"
    assert linux.get_rec_seq(near, linux.TLS_RX) == start + 2


# ---- the change of keys ----------------------------------------------------------------------


@pytest.mark.parametrize("option", [linux.TLS_TX, linux.TLS_RX])
def test_rekey_works_or_is_unavailable_and_the_old_keys_stay(tcp, option):
    suite = kernel.suite(TLS_1_3)
    linux.set_ulp(tcp[0])
    first, second = kernel.crypto_info(suite), kernel.crypto_info(suite)
    linux.set_crypto_info(tcp[0], option, first)
    if kernel.kernel_can_rekey():
        linux.rekey(tcp[0], option, second)
        assert linux.get_crypto_info(tcp[0], option) == second
        return
    with pytest.raises(Unavailable) as caught:
        linux.rekey(tcp[0], option, second)
    name = {1: "TLS_TX", 2: "TLS_RX"}[option]
    assert str(caught.value) == (
        "this kernel cannot change keys: Linux can since 6.14 "
        f"([Errno 16] setsockopt(SOL_TLS, {name}): Device or resource busy)"
    )
    assert linux.get_crypto_info(tcp[0], option) == first


def test_rekey_is_no_way_to_install_the_first_keys(tcp):
    linux.set_ulp(tcp[0])
    with pytest.raises(OSError, match=r"getsockopt\(SOL_TLS, TLS_TX\)") as e:
        linux.rekey(tcp[0], linux.TLS_TX, kernel.crypto_info(kernel.suite(TLS_1_3)))
    assert e.value.errno == errno.EBUSY
    both_ways(*tcp)  # still plain


def test_rekey_to_another_cipher_leaves_the_old_keys(tcp):
    linux.set_ulp(tcp[0])
    first = kernel.crypto_info(kernel.suite(TLS_1_3))
    linux.set_crypto_info(tcp[0], linux.TLS_TX, first)
    other = kernel.crypto_info(kernel.suite(TLS_1_3, "AES_256_GCM"))
    expected = (OSError, errno.EINVAL) if kernel.kernel_can_rekey() else (Unavailable, None)
    with pytest.raises(expected[0]) as caught:
        linux.rekey(tcp[0], linux.TLS_TX, other)
    assert getattr(caught.value, "errno", None) == expected[1]
    assert linux.get_crypto_info(tcp[0], linux.TLS_TX) == first


def test_rekey_arguments(tcp):
    linux.set_ulp(tcp[0])
    info = kernel.crypto_info(kernel.suite(TLS_1_2))
    linux.set_crypto_info(tcp[0], linux.TLS_TX, info)
    with pytest.raises(InvalidValue, match=r"^TLS 1\.2 changes no keys without a handshake$"):
        linux.rekey(tcp[0], linux.TLS_TX, info)
    with pytest.raises(InvalidType, match=r"^info must be a CryptoInfo, not bytes$"):
        linux.rekey(tcp[0], linux.TLS_TX, b"")
    with pytest.raises(InvalidValue, match=r"^direction must be TLS_TX"):
        linux.rekey(tcp[0], 3, info)
