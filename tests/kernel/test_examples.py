"""The programs in examples/, run as a user runs them, against peers that know nothing of pyktls.

The peers are Python's own ``ssl`` (or plain sockets), also where they misbehave.  What the programs
do without kernel TLS is in tests/unit and tests/kernel_absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import pathlib
import random
import re
import smtplib
import socket
import ssl
import subprocess
import tempfile
import threading

import pytest

import pyktls
from pyktls import linux
from support import examples, kernel, tls
from support.examples import Running, certificates

pytestmark = pytest.mark.timeout(600)

TIMEOUT = examples.TIMEOUT
FREEBSD = pyktls.lowlevel.lib.pyktls_system() == pyktls.lowlevel.lib.PYKTLS_FREEBSD
FAKE = FREEBSD and os.uname().sysname != "FreeBSD"
SWITCHED = "software|kernel|device"
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
over_versions = pytest.mark.parametrize("version", VERSIONS)


@pytest.fixture(scope="module")
def pems():
    with certificates() as files:
        yield files


@pytest.fixture(scope="module")
def data():
    return random.Random(65).randbytes(3_000_001)  # noqa: S311  (no secret)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


# ---- peers -----------------------------------------------------------------------------------


def client_context(version=None):
    context = tls.client_context()
    if version is not None:
        context.minimum_version = context.maximum_version = VERSIONS[version]
    return context


def plain(port):
    return socket.create_connection(("127.0.0.1", port), TIMEOUT)


def connect(port, version=None):
    """A TLS client.  An end without close_notify is an error to it: ssl.SSLEOFError."""
    return client_context(version).wrap_socket(
        plain(port), server_hostname=tls.HOST, suppress_ragged_eofs=False
    )


def received(sock):
    """Everything up to the end."""
    pieces = []
    with contextlib.suppress(ssl.SSLZeroReturnError):  # ssl's way to say it where both have ended
        while piece := sock.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)


def end_sending(sock):
    """Send close_notify, and go on receiving; ssl's unwrap would wait for the peer's."""
    sock.setblocking(False)
    with contextlib.suppress(ssl.SSLWantReadError):
        sock.unwrap()
    sock.settimeout(TIMEOUT)


def cut_off(sock):
    """End the TCP connection and not the TLS one."""
    socket.socket.shutdown(sock, socket.SHUT_WR)


def assert_cut_off(sock):
    with pytest.raises((ssl.SSLEOFError, ConnectionResetError)):
        received(sock)


class Server:
    """A server in a thread; ``talk``, which tests set, is called with each connection."""

    def __init__(self, talk=received, context=None):
        self.talk = talk
        self.context = context
        self.errors = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.threads = [threading.Thread(target=self.run)]

    def join(self):
        """Wait for the connections that there are; returns what went wrong on them."""
        for thread in self.threads[1:]:
            thread.join(TIMEOUT)
            assert not thread.is_alive()
        del self.threads[1:]
        errors, self.errors = self.errors, []
        return errors

    def __enter__(self):
        self.threads[0].start()
        return self

    def run(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.threads.append(threading.Thread(target=self.serve, args=(sock,)))
            self.threads[-1].start()

    def serve(self, sock):
        sock.settimeout(TIMEOUT)
        try:
            with sock:
                if self.context is None:
                    self.talk(sock)
                    return
                with self.context.wrap_socket(
                    sock, server_side=True, suppress_ragged_eofs=False
                ) as secure:
                    self.talk(secure)
        except Exception as e:  # noqa: BLE001  (a test looks at it)
            self.errors.append(e)

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.threads[0].join(TIMEOUT)
        self.join()


def echo(sock):
    """Send back what comes, when it has ended."""
    content = received(sock)
    sock.sendall(content)
    if isinstance(sock, ssl.SSLSocket):
        end_sending(sock)


def assert_in_kernel(local, remote):
    """The end of a connection at ``local`` is in the kernel, both ways: asked of the kernel."""
    if FREEBSD:
        return  # it has no list of its connections; the program would have failed without
    (found,) = (
        info for info in pyktls.sockets() if (info.local[:2], info.remote[:2]) == (local, remote)
    )
    assert found.tx
    assert found.rx


# ---- the file server -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory, data):
    place = tmp_path_factory.mktemp("served")
    (place / "big").write_bytes(data)
    (place / "empty").touch()
    return place


@pytest.fixture(scope="module")
def running_file_server(root, pems):
    with file_server(root, pems) as server:
        server.port()
        yield server


def file_server(root, pems):
    _, cert, key = pems
    return Running("file_server", root, "--cert", cert, "--key", key, "--port", 0)


def get(port, path, version=None, method="GET"):
    connection = http.client.HTTPSConnection(
        tls.HOST, port, context=client_context(version), timeout=TIMEOUT
    )
    with contextlib.closing(connection):
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read(), response.getheader("Content-Length")


@over_versions
def test_file_server_serves(running_file_server, data, version):
    port = running_file_server.port()
    status, body, _ = get(port, "/big", version)
    assert (status, sha256(body)) == (200, sha256(data))
    assert get(port, "/empty", version) == (200, b"", "0")
    assert get(port, "/big", version, "HEAD") == (200, b"", str(len(data)))
    assert get(port, "/no", version)[0] == 404
    assert b'href="big"' in get(port, "/", version)[1]


def test_file_server_and_clients_that_misbehave(running_file_server, data):
    port = running_file_server.port()
    with plain(port) as silent, plain(port) as stranger:
        stranger.sendall(b"GET /big HTTP/1.0\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert b"HTTP/1.0 200" not in received(stranger)
        running_file_server.wait("127.0.0.1: .*(HTTP_REQUEST|http request)", err=True)
        gone = connect(port)
        gone.sendall(b"GET /big HTTP/1.0\r\n\r\n")
        gone.recv(1000)
        gone.close()  # much is left: the connection is reset
        assert sha256(get(port, "/big")[1]) == sha256(data)
        silent.sendall(b"\x16")  # it has been waited for in a thread of its own


def test_file_server_sends_to_the_end_after_sigterm(root, pems, data):
    """And then close_notify: without a length, only that tells a whole body from a part."""
    with file_server(root, pems) as server, connect(server.port()) as client:
        client.sendall(b"GET /big HTTP/1.0\r\n\r\n")
        begin = client.recv(10)
        assert_in_kernel(client.getpeername(), client.getsockname())
        server.process.terminate()
        server.wait("^stopping")
        assert (begin + received(client)).endswith(data)
        assert server.process.wait(TIMEOUT) == 0


# ---- the proxy -------------------------------------------------------------------------------


def splice_proxy(pems, upstream, *arguments):
    _, cert, key = pems
    return Running(
        "splice_proxy", f"{tls.HOST if '--tls' in arguments else '127.0.0.1'}:{upstream.port}",
        "--listen", "127.0.0.1:0", "--cert", cert, "--key", key, *arguments,
    )  # fmt: skip


class Proxied:
    """A proxy and the server behind it, for many tests."""

    def __init__(self, server, proxy):
        self.server, self.proxy = server, proxy
        self.port = proxy.port()
        self.said = list(proxy.out)
        self.tls = server.context is not None

    def afresh(self):
        """Without what another test, which may have failed, has left behind."""
        self.server.join()
        self.proxy.forget()
        return self

    def connect(self, version=None):
        return connect(self.port, version)


@pytest.fixture(scope="module")
def proxies(pems):
    with (
        Server() as of_plain,
        Server(context=tls.server_context()) as of_tls,
        splice_proxy(pems, of_plain) as to_plain,
        splice_proxy(pems, of_tls, "--tls", "--ca", pems[0]) as to_tls,
    ):
        yield {"plain": Proxied(of_plain, to_plain), "tls": Proxied(of_tls, to_tls)}


@pytest.fixture(params=["plain", "tls"])
def proxied(request, proxies):
    return proxies[request.param].afresh()


@pytest.fixture
def proxied_plain(proxies):
    return proxies["plain"].afresh()


@over_versions
def test_proxy_carries_data_both_ways(proxied, data, version):
    def talk(sock):  # TLS 1.2 has no half-closed connections, so the size is told beforehand
        size = int.from_bytes(tls.recv_exactly(sock, 8), "big")
        content = tls.recv_exactly(sock, size)
        if proxied.tls:
            assert_in_kernel(sock.getpeername(), sock.getsockname())
        sock.sendall(content[::-1])
        assert received(sock) == b""  # the end
        if proxied.tls:
            end_sending(sock)
        ends.append(sha256(content))

    ends = []
    proxied.server.talk = talk
    with proxied.connect(version) as client:
        client.sendall(len(data).to_bytes(8, "big") + data)
        assert sha256(tls.recv_exactly(client, len(data))[::-1]) == sha256(data)
        assert_in_kernel(client.getpeername(), client.getsockname())
        client.unwrap().close()  # a clean end, of both
    proxied.proxy.wait(rf"TLSv{version}, {len(data) + 8} bytes up, {len(data)} down$")
    assert proxied.server.join() == []
    assert ends == [sha256(data)]
    assert proxied.proxy.err == []


def test_proxy_splices_where_the_kernel_can(proxied):
    features = pyktls.probe().features
    for line, direction, needed in (
        (proxied.said[0], "up", ["splice_to_pipe"] + ["splice_from_pipe"] * proxied.tls),
        (proxied.said[1], "down", ["splice_to_pipe"] * proxied.tls + ["splice_from_pipe"]),
    ):
        missing = [features[name].reason for name in needed if not features[name]]
        how = f"recv and send, not by splice: {missing[0]}" if missing else "splice"
        assert line.startswith(f"{direction}: by {how}")


def test_proxy_passes_the_end_of_the_client_on(proxied, data):
    """Its end comes through, and then there is an answer."""
    proxied.server.talk = echo
    with proxied.connect() as client:
        client.sendall(data)
        end_sending(client)
        assert sha256(received(client)) == sha256(data)
    proxied.proxy.wait(f"{len(data)} bytes up, {len(data)} down$")
    assert proxied.server.join() == []
    assert proxied.proxy.err == []


def test_proxy_passes_the_end_of_the_server_on(proxied):
    def talk(sock):
        sock.sendall(b"that is all")
        if proxied.tls:
            end_sending(sock)
        else:
            sock.shutdown(socket.SHUT_WR)
        got.append(received(sock))

    got = []
    proxied.server.talk = talk
    with proxied.connect() as client:
        assert received(client) == b"that is all"
        client.sendall(b"and still this")
        end_sending(client)
        proxied.proxy.wait(": TLSv1.3, 14 bytes up, 11 down$")
    assert proxied.server.join() == []
    assert got == [b"and still this"]


def test_proxy_makes_no_end_of_a_client_that_is_cut_off(proxied):
    def talk(sock):
        assert sock.recv(100) == b"transfer 100 to"
        begun.set()
        received(sock)

    begun = threading.Event()
    proxied.server.talk = talk
    with proxied.connect() as client:
        client.sendall(b"transfer 100 to")
        assert begun.wait(TIMEOUT)
        cut_off(client)
        proxied.proxy.wait("the peer closed the connection without close_notify", err=True)
    (error,) = proxied.server.join()
    assert isinstance(error, ssl.SSLEOFError if proxied.tls else ConnectionResetError)


def test_proxy_makes_no_end_of_a_broken_record(proxied_plain):
    proxied_plain.server.talk = received
    with proxied_plain.connect() as client:
        socket.socket.sendall(client, b"\x17\x03\x03\x00\x20" + bytes(32))
        with pytest.raises(ssl.SSLError, match=r"(?i)bad.record.mac"):  # it is told so
            received(client)
        proxied_plain.proxy.wait("127.0.0.1:", err=True)
    (error,) = proxied_plain.server.join()
    assert isinstance(error, ConnectionResetError)


def test_proxy_makes_no_end_of_a_server_that_breaks_off(proxied):
    def talk(sock):
        sock.sendall(b"half an ans")
        assert sock.recv(1) == b"!"
        if proxied.tls:
            cut_off(sock)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    proxied.server.talk = talk
    with proxied.connect() as client:
        assert tls.recv_exactly(client, 11) == b"half an ans"
        client.sendall(b"!")
        assert_cut_off(client)
        proxied.proxy.wait("without close_notify|reset", err=True)
    assert proxied.server.join() == []


def test_proxy_and_strangers(proxied_plain):
    proxied_plain.server.talk = lambda sock: sock.sendall(sock.recv(1))
    proxy = proxied_plain.proxy
    with plain(proxied_plain.port) as silent, plain(proxied_plain.port) as stranger:
        stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            received(stranger)
        proxy.wait("(HTTP_REQUEST|http request)", err=True)
        with proxied_plain.connect() as client:  # nobody has to wait for the silent one
            client.sendall(b"!")
            assert client.recv(1) == b"!"
            end_sending(client)
            assert received(client) == b""
        silent.close()
        proxy.wait("EOF|reset", err=True)
    assert proxied_plain.server.join() == []


def test_proxy_carries_many_at_once(proxied_plain):
    """All are open before the first one goes on."""
    count, size = 16, 50_000
    everybody = threading.Barrier(count)
    results = []

    def one(number):
        content = random.Random(number).randbytes(size)  # noqa: S311  (no secret)
        with proxied_plain.connect() as client:
            client.sendall(content[:1000])
            everybody.wait(TIMEOUT)
            client.sendall(content[1000:])
            end_sending(client)
            results.append(received(client) == content)

    proxied_plain.server.talk = echo
    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * TIMEOUT)
    assert results == [True] * count
    proxied_plain.proxy.wait(f"{size} bytes up, {size} down$", count=count)
    assert proxied_plain.server.join() == []


def test_proxy_follows_a_change_of_keys(proxied_plain):
    """A KeyUpdate never gets on; where the kernel cannot follow, it is an error and no end."""
    proxied_plain.server.talk = echo
    with proxied_plain.connect() as client:
        client.sendall(b"before")
        tls.send_key_update(client, request=True)
        if kernel.kernel_can_rekey():
            client.sendall(b", after")
            end_sending(client)
            assert received(client) == b"before, after"
        else:
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                received(client)
            proxied_plain.proxy.wait("KeyUpdate", err=True)
    errors = proxied_plain.server.join()
    assert len(errors) == (not kernel.kernel_can_rekey())
    assert all(isinstance(error, ConnectionResetError) for error in errors)


def test_proxy_has_others_wait_and_cuts_off(pems):
    """What stands still, what is left when it is told to stop, and who comes for no server."""

    def one_more():
        socks.append(connect(proxy.port()))

    socks = []
    with (
        Server(echo) as server,
        splice_proxy(pems, server, "--connections", 1, "--grace", 0.2, "--idle", 4) as proxy,
    ):
        second = threading.Thread(target=one_more)
        with connect(proxy.port()) as first:
            first.sendall(b"first")
            second.start()
            second.join(0.5)
            assert socks == []
            end_sending(first)
            assert received(first) == b"first"
        second.join(TIMEOUT)
        with socks[0] as client:
            client.sendall(b"second")
            assert_cut_off(client)
            proxy.wait("nothing has moved for 4 s$", err=True)
        with connect(proxy.port()) as client:
            client.sendall(b"third")
            proxy.process.terminate()
            proxy.wait("^stopped, 1 connections cut off$")
            assert_cut_off(client)
            assert proxy.process.wait(TIMEOUT) == 0
        errors = server.join()
        assert [type(error) for error in errors] == [ConnectionResetError] * 2


# ---- mail ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running_mail_server(tmp_path_factory, pems):
    _, cert, key = pems
    place = tmp_path_factory.mktemp("mail")
    arguments = ("serve", place, "--cert", cert, "--key", key, "--port", 0)
    with Running("starttls_mail", *arguments) as server:
        yield server, server.port(), place


@pytest.fixture
def mail_server(running_mail_server):
    """The server, its port, and its directory, which is empty."""
    server, _, place = running_mail_server
    server.forget()
    for path in place.iterdir():
        path.unlink()
    return running_mail_server


def send(message, port, *arguments, host=tls.HOST):
    return examples.run(
        "starttls_mail", "send", message, host, "--port", port,
        "--from", "a@example.org", "--to", "b@example.org", "--to", "c@example.org", *arguments,
    )  # fmt: skip


@pytest.fixture
def message(tmp_path):
    path = tmp_path / "message"
    lines = [f".{number} {'x' * (number % 900)}" for number in range(3000)]
    path.write_bytes("\r\n".join(["Subject: dots", "", *lines, ".", "", ""]).encode())
    return path


def stored(place):
    (path,) = place.iterdir()
    assert path.suffix == ".eml"
    head, lines = b"", path.read_bytes()
    for _ in range(lines.count(b"Delivered-To: ") + 1):
        line, _, lines = lines.partition(b"\r\n")
        head += line + b"\n"
    return head, lines


def test_mail_from_the_client_to_the_server(mail_server, pems, message):
    server, port, place = mail_server
    done = send(message, port, "--ca", pems[0])
    assert (done.returncode, done.stderr) == (0, "")
    kernels = rf"sending ({SWITCHED}), receiving ({SWITCHED})"
    said = done.stdout.splitlines()
    assert re.fullmatch(f"in the kernel: {kernels}", said[0])
    assert said[1:] == [f"sent {message.stat().st_size} bytes"]
    server.wait(f"TLSv1.3, .*in the kernel: {kernels}$")
    head, body = stored(place)
    assert sha256(body) == sha256(message.read_bytes())
    assert head == (
        b"Return-Path: <a@example.org>\n"
        b"Delivered-To: <b@example.org>\nDelivered-To: <c@example.org>\n"
    )
    assert server.err == []


@over_versions
def test_mail_from_smtplib(mail_server, message, version):
    server, port, place = mail_server
    with smtplib.SMTP(tls.HOST, port, timeout=TIMEOUT) as smtp:
        with pytest.raises(smtplib.SMTPSenderRefused, match="Must issue a STARTTLS"):
            smtp.sendmail("a@b", ["c@d"], message.read_bytes())
        smtp.starttls(context=client_context(version))
        smtp.ehlo()
        assert not smtp.has_extn("starttls")
        smtp.sendmail("a@b", ["c@d"], message.read_bytes())
    server.wait(f"TLSv{version}, ")
    assert stored(place)[1] == message.read_bytes()


def say(sock, line):
    """Send a line, and read the reply to it, or the greeting."""
    sock.sendall(line)
    reply = b""
    while not (reply.endswith(b"\r\n") and reply.split(b"\r\n")[-2][3:4] == b" "):
        piece = sock.recv(1000)
        assert piece, reply
        reply += piece
    return reply


def test_mail_that_is_slipped_in_behind_starttls(mail_server):
    """CVE-2011-0411: together with it, and after the reply."""
    server, port, place = mail_server
    slipped = b"EHLO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nx\r\n.\r\n"
    with plain(port) as sock:
        assert say(sock, b"").startswith(b"220 ")
        assert say(sock, b"EHLO me\r\n").startswith(b"250-")
        assert say(sock, b"STARTTLS\r\n" + slipped).startswith(b"554 5.5.1 ")
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1000) == b""
    with plain(port) as sock:
        say(sock, b"")
        assert say(sock, b"STARTTLS\r\n").startswith(b"220 ")
        sock.sendall(slipped)
        with contextlib.suppress(ConnectionResetError):
            assert b"250" not in received(sock)
    server.wait("(?i)wrong.version.number|http.request", err=True)
    assert list(place.iterdir()) == []


def test_mail_that_is_cut_off_is_not_stored(mail_server):
    server, port, place = mail_server
    with plain(port) as tcp:
        say(tcp, b"")
        say(tcp, b"STARTTLS\r\n")
        with client_context().wrap_socket(tcp, server_hostname=tls.HOST) as sock:
            for line in (b"EHLO me", b"MAIL FROM:<a@b>", b"RCPT TO:<c@d>", b"DATA"):
                assert say(sock, line + b"\r\n")[:1] in b"23"
            sock.sendall(b"Subject: pay 1000 or\r\n")
            cut_off(sock)
            server.wait("without close_notify", err=True)
    assert list(place.iterdir()) == []


# ---- the handshake daemon and its worker -----------------------------------------------------


@pytest.fixture(scope="module")
def handshakes(pems):
    ca, cert, key = pems
    with tempfile.TemporaryDirectory() as name:
        unix = pathlib.Path(name) / "tls"
        unix.parent.chmod(0o755)
        with Running(
            "handshake_daemon", "--socket", unix, "--mode", "666",
            "--ca", ca, "--client-ca", ca, "--cert", cert, "--key", key,
        ) as daemon:  # fmt: skip
            daemon.wait("^handshakes at ")
            rights = unprivileged(key)
            with Running(
                "handshake_worker", "--socket", unix, "echo", "--port", 0, **rights
            ) as server:
                yield daemon, server, unix, server.port()
        assert not unix.exists()


def unprivileged(key):
    """Options for a process that cannot read the key, where this one can give up its own rights."""
    if os.geteuid():
        return {}
    options = {"user": 65534, "group": 65534, "extra_groups": []}
    done = subprocess.run(["cat", key], capture_output=True, check=False, **options)
    assert done.returncode != 0, "the key is there for all"
    return options


@pytest.fixture
def moving(handshakes):
    """The daemon, the worker that echoes, their Unix socket, and the worker's port."""
    for program in handshakes[:2]:
        program.forget()
    return handshakes


