"""One direction in the kernel, the other left to OpenSSL: ``pyktls.offload(tx=..., rx=...)``.

Opposite is an unmodified ``ssl.SSLSocket``, or a record layer in user space that went on from one
(``wired``) and sees every record.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import ssl
import tempfile
import threading

import pytest

import pyktls
from pyktls import (
    HandoffRefused,
    InvalidType,
    InvalidValue,
    Mode,
    RecordError,
    Role,
    TLSAlert,
    TruncationError,
    Unavailable,
    record_layer,
)
from pyktls.ciphers import TLS_1_2, TLS_1_3
from pyktls.lowlevel import lib
from pyktls.protocol import (
    ALERT,
    APPLICATION_DATA,
    BAD_RECORD_MAC,
    HANDSHAKE,
    UNEXPECTED_MESSAGE,
)
from support import every_method, kernel, tls
from support.kernel import (
    TIMEOUT,
    Background,
    both_ways,
    kernel_can_rekey,
    openssl_pair,
    pattern,
    recv_exactly,
    recv_to_end,
)

over_versions = pytest.mark.parametrize("version", kernel.VERSIONS, ids=kernel.VERSION_NAMES.get)
over_roles = pytest.mark.parametrize("role", list(Role), ids=str)
over_halves = pytest.mark.parametrize("tx", [True, False], ids=["tx-only", "rx-only"])
FREEBSD = lib.pyktls_system() == lib.PYKTLS_FREEBSD
KEY_UPDATE = b"\x18\x00\x00\x01\x00"
KEY_UPDATE_REQUEST = b"\x18\x00\x00\x01\x01"
CLOSE_NOTIFY = b"\1\0"
NO_RENEGOTIATION = 100
SUITES = [
    (TLS_1_3, "TLS_AES_256_GCM_SHA384"),
    (TLS_1_3, "TLS_CHACHA20_POLY1305_SHA256"),
    (TLS_1_2, "ECDHE-RSA-AES128-GCM-SHA256"),
    (TLS_1_2, "ECDHE-RSA-CHACHA20-POLY1305"),
]


@contextlib.contextmanager
def halved(tx, version=TLS_1_3, role=Role.CLIENT, cipher=None, **knobs):
    """``(KTLSSocket, ssl.SSLSocket)``; the kernel sends with ``tx``, and else receives."""
    with openssl_pair(version, cipher, role, **knobs) as (own, peer):
        peer.suppress_ragged_eofs = False
        sock = pyktls.offload(own, tx=tx, rx=not tx)
        try:
            yield sock, peer
        finally:
            peer.close()
            kernel.close_quietly(sock)


@contextlib.contextmanager
def wired(tx, version=TLS_1_3, role=Role.CLIENT, cipher=None, **knobs):
    """``(KTLSSocket, Wire)``: the peer's handshake was OpenSSL's, what follows is in our hands."""
    contexts = tls.contexts(kernel.OPENSSL_VERSIONS[version], cipher, tickets=0, **knobs)
    with tls.connect(*contexts) as pair:
        own, peer = pair.ends()[0] if role is Role.CLIENT else pair.ends()[1]
        with socket.socket(fileno=os.dup(peer.fileno())) as far:
            far.settimeout(TIMEOUT)
            own.settimeout(TIMEOUT)
            wire = kernel.Wire(far, pyktls.extract(peer))
            peer.detach()
            sock = pyktls.offload(own, tx=tx, rx=not tx)
            try:
                yield sock, wire
            finally:
                far.close()
                kernel.close_quietly(sock)


# ---- data ------------------------------------------------------------------------------------


@over_halves
@over_roles
@pytest.mark.parametrize(("version", "cipher"), SUITES, ids=str)
def test_data_goes_both_ways_and_ends_cleanly(tx, role, version, cipher):
    with halved(tx, version, role, cipher) as (sock, peer):
        assert (bool(sock.ktls.tx), bool(sock.ktls.rx)) == (tx, not tx)
        assert sock.cipher()[0] == cipher
        both_ways(sock, peer)
        big = pattern(300_000)
        with Background(peer.sendall, big):
            assert recv_exactly(sock, len(big)) == big
        with Background(sock.sendall, big):
            assert recv_exactly(peer, len(big)) == big
        both_ways(peer, sock)
        with Background(peer.unwrap):
            assert sock.recv(100) == b""
            assert sock.recv(100) == b""
            sock.close()


@over_halves
@over_versions
def test_our_close_notify_comes_after_everything(tx, version):
    with halved(tx, version) as (sock, peer):
        data = pattern(200_000)
        with Background(recv_to_end, peer) as received:
            sock.sendall(data)
            sock.close()
        assert received.result() == data  # a ragged end raises


@over_halves
@over_versions
def test_both_directions_at_once(tx, version):
    data = pattern(1 << 20)
    with halved(tx, version) as (sock, peer):
        peer.settimeout(TIMEOUT)
        with Background(kernel.echo, peer), Background(sock.sendall, data):
            assert recv_exactly(sock, len(data)) == data
            sock.shutdown(socket.SHUT_WR)


@over_halves
def test_what_openssl_had_decrypted_comes_first(tx):
    with openssl_pair(TLS_1_3) as (own, peer):
        peer.sendall(b"abcdefgh")
        assert own.recv(2) == b"ab"
        with pyktls.offload(own, tx=tx, rx=not tx) as sock:
            assert sock.pending() == 6
            assert sock.recv(3, socket.MSG_PEEK) == b"cde"
            peer.sendall(b"ij")
            assert recv_exactly(sock, 8) == b"cdefghij"
            assert sock.pending() == 0


@over_versions
def test_openssl_may_be_in_the_middle_of_a_record_when_it_goes_on_receiving(version):
    contexts = tls.contexts(kernel.OPENSSL_VERSIONS[version], tickets=0)
    for cut in (3, 5, 9):
        with tls.connect(*contexts) as pair:
            own, peer = pair.ends()[0]
            wire = kernel.Wire(peer, pyktls.extract(peer))
            record = wire.seal(APPLICATION_DATA, b"cut in two somewhere")
            tls.deliver(peer, own, record[:cut])
            tls.read_what_is_there(own)
            with pytest.raises(HandoffRefused, match="record"):
                pyktls.offload(own)
            with pyktls.offload(own, rx=False) as sock:
                sock.setblocking(False)
                with pytest.raises(BlockingIOError):
                    sock.recv(10)
                sock.settimeout(TIMEOUT)
                tls.raw(peer).send(record[cut:])
                assert recv_exactly(sock, 20) == b"cut in two somewhere"
                sock.sendall(b"goes on")
                assert peer.recv(10) == b"goes on"


# ---- receiving by OpenSSL --------------------------------------------------------------------


def test_the_ways_to_receive():
    with halved(True) as (sock, peer):
        peer.sendall(b"0123456789")
        buffer = bytearray(4)
        assert sock.recv_into(buffer, 2) == 2
        assert buffer == b"01\0\0"
        assert sock.pending() == 8
        assert sock.recvmsg(3)[0] == b"234"
        one, two = bytearray(2), bytearray(2)
        assert sock.recvmsg_into([one, two])[0] in (2, 4)
        rest = recv_exactly(sock, 10 - 5 - (2 if two == b"\0\0" else 4))
        assert bytes(one) + bytes(two).strip(b"\0") + rest == b"56789"
        for _ in range(2):
            peer.sendall(b"abc")
        assert sock.recv(6, socket.MSG_WAITALL) == b"abcabc"
        with sock.makefile("rb") as file:
            peer.sendall(b"one line\nand another\n")
            assert file.readline() == b"one line\n"
            assert file.readline() == b"and another\n"


@over_versions
def test_receiving_without_waiting_and_with_a_timeout(version):
    with wired(True, version) as (sock, wire):
        record = wire.seal(APPLICATION_DATA, b"in parts")
        for timeout, error in ((0, BlockingIOError), (0.05, TimeoutError)):
            sock.settimeout(timeout)
            for part in (b"", record[:3], record[3:5], record[5:11]):
                wire.raw(part)
                with pytest.raises(error):
                    sock.recv(100)
            sock.settimeout(None)
            wire.raw(record[11:])
            assert sock.recv(100) == b"in parts"
            with pytest.raises(BlockingIOError):
                sock.recv(100, socket.MSG_DONTWAIT)
            record = wire.seal(APPLICATION_DATA, b"in parts")


def test_flags_that_tcp_would_take_for_its_own():
    with halved(True) as (sock, peer):
        for flags in (socket.MSG_OOB, socket.MSG_TRUNC, socket.MSG_PEEK | socket.MSG_OOB):
            for call in (
                lambda flags=flags: sock.recv(10, flags),
                lambda flags=flags: sock.recv_into(bytearray(10), 10, flags),
                lambda flags=flags: sock.recvmsg(10, 0, flags),
                lambda flags=flags: sock.recvmsg_into([bytearray(5), bytearray(5)], 0, flags),
            ):
                with pytest.raises(InvalidValue, match="flags of recv"):
                    call()
        peer.sendall(b"unharmed")
        assert recv_exactly(sock, 8) == b"unharmed"
        both_ways(sock, peer)


def test_nothing_is_read_ahead_of_the_record_at_hand():
    with halved(True) as (sock, peer):
        peer.sendall(b"first")
        peer.sendall(b"second")
        tls_bytes = 2 * (5 + 1 + 16) + len(b"firstsecond")
        for _ in range(1000):
            if tls.unread_bytes(sock) == tls_bytes:
                break
            os.sched_yield()
        assert sock.recv(100) == b"first"
        assert tls.unread_bytes(sock) == 5 + 1 + 16 + len(b"second")
        kernel.wait_readable(sock)
        assert sock.recv(100) == b"second"


@over_versions
def test_a_broken_record_ends_it_and_the_peer_is_told(version):
    with wired(True, version) as (sock, wire):
        wire.send_data(b"good")
        record = bytearray(wire.seal(APPLICATION_DATA, b"bad"))
        record[-1] ^= 1
        wire.raw(record)
        assert sock.recv(100) == b"good"
        for _ in range(2):
            with pytest.raises(RecordError, match="refused"):
                sock.recv(100)
        with pytest.raises(BrokenPipeError):
            sock.send(b"too late")
        assert wire.recv() == (ALERT, bytes((2, BAD_RECORD_MAC)))


@over_versions
def test_a_header_that_is_none(version):
    with wired(True, version) as (sock, wire):
        wire.raw(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(RecordError, match="refused"):
            sock.recv(100)
        record_type, alert = wire.recv()
        assert (record_type, alert[0]) == (ALERT, 2)


@over_halves
def test_a_fatal_alert_of_the_peer(tx):
    with wired(tx) as (sock, wire):
        wire.send_alert(2, UNEXPECTED_MESSAGE)
        for _ in range(2):
            with pytest.raises(TLSAlert) as caught:
                sock.recv(100)
            assert caught.value.description == UNEXPECTED_MESSAGE


@over_halves
@over_versions
def test_an_end_without_close_notify(tx, version):
    with wired(tx, version) as (sock, wire):
        wire.send_data(b"all?")
        wire.sock.shutdown(socket.SHUT_WR)
        assert sock.recv(100) == b"all?"
        for _ in range(2):
            with pytest.raises(TruncationError):
                sock.recv(100)
        sock.sendall(b"we still can")
        assert wire.recv() == (APPLICATION_DATA, b"we still can")


def test_an_end_in_the_middle_of_a_record():
    with wired(True) as (sock, wire):
        wire.raw(wire.seal(APPLICATION_DATA, b"half of it")[:12])
        wire.sock.shutdown(socket.SHUT_WR)
        with pytest.raises(TruncationError):
            sock.recv(100)


def test_a_server_that_wants_to_renegotiate_is_told_no():
    with wired(True, TLS_1_2) as (sock, wire):
        wire.send(HANDSHAKE, bytes(4))
        wire.send_data(b"and on")
        assert sock.recv(100) == b"and on"
        assert wire.recv() == (ALERT, bytes((1, NO_RENEGOTIATION)))
        sock.sendall(b"as before")
        assert wire.recv() == (APPLICATION_DATA, b"as before")


def test_what_openssl_would_answer_with_a_handshake_message_ends_it():
    with openssl_pair(TLS_1_3, post_handshake_auth=True) as (own, peer):
        with pyktls.offload(own, rx=False) as sock:
            peer.verify_client_post_handshake()
            peer.sendall(b"after the request")
            with pytest.raises(RecordError, match="authentication"):
                sock.recv(100)
        with pytest.raises(ssl.SSLError, match=r"(?i)unexpected.message"):
            peer.recv(100)


def test_a_message_that_the_peer_may_not_send_ends_it():
    with wired(True) as (sock, wire):
        wire.send(HANDSHAKE, b"\x0b\0\0\1\0")  # Certificate
        with pytest.raises(RecordError):
            sock.recv(100)
        record_type, alert = wire.recv()
        assert (record_type, alert[0]) == (ALERT, 2)


def test_a_flood_of_key_updates_ends_it(monkeypatch):
    with wired(True) as (sock, wire):
        # So many in a second are a flood, and an emulated machine may be too slow for that.
        monkeypatch.setattr(sock._layer.post, "_clock", lambda: 0.0)
        for _ in range(200):
            wire.send(HANDSHAKE, KEY_UPDATE)
            wire.sealer.rekey()
        with pytest.raises(RecordError, match="KeyUpdate"):
            sock.recv(100)


# ---- sending by OpenSSL ----------------------------------------------------------------------


def test_the_ways_to_send(tmp_path):
    with halved(False) as (sock, peer):
        assert sock.send(b"send") == 4
        assert sock.sendmsg([b"send", bytearray(b"msg"), b""]) == 7
        sock.sendall(memoryview(b" all"))
        with sock.makefile("wb") as file:
            file.write(b" file")
        assert recv_exactly(peer, 20) == b"sendsendmsg all file"
        data = pattern(100_000)
        (tmp_path / "file").write_bytes(data)
        with (tmp_path / "file").open("rb") as file, Background(recv_exactly, peer, 70_004) as got:
            assert sock.sendfile(file, 10, 70_000, headers=[b"<"], trailers=[b"end"]) == 70_004
        assert got.result() == b"<" + data[10:70_010] + b"end"
        assert sock.sendmsg([]) == 0
        assert sock.send(b"") == 0
        with pytest.raises(InvalidValue, match="flags"):
            sock.send(b"data", 1 << 3)
        both_ways(sock, peer)


def test_the_kernel_sends_a_file_where_it_has_that_direction(tmp_path):
    with halved(True) as (sock, peer):
        data = pattern(100_000)
        (tmp_path / "file").write_bytes(data)
        with (tmp_path / "file").open("rb") as file, Background(recv_exactly, peer, 100_000) as got:
            assert sock.sendfile(file) == 100_000
        assert got.result() == data


def small_buffers(sock, peer):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)


def fill(sock, peer, chunk):
    """Send until that fails, with nobody reading; what was taken."""
    small_buffers(sock, peer)
    taken = b""
    with contextlib.suppress(BlockingIOError, TimeoutError):
        while True:
            taken += chunk[: sock.send(chunk)]
    return taken


@over_versions
@pytest.mark.parametrize("timeout", [0, 0.2])
@pytest.mark.parametrize("end", ["again", "close", "key update"])
def test_a_record_that_was_taken_in_part(version, timeout, end):
    with halved(False, version) as (sock, peer):
        sock.settimeout(timeout)
        chunk = pattern(16_384)
        taken = fill(sock, peer, chunk)
        with pytest.raises(InvalidValue, match="same data"):
            sock.send(b"something else")
        if end == "key update":  # first comes the rest of that record
            with contextlib.suppress(BlockingIOError, TimeoutError, Unavailable):
                sock.update_keys()
        with Background(recv_to_end, peer) as received:
            sock.settimeout(TIMEOUT)
            if end != "close":
                assert sock.send(chunk + b"not this time") == len(chunk)
                if version == TLS_1_3:
                    sock.update_keys()
                sock.sendall(b"the end")
            sock.close()
        rest = chunk if end == "close" else chunk + b"the end"
        assert received.result() == taken + rest


@over_versions
@pytest.mark.parametrize("timeout", [0, 0.2])
def test_after_a_sendall_that_failed_anything_may_be_sent(version, timeout):
    data = pattern(2_000_000)
    with halved(False, version) as (sock, peer):
        small_buffers(sock, peer)
        sock.settimeout(timeout)
        with pytest.raises((BlockingIOError, TimeoutError)):
            sock.sendall(data)
        with Background(recv_to_end, peer) as received:
            sock.settimeout(TIMEOUT)
            sock.sendall(b"something else")
            sock.close()
        assert received.result().endswith(b"something else")
        assert data.startswith(received.result().removesuffix(b"something else"))


@over_versions
def test_the_peer_is_told_of_a_broken_record_under_openssls_keys(version):
    with wired(False, version) as (sock, wire):
        sock.sendall(b"one")
        assert wire.recv() == (APPLICATION_DATA, b"one")
        record = bytearray(wire.seal(APPLICATION_DATA, b"bad"))
        record[-1] ^= 1
        wire.raw(record)
        with pytest.raises(RecordError):
            sock.recv(100)
        assert wire.recv() == (ALERT, bytes((2, BAD_RECORD_MAC)))
        with pytest.raises(BrokenPipeError):
            sock.send(b"too late")


def test_keys_change_by_themselves_before_the_limit(monkeypatch):
    with wired(False) as (sock, wire):
        monkeypatch.setattr(sock._layer._budget, "check_at", 5)
        monkeypatch.setattr(sock._layer._budget, "soft", 8)
        sock._layer._plan_next_count(1)
        seen = []
        for _ in range(30):
            sock.sendall(b"x")
            record_type, payload = wire.recv()
            if record_type == HANDSHAKE:
                assert payload == KEY_UPDATE
                wire.opener.rekey()
                seen.append(payload)
                record_type, payload = wire.recv()
            assert (record_type, payload) == (APPLICATION_DATA, b"x")
        assert seen


# ---- KeyUpdate -------------------------------------------------------------------------------


@over_roles
def test_the_peers_key_updates_where_openssl_receives(role):
    with wired(True, TLS_1_3, role) as (sock, wire):
        for _ in range(3):
            wire.send(HANDSHAKE, KEY_UPDATE)
            wire.sealer.rekey()
            wire.send_data(b"next keys")
            assert sock.recv(100) == b"next keys"
            sock.sendall(b"as before")
            assert wire.recv() == (APPLICATION_DATA, b"as before")
        wire.send(HANDSHAKE, KEY_UPDATE_REQUEST)
        wire.sealer.rekey()
        wire.send_data(b"answer")
        if not kernel_can_rekey():
            with pytest.raises(RecordError, match="cannot be made"):
                sock.recv(100)
            record_type, alert = wire.recv()
            assert (record_type, alert[0]) == (ALERT, 2)
            return
        assert sock.recv(100) == b"answer"
        assert wire.recv() == (HANDSHAKE, KEY_UPDATE)
        wire.opener.rekey()
        sock.sendall(b"under new keys")
        assert wire.recv() == (APPLICATION_DATA, b"under new keys")


@over_roles
def test_our_key_updates_where_the_kernel_sends(role):
    with halved(True, TLS_1_3, role) as (sock, peer):
        both_ways(sock, peer)
        if not kernel_can_rekey():
            with pytest.raises(Unavailable):
                sock.update_keys(request_peer=True)
            both_ways(sock, peer)
            return
        for request in (True, False, True):
            sock.update_keys(request_peer=request)
            both_ways(sock, peer)
            both_ways(peer, sock)


@over_roles
def test_our_key_updates_where_openssl_sends(role):
    """It needs nothing of the kernel, unless the peer answers."""
    with wired(False, TLS_1_3, role) as (sock, wire):
        for request in (False, True, True):
            sock.update_keys(request_peer=request)
            record_type, message = wire.recv()
            assert record_type == HANDSHAKE
            assert message in (KEY_UPDATE, KEY_UPDATE_REQUEST)
            wire.opener.rekey()
            sock.sendall(b"under new keys")
            assert wire.recv() == (APPLICATION_DATA, b"under new keys")
        wire.send_data(b"the peer's are as they were")
        assert sock.recv(100) == b"the peer's are as they were"


@over_roles
def test_the_peers_key_updates_where_the_kernel_receives(role):
    with wired(False, TLS_1_3, role) as (sock, wire):
        for _ in range(2):
            wire.send(HANDSHAKE, KEY_UPDATE_REQUEST)
            wire.sealer.rekey()
            wire.send_data(b"next keys")
            if not kernel_can_rekey():
                with pytest.raises(RecordError, match="cannot follow"):
                    sock.recv(100)
                record_type, alert = wire.recv()
                assert (record_type, alert[0]) == (ALERT, 2)
                return
            assert sock.recv(100) == b"next keys"
            assert wire.recv() == (HANDSHAKE, KEY_UPDATE)
            wire.opener.rekey()
            sock.sendall(b"answered")
            assert wire.recv() == (APPLICATION_DATA, b"answered")


@over_halves
def test_key_updates_of_openssl_with_data_around_them(tx):
    if not kernel_can_rekey():
        with halved(tx) as (sock, peer):
            tls.send_key_update(peer, request=True)
            with pytest.raises(RecordError):
                sock.recv(100)
        return
    with halved(tx) as (sock, peer):
        for number in range(6):
            peer.sendall(b"before ")
            tls.send_key_update(peer, request=bool(number % 2))
            peer.sendall(b"after")
            assert recv_exactly(sock, 12) == b"before after"
            both_ways(sock, peer, pattern(50_000))


# ---- tickets ---------------------------------------------------------------------------------


@over_halves
@over_versions
def test_tickets_that_come_later_resume_the_next_connection(tx, version):
    client, server = tls.contexts(kernel.OPENSSL_VERSIONS[version])
    with (
        tls.connect(client, server) as pair,
        pyktls.offload(pair.client, tx=tx, rx=not tx) as sock,
    ):
        pair.server.sendall(b"after the tickets")
        assert recv_exactly(sock, 17) == b"after the tickets"
        session = sock.session
        assert session is not None
        both_ways(sock, pair.server)
    with tls.connect(client, server, session) as again:
        assert again.client.session_reused
        again.exchange()


@over_halves
def test_a_server_has_no_session_to_resume(tx):
    with halved(tx, role=Role.SERVER) as (sock, _):
        assert sock.session is None


# ---- closing ---------------------------------------------------------------------------------


@over_halves
def test_unwrap_and_half_closing(tx):
    with halved(tx) as (sock, peer):
        with Background(peer.unwrap):
            sock.unwrap()
        with pytest.raises(BrokenPipeError):
            sock.send(b"no more")
    with halved(tx) as (sock, peer):
        sock.shutdown(socket.SHUT_WR)
        assert peer.recv(10) == b""
        peer.sendall(b"the other half is open")
        assert recv_exactly(sock, 22) == b"the other half is open"


@over_halves
def test_garbage_collection_delivers(tx):
    with openssl_pair(TLS_1_3) as (own, peer):
        peer.suppress_ragged_eofs = False
        with pytest.warns(ResourceWarning):
            pyktls.offload(own, tx=tx, rx=not tx).sendall(b"last words")
        gc.collect()  # nothing is left that could be in the way
        assert recv_to_end(peer) == b"last words"


@over_halves
def test_after_close_everything_is_ebadf(tx):
    with halved(tx) as (sock, _):
        sock.close()
        sock.close()
        for call in (lambda: sock.recv(1), lambda: sock.send(b"x"), sock.unwrap, sock.update_keys):
            with pytest.raises(OSError, match="Bad file descriptor"):
                call()
        assert sock.pending() == 0


@over_halves
def test_close_interrupts_a_reader(tx):
    with halved(tx) as (sock, _):
        reader = Background(sock.recv, 100)
        threading.Event().wait(0.3)
        sock.shutdown(socket.SHUT_RDWR)
        with pytest.raises((OSError, TruncationError)):
            reader.result()


# ---- OpenSSL and the descriptor --------------------------------------------------------------


@contextlib.contextmanager
def switched(tx, rx, role, engine="native"):
    """``(KTLSSocket, ssl.SSLSocket, OpenSSL's object)``."""
    contexts = tls.contexts(tls.TLS_1_3, watch=False)
    pyktls.watch(contexts[0 if role is Role.CLIENT else 1], engine=engine)
    for context in contexts:
        tls.tell_ragged_ends(context)
    with tls.connect(*contexts) as pair:
        own, peer = pair.ends()[0] if role is Role.CLIENT else pair.ends()[1]
        peer.suppress_ragged_eofs = False
        peer.settimeout(TIMEOUT)
        sslobj = own._sslobj
        own.settimeout(0.1)  # as long as the ssl module waits for what OpenSSL never gets
        sock = pyktls.offload(own, tx=tx, rx=rx)
        sock.settimeout(TIMEOUT)
        try:
            yield sock, peer, sslobj
        finally:
            kernel.close_quietly(sock)


WAYS = [
    pytest.param(True, True, "native", id="both", marks=tls.needs_native),
    pytest.param(
        True, True, "portable", id="both-portable",
        marks=pytest.mark.skipif(FREEBSD, reason="the portable engine is Linux's"),
    ),
    pytest.param(True, False, "native", id="sending", marks=tls.needs_native),
    pytest.param(False, True, "native", id="receiving", marks=tls.needs_native),
]  # fmt: skip


@pytest.mark.parametrize(("tx", "rx", "engine"), WAYS)
@pytest.mark.parametrize("name", every_method.public_names(pyktls.KTLSSocket))
def test_nothing_wrong_reaches_the_wire(name, tx, rx, engine):
    """Whatever is called: the peer's records go on without a gap, and so do ours."""
    with switched(tx, rx, Role.CLIENT, engine) as (sock, peer, _):
        if name not in every_method.TERMINAL:
            every_method.call(sock, name, TIMEOUT)
            sends = name in every_method.SENDING
            if name == "splice_from":
                sends = tx and not FREEBSD
            every_method.assert_nothing_else_was_sent(sock, peer, sends=sends)
            if name == "update_keys" and not tx and not kernel_can_rekey():
                with pytest.raises(RecordError, match="cannot follow"):  # the peer's answer
                    both_ways(peer, sock)
                return
            both_ways(peer, sock)
            return
        fd = sock.fileno()
        sock.settimeout(0.2)
        if name == "detach" and not (tx and rx):  # the other half would be lost
            with pytest.raises(HandoffRefused):
                sock.detach()
            both_ways(sock, peer)
            return
        with contextlib.suppress(OSError):
            getattr(sock, name)(*((socket.SHUT_WR,) if name == "shutdown" else ()))
        if name == "detach":
            os.close(fd)
        if name in ("abandon", "detach"):
            with tls.ragged_end():
                peer.recv(1)
        else:
            assert peer.recv(1) == b""  # close_notify: ragged ends raise


@tls.needs_native
@pytest.mark.parametrize(("tx", "rx", "engine"), WAYS)
@over_roles
def test_openssl_cannot_reach_the_connection(tx, rx, engine, role):
    """Not even who has kept its object: where OpenSSL sends, it does so into memory."""
    with switched(tx, rx, role, engine) as (sock, peer, sslobj):
        peer.sendall(b"for the kernel")
        kernel.wait_readable(sock)
        for call in (
            lambda: sslobj.read(100),
            sslobj.do_handshake,
            sslobj.verify_client_post_handshake,
            lambda: sslobj.write(b"from memory"),
        ):
            with contextlib.suppress(OSError):
                call()
        peer.setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):
            peer.recv(100)
        peer.settimeout(TIMEOUT)
        assert recv_exactly(sock, 14) == b"for the kernel"
        sock.sendall(b"<and on>")
        received = b""
        while not received.endswith(b"<and on>"):
            received += recv_exactly(peer, 1)
        before = received.removesuffix(b"<and on>")
        assert before == b"" or (not tx and before == b"from memory")
        both_ways(peer, sock)


