"""From the secrets of a handshake to the keys that a record layer uses.

Pure computation on bytes: no I/O, no OpenSSL, no kernel.  There is one half for each version:

* TLS 1.3 (RFC 8446 section 7): ``traffic_keys`` turns a traffic secret, as a key log line gives
  it, into key and IV; ``next_traffic_secret`` takes the step of a KeyUpdate.
* TLS 1.2 (RFC 5246 sections 5 and 6.3): ``key_block`` turns the master secret and the two randoms
  into the keys and IVs of both directions.

Results are ``bytearray``s that belong to the caller, who should ``wipe`` them after use.  What is
intermediate is overwritten here before it is let go, with one exception that Python imposes: each
HMAC arrives as an immutable ``bytes`` object (and hmac copies the key it is given), and that memory
goes back to the allocator as it is.  So wiping shortens the life of most copies; it does not
promise that no copy is left.

Errors are ``InvalidType`` and ``InvalidValue``.  They name the parameter and its length, never its
contents.
"""

from __future__ import annotations

import functools
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from .ciphers import HASH_LENGTHS, NONCE_LENGTH, TLS_1_2, TLS_1_3, CipherSuite
from .errors import InvalidType, InvalidValue, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "KeyBlock",
    "hkdf_expand_label",
    "key_block",
    "next_traffic_secret",
    "prf",
    "traffic_keys",
    "wipe",
]

MASTER_SECRET_LENGTH = 48  # RFC 5246 section 8.1
RANDOM_LENGTH = 32  # RFC 5246 section 7.4.1.2, with the four bytes of time

_VERSION_NAMES = {TLS_1_2: "TLS 1.2", TLS_1_3: "TLS 1.3"}


def wipe(buffer: bytearray) -> None:
    """Overwrite ``buffer`` with zeros, in place and without changing its length."""
    buffer[:] = bytes(len(buffer))


# --- TLS 1.3 ----------------------------------------------------------------------------------


def hkdf_expand_label(
    hash_name: str, secret: bytes | bytearray, label: str, context: bytes, length: int
) -> bytearray:
    """Compute HKDF-Expand-Label (RFC 8446 section 7.1).

    ``hash_name`` is "sha256", "sha384" or "sm3"; ``secret`` is as long as its output, as all
    secrets of TLS 1.3 are.  ``label`` comes without the prefix "tls13 " and has 1 to 249 ASCII
    characters, ``context`` 0 to 255 bytes.  Returns ``length`` bytes, 1 to 255 times the length of
    the hash (RFC 5869 section 2.3).

    Raises InvalidType or InvalidValue for an argument that is none of these, Unavailable if this
    Python has no such hash.
    """
    hash_length = _hash_length(hash_name)
    _check_bytes("secret", secret, hash_length)
    _check_bytes("context", context)
    _check_length(length, 255 * hash_length)
    if not isinstance(label, str):
        raise InvalidType(f"label must be str, not {type(label).__name__}")
    if not label.isascii():
        raise InvalidValue("label must be ASCII")
    if not 1 <= len(label) <= 249:
        raise InvalidValue(f"label must have 1 to 249 characters, not {len(label)}")
    if len(context) > 255:
        raise InvalidValue(f"context must be at most 255 bytes long, not {len(context)}")

    return _expand_label(hash_name, secret, label, context, length)


@functools.lru_cache(maxsize=32)
def _hkdf_label(label: str, context: bytes, length: int) -> bytes:
    """Pack HkdfLabel: a 16-bit length, then two vectors, each behind its 8-bit length."""
    full_label = b"tls13 " + label.encode("ascii")
    return b"%b%c%b%c%b" % (
        length.to_bytes(2, "big"),
        len(full_label),
        full_label,
        len(context),
        context,
    )


