"""Tickets given to OpenSSL as records, without a kernel: the tests' own record layer reads them."""

from __future__ import annotations

import gc
import socket
import ssl
import sys
import threading
from typing import TYPE_CHECKING, Any, Self

import pytest
from OpenSSL import SSL

import pyktls
from pyktls import handoff, ssl_sockets
from pyktls.ciphers import SUITES
from pyktls.engines import apart, membio
from pyktls.resumption import OpenSSLTickets, TicketKeeper, seal
from support import tls
from support.records import HANDSHAKE, Opener, Sealer, read_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CIPHERS = [
    "TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_AES_128_CCM_SHA256",
]  # fmt: skip

pytestmark = tls.needs_native


def bodies(pair: tls.Pair, session: pyktls.Session, count: int) -> list[bytes]:
    """The tickets that wait in the client's socket, as a kernel would give them."""
    return read_tickets(session, count, lambda size: tls.raw_recv_exactly(pair.client, size))


def read_tickets(
    session: pyktls.Session, count: int, exactly: Callable[[int], bytes]
) -> list[bytes]:
    opener = Opener(session.cipher, session.rx)
    found = []
    for _ in range(count):
        kind, message = opener.open(read_record(exactly))
        assert kind == HANDSHAKE
        found.append(message[4:])
    return found


def switched(pair: tls.Pair) -> tuple[TicketKeeper, pyktls.Session]:
    session = pyktls.extract(pair.client)
    sslobj = pair.client._sslobj
    keeper = TicketKeeper(apart.Isolated(sslobj), session)
    handoff.release(pair.client)
    assert apart.isolate(sslobj)
    return keeper, session


def has_ticket(session: ssl.SSLSession | None) -> bool:
    return session is not None and session.has_ticket


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("count", [1, 3])
def test_the_next_connection_resumes(cipher: str, count: int) -> None:
    contexts = tls.contexts(tls.TLS_1_3, cipher, tickets=count)
    with tls.connect(*contexts) as pair:
        keeper, session = switched(pair)
        assert not has_ticket(keeper.session)
        for body in bodies(pair, session, count):
            keeper.add(body)
            assert has_ticket(keeper.session)
            assert keeper._usable  # it was taken, and so will be the next
        kept = keeper.session
        keeper.wipe()
        assert not keeper._keys.key
    with tls.connect(*contexts, kept) as pair:
        assert pair.client.session_reused
        pair.exchange()


def test_several_at_once_and_after_closing_none() -> None:
    contexts = tls.contexts(tls.TLS_1_3, tickets=4)
    with tls.connect(*contexts) as pair:
        keeper, session = switched(pair)
        found = bodies(pair, session, 4)
        for body in found[:3]:
            keeper.add(body)
        kept = keeper.session
        assert has_ticket(kept)
        keeper.wipe()
        keeper.add(found[3])
        assert not keeper._tickets
    with tls.connect(*contexts, kept) as pair:
        assert pair.client.session_reused


@pytest.mark.parametrize("what", ["sequence", "key"])
def test_under_another_number_or_key_openssl_takes_nothing(what: str) -> None:
    with tls.connect(*tls.contexts(tls.TLS_1_3, tickets=1)) as pair:
        keeper, session = switched(pair)
        old = keeper._keys
        key = bytes(len(old.key)) if what == "key" else old.key
        number = old.sequence + (what == "sequence")
        keeper._keys = pyktls.DirectionKeys(key, old.iv, number)
        (body,) = bodies(pair, session, 1)
        keeper.add(body)
        assert not has_ticket(keeper.session)
        keeper.add(body)  # refused once, refused for ever
        assert not keeper._tickets


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("size", [1, 100, 16_384, 16_385, 40_000])
def test_what_is_sealed_is_what_the_tests_own_record_layer_seals(cipher: str, size: int) -> None:
    with tls.connect(*tls.contexts(tls.TLS_1_3, cipher)) as pair:
        session = pyktls.extract(pair.client)
    assert_sealed_as_it_has_to_be(session, size)


