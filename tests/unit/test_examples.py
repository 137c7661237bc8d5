"""What the programs in examples/ do without kernel TLS: options, the rules of SMTP, plain sockets.

The programs themselves run in tests/kernel/test_examples.py.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import contextlib
import errno
import os
import pathlib
import re
import resource
import signal
import smtplib
import socket
import ssl
import sys
import threading
import time
from types import SimpleNamespace

import pytest

import pyktls
from support import examples, tls
from support.examples import DIRECTORY, NAMES, ROOT
from support.systems import linux_only

proxy = examples.load("splice_proxy")
mail = examples.load("starttls_mail")
daemon = examples.load("handshake_daemon")
worker = examples.load("handshake_worker")
who = examples.load("who_encrypts")


# ---- all of them -----------------------------------------------------------------------------


def test_the_list_in_the_readme_is_complete():
    listed = re.findall(
        r"^\| \[(\w+)\.py\]\((\w+)\.py\) \|", (DIRECTORY / "README.md").read_text(), re.MULTILINE
    )
    assert sorted(name for name, _ in listed) == NAMES
    assert all(name == target for name, target in listed)
    assert "graft examples" in (ROOT / "MANIFEST.in").read_text().splitlines()


@pytest.mark.parametrize("name", NAMES)
def test_only_public_names_are_used(name):
    tree = ast.parse((DIRECTORY / f"{name}.py").read_text())
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith("pyktls")
        if isinstance(node, ast.Import):
            assert all(not alias.name.startswith("pyktls.") for alias in node.names)
        if isinstance(node, ast.Attribute):
            own = isinstance(node.value, ast.Name) and node.value.id == "self"
            assert own or not node.attr.startswith("_") or node.attr.endswith("__"), node.attr
            if isinstance(node.value, ast.Name) and node.value.id == "pyktls":
                used.add(node.attr)
    assert used
    assert used <= set(pyktls.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_help_and_usage(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    module = examples.load(name)
    with pytest.raises(SystemExit) as caught:
        module.parse(["--help"])
    assert caught.value.code == 0
    out, err = capsys.readouterr()
    assert (out[:7], err) == ("usage: ", "")
    assert max(map(len, out.splitlines())) <= 80
    with pytest.raises(SystemExit) as caught:
        module.parse(["--no-such-option"])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "error: " in err


# ---- the proxy: options ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("localhost:80", ("localhost", 80)),
        ("[::1]:443", ("::1", 443)),
        ("::1:443", ("::1", 443)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
    ],
)
def test_proxy_addresses(text, found):
    assert proxy.address(text) == found


@pytest.mark.parametrize("text", ["", "localhost", ":80", "localhost:", "a:65536", "a:-1", "a:²"])
def test_proxy_bad_addresses(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not HOST:PORT"):
        proxy.address(text)


def test_proxy_options(capsys):
    given = ["--cert", "c.pem", "localhost:80"]
    options = proxy.parse(given)
    assert options.upstream == ("localhost", 80)
    assert options.listen == ("127.0.0.1", 8443)
    assert not options.tls
    for wrong in (["--ca", "ca.pem"], ["--connections", "0"], ["--listen", "x"]):
        with pytest.raises(SystemExit) as caught:
            proxy.parse([*given, *wrong])
        assert caught.value.code == 2
        assert wrong[0] in capsys.readouterr().err


def test_proxy_asks_for_descriptors(monkeypatch):
    limits = [(100, 1000)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    proxy.raise_limit(10)
    assert len(limits) == 1
    proxy.raise_limit(100)
    assert limits[1:] == [(632, 1000)]
    with pytest.raises(OSError, match="200 connections need 1232 descriptors, and the limit is"):
        proxy.raise_limit(200)


@pytest.mark.parametrize("features", [(True, True), (True, False), (False, True), (False, False)])
def test_proxy_splices_where_each_tls_side_can(monkeypatch, features):
    """A plain side needs nothing of the kernel's TLS."""
    answers = [
        pyktls.Answer(yes, f"reason {number}", f"remedy {number}")
        for number, yes in enumerate(features)
    ]
    found = dict(zip(("splice_to_pipe", "splice_from_pipe"), answers, strict=True))
    monkeypatch.setattr(pyktls, "probe", lambda: SimpleNamespace(features=found))
    out_of, into = (None if yes else f"reason {n}; remedy {n}" for n, yes in enumerate(features))
    assert proxy.reason_to_copy(True, False) == out_of
    assert proxy.reason_to_copy(False, True) == into
    assert proxy.reason_to_copy(True, True) == (out_of or into)


