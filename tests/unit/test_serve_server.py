"""pyktls serve: a whole server over TLS, asked by clients that keep to the rules and others."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import datetime as dt
import http.client
import json
import os
import random
import re
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import time
import types

import pytest

from pyktls import InvalidValue
from pyktls.serve import (
    Limits,
    conditions,
    create_server,
    progress,
    requests,
    sending,
    service,
)
from support import tls
from support.serving import TIMEOUT, Running, get, received_after_the_end

BIG = 3_000_000
CONTENT = random.Random(5).randbytes(BIG)  # noqa: S311  (no secret)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "small.txt").write_bytes(b"0123456789")
    (tmp_path / "empty").touch()
    (tmp_path / "big").write_bytes(CONTENT)
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "index.html").write_bytes(b"<p>index</p>")
    return tmp_path


@pytest.fixture(autouse=True)
def _files_that_were_left_alone(monkeypatch):
    """A machine may be so slow that an ETag changes in the midst of a test."""
    monkeypatch.setattr(conditions, "SETTLED", -1.0)


@pytest.fixture
def server(root):
    with Running(root) as running:
        yield running


def with_limits(root, **limits):
    return Running(root, limits=limits)


# ---- what is asked for ---------------------------------------------------------------------------


def test_files_of_every_size(server, root):
    edges = (sending.COPIED - 1, sending.COPIED, sending.COPIED + 1, 16384, 16385)
    for size in (0, 1, *edges, 200_000):
        (root / "file").write_bytes(CONTENT[:size])
        reply = server.get("/file")
        assert (reply.status, reply.body) == (200, CONTENT[:size])
    assert server.get("/big").body == CONTENT


def test_parts_of_files(server):
    for first, last in ((0, 0), (1, 40_000), (100_000, 2_999_999), (2_999_990, 2_999_999)):
        reply = server.get("/big", f"Range: bytes={first}-{last}")
        assert reply.status == 206
        assert reply.body == CONTENT[first : last + 1]
        assert reply.fields["content-range"] == f"bytes {first}-{last}/{BIG}"
    assert server.get("/big", "Range: bytes=-5").body == CONTENT[-5:]
    assert server.get("/big", "Range: bytes=3000000-").status == 416
    assert server.get("/small.txt", "Range: bytes=0-1", "Range: bytes=3-4").status == 200
    assert server.get("/small.txt", "Range: bytes=0-1,3-4").body == b"0123456789"


def test_conditions(server):
    fields = server.get("/small.txt").fields
    tag = fields["etag"]
    assert server.get("/small.txt", f"If-None-Match: {tag}").status == 304
    assert server.get("/small.txt", "If-None-Match: x", f'If-None-Match: "y", {tag}').status == 200
    assert server.get("/small.txt", 'If-None-Match: "x"', f"If-None-Match: {tag}").status == 304
    date = fields["last-modified"]
    assert server.get("/small.txt", f"If-Modified-Since: {date}").status == 304
    assert server.get("/small.txt", 'If-Match: "other"').status == 412
    assert (
        server.get("/small.txt", "If-Unmodified-Since: Sun, 06 Nov 1994 08:49:37 GMT").status == 412
    )


def test_head_is_get_without_the_content(server):
    for path in ("/small.txt", "/big", "/empty", "/nothing", "/directory", "/directory/"):
        with server.connect() as client:
            client.send(get(path, method="HEAD") + get(path))
            head, whole = client.reply(head=True), client.reply()
            assert head.status == whole.status
            for fields in (head.fields, whole.fields):
                fields.pop("date")
            assert head.fields == whole.fields


def test_errors_leave_the_connection_as_it_is(server):
    with server.connect() as client:
        for path, status in (
            ("/nothing", 404),
            ("/%00", 400),
            ("/directory", 301),
            ("/a/../b", 404),
        ):
            client.send(get(path))
            assert client.reply().status == status
        for method, status in (("POST", 405), ("OPTIONS", 405), ("CONNECT", 405), ("BREW", 501)):
            client.send(get("/small.txt", method=method))
            reply = client.reply()
            assert reply.status == status
            assert ("allow" in reply.fields) is (status == 405)
            assert "connection" not in reply.fields
        client.send(get("/small.txt"))
        assert client.reply().body == b"0123456789"


def test_lists_only_if_wanted(root):
    with Running(root) as server:
        assert server.get("/").status == 404
    with Running(root, index=True) as server:
        assert b"small.txt" in server.get("/").body
        assert server.get("/directory/").body == b"<p>index</p>"


def test_an_upgrade_that_nobody_wants(server):
    with server.connect() as client:
        client.send(get("/small.txt", "Connection: Upgrade", "Upgrade: h2c") + get("/small.txt"))
        assert client.reply().body == b"0123456789"
        assert client.reply().body == b"0123456789"


# ---- one connection, many requests ---------------------------------------------------------------


def test_requests_one_after_the_other(server):
    with server.connect() as client:
        for _ in range(20):
            client.send(get("/small.txt"))
            assert client.reply().body == b"0123456789"
            client.send(get("/big"))
            assert client.reply().body == CONTENT


def test_pipelined_requests_are_answered_in_their_order(server):
    paths = ["/small.txt", "/big", "/nothing", "/empty", "/directory", "/big", "/small.txt"] * 8
    with server.connect() as client:
        client.send(b"".join(get(path) for path in paths))
        for path in paths:
            reply = client.reply()
            expected = {"/small.txt": b"0123456789", "/big": CONTENT, "/empty": b""}
            if path in expected:
                assert reply.body == expected[path]
            else:
                assert reply.status in {404, 301}
    with server.connect() as client:
        client.send(get("/small.txt") * 2000)
        for _ in range(2000):
            assert client.reply().status == 200


def test_pipelined_requests_of_a_client_that_does_not_read_wait_in_its_own_buffers(server):
    with server.connect() as client:
        client.sock.settimeout(1)
        request = get("/big")
        with pytest.raises(TimeoutError):
            client.send(request * 1_000_000)


def test_pipelined_requests_of_a_client_that_reads_wait_there_too(root, monkeypatch):
    """What the server holds of them does not grow: see serve/connection.py."""
    limits = Limits()
    held = [0]
    original = requests.Requests.receive

    def receive(self, data):
        original(self, data)
        held[0] = max(held[0], len(self._connection.trailing_data[0]))

    monkeypatch.setattr(requests.Requests, "receive", receive)
    count = 4000
    with Running(root) as server, server.connect() as client:
        client.send_while_reading(get("/small.txt") * count)
        for _ in range(count):
            assert client.reply().body == b"0123456789"
        client.send(get("/nothing"))
        assert client.reply().status == 404
    assert held[0] <= limits.target + limits.fields_size + service.BUFFER_SIZE == 88 * 1024


def test_a_request_in_pieces(server):
    with server.connect() as client:
        for byte in get("/small.txt", "X: y"):
            client.send(bytes([byte]))
        assert client.reply().body == b"0123456789"


def test_empty_lines_before_a_request(server):
    with server.connect() as client:
        client.send(b"\r\n" + get("/small.txt"))
        assert client.reply().status == 200
        client.send(b"\r\n")
        time.sleep(0.1)
        client.send(get("/small.txt"))
        assert client.reply().status == 200


def test_the_end_when_the_client_wants_it(server):
    for request in (
        get("/small.txt", "Connection: close"),
        b"GET /small.txt HTTP/1.0\r\n\r\n",
        b"GET /small.txt HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    ):
        with server.connect() as client:
            client.send(request + get("/big"))
            reply = client.reply()
            assert reply.body == b"0123456789"
            assert reply.fields["connection"] == "close"
            assert client.rest() == b""


def test_what_comes_behind_the_last_request_does_not_cost_its_response(root):
    """What is unread at the close resets the connection."""
    (root / "big").write_bytes(CONTENT * 20)  # more than buffers take
    with (
        with_limits(root, linger_timeout=TIMEOUT) as server,
        server.connect(receive_buffer=65536) as client,
    ):
        client.send(get("/big", "Connection: close"))
        status, fields = client.header()
        assert (status, fields["connection"]) == (200, "close")
        client.send_while_reading(get("/small.txt") * 20_000)
        for _ in range(20):
            assert client.file.read(BIG) == CONTENT


@pytest.mark.parametrize("end", ["close_notify", "FIN", "both"])
@pytest.mark.parametrize("count", [1, 2, 10, 2000])
def test_no_response_is_logged_as_sent_that_was_not(server, count, end):
    """Whatever the client's end does to those that are not out yet."""
    received = received_after_the_end(
        server.port,
        get("/small.txt") * count,
        first=get("/empty"),
        notify=end != "FIN",
        fin=end != "close_notify",
    )
    server.wait_until_alone()
    arrived = received.count(b"HTTP/1.1 200 ")
    lines = server.lines()[1:]
    sent = [line.rsplit(" ", 1)[1] for line in lines].count("10")
    assert 1 <= sent <= arrived <= count
    if end == "close_notify":
        assert sent == arrived == len(lines)


