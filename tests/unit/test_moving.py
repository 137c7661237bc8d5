"""Moving a connection, as far as it needs no kernel TLS: the state, and the Unix sockets.

The connections here are plain TCP, with a system in the place of the kernel that says TLS is on
(``says_tls``).  With a real kernel: tests/kernel/test_moving.py.
"""

from __future__ import annotations

import array
import base64
import contextlib
import copy
import errno
import fcntl
import json
import os
import pickle
import signal
import socket
import ssl
import struct
import threading
import time
import types

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import pyktls
from pyktls import (
    DirectionKeys,
    HandoffRefused,
    InvalidType,
    InvalidValue,
    KTLSSocket,
    Role,
    Session,
    TruncationError,
    Unavailable,
    connection_state,
    moving,
    record_layer,
)
from pyktls._records import Lock
from pyktls.ciphers import SUITES, TLS_1_2, TLS_1_3
from pyktls.connection_state import HEAD_SIZE, LARGEST_STATE, ConnectionState
from pyktls.lowlevel import lib
from pyktls.takeover import Handshake
from support import tls
from support.probing import open_descriptors
from support.processes import fork, wait_for
from support.systems import linux_only

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")

SUITE = next(s for s in SUITES if s.version == TLS_1_3 and s.aead.key_length == 16)
SUITE_1_2 = next(s for s in SUITES if s.version == TLS_1_2 and s.aead.key_length == 16)
TX_SECRET = bytes(range(0xA0, 0xC0))
RX_SECRET = bytes(range(0xC0, 0xE0))
KEY = bytes(range(0x60, 0x70))
KEY_UPDATE_REQUEST = b"\x18\x00\x00\x01\x01"
TYPES = {
    "stream": socket.SOCK_STREAM,
    "seqpacket": socket.SOCK_SEQPACKET,
    "dgram": socket.SOCK_DGRAM,
}
LEFTOVER = bytes(i * 7 % 251 for i in range(16384))

ON_LINUX = lib.pyktls_system() == lib.PYKTLS_LINUX

on_tls = pytest.mark.usefixtures("says_tls")
over_types = pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
over_packets = pytest.mark.parametrize(
    "kind", [socket.SOCK_SEQPACKET, socket.SOCK_DGRAM], ids=["seqpacket", "dgram"]
)


@pytest.fixture
def says_tls(monkeypatch):
    """A kernel that does TLS on every descriptor; what it says can be changed."""
    answers = types.SimpleNamespace(
        directions=lambda _: iter(pyktls.Direction),
        carries=lambda *_: True,
        next_sequence=lambda *_: 7,
    )
    monkeypatch.setattr(connection_state, "system", answers)
    return answers


def session(suite=SUITE, role=Role.CLIENT, *, secrets=True) -> Session:
    if suite.version == TLS_1_2:
        keys = [DirectionKeys(KEY, KEY[:4], 1) for _ in "tr"]
    else:
        keys = [
            DirectionKeys(KEY, KEY[:12], 0, secret=secret if secrets else None)
            for secret in (TX_SECRET, RX_SECRET)
        ]
    return Session(suite, role, *keys)


@contextlib.contextmanager
def connection(suite=SUITE, role=Role.CLIENT, **options):
    """``(KTLSSocket, the plain socket opposite)``; nothing is sent at the end."""
    near, far = tls.tcp_pair()
    with near, far:
        sock = KTLSSocket(session(suite, role, **options), near.detach())
        try:
            yield sock, far
        finally:
            sock.abandon()


@contextlib.contextmanager
def unix_pair(kind=socket.SOCK_STREAM, timeout=20.0):
    pair = socket.socketpair(socket.AF_UNIX, kind)
    with pair[0], pair[1]:
        for sock in pair:
            sock.settimeout(timeout)
        yield pair


@contextlib.contextmanager
def no_descriptor_more():
    before = set(open_descriptors())
    yield
    assert set(open_descriptors()) <= before


def certificate_of(sock):
    """A real handshake's ALPN, certificate as a dict and as DER, put into a KTLSSocket."""
    client, server = tls.contexts()
    client.set_alpn_protocols(["h2"])
    server.set_alpn_protocols(["h2"])
    with tls.connect(client, server) as pair:
        sock._handshake = Handshake.of(pair.client)
    assert sock.selected_alpn_protocol() == "h2"
    assert sock.getpeercert()["subjectAltName"] == (("DNS", tls.HOST),)


# ---- the state -------------------------------------------------------------------------------


@on_tls
@pytest.mark.parametrize("suite", [SUITE, SUITE_1_2], ids=["TLS1.3", "TLS1.2"])
@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("secrets", [False, True])
def test_a_round_trip(suite, role, secrets):
    with connection(suite, role) as (sock, _):
        certificate_of(sock)
        sock.close_timeout = 12
        sock.settimeout(3.5)
        sock._layer.leftover = LEFTOVER
        sock._layer.post.empty_data_arrives()
        state = sock.export_state(secrets=secrets)
        with KTLSSocket.from_state(state, os.dup(sock.fileno())) as other:
            for method in ("version", "cipher", "selected_alpn_protocol", "getpeercert", "pending"):
                assert getattr(other, method)() == getattr(sock, method)()
            assert other.getpeercert(True) == sock.getpeercert(True)
            assert other.close_timeout == 12.0
            assert other.gettimeout() == 3.5
            assert other._layer.session.role == role
            assert other._layer.post.export() == sock._layer.post.export()
            assert other._layer.session.tx.sequence == 7
            assert not other._layer.straight_in  # an empty record is counted
            both = other._layer.session.tx.secret, other._layer.session.rx.secret
            wanted = secrets and suite is SUITE
            assert both == ((TX_SECRET, RX_SECRET) if wanted else (None, None))
            assert other.recv(20000) == LEFTOVER
            assert sock.pending() == len(LEFTOVER)  # it was only looked at
            other.abandon()


