"""KTLSSocket as a socket: whatever one does with a plain one, against unmodified OpenSSL.

The other end is an ``ssl.SSLSocket`` whose context was never watched.
"""

from __future__ import annotations

import array
import contextlib
import copy
import errno
import hashlib
import http.client
import http.server
import io
import os
import pickle
import select
import selectors
import signal
import socket
import threading
import time
from typing import Self

import pytest

import pyktls
from pyktls import InvalidType, InvalidValue, Role, TruncationError, linux
from pyktls.ciphers import TLS_1_2, TLS_1_3
from support import kernel, tls
from support.counting import counted
from support.kernel import (
    TIMEOUT,
    Background,
    both_ways,
    offloaded,
    pattern,
    recv_exactly,
    recv_to_end,
)

SUITES = [
    (TLS_1_3, "TLS_AES_128_GCM_SHA256"),
    (TLS_1_3, "TLS_AES_256_GCM_SHA384"),
    (TLS_1_3, "TLS_CHACHA20_POLY1305_SHA256"),
    (TLS_1_3, "TLS_AES_128_CCM_SHA256"),
    (TLS_1_2, "ECDHE-RSA-AES128-GCM-SHA256"),
    (TLS_1_2, "ECDHE-ECDSA-AES256-GCM-SHA384"),
    (TLS_1_2, "ECDHE-RSA-CHACHA20-POLY1305"),
    (TLS_1_2, "ECDHE-ECDSA-AES128-CCM"),
]
over_versions = pytest.mark.parametrize("version", kernel.VERSIONS, ids=kernel.VERSION_NAMES.get)
over_roles = pytest.mark.parametrize("role", Role)
MiB = 1 << 20


@pytest.fixture
def ends():
    """A KTLSSocket (TLS 1.3 client) and its peer."""
    with offloaded(TLS_1_3) as pair:
        yield pair


@pytest.fixture(params=kernel.VERSIONS, ids=kernel.VERSION_NAMES.get)
def ends_of_each_version(request):
    with offloaded(request.param) as pair:
        yield pair


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def after(seconds: float, call, *args) -> threading.Timer:
    timer = threading.Timer(seconds, call, args)
    timer.daemon = True
    timer.start()
    return timer


# ---- every suite, both roles -----------------------------------------------------------------


@pytest.mark.parametrize(("version", "cipher"), SUITES, ids=[name for _, name in SUITES])
@over_roles
def test_data_goes_both_ways_and_both_ends_close_cleanly(version, cipher, role):
    with offloaded(version, cipher, role) as (sock, peer):
        assert sock.cipher()[0] == peer.cipher()[0] == cipher
        status = sock.ktls
        assert status.tx
        assert status.rx
        assert status.version == kernel.version_told(version)
        data = pattern(150_000)
        with Background(kernel.echo, peer) as other:
            with Background(sock.sendall, data):
                assert recv_exactly(sock, len(data)) == data
            sock.shutdown(socket.SHUT_WR)
            assert other.result() == len(data)
            with Background(peer.unwrap):
                assert sock.recv(1) == b""


# ---- sending ---------------------------------------------------------------------------------


def test_the_ways_to_send(ends_of_each_version):
    sock, peer = ends_of_each_version
    assert sock.send(b"send") == 4
    assert sock.sendall(b" sendall") is None
    assert sock.send(memoryview(b"a memoryview")[1:]) == 11
    assert sock.send(array.array("I", [0x20202020])) == 4
    assert sock.sendmsg([b"gather", b"", bytearray(b"ed"), memoryview(b"!")]) == 9
    assert sock.sendmsg([]) == 0
    assert sock.send(b"") == 0
    assert sock.sendall(b"") is None
    assert sock.sendmsg([b"x"] * 1000) == 1000
    expected = b"send sendall memoryview    gathered!" + b"x" * 1000
    assert recv_exactly(peer, len(expected)) == expected


@pytest.mark.parametrize("way", ["send", "sendall", "sendmsg"])
def test_a_large_buffer_goes_to_the_kernel_in_one_call(ends_of_each_version, way):
    """It cuts the records itself; a call for each would be 64 calls."""
    sock, peer = ends_of_each_version
    sock.settimeout(None)  # one call of a blocking socket then waits until all is taken
    data = pattern(MiB)

    def send():
        if way == "sendmsg":
            sock.sendmsg([data[:10], data[10:]])
        else:
            getattr(sock, way)(data)

    before = linux.get_rec_seq(sock, linux.TLS_TX)
    with Background(recv_exactly, peer, MiB) as receiver:
        made = counted(send, "sendmsg", "sendto", "write", "writev", "sendfile", "splice")
        assert receiver.result() == data
    assert made == {"sendmsg": 1}
    assert linux.get_rec_seq(sock, linux.TLS_TX) == before + 64


