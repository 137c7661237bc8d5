"""pyktls serve over kernel TLS: what the kernel and the far end say of the connections.

The client is a process of its own, with Python's own ssl, which knows nothing of pyktls.  What the
server does for clients of all kinds is in test_serve_clients.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import re
import shutil
import signal
import ssl
import subprocess
import sys

import pytest

import pyktls
from pyktls import linux
from pyktls.aio import ends
from pyktls.ciphers import TLS_1_2, TLS_1_3
from pyktls.serve import files, sending
from support import tls
from support.kernel import OPENSSL_VERSIONS, VERSION_NAMES
from support.serving import TIMEOUT, Running, get, received_after_the_end

MIB = 1 << 20
SIZE = 64 * MIB

over_versions = pytest.mark.parametrize(
    "version", [TLS_1_2, TLS_1_3], ids=[VERSION_NAMES[v] for v in (TLS_1_2, TLS_1_3)]
)

# Takes the requests as JSON, and prints what came as JSON when it is told to go on.
CLIENT = """
import hashlib, http.client, json, ssl, sys
port, ca, paths = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
context = ssl.create_default_context(cafile=ca)
connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=100)
replies, ports = [], set()
for method, path, fields in paths:
    connection.request(method, path, headers=fields)
    ports.add(connection.sock.getsockname()[1])
    response = connection.getresponse()
    sha256, size = hashlib.sha256(), 0
    while piece := response.read(1 << 18):
        sha256.update(piece)
        size += len(piece)
    replies.append([response.status, size, sha256.hexdigest(), dict(response.getheaders())])