@tls.needs_native
@over_roles
def test_nor_can_it_end_the_connection_where_the_kernel_sends(role):
    for rx in (True, False):
        with switched(True, rx, role) as (sock, peer, sslobj):
            with contextlib.suppress(OSError):
                sslobj.shutdown()
            both_ways(sock, peer)
            both_ways(peer, sock)


# ---- what cannot be --------------------------------------------------------------------------


@over_halves
def test_it_cannot_be_moved(tx):
    with halved(tx) as (sock, peer):
        doing = "receives" if tx else "sends"
        for call in (sock.export_state, sock.detach):
            with pytest.raises(HandoffRefused, match=doing):
                call()
        out, into = os.pipe()
        try:
            os.write(into, b"data")
            with pytest.raises(Unavailable):
                sock.splice_to(into, 4) if tx else sock.splice_from(out, 4)
        finally:
            os.close(out)
            os.close(into)
        both_ways(sock, peer)


@over_halves
def test_after_a_fork_the_child_leaves_openssls_half_alone(tx):
    with halved(tx) as (sock, peer):
        peer.sendall(b"for the parent")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                call = (lambda: sock.recv(10)) if tx else (lambda: sock.send(b"data"))
                with pytest.raises(Unavailable, match="fork"):
                    call()
                assert sock.pending() == 0
                sock.abandon()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert recv_exactly(sock, 14) == b"for the parent"
        both_ways(sock, peer)


