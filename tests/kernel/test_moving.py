"""A switched connection moves to another process, and goes on there.

Process A (here) has done the handshake in OpenSSL and switched; process B (a child that has been
started before, so that it knows nothing of the connection) receives it over a Unix socket.  The
peer is an ``ssl.SSLSocket``, or the record layer of support/records.py where it has to see, or do,
what OpenSSL would not.  The form of what is sent, and what is refused, is in tests/unit.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

import pyktls
from pyktls import HandoffRefused, KTLSSocket, RecordError, Role, Unavailable, linux
from pyktls.ciphers import TLS_1_2, TLS_1_3
from pyktls.record_limit import record_limits
from support import kernel, tls
from support.kernel import (
    ONE_OF_EACH,
    VERSIONS,
    Background,
    both_ways,
    kernel_can_rekey,
    offloaded,
    openssl_pair,
    pattern,
    recv_exactly,
    recv_to_end,
    suite_id,
    wired,
)
from support.processes import fork, wait_for
from support.records import ALERT, APPLICATION_DATA, HANDSHAKE

SUITE = kernel.suite(TLS_1_3)
CLOSE_NOTIFY = (ALERT, b"\x01\x00")
KEY_UPDATE = b"\x18\x00\x00\x01\x00"
KEY_UPDATE_REQUEST = b"\x18\x00\x00\x01\x01"
TYPES = {
    "stream": socket.SOCK_STREAM,
    "seqpacket": socket.SOCK_SEQPACKET,
    "dgram": socket.SOCK_DGRAM,
}
TESTS = pathlib.Path(__file__).resolve().parents[1]

over_types = pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
over_versions = pytest.mark.parametrize("version", VERSIONS, ids=lambda v: kernel.VERSION_NAMES[v])
over_roles = pytest.mark.parametrize("role", list(Role), ids=str)
over_secrets = pytest.mark.parametrize("secrets", [False, True], ids=["no-secrets", "secrets"])


# ---- processes -------------------------------------------------------------------------------


@contextlib.contextmanager
def receiver(then, kind=socket.SOCK_STREAM):
    """Start process B, which receives a socket and gives it to ``then``; yields the Unix socket."""
    one, two = socket.socketpair(socket.AF_UNIX, kind)
    for sock in (one, two):
        sock.settimeout(kernel.TIMEOUT)

    def work():
        one.close()
        then(pyktls.receive_socket(two))

    with one:
        child = fork(work)
        two.close()
        try:
            yield one
        except BaseException:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise
        wait_for(child)


def echo_and_close(sock):
    with sock:
        kernel.echo(sock)


# ---- data, both ways, after the move ---------------------------------------------------------


@over_types
@over_versions
@over_roles
def test_handshake_here_data_there(kind, version, role):
    with receiver(echo_and_close, kind) as unix, offloaded(version, role=role) as (sock, peer):
        both_ways(sock, peer)
        pyktls.send_socket(unix, sock)
        assert sock.fileno() == -1
        data = pattern(300_000)
        assert kernel.duplex(peer, data, len(data)) == data
        peer.settimeout(kernel.TIMEOUT)
        end_of_openssl(peer)


def end_of_openssl(peer):
    """Our close_notify, then the other side's: a clean end (else ssl raises SSLEOFError)."""
    peer.unwrap().close()


@pytest.mark.parametrize("cipher", kernel.CIPHERS)
@over_secrets
def test_every_cipher(cipher, secrets):
    for version in VERSIONS:
        with receiver(echo_and_close) as unix, wired(kernel.suite(version, cipher)) as (sock, wire):
            wire.send_data(b"before, unread")
            sock.sendall(b"sent before")
            pyktls.send_socket(unix, sock, secrets=secrets)
            wire.send_data(b", and after")
            assert wire.recv_data(11) == b"sent before"
            assert wire.recv_data(25) == b"before, unread, and after"
            wire.close_notify()
            assert wire.recv() == CLOSE_NOTIFY


