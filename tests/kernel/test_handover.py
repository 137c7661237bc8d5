"""From OpenSSL to the kernel in mid-stream: nothing lost, nothing twice, nothing out of order."""

from __future__ import annotations

import socket

import pytest

import pyktls
from pyktls import HandoffRefused, Role
from pyktls.ciphers import TLS_1_3
from support import kernel, tls
from support.kernel import (
    Background,
    both_ways,
    offloaded,
    openssl_pair,
    pattern,
    recv_exactly,
    recv_to_end,
)

over_versions = pytest.mark.parametrize("version", kernel.VERSIONS, ids=kernel.VERSION_NAMES.get)
over_roles = pytest.mark.parametrize("role", Role)


@pytest.fixture(params=kernel.VERSIONS, ids=kernel.VERSION_NAMES.get)
def half_read(request):
    """A KTLSSocket with 90 bytes that OpenSSL had decrypted, and its peer."""
    with openssl_pair(request.param) as (own, peer):
        peer.sendall(pattern(100))
        assert own.recv(10) == pattern(100)[:10]
        assert own.pending() == 90
        sock = pyktls.offload(own)
        try:
            assert sock.pending() == 90
            yield sock, peer
        finally:
            peer.close()
            kernel.close_quietly(sock)


# ---- plaintext that OpenSSL had decrypted ----------------------------------------------------


def test_leftover_plaintext_comes_first(half_read):
    sock, peer = half_read
    peer.sendall(b"through the kernel")
    assert sock.recv(1000) == pattern(100)[10:]
    assert sock.pending() == 0
    assert recv_exactly(sock, 18) == b"through the kernel"
    both_ways(sock, peer)


def test_leftover_plaintext_needs_no_socket_to_be_ready(half_read):
    sock, _ = half_read
    sock.setblocking(False)
    assert sock.recv(1000) == pattern(100)[10:]
    with pytest.raises(BlockingIOError):
        sock.recv(1)


def test_leftover_plaintext_in_small_pieces_and_peeked_at(half_read):
    sock, peer = half_read
    rest = pattern(100)[10:]
    assert sock.recv(5, socket.MSG_PEEK) == rest[:5]
    assert sock.recv(1000, socket.MSG_PEEK) == rest
    buffer = bytearray(7)
    assert sock.recv_into(buffer, 0, socket.MSG_PEEK) == 7
    assert buffer == rest[:7]
    assert sock.pending() == 90
    assert sock.recv_into(buffer) == 7
    assert buffer == rest[:7]
    assert sock.recvmsg(3) == (rest[7:10], [], 0, None)
    assert sock.pending() == 80
    peer.sendall(b"kernel")
    assert recv_exactly(sock, 86) == rest[10:] + b"kernel"


def test_waitall_spans_leftover_and_kernel(half_read):
    sock, peer = half_read
    peer.sendall(b"kernel data")
    assert sock.recv(101, socket.MSG_WAITALL) == pattern(100)[10:] + b"kernel data"


def test_a_file_object_reads_leftover_and_kernel_as_one_stream(half_read):
    sock, peer = half_read
    peer.sendall(b"kernel data\n")
    with sock.makefile("rb") as file:
        assert file.read(90) == pattern(100)[10:]
        assert file.readline() == b"kernel data\n"


def test_detach_refuses_to_lose_leftover_plaintext(half_read):
    sock, peer = half_read
    with pytest.raises(HandoffRefused, match="90 bytes that OpenSSL had decrypted"):
        sock.detach()
    assert recv_exactly(sock, 90) == pattern(100)[10:]
    both_ways(sock, peer)
    with socket.socket(fileno=sock.detach()) as plain:
        assert sock.fileno() == -1
        assert pyktls.status(plain).tx
        plain.settimeout(kernel.TIMEOUT)
        plain.sendall(b"goes on")
        assert recv_exactly(peer, 7) == b"goes on"
        peer.close()


# ---- in mid-stream ---------------------------------------------------------------------------


