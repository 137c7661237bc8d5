"""Tickets given to OpenSSL as records, without a kernel: the tests' own record layer reads them."""

from __future__ import annotations

import ssl

import pytest

import pyktls
from pyktls import handoff
from pyktls.engines import apart
from pyktls.resumption import TicketKeeper, seal
from support import tls
from support.records import HANDSHAKE, Opener, Sealer, read_record

CIPHERS = [
    "TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_AES_128_CCM_SHA256",
]  # fmt: skip

pytestmark = tls.needs_native


def bodies(pair: tls.Pair, session: pyktls.Session, count: int) -> list[bytes]:
    """The tickets that wait in the client's socket, as a kernel would give them."""
    opener = Opener(session.cipher, session.rx)
    found = []
    for _ in range(count):
        kind, message = opener.open(
            read_record(lambda size: tls.raw_recv_exactly(pair.client, size))
        )
        assert kind == HANDSHAKE
        found.append(message[4:])
    return found


def switched(pair: tls.Pair) -> tuple[TicketKeeper, pyktls.Session]:
    session = pyktls.extract(pair.client)
    keeper = TicketKeeper(pair.client._sslobj, session)
    handoff.release(pair.client)
    keeper.isolate()
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