@over_versions
def test_what_the_handshake_found_out_moves_too(version):
    def look(sock):
        with sock:
            assert sock.version() == {TLS_1_2: "TLSv1.2", TLS_1_3: "TLSv1.3"}[version]
            assert sock.cipher()[0] == names[0]
            assert sock.getpeercert()["subjectAltName"] == (("DNS", tls.HOST),)
            assert sock.getpeercert(True) == names[1]
            assert sock.gettimeout() == 17.0
            assert sock.close_timeout == 9.0
            assert sock.ktls.tx
            assert sock.ktls.rx
            assert os.get_inheritable(sock.fileno()) is False
            assert sock.pending() == 5
            assert recv_exactly(sock, 13) == b"early and new"
            sock.sendall(b"seen")

    with openssl_pair(version) as (own, peer):
        names = own.cipher()[0], own.getpeercert(True)
        own.settimeout(17)
        with receiver(look) as unix:
            peer.sendall(b"early")
            # One byte at first, so that OpenSSL holds the others, decrypted.
            first = own.recv(1)
            sock = pyktls.offload(own)
            assert first == b"e"
            assert sock.pending() == 4
            sock._layer.leftover = first + sock._layer.leftover
            sock.close_timeout = 9
            pyktls.send_socket(unix, sock)
            peer.sendall(b" and new")
            assert recv_exactly(peer, 4) == b"seen"


@pytest.mark.parametrize("secrets", [False, True])
def test_the_bytes_on_the_unix_socket(secrets):
    """Every one of them is looked at: secrets are there if they were asked for, keys never."""
    one, two = socket.socketpair()
    with one, two, offloaded(TLS_1_3) as (sock, peer):
        own = sock._layer.session
        traffic = [bytes(keys.secret) for keys in (own.tx, own.rx)]
        keys = [
            bytes(part) for direction in (own.tx, own.rx) for part in (direction.key, direction.iv)
        ]
        pyktls.send_socket(one, sock, secrets=secrets)
        assert "secret" not in repr(sock).lower()
        one.close()
        seen, descriptors, _, _ = socket.recv_fds(two, 1 << 20, 8)
        while piece := two.recv(1 << 20):
            seen += piece
        assert len(descriptors) == 1
        forms = (
            bytes,
            lambda b: b.hex().encode(),
            lambda b: base64.b64encode(b)[:-4],
            lambda b: b[::-1],
        )
        for what, wanted in ((traffic, secrets), (keys, False)):
            for secret in what:
                found = [form(secret) in seen for form in forms]
                assert found == [wanted, False, False, False]
        # What was looked at is good.
        with KTLSSocket.from_state(seen, descriptors[0]) as other:
            both_ways(other, peer)


def test_a_stays_and_goes_without_disturbing_b():
    """A exits, with everything that it has: the peer and B see nothing of it."""
    for_b, from_a = socket.socketpair()
    with for_b, from_a, offloaded(TLS_1_3) as (sock, peer):

        def be_a():
            for_b.close()
            both = sock  # A has it through the fork
            pyktls.send_socket(from_a, both, secrets=True)
            both.close()
            del both

        child = fork(be_a)
        for_b.settimeout(kernel.TIMEOUT)
        with pyktls.receive_socket(for_b) as other:
            sock.abandon()
            wait_for(child)
            both_ways(other, peer, pattern(100_000))
            assert not other._layer.receive_ended


def test_twenty_at_once():
    count = 20
    one, two = socket.socketpair()
    for end in (one, two):
        end.settimeout(kernel.TIMEOUT)

    def serve_all():
        socks = [pyktls.receive_socket(two) for _ in range(count)]
        for sock in socks:
            with sock:
                number = recv_exactly(sock, 4)
                sock.sendall(number + sock.getpeername()[1].to_bytes(2, "big"))

    with one, two, contextlib.ExitStack() as stack:
        child = fork(serve_all)
        pairs = [stack.enter_context(wired(ONE_OF_EACH[i % 2])) for i in range(count)]
        for number, (sock, wire) in enumerate(pairs):
            pyktls.send_socket(one, sock, secrets=number % 3 > 0)
            wire.send_data(number.to_bytes(4, "big"))
        for number, (_, wire) in enumerate(pairs):
            port = wire.sock.getsockname()[1]
            assert wire.recv_data(6) == number.to_bytes(4, "big") + port.to_bytes(2, "big")
            assert wire.recv() == CLOSE_NOTIFY
        wait_for(child)


