"""Every kind of record that can arrive, and what a KTLSSocket makes of it.

The other end is a record layer in user space, which can also send what is wrong.  What the kernel
itself does with such records its selftest shows (``tls_err``: ``bad_rec``, ``bad_auth``,
``bad_in_large_read``; ``zero_len``; ``control_msg``; ``rekey``): it reports some errors only once
and then blocks for ever, so that remembering them is the socket's task.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import time

import pytest

from pyktls import Error, RecordError, Role, TLSAlert, TruncationError
from pyktls.ciphers import TLS_1_2, TLS_1_3
from pyktls.closing import UnreadData
from support import kernel, tls
from support.kernel import (
    CANNOT_FOLLOW,
    ONE_OF_EACH,
    SUITES,
    Background,
    both_ways,
    new_session_ticket,
    offloaded,
    pattern,
    recv_exactly,
    recv_to_end,
    suite_id,
    wired,
)
from support.records import ALERT, APPLICATION_DATA, HANDSHAKE

over_versions = pytest.mark.parametrize("suite", ONE_OF_EACH, ids=suite_id)
over_roles = pytest.mark.parametrize("role", Role)
SUITE_1_2, SUITE_1_3 = ONE_OF_EACH
CLOSE_NOTIFY = (ALERT, b"\x01\x00")
KEY_UPDATE = b"\x18\x00\x00\x01\x00"
KEY_UPDATE_REQUEST = b"\x18\x00\x00\x01\x01"


def fatal(description: int) -> tuple[int, bytes]:
    return ALERT, bytes((2, description))


@contextlib.contextmanager
def at_once():
    """The block neither blocks nor waits for a timeout."""
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < 10


def assert_dead(sock, kind, message, *, sending_too=True):
    """Every way to receive raises the same, again and again; nothing can be sent any more."""
    with at_once():
        for call in (
            lambda: sock.recv(100),
            lambda: sock.recv(1),
            lambda: sock.recv_into(bytearray(10)),
            lambda: sock.recv(1, socket.MSG_PEEK),
            lambda: sock.recv(5, socket.MSG_WAITALL),
            lambda: sock.recvmsg(5),
        ):
            with pytest.raises(kind) as caught:
                call()
            assert type(caught.value) is kind
            assert isinstance(caught.value, ConnectionError)
            assert str(caught.value) == message
        if sending_too:
            for call in (
                lambda: sock.send(b"x"),
                lambda: sock.sendall(b"x"),
                lambda: sock.sendmsg([b"x"]),
            ):
                with pytest.raises(BrokenPipeError, match="after the end of the TLS connection"):
                    call()


def first_error(sock) -> Exception:
    with pytest.raises(ConnectionError) as caught:
        sock.recv(100)
    return caught.value


def assert_ends_without_close_notify(sock, wire):
    with at_once():
        sock.close()
    with contextlib.suppress(ConnectionResetError):
        assert wire.recv_all() == (b"", [])


# ---- records that break the connection -------------------------------------------------------


def flipped(wire) -> bytes:
    record = bytearray(wire.seal(APPLICATION_DATA, b"altered on the way"))
    record[-3] ^= 1
    return bytes(record)


def one_is_missing(wire) -> bytes:
    wire.seal(APPLICATION_DATA, b"never sent")
    return wire.seal(APPLICATION_DATA, b"the one after it")


def repeated(wire) -> bytes:
    record = wire.seal(APPLICATION_DATA, b"")
    wire.sealer.sequence += 1
    return record + record


AUTHENTICATION = (20, "a record failed authentication, or is too short", errno.EBADMSG)
BROKEN = {
    "flipped bit": (flipped, *AUTHENTICATION),
    "missing record": (one_is_missing, *AUTHENTICATION),
    "repeated record": (repeated, *AUTHENTICATION),
    # The kernel looks at a header once it has the bytes of the explicit nonce as well.
    "too short": (lambda _: b"\x17\x03\x03\x00\x03abc" + bytes(20), *AUTHENTICATION),
    "too long": (
        lambda _: b"\x17\x03\x03\xff\xff" + bytes(100),
        22,
        "a record is longer than TLS allows",
        errno.EMSGSIZE,
    ),
    "plain text": (
        lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n",
        22,
        "a record is longer than TLS allows",
        errno.EMSGSIZE,
    ),
    "wrong version": (
        lambda _: b"\x17\x03\x01\x00\x40" + bytes(64),
        70,
        "a record's header carries another protocol version",
        errno.EINVAL,
    ),
}


@over_versions
@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_record_ends_the_connection_after_what_was_good(suite, how):
    make, description, reason, error = BROKEN[how]
    with wired(suite) as (sock, wire):
        good = wire.seal(APPLICATION_DATA, b"one, ") + wire.seal(APPLICATION_DATA, b"two")
        wire.raw(good + make(wire))
        # The selftest's bad_in_large_read: what came before is delivered first.
        assert recv_exactly(sock, 8) == b"one, two"
        caught = first_error(sock)
        assert type(caught) is RecordError
        assert str(caught).startswith(f"{reason} ([Errno {error}] recvmsg: ")
        assert isinstance(caught.__cause__, OSError)
        assert_dead(sock, RecordError, str(caught))
        assert wire.recv() == fatal(description)
        assert_ends_without_close_notify(sock, wire)


@pytest.mark.parametrize("suite", SUITES, ids=suite_id)
def test_an_altered_record_is_detected_with_every_cipher(suite):
    with wired(suite) as (sock, wire):
        wire.raw(flipped(wire))
        assert type(first_error(sock)) is RecordError
        assert wire.recv() == fatal(20)


@over_versions
@pytest.mark.parametrize("timeout", [None, 0.0])
def test_a_broken_record_on_a_blocking_and_a_non_blocking_socket(suite, timeout):
    with wired(suite) as (sock, wire):
        wire.raw(flipped(wire))
        kernel.wait_readable(sock)
        sock.settimeout(timeout)
        caught = first_error(sock)
        assert_dead(sock, RecordError, str(caught))
        assert wire.recv() == fatal(20)


@over_versions
def test_waitall_gives_the_good_part_first(suite):
    with wired(suite) as (sock, wire):
        wire.raw(wire.seal(APPLICATION_DATA, b"good") + flipped(wire))
        assert sock.recv(100, socket.MSG_WAITALL) == b"good"
        caught = first_error(sock)
        assert_dead(sock, RecordError, str(caught))
        assert wire.recv() == fatal(20)


@over_versions
def test_data_sent_before_the_error_is_not_taken_back(suite):
    """The alert follows the data; the kernel's error does not keep it from being sent."""
    with wired(suite) as (sock, wire):
        wire.raw(flipped(wire))
        sock.sendall(b"sent before")
        assert type(first_error(sock)) is RecordError
        assert wire.recv() == (APPLICATION_DATA, b"sent before")
        assert wire.recv() == fatal(20)


