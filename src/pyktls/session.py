"""What a handshake worked out, as far as the record layer needs it.

A ``Session`` is the whole of the hand-over: which suite, which side we are, and for each direction
the key, the IV and the number of the next record.  Engines make it, ``pyktls.install`` gives it to
the kernel.  It holds secrets, so it shows none: no ``repr``, no pickle, and ``wipe()`` overwrites
what Python can overwrite.
"""

from __future__ import annotations

import enum
import hmac
import threading
from typing import TYPE_CHECKING, NoReturn, Self

from .ciphers import NONCE_LENGTH, TLS_1_3, CipherSuite
from .errors import HandoffRefused, InvalidType, InvalidValue
from .key_schedule import wipe
from .protocol import VERSION_NAMES, Direction

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Direction", "DirectionKeys", "Role", "Session", "iv_length"]


class Role(enum.StrEnum):
    """Which side of the handshake we were."""

    CLIENT = "client"
    SERVER = "server"


def iv_length(suite: CipherSuite) -> int:
    """Bytes of IV that the key schedule derives: 12, or in TLS 1.2 4 for GCM and CCM, 0 for CBC.

    (RFC 8446 section 5.3; RFC 5288 section 3, RFC 6655 section 3, RFC 7905 section 2, RFC 5246
    section 6.2.3.2.)
    """
    return NONCE_LENGTH if suite.version == TLS_1_3 else suite.aead.implicit_iv_length


