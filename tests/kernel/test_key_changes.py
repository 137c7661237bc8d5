"""Keys that this end changes: because the user wants it, and before a cipher's limit is reached."""

from __future__ import annotations

import contextlib
import select
import socket

import pytest

from pyktls import RecordError, Role, Unavailable, linux
from pyktls.ciphers import TLS_1_2, TLS_1_3
from pyktls.protocol import ALERT, APPLICATION_DATA, HANDSHAKE
from pyktls.record_limit import record_limits
from support import kernel, tls
from support.counting import counted
from support.kernel import (
    assert_ended_by_key_update,
    both_ways,
    kernel_can_rekey,
    offloaded,
    recv_exactly,
    wired,
)

SUITE_1_2 = kernel.suite(TLS_1_2)
SUITE_1_3 = kernel.suite(TLS_1_3)
KEY_UPDATE = b"\x18\x00\x00\x01\x00"
KEY_UPDATE_REQUEST = b"\x18\x00\x00\x01\x01"
CLOSE_NOTIFY = (ALERT, b"\x01\x00")

NO_NEW_KEYS = {
    TLS_1_2: "TLS 1.2 has no KeyUpdate",
    TLS_1_3: f"the keys cannot be changed: {kernel.NO_REKEY}",
}

over_roles = pytest.mark.parametrize("role", list(Role), ids=str)


def assert_refused(sock, wire):
    """Where keys cannot be changed nothing is sent, and the connection goes on."""
    with pytest.raises(Unavailable) as caught:
        sock.update_keys()
    assert str(caught.value) == NO_NEW_KEYS[sock._layer.session.version]
    sock.sendall(b"as before")
    assert wire.recv() == (APPLICATION_DATA, b"as before")
    wire.send_data(b"too")
    assert sock.recv(10) == b"too"


# ---- select(2) ---------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, 0.0, 30.0])
@pytest.mark.parametrize("read", ["recv", "recv_into", "recvmsg_into", "waitall", "makefile"])
def test_select_tells_of_what_comes_after_a_key_update(read, timeout):
    """While it waits for keys Linux says that there is nothing, also of what waits already."""

    def take(sock):
        buffer, other = bytearray(1000), bytearray(1000)
        if read == "recv":
            return sock.recv(1000)
        if read == "recv_into":
            return bytes(buffer[: sock.recv_into(buffer)])
        if read == "waitall":
            return sock.recv(1000, socket.MSG_WAITALL if timeout == 0 else 0)
        if read == "makefile":
            with sock.makefile("rb", buffering=0) as file:
                return file.read(1000)
        received, *_ = sock.recvmsg_into([buffer, other])
        return bytes((buffer + other)[:received])

    with wired(SUITE_1_3) as (sock, wire):
        sock.settimeout(timeout)
        follows = kernel_can_rekey()
        for number in range(4):
            wire.send_data(b"before")
            wire.send(HANDSHAKE, KEY_UPDATE)
            wire.sealer.rekey()
            wire.send_data(b"after %d" % number)
            expected = b"beforeafter %d" % number if follows else b"before"
            got = b""
            while len(got) < len(expected):
                assert select.select([sock], [], [], 20)[0], f"nothing after {got!r}"
                got += take(sock)
            assert got == expected
            if not follows:
                assert select.select([sock], [], [], 20)[0]
                with pytest.raises(RecordError, match="this kernel cannot follow"):
                    take(sock)
                assert_ended_by_key_update(sock, wire)
                return


def test_a_signal_while_a_key_update_is_taken_in_loses_no_data():
    with wired(SUITE_1_3) as (sock, wire):
        layer = sock._layer

        def interrupted(*_):
            raise KeyboardInterrupt

        wire.send_data(b"before")
        wire.send(HANDSHAKE, KEY_UPDATE)
        wire.sealer.rekey()
        wire.send_data(b"after")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(layer), "take_in_one", interrupted)
            if not kernel_can_rekey():  # there the KeyUpdate waits for a read of its own
                assert sock.recv(1000) == b"before"
                assert_ended_by_key_update(sock, wire)
                return
            with pytest.raises(KeyboardInterrupt):
                sock.recv(1000)
        assert sock.recv(1000) == b"before"
        assert sock.recv(1000) == b"after"