@on_tls
def test_the_bytes_hold_secrets_only_if_asked():
    with connection() as (sock, _):
        certificate_of(sock)
        plain = bytes(sock.export_state())
        asked = bytes(sock.export_state(secrets=True))
        for secret in (TX_SECRET, RX_SECRET, KEY):
            for form in (secret, secret.hex().encode(), base64.b64encode(secret)[:20]):
                assert form not in plain
        assert asked.count(TX_SECRET) == asked.count(RX_SECRET) == 1
        assert KEY not in asked
        state = ConnectionState.unpack(asked)
        assert state.secrets == (TX_SECRET, RX_SECRET)
        for text in (repr(state), str(state), repr(KTLSSocket), repr(sock)):
            for secret in (TX_SECRET, RX_SECRET):
                assert secret.hex() not in text
                assert repr(secret)[2:-1] not in text
        state.wipe()
        assert state.secrets == (bytearray(32), bytearray(32))


@on_tls
def test_tls_1_2_has_no_secrets_to_move():
    with connection(SUITE_1_2) as (sock, _):
        asked = bytes(sock.export_state(secrets=True))
        assert KEY not in asked
        assert ConnectionState.unpack(asked).secrets is None


def test_flags_go_along(says_tls):
    says_tls.next_sequence = lambda *_: None  # a kernel that does not tell (FreeBSD)
    with connection() as (sock, _):
        sock._layer.end_sending()
        sock._layer.reading_data = True
        sock._layer.records_sent = 12345
        list(sock._layer.post.receive(21, b"\1\0"))
        sock._layer.receive_ended = True
        with KTLSSocket.from_state(sock.export_state(), os.dup(sock.fileno())) as other:
            assert other._layer.reading_data
            assert other._layer.records_sent == 12345
            assert other.recv(10) == b""
            with pytest.raises(BrokenPipeError):
                other.sendall(b"data")
            assert other._layer.send_ended
            other.abandon()


def test_the_kernels_sequence_number_is_what_counts(says_tls):
    with connection() as (sock, _):
        sock._layer.records_sent = 99
        state = sock.export_state()
        assert ConnectionState.unpack(state).records_sent is None
        says_tls.next_sequence = lambda *_: 2**64 - 1
        with KTLSSocket.from_state(state, os.dup(sock.fileno())) as other:
            with pytest.raises((pyktls.RecordError, OSError)):
                other.sendall(b"data")
            other.abandon()


@on_tls
def test_keys_that_only_the_kernel_has_cannot_be_installed():
    with connection() as (sock, _):
        with KTLSSocket.from_state(sock.export_state(), os.dup(sock.fileno())) as other:
            moved = other._layer.session
            other.abandon()
        with pytest.raises(HandoffRefused, match="installed already"):
            moved.tx.claim(pyktls.Direction.TX)
        near, far = tls.tcp_pair()
        with near, far, pytest.raises((HandoffRefused, Unavailable)):
            pyktls.install(near, moved)


# ---- what is refused -------------------------------------------------------------------------


@on_tls
def test_a_connection_that_has_ended():
    with connection() as (sock, far):
        far.close()
        with pytest.raises(TruncationError):
            sock.recv(10)
        with pytest.raises(HandoffRefused, match="has ended: the peer closed"):
            sock.export_state()
    with pytest.raises(HandoffRefused, match="closed"):
        sock.export_state()


@on_tls
def test_open_file_objects():
    with connection() as (sock, _), unix_pair() as (one, _two):
        with sock.makefile("rb"):
            for call in (sock.export_state, lambda: moving.send_socket(one, sock)):
                with pytest.raises(HandoffRefused, match="makefile"):
                    call()
        sock.export_state()


@on_tls
@pytest.mark.parametrize("name", ["receive_lock", "send_lock"])
def test_another_thread_inside(name):
    with connection() as (sock, _), unix_pair() as (one, _two):
        taken, enough = threading.Event(), threading.Event()

        def be_inside():
            with getattr(sock._layer, name):
                taken.set()
                enough.wait(20)

        thread = threading.Thread(target=be_inside)
        thread.start()
        taken.wait(20)
        try:
            for call in (sock.export_state, lambda: moving.send_socket(one, sock)):
                with pytest.raises(HandoffRefused, match="another call"):
                    call()
        finally:
            enough.set()
            thread.join()
        sock.export_state()
        for lock in (sock._layer.receive_lock, sock._layer.send_lock):
            assert lock.depth == 0


@on_tls
def test_a_signal_handler_within_a_call():
    """It would take the descriptor away from under a call that goes on afterwards."""
    with connection() as (sock, _), unix_pair() as (one, _two):
        seen = []

        def handler(*_):
            try:
                moving.send_socket(one, sock)
            except Exception as e:  # noqa: BLE001
                seen.append(e)

        before = signal.signal(signal.SIGALRM, handler)
        try:
            sock.settimeout(0.5)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(TimeoutError):
                sock.recv(10)
        finally:
            signal.signal(signal.SIGALRM, before)
        assert [type(e) for e in seen] == [HandoffRefused]
        assert sock.fileno() >= 0


@on_tls
def test_secrets_that_are_not_here():
    with connection(secrets=False) as (sock, _):
        sock.export_state()
        with pytest.raises(HandoffRefused, match="no traffic secrets"):
            sock.export_state(secrets=True)