# ---- what is under way when it moves ---------------------------------------------------------


@pytest.mark.parametrize("suite", ONE_OF_EACH, ids=suite_id)
@pytest.mark.parametrize("send_buffer", [1024, 5224, 9424, 68_000])
def test_a_full_buffer_moves_and_b_closes(suite, send_buffer):
    """The last record is only partly in the TCP queue; B, which sent none of it, waits for it."""
    for chunk in (1000, 7777, 20_000):
        with receiver(lambda sock: sock.close()) as unix, wired(suite) as (sock, wire):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
            sent = kernel.fill(sock, chunk)
            pyktls.send_socket(unix, sock)
            time.sleep(0.02)
            received, others = wire.recv_all()
            assert received == sent
            assert others == [CLOSE_NOTIFY]


def test_what_msg_more_holds_back_stays_with_the_connection():
    def go_on(sock):
        with sock:
            sock.sendall(b" and the rest")

    with receiver(go_on) as unix, wired(SUITE) as (sock, wire):
        sock.send(b"held back", socket.MSG_MORE)
        pyktls.send_socket(unix, sock)
        assert wire.recv() == (APPLICATION_DATA, b"held back and the rest")
        assert wire.recv() == CLOSE_NOTIFY


def test_half_a_record_that_has_come():
    def read(sock):
        with sock:
            assert recv_exactly(sock, 10_000) == pattern(10_000)
            sock.sendall(b"got it")

    with receiver(read) as unix, wired(SUITE) as (sock, wire):
        record = wire.seal(APPLICATION_DATA, pattern(10_000))
        wire.raw(record[:4000])
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(100)
        sock.settimeout(kernel.TIMEOUT)
        pyktls.send_socket(unix, sock)
        wire.raw(record[4000:])
        assert wire.recv() == (APPLICATION_DATA, b"got it")


def test_half_a_record_that_has_been_read():
    def read(sock):
        with sock:
            assert recv_exactly(sock, 5000) == pattern(10_000)[5000:]
            sock.sendall(b"got it")

    with receiver(read) as unix, wired(SUITE) as (sock, wire):
        wire.send_data(pattern(10_000))
        assert recv_exactly(sock, 5000) == pattern(10_000)[:5000]
        pyktls.send_socket(unix, sock)
        assert wire.recv() == (APPLICATION_DATA, b"got it")


def test_half_a_handshake_message():
    """The beginning of a ticket was read here, its end comes there."""
    ticket = kernel.new_session_ticket(100)

    def read(sock):
        with sock:
            assert recv_exactly(sock, 4) == b"data"
            sock.sendall(b"got it")

    with receiver(read) as unix, wired(SUITE) as (sock, wire):
        wire.send(HANDSHAKE, ticket[:50])
        kernel.wait_readable(sock)
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(10)
        assert not sock._layer.post.quiet
        sock.settimeout(kernel.TIMEOUT)
        pyktls.send_socket(unix, sock)
        wire.send(HANDSHAKE, ticket[50:])
        wire.send_data(b"data")
        assert wire.recv() == (APPLICATION_DATA, b"got it")


def test_tickets_that_come_after_the_move():
    """OpenSSL's own are still in the socket then: nobody has read since the handshake."""
    with offloaded(TLS_1_3, tickets=4) as (sock, peer), receiver(echo_and_close) as unix:
        pyktls.send_socket(unix, sock)
        peer.sendall(b"data")
        assert recv_exactly(peer, 4) == b"data"
        end_of_openssl(peer)


# ---- the end ---------------------------------------------------------------------------------


