"""OpenSSL's connection after the switch, apart from its socket.

For the ssl module whose OpenSSL can be reached (the native engine's condition), however the keys
were read.  ``csrc/openssl_apart.c`` does it, and ``csrc/openssl_half.c`` takes the socket away:
what is left is the reading half of a connection to which nobody brings anything but tickets.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from pyktls._kernel import ffi, lib

from . import half, native

if TYPE_CHECKING:
    from pyktls.ciphers import AEAD

__all__ = ["Isolated", "feed", "isolate", "seal", "works"]


@functools.cache
def works() -> bool:
    """Whether the functions of OpenSSL that are needed here can be reached."""
    return half.works() and bool(lib.pyktls_apart_open() == lib.PYKTLS_APART_OK)


def isolate(sslobj: Any) -> bool:
    """Take the socket away from OpenSSL's connection.

    False where OpenSSL is hidden: then it can still write there.  False without memory too: then it
    has the socket, and takes the connection for ended.
    """
    if not works():
        return False
    begun = lib.pyktls_half_begin(native.ssl_pointer(sslobj), lib.PYKTLS_HALF_READS)
    if begun != lib.PYKTLS_HALF_OK:
        native.leave(sslobj)
    return bool(begun == lib.PYKTLS_HALF_OK)


def feed(sslobj: Any, records: bytes) -> bool:
    """Let an isolated connection take in whole records; tells whether it did."""
    done = lib.pyktls_apart_feed(native.ssl_pointer(sslobj), ffi.from_buffer(records), len(records))
    return bool(done == lib.PYKTLS_APART_OK)


class Isolated:
    """The connection of a ``_ssl._SSLSocket`` from which the socket is, or will be, taken away."""

    def __init__(self, sslobj: Any) -> None:
        self._sslobj = sslobj

    @property
    def session(self) -> Any:
        """The ssl module's session."""
        return self._sslobj.session

    def works(self) -> bool:
        """Whether it can be fed."""
        return works()

    def feed(self, records: bytes) -> bool:
        """Let it take in whole records; tells whether it did."""
        return feed(self._sslobj, records)


def seal(
    aead: AEAD, key: bytearray, nonce: bytearray, header: bytes, content: bytes
) -> bytes | None:
    """A record's content, encrypted, with its tag; None if OpenSSL has no such cipher."""
    if not works():
        return None
    out = ffi.new("unsigned char[]", len(content) + aead.tag_length)
    done = lib.pyktls_apart_seal(
        aead.name.replace("_", "-").encode(),
        ffi.from_buffer("unsigned char[]", key),
        ffi.from_buffer("unsigned char[]", nonce),
        ffi.from_buffer(header),
        len(header),
        ffi.from_buffer(content),
        len(content),
        out,
    )
    return bytes(ffi.buffer(out)) if done == lib.PYKTLS_APART_OK else None
