"""OpenSSL's own kernel TLS code as the oracle.

An OpenSSL built with kernel TLS hands a finished crypto_info struct to its socket BIO
(BIO_CTRL_SET_KTLS).  A filter BIO in between notes the struct and declines, so that no kernel is
needed and OpenSSL carries on by itself.  What pyktls makes of the same connection must be equal,
byte for byte.
"""

from __future__ import annotations

import ctypes
import functools
import ssl
from dataclasses import dataclass, field
from typing import Any

import pytest

import pyktls
from pyktls.linux import CryptoInfo
from support import tls
from support.systems import linux_only
from support.tls import TLS_1_2, TLS_1_3, Pair

OP_ENABLE_KTLS = 1 << 3
BIO_CTRL_SET_KTLS = 72
BIO_CTRL_GET_KTLS_SEND = 73
BIO_CTRL_GET_KTLS_RECV = 76
BIO_TYPE_FILTER = 0x200
LARGEST_STRUCT = 56  # then a size_t: how many of them the cipher's struct has

_P, _INT, _LONG, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_size_t
_TRANSFER = ctypes.CFUNCTYPE(_INT, _P, _P, _SIZE, ctypes.POINTER(_SIZE))
_CTRL = ctypes.CFUNCTYPE(_LONG, _P, _INT, _LONG, _P)
_CREATE = ctypes.CFUNCTYPE(_INT, _P)


