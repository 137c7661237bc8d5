"""The samples of README.md, docs/ and the docstrings that need kernel TLS, as they stand there."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shlex
import ssl
import subprocess
import sys

import pytest

import pyktls
from pyktls.ciphers import TLS_1_3
from support import tls
from support.kernel import Background, kernel_can_rekey, offloaded, recv_to_end
from support.processes import fork, wait_for
from support.samples import (
    CONTENT,
    ROOT,
    connect,
    execute_sample,
    prepare,
    run_sample,
    shown,
    started_sample,
    wait_until_listening,
)

BOTH = "tx=<Mode.SOFTWARE: 'software'>, rx=<Mode.SOFTWARE: 'software'>"


@pytest.fixture
def files(tmp_path):
    authority, port = prepare(tmp_path)
    return tmp_path, authority, port


def fetch(authority, port, *, unwrap):
    """What a sample serves, up to the end."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    with context.wrap_socket(connect(port), server_hostname="localhost") as client:
        client.sendall(b"GET /file.bin HTTP/1.0\r\n\r\n")
        received = b"".join(iter(lambda: client.recv(65536), b""))
        if unwrap:
            client.unwrap()
    return received


# ---- README ----------------------------------------------------------------------------------


def test_the_example_serves_a_file(files):
    directory, authority, port = files
    with started_sample("README.md", "offload", directory, port=port) as server:
        received = fetch(authority, port, unwrap=True)
        ended = server.wait()
    assert received == b"HTTP/1.0 200 OK\r\n\r\n" + CONTENT
    assert ended.status == 0, ended.errors
    assert "ulp='tls'" in ended.output
    assert "tx=<Mode.SOFTWARE: 'software'>" in ended.output


def test_the_drop_in_example(files):
    directory, authority, port = files
    with started_sample("README.md", "drop-in", directory, port=port) as server:
        received = fetch(authority, port, unwrap=False)
        said = server.line()
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK\r\n")
    assert body == CONTENT
    assert BOTH in said


def test_the_asyncio_example(files):
    directory, authority, port = files
    with started_sample("README.md", "asyncio", directory, port=port) as server:
        received = fetch(authority, port, unwrap=False)
        said = server.line()
    assert received == b"HTTP/1.0 200 OK\r\n\r\n" + CONTENT
    assert BOTH in said


def test_the_example_by_hand(tmp_path):
    done = run_sample("README.md", "linux-by-hand", tmp_path)
    assert (done.output, done.errors) == ("b'encrypted by the kernel'\n", "")


