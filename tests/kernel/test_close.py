"""Closing loses nothing.

The kernel counts bytes as sent once they are encrypted, and pushes the rest of a record into the
TCP queue later (net/tls/tls_sw.c, tls_tx_work).  close(2) and shutdown(2) do not wait for that:
the rest of the last record is thrown away.  And data held back by MSG_MORE is not sent by either
(the selftest's ``msg_more_unsent`` and ``shutdown_unsent`` are content with that).  The last test
of the first part shows the loss with a plain socket, so that the others prove something.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import pathlib
import queue
import select
import socket
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

import pyktls
from pyktls import KTLSSocket, Role, TruncationError
from pyktls.ciphers import TLS_1_2, TLS_1_3
from support import kernel, tls
from support.kernel import (
    ONE_OF_EACH,
    Background,
    both_ways,
    offloaded,
    openssl_pair,
    pattern,
    recv_to_end,
    suite_id,
    wired,
)
from support.probing import open_descriptors
from support.records import ALERT, APPLICATION_DATA

over_versions = pytest.mark.parametrize("suite", ONE_OF_EACH, ids=suite_id)
SUITE = kernel.suite(TLS_1_3)
CLOSE_NOTIFY = (ALERT, b"\x01\x00")
RESET = b"\1\0\0\0\0\0\0\0"  # struct linger: on, 0 seconds

# Send buffers from 1 to 68 KB, where the end of a record seldom meets the end of the buffer.
SEND_BUFFERS = [1024 + i * 4200 for i in range(17)]
CHUNKS = (4000, 7777, 20_000)


def what_arrives(
    end, send_buffer: int, chunk: int, own, other, timeout: float | None
) -> tuple[bytes, bytes, list]:
    """Fill a connection, end it by ``end(sock)``, and only then let the peer read."""
    near, far = tls.tcp_pair(tls.ORDINARY_MSS)
    with far:
        with near:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
            pyktls.install(near, own)
            sock = KTLSSocket(own, near.detach())
        wire = kernel.Wire(far, other)
        far.settimeout(kernel.TIMEOUT)
        sent = kernel.fill(sock, chunk)
        sock.settimeout(timeout)

        def read():
            time.sleep(0.02)
            try:
                return recv_and_answer(wire) if end is end_by_unwrap else wire.recv_all()
            except OSError:
                far.close()  # lest this end waits for ever
                raise

        with Background(read) as reader:
            held = [sock]
            del sock
            end(held)
            received, others = reader.result()
        for sock in held:
            kernel.close_quietly(sock)
    return sent, received, others


def recv_and_answer(wire: kernel.Wire) -> tuple[bytes, list]:
    """As Wire.recv_all, of a peer that answers close_notify as soon as it has come."""
    received = bytearray()
    try:
        while (record := wire.recv()) != CLOSE_NOTIFY:
            record_type, payload = record
            assert record_type == APPLICATION_DATA
            received += payload
    except EOFError:
        return bytes(received), []
    wire.close_notify()
    rest, others = wire.recv_all()
    return bytes(received) + rest, [CLOSE_NOTIFY, *others]


# Each gets a list of the socket, which nobody else holds.


def end_by_close(held):
    held[0].close()


def end_by_shutdown(held):
    held[0].shutdown(socket.SHUT_WR)


def what_unwrap_wants(sock) -> str:
    """What a non-blocking unwrap has to wait for: room, or the peer's answer; "" if it is done."""
    try:
        sock.unwrap()
    except BlockingIOError as e:
        return "answer" if "recvmsg" in str(e) else "room"
    return ""


def end_by_unwrap(held):
    """With a peer that answers; a plain close is all that is left to do then."""
    (sock,) = held
    while wanted := what_unwrap_wants(sock):
        waits = [[sock], []] if wanted == "answer" else [[], [sock]]
        assert any(select.select(*waits, [], kernel.TIMEOUT)), f"no {wanted}"
    os.close(sock.detach())


def end_by_half_an_unwrap(held):
    """A plain close as soon as nothing but the answer is missing, which nobody waits for."""
    (sock,) = held
    while what_unwrap_wants(sock) != "answer":
        assert select.select([], [sock], [], kernel.TIMEOUT)[1], "no room"
    os.close(sock.detach())


def end_by_forgetting(held):
    """What the collector does when nobody has the socket any more."""
    held.clear()
    gc.collect()