@over_versions
def test_b_closes(version):
    with offloaded(version) as (sock, peer), receiver(lambda sock: sock.close()) as unix:
        pyktls.send_socket(unix, sock)
        assert peer.recv(10) == b""  # close_notify: ssl raises at a bare end


@over_versions
def test_the_peer_closes(version):
    def read(sock):
        with sock:
            assert recv_to_end(sock) == b"last words"

    with receiver(read) as unix, wired(kernel.suite(version)) as (sock, wire):
        pyktls.send_socket(unix, sock)
        wire.send_data(b"last words")
        wire.close_notify()
        assert wire.recv() == CLOSE_NOTIFY


def test_a_half_closed_connection_moves():
    def read(sock):
        with sock:
            with pytest.raises(BrokenPipeError):
                sock.sendall(b"no more")
            assert recv_to_end(sock) == b"still open"

    with receiver(read) as unix, wired(SUITE) as (sock, wire):
        sock.shutdown(socket.SHUT_WR)
        assert wire.recv() == CLOSE_NOTIFY
        pyktls.send_socket(unix, sock)
        wire.send_data(b"still open")
        wire.close_notify()


def test_after_the_peers_close_notify():
    def send(sock):
        with sock:
            assert sock.recv(10) == b""
            sock.sendall(b"one more thing")

    with receiver(send) as unix, wired(SUITE) as (sock, wire):
        wire.close_notify()
        assert sock.recv(10) == b""
        pyktls.send_socket(unix, sock)
        assert wire.recv() == (APPLICATION_DATA, b"one more thing")
        assert wire.recv() == CLOSE_NOTIFY


def test_a_reset_on_the_way():
    """B gets the connection and finds out, as it would of any socket."""

    def read(sock):
        with sock, pytest.raises(ConnectionResetError):
            sock.recv(10)

    one, two = socket.socketpair()
    for end in (one, two):
        end.settimeout(kernel.TIMEOUT)
    with one, two, wired(SUITE) as (sock, wire):
        pyktls.send_socket(one, sock)
        wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        wire.sock.close()
        time.sleep(0.1)
        read(pyktls.receive_socket(two))


def test_nobody_receives_it():
    """Then the connection ends with the Unix socket, without close_notify."""
    one, two = socket.socketpair()
    with one, two, wired(SUITE) as (sock, wire):
        pyktls.send_socket(one, sock)
        one.close()
        two.close()
        assert wire.recv_all() == (b"", [])


def test_a_broken_connection_is_refused():
    one, two = socket.socketpair()
    with one, two, wired(SUITE) as (sock, wire):
        wire.send_alert(2, 80)
        with pytest.raises(pyktls.TLSAlert):
            sock.recv(10)
        with pytest.raises(HandoffRefused, match="internal_error"):
            pyktls.send_socket(one, sock)


def test_what_the_kernel_says_is_asked():
    with (
        wired(SUITE) as (sock, wire),
        wired(kernel.suite(TLS_1_3, "CHACHA20_POLY1305")) as (two, _),
    ):
        state = sock.export_state()
        with pytest.raises(HandoffRefused, match=r"keys of descriptor .* are not for"):
            KTLSSocket.from_state(state, two.fileno())
        near, far = tls.tcp_pair()
        with near, far:
            with pytest.raises(HandoffRefused, match="no TLS"):
                KTLSSocket.from_state(state, near.fileno())
            own, _ = kernel.sessions(SUITE)
            pyktls.install(near, own, rx=False)
            with pytest.raises(HandoffRefused, match="for rx"):
                KTLSSocket.from_state(state, near.fileno())
        sock.sendall(b"as before")
        assert wire.recv() == (APPLICATION_DATA, b"as before")


def test_another_thread_reads():
    one, two = socket.socketpair()
    with one, two, wired(SUITE) as (sock, wire), Background(sock.recv, 10) as reading:
        while sock._layer.receive_lock.acquire(0):
            sock._layer.receive_lock.release()
            time.sleep(0.001)
        with pytest.raises(HandoffRefused, match="another call"):
            pyktls.send_socket(one, sock)
        wire.send_data(b"data")
        assert reading.result() == b"data"
        pyktls.send_socket(one, sock)
        with pyktls.receive_socket(two) as other:
            other.sendall(b"now")
            assert wire.recv() == (APPLICATION_DATA, b"now")