# ---- the proxy: between plain sockets --------------------------------------------------------


def plain_pair():
    """A PlainSocket, as the proxy has it, and what is at its other end."""
    near, far = tls.tcp_pair()
    sock = proxy.PlainSocket(near.family, near.type, near.proto, fileno=near.detach())
    sock.setblocking(False)
    return sock, far


COPY = None if hasattr(os, "splice") else "this system has no splice"


class Carried:
    """A proxy that carries one connection between two plain sockets, in a thread."""

    def __init__(self, reasons=(COPY, COPY), idle=20.0):
        self.proxy = object.__new__(proxy.Proxy)
        self.proxy.idle = idle
        self.proxy.reasons = reasons
        self.result = self.error = None
        self.ends = []

    def __enter__(self):
        (self.client, self.left), (self.upstream, self.right) = plain_pair(), plain_pair()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        return self

    def run(self):
        try:
            self.result = asyncio.run(self.proxy.carry(self.client, self.upstream))
        except BaseException as e:  # noqa: BLE001
            self.error = e
            self.client.abandon()
            self.upstream.abandon()

    def join(self):
        self.thread.join(tls.TIMEOUT)
        assert not self.thread.is_alive()

    def __exit__(self, *_):
        self.left.close()
        self.right.close()
        self.join()
        self.client.close()
        self.upstream.close()


def received(sock):
    return b"".join(iter(lambda: sock.recv(65536), b""))


over_ways = pytest.mark.parametrize(
    "reason", [pytest.param(None, marks=linux_only, id="splice"), pytest.param("no", id="copy")]
)


@over_ways
def test_carry_both_ways_with_an_end_each(reason):
    data = os.urandom(3_000_000)
    with Carried((reason, reason)) as carried:
        sender = threading.Thread(
            target=lambda: (carried.left.sendall(data), carried.left.shutdown(1))
        )
        sender.start()
        assert received(carried.right) == data  # up to the end, which has come through
        sender.join()
        carried.right.sendall(b"an answer after the end")
        assert carried.left.recv(100) == b"an answer after the end"
        carried.right.shutdown(socket.SHUT_WR)
        assert carried.left.recv(100) == b""
        carried.join()
        assert carried.result == (3_000_000, 23)


@over_ways
def test_carry_makes_no_end_of_an_error(reason):
    with Carried((reason, reason)) as carried:
        carried.left.sendall(b"half a mess")
        assert carried.right.recv(100) == b"half a mess"
        carried.left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        carried.left.close()
        with pytest.raises(ConnectionResetError):
            carried.right.recv(100)
    assert isinstance(proxy.first(carried.error), ConnectionResetError)


def test_carry_ends_what_stands_still():
    with Carried(idle=0.2) as carried:
        with pytest.raises(ConnectionResetError):
            carried.right.recv(100)
        with pytest.raises(ConnectionResetError):
            carried.left.recv(100)
    assert str(carried.error) == "nothing has moved for 0.2 s"


def test_carry_is_not_idle_while_one_direction_moves():
    with Carried(idle=1.0) as carried:
        for _ in range(8):
            carried.left.sendall(b"x")
            assert carried.right.recv(1) == b"x"
            threading.Event().wait(0.25)
        carried.left.shutdown(socket.SHUT_WR)
        carried.right.shutdown(socket.SHUT_WR)
        carried.join()
    assert carried.result == (8, 0)