def connect_with_certificate(port, version=None):
    context = client_context(version)
    tls.certificate().configure_cert(context)
    return context.wrap_socket(plain(port), server_hostname=tls.HOST, suppress_ragged_eofs=False)


@over_versions
def test_worker_echoes(moving, data, version):
    daemon, server, _, port = moving
    with connect_with_certificate(port, version) as client:
        back = kernel.duplex(client, data, len(data))
        assert sha256(back) == sha256(data)
        assert_in_kernel(client.getpeername(), client.getsockname())
        client.settimeout(TIMEOUT)
        client.unwrap().close()  # its close_notify, and the worker's
    server.wait(f"^127.0.0.1: {len(data)} bytes$")
    daemon.wait(f"^'server': TLSv{version}, ")
    assert (daemon.err, server.err) == ([], [])


def test_daemon_and_clients_that_misbehave(moving):
    daemon, server, _, port = moving
    with plain(port) as silent, plain(port) as stranger:
        stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            received(stranger)
        for program in (daemon, server):
            program.wait("(HTTP_REQUEST|http request)", err=True)
        with connect(port) as client, pytest.raises(OSError):  # ssl's are such
            received(client)
        for program in (daemon, server):
            program.wait("(?i)peer.did.not.return.a.certificate", err=True)
        with connect_with_certificate(port) as client:  # which does not wait for others
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            cut_off(client)
            server.wait("without close_notify", err=True)
        silent.close()
        server.wait("EOF|reset", err=True)