def test_what_cannot_be_sent_is_refused_and_sends_nothing(ends):
    sock, peer = ends
    with pytest.raises(InvalidValue, match="no ancillary data"):
        sock.sendmsg([b"x"], [(282, 1, b"\x15")])
    with pytest.raises(InvalidValue, match="no other address"):
        sock.sendmsg([b"x"], [], 0, ("127.0.0.1", 1))
    with pytest.raises(InvalidValue, match="no other address"):
        sock.sendto(b"x", ("127.0.0.1", 1))
    with pytest.raises(ValueError, match="at most 1024 buffers"):
        sock.sendmsg([b"x"] * 1025)
    for wrong in ("text", 5, None):
        with pytest.raises(TypeError):
            sock.send(wrong)
        with pytest.raises(TypeError):
            sock.sendall(wrong)
        with pytest.raises(TypeError):
            sock.sendmsg([b"never sent", wrong])
    with pytest.raises(OSError, match="sendmsg") as caught:
        sock.send(b"x", socket.MSG_OOB)  # tls_sw takes only a few flags
    assert caught.value.errno == errno.EOPNOTSUPP
    both_ways(sock, peer)


def test_msg_more_holds_data_back_until_the_next_send(ends):
    """The selftest's ``msg_more``."""
    sock, peer = ends
    assert sock.send(b"held back, ", socket.MSG_MORE) == 11
    peer.settimeout(0.3)
    with pytest.raises(TimeoutError):
        peer.recv(1)
    peer.settimeout(TIMEOUT)
    sock.sendall(b"sent")
    assert recv_exactly(peer, 15) == b"held back, sent"


def test_msg_eor_ends_a_record_where_the_kernel_has_it():
    """The selftest's ``msg_eor``; Linux before 6.6 refuses the flag, and nothing is sent."""
    with kernel.wired(kernel.suite(TLS_1_3)) as (sock, wire):
        try:
            assert sock.send(b"one", socket.MSG_EOR) == 3
        except OSError as e:
            if e.errno != errno.EOPNOTSUPP:
                raise
        else:
            assert wire.recv() == (23, b"one")
        sock.sendall(b"two")
        assert wire.recv() == (23, b"two")


# ---- receiving -------------------------------------------------------------------------------


def test_the_ways_to_receive(ends_of_each_version):
    sock, peer = ends_of_each_version
    peer.sendall(pattern(1000))
    tell = iter(range(0, 1000, 100))

    def expected():
        start = next(tell)
        return pattern(1000)[start : start + 100]

    assert sock.recv(100) == expected()
    assert sock.recv(0) == b""
    assert sock.recv_into(bytearray()) == 0
    buffer = bytearray(200)
    assert sock.recv_into(buffer, 100) == 100
    assert buffer == expected() + bytes(100)
    assert sock.recv_into(memoryview(buffer)[50:150]) == 100
    assert buffer[50:150] == expected()
    numbers = array.array("I", bytes(100))
    assert sock.recv_into(numbers) == 100
    assert numbers.tobytes() == expected()
    assert sock.recvfrom(100) == (expected(), None)
    assert sock.recvfrom_into(buffer, 100) == (100, None)
    assert buffer[:100] == expected()
    assert sock.recvmsg(100) == (expected(), [], 0, None)
    assert sock.recvmsg(100, 1000) == (expected(), [], 0, None)
    buffers = [bytearray(), bytearray(40), bytearray(60)]
    assert sock.recvmsg_into(buffers, 10) == (100, [], 0, None)
    assert b"".join(buffers) == expected()
    assert sock.recvmsg_into([buffer]) == (100, [], 0, None)
    assert buffer[:100] == expected()
    assert next(tell, None) is None


