"""The crypto_info structs of Linux: bytes written by hand against three ways to make them.

That a build holds them to the system's headers, and that nothing which holds a key shows it.
"""

from __future__ import annotations

import copy
import errno
import pathlib
import pickle
import re
import shutil
import socket
import struct
import subprocess
import sys
import sysconfig
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import abi

import pyktls
from pyktls import DirectionKeys, Role, Session, linux
from pyktls.ciphers import AEADS, SUITES, aead_by_linux_type, find_suite
from pyktls.kernel_support import OPTIONS
from pyktls.key_schedule import KeyBlock
from pyktls.linux import CryptoInfo
from pyktls.lowlevel import ffi, lib
from support.systems import linux_only

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = bytes.fromhex("00112233445566778899aabbccddeeff0f1e2d3c4b5a69788796a5b4c3d2e1f0")
SALT = bytes.fromhex("a1b2c3d4")
IV = bytes.fromhex("1011121314151617e0e1e2e3")
SEQUENCE = 0x0102030405060708

# Behind version and cipher_type, as linux/tls.h has the fields: iv, key, salt, rec_seq.
AES_128 = (
    "1011121314151617"
    "00112233445566778899aabbccddeeff"
    "a1b2c3d4"
    "0102030405060708"
)  # fmt: skip
AES_256 = (
    "1011121314151617"
    "00112233445566778899aabbccddeeff0f1e2d3c4b5a69788796a5b4c3d2e1f0"
    "a1b2c3d4"
    "0102030405060708"
)
CHACHA = (
    "1011121314151617e0e1e2e3"
    "00112233445566778899aabbccddeeff0f1e2d3c4b5a69788796a5b4c3d2e1f0"
    "0102030405060708"
)


class Row(NamedTuple):
    name: str  # behind TLS_CIPHER_
    number: int
    struct: str
    size: int
    tail: str  # the bytes behind version and cipher_type


STRUCTS = [
    Row("AES_GCM_128", 51, "tls12_crypto_info_aes_gcm_128", 40, AES_128),
    Row("AES_GCM_256", 52, "tls12_crypto_info_aes_gcm_256", 56, AES_256),
    Row("AES_CCM_128", 53, "tls12_crypto_info_aes_ccm_128", 40, AES_128),
    Row("CHACHA20_POLY1305", 54, "tls12_crypto_info_chacha20_poly1305", 56, CHACHA),
    Row("SM4_GCM", 55, "tls12_crypto_info_sm4_gcm", 40, AES_128),
    Row("SM4_CCM", 56, "tls12_crypto_info_sm4_ccm", 40, AES_128),
    Row("ARIA_GCM_128", 57, "tls12_crypto_info_aria_gcm_128", 40, AES_128),
    Row("ARIA_GCM_256", 58, "tls12_crypto_info_aria_gcm_256", 56, AES_256),
]
HEADS = {  # version and cipher_type are in host byte order
    "little": {0x0303: "0303", 0x0304: "0403"},
    "big": {0x0303: "0303", 0x0304: "0304"},
}[sys.byteorder]


def expected_bytes(version: int, row: Row) -> bytes:
    head = bytes.fromhex(HEADS[version])
    low_high = (row.number, 0) if sys.byteorder == "little" else (0, row.number)
    return head + bytes(low_high) + bytes.fromhex(row.tail)


def fields_of(number: int) -> tuple[bytes, bytes, bytes]:
    """Key, salt and iv of the test's values, in the lengths of the cipher."""
    aead = aead_by_linux_type(number)
    assert aead is not None
    if number == 54:
        return KEY, b"", IV
    return KEY[: aead.key_length], SALT, IV[:8]


def info_of(version: int, number: int, sequence: int = SEQUENCE) -> CryptoInfo:
    key, salt, iv = fields_of(number)
    return CryptoInfo(version, number, key=key, salt=salt, iv=iv, rec_seq=sequence)


