"""Tickets that come after the switch, used for the next connection through the ssl module."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl

import pytest
from OpenSSL import SSL

import pyktls
from pyktls.ciphers import TLS_1_2, TLS_1_3
from pyktls.engines import apart
from pyktls.lowlevel import lib
from support import kernel, records, tls
from support.kernel import Background, both_ways

VERSIONS = {TLS_1_2: ssl.TLSVersion.TLSv1_2, TLS_1_3: ssl.TLSVersion.TLSv1_3}

FREEBSD = lib.pyktls_system() == lib.PYKTLS_FREEBSD

over_versions = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3], ids=["TLS1.2", "TLS1.3"])


def contexts(version, cipher="AES_128_GCM", **knobs):
    suite = kernel.suite(version, cipher)
    return tls.contexts(VERSIONS[version], suite.openssl_name, watch=False, **knobs)


@contextlib.contextmanager
def switched(client, server, session=None):
    """The client's end in the kernel, the server's in OpenSSL."""
    with tls.connect(client, server, session=session) as pair:
        sock = pair.client
        if type(sock) is ssl.SSLSocket:
            reused = sock.session_reused
            sock = pyktls.offload(sock)
        else:
            reused = sock.session_reused
            assert sock.ktls.rx
        sock.settimeout(kernel.TIMEOUT)
        try:
            yield sock, pair.server, reused
        finally:
            pair.server.close()
            kernel.close_quietly(sock)


def prepare(way, client):
    if way == "offload":
        pyktls.watch(client)
    else:
        pyktls.wrap_context(client, require=True)


@tls.needs_native
@over_versions
@pytest.mark.parametrize("way", ["offload", "wrap_context"])
@pytest.mark.parametrize("cipher", ["AES_128_GCM", "AES_256_GCM", "CHACHA20_POLY1305"])
def test_the_next_connection_resumes(version, way, cipher):
    client, server = contexts(version, cipher)
    prepare(way, client)
    with switched(client, server) as (sock, peer, reused):
        assert not reused
        both_ways(sock, peer)
        both_ways(peer, sock)
        session = sock.session
        assert session.has_ticket
    for _ in range(2):  # and the one after it
        with switched(client, server, session) as (sock, peer, reused):
            assert reused
            both_ways(sock, peer)
            both_ways(peer, sock)
            session = sock.session
            assert session.has_ticket


@tls.needs_native
def test_there_is_no_session_before_a_ticket_has_been_read():
    client, server = contexts(TLS_1_3)
    prepare("offload", client)
    with switched(client, server) as (sock, peer, _):
        first = sock.session
        assert first is None or not first.has_ticket
        peer.sendall(b"x")
        assert sock.recv(1) == b"x"
        assert sock.session.has_ticket


@tls.needs_native
def test_of_several_tickets_the_newest_counts_and_asking_changes_nothing():
    client, server = contexts(TLS_1_3, tickets=5)
    prepare("offload", client)
    with switched(client, server) as (sock, peer, _):
        for _ in range(3):
            both_ways(peer, sock)
            both_ways(sock, peer)
            assert sock.session.has_ticket
        session = sock.session
    with switched(client, server, session) as (sock, peer, reused):
        assert reused
        both_ways(sock, peer)


@tls.needs_native
def test_a_key_update_in_between_changes_nothing():
    """OpenSSL stays with the keys it had at the switch; the connection has others."""
    client, server = contexts(TLS_1_3)
    prepare("offload", client)
    with switched(client, server) as (sock, peer, _):
        both_ways(peer, sock)
        if kernel.kernel_can_rekey():
            tls.send_key_update(peer, request=True)
            both_ways(peer, sock)
            both_ways(sock, peer)
        session = sock.session
        assert session.has_ticket
    with switched(client, server, session) as (sock, peer, reused):
        assert reused
        both_ways(sock, peer)


def test_a_server_that_gives_no_tickets():
    client, server = contexts(TLS_1_3, tickets=0)
    prepare("wrap_context", client)
    with switched(client, server) as (sock, peer, _):
        both_ways(peer, sock)
        session = sock.session
        assert session is None or not session.has_ticket


def test_a_server_end_of_ours_resumes_too():
    """Its tickets were made by OpenSSL before the switch."""
    client, server = contexts(TLS_1_3)
    pyktls.wrap_context(server, require=True)
    with tls.connect(client, server) as pair:
        assert pair.server.ktls.tx
        both_ways(pair.server, pair.client)
        session = pair.client.session
    with tls.connect(client, server, session=session) as pair:
        assert pair.client.session_reused
        assert pair.server.session_reused
        assert pair.server.ktls.tx
        both_ways(pair.server, pair.client)


@tls.needs_native
def test_rubbish_in_the_place_of_a_ticket_harms_nothing():
    """The record layer refuses it; what it let through OpenSSL would refuse."""
    client, server = contexts(TLS_1_3)
    prepare("offload", client)
    with switched(client, server) as (sock, peer, _):
        both_ways(peer, sock)
        good = sock.session
        keeper = sock._layer.tickets
        keeper.add(b"rubbish")
        assert sock.session is not None
        keeper.add(b"more of it")
        both_ways(sock, peer)
        assert good.has_ticket


@tls.needs_native
def test_a_closed_socket_has_no_keys_left():
    client, server = contexts(TLS_1_3)
    prepare("offload", client)
    with switched(client, server) as (sock, peer, _):
        both_ways(peer, sock)
        keeper = sock._layer.tickets
        peer.close()
        sock.close()
        assert not keeper._keys.key


# ---- where OpenSSL is hidden -------------------------------------------------------------------


@pytest.fixture
def hidden(monkeypatch):
    """As far as that concerns what can be asked of OpenSSL; test_hidden_openssl.py has it whole."""
    monkeypatch.setattr(apart, "works", lambda: False)


@pytest.mark.skipif(FREEBSD, reason="the portable engine is Linux's")
@pytest.mark.usefixtures("hidden")
@over_versions
def test_a_socket_whose_openssl_is_hidden_resumes_with_what_came_before_the_switch(version):
    """Nobody can bring OpenSSL a ticket that came later: docs/hand-off.md says why."""
    client, server = contexts(version)
    pyktls.watch(client, engine="portable")
    with switched(client, server) as (sock, peer, reused):
        assert not reused
        both_ways(peer, sock)
        later = sock.session
        assert later.has_ticket == (version == TLS_1_2)
    with switched(client, server, later) as (sock, peer, reused):
        assert reused == (version == TLS_1_2)
        both_ways(sock, peer)
    # A ticket that OpenSSL reads itself is as good as ever, also for connections that switch.
    with tls.connect(client, server) as pair:
        before = tls.resumable_session(pair)
    for _ in range(2):
        with switched(client, server, before) as (sock, peer, reused):
            assert reused
            both_ways(sock, peer)


# ---- a handshake over memory -------------------------------------------------------------------


def memory_context(library, version, cipher):
    client, _ = contexts(version, cipher)
    if library == "ssl":
        return client
    context = SSL.Context(SSL.TLS_METHOD)
    tls.authority().configure_trust(context)
    for limit in (context.set_min_proto_version, context.set_max_proto_version):
        limit(version)
    if version == TLS_1_3:
        context.set_tls13_ciphersuites(kernel.suite(version, cipher).openssl_name.encode())
    return context


@contextlib.contextmanager
def from_memory(client, server, session=None):
    near, far = tls.tcp_pair()
    with near, Background(server.wrap_socket, far, True) as accepted:
        here = pyktls.MemoryBIOHandshake(near, client, server_hostname=tls.HOST, session=session)
        here.do_handshake()
        with accepted.result() as peer, pyktls.offload(here) as sock:
            assert sock.ktls.rx
            for each in (sock, peer):
                each.settimeout(kernel.TIMEOUT)
            try:
                yield sock, peer
            finally:
                peer.close()
                kernel.close_quietly(sock)


@over_versions
@pytest.mark.parametrize("library", ["ssl", "pyOpenSSL"])
@pytest.mark.parametrize("cipher", ["AES_128_GCM", "AES_256_GCM", "CHACHA20_POLY1305"])
def test_a_handshake_over_memory_resumes(version, library, cipher):
    """Tickets are brought to OpenSSL through its memory: public calls, and a cipher for the seal.

    Where OpenSSL is hidden the package ``cryptography`` has the cipher, so it holds there too.
    """
    client = memory_context(library, version, cipher)
    _, server = contexts(version, cipher)
    session = None
    for number in range(3):
        with from_memory(client, server, session) as (sock, peer):
            assert peer.session_reused == (number > 0)
            # The tickets are not the first that comes under the keys of the switch.
            both_ways(sock, peer)
            both_ways(peer, sock)
            session = sock.session
            assert session is not None


@pytest.mark.parametrize("library", ["ssl", "pyOpenSSL"])
def test_a_ticket_that_comes_late_over_memory(library):
    """Under a number of its own: OpenSSL counts only what it is given."""
    client = memory_context(library, TLS_1_3, "AES_128_GCM")
    _, server = contexts(TLS_1_3, tickets=1)
    pyktls.watch(server)
    near, far = tls.tcp_pair()
    with near, Background(server.wrap_socket, far, True) as accepted:
        here = pyktls.MemoryBIOHandshake(near, client, server_hostname=tls.HOST)
        here.do_handshake()
        session = here.session()
        with accepted.result() as peer, socket.socket(fileno=os.dup(peer.fileno())) as wired:
            # The server's only ticket, taken off the wire, to be sent again behind data.
            opener = records.Opener(session.cipher, session.rx)
            record = records.read_record(lambda size: near.recv(size, socket.MSG_WAITALL))
            kind, message = opener.open(record)
            assert (kind, message[0]) == (records.HANDSHAKE, 4)
            wired.settimeout(kernel.TIMEOUT)
            wire = kernel.Wire(wired, pyktls.extract(peer))
            wire.sealer.sequence = 0
            peer.detach()
            with pyktls.offload(here) as sock:
                sock.settimeout(kernel.TIMEOUT)
                for data in (b"one", b"two"):
                    wire.send_data(data)
                    assert sock.recv(100) == data
                wire.send(records.HANDSHAKE, message)
                wire.send_data(b"three")
                assert sock.recv(100) == b"three"
                kept = sock.session
                wire.close_notify()
                assert sock.recv(100) == b""
    with from_memory(client, server, kept) as (sock, peer):
        assert peer.session_reused
        both_ways(sock, peer)