def test_what_cannot_be_received_into_is_refused_and_loses_nothing(ends):
    sock, peer = ends
    peer.sendall(b"still there")
    with pytest.raises(InvalidValue, match="negative"):
        sock.recv(-1)
    with pytest.raises(InvalidValue, match="negative"):
        sock.recv_into(bytearray(5), -1)
    with pytest.raises(InvalidValue, match="too small"):
        sock.recv_into(bytearray(5), 6)
    with pytest.raises(InvalidValue, match="negative"):
        sock.recvmsg(5, -1)
    with pytest.raises(InvalidType, match="read-only"):
        sock.recv_into(b"constant")
    with pytest.raises(TypeError):
        sock.recv_into("text")
    assert recv_exactly(sock, 11) == b"still there"


def test_peek_leaves_the_data(ends_of_each_version):
    """The selftest's ``recv_peek``."""
    sock, peer = ends_of_each_version
    peer.sendall(b"look, then read")
    for _ in range(3):
        assert sock.recv(4, socket.MSG_PEEK) == b"look"
    buffer = bytearray(20)
    assert sock.recv_into(buffer, 15, socket.MSG_PEEK) == 15
    assert buffer[:15] == b"look, then read"
    assert sock.recv(100) == b"look, then read"


def test_waitall_waits_for_all_of_it(ends_of_each_version):
    sock, peer = ends_of_each_version
    with Background(lambda: [(peer.sendall(b"x" * 100), time.sleep(0.05)) for _ in range(5)]):
        assert sock.recv(500, socket.MSG_WAITALL) == b"x" * 500
    sock.settimeout(None)
    with Background(lambda: [(peer.sendall(b"y" * 100), time.sleep(0.05)) for _ in range(5)]):
        buffer = bytearray(500)
        assert sock.recv_into(buffer, 0, socket.MSG_WAITALL) == 500
        assert buffer == b"y" * 500


def test_waitall_gives_what_came_before_the_end(ends_of_each_version):
    sock, peer = ends_of_each_version
    peer.sendall(b"not enough")
    with Background(peer.unwrap):
        assert sock.recv(500, socket.MSG_WAITALL) == b"not enough"
        assert sock.recv(500, socket.MSG_WAITALL) == b""
        sock.close()


def test_waitall_gives_what_came_before_the_timeout(ends):
    sock, peer = ends
    peer.sendall(b"not enough")
    sock.settimeout(0.5)
    assert sock.recv(500, socket.MSG_WAITALL) == b"not enough"
    with pytest.raises(TimeoutError):
        sock.recv(500, socket.MSG_WAITALL)


def test_dontwait_does_not_wait_on_a_blocking_socket(ends):
    sock, peer = ends
    sock.settimeout(None)
    with pytest.raises(BlockingIOError):
        sock.recv(1, socket.MSG_DONTWAIT)
    peer.sendall(b"x")
    kernel.wait_readable(sock)
    assert sock.recv(1, socket.MSG_DONTWAIT) == b"x"


# ---- file objects ----------------------------------------------------------------------------


def test_file_objects_read_lines_and_write(ends_of_each_version):
    sock, peer = ends_of_each_version
    with sock.makefile("rb") as reader, sock.makefile("wb") as writer:
        writer.write(b"one\n")
        writer.write(b"two\n")
        writer.flush()
        assert recv_exactly(peer, 8) == b"one\ntwo\n"
        peer.sendall(b"first line\nsecond ")
        peer.sendall(b"line\n" + b"z" * 20000)
        assert reader.readline() == b"first line\n"
        assert reader.readline() == b"second line\n"
        assert reader.read(20000) == b"z" * 20000
    with sock.makefile("rw", encoding="utf-8", newline="\n") as file:
        file.write("grüße\n")
        file.flush()
        assert recv_exactly(peer, 8) == "grüße\n".encode()
        peer.sendall("zurück\n".encode())
        assert file.readline() == "zurück\n"
        with Background(peer.unwrap):
            assert file.read() == ""
            sock.shutdown(socket.SHUT_WR)


def test_the_socket_closes_with_its_last_file_object(ends):
    sock, peer = ends
    file = sock.makefile("wb")
    file.write(b"buffered")
    sock.close()
    assert sock.fileno() >= 0
    file.close()
    assert sock.fileno() == -1
    assert recv_to_end(peer) == b"buffered"


# ---- sendfile --------------------------------------------------------------------------------

CONTENT = pattern(300_000, seed=7)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    with path.open("rb") as opened:
        yield opened


def sent_by_sendfile(ends, *arguments, **keywords) -> tuple[int, bytes]:
    sock, peer = ends
    with Background(recv_to_end, peer) as receiver:
        sent = sock.sendfile(*arguments, **keywords)
        sock.shutdown(socket.SHUT_WR)
        return sent, receiver.result()


