"""Which engine watches a context: by itself, by the environment, by the caller."""

from __future__ import annotations

import re
import ssl
from typing import Any

import pytest

import pyktls
from pyktls import EngineInfo
from pyktls.engines import choice, native, portable
from support import tls
from support.systems import linux_only

WORKS = {"native": native.why_not() is None, "portable": portable.why_not() is None}


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYKTLS_ENGINE", raising=False)


def no_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "why_not", lambda: "there is none")


def no_portable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "why_not", lambda: "nor that one")


def new() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def watched_by(**how: Any) -> str | None:
    context = new()
    pyktls.watch(context, **how)
    return pyktls.engine_of(context)


@linux_only
@tls.needs_native
def test_the_order_of_preference(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pyktls.engines() == (
        EngineInfo("native", True, None, True, "it is the preferred one"),
        EngineInfo("portable", True, None),
        EngineInfo("membio", True, None),
    )
    assert watched_by() == "native"
    no_native(monkeypatch)
    assert pyktls.engines() == (
        EngineInfo("native", False, "there is none"),
        EngineInfo("portable", True, None, True, "the native engine does not work: there is none"),
        EngineInfo("membio", True, None),
    )
    assert watched_by() == "portable"
    no_portable(monkeypatch)
    assert [info.chosen for info in pyktls.engines()] == [False, False, False]
    text = "keys cannot be taken from this Python's OpenSSL: there is none; and nor that one"
    with pytest.raises(pyktls.Unavailable, match=f"^{re.escape(text)}$"):
        watched_by()


@linux_only
@tls.needs_native
def test_the_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("portable", "native"):
        monkeypatch.setenv("PYKTLS_ENGINE", name)
        assert watched_by() == name
        (chosen,) = (info for info in pyktls.engines() if info.chosen)
        assert (chosen.name, chosen.why_chosen) == (name, f"PYKTLS_ENGINE={name}")
    monkeypatch.setenv("PYKTLS_ENGINE", "")
    assert watched_by() == "native"
    # The argument comes before it.
    monkeypatch.setenv("PYKTLS_ENGINE", "native")
    assert watched_by(engine="portable") == "portable"
    text = "PYKTLS_ENGINE must be 'native' or 'portable', not 'membio'"
    monkeypatch.setenv("PYKTLS_ENGINE", "membio")
    for function in (pyktls.engines, watched_by):
        with pytest.raises(pyktls.InvalidValue, match=f"^{re.escape(text)}$"):
            function()


@linux_only
def test_a_forced_engine_that_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    no_portable(monkeypatch)
    monkeypatch.setenv("PYKTLS_ENGINE", "portable")
    text = "the portable engine does not work here: nor that one"
    with pytest.raises(pyktls.Unavailable, match=f"^{re.escape(text)}$"):
        watched_by()
    monkeypatch.delenv("PYKTLS_ENGINE")
    no_native(monkeypatch)
    text = "keys cannot be taken from this Python's OpenSSL: there is none"
    with pytest.raises(pyktls.Unavailable, match=f"^{re.escape(text)}$"):
        watched_by(engine="native")


def test_what_is_no_engine() -> None:
    text = "engine must be 'native', 'portable' or 'membio', not 'best'"
    with pytest.raises(pyktls.InvalidValue, match=f"^{re.escape(text)}$"):
        watched_by(engine="best")
    text = "engine must be a str or None, not int"
    with pytest.raises(pyktls.InvalidType, match=f"^{re.escape(text)}$"):
        watched_by(engine=3)


@linux_only
@tls.needs_native
@pytest.mark.parametrize(("first", "second"), [("native", "portable"), ("portable", "native")])
def test_an_engine_does_not_take_a_context_over(first: str, second: str) -> None:
    client, server = tls.contexts(engine=first)
    text = f"the {first} engine watches this context already"
    with pytest.raises(pyktls.HandoffRefused, match=f"^{re.escape(text)}$"):
        pyktls.watch(client, engine=second)
    pyktls.watch(client)
    with tls.connect(client, server) as pair:
        for sock in (pair.client, pair.server):
            assert pyktls.engine_of(sock) == first
            session = pyktls.extract(sock)
            assert session.engine == first


@linux_only
@tls.needs_native
@pytest.mark.parametrize("name", ["native", "portable"])
@pytest.mark.parametrize("membio_first", [False, True])
def test_membio_goes_with_either(name: str, membio_first: bool) -> None:
    client, server = tls.contexts(watch=False)
    for context in (client, server):
        for engine in ("membio", name) if membio_first else (name, "membio"):
            pyktls.watch(context, engine=engine)
        assert pyktls.engine_of(context) == name
        pyktls.watch(context)
        assert pyktls.engine_of(context) == name
    with tls.connect(client, server) as pair:
        pair.exchange()
        one, other = pyktls.extract(pair.client), pyktls.extract(pair.server)
        assert (one.tx, one.rx) == (other.rx, other.tx)


def test_engine_of() -> None:
    context = new()
    assert pyktls.engine_of(context) is None
    pyktls.watch(context, engine="membio")
    assert pyktls.engine_of(context) == "membio"
    with tls.handshaken(watch=False) as pair:
        assert pyktls.engine_of(pair.client) is None
    for thing, name in ((None, "NoneType"), ("native", "str"), (ssl.SSLContext, "type")):
        text = f"a context, an ssl.SSLSocket or a MemoryBIOHandshake is needed, not {name}"
        with pytest.raises(pyktls.InvalidType, match=f"^{re.escape(text)}$"):
            pyktls.engine_of(thing)


def test_a_context_that_only_membio_watches_refuses_sockets() -> None:
    with (
        tls.handshaken(engine="membio") as pair,
        pytest.raises(pyktls.HandoffRefused, match=r"^nobody watched the handshake"),
    ):
        pyktls.extract(pair.client)


def test_contexts_are_not_kept() -> None:
    before = len(choice._watching)
    for engine in ("native", "portable", "membio"):
        if WORKS.get(engine, True):
            for _ in range(20):
                watched_by(engine=engine)
    assert len(choice._watching) <= before + 2


def test_a_row_can_be_printed() -> None:
    assert str(EngineInfo("native", False, "there is none")) == (
        "native does not work: there is none"
    )
    assert str(EngineInfo("portable", True, None, True, "of taste")) == (
        "portable works (chosen: of taste)"
    )