# ---- update_keys -----------------------------------------------------------------------------


@over_roles
@pytest.mark.parametrize("cipher", kernel.CIPHERS)
def test_update_keys(role, cipher):
    with wired(kernel.suite(TLS_1_3, cipher), role) as (sock, wire):
        sock.sendall(b"old keys")
        assert wire.recv() == (APPLICATION_DATA, b"old keys")
        if not kernel_can_rekey():
            assert_refused(sock, wire)
            return
        for _ in range(3):
            sock.update_keys()
            assert wire.recv() == (HANDSHAKE, KEY_UPDATE)
            wire.opener.rekey()
            sock.sendall(b"new keys")
            assert wire.recv() == (APPLICATION_DATA, b"new keys")
            wire.send_data(b"still the old ones of this direction")
            assert sock.recv(100) == b"still the old ones of this direction"
        sock.close()
        assert wire.recv() == CLOSE_NOTIFY


def test_update_keys_in_tls_1_2():
    with wired(SUITE_1_2) as (sock, wire):
        assert_refused(sock, wire)


def test_update_keys_and_ask_the_peer():
    if not kernel_can_rekey():
        with wired(SUITE_1_3) as (sock, wire):
            assert_refused(sock, wire)
        return
    with wired(SUITE_1_3) as (sock, wire):
        sock.update_keys(request_peer=True)
        assert wire.recv() == (HANDSHAKE, KEY_UPDATE_REQUEST)
        wire.opener.rekey()
        # As long as it has not answered it is not asked again.
        sock.update_keys(request_peer=True)
        assert wire.recv() == (HANDSHAKE, KEY_UPDATE)
        wire.opener.rekey()
        wire.send(HANDSHAKE, KEY_UPDATE)
        wire.sealer.rekey()
        wire.send_data(b"answered")
        assert sock.recv(100) == b"answered"
        sock.update_keys(request_peer=True)
        assert wire.recv() == (HANDSHAKE, KEY_UPDATE_REQUEST)


def test_openssl_answers():
    with offloaded(TLS_1_3) as (sock, peer):
        both_ways(sock, peer)
        if not kernel_can_rekey():
            with pytest.raises(Unavailable) as caught:
                sock.update_keys(request_peer=True)
            assert str(caught.value) == NO_NEW_KEYS[TLS_1_3]
            both_ways(sock, peer)
            return
        for _ in range(3):
            sock.update_keys(request_peer=True)
            both_ways(sock, peer, kernel.pattern(50_000))
            tls.send_key_update(peer, request=True)
            both_ways(peer, sock, kernel.pattern(50_000))


def test_what_msg_more_holds_back_goes_out_under_the_old_keys():
    if not kernel_can_rekey():
        with wired(SUITE_1_3) as (sock, wire):
            sock.send(b"held back", socket.MSG_MORE)
            with pytest.raises(Unavailable) as caught:
                sock.update_keys()
            assert str(caught.value) == NO_NEW_KEYS[TLS_1_3]
            sock.sendall(b" and not")
            assert wire.recv() == (APPLICATION_DATA, b"held back and not")
        return
    with wired(SUITE_1_3) as (sock, wire):
        sock.send(b"held back", socket.MSG_MORE)
        sock.update_keys()
        assert wire.recv() == (APPLICATION_DATA, b"held back")
        assert wire.recv() == (HANDSHAKE, KEY_UPDATE)
        wire.opener.rekey()
        sock.sendall(b"new")
        assert wire.recv() == (APPLICATION_DATA, b"new")