@on_tls
@pytest.mark.parametrize("value", [None, "30", -1, float("nan"), float("inf"), 1e10, True])
def test_a_close_timeout_that_is_none(value):
    with connection() as (sock, _):
        sock.close_timeout = value
        with pytest.raises(InvalidValue, match="close_timeout"):
            sock.export_state()


@linux_only  # where a plain socket takes such a record, and sends nothing
@on_tls
def test_an_answer_that_is_due_needs_the_secrets():
    """Where there was no room to send it; here because a plain socket sends no control record."""
    with connection() as (sock, far):
        list(sock._layer.post.receive(22, KEY_UPDATE_REQUEST))
        assert sock._layer.post.answer_due
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                socket.socket.send(sock, bytes(1 << 16))
        with pytest.raises(HandoffRefused, match="secrets=True"):
            sock.export_state()
        state = sock.export_state(secrets=True)
        with KTLSSocket.from_state(state, os.dup(sock.fileno())) as other:
            assert other._layer.post.answer_due
            assert not other._layer.straight_out
            other.abandon()
        sock._layer.end_sending()
        assert not ConnectionState.unpack(sock.export_state()).post["answer_due"]
        far.close()


@on_tls
def test_pickling_is_refused():
    with connection() as (sock, _):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError, match="cannot pickle"):
                pickle.dumps(sock, protocol)
        for call in (copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="cannot pickle"):
                call(sock)


# ---- a state that is none --------------------------------------------------------------------


def a_state(**options) -> bytes:
    with connection() as (sock, _):
        certificate_of(sock)
        return bytes(sock.export_state(**options))


def head_and_parts(state: bytes) -> tuple[dict, list[bytes]]:
    sizes = struct.unpack("!5I", state[8:HEAD_SIZE])
    at, parts = HEAD_SIZE, []
    for size in sizes:
        parts.append(state[at : at + size])
        at += size
    return json.loads(parts[0]), parts[1:]


def put_together(values, parts) -> bytes:
    text = values if isinstance(values, bytes) else json.dumps(values).encode()
    whole = [text, *parts]
    return b"pyktls\0\1" + struct.pack("!5I", *map(len, whole)) + b"".join(bytes(p) for p in whole)


@pytest.fixture(scope="module")
def good():
    """A valid state with everything in it, made with the answers of ``says_tls``."""
    with pytest.MonkeyPatch.context() as patch:
        answers = types.SimpleNamespace(next_sequence=lambda *_: 7)
        patch.setattr(connection_state, "system", answers)
        return a_state(secrets=True)


@contextlib.contextmanager
def refused(state, *kinds):
    """What from_state says of it; the descriptor stays the caller's."""
    with tempfile_descriptor() as fd, pytest.raises(kinds or InvalidValue) as caught:
        KTLSSocket.from_state(state, fd)
    for secret in (TX_SECRET, RX_SECRET):
        assert secret.hex() not in str(caught.value)
        assert repr(secret[:8])[2:-1] not in str(caught.value)
    yield caught.value


@contextlib.contextmanager
def tempfile_descriptor():
    near, far = tls.tcp_pair()
    with near, far:
        yield near.fileno()
        os.fstat(near.fileno())  # still open


SETTINGS = settings(
    max_examples=int(os.environ.get("PYKTLS_EXAMPLES", "60")) * 3,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)


def try_state(state) -> None:
    """Anything may come of it but another error than ours."""
    try:
        made = ConnectionState.unpack(state)
    except InvalidValue:
        pass
    else:
        made.pack()
        connection_state.session_of(made, -1)


@on_tls
def test_the_good_state_is_good(good):
    assert put_together(*head_and_parts(good)) == good
    near, far = tls.tcp_pair()
    with far:
        sock = KTLSSocket.from_state(good, near.detach())
        sock.abandon()


@on_tls
@SETTINGS
@given(data=st.binary(max_size=200))
@example(data=b"")
@example(data=b"pyktls\0\1" + b"\xff" * 20)
def test_random_bytes(data):
    with pytest.raises(InvalidValue):
        ConnectionState.unpack(data)
    with pytest.raises(InvalidValue):
        ConnectionState.unpack(b"pyktls\0\1" + data)


@on_tls
@SETTINGS
@given(data=st.data())
def test_corrupted_bytes(good, data):
    state = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(state) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "remove"])):
            case "flip":
                state[at] ^= data.draw(st.integers(1, 255))
            case "cut":
                del state[max(at, 1) :]
            case "insert":
                state[at:at] = data.draw(st.binary(min_size=1, max_size=5))
            case "remove":
                if len(state) > 1:
                    del state[at]
    try_state(state)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@on_tls
@SETTINGS
@given(data=st.data())
def test_any_value_in_any_place(good, data):
    values, parts = head_and_parts(good)
    places = [values, values["post_handshake"], values["handshake"], values["handshake"]["peer"]]
    place = data.draw(st.sampled_from(places))
    name = data.draw(st.sampled_from(sorted(place)) | st.text(max_size=3))
    if name in place and data.draw(st.booleans()):
        del place[name]
    else:
        place[name] = data.draw(JSON_VALUES | st.sampled_from([2**64, -1, 1e300, 0x0303, 0x1301]))
    part = data.draw(st.integers(0, 4))
    if part < 4 and data.draw(st.booleans()):
        parts[part] = data.draw(st.binary(max_size=50))
    try_state(put_together(values, parts))


def change(*path, value):
    def changed(good):
        values, parts = head_and_parts(good)
        place = values
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value
        return put_together(values, parts)

    return changed


def of_json(text: bytes):
    return lambda good: put_together(text, head_and_parts(good)[1])


def of_parts(**changes):
    names = {"leftover": 0, "der": 1, "tx": 2, "rx": 3}

    def changed(good):
        values, parts = head_and_parts(good)
        for name, value in changes.items():
            parts[names[name]] = value
        return put_together(values, parts)

    return changed


