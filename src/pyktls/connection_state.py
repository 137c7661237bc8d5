"""What another process needs to go on with a switched connection, as bytes.  No I/O.

The kernel's socket has the keys, the sequence numbers and every record that is under way.  What is
left in user space is a ``ConnectionState``: it is taken from one KTLSSocket (``snapshot``), packed,
carried anywhere, unpacked, and becomes another one (``KTLSSocket.from_state``).

The bytes are a fixed head, then five parts one after the other, all numbers in network order::

    8   "pyktls" and the number of the format, 2 bytes
    20  the length of each part, 4 bytes each
        a JSON object: everything that is neither secret nor large
        plaintext that OpenSSL had decrypted and nobody has read yet
        the peer's certificate, DER
        the sending and the receiving traffic secret (RFC 8446 section 7.2), or nothing

The secrets are apart from the JSON so that they exist in bytearrays only, which can be wiped.  They
are there only if they were asked for.  Sequence numbers are not there at all: what the kernel says
when the connection is taken up is right, and what somebody wrote down before may be old.  (FreeBSD
does not tell them; there the estimate goes along, which is for counting only.)

Everything that is unpacked is checked, since it may come from anywhere: what is wrong with it is
InvalidValue, and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from . import arguments
from .ciphers import TLS_1_3, CipherSuite, find_suite
from .errors import HandoffRefused, InvalidValue
from .key_schedule import wipe
from .post_handshake import PostHandshake
from .protocol import Direction
from .record_layer import NO_WAIT, RecordLayer
from .running_system import system
from .session import DirectionKeys, Role, Session

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from _typeshed import ReadableBuffer

__all__ = [
    "HEAD_SIZE",
    "LARGEST_STATE",
    "ConnectionState",
    "alone",
    "check_kernel",
    "session_of",
    "snapshot",
    "total_size",
]

_HEAD = struct.Struct("!6sH5I")
_MAGIC = b"pyktls"
_FORMAT = 1

HEAD_SIZE = _HEAD.size

# The most bytes of each part.  What was decrypted ahead is a record (RFC 8446 section 5.1), or a
# few where OpenSSL pipelines.  OpenSSL takes certificate chains of up to 100 KiB
# (SSL_CTX_set_max_cert_list(3)), and as a dict a certificate is a few times as large.
_LARGEST_JSON = 768 * 1024
_LARGEST_LEFTOVER = 128 * 1024
_LARGEST_CERTIFICATE = 127 * 1024
_LARGEST_SECRET = 64
_LARGEST = (
    _LARGEST_JSON,
    _LARGEST_LEFTOVER,
    _LARGEST_CERTIFICATE,
    _LARGEST_SECRET,
    _LARGEST_SECRET,
)
_PARTS = ("JSON", "plaintext", "certificate", "sending secret", "receiving secret")

LARGEST_STATE = HEAD_SIZE + sum(_LARGEST)

# Seconds that settimeout surely takes: it counts nanoseconds in 63 bits.
_LONGEST_TIMEOUT = 9e9
_DEEPEST = 8  # of the tuples in a certificate's dict: ssl makes 4

_NAMES = frozenset(
    {
        "cipher_suite",
        "close_timeout",
        "handshake",
        "post_handshake",
        "reading_data",
        "records_sent",
        "send_ended",
        "timeout",
    }
)


@dataclass(slots=True, eq=False)
class ConnectionState:
    """The state of one connection outside the kernel.

    ``post`` is what PostHandshake.export gives; it holds version and role, and whether the peer's
    close_notify has come.  ``send_ended``: ours is out.  ``reading_data``: the next read gives the
    rest of a record (FreeBSD).  ``records_sent`` is None where the kernel knows the number.
    ``timeout`` and ``close_timeout`` are in seconds.  ``handshake`` is (ALPN protocol, the peer's
    certificate as a dict, and as DER), or None.  ``secrets`` are the traffic secrets, sending and
    receiving, or None; ``wipe`` overwrites them.
    """

    suite: CipherSuite
    post: Mapping[str, Any] = field(repr=False)
    send_ended: bool
    reading_data: bool
    records_sent: int | None
    timeout: float | None
    close_timeout: float
    leftover: bytes = field(repr=False)
    handshake: tuple[str | None, dict[str, Any] | None, bytes | None] | None = field(repr=False)
    secrets: tuple[bytearray, bytearray] | None = field(repr=False)

    def wipe(self) -> None:
        """Overwrite the secrets."""
        for secret in self.secrets or ():
            wipe(secret)

    def pack(self) -> bytearray:
        """The bytes for ``unpack``; the caller wipes them if secrets are among them.

        Raises HandoffRefused if a part is larger than ``unpack`` takes.
        """
        alpn, peer, der = self.handshake or (None, None, None)
        values = {
            "cipher_suite": self.suite.iana_id,
            "close_timeout": self.close_timeout,
            "handshake": None if self.handshake is None else {"alpn": alpn, "peer": peer},
            "post_handshake": dict(self.post),
            "reading_data": self.reading_data,
            "records_sent": self.records_sent,
            "send_ended": self.send_ended,
            "timeout": self.timeout,
        }
        text = json.dumps(values, allow_nan=False).encode("ascii")
        parts = (text, self.leftover, der or b"", *(self.secrets or (b"", b"")))
        for name, part, most in zip(_PARTS, parts, _LARGEST, strict=True):
            if len(part) > most:
                raise HandoffRefused(
                    f"{len(part)} bytes of {name} are more than the {most} that are moved"
                )
        sizes = [len(part) for part in parts]
        # Of the final size from the beginning: a buffer that grows leaves its old contents behind.
        packed = bytearray(HEAD_SIZE + sum(sizes))
        _HEAD.pack_into(packed, 0, _MAGIC, _FORMAT, *sizes)
        at = HEAD_SIZE
        for part in parts:
            packed[at : at + len(part)] = part
            at += len(part)
        return packed

    @classmethod
    def unpack(cls, packed: ReadableBuffer) -> ConnectionState:
        """Take apart what ``pack`` made.

        Raises InvalidType for what is no buffer, InvalidValue for everything else that is wrong.
        """
        with arguments.buffer_view(packed) as view:
            if len(view) != total_size(view):
                raise InvalidValue(
                    f"the state of a connection has {len(view)} bytes, and should have "
                    f"{total_size(view)}"
                )
            parts = []
            at = HEAD_SIZE
            for size in _sizes(view):
                parts.append(bytearray(view[at : at + size]))
                at += size
        text, leftover, der, *secrets = parts
        try:
            return cls._from_parts(text, bytes(leftover), bytes(der) or None, *secrets)
        except BaseException:
            for secret in secrets:
                wipe(secret)
            raise

    @classmethod
    def _from_parts(
        cls, text: bytearray, leftover: bytes, der: bytes | None, tx: bytearray, rx: bytearray
    ) -> ConnectionState:
        values = _parse(text)
        number = values["cipher_suite"]
        suite = find_suite(number) if type(number) is int else None
        if suite is None:
            raise InvalidValue(f"cipher_suite cannot be {number!r:.50}")
        post = values["post_handshake"]
        if not isinstance(post, dict):
            raise InvalidValue("post_handshake must be an object")
        PostHandshake.restore(post)  # checks it
        if post["version"] != suite.version:
            raise InvalidValue(f"{suite.name} is no cipher suite of version {post['version']:#06x}")
        secrets = _check_secrets(suite, tx, rx)
        if post["answer_due"] and secrets is None:
            raise InvalidValue("a KeyUpdate is to be answered, and the secrets are not there")
        for name in ("reading_data", "send_ended"):
            if type(values[name]) is not bool:
                raise InvalidValue(f"{name} must be true or false")
        records_sent = values["records_sent"]
        if records_sent is not None and not (
            type(records_sent) is int and 0 <= records_sent < 2**64 - 1
        ):
            raise InvalidValue("records_sent must be null or from 0 to 2**64 - 2")
        timeout = values["timeout"]
        return cls(
            suite,
            post,
            values["send_ended"],
            values["reading_data"],
            records_sent,
            None if timeout is None else _seconds("timeout", timeout),
            _seconds("close_timeout", values["close_timeout"]),
            leftover,
            _check_handshake(values["handshake"], der),
            secrets,
        )


# ---- checks ----------------------------------------------------------------------------------


def _sizes(view: memoryview) -> tuple[int, ...]:
    if len(view) < HEAD_SIZE:
        raise InvalidValue(f"{len(view)} bytes are too few for the state of a connection")
    magic, number, *sizes = _HEAD.unpack_from(view)
    if magic != _MAGIC:
        raise InvalidValue("what came is not the state of a connection")
    if number != _FORMAT:
        raise InvalidValue(f"format {number} of the state of a connection is not known here")
    for name, size, most in zip(_PARTS, sizes, _LARGEST, strict=True):
        if size > most:
            raise InvalidValue(f"{size} bytes of {name} are more than the {most} that are taken")
    return tuple(sizes)


def total_size(head: ReadableBuffer) -> int:
    """How many bytes a state has, from its first HEAD_SIZE bytes.

    Raises InvalidValue for what begins no state, or one that is too large.
    """
    with arguments.buffer_view(head) as view:
        return HEAD_SIZE + sum(_sizes(view))


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _parse(text: bytearray) -> dict[str, Any]:
    try:
        values = json.loads(text.decode("ascii"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as e:
        raise InvalidValue(f"the state of a connection is no JSON: {e!s:.100}") from None
    if not isinstance(values, dict) or values.keys() != _NAMES:
        raise InvalidValue("names are missing or unknown in the state of a connection")
    return values


def _seconds(name: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InvalidValue(f"{name} must be a number of seconds, not {value!r:.50}")
    if not 0 <= value <= _LONGEST_TIMEOUT:  # which NaN is not either
        raise InvalidValue(f"{name} must be from 0 to {_LONGEST_TIMEOUT:.0f} seconds")
    return float(value)


def _check_secrets(
    suite: CipherSuite, tx: bytearray, rx: bytearray
) -> tuple[bytearray, bytearray] | None:
    lengths = len(tx), len(rx)
    if lengths == (0, 0):
        return None
    if suite.version != TLS_1_3 or lengths != (suite.hash_length, suite.hash_length):
        raise InvalidValue(f"{suite.name} has no traffic secrets of {lengths} bytes")
    return tx, rx


def _check_handshake(
    value: object, der: bytes | None
) -> tuple[str | None, dict[str, Any] | None, bytes | None] | None:
    if value is None:
        if der is not None:
            raise InvalidValue("a certificate without a handshake")
        return None
    if not isinstance(value, dict) or value.keys() != {"alpn", "peer"}:
        raise InvalidValue("handshake must be null or an object of alpn and peer")
    alpn, peer = value["alpn"], value["peer"]
    if alpn is not None and not isinstance(alpn, str):
        raise InvalidValue("alpn must be null or a string")
    if peer is not None:
        if not isinstance(peer, dict):
            raise InvalidValue("peer must be null or an object")
        peer = {name: _certificate_value(item) for name, item in peer.items()}
    return alpn, peer, der


def _certificate_value(value: object, depth: int = 0) -> Any:
    """Strings, ints and tuples of them, as ssl.SSLSocket.getpeercert has them."""
    if isinstance(value, list) and depth < _DEEPEST:
        return tuple(_certificate_value(item, depth + 1) for item in value)
    if isinstance(value, str) or type(value) is int:
        return value
    raise InvalidValue("peer is no certificate")


# ---- out of a connection, and into one -------------------------------------------------------


@contextlib.contextmanager
def alone(layer: RecordLayer) -> Iterator[None]:
    """Keep everybody else out; HandoffRefused if somebody is in a call on the connection."""
    busy = "another call on the socket, of another thread or below, is under way"
    with contextlib.ExitStack() as stack:
        for lock in (layer.receive_lock, layer.send_lock):
            if not lock.acquire(NO_WAIT):
                raise HandoffRefused(busy)
            stack.callback(lock.release)
            if lock.depth > 1:  # a signal handler's call within ours
                raise HandoffRefused(busy)
        yield


def snapshot(
    layer: RecordLayer,
    handshake: tuple[str | None, dict[str, Any] | None, bytes | None] | None,
    close_timeout: object,
    *,
    secrets: bool,
) -> ConnectionState:
    """The state of a connection that is to go on elsewhere; within ``alone``.

    The secrets in it are copies: wipe them.  Raises HandoffRefused, with the reason, if the
    connection cannot go on elsewhere, InvalidValue for a ``close_timeout`` that is none.
    """
    fd = layer.fd
    if fd < 0:
        raise HandoffRefused("the socket is closed")
    if layer.receive_error is not None:
        raise HandoffRefused(f"the connection has ended: {layer.receive_error}")
    layer.check_in_kernel()
    session = layer.session
    copies = None
    if secrets and session.version == TLS_1_3:
        if session.tx.secret is None or session.rx.secret is None:
            raise HandoffRefused("this process has no traffic secrets that could be moved")
        copies = bytearray(session.tx.secret), bytearray(session.rx.secret)
    try:
        post = _export(layer, secrets=copies is not None)
        return ConnectionState(
            session.cipher,
            post,
            layer.send_ended,
            layer.reading_data,
            layer.records_sent if system.next_sequence(fd, Direction.TX) is None else None,
            None if layer.timeout is None else float(layer.timeout),
            _seconds("close_timeout", close_timeout),
            layer.leftover,
            handshake,
            copies,
        )
    except BaseException:
        for secret in copies or ():
            wipe(secret)
        raise


def _export(layer: RecordLayer, *, secrets: bool) -> dict[str, Any]:
    post = layer.post.export()
    if post["answer_due"] and not secrets:
        if not layer.send_ended:
            raise HandoffRefused(
                "the peer's KeyUpdate is to be answered, and there was no room for it yet: send "
                "first, or move the secrets too (secrets=True)"
            )
        post["answer_due"] = False
    return post


def check_kernel(fd: int, suite: CipherSuite) -> None:
    """Raise HandoffRefused unless the kernel does TLS with this suite's cipher on ``fd``.

    In both directions, that is; so it is a TCP socket, and has been connected.  Raises OSError that
    names the call for what is no socket.
    """
    on = set(system.directions(fd))
    missing = [direction for direction in Direction if direction not in on]
    if missing:
        raise HandoffRefused(
            f"the kernel does no TLS on descriptor {fd} for {' and '.join(missing)}"
        )
    for direction in Direction:
        if not system.carries(fd, direction, suite.version, suite.aead):
            raise HandoffRefused(
                f"the {direction} keys of descriptor {fd} are not for {suite.name}, which the "
                "state of the connection names"
            )


def session_of(state: ConnectionState, fd: int) -> Session:
    """The session of a connection whose keys are in the kernel alone."""
    sequence = system.next_sequence(fd, Direction.TX)
    if sequence is None:
        sequence = state.records_sent or 0
    tx, rx = state.secrets or (None, None)
    return Session(
        state.suite,
        Role(state.post["role"]),
        DirectionKeys.in_kernel(min(sequence, 2**64 - 2), secret=tx),
        DirectionKeys.in_kernel(0, secret=rx),
        engine="moved",
    )