@pytest.mark.parametrize("version", [0x0303, 0x0304], ids=["1.2", "1.3"])
@pytest.mark.parametrize("row", STRUCTS, ids=lambda row: row.name)
class TestStructs:
    def test_constant_and_size(self, version: int, row: Row) -> None:
        assert getattr(lib, f"TLS_CIPHER_{row.name}") == row.number
        assert ffi.sizeof(f"struct {row.struct}") == row.size
        assert lib.pyktls_linux_crypto_info_size(row.number) == row.size
        assert len(expected_bytes(version, row)) == row.size
        assert row.size <= lib.PYKTLS_CRYPTO_INFO_MAX

    def test_packed_by_python(self, version: int, row: Row) -> None:
        packed = info_of(version, row.number).pack()
        assert type(packed) is bytearray
        assert packed == expected_bytes(version, row)

    def test_packed_by_c(self, version: int, row: Row) -> None:
        key, salt, iv = fields_of(row.number)
        for room in (row.size, row.size + 1, 100):
            out = bytearray(b"\xee" * room)
            result = lib.pyktls_linux_pack(
                ffi.from_buffer(out), room, version, row.number, key, len(key), salt + iv, SEQUENCE
            )
            assert result == row.size
            assert out[: row.size] == expected_bytes(version, row)
            assert out[row.size :] == b"\xee" * (room - row.size)

    def test_filled_in_by_hand(self, version: int, row: Row) -> None:
        key, salt, iv = fields_of(row.number)
        info = ffi.new(f"struct {row.struct} *")
        info.info.version = version
        info.info.cipher_type = row.number
        info.key = key
        info.iv = iv
        if salt:
            info.salt = salt
        else:
            assert not hasattr(info, "salt")
        info.rec_seq = SEQUENCE.to_bytes(8, "big")
        assert bytes(ffi.buffer(info)) == expected_bytes(version, row)

    def test_unpacked(self, version: int, row: Row) -> None:
        key, salt, iv = fields_of(row.number)
        info = CryptoInfo.unpack(expected_bytes(version, row))
        assert (info.version, info.cipher_type, info.rec_seq) == (version, row.number, SEQUENCE)
        assert (info.key, info.salt, info.iv) == (key, salt, iv)
        assert info == info_of(version, row.number)
        assert info.aead is aead_by_linux_type(row.number)

    def test_c_refuses_what_does_not_fit(self, version: int, row: Row) -> None:
        key, salt, iv = fields_of(row.number)
        out = bytearray(100)

        def pack(room: int, key_length: int) -> int:
            nonce = ffi.from_buffer("unsigned char[]", salt + iv)
            return int(
                lib.pyktls_linux_pack(
                    ffi.from_buffer(out), room, version, row.number, KEY + KEY, key_length, nonce, 0
                )
            )

        assert pack(row.size - 1, len(key)) == -errno.EINVAL
        for wrong in (0, len(key) - 1, len(key) + 1, 64):
            assert pack(row.size, wrong) == -errno.EINVAL
        assert out == bytes(100)

    @pytest.mark.parametrize("by", [-37, -1, 1])
    def test_unpack_of_another_length(self, version: int, row: Row, by: int) -> None:
        data = (expected_bytes(version, row) + b"\0")[: row.size + by]
        text = f"{row.size + by} bytes that are no crypto_info struct"
        with pytest.raises(pyktls.InvalidValue, match=f"^{text}$"):
            CryptoInfo.unpack(data)


@st.composite
def crypto_infos(draw: st.DrawFn) -> CryptoInfo:
    aead = draw(st.sampled_from([aead for aead in AEADS if aead.linux is not None]))
    salt = 0 if aead.name == "CHACHA20_POLY1305" else 4

    def some(length: int) -> bytes:
        return draw(st.binary(min_size=length, max_size=length))

    return CryptoInfo(
        draw(st.sampled_from([0x0303, 0x0304])),
        aead.linux.cipher_type,
        key=some(aead.key_length),
        salt=some(salt),
        iv=some(12 - salt),
        rec_seq=draw(st.integers(0, 2**64 - 1)),
    )