def test_proxy_knows_its_server(monkeypatch):
    """Ours is none of the system's authorities."""
    server = tls.server_context()

    def talk():
        with pytest.raises(ssl.SSLError, match=r"(?i)unknown.ca"):
            server.wrap_socket(listener.accept()[0], server_side=True)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        upstream = "localhost", listener.getsockname()[1]
        monkeypatch.setattr(proxy, "reason_to_copy", lambda *_: None)
        found = proxy.Proxy(server, upstream, ssl.create_default_context(), idle=1.0, connections=1)
        thread = threading.Thread(target=talk)
        thread.start()
        with pytest.raises(ssl.SSLCertVerificationError):
            asyncio.run(found.connect())
        thread.join()
    with pytest.raises(ConnectionRefusedError):
        asyncio.run(found.connect())


# ---- mail: the client ------------------------------------------------------------------------


def send(tmp_path, port, *more):
    path = tmp_path / "message"
    path.write_bytes(b"Subject: secret\r\n\r\n")
    given = ["send", str(path), "localhost", "--port", str(port), "--from", "a@b", "--to", "c@d"]
    return mail.send(mail.parse([*given, *more]))


def answering(listener, replies, got):
    """A server that says what it is told to, and takes down what it hears."""

    def talk():
        sock, _ = listener.accept()
        sock.settimeout(tls.TIMEOUT)
        with sock:
            sock.sendall(b"220 ready\r\n")
            while data := sock.recv(1000):
                got.append(data[:8].strip().lower())
                sock.sendall(replies.get(got[-1][:8].split()[0], b"500 what?\r\n"))

    thread = threading.Thread(target=talk)
    thread.start()
    return thread


def test_mail_is_not_sent_in_plain_text(tmp_path):
    """Somebody on the way has taken STARTTLS out of the reply."""
    got = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        replies = {b"ehlo": b"250 ok\r\n", b"quit": b"221 bye\r\n"}
        thread = answering(listener, replies, got)
        with pytest.raises(smtplib.SMTPNotSupportedError):
            send(tmp_path, listener.getsockname()[1])
        thread.join()
    assert [line.split()[0] for line in got] == [b"ehlo", b"quit"]


def test_mail_is_not_sent_to_somebody_else(tmp_path):
    """The server's certificate is of our authority, which is none of the system's."""
    context = tls.server_context()
    with mail.Server(("127.0.0.1", 0), tmp_path / "none", context) as server:
        failures = []
        server.handle_error = lambda *_: failures.append(sys.exc_info()[1])
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            with pytest.raises(ssl.SSLCertVerificationError):
                send(tmp_path, server.socket.getsockname()[1])
            limit = time.monotonic() + tls.TIMEOUT
            while not failures and time.monotonic() < limit:
                time.sleep(0.01)
        finally:
            server.shutdown()
            thread.join()
    (error,) = failures
    assert error.reason == "TLSV1_ALERT_UNKNOWN_CA"


# ---- programs that cannot start --------------------------------------------------------------


@pytest.mark.parametrize("name", ["file_server", "splice_proxy", "starttls_mail"])
def test_without_a_certificate(name, tmp_path, capsys, monkeypatch):
    module = examples.load(name)
    given = {
        "file_server": [str(tmp_path)],
        "splice_proxy": ["localhost:1", "--connections", "1"],
        "starttls_mail": ["serve", str(tmp_path)],
    }[name]
    monkeypatch.setattr(module, "why_not", lambda: None)  # as if the kernel had TLS
    monkeypatch.setattr(sys, "argv", [name, *given, "--cert", str(tmp_path / "none.pem")])
    assert module.main() == 1
    which = f": '{tmp_path}/none.pem'" if sys.version_info >= (3, 15) else ""
    assert capsys.readouterr() == ("", f"{name}: [Errno 2] No such file or directory{which}\n")