def assert_sealed_as_it_has_to_be(session: pyktls.Session, size: int) -> None:
    sealer = Sealer(session.cipher, session.rx)
    message = bytes(range(256)) * (size // 256 + 1)
    pieces = [message[:size][at : at + 16_384] for at in range(0, size, 16_384)]
    sealed = seal(session.cipher, session.rx, message[:size])
    assert sealed == (b"".join(sealer.seal(HANDSHAKE, p) for p in pieces), len(pieces))


def test_an_isolated_connection_reaches_no_socket() -> None:
    with tls.connect(*tls.contexts(tls.TLS_1_3, tickets=0)) as pair:
        sslobj = pair.client._sslobj
        assert apart.isolate(sslobj)
        pair.client.setblocking(False)
        assert sslobj.write(b"for nobody") == 10
        pair.server.sendall(b"not for it")
        with pytest.raises(ssl.SSLWantReadError):
            sslobj.read(1)
        pair.server.setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):
            pair.server.recv(1)


def test_tls_1_2_has_its_tickets_in_the_handshake() -> None:
    contexts = tls.contexts(tls.TLS_1_2)
    with tls.connect(*contexts) as pair:
        keeper, _ = switched(pair)
        assert not keeper._keys.key
        keeper.add(b"nothing of the kind exists")
        assert not keeper._tickets
        kept = keeper.session
        assert has_ticket(kept)
    with tls.connect(*contexts, kept) as pair:
        assert pair.client.session_reused


# ---- a handshake over memory -------------------------------------------------------------------


LIBRARIES = ("ssl", "pyOpenSSL")


def memory_context(library: str, version: ssl.TLSVersion, cipher: str | None) -> Any:
    if library == "ssl":
        return tls.contexts(version, cipher, watch=False)[0]
    context = SSL.Context(SSL.TLS_METHOD)
    tls.authority().configure_trust(context)
    context.set_min_proto_version(version)
    context.set_max_proto_version(version)
    if cipher is not None and version == tls.TLS_1_3:
        context.set_tls13_ciphersuites(cipher.encode())
    return context


class Memory:
    """A client's handshake over memory, and the server opposite."""

    def __init__(self, client: Any, server: ssl.SSLContext, session: Any = None) -> None:
        self.near, far = tls.tcp_pair()
        self.peer = server.wrap_socket(far, server_side=True, do_handshake_on_connect=False)
        self.handshake = pyktls.MemoryBIOHandshake(
            self.near, client, server_hostname=tls.HOST, session=session
        )
        pair: Any = tls.Pair(self.near, self.peer)  # type: ignore[arg-type]
        tls.together(self.handshake.do_handshake, self.peer.do_handshake, pair)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.near.close()
        self.peer.close()

    def leave(self) -> tuple[TicketKeeper, pyktls.Session]:
        """As at the switch."""
        session = self.handshake.session()
        keeper = TicketKeeper(membio.reader_of(self.handshake), session)
        self.handshake.leave()
        return keeper, session

    def exactly(self, size: int) -> bytes:
        return self.near.recv(size, socket.MSG_WAITALL)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("count", [1, 3])
def test_a_handshake_over_memory_resumes_too(library: str, cipher: str, count: int) -> None:
    client = memory_context(library, tls.TLS_1_3, cipher)
    _, server = tls.contexts(tls.TLS_1_3, cipher, tickets=count, watch=False)
    with Memory(client, server) as first:
        keeper, session = first.leave()
        for body in read_tickets(session, count, first.exactly):
            keeper.add(body)
            kept: Any = keeper.session
            assert kept is not None
            assert keeper._usable
        keeper.wipe()
        assert not keeper._keys.key
        first.peer.setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):  # nothing of it reaches the wire
            first.peer.recv(1)
    del first, keeper
    gc.collect()  # what OpenSSL does then to its session must not be the end of ours
    with Memory(client, server, kept) as second:
        assert second.peer.session_reused


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_handshake_over_memory_in_tls_1_2(library: str) -> None:
    client = memory_context(library, tls.TLS_1_2, None)
    _, server = tls.contexts(tls.TLS_1_2, watch=False)
    with Memory(client, server) as first:
        keeper, _ = first.leave()
        keeper.add(b"nothing of the kind exists")
        kept: Any = keeper.session
    del first, keeper
    gc.collect()
    with Memory(client, server, kept) as second:
        assert second.peer.session_reused


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_a_handshake_over_memory_does_not_take(library: str) -> None:
    client = memory_context(library, tls.TLS_1_3, None)
    _, server = tls.contexts(tls.TLS_1_3, tickets=1, watch=False)
    with Memory(client, server) as first:
        keeper, session = first.leave()
        old = keeper._keys
        keeper._keys = pyktls.DirectionKeys(old.key, old.iv, old.sequence + 1)
        (body,) = read_tickets(session, 1, first.exactly)
        keeper.add(body)
        kept: Any = keeper.session
        assert not keeper._usable
        keeper.add(body)  # refused once, refused for ever
        assert not keeper._tickets
        first.peer.setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):  # nor is the server told
            first.peer.recv(1)
    del first, keeper
    gc.collect()
    with Memory(client, server, kept) as second:
        assert not second.peer.session_reused