def _expand_label(
    hash_name: str, secret: bytes | bytearray, label: str, context: bytes, length: int
) -> bytearray:
    """hkdf_expand_label of arguments that are right."""
    # HKDF-Expand (RFC 5869 section 2.3): T(n) = HMAC(secret, T(n-1) | info | n), T(0) is empty.
    # Everything is written into buffers of the final size: one that grows would be moved, and
    # would leave its old contents behind.
    hash_length = HASH_LENGTHS[hash_name]
    output = bytearray(length)
    message = bytearray(hash_length) + _hkdf_label(label, context, length) + b"\0"
    for index, start in enumerate(range(0, length, hash_length), 1):
        message[-1] = index
        block = _hmac(hash_name, secret, message if index > 1 else message[hash_length:])
        message[:hash_length] = block
        output[start : start + hash_length] = block[: length - start]
    wipe(message)
    return output


def traffic_keys(suite: CipherSuite, secret: bytes | bytearray) -> tuple[bytearray, bytearray]:
    """Derive the key and the IV that go with a traffic secret (RFC 8446 section 7.3).

    ``suite`` is a TLS 1.3 suite; ``secret`` is one of its traffic secrets, ``suite.hash_length``
    bytes long.  Returns ``(key, iv)``: ``suite.aead.key_length`` bytes and 12 bytes.

    Raises InvalidType, InvalidValue, or Unavailable as ``hkdf_expand_label`` does.
    """
    _check_suite(suite, TLS_1_3)
    _check_bytes("secret", secret, suite.hash_length)
    key = _expand_label(suite.hash, secret, "key", b"", suite.aead.key_length)
    iv = _expand_label(suite.hash, secret, "iv", b"", NONCE_LENGTH)
    return key, iv


def next_traffic_secret(suite: CipherSuite, secret: bytes | bytearray) -> bytearray:
    """Derive the traffic secret that follows ``secret`` at a KeyUpdate (RFC 8446 section 7.2).

    Arguments and errors are those of ``traffic_keys``.  Returns ``suite.hash_length`` bytes.
    """
    _check_suite(suite, TLS_1_3)
    return hkdf_expand_label(suite.hash, secret, "traffic upd", b"", suite.hash_length)


# --- TLS 1.2 ----------------------------------------------------------------------------------


def prf(
    hash_name: str,
    secret: bytes | bytearray,
    label: bytes,
    seed: bytes | bytearray,
    length: int,
) -> bytearray:
    """Compute the pseudorandom function of TLS 1.2 (RFC 5246 section 5).

    ``hash_name`` is "sha256", "sha384" or "sm3".  ``secret``, ``label`` and ``seed`` may have any
    length; ``length`` is the number of bytes to return, from 1 on.

    Raises InvalidType or InvalidValue for an argument that is none of these, Unavailable if this
    Python has no such hash.
    """
    hash_length = _hash_length(hash_name)
    _check_bytes("secret", secret)
    _check_bytes("label", label)
    _check_bytes("seed", seed)
    _check_length(length)

    # P_hash: A(0) = label | seed, A(n) = HMAC(secret, A(n-1)), and the output is the row of all
    # HMAC(secret, A(n) | label | seed).  ``message`` holds A(n) | label | seed throughout.
    output = bytearray(length)
    message = bytearray(hash_length) + label + seed
    chain = message[hash_length:]
    for start in range(0, length, hash_length):
        following = _hmac(hash_name, secret, chain)
        wipe(chain)
        chain = bytearray(following)
        message[:hash_length] = following
        block = _hmac(hash_name, secret, message)
        output[start : start + hash_length] = block[: length - start]
    wipe(chain)
    wipe(message)
    return output


@dataclass(slots=True, repr=False, eq=False)
class KeyBlock:
    """The keys of both directions of a TLS 1.2 connection (RFC 5246 section 6.3).

    The keys have ``suite.aead.key_length`` bytes, the IVs ``suite.aead.implicit_iv_length``: 4
    bytes, the "salt", or all 12 for ChaCha20-Poly1305.  With AES-CBC there are no IVs, and MAC keys
    of ``suite.aead.mac_key_length`` bytes instead.  Unpacks like a tuple, in the order of the first
    four fields.

    It shows none of its bytes in ``repr``, cannot be pickled or copied, and is compared by
    identity.
    """

    client_write_key: bytearray
    server_write_key: bytearray
    client_write_iv: bytearray
    server_write_iv: bytearray
    client_write_mac_key: bytearray = field(default_factory=bytearray)
    server_write_mac_key: bytearray = field(default_factory=bytearray)

    def __iter__(self) -> Iterator[bytearray]:
        yield self.client_write_key
        yield self.server_write_key
        yield self.client_write_iv
        yield self.server_write_iv

    def __repr__(self) -> str:
        macs = len(self.client_write_mac_key)
        return (
            f"<KeyBlock: keys of {len(self.client_write_key)} bytes, "
            + (f"MAC keys of {macs} bytes, " if macs else "")
            + f"IVs of {len(self.client_write_iv)} bytes>"
        )

    def __reduce__(self) -> NoReturn:
        raise InvalidType("a KeyBlock holds keys and cannot be pickled or copied")

    def wipe(self) -> None:
        """Overwrite all keys and IVs with zeros."""
        for part in (*self, self.client_write_mac_key, self.server_write_mac_key):
            wipe(part)


