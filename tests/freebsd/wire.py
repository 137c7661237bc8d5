"""The far end of a raw session: a TLS record layer in user space that can also do things wrong.

``Suite`` is one combination of cipher, version and hash, named as in FreeBSD's own ktls_test.
``Peer`` holds the keys of one direction and counts: ``seal`` makes what a kernel is to receive,
``open`` takes apart what a kernel has sent.  Written from RFC 2246, 4346, 5246, 5288, 7905 and
8446.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from pyktls import freebsd as system
from pyktls.lowlevel import ffi, lib

CBC = system.CRYPTO_AES_CBC
GCM = system.CRYPTO_AES_NIST_GCM_16
CHACHA20 = system.CRYPTO_CHACHA20_POLY1305
HMACS = {
    "sha1": (system.CRYPTO_SHA1_HMAC, hashes.SHA1),
    "sha256": (system.CRYPTO_SHA2_256_HMAC, hashes.SHA256),
    "sha384": (system.CRYPTO_SHA2_384_HMAC, hashes.SHA384),
}
APP, ALERT = 23, 21


@dataclass(frozen=True)
class Suite:
    name: str
    algorithm: int
    key_length: int
    minor: int
    hash: str = ""

    @property
    def version(self) -> int:
        return 0x0301 + self.minor

    @property
    def auth_algorithm(self) -> int:
        return HMACS[self.hash][0] if self.hash else 0

    @property
    def mac_length(self) -> int:
        return HMACS[self.hash][1].digest_size if self.hash else 16

    @property
    def iv_length(self) -> int:
        if self.algorithm == CBC:
            return 0 if self.minor else 16
        return 4 if (self.algorithm, self.minor) == (GCM, 2) else 12

    @property
    def explicit_iv(self) -> int:
        """Bytes of IV or nonce in front of each record's body."""
        if self.algorithm == CBC:
            return 16 if self.minor else 0
        return 8 if (self.algorithm, self.minor) == (GCM, 2) else 0