def test_wrong_arguments():
    with openssl_pair(TLS_1_3) as (own, peer):
        with pytest.raises(InvalidValue, match="neither"):
            pyktls.offload(own, tx=False, rx=False)
        for wrong in (1, None, "yes"):
            with pytest.raises(InvalidType):
                pyktls.offload(own, tx=wrong)
        both_ways(own, peer)


@over_halves
def test_only_the_native_engine_can(tx):
    client, server = tls.contexts(tls.TLS_1_3, watch=False)
    pyktls.watch(client, engine="membio")
    near, far = tls.tcp_pair()
    with near, Background(server.wrap_socket, far, True) as accepted:
        here = pyktls.MemoryBIOHandshake(near, client, server_hostname=tls.HOST)
        here.do_handshake()
        with accepted.result() as peer:
            with pytest.raises(HandoffRefused, match="native engine"):
                pyktls.offload(here, tx=tx, rx=not tx)
            peer.settimeout(TIMEOUT)
            with pyktls.offload(here) as sock:
                both_ways(sock, peer)


@over_halves
@pytest.mark.skipif(FREEBSD, reason="the portable engine is Linux's")
def test_the_portable_engine_cannot(tx):
    with tls.connect(*tls.contexts(tls.TLS_1_3, engine="portable")) as pair:
        with pytest.raises(HandoffRefused, match="native engine"):
            pyktls.offload(pair.client, tx=tx, rx=not tx)
        pair.exchange()