def test_an_update_that_finds_no_room_changes_nothing():
    if not kernel_can_rekey():
        with wired(SUITE_1_3) as (sock, wire):
            assert_refused(sock, wire)
        return
    with wired(SUITE_1_3) as (sock, wire):
        sock.setblocking(False)
        sent = bytearray()
        piece = kernel.pattern(100_000)
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += piece[: sock.send(piece)]
        with pytest.raises(BlockingIOError):
            sock.update_keys()
        sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            sock.update_keys()
        assert wire.recv_data(len(sent)) == sent
        sock.settimeout(kernel.TIMEOUT)
        sock.update_keys()
        assert wire.recv() == (HANDSHAKE, KEY_UPDATE)
        wire.opener.rekey()
        sock.sendall(b"new")
        assert wire.recv() == (APPLICATION_DATA, b"new")


def test_no_update_after_the_end():
    with wired(SUITE_1_3) as (sock, wire):
        sock.shutdown(socket.SHUT_WR)
        with pytest.raises(BrokenPipeError):
            sock.update_keys()
        assert wire.recv() == CLOSE_NOTIFY


# ---- before the cipher's limit ---------------------------------------------------------------


def the_ways_to_send(sock, path):
    def sendfile(data):
        path.write_bytes(data)
        with path.open("rb") as file:
            assert sock.sendfile(file) == len(data)

    return {
        "send": sock.send,
        "sendall": sock.sendall,
        "sendmsg": lambda data: sock.sendmsg([data[:1], data[1:]]),
        "sendmsg of an iterator": lambda data: sock.sendmsg(iter([data])),
        "sendfile": sendfile,
    }


@pytest.mark.parametrize(
    "way", ["send", "sendall", "sendmsg", "sendmsg of an iterator", "sendfile"]
)
@pytest.mark.parametrize("cipher", ["AES_128_GCM", "AES_128_CCM"])
def test_keys_change_by_themselves_or_sending_ends_in_time(way, cipher, tmp_path):
    """RFC 8446 section 5.5, from a connection that has sent almost as much as it may."""
    suite = kernel.suite(TLS_1_3, cipher)
    soft, hard = record_limits(suite.aead)
    if kernel_can_rekey():
        with wired(suite, sent=soft - 20) as (sock, wire):
            send = the_ways_to_send(sock, tmp_path / "file")[way]
            types = []
            for number in range(40):
                data = b"%04d" % number
                send(data)
                record_type, payload = wire.recv()
                if record_type == HANDSHAKE:
                    assert payload == KEY_UPDATE
                    wire.opener.rekey()
                    record_type, payload = wire.recv()
                    types.append(number)
                assert (record_type, payload) == (APPLICATION_DATA, data)
            (changed,) = types
            assert 10 <= changed <= 21
        return
    with wired(suite, sent=hard - 20) as (sock, wire):
        send = the_ways_to_send(sock, tmp_path / "file")[way]
        sent = 0
        with contextlib.suppress(RecordError):
            while sent < 40:
                send(b"data")
                assert wire.recv() == (APPLICATION_DATA, b"data")
                sent += 1
        assert 10 <= sent <= 20
        with pytest.raises(RecordError, match=f"{cipher} is good for"):
            send(b"data")
        wire.send_data(b"the other direction goes on")
        assert sock.recv(100) == b"the other direction goes on"
        sock.close()
        assert wire.recv() == CLOSE_NOTIFY


def test_tls_1_2_ends_at_the_limit():
    _, hard = record_limits(SUITE_1_2.aead)
    with wired(SUITE_1_2, sent=hard - 2) as (sock, wire):
        for _ in range(2):
            sock.sendall(b"data")
            assert wire.recv() == (APPLICATION_DATA, b"data")
        with pytest.raises(RecordError, match="cannot change its keys"):
            sock.sendall(b"data")
        sock.close()
        assert wire.recv() == CLOSE_NOTIFY