@pytest.mark.parametrize(
    ("offset", "count"),
    [
        (0, None),
        (0, 1),
        (12_345, None),
        (12_345, 100_000),
        (0, 1_000_000),
        (299_999, 1_000_000),
        (12_345, 300_000),
        (300_000, None),
        (400_000, None),
        (400_000, 10),
    ],
)
def test_sendfile_sends_what_is_there_of_the_range(ends_of_each_version, file, offset, count):
    """``count`` beyond the end, and an offset beyond it, are as with socket.sendfile."""
    end = len(CONTENT) if count is None else offset + count
    expected = CONTENT[offset:end]
    sent, received = sent_by_sendfile(ends_of_each_version, file, offset, count)
    assert sent == len(expected)
    assert received == expected
    # As with socket.sendfile: where reading would go on, if anything was sent.
    assert file.tell() == (offset + len(expected) if expected else 0)


def test_sendfile_of_an_empty_file(ends, tmp_path):
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open("rb") as empty:
        assert sent_by_sendfile(ends, empty) == (0, b"")


def test_sendfile_uses_the_system_call(ends, file, monkeypatch):
    calls = []
    real = os.sendfile

    def counting(*arguments):
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(os, "sendfile", counting)
    assert sent_by_sendfile(ends, file) == (len(CONTENT), CONTENT)
    assert calls


def test_sendfile_of_what_is_no_regular_file(ends_of_each_version):
    data = CONTENT[:100_000]
    sock, peer = ends_of_each_version
    with Background(recv_exactly, peer, 90_000) as receiver:
        assert sock.sendfile(io.BytesIO(data), 10_000) == 90_000
        assert receiver.result() == data[10_000:]
    with Background(recv_exactly, peer, 500) as receiver:
        assert sock.sendfile(io.BytesIO(data), 100, 500) == 500
        assert receiver.result() == data[100:600]


def test_sendfile_refuses_what_socket_sendfile_refuses(ends, file, tmp_path):
    sock, peer = ends
    text = (tmp_path / "file").open(encoding="latin-1")
    with text, pytest.raises(ValueError, match="binary mode"):
        sock.sendfile(text)
    for count in (0, -1):
        with pytest.raises(ValueError, match="count must be from 1"):
            sock.sendfile(file, 0, count)
    sock.setblocking(False)
    with pytest.raises(ValueError, match="non-blocking sockets are not supported"):
        sock.sendfile(file)
    sock.settimeout(TIMEOUT)
    both_ways(sock, peer)


def test_sendfile_between_sends_keeps_the_order(ends, file):
    sock, peer = ends
    with Background(recv_exactly, peer, len(CONTENT) + 10) as receiver:
        sock.sendall(b"head ")
        sock.sendfile(file)
        sock.sendall(b" tail")
        assert receiver.result() == b"head " + CONTENT + b" tail"


def test_sendfile_times_out_when_nobody_reads(ends, tmp_path):
    sock, _ = ends
    path = tmp_path / "big"
    path.write_bytes(bytes(16 * MiB))
    sock.settimeout(0.5)
    with path.open("rb") as big:
        begin = time.monotonic()
        with pytest.raises(TimeoutError):
            sock.sendfile(big)
    assert time.monotonic() - begin < 10
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


# ---- timeouts --------------------------------------------------------------------------------


def assert_about(begin: float, seconds: float) -> None:
    passed = time.monotonic() - begin
    assert seconds <= passed + 0.01
    assert passed < seconds + 5, "much later than the timeout"


def test_recv_times_out_and_loses_nothing(ends_of_each_version):
    sock, peer = ends_of_each_version
    sock.settimeout(0.5)
    for call in (
        lambda: sock.recv(1),
        lambda: sock.recv_into(bytearray(1)),
        lambda: sock.recv(1, socket.MSG_PEEK),
        lambda: sock.recv(5, socket.MSG_WAITALL),
    ):
        begin = time.monotonic()
        with pytest.raises(TimeoutError, match="timed out"):
            call()
        assert_about(begin, 0.5)
    sock.settimeout(TIMEOUT)
    both_ways(sock, peer)


def test_the_timeout_of_recv_is_a_total():
    """Records that are no data do not put it off."""
    with kernel.wired(kernel.suite(TLS_1_3)) as (sock, wire):
        stop = threading.Event()

        def tickets():
            while not stop.wait(0.05):
                wire.send(22, kernel.new_session_ticket())

        sock.settimeout(0.6)
        with Background(tickets):
            begin = time.monotonic()
            try:
                with pytest.raises(TimeoutError):
                    sock.recv(1)
            finally:
                stop.set()
            assert_about(begin, 0.6)


