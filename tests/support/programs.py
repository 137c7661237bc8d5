"""Programs that know nothing of kernel TLS, each with one line changed.

Each function in ``PROGRAMS`` lets a library of the standard library, or urllib3 or requests, do
what it is for, over TLS with an unmodified peer, and compares every byte.  ``change`` is the line:
it is given the context of the end that is ours, and of no other.  Versions are ssl.TLSVersion.

``Watcher`` looks at each of our connections when it has just been made and when it is closed.
tests/kernel/test_dropin.py runs them on a kernel with TLS, tests/unit/test_wrap_context.py where
it has none.
"""

from __future__ import annotations

import contextlib
import ftplib
import http.client
import http.server
import imaplib
import io
import logging
import pathlib
import poplib
import shutil
import smtplib
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import urllib.request
import warnings
import xmlrpc.client
import xmlrpc.server
from typing import TYPE_CHECKING, Any

import pytest

import pyktls

from . import tls
from .kernel import pattern
from .mail import ImapHandler, PopHandler

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

    from pyktls import Status

    Change = Callable[[ssl.SSLContext], ssl.SSLContext]

__all__ = ["PROGRAMS", "Watcher"]

TIMEOUT = 30.0
SIZE = 200_001
DOWN, UP = pattern(SIZE, 1), pattern(SIZE, 2)
#: A mail of some size, in lines that need no quoting.
MAIL = b"Subject: test\r\n\r\n" + b"".join(b"line %07d of the mail\r\n" % i for i in range(3000))


class Watcher:
    """What the kernel says of every connection that a context of ours made.

    ``made`` when the handshake was just over, ``closed`` when the socket is about to be closed.
    """

    def __init__(self, monkeypatch: Any) -> None:
        self.made: list[Status] = []
        self.closed: list[Status] = []
        switch, real_close = pyktls.SSLSocket._switch, pyktls.SSLSocket._real_close

        def watched_switch(sock: pyktls.SSLSocket) -> None:
            switch(sock)
            self.made.append(sock.ktls)

        def watched_close(sock: pyktls.SSLSocket) -> None:
            if sock._handshaken:  # a listener is not
                self.closed.append(sock.ktls)
            real_close(sock)

        monkeypatch.setattr(pyktls.SSLSocket, "_switch", watched_switch)
        monkeypatch.setattr(pyktls.SSLSocket, "_real_close", watched_close)


def contexts(version: ssl.TLSVersion) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    client, server = tls.client_context(), tls.server_context()
    for context in (client, server):
        context.minimum_version = context.maximum_version = version
    return client, server


# ---- servers ---------------------------------------------------------------------------------


class _Counted(socketserver.ThreadingMixIn):
    """Waits for its threads at the end, and keeps what went wrong in them."""

    daemon_threads = False
    block_on_close = True

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        error = sys.exception()
        assert error is not None
        self.errors.append(error)

    @property
    def errors(self) -> list[BaseException]:
        return self.__dict__.setdefault("_errors", [])


class HTTPServer(_Counted, http.server.HTTPServer):
    pass


class TCPServer(_Counted, socketserver.TCPServer):
    context: ssl.SSLContext
    message = b""


class XMLRPCServer(_Counted, xmlrpc.server.SimpleXMLRPCServer):
    pass