# ---- changes of keys -------------------------------------------------------------------------


def end_at_key_update(sock):
    """Without secrets: the documented error, an alert, and nothing more."""
    with sock:
        with pytest.raises(RecordError, match="no traffic secrets: they were not moved"):
            sock.recv(100)
        with pytest.raises(RecordError, match="not moved"):
            sock.recv(100)
        with pytest.raises(BrokenPipeError):
            sock.sendall(b"no more")


@pytest.mark.parametrize("request_", [False, True], ids=["tells", "asks"])
@over_secrets
def test_a_key_update_of_openssl_after_the_move(secrets, request_):
    def follow(sock):
        with sock:
            assert recv_exactly(sock, 1000) == pattern(1000)
            sock.sendall(pattern(1000, 2))
            assert sock.recv(10) == b""

    def end(sock):
        with sock, pytest.raises(RecordError, match="this kernel cannot follow"):
            sock.recv(100)

    follows = secrets and kernel_can_rekey()
    then = follow if follows else end if secrets else end_at_key_update
    with receiver(then) as unix, offloaded(TLS_1_3) as (sock, peer):
        both_ways(sock, peer)
        pyktls.send_socket(unix, sock, secrets=secrets)
        tls.send_key_update(peer, request=request_)
        with contextlib.nullcontext() if follows else contextlib.suppress(OSError):
            peer.sendall(pattern(1000))  # the other side may be gone already
        if follows:
            assert recv_exactly(peer, 1000) == pattern(1000, 2)
            end_of_openssl(peer)


def test_without_secrets_the_peer_is_told():
    with receiver(end_at_key_update) as unix, wired(SUITE) as (sock, wire):
        pyktls.send_socket(unix, sock)
        wire.send(HANDSHAKE, KEY_UPDATE_REQUEST)
        assert wire.recv() == (ALERT, b"\x02\x50")  # internal_error


def test_keys_that_changed_before_the_move():
    """The secrets that go along are the present ones, in both directions."""

    def go_on(sock):
        with sock:
            for number in range(3):
                assert recv_exactly(sock, 1) == bytes([number])
                sock.update_keys()
                sock.sendall(b"new keys")
            assert sock._layer.post.tx_generation == 5
            assert sock._layer.post.rx_generation == 4

    if not kernel_can_rekey():

        def refused(sock):
            with sock:
                with pytest.raises(Unavailable, match="cannot be changed"):
                    sock.update_keys()
                sock.sendall(b"as before")

        with receiver(refused) as unix, wired(SUITE) as (sock, wire):
            pyktls.send_socket(unix, sock, secrets=True)
            assert wire.recv() == (APPLICATION_DATA, b"as before")
        return
    with receiver(go_on) as unix, wired(SUITE) as (sock, wire):
        sock.update_keys()
        assert wire.recv() == (HANDSHAKE, KEY_UPDATE)
        wire.opener.rekey()
        wire.send(HANDSHAKE, KEY_UPDATE_REQUEST)
        wire.sealer.rekey()
        wire.send_data(b"x")
        assert sock.recv(1) == b"x"
        assert wire.recv() == (HANDSHAKE, KEY_UPDATE)
        wire.opener.rekey()
        pyktls.send_socket(unix, sock, secrets=True)
        for number in range(3):
            wire.send(HANDSHAKE, KEY_UPDATE)
            wire.sealer.rekey()
            wire.send_data(bytes([number]))
            assert wire.recv() == (HANDSHAKE, KEY_UPDATE)
            wire.opener.rekey()
            assert wire.recv() == (APPLICATION_DATA, b"new keys")
        assert wire.recv() == CLOSE_NOTIFY