def test_sendall_times_out_when_nobody_reads(ends_of_each_version):
    sock, _ = ends_of_each_version
    sock.settimeout(0.5)
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match="timed out"):
        sock.sendall(bytes(32 * MiB))
    assert time.monotonic() - begin >= 0.49
    begin = time.monotonic()
    with pytest.raises(TimeoutError):
        sock.sendall(bytes(32 * MiB))
    assert time.monotonic() - begin < 10
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def test_the_timeout_of_sendall_is_a_total(ends):
    """A peer that reads a little every now and then does not put it off."""
    sock, peer = ends
    stop = threading.Event()

    def sip():
        while not stop.wait(0.05):
            peer.recv(16384)

    sock.settimeout(0.8)
    with Background(sip):
        begin = time.monotonic()
        try:
            with pytest.raises(TimeoutError):
                sock.sendall(bytes(64 * MiB))
        finally:
            stop.set()
        assert_about(begin, 0.8)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


# ---- non-blocking ----------------------------------------------------------------------------


def test_non_blocking_receive_raises_blocking_io_error(ends_of_each_version):
    sock, peer = ends_of_each_version
    sock.setblocking(False)
    for call in (
        lambda: sock.recv(1),
        lambda: sock.recv_into(bytearray(1)),
        lambda: sock.recv(1, socket.MSG_PEEK),
        lambda: sock.recv(2, socket.MSG_WAITALL),
    ):
        with pytest.raises(BlockingIOError) as caught:
            call()
        assert caught.value.errno == errno.EAGAIN
    peer.sendall(b"x")
    kernel.wait_readable(sock)
    assert sock.recv(10) == b"x"


def test_non_blocking_streams_both_ways_lose_nothing(ends_of_each_version):
    """More than fits, both ways at once: partial sends, EAGAIN, and on from there."""
    sock, peer = ends_of_each_version
    up, down = pattern(5 * MiB + 321, 1), pattern(5 * MiB + 123, 2)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200_000)
    received = bytearray()
    sent = sock.send(memoryview(up)[:3_000_000])
    assert 0 < sent < 3_000_000
    with contextlib.suppress(BlockingIOError):
        while sent < len(up):
            sent += sock.send(memoryview(up)[sent : sent + 3_000_000])
    assert sent < len(up)  # nobody reads yet
    with pytest.raises(BlockingIOError):  # and nobody has written
        sock.recv(100_000)
    poll = select.poll()
    with Background(kernel.duplex, peer, down, len(up)) as other:
        while sent < len(up) or len(received) < len(down):
            wanted = select.POLLIN if len(received) < len(down) else 0
            if sent < len(up):
                wanted |= select.POLLOUT
            poll.register(sock, wanted)
            assert poll.poll(TIMEOUT * 1000)
            with contextlib.suppress(BlockingIOError):
                received += sock.recv(100_000)
            with contextlib.suppress(BlockingIOError):
                if piece := memoryview(up)[sent : sent + 3_000_000]:
                    sent += sock.send(piece)
        assert digest(other.result()) == digest(up)
    assert digest(received) == digest(down)


def test_one_thread_sends_while_another_receives(ends_of_each_version):
    sock, peer = ends_of_each_version
    up, down = pattern(3 * MiB + 1, 3), pattern(3 * MiB + 2, 4)
    sock.settimeout(None)
    with (
        Background(kernel.duplex, peer, down, len(up)) as other,
        Background(sock.sendall, up),
    ):
        assert digest(recv_exactly(sock, len(down))) == digest(down)
        assert digest(other.result()) == digest(up)


def test_select_and_poll_see_data(ends_of_each_version):
    sock, peer = ends_of_each_version
    sock.setblocking(False)
    while select.select([sock], [], [], 0.2)[0]:  # tickets; FreeBSD decrypts one after the other
        with contextlib.suppress(BlockingIOError):
            sock.recv(1)
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    assert select.select([sock], [sock], [], 0) == ([], [sock], [])
    assert poll.poll(0) == []
    peer.sendall(b"123")
    assert select.select([sock], [], [], TIMEOUT)[0] == [sock]
    assert poll.poll(0) == [(sock.fileno(), select.POLLIN)]
    assert sock.recv(1) == b"1"
    assert poll.poll(0) == [(sock.fileno(), select.POLLIN)]  # the rest of the record
    assert sock.recv(5) == b"23"
    assert poll.poll(0) == []
    with selectors.DefaultSelector() as best:  # epoll, or FreeBSD's kqueue
        best.register(sock, selectors.EVENT_READ)
        assert best.select(0) == []
        peer.sendall(b"4")
        assert [key.fileobj for key, _ in best.select(TIMEOUT)] == [sock]