@contextlib.contextmanager
def serving(server: Any) -> Iterator[int]:
    """Run a socketserver in a thread; gives the port.  What it raised is raised at the end."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join(TIMEOUT)
        server.server_close()
    for error in server.errors:
        raise error


class Handler(http.server.BaseHTTPRequestHandler):
    """GET gives DOWN, /file from a file with sendfile; POST expects UP and answers as GET.

    After /last the server closes: urllib3 leaves that to the garbage collection.
    """

    protocol_version = "HTTP/1.1"
    file: pathlib.Path

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(SIZE))
        if self.path == "/last":
            self.send_header("Connection", "close")
        self.end_headers()
        if self.path == "/file":
            with self.file.open("rb") as file:
                self.connection.sendfile(file)
        else:
            self.wfile.write(DOWN)

    def do_POST(self) -> None:
        assert self.rfile.read(int(self.headers["Content-Length"])) == UP
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def https_server(context: ssl.SSLContext) -> Iterator[int]:
    """http.server as the documentation shows it: the listening socket is wrapped."""
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory, "file")
        file.write_bytes(DOWN)
        server = HTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"file": file}))
        server.socket = context.wrap_socket(server.socket, server_side=True)
        with serving(server) as port:
            yield port


# ---- we are the client -----------------------------------------------------------------------


def http_client(change: Change, version: ssl.TLSVersion) -> None:
    client, server = contexts(version)
    with https_server(server) as port:
        connection = http.client.HTTPSConnection(
            tls.HOST, port, context=change(client), timeout=TIMEOUT
        )
        for method, body in (("GET", None), ("POST", UP), ("GET", None)):  # one connection
            connection.request(method, "/", body)
            with connection.getresponse() as response:
                assert response.status == 200
                assert response.read() == DOWN
        connection.close()


def urllib_request(change: Change, version: ssl.TLSVersion) -> None:
    client, server = contexts(version)
    with https_server(server) as port:
        url = f"https://{tls.HOST}:{port}/"
        change(client)
        for data in (None, UP):
            with urllib.request.urlopen(url, data, TIMEOUT, context=client) as response:
                assert response.read() == DOWN


def urllib3_client(change: Change, version: ssl.TLSVersion) -> None:
    import urllib3  # noqa: PLC0415

    def run(port: int) -> None:
        url = f"https://{tls.HOST}:{port}/"
        with urllib3.PoolManager(
            ssl_context=change(client), timeout=TIMEOUT, retries=False
        ) as pool:
            for method, body in (("GET", None), ("POST", UP)):
                assert pool.request(method, url, body=body).data == DOWN
            response = pool.request("GET", url + "last", preload_content=False)
            assert b"".join(response.stream(65536)) == DOWN

    client, server = contexts(version)
    with https_server(server) as port:
        run(port)


def requests_client(change: Change, version: ssl.TLSVersion) -> None:
    import requests  # noqa: PLC0415
    from requests.adapters import HTTPAdapter  # noqa: PLC0415

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> Any:
            return super().init_poolmanager(*args, ssl_context=client, **kwargs)

    def run(port: int) -> None:
        with tempfile.NamedTemporaryFile() as ca, requests.Session() as session:
            tls.authority().cert_pem.write_to_path(ca.name)
            session.mount("https://", Adapter())
            session.trust_env = False
            session.verify = ca.name  # it does not ask the context
            url = f"https://{tls.HOST}:{port}/"
            assert session.get(url, timeout=TIMEOUT).content == DOWN
            data = io.BytesIO(UP)
            with session.post(url + "last", data, timeout=TIMEOUT, stream=True) as response:
                assert b"".join(response.iter_content(65536)) == DOWN

    client, server = contexts(version)
    change(client)
    with https_server(server) as port:
        run(port)


def smtplib_starttls(change: Change, version: ssl.TLSVersion) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it imports what 3.17 will not have
        from aiosmtpd.controller import Controller  # noqa: PLC0415

    client, server = contexts(version)
    got: list[bytes] = []

    class Keep:
        async def handle_DATA(self, _: Any, session: Any, envelope: Any) -> str:  # noqa: N802
            assert session.ssl is not None
            got.append(envelope.content)
            return "250 OK"

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    controller = Controller(
        Keep(), "127.0.0.1", port, tls_context=server, require_starttls=True, ready_timeout=TIMEOUT
    )
    controller.start()
    try:
        with smtplib.SMTP(tls.HOST, port, timeout=TIMEOUT) as smtp:
            smtp.starttls(context=change(client))
            smtp.sendmail("one@example.org", ["two@example.org"], MAIL)
    finally:
        controller.stop()
    assert got == [MAIL]


@contextlib.contextmanager
def ftps_server(version: ssl.TLSVersion, directory: str) -> Iterator[int]:
    """pyftpdlib, whose TLS is pyOpenSSL's; it insists on TLS for control and data."""
    from OpenSSL import SSL  # noqa: PLC0415

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.11's asyncore
        from pyftpdlib.authorizers import DummyAuthorizer  # noqa: PLC0415
        from pyftpdlib.handlers import TLS_FTPHandler  # noqa: PLC0415
        from pyftpdlib.servers import FTPServer  # noqa: PLC0415

    logging.getLogger("pyftpdlib").setLevel(logging.ERROR)
    pem = pathlib.Path(directory, "..", "server.pem").resolve()
    tls.certificate().private_key_and_cert_chain_pem.write_to_path(pem)
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(version)
    context.set_max_proto_version(version)
    context.use_certificate_chain_file(str(pem))
    context.use_privatekey_file(str(pem))
    authorizer = DummyAuthorizer()
    authorizer.add_user("user", "password", directory, perm="elrw")

    class FTPHandler(TLS_FTPHandler):
        ssl_context = context
        certfile = str(pem)
        tls_control_required = tls_data_required = True

    FTPHandler.authorizer = authorizer
    server = FTPServer(("127.0.0.1", 0), FTPHandler)
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            server.serve_forever(timeout=0.02, blocking=False, handle_exit=False)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield server.address[1]
    finally:
        stop.set()
        thread.join(TIMEOUT)
        server.close_all()