def test_daemon_whose_place_is_taken(tmp_path, capsys, monkeypatch):
    taken = tmp_path / "tls"
    taken.touch()
    monkeypatch.setattr(daemon, "why_not", lambda: None)
    monkeypatch.setattr(sys, "argv", ["handshake_daemon", "--socket", str(taken)])
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert daemon.main() == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    out, err = capsys.readouterr()
    assert out == ""
    number = errno.EADDRINUSE
    assert err == f"handshake_daemon: [Errno {number}] {os.strerror(number)}\n"
    assert taken.exists()  # it is somebody else's


# ---- mail: the dialogue ----------------------------------------------------------------------


def test_mail_options(capsys):
    options = mail.parse(
        ["send", "m.eml", "localhost", "--from", "a@b", "--to", "c@d", "--to", "e@f"]
    )
    assert options.recipients == ["c@d", "e@f"]
    assert options.run is mail.send
    for wrong in ([], ["serve", "."], ["send", "m.eml", "localhost"], ["fetch"]):
        with pytest.raises(SystemExit) as caught:
            mail.parse(wrong)
        assert caught.value.code == 2
    capsys.readouterr()


def say(dialogue, line, *, more=False):
    return dialogue.command(line, more=more)


def code(reply):
    return int(reply.text.split("\r\n")[-1][:3])


def keywords(reply):
    return {line[4:].split()[0] for line in reply.text.split("\r\n")[1:]}


def test_nothing_but_starttls_before_tls():
    """RFC 3207 section 4."""
    dialogue = mail.Dialogue("host")
    assert "STARTTLS" in keywords(say(dialogue, b"EHLO me"))
    for line in (b"MAIL FROM:<a@b>", b"RCPT TO:<a@b>", b"DATA", b"RSET", b"VRFY x", b"", b"AUTH X"):
        reply = say(dialogue, line)
        assert code(reply) == 530
        assert reply.next is mail.Next.COMMAND
    assert dialogue.sender is None
    assert code(say(dialogue, b"noop")) == 250
    assert code(say(dialogue, b"STARTTLS now")) == 501
    assert say(dialogue, b"QUIT").next is mail.Next.END
    reply = say(dialogue, b"starttls")
    assert (code(reply), reply.next) == (220, mail.Next.TLS)


def test_what_stands_behind_starttls_ends_it():
    """CVE-2011-0411."""
    reply = say(mail.Dialogue("host"), b"STARTTLS", more=True)
    assert (code(reply), reply.next) == (554, mail.Next.END)
    # With any other command that is pipelining.
    reply = say(mail.Dialogue("host"), b"EHLO me", more=True)
    assert (code(reply), reply.next) == (250, mail.Next.COMMAND)


def test_under_tls():
    dialogue = mail.Dialogue("host", secure=True)
    assert code(say(dialogue, b"MAIL FROM:<a@b>")) == 503  # not greeted again
    assert "STARTTLS" not in keywords(say(dialogue, b"EHLO me"))
    assert code(say(dialogue, b"STARTTLS")) == 503
    assert code(say(dialogue, b"RCPT TO:<c@d>")) == 503
    assert code(say(dialogue, b"DATA")) == 503
    assert code(say(dialogue, b"MAIL FROM:<a@b> SIZE=100 BODY=8BITMIME")) == 250
    assert code(say(dialogue, b"MAIL FROM:<a@b>")) == 503
    assert code(say(dialogue, b"rcpt to:<c@d>")) == 250
    assert code(say(dialogue, b"RCPT TO:<@x,@y:e@f>")) == 250
    assert (dialogue.sender, dialogue.recipients) == ("a@b", ["c@d", "e@f"])
    reply = say(dialogue, b"DATA")
    assert (code(reply), reply.next) == (354, mail.Next.MESSAGE)
    assert code(say(dialogue, b"RSET")) == 250
    assert (dialogue.sender, dialogue.recipients) == (None, [])
    assert code(say(dialogue, b"MAIL FROM:<>")) == 250  # a bounce
    assert code(say(dialogue, b"HELO me")) == 250
    assert dialogue.sender is None


