"""What closes a connection that more than one process has, or that nobody closes."""

from __future__ import annotations

import contextlib
import http.server
import os
import socket
import socketserver
import ssl
import subprocess
import sys
import time

import pytest

import pyktls
from pyktls import Role, TruncationError
from pyktls.ciphers import TLS_1_3
from support import kernel, tls
from support.kernel import Background, both_ways, number_of_another, offloaded, recv_exactly
from support.processes import fork, wait_for

TIMEOUT = kernel.TIMEOUT


@contextlib.contextmanager
def switched(*, server_side: bool = True):
    """(pyktls.SSLSocket, the ssl.SSLSocket opposite)"""
    contexts = list(tls.contexts(watch=False))
    pyktls.wrap_context(contexts[1 if server_side else 0], require=True)
    with tls.connect(*contexts) as pair:
        own, peer = (pair.server, pair.client) if server_side else (pair.client, pair.server)
        assert own.ktls.tx
        own.settimeout(TIMEOUT)
        peer.settimeout(TIMEOUT)
        yield own, peer


@pytest.mark.parametrize("kernels", [False, True], ids=["ssl", "pyktls"])
def test_recv_into_takes_any_number_as_ssl_does(kernels):
    with switched() as (sock, peer):
        reader, writer = (sock, peer) if kernels else (peer, sock)
        for number in (100, 4, 3, 0, -1, None):
            writer.sendall(b"0123456789")
            buffer = bytearray(4)
            expected = 3 if number == 3 else 4
            assert reader.recv_into(buffer, number) == expected
            assert buffer == b"0123"[:expected].ljust(4, b"\0")
            assert recv_exactly(reader, 10 - expected) == b"0123456789"[expected:]


def fill(sock) -> bytes:
    """Send until nothing more is taken; returns what was."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)
    sock.setblocking(False)
    data = kernel.pattern(20_000_000)
    sent = 0
    with contextlib.suppress(BlockingIOError, ssl.SSLWantWriteError):
        while True:
            sent += sock.send(data[sent : sent + 50_000])
    assert sent < len(data)
    sock.settimeout(TIMEOUT)
    return data[:sent]


def test_closing_while_an_answer_is_due_and_there_is_no_room():
    if not kernel.kernel_can_rekey():
        with switched() as (sock, peer):
            tls.send_key_update(peer, request=True)
            with pytest.raises(ssl.SSLError):
                sock.recv(100)
        return
    with switched() as (sock, peer):
        data = fill(sock)
        tls.send_key_update(peer, request=True)
        peer.sendall(b"and data")
        assert recv_exactly(sock, 8) == b"and data"
        with Background(sock.close):
            assert recv_exactly(peer, len(data)) == data
            assert peer.recv(10) == b""


# ---- forks -----------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = kernel.pattern(300_000)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Process", str(os.getpid()))
        self.send_header("X-TX", str(self.connection.ktls.tx))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class ForkingServer(socketserver.ForkingMixIn, http.server.HTTPServer):
    pass


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_server_that_forks_for_each_request():
    client, server = tls.contexts(watch=False)
    pyktls.wrap_context(server, require=True)
    with ForkingServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.socket = server.wrap_socket(httpd.socket, server_side=True)
        with Background(httpd.handle_request):
            connection = http.client.HTTPSConnection(
                tls.HOST, httpd.server_address[1], context=client, timeout=TIMEOUT
            )
            tcp = socket.create_connection(httpd.server_address, TIMEOUT)
            connection.sock = client.wrap_socket(tcp, server_hostname=tls.HOST)
            connection.request("GET", "/")
            response = connection.getresponse()
            assert response.read() == kernel.pattern(300_000)
            assert response.headers["X-TX"] == "software"
            assert int(response.headers["X-Process"]) != os.getpid()
            connection.close()


@pytest.mark.parametrize("drop_in", [True, False], ids=["SSLSocket", "KTLSSocket"])
def test_a_child_that_closes_what_it_inherited_ends_nothing(drop_in):
    with switched() if drop_in else offloaded(TLS_1_3) as (sock, peer):
        both_ways(sock, peer)
        wait_for(fork(sock.close))
        both_ways(sock, peer, kernel.pattern(100_000))
        sock.close()
        assert peer.recv(10) == b""


def test_a_child_that_has_used_it_closes_as_usual():
    with offloaded(TLS_1_3) as (sock, peer):

        def in_child():
            sock.sendall(b"from the child")
            sock.close()

        child = fork(in_child)
        sock.abandon()
        assert recv_exactly(peer, 14) == b"from the child"
        assert peer.recv(10) == b""  # close_notify
        wait_for(child)


def test_a_parent_that_forked_still_says_close_notify():
    """A KTLSSocket does; the forks of others are none of its business."""
    with offloaded(TLS_1_3) as (sock, peer):
        wait_for(fork(lambda: None))
        sock.close()
        assert peer.recv(10) == b""


@pytest.mark.parametrize("server_side", [True, False], ids=["server", "client"])
def test_the_forks_of_others_cost_no_data(server_side):
    """The peer's tickets, or its close_notify, are unread when it is closed."""
    with switched(server_side=server_side) as (sock, peer):
        data = fill(sock)
        if server_side:
            peer.setblocking(False)
            with contextlib.suppress(ssl.SSLError):  # there is data, it says
                peer.unwrap()
            peer.settimeout(TIMEOUT)
        wait_for(fork(lambda: None))
        with Background(sock.close):
            if server_side:  # OpenSSL reads no data after its close_notify, but has read a record
                raw = b""
                while piece := socket.socket.recv(peer, 1 << 16):
                    raw += piece
                assert len(raw) > len(data) - 16384
            else:
                assert recv_exactly(peer, len(data)) == data
                peer.suppress_ragged_eofs = False
                assert peer.recv(10) == b""