def test_an_inner_plaintext_of_zeros_is_refused():
    """RFC 8446 section 5.4: without a non-zero byte there is no type."""
    with wired(SUITE_1_3) as (sock, wire):
        wire.send(0, b"", padding=50)
        caught = first_error(sock)
        assert_dead(sock, RecordError, str(caught))


@pytest.mark.parametrize("excess", [1, 200])
def test_a_record_whose_plaintext_is_too_long_is_refused(excess):
    """RFC 8446 section 5.4: 2^14 bytes of content, and one for the type."""
    with wired(SUITE_1_3) as (sock, wire):
        wire.send_data(pattern(16384))
        assert recv_exactly(sock, 16384) == pattern(16384)
        wire.send_data(bytes(16384 + excess))
        caught = first_error(sock)
        assert type(caught) is RecordError
        assert_dead(sock, RecordError, str(caught))
        assert wire.recv() == fatal(22)


def test_an_unprotected_record_after_the_handshake_is_refused():
    """ChangeCipherSpec for middleboxes is legal before Finished only (RFC 8446 section 5)."""
    with wired(SUITE_1_3) as (sock, wire):
        wire.raw(b"\x14\x03\x03\x00\x01\x01")
        caught = first_error(sock)
        assert_dead(sock, RecordError, str(caught))
        assert wire.recv() == fatal(20)