@pytest.mark.parametrize(
    ("line", "number"),
    [
        (b"MAIL FROM:a@b", 501),
        (b"MAIL FROM:<a b>", 501),
        (b"MAIL FROM:<a\r\nX: y>", 501),
        (b"MAIL TO:<a@b>", 501),
        (b"MAIL FROM:<a@b> SIZE=999999999999", 552),
        (b"RCPT TO:<>", 501),
        (b"DATA now", 500),
        (b"EHLO", 501),
        (b"MAIL FROM:<\xff@b>", 500),
        (b"TURN", 500),
    ],
)
def test_what_is_wrong_is_said(line, number):
    dialogue = mail.Dialogue("host", secure=True, greeted=True)
    reply = say(dialogue, line)
    assert (code(reply), reply.next) == (number, mail.Next.COMMAND)
    assert dialogue.sender is None


def test_recipients_have_a_limit():
    dialogue = mail.Dialogue("host", secure=True, greeted=True)
    say(dialogue, b"MAIL FROM:<a@b>")
    answers = [code(say(dialogue, b"RCPT TO:<c@d>")) for _ in range(mail.MOST_RECIPIENTS + 1)]
    assert answers == [250] * mail.MOST_RECIPIENTS + [452]


# ---- mail: lines -----------------------------------------------------------------------------


@contextlib.contextmanager
def sent(data):
    """Lines of what a client has sent, which has ended then."""
    one, two = socket.socketpair()

    def send():
        with contextlib.suppress(OSError):  # the reader may have seen enough, and gone
            two.sendall(data)
            two.shutdown(socket.SHUT_WR)

    with one, two:
        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield mail.Lines(one)
        finally:
            one.close()  # before the thread, which may still be sending
            thread.join()


def test_lines():
    with sent(b"one\r\ntwo\r\n\r\nrest") as lines:
        assert not lines.more()
        assert lines.read(100) == b"one"
        assert lines.more()
        assert lines.read(100) == b"two"
        assert lines.read(100) == b""
        assert lines.read(100) is None


@pytest.mark.parametrize(
    "data", [b"x" * 101 + b"\r\n", b"x" * 200, b"a\nb\r\n", b"a\rb\r\n", b"\n\r\n"]
)
def test_lines_that_are_refused(data):
    with sent(data) as lines, pytest.raises(mail.Broken):
        lines.read(100)


def test_a_message():
    with sent(b"Subject: x\r\n\r\n..dot\r\n.\r\nQUIT\r\n") as lines:
        assert b"".join(lines.message()) == b"Subject: x\r\n\r\n.dot\r\n"
        assert lines.read(100) == b"QUIT"


@pytest.mark.parametrize("end", [b"\n.\r\n", b"\r\n.\n", b"\r.\r\n", b"\n.\n"])
def test_a_message_has_one_end_only(end):
    """CVE-2023-51764."""
    with sent(b"text" + end + b"MAIL FROM:<a@b>\r\n.\r\n") as lines, pytest.raises(mail.Broken):
        list(lines.message())


def test_a_message_that_is_cut_off_or_too_large(monkeypatch):
    with sent(b"text\r\n") as lines, pytest.raises(ConnectionResetError):
        list(lines.message())
    monkeypatch.setattr(mail, "LARGEST_MESSAGE", 11)
    with sent(b"text\r\ntext\r\n.\r\n") as lines, pytest.raises(mail.Broken, match="552"):
        list(lines.message())


# ---- the handshake daemon --------------------------------------------------------------------


def test_daemon_options(capsys):
    options = daemon.parse(["--socket", "s", "--mode", "600"])
    assert options.mode == 0o600
    for wrong in (["--key", "k"], ["--client-ca", "c"], ["--mode", "888"], ["--mode", "7777"]):
        with pytest.raises(SystemExit) as caught:
            daemon.parse(["--socket", "s", *wrong])
        assert caught.value.code == 2
    capsys.readouterr()


