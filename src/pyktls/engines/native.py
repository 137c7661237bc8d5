"""The native engine: OpenSSL itself tells the keys, in C, for CPython's ``ssl`` module.

``csrc/openssl_tap.c`` does the watching.  This file finds the ``SSL_CTX *`` and ``SSL *`` inside
CPython's objects and turns what the tap saw into a ``Session``, or into the reason why not.

Where the pointers are: ``_ssl._SSLContext`` begins with the object header and then has
``SSL_CTX *ctx``; ``_ssl._SSLSocket`` begins with the header, a weak reference, and then has
``SSL *ssl``.  The header is ``object.__basicsize__`` bytes in every build, free-threaded ones
included, and the order has not changed from CPython 3.8 to 3.15.  That it holds in the running
interpreter is tested before it is used: a context's options must read the same through the pointer
as through Python, before and after a change; and each SSL object carries the address of its Python
owner, which must be the object in hand.
"""

from __future__ import annotations

import _ssl
import functools
import ssl
import sys
import threading
from typing import TYPE_CHECKING

from pyktls._kernel import ffi, lib
from pyktls.ciphers import TLS_1_2, TLS_1_3, CipherSuite, find_suite
from pyktls.errors import HandoffRefused, Unavailable
from pyktls.key_schedule import key_block, traffic_keys, wipe
from pyktls.session import DirectionKeys, Role, Session

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

__all__ = ["extract", "leave", "openssl_ktls", "progress", "watch", "why_not"]

_POINTER_SIZE = ffi.sizeof("void *")
_CTX_OFFSET = object.__basicsize__
_SSL_OFFSET = object.__basicsize__ + _POINTER_SIZE

_opening = threading.Lock()


# ---- finding OpenSSL, and the pointers -------------------------------------------------------


def _pointer_at(obj: object, offset: int) -> Any:
    return ffi.cast("void **", id(obj) + offset)[0]


def _context_pointer(context: ssl.SSLContext) -> Any:
    return _pointer_at(context, _CTX_OFFSET)


def _layout_is_as_expected() -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Behind SSL *ssl stands the context, whose address is known.
    sslobj = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)._sslobj  # type: ignore[attr-defined]  # noqa: SLF001
    if _pointer_at(sslobj, _SSL_OFFSET + _POINTER_SIZE) != ffi.cast("void *", id(context)):
        return False
    pointer = _context_pointer(context)
    if pointer == ffi.NULL:
        return False
    for _ in range(2):
        if lib.pyktls_tap_context_options(pointer) != int(context.options):
            return False
        context.options ^= ssl.OP_NO_TICKET
    owner = ffi.cast("void *", id(sslobj))
    return bool(lib.pyktls_tap_owned_by(_pointer_at(sslobj, _SSL_OFFSET), owner))


@functools.cache
def why_not() -> str | None:
    """None if this engine works in this interpreter, else the reason why it does not."""
    if sys.implementation.name != "cpython":
        return f"the native engine knows CPython's ssl module, not {sys.implementation.name}'s"
    path = getattr(_ssl, "__file__", None)
    if path is None:
        return "the _ssl module is built into the interpreter, which hides its OpenSSL"
    with _opening:
        result = lib.pyktls_tap_open(path.encode(sys.getfilesystemencoding(), "surrogateescape"))
    if result == lib.PYKTLS_TAP_NO_SYMBOL:
        missing = ffi.string(lib.pyktls_tap_missing()).decode()
        return f"{missing} cannot be reached through the _ssl module: its OpenSSL is hidden"
    if result != lib.PYKTLS_TAP_OK:
        return f"the libraries of the _ssl module cannot be looked into (error {result})"
    if not _layout_is_as_expected():
        return "the objects of the _ssl module are laid out in an unknown way"
    return None


def _require() -> None:
    reason = why_not()
    if reason is not None:
        raise Unavailable(f"keys cannot be taken from this Python's OpenSSL: {reason}")


# ---- watch -----------------------------------------------------------------------------------


def watch(context: ssl.SSLContext) -> None:
    """Begin to watch the connections made from ``context``; again is harmless.

    A keylog callback that is there already (``keylog_filename``) goes on working.  Raises
    HandoffRefused if the context has a message callback, for which OpenSSL has only one place.
    """
    _require()
    # Not in typeshed: CPython calls it a debug helper.
    if getattr(context, "_msg_callback", None) is not None:
        raise HandoffRefused(
            "the context has a _msg_callback, whose place in OpenSSL pyktls needs; remove it"
        )
    if lib.pyktls_tap_watch(_context_pointer(context)) != lib.PYKTLS_TAP_OK:
        raise Unavailable("OpenSSL did not take the callbacks that watch a context")