@over_versions
@over_roles
@pytest.mark.parametrize("chunk", [1, 37, 1000, 5000, 16384, 40_000])
def test_data_in_flight_during_the_switch_arrives_once(version, role, chunk):
    """The peer sends without a pause; we read a part with OpenSSL, switch, and read the rest."""
    total = min(300_000, chunk * 400)
    data = pattern(total)

    def stream() -> None:
        for start in range(0, total, chunk):
            peer.sendall(data[start : start + chunk])
        peer.settimeout(kernel.TIMEOUT)
        assert recv_exactly(peer, 5) == b"reply"
        peer.unwrap()

    with openssl_pair(version, role=role) as (own, peer):
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with Background(stream):
            received = own.recv(chunk // 2 + 1)
            while len(received) < total // 4:
                received += own.recv(chunk // 2 + 1)
            with pyktls.offload(own) as sock:
                received += recv_exactly(sock, total - len(received))
                assert received == data
                sock.sendall(b"reply")
                assert sock.recv(1) == b""


@over_versions
@over_roles
def test_our_own_stream_goes_on_without_a_gap(version, role):
    """Part of the data is sent through OpenSSL, and the rest by the kernel."""
    data = pattern(200_000)
    with openssl_pair(version, role=role) as (own, peer), Background(recv_to_end, peer) as receiver:
        own.sendall(data[:70_001])
        with pyktls.offload(own) as sock:
            sock.sendall(data[70_001:])
        assert receiver.result() == data


@over_versions
def test_both_ends_in_the_kernel(version):
    client, server = tls.contexts(kernel.OPENSSL_VERSIONS[version])
    with tls.connect(client, server) as pair:
        near, far = pyktls.offload(pair.client), pyktls.offload(pair.server)
        with near:
            both_ways(near, far, pattern(50_000))
            with Background(far.unwrap):
                near.unwrap()
            far.close()


# ---- session tickets -------------------------------------------------------------------------


@pytest.mark.parametrize("tickets", [0, 1, 2, 5])
@pytest.mark.parametrize("size", [1, 1000])
def test_tickets_that_come_after_the_switch_are_taken_in_silently(tickets, size):
    """A client that switches right after the handshake has the server's tickets still to come."""
    with offloaded(TLS_1_3, tickets=tickets) as (sock, peer):
        peer.sendall(b"data")
        data = b""
        while len(data) < 4:
            data += sock.recv(size)
        assert data == b"data"
        both_ways(sock, peer)


@pytest.mark.parametrize("flags", [socket.MSG_PEEK, socket.MSG_WAITALL, socket.MSG_DONTWAIT])
def test_tickets_before_data_whatever_the_flags(flags):
    with offloaded(TLS_1_3, tickets=3) as (sock, peer):
        peer.sendall(b"data")
        if flags == socket.MSG_DONTWAIT:
            kernel.wait_readable(sock)
            data = b""
            while len(data) < 4:
                try:
                    data += sock.recv(4, flags)
                except BlockingIOError:
                    kernel.wait_readable(sock)
            assert data == b"data"
        else:
            assert sock.recv(4, flags) == b"data"


def test_tickets_alone_are_no_data_and_no_end():
    with offloaded(TLS_1_3, tickets=5) as (sock, _):
        kernel.wait_readable(sock)
        sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(1)


def test_a_server_has_sent_its_tickets_before_the_switch_and_its_numbers_fit():
    with offloaded(TLS_1_3, role=Role.SERVER, tickets=5) as (sock, peer):
        both_ways(sock, peer)


@over_versions
@over_roles
def test_a_resumed_session_can_be_switched(version, role):
    client, server = tls.contexts(kernel.OPENSSL_VERSIONS[version])
    with tls.connect(client, server) as first:
        session = tls.resumable_session(first)
    with tls.connect(client, server, session) as pair:
        assert pair.client.session_reused
        own, peer = (
            (pair.client, pair.server) if role is Role.CLIENT else (pair.server, pair.client)
        )
        sock = pyktls.offload(own)
        both_ways(sock, peer)
        peer.close()
        kernel.close_quietly(sock)
