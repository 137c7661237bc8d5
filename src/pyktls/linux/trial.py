"""Connections to try things on: loopback pairs with keys of zeros, and nothing of anybody's.

What a kernel can do is found by trying, never by comparing releases: distributions backport, and
leave out.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from pyktls.ciphers import AEAD, AEADS, NONCE_LENGTH, TLS_1_2, TLS_1_3
from pyktls.errors import Unavailable
from pyktls.socket_calls import loopback_pair

from .abi import TLS_RX, TLS_TX
from .crypto_info import CryptoInfo, salt_length, set_crypto_info
from .ulp import set_ulp

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

__all__ = ["keyed_pair", "zero_keys"]


def zero_keys(version: int, aead: AEAD) -> CryptoInfo:
    """Keys of zeros for a cipher that Linux knows."""
    assert aead.linux is not None  # noqa: S101  (the callers have looked)
    split = salt_length(aead)
    return CryptoInfo(
        version,
        aead.linux.cipher_type,
        key=bytes(aead.key_length),
        salt=bytes(split),
        iv=bytes(NONCE_LENGTH - split),
        rec_seq=0,
    )


@contextlib.contextmanager
def keyed_pair(*versions: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A pair in which the kernel encrypts what the first sends and decrypts it for the second.

    With the first cipher that this kernel takes, in the first of ``versions`` (TLS 1.3 before 1.2
    where none is named).  Raises OSError where there is no loopback or no TLS, Unavailable where no
    cipher is taken.
    """
    near, far = loopback_pair()
    with near, far:
        set_ulp(near)
        set_ulp(far)
        for version in versions or (TLS_1_3, TLS_1_2):
            for aead in AEADS:
                if aead.linux is None:
                    continue
                info = zero_keys(version, aead)
                try:
                    set_crypto_info(near, TLS_TX, info)
                except OSError:
                    continue  # a refused first key leaves the direction as it was
                set_crypto_info(far, TLS_RX, info)
                yield near, far
                return
        raise Unavailable("this kernel takes no cipher at all")
