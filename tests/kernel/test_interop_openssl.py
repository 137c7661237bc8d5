"""The ``openssl`` program as the other end: another process, and none of our code in it."""

from __future__ import annotations

import hashlib
import shutil
import socket
import subprocess
import time

import pytest

import pyktls
from pyktls import RecordError
from pyktls.ciphers import TLS_1_2, TLS_1_3
from support import kernel, tls
from support.kernel import Background, pattern, recv_exactly

over_versions = pytest.mark.parametrize("version", kernel.VERSIONS, ids=kernel.VERSION_NAMES.get)
OPTION = {TLS_1_2: "-tls1_2", TLS_1_3: "-tls1_3"}
SIZE = 1 << 20
UP, DOWN = pattern(SIZE, 1), pattern(SIZE, 2)


@pytest.fixture
def files(tmp_path):
    """Certificate, key and CA as files."""
    certificate = tls.certificates()[0]
    tls.authority().cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    return tmp_path


class Openssl:
    """The program, with pipes; ended when the block ends."""

    def __init__(self, *arguments: object) -> None:
        program = shutil.which("openssl")
        assert program, "the openssl program is needed"
        self.process = subprocess.Popen(
            [program, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def __enter__(self):
        return self.process

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


def feed(process, data: bytes) -> None:
    process.stdin.write(data)
    process.stdin.flush()


def connect(port: int) -> socket.socket:
    deadline = time.monotonic() + kernel.TIMEOUT
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), kernel.TIMEOUT)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def exchange(sock, process) -> None:
    """1 MiB each way at once, and then the end."""
    with (
        Background(sock.sendall, UP),
        Background(feed, process, DOWN),
        Background(process.stdout.read, SIZE) as other,
    ):
        assert digest(recv_exactly(sock, SIZE)) == digest(DOWN)
        assert digest(other.result()) == digest(UP)


@over_versions
def test_s_server(version, files):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ("-quiet", "-naccept", 1, "-accept", port, "-cert", files / "server.pem")
    with Openssl("s_server", *arguments, OPTION[version]) as process:
        context = tls.client_context()
        pyktls.watch(context)
        client = context.wrap_socket(connect(port), server_hostname=tls.HOST)
        with pyktls.offload(client) as sock:
            assert sock.ktls.version == version
            exchange(sock, process)
        # It has taken our close_notify for the end.
        assert process.wait(kernel.TIMEOUT) == 0


@over_versions
def test_s_client(version, files):
    with accepted_s_client(version, files, "-quiet") as (sock, process):
        assert sock.ktls.version == version
        exchange(sock, process)
        sock.close()
        assert process.wait(kernel.TIMEOUT) == 0


@pytest.mark.parametrize("command", [b"K\n", b"k\n"], ids=["requested", "alone"])
def test_s_client_that_updates_its_keys(command, files):
    """s_client's commands K and k: KeyUpdate, with and without a request for ours."""
    with accepted_s_client(TLS_1_3, files, "-brief") as (sock, process):
        feed(process, b"before\n")
        assert recv_exactly(sock, 7) == b"before\n"
        feed(process, command)
        if not kernel.kernel_can_rekey():
            with pytest.raises(RecordError, match="this kernel cannot follow: Linux can since 6"):
                sock.recv(1)
            return
        time.sleep(0.3)  # a command has to be a read of its own
        feed(process, b"after\n")
        assert recv_exactly(sock, 6) == b"after\n"
        sock.sendall(b"answer\n")
        assert process.stdout.readline() == b"answer\n"
        feed(process, command)
        time.sleep(0.3)
        feed(process, b"again\n")
        assert recv_exactly(sock, 6) == b"again\n"
        feed(process, b"Q\n")
        assert sock.recv(10) == b""


class accepted_s_client:  # noqa: N801  (used as a function)
    """``(KTLSSocket, process)``: the program connects, and we are the server."""

    def __init__(self, version, files, *options) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(kernel.TIMEOUT)
            name = f"127.0.0.1:{listener.getsockname()[1]}"
            arguments = ("-connect", name, "-servername", tls.HOST, "-CAfile", files / "ca.pem")
            self.program = Openssl(
                "s_client", *arguments, "-verify_return_error", OPTION[version], *options
            )
            tcp, _ = listener.accept()
        tcp.settimeout(kernel.TIMEOUT)
        context = tls.server_context()
        pyktls.watch(context)
        self.sock = pyktls.offload(context.wrap_socket(tcp, server_side=True))

    def __enter__(self):
        return self.sock, self.program.process

    def __exit__(self, *arguments):
        self.program.__exit__(*arguments)
        kernel.close_quietly(self.sock)