def test_an_answer_that_is_due_is_sent_before_the_move_or_after_it():
    if not kernel_can_rekey():
        with receiver(end_at_key_update) as unix, wired(SUITE) as (sock, wire):
            pyktls.send_socket(unix, sock)
            wire.send(HANDSHAKE, KEY_UPDATE_REQUEST)
            assert wire.recv()[0] == ALERT
        return

    def send(sock):
        with sock:
            sock.sendall(b"data")

    one, two = socket.socketpair()
    with one, two, receiver(send) as unix, wired(SUITE) as (sock, wire):
        for end, option in ((sock, socket.SO_SNDBUF), (wire.sock, socket.SO_RCVBUF)):
            end.setsockopt(socket.SOL_SOCKET, option, 20_000)
        sent = b""
        while select.select([], [sock], [], 0.3)[1]:  # until nothing moves any more
            sent += kernel.fill(sock, 20_000)
        wire.send(HANDSHAKE, KEY_UPDATE_REQUEST)
        wire.sealer.rekey()
        wire.send_data(b"x")
        sock.settimeout(kernel.TIMEOUT)
        assert sock.recv(1) == b"x"
        assert sock._layer.post.answer_due
        with pytest.raises(HandoffRefused, match="no room"):
            pyktls.send_socket(one, sock)
        pyktls.send_socket(unix, sock, secrets=True)
        assert wire.recv_data(len(sent)) == sent
        assert wire.recv() == (HANDSHAKE, KEY_UPDATE)
        wire.opener.rekey()
        assert wire.recv() == (APPLICATION_DATA, b"data")
        assert wire.recv() == CLOSE_NOTIFY


@over_secrets
def test_the_limit_of_the_cipher_after_the_move(secrets):
    """The number of records is the kernel's: it knows what A has sent."""
    soft, hard = record_limits(SUITE.aead)
    rekeys = secrets and kernel_can_rekey()

    def send_to_the_end(sock):
        with sock:
            assert linux.get_rec_seq(sock, linux.TLS_TX) == start + 1
            with (
                contextlib.nullcontext()
                if rekeys
                else pytest.raises(RecordError, match="cannot change its keys")
            ):
                for _ in range(40):
                    sock.sendall(b"data")
            assert sock._layer.post.tx_generation == rekeys

    start = (soft if rekeys else hard) - 20
    with receiver(send_to_the_end) as unix, wired(SUITE, sent=start) as (sock, wire):
        sock.sendall(b"A's")
        assert wire.recv() == (APPLICATION_DATA, b"A's")
        pyktls.send_socket(unix, sock, secrets=secrets)
        data, changes = 0, 0
        while (record := wire.recv()) != CLOSE_NOTIFY:
            if record == (HANDSHAKE, KEY_UPDATE):
                wire.opener.rekey()
                changes += 1
            else:
                assert record == (APPLICATION_DATA, b"data")
                data += 1
        if rekeys:
            assert (data, changes) == (40, 1)
        else:
            assert changes == 0
            assert 10 <= data <= 20


def test_no_change_of_keys_without_secrets():
    one, two = socket.socketpair()
    with one, two, wired(SUITE) as (sock, wire):
        pyktls.send_socket(one, sock)
        with pyktls.receive_socket(two) as other:
            with pytest.raises(Unavailable, match=r"cannot be changed: .*not moved"):
                other.update_keys()
            other.sendall(b"as before")
            assert wire.recv() == (APPLICATION_DATA, b"as before")
            with pytest.raises(HandoffRefused, match="no traffic secrets"):
                other.export_state(secrets=True)
            # On to a third one.
            pyktls.send_socket(two, other)
        with pyktls.receive_socket(one) as third:
            third.sendall(b"again")
            assert wire.recv() == (APPLICATION_DATA, b"again")


# ---- a transport of one's own ----------------------------------------------------------------

PROGRAM = """
import sys
import pyktls

state = sys.stdin.buffer.read()
with pyktls.KTLSSocket.from_state(state, int(sys.argv[1])) as sock:
    while data := sock.recv(65536):
        sock.sendall(data)
"""


