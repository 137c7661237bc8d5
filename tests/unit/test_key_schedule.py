"""The key schedule against published vectors, cryptography's HKDF, and the openssl command."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given
from hypothesis import strategies as st

from pyktls import key_schedule
from pyktls.ciphers import HASH_LENGTHS, SUITES, TLS_1_2, TLS_1_3, CipherSuite, find_suite, suites
from pyktls.errors import Error, InvalidType, InvalidValue, Unavailable
from pyktls.key_schedule import (
    KeyBlock,
    hkdf_expand_label,
    key_block,
    next_traffic_secret,
    prf,
    traffic_keys,
    wipe,
)

if TYPE_CHECKING:
    from collections.abc import Callable

VECTORS = Path(__file__).parents[1] / "vectors"
RFC8448 = json.loads((VECTORS / "rfc8448.json").read_text())
RFC9001 = json.loads((VECTORS / "rfc9001.json").read_text())
TLS12 = json.loads((VECTORS / "tls12.json").read_text())

HASHES: dict[str, hashes.HashAlgorithm] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sm3": hashes.SM3(),
}
TLS_1_2_SUITES = suites(version=TLS_1_2)
TLS_1_3_SUITES = suites(version=TLS_1_3)

unhex = bytes.fromhex


def suite(iana_id: int) -> CipherSuite:
    found = find_suite(iana_id)
    assert found is not None
    return found


AES_128_1_3 = suite(0x1301)
AES_256_1_3 = suite(0x1302)
AES_128_1_2 = suite(0xC02F)
AES_256_1_2 = suite(0xC030)
AES_256_CBC = suite(0xC028)


def have(hash_name: str) -> bool:
    """Whether both sides of the comparison have this hash; SM3 may be missing."""
    if hash_name not in hashlib.algorithms_available:
        return False
    try:
        hmac.HMAC(b"key", HASHES[hash_name])
    except UnsupportedAlgorithm:
        return False
    return True


AVAILABLE = [name for name in HASH_LENGTHS if have(name)]


# --- Oracles: the same functions from other hands -----------------------------------------------


def oracle_expand_label(
    hash_name: str, secret: bytes, label: str, context: bytes, length: int
) -> bytes:
    full = f"tls13 {label}".encode()
    info = length.to_bytes(2, "big") + bytes([len(full)]) + full + bytes([len(context)]) + context
    return HKDFExpand(HASHES[hash_name], length, info).derive(secret)


def oracle_prf(hash_name: str, secret: bytes, label: bytes, seed: bytes, length: int) -> bytes:
    def mac(message: bytes) -> bytes:
        context = hmac.HMAC(secret, HASHES[hash_name])
        context.update(message)
        return context.finalize()

    output, a = b"", label + seed
    while len(output) < length:
        a = mac(a)
        output += mac(a + label + seed)
    return output[:length]


def openssl_prf(hash_name: str, secret: bytes, seed: bytes, length: int) -> bytes:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl command; cryptography's HMAC is compared in any case")
    done = subprocess.run(
        [
            program,
            "kdf",
            *("-keylen", str(length)),
            *("-kdfopt", f"digest:{hash_name}"),
            *("-kdfopt", f"hexsecret:{secret.hex()}"),
            *("-kdfopt", f"hexseed:{seed.hex()}"),
            "TLS1-PRF",
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip("this openssl command has no kdf TLS1-PRF")
    return unhex(done.stdout.replace(":", ""))


# --- TLS 1.3 --------------------------------------------------------------------------------------


class TestExpandLabel:
    @pytest.mark.parametrize(
        "vector",
        RFC8448["derive_secret"],
        ids=lambda vector: f"{vector['section']} {vector['label']}",
    )
    def test_rfc_8448(self, vector: dict[str, Any]) -> None:
        # Derive-Secret is HKDF-Expand-Label with a transcript hash as context (RFC 8446 7.1).
        output = hkdf_expand_label(
            "sha256", unhex(vector["secret"]), vector["label"], unhex(vector["context"]), 32
        )
        assert output.hex() == vector["output"]

    @pytest.mark.parametrize("vector", RFC9001["expand_label"], ids=lambda vector: vector["label"])
    def test_rfc_9001(self, vector: dict[str, str]) -> None:
        expected = unhex(vector["output"])
        secret = unhex(RFC9001["secret"])
        output = hkdf_expand_label("sha256", secret, vector["label"], b"", len(expected))
        assert output == expected

    @pytest.mark.parametrize("hash_name", AVAILABLE)
    @given(data=st.data())
    def test_against_cryptography(self, hash_name: str, data: st.DataObject) -> None:
        size = HASH_LENGTHS[hash_name]
        secret = data.draw(st.binary(min_size=size, max_size=size))
        label = data.draw(st.text(st.characters(codec="ascii"), min_size=1, max_size=249))
        context = data.draw(st.binary(max_size=255))
        length = data.draw(st.integers(1, 255 * size))
        expected = oracle_expand_label(hash_name, secret, label, context, length)
        assert hkdf_expand_label(hash_name, secret, label, context, length) == expected

    @pytest.mark.parametrize("hash_name", AVAILABLE)
    def test_extremes(self, hash_name: str) -> None:
        size = HASH_LENGTHS[hash_name]
        arguments = hash_name, bytes(size), "x" * 249, b"c" * 255
        for length in (1, size - 1, size, size + 1, 2 * size, 255 * size):
            output = hkdf_expand_label(*arguments, length)
            assert output == oracle_expand_label(*arguments, length)

    def test_result_is_a_bytearray_and_input_is_left_alone(self) -> None:
        secret = bytearray(range(32))
        output = hkdf_expand_label("sha256", secret, "key", b"", 16)
        assert type(output) is bytearray
        assert secret == bytes(range(32))
        assert output == hkdf_expand_label("sha256", bytes(secret), "key", b"", 16)


class TestTrafficKeys:
    @pytest.mark.parametrize(
        "vector", RFC8448["traffic"], ids=lambda vector: f"{vector['section']} {vector['name']}"
    )
    def test_rfc_8448(self, vector: dict[str, Any]) -> None:
        key, iv = traffic_keys(suite(int(RFC8448["iana_id"], 16)), unhex(vector["secret"]))
        assert key.hex() == vector["key"]
        assert iv.hex() == vector["iv"]

    @pytest.mark.parametrize("suite", TLS_1_3_SUITES, ids=lambda suite: suite.name)
    @given(data=st.data())
    def test_against_cryptography(self, suite: CipherSuite, data: st.DataObject) -> None:
        if suite.hash not in AVAILABLE:
            pytest.skip(f"no {suite.hash} here")
        size = suite.hash_length
        secret = data.draw(st.binary(min_size=size, max_size=size))
        key, iv = traffic_keys(suite, secret)
        assert len(key) == suite.aead.key_length
        assert len(iv) == 12
        assert key == oracle_expand_label(suite.hash, secret, "key", b"", len(key))
        assert iv == oracle_expand_label(suite.hash, secret, "iv", b"", 12)

    @pytest.mark.parametrize("suite", TLS_1_3_SUITES, ids=lambda suite: suite.name)
    @given(data=st.data())
    def test_update_against_cryptography(self, suite: CipherSuite, data: st.DataObject) -> None:
        if suite.hash not in AVAILABLE:
            pytest.skip(f"no {suite.hash} here")
        size = suite.hash_length
        secret = data.draw(st.binary(min_size=size, max_size=size))
        following = next_traffic_secret(suite, secret)
        assert type(following) is bytearray
        assert following == oracle_expand_label(suite.hash, secret, "traffic upd", b"", size)

    def test_updates_chain(self) -> None:
        secret = unhex(RFC8448["traffic"][2]["secret"])
        seen = {secret}
        for _ in range(5):
            expected = oracle_expand_label("sha256", secret, "traffic upd", b"", 32)
            secret = bytes(next_traffic_secret(AES_128_1_3, secret))
            assert secret == expected
            seen.add(secret)
        assert len(seen) == 6


# --- TLS 1.2 --------------------------------------------------------------------------------------


class TestPRF:
    @pytest.mark.parametrize("vector", TLS12["prf"], ids=lambda vector: vector["hash"])
    def test_ietf_list(self, vector: dict[str, str]) -> None:
        expected = unhex(vector["output"])
        secret, label, seed = (
            unhex(vector["secret"]),
            vector["label"].encode(),
            unhex(vector["seed"]),
        )
        output = prf(vector["hash"], secret, label, seed, len(expected))
        assert type(output) is bytearray
        assert output == expected

    @pytest.mark.parametrize("vector", TLS12["prf"], ids=lambda vector: vector["hash"])
    def test_ietf_list_is_what_openssl_says(self, vector: dict[str, str]) -> None:
        expected = unhex(vector["output"])
        seed = vector["label"].encode() + unhex(vector["seed"])
        assert openssl_prf(vector["hash"], unhex(vector["secret"]), seed, len(expected)) == expected

    @pytest.mark.parametrize("hash_name", AVAILABLE)
    @given(
        secret=st.binary(max_size=200),
        label=st.binary(max_size=40),
        seed=st.binary(max_size=100),
        length=st.integers(1, 400),
    )
    def test_against_cryptography(
        self, hash_name: str, secret: bytes, label: bytes, seed: bytes, length: int
    ) -> None:
        expected = oracle_prf(hash_name, secret, label, seed, length)
        assert prf(hash_name, secret, label, seed, length) == expected

    def test_inputs_are_left_alone(self) -> None:
        secret, seed = bytearray(b"s" * 48), bytearray(b"x" * 64)
        prf("sha256", secret, b"label", seed, 100)
        assert secret == b"s" * 48
        assert seed == b"x" * 64


class TestKeyBlock:
    @pytest.mark.parametrize("suite", TLS_1_2_SUITES, ids=lambda suite: suite.name)
    def test_nist_cavp(self, suite: CipherSuite) -> None:
        # The vectors are for other ciphers and longer; a shorter output is the start of a longer.
        (vector,) = (row for row in TLS12["key_block"] if row["hash"] == suite.hash)
        block = key_block(
            suite,
            unhex(vector["master_secret"]),
            client_random=unhex(vector["client_random"]),
            server_random=unhex(vector["server_random"]),
        )
        # RFC 5246 section 6.3: MAC keys come first, and AEADs have none.
        macs = block.client_write_mac_key, block.server_write_mac_key
        joined = b"".join((*macs, *block))
        output = unhex(vector["output"])
        assert len(output) >= 104
        assert joined[: len(output)] == output[: len(joined)]
        assert [type(part) for part in (*macs, *block)] == [bytearray] * 6
        assert [len(part) for part in macs] == [suite.aead.mac_key_length] * 2
        key, iv = suite.aead.key_length, suite.aead.implicit_iv_length
        assert [len(part) for part in block] == [key, key, iv, iv]

    @pytest.mark.parametrize("vector", TLS12["key_block"], ids=lambda vector: vector["hash"])
    def test_nist_cavp_is_what_openssl_says(self, vector: dict[str, str]) -> None:
        seed = b"key expansion" + unhex(vector["server_random"]) + unhex(vector["client_random"])
        expected = unhex(vector["output"])
        output = openssl_prf(vector["hash"], unhex(vector["master_secret"]), seed, len(expected))
        assert output == expected

    @pytest.mark.parametrize(
        ("iana_id", "lengths"),
        [
            (0xC02F, (16, 16, 4, 4)),  # AES-128-GCM
            (0xC030, (32, 32, 4, 4)),  # AES-256-GCM
            (0xC0AC, (16, 16, 4, 4)),  # AES-128-CCM
            (0xCCA8, (32, 32, 12, 12)),  # ChaCha20-Poly1305: no explicit nonce
            (0xC060, (16, 16, 4, 4)),  # ARIA-128-GCM
            (0xC061, (32, 32, 4, 4)),  # ARIA-256-GCM
        ],
    )
    def test_lengths(self, iana_id: int, lengths: tuple[int, ...]) -> None:
        block = key_block(suite(iana_id), bytes(48), bytes(32), bytes(32))
        assert tuple(len(part) for part in block) == lengths

    @given(
        suite=st.sampled_from(TLS_1_2_SUITES),
        master_secret=st.binary(min_size=48, max_size=48),
        client_random=st.binary(min_size=32, max_size=32),
        server_random=st.binary(min_size=32, max_size=32),
    )
    def test_against_cryptography(
        self, suite: CipherSuite, master_secret: bytes, client_random: bytes, server_random: bytes
    ) -> None:
        block = key_block(suite, master_secret, client_random, server_random)
        key, iv = suite.aead.key_length, suite.aead.implicit_iv_length
        seed = server_random + client_random
        mac = suite.aead.mac_key_length
        expected = oracle_prf(
            suite.hash, master_secret, b"key expansion", seed, 2 * (mac + key + iv)
        )
        assert block.client_write_mac_key == expected[:mac]
        assert block.server_write_mac_key == expected[mac : 2 * mac]
        expected = expected[2 * mac :]
        assert block.client_write_key == expected[:key]
        assert block.server_write_key == expected[key : 2 * key]
        assert block.client_write_iv == expected[2 * key : 2 * key + iv]
        assert block.server_write_iv == expected[2 * key + iv :]

    def test_the_two_randoms_are_not_alike(self) -> None:
        one = key_block(AES_128_1_2, bytes(48), b"a" * 32, b"b" * 32)
        other = key_block(AES_128_1_2, bytes(48), b"b" * 32, b"a" * 32)
        assert one.client_write_key != other.client_write_key

    def test_unpacks_in_the_order_of_the_rfc(self) -> None:
        block = key_block(AES_256_1_2, bytes(48), bytes(32), bytes(32))
        client_key, server_key, client_iv, server_iv = block
        assert client_key is block.client_write_key
        assert server_key is block.server_write_key
        assert client_iv is block.client_write_iv
        assert server_iv is block.server_write_iv


class TestSecrecy:
    block = staticmethod(lambda: key_block(AES_256_1_2, b"m" * 48, b"c" * 32, b"s" * 32))

    @pytest.mark.parametrize("show", [repr, str, "{}".format, "{!r}".format, "%s".__mod__, ascii])
    def test_key_block_shows_no_bytes(self, show: Callable[[object], str]) -> None:
        block = self.block()
        shown = show(block)
        assert shown == "<KeyBlock: keys of 32 bytes, IVs of 4 bytes>"
        for part in block:
            assert part.hex() not in shown
            assert repr(bytes(part))[2:-1] not in shown
            assert repr(list(part))[1:-1] not in shown

    def test_not_within_a_container_either(self) -> None:
        block = self.block()
        shown = repr([{"keys": block}, (block,)])
        assert not any(part.hex() in shown or repr(part) in shown for part in block)

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_key_block_is_not_pickled(self, protocol: int) -> None:
        with pytest.raises(InvalidType, match=r"^a KeyBlock holds keys and cannot be pickled"):
            pickle.dumps(self.block(), protocol)

    @pytest.mark.parametrize("how", [copy.copy, copy.deepcopy])
    def test_key_block_is_not_copied(self, how: Callable[[KeyBlock], KeyBlock]) -> None:
        with pytest.raises(InvalidType, match=r"cannot be pickled or copied$"):
            how(self.block())

    def test_key_block_takes_no_other_attributes(self) -> None:
        assert not hasattr(self.block(), "__dict__")

    def test_key_block_is_compared_by_identity(self) -> None:
        # An == of bytes stops at the first difference; nobody needs one here.
        block = self.block()
        assert block == block  # noqa: PLR0124
        assert block != self.block()
        assert len({block, self.block()}) == 2

    def test_wipe_in_place(self) -> None:
        buffer = bytearray(b"secret")
        with memoryview(buffer) as view:  # forbids any change of length
            wipe(buffer)
            assert view == bytes(6)
        empty = bytearray()
        wipe(empty)
        assert empty == b""

    def test_wipe_key_block(self) -> None:
        block = self.block()
        parts = list(block)
        assert all(any(part) for part in parts)
        block.wipe()
        assert not any(any(part) for part in parts)
        assert [len(part) for part in block] == [32, 32, 4, 4]

    def test_mac_keys_are_not_shown_and_are_wiped(self) -> None:
        block = key_block(AES_256_CBC, b"m" * 48, b"c" * 32, b"s" * 32)
        macs = block.client_write_mac_key, block.server_write_mac_key
        assert repr(block) == "<KeyBlock: keys of 32 bytes, MAC keys of 48 bytes, IVs of 0 bytes>"
        assert all(any(mac) for mac in macs)
        block.wipe()
        assert not any(any(mac) for mac in macs)

    def test_parts_are_separate(self) -> None:
        block = self.block()
        key = bytes(block.server_write_key)
        wipe(block.client_write_key)
        assert block.server_write_key == key

    def test_intermediate_buffers_are_wiped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        wiped: list[bytearray] = []

        def recording_wipe(buffer: bytearray) -> None:
            wipe(buffer)
            wiped.append(buffer)

        monkeypatch.setattr(key_schedule, "wipe", recording_wipe)
        hkdf_expand_label("sha256", bytes(32), "key", b"", 100)
        assert len(wiped) == 1
        wiped.clear()
        prf("sha256", b"secret", b"label", b"seed", 100)
        assert len(wiped) == 4 + 2  # A(0) to A(3), A(4), and the message
        wiped.clear()
        self.block()
        assert [len(buffer) for buffer in wiped][-1] == 72
        assert not any(any(buffer) for buffer in wiped)


# --- Bad arguments --------------------------------------------------------------------------------

CANARY = b"\xde\xad\xbe\xef"


def no_canary(message: str) -> bool:
    return not any(text in message.lower() for text in ("deadbeef", "\\xde", "222, 173"))


def refused(
    kind: type[Error], message: str, function: Callable[..., object], *arguments: object
) -> None:
    with pytest.raises(kind) as caught:
        function(*arguments)
    assert type(caught.value) is kind
    assert str(caught.value) == message
    assert no_canary(repr(caught.value))


class TestBadArguments:
    @pytest.mark.parametrize(
        ("hash_name", "kind", "message"),
        [
            ("md5", InvalidValue, "hash_name must be one of sha256, sha384, sm3, not 'md5'"),
            ("SHA256", InvalidValue, "hash_name must be one of sha256, sha384, sm3, not 'SHA256'"),
            (b"sha256", InvalidType, "hash_name must be str, not bytes"),
            (None, InvalidType, "hash_name must be str, not NoneType"),
        ],
    )
    def test_hash_name(self, hash_name: object, kind: type[Error], message: str) -> None:
        refused(kind, message, hkdf_expand_label, hash_name, bytes(32), "key", b"", 16)
        refused(kind, message, prf, hash_name, bytes(48), b"label", b"seed", 16)

    @pytest.mark.parametrize("length", [0, 31, 33, 48])
    def test_expand_label_secret_length(self, length: int) -> None:
        secret = (CANARY * 12)[:length]
        message = f"secret must be 32 bytes long, not {length}"
        refused(InvalidValue, message, hkdf_expand_label, "sha256", secret, "key", b"", 16)
        refused(InvalidValue, message, traffic_keys, AES_128_1_3, bytearray(secret))
        refused(InvalidValue, message, next_traffic_secret, AES_128_1_3, secret)

    def test_secret_length_goes_with_the_hash(self) -> None:
        message = "secret must be 48 bytes long, not 32"
        refused(InvalidValue, message, traffic_keys, AES_256_1_3, CANARY * 8)
        refused(InvalidValue, message, next_traffic_secret, AES_256_1_3, CANARY * 8)

    @pytest.mark.parametrize(
        ("secret", "kind"),
        [
            ("deadbeef", "str"),
            (None, "NoneType"),
            (memoryview(CANARY * 8), "memoryview"),
            (list(CANARY * 8), "list"),
        ],
    )
    def test_secret_type(self, secret: object, kind: str) -> None:
        message = f"secret must be bytes or bytearray, not {kind}"
        refused(InvalidType, message, hkdf_expand_label, "sha256", secret, "key", b"", 16)
        refused(InvalidType, message, traffic_keys, AES_128_1_3, secret)
        refused(InvalidType, message, next_traffic_secret, AES_128_1_3, secret)
        refused(InvalidType, message, prf, "sha256", secret, b"label", b"seed", 16)

    @pytest.mark.parametrize(
        ("label", "kind", "message"),
        [
            ("", InvalidValue, "label must have 1 to 249 characters, not 0"),
            ("x" * 250, InvalidValue, "label must have 1 to 249 characters, not 250"),
            ("schl\u00fcssel", InvalidValue, "label must be ASCII"),
            (b"key", InvalidType, "label must be str, not bytes"),
        ],
    )
    def test_expand_label_label(self, label: object, kind: type[Error], message: str) -> None:
        refused(kind, message, hkdf_expand_label, "sha256", bytes(32), label, b"", 16)

    def test_expand_label_context(self) -> None:
        message = "context must be at most 255 bytes long, not 256"
        arguments = "sha256", bytes(32), "key"
        refused(InvalidValue, message, hkdf_expand_label, *arguments, CANARY * 64, 16)
        message = "context must be bytes or bytearray, not str"
        refused(InvalidType, message, hkdf_expand_label, *arguments, "", 16)

    @pytest.mark.parametrize(
        ("length", "kind", "message"),
        [
            (0, InvalidValue, "length must be at least 1, not 0"),
            (-1, InvalidValue, "length must be at least 1, not -1"),
            (16.0, InvalidType, "length must be int, not float"),
            ("16", InvalidType, "length must be int, not str"),
        ],
    )
    def test_length(self, length: object, kind: type[Error], message: str) -> None:
        refused(kind, message, hkdf_expand_label, "sha256", bytes(32), "key", b"", length)
        refused(kind, message, prf, "sha256", b"secret", b"label", b"seed", length)

    @pytest.mark.parametrize(("hash_name", "most"), [("sha256", 8160), ("sha384", 12240)])
    def test_expand_label_length_has_an_end(self, hash_name: str, most: int) -> None:
        secret = bytes(HASH_LENGTHS[hash_name])
        assert len(hkdf_expand_label(hash_name, secret, "key", b"", most)) == most
        message = f"length must be at most {most}, not {most + 1}"
        refused(InvalidValue, message, hkdf_expand_label, hash_name, secret, "key", b"", most + 1)

    def test_prf_label_and_seed(self) -> None:
        message = "label must be bytes or bytearray, not str"
        refused(InvalidType, message, prf, "sha256", b"secret", "label", b"seed", 16)
        message = "seed must be bytes or bytearray, not int"
        refused(InvalidType, message, prf, "sha256", b"secret", b"label", 7, 16)

    @pytest.mark.parametrize("function", [traffic_keys, next_traffic_secret])
    def test_tls_1_3_functions_want_a_tls_1_3_suite(self, function: Callable[..., object]) -> None:
        message = "suite must be one of TLS 1.3, not TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"
        refused(InvalidValue, message, function, AES_128_1_2, bytes(32))
        refused(InvalidType, "suite must be CipherSuite, not int", function, 0x1301, bytes(32))

    def test_key_block_wants_a_tls_1_2_suite(self) -> None:
        rest = bytes(48), bytes(32), bytes(32)
        message = "suite must be one of TLS 1.2, not TLS_AES_128_GCM_SHA256"
        refused(InvalidValue, message, key_block, AES_128_1_3, *rest)
        message = "suite must be CipherSuite, not str"
        refused(InvalidType, message, key_block, "ECDHE-RSA-AES128-GCM-SHA256", *rest)

    @pytest.mark.parametrize(
        ("position", "name", "length"),
        [(0, "master_secret", 48), (1, "client_random", 32), (2, "server_random", 32)],
    )
    def test_key_block_lengths_and_types(self, position: int, name: str, length: int) -> None:
        for wrong in (0, length - 1, length + 1, 64):
            arguments: list[object] = [bytes(48), bytes(32), bytes(32)]
            arguments[position] = (CANARY * 16)[:wrong]
            message = f"{name} must be {length} bytes long, not {wrong}"
            refused(InvalidValue, message, key_block, AES_128_1_2, *arguments)
        arguments = [bytes(48), bytes(32), bytes(32)]
        arguments[position] = "deadbeef"
        message = f"{name} must be bytes or bytearray, not str"
        refused(InvalidType, message, key_block, AES_128_1_2, *arguments)

    def test_errors_are_also_the_builtin_ones(self) -> None:
        with pytest.raises(ValueError, match=r"^secret must be 32 bytes long, not 0$"):
            traffic_keys(AES_128_1_3, b"")
        with pytest.raises(TypeError, match=r"^secret must be bytes or bytearray, not NoneType$"):
            traffic_keys(AES_128_1_3, None)  # type: ignore[arg-type]

    def test_a_hash_that_this_python_lacks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def digest(*_: object) -> bytes:
            raise ValueError("unsupported hash type sm3")

        monkeypatch.setattr("pyktls.key_schedule.hmac.digest", digest)
        with pytest.raises(Unavailable, match=r"^this Python has no HMAC with sm3; ") as caught:
            traffic_keys(suite(0x00C6), bytes(32))
        assert caught.value.remedy


def test_every_suite_has_keys() -> None:
    for row in SUITES:
        if row.hash not in AVAILABLE:
            continue
        if row.version == TLS_1_3:
            key, _ = traffic_keys(row, bytes(row.hash_length))
        else:
            key = key_block(row, bytes(48), bytes(32), bytes(32)).client_write_key
        assert len(key) == row.aead.key_length


def test_all_names_exist() -> None:
    for name in key_schedule.__all__:
        assert hasattr(key_schedule, name)
