"""What the peer may not ask any more once the kernel receives."""

from __future__ import annotations

import contextlib
import re
import ssl

import pytest

import pyktls
from pyktls import RecordError
from pyktls.ciphers import TLS_1_3
from pyktls.protocol import ALERT, HANDSHAKE, UNEXPECTED_MESSAGE
from support import kernel, tls
from support.kernel import TIMEOUT, Background, both_ways

FATAL = 2
# A CertificateRequest (RFC 8446 section 4.3.2): a context, and signature_algorithms.
REQUEST = bytes.fromhex("0d00000e 0101 000a 000d 0006 0004 0403 0804")
OFFERED = (
    "client authentication after the handshake, which post_handshake_auth offered, but which needs "
    "the private key and the transcript that stayed in the TLS library (unexpected_message)"
)
NOT_OFFERED = (
    "client authentication after the handshake, which was not offered (unexpected_message)"
)


def refuses(sock, text):
    for _ in range(2):
        with pytest.raises(RecordError, match=f"^{re.escape(text)}$"):
            sock.recv(100)
    with pytest.raises(BrokenPipeError):
        sock.send(b"too late")


@contextlib.contextmanager
def offered(way):
    """``(KTLSSocket, ssl.SSLSocket of a server)`` where both contexts allow it."""
    client, server = tls.contexts(tls.TLS_1_3, watch=False, post_handshake_auth=True)
    pyktls.watch(client)
    near, far = tls.tcp_pair()
    with near, Background(server.wrap_socket, far, True) as accepted:
        if way == "memory":
            own = pyktls.MemoryBIOHandshake(near, client, server_hostname=tls.HOST)
            own.do_handshake()
        else:
            own = client.wrap_socket(near, server_hostname=tls.HOST)
        with accepted.result() as peer, pyktls.offload(own, tx=way != "receiving") as sock:
            for each in (sock, peer):
                each.settimeout(TIMEOUT)
            yield sock, peer
            kernel.close_quietly(sock)


@pytest.mark.parametrize(
    "way", ["both", pytest.param("receiving", marks=tls.needs_native), "memory"]
)
def test_a_server_that_asks_for_the_certificate_that_was_offered(way):
    with offered(way) as (sock, peer):
        both_ways(peer, sock)
        both_ways(sock, peer)
        peer.verify_client_post_handshake()
        peer.sendall(b"behind the request")
        refuses(sock, OFFERED)
        with pytest.raises(ssl.SSLError) as caught:
            peer.recv(100)
        assert caught.value.reason == "SSLV3_ALERT_UNEXPECTED_MESSAGE"


def test_it_is_known_where_the_connection_has_been_moved_to():
    with offered("both") as (sock, peer):
        both_ways(peer, sock)
        state = sock.export_state()
        with pyktls.KTLSSocket.from_state(state, sock.detach()) as moved:
            peer.verify_client_post_handshake()
            peer.sendall(b"behind the request")
            refuses(moved, OFFERED)
            kernel.close_quietly(moved)


def test_a_server_that_asks_for_what_was_not_offered():
    with kernel.wired(kernel.suite(TLS_1_3)) as (sock, wire):
        wire.send(HANDSHAKE, REQUEST)
        refuses(sock, NOT_OFFERED)
        assert wire.recv() == (ALERT, bytes((FATAL, UNEXPECTED_MESSAGE)))


def test_where_it_was_offered_wrap_context_leaves_the_connection_to_openssl():
    """It can answer; what the context's owner has planned goes on."""
    client, server = tls.contexts(tls.TLS_1_3, watch=False, post_handshake_auth=True)
    pyktls.wrap_context(client)
    with tls.connect(client, server) as pair:
        assert "post_handshake_auth" in str(pair.client.ktls.refusal)
        assert pair.server.getpeercert() is None
        pair.server.verify_client_post_handshake()
        for _ in range(2):
            both_ways(pair.server, pair.client)
            both_ways(pair.client, pair.server)
        assert pair.server.getpeercert()["subjectAltName"] == (("DNS", tls.HOST),)