@pytest.mark.parametrize("size", [300_000, 700_000, 2_000_000])
def test_no_file_is_logged_as_sent_that_was_not(server, root, size):
    (root / "big").write_bytes(CONTENT[:size])
    for _ in range(5):
        received = received_after_the_end(
            server.port, get("/big"), first=get("/empty"), notify=False, fin=True
        )
        server.wait_until_alone()
        if received.partition(b"\r\n\r\n")[2] != CONTENT[:size]:
            assert server.lines()[-1].endswith(" 200 -")


def test_a_client_that_ends_its_side_gets_what_it_asked_for(server):
    """With TLS 1.3 in the kernel; asyncio's own TLS cannot, so there only what is out arrives."""
    with server.connect() as client:
        client.send(get("/small.txt"))
        assert client.reply().status == 200
        client.sock.unwrap()
    with server.connect() as client:
        client.send(b"GET /small")
        client.sock.unwrap()


# ---- what is no good request ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nHost: a/b?c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET / HTTP/11.1\r\nHost: a\r\n\r\n", 400),
        (get("/small.txt", "Content-Length: -1"), 400),
        (get("/small.txt", "Content-Length: " + "1" * 5000), 400),
        (get("/small.txt", "Content-Length: 1", "Content-Length: 2"), 400),
        (get("/small.txt", "Content-Length: 1", "Transfer-Encoding: chunked"), 400),
        (get("/small.txt", "Transfer-Encoding: gzip"), 501),
        (get("/small.txt", "Transfer-Encoding: chunked") + b"x\r\n", 400),
        (  # a chunk that is followed by something else than CRLF: CVE-2025-43859
            get("/small.txt", "Transfer-Encoding: chunked")
            + b"5\r\nAAAAAXX2\r\n45\r\n0\r\n\r\n",
            400,
        ),
        (b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (get("/" + "x" * 8192), 414),
        (b"GET /" + b"x" * 100_000, 414),
        (get("/small.txt", *(f"X{n}: y" for n in range(100))), 431),
        (get("/small.txt", "X: " + "y" * 16384), 431),
        (get("/small.txt", "X: " + "y" * 100_000), 431),
        (get("/small.txt")[:-2] + b"X: y\r\n" * 50_000, 431),
        (get("/small.txt", "Content-Length: 65537"), 413),
        (get("/small.txt", "Content-Length: 18446744073709551615"), 413),
    ],
    ids=lambda v: repr(v[:30]) if isinstance(v, bytes) else str(v),
)  # fmt: skip
def test_what_is_refused(server, request_, status):
    started = time.monotonic()
    with server.connect() as client:
        client.send(get("/small.txt") + request_)
        assert client.reply().status == 200
        reply = client.reply()
        assert reply.status == status
        assert reply.fields["connection"] == "close"
        assert client.rest() == b""
    assert time.monotonic() - started < 5


