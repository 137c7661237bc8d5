"""The programs in examples/ on a kernel without TLS: each says what is missing, and ends."""

from __future__ import annotations

import socket
import ssl
import threading

import pytest

import pyktls
from support import examples, tls
from support.examples import certificates


@pytest.fixture(scope="module")
def pems():
    with certificates() as files:
        yield files


def why():
    answer = pyktls.probe().tls
    assert not answer
    return f"{answer.reason}; {answer.remedy}"


def test_those_that_need_it_do_not_start(pems, tmp_path):
    _, cert, key = pems
    pair = ("--cert", cert, "--key", key)
    for name, arguments in {
        "file_server": (tmp_path, *pair, "--port", 0),
        "splice_proxy": ("localhost:1", *pair, "--listen", "127.0.0.1:0"),
        "starttls_mail": ("serve", tmp_path, *pair, "--port", 0),
        "handshake_daemon": ("--socket", tmp_path / "unix", *pair),
    }.items():
        done = examples.run(name, *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"{name}: {why()}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_nobody_encrypts_but_openssl(pems, version):
    def serve():
        for _ in range(2):
            tcp, _ = listener.accept()
            with context.wrap_socket(tcp, server_side=True) as sock:
                ends.append(sock.recv(1))

    ends = []
    context = tls.server_context()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        done = examples.run(
            "who_encrypts", tls.HOST, "--port", listener.getsockname()[1], "--ca", pems[0],
            "--tls", version,
        )  # fmt: skip
        thread.join(examples.TIMEOUT)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines[::4]] == ["OP_ENABLE_KTLS", "pyktls"]
    for two in (lines[2:4], lines[6:8]):
        assert two == [
            "    OpenSSL says    no          no",
            "    the kernel says none        none",
        ]
    first, second = done.stderr.splitlines()
    both = "not in the kernel: sending, receiving; "
    assert first == f"who_encrypts: OP_ENABLE_KTLS: {both}{why()}"
    assert second.startswith(f"who_encrypts: pyktls: {both}this kernel offers no TLS: ")
    assert ends == [b"", b""]
    assert ssl.OPENSSL_VERSION not in done.stderr  # it is not to blame