@contextlib.contextmanager
def other_processes(count: int):
    """Gives an ``end`` that passes the socket to another process, which closes it."""
    free: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
    children = []
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            near, far = socket.socketpair()
            stack.enter_context(near).settimeout(kernel.TIMEOUT)
            free.put(near)
            child = os.fork()  # before any thread is there
            if child == 0:
                status = 1
                try:
                    stack.close()  # the ends of the processes before this one, too
                    while far.recv(1) == b"c":
                        pyktls.receive_socket(far).close()
                        far.sendall(b"d")
                    status = 0
                finally:
                    os._exit(status)
            children.append(child)
            far.close()

        def end_elsewhere(held):
            near = free.get(timeout=kernel.TIMEOUT)
            near.sendall(b"c")
            pyktls.send_socket(near, held[0])
            assert near.recv(1) == b"d"
            free.put(near)

        yield end_elsewhere
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * count


def end_by_plain_close(held):
    with socket.socket(fileno=held[0].detach()) as plain:
        plain.close()


# What takes long is waiting, for windows that open by a timer: many at once wait together.
AT_ONCE = 12
RUNS = len(SEND_BUFFERS) * len(CHUNKS)
over_timeouts = pytest.mark.parametrize("timeout", [None, 0.0, 20.0])


def lost_runs(end, timeout: float | None = 0.0) -> list[tuple[int, ...]]:
    def run(number: int, send_buffer: int, chunk: int) -> tuple[int, ...] | None:
        own, other = kernel.sessions(ONE_OF_EACH[number % 2])
        sent, received, others = what_arrives(end, send_buffer, chunk, own, other, timeout)
        assert sent.startswith(received)
        if received == sent and others == [CLOSE_NOTIFY]:
            return None
        return send_buffer, chunk, len(sent) - len(received)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs = [
            pool.submit(run, number, send_buffer, chunk)
            for number, send_buffer in enumerate(SEND_BUFFERS)
            for chunk in CHUNKS
        ]
        return [lost for run in runs if (lost := run.result()) is not None]


@over_timeouts
@pytest.mark.parametrize("end", [end_by_close, end_by_shutdown, end_by_unwrap])
def test_all_that_was_sent_arrives_and_ends_with_close_notify(end, timeout):
    assert lost_runs(end, timeout) == []


def test_the_same_by_an_unwrap_that_nobody_answers():
    assert lost_runs(end_by_half_an_unwrap) == []


@over_timeouts
def test_the_same_of_a_socket_that_is_forgotten(timeout):
    gc.collect()
    gc.freeze()  # the collector need not go through all that is there already, each time
    try:
        with warnings.catch_warnings(record=True) as caught:  # for the whole process
            warnings.simplefilter("always")
            assert lost_runs(end_by_forgetting, timeout) == []
    finally:
        gc.unfreeze()
    assert [w.category for w in caught] == [ResourceWarning] * RUNS


@over_timeouts
def test_the_same_in_another_process_that_got_the_socket(timeout):
    with other_processes(AT_ONCE) as end:
        assert lost_runs(end, timeout) == []


def test_the_same_with_a_plain_close_loses_records():
    """The control: without the closing protocol something is lost, in this very set-up.

    Whether it is depends on how far the kernel has come at the time of the close, so on a machine
    that is busy otherwise it may take more than one round.
    """
    assert any(run[2] for _ in range(5) for run in lost_runs(end_by_plain_close))


# ---- MSG_MORE --------------------------------------------------------------------------------


@over_versions
@pytest.mark.parametrize("end", [end_by_close, end_by_shutdown])
def test_what_msg_more_held_back_is_sent_at_the_end(suite, end):
    with wired(suite) as (sock, wire):
        sock.sendall(b"sent, ")
        sock.sendall(b"held back", socket.MSG_MORE)
        end([sock])
        assert wire.recv_all() == (b"sent, held back", [CLOSE_NOTIFY])


def test_the_same_with_a_plain_close_loses_what_was_held_back():
    with wired(SUITE) as (sock, wire):
        sock.sendall(b"sent, ")
        sock.sendall(b"held back", socket.MSG_MORE)
        end_by_plain_close([sock])
        assert wire.recv_all() == (b"sent, ", [])


# ---- what the peer sees ----------------------------------------------------------------------


@pytest.mark.parametrize("version", kernel.VERSIONS, ids=kernel.VERSION_NAMES.get)
@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("timeout", [None, 0.0, 5.0])
def test_close_after_sending_much_to_openssl(version, role, timeout):
    """Tickets that the client has never read must not turn the close into a reset."""
    data = pattern(300_000)
    with openssl_pair(version, role=role) as (own, peer):
        sock = pyktls.offload(own)
        peer.suppress_ragged_eofs = False  # an end without close_notify is an error
        with Background(recv_to_end, peer) as receiver:
            sock.sendall(data)
            sock.settimeout(timeout)
            time.sleep(0.05)
            sock.close()
            assert receiver.result() == data