# ---- signals (PEP 475) -----------------------------------------------------------------------


class Interrupted(Exception):
    pass


class Signals:
    """Sends SIGUSR1 to the main thread every 50 ms; the handler counts, or raises once.

    Once, because a second signal may already be on its way when the first one is handled; and not
    before the call that is to be ended, which a slow machine may take longer to come to.
    """

    def __init__(self, *, raises: bool) -> None:
        self.raises = raises
        self.count = 0
        self.begun = threading.Event()
        self.stop = threading.Event()

    def during(self, call, *arguments):
        self.begun.set()
        return call(*arguments)

    def _handle(self, *_: object) -> None:
        self.count += 1
        if self.raises and not self.stop.is_set():
            self.stop.set()
            raise Interrupted

    def _send(self) -> None:
        self.begun.wait()
        while not self.stop.wait(0.05):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    def __enter__(self) -> Self:
        self.previous = signal.signal(signal.SIGUSR1, self._handle)
        self.thread = threading.Thread(target=self._send, daemon=True)
        self.thread.start()
        if not self.raises:
            self.begun.set()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.begun.set()
        self.thread.join()
        signal.signal(signal.SIGUSR1, self.previous)


@pytest.mark.parametrize("timeout", [None, TIMEOUT])
def test_a_signal_does_not_end_recv(ends_of_each_version, timeout):
    sock, peer = ends_of_each_version
    sock.settimeout(timeout)
    with Signals(raises=False) as signals:
        after(0.5, peer.sendall, b"at last")
        assert sock.recv(100) == b"at last"
        assert signals.count > 2
        after(0.5, peer.sendall, b"at last")
        assert sock.recv(7, socket.MSG_WAITALL) == b"at last"


@pytest.mark.parametrize("timeout", [None, TIMEOUT])
def test_a_signal_does_not_end_sendall_nor_spoil_the_stream(ends_of_each_version, timeout):
    sock, peer = ends_of_each_version
    sock.settimeout(timeout)
    data = pattern(3 * MiB)

    def slowly() -> bytes:
        time.sleep(0.7)
        return recv_exactly(peer, len(data))

    with Signals(raises=False) as signals, Background(slowly) as receiver:
        sock.sendall(data)
        assert digest(receiver.result()) == digest(data)
    assert signals.count > 5


@pytest.mark.parametrize("timeout", [None, TIMEOUT])
def test_a_handler_that_raises_ends_recv_and_loses_nothing(ends_of_each_version, timeout):
    sock, peer = ends_of_each_version
    sock.settimeout(timeout)
    with Signals(raises=True) as signals, pytest.raises(Interrupted):
        signals.during(sock.recv, 1)
    sock.settimeout(TIMEOUT)
    both_ways(sock, peer)


@pytest.mark.parametrize("timeout", [None, TIMEOUT])
def test_a_handler_that_raises_ends_sendall_and_the_stream_stays_intact(
    ends_of_each_version, timeout
):
    """What was sent is a beginning of the data, and records are whole: more can follow."""
    sock, peer = ends_of_each_version
    sock.settimeout(timeout)
    data = pattern(12 * MiB)
    with Signals(raises=True) as signals, pytest.raises(Interrupted):
        signals.during(sock.sendall, data)
    sock.settimeout(TIMEOUT)
    with Background(recv_to_end, peer) as receiver:
        sock.sendall(b"THE END")
        sock.shutdown(socket.SHUT_WR)
        received = receiver.result()
    assert received.endswith(b"THE END")
    assert digest(received[:-7]) == digest(data[: len(received) - 7])


def test_signals_do_not_put_off_the_timeout(ends):
    sock, _ = ends
    sock.settimeout(0.6)
    with Signals(raises=False) as signals:
        begin = time.monotonic()
        with pytest.raises(TimeoutError):
            sock.recv(1)
        assert_about(begin, 0.6)
    assert signals.count > 2


