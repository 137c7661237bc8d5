"""The native engine says why it cannot be used, and never guesses at memory it does not know.

What is found out once is kept for the life of a process, so most of this runs in processes of its
own.  None of them may crash.
"""

from __future__ import annotations

import _ssl
import os
import re
import ssl
import subprocess
import sys
import textwrap
import types
from typing import TYPE_CHECKING

import pytest

import pyktls
from pyktls._kernel import ffi, lib
from pyktls.engines import native, portable
from support import tls

if TYPE_CHECKING:
    from collections.abc import Iterator

UNAVAILABLE = "keys cannot be taken from this Python's OpenSSL: "
UNKNOWN_LAYOUT = "the objects of the _ssl module are laid out in an unknown way"


def run(script: str) -> str:
    """Run Python code in a new process; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip("\n")


@pytest.fixture(autouse=True)
def by_preference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYKTLS_ENGINE", raising=False)


@pytest.fixture
def asked_anew() -> Iterator[None]:
    native.why_not.cache_clear()
    yield
    native.why_not.cache_clear()


def test_works_here() -> None:
    # The other engines are for other interpreters: this one has to do on any distribution's.
    assert native.why_not() is None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    pyktls.watch(context)
    assert pyktls.engine_of(context) == "native"


def test_import_does_not_look_for_openssl() -> None:
    assert (
        run("""
        import pyktls
        from pyktls._kernel import ffi, lib
        print(lib.pyktls_tap_watch(ffi.NULL) == lib.PYKTLS_TAP_NOT_OPEN)
        print(lib.pyktls_tap_owned_by(ffi.NULL, ffi.NULL))
        print(lib.pyktls_tap_context_options(ffi.NULL))
        snapshot = ffi.new("struct pyktls_tap_snapshot *")
        print(lib.pyktls_tap_read(ffi.NULL, snapshot) == lib.PYKTLS_TAP_NOT_OPEN)
        print(lib.pyktls_tap_leave(ffi.NULL) == lib.PYKTLS_TAP_NOT_OPEN)
    """)
        == "True\n0\n0\nTrue\nTrue"
    )


@pytest.mark.usefixtures("asked_anew")
class TestWhyNot:
    def refused_with(self, reason: str) -> None:
        assert native.why_not() == reason
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        with pytest.raises(pyktls.Unavailable, match=f"^{re.escape(UNAVAILABLE + reason)}$"):
            pyktls.watch(context, engine="native")
        if portable.why_not() is None:
            pyktls.watch(context)
            assert pyktls.engine_of(context) == "portable"

    def test_another_implementation(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "implementation", types.SimpleNamespace(name="pypy"))
        self.refused_with("the native engine knows CPython's ssl module, not pypy's")

    def test_ssl_built_into_the_interpreter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(_ssl, "__file__")
        self.refused_with("the _ssl module is built into the interpreter, which hides its OpenSSL")

    def test_extract_asks_as_well(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with tls.handshaken() as pair:
            native.why_not.cache_clear()
            monkeypatch.delattr(_ssl, "__file__")
            for function in (pyktls.extract, pyktls.offload):
                with pytest.raises(pyktls.Unavailable, match=f"^{re.escape(UNAVAILABLE)}the _ssl"):
                    function(pair.client)
            pair.exchange()

    def test_the_answer_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert native.why_not() is None
        monkeypatch.delattr(_ssl, "__file__")
        assert native.why_not() is None


SCRIPT = """
    import ssl, _ssl
    import pyktls
    from pyktls.engines import native, portable
    {change}
    print(native.why_not())
    try:
        pyktls.watch(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), engine="native")
    except pyktls.Unavailable as e:
        print(e)