def key_block(
    suite: CipherSuite,
    master_secret: bytes | bytearray,
    client_random: bytes | bytearray,
    server_random: bytes | bytearray,
) -> KeyBlock:
    """Derive the keys and IVs of both directions (RFC 5246 section 6.3).

    ``suite`` is a TLS 1.2 suite.  ``master_secret`` has 48 bytes, extended or not (RFC 7627);
    the randoms have 32 each.

    Raises InvalidType or InvalidValue for an argument that is none of these.
    """
    _check_suite(suite, TLS_1_2)
    _check_bytes("master_secret", master_secret, MASTER_SECRET_LENGTH)
    _check_bytes("client_random", client_random, RANDOM_LENGTH)
    _check_bytes("server_random", server_random, RANDOM_LENGTH)
    aead = suite.aead
    # The server's random comes first here, and second in the master secret's own derivation.
    seed = bytes(server_random) + bytes(client_random)
    # The order of RFC 5246 section 6.3: MAC keys, keys, IVs, the client's before the server's.
    lengths = [
        n for n in (aead.mac_key_length, aead.key_length, aead.implicit_iv_length) for _ in "cs"
    ]
    block = prf(suite.hash, master_secret, b"key expansion", seed, sum(lengths))
    parts = []
    start = 0
    for length in lengths:
        parts.append(block[start : start + length])  # a slice of a bytearray is a copy
        start += length
    result = KeyBlock(*parts[2:], *parts[:2])
    wipe(block)
    return result


# --- Checks -----------------------------------------------------------------------------------


def _hmac(hash_name: str, key: bytes | bytearray, message: bytearray) -> bytes:
    try:
        return hmac.digest(key, message, hash_name)
    except ValueError as error:
        # SM3, in an OpenSSL that was built without it or that a policy restricts.
        raise Unavailable(
            f"this Python has no HMAC with {hash_name}",
            remedy="its OpenSSL would have to offer that hash",
        ) from error


def _hash_length(hash_name: str) -> int:
    if not isinstance(hash_name, str):
        raise InvalidType(f"hash_name must be str, not {type(hash_name).__name__}")
    if hash_name not in HASH_LENGTHS:
        raise InvalidValue(f"hash_name must be one of {', '.join(HASH_LENGTHS)}, not {hash_name!r}")
    return HASH_LENGTHS[hash_name]


def _check_suite(suite: CipherSuite, version: int) -> None:
    if not isinstance(suite, CipherSuite):
        raise InvalidType(f"suite must be CipherSuite, not {type(suite).__name__}")
    if suite.version != version:
        raise InvalidValue(f"suite must be one of {_VERSION_NAMES[version]}, not {suite.name}")


def _check_bytes(name: str, value: bytes | bytearray, length: int | None = None) -> None:
    if not isinstance(value, bytes | bytearray):
        raise InvalidType(f"{name} must be bytes or bytearray, not {type(value).__name__}")
    if length is not None and len(value) != length:
        raise InvalidValue(f"{name} must be {length} bytes long, not {len(value)}")


def _check_length(length: int, most: int | None = None) -> None:
    if not isinstance(length, int):
        raise InvalidType(f"length must be int, not {type(length).__name__}")
    if length < 1:
        raise InvalidValue(f"length must be at least 1, not {length}")
    if most is not None and length > most:
        raise InvalidValue(f"length must be at most {most}, not {length}")