def ftplib_protected(change: Change, version: ssl.TLSVersion) -> None:
    client, _ = contexts(version)
    with tempfile.TemporaryDirectory() as above:
        directory = pathlib.Path(above, "files")
        directory.mkdir()
        (directory / "down").write_bytes(DOWN)
        with ftps_server(version, str(directory)) as port:
            with ftplib.FTP_TLS(context=change(client), timeout=TIMEOUT) as ftp:  # noqa: S321
                ftp.connect("127.0.0.1", port)
                ftp.host = tls.HOST  # the name in the certificate
                ftp.login("user", "password")
                ftp.prot_p()
                received = bytearray()
                ftp.retrbinary("RETR down", received.extend)
                assert received == DOWN
                ftp.storbinary("STOR up", io.BytesIO(UP))
                assert sorted(ftp.nlst()) == ["down", "up"]
                ftp.quit()
            assert (directory / "up").read_bytes() == UP


@contextlib.contextmanager
def mail_server(handler: type, context: ssl.SSLContext, *, at_once: bool) -> Iterator[int]:
    server = TCPServer(("127.0.0.1", 0), handler)
    server.context, server.message = context, MAIL
    if at_once:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    with serving(server) as port:
        yield port


def imaplib_both_ways(change: Change, version: ssl.TLSVersion) -> None:
    client, server = contexts(version)
    change(client)
    for at_once in (True, False):
        with mail_server(ImapHandler, server, at_once=at_once) as port:
            if at_once:
                imap: imaplib.IMAP4 = imaplib.IMAP4_SSL(
                    tls.HOST, port, ssl_context=client, timeout=TIMEOUT
                )
            else:
                imap = imaplib.IMAP4(tls.HOST, port, timeout=TIMEOUT)
                imap.starttls(client)
            imap.login("user", "password")
            assert imap.select() == ("OK", [b"1"])
            assert imap.fetch("1", "(RFC822)")[1][0][1] == MAIL
            imap.logout()


def poplib_both_ways(change: Change, version: ssl.TLSVersion) -> None:
    client, server = contexts(version)
    change(client)
    for at_once in (True, False):
        with mail_server(PopHandler, server, at_once=at_once) as port:
            if at_once:
                pop: poplib.POP3 = poplib.POP3_SSL(tls.HOST, port, context=client, timeout=TIMEOUT)
            else:
                pop = poplib.POP3(tls.HOST, port, timeout=TIMEOUT)
                pop.stls(client)
            pop.user("user")
            pop.pass_("password")
            assert pop.stat() == (1, len(MAIL))
            assert b"".join(line + b"\r\n" for line in pop.retr(1)[1]) == MAIL
            pop.quit()