# ---- threads ---------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, TIMEOUT])
def test_messages_of_several_senders_are_not_mixed(ends, timeout):
    """sendall holds the sending side until its last byte, over many records and waits."""
    sock, peer = ends
    sock.settimeout(timeout)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 30_000)
    size, rounds, senders = 70_000, 4, 4

    def send(number: int) -> None:
        for _ in range(rounds):
            sock.sendall(bytes([number]) * size)

    with Background(recv_exactly, peer, size * rounds * senders) as receiver:
        threads = [Background(send, number) for number in range(senders)]
        for thread in threads:
            thread.result()
        received = receiver.result()
    messages = [received[i : i + size] for i in range(0, len(received), size)]
    assert all(len(set(message)) == 1 for message in messages)
    assert sorted(message[0] for message in messages) == sorted(list(range(senders)) * rounds)


def test_several_readers_share_the_stream_without_loss(ends):
    sock, peer = ends
    lock = threading.Lock()
    pieces: list[bytes] = []
    total = 200 * 64

    def read() -> None:
        while True:
            data = sock.recv(64, socket.MSG_WAITALL)
            if not data:
                return
            with lock:
                pieces.append(data)

    readers = [Background(read) for _ in range(3)]
    blocks = [bytes([i]) * 64 for i in range(200)]
    for block in blocks:
        peer.sendall(block)
    with Background(peer.unwrap):
        for reader in readers:
            reader.result()
        sock.shutdown(socket.SHUT_WR)
    assert sum(map(len, pieces)) == total
    assert sorted(pieces) == sorted(blocks)


def test_receiving_goes_on_while_another_thread_cannot_send(ends):
    sock, peer = ends
    sock.settimeout(None)
    with Background(sock.sendall, bytes(16 * MiB)) as sender:
        time.sleep(0.3)
        peer.sendall(b"through")
        assert recv_exactly(sock, 7) == b"through"
        assert not sender.done()
        recv_exactly(peer, 16 * MiB)


def test_close_interrupts_a_reader(ends):
    sock, peer = ends
    with Background(sock.recv, 1) as reader:
        time.sleep(0.3)
        sock.shutdown(socket.SHUT_RDWR)
        reader.fails(TruncationError)
    assert recv_to_end(peer) == b""


# ---- a whole program over it -----------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = CONTENT[: int(self.path[1:])]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "64")
        self.end_headers()
        self.wfile.write(digest(body).encode())

    def log_message(self, *_: object) -> None:
        pass


@over_versions
@pytest.mark.parametrize("kernel_end", ["client", "server"])
def test_http_client_and_server(version, kernel_end):
    """http.client on a KTLSSocket against http.server on ssl, and the other way round."""
    role = Role(kernel_end)
    with offloaded(version, role=role) as (sock, peer):
        near, far = (sock, peer) if role is Role.CLIENT else (peer, sock)
        with Background(Handler, far, ("127.0.0.1", 1), None):
            connection = http.client.HTTPConnection("localhost")
            connection.sock = near
            for size in (0, 10, 200_000):
                connection.request("GET", f"/{size}")
                response = connection.getresponse()
                assert response.status == 200
                assert response.read() == CONTENT[:size]
            connection.request("POST", "/", body=CONTENT)
            assert connection.getresponse().read().decode() == digest(CONTENT)
            connection.request("GET", "/3", headers={"Connection": "close"})
            assert connection.getresponse().read() == CONTENT[:3]
            if far is peer:
                peer.close()


# ---- what it is ------------------------------------------------------------------------------


def test_it_is_a_socket_and_tells_about_the_connection(ends):
    sock, peer = ends
    assert isinstance(sock, socket.socket)
    assert sock.getsockname() == peer.getpeername()
    assert sock.type == socket.SOCK_STREAM
    assert sock.family == socket.AF_INET
    assert "TLS_" in repr(sock)
    assert not any(
        key.hex() in repr(sock) for key in (sock._layer.session.tx.key, sock._layer.session.rx.key)
    )
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.pending() == 0
    with pytest.raises(InvalidType, match="cannot be duplicated"):
        sock.dup()


def test_there_is_no_second_socket_of_the_descriptor(ends):
    """Another reader would take records away from the one that knows what they mean."""
    sock, peer = ends
    with pytest.raises(InvalidType, match=r"^a KTLSSocket cannot be duplicated"):
        sock.dup()
    for another in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot pickle 'KTLSSocket'"):
            another(sock)
    both_ways(sock, peer)