# ---- wrap_context ----------------------------------------------------------------------------


@pytest.fixture
def receiving_is_refused():
    with kernel.receiving_refused():
        yield


@over_roles
@over_versions
@pytest.mark.usefixtures("receiving_is_refused")
def test_wrap_context_has_the_kernel_send_where_it_cannot_receive(role, version):
    client, server = tls.contexts(kernel.OPENSSL_VERSIONS[version], watch=False)
    pyktls.wrap_context(client if role is Role.CLIENT else server)
    with tls.connect(client, server) as pair:
        sock, peer = pair.ends()[0] if role is Role.CLIENT else pair.ends()[1]
        status = sock.ktls
        assert status.tx
        assert status.rx is Mode.NONE
        assert isinstance(status.refusal, HandoffRefused)
        both_ways(sock, peer)
        data = pattern(100_000)
        with tempfile.TemporaryFile() as file, Background(recv_exactly, peer, len(data)) as got:
            file.write(data)
            file.seek(0)
            assert sock.sendfile(file) == len(data)
        assert got.result() == data
        peer.sendall(b"0123456789")
        assert sock.recv(4) == b"0123"
        assert sock.pending() == 6
        assert sock.read(100) == b"456789"
        sock.setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):
            sock.recv(100)
        sock.settimeout(TIMEOUT)
        with Background(peer.unwrap):
            sock.unwrap()


@pytest.mark.usefixtures("receiving_is_refused")
def test_where_it_is_required_half_is_not_enough():
    client, server = tls.contexts(tls.TLS_1_3, watch=False)
    pyktls.wrap_context(client, require=True)
    with tls.wrap_pair(client, server) as pair:
        accepted = Background(pair.server.do_handshake)
        with pytest.raises(ssl.SSLError, match="does not receive"):
            pair.client.do_handshake()
        assert pair.client.fileno() == -1
        with contextlib.suppress(OSError):
            accepted.result()


def test_the_record_layer_is_the_kernels_by_default():
    """The objects that stand for the kernel have no state: every connection has the same."""
    with halved(True) as (half, _), kernel.offloaded(TLS_1_3) as (whole, _):
        assert whole._layer.incoming is record_layer._KERNEL_INCOMING
        assert whole._layer.outgoing is half._layer.outgoing is record_layer._KERNEL_OUTGOING
        assert not half._layer.straight_in