def test_what_is_just_within_the_limits(server):
    limits = Limits()
    path = "/small.txt?" + "x" * (limits.target - len("/small.txt?"))
    assert server.get(path).status == 200
    assert server.get(path + "x").status == 414
    fields = [f"X{n}: y" for n in range(limits.fields - 1)]
    assert server.get("/small.txt", *fields).status == 200
    assert server.get("/small.txt", *fields, "Y: y").status == 431
    size = limits.fields_size - len("Hostlocalhost") - len("X")
    assert server.get("/small.txt", "X: " + "y" * size).status == 200
    assert server.get("/small.txt", "X: " + "y" * (size + 1)).status == 431


@pytest.mark.parametrize(
    ("host", "valid"),
    [
        ("", True), ("a", True), ("a:", True), ("a.example:8443", True), ("a_b,c", True),
        ("%41", True), ("127.0.0.1:1", True), ("[::1]", True), ("[::ffff:1.2.3.4]:443", True),
        ("[v1.x:y]", True), (":80", True),
        ("a b", False), ("a, b", False), ("a/b?c", False), ("a:xyz", False), ("a:1:2", False),
        ("a@b", False), ("%4", False), ("%zz", False), ("[::1", False), ("::1", False),
        ("[x]", False), ("[::1]x", False), ("\xe4", False), ("a#", False), ('"a"', False),
    ],
)  # fmt: skip
def test_values_of_host(server, host, valid):
    request = f"GET /small.txt HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("latin-1")
    assert server.ask(request).status == (200 if valid else 400)


