"""pyktls.freebsd on any machine: the struct, what is refused before a call, and no secrets."""

from __future__ import annotations

import copy
import pickle
import socket
import subprocess
import sys
from typing import Any

import pytest

from pyktls import freebsd
from pyktls.errors import InvalidType, InvalidValue, Unavailable
from pyktls.freebsd import TLSEnable
from pyktls.lowlevel import ffi, lib

CBC = freebsd.CRYPTO_AES_CBC
GCM = freebsd.CRYPTO_AES_NIST_GCM_16
CHACHA20 = freebsd.CRYPTO_CHACHA20_POLY1305
SHA1, SHA256, SHA384 = (
    freebsd.CRYPTO_SHA1_HMAC,
    freebsd.CRYPTO_SHA2_256_HMAC,
    freebsd.CRYPTO_SHA2_384_HMAC,
)
HERE_IS_FREEBSD = lib.pyktls_system() == lib.PYKTLS_FREEBSD

# Version, cipher, HMAC; then the bytes of key, IV and HMAC key.
GOOD = [
    (0x0303, GCM, 0, 16, 4, 0),
    (0x0303, GCM, 0, 32, 4, 0),
    (0x0304, GCM, 0, 16, 12, 0),
    (0x0304, GCM, 0, 32, 12, 0),
    (0x0303, CHACHA20, 0, 32, 12, 0),
    (0x0304, CHACHA20, 0, 32, 12, 0),
    (0x0301, CBC, SHA1, 16, 16, 20),
    (0x0302, CBC, SHA1, 32, 0, 20),
    (0x0303, CBC, SHA1, 16, 0, 20),
    (0x0303, CBC, SHA256, 16, 0, 32),
    (0x0303, CBC, SHA384, 32, 0, 48),
]
BAD = [
    (0x0300, GCM, 0, 16, 4, 0, "version must be from 0x0301 to 0x0304, not 0x0300"),
    (0x0305, GCM, 0, 16, 4, 0, "version must be from 0x0301 to 0x0304, not 0x0305"),
    (0x0302, GCM, 0, 16, 4, 0, "an AEAD does not go with auth_algorithm 0 in TLS 1.1"),
    (0x0303, GCM, SHA1, 16, 4, 20, "an AEAD does not go with auth_algorithm 7 in TLS 1.2"),
    (0x0303, 12, 0, 16, 4, 0, "cipher_algorithm 12 is not one that the kernel has"),
    (0x0303, GCM, 0, 24, 4, 0, "key must be 16 or 32 bytes here, not 24"),
    (0x0303, GCM, 0, 16, 12, 0, "iv must be 4 bytes here, not 12"),
    (0x0304, GCM, 0, 16, 4, 0, "iv must be 12 bytes here, not 4"),
    (0x0303, GCM, 0, 16, 4, 20, "auth_key must be 0 bytes here, not 20"),
    (0x0303, CHACHA20, 0, 16, 12, 0, "key must be 32 bytes here, not 16"),
    (0x0303, CHACHA20, 0, 32, 4, 0, "iv must be 12 bytes here, not 4"),
    (0x0303, CBC, SHA1, 16, 16, 20, "iv must be 0 bytes here, not 16"),
    (0x0301, CBC, SHA1, 16, 0, 20, "iv must be 16 bytes here, not 0"),
    (0x0303, CBC, SHA1, 16, 0, 5, "auth_key must be 20 bytes here, not 5"),
    (0x0303, CBC, SHA256, 16, 0, 20, "auth_key must be 32 bytes here, not 20"),
    (0x0303, CBC, SHA384, 16, 0, 32, "auth_key must be 48 bytes here, not 32"),
    (0x0303, CBC, 0, 16, 0, 0, "AES-CBC does not go with auth_algorithm 0 in TLS 1.2"),
    (0x0303, CBC, 20, 16, 0, 64, "AES-CBC does not go with auth_algorithm 20 in TLS 1.2"),
    (0x0302, CBC, SHA256, 16, 0, 32, "AES-CBC does not go with auth_algorithm 18 in TLS 1.1"),
    (0x0304, CBC, SHA1, 16, 0, 20, "AES-CBC does not go with auth_algorithm 7 in TLS 1.3"),
]