@pytest.mark.parametrize("content", [b"", bytes(5)], ids=["empty", "padding"])
def test_a_record_without_a_content_type_is_a_broken_one(content):
    """RFC 8446 section 5.4 wants unexpected_message; the kernel gives EBADMSG, as for any other."""
    with wired(SUITE_1_3) as (sock, wire):
        wire.send(0, content)
        assert_dead(sock, RecordError, str(first_error(sock)))
        assert wire.recv() == fatal(20)


# ---- records that are authentic and not allowed ----------------------------------------------


@over_versions
@pytest.mark.parametrize(
    ("record_type", "payload", "message"),
    [
        (20, b"\x01", "ChangeCipherSpec after the handshake (unexpected_message)"),
        (24, b"heartbeat", "a record of unknown type 24 (unexpected_message)"),
        (99, b"?", "a record of unknown type 99 (unexpected_message)"),
        (255, b"", "a record of unknown type 255 (unexpected_message)"),
        (22, b"", "an empty handshake record (unexpected_message)"),
        (21, b"", "an empty alert record (unexpected_message)"),
        (21, b"\x02", "an alert of 1 bytes (decode_error)"),
        (21, b"\x01\x00\x00", "an alert of 3 bytes (decode_error)"),
        (22, b"\x0b\x00\x00\x00", "handshake message 11 after the handshake (unexpected_message)"),
    ],
)
def test_a_record_that_may_not_come_now_ends_the_connection(suite, record_type, payload, message):
    with wired(suite) as (sock, wire):
        wire.send_data(b"good")
        wire.send(record_type, payload)
        assert recv_exactly(sock, 4) == b"good"
        assert str(first_error(sock)) == message
        assert_dead(sock, RecordError, message)
        assert wire.recv() == fatal(50 if "decode" in message else 10)
        assert_ends_without_close_notify(sock, wire)


def test_a_server_takes_no_ticket():
    with wired(SUITE_1_3, Role.SERVER) as (sock, wire):
        wire.send(HANDSHAKE, new_session_ticket())
        message = "handshake message 4 after the handshake (unexpected_message)"
        assert str(first_error(sock)) == message
        assert_dead(sock, RecordError, message)
        assert wire.recv() == fatal(10)


def test_data_within_a_handshake_message_is_refused():
    """RFC 8446 section 5.1."""
    ticket = new_session_ticket(100)
    with wired(SUITE_1_3) as (sock, wire):
        wire.send(HANDSHAKE, ticket[:50])
        wire.send_data(b"in between")
        message = "another record within a handshake message (unexpected_message)"
        assert str(first_error(sock)) == message
        assert_dead(sock, RecordError, message)
        assert wire.recv() == fatal(10)


# ---- records that are not data and that the reader does not see ------------------------------


@over_versions
def test_empty_data_records_are_no_end_of_the_stream(suite):
    """The selftest's ``zero_len``; a plain recv would return b"" for some of these."""
    with wired(suite) as (sock, wire):
        for _ in range(3):
            wire.send_data(b"")
        wire.send_data(b"data")
        wire.send_data(b"")
        assert sock.recv(100) == b"data"
        sock.settimeout(0.3)
        for flags in (0, socket.MSG_PEEK, socket.MSG_WAITALL):
            with pytest.raises(TimeoutError):
                sock.recv(100, flags)
        sock.settimeout(kernel.TIMEOUT)
        wire.send_data(b"")
        wire.send_data(b"more")
        assert sock.recv(100, socket.MSG_PEEK) == b"more"
        assert recv_exactly(sock, 4) == b"more"


@over_versions
def test_empty_data_records_before_a_control_record(suite):
    """The selftest's ``0data_0data_ctrl``: the kernel then returns 0 for data."""
    with wired(suite) as (sock, wire):
        wire.raw(
            b"".join(wire.seal(APPLICATION_DATA, b"") for _ in range(2))
            + wire.seal(ALERT, b"\x01\x5a" if suite is SUITE_1_3 else b"\x01\x64")
            + wire.seal(APPLICATION_DATA, b"data")
        )
        assert sock.recv(100) == b"data"
        wire.raw(wire.seal(APPLICATION_DATA, b"") + wire.seal(ALERT, b"\x01\x00"))
        assert sock.recv(100) == b""