class TestCryptoInfo:
    @given(crypto_infos())
    def test_unpack_undoes_pack(self, info: CryptoInfo) -> None:
        again = CryptoInfo.unpack(info.pack())
        assert again == info
        assert again.pack() == info.pack()
        for field in ("version", "cipher_type", "key", "salt", "iv", "rec_seq"):
            assert getattr(again, field) == getattr(info, field)

    @given(st.binary(max_size=64))
    def test_unpack_of_anything(self, data: bytes) -> None:
        try:
            info = CryptoInfo.unpack(data)
        except pyktls.InvalidValue:
            return
        assert info.pack() == data

    @given(st.sampled_from(STRUCTS), st.binary(min_size=56, max_size=56))
    def test_unpack_of_any_fields(self, row: Row, data: bytes) -> None:
        packed = struct.pack("=HH", 0x0304, row.number) + data[4 : row.size]
        assert CryptoInfo.unpack(packed).pack() == packed

    def test_equality(self) -> None:
        assert info_of(0x0304, 51) == info_of(0x0304, 51)
        assert info_of(0x0304, 51) != info_of(0x0303, 51)
        assert info_of(0x0304, 51) != info_of(0x0304, 53)
        assert info_of(0x0304, 51) != info_of(0x0304, 51, 0)
        assert info_of(0x0304, 51) != "info"
        with pytest.raises(TypeError, match="unhashable"):
            hash(info_of(0x0304, 51))

    def test_wiped(self) -> None:
        info = info_of(0x0304, 51)
        key, iv = info._key, info._iv
        info.wipe()
        assert not any(key)
        assert not any(iv)
        with pytest.raises(pyktls.InvalidValue, match=r"^this CryptoInfo has been wiped$"):
            info.pack()

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"version": 0}, "version must be 0x0303 (TLS 1.2) or 0x0304 (TLS 1.3), not 0x0000"),
            (
                {"version": 0x0302},
                "version must be 0x0303 (TLS 1.2) or 0x0304 (TLS 1.3), not 0x0302",
            ),
            (
                {"version": 0x10304},
                "version must be 0x0303 (TLS 1.2) or 0x0304 (TLS 1.3), not 0x10304",
            ),
            ({"cipher_type": 50}, "cipher_type 50 is not one of linux/tls.h"),
            ({"cipher_type": 59}, "cipher_type 59 is not one of linux/tls.h"),
            ({"cipher_type": -1}, "cipher_type -1 is not one of linux/tls.h"),
            ({"cipher_type": 51 + 2**16}, "cipher_type 65587 is not one of linux/tls.h"),
            ({"key": b"k" * 15}, "key must be 16 bytes for AES_128_GCM, not 15"),
            ({"key": b"k" * 32}, "key must be 16 bytes for AES_128_GCM, not 32"),
            ({"key": b""}, "key must be 16 bytes for AES_128_GCM, not 0"),
            ({"salt": b"s" * 3}, "salt must be 4 bytes for AES_128_GCM, not 3"),
            ({"salt": b""}, "salt must be 4 bytes for AES_128_GCM, not 0"),
            ({"iv": b"i" * 12}, "iv must be 8 bytes for AES_128_GCM, not 12"),
            ({"iv": b"i" * 7}, "iv must be 8 bytes for AES_128_GCM, not 7"),
            ({"rec_seq": -1}, "rec_seq must be from 0 to 2**64 - 1, not -1"),
            ({"rec_seq": 2**64}, f"rec_seq must be from 0 to 2**64 - 1, not {2**64}"),
            (
                {"cipher_type": 54, "key": b"k" * 32, "iv": b"i" * 8},
                "salt must be 0 bytes for CHACHA20_POLY1305, not 4",
            ),
            (
                {"cipher_type": 54, "key": b"k" * 32, "salt": b"", "iv": b"i" * 8},
                "iv must be 12 bytes for CHACHA20_POLY1305, not 8",
            ),
            ({"cipher_type": 58}, "key must be 32 bytes for ARIA_256_GCM, not 16"),
        ],
    )
    def test_wrong_values(self, change: dict[str, Any], text: str) -> None:
        arguments: dict[str, Any] = {
            "version": 0x0304,
            "cipher_type": 51,
            "key": b"k" * 16,
            "salt": b"s" * 4,
            "iv": b"i" * 8,
            "rec_seq": 0,
        }
        CryptoInfo(**arguments)
        with pytest.raises(pyktls.InvalidValue, match=f"^{re.escape(text)}$"):
            CryptoInfo(**{**arguments, **change})

    @pytest.mark.parametrize("field", ["key", "salt", "iv"])
    @pytest.mark.parametrize(
        ("value", "name"), [("k" * 16, "str"), (None, "NoneType"), (16, "int"), ([0], "list")]
    )
    def test_wrong_types_of_bytes(self, field: str, value: object, name: str) -> None:
        arguments: dict[str, Any] = {"key": b"k" * 16, "salt": b"s" * 4, "iv": b"i" * 8}
        arguments[field] = value
        with pytest.raises(pyktls.InvalidType, match=f"^{field} must be bytes, not {name}$"):
            CryptoInfo(0x0304, 51, rec_seq=0, **arguments)

    @pytest.mark.parametrize("field", ["version", "cipher_type", "rec_seq"])
    @pytest.mark.parametrize(
        ("value", "name"), [("51", "str"), (None, "NoneType"), (51.0, "float"), (True, "bool")]
    )
    def test_wrong_types_of_numbers(self, field: str, value: object, name: str) -> None:
        numbers: dict[str, Any] = {"version": 0x0304, "cipher_type": 51, "rec_seq": 0}
        numbers[field] = value
        with pytest.raises(pyktls.InvalidType, match=f"^{field} must be an int, not {name}$"):
            CryptoInfo(key=b"k" * 16, salt=b"s" * 4, iv=b"i" * 8, **numbers)

    @pytest.mark.parametrize(
        "data",
        [b"", b"\3", b"\3\4\x33", struct.pack("=HH", 0x0304, 51), struct.pack("=HH52x", 0x304, 0)],
    )
    def test_unpack_of_what_is_no_struct(self, data: bytes) -> None:
        text = f"{len(data)} bytes that are no crypto_info struct"
        with pytest.raises(pyktls.InvalidValue, match=f"^{text}$"):
            CryptoInfo.unpack(data)

    def test_unpack_of_another_version(self) -> None:
        text = "version must be 0x0303 (TLS 1.2) or 0x0304 (TLS 1.3), not 0x0302"
        with pytest.raises(pyktls.InvalidValue, match=f"^{re.escape(text)}$"):
            CryptoInfo.unpack(struct.pack("=HH36x", 0x0302, 51))