def make(
    version: int, cipher: int, auth: int, key: int, iv: int, auth_key: int, rec_seq: int = 5
) -> TLSEnable:
    return TLSEnable(
        version,
        cipher,
        key=bytes(range(1, key + 1)),
        iv=bytes(range(101, 101 + iv)),
        rec_seq=rec_seq,
        auth_algorithm=auth,
        auth_key=bytes(range(151, 151 + auth_key)),
    )


def buffer(pointer: Any, length: int) -> bytes:
    return bytes(ffi.buffer(ffi.cast("char *", pointer), length)) if length else b""


@pytest.mark.parametrize("row", GOOD, ids=str)
def test_what_the_struct_holds(row: tuple[int, ...]) -> None:
    info = make(*row, rec_seq=0x0102030405060708)
    struct = info.struct()
    version, cipher, auth, key, iv, auth_key = row
    assert (struct.tls_vmajor, struct.tls_vminor) == (3, version & 0xFF)
    assert (struct.cipher_algorithm, struct.auth_algorithm) == (cipher, auth)
    assert (struct.cipher_key_len, struct.iv_len, struct.auth_key_len) == (key, iv, auth_key)
    assert struct.flags == 0
    assert bytes(struct.rec_seq) == bytes(range(1, 9))
    assert buffer(struct.cipher_key, key) == info.key
    assert buffer(struct.iv, iv) == info.iv
    assert buffer(struct.auth_key, auth_key) == info.auth_key
    assert (struct.iv == ffi.NULL) is (iv == 0)
    assert (struct.auth_key == ffi.NULL) is (auth_key == 0)
    assert bytes(ffi.buffer(struct))[58:] == bytes(6)  # the padding goes to the kernel too


@pytest.mark.parametrize("row", BAD, ids=lambda row: row[-1])
def test_what_does_not_go_together(row: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidValue) as caught:
        make(*row[:-1])
    assert str(caught.value) == row[-1]


@pytest.mark.parametrize("rec_seq", [-1, 2**64 - 1, 2**64])
def test_sequence_numbers_that_are_refused(rec_seq: int) -> None:
    with pytest.raises(InvalidValue, match=r"^rec_seq must be from 0 to 2\*\*64 - 2"):
        make(*GOOD[0], rec_seq=rec_seq)
    make(*GOOD[0], rec_seq=2**64 - 2)