def test_close_with_unread_tickets_is_no_reset():
    """Linux answers unread bytes with a reset at close(2), and a reset throws away what has not
    been delivered yet.  Tickets that nobody asked for must not have that effect."""
    data = pattern(150_000)
    with openssl_pair(TLS_1_3, tickets=5) as (own, peer):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1_000_000)
        sock = pyktls.offload(own)
        kernel.wait_readable(sock)
        sock.sendall(data)  # much of it is still in our send buffer when we close
        sock.close()
        time.sleep(0.1)
        peer.suppress_ragged_eofs = False
        assert recv_to_end(peer) == data


def test_close_with_unread_data_is_a_reset_as_with_any_socket():
    with wired(SUITE) as (sock, wire):
        wire.raw(b"".join(wire.seal(APPLICATION_DATA, b"never read") for _ in range(5)))
        kernel.wait_readable(sock)
        sock.close()
        with pytest.raises(ConnectionResetError):
            wire.recv_all()


@over_versions
def test_shutdown_of_sending_leaves_receiving_open(suite):
    with wired(suite) as (sock, wire):
        sock.sendall(b"request")
        sock.shutdown(socket.SHUT_WR)
        assert wire.recv_all() == (b"request", [CLOSE_NOTIFY])
        wire.send_data(b"answer")
        assert sock.recv(100) == b"answer"
        with pytest.raises(BrokenPipeError):
            sock.send(b"x")
        wire.close_notify()
        assert sock.recv(100) == b""


@over_versions
def test_shutdown_of_receiving_leaves_sending_open(suite):
    with wired(suite) as (sock, wire):
        sock.shutdown(socket.SHUT_RD)
        sock.sendall(b"still sent")
        assert wire.recv_data(10) == b"still sent"
        with pytest.raises(TruncationError):
            sock.recv(1)


def test_close_after_the_peer_has_reset():
    with wired(SUITE) as (sock, wire):
        wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        wire.sock.close()
        kernel.wait_readable(sock)
        assert sock.close() is None
        assert sock.fileno() == -1


@pytest.mark.parametrize(
    "garbage",
    [b"\x17\x03\x03\xff\xff", b"\x17\x03\x01\x00\x40", b"HTTP/1.1 "],
    ids=["too long", "another version", "no TLS"],
)
def test_close_with_an_error_that_was_never_read(garbage):
    """The kernel has a bad record and nobody looked: closing still delivers what was sent."""
    with wired(SUITE) as (sock, wire):
        sock.sendall(b"sent")
        wire.raw(garbage + bytes(100))
        kernel.wait_readable(sock)
        sock.close()
        assert sock.fileno() == -1
        with contextlib.suppress(ConnectionResetError):
            assert wire.recv_data(4) == b"sent"


def clog(sock: socket.socket, wire: kernel.Wire) -> int:
    """Send until nothing more is taken, to a peer that does not read; returns how much was."""
    wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 50_000)
    return kernel.clog(sock)


# ---- how long it may take --------------------------------------------------------------------


@over_versions
@pytest.mark.parametrize("timeout", [None, 0.0])
def test_close_timeout_bounds_it(suite, timeout):
    with wired(suite) as (sock, wire):
        clog(sock, wire)
        sock.settimeout(timeout)
        sock.close_timeout = 0.5
        begin = time.monotonic()
        with pytest.raises(TimeoutError) as caught:
            sock.close()
        assert 0.49 <= time.monotonic() - begin < 5
        assert caught.value.errno == errno.ETIMEDOUT
        assert str(caught.value) == (
            f"[Errno {errno.ETIMEDOUT}] close: "
            "the peer took no more data, and some was not delivered"
        )
        assert sock.fileno() == -1
        sock.close()  # again is harmless


def test_a_timeout_of_the_socket_bounds_it_too():
    with wired(SUITE) as (sock, wire):
        clog(sock, wire)
        sock.settimeout(0.5)
        begin = time.monotonic()
        with pytest.raises(TimeoutError):
            sock.close()
        assert 0.49 <= time.monotonic() - begin < 5
        assert sock.fileno() == -1


def test_shutdown_is_bounded_too():
    with wired(SUITE) as (sock, wire):
        clog(sock, wire)
        sock.settimeout(0.5)
        with pytest.raises(TimeoutError, match="shutdown: the peer took no more data"):
            sock.shutdown(socket.SHUT_WR)
        assert sock.fileno() >= 0
        wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        wire.sock.close()


def test_close_waits_for_a_slow_peer():
    with wired(SUITE) as (sock, wire):
        sent = clog(sock, wire)

        def late():
            time.sleep(0.5)
            return wire.recv_all()

        with Background(late) as reader:
            begin = time.monotonic()
            sock.close()
            assert time.monotonic() - begin > 0.4
            assert reader.result() == (bytes(sent), [CLOSE_NOTIFY])