def without_handshake(good):
    values, parts = head_and_parts(good)
    values["handshake"] = None
    return put_together(values, parts)


def answer_due_without_secrets(good):
    values, parts = head_and_parts(good)
    values["post_handshake"]["answer_due"] = True
    return put_together(values, [*parts[:2], b"", b""])


WRONG = {
    "a byte more": (lambda good: good + b"x", "should have"),
    "a byte less": (lambda good: good[:-1], "should have"),
    "another magic": (lambda good: b"PYKTLS" + good[6:], "not the state"),
    "another format": (lambda good: good[:6] + b"\0\2" + good[8:], "format 2"),
    "sizes beyond all": (lambda good: good[:8] + b"\xff" * 20 + good[28:], "more than"),
    "no JSON": (of_json(b"{"), "no JSON"),
    "not ASCII": (of_json(b'{"\xc3\xa4": 1}'), "no JSON"),
    "NaN": (of_json(b'{"timeout": NaN}'), "no JSON"),
    "too deep": (of_json(b"[" * 100_000), "no JSON"),
    "a number too long": (of_json(b"1" * 50_000), "JSON|names are missing"),
    "a list": (of_json(b"[]"), "names are missing"),
    "no names": (of_json(b"{}"), "names are missing"),
    "a name more": (change("more", value=1), "names are missing or unknown"),
    "a suite that is none": (change("cipher_suite", value=1), "cipher_suite"),
    "a suite that is a float": (change("cipher_suite", value=4865.0), "cipher_suite"),
    "a suite of another version": (change("cipher_suite", value=SUITE_1_2.iana_id), "version"),
    "no post_handshake": (change("post_handshake", value=[]), "post_handshake"),
    "a role": (change("post_handshake", "role", value="proxy"), "role"),
    "a timeout below 0": (change("timeout", value=-0.5), "timeout"),
    "a timeout of centuries": (change("timeout", value=1e200), "timeout"),
    "an infinite timeout": (change("timeout", value=10**400), "timeout"),
    "a timeout that is true": (change("timeout", value=True), "timeout"),
    "no close_timeout": (change("close_timeout", value=None), "close_timeout"),
    "send_ended": (change("send_ended", value=0), "send_ended"),
    "reading_data": (change("reading_data", value="yes"), "reading_data"),
    "records_sent": (change("records_sent", value=2**64 - 1), "records_sent"),
    "records_sent below 0": (change("records_sent", value=-1), "records_sent"),
    "a handshake": (change("handshake", value=[]), "handshake"),
    "alpn": (change("handshake", "alpn", value=2), "alpn"),
    "a certificate that is none": (change("handshake", "peer", value="x"), "peer"),
    "a certificate of floats": (change("handshake", "peer", "x", value=[1.5]), "peer"),
    "a certificate too deep": (
        change("handshake", "peer", "x", value=[[[[[[[[[[[["a"]]]]]]]]]]]]),
        "peer",
    ),
    "a certificate without handshake": (without_handshake, "without a handshake"),
    "one secret": (of_parts(rx=b""), "no traffic secrets"),
    "secrets that are too short": (of_parts(tx=bytes(31), rx=bytes(31)), "no traffic secrets"),
    "an answer without secrets": (answer_due_without_secrets, "KeyUpdate is to be answered"),
}


@on_tls
@pytest.mark.parametrize("name", WRONG)
def test_a_state_with(good, name):
    spoil, text = WRONG[name]
    with refused(spoil(good)) as error:
        assert_matches(text, str(error))


def assert_matches(text, message):
    assert any(part in message for part in text.split("|")), message


@on_tls
def test_secrets_in_tls_1_2():
    with connection(SUITE_1_2) as (sock, _):
        values, parts = head_and_parts(bytes(sock.export_state()))
    with refused(put_together(values, [*parts[:2], TX_SECRET, RX_SECRET])) as error:
        assert "no traffic secrets" in str(error)


@on_tls
@pytest.mark.parametrize("state", [None, 5, "text", object(), [b"x"]])
def test_what_is_no_buffer(state):
    with refused(state, InvalidType):
        pass


@on_tls
@pytest.mark.parametrize(
    ("fileno", "kind"),
    [("3", InvalidType), (True, InvalidType), (-1, InvalidValue), (2**40, InvalidValue)],
)
def test_what_is_no_descriptor(good, fileno, kind):
    with pytest.raises(kind, match="fileno"):
        KTLSSocket.from_state(good, fileno)


@contextlib.contextmanager
def every_wrong_descriptor():
    """Descriptors that are no switched connection, by what they are."""
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        near, far = map(enter, tls.tcp_pair())
        del far
        out, into = os.pipe()
        stack.callback(os.close, out)
        stack.callback(os.close, into)
        yield {
            "a TCP connection without TLS": near.fileno(),
            "a listening socket": enter(socket.create_server(("127.0.0.1", 0))).fileno(),
            "a TCP socket": enter(socket.socket()).fileno(),
            "a UDP socket": enter(socket.socket(type=socket.SOCK_DGRAM)).fileno(),
            "a Unix socket": enter(unix_pair())[0].fileno(),
            "a pipe": out,
            "a file": enter(open(__file__, "rb")).fileno(),  # noqa: SIM115, PTH123
            "a directory": enter(contextlib.closing(Directory())).fd,
        }


class Directory:
    def __init__(self):
        self.fd = os.open("/", os.O_RDONLY)

    def close(self):
        os.close(self.fd)