def test_worker_options(capsys):
    given = ["--socket", "s"]
    assert worker.parse([*given, "fetch", "host", "/x"]).run is worker.fetch
    assert worker.parse([*given, "echo"]).run is worker.echo
    for wrong in ([], ["fetch", "host"], ["fetch", "host", "/ x"], ["fetch", "h\r\n", "/"]):
        with pytest.raises(SystemExit) as caught:
            worker.parse([*given, *wrong])
        assert caught.value.code == 2
    capsys.readouterr()


@contextlib.contextmanager
def daemon_thread(path, server_context):
    client = tls.client_context()
    with daemon.Daemon(path, 0o640, client, server_context) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            running.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("daemon") / "tls"
    with daemon_thread(path, None):
        yield path


def ask(path, what, *socks):
    """What the daemon answers to a request with those descriptors."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as unix:
        unix.settimeout(tls.TIMEOUT)
        unix.connect(str(path))
        socket.send_fds(unix, [what], [sock.fileno() for sock in socks])
        return unix.recv(1024).decode()


def test_the_unix_socket_has_the_mode_that_was_asked_for(place):
    assert place.stat().st_mode & 0o777 == 0o640


def test_daemon_refuses_what_is_no_request(place):
    near, far = tls.tcp_pair()
    unix = socket.socketpair()
    with near, far, unix[0], unix[1], pathlib.Path(os.devnull).open("rb") as file:
        roles = 'error "client NAME" or "server" is needed'
        assert ask(place, b"server") == "error one descriptor is needed, not 0"
        assert ask(place, b"server", near, far) == "error one descriptor is needed, not 2"
        for what in (b"client", b"client ", b"serve", b"server x", b"\xff"):
            assert ask(place, what, near) == roles
        assert ask(place, b"server", near) == "error this daemon has no certificate (--cert)"
        assert ask(place, b"client localhost", unix[0]) == "error the descriptor is no TCP socket"
        assert ask(place, b"client localhost", file).startswith(f"error [Errno {errno.ENOTSOCK}]")
        # Nothing of it is left open in the daemon, and nothing was said to the peer.
        near.close()
        assert far.recv(100) == b""


def test_daemon_says_what_a_handshake_has_failed_of(place):
    near, far = tls.tcp_pair()
    with near, far:
        far.sendall(b"220 this is no TLS\r\n")
        answer = ask(place, b"client localhost", near)
        near.close()
        assert answer.startswith("error [SSL")
        assert far.recv(10000).startswith(b"\x16\x03\x01")  # it was the daemon that spoke


def test_worker_says_what_the_daemon_says(place):
    near, far = tls.tcp_pair()
    with far:
        with pytest.raises(worker.Refused, match=r"^this daemon has no certificate \(--cert\)$"):
            worker.upgrade(near, "server", place)
        assert near.fileno() == -1
        assert far.recv(100) == b""


def test_worker_without_a_daemon(tmp_path):
    near, far = tls.tcp_pair()
    with far:
        with pytest.raises(FileNotFoundError, match="nobody: No such file"):
            worker.upgrade(near, "server", tmp_path / "nobody")
        assert near.fileno() == -1


# ---- who encrypts ----------------------------------------------------------------------------


def finding(tx, rx, **more):
    status = pyktls.Status("tls", 0x0304, "AES_128_GCM", tx, rx, **more)
    return who.Finding("OP_ENABLE_KTLS", "TLSv1.3, SUITE", status)


def test_a_finding():
    found = finding(pyktls.Mode.SOFTWARE, pyktls.Mode.NONE, openssl_tx=True, openssl_rx=False)
    assert found.missing() == ["receiving"]
    assert found.lines() == [
        "OP_ENABLE_KTLS: TLSv1.3, SUITE",
        "                    sending     receiving",
        "    OpenSSL says    kernel      no",
        "    the kernel says software    none",
    ]
    found = finding(pyktls.Mode.KERNEL, pyktls.Mode.DEVICE)
    assert found.missing() == []
    assert found.lines()[2] == "    OpenSSL says    -           -"


def test_no_connection():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = examples.run("who_encrypts", "127.0.0.1", "--port", port)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("who_encrypts: [Errno")
