"""Tickets that come after the switch, used for the next connection through the ssl module."""

from __future__ import annotations

import contextlib
import ssl

import pytest

import pyktls
from pyktls.ciphers import TLS_1_2, TLS_1_3
from support import kernel, tls
from support.kernel import both_ways

VERSIONS = {TLS_1_2: ssl.TLSVersion.TLSv1_2, TLS_1_3: ssl.TLSVersion.TLSv1_3}

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


def test_there_is_no_session_before_a_ticket_has_been_read():
    client, server = contexts(TLS_1_3)
    prepare("offload", client)
    with switched(client, server) as (sock, peer, _):
        first = sock.session
        assert first is None or not first.has_ticket
        peer.sendall(b"x")
        assert sock.recv(1) == b"x"
        assert sock.session.has_ticket


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


def test_a_closed_socket_has_no_keys_left():
    client, server = contexts(TLS_1_3)
    prepare("offload", client)
    with switched(client, server) as (sock, peer, _):
        both_ways(peer, sock)
        keeper = sock._layer.tickets
        peer.close()
        sock.close()
        assert not keeper._keys.key