class TestC:
    @pytest.mark.parametrize("number", [0, 1, 50, 59, 0xFFFF])
    def test_unknown_cipher_types(self, number: int) -> None:
        assert lib.pyktls_linux_crypto_info_size(number) == 0
        out = bytearray(100)
        assert lib.pyktls_linux_pack(
            ffi.from_buffer(out), 100, 0x0304, number, KEY, 16, SALT + IV[:8], 0
        ) == -errno.EINVAL  # fmt: skip

    @linux_only
    def test_set_keys_checks_before_it_calls(self) -> None:
        # Not EBADF: the kernel is not asked.
        assert lib.pyktls_linux_set_keys(
            -1, lib.TLS_TX, 0x0304, 51, KEY, 15, SALT + IV[:8], 0
        ) == -errno.EINVAL  # fmt: skip
        assert lib.pyktls_linux_set_keys(
            -1, lib.TLS_TX, 0x0304, 51, KEY, 16, SALT + IV[:8], 0
        ) == -errno.EBADF  # fmt: skip

    def test_constants(self) -> None:
        # include/uapi/linux/tls.h, tcp.h, inet_diag.h; include/linux/socket.h.
        expected = {
            "TCP_ULP": 31, "SOL_TLS": 282, "TLS_TX": 1, "TLS_RX": 2, "TLS_TX_ZEROCOPY_RO": 3,
            "TLS_RX_EXPECT_NO_PAD": 4, "TLS_SET_RECORD_TYPE": 1, "TLS_GET_RECORD_TYPE": 2,
            "TLS_1_2_VERSION": 0x0303, "TLS_1_3_VERSION": 0x0304, "TLS_CONF_BASE": 1,
            "TLS_CONF_SW": 2, "TLS_CONF_HW": 3, "TLS_CONF_HW_RECORD": 4, "TLS_INFO_VERSION": 1,
            "TLS_INFO_CIPHER": 2, "TLS_INFO_TXCONF": 3, "TLS_INFO_RXCONF": 4,
            "INET_ULP_INFO_NAME": 1, "INET_ULP_INFO_TLS": 2, "PYKTLS_CRYPTO_INFO_MAX": 56,
        }  # fmt: skip
        assert {name: getattr(lib, name) for name in expected} == expected


class TestNames:
    """A new number is public, and a new option is one that probe answers for."""

    def test_every_number_of_tls_h_is_public(self) -> None:
        kinds = ("TLS_CIPHER_", "TLS_CONF_", "TLS_TX", "TLS_RX", "TLS_1_")
        names = {name for name in dir(lib) if name.startswith(kinds)} - {"TLS_1_3_GCM_IV_LEN"}
        assert len(names) > 15
        assert names - set(linux.__all__) == set()
        assert {name: getattr(linux, name) for name in names} == {n: getattr(lib, n) for n in names}

    def test_every_option_has_its_functions_and_an_answer_of_probe(self) -> None:
        names = [name for name, _, _ in linux.options._OPTIONS.values()]
        assert sorted(names) == sorted(OPTIONS)
        for name in names:
            function = name.removeprefix("TLS_").lower()
            assert {f"set_{function}", f"get_{function}"} <= set(linux.__all__)