def test_a_program_that_inherits_the_descriptor():
    with offloaded(TLS_1_3) as (sock, peer):
        sock.settimeout(None)
        state = sock.export_state()
        program = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(sock.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[sock.fileno()],
        )
        with program:
            program.stdin.write(state)
            program.stdin.close()
            sock.abandon()
            peer.sendall(b"through another program")
            assert recv_exactly(peer, 23) == b"through another program"
            end_of_openssl(peer)
        assert program.returncode == 0


def test_detach_sends_nothing_and_the_kernel_goes_on():
    with wired(SUITE) as (sock, wire):
        sock.sendall(b"before")
        state = sock.export_state(secrets=True)
        session = sock._layer.session
        fd = sock.detach()
        assert session.tx.secret is None
        assert not session.tx.key
        with contextlib.closing(socket.socket(fileno=os.dup(fd))) as plain:
            assert pyktls.status(plain).tx
            plain.sendall(b"by a plain socket")
        assert wire.recv_data(6) == b"before"
        assert wire.recv_data(17) == b"by a plain socket"
        with KTLSSocket.from_state(state, fd) as back:
            back.sendall(b"and back")
            assert wire.recv() == (APPLICATION_DATA, b"and back")
            if kernel_can_rekey():
                back.update_keys()
                assert wire.recv() == (HANDSHAKE, KEY_UPDATE)
                wire.opener.rekey()
        assert wire.recv() == CLOSE_NOTIFY


def test_abandon_alone_is_an_end_without_close_notify():
    with wired(SUITE) as (sock, wire):
        sock.sendall(b"data")
        sock.abandon()
        assert wire.recv_all() == (b"data", [])
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            sock.recv(1)
        assert caught.value.errno == errno.EBADF


# ---- fork ------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaves", ["parent", "child"])
@over_versions
def test_one_abandons_and_the_other_goes_on(leaves, version):
    with offloaded(version) as (sock, peer):
        both_ways(sock, peer)
        out, into = os.pipe()

        def in_child():
            os.close(into)
            if leaves == "child":
                sock.abandon()
                return
            assert os.read(out, 1) == b""  # the parent has let go
            echo_and_close(sock)

        child = fork(in_child)
        if leaves == "parent":
            sock.abandon()
            os.close(into)
            data = pattern(100_000)
            assert kernel.duplex(peer, data, len(data)) == data
            peer.settimeout(kernel.TIMEOUT)
            end_of_openssl(peer)
            wait_for(child)
        else:
            os.close(into)
            wait_for(child)
            both_ways(sock, peer, pattern(100_000))
            sock.close()
            assert peer.recv(10) == b""
        os.close(out)


def test_a_child_that_just_exits_ends_nothing():
    with offloaded(TLS_1_3) as (sock, peer):
        wait_for(fork(lambda: None))
        both_ways(sock, peer)


def test_parent_and_child_send_and_receive_whole_records():
    """Each call of one makes, or takes, a whole record, and the kernel keeps the order."""
    count, size = 200, 1000
    end = b"end".ljust(size)
    out, into = os.pipe()
    with wired(SUITE) as (sock, wire):

        def send(mark):
            for number in range(count):
                sock.sendall(mark + number.to_bytes(4, "big") + mark * (size - 5))

        def receive():
            numbers = []
            while (record := sock.recv(size)) != end:
                assert record == record[:4].ljust(size, b"x")
                numbers.append(int.from_bytes(record[:4], "big"))
            return numbers

        def in_child():
            send(b"c")
            for number in receive():
                os.write(into, number.to_bytes(4, "big"))
            sock.abandon()

        child = fork(in_child)
        os.close(into)
        with Background(send, b"p") as sending:
            sent = {b"p": [], b"c": []}
            for _ in range(2 * count):
                record_type, payload = wire.recv()
                assert record_type == APPLICATION_DATA
                assert payload[5:] == payload[:1] * (size - 5)
                sent[payload[:1]].append(int.from_bytes(payload[1:5], "big"))
            assert sent == {b"p": list(range(count)), b"c": list(range(count))}
            sending.result()
        with Background(receive) as receiving:
            for number in range(count):
                wire.send_data(number.to_bytes(4, "big").ljust(size, b"x"))
            for _ in range(2):  # one for each
                wire.send_data(end)
            here = receiving.result()
        there = b""
        while piece := os.read(out, 1 << 16):
            there += piece
        os.close(out)
        wait_for(child)
        numbers = [int.from_bytes(there[at : at + 4], "big") for at in range(0, len(there), 4)]
        assert here == sorted(here)
        assert numbers == sorted(numbers)
        assert sorted(here + numbers) == list(range(count))
        sock.sendall(b"still ours")
        assert wire.recv() == (APPLICATION_DATA, b"still ours")