def test_a_parent_that_has_not_used_it_waits_for_no_child():
    with switched() as (sock, peer):
        sock.settimeout(None)
        out, into = os.pipe()

        def in_child():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)
            with Background(sock.sendall, kernel.pattern(10_000_000)):
                time.sleep(0.5)
                os.write(into, b"!")
            sock.close()

        child = fork(in_child)
        assert os.read(out, 1) == b"!"  # the child has filled the buffer
        begin = time.monotonic()
        sock.close()
        assert time.monotonic() - begin < 10
        assert recv_exactly(peer, 10_000_000) == kernel.pattern(10_000_000)
        assert peer.recv(10) == b""
        wait_for(child)
        os.close(out)
        os.close(into)


# ---- the end of the interpreter --------------------------------------------------------------

SCRIPT = """
import socket, ssl, sys
import pyktls

context = ssl.create_default_context(cafile=sys.argv[2])
pyktls.watch(context)
tcp = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
tls = context.wrap_socket(tcp, server_hostname=sys.argv[3])
sock = pyktls.offload(tls)
assert sock.ktls.tx
sock.sendall(b"the last words", *map(int, sys.argv[4:]))
"""


@pytest.mark.parametrize("flags", [0, getattr(socket, "MSG_MORE", 0)], ids=["plain", "MSG_MORE"])
def test_a_script_that_ends_without_a_close_loses_nothing(tmp_path, flags):
    _, server = tls.contexts(watch=False)
    authority = tmp_path / "ca.pem"
    authority.write_bytes(tls.authority().cert_pem.bytes())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT)
        arguments = [str(listener.getsockname()[1]), str(authority), tls.HOST, str(flags)]
        with subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments]) as process:
            try:
                tcp, _ = listener.accept()
                tcp.settimeout(TIMEOUT)
                with server.wrap_socket(tcp, server_side=True, suppress_ragged_eofs=False) as peer:
                    assert recv_exactly(peer, 14) == b"the last words"
                    assert peer.recv(10) == b""
                assert process.wait(TIMEOUT) == 0
            finally:
                process.kill()


# ---- threads ---------------------------------------------------------------------------------


def test_a_reader_whose_socket_is_closed_reads_from_no_other():
    with offloaded(TLS_1_3, role=Role.SERVER) as (sock, peer):
        both_ways(sock, peer)
        with Background(sock.recv, 100) as reader:
            time.sleep(0.2)
            with number_of_another(sock, sock.close):
                peer.close()
                reader.fails(OSError, TruncationError)