@over_versions
@pytest.mark.parametrize("flags", [socket.MSG_PEEK, socket.MSG_WAITALL])
def test_empty_data_records_before_a_control_record_whatever_the_flags(suite, flags):
    """A look at them returns 0 each time, and would do so for ever."""
    with wired(suite) as (sock, wire), at_once():
        wire.raw(
            b"".join(wire.seal(APPLICATION_DATA, b"") for _ in range(3))
            + wire.seal(ALERT, b"\x01\x5a" if suite is SUITE_1_3 else b"\x01\x64")
            + wire.seal(APPLICATION_DATA, b"data")
        )
        assert sock.recv(4, flags) == b"data"
        if flags == socket.MSG_PEEK:
            assert sock.recv(4) == b"data"
        wire.raw(wire.seal(APPLICATION_DATA, b"") + wire.seal(ALERT, b"\x01\x00"))
        assert sock.recv(4, flags) == b""


@over_versions
def test_empty_data_records_do_not_keep_close_from_its_end(suite):
    with wired(suite) as (sock, wire), at_once():
        wire.raw(
            b"".join(wire.seal(APPLICATION_DATA, b"") for _ in range(3))
            + wire.seal(ALERT, b"\x02\x50")
        )
        kernel.wait_readable(sock)
        sock.close()


def test_padding_is_no_data():
    with wired(SUITE_1_3) as (sock, wire):
        wire.send(APPLICATION_DATA, b"padded", padding=5000)
        wire.send(APPLICATION_DATA, b"", padding=1000)
        wire.send(HANDSHAKE, new_session_ticket(), padding=77)
        wire.send(APPLICATION_DATA, b" too", padding=1)
        assert recv_exactly(sock, 10) == b"padded too"
        wire.send(ALERT, b"\x01\x00", padding=9)
        assert sock.recv(1) == b""


@pytest.mark.parametrize("size", [18, 500, 1000, 16384])
@pytest.mark.parametrize("room", [1, 18, 500, 1000, 20000])
def test_a_ticket_of_any_size_and_a_buffer_of_any_size(size, room):
    with wired(SUITE_1_3) as (sock, wire):
        wire.send(HANDSHAKE, new_session_ticket(size))
        wire.send_data(b"data")
        assert recv_exactly_with(sock, room, 4) == b"data"
        wire.send(HANDSHAKE, new_session_ticket(size))
        wire.send_data(b"data")
        buffer = bytearray(room)
        received = sock.recv_into(buffer)
        assert buffer[:received] == b"data"[:received]


def recv_exactly_with(sock, room, size):
    data = b""
    while len(data) < size:
        data += sock.recv(room)
    return data


@pytest.mark.parametrize("flags", [0, socket.MSG_PEEK, socket.MSG_WAITALL])
@pytest.mark.parametrize("room", [1, 4])
def test_a_ticket_in_several_records(flags, room):
    ticket = new_session_ticket(40_000)
    with wired(SUITE_1_3) as (sock, wire):
        wire.send(HANDSHAKE, ticket[:3])
        wire.send(HANDSHAKE, ticket[3:16000])
        wire.send(HANDSHAKE, ticket[16000:32000])
        wire.send(HANDSHAKE, ticket[32000:] + new_session_ticket())  # and another one behind it
        wire.send_data(b"data")
        assert sock.recv(room, flags) == b"data"[:room]
        if flags & socket.MSG_PEEK:
            assert sock.recv(4) == b"data"


def test_a_tls_1_2_server_that_wants_to_renegotiate_is_told_no():
    """RFC 5246 section 7.4.1.1: HelloRequest, answered with the warning no_renegotiation."""
    with wired(SUITE_1_2) as (sock, wire):
        wire.send(HANDSHAKE, b"\x00\x00\x00\x00")
        wire.send_data(b"data")
        assert sock.recv(10) == b"data"
        assert wire.recv() == (ALERT, b"\x01\x64")
        sock.sendall(b"goes on")
        assert wire.recv_data(7) == b"goes on"


# ---- alerts ----------------------------------------------------------------------------------