def test_linger_zero_is_an_immediate_reset():
    with wired(SUITE) as (sock, wire):
        clog(sock, wire)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        begin = time.monotonic()
        sock.close()
        assert time.monotonic() - begin < 0.5
        with pytest.raises(ConnectionResetError):
            wire.recv_all()


# ---- the object ------------------------------------------------------------------------------


def test_with_statement_closes():
    with openssl_pair(TLS_1_2) as (own, peer):
        peer.suppress_ragged_eofs = False
        with pyktls.offload(own) as sock:
            sock.sendall(b"data")
        assert sock.fileno() == -1
        assert recv_to_end(peer) == b"data"


def test_a_forgotten_socket_warns_and_delivers():
    own, other = kernel.sessions(SUITE)
    near, far = tls.tcp_pair()
    with far:
        wire = kernel.Wire(far, other)
        far.settimeout(kernel.TIMEOUT)
        pyktls.install(near, own)
        sock = KTLSSocket(own, near.detach())
        fd = sock.fileno()
        sock.sendall(b"sent", getattr(socket, "MSG_MORE", 0))
        message = rf"unclosed <pyktls\.KTLSSocket fd={fd} "
        with pytest.warns(ResourceWarning, match=message):  # noqa: PT031
            del sock
            gc.collect()
        assert wire.recv_all() == (b"sent", [CLOSE_NOTIFY])
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_every_operation_on_a_closed_socket_is_ebadf():
    with wired(SUITE) as (sock, _):
        sock.close()
        calls = [
            lambda: sock.recv(1),
            lambda: sock.recv(1, socket.MSG_PEEK),
            lambda: sock.recv_into(bytearray(1)),
            lambda: sock.recvfrom(1),
            lambda: sock.recvmsg(1),
            lambda: sock.recvmsg_into([bytearray(1)]),
            lambda: sock.send(b"x"),
            lambda: sock.sendall(b"x"),
            lambda: sock.sendmsg([b"x"]),
            sock.unwrap,
            lambda: sock.shutdown(socket.SHUT_WR),
            lambda: sock.shutdown(socket.SHUT_RD),
            sock.getpeername,
        ]
        for call in calls:
            with pytest.raises(OSError, match="Bad file descriptor") as caught:
                call()
            assert caught.value.errno == errno.EBADF
        with (
            pathlib.Path(__file__).open("rb") as file,
            pytest.raises(OSError, match="Bad file") as caught,
        ):
            sock.sendfile(file)
        assert caught.value.errno == errno.EBADF
        assert sock.close() is None
        assert "closed" in repr(sock)


def test_closing_forgets_the_keys():
    with wired(SUITE) as (sock, _):
        session = sock._layer.session
        key = session.tx.key
        assert any(key)
        sock.close()
        assert not any(key)
        assert session.tx.key == session.rx.key == b""
        assert session.tx.secret is None


def test_no_descriptor_is_left_behind():
    def cycle(suite, how):
        with wired(suite) as (sock, wire):
            both_ways_wire(sock, wire)
            match how:
                case 0:
                    sock.close()
                case 1:
                    os.close(sock.detach())
                case 2:
                    wire.raw(b"\x17\x03\x01\x00\x40" + bytes(64))
                    with pytest.raises(pyktls.RecordError):
                        sock.recv(1)
                case 3:
                    with sock.makefile("rb"):
                        sock.close()

    cycle(SUITE, 0)
    before = open_descriptors()
    for number in range(200):
        cycle(ONE_OF_EACH[number % 2], number // 2 % 4)
    assert open_descriptors() == before


def both_ways_wire(sock, wire):
    sock.sendall(b"x")
    assert wire.recv() == (APPLICATION_DATA, b"x")
    wire.send_data(b"y")
    assert sock.recv(1) == b"y"


def test_no_descriptor_is_left_behind_by_a_refused_offload(monkeypatch):
    with openssl_pair(TLS_1_3) as (own, peer):
        before = open_descriptors()

        def refuse(*_args, **_keywords):
            raise OSError(errno.ENOMEM, "no")

        monkeypatch.setattr(pyktls.switch.system, "install", refuse)
        for _ in range(20):
            with pytest.raises(OSError, match="no"):
                pyktls.offload(own)
        monkeypatch.undo()
        assert open_descriptors() == before
        assert own.fileno() >= 0
        both_ways(own, peer)  # the protocol is attached, without keys: OpenSSL goes on
        with offloaded(TLS_1_3) as (sock, other):
            both_ways(sock, other)