class DirectionKeys:
    """Key material of one direction: ``key``, ``iv`` and ``sequence``, the next record's number.

    ``key`` and ``iv`` are bytearrays as the key schedule derives them (``iv_length`` tells how long
    the IV is); ``secret`` is the TLS 1.3 traffic secret they came from, None in TLS 1.2;
    ``mac_key`` is the HMAC's key for AES-CBC, empty for everything else.  The lengths are checked
    where they meet a suite, in ``Session``.

    The keys can be installed once.  Whoever installs them calls ``claim()`` first.
    """

    __slots__ = (
        "__weakref__",
        "_claimed",
        "_lock",
        "iv",
        "kernel_has_them",
        "key",
        "mac_key",
        "secret",
        "sequence",
    )

    def __init__(
        self,
        key: bytes | bytearray | memoryview,
        iv: bytes | bytearray | memoryview,
        sequence: int,
        *,
        secret: bytes | bytearray | memoryview | None = None,
        mac_key: bytes | bytearray | memoryview = b"",
    ) -> None:
        for name, value in (("key", key), ("iv", iv), ("secret", secret), ("mac_key", mac_key)):
            if not isinstance(value, (bytes, bytearray, memoryview)) and (
                name != "secret" or value is not None
            ):
                raise InvalidType(f"{name} must be bytes-like, not {type(value).__name__}")
        if not isinstance(sequence, int) or isinstance(sequence, bool):
            raise InvalidType(f"sequence must be an int, not {type(sequence).__name__}")
        if not 0 <= sequence < 2**64 - 1:
            # The last number is refused too: after it the kernel would begin again at 0 and use
            # every nonce a second time.
            raise InvalidValue(f"sequence must be from 0 to 2**64 - 2, not {sequence}")
        self.key: bytearray = bytearray(key)
        self.iv: bytearray = bytearray(iv)
        self.sequence: int = sequence
        self.secret: bytearray | None = None if secret is None else bytearray(secret)
        self.mac_key: bytearray = bytearray(mac_key)
        #: Whether key and IV are missing here because only the kernel has them.
        self.kernel_has_them: bool = False
        self._claimed = False
        self._lock = threading.Lock()

    @classmethod
    def in_kernel(
        cls, sequence: int, *, secret: bytes | bytearray | memoryview | None = None
    ) -> Self:
        """Stand for keys that are installed already and that this process has never seen.

        ``secret``, the traffic secret they came from, is what a change of keys goes on from.  They
        cannot be installed.
        """
        self = cls(b"", b"", sequence, secret=secret)
        self.kernel_has_them = True
        self._claimed = True
        return self

    def claim(self, direction: Direction) -> None:
        """Take the right to install these keys; it is given once.

        Raises HandoffRefused the second time: two senders with one key would use the same nonces.
        """
        with self._lock:
            if self._claimed:
                raise HandoffRefused(
                    f"these {direction} keys have been installed already: a second use would "
                    "repeat nonces"
                )
            self._claimed = True

    @property
    def claimed(self) -> bool:
        """Whether these keys have been installed."""
        return self._claimed

    def unclaim(self) -> None:
        """Give the right back, after an installation that the kernel refused."""
        with self._lock:
            self._claimed = False

    def wipe(self) -> None:
        """Overwrite keys, IV and secret with zeros, and forget them."""
        for buffer in (self.key, self.iv, self.secret, self.mac_key):
            if buffer is not None:
                wipe(buffer)
        self.key, self.iv, self.secret, self.mac_key = bytearray(), bytearray(), None, bytearray()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DirectionKeys):
            return NotImplemented
        return (
            self.sequence == other.sequence
            and hmac.compare_digest(self.key, other.key)
            and hmac.compare_digest(self.iv, other.iv)
            and hmac.compare_digest(self.mac_key, other.mac_key)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<DirectionKeys {len(self.key)}-byte key, sequence {self.sequence}>"

    def __reduce__(self) -> NoReturn:
        raise InvalidType("DirectionKeys cannot be pickled or copied: they hold secrets")


class Session:
    """A negotiated connection: ``version``, ``cipher``, ``role``, ``tx`` and ``rx``.

    ``cipher`` is the ``CipherSuite``; ``version`` is its protocol version on the wire, 0x0303 or
    0x0304 (``ssl.TLSVersion`` compares equal).  ``engine`` names what read the keys, for people
    who look for a fault.  Raises InvalidValue where a length does not fit the suite.
    """

    __slots__ = ("__weakref__", "_moved", "cipher", "engine", "role", "rx", "tx")

    def __init__(
        self,
        cipher: CipherSuite,
        role: Role,
        tx: DirectionKeys,
        rx: DirectionKeys,
        *,
        engine: str = "none",
    ) -> None:
        if not isinstance(cipher, CipherSuite):
            raise InvalidType(f"cipher must be a CipherSuite, not {type(cipher).__name__}")
        for name, keys in ((Direction.TX, tx), (Direction.RX, rx)):
            if not isinstance(keys, DirectionKeys):
                raise InvalidType(f"{name} must be DirectionKeys, not {type(keys).__name__}")
            check_lengths(cipher, name, keys)
        self.cipher: CipherSuite = cipher
        if role not in tuple(Role):
            raise InvalidValue(f"role must be 'client' or 'server', not {role!r}")
        self.role: Role = Role(role)
        self.tx: DirectionKeys = tx
        self.rx: DirectionKeys = rx
        self.engine: str = engine
        self._moved: Callable[[], bool] | None = None

    @property
    def version(self) -> int:
        """The protocol version, 0x0303 (TLS 1.2) or 0x0304 (TLS 1.3)."""
        return self.cipher.version

    def keys(self, direction: Direction) -> DirectionKeys:
        """``tx`` or ``rx``."""
        return self.tx if direction is Direction.TX else self.rx

    def replace(self, direction: Direction, keys: DirectionKeys) -> None:
        """Put the next keys of a direction in the place of its present ones."""
        check_lengths(self.cipher, direction, keys)
        if direction is Direction.TX:
            self.tx = keys
        else:
            self.rx = keys

    def watch_over(self, moved: Callable[[], bool] | None) -> None:
        """Have ``has_moved`` ask ``moved``."""
        self._moved = moved

    def has_moved(self) -> bool:
        """Whether records passed through the TLS library since the session was extracted.

        Then the sequence numbers here are old and must not be used.
        """
        return self._moved is not None and self._moved()

    def used_up(self) -> bool:
        """Whether the keys of both directions have been installed: nothing is left to do."""
        return self.tx.claimed and self.rx.claimed

    def wipe(self) -> None:
        """Overwrite every secret with zeros."""
        self.tx.wipe()
        self.rx.wipe()
        self._moved = None

    def __repr__(self) -> str:
        return (
            f"<Session {VERSION_NAMES[self.version]} {self.cipher.name} {self.role} "
            f"tx={self.tx.sequence} rx={self.rx.sequence}>"
        )

    def __reduce__(self) -> NoReturn:
        raise InvalidType("a Session cannot be pickled or copied: it holds secrets")


def check_lengths(suite: CipherSuite, direction: Direction, keys: DirectionKeys) -> None:
    """Raise InvalidValue unless the keys, the IV and the secret have the suite's lengths."""
    here = not keys.kernel_has_them
    aead = suite.aead
    for name, value, length in (
        ("key", keys.key, aead.key_length if here else 0),
        ("iv", keys.iv, iv_length(suite) if here else 0),
        ("mac_key", keys.mac_key, aead.mac_key_length if here else 0),
        ("secret", keys.secret, suite.hash_length),
    ):
        if value is not None and len(value) != length:
            raise InvalidValue(
                f"{direction}.{name} must be {length} bytes for {suite.name}, not {len(value)}"
            )