def _suite(name: str) -> Suite:
    cipher, *rest = name.split("_")
    algorithm, key = (CHACHA20, 32) if cipher == "chacha20" else (0, int(cipher[3:]) // 8)
    if not algorithm:
        algorithm = {"cbc": CBC, "gcm": GCM}[rest[0]]
    return Suite(name, algorithm, key, int(rest[2]), rest[3] if len(rest) > 3 else "")


def _suites(*patterns: str) -> tuple[Suite, ...]:
    return tuple(
        _suite(pattern.replace("aes_", f"aes{bits}_"))
        for bits in (128, 256)
        for pattern in patterns
        if pattern.startswith("aes") or bits == 128
    )


T10 = _suites("aes_cbc_1_0_sha1")
CBCS = _suites("aes_cbc_1_1_sha1", "aes_cbc_1_2_sha1", "aes_cbc_1_2_sha256", "aes_cbc_1_2_sha384")
G12 = _suites("aes_gcm_1_2")
G13 = _suites("aes_gcm_1_3")
CHACHAS = _suites("chacha20_poly1305_1_2", "chacha20_poly1305_1_3")
T13 = (*G13, CHACHAS[1])
SENDS = (*T10, *CBCS, *G12, *G13, *CHACHAS)
RECEIVES = SENDS[len(T10) :]
INVALID = tuple(
    map(
        _suite,
        (
            "aes128_cbc_1_0_sha256",
            "aes128_cbc_1_0_sha384",
            "aes128_gcm_1_0",
            "chacha20_poly1305_1_0",
            "aes128_cbc_1_1_sha256",
            "aes128_cbc_1_1_sha384",
            "aes128_gcm_1_1",
            "chacha20_poly1305_1_1",
            "aes128_cbc_1_3_sha1",
            "aes128_cbc_1_3_sha256",
            "aes128_cbc_1_3_sha384",
        ),
    )
)


@dataclass
class Peer:
    """The keys of one direction and the number of its next record."""

    suite: Suite
    sequence: int = 0
    key: bytes = b""
    iv: bytes = b""
    auth_key: bytes = b""
    explicit: list[bytes] = field(default_factory=list)  # IVs and nonces that were on the wire

    def __post_init__(self) -> None:
        self.key = self.key or os.urandom(self.suite.key_length)
        self.iv = self.iv or os.urandom(self.suite.iv_length)
        if self.suite.hash:
            self.auth_key = self.auth_key or os.urandom(self.suite.mac_length)

    # ---- giving the keys to the kernel

    def info(self) -> system.TLSEnable:
        return system.TLSEnable(
            self.suite.version,
            self.suite.algorithm,
            key=self.key,
            iv=self.iv,
            rec_seq=self.sequence,
            auth_algorithm=self.suite.auth_algorithm,
            auth_key=self.auth_key,
        )

    def enable_unchecked(self, fd: int, option: int) -> int:
        """The call without what pyktls.freebsd checks: 0 or an errno."""
        result: int = lib.pyktls_freebsd_set_keys(
            fd,
            option,
            self.suite.version,
            self.suite.algorithm,
            ffi.from_buffer(self.key),
            len(self.key),
            ffi.from_buffer(self.iv),
            len(self.iv),
            self.suite.auth_algorithm,
            ffi.from_buffer(self.auth_key),
            len(self.auth_key),
            self.sequence,
        )
        return -result

    # ---- records

    @property
    def legacy(self) -> bytes:
        return bytes((3, min(self.suite.minor + 1, 3)))

    def _aead(self) -> AESGCM | ChaCha20Poly1305:
        return AESGCM(self.key) if self.suite.algorithm == GCM else ChaCha20Poly1305(self.key)

    def _nonce(self) -> bytes:
        return (int.from_bytes(self.iv, "big") ^ self.sequence).to_bytes(12, "big")

    def _mac(self, head: bytes, payload: bytes) -> bytes:
        mac = hmac.HMAC(self.auth_key, HMACS[self.suite.hash][1]())
        mac.update(self.sequence.to_bytes(8, "big") + head + len(payload).to_bytes(2, "big"))
        mac.update(payload)
        return mac.finalize()

    def seal(
        self, kind: int, payload: bytes, *, padding: int = 0, bad_padding: bool = False
    ) -> bytes:
        """``padding``: zeros of TLS 1.3, or bytes beyond the least padding of CBC (blocks)."""
        suite = self.suite
        if suite.minor == 3:
            inner = payload + bytes((kind,)) + bytes(padding)
            head = bytes((APP, 3, 3)) + (len(inner) + 16).to_bytes(2, "big")
            record = head + self._aead().encrypt(self._nonce(), inner, head)
        else:
            head = bytes((kind,)) + self.legacy
            body = (
                self._seal_cbc(head, payload, padding, bad_padding=bad_padding)
                if suite.algorithm == CBC
                else self._seal_aead(head, payload)
            )
            record = head + len(body).to_bytes(2, "big") + body
        self.sequence += 1
        return record

    def _seal_aead(self, head: bytes, payload: bytes) -> bytes:
        aad = self.sequence.to_bytes(8, "big") + head + len(payload).to_bytes(2, "big")
        if self.suite.explicit_iv:
            explicit = os.urandom(8)
            return explicit + self._aead().encrypt(self.iv + explicit, payload, aad)
        return self._aead().encrypt(self._nonce(), payload, aad)

    def _seal_cbc(self, head: bytes, payload: bytes, padding: int, *, bad_padding: bool) -> bytes:
        plain = payload + self._mac(head, payload)
        count = 16 - len(plain) % 16 + padding
        fill = bytearray([count - 1] * count)
        if bad_padding:
            assert count > 1
            fill[0] ^= 1
        iv = os.urandom(16)
        encryptor = Cipher(algorithms.AES(self.key), modes.CBC(iv)).encryptor()
        return iv + encryptor.update(plain + bytes(fill)) + encryptor.finalize()

    def open(self, record: bytes) -> tuple[int, bytes]:
        """``(type, payload)``; asserts that every byte is as the RFC has it."""
        suite, head, body = self.suite, record[:5], record[5:]
        assert head[1:3] == self.legacy
        assert int.from_bytes(head[3:], "big") == len(body)
        self.explicit.append(body[: suite.explicit_iv])
        if suite.minor == 3:
            assert head[0] == APP
            inner = self._aead().decrypt(self._nonce(), body, head)
            assert inner[-1], "the kernel adds no padding"
            kind, payload = inner[-1], inner[:-1]
        elif suite.algorithm == CBC:
            kind, payload = head[0], self._open_cbc(head[:3], body)
        else:
            length = len(body) - suite.explicit_iv - 16
            aad = self.sequence.to_bytes(8, "big") + head[:3] + length.to_bytes(2, "big")
            nonce = self.iv + body[:8] if suite.explicit_iv else self._nonce()
            kind, payload = head[0], self._aead().decrypt(nonce, body[suite.explicit_iv :], aad)
        self.sequence += 1
        return kind, payload

    def _open_cbc(self, head: bytes, body: bytes) -> bytes:
        iv, body = (body[:16], body[16:]) if self.suite.minor else (self.iv, body)
        decryptor = Cipher(algorithms.AES(self.key), modes.CBC(iv)).decryptor()
        plain = decryptor.update(body) + decryptor.finalize()
        if not self.suite.minor:
            self.iv = body[-16:]
        count = plain[-1] + 1
        assert count <= 16, "the kernel pads to the next block"
        assert plain[-count:] == bytes((count - 1,)) * count
        end = len(plain) - count - self.suite.mac_length
        payload = plain[:end]
        assert plain[end:-count] == self._mac(head, payload)
        return payload