# ---- extract ---------------------------------------------------------------------------------


class _Snapshot:
    """The tap's view of one connection at one moment; wiped when the ``with`` block ends."""

    def __init__(self, sslobj: object) -> None:
        self._struct = ffi.new("struct pyktls_tap_snapshot *")
        pointer = _pointer_at(sslobj, _SSL_OFFSET)
        owner = ffi.cast("void *", id(sslobj))
        if pointer == ffi.NULL or not lib.pyktls_tap_owned_by(pointer, owner):
            raise Unavailable("the objects of the _ssl module are laid out in an unknown way")
        lib.pyktls_tap_read(pointer, self._struct)

    def __enter__(self) -> Any:
        return self._struct

    def __exit__(self, *_: object) -> None:
        lib.pyktls_tap_wipe(self._struct, ffi.sizeof("struct pyktls_tap_snapshot"))


def _refusals(seen: Any, *, drained: bool) -> Iterator[str]:
    """Why this connection cannot be handed over now, the most telling reason first."""
    yield from _wrong_state(seen)
    yield from _wrong_kind(seen)
    yield from _something_left(seen, drained=drained)


def _wrong_state(seen: Any) -> Iterator[str]:
    if seen.in_init:
        yield "the handshake, or a message after it, is not finished"
    if seen.shutdown:
        yield "close_notify has already been " + ("sent" if seen.shutdown & 1 else "received")
    if seen.version not in (TLS_1_2, TLS_1_3):
        yield f"protocol version {seen.version:#06x} is neither TLS 1.2 nor TLS 1.3"
    if not seen.watched:
        yield (
            "nobody watched the handshake: call pyktls.watch(context) before the connection is "
            "made (a context that sni_callback switches to has to be watched as well)"
        )


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


def _something_left(seen: Any, *, drained: bool) -> Iterator[str]:
    if not drained and seen.pending:
        yield (
            f"OpenSSL still holds {seen.pending} bytes of received plaintext: read them first, or "
            "use pyktls.offload, which serves them"
        )
    for half, reading in ((seen.read, True), (seen.write, False)):
        if half.record_bytes != half.moved_bytes:
            yield _off_boundary(half, reading=reading)
    if seen.read.handshake_bytes:
        yield "the last handshake message is incomplete, or was padded: read on, then try again"


def _off_boundary(half: Any, *, reading: bool) -> str:
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


def _tls13_keys(suite: CipherSuite, half: Any) -> DirectionKeys:
    secret = bytearray(ffi.buffer(half.secret, half.secret_length))
    key, iv = traffic_keys(suite, secret)
    try:
        return DirectionKeys(key, iv, half.sequence, secret=secret)
    finally:
        for buffer in (secret, key, iv):
            wipe(buffer)


def _tls12_keys(suite: CipherSuite, seen: Any) -> tuple[DirectionKeys, DirectionKeys]:
    master = bytearray(ffi.buffer(seen.master, seen.master_length))
    block = key_block(
        suite, master, bytes(ffi.buffer(seen.client_random)), bytes(ffi.buffer(seen.server_random))
    )
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


def _session_from(seen: Any) -> Session:
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
        tx, rx = _tls12_keys(suite, seen)
    return Session(suite, Role.SERVER if seen.server else Role.CLIENT, tx, rx, engine="native")


def extract(sslobj: object, *, drained: bool = False) -> Session:
    """The session of a ``_ssl._SSLSocket``.

    With ``drained`` the plaintext that OpenSSL still holds is the caller's affair.  Raises
    HandoffRefused with the first reason against it; nothing is changed.
    """
    _require()
    with _Snapshot(sslobj) as seen:
        for reason in _refusals(seen, drained=drained):
            raise HandoffRefused(reason)
        return _session_from(seen)


def openssl_ktls(sslobj: object) -> tuple[bool, bool] | None:
    """Whether OpenSSL itself has switched (sending, receiving); None if it cannot be asked.

    These are the answers of BIO_get_ktls_send and BIO_get_ktls_recv.
    """
    if why_not() is not None:
        return None
    with _Snapshot(sslobj) as seen:
        return bool(seen.ktls_send), bool(seen.ktls_recv)


def progress(sslobj: object) -> tuple[int, int]:
    """The bytes that OpenSSL has sent and received so far; unlike the numbers they only grow."""
    with _Snapshot(sslobj) as seen:
        return seen.write.moved_bytes, seen.read.moved_bytes


def leave(sslobj: object) -> None:
    """Let OpenSSL forget the connection in good order, without a byte on the wire."""
    lib.pyktls_tap_leave(_pointer_at(sslobj, _SSL_OFFSET))