def test_worker_fetches(moving, pems, data, capfd):
    def talk(sock):
        requests.append(sock.recv(1000))
        sock.sendall(b"HTTP/1.0 200 Fine\r\nServer: x\r\n\r\n" + data)
        if len(requests) == 1:
            end_sending(sock)

    requests = []
    daemon, _, unix, _ = moving
    with Server(talk, tls.server_context()) as server:
        done = examples.run(
            "handshake_worker", "--socket", unix, "fetch", tls.HOST, "/page",
            "--port", server.port, text=False, **unprivileged(pems[2]),
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, b"HTTP/1.0 200 Fine\n")
        assert sha256(done.stdout) == sha256(data)
        # The second time there is no close_notify: nobody can tell whether that was all.
        worker = examples.load("handshake_worker")
        options = ["--socket", str(unix), "fetch", tls.HOST, "/page", "--port", str(server.port)]
        with pytest.raises(pyktls.TruncationError):
            worker.fetch(worker.parse(options))
        capfd.readouterr()
        assert requests == [b"GET /page HTTP/1.0\r\nHost: localhost\r\n\r\n"] * 2
        # The certificate is for localhost.
        with pytest.raises(worker.Refused, match="CERTIFICATE_VERIFY_FAILED"):
            worker.upgrade(plain(server.port), "client 127.0.0.1", unix)
        daemon.wait("'client 127.0.0.1': .*IP address mismatch", err=True)