@over_versions
@over_roles
@pytest.mark.parametrize(
    ("description", "name"), [(20, "bad_record_mac"), (80, "internal_error"), (77, None)]
)
def test_a_fatal_alert_is_raised_and_stays(suite, role, description, name):
    name = name or f"unknown({description})"
    with wired(suite, role) as (sock, wire):
        wire.send_data(b"before")
        wire.send_alert(2, description)
        assert recv_exactly(sock, 6) == b"before"
        caught = first_error(sock)
        assert type(caught) is TLSAlert
        assert (caught.level, caught.description, caught.name) == (2, description, name)
        message = f"the peer sent the fatal alert {name} ({description})"
        assert_dead(sock, TLSAlert, message)
        assert_ends_without_close_notify(sock, wire)


def test_in_tls_1_3_any_alert_but_two_is_fatal():
    """RFC 8446 section 6: the level says nothing."""
    with wired(SUITE_1_3) as (sock, wire):
        wire.send_alert(1, 90)  # user_canceled
        wire.send_data(b"goes on")
        assert sock.recv(100) == b"goes on"
        wire.send_alert(1, 42)
        assert_dead(sock, TLSAlert, "the peer sent the warning alert bad_certificate (42)")


def test_in_tls_1_2_warnings_are_passed_over_but_not_for_ever():
    with wired(SUITE_1_2) as (sock, wire):
        for _ in range(3):
            for _ in range(5):
                wire.send_alert(1, 100)
            wire.send_data(b"data")
            assert sock.recv(100) == b"data"
        for _ in range(6):
            wire.send_alert(1, 100)
        assert_dead(sock, RecordError, "too many warning alerts in a row (unexpected_message)")
        assert wire.recv() == fatal(10)


def test_an_alert_of_a_real_peer():
    """OpenSSL that gets a record it cannot open says so before it closes."""
    with offloaded(TLS_1_3) as (sock, peer):
        both_ways(sock, peer)
        kernel.interface.send_record(sock.fileno(), b"?", 99)
        new = ssl.OPENSSL_VERSION_INFO >= (3, 5)
        words = r"(?i)record layer failure" if new else r"(?i)bad record type|unexpected"
        with pytest.raises(OSError, match=words):
            peer.recv(1)
        assert_dead(sock, TLSAlert, "the peer sent the fatal alert unexpected_message (10)")


# ---- the end of the stream -------------------------------------------------------------------


@over_versions
def test_close_notify_is_the_end_for_ever(suite):
    with wired(suite) as (sock, wire):
        wire.send_data(b"all of it")
        wire.close_notify()
        wire.send_data(b"not to be delivered")  # RFC 8446 section 6.1: to be ignored
        assert recv_to_end(sock) == b"all of it"
        with at_once():
            for _ in range(3):
                assert sock.recv(10) == b""
                assert sock.recv_into(bytearray(10)) == 0
                assert sock.recv(10, socket.MSG_PEEK) == b""
                assert sock.recv(10, socket.MSG_WAITALL) == b""
                assert sock.recvmsg(10) == (b"", [], 0, None)
            sock.setblocking(False)
            assert sock.recv(10) == b""


def test_after_close_notify_tls_1_3_goes_on_sending():
    """RFC 8446 section 6.1: each side closes its own direction."""
    with wired(SUITE_1_3) as (sock, wire):
        wire.close_notify()
        assert sock.recv(10) == b""
        sock.sendall(b"still sending")
        assert wire.recv_data(13) == b"still sending"
        sock.close()
        assert wire.recv() == CLOSE_NOTIFY
        with pytest.raises(EOFError):
            wire.recv()


def test_after_close_notify_tls_1_2_answers_at_once_and_sends_no_more():
    """RFC 5246 section 7.2.1."""
    with wired(SUITE_1_2) as (sock, wire):
        wire.close_notify()
        assert sock.recv(10) == b""
        assert wire.recv() == CLOSE_NOTIFY
        with pytest.raises(BrokenPipeError, match="after the end of the TLS connection"):
            sock.send(b"x")
        sock.close()
        with pytest.raises(EOFError):  # one close_notify, not two
            wire.recv()


@over_roles
def test_openssl_closes_first_in_tls_1_2_and_is_answered(role):
    with offloaded(TLS_1_2, role=role) as (sock, peer), Background(peer.unwrap):
        assert sock.recv(1) == b""


