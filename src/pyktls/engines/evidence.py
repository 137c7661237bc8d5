"""What an engine saw of a connection, and what follows from it: a reason against, or a Session.

Each engine sees by its own means, the judgement is the same.  ``refusals`` gives the reasons why a
connection cannot be handed over, ``session_from`` makes the ``Session`` of one that can.  Both read
an object with the fields of ``Evidence``; the native engine's C struct has them too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from pyktls._kernel import ffi
from pyktls.ciphers import TLS_1_2, TLS_1_3, CipherSuite, find_suite
from pyktls.errors import HandoffRefused
from pyktls.key_schedule import key_block, traffic_keys, wipe
from pyktls.session import DirectionKeys, Role, Session

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

__all__ = ["NOT_WATCHED", "Evidence", "Half", "HalfLike", "refusals", "session_from"]

NOT_WATCHED = (
    "nobody watched the handshake: call pyktls.watch(context) before the connection is "
    "made (a context that sni_callback switches to has to be watched as well)"
)


@dataclass(slots=True, repr=False, eq=False)
class Half:
    """One direction.  ``csrc/openssl_tap.h`` says what the fields are (``pyktls_tap_half``)."""

    sequence: int = 0
    record_bytes: int = 0
    moved_bytes: int = 0
    handshake_bytes: int = 0
    live: bool = False
    secret: bytearray = field(default_factory=bytearray)

    @property
    def secret_length(self) -> int:
        """Bytes of the traffic secret; 0 if none was seen."""
        return len(self.secret)

    def wipe(self) -> None:
        """Overwrite the secret and forget it."""
        wipe(self.secret)
        self.secret = bytearray()


class HalfLike(Protocol):
    """What ``refusals`` needs of a direction."""

    record_bytes: int
    moved_bytes: int


@dataclass(slots=True, repr=False, eq=False)
class Evidence:
    """One connection.  ``csrc/openssl_tap.h`` says what the fields are (``pyktls_tap_snapshot``).

    ``read`` and ``write`` are the two directions.  It holds secrets: ``wipe`` it.
    """

    watched: bool = False
    keylog_replaced: bool = False
    version: int = 0
    suite: int = -1
    server: bool = False
    in_init: bool = False
    shutdown: int = 0
    pending: int = 0
    key_update_due: bool = False
    compressed: bool = False
    early_data: bool = False
    ktls_send: bool = False
    ktls_recv: bool = False
    max_fragment: int = 0
    encrypt_then_mac: int = -1
    master: bytearray = field(default_factory=bytearray)
    client_random: bytes = b""
    server_random: bytes = b""
    read: Half = field(default_factory=Half)
    write: Half = field(default_factory=Half)

    @property
    def master_length(self) -> int:
        """Bytes of the master secret; 0 if none was seen."""
        return len(self.master)

    def wipe(self) -> None:
        """Overwrite every secret and forget it."""
        wipe(self.master)
        self.master = bytearray()
        self.read.wipe()
        self.write.wipe()


# ---- reasons against -------------------------------------------------------------------------


def refusals(seen: Any, *, drained: bool, receiving: bool = True) -> Iterator[str]:
    """Why this connection cannot be handed over now, the most telling reason first.

    With ``drained`` the plaintext that OpenSSL still holds is the caller's affair.  Without
    ``receiving`` that half is not handed over, and may be in the middle of a record.
    """
    yield from _wrong_state(seen)
    yield from _wrong_kind(seen)
    yield from _something_left(seen, drained=drained, receiving=receiving)


def _wrong_state(seen: Any) -> Iterator[str]:
    if seen.in_init:
        yield "the handshake, or a message after it, is not finished"
    if seen.shutdown:
        yield "close_notify has already been " + ("sent" if seen.shutdown & 1 else "received")
    if seen.version not in (TLS_1_2, TLS_1_3):
        yield f"protocol version {seen.version:#06x} is neither TLS 1.2 nor TLS 1.3"
    if not seen.watched:
        yield NOT_WATCHED


def _wrong_kind(seen: Any) -> Iterator[str]:
    if seen.ktls_send or seen.ktls_recv:
        yield "OpenSSL has itself switched this connection to kernel TLS (OP_ENABLE_KTLS)"
    if seen.key_update_due:
        # RFC 8446 section 4.6.3: it comes before our next application data.
        yield "the peer asked for a KeyUpdate that is not sent yet: send some data first"
    if seen.compressed:
        yield "the connection uses TLS compression"
    if seen.max_fragment:
        yield (
            f"the handshake limited records to {seen.max_fragment} bytes (max_fragment_length), "
            "which the kernel would not keep to"
        )
    if seen.early_data:
        yield "the connection began with early data"


def _something_left(seen: Any, *, drained: bool, receiving: bool) -> Iterator[str]:
    if not drained and seen.pending:
        yield (
            f"OpenSSL still holds {seen.pending} bytes of received plaintext: read them first, or "
            "use pyktls.offload, which serves them"
        )
    if seen.read.record_bytes != seen.read.moved_bytes and receiving:
        yield _off_boundary(seen.read, reading=True)
    if seen.write.record_bytes != seen.write.moved_bytes:
        yield _off_boundary(seen.write, reading=False)
    if seen.read.handshake_bytes and receiving:
        yield "the last handshake message is incomplete, or was padded: read on, then try again"


def _off_boundary(half: HalfLike, *, reading: bool) -> str:
    what = "received" if reading else "sent"
    if reading and half.moved_bytes > half.record_bytes:
        rest = "OpenSSL has read ahead, or has a part of a record's header"
    elif reading:
        rest = "OpenSSL has a part of a record: read on until it is whole"
    elif half.moved_bytes < half.record_bytes:
        rest = "a record is only partly written: repeat the write until it succeeds"
    else:
        rest = "more was written than OpenSSL's records account for"
    return (
        f"not on a record boundary: {half.record_bytes} bytes of records {what} against "
        f"{half.moved_bytes} bytes on the wire; {rest}"
    )


def _secrets_missing(seen: Any) -> str:
    if seen.keylog_replaced:
        return (
            "the traffic secrets were not seen: another keylog callback replaced the one of "
            "pyktls (set keylog_filename before pyktls.watch, not after)"
        )
    return "the traffic secrets were not seen: the context was not watched when the handshake began"


# ---- the session -----------------------------------------------------------------------------


def _copy(source: Any, length: int) -> bytearray:
    # Not by way of a slice, or a buffer that grows: that would leave a copy that nobody can
    # overwrite.
    copy = bytearray(length)
    ffi.memmove(copy, source, length)
    return copy


def _tls13_keys(suite: CipherSuite, half: Any) -> DirectionKeys:
    secret = _copy(half.secret, half.secret_length)
    key, iv = traffic_keys(suite, secret)
    try:
        return DirectionKeys(key, iv, half.sequence, secret=secret)
    finally:
        for buffer in (secret, key, iv):
            wipe(buffer)


def _tls12_keys(suite: CipherSuite, seen: Any) -> tuple[DirectionKeys, DirectionKeys]:
    master = _copy(seen.master, seen.master_length)
    block = key_block(suite, master, bytes(seen.client_random), bytes(seen.server_random))
    client = block.client_write_key, block.client_write_iv, block.client_write_mac_key
    server = block.server_write_key, block.server_write_iv, block.server_write_mac_key

    def keys(key: bytearray, iv: bytearray, mac_key: bytearray, half: Any) -> DirectionKeys:
        return DirectionKeys(key, iv, half.sequence, mac_key=mac_key)

    try:
        own, peer = (server, client) if seen.server else (client, server)
        return keys(*own, seen.write), keys(*peer, seen.read)
    finally:
        wipe(master)
        block.wipe()


def session_from(seen: Any, engine: str) -> Session:
    """The session of a connection against which ``refusals`` has nothing.

    Raises HandoffRefused where its cipher or its secrets stand against it.
    """
    suite = find_suite(seen.suite)
    if suite is None or suite.version != seen.version:
        raise HandoffRefused(
            f"cipher suite {seen.suite:#06x} is not one that a kernel can carry on"
        )
    if suite.aead.mac_key_length and seen.encrypt_then_mac != 0:
        # RFC 7366.  Kernels know only the older order, MAC then encrypt.
        raise HandoffRefused(
            f"the handshake agreed on encrypt-then-MAC for {suite.name}, which no kernel has; set "
            "options |= 1 << 19 (OpenSSL's SSL_OP_NO_ENCRYPT_THEN_MAC) on the context"
            if seen.encrypt_then_mac > 0
            else "the ServerHello was not seen, so nobody knows whether it agreed on "
            "encrypt-then-MAC: watch the context before the handshake"
        )
    halves = (seen.write, seen.read)
    if not all(half.live for half in halves):
        raise HandoffRefused(_secrets_missing(seen))
    if seen.version == TLS_1_3:
        if any(half.secret_length != suite.hash_length for half in halves):
            raise HandoffRefused(_secrets_missing(seen))
        tx, rx = (_tls13_keys(suite, half) for half in halves)
    else:
        if not seen.master_length:
            raise HandoffRefused(_secrets_missing(seen))
        tx, rx = _tls12_keys(suite, seen)
    return Session(suite, Role.SERVER if seen.server else Role.CLIENT, tx, rx, engine=engine)
