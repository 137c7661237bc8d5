"""What the messages of a handshake agree on, as far as the record layer needs it.

``Hellos`` is shown the ClientHello, the ServerHello and the EncryptedExtensions (RFC 8446 section
4.1, RFC 5246 section 7.4.1) of one connection, as often as they come: after a HelloRetryRequest, or
a renegotiation, the last ones count.  The messages come from OpenSSL, or go to it, and OpenSSL
checks them; what does not add up here is taken as absent, as OpenSSL will have refused it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyktls.ciphers import TLS_1_3
from pyktls.protocol import CLIENT_HELLO, ENCRYPTED_EXTENSIONS, SERVER_HELLO

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["UPDATE_REQUESTED", "Hellos"]

UPDATE_REQUESTED = 1  # RFC 8446 section 4.6.3

_MAX_FRAGMENT_LENGTH = 1  # RFC 6066 section 4
_ENCRYPT_THEN_MAC = 22  # RFC 7366 section 2
_EARLY_DATA = 42  # RFC 8446 section 4.2.10
_SUPPORTED_VERSIONS = 43  # RFC 8446 section 4.2.1

_HEADER = 4  # type, and a length of three bytes
_RANDOM = slice(_HEADER + 2, _HEADER + 2 + 32)


def _limit(extension: bytes | None) -> int:
    """Bytes that a record may carry: the extension's code 1 stands for 2**9, 4 for 2**12."""
    if extension is None or len(extension) != 1:
        return 0
    return 1 << (8 + extension[0])


class Hellos:
    """What has been agreed so far.

    ``client_random`` and ``server_random`` are empty before their hello came.  ``version`` is
    0x0303, 0x0304 or an older number, ``suite`` the IANA number of the cipher suite; 0 and -1
    before the ServerHello.  ``encrypt_then_mac`` is 1, 0, or -1 before the ServerHello.
    ``max_fragment`` is the agreed limit in bytes, 0 for none; ``offered_max_fragment`` what the
    client asked for.  ``compression`` is the method's number (RFC 3749), 0 for none.
    ``early_data`` is whether the server accepted early data, ``offered_early_data`` whether the
    client's last hello announced some.
    """

    __slots__ = (
        "client_random",
        "compression",
        "early_data",
        "encrypt_then_mac",
        "max_fragment",
        "offered_early_data",
        "offered_max_fragment",
        "server_random",
        "suite",
        "version",
    )

    def __init__(self) -> None:
        self.client_random = b""
        self.server_random = b""
        self.version = 0
        self.suite = -1
        self.compression = 0
        self.encrypt_then_mac = -1
        self.max_fragment = 0
        self.offered_max_fragment = 0
        self.early_data = False
        self.offered_early_data = False

    def take(self, message: bytes) -> None:
        """Look at a whole handshake message, with its 4-byte header; most say nothing here."""
        kind = message[0] if message else None
        if kind == CLIENT_HELLO:
            self._client_hello(message)
        elif kind == SERVER_HELLO:
            self._server_hello(message)
        elif kind == ENCRYPTED_EXTENSIONS:
            found = dict(_extensions(message, _HEADER))
            self.max_fragment = _limit(found.get(_MAX_FRAGMENT_LENGTH))
            self.early_data = _EARLY_DATA in found

    def _client_hello(self, message: bytes) -> None:
        self.client_random = message[_RANDOM]
        at = _skip(message, _RANDOM.stop, 1)  # the session's id
        at = _skip(message, at, 2)  # the suites
        at = _skip(message, at, 1)  # the compression methods
        found = dict(_extensions(message, at))
        self.offered_max_fragment = _limit(found.get(_MAX_FRAGMENT_LENGTH))
        self.offered_early_data = _EARLY_DATA in found

    def _server_hello(self, message: bytes) -> None:
        self.server_random = message[_RANDOM]
        at = _skip(message, _RANDOM.stop, 1)
        self.suite = int.from_bytes(message[at : at + 2], "big")
        self.compression = int.from_bytes(message[at + 2 : at + 3], "big")
        found = dict(_extensions(message, at + 3))
        version = found.get(_SUPPORTED_VERSIONS, message[_HEADER : _HEADER + 2])
        self.version = int.from_bytes(version, "big")
        self.encrypt_then_mac = int(_ENCRYPT_THEN_MAC in found)
        self.early_data = False
        # TLS 1.3 answers this one in its EncryptedExtensions.
        self.max_fragment = (
            0 if self.version == TLS_1_3 else _limit(found.get(_MAX_FRAGMENT_LENGTH))
        )


def _skip(message: bytes, at: int, width: int) -> int:
    """Where the vector at ``at``, behind its length of ``width`` bytes, ends."""
    return at + width + int.from_bytes(message[at : at + width], "big")


def _extensions(message: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """Number and contents of each extension of the block at ``at`` (RFC 8446 section 4.2)."""
    end = min(_skip(message, at, 2), len(message))
    at += 2
    while at + 4 <= end:
        following = _skip(message, at + 2, 2)
        yield int.from_bytes(message[at : at + 2], "big"), message[at + 4 : following]
        at = following