def test_from_state_asks_the_kernel(good):
    """No fake here: none of these has kernel TLS."""
    with every_wrong_descriptor() as wrong:
        for what, fd in wrong.items():
            with pytest.raises((HandoffRefused, OSError)) as caught:
                KTLSSocket.from_state(good, fd)
            text = str(caught.value)
            assert "the kernel does no TLS" in text or "getsockopt(" in text, what
            os.fstat(fd)
        with pytest.raises(OSError, match=r"getsockopt\("):
            KTLSSocket.from_state(good, 999_999)


def test_receive_socket_asks_the_kernel(good):
    with every_wrong_descriptor() as wrong:
        for what, fd in wrong.items():
            with unix_pair() as (one, two), no_descriptor_more():
                socket.send_fds(one, [good], [fd])
                with pytest.raises(HandoffRefused, match=r"no TLS|no socket with kernel TLS"):
                    moving.receive_socket(two)
            os.fstat(fd)
            assert what


def test_keys_of_another_kind(says_tls, good):
    says_tls.carries = lambda fd, direction, *_: direction is pyktls.Direction.TX and fd >= 0
    with refused(good, HandoffRefused) as error:
        assert "rx keys" in str(error)
    says_tls.directions = lambda _: iter([pyktls.Direction.TX])
    with refused(good, HandoffRefused) as error:
        assert "no TLS" in str(error)


# ---- the Unix sockets ------------------------------------------------------------------------


@on_tls
@over_types
@pytest.mark.parametrize("secrets", [False, True])
def test_a_socket_is_moved(kind, secrets):
    with connection() as (sock, far), unix_pair(kind) as (one, two):
        certificate_of(sock)
        sock.settimeout(5)
        # FreeBSD has a few KiB for a message.
        leftover = LEFTOVER if kind == socket.SOCK_STREAM or ON_LINUX else LEFTOVER[:200]
        sock._layer.leftover = leftover
        certificate = sock.getpeercert()
        wiped = sock._layer.session.tx.secret
        if kind == socket.SOCK_STREAM:  # a message that does not fit at once
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        received = []
        thread = threading.Thread(target=lambda: received.append(moving.receive_socket(two)))
        thread.start()
        moving.send_socket(one, sock, secrets=secrets)
        thread.join()
        (other,) = received
        assert sock.fileno() == -1
        assert wiped == bytes(32)
        assert other.recv(1 << 16) == leftover
        assert other.getpeercert() == certificate
        assert (other._layer.session.tx.secret == TX_SECRET) == secrets
        assert not os.get_inheritable(other.fileno())
        # It is the same connection, and it is still open.
        socket.socket.sendall(other, b"data")
        assert far.recv(10) == b"data"
        other.abandon()
        assert far.recv(10) == b""


@on_tls
@over_types
def test_one_after_the_other(kind):
    """Each message ends where it ends; what comes behind it on a stream stays there."""
    with contextlib.ExitStack() as stack:
        one, two = stack.enter_context(unix_pair(kind))
        fars = []
        for number in range(5):
            sock, far = stack.enter_context(connection())
            sock._layer.leftover = b"x" * number
            moving.send_socket(one, sock)
            fars.append(far)
        if kind == socket.SOCK_STREAM:
            one.sendall(b"and something else")
        for number, far in enumerate(fars):
            with moving.receive_socket(two) as other:
                assert other.pending() == number
                assert other.getpeername() == far.getsockname()
                other.abandon()
        if kind == socket.SOCK_STREAM:
            assert two.recv(100) == b"and something else"


@on_tls
@pytest.mark.parametrize("step", [1, 7, 27, 28, 29, 500])
def test_a_stream_that_comes_in_pieces(step):
    with connection() as (sock, _), unix_pair() as (one, two):
        state = bytes(sock.export_state(secrets=True))

        def trickle():
            socket.send_fds(one, [state[:step]], [sock.fileno()])
            for at in range(step, len(state), step):
                one.sendall(state[at : at + step])
                time.sleep(0)

        thread = threading.Thread(target=trickle)
        thread.start()
        with moving.receive_socket(two) as other:
            assert other.getpeername() == sock.getpeername()
            other.abandon()
        thread.join()


@on_tls
def test_a_signal_in_the_middle():
    """PEP 475: the call goes on."""
    with connection() as (sock, _), unix_pair() as (one, two):
        state = bytes(sock.export_state())
        before = signal.signal(signal.SIGALRM, lambda *_: None)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)

            def send_slowly():
                socket.send_fds(one, [state[:20]], [sock.fileno()])
                time.sleep(0.3)
                one.sendall(state[20:])

            thread = threading.Thread(target=send_slowly)
            thread.start()
            with moving.receive_socket(two) as other:
                other.abandon()
            thread.join()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


@on_tls
@over_types
def test_a_timeout_of_the_unix_socket(kind):
    with unix_pair(kind, timeout=0.2) as (_, two):
        begin = time.monotonic()
        with pytest.raises(TimeoutError, match="recvmsg"):
            moving.receive_socket(two)
        assert 0.15 < time.monotonic() - begin < 5
        two.setblocking(False)
        with pytest.raises(BlockingIOError, match="recvmsg"):
            moving.receive_socket(two)


@on_tls
def test_the_timeout_is_for_the_whole_message(monkeypatch):
    monkeypatch.setattr(moving, "_REST", 0.4)
    with connection() as (sock, _):
        state = bytes(sock.export_state())
        for timeout in (0.4, 0.0):
            with unix_pair(timeout=timeout) as (one, two), no_descriptor_more():
                enough = threading.Event()

                def trickle(one=one, enough=enough, state=state):
                    for byte in state[1:]:
                        if enough.wait(0.1):
                            return
                        one.send(bytes([byte]))

                socket.send_fds(one, [state[:1]], [sock.fileno()])
                thread = threading.Thread(target=trickle)
                thread.start()
                begin = time.monotonic()
                with pytest.raises(TimeoutError, match="recvmsg"):
                    moving.receive_socket(two)
                assert 0.3 < time.monotonic() - begin < 3
                enough.set()
                thread.join()