def test_records_that_are_shorter_than_full_ones_are_counted_too():
    """With TLS_TX_MAX_PAYLOAD_LEN lengths say little about the number of records."""
    soft, hard = record_limits(SUITE_1_3.aead)
    end = soft if kernel_can_rekey() else hard
    with contextlib.ExitStack() as stack:
        sock, wire = stack.enter_context(wired(SUITE_1_3, sent=end - 3000))
        size, records = 64, 100
        try:
            linux.set_tx_max_payload_len(sock, size)
        except Unavailable:  # then no record is shorter unless its send is
            size, records = 16384, 10
            sock, wire = stack.enter_context(wired(SUITE_1_3, sent=end - 300))
        changed = 0
        for _ in range(40):
            try:
                sock.sendall(bytes(records * size))
            except RecordError:
                changed += 1
                break
            rest = records * size
            while rest:
                record_type, payload = wire.recv()
                if record_type == HANDSHAKE:
                    changed += 1
                    wire.opener.rekey()
                else:
                    assert len(payload) == size
                    rest -= len(payload)
        assert changed == 1
        # In time, and not much too early.
        count = linux.get_rec_seq(sock, linux.TLS_TX)
        assert (900 <= count <= 1100) if kernel_can_rekey() else (hard - 10 <= count <= hard)


ASKS = ("getsockopt", "setsockopt")


@pytest.mark.parametrize("way", ["send", "sendall", "sendmsg"])
def test_the_hot_path_asks_the_kernel_only_now_and_then(way):
    """Of a fresh connection the count is an estimate, put right at long intervals."""
    with wired(SUITE_1_3, sent=0) as (sock, wire):
        send = the_ways_to_send(sock, None)[way]

        def some():
            for _ in range(50):
                send(b"data")

        assert counted(some, "sendmsg", *ASKS) == {"sendmsg": 50}
        assert sock._layer.records_sent >= 50
        assert sock._layer.next_count > 10_000
        assert wire.recv_data(200) == b"data" * 50
        assert linux.get_rec_seq(sock, linux.TLS_TX) == 50
    soft, hard = record_limits(SUITE_1_3.aead)
    with wired(SUITE_1_3, sent=(soft if kernel_can_rekey() else hard) - 100) as (sock, wire):
        # So near the limit it asks all the time: what is not counted above would have been seen.
        send = the_ways_to_send(sock, None)[way]
        made = counted(some, "sendmsg", *ASKS)
        assert made["sendmsg"] == 50
        assert made["getsockopt"] >= 20
        assert wire.recv_data(200) == b"data" * 50


def test_a_long_stream_of_short_sends_asks_once():
    suite = kernel.suite(TLS_1_3, "AES_128_CCM")  # which has the lowest limit
    number = (record_limits(suite.aead)[0] >> 9) + 100

    def send():
        for _ in range(number):
            sock.sendall(b"data")

    with kernel.keyed(*kernel.sessions(suite, sent=0)) as (sock, peer):
        once = counted(lambda: linux.get_rec_seq(sock, linux.TLS_TX), *ASKS)
        assert once["getsockopt"] > 0
        with kernel.Background(recv_exactly, peer, 4 * number) as receiver:
            assert counted(send, *ASKS) == once
            assert receiver.result() == b"data" * number
        assert linux.get_rec_seq(sock, linux.TLS_TX) == number


def test_a_long_stream_between_two_of_us_changes_keys_in_the_middle():
    """Both ends are ours; neither side notices."""
    soft, hard = record_limits(SUITE_1_3.aead)
    start = soft - 100 if kernel_can_rekey() else hard - 1000
    own, other = kernel.sessions(SUITE_1_3, sent=start)
    with kernel.keyed(own, other) as (sock, peer):
        data = kernel.pattern(3_000_000)
        with kernel.Background(recv_exactly, peer, len(data)) as receiver:
            sock.sendall(data)
            assert receiver.result() == data
        both_ways(sock, peer)
        if kernel_can_rekey():
            assert linux.get_rec_seq(sock, linux.TLS_TX) < 1000