def test_the_line_that_asks_what_this_machine_can_do():
    readme = (ROOT / "README.md").read_text()
    (line,) = re.findall(r"^    (python -c .*probe.*)$", readme, re.MULTILINE)
    command = [sys.executable, *shlex.split(line)[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert ": kernel TLS, found in " in done.stdout.splitlines()[0]
    assert "AES_128_GCM         yes     yes     yes     yes" in done.stdout.splitlines()


# ---- the tutorial ----------------------------------------------------------------------------


def test_the_tutorial(tmp_path):
    _, port = prepare(tmp_path)
    done = run_sample("docs/tutorial.md", "certificate", tmp_path)
    assert done.status == 0, done.errors
    with started_sample("docs/tutorial.md", "server", tmp_path, port=port) as server:
        wait_until_listening(port)
        client = run_sample("docs/tutorial.md", "client", tmp_path, port=port)
        ended = server.wait()
    assert (client.status, ended.status) == (0, 0), (client.errors, ended.errors)
    assert ended.output == shown("docs/tutorial.md", "server-with")
    assert client.output == shown("docs/tutorial.md", "client-with")


# ---- how to ----------------------------------------------------------------------------------


def test_files_in_threads(files):
    directory, authority, port = files
    with started_sample(
        "docs/serving-files.md", "threads", directory, port=port, before=FAIL_WITHOUT_KERNEL
    ):
        head, _, body = fetch(authority, port, unwrap=False).partition(b"\r\n\r\n")
    assert f"Content-Length: {len(CONTENT)}".encode() in head
    assert body == CONTENT


# Where OpenSSL would send the file instead, the connection ends without it.
FAIL_WITHOUT_KERNEL = """
import ssl
def fail(*_):
    raise AssertionError("sent by OpenSSL")
ssl.SSLSocket.sendfile = fail
"""


def test_drop_in_programs_with_each_other(files):
    directory, _, port = files
    with started_sample(
        "docs/drop-in.md", "http-server", directory, port=port, before=FAIL_WITHOUT_KERNEL
    ):
        connect(port).close()
        done = run_sample("docs/drop-in.md", "urllib", directory, port=port)
        assert (done.status, done.output) == (0, f"200 {len(CONTENT)}\n"), done.errors
        done = run_sample("docs/drop-in.md", "requests", directory, port=port)
        assert done.status == 0, done.errors
        status, line = done.output.splitlines()
        assert BOTH in status
        assert line == f"200 {len(CONTENT)}"
        done = run_sample("docs/drop-in.md", "require", directory, port=port)
        assert (done.status, done.output) == (0, "software software\n"), done.errors
        done = run_sample("docs/is-it-on.md", "status", directory, port=port)
        expected = "sending: software - receiving: software\n"
        assert (done.status, done.output) == (0, expected), done.errors


def test_sending_alone(files):
    directory, authority, port = files
    with started_sample("docs/one-direction.md", "sending", directory, port=port) as server:
        received = fetch(authority, port, unwrap=False)
        ended = server.wait()
    assert received == CONTENT
    assert ended.status == 0, ended.errors
    assert ended.output == shown("docs/one-direction.md", "sending")


def test_handing_connections_to_another_process(files):
    directory, authority, port = files
    # In a file of its own, since the acceptor starts it.
    saved = run_sample("docs/moving.md", "worker", directory, before=SAVE_AND_END)
    assert saved.status == 0, saved.errors
    with started_sample("docs/moving.md", "acceptor", directory, port=port) as acceptor:
        for _ in range(2):
            assert fetch(authority, port, unwrap=False) == CONTENT
        ended = acceptor.wait()
    assert (ended.status, ended.errors) == (0, "")


# Writes what comes behind it into worker.py.
SAVE_AND_END = """
import pathlib, sys
_, _, program = sys.orig_argv[-1].partition("# ---- behind it\\n")
pathlib.Path("worker.py").write_text(program)
sys.exit()
# ---- behind it
"""


def test_what_this_machine_is(tmp_path):
    done = run_sample("docs/is-it-on.md", "machine", tmp_path)
    assert (done.status, done.output) == (0, "AES-128-GCM in TLS 1.3: True\n"), done.errors


def test_the_list_of_connections(files):
    directory, authority, port = files
    with started_sample("README.md", "offload", directory, port=port) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.configure_trust(context)
        with context.wrap_socket(connect(port), server_hostname="localhost") as client:
            assert "ulp='tls'" in server.line()  # and it waits for a request
            client_port = client.getsockname()[1]
            done = run_sample("docs/is-it-on.md", "survey", directory)
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            while client.recv(65536):
                pass
            client.unwrap()
        assert server.wait().status == 0
    assert (done.status, done.errors) == (0, "")
    own = f"127.0.0.1:{port} 127.0.0.1:{client_port} AES_256_GCM software software"
    assert own in done.output.splitlines()
    assert re.search(r"\n[1-9]\d* connections with sending in the kernel\n", done.output)


# ---- asyncio ---------------------------------------------------------------------------------


def test_httpx_fetches_from_aiohttp(files):
    directory, _, port = files
    with started_sample("docs/asyncio.md", "aiohttp-server", directory, port=port):
        connect(port).close()
        done = run_sample("docs/asyncio.md", "httpx-client", directory, port=port, before=DIGEST)
    assert done.status == 0, done.errors
    digest, line = done.output.splitlines()
    assert digest == hashlib.sha256(CONTENT).hexdigest()
    assert line.startswith(f"200 {len(CONTENT)} Status(ulp='tls'")
    assert "refusal=None" in line


# Has the client print the content's SHA-256 first.
DIGEST = """
import hashlib, httpx
class Response(httpx.Response):
    async def aread(self):
        content = await super().aread()
        print(hashlib.sha256(content).hexdigest())
        return content
import httpx._transports.default
httpx._transports.default.Response = Response
"""


def test_aiohttp_sends_the_file_by_sendfile(files):
    """Its fallback is not called: it is replaced by something that fails."""
    directory, _, port = files
    spoilt = (
        "from aiohttp import web_fileresponse\n"
        "async def fail(*_):\n    raise AssertionError('read and written')\n"
        "web_fileresponse.FileResponse._sendfile_fallback = fail\n"
    )
    with started_sample("docs/asyncio.md", "aiohttp-server", directory, port=port, before=spoilt):
        connect(port).close()
        done = subprocess.run(
            ["curl", "-sS", "--cacert", "ca.pem", "--resolve", f"localhost:{port}:127.0.0.1",
             f"https://localhost:{port}/files/file.bin", "-o", "got"],
            cwd=directory, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (directory / "got").read_bytes() == CONTENT


# ---- docstrings ------------------------------------------------------------------------------


@pytest.fixture
def opposite():
    """A TCP socket, and who answers on it: OpenSSL, to which comes what is sent up to the end."""

    def answer():
        with context.wrap_socket(far, server_side=True) as server:
            return recv_to_end(server)

    context = tls.server_context()  # not in the thread: there is one authority for all
    near, far = tls.tcp_pair()
    with near, far:
        yield near, Background(answer)


def test_the_first_words_of_the_package(opposite, tmp_path, monkeypatch):
    sock, answering = opposite
    tls.authority().cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    (tmp_path / "file.bin").write_bytes(CONTENT)
    with (tmp_path / "file.bin").open("rb") as file:
        names = {"pyktls": pyktls, "ssl": ssl, "sock": sock, "name": tls.HOST, "file": file}
        execute_sample("src/pyktls/__init__.py", "module", names)
    with names["sock"] as switched:
        assert switched.ktls.tx
        assert switched.ktls.rx
    assert answering.result() == CONTENT


def test_a_handshake_in_memory(opposite):
    sock, answering = opposite
    names = {"pyktls": pyktls, "sock": sock, "context": tls.client_context(), "name": tls.HOST}
    execute_sample("src/pyktls/engines/membio.py", "MemoryBIOHandshake", names)
    with names["sock"] as switched:
        assert switched.ktls.tx
        assert switched.ktls.rx
        switched.sendall(b"by the kernel")
    assert answering.result() == b"by the kernel"


def test_a_child_takes_over():
    def in_child():
        names = {"pyktls": pyktls, "os": os, "sock": sock}
        execute_sample("src/pyktls/moving.py", "module", names)
        with names["mine"] as mine:
            if kernel_can_rekey():
                mine.update_keys()
            mine.sendall(b"by the child")

    with offloaded(TLS_1_3) as (sock, peer):
        child = fork(in_child)
        sock.abandon()
        assert recv_to_end(peer) == b"by the child"
        wait_for(child)


def test_a_file_from_one_end_of_asyncio_to_the_other(files):
    directory, authority, port = files
    contexts = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.configure_trust(contexts[0])
    authority.issue_cert("127.0.0.1").configure_cert(contexts[1])

    async def main(file):
        async def serve(reader, writer):
            arrived.set_result((await reader.read(), writer.get_extra_info("ktls")))
            writer.close()

        arrived = asyncio.get_running_loop().create_future()
        names = {"pyktls": pyktls, "host": "127.0.0.1", "serve": serve, "file": file}
        names |= {"context": contexts[0], "server_context": contexts[1]}
        await execute_sample("src/pyktls/aio/__init__.py", "module", names, {"443": str(port)})
        status = names["writer"].get_extra_info("ktls")
        names["writer"].close()
        content, opposite = await arrived
        await names["writer"].wait_closed()
        names["server"].close()
        await names["server"].wait_closed()
        return content, status, opposite

    with (directory / "file.bin").open("rb") as file:
        content, *ends = asyncio.run(asyncio.wait_for(main(file), 100))
    assert content == CONTENT
    for status in ends:
        assert status.tx
        assert status.rx