def fill(unix_sock):
    unix_sock.setblocking(False)
    for size in (1000, 1):
        while send_unless_full(unix_sock, bytes(size)):
            pass


def send_unless_full(unix_sock, data):
    try:
        return unix_sock.send(data)
    except OSError as e:
        if e.errno not in (errno.EAGAIN, errno.ENOBUFS):  # Linux, FreeBSD
            raise
        return 0


@on_tls
@over_types
def test_sending_to_a_full_unix_socket(kind):
    with connection() as (sock, far), unix_pair(kind) as (one, _two):
        fill(one)
        with pytest.raises(BlockingIOError, match="sendmsg"):
            moving.send_socket(one, sock)
        one.settimeout(0.2)
        with pytest.raises(TimeoutError, match="sendmsg"):
            moving.send_socket(one, sock)
        # It is as before.
        assert sock._layer.session.tx.secret == TX_SECRET
        socket.socket.sendall(sock, b"data")
        assert far.recv(10) == b"data"


class FullQueue(socket.socket):
    """A datagram socket as FreeBSD's: ENOBUFS where the queue is full, and poll(2) says nothing."""

    refusals = 0

    def sendmsg(self, *arguments):
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        return super().sendmsg(*arguments)


@contextlib.contextmanager
def full_queue(refusals, timeout=20.0):
    with unix_pair(socket.SOCK_DGRAM) as (one, two), FullQueue(fileno=one.detach()) as full:
        full.settimeout(timeout)
        full.refusals = refusals
        yield full, two


@on_tls
def test_a_full_queue_is_waited_for():
    for timeout in (20.0, None):
        with connection() as (sock, _), full_queue(3, timeout) as (one, two):
            moving.send_socket(one, sock)
            assert one.refusals == 0
            with moving.receive_socket(two) as other:
                other.abandon()


@on_tls
def test_a_queue_that_stays_full():
    with connection() as (sock, far), full_queue(10**9) as (one, _):
        one.setblocking(False)
        with pytest.raises(BlockingIOError, match="sendmsg"):
            moving.send_socket(one, sock)
        assert one.refusals == 10**9 - 1
        one.settimeout(0.2)
        begin = time.monotonic()
        with pytest.raises(TimeoutError, match="sendmsg"):
            moving.send_socket(one, sock)
        assert 0.15 < time.monotonic() - begin < 5
        assert one.refusals > 10**9 - 50  # it slept meanwhile
        socket.socket.sendall(sock, b"data")
        assert far.recv(10) == b"data"


@on_tls
def test_a_queue_that_is_too_short():
    with connection() as (sock, _), full_queue(10**9) as (one, _):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sock._layer.leftover = bytes(50_000)
        with pytest.raises(OSError, match=rf"\] sendmsg: {os.strerror(errno.EMSGSIZE)}"):
            moving.send_socket(one, sock)


@on_tls
def test_half_a_message_out(monkeypatch):
    """The sender keeps the connection; who got the half has nothing."""
    monkeypatch.setattr(moving, "_REST", 0.3)
    for timeout in (0.3, 0.0):
        with connection() as (sock, far), unix_pair(timeout=timeout) as (one, two):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            sock._layer.leftover = bytes(100_000)
            with pytest.raises(TimeoutError, match="sendmsg"):
                moving.send_socket(one, sock, secrets=True)
            assert sock._layer.session.tx.secret == TX_SECRET
            with no_descriptor_more():
                one.close()
                two.settimeout(5)
                with pytest.raises(EOFError, match="within a connection's state"):
                    moving.receive_socket(two)
            socket.socket.sendall(sock, b"data")
            assert far.recv(10) == b"data"


@on_tls
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_the_end_of_the_unix_socket(kind):
    with connection() as (sock, _), unix_pair(kind) as (one, two):
        moving.send_socket(one, sock)
        one.close()
        with moving.receive_socket(two) as other:
            other.abandon()
        with pytest.raises(EOFError, match="no connection to receive") as caught:
            moving.receive_socket(two)
        assert isinstance(caught.value, HandoffRefused)


@on_tls
@over_types
def test_nobody_at_the_other_end(kind):
    with connection() as (sock, far), unix_pair(kind) as (one, two):
        two.close()
        with pytest.raises(OSError, match=r"\] sendmsg: ") as caught:
            moving.send_socket(one, sock)
        assert isinstance(caught.value, BrokenPipeError | ConnectionError)
        socket.socket.sendall(sock, b"data")
        assert far.recv(10) == b"data"


@on_tls
@over_packets
def test_a_message_larger_than_the_send_buffer(kind):
    with connection() as (sock, _), unix_pair(kind) as (one, _two):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sock._layer.leftover = bytes(50_000)
        with pytest.raises(OSError, match=rf"\] sendmsg: {os.strerror(errno.EMSGSIZE)}"):
            moving.send_socket(one, sock)
        assert sock.pending() == 50_000


@on_tls
def test_a_state_larger_than_is_taken():
    with connection() as (sock, _):
        sock._layer.leftover = bytes(200_000)
        with pytest.raises(HandoffRefused, match="200000 bytes of plaintext"):
            sock.export_state()


