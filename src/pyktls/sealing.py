"""Records made in this process, with the ciphers of OpenSSL's own libcrypto.

The kernel, or OpenSSL, makes every record of a connection but two kinds: the session ticket that is
brought to OpenSSL in a form that it knows (resumption.py), and the fatal alert that ends a
connection whose sending half OpenSSL still has (openssl_directions.py): it sends none that it has
not thought of itself.

Where OpenSSL is hidden its ciphers cannot be had.  Then it is the package ``cryptography`` that has
them, if it is installed: with pyOpenSSL it always is.  The kernel is not asked: what it seals goes
over a connection, where others may look, and the numbers of tickets are used a second time here.
"""

from __future__ import annotations

import secrets
import struct
from typing import TYPE_CHECKING

from .ciphers import NONCE_LENGTH, TLS_1_3
from .engines import apart
from .key_schedule import wipe
from .protocol import APPLICATION_DATA

if TYPE_CHECKING:
    from .ciphers import AEAD, CipherSuite
    from .session import DirectionKeys

__all__ = ["MOST_CONTENT", "seal_record"]

MOST_CONTENT = 2**14  # of a record (RFC 8446 section 5.1)
_VERSION = 0x0303  # on the wire, of both versions


def seal_record(
    suite: CipherSuite, keys: DirectionKeys, sequence: int, content_type: int, content: bytes
) -> bytes | None:
    """The record with that number under ``keys``; at most MOST_CONTENT bytes of content.

    None where the cipher cannot be had, and for suites that are no AEAD (RFC 8446 section 5.2, RFC
    5288, RFC 7905).
    """
    if suite.aead.mac_key_length:
        return None
    number = sequence.to_bytes(8, "big")
    explicit = secrets.token_bytes(NONCE_LENGTH - len(keys.iv))
    if explicit:
        nonce = bytearray(keys.iv + explicit)
    else:
        padded = bytes(NONCE_LENGTH - 8) + number
        nonce = bytearray(a ^ b for a, b in zip(keys.iv, padded, strict=True))
    if suite.version == TLS_1_3:
        outer, inner = APPLICATION_DATA, content + bytes((content_type,))
        length = len(inner) + suite.aead.tag_length
        additional = struct.pack(">BHH", outer, _VERSION, length)
    else:
        outer, inner = content_type, content
        length = len(explicit) + len(inner) + suite.aead.tag_length
        additional = number + struct.pack(">BHH", outer, _VERSION, len(inner))
    body = apart.seal(suite.aead, keys.key, nonce, additional, inner)
    if body is None:
        body = _seal_with_package(suite.aead, keys.key, nonce, additional, inner)
    wipe(nonce)
    if body is None:
        return None
    return struct.pack(">BHH", outer, _VERSION, length) + explicit + body


def _seal_with_package(
    aead: AEAD, key: bytearray, nonce: bytearray, header: bytes, content: bytes
) -> bytes | None:
    """As ``apart.seal``; None too without the package."""
    try:
        from cryptography.hazmat.primitives.ciphers import aead as package  # noqa: PLC0415
    except ImportError:
        return None
    cipher: package.AESGCM | package.AESCCM | package.ChaCha20Poly1305
    match aead.name:
        case "AES_128_GCM" | "AES_256_GCM":
            cipher = package.AESGCM(key)
        case "AES_128_CCM":
            cipher = package.AESCCM(key, aead.tag_length)
        case "CHACHA20_POLY1305":
            cipher = package.ChaCha20Poly1305(key)
        case _:
            return None
    return cipher.encrypt(nonce, content, header)