# ---- xmlrpc: we are one end, then the other --------------------------------------------------


def xmlrpc_over(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
    rpc = XMLRPCServer(("127.0.0.1", 0), logRequests=False)
    rpc.register_function(lambda data: xmlrpc.client.Binary(data.data[::-1]), "reverse")
    rpc.socket = server.wrap_socket(rpc.socket, server_side=True)
    with (
        serving(rpc) as port,
        xmlrpc.client.ServerProxy(f"https://{tls.HOST}:{port}", context=client) as proxy,
    ):
        for data in (UP, DOWN):
            assert proxy.reverse(xmlrpc.client.Binary(data)).data == data[::-1]


def xmlrpc_client(change: Change, version: ssl.TLSVersion) -> None:
    client, server = contexts(version)
    xmlrpc_over(change(client), server)


def xmlrpc_server(change: Change, version: ssl.TLSVersion) -> None:
    client, server = contexts(version)
    xmlrpc_over(client, change(server))


# ---- we are the server -----------------------------------------------------------------------


def http_server(change: Change, version: ssl.TLSVersion) -> None:
    """ThreadingHTTPServer's file by sendfile; http.client over plain ssl asks for it."""
    client, server = contexts(version)
    with https_server(change(server)) as port:
        connection = http.client.HTTPSConnection(tls.HOST, port, context=client, timeout=TIMEOUT)
        for method, path, body in (
            ("GET", "/file", None),
            ("POST", "/", UP),
            ("GET", "/file", None),
        ):
            connection.request(method, path, body)
            with connection.getresponse() as response:
                assert response.read() == DOWN
        connection.close()


def http_server_and_curl(change: Change, version: ssl.TLSVersion) -> None:
    program = shutil.which("curl")
    if not program and tls.REAL_FREEBSD:
        pytest.skip("no curl: docs/freebsd.md names the packages that the tests want")
    assert program, "curl is needed"
    _, server = contexts(version)
    with tempfile.TemporaryDirectory() as directory, https_server(change(server)) as port:
        ca = pathlib.Path(directory, "ca.pem")
        tls.authority().cert_pem.write_to_path(ca)
        url = f"https://{tls.HOST}:{port}/file"
        up = pathlib.Path(directory, "up")
        up.write_bytes(UP)
        for extra in ([], ["--data-binary", f"@{up}", "-H", "Expect:"]):
            done = subprocess.run(
                [program, "-sS", "--noproxy", "*", "--max-time", "30", "--cacert", ca, *extra, url],
                capture_output=True,
                check=False,
            )
            assert (done.returncode, done.stderr) == (0, b"")
            assert done.stdout == DOWN


class Echo(socketserver.StreamRequestHandler):
    """A line with a number, and so many bytes, which go back."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(self.rfile.read(int(line)))
        self.connection.unwrap()


def socketserver_streams(change: Change, version: ssl.TLSVersion) -> None:
    client, server = contexts(version)
    echo = TCPServer(("127.0.0.1", 0), Echo)
    echo.socket = change(server).wrap_socket(echo.socket, server_side=True)
    with serving(echo) as port:
        for _ in range(2):
            tcp = socket.create_connection(("127.0.0.1", port), TIMEOUT)
            with client.wrap_socket(tcp, server_hostname=tls.HOST) as sock:
                for data in (b"short", UP, b"x"):
                    sock.sendall(b"%d\n" % len(data) + data)
                    assert tls.recv_exactly(sock, len(data)) == data
                sock.unwrap()


PROGRAMS = {
    program.__name__: program
    for program in (
        http_client,
        urllib_request,
        urllib3_client,
        requests_client,
        smtplib_starttls,
        ftplib_protected,
        imaplib_both_ways,
        poplib_both_ways,
        xmlrpc_client,
        xmlrpc_server,
        http_server,
        http_server_and_curl,
        socketserver_streams,
    )
}