@on_tls
@over_packets
def test_a_message_that_is_too_long(kind):
    with unix_pair(kind) as (one, two), tempfile_descriptor() as fd, no_descriptor_more():
        with contextlib.suppress(OSError):  # FreeBSD: more than kern.ipc.maxsockbuf
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * LARGEST_STATE)
        size = min(LARGEST_STATE + 1, one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 3)
        # Where the kernel allows no such message, a shorter one is no state either.
        pattern = "not the state" if size <= LARGEST_STATE else "message of more than"
        socket.send_fds(one, [bytes(size)], [fd])
        with pytest.raises(InvalidValue, match=pattern):
            moving.receive_socket(two)


@on_tls
@over_types
@pytest.mark.parametrize("count", [0, 2, 3, 20, 253])
def test_any_other_number_of_descriptors(good, kind, count):
    with unix_pair(kind) as (one, two), tempfile_descriptor() as fd, no_descriptor_more():
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd] * count))]
        one.sendmsg([good], rights if count else [])
        with pytest.raises(InvalidValue, match=f"{count} descriptors came"):
            moving.receive_socket(two)


@on_tls
def test_a_second_descriptor_later_in_the_stream(good):
    with unix_pair() as (one, two), tempfile_descriptor() as fd, no_descriptor_more():
        socket.send_fds(one, [good[:100]], [fd])
        socket.send_fds(one, [good[100:]], [fd])
        with pytest.raises(InvalidValue, match="2 descriptors came"):
            moving.receive_socket(two)


@on_tls
@over_types
def test_too_few_free_descriptors(good, kind):
    """Then the kernel cuts off (MSG_CTRUNC) what it cannot deliver."""
    resource = pytest.importorskip("resource")
    with unix_pair(kind) as (one, two), tempfile_descriptor() as fd:
        socket.send_fds(one, [good], [fd])
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(fd)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            with pytest.raises((InvalidValue, OSError), match=r"cut off|recvmsg"):
                moving.receive_socket(two)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# The option that has the sender's credentials come along: unix(7) of Linux, unix(4) of FreeBSD.
if hasattr(socket, "SO_PASSCRED"):
    CREDENTIALS = socket.SOL_SOCKET, socket.SO_PASSCRED
else:
    CREDENTIALS = 0, getattr(socket, "LOCAL_CREDS", None)  # SOL_LOCAL


@on_tls
@over_types
@pytest.mark.skipif(None in CREDENTIALS, reason="Python does not know the option")
def test_credentials_in_between(kind):
    with connection() as (sock, _), unix_pair(kind) as (one, two):
        two.setsockopt(*CREDENTIALS, 1)
        moving.send_socket(one, sock)
        with no_descriptor_more(), contextlib.closing(moving.receive_socket(two)) as other:
            other.abandon()


@on_tls
@over_types
def test_other_messages(kind):
    for data in (b"hello", bytes(28), b"pyktls\0\1" + bytes(20), b"x" * 5000):
        with unix_pair(kind) as (one, two), tempfile_descriptor() as fd, no_descriptor_more():
            socket.send_fds(one, [data], [fd])
            if kind == socket.SOCK_STREAM:
                one.close()
            with pytest.raises((InvalidValue, HandoffRefused)):
                moving.receive_socket(two)


@on_tls
def test_a_datagram_of_nothing():
    with unix_pair(socket.SOCK_DGRAM) as (one, two):
        one.send(b"")
        with pytest.raises(InvalidValue, match="0 descriptors came"):
            moving.receive_socket(two)


@on_tls
@SETTINGS
@given(data=st.data())
def test_corrupted_messages_leave_no_descriptor(good, data):
    state = bytearray(good)
    at = data.draw(st.integers(0, len(state) - 1))
    state[at] ^= data.draw(st.integers(1, 255))
    kind = data.draw(st.sampled_from(list(TYPES.values())))
    with unix_pair(kind) as (one, two), tempfile_descriptor() as fd, no_descriptor_more():
        socket.send_fds(one, [state], [fd])
        if kind == socket.SOCK_STREAM:
            one.close()
        with contextlib.suppress(InvalidValue, HandoffRefused):
            moving.receive_socket(two).abandon()


@on_tls
def test_wrong_arguments():
    with connection() as (sock, far), unix_pair() as (one, two):
        for wrong in (None, 3, "unix", one.fileno()):
            with pytest.raises(InvalidType, match="unix_sock"):
                moving.send_socket(wrong, sock)
            with pytest.raises(InvalidType, match="unix_sock"):
                moving.receive_socket(wrong)
        with pytest.raises(InvalidType, match="KTLSSocket"):
            moving.send_socket(one, far)
        for call in (lambda: moving.send_socket(far, sock), lambda: moving.receive_socket(far)):
            with pytest.raises(InvalidValue, match="AF_UNIX"):
                call()
        for wrong in (None, 0, 1, "no", [True]):
            for call in (sock.export_state, lambda s: moving.send_socket(one, sock, secrets=s)):
                with pytest.raises(InvalidType, match="secrets must be a bool"):
                    call(wrong)
        two.close()
        with pytest.raises(InvalidValue, match="closed"):
            moving.receive_socket(two)
        sock.abandon()
        with pytest.raises(HandoffRefused, match="closed"):
            moving.send_socket(one, sock)


# ---- secrets do not stay ---------------------------------------------------------------------


@on_tls
@over_types
def test_the_buffers_on_the_way_are_wiped(kind, monkeypatch):
    seen = []

    def spy(function, which):
        def watched(*arguments, **named):
            result = function(*arguments, **named)
            seen.append(arguments[1] if which == "argument" else result)
            return result

        return watched

    monkeypatch.setattr(moving, "_send", spy(moving._send, "argument"))
    monkeypatch.setattr(moving, "_receive", spy(moving._receive, "result"))
    unpack = ConnectionState.unpack
    monkeypatch.setattr(ConnectionState, "unpack", spy(unpack, "result"))
    with connection() as (sock, _), unix_pair(kind) as (one, two):
        own = sock._layer.session.tx.secret
        moving.send_socket(one, sock, secrets=True)
        with moving.receive_socket(two) as other:
            sent, received, state = seen
            assert len(sent) == len(received) > HEAD_SIZE
            assert not any(sent)
            assert not any(received)
            assert state.secrets == (bytes(32), bytes(32))
            assert not any(own)
            assert other._layer.session.tx.secret == TX_SECRET
            other.abandon()