@pytest.mark.parametrize("call", ["recv", "send"])
def test_a_fork_in_the_middle_of_another_threads_call(call):
    """That thread's lock stays with the parent: the child can use the connection at once."""
    with wired(SUITE) as (sock, wire):
        lock = sock._layer.receive_lock if call == "recv" else sock._layer.send_lock
        data = pattern(1_000_000)
        for end, option in ((sock, socket.SO_SNDBUF), (wire.sock, socket.SO_RCVBUF)):
            end.setsockopt(socket.SOL_SOCKET, option, 50_000)
        inside = threading.Thread(
            target=lambda: sock.recv(4) if call == "recv" else sock.sendall(data)
        )
        inside.start()
        while lock.acquire(0):
            lock.release()
            time.sleep(0.001)
        if call == "send":  # until the buffers are full, so that the thread waits within its call
            while select.select([], [sock], [], 0.05)[1]:
                time.sleep(0.01)
            assert inside.is_alive()

        def in_child():
            sock.settimeout(kernel.TIMEOUT)
            assert lock.acquire(0)
            lock.release()
            if call == "recv":
                sock.sendall(b"from the child")
            else:
                assert sock.recv(100) == b"for the child"
            sock.abandon()

        if call == "recv":
            child = fork(in_child)
            assert wire.recv() == (APPLICATION_DATA, b"from the child")
            wait_for(child)
            wire.send_data(b"data")
            inside.join()
        else:
            child = fork(in_child)
            wire.send_data(b"for the child")
            wait_for(child)
            assert wire.recv_data(len(data)) == data
            inside.join()
        both = threading.Thread(target=sock.sendall, args=(b"the parent goes on",))
        both.start()
        assert wire.recv() == (APPLICATION_DATA, b"the parent goes on")
        both.join()


def test_keys_after_a_fork():
    """Only the process that made the socket changes keys: two would repeat nonces."""
    with wired(SUITE) as (sock, wire):

        def in_child():
            with pytest.raises(Unavailable, match="cannot be changed: after a fork only"):
                sock.update_keys()
            sock.sendall(b"old keys")
            with pytest.raises(RecordError, match="after a fork only"):
                sock.recv(10)
            sock.abandon()

        child = fork(in_child)
        assert wire.recv() == (APPLICATION_DATA, b"old keys")
        wire.send(HANDSHAKE, KEY_UPDATE)
        wait_for(child)
        assert wire.recv() == (ALERT, b"\x02\x50")


def test_the_child_takes_over_with_the_secrets():
    def in_child():
        state = sock.export_state(secrets=True)
        with KTLSSocket.from_state(state, os.dup(sock.fileno())) as mine:
            state[:] = bytes(len(state))
            sock.abandon()
            if kernel_can_rekey():
                mine.update_keys()
            else:
                with pytest.raises(Unavailable, match="cannot be changed"):
                    mine.update_keys()
            mine.sendall(b"taken over")

    with wired(SUITE) as (sock, wire):
        child = fork(in_child)
        sock.abandon()
        if kernel_can_rekey():
            assert wire.recv() == (HANDSHAKE, KEY_UPDATE)
            wire.opener.rekey()
        assert wire.recv() == (APPLICATION_DATA, b"taken over")
        assert wire.recv() == CLOSE_NOTIFY
        wait_for(child)
