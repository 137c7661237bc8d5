"""pyktls serve where OpenSSL keeps the connection behind our transport: a suite that the kernel
does not take, say.  asyncio's own TLS is in test_serve_server.py, the kernel's in tests/kernel.
"""

from __future__ import annotations

import pytest

from pyktls import Unavailable
from pyktls.aio import KTLSTransport, handshake
from support import tls
from support.serving import Running, get, received_after_the_end

CONTENT = bytes(range(256)) * 4000


@pytest.fixture
def root(tmp_path):
    (tmp_path / "small.txt").write_bytes(b"0123456789")
    (tmp_path / "big").write_bytes(CONTENT)
    return tmp_path


@pytest.fixture(autouse=True)
def _a_kernel_that_takes_nothing(monkeypatch):
    def refuse(*_, **__):
        raise Unavailable("refused by the test")

    monkeypatch.setattr(handshake, "kernel_has_none", lambda: False)
    monkeypatch.setattr(handshake, "offload", refuse)


@pytest.mark.parametrize("count", [1, 2, 5, 2000])
def test_all_that_was_asked_for_before_close_notify_is_answered(root, count):
    with Running(root) as server:
        received = received_after_the_end(server.port, get("/small.txt") * count)
        server.wait_until_alone()
        assert received.count(b"HTTP/1.1 200 ") == count
        assert [line.rsplit(" ", 1)[1] for line in server.lines()] == ["10"] * count


def test_files_that_were_asked_for_before_close_notify_come_whole(root):
    with Running(root) as server:
        received = received_after_the_end(server.port, get("/big") * 2 + get("/small.txt"))
        server.wait_until_alone()
        assert received.count(CONTENT) == 2
        assert received.endswith(b"\r\n\r\n0123456789")
        sizes = [str(len(CONTENT))] * 2 + ["10"]
        assert [line.rsplit(" ", 1)[1] for line in server.lines()] == sizes


@pytest.mark.parametrize("version", [tls.TLS_1_2, tls.TLS_1_3])
def test_who_can_send_after_close_notify(root, version):
    context = tls.server_context()
    context.minimum_version = context.maximum_version = version
    with Running(root, ssl=context) as server, server.connect() as client:
        client.send(get("/small.txt"))
        assert client.reply().status == 200
        (connection,) = server.server._service.connections
        assert isinstance(connection._transport, KTLSTransport)
        assert connection._sender.half_closes is (version == tls.TLS_1_3)