print(json.dumps([replies, len(ports), connection.sock.cipher()[0]]), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    place = tmp_path_factory.mktemp("served")
    source = random.Random(7)  # noqa: S311  (no secret)
    with (place / "big").open("wb") as file:
        for _ in range(SIZE // MIB):
            file.write(source.randbytes(MIB))
    (place / "small").write_bytes(b"0123456789")
    return place


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    tls.authority().cert_pem.write_to_path(path)
    return path


@contextlib.contextmanager
def client(port, ca, requests):
    """A process that makes them on one connection, and keeps that until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(port), str(ca), json.dumps(requests)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
            process.stdin.close()
            assert process.wait(TIMEOUT) == 0
        finally:
            process.kill()


def carried():
    """How many connections the kernel encrypts and decrypts right now."""
    stat = linux.tls_stat()
    return [sum(stat[f"TlsCurr{d}{how}"] for how in ("Sw", "Device")) for d in ("Tx", "Rx")]


@over_versions
def test_a_connection_of_many_requests_is_the_kernels(root, ca, version, monkeypatch):
    """Counted by the kernel, and by the calls of sendfile(2); the file is never read."""
    pages, read = [], []
    original_pages, original_read = ends.KernelEnd.send_pages, files.File.read

    def send_pages(self, source, offset, left):
        sent = original_pages(self, source, offset, left)
        pages.append(sent[0])
        return sent

    def read_file(self, offset, count):
        read.append(count)
        return original_read(self, offset, count)

    monkeypatch.setattr(ends.KernelEnd, "send_pages", send_pages)
    monkeypatch.setattr(files.File, "read", read_file)
    context = tls.server_context()
    context.minimum_version = context.maximum_version = OPENSSL_VERSIONS[version]
    requests = [
        ("GET", "/small", {}),
        ("GET", "/big", {}),
        ("GET", "/big", {"Range": "bytes=1000-40000999"}),
        ("HEAD", "/big", {}),
        ("GET", "/nothing", {}),
        ("GET", "/small", {"Range": "bytes=2-4"}),
    ]
    whole = (root / "big").read_bytes()
    before = carried()
    with (
        Running(root, ssl=context, require=True) as server,
        client(server.port, ca, requests) as process,
    ):
        replies, ports, _ = json.loads(process.stdout.readline())
        (status, numbers) = server.call(lambda: look(server.server))
        assert carried() == [number + 1 for number in before]
        process.stdin.close()
    assert carried() == before
    assert ports == 1
    assert [reply[:2] for reply in replies] == [
        [200, 10], [200, SIZE], [206, 40_000_000], [200, 0], [404, 14], [206, 3],
    ]  # fmt: skip
    assert replies[1][2] == hashlib.sha256(whole).hexdigest()
    assert replies[2][2] == hashlib.sha256(whole[1000:40_001_000]).hexdigest()
    assert replies[3][3]["Content-Length"] == str(SIZE)

    assert (status.ulp, status.version) == ("tls", version)
    assert status.tx
    assert status.rx
    sent, received = numbers
    assert sent is None or sent >= (SIZE + 40_000_000) // 16384
    assert received is None or received >= len(requests)
    assert sum(pages) == SIZE + 40_000_000
    assert read == [10, 3]


async def look(server):
    """What the kernel says of the only connection, and the numbers of its records."""
    (connection,) = server._service.connections
    transport = connection._transport
    fd = transport.get_extra_info("socket").fileno()
    numbers = []
    for option in (linux.TLS_TX, linux.TLS_RX):
        try:
            numbers.append(linux.get_rec_seq(fd, option))
        except (OSError, pyktls.Unavailable):  # a cipher that old kernels do not tell about
            numbers.append(None)
    return transport.get_extra_info("ktls"), numbers


def test_a_client_that_has_sent_close_notify_gets_its_file_with_tls_1_3(root):
    with Running(root) as server:
        received = received_after_the_end(server.port, get("/big", "Connection: close"))
    assert len(received) > SIZE


@pytest.mark.parametrize("count", [1, 2, 5, 2000])
def test_all_that_was_asked_for_before_close_notify_is_answered(root, count):
    with Running(root, require=True) as server:
        received = received_after_the_end(server.port, get("/small") * count)
        server.wait_until_alone()
        assert received.count(b"HTTP/1.1 200 ") == count
        assert [line.rsplit(" ", 1)[1] for line in server.lines()] == ["10"] * count


def test_files_that_were_asked_for_before_close_notify_come_whole(root):
    size = 5 * MIB
    part = get("/big", f"Range: bytes=0-{size - 1}")
    with Running(root, require=True) as server:
        received = received_after_the_end(server.port, part * 2 + get("/small"))
        server.wait_until_alone()
        assert received.count((root / "big").read_bytes()[:size]) == 2
        assert received.endswith(b"\r\n\r\n0123456789")
        sizes = [str(size)] * 2 + ["10"]
        assert [line.rsplit(" ", 1)[1] for line in server.lines()] == sizes


def test_a_client_that_goes_away_during_sendfile_is_noticed(root):
    with Running(root) as server:
        # Again and again: it depends on when exactly the reset comes.
        for how in ("close_notify", "end") * 8:
            peer = server.connect(receive_buffer=65536)
            peer.send(get("/big"))
            peer.header()
            if how == "close_notify":
                peer.sock.setblocking(False)
                with contextlib.suppress(ssl.SSLError):
                    peer.sock.unwrap()
            peer.close()
        server.wait_until_alone()
        assert [line.rsplit(" ", 2)[1:] for line in server.lines()] == [["200", "-"]] * 16


def test_sendfile_in_pieces(root, monkeypatch):
    """As where the system does not tell how much has arrived."""
    monkeypatch.setattr(sending, "acknowledged", lambda _: None)
    with Running(root) as server:
        assert hashlib.sha256(server.get("/big").body).digest() == (
            hashlib.sha256((root / "big").read_bytes()).digest()
        )


def test_without_the_kernel_a_connection_is_refused_if_that_is_wanted(root):
    """A cipher that no kernel has."""
    context = tls.server_context()
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE-ECDSA-AES128-SHA256")
    peer = tls.client_context()
    peer.set_ciphers("ECDHE-ECDSA-AES128-SHA256")
    for require in (False, True):
        with Running(root, ssl=context, require=require) as server:

            async def fetch(port=server.port):
                reader, writer = await asyncio.open_connection("localhost", port, ssl=peer)
                writer.write(get("/small", "Connection: close") + get("/big"))
                try:
                    return await reader.read()
                finally:
                    writer.close()

            try:
                received = asyncio.run(fetch())
            except (ConnectionError, ssl.SSLError):
                received = b""
            assert received.endswith(b"0123456789") is not require


@pytest.mark.skipif(shutil.which("curl") is None, reason="this machine has no curl")
def test_the_command(root):
    command = [sys.executable, "-m", "pyktls", "serve", str(root), "--selfsigned", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = []
            while not lines or not lines[-1].startswith("pyktls serve: TLS "):
                lines.append(process.stdout.readline())
                assert lines[-1]
            url = re.search(r"https://\S+", "".join(lines))[0]
            assert lines[-1] == "pyktls serve: TLS is done by the kernel\n"
            before = linux.tls_stat()
            got = subprocess.run(
                ["curl", "-sSk", "--fail", "-r", f"0-{8 * MIB - 1}", f"{url}big"],
                capture_output=True, check=True, timeout=100,
            ).stdout  # fmt: skip
            assert got == (root / "big").read_bytes()[: 8 * MIB]
            assert linux.tls_stat()["TlsTxSw"] > before["TlsTxSw"]
            process.send_signal(signal.SIGTERM)
            assert process.wait(TIMEOUT) == 0
            assert process.stdout.read().endswith(f'"GET /big HTTP/1.1" 206 {8 * MIB}\n')
        finally:
            process.kill()