@pytest.mark.parametrize(
    "changed",
    [
        {"version": "1.2"},
        {"cipher_algorithm": None},
        {"key": "k" * 16},
        {"iv": None},
        {"rec_seq": True},
        {"rec_seq": 1.0},
        {"auth_algorithm": "sha1"},
        {"auth_key": 5},
    ],
    ids=str,
)
def test_wrong_types(changed: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {
        "version": 0x0303,
        "cipher_algorithm": GCM,
        "key": bytes(16),
        "iv": bytes(4),
        "rec_seq": 0,
        **changed,
    }
    with pytest.raises(InvalidType):
        TLSEnable(**arguments)


def test_no_secret_is_shown() -> None:
    info = make(*GOOD[-1])
    for shown in (repr(info), str(info), f"{info}", repr([info])):
        assert "cipher_algorithm=11 auth_algorithm=19 rec_seq=5" in shown
        for secret in (info.key, info.auth_key):
            assert secret.hex() not in shown
            assert repr(secret)[2:-1] not in shown
    for how in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(InvalidType, match="it holds secrets"):
            how(info)


def test_wiping_reaches_what_the_struct_points_to() -> None:
    info = make(*GOOD[6])
    struct = info.struct()
    parts = info._key, info._iv, info._auth_key  # kept alive for the look at them
    info.wipe()
    assert buffer(struct.cipher_key, 16) == bytes(16)
    assert buffer(struct.iv, 16) == bytes(16)
    assert buffer(struct.auth_key, 20) == bytes(20)
    assert not any(any(part) for part in parts)
    assert (info.key, info.iv, info.auth_key) == (b"", b"", b"")


def test_equality() -> None:
    assert make(*GOOD[0]) == make(*GOOD[0])
    assert make(*GOOD[0]) != make(*GOOD[0], rec_seq=6)
    assert make(*GOOD[0]) != make(*GOOD[1])
    assert make(*GOOD[0]) != 5
    with pytest.raises(TypeError):
        hash(make(*GOOD[0]))


@pytest.mark.parametrize("lengths", [(1025, 0, 0), (16, 1025, 0), (16, 0, 1025)])
def test_lengths_that_no_kernel_takes(lengths: tuple[int, int, int]) -> None:
    struct = ffi.new("struct tls_enable *")
    memory = ffi.new("char[2048]")
    key, iv, auth_key = lengths
    result = lib.pyktls_freebsd_fill(
        struct, 0x0303, GCM, memory, key, memory, iv, 0, memory, auth_key, 0
    )
    assert result < 0


@pytest.mark.skipif(HERE_IS_FREEBSD, reason="there they work")
@pytest.mark.parametrize(
    "call",
    [
        lambda s: freebsd.set_tls_enable(s, freebsd.TCP_TXTLS_ENABLE, make(*GOOD[0])),
        lambda s: freebsd.get_mode(s, freebsd.TCP_TXTLS_MODE),
        lambda s: freebsd.set_tx_mode(s, freebsd.TCP_TLS_MODE_SW),
        lambda s: freebsd.recv_record(s, 100),
        lambda s: freebsd.send_record(s, b"x", 23),
        lambda s: freebsd.sendfile(s, s),
        lambda _: freebsd.sysctl("kern.ipc.tls.enable"),
        lambda _: freebsd.gates(),
        lambda _: freebsd.statistics(),
    ],
)
def test_calls_on_another_system(call: Any) -> None:
    with (
        socket.socket() as sock,
        pytest.raises(Unavailable, match=r"this system is not FreeBSD; pyktls.linux is Linux's"),
    ):
        call(sock)


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda s: freebsd.set_tls_enable(s, 1, make(*GOOD[0])), InvalidValue),
        (lambda s: freebsd.set_tls_enable(s, 39, b"struct"), InvalidType),
        (lambda _: freebsd.set_tls_enable("sock", 39, make(*GOOD[0])), InvalidType),
        (lambda _: freebsd.set_tls_enable(-1, 39, make(*GOOD[0])), InvalidValue),
        (lambda s: freebsd.get_mode(s, freebsd.TCP_TXTLS_ENABLE), InvalidValue),
        (lambda s: freebsd.set_tx_mode(s, "sw"), InvalidType),
        (lambda s: freebsd.recv_record(s, -1), InvalidValue),
        (lambda s: freebsd.send_record(s, b"x", 0), InvalidValue),
        (lambda s: freebsd.send_record(s, b"x", 256), InvalidValue),
        (lambda s: freebsd.send_record(s, b"x", None), InvalidType),
        (lambda s: freebsd.sendfile(s, s, -1), InvalidValue),
        (lambda s: freebsd.sendfile(s, s, 0, 2**63), InvalidValue),
        (lambda s: freebsd.sendfile(s, s, "0"), InvalidType),
        (lambda _: freebsd.sysctl(b"kern"), InvalidType),
        (lambda _: freebsd.sysctl("kern.ipc.tls.enable\0.other"), InvalidValue),
        (lambda _: freebsd.sysctl("kern.\udcff"), InvalidValue),
        (lambda _: freebsd.sysctl("kern.ü"), InvalidValue),
    ],
)
def test_wrong_arguments_come_first(call: Any, kind: type[Exception]) -> None:
    with socket.socket() as sock, pytest.raises(kind):
        call(sock)


def test_all_names_exist() -> None:
    for name in freebsd.__all__:
        assert hasattr(freebsd, name)


# What FreeBSD's Python lacks of the modules that pyktls uses; values of errno that it lacks, too.
LINUX_ONLY = {
    "socket": ("AF_NETLINK", "AF_PACKET", "TCP_INFO", "TCP_QUICKACK", "SO_PEEK_OFF", "MSG_MORE"),
    "os": ("memfd_create", "splice", "eventfd", "epoll_create", "setns"),
    "select": ("epoll", "POLLRDHUP"),
    "errno": ("EKEYEXPIRED", "ENODATA", "EREMOTEIO", "EBADFD", "ENOPKG"),
}


def test_nothing_of_linux_is_needed_to_import() -> None:
    """Every module is imported by an interpreter without Linux's names and without glibc's dl."""
    code = f"""
import errno, os, select, socket
for module, names in {LINUX_ONLY!r}.items():
    for name in names:
        if hasattr(globals()[module], name):
            delattr(globals()[module], name)
import importlib, pkgutil, pyktls
for module in pkgutil.walk_packages(pyktls.__path__, "pyktls."):
    if not module.name.endswith(("__main__", ".demo")):
        importlib.import_module(module.name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
