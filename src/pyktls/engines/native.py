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
from pyktls.errors import HandoffRefused, Unavailable

from .evidence import refusals, session_from

if TYPE_CHECKING:
    from typing import Any

    from pyktls.ciphers import CipherSuite
    from pyktls.session import DirectionKeys, Session

__all__ = [
    "extract",
    "is_openssls",
    "leave",
    "openssl_ktls",
    "progress",
    "sending_keys",
    "ssl_pointer",
    "watch",
    "why_not",
]

_POINTER_SIZE = ffi.sizeof("void *")
_CTX_OFFSET = object.__basicsize__
_SSL_OFFSET = object.__basicsize__ + _POINTER_SIZE

_opening = threading.Lock()


# ---- finding OpenSSL, and the pointers -------------------------------------------------------


def _pointer_at(obj: object, offset: int) -> Any:
    return ffi.cast("void **", id(obj) + offset)[0]


def is_openssls(sslobj: object) -> bool:
    """Whether it is a ``_ssl._SSLSocket``, and nothing that stands in the place of one."""
    return type(sslobj) is _ssl._SSLSocket  # type: ignore[attr-defined]  # noqa: SLF001


def ssl_pointer(sslobj: object) -> Any:
    """The ``SSL *`` of a ``_ssl._SSLSocket``; Unavailable if it is not found where it should be."""
    if not is_openssls(sslobj):  # whose memory would be taken for a pointer
        raise Unavailable(f"there is no OpenSSL connection in a {type(sslobj).__name__}")
    pointer = _pointer_at(sslobj, _SSL_OFFSET)
    owner = ffi.cast("void *", id(sslobj))
    if pointer == ffi.NULL or not lib.pyktls_tap_owned_by(pointer, owner):
        raise Unavailable("the objects of the _ssl module are laid out in an unknown way")
    return pointer


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
            "the context has a _msg_callback, whose place in OpenSSL pyktls needs; remove it, or "
            "watch with engine='portable', which goes on calling it"
        )
    if lib.pyktls_tap_watch(_context_pointer(context)) != lib.PYKTLS_TAP_OK:
        raise Unavailable("OpenSSL did not take the callbacks that watch a context")


# ---- extract ---------------------------------------------------------------------------------


class _Snapshot:
    """The tap's view of one connection at one moment; wiped when the ``with`` block ends."""

    def __init__(self, sslobj: object) -> None:
        self._struct = ffi.new("struct pyktls_tap_snapshot *")
        lib.pyktls_tap_read(ssl_pointer(sslobj), self._struct)

    def __enter__(self) -> Any:
        return self._struct

    def __exit__(self, *_: object) -> None:
        lib.pyktls_tap_wipe(self._struct, ffi.sizeof("struct pyktls_tap_snapshot"))


def extract(sslobj: object, *, drained: bool = False, receiving: bool = True) -> Session:
    """The session of a ``_ssl._SSLSocket``.

    With ``drained`` the plaintext that OpenSSL still holds is the caller's affair; without
    ``receiving`` OpenSSL goes on to receive, and may be in the middle of that.  Raises
    HandoffRefused with the first reason against it; nothing is changed.
    """
    _require()
    with _Snapshot(sslobj) as seen:
        for reason in refusals(seen, drained=drained, receiving=receiving):
            raise HandoffRefused(reason)
        return session_from(seen, "native")


def sending_keys(sslobj: object) -> tuple[CipherSuite, DirectionKeys]:
    """The keys that OpenSSL sends with now, in whatever state the connection is; wipe them."""
    with _Snapshot(sslobj) as seen:
        session = session_from(seen, "native")
    session.rx.wipe()
    return session.cipher, session.tx


def openssl_ktls(sslobj: object) -> tuple[bool, bool] | None:
    """Whether OpenSSL itself has switched (sending, receiving); None if it cannot be asked.

    These are the answers of BIO_get_ktls_send and BIO_get_ktls_recv.
    """
    if why_not() is not None or not is_openssls(sslobj):
        return None
    with _Snapshot(sslobj) as seen:
        return bool(seen.ktls_send), bool(seen.ktls_recv)


def progress(sslobj: object) -> tuple[int, int]:
    """The bytes that OpenSSL has sent and received so far; unlike the numbers they only grow."""
    with _Snapshot(sslobj) as seen:
        return seen.write.moved_bytes, seen.read.moved_bytes


def leave(sslobj: object) -> None:
    """Let OpenSSL forget the connection in good order, without a byte on the wire."""
    lib.pyktls_tap_leave(ssl_pointer(sslobj))
