"""pyktls serve: the command, as a user runs it, and its certificates."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import re
import resource
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
import tomllib
import types
from typing import Any, Self

import h11
import pytest

from pyktls import Error, Unavailable, serve
from pyktls.__main__ import main
from pyktls.serve import certificates, command
from support import tls
from support.serving import TIMEOUT, get, unfolded

ROOT = pathlib.Path(__file__).resolve().parents[2]
SERVE = [sys.executable, "-m", "pyktls", "serve"]
CONTENT = bytes(range(251)) * 40_000


@pytest.fixture
def root(tmp_path):
    place = tmp_path / "root"
    place.mkdir()
    (place / "small").write_bytes(b"0123456789")
    (place / "big").write_bytes(CONTENT * 5)
    return place


@pytest.fixture
def files(tmp_path):
    """--cert and --key."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = tls.certificate()
    cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    key.write_bytes(made.private_key_pem.bytes())
    return cert, key


class Command:
    """A running ``pyktls serve``; killed if it does not end."""

    def __init__(self, root: pathlib.Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*SERVE, str(root), "--port=0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: list[str] = []

    @property
    def output(self) -> list[str]:
        """What it has said so far; before its end perhaps not all of who does TLS."""
        return unfolded(self._lines)

    def __enter__(self) -> Self:
        assert self.process.stdout is not None
        # One for each address, of which a name may have two; the certificate; who does TLS.
        while not self._lines or " TLS is done by " not in self._lines[-1]:
            line = self.process.stdout.readline()
            if not line:
                self.process.kill()
                pytest.fail(f"it ended: {self.process.communicate()[1]}")
            self._lines.append(line.rstrip("\n"))
        found = re.search(r" at https://([\d.]+|\[[\da-f:]+\]):(\d+)/$", self.output[0])
        assert found, self.output
        self.host, self.port = found[1].strip("[]"), int(found[2])
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        out, err = self.process.communicate(timeout=TIMEOUT)
        self._lines += out.splitlines()
        assert err == ""
        return self.process.returncode

    def connect(self, context: ssl.SSLContext, receive_buffer: int = 0) -> Any:
        tcp = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
        tcp.settimeout(TIMEOUT)
        if receive_buffer:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        tcp.connect((self.host, self.port))
        return context.wrap_socket(tcp, server_hostname="localhost")


def read_all(sock: Any) -> bytes:
    received = bytearray()
    with contextlib.suppress(ConnectionError, ssl.SSLEOFError):
        while data := sock.recv(1 << 20):
            received += data
    return bytes(received)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal_comes(root, files, number):
    cert, key = map(str, files)
    with Command(root, "--cert", cert, "--key", key) as running:
        with running.connect(tls.client_context()) as sock:
            sock.sendall(get("/small", "Connection: close"))
            assert read_all(sock).endswith(b"\r\n\r\n0123456789")
        assert running.end(number) == 0
        assert running.output[0].startswith(f"pyktls serve: {root} at https://127.0.0.1:")
        assert running.output[1] == f"pyktls serve: the certificate in {cert}"
        assert re.match(r"pyktls serve: TLS is done by (the kernel|OpenSSL, .+)", running.output[2])
        assert '"GET /small HTTP/1.1" 200 10' in running.output[3]
        assert len(running.output) == 4


def kernel_has_tls():
    """As a process sees it that, like the command, has not the fake kernel of this one."""
    code = "import pyktls; print(pyktls.probe().supports(0x0304, 'AES_256_GCM'))"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    return done.stdout.strip() == b"True"


def test_with_json_every_line_is_an_object(root, files):
    cert, key = map(str, files)
    with subprocess.Popen(
        [*SERVE, str(root), "--port=0", "--json", "--cert", cert, "--key", key],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            listening = json.loads(process.stdout.readline())
            port = int(re.fullmatch(r"https://127\.0\.0\.1:(\d+)/", listening.pop("url"))[1])
            assert listening.pop("tls").startswith("TLS is done by ")
            assert listening == {
                "event": "listening",
                "directory": str(root),
                "certificate": f"the certificate in {cert}",
                "kernel_tls": kernel_has_tls(),
            }
            with (
                socket.create_connection(("127.0.0.1", port), TIMEOUT) as tcp,
                tls.client_context().wrap_socket(tcp, server_hostname="localhost") as sock,
            ):
                sock.sendall(get("/small", "Connection: close"))
                assert read_all(sock).endswith(b"0123456789")
            response = json.loads(process.stdout.readline())
            assert (response["event"], response["bytes"]) == ("response", 10)
            process.send_signal(signal.SIGTERM)
            assert process.stdout.read() == ""
            assert process.wait(TIMEOUT) == 0
        finally:
            process.kill()


def test_with_json_it_says_why_it_cannot(root, monkeypatch, capsys):
    assert main(["serve", str(root), "--json", "--cert", str(root / "none")]) == 2
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["event"] == "error"
    assert unfolded(said.err.splitlines()) == [f"pyktls serve: {found['error']}"]
    monkeypatch.setitem(sys.modules, "h11", None)
    assert main(["serve", str(root), "--json", "--selfsigned"]) == 2
    assert "pyktls[serve]" in json.loads(capsys.readouterr().out)["error"]


def test_running_responses_end_and_idle_connections_do_not_wait(root, files):
    cert, key = map(str, files)
    with Command(root, f"--cert={cert}", f"--key={key}", "--quiet", "--grace=60") as running:
        with (
            running.connect(tls.client_context(), 65536) as busy,
            running.connect(tls.client_context()) as idle,
        ):
            busy.sendall(get("/big") + get("/small"))
            head = busy.recv(20)
            idle.sendall(get("/small"))
            assert idle.recv(1 << 16)
            running.process.send_signal(signal.SIGTERM)
            assert read_all(idle) in {b"", b"0123456789"}
            time.sleep(0.3)
            assert running.process.poll() is None
            assert (head + read_all(busy)).partition(b"\r\n\r\n")[2] == CONTENT * 5
        assert running.ended() == 0
        assert len(running.output) == 3


@pytest.mark.parametrize("again", [True, False], ids=["second signal", "grace"])
def test_who_does_not_read_is_cut_off(root, files, again):
    (root / "big").write_bytes(CONTENT * 10)
    cert, key = map(str, files)
    grace = "--grace=60" if again else "--grace=0.5"
    with Command(root, f"--cert={cert}", f"--key={key}", grace) as running:
        with running.connect(tls.client_context(), 65536) as sock:
            sock.sendall(get("/big"))
            assert sock.recv(20)
            started = time.monotonic()
            running.process.send_signal(signal.SIGINT)
            if again:
                time.sleep(0.3)
                assert running.process.poll() is None
                running.process.send_signal(signal.SIGTERM)
            assert running.ended() == 1
            assert time.monotonic() - started < 20
        assert running.output[-1].endswith('"GET /big HTTP/1.1" 200 -')


def test_selfsigned_is_for_this_host_and_leaves_nothing(root, tmp_path, monkeypatch):
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    with Command(root, "--selfsigned", "--host=localhost", "--quiet") as running:
        assert list(place.iterdir()) == []
        fingerprint = running.output[-2].rpartition(" ")[2]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with running.connect(context) as sock:
            der = sock.getpeercert(binary_form=True)
            assert sock.version() == "TLSv1.3"
        assert hashlib.sha256(der).hexdigest() == fingerprint
        trusting = ssl.create_default_context(cadata=ssl.DER_cert_to_PEM_cert(der))
        with running.connect(trusting) as sock:
            sock.sendall(get("/small", "Connection: close"))
            assert read_all(sock).endswith(b"0123456789")
        assert running.end() == 0
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("with_openssl", [False, True], ids=["cryptography", "openssl"])
def test_certificates(with_openssl, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(certificates.tempfile, "tempdir", None)
    monkeypatch.setattr(certificates.socket, "gethostname", lambda: "this-host.example")
    modes = []

    class Spy(ssl.SSLContext):
        def load_cert_chain(self, certfile: Any, keyfile: Any = None, password: Any = None) -> None:
            modes.append(stat.S_IMODE(keyfile.stat().st_mode))
            modes.append(stat.S_IMODE(keyfile.parent.stat().st_mode))
            self.certificate = certfile.read_text()
            super().load_cert_chain(certfile, keyfile, password)

    if with_openssl:
        monkeypatch.setitem(sys.modules, "cryptography", None)
    old = os.umask(0)
    try:
        context = Spy(ssl.PROTOCOL_TLS_SERVER)
        fingerprint = certificates.load_selfsigned(context)
    finally:
        os.umask(old)
    assert modes == [0o600, 0o700]
    assert list(tmp_path.iterdir()) == []
    der = ssl.PEM_cert_to_DER_cert(context.certificate)
    assert hashlib.sha256(der).hexdigest() == fingerprint
    for name in ("localhost", "127.0.0.1", "::1", "this-host.example"):
        client = ssl.create_default_context(cadata=context.certificate)
        near, far = tls.tcp_pair()
        with near, far, pytest.MonkeyPatch.context():
            server = context.wrap_socket(far, server_side=True, do_handshake_on_connect=False)
            peer = client.wrap_socket(near, server_hostname=name, do_handshake_on_connect=False)
            shake_hands(peer, server)
            peer.close()
            server.close()


def shake_hands(client: ssl.SSLSocket, server: ssl.SSLSocket) -> None:
    waiting = [client, server]
    for sock in waiting:
        sock.setblocking(False)
    end = time.monotonic() + TIMEOUT
    while waiting:
        assert time.monotonic() < end
        for sock in tuple(waiting):
            with contextlib.suppress(ssl.SSLWantReadError):
                sock.do_handshake()
                waiting.remove(sock)


@pytest.mark.parametrize("name", ["", "ü", "a" * 64, "a_b", "a b"])
def test_a_host_whose_name_cannot_be_in_a_certificate(name, monkeypatch):
    monkeypatch.setattr(certificates.socket, "gethostname", lambda: name)
    assert certificates.names_of_this_host() == ["localhost", "127.0.0.1", "::1"]


def test_without_anything_that_makes_certificates(root, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    monkeypatch.setenv("PATH", "")
    assert main(["serve", str(root), "--selfsigned"]) == 2
    err = capsys.readouterr().err
    assert "cryptography" in err
    assert "--cert" in err


def test_an_openssl_that_fails(root, monkeypatch, capsys, tmp_path):
    program = tmp_path / "openssl"
    program.write_text("#!/bin/sh\necho no entropy >&2; exit 7\n")
    program.chmod(0o700)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    monkeypatch.setattr(certificates.shutil, "which", lambda _: str(program))
    assert main(["serve", str(root), "--selfsigned"]) == 2
    assert "no entropy" in unfolded(capsys.readouterr().err.splitlines())[0]


def test_without_h11_it_says_what_to_install(root, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "h11", None)
    assert main(["serve", str(root), "--selfsigned"]) == 2
    assert capsys.readouterr().err.splitlines()[1] == '  -> pip install "pyktls[serve]"'
    with pytest.raises(Unavailable, match=r"pyktls\[serve\]"):
        serve.create_server  # noqa: B018
    with pytest.raises(AttributeError):
        serve.nothing  # noqa: B018


def test_with_an_old_h11_it_says_what_to_install(root, monkeypatch, capsys):
    monkeypatch.setattr(h11, "__version__", "0.14.0")
    assert main(["serve", str(root), "--selfsigned"]) == 2
    said = capsys.readouterr().err
    assert "h11 0.16 or later, not 0.14.0" in said
    assert 'pip install "pyktls[serve]"' in said
    with pytest.raises(Unavailable, match=r"0\.16"):
        serve.create_server  # noqa: B018
    monkeypatch.setattr(h11, "__version__", "1.0.0+dev")
    assert callable(serve.create_server)


def test_what_is_installed_with_serve_is_an_h11_that_it_takes():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert extras["serve"] == ["h11>=0.16"]
    for extra in ("test", "bench"):
        assert extras["serve"][0] in extras[extra]


def test_other_commands_load_neither_asyncio_nor_h11():
    script = (
        "import sys, pyktls.__main__\n"
        "try: pyktls.__main__.main(['serve', '--help'])\n"
        "except SystemExit: pass\n"
        "print(*({'asyncio', 'h11', 'pyktls.aio'} & set(sys.modules)))\n"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == ""


def test_cert_or_selfsigned_and_not_both(root, files, capsys):
    cert, key = map(str, files)
    for arguments in (
        [],
        ["--selfsigned", "--cert", cert],
        ["--selfsigned", "--key", key],
        ["--key", key],
    ):
        with pytest.raises(SystemExit) as caught:
            main(["serve", str(root), *arguments])
        assert caught.value.code == 2
        assert "--selfsigned" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argument",
    [
        "--port=-1", "--port=65536", "--port=x", "--max-connections=0", "--idle-timeout=0",
        "--idle-timeout=nan", "--send-timeout=-1", "--request-timeout=inf", "--grace=-1",
        "--grace=nan",
    ],
)  # fmt: skip
def test_numbers_that_are_none(argument, root, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["serve", str(root), "--selfsigned", argument])
    assert caught.value.code == 2
    assert argument.partition("=")[0] in capsys.readouterr().err


def test_what_cannot_be_served_is_status_2(root, files, tmp_path, capsys):
    cert, key = map(str, files)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, said in (
            ([str(root / "nothing"), "--cert", cert, "--key", key], "nothing"),
            ([str(root / "small"), "--cert", cert, "--key", key], "small"),
            ([str(root), "--cert", str(tmp_path / "no.pem")], "no.pem"),
            ([str(root), "--cert", cert], "cert.pem"),
            ([str(root), "--cert", key, "--key", cert], "cert.pem"),
            ([str(root), "--cert", cert, "--key", key, f"--port={port}"], "address"),
            ([str(root), "--cert", cert, "--key", key, "--host=not.a.name.invalid"], "name"),
        ):
            assert main(["serve", *arguments]) == 2
            err = capsys.readouterr().err
            assert err.startswith("pyktls serve: ")
            assert said in err.lower()


def test_the_limit_of_descriptors(monkeypatch):
    limits = [64, 4096]
    monkeypatch.setattr(command.resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(command.resource, "setrlimit", lambda _, new: limits.__setitem__(0, new[0]))
    command.make_room(10)
    assert limits[0] == 64
    command.make_room(1000)
    assert limits[0] == 2032
    with pytest.raises(Error, match="--max-connections"):
        command.make_room(5000)
    limits[0] = resource.RLIM_INFINITY
    command.make_room(10**6)


def test_only_ciphers_that_a_kernel_can_do(files):
    options = argparse.Namespace(selfsigned=False, cert=str(files[0]), key=str(files[1]))
    context, _ = command.make_context(options)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    names = [suite["name"] for suite in context.get_ciphers()]
    assert names
    assert all("GCM" in name or "CHACHA20" in name for name in names)


def test_urls():
    assert command.url_of(("127.0.0.1", 1)) == "https://127.0.0.1:1/"
    assert command.url_of(("::1", 1, 0, 0)) == "https://[::1]:1/"


def test_what_it_says_fits_80_columns(monkeypatch, capsys):
    why = "TLS is done by OpenSSL, not by the kernel: " + "there is no kernel TLS here; " * 5
    monkeypatch.setattr(command, "who_does_tls", why.strip)
    options = argparse.Namespace(directory="/", json=False)
    sockets = [
        socket.create_server(("127.0.0.1", 0)),
        types.SimpleNamespace(getsockname=lambda: ("2001:db8:" + "1234:" * 5 + "5678", 8443, 0, 0)),
    ]
    with sockets[0]:
        server = types.SimpleNamespace(sockets=sockets)
        about = "a certificate of its own, SHA-256 " + "0123456789abcdef" * 4
        lines = command.startup_lines(options, server, about)
        said = [f"/ at {command.url_of(sock.getsockname())}" for sock in sockets]
    assert max(map(len, lines)) <= 80
    whole = [f"pyktls serve: {text}" for text in (*said, about, why.strip())]
    assert unfolded(lines) == whole
    assert len(lines) > len(whole)
    serve.cannot_run(Error("it cannot be done, " * 10), options)
    lines = capsys.readouterr().err.splitlines()
    assert 70 < max(map(len, lines)) <= 80
    assert unfolded(lines) == ["pyktls serve: " + ("it cannot be done, " * 10).strip()]


def test_help(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--help"])
    assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
