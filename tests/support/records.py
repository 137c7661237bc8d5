"""A TLS record layer in user space, on ``cryptography``: what the kernel would do, to compare with.

``seal`` makes one protected record, ``open_`` takes one apart; both are given everything and keep
nothing.  ``Sealer`` and ``Opener`` do the same for one direction of a ``pyktls.Session`` and count:

    Sealer(session.cipher, session.tx).seal(APPLICATION_DATA, b"hello")   # what we send
    Opener(session.cipher, session.rx).open(record)                       # what the peer sent

They copy the keys, so the session can be installed or wiped meanwhile.  AES-GCM, AES-CCM and
ChaCha20-Poly1305, TLS 1.2 and 1.3.  Opening what is not authentic raises
``cryptography.exceptions.InvalidTag``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305

from pyktls.ciphers import TLS_1_3
from pyktls.key_schedule import next_traffic_secret, traffic_keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyktls import CipherSuite, DirectionKeys

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION_DATA = 20, 21, 22, 23
HEADER_LENGTH = 5
LEGACY_VERSION = b"\x03\x03"

Bytes = bytes | bytearray


def _aead(suite: CipherSuite, key: Bytes) -> AESGCM | AESCCM | ChaCha20Poly1305:
    if suite.aead.name in {"AES_128_GCM", "AES_256_GCM"}:
        return AESGCM(bytes(key))
    if suite.aead.name == "AES_128_CCM":
        return AESCCM(bytes(key), tag_length=16)
    if suite.aead.name == "CHACHA20_POLY1305":
        return ChaCha20Poly1305(bytes(key))
    raise NotImplementedError(suite.aead.name)


def _xor_nonce(iv: Bytes, sequence: int) -> bytes:
    # RFC 8446 section 5.3, RFC 7905 section 2.
    return (int.from_bytes(iv, "big") ^ sequence).to_bytes(12, "big")


def _has_explicit_nonce(suite: CipherSuite) -> bool:
    return suite.version != TLS_1_3 and suite.aead.explicit_nonce_length > 0


def seal(
    suite: CipherSuite,
    key: Bytes,
    iv: Bytes,
    sequence: int,
    record_type: int,
    payload: bytes,
    *,
    explicit_nonce: bytes | None = None,
    padding: int = 0,
) -> bytes:
    """One protected record, header included.

    ``key`` and ``iv`` are those of a ``DirectionKeys``.  ``explicit_nonce`` is for GCM and CCM in
    TLS 1.2 (8 bytes, random if not given), ``padding`` the number of zeros that TLS 1.3 hides
    behind the payload.
    """
    aead = _aead(suite, key)
    if suite.version == TLS_1_3:
        inner = payload + bytes((record_type,)) + bytes(padding)
        length = len(inner) + suite.aead.tag_length
        header = bytes((APPLICATION_DATA,)) + LEGACY_VERSION + length.to_bytes(2, "big")
        return header + aead.encrypt(_xor_nonce(iv, sequence), inner, header)
    aad = sequence.to_bytes(8, "big") + bytes((record_type,)) + LEGACY_VERSION
    aad += len(payload).to_bytes(2, "big")
    if _has_explicit_nonce(suite):
        explicit_nonce = os.urandom(8) if explicit_nonce is None else explicit_nonce
        body = explicit_nonce + aead.encrypt(bytes(iv) + explicit_nonce, payload, aad)
    else:
        body = aead.encrypt(_xor_nonce(iv, sequence), payload, aad)
    return bytes((record_type,)) + LEGACY_VERSION + len(body).to_bytes(2, "big") + body


def open_(
    suite: CipherSuite, key: Bytes, iv: Bytes, sequence: int, record: bytes
) -> tuple[int, bytes]:
    """``(record type, payload)`` of one whole protected record, header included."""
    header, body = record[:HEADER_LENGTH], record[HEADER_LENGTH:]
    assert header[1:3] == LEGACY_VERSION
    assert len(body) == int.from_bytes(header[3:], "big"), "not one whole record"
    aead = _aead(suite, key)
    if suite.version == TLS_1_3:
        assert header[0] == APPLICATION_DATA
        inner = aead.decrypt(_xor_nonce(iv, sequence), body, header).rstrip(b"\0")
        return inner[-1], inner[:-1]
    if _has_explicit_nonce(suite):
        nonce, body = bytes(iv) + body[:8], body[8:]
    else:
        nonce = _xor_nonce(iv, sequence)
    length = len(body) - suite.aead.tag_length
    aad = sequence.to_bytes(8, "big") + header[:3] + length.to_bytes(2, "big")
    return header[0], aead.decrypt(nonce, body, aad)


class _Half:
    def __init__(self, suite: CipherSuite, keys: DirectionKeys) -> None:
        self.suite = suite
        self.key, self.iv, self.sequence = bytes(keys.key), bytes(keys.iv), keys.sequence
        self.secret = None if keys.secret is None else bytes(keys.secret)

    def rekey(self) -> None:
        """Go on to the next keys, as after a KeyUpdate (RFC 8446 section 7.2)."""
        assert self.secret is not None
        self.secret = bytes(next_traffic_secret(self.suite, self.secret))
        key, iv = traffic_keys(self.suite, self.secret)
        self.key, self.iv, self.sequence = bytes(key), bytes(iv), 0


class Sealer(_Half):
    """The sending half of a connection, from ``session.tx`` (or a peer's ``session.rx``)."""

    def seal(self, record_type: int, payload: bytes, *, padding: int = 0) -> bytes:
        record = seal(
            self.suite, self.key, self.iv, self.sequence, record_type, payload, padding=padding
        )
        self.sequence += 1
        return record


class Opener(_Half):
    """The receiving half of a connection, from ``session.rx`` (or a peer's ``session.tx``)."""

    def open(self, record: bytes) -> tuple[int, bytes]:
        opened = open_(self.suite, self.key, self.iv, self.sequence, record)
        self.sequence += 1
        return opened


def read_record(recv_exactly: Callable[[int], bytes]) -> bytes:
    """One whole record; ``recv_exactly(n)`` gives the next n bytes of the wire."""
    header = recv_exactly(HEADER_LENGTH)
    return header + recv_exactly(int.from_bytes(header[3:], "big"))