@over_versions
@pytest.mark.parametrize("cut", [0, 3, 5, 20])
def test_an_end_without_close_notify_is_truncation_and_stays(suite, cut):
    """FIN between records, in a header, in a body: the kernel reports them all as a clean end."""
    with wired(suite) as (sock, wire):
        wire.send_data(b"data")
        wire.raw(wire.seal(APPLICATION_DATA, b"cut off")[:cut])
        wire.sock.shutdown(socket.SHUT_WR)
        assert recv_exactly(sock, 4) == b"data"
        message = (
            "the peer closed the connection without close_notify: "
            "what was received may be incomplete"
        )
        assert_dead(sock, TruncationError, message, sending_too=False)
        # The peer has closed its own half only.
        sock.sendall(b"answer")
        assert wire.recv_data(6) == b"answer"
        sock.close()
        assert wire.recv() == CLOSE_NOTIFY


@over_versions
def test_waitall_gives_what_came_before_the_truncation(suite):
    with wired(suite) as (sock, wire):
        wire.send_data(b"data")
        wire.sock.shutdown(socket.SHUT_WR)
        assert sock.recv(100, socket.MSG_WAITALL) == b"data"
        with pytest.raises(TruncationError):
            sock.recv(100, socket.MSG_WAITALL)


@over_versions
def test_a_reset_is_never_taken_for_the_end(suite):
    with wired(suite) as (sock, wire):
        wire.send_data(b"data")
        assert recv_exactly(sock, 4) == b"data"
        wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        wire.sock.close()
        with pytest.raises(ConnectionResetError):
            sock.recv(10)
        for _ in range(3):
            with at_once(), pytest.raises(ConnectionError):
                sock.recv(10)
        with at_once():
            sock.close()


# ---- unwrap ----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", kernel.VERSIONS, ids=kernel.VERSION_NAMES.get)
@over_roles
def test_unwrap_when_we_are_first(version, role):
    with offloaded(version, role=role) as (sock, peer):
        both_ways(sock, peer)

        def other() -> None:
            assert peer.recv(1) == b""
            peer.unwrap()

        with Background(other):
            assert sock.unwrap() is None
            with at_once():
                sock.unwrap()  # again is harmless
                assert sock.recv(1) == b""
            with pytest.raises(BrokenPipeError):
                sock.send(b"x")


@pytest.mark.parametrize("version", kernel.VERSIONS, ids=kernel.VERSION_NAMES.get)
@over_roles
def test_unwrap_when_the_peer_is_first(version, role):
    with offloaded(version, role=role) as (sock, peer):
        both_ways(sock, peer)
        with Background(peer.unwrap):
            sock.unwrap()


@over_versions
def test_unwrap_does_not_throw_away_unread_data(suite):
    with wired(suite) as (sock, wire):
        wire.send_data(b"unread")
        with pytest.raises(Error) as caught:
            sock.unwrap()
        assert type(caught.value) is UnreadData
        assert str(caught.value) == (
            "the peer has sent data that has not been read: receive it first"
        )
        assert wire.recv() == CLOSE_NOTIFY  # ours is out nevertheless
        assert recv_exactly(sock, 6) == b"unread"
        wire.close_notify()
        sock.unwrap()


@over_versions
def test_unwrap_of_a_peer_that_just_closes_is_truncation(suite):
    with wired(suite) as (sock, wire):
        wire.sock.shutdown(socket.SHUT_WR)
        with pytest.raises(TruncationError):
            sock.unwrap()


@over_versions
def test_unwrap_of_a_silent_peer_times_out_and_can_be_repeated(suite):
    with wired(suite) as (sock, wire):
        sock.settimeout(0.4)
        with pytest.raises(TimeoutError):
            sock.unwrap()
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.unwrap()
        wire.close_notify()
        kernel.wait_readable(sock)
        sock.unwrap()
        assert wire.recv() == CLOSE_NOTIFY


@over_versions
def test_unwrap_flushes_what_msg_more_held_back(suite):
    with wired(suite) as (sock, wire):
        sock.send(b"held back", socket.MSG_MORE)
        wire.close_notify()
        sock.unwrap()
        assert wire.recv() == (APPLICATION_DATA, b"held back")
        assert wire.recv() == CLOSE_NOTIFY


# ---- KeyUpdate -------------------------------------------------------------------------------