class TestCalls:
    """The functions that make a system call, as far as any kernel answers alike."""

    INFO = staticmethod(lambda: info_of(0x0304, 51))

    @pytest.mark.parametrize("direction", [0, 3, -1, None, "TLS_TX"])
    def test_wrong_direction(self, direction: Any) -> None:
        text = f"direction must be TLS_TX (1) or TLS_RX (2), not {direction!r}"
        with socket.socket() as sock:
            for call in (
                lambda: linux.set_crypto_info(sock, direction, self.INFO()),
                lambda: linux.get_version_and_cipher(sock, direction),
                lambda: linux.get_crypto_info(sock, direction),
            ):
                with pytest.raises(pyktls.InvalidValue, match=f"^{re.escape(text)}$"):
                    call()

    def test_closed_socket(self) -> None:
        sock = socket.socket()
        sock.close()
        for call in CALLS:
            for closed in (sock, -1):
                with pytest.raises(pyktls.InvalidValue, match=r"^the socket is closed$"):
                    call(closed)

    @pytest.mark.parametrize(
        ("thing", "name"), [(None, "NoneType"), ("3", "str"), (True, "bool"), (3.0, "float")]
    )
    def test_what_is_no_socket(self, thing: object, name: str) -> None:
        text = f"a socket or a file descriptor is needed, not {name}"
        for call in CALLS:
            with pytest.raises(pyktls.InvalidType, match=f"^{text}$"):
                call(thing)

    def test_what_is_no_crypto_info(self) -> None:
        packed: Any = bytes(self.INFO().pack())
        with (
            socket.socket() as sock,
            pytest.raises(pyktls.InvalidType, match=r"^info must be a CryptoInfo, not bytes$"),
        ):
            linux.set_crypto_info(sock, linux.TLS_TX, packed)

    @pytest.mark.parametrize(
        ("call", "name"),
        [
            (lambda s: linux.set_crypto_info(s, 1, info_of(0x0304, 51)),
             "setsockopt(SOL_TLS, TLS_TX)"),
            (lambda s: linux.set_crypto_info(s, 2, info_of(0x0304, 51)),
             "setsockopt(SOL_TLS, TLS_RX)"),
            (lambda s: linux.get_version_and_cipher(s, 1), "getsockopt(SOL_TLS, TLS_TX)"),
            (lambda s: linux.get_crypto_info(s, 2), "getsockopt(SOL_TLS, TLS_RX)"),
            (linux.set_ulp, "setsockopt(TCP_ULP)"),
            (linux.get_ulp, "getsockopt(TCP_ULP)"),
        ],
    )  # fmt: skip
    @linux_only
    def test_errors_name_the_call(self, call: Callable[[Any], object], name: str) -> None:
        with (
            socket.socket(socket.AF_UNIX) as sock,  # knows none of these options
            pytest.raises(OSError, match=re.escape(f"] {name}: ")) as caught,
        ):
            call(sock)
        assert caught.value.errno in {errno.EOPNOTSUPP, errno.ENOPROTOOPT}

    @pytest.mark.parametrize("number", range(51, 59))
    def test_the_number_is_read_out_of_every_struct(
        self, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        info = info_of(0x0304, number)
        self.kernel_gives(monkeypatch, info.pack())
        assert linux.get_rec_seq(3, linux.TLS_TX) == SEQUENCE
        assert linux.get_crypto_info(3, linux.TLS_TX) == info

    @pytest.mark.parametrize("size", [4, 36, 39])
    def test_a_struct_that_is_too_short(self, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
        self.kernel_gives(monkeypatch, info_of(0x0304, 51).pack()[:size])
        for call in (linux.get_rec_seq, linux.get_crypto_info):
            with pytest.raises(OSError, match=r"getsockopt\(SOL_TLS, TLS_RX\): ") as caught:
                call(3, linux.TLS_RX)
            assert caught.value.errno == errno.EPROTO

    #: When upstream got each option (docs/kernels.md).
    SINCE = (
        ("TLS_TX_ZEROCOPY_RO", "5.19", linux.set_tx_zerocopy_ro, linux.get_tx_zerocopy_ro, True),
        ("TLS_RX_EXPECT_NO_PAD", "6.0", linux.set_rx_expect_no_pad, linux.get_rx_expect_no_pad,
         True),
        ("TLS_TX_MAX_PAYLOAD_LEN", "6.19", linux.set_tx_max_payload_len,
         linux.get_tx_max_payload_len, 100),
    )  # fmt: skip

    @pytest.mark.parametrize(
        ("name", "since", "put", "get", "value"), SINCE, ids=[row[0] for row in SINCE]
    )
    def test_an_option_that_the_kernel_does_not_know(
        self,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        since: str,
        put: Callable[[int, Any], None],
        get: Callable[[int], Any],
        value: Any,
    ) -> None:
        def refuse(*arguments: Any) -> Any:
            raise OSError(errno.ENOPROTOOPT, f"{arguments[-1]}: no")

        options = linux.options
        monkeypatch.setattr(options, "setsockopt", refuse)
        monkeypatch.setattr(options, "getsockopt", refuse)
        monkeypatch.setattr(options, "get_ulp", lambda _: b"tls")
        for call in (lambda: put(3, value), lambda: get(3)):
            with pytest.raises(pyktls.Unavailable) as caught:
                call()
            assert str(caught.value).startswith(f"this kernel has no {name} ([Errno ")
            assert caught.value.remedy == f"Linux has it since {since}"
            assert str(caught.value).endswith(f"; Linux has it since {since}")
            assert isinstance(caught.value.__cause__, OSError)
        monkeypatch.setattr(options, "get_ulp", lambda _: b"")  # then it is not the option
        with pytest.raises(OSError, match=name):
            get(3)

    def test_every_option_has_its_release(self) -> None:
        assert {row[0]: row[1] for row in self.SINCE} == {
            name: since for name, _, since in linux.options._OPTIONS.values()
        }

    @staticmethod
    def kernel_gives(monkeypatch: pytest.MonkeyPatch, packed: bytearray) -> None:
        def getsockopt(_fd: int, _level: int, _option: int, size: int, _call: str) -> bytearray:
            return packed[:size]

        monkeypatch.setattr(linux.crypto_info, "getsockopt", getsockopt)


CALLS: list[Callable[[Any], object]] = [
    linux.set_ulp,
    linux.get_ulp,
    lambda sock: linux.set_crypto_info(sock, linux.TLS_TX, info_of(0x0304, 51)),
    lambda sock: linux.get_version_and_cipher(sock, linux.TLS_RX),
    lambda sock: linux.get_crypto_info(sock, linux.TLS_RX),
]


# ---- secrecy ---------------------------------------------------------------------------------

SECRET = bytes(range(0xA0, 0xC0))
SECRET_48 = SECRET + SECRET[:16]
SUITE = find_suite(0x1303)
assert SUITE is not None


def direction_keys() -> DirectionKeys:
    return DirectionKeys(SECRET, SECRET[:12], 5, secret=SECRET)


def secretive() -> list[object]:
    return [
        CryptoInfo(0x0304, 54, key=SECRET, iv=SECRET[:12], rec_seq=7),
        CryptoInfo(0x0303, 52, key=SECRET, salt=SECRET[:4], iv=SECRET[4:12], rec_seq=7),
        direction_keys(),
        Session(SUITE, Role.SERVER, direction_keys(), direction_keys(), engine="test"),
        KeyBlock(*(bytearray(SECRET) for _ in range(4))),
    ]


def shows_nothing(text: str) -> bool:
    """No three bytes of the secret in a row, in whatever spelling."""
    lowered = text.lower()
    return not any(
        spelling in lowered
        for n in range(len(SECRET) - 2)
        for piece in [SECRET[n : n + 3]]
        for spelling in (
            piece.hex(),
            piece.hex(":"),
            piece.hex(" "),
            repr(piece)[2:-1].lower(),
            repr(list(piece))[1:-1],
            piece.decode("latin-1").lower(),
        )
    )


def test_the_search_for_secrets_finds_them() -> None:
    for text in (
        repr(SECRET),
        SECRET.hex(),
        SECRET.hex(":"),
        str(bytearray(SECRET)),
        str(list(SECRET)),
        SECRET.decode("latin-1"),
    ):
        assert not shows_nothing(text)


EXPECTED_REPRS = [
    "<CryptoInfo version=0x0304 cipher_type=54 (CHACHA20_POLY1305) rec_seq=7>",
    "<CryptoInfo version=0x0303 cipher_type=52 (AES_256_GCM) rec_seq=7>",
    "<DirectionKeys 32-byte key, sequence 5>",
    "<Session TLSv1.3 TLS_CHACHA20_POLY1305_SHA256 server tx=5 rx=5>",
    "<KeyBlock: keys of 32 bytes, IVs of 32 bytes>",
]
IDS = ["CryptoInfo 1.3", "CryptoInfo 1.2", "DirectionKeys", "Session", "KeyBlock"]


def with_a_socket(call: Callable[[socket.socket], object]) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        call(sock)


class TestSecrecy:
    @pytest.mark.parametrize("index", range(5), ids=IDS)
    @pytest.mark.parametrize(
        "show", [repr, str, ascii, "{}".format, "{!r}".format, "%s".__mod__, lambda x: repr([x])]
    )
    def test_shown(self, index: int, show: Callable[[object], str]) -> None:
        shown = show(secretive()[index])
        assert shown.strip("[]") == EXPECTED_REPRS[index]
        assert shows_nothing(shown)

    @pytest.mark.parametrize("index", range(5), ids=IDS)
    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_pickled(self, index: int, protocol: int) -> None:
        with pytest.raises(pyktls.InvalidType, match=r"cannot be pickled or copied") as caught:
            pickle.dumps(secretive()[index], protocol)
        assert shows_nothing(str(caught.value))

    @pytest.mark.parametrize("index", range(5), ids=IDS)
    @pytest.mark.parametrize("how", [copy.copy, copy.deepcopy])
    def test_copied(self, index: int, how: Callable[[object], object]) -> None:
        with pytest.raises(pyktls.InvalidType, match=r"cannot be pickled or copied"):
            how(secretive()[index])

    @pytest.mark.parametrize("index", range(5), ids=IDS)
    def test_no_dict_to_look_into(self, index: int) -> None:
        with pytest.raises(TypeError, match="__dict__"):
            vars(secretive()[index])

    def test_failed_comparisons_in_pytest_need_no_repr_of_a_secret(self) -> None:
        for one in secretive():
            assert one != SECRET

    @pytest.mark.parametrize(
        "fail",
        [
            lambda: CryptoInfo(0x0304, 51, key=SECRET, salt=SECRET[:4], iv=SECRET[:8], rec_seq=0),
            lambda: CryptoInfo(0x0304, 54, key=SECRET, iv=SECRET, rec_seq=0),
            lambda: CryptoInfo(0x0304, 54, key=SECRET, salt=SECRET, iv=SECRET[:12], rec_seq=0),
            lambda: CryptoInfo(0x0304, 54, key=list(SECRET), iv=SECRET[:12], rec_seq=0),
            lambda: CryptoInfo.unpack(SECRET),
            lambda: CryptoInfo.unpack(struct.pack("=HH", 0x0304, 51) + SECRET),
            lambda: CryptoInfo.unpack(struct.pack("=HH", 0x0302, 51) + SECRET + SECRET[:4]),
            lambda: DirectionKeys(SECRET.decode("latin-1"), SECRET, 0),
            lambda: DirectionKeys(SECRET, SECRET, -1, secret=SECRET),
            lambda: Session(
                SUITE, Role.CLIENT, direction_keys(), DirectionKeys(SECRET_48, SECRET, 0)
            ),
            lambda: Session(
                SUITE,
                Role.CLIENT,
                DirectionKeys(SECRET, SECRET[:12], 0, secret=SECRET_48),
                direction_keys(),
            ),
            lambda: linux.set_crypto_info(-1, 1, secretive()[0]),
            lambda: with_a_socket(lambda s: linux.set_crypto_info(s, 1, secretive()[0])),
            lambda: with_a_socket(lambda s: pyktls.install(s, secretive()[3])),
        ],
    )
    def test_exceptions(self, fail: Callable[[], object]) -> None:
        with pytest.raises((pyktls.Error, OSError)) as caught:
            fail()
        shown = "".join(traceback.format_exception_only(caught.value))
        assert shows_nothing(shown)
        assert shows_nothing(repr(caught.value.args))

    def test_wiping_overwrites_the_buffers(self) -> None:
        session = secretive()[3]
        assert isinstance(session, Session)
        buffers = [b for keys in (session.tx, session.rx) for b in (keys.key, keys.iv, keys.secret)]
        session.wipe()
        assert [len(buffer) for buffer in buffers if buffer is not None] == [32, 12, 32] * 2
        assert not any(any(buffer) for buffer in buffers if buffer is not None)
        assert session.tx.secret is None
        assert session.rx.key == b""

    def test_comparison_takes_sequence_key_and_iv(self) -> None:
        one = direction_keys()
        assert one == direction_keys()
        assert one != DirectionKeys(SECRET, SECRET[:12], 6, secret=SECRET)
        assert one != DirectionKeys(SECRET[::-1], SECRET[:12], 5, secret=SECRET)
        assert one != DirectionKeys(SECRET, SECRET[1:13], 5, secret=SECRET)
        assert one != SECRET
        with pytest.raises(TypeError, match="unhashable"):
            hash(one)


def test_every_suite_has_a_struct() -> None:
    for suite in SUITES:
        if suite.aead.linux is not None:
            assert lib.pyktls_linux_crypto_info_size(suite.aead.linux.cipher_type) in {40, 56}


# ---- the headers of the machine that builds ------------------------------------------------------

CSRC = pathlib.Path(__file__).resolve().parents[2] / "csrc"
#: What headers older than Linux 6.0 do not have.
YOUNGER = (
    "TLS_TX_ZEROCOPY_RO", "TLS_RX_EXPECT_NO_PAD", "TLS_TX_MAX_PAYLOAD_LEN",
    "TLS_CIPHER_CHACHA20_POLY1305", "TLS_CIPHER_SM4_GCM", "TLS_CIPHER_ARIA_GCM_128",
)  # fmt: skip


def compiler() -> str:
    named = (sysconfig.get_config_var("CC") or "cc").split()[0]
    found = shutil.which(named) or shutil.which("cc") or shutil.which("gcc")
    assert found, "a C compiler is needed"
    return found


def built(directory: pathlib.Path, *flags: str, change: tuple[str, str] = ("", "")) -> str:
    """The compiler's errors in the check against the system's headers."""
    ours = (CSRC / "abi_linux.h").read_text()
    old, new = change
    assert old in ours
    (directory / "abi_linux.h").write_text(ours.replace(old, new, 1))
    shutil.copy(CSRC / "abi_linux_check.c", directory)
    command = [compiler(), "-std=c11", "-fsyntax-only", *flags, "abi_linux_check.c"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    return done.stderr if done.returncode else ""


def has_headers(directory: pathlib.Path) -> bool:
    (directory / "has.c").write_text("#include <linux/tls.h>\n")
    command = [compiler(), "-fsyntax-only", "has.c"]
    return subprocess.run(command, cwd=directory, capture_output=True, check=False).returncode == 0


@linux_only
@pytest.mark.parametrize(
    ("ours", "changed", "said"),
    [
        ("define TLS_RX 2", "define TLS_RX 6", "TLS_RX differs"),
        ("define TCP_ULP 31", "define TCP_ULP 32", "TCP_ULP differs"),
        ("aes_gcm_256, 8, 32, 4", "aes_gcm_256, 8, 16, 4", "aes_gcm_256 has another size"),
        ("aes_ccm_128, 8, 16, 4", "aes_ccm_128, 4, 16, 8", "aes_ccm_128.salt differs"),
    ],
)
def test_what_differs_from_the_systems_headers_does_not_compile(
    tmp_path: pathlib.Path, ours: str, changed: str, said: str
) -> None:
    if not has_headers(tmp_path):
        pytest.skip("no headers of Linux here")
    assert built(tmp_path) == ""
    assert said in built(tmp_path, change=(ours, changed))


def test_what_a_younger_header_has_besides_is_found() -> None:
    ours = (CSRC / "abi_linux.h").read_text()
    assert abi.unknown(ours, ours) == []
    younger = """
#define TLS_TX_ZEROCOPY_RO\t3\t/* known */
#define TLS_RX_SOMETHING\t6
# define TLS_CIPHER_AEGIS_256\t\t\t59
#define TLS_CIPHER_AEGIS_256_IV_SIZE\t\t28
#define TLS_VERSION_MINOR(ver)\t((ver) & 0xFF)
#define TLS_1_4_VERSION_MAJOR\t0x3
#define TLS_1_4_VERSION_MINOR\t0x5
#define TLS_1_4_VERSION\t\tTLS_VERSION_NUMBER(TLS_1_4)
#define TLS_SET_PADDING 3
struct tls12_crypto_info_aegis_256 {
#define TLS_INFO_MAX (__TLS_INFO_MAX - 1)
#define OTHER 1
"""
    assert abi.unknown(younger, ours) == [
        "TLS_RX_SOMETHING",
        "TLS_CIPHER_AEGIS_256",
        "TLS_1_4_VERSION",
        "TLS_SET_PADDING",
        "tls12_crypto_info_aegis_256",
    ]


@linux_only
def test_older_headers_are_no_obstacle(tmp_path: pathlib.Path) -> None:
    if not has_headers(tmp_path):
        pytest.skip("no headers of Linux here")
    older = "".join(f"#undef {name}\n" for name in YOUNGER)
    (tmp_path / "linux").mkdir()
    (tmp_path / "linux" / "tls.h").write_text(f"#include_next <linux/tls.h>\n{older}")
    assert built(tmp_path, "-I.") == ""
    assert "headers that are not the newest" in built(tmp_path, "-I.", "-DPYKTLS_NEWEST_ABI")
    # What they do not have is there all the same.
    for name in YOUNGER:
        assert getattr(lib, name) > 0