def test_nor_of_one_that_the_ssl_module_made():
    contexts = tls.contexts(tls.TLS_1_3)
    pyktls.wrap_context(contexts[0], require=True)
    with tls.connect(*contexts) as pair:
        with pytest.raises(NotImplementedError, match="Can't dup"):
            pair.client.dup()
        for another in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match=r"cannot pickle '\w*SSLSocket'"):
                another(pair.client)
        both_ways(pair.client, pair.server)


def test_alpn_is_remembered():
    client, server = tls.contexts(tls.TLS_1_3)
    client.set_alpn_protocols(["x", "y"])
    server.set_alpn_protocols(["y"])
    with tls.connect(client, server) as pair, kernel.pyktls.offload(pair.client) as sock:
        assert sock.selected_alpn_protocol() == "y"
        pair.server.close()


# ---- several buffers -------------------------------------------------------------------------


@pytest.mark.parametrize("suite", kernel.ONE_OF_EACH, ids=kernel.suite_id)
def test_recvmsg_into_fills_all_its_buffers(suite):
    with kernel.wired(suite) as (sock, wire):
        wire.send_data(b"0123456789")
        buffers = [bytearray(3), bytearray(), bytearray(4), bytearray(b"." * 10)]
        assert sock.recvmsg_into(buffers) == (10, [], 0, None)
        assert buffers == [b"012", b"", b"3456", b"789......."]
        wire.send_data(b"0123456789")
        buffers = [bytearray(3), bytearray(4)]
        assert sock.recvmsg_into(buffers) == (7, [], 0, None)
        assert buffers == [b"012", b"3456"]
        assert sock.recv(100) == b"789"


@pytest.mark.parametrize("suite", kernel.ONE_OF_EACH, ids=kernel.suite_id)
def test_nothing_of_a_control_record_stays_in_the_buffers(suite):
    with kernel.wired(suite) as (sock, wire):
        if suite.version == TLS_1_3:
            wire.send(22, kernel.new_session_ticket(40))  # longer than both buffers
        else:
            wire.send_alert(1, 90)  # a warning
        wire.send_data(b"abc")
        buffers = [bytearray(b"." * 2), bytearray(b"." * 8)]
        assert sock.recvmsg_into(buffers) == (3, [], 0, None)
        if suite.version == TLS_1_3:
            assert buffers == [b"ab", b"c" + bytes(7)]
        else:
            assert buffers == [b"ab", b"c" + b"." * 7]
        wire.close_notify()
        assert sock.recvmsg_into(buffers) == (0, [], 0, None)


def test_recvmsg_into_with_flags_and_errors():
    with kernel.wired(kernel.suite(TLS_1_3)) as (sock, wire):
        wire.send_data(b"0123")
        buffers = [bytearray(2), bytearray(4)]
        assert sock.recvmsg_into(buffers, 0, socket.MSG_PEEK)[0] == 2
        assert buffers == [b"01", bytes(4)]
        wire.send_data(b"45")
        assert sock.recvmsg_into(buffers, 0, socket.MSG_WAITALL)[0] == 6
        assert buffers == [b"01", b"2345"]
        wire.send_data(b"6789")
        buffers = [bytearray(2), bytearray(2)]
        assert sock.recvmsg_into(buffers, 0, socket.MSG_PEEK | socket.MSG_WAITALL)[0] == 2
        assert buffers == [b"67", bytes(2)]
        sock.settimeout(0.2)
        buffers = [bytearray(4), bytearray(4)]
        assert sock.recvmsg_into(buffers, 0, socket.MSG_WAITALL)[0] == 4
        assert buffers == [b"6789", bytes(4)]
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recvmsg_into(buffers)
        wire.sock.close()
        sock.settimeout(kernel.TIMEOUT)
        for _ in range(2):
            with pytest.raises(TruncationError):
                sock.recvmsg_into(buffers)


def test_recvmsg_into_serves_first_what_openssl_had_decrypted():
    with kernel.openssl_pair(TLS_1_3) as (own, peer):
        peer.sendall(b"0123456789")
        assert own.recv(1) == b"0"
        with pyktls.offload(own) as sock:
            peer.sendall(b"then")
            buffers = [bytearray(4), bytearray(20)]
            received, data = 0, b""
            while received < 13:
                count = sock.recvmsg_into(buffers)[0]
                data += b"".join(buffers)[:count]
                received += count
            assert data == b"123456789then"