def assert_cannot_follow(sock, wire):
    """What Linux before 6.14 has to do: end the connection, and say why."""
    assert str(first_error(sock)) == CANNOT_FOLLOW
    assert_dead(sock, RecordError, CANNOT_FOLLOW)
    assert wire.recv() == fatal(80)


@over_roles
@pytest.mark.parametrize("cipher", kernel.CIPHERS)
def test_a_key_update_of_the_peer_is_followed_or_ends_the_connection(role, cipher):
    """The selftest's ``rekey``: Linux 6.14 can, before it EBUSY."""
    with wired(kernel.suite(TLS_1_3, cipher), role) as (sock, wire):
        wire.send_data(b"old keys")
        assert sock.recv(100) == b"old keys"
        for round_ in range(3):
            wire.send(HANDSHAKE, KEY_UPDATE)
            if not kernel.kernel_can_rekey():
                assert_cannot_follow(sock, wire)
                return
            wire.sealer.rekey()
            wire.send_data(b"new keys")
            assert sock.recv(100, socket.MSG_PEEK) == b"new keys"
            assert sock.recv(100) == b"new keys"
            sock.sendall(b"sent under the old keys: none were asked for")
            assert wire.recv()[0] == APPLICATION_DATA
            assert round_ == wire.sealer.sequence - 1 + round_


@over_roles
def test_a_key_update_that_asks_for_one_is_answered_before_more_data(role):
    """RFC 8446 section 4.6.3."""
    with wired(SUITE_1_3, role) as (sock, wire):
        for _ in range(3):
            wire.send(HANDSHAKE, KEY_UPDATE_REQUEST)
            if not kernel.kernel_can_rekey():
                assert_cannot_follow(sock, wire)
                return
            wire.sealer.rekey()
            wire.send_data(b"new keys")
            assert sock.recv(100) == b"new keys"
            sock.sendall(b"answer")
            assert wire.recv() == (HANDSHAKE, KEY_UPDATE)
            wire.opener.rekey()
            assert wire.recv() == (APPLICATION_DATA, b"answer")
        sock.close()
        assert wire.recv() == CLOSE_NOTIFY


def test_a_key_update_with_nothing_to_read_after_it_is_answered_at_once():
    with wired(SUITE_1_3) as (sock, wire):
        wire.send(HANDSHAKE, KEY_UPDATE_REQUEST)
        if not kernel.kernel_can_rekey():
            assert_cannot_follow(sock, wire)
            return
        wire.sealer.rekey()
        sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        assert wire.recv() == (HANDSHAKE, KEY_UPDATE)


def test_the_answer_to_a_key_update_comes_after_data_that_msg_more_held_back():
    with wired(SUITE_1_3) as (sock, wire):
        sock.send(b"held back", socket.MSG_MORE)
        wire.send(HANDSHAKE, KEY_UPDATE_REQUEST)
        if not kernel.kernel_can_rekey():
            assert str(first_error(sock)) == CANNOT_FOLLOW
            assert wire.recv() == (APPLICATION_DATA, b"held back")
            assert wire.recv() == fatal(80)
            return
        wire.sealer.rekey()
        wire.send_data(b"go on")
        assert sock.recv(100) == b"go on"
        assert wire.recv() == (APPLICATION_DATA, b"held back")  # under the old keys
        assert wire.recv() == (HANDSHAKE, KEY_UPDATE)
        wire.opener.rekey()
        sock.sendall(b"new")
        assert wire.recv() == (APPLICATION_DATA, b"new")


def test_a_key_update_of_openssl_in_mid_stream():
    with offloaded(TLS_1_3) as (sock, peer):
        both_ways(sock, peer)
        peer.sendall(b"before ")
        tls.send_key_update(peer, request=True)
        if not kernel.kernel_can_rekey():
            assert recv_exactly(sock, 7) == b"before "
            assert_dead(sock, RecordError, CANNOT_FOLLOW)
            with pytest.raises(OSError, match=r"(?i)internal.error"):
                peer.recv(1)
            return
        peer.sendall(b"after")
        assert recv_exactly(sock, 12) == b"before after"
        both_ways(sock, peer, pattern(50_000))
        for _ in range(3):
            tls.send_key_update(peer, request=True)
            both_ways(peer, sock)