"""


def why_not_after(change: str) -> str:
    reason, _, error = run(SCRIPT.format(change=change)).partition("\n")
    assert error == UNAVAILABLE + reason
    return reason


def test_hidden_symbols() -> None:
    # A module that is loaded and bound to no OpenSSL stands for one that hides its own.
    assert why_not_after("import pyktls._kernel; _ssl.__file__ = pyktls._kernel.__file__") == (
        "CRYPTO_get_ex_new_index cannot be reached through the _ssl module: its OpenSSL is hidden"
    )


def test_module_that_is_not_loaded() -> None:
    assert why_not_after("_ssl.__file__ = '/nonexistent/_ssl.so'") == (
        "the libraries of the _ssl module cannot be looked into (error -1)"
    )


def test_a_failed_look_can_be_repeated() -> None:
    assert (
        run("""
        import _ssl
        from pyktls.engines import native, portable
        right, _ssl.__file__ = _ssl.__file__, "/nonexistent/_ssl.so"
        assert native.why_not() is not None
        _ssl.__file__ = right
        native.why_not.cache_clear()
        print(native.why_not())
    """)
        == "None"
    )


@pytest.mark.parametrize("words", [-1, 1, 2, 3])
def test_context_pointer_elsewhere(words: int) -> None:
    change = f"native._CTX_OFFSET += {words} * native._POINTER_SIZE"
    assert why_not_after(change) == UNKNOWN_LAYOUT


@pytest.mark.parametrize("words", [-2, -1, 1, 2, 3])
def test_connection_pointer_elsewhere(words: int) -> None:
    # Found out by comparing addresses: what may not be an SSL is not followed.
    change = f"native._SSL_OFFSET += {words} * native._POINTER_SIZE"
    assert why_not_after(change) == UNKNOWN_LAYOUT


def test_options_that_do_not_agree() -> None:
    change = "native.lib = type('Lib', (), {'__getattr__': lambda self, name: getattr(lib, name), "
    change += "'pyktls_tap_context_options': lambda self, pointer: 0})()"
    assert why_not_after("from pyktls._kernel import lib; " + change) == UNKNOWN_LAYOUT


def test_object_of_another_owner() -> None:
    # Each SSL carries the address of its Python object.
    with tls.handshaken() as pair:
        pointer = ffi.cast("void *", tls.ssl_pointer(pair.client))
        own, other = (ffi.cast("void *", id(s._sslobj)) for s in (pair.client, pair.server))
        assert lib.pyktls_tap_owned_by(pointer, own)
        assert not lib.pyktls_tap_owned_by(pointer, other)
        assert not lib.pyktls_tap_owned_by(pointer, ffi.NULL)


def test_snapshot_is_wiped() -> None:
    with tls.handshaken() as pair:
        with native._Snapshot(pair.client._sslobj) as seen:  # type: ignore[attr-defined]
            assert seen.read.secret_length == 48
            assert any(bytes(ffi.buffer(seen.read.secret)))
        assert not any(bytes(ffi.buffer(seen)))


def test_refused_extraction_leaves_no_secret_in_the_traceback() -> None:
    with tls.handshaken() as pair:
        secret = pyktls.extract(pair.client).tx.secret
        assert secret is not None
        pair.server.sendall(b"0123456789")
        assert pair.client.recv(1) == b"0"
        with pytest.raises(pyktls.HandoffRefused) as caught:
            pyktls.extract(pair.client)
        frame = caught.value.__traceback__
        while frame is not None:
            if "pyktls" in frame.tb_frame.f_code.co_filename:
                for value in frame.tb_frame.f_locals.values():
                    assert secret.hex() not in repr(value)
                    if isinstance(value, ffi.CData):
                        assert bytes(secret) not in bytes(ffi.buffer(value))
            frame = frame.tb_next


def test_openssl_is_the_one_that_ssl_uses() -> None:
    # Not another that happens to be loaded, as cryptography's is here.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    native.watch(context)
    context.options |= ssl.OP_NO_TICKET
    pointer = native._context_pointer(context)
    assert lib.pyktls_tap_context_options(pointer) == int(context.options)
    assert int(ffi.cast("uintptr_t", pointer)) == tls.context_pointer(context)


@pytest.mark.parametrize("thing", [None, object(), 3, "_ssl._SSLSocket", ssl.MemoryBIO()])
def test_what_only_stands_in_the_place_of_openssls_object(thing: object) -> None:
    """Its memory holds no pointer to follow."""
    for ask in (native.ssl_pointer, native.progress, native.leave, native.extract):
        with pytest.raises(pyktls.Unavailable, match="no OpenSSL connection in a"):
            ask(thing)
    assert native.openssl_ktls(thing) is None
