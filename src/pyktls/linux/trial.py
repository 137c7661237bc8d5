"""Connections to try things on: loopback pairs with keys of zeros, and nothing of anybody's.

What a kernel can do is found by trying, never by comparing releases: distributions backport, and
leave out.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from pyktls.ciphers import AEAD, AEADS, NONCE_LENGTH, TLS_1_2, TLS_1_3
from pyktls.errors import Unavailable
from pyktls.socket_calls import BLOCKED, loopback_pair

from .abi import DIRECTIONS, TLS_RX, TLS_TX
from .crypto_info import CryptoInfo, get_version_and_cipher, salt_length, set_crypto_info
from .ulp import get_ulp, set_ulp

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from typing import Self

__all__ = ["Pretended", "Spare", "attach", "give_keys", "keyed_pair", "zero_keys"]


class Pretended(Unavailable):
    """The kernel said yes, and did nothing (gVisor): what is sent would be plain text."""


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


def attach(sock: socket.socket) -> None:
    """Attach "tls" to a socket of our own, and ask whether it is there.

    Raises OSError, or Pretended.
    """
    set_ulp(sock)
    try:
        name = get_ulp(sock)
    except OSError as e:
        if e.errno in BLOCKED:
            raise
        raise Pretended("the kernel accepted TCP_ULP and then denied knowing it") from e
    if name != b"tls":
        raise Pretended("the kernel accepted TCP_ULP and attached nothing")


def give_keys(sock: socket.socket, option: int, info: CryptoInfo) -> None:
    """Install keys on a socket of our own, and ask whether they are there.

    Raises OSError (a refused first key leaves the direction as it was), or Pretended.
    """
    set_crypto_info(sock, option, info)
    try:
        found = get_version_and_cipher(sock, option)
    except OSError as e:
        if e.errno in BLOCKED:
            raise
        raise Pretended(
            f"the kernel accepted keys for {DIRECTIONS[option]} and then denied having them"
        ) from e
    if found != (info.version, info.cipher_type):
        raise Pretended(
            f"the kernel accepted keys for {DIRECTIONS[option]} and reports version "
            f"{found[0]:#06x}, cipher {found[1]} instead"
        )


class Spare:
    """Connected sockets with "tls" and without keys, made as they are needed.

    A context manager that closes them.  At most two connections' worth are open at a time.
    """

    def __init__(self) -> None:
        self._fresh: list[socket.socket] = []
        self._used: list[socket.socket] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close(self._fresh)
        self._close(self._used)

    @staticmethod
    def _close(sockets: list[socket.socket]) -> None:
        while sockets:
            sockets.pop().close()

    def socket(self) -> socket.socket:
        """The same one until it is ``used``.  Raises OSError, or Pretended."""
        if not self._fresh:
            self._close(self._used)
            pair = loopback_pair()
            try:
                for sock in pair:
                    attach(sock)
            except BaseException:
                self._close(list(pair))
                raise
            self._fresh.extend(pair)
        return self._fresh[-1]

    def used(self) -> None:
        """That one has keys now."""
        self._used.append(self._fresh.pop())


@contextlib.contextmanager
def keyed_pair(*versions: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A pair in which the kernel encrypts what the first sends and decrypts it for the second.

    With the first cipher that this kernel takes, in the first of ``versions`` (TLS 1.3 before 1.2
    where none is named).  Raises OSError where there is no loopback or no TLS, Unavailable where no
    cipher is taken.
    """
    near, far = loopback_pair()
    with near, far:
        attach(near)
        attach(far)
        for version in versions or (TLS_1_3, TLS_1_2):
            for aead in AEADS:
                if aead.linux is None:
                    continue
                info = zero_keys(version, aead)
                try:
                    give_keys(near, TLS_TX, info)
                except OSError:
                    continue  # a refused first key leaves the direction as it was
                give_keys(far, TLS_RX, info)
                yield near, far
                return
        raise Unavailable("this kernel takes no cipher at all")