def test_the_content_of_a_request_is_thrown_away(server):
    size = Limits().content
    with server.connect() as client:
        client.send(get("/small.txt", f"Content-Length: {size}") + bytes(size))
        assert client.reply().body == b"0123456789"
        client.send(get("/small.txt", "Content-Length: 5", method="POST") + b"12345")
        assert client.reply().status == 405
        chunked = get("/small.txt", "Transfer-Encoding: chunked")
        client.send(chunked + b"3\r\nabc\r\n0\r\n\r\n")
        assert client.reply().body == b"0123456789"
        client.send(chunked + b"%x\r\n" % size + bytes(size) + b"\r\n1\r\nx")
        reply = client.reply()
        assert reply.status == 413
        assert reply.fields["connection"] == "close"


def test_an_upload_gets_its_answer_though_nobody_takes_it(root):
    """The answer is not lost in a reset while the client is still sending."""
    with with_limits(root, linger_timeout=3) as server, server.connect() as client:
        client.send(get("/small.txt", "Content-Length: 100000000", method="POST"))
        for _ in range(10):
            client.send(bytes(16384))
            time.sleep(0.05)
        assert client.reply().status == 413
        client.send(bytes(16384))
    with with_limits(root, linger_timeout=0.3) as server, server.connect() as client:
        client.send(get("/small.txt", "Content-Length: 100000000", method="POST"))
        assert client.reply().status == 413
        rest, seconds = ended_after(client)
        assert rest == b""
        assert 0.2 < seconds < 5


def test_who_waits_for_100_is_told_at_once(server):
    with server.connect() as client:
        client.send(get("/small.txt", "Content-Length: 10", "Expect: 100-continue"))
        reply = client.reply()
        assert (reply.status, reply.body) == (200, b"0123456789")
        assert reply.fields["connection"] == "close"


# ---- time ----------------------------------------------------------------------------------------


def ended_after(client):
    """What still came, and after how many seconds the connection ended."""
    started = time.monotonic()
    rest = client.rest()
    return rest, time.monotonic() - started


def test_a_client_that_says_nothing_is_left(root):
    with with_limits(root, request_timeout=0.3) as server, server.connect() as client:
        rest, seconds = ended_after(client)
        assert rest == b""
        assert 0.2 < seconds < 5


def test_an_idle_connection_is_closed(root):
    with with_limits(root, idle_timeout=0.3) as server, server.connect() as client:
        client.send(get("/small.txt"))
        assert client.reply().status == 200
        rest, seconds = ended_after(client)
        assert rest == b""
        assert 0.2 < seconds < 5


@pytest.mark.parametrize("first", [b"", get("/small.txt")], ids=["first", "second"])
@pytest.mark.parametrize(
    "begin",
    [b"GET /sm", get("/small.txt")[:-2], get("/small.txt", "Content-Length: 100") + b"x"],
    ids=["line", "fields", "content"],
)  # fmt: skip
def test_a_request_that_trickles_in(root, begin, first):
    """Slow loris: each byte comes in time, the request does not."""
    with with_limits(root, request_timeout=0.5) as server, server.connect() as client:
        if first:
            client.send(first)
            assert client.reply().status == 200
        started = time.monotonic()
        client.send(begin)
        client.sock.settimeout(0.1)
        received = b""
        while time.monotonic() - started < 5 and not received:
            client.send(b"x")
            try:
                received = client.sock.recv(65536)
            except TimeoutError:
                continue
        assert received.startswith(b"HTTP/1.1 408 ")
        assert b"\r\nConnection: close\r\n" in received
        assert 0.4 < time.monotonic() - started < 4