# ---- detach and abandon ----------------------------------------------------------------------


@on_tls
def test_detach_and_back():
    with connection() as (sock, far):
        state = sock.export_state(secrets=True)
        secret, keys = sock._layer.session.tx.secret, sock._layer.session.tx.key
        fd = sock.detach()
        assert sock.fileno() == -1
        assert not any(secret)
        assert not any(keys)
        with pytest.raises(OSError, match="Bad file descriptor"):
            sock.recv(1)
        with pytest.raises(HandoffRefused, match="closed"):
            sock.export_state()
        with KTLSSocket.from_state(state, fd) as other:
            assert other.fileno() == fd
            assert other._layer.session.tx.secret == TX_SECRET
            socket.socket.sendall(other, b"data")
            assert far.recv(10) == b"data"  # and nothing before it
            other.abandon()


@on_tls
def test_detach_refuses_to_lose_plaintext():
    with connection() as (sock, _):
        sock._layer.leftover = b"unread"
        with pytest.raises(HandoffRefused, match="6 bytes"):
            sock.detach()
        assert sock.recv(10) == b"unread"
        fd = sock.detach()
        os.close(fd)


@on_tls
def test_abandon():
    with connection() as (sock, far):
        with contextlib.closing(socket.socket(fileno=os.dup(sock.fileno()))) as rest:
            session = sock._layer.session
            sock.abandon()
            sock.abandon()  # closed already
            sock.close()
            assert session.tx.secret is None
            for call in (lambda: sock.recv(1), lambda: sock.send(b"x"), sock.update_keys):
                with pytest.raises(OSError, match=r"Bad file descriptor|Broken pipe"):
                    call()
            rest.sendall(b"data")
            assert far.recv(10) == b"data"  # nothing came before it, and no end
        assert far.recv(10) == b""


# ---- fork ------------------------------------------------------------------------------------


def in_child(call) -> None:
    """Run ``call`` in the child of a fork; a failure there is one here."""
    wait_for(fork(call, limit=30))


@contextlib.contextmanager
def held_by_a_thread(lock):
    taken, enough = threading.Event(), threading.Event()

    def hold():
        with lock:
            taken.set()
            enough.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait(30)
    try:
        yield
    finally:
        enough.set()
        thread.join()


def test_a_lock_of_another_thread_is_free_in_the_child():
    lock = Lock()

    def child():
        assert lock.acquire(0)
        assert lock.depth == 1
        lock.release()
        assert lock.depth == 0
        with held_by_a_thread(lock):  # it is a real one
            assert not lock.acquire(0.01)
            in_child(grandchild)
        with lock:
            pass

    def grandchild():
        with lock:
            assert lock.depth == 1

    with held_by_a_thread(lock):
        assert not lock.acquire(0)
        in_child(child)
        assert not lock.acquire(0.01)  # the parent's is as it was
    assert lock.acquire(0)
    lock.release()


def test_a_lock_of_the_thread_that_forks_stays_its_own():
    """A signal handler forks in the middle of a call, and both processes return to it."""
    lock = Lock()

    def child():
        assert lock.acquire(0)
        assert lock.depth == 2
        lock.release()
        seen = []
        thread = threading.Thread(target=lambda: seen.append(lock.acquire(0.05)))
        thread.start()
        thread.join()
        assert seen == [False]
        lock.release()
        assert lock.depth == 0
        thread = threading.Thread(target=lambda: seen.append(lock.acquire(0)))
        thread.start()
        thread.join()
        assert seen == [False, True]

    with lock:
        in_child(child)
        assert lock.depth == 1
    assert lock.depth == 0


@on_tls
def test_after_a_fork_only_the_parent_changes_keys(monkeypatch):
    sent = []
    monkeypatch.setattr(record_layer.system, "can_rekey", lambda *_: True)
    monkeypatch.setattr(record_layer.RecordLayer, "_send_key_update", lambda *a: sent.append(a[1]))
    with connection() as (sock, _):
        list(sock._layer.post.receive(22, KEY_UPDATE_REQUEST))

        def child():
            with pytest.raises(Unavailable, match="after a fork only"):
                sock.update_keys()
            sock._layer.before_sending(sock._layer.deadline(), 0)
            assert not sent  # the answer is the parent's affair
            state = sock.export_state(secrets=True)
            other = KTLSSocket.from_state(state, os.dup(sock.fileno()))
            sock.abandon()
            other.update_keys()
            assert sent
            other.abandon()

        in_child(child)
        sock._layer.before_sending(sock._layer.deadline(), 0)
        assert len(sent) == 1


@on_tls
def test_close_on_exec_is_set(good):
    with unix_pair() as (one, two), tempfile_descriptor() as fd:
        socket.send_fds(one, [good], [fd])
        with moving.receive_socket(two) as other:
            assert fcntl.fcntl(other.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
            other.abandon()


@on_tls
def test_an_ssl_socket_does_not_pass_for_a_unix_socket():
    with tls.handshaken() as pair, connection() as (sock, _):
        with pytest.raises(InvalidValue, match="AF_UNIX"):
            moving.send_socket(pair.client, sock)
        assert isinstance(pair.client, ssl.SSLSocket)