@functools.cache
def libcrypto() -> Any:
    library = tls.libssl()
    for name, result, *arguments in (
        ("BIO_get_new_index", _INT),
        ("BIO_meth_new", _P, _INT, ctypes.c_char_p),
        ("BIO_meth_set_write_ex", _INT, _P, _TRANSFER),
        ("BIO_meth_set_read_ex", _INT, _P, _TRANSFER),
        ("BIO_meth_set_ctrl", _INT, _P, _CTRL),
        ("BIO_meth_set_create", _INT, _P, _CREATE),
        ("BIO_new", _P, _P),
        ("BIO_next", _P, _P),
        ("BIO_push", _P, _P, _P),
        ("BIO_up_ref", _INT, _P),
        ("BIO_set_init", None, _P, _INT),
        ("BIO_clear_flags", None, _P, _INT),
        ("BIO_copy_next_retry", None, _P),
        ("BIO_write_ex", _INT, _P, _P, _SIZE, ctypes.POINTER(_SIZE)),
        ("BIO_read_ex", _INT, _P, _P, _SIZE, ctypes.POINTER(_SIZE)),
        ("BIO_ctrl", _LONG, _P, _INT, _LONG, _P),
        ("SSL_get_rbio", _P, _P),
        ("SSL_set_bio", None, _P, _P, _P),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


@dataclass
class Noted:
    """The structs of one connection, by direction, in the order in which they came."""

    tx: list[bytes] = field(default_factory=list)
    rx: list[bytes] = field(default_factory=list)


_noted: dict[int, Noted] = {}  # by the filter BIO's address, while its connection lives


@_TRANSFER
def _write(bio: int, data: int, size: int, done: Any) -> int:
    result = libcrypto().BIO_write_ex(libcrypto().BIO_next(bio), data, size, done)
    libcrypto().BIO_clear_flags(bio, 0x0F)
    libcrypto().BIO_copy_next_retry(bio)
    return int(result)


@_TRANSFER
def _read(bio: int, data: int, size: int, done: Any) -> int:
    result = libcrypto().BIO_read_ex(libcrypto().BIO_next(bio), data, size, done)
    libcrypto().BIO_clear_flags(bio, 0x0F)
    libcrypto().BIO_copy_next_retry(bio)
    return int(result)


@_CTRL
def _ctrl(bio: int, command: int, number: int, pointer: int) -> int:
    if command == BIO_CTRL_SET_KTLS:
        length = _SIZE.from_address(pointer + LARGEST_STRUCT).value
        struct = ctypes.string_at(pointer, length)
        # For sending it is 1, or 2 before OpenSSL 3.2.
        (_noted[bio].tx if number else _noted[bio].rx).append(struct)
        return 0
    if command in {BIO_CTRL_GET_KTLS_SEND, BIO_CTRL_GET_KTLS_RECV}:
        return 0
    return int(libcrypto().BIO_ctrl(libcrypto().BIO_next(bio), command, number, pointer))


@_CREATE
def _create(bio: int) -> int:
    libcrypto().BIO_set_init(bio, 1)
    return 1


@functools.cache
def method() -> int:
    crypto = libcrypto()
    made = crypto.BIO_meth_new(crypto.BIO_get_new_index() | BIO_TYPE_FILTER, b"notes ktls")
    assert made
    assert crypto.BIO_meth_set_write_ex(made, _write)
    assert crypto.BIO_meth_set_read_ex(made, _read)
    assert crypto.BIO_meth_set_ctrl(made, _ctrl)
    assert crypto.BIO_meth_set_create(made, _create)
    return int(made)


def listen_in(sock: ssl.SSLSocket) -> Noted:
    """Put the filter between a connection and its socket, before the handshake."""
    crypto, pointer = libcrypto(), tls.ssl_pointer(sock)
    below = crypto.SSL_get_rbio(pointer)
    crypto.BIO_up_ref(below)
    bio = crypto.BIO_new(method())
    crypto.BIO_push(bio, below)
    crypto.SSL_set_bio(pointer, bio, bio)
    _noted[bio] = Noted()
    return _noted[bio]


def connect(version: ssl.TLSVersion, cipher: str, *, enable: bool) -> tuple[Pair, Noted, Noted]:
    client, server = tls.contexts(version, cipher)
    if enable:
        for context in (client, server):
            context.options |= OP_ENABLE_KTLS
    pair = tls.wrap_pair(client, server)
    noted = listen_in(pair.client), listen_in(pair.server)
    try:
        tls.together(pair.client.do_handshake, pair.server.do_handshake, pair)
    except BaseException:
        pair.close()
        raise
    return pair, *noted


@functools.cache
def built_with_ktls() -> bool:
    pair, client, server = connect(TLS_1_3, "TLS_AES_128_GCM_SHA256", enable=True)
    pair.close()
    return bool(client.tx or client.rx or server.tx or server.rx)


def wants_an_oracle() -> None:
    if not built_with_ktls():
        pytest.skip(f"{ssl.OPENSSL_VERSION} was built without kernel TLS: it never sets any keys")


def ours(session: pyktls.Session, keys: pyktls.DirectionKeys, explicit_nonce: bytes) -> CryptoInfo:
    """The struct as pyktls makes it, with the number that the keys began with."""
    cipher_type = session.cipher.aead.linux.cipher_type
    nonce = bytes(keys.iv) + explicit_nonce
    assert len(nonce) == 12
    split = 0 if cipher_type == pyktls.lowlevel.lib.TLS_CIPHER_CHACHA20_POLY1305 else 4
    return CryptoInfo(
        session.version,
        cipher_type,
        key=keys.key,
        salt=nonce[:split],
        iv=nonce[split:],
        rec_seq=0,
    )


CIPHERS = [
    *((TLS_1_2, f"ECDHE-ECDSA-{name}") for name in (
        "AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305", "AES128-CCM")),
    *((TLS_1_3, name) for name in tls.TLS_1_3_SUITES),
]  # fmt: skip
#: OpenSSL 3.0 does not offer it to the kernel; then there is nothing to compare.
MAY_BE_MISSING = "TLS_AES_128_CCM_SHA256"


@linux_only  # elsewhere OpenSSL gives the kernel other structs
@pytest.mark.parametrize(("version", "cipher"), CIPHERS, ids=lambda p: str(getattr(p, "name", p)))
def test_structs_equal_those_that_openssl_would_install(
    version: ssl.TLSVersion, cipher: str
) -> None:
    wants_an_oracle()
    pair, *both = connect(version, cipher, enable=True)
    receives = version == TLS_1_2 or ssl.OPENSSL_VERSION_INFO >= (3, 2)
    with pair:
        for sock, noted in zip((pair.client, pair.server), both, strict=True):
            session = pyktls.extract(sock)
            counts = len(noted.tx), len(noted.rx)
            assert counts == (1, int(receives)) or (cipher == MAY_BE_MISSING and counts == (0, 0))
            for keys, structs, sending in (
                (session.tx, noted.tx, True),
                (session.rx, noted.rx, False),
            ):
                for struct in structs:
                    # The explicit nonce of TLS 1.2 is not derived: to send OpenSSL begins at
                    # random, and what it says for receiving is not used.
                    theirs = CryptoInfo.unpack(struct)
                    free = session.cipher.version == TLS_1_2 and len(keys.iv) == 4
                    mine = ours(session, keys, theirs.iv if free else b"")
                    assert bytes(mine.pack()) == struct
                    assert theirs == mine
                    if free and sending:
                        assert any(theirs.iv)
        pair.exchange()


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_without_the_option_openssl_sets_no_keys(version: ssl.TLSVersion) -> None:
    cipher = "ECDHE-ECDSA-AES128-GCM-SHA256" if version == TLS_1_2 else "TLS_AES_128_GCM_SHA256"
    pair, client, server = connect(version, cipher, enable=False)
    with pair:
        assert client == server == Noted()
        pair.exchange()


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_the_ledger_is_right_through_a_filter_too(version: ssl.TLSVersion) -> None:
    cipher = "ECDHE-ECDSA-AES128-GCM-SHA256" if version == TLS_1_2 else "TLS_AES_128_GCM_SHA256"
    pair, *_ = connect(version, cipher, enable=True)
    with pair:
        pair.exchange()
        assert pyktls.extract(pair.client).tx.sequence > 0