def test_a_handshake_that_does_not_come(root):
    with with_limits(root, handshake_timeout=0.3) as server:
        for begin in (b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"):
            with socket.create_connection(("127.0.0.1", server.port), TIMEOUT) as sock:
                sock.sendall(begin)
                started = time.monotonic()
                while sock.recv(100):  # an alert, perhaps
                    pass
                assert 0.2 < time.monotonic() - started < 5
        with socket.create_connection(("127.0.0.1", server.port), TIMEOUT) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                while sock.recv(100):
                    pass
        assert server.get("/small.txt").status == 200


def test_a_client_that_stops_reading_is_cut_off(root):
    with (root / "big").open("ab") as file:
        file.truncate(200_000_000)
    with with_limits(root, send_timeout=0.5) as server:
        with server.connect(receive_buffer=65536) as client:
            client.send(get("/big"))
            client.header()
            server.wait_until_alone()
        assert re.search(r'"GET /big HTTP/1.1" 200 -$', server.lines()[-1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux what has arrived")
def test_a_client_that_reads_slowly_is_not(root):
    content = CONTENT * 4
    (root / "big").write_bytes(content)
    with (
        with_limits(root, send_timeout=0.5) as server,
        server.connect(receive_buffer=4096) as client,
    ):
        client.send(get("/big"))
        status, fields = client.header()
        assert status == 200
        received = bytearray()
        started = time.monotonic()
        while time.monotonic() - started < 2:  # too little for a piece within the time
            received += client.file.read(8192)
            time.sleep(0.05)
        received += client.file.read(int(fields["content-length"]) - len(received))
        assert received == content


def test_where_the_system_does_not_tell_how_much_has_arrived(root, monkeypatch):
    """FreeBSD: a file goes out in pieces, each of which has its time."""
    monkeypatch.setattr(sending, "acknowledged", lambda _: None)
    monkeypatch.setattr(sending, "PIECE", 100_000)
    with with_limits(root, send_timeout=0.5) as server:
        assert server.get("/big").body == CONTENT
        assert server.get("/big", "Range: bytes=7-1234567").body == CONTENT[7:1234568]
        with server.connect(receive_buffer=65536) as client:
            client.send(get("/big") * 20)
            client.header()
            server.wait_until_alone()


# ---- files and clients that change their mind ----------------------------------------------------


def test_a_file_that_shrinks_while_it_is_sent_is_not_padded(root):
    (root / "big").write_bytes(CONTENT * 20)
    with Running(root) as server, server.connect(receive_buffer=65536) as client:
        client.send(get("/big"))
        status, fields = client.header()
        assert (status, int(fields["content-length"])) == (200, BIG * 20)
        os.truncate(root / "big", BIG * 10)
        rest = client.rest()
        assert len(rest) < BIG * 20
        assert CONTENT.startswith(rest[:BIG])
        assert rest[: BIG * 10] == CONTENT * 10
        assert server.get("/small.txt").status == 200
    assert '"GET /big HTTP/1.1" 200 -' in server.log.getvalue()


def test_a_small_file_that_shrinks(root, monkeypatch):
    original = os.pread
    with Running(root) as server, server.connect() as client:
        monkeypatch.setattr(
            "pyktls.serve.files.os.pread",
            lambda fd, count, offset: original(fd, count, offset)[: max(0, 5 - offset)],
        )
        client.send(get("/small.txt"))
        assert client.header()[1]["content-length"] == "10"
        assert client.rest() == b"01234"


def test_a_file_that_cannot_be_read(root, monkeypatch):
    def fails(*_):
        raise OSError(5, "input/output error")

    with Running(root) as server:
        monkeypatch.setattr("pyktls.serve.files.os.pread", fails)
        with server.connect() as client:
            client.send(get("/small.txt"))
            assert client.rest() == b""
        server.wait_until_alone()
        assert '"GET /small.txt HTTP/1.1" 200 -' in server.log.getvalue()


def test_a_file_that_grows_is_sent_as_it_was(root):
    (root / "big").write_bytes(CONTENT * 5)
    with Running(root) as server, server.connect(receive_buffer=65536) as client:
        client.send(get("/big") + get("/small.txt"))
        _, fields = client.header()
        with (root / "big").open("ab") as file:
            file.write(b"more")
        assert client.file.read(int(fields["content-length"])) == CONTENT * 5
        assert client.reply().body == b"0123456789"


@pytest.mark.parametrize("how", ["close", "reset", "truncate"])
def test_a_client_that_goes_away_in_the_middle(root, how):
    (root / "big").write_bytes(CONTENT * 20)
    with Running(root) as server:
        for _ in range(5):
            client = server.connect(receive_buffer=65536)
            client.send(get("/big"))
            client.header()
            client.file.read(100_000)
            if how == "reset":
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif how == "truncate":
                socket.socket.shutdown(client.sock, socket.SHUT_RDWR)
            client.close()
        server.wait_until_alone()
        assert server.get("/small.txt").status == 200
    assert server.log.getvalue().count('"GET /big HTTP/1.1" 200 -') == 5


def test_what_has_arrived_as_freebsd_tells(monkeypatch):
    def ioctl(fd, request, number):
        assert (fd, request) == (7, 0x40046677)
        number[0] = 123

    monkeypatch.setattr(progress, "sys", types.SimpleNamespace(platform="freebsd14"))
    monkeypatch.setattr(progress, "fcntl", types.SimpleNamespace(ioctl=ioctl))
    assert progress.outstanding(types.SimpleNamespace(fileno=lambda: 7)) == 123
    monkeypatch.setattr(progress, "sys", types.SimpleNamespace(platform="other"))
    assert progress.outstanding(types.SimpleNamespace(fileno=lambda: 7)) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux")
def test_what_has_arrived():
    near, far = tls.tcp_pair()
    with near, far:
        assert progress.outstanding(near) == 0
        before = progress.acknowledged(near)
        near.sendall(bytes(1000))
        assert before is not None
        end = time.monotonic() + TIMEOUT
        while progress.acknowledged(near) != before + 1000:
            assert time.monotonic() < end
    for sock in (None, near):  # closed
        assert progress.acknowledged(sock) is None
        assert progress.outstanding(sock) is None


def test_whether_the_peer_has_left():
    near, far = tls.tcp_pair()
    with near, far:
        assert not progress.has_left(near)
        far.sendall(b"x")
        far.shutdown(socket.SHUT_WR)
        end = time.monotonic() + TIMEOUT
        assert not progress.has_left(near)  # there is something to be read
        assert near.recv(10) == b"x"
        while not progress.has_left(near):
            assert time.monotonic() < end
        assert not progress.has_left(far)
    for sock in (None, near):  # closed
        assert progress.has_left(sock)


# ---- many ----------------------------------------------------------------------------------------


def test_two_hundred_connections_at_once(root):
    (root / "file").write_bytes(CONTENT[:100_000])
    with with_limits(root, request_timeout=300) as server:
        clients = [server.connect() for _ in range(200)]
        server.wait(lambda running: running.server.connections == 200)
        for number, client in enumerate(clients):
            client.send(get("/file" if number % 2 else "/small.txt"))
        for number, client in enumerate(clients):
            assert client.reply().body == (CONTENT[:100_000] if number % 2 else b"0123456789")
        for client in clients:
            client.close()


def test_more_connections_than_there_may_be(root, monkeypatch):
    monkeypatch.setattr(service, "TOLD", 1)
    with with_limits(root, connections=2) as server:
        first, second, third, fourth = (server.connect() for _ in range(4))
        for client, status in ((first, 200), (second, 200), (third, 503)):
            client.send(get("/small.txt"))
            reply = client.reply()
            assert reply.status == status
        assert reply.fields["connection"] == "close"
        assert reply.fields["retry-after"] == "1"
        assert third.rest() == b""
        assert fourth.rest() == b""  # without a word
        first.close()
        third.close()
        server.wait(lambda running: running.server.connections == 1)
        assert server.get("/small.txt").status == 200
        for client in (second, fourth):
            client.close()


# ---- stopping ------------------------------------------------------------------------------------


def test_stopping_waits_for_responses_and_for_nobody_else(root):
    (root / "big").write_bytes(CONTENT * 6)
    with Running(root) as server:
        idle, half, busy = (server.connect(receive_buffer=65536) for _ in range(3))
        idle.send(get("/small.txt"))
        assert idle.reply().status == 200
        half.send(b"GET /")
        busy.send(get("/big") + get("/small.txt"))
        _, fields = busy.header()
        with concurrent.futures.ThreadPoolExecutor() as pool:
            stopped = pool.submit(server.call, lambda: server.server.stop(TIMEOUT))
            assert idle.rest() == b""
            assert half.rest() == b""
            with pytest.raises(OSError, match="refused"):
                socket.create_connection(("127.0.0.1", server.port))
            assert not stopped.done()
            assert busy.file.read(int(fields["content-length"])) == CONTENT * 6
            assert busy.rest() == b""  # the second request is not answered
            assert stopped.result(2 * TIMEOUT) is True
        for client in (idle, half, busy):
            client.close()


@pytest.mark.parametrize("grace", [0.1, TIMEOUT], ids=["short", "long"])
def test_stopping_where_the_system_does_not_tell_how_much_has_arrived(root, monkeypatch, grace):
    """Who has got everything and does not close is let go, and nobody was cut off."""
    for ask in ("acknowledged", "outstanding"):
        monkeypatch.setattr(sending, ask, lambda _: None)
    with Running(root) as server, server.connect() as client:
        client.send(get("/small.txt"))
        assert client.reply().body == b"0123456789"
        started = time.monotonic()
        assert server.call(lambda: server.server.stop(grace)) is True
        assert time.monotonic() - started < 10


@pytest.mark.parametrize("before", [0, 7])
def test_who_is_cut_off_when_the_time_is_over(root, monkeypatch, before):
    """Not one whose responses had arrived, though what ends the connection does not."""
    answers = [before]
    with Running(root) as server, server.connect() as client:
        client.send(get("/small.txt"))
        assert client.reply().body == b"0123456789"
        monkeypatch.setattr(sending, "outstanding", lambda _: answers.pop() if answers else 7)
        assert server.call(lambda: server.server.stop(0.1)) is (before == 0)


def test_a_handshake_that_ends_after_the_stop_is_for_nothing(root):
    (root / "big").write_bytes(CONTENT * 20)
    with (
        Running(root) as server,
        server.connect(receive_buffer=65536) as busy,
        socket.create_connection(("127.0.0.1", server.port), TIMEOUT) as late,
    ):
        busy.send(get("/big"))
        busy.header()
        with concurrent.futures.ThreadPoolExecutor() as pool:
            stopped = pool.submit(server.call, lambda: server.server.stop(TIMEOUT))
            server.wait(lambda running: not running.server.sockets)
            received = b""
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                tls_late = tls.client_context().wrap_socket(late, server_hostname=tls.HOST)
                with tls_late:
                    tls_late.sendall(get("/small.txt"))
                    received = tls_late.recv(100)
            assert received == b""
            busy.close()
            assert stopped.result(2 * TIMEOUT) is True


def test_stopping_does_not_wait_for_ever(root):
    (root / "big").write_bytes(CONTENT * 20)
    with Running(root) as server, server.connect(receive_buffer=65536) as client:
        client.send(get("/big"))
        client.header()
        started = time.monotonic()
        assert server.call(lambda: server.server.stop(0.3)) is False
        assert 0.2 < time.monotonic() - started < 10
        assert len(client.rest()) < BIG * 20


def test_a_handshake_under_way_does_not_hold_the_server(root):
    with Running(root) as server, socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.settimeout(TIMEOUT)
        time.sleep(0.1)
        started = time.monotonic()
        assert server.call(lambda: server.server.stop(1)) is True
        assert time.monotonic() - started < 10


def test_a_directory_that_is_none(tmp_path):
    (tmp_path / "file").touch()
    for name in ("file", "nothing"):
        with pytest.raises(OSError, match=name):
            asyncio.run(create_server(tmp_path / name, ssl=tls.server_context()))


def test_an_address_that_is_taken(root, server):
    with pytest.raises(OSError, match="in use"):
        asyncio.run(create_server(root, port=server.port, ssl=tls.server_context()))


def test_limits_are_more_than_nothing():
    with pytest.raises(InvalidValue, match="idle_timeout"):
        Limits(idle_timeout=0)


def test_a_socket_of_ones_own(root):
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    with Running(root, sock=sock) as server:
        assert server.port == port
        assert server.get("/small.txt").status == 200


# ---- the log -------------------------------------------------------------------------------------


def test_one_line_for_each_response(server):
    with server.connect() as client:
        client.send(get('/small.txt?"\\') + get("/nothing") + get("/big", method="HEAD"))
        client.reply()
        client.reply()
        client.reply(head=True)
        client.send(b"\xff\r\n\r\n")
        client.reply()
    server.wait_until_alone()
    lines = server.lines()
    stamp = r"\[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d \+0000\]"
    for line, expected in zip(
        lines,
        (
            r'"GET /small\.txt\?\\x22\\x5c HTTP/1\.1" 200 10',
            r'"GET /nothing HTTP/1\.1" 404 14',
            r'"HEAD /big HTTP/1\.1" 200 0',
            r'"-" 400 16',
        ),
        strict=True,
    ):
        assert re.fullmatch(rf"127\.0\.0\.1 - - {stamp} {expected}", line), line


def test_one_object_for_each_response(root):
    before = dt.datetime.now(dt.UTC)
    with Running(root, json_log=True) as server:
        with server.connect() as client:
            client.send(get('/small.txt?"\\') + get("/nothing"))
            client.reply()
            client.reply()
            client.send(b"\xff\r\n\r\n")
            client.reply()
        server.wait_until_alone()
        found = [json.loads(line) for line in server.lines()]
    times = [dt.datetime.fromisoformat(one.pop("time")) for one in found]
    assert times == sorted(times)
    # Written to the millisecond.
    assert before - dt.timedelta(milliseconds=1) <= times[0] <= dt.datetime.now(dt.UTC)
    common = {"event": "response", "peer": "127.0.0.1"}
    assert found == [
        {**common, "request": 'GET /small.txt?"\\ HTTP/1.1', "status": 200, "bytes": 10},
        {**common, "request": "GET /nothing HTTP/1.1", "status": 404, "bytes": 14},
        {**common, "request": None, "status": 400, "bytes": 16},
    ]


@pytest.mark.parametrize("json_log", [False, True])
def test_a_log_that_nobody_reads_any_more(root, json_log):
    with Running(root, json_log=json_log) as server:
        server.log.close()
        assert server.get("/small.txt").status == 200
        assert server.get("/small.txt").status == 200


# ---- clients of others ---------------------------------------------------------------------------


def test_http_client(server):
    connection = http.client.HTTPSConnection(
        tls.HOST, server.port, timeout=TIMEOUT, context=tls.client_context()
    )
    for path, body in (("/small.txt", b"0123456789"), ("/big", CONTENT), ("/empty", b"")):
        connection.request("GET", path)
        sock = connection.sock
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, body)
        assert connection.sock is sock
        connection.request("HEAD", path)
        assert connection.getresponse().read() == b""
    connection.request("POST", "/small.txt", body=b"content")
    response = connection.getresponse()
    assert response.status == 405
    assert response.read() == b"405 Method Not Allowed\n"
    connection.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="this machine has no curl")
def test_curl(server, tmp_path):
    ca = tmp_path / "ca.pem"
    tls.authority().cert_pem.write_to_path(ca)

    def curl(*arguments):
        command = ["curl", "-sS", "--fail", "--cacert", str(ca), *arguments]
        return subprocess.run(command, capture_output=True, timeout=TIMEOUT, check=True).stdout

    url = f"https://localhost:{server.port}"
    assert curl(f"{url}/big", f"{url}/small.txt", f"{url}/big") == CONTENT + b"0123456789" + CONTENT
    assert curl("-r", "1000-2000000", f"{url}/big") == CONTENT[1000:2000001]
    assert curl("-L", f"{url}/directory") == b"<p>index</p>"
    assert b"content-length: 3000000" in curl("-I", f"{url}/big").lower()
    part = tmp_path / "part"
    part.write_bytes(CONTENT[:1_000_000])
    curl("-C", "-", "-o", str(part), f"{url}/big")
    assert part.read_bytes() == CONTENT
    assert curl("-z", "Fri, 01 Jan 2100 00:00:00 GMT", f"{url}/big") == b""


def test_the_protocol_is_told_by_alpn(root):
    context = tls.server_context()
    context.set_alpn_protocols(["http/1.1"])
    with Running(root, ssl=context) as server:
        wanted = tls.client_context()
        wanted.set_alpn_protocols(["h2", "http/1.1"])
        with (
            socket.create_connection(("127.0.0.1", server.port), TIMEOUT) as tcp,
            wanted.wrap_socket(tcp, server_hostname=tls.HOST) as sock,
        ):
            assert sock.selected_alpn_protocol() == "http/1.1"
