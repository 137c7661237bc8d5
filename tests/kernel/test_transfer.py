"""Files and pipes: sendfile(2) and splice(2), of pyktls.linux and of KTLSSocket."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import select
import socket
import struct
import threading
import time

import pytest

import pyktls
from pyktls import InvalidType, InvalidValue, linux
from pyktls.ciphers import TLS_1_3
from support import kernel, records, tls
from support.kernel import ONE_OF_EACH, SUITES, TIMEOUT, Background, pattern, suite_id
from support.selftest import kernel_version, wait_queued

over_suites = pytest.mark.parametrize("suite", SUITES, ids=suite_id)
over_versions = pytest.mark.parametrize("suite", ONE_OF_EACH, ids=suite_id)
BIG = 200_000
MiB = 1 << 20
DATA, HANDSHAKE, ALERT = records.APPLICATION_DATA, records.HANDSHAKE, records.ALERT


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(pattern(BIG))
    with path.open("r+b") as opened:
        yield opened


@pytest.fixture
def pipe():
    out, into = os.pipe()
    yield out, into
    for fd in (out, into):
        with contextlib.suppress(OSError):
            os.close(fd)


@pytest.fixture
def keyed():
    """A socket with keys in the kernel that nobody but the kernel looks after, and its peer."""
    own, other = kernel.sessions(kernel.suite(TLS_1_3))
    near, far = tls.tcp_pair(tls.ORDINARY_MSS)
    with near, far:
        pyktls.install(near, own)
        near.settimeout(None)
        far.settimeout(TIMEOUT)
        yield near, kernel.Wire(far, other)


# ---- sendfile: the interface -----------------------------------------------------------------


@over_suites
def test_a_whole_file(suite, file):
    own, other = kernel.sessions(suite)
    near, far = tls.tcp_pair()
    with near, far:
        pyktls.install(near, own)
        near.settimeout(None)
        far.settimeout(TIMEOUT)
        wire = kernel.Wire(far, other)
        with Background(wire.recv_data, BIG) as received:
            assert linux.sendfile(near, file) == (BIG, None)
        assert received.result() == pattern(BIG)


@pytest.mark.parametrize(
    ("offset", "count", "expected"),
    [
        (0, 1, (0, 1)),
        (0, 16384, (0, 16384)),
        (0, 16385, (0, 16385)),
        (1, 16383, (1, 16384)),
        (4095, 8194, (4095, 12289)),
        (BIG - 1, 1, (BIG - 1, BIG)),
        (BIG - 1, 2, (BIG - 1, BIG)),
        (BIG - 100, 0, (BIG - 100, BIG)),
        (100, BIG, (100, BIG)),
        (0, 2**62, (0, BIG)),
        (BIG, 0, (0, 0)),
        (BIG, 10, (0, 0)),
        (BIG + 1, 10, (0, 0)),
        (2**62, 2**62, (0, 0)),
    ],
)
def test_offset_and_count_are_held_to_the_files_size(keyed, file, offset, count, expected):
    near, wire = keyed
    begin, end = expected
    with Background(wire.recv_data, end - begin + 4) as received:
        assert linux.sendfile(near, file, offset, count) == (end - begin, None)
        near.sendall(b"next")  # the tail has not stayed behind, and nothing more has come
    assert received.result() == pattern(BIG)[begin:end] + b"next"
    assert file.tell() == 0  # as sendfile(2) with an offset


def test_what_goes_before_shares_a_record_and_what_goes_after_has_its_own(keyed, file):
    near, wire = keyed
    sent = linux.sendfile(
        near, file, 10, 100, headers=[b"one", bytearray(b"two"), b""], trailers=[b"three", b"four"]
    )
    assert sent == (6 + 100 + 9, None)
    assert wire.recv() == (DATA, b"onetwo" + pattern(BIG)[10:110])
    assert wire.recv() == (DATA, b"threefour")


def test_what_goes_around_an_empty_file_is_sent(keyed, tmp_path):
    near, wire = keyed
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open("rb") as empty:
        assert linux.sendfile(near, empty, headers=[b"before"]) == (6, None)
        assert wire.recv() == (DATA, b"before")
        assert linux.sendfile(near, empty, trailers=[b"after"]) == (5, None)
        assert wire.recv() == (DATA, b"after")
        assert linux.sendfile(near, empty, headers=[b"be"], trailers=[b"af"]) == (4, None)
        assert wire.recv_data(4) == b"beaf"
        assert linux.sendfile(near, empty) == (0, None)
        assert linux.get_rec_seq(near, linux.TLS_TX) == wire.opener.sequence


def test_many_buffers_before(keyed, file):
    near, wire = keyed
    pieces = [bytes([n % 256]) for n in range(3000)]
    assert linux.sendfile(near, file, 0, 10, headers=pieces) == (3010, None)
    assert wire.recv_data(3010) == b"".join(pieces) + pattern(10)


def test_a_file_that_becomes_shorter_ends_early(keyed, file):
    near, wire = keyed
    os.ftruncate(file.fileno(), 50_000)
    assert linux.sendfile(near, file, 0, BIG) == (50_000, None)
    assert wire.recv_data(50_000) == pattern(BIG)[:50_000]


def test_a_file_that_becomes_shorter_while_it_is_sent(file):
    """The peer reads nothing until the file is cut: what is sent is a beginning of the file."""
    with kernel.wired(kernel.suite(TLS_1_3)) as (sock, wire):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
        with Background(sock.sendfile, file) as sending:
            time.sleep(0.3)
            assert not sending.done()
            os.ftruncate(file.fileno(), 1000)
            with Background(wire.recv_all) as received:
                total = sending.result()
                assert 1000 < total < BIG
                sock.close()
        assert received.result() == (pattern(BIG)[:total], [(ALERT, b"\1\0")])


def test_progress_and_error_come_together(keyed, file):
    near, wire = keyed
    near.setblocking(False)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
    wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)  # and it does not grow
    # Until it is full for the first time, nobody reads.
    sent, error = linux.sendfile(near, file, 0)
    assert 0 < sent < BIG
    with Background(wire.recv_data, BIG) as received:
        while sent < BIG:
            assert isinstance(error, BlockingIOError)
            assert str(error) == f"[Errno {errno.EAGAIN}] sendfile: {os.strerror(errno.EAGAIN)}"
            assert select.select([], [near], [], TIMEOUT)[1]
            taken, error = linux.sendfile(near, file, sent)
            sent += taken
        assert error is None
    assert received.result() == pattern(BIG)


def test_what_was_held_back_is_not_left_behind_by_an_error(keyed):
    """The headers wait for the file; if there is none to be had they are sent all the same."""
    near, wire = keyed
    out, into = os.pipe()
    os.close(into)
    sent, error = linux.sendfile(near, out, 0, 10, headers=[b"headers"])
    assert sent == 7
    # A pipe has size 0: nothing to send, and no error.
    assert error is None
    assert wire.recv() == (DATA, b"headers")
    os.close(out)
    sent, error = linux.sendfile(near, out, 0, 10, headers=[b"again"])
    assert sent == 5
    assert isinstance(error, OSError)
    assert error.errno == errno.EBADF
    assert wire.recv() == (DATA, b"again")


def test_a_dead_connection_is_the_error_and_no_byte_is_claimed(keyed, file):
    near, wire = keyed
    wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    wire.sock.close()
    kernel.wait_readable(near)
    sent, error = linux.sendfile(near, file)
    assert sent == 0
    assert isinstance(error, (BrokenPipeError, ConnectionResetError))
    assert "sendfile: " in str(error)


@pytest.mark.parametrize("name", ["offset", "count"])
def test_sendfile_arguments(keyed, file, name):
    near, wire = keyed
    for wrong in (None, "1", 1.0, True):
        with pytest.raises(InvalidType, match=rf"^{name} must be an int, not "):
            linux.sendfile(near, file, **{name: wrong})
    for wrong in (-1, 2**63):
        with pytest.raises(InvalidValue, match=rf"^{name} must be from 0 to 2\*\*63 - 1, not "):
            linux.sendfile(near, file, **{name: wrong})
    with pytest.raises(InvalidType, match=r"a socket or a file descriptor is needed, not NoneType"):
        linux.sendfile(near, None)
    for around in ("headers", "trailers"):
        for wrong in (["text"], 5, [None]):
            with pytest.raises(InvalidType):
                linux.sendfile(near, file, 0, 10, **{around: wrong})
    near.sendall(b"nothing was sent before")
    assert wire.recv() == (DATA, b"nothing was sent before")


# ---- sendfile: the socket --------------------------------------------------------------------


@over_suites
def test_ktls_socket_sends_a_file_with_what_goes_around_it(suite, file):
    with kernel.wired(suite) as (sock, wire):
        with Background(wire.recv_data, 4 + 50_000 + 5) as received:
            total = sock.sendfile(file, 7, 50_000, headers=[b"he", b"ad"], trailers=[b"trail"])
        assert total == 4 + 50_000 + 5
        assert received.result() == b"head" + pattern(BIG)[7:50_007] + b"trail"
        assert file.tell() == 50_007


def test_ktls_socket_with_no_real_file():
    class Reader:
        def __init__(self):
            self.left = [b"con", b"tent", b""]

        def read(self, _size):
            return self.left.pop(0)

    with kernel.wired(kernel.suite(TLS_1_3)) as (sock, wire):
        assert sock.sendfile(Reader(), headers=[b"<"], trailers=[b">"]) == 9
        assert wire.recv_data(9) == b"<content>"


def test_ktls_socket_with_an_empty_file(tmp_path):
    (tmp_path / "empty").touch()
    with (
        (tmp_path / "empty").open("rb") as empty,
        kernel.wired(kernel.suite(TLS_1_3)) as (sock, wire),
    ):
        assert sock.sendfile(empty, headers=[b"<"], trailers=[b">"]) == 2
        assert wire.recv_data(2) == b"<>"


def test_ktls_socket_beyond_the_end_of_the_file(file):
    with kernel.wired(kernel.suite(TLS_1_3)) as (sock, wire):
        assert sock.sendfile(file, BIG + 10, headers=[b"head"]) == 4
        assert wire.recv() == (DATA, b"head")
        assert sock.sendfile(file, BIG - 10, 1000, headers=[b"head"]) == 14
        assert wire.recv() == (DATA, b"head" + pattern(BIG)[-10:])


def test_ktls_socket_times_out_and_goes_on(file):
    with kernel.wired(kernel.suite(TLS_1_3)) as (sock, wire):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.sendfile(file)
        done = file.tell()  # as socket.sendfile: the position tells how far it came
        assert 0 < done < BIG
        sock.settimeout(TIMEOUT)
        with Background(wire.recv_data, BIG) as received:
            assert sock.sendfile(file, done) == BIG - done
        assert received.result() == pattern(BIG)


@pytest.fixture(params=[1, 10_000, 24_000, 33_000])
def narrow(request):
    """A socket of KTLSSocket with a send buffer that one call of sendfile fills many times."""
    with kernel.wired(kernel.suite(TLS_1_3)) as (sock, wire):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, request.param)
        yield sock, wire


# Linux before 6.5 stopped here for good: within three times with the smallest buffer, and once in
# 100 times on a busy machine with that of 10,000.
TIMES = 10


@pytest.mark.parametrize("timeout", [TIMEOUT, None])
def test_ktls_socket_with_a_small_send_buffer(narrow, file, timeout):
    sock, wire = narrow
    sock.settimeout(timeout)
    data = pattern(BIG)
    send = functools.partial(sock.sendfile, headers=[b"head"], trailers=[b"tail"])
    for begin in range(TIMES):
        expected = b"head" + data[begin:] + b"tail"
        sending = Background(send, file, begin)
        assert wire.recv_data(len(expected)) == expected
        assert sending.result() == len(expected)
        assert file.tell() == BIG


def test_the_interface_with_a_small_send_buffer(narrow, file):
    sock, wire = narrow
    sock.settimeout(None)
    for begin in range(TIMES):
        sending = Background(linux.sendfile, sock.fileno(), file, begin)
        assert wire.recv_data(BIG - begin) == pattern(BIG)[begin:]
        assert sending.result() == (BIG - begin, None)


@pytest.mark.parametrize("timeout", [TIMEOUT, None])
def test_a_pipe_into_a_socket_with_a_small_send_buffer(narrow, pipe, timeout):
    out, into = pipe
    sock, wire = narrow
    sock.settimeout(timeout)
    data = pattern(60_000)

    def pump() -> int:
        done = 0
        while done < len(data):
            done += sock.splice_from(out, len(data) - done)
        return done

    for _ in range(TIMES):
        os.write(into, data)
        pumping = Background(pump)
        assert wire.recv_data(len(data)) == data
        assert pumping.result() == len(data)


def test_a_peer_that_resets_in_the_midst_of_a_file_is_noticed(tmp_path):
    """Again and again: Linux 7.3 was seen to go on taking the file, once in many times."""
    with (tmp_path / "large").open("w+b") as large:
        large.truncate(200 * MiB)
        for _ in range(12):
            with kernel.wired(kernel.suite(TLS_1_3)) as (sock, wire):
                sock.settimeout(TIMEOUT)
                sending = Background(sock.sendfile, large)
                wire.sock.recv(100_000)
                wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                wire.sock.close()
                with pytest.raises(ConnectionError):
                    sending.result()
            assert large.tell() < 100 * MiB
            large.seek(0)


# ---- splice into a socket --------------------------------------------------------------------


@over_suites
def test_a_pipe_into_the_socket(suite, pipe):
    out, into = pipe
    with kernel.wired(suite) as (sock, wire):
        data = pattern(50_000)
        os.write(into, data)
        done = 0
        with Background(wire.recv_data, 50_000) as received:
            while done < 50_000:
                done += sock.splice_from(out, 50_000 - done)
        assert received.result() == data
        os.close(into)
        assert sock.splice_from(out, 10) == 0  # the end of the pipe


def test_more_keeps_the_record_open(pipe):
    out, into = pipe
    with kernel.wired(kernel.suite(TLS_1_3)) as (sock, wire):
        for piece in (b"one", b"two"):
            os.write(into, piece)
            assert sock.splice_from(out, 10, more=True) == 3
        sock.sendall(b"end")
        # Before 6.5 SPLICE_F_MORE has no effect.
        joined = kernel_version() >= (6, 5)
        for content in (b"onetwoend",) if joined else (b"one", b"two", b"end"):
            assert wire.recv() == (DATA, content)


def test_closing_sends_what_splice_held_back(pipe):
    out, into = pipe
    with kernel.wired(kernel.suite(TLS_1_3)) as (sock, wire):
        os.write(into, b"held")
        assert sock.splice_from(out, 10, more=True) == 4
        sock.close()
        assert wire.recv_all() == (b"held", [(ALERT, b"\1\0")])


def test_splice_from_waits_for_the_pipe_as_the_timeout_allows(pipe):
    out, into = pipe
    with kernel.wired(kernel.suite(TLS_1_3)) as (sock, wire):
        sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            sock.splice_from(out, 10)
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.splice_from(out, 10)
        sock.setblocking(True)
        with Background(sock.splice_from, out, 10) as moving:
            time.sleep(0.1)
            assert not moving.done()
            os.write(into, b"late")
        assert moving.result() == 4
        assert wire.recv_data(4) == b"late"


def test_splice_from_waits_for_the_peer(pipe):
    out, into = pipe
    data = pattern(300_000)
    with kernel.wired(kernel.suite(TLS_1_3)) as (sock, wire):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)

        def pump() -> int:
            done = 0
            while taken := sock.splice_from(out, 65536):
                done += taken
            return done

        def fill() -> None:
            with open(into, "wb", buffering=0, closefd=True) as end:  # noqa: PTH123
                view = memoryview(data)
                while view:
                    view = view[end.write(view) :]

        with Background(fill), Background(pump) as pumping:
            time.sleep(0.2)
            assert not pumping.done()
            assert wire.recv_data(len(data)) == data
        assert pumping.result() == len(data)


# ---- splice out of a socket ------------------------------------------------------------------


@over_suites
def test_the_socket_into_a_pipe(suite, pipe):
    out, into = pipe
    with kernel.wired(suite) as (sock, wire):
        got = b""
        for size in (1, 16384, 100, 5000):
            wire.send_data(pattern(size, seed=size))
        while len(got) < 1 + 16384 + 100 + 5000:
            moved = sock.splice_to(into, 1 << 16)
            assert 0 < moved <= 16384  # at most one record
            got += os.read(out, moved)
        assert got == b"".join(pattern(size, seed=size) for size in (1, 16384, 100, 5000))


@over_versions
def test_control_records_between_are_dealt_with(suite, pipe):
    out, into = pipe
    with kernel.wired(suite, pyktls.Role.CLIENT) as (sock, wire):
        wire.send_data(b"before")
        if suite.version == TLS_1_3:
            wire.send(HANDSHAKE, kernel.new_session_ticket())
        else:
            wire.send_alert(1, 90)  # a warning: user_canceled
        wire.send_data(b"after")
        wire.close_notify()
        assert sock.splice_to(into, 100) == 6
        assert sock.splice_to(into, 100) == 5
        assert os.read(out, 100) == b"beforeafter"
        assert sock.splice_to(into, 100) == 0
        assert sock.recv(100) == b""


def test_empty_records_are_no_end(pipe):
    out, into = pipe
    with kernel.wired(kernel.suite(TLS_1_3)) as (sock, wire):
        sock.settimeout(0.5)
        for _ in range(3):
            wire.send(DATA, b"", padding=10)
        with pytest.raises(TimeoutError):
            sock.splice_to(into, 100)
        wire.send(DATA, b"")
        wire.send_data(b"data")
        assert sock.splice_to(into, 100) == 4
        assert os.read(out, 100) == b"data"


def test_a_fatal_alert_is_raised(pipe):
    with kernel.wired(kernel.suite(TLS_1_3)) as (sock, wire):
        wire.send_alert(2, 40)
        for _ in range(2):
            with pytest.raises(pyktls.TLSAlert, match="handshake_failure"):
                sock.splice_to(pipe[1], 100)


def test_an_end_without_close_notify_is_truncation(pipe):
    with kernel.wired(kernel.suite(TLS_1_3)) as (sock, wire):
        wire.send_data(b"data")
        wire.sock.close()
        assert sock.splice_to(pipe[1], 100) == 4
        for _ in range(2):
            with pytest.raises(pyktls.TruncationError):
                sock.splice_to(pipe[1], 100)


@pytest.mark.parametrize(
    ("broken", "description"),
    [
        (b"\x17\x03\x02\x00\x20" + bytes(32), 70),  # protocol_version
        (b"\x17\x03\x03\x7f\xff" + bytes(32), 22),  # record_overflow
        (b"\x17\x03\x03\x00\x20" + bytes(32), 20),  # bad_record_mac
    ],
    ids=["version", "length", "authentication"],
)
def test_a_broken_record_ends_the_connection(pipe, broken, description):
    """A bad header is reported once, by splice(2) with the EINVAL that control records get too."""
    with kernel.wired(kernel.suite(TLS_1_3)) as (sock, wire):
        wire.send_data(b"good")
        wire.raw(broken)
        assert sock.splice_to(pipe[1], 100) == 4
        for _ in range(2):
            with pytest.raises(pyktls.RecordError):
                sock.splice_to(pipe[1], 100)
        with pytest.raises(pyktls.RecordError):
            sock.recv(1)
        assert wire.recv() == (ALERT, bytes((2, description)))


def test_splice_to_waits_for_data_and_for_room(pipe):
    out, into = pipe
    with kernel.wired(kernel.suite(TLS_1_3)) as (sock, wire):
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.splice_to(into, 100)
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.splice_to(into, 100)
        sock.settimeout(TIMEOUT)
        with Background(sock.splice_to, into, 100) as moving:
            time.sleep(0.1)
            assert not moving.done()
            wire.send_data(b"late")
        assert moving.result() == 4
        # A full pipe.
        os.set_blocking(into, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(into, bytes(4096))
        wire.send_data(b"more")
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.splice_to(into, 100)
        sock.settimeout(TIMEOUT)
        with Background(sock.splice_to, into, 100) as moving:
            time.sleep(0.1)
            assert not moving.done()
            drained = bytearray()
            while not drained.endswith(b"more"):
                drained += os.read(out, 65536)
        assert moving.result() == 4


def test_splice_to_waits_for_the_rest_of_a_record(pipe, monkeypatch):
    """Linux before 6.5 says POLLIN for a part of one: that shall not keep the processor busy."""
    out, into = pipe
    calls = []
    splice = linux.splice_to_pipe

    def counted(*arguments):
        calls.append(arguments)
        return splice(*arguments)

    monkeypatch.setattr(linux, "splice_to_pipe", counted)
    with kernel.wired(kernel.suite(TLS_1_3)) as (sock, wire):
        record = wire.seal(DATA, b"whole")
        wire.raw(record[:-1])
        wait_queued(sock, len(record) - 1)
        sock.settimeout(1.5)
        with pytest.raises(TimeoutError):
            sock.splice_to(into, 100)
        assert len(calls) < 200  # a pause of 15 ms, after some shorter ones
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.splice_to(into, 100)
        sock.settimeout(TIMEOUT)
        with Background(sock.splice_to, into, 100) as moving:
            wire.raw(record[-1:])
        assert moving.result() == 5
        assert os.read(out, 100) == b"whole"


def test_what_openssl_had_decrypted_comes_first(pipe):
    out, into = pipe
    with kernel.openssl_pair(TLS_1_3) as (own, peer):
        peer.sendall(pattern(10_000))
        assert own.recv(1) == pattern(1)
        with pyktls.offload(own) as sock:
            assert sock.pending() == 9_999
            peer.sendall(b"then")
            got = b""
            while len(got) < 9_999 + 4:
                got += os.read(out, sock.splice_to(into, 1 << 16))
            assert got == pattern(10_000)[1:] + b"then"


@over_versions
def test_a_key_update_on_the_way_is_followed_or_said_to_be_impossible(suite, pipe):
    if suite.version != TLS_1_3:
        with kernel.wired(suite) as (sock, wire):
            wire.send(HANDSHAKE, b"\x18\0\0\1\0")
            with pytest.raises(pyktls.RecordError):
                sock.splice_to(pipe[1], 100)
        return
    out, into = pipe
    with kernel.wired(suite) as (sock, wire):
        wire.send_data(b"old")
        wire.send(HANDSHAKE, b"\x18\0\0\1\0")
        wire.sealer.rekey()
        wire.send_data(b"new")
        assert sock.splice_to(into, 100) == 3
        if kernel.kernel_can_rekey():
            assert sock.splice_to(into, 100) == 3
            assert os.read(out, 100) == b"oldnew"
        else:
            with pytest.raises(pyktls.RecordError, match=r"Linux can since 6\.14"):
                sock.splice_to(into, 100)


def test_a_proxy_of_two_sockets(pipe):
    """Both directions of splice at once: from one connection into another, unseen by us."""
    out, into = pipe
    data = pattern(400_000)
    with (
        kernel.wired(kernel.suite(TLS_1_3)) as (inside, source),
        kernel.wired(kernel.suite(TLS_1_3, "CHACHA20_POLY1305")) as (outside, sink),
    ):

        def relay() -> int:
            total = 0
            while moved := inside.splice_to(into, 1 << 16):
                total += moved
                while moved:
                    moved -= outside.splice_from(out, moved, more=False)
            outside.unwrap()
            return total

        def feed() -> None:
            for begin in range(0, len(data), 16384):
                source.send_data(data[begin : begin + 16384])
            source.close_notify()

        def take() -> bytes:
            received = sink.recv_data(len(data))
            assert sink.recv() == (ALERT, b"\1\0")
            sink.close_notify()
            return received

        with Background(feed), Background(take) as taken, Background(relay) as relayed:
            pass
        assert taken.result() == data
        assert relayed.result() == len(data)


# ---- the interface's own errors --------------------------------------------------------------


def test_the_interface_leaves_control_records_where_they_are(keyed, pipe):
    near, wire = keyed
    wire.send(HANDSHAKE, b"control")
    kernel.wait_readable(near)
    with pytest.raises(OSError, match=r"^\[Errno 22\] splice: Invalid argument$") as caught:
        linux.splice_to_pipe(near, pipe[1], 100)
    assert caught.value.errno == errno.EINVAL
    assert linux.recv_record(near, 100).data == b"control"
    wire.send_data(b"data")
    assert linux.splice_to_pipe(near, pipe[1], 100) == 4


def test_splice_arguments(keyed, pipe):
    near, _ = keyed
    for wrong in (None, "1", 1.0, True):
        with pytest.raises(InvalidType, match=r"^count must be an int, not "):
            linux.splice_to_pipe(near, pipe[1], wrong)
        with pytest.raises(InvalidType, match=r"^count must be an int, not "):
            linux.splice_from_pipe(pipe[0], near, wrong)
    for wrong in (-1, 2**63):
        with pytest.raises(InvalidValue, match=r"^count must be from 0 to 2\*\*63 - 1, not "):
            linux.splice_to_pipe(near, pipe[1], wrong)
    with kernel.wired(kernel.suite(TLS_1_3)) as (sock, _):
        for call in (sock.splice_to, sock.splice_from):
            with pytest.raises(InvalidType, match=r"^count must be an int, not "):
                call(pipe[0], None)
            for wrong in (0, -1):
                with pytest.raises(
                    InvalidValue, match=rf"^count must be from 1 to 2\*\*63 - 1, not {wrong}$"
                ):
                    call(pipe[0], wrong)
            with pytest.raises(InvalidType, match=r"a socket or a file descriptor is needed"):
                call("pipe", 10)


def test_msg_zerocopy_and_other_flags_are_refused(keyed):
    """MSG_ZEROCOPY, MSG_OOB, MSG_DONTROUTE, MSG_CONFIRM, MSG_FASTOPEN: none goes with TLS."""
    near, wire = keyed
    near.setsockopt(socket.SOL_SOCKET, 60, 1)  # SO_ZEROCOPY: asked for, and still refused
    for flag in (0x4000000, socket.MSG_OOB, socket.MSG_DONTROUTE, 0x800, 0x20000000):
        for record_type in (None, HANDSHAKE):
            with pytest.raises(OSError, match=r"^\[Errno 95\] sendmsg: Operation not") as caught:
                linux.send_record(near, b"data", record_type, flag)
            assert caught.value.errno == errno.EOPNOTSUPP
    near.sendall(b"still works")
    assert wire.recv() == (DATA, b"still works")


def test_threads_splice_and_receive_without_losing_a_byte(pipe):
    """Two readers of one socket, one by splice_to and one by recv: each byte comes to one."""
    out, into = pipe
    with kernel.wired(kernel.suite(TLS_1_3)) as (sock, wire):
        stop = threading.Event()
        parts: list[bytes] = []

        def receive() -> None:
            while data := sock.recv(1000):
                parts.append(data)
            stop.set()

        def splice() -> None:
            while moved := sock.splice_to(into, 1000):
                parts.append(os.read(out, moved))

        total = 0
        with Background(receive), Background(splice):
            for size in range(1, 200, 7):
                wire.send_data(bytes([size]) * size)
                total += size
            wire.close_notify()
        assert stop.is_set()
        joined = b"".join(parts)
        assert len(joined) == total
        assert all(joined.count(bytes([size])) == size for size in range(1, 200, 7))