def test_worker_goes_on_without_the_daemon(moving):
    """The last one of these: the daemon ends."""
    daemon, server, unix, port = moving
    with connect_with_certificate(port) as client:
        client.sendall(b"one")
        assert tls.recv_exactly(client, 3) == b"one"
        daemon.stop()
        client.sendall(b"two")
        assert tls.recv_exactly(client, 3) == b"two"
        client.unwrap().close()
    with plain(port) as nobody:
        server.wait(f"{unix}: No such file or directory", err=True)
        assert nobody.recv(1) == b""


# ---- who encrypts ----------------------------------------------------------------------------


def openssl_switches(version):
    """The directions that this OpenSSL switches by itself: asked here, in the test's own words."""
    if FAKE:
        return []  # OpenSSL's calls do not come to the fake kernel
    client, server = tls.contexts(VERSIONS[version], watch=False)
    client.options |= 1 << 3
    with tls.connect(client, server) as pair:
        if FREEBSD:  # the modes: TCP_TXTLS_MODE and TCP_RXTLS_MODE
            modes = (("sending", 40), ("receiving", 42))
            return [n for n, o in modes if pair.client.getsockopt(socket.IPPROTO_TCP, o)]
        found = []
        for name, option in (("sending", linux.TLS_TX), ("receiving", linux.TLS_RX)):
            with contextlib.suppress(OSError):
                pair.client.getsockopt(linux.SOL_TLS, option, 4)
                found.append(name)
        return found


@over_versions
def test_who_encrypts(pems, version):
    openssl = openssl_switches(version)
    missing = [name for name in ("sending", "receiving") if name not in openssl]
    with Server(received, tls.server_context()) as server:
        ask = ["who_encrypts", tls.HOST, "--port", server.port, "--ca", pems[0], "--tls", version]
        both = examples.run(*ask)
    lines = both.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines[::4]] == ["OP_ENABLE_KTLS", "pyktls"]
    assert all(line.partition(": ")[2].startswith(f"TLSv{version}, ") for line in lines[::4])
    words = ["kernel" if name in openssl else "no" for name in ("sending", "receiving")]
    assert lines[2].split() == ["OpenSSL", "says", *words]
    modes = lines[3].split()[3:]
    assert [mode != "none" for mode in modes] == [word == "kernel" for word in words]
    assert re.fullmatch(rf" +the kernel says +({SWITCHED}) +({SWITCHED})", lines[7])
    if missing:
        assert both.returncode == 1
        text = f"who_encrypts: OP_ENABLE_KTLS: not in the kernel: {', '.join(missing)}; "
        assert both.stderr.startswith(text)
        assert ssl.OPENSSL_VERSION in both.stderr
    else:
        assert (both.returncode, both.stderr) == (0, "")
