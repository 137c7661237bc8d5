"""The selftest's ``tls_basic``: a connection with the protocol, and keys as each scenario needs."""

from __future__ import annotations

import ctypes
import errno

import pytest

from pyktls import InvalidValue, linux
from pyktls.ciphers import TLS_1_3
from pyktls.socket_calls import setsockopt
from support.kernel import both_ways, pattern
from support.selftest import (
    BY_NAME,
    CONTROL,
    Pair,
    assert_nothing_to_read,
    fails,
    install,
    keys,
    take,
    take_record,
)

AES = BY_NAME["13_aes_gcm"]


@pytest.fixture
def attached(plain):
    for sock in plain:
        linux.set_ulp(sock)
    return plain


def test_base_base(attached):
    """Without keys, data passes as it is."""
    for size in (1, 100, 20_000):
        both_ways(*attached, pattern(size))
    near, far = attached
    near.sendall(b"as it is")
    # As the kernel says it: bytes without a record's type.
    assert take_record(far, 100) == (b"as it is", None)


def test_bad_cipher(attached):
    """No struct is made of versions and ciphers that there are not, and the kernel takes none."""
    good = bytes(keys(AES).pack())
    fields = {"key": keys(AES).key, "salt": keys(AES).salt, "iv": keys(AES).iv, "rec_seq": 0}
    for version, cipher_type in (
        (0x0302, AES.cipher_type),
        (0x0305, AES.cipher_type),
        (0x0000, AES.cipher_type),
        (0xFFFF, AES.cipher_type),
        (TLS_1_3, 50),
        (TLS_1_3, 59),
        (TLS_1_3, 0),
        (TLS_1_3, 0xFFFF),
    ):
        with pytest.raises(InvalidValue, match=r"^version must be|^cipher_type \d+ is not"):
            linux.CryptoInfo(version, cipher_type, **fields)
        bad = version.to_bytes(2, "little") + cipher_type.to_bytes(2, "little") + good[4:]
        assert len(bad) == len(good)
        for sock in attached:
            for direction in (linux.TLS_TX, linux.TLS_RX):
                with fails(errno.EINVAL, "setsockopt"):
                    setsockopt(sock.fileno(), linux.SOL_TLS, direction, bad, "setsockopt")
                with fails(errno.EBUSY):
                    linux.get_version_and_cipher(sock, direction)
    both_ways(*attached)


def test_recseq_wrap(attached):
    """The last number of all: the send fails, for the next record would repeat a nonce."""
    near, _ = attached
    linux.set_crypto_info(near, linux.TLS_TX, keys(AES, rec_seq=2**64 - 1))
    assert linux.get_rec_seq(near, linux.TLS_TX) == 2**64 - 1
    for _ in range(2):
        with fails(errno.EBADMSG, "sendmsg"):
            linux.send_record(near, b"data")


def test_recvmsg_nopad_retry_iov(attached):
    """A control record is decrypted a second time under NO_PAD, and only to where it belongs.

    Kernels with CVE-2026-74611 write over the second buffer.
    """
    near, far = attached
    install(near, linux.TLS_TX, AES)
    install(far, linux.TLS_RX, BY_NAME["13_nopad"])
    pair = Pair(AES, near, far)
    retries = linux.tls_stat()["TlsDecryptRetry"]
    pair.send(b"0123456789", CONTROL)
    pair.send(b"data")
    pair.arrived(10, 4)
    buffers = [bytearray(b"." * 5), bytearray(b"." * 20), bytearray(b"." * 20)]
    received, record_type, _ = linux.recv_record_into(far, buffers)
    assert (received, record_type) == (10, CONTROL)
    assert buffers == [b"01234", b"56789" + b"." * 15, b"." * 20]
    assert linux.tls_stat()["TlsDecryptRetry"] == retries + 1
    assert take(far, 4) == b"data"
    assert_nothing_to_read(far)


def test_rekey_tx(attached):
    """New sending keys before the first record: it goes out under them."""
    near, far = attached
    install(near, linux.TLS_TX, AES)
    linux.rekey(near, linux.TLS_TX, keys(AES, 1))
    install(far, linux.TLS_RX, AES, which=1)
    assert linux.send_record(near, b"new keys") == 8
    assert take(far, 8) == b"new keys"


def test_rekey_rx(attached):
    """New receiving keys before the first record, without a KeyUpdate."""
    near, far = attached
    install(far, linux.TLS_RX, AES)
    linux.rekey(far, linux.TLS_RX, keys(AES, 1))
    install(near, linux.TLS_TX, AES, which=1)
    assert linux.send_record(near, b"new keys") == 8
    assert take(far, 8) == b"new keys"


def test_disconnect(attached):
    """connect(AF_UNSPEC) does not take TLS off a socket, and loses nothing."""
    near, far = attached
    install(near, linux.TLS_TX, AES)
    install(far, linux.TLS_RX, AES)
    pair = Pair(AES, near, far)
    pair.send(b"data")
    pair.arrived(4)
    libc = ctypes.CDLL(None, use_errno=True)
    for sock in (far, near):
        unspecified = ctypes.create_string_buffer(16)  # family 0: AF_UNSPEC
        assert libc.connect(sock.fileno(), unspecified, ctypes.c_uint(16)) == -1
        assert ctypes.get_errno() == errno.EOPNOTSUPP
        assert linux.get_ulp(sock) == b"tls"
    assert take(far, 4) == b"data"
    pair.send(b"goes on")
    assert take(far, 7) == b"goes on"