def test_sessions_of_the_other_library() -> None:
    _, server = tls.contexts(tls.TLS_1_2, watch=False)
    kept: dict[str, Any] = {}
    contexts = {library: memory_context(library, tls.TLS_1_2, None) for library in LIBRARIES}
    for library, context in contexts.items():
        with Memory(context, server) as memory:
            kept[library] = membio.reader_of(memory.handshake).session
    near, far = tls.tcp_pair()
    with near, far:
        for library, other, name in (
            ("ssl", "pyOpenSSL", "OpenSSL.SSL.Context"),
            ("pyOpenSSL", "ssl", "ssl.SSLContext"),
        ):
            with pytest.raises(pyktls.InvalidValue, match=f"^session is for an {name}$"):
                pyktls.MemoryBIOHandshake(
                    near, contexts[library], server_hostname=tls.HOST, session=kept[other]
                )


# ---- where the cipher comes from ---------------------------------------------------------------


@pytest.fixture
def openssl_gives_no_cipher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "seal", lambda *_: None)


@pytest.mark.usefixtures("openssl_gives_no_cipher")
@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("size", [1, 16_384, 40_000])
def test_where_openssl_is_hidden_a_package_seals_the_same(cipher: str, size: int) -> None:
    with tls.connect(*tls.contexts(tls.TLS_1_3, cipher)) as pair:
        session = pyktls.extract(pair.client)
    assert_sealed_as_it_has_to_be(session, size)


@pytest.mark.usefixtures("openssl_gives_no_cipher")
@pytest.mark.parametrize("name", ["SM4_GCM", "SM4_CCM"])
def test_a_cipher_that_the_package_has_not(name: str) -> None:
    (suite,) = (suite for suite in SUITES if suite.aead.name == name)
    keys = pyktls.DirectionKeys(bytes(16), bytes(12), 0)
    assert seal(suite, keys, b"message") is None


@pytest.mark.usefixtures("openssl_gives_no_cipher")
def test_without_that_package_there_is_only_no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers", None)
    with tls.connect(*tls.contexts(tls.TLS_1_3, tickets=1)) as pair:
        keeper, session = switched(pair)
        (body,) = bodies(pair, session, 1)
        keeper.add(body)
        assert not has_ticket(keeper.session)
        keeper.add(body)
        assert not keeper._tickets


# ---- several threads ---------------------------------------------------------------------------


class Lock:
    """A lock that tells whether it is held."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.held = 0

    def __enter__(self) -> None:
        self.lock.acquire()
        self.held += 1

    def __exit__(self, *_: object) -> None:
        self.held -= 1
        self.lock.release()


class Asked:
    """An object of OpenSSL's that may be asked only by who holds the lock."""

    server_side = False

    def __init__(self, lock: Lock) -> None:
        self.lock = lock
        self.times = 0

    def ask(self) -> str:
        assert self.lock.held
        self.times += 1
        return "the answer"

    session = property(ask)
    cipher = version = ask

    def works(self) -> bool:
        return True

    def feed(self, _: bytes) -> bool:
        assert self.lock.held
        return True


@pytest.fixture
def asked() -> Iterator[Asked]:
    thing = Asked(Lock())
    yield thing
    assert thing.times
    assert not thing.lock.held


def test_openssl_is_asked_for_its_session_while_nobody_reads(asked: Asked) -> None:
    """Reading a ticket frees the session that was there, and gives OpenSSL's object a new one."""
    assert OpenSSLTickets(asked, asked.lock).session == "the answer"


def test_nor_while_it_is_brought_a_ticket(asked: Asked) -> None:
    with tls.handshaken() as pair:
        keeper = TicketKeeper(asked, pyktls.extract(pair.client), asked.lock)
    keeper.add(b"ticket")
    assert keeper.session == "the answer"
    keeper.wipe()


def test_nor_is_it_asked_something_else_then(asked: Asked) -> None:
    tickets = OpenSSLTickets(asked, asked.lock)
    layer: Any = type("Layer", (), {"tickets": tickets})
    made: Any = ssl_sockets._Switched(Asked, asked, layer)  # type: ignore[arg-type]
    assert made.cipher() == made.version() == made.session == "the answer"
    assert made.server_side is False