def test_key_updates_while_another_thread_sends():
    """The answer comes between two sends, never within one, and loses nothing."""
    if not kernel.kernel_can_rekey():
        with offloaded(TLS_1_3) as (sock, peer):
            tls.send_key_update(peer, request=True)
            assert_dead(sock, RecordError, CANNOT_FOLLOW)
        return
    data = pattern(1_000_000)

    def other() -> bytes:
        received = bytearray()
        while len(received) < len(data):
            if len(received) // 100_000 > other.updates:
                other.updates += 1
                tls.send_key_update(peer, request=True)
            received += peer.recv(16384)
        peer.sendall(b"done")
        return bytes(received)

    other.updates = 0
    with offloaded(TLS_1_3) as (sock, peer):
        with Background(other) as receiver, Background(recv_exactly, sock, 4) as reader:
            for start in range(0, len(data), 9_999):
                sock.sendall(data[start : start + 9_999])
            assert reader.result() == b"done"
            assert receiver.result() == data
        assert other.updates > 5
        both_ways(sock, peer)


@pytest.mark.parametrize(
    ("payload", "message", "description"),
    [
        (b"\x18\x00\x00\x01\x02", "a KeyUpdate that asks for 2 (illegal_parameter)", 47),
        (b"\x18\x00\x00\x02\x00\x00", "a KeyUpdate of 2 bytes (decode_error)", 50),
        (
            KEY_UPDATE + new_session_ticket(),
            "data after a KeyUpdate in the same record (unexpected_message)",
            10,
        ),
    ],
)
def test_a_wrong_key_update_ends_the_connection(payload, message, description):
    with wired(SUITE_1_3) as (sock, wire):
        wire.send(HANDSHAKE, payload)
        assert str(first_error(sock)) == message
        assert_dead(sock, RecordError, message)
        assert wire.recv() == fatal(description)


def test_a_key_update_behind_a_ticket_in_one_record_is_followed():
    """The kernel looks at the first byte of a record only; the change of keys must come anyway."""
    with wired(SUITE_1_3) as (sock, wire):
        wire.send(HANDSHAKE, new_session_ticket() + KEY_UPDATE)
        if not kernel.kernel_can_rekey():
            assert_cannot_follow(sock, wire)
            return
        wire.sealer.rekey()
        wire.send_data(b"new keys")
        assert sock.recv(100) == b"new keys"


@pytest.mark.parametrize("first", [1, 2, 4])
def test_a_key_update_in_two_records_is_followed(first):
    """At the first part the kernel stops and waits for keys; the second has to be read first."""
    with wired(SUITE_1_3) as (sock, wire):
        wire.send_data(b"old keys")
        wire.send(HANDSHAKE, KEY_UPDATE_REQUEST[:first])
        wire.send(HANDSHAKE, KEY_UPDATE_REQUEST[first:])
        assert sock.recv(100) == b"old keys"
        if not kernel.kernel_can_rekey():
            assert_cannot_follow(sock, wire)
            return
        wire.sealer.rekey()
        wire.send_data(b"new keys")
        assert sock.recv(100) == b"new keys"
        assert wire.recv() == (HANDSHAKE, KEY_UPDATE)
        wire.opener.rekey()
        sock.sendall(b"sent")
        assert wire.recv() == (APPLICATION_DATA, b"sent")


def test_a_part_of_a_ticket_that_looks_like_a_key_update_stops_nothing():
    ticket = bytearray(new_session_ticket(60))
    ticket[30] = KEY_UPDATE[0]
    with wired(SUITE_1_3) as (sock, wire):
        for _ in range(2):
            wire.send(HANDSHAKE, ticket[:30])
            wire.send(HANDSHAKE, ticket[30:])
            wire.send_data(b"data")
            assert sock.recv(100) == b"data"
        wire.close_notify()
        assert sock.recv(1) == b""


def test_what_looks_like_a_key_update_in_tls_1_2_ends_the_connection():
    """The kernel waits for new keys and would never take them; recv must not hang."""
    with wired(SUITE_1_2) as (sock, wire):
        wire.send(HANDSHAKE, KEY_UPDATE)
        message = "handshake message 24 after the handshake (unexpected_message)"
        assert str(first_error(sock)) == message
        assert_dead(sock, RecordError, message)
        assert wire.recv() == fatal(10)
