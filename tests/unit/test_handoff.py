"""Keys and record numbers taken out of OpenSSL, proved with real records in both directions.

For each way to come to the moment of the hand-over: what OpenSSL writes next is opened with our
keys and number, and what we seal with our keys and number OpenSSL reads.
"""

from __future__ import annotations

import _ssl
import contextlib
import ctypes
import gc
import pathlib
import re
import resource
import socket
import ssl
import sys
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.exceptions import InvalidTag

import pyktls
from pyktls import Role, Session, handoff
from pyktls.engines import native
from support import tls
from support.records import APPLICATION_DATA, HANDSHAKE, Opener, Sealer
from support.tls import TLS_1_2, TLS_1_3, Pair

if TYPE_CHECKING:
    from collections.abc import Callable

BIG = bytes(range(256)) * 79  # 20224 bytes: two records
NEW_SESSION_TICKET = 4
KEY_UPDATE = 24

NOT_WATCHED = (
    "nobody watched the handshake: call pyktls.watch(context) before the connection is made "
    "(a context that sni_callback switches to has to be watched as well)"
)
REPLACED = (
    "the traffic secrets were not seen: another keylog callback replaced the one of pyktls "
    "(set keylog_filename before pyktls.watch, not after)"
)


# ---- the proof -------------------------------------------------------------------------------


def assert_mirrored(one: Session, other: Session) -> None:
    """What one end sends with, the other receives with."""
    for tx, rx in ((one.tx, other.rx), (other.tx, one.rx)):
        assert tx.key == rx.key
        assert tx.iv == rx.iv
        assert tx.secret == rx.secret
    assert one.tx.key != one.rx.key
    assert one.cipher is other.cipher
    assert {one.role, other.role} == {Role.CLIENT, Role.SERVER}
    assert one.engine == other.engine == tls.ENGINE


def prove_direction(
    sender: ssl.SSLSocket, sending: Session, receiver: ssl.SSLSocket, receiving: Session
) -> list[bytes]:
    """Both proofs for one direction; returns the messages that were still unread before."""
    unread = sending.tx.sequence - receiving.rx.sequence
    assert unread >= 0

    # What OpenSSL writes, opened from the receiver's number on.
    sender.sendall(b"written by OpenSSL")
    opener = Opener(receiving.cipher, receiving.rx)
    records, messages = [], []
    for _ in range(unread):
        records.append(tls.raw_read_record(receiver))
        record_type, message = opener.open(records[-1])
        assert record_type == HANDSHAKE
        messages.append(message)
    assert opener.sequence == sending.tx.sequence
    record = tls.raw_read_record(receiver)
    assert opener.open(record) == (APPLICATION_DATA, b"written by OpenSSL")
    assert tls.unread_bytes(receiver) == 0

    # What we seal with the sender's number, read by OpenSSL; what it has not seen comes before.
    sealer = Sealer(sending.cipher, sending.tx)
    ours = sealer.seal(APPLICATION_DATA, b"sealed by us")
    ours += sealer.seal(APPLICATION_DATA, b", twice")
    tls.deliver(sender, receiver, b"".join(records) + ours)
    assert tls.recv_exactly(receiver, 19) == b"sealed by us, twice"
    return messages


def prove(pair: Pair) -> tuple[Session, Session]:
    """Extract both ends and prove all four halves; returns the sessions."""
    client, server = pyktls.extract(pair.client), pyktls.extract(pair.server)
    assert (client.role, server.role) == (Role.CLIENT, Role.SERVER)
    assert client.cipher.openssl_name == pair.client.cipher()[0]  # type: ignore[index]
    assert client.version == pair.client.context.minimum_version
    assert_mirrored(client, server)
    for message in prove_direction(pair.server, server, pair.client, client):
        assert message[0] == NEW_SESSION_TICKET
    assert prove_direction(pair.client, client, pair.server, server) == []
    return client, server


def numbers(client: Session, server: Session) -> tuple[int, int, int, int]:
    return client.tx.sequence, client.rx.sequence, server.tx.sequence, server.rx.sequence


# ---- the matrix ------------------------------------------------------------------------------


def nothing(_pair: Pair) -> None:
    pass


def data_before(pair: Pair) -> None:
    pair.exchange()


def much_data_before(pair: Pair) -> None:
    pair.exchange(BIG)
    pair.exchange(BIG)
    pair.exchange(b"x")


def only_the_server_has_sent(pair: Pair) -> None:
    tls.send_and_receive(pair.server, pair.client, b"220 ready")


def only_the_client_has_sent(pair: Pair) -> None:
    tls.send_and_receive(pair.client, pair.server, b"GET /")


def key_update(who: str, *, request: bool, times: int = 1) -> Callable[[Pair], None]:
    """KeyUpdates from ``who``, each followed by data both ways, so that all of it has arrived."""

    def scenario(pair: Pair) -> None:
        for _ in range(times):
            for sock in (pair.client, pair.server):
                if who in {"both", "client" if sock is pair.client else "server"}:
                    tls.send_key_update(sock, request=request)
            pair.exchange()
            pair.exchange()

    return scenario


def key_updates_in_a_row(pair: Pair) -> None:
    for _ in range(3):
        tls.send_key_update(pair.client, request=False)
        tls.send_key_update(pair.server, request=False)
    pair.exchange()


def key_update_of_one_side_only(pair: Pair) -> None:
    # One direction on new keys from record 1 on, the other still on its first ones.
    pair.exchange()
    tls.send_key_update(pair.server, request=False)
    pair.exchange()


def authenticate_after_the_handshake(pair: Pair) -> None:
    assert not pair.server.getpeercert(binary_form=True)
    pair.server.verify_client_post_handshake()
    pair.exchange()  # the request goes out with the server's data, and is answered
    pair.exchange()  # the answer comes with the client's
    assert pair.server.getpeercert(binary_form=True)


def resumed(version: ssl.TLSVersion, **knobs: Any) -> Pair:
    client, server = tls.contexts(version, **knobs)
    with tls.connect(client, server) as first:
        session = tls.resumable_session(first)
        # A connection that just ends takes its session out of the server's cache.
        tls.together(first.client.unwrap, first.server.unwrap, first)
    pair = tls.connect(client, server, session)
    assert pair.client.session_reused
    assert tls.libssl().SSL_session_reused(tls.ssl_pointer(pair.server)) == 1
    return pair


@dataclass
class Case:
    name: str
    version: ssl.TLSVersion
    cipher: str | None = None
    before: Callable[[Pair], None] = nothing
    #: Client tx, client rx, server tx, server rx; None where a number is OpenSSL's affair.
    numbers: tuple[int, int, int, int] | None = None
    knobs: dict[str, Any] = field(default_factory=dict)
    connect: Callable[..., Pair] = tls.handshaken


TLS_1_2_SUITES = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-ECDSA-AES128-CCM",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-CCM",
)
AFTER_12 = (1, 1, 1, 1)  # the two Finished messages are number 0

CASES = [
    # Every suite, fresh and with data.
    *(Case(f"1.3 {s}", TLS_1_3, s, nothing, (0, 0, 2, 0)) for s in tls.TLS_1_3_SUITES),
    *(Case(f"1.3 {s} data", TLS_1_3, s, much_data_before) for s in tls.TLS_1_3_SUITES),
    *(Case(f"1.2 {s}", TLS_1_2, s, nothing, AFTER_12) for s in TLS_1_2_SUITES),
    *(
        Case(f"1.2 {s} data", TLS_1_2, s, much_data_before, (6, 6, 6, 6))
        for s in TLS_1_2_SUITES[:4]
    ),
    # Session tickets.
    *(
        Case(f"1.3 {n} tickets", TLS_1_3, None, nothing, (0, 0, n, 0), {"tickets": n})
        for n in (0, 2, 5)
    ),
    *(
        Case(f"1.3 {n} tickets data", TLS_1_3, None, much_data_before, (5, 5 + n, 5 + n, 5),
             {"tickets": n})
        for n in (0, 2, 5)
    ),
    Case("1.3 tickets unread, client spoke", TLS_1_3, None, only_the_client_has_sent, (1, 0, 2, 1)),
    Case("1.3 server spoke", TLS_1_3, None, only_the_server_has_sent, (0, 3, 3, 0)),
    Case("1.2 server spoke", TLS_1_2, None, only_the_server_has_sent, (1, 2, 2, 1)),
    Case("1.2 client spoke", TLS_1_2, None, only_the_client_has_sent, (2, 1, 1, 2)),
    Case("1.2 no ticket", TLS_1_2, None, nothing, AFTER_12, {"tickets": 0}),
    # The handshake's variants.
    Case("1.3 hello retry", TLS_1_3, None, nothing, (0, 0, 2, 0), {"hello_retry": True}),
    Case("1.3 hello retry data", TLS_1_3, None, data_before, (1, 3, 3, 1), {"hello_retry": True}),
    Case("1.2 other group", TLS_1_2, None, nothing, AFTER_12, {"hello_retry": True}),
    Case("1.3 client certificate", TLS_1_3, None, nothing, (0, 0, 2, 0),
         {"client_certificate": True}),
    Case("1.3 hello retry and client certificate", TLS_1_3, None, data_before, (1, 3, 3, 1),
         {"client_certificate": True, "hello_retry": True}),
    Case("1.2 client certificate", TLS_1_2, None, data_before, (2, 2, 2, 2),
         {"client_certificate": True}),
    # Resumption: OpenSSL then sends one ticket.
    Case("1.3 resumed", TLS_1_3, None, nothing, (0, 0, 1, 0), connect=resumed),
    Case("1.3 resumed data", TLS_1_3, None, much_data_before, (5, 6, 6, 5), connect=resumed),
    Case("1.2 resumed by ticket", TLS_1_2, None, nothing, AFTER_12, connect=resumed),
    Case("1.2 resumed by session id", TLS_1_2, None, data_before, (2, 2, 2, 2),
         {"tickets": 0}, connect=resumed),
    # Changes of keys.  After one, the exchanges of the scenario are counted anew.
    Case("1.3 KeyUpdate of the client", TLS_1_3, None, key_update("client", request=False),
         (2, 4, 4, 2)),
    Case("1.3 KeyUpdate of the server", TLS_1_3, None, key_update("server", request=False),
         (2, 2, 2, 2)),
    Case("1.3 KeyUpdate of the client, answered", TLS_1_3, None,
         key_update("client", request=True), (2, 2, 2, 2)),
    Case("1.3 KeyUpdate of the server, answered", TLS_1_3, None,
         key_update("server", request=True), (1, 2, 2, 1)),
    Case("1.3 three KeyUpdates of both", TLS_1_3, None,
         key_update("both", request=False, times=3), (2, 2, 2, 2)),
    Case("1.3 three KeyUpdates of both, crossing requests", TLS_1_3, None,
         key_update("both", request=True, times=3)),
    Case("1.3 three KeyUpdates in a row", TLS_1_3, None, key_updates_in_a_row, (1, 1, 1, 1)),
    Case("1.3 KeyUpdate of one direction", TLS_1_3, None, key_update_of_one_side_only,
         (2, 1, 1, 2)),
    *(
        Case(f"1.3 {s} KeyUpdate", TLS_1_3, s, key_update("both", request=True))
        for s in tls.TLS_1_3_SUITES
    ),
    # Its Certificate and Finished go under application keys.
    Case("1.3 post-handshake authentication", TLS_1_3, None, authenticate_after_the_handshake,
         knobs={"post_handshake_auth": True}),
]  # fmt: skip


def open_case(case: Case) -> Pair:
    if case.cipher is None:
        return case.connect(case.version, **case.knobs)
    return case.connect(case.version, case.cipher, **case.knobs)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_keys_and_numbers_are_those_of_the_wire(case: Case) -> None:
    with open_case(case) as pair:
        case.before(pair)
        sessions = prove(pair)
        if case.numbers is not None:
            assert numbers(*sessions) == case.numbers


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_extracting_changes_nothing(case: Case) -> None:
    with open_case(case) as pair:
        case.before(pair)
        for sock in (pair.client, pair.server):
            one, two = pyktls.extract(sock), pyktls.extract(sock)
            assert (one.tx, one.rx) == (two.tx, two.rx)
        pair.exchange(BIG)


def test_the_proof_notices_a_wrong_number() -> None:
    with tls.handshaken(tickets=0) as pair:
        pair.server.sendall(b"data")
        session = pyktls.extract(pair.client)
        session.rx.sequence += 1
        with pytest.raises(InvalidTag):
            Opener(session.cipher, session.rx).open(tls.raw_read_record(pair.client))


def test_the_hello_retry_knob_forces_a_second_hello() -> None:
    for knob, hellos in ((False, 1), (True, 2)):
        client, server = tls.contexts(hello_retry=knob, watch=False)
        seen: list[object] = []
        client._msg_callback = lambda *event, seen=seen: seen.append(event[4])  # type: ignore[attr-defined]
        with tls.connect(client, server):
            assert [getattr(kind, "name", "") for kind in seen].count("CLIENT_HELLO") == hellos


# ---- changes of keys under way ---------------------------------------------------------------


def test_key_update_still_unread_in_the_socket() -> None:
    # The sender is on its next keys, the receiver not yet: its numbers lead up to the KeyUpdate.
    with tls.handshaken(tickets=0) as pair:
        tls.send_and_receive(pair.server, pair.client, b"first")
        tls.send_key_update(pair.server, request=False)
        pair.server.sendall(b"second")
        client, server = pyktls.extract(pair.client), pyktls.extract(pair.server)
        assert (client.rx.sequence, server.tx.sequence) == (1, 1)
        assert client.rx.key != server.tx.key
        opener = Opener(client.cipher, client.rx)
        record_type, message = opener.open(tls.raw_read_record(pair.client))
        assert (record_type, message[0]) == (HANDSHAKE, KEY_UPDATE)
        opener.rekey()
        assert opener.key == server.tx.key
        assert opener.open(tls.raw_read_record(pair.client)) == (APPLICATION_DATA, b"second")


@pytest.mark.parametrize("asking", ["client", "server"])
def test_an_answer_to_a_key_update_must_be_sent_first(asking: str) -> None:
    # RFC 8446 section 4.6.3: OpenSSL sends it with its next data, and would never do so.
    with tls.handshaken(tickets=0) as pair:
        ends = (pair.client, pair.server) if asking == "client" else (pair.server, pair.client)
        asker, answerer = ends
        tls.send_key_update(asker, request=True)
        tls.send_and_receive(asker, answerer, b"data")
        text = "the peer asked for a KeyUpdate that is not sent yet: send some data first"
        for refusing in (pyktls.extract, handoff.extract_for_offload):
            with pytest.raises(pyktls.HandoffRefused, match=f"^{re.escape(text)}$"):
                refusing(answerer)
        tls.send_and_receive(answerer, asker, b"answer")
        prove(pair)


# ---- the context -----------------------------------------------------------------------------


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_watching_twice_is_harmless(version: ssl.TLSVersion) -> None:
    client, server = tls.contexts(version)
    for _ in range(3):
        pyktls.watch(client)
        pyktls.watch(server)
    with tls.connect(client, server) as pair:
        data_before(pair)
        prove(pair)


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_keylog_file_set_before_watch_still_gets_its_lines(
    version: ssl.TLSVersion, tmp_path: pathlib.Path
) -> None:
    client, server = tls.contexts(version, watch=False)
    logs = [tmp_path / "client", tmp_path / "server"]
    for context, log in zip((client, server), logs, strict=True):
        context.keylog_filename = str(log)
        pyktls.watch(context)
        pyktls.watch(context)  # must not chain to itself
    with tls.connect(client, server) as pair:
        if version == TLS_1_3:
            key_update("both", request=False)(pair)
        sessions = prove(pair)
    lines = [sorted(log.read_text().splitlines()) for log in logs]
    lines = [[line for line in log if not line.startswith("#")] for log in lines]
    assert lines[0] == lines[1]
    labels = [line.split()[0] for line in lines[0]]
    assert len(labels) == len(set(labels))
    if version == TLS_1_2:
        assert labels == ["CLIENT_RANDOM"]
    else:
        assert {"CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0", "CLIENT_TRAFFIC_SECRET_N",
                "SERVER_TRAFFIC_SECRET_N"} < set(labels)  # fmt: skip
        secret = sessions[0].tx.secret
        assert secret is not None
        (line,) = (line for line in lines[0] if line.startswith("CLIENT_TRAFFIC_SECRET_N"))
        assert line.split()[2] == secret.hex()


@pytest.mark.parametrize("value", ["file", None])
def test_keylog_file_set_after_watch_is_refused_in_tls_1_3(
    value: str | None, tmp_path: pathlib.Path
) -> None:
    client, server = tls.contexts(TLS_1_3)
    client.keylog_filename = value and str(tmp_path / value)
    with tls.connect(client, server) as pair:
        with pytest.raises(pyktls.HandoffRefused, match=f"^{re.escape(REPLACED)}$"):
            pyktls.extract(pair.client)
        pyktls.extract(pair.server)  # whose own context is as it was
        pair.exchange()
    # Watching once more mends it, and keeps the file.
    pyktls.watch(client)
    with tls.connect(client, server) as pair:
        prove(pair)
    if value is not None:
        assert (tmp_path / value).read_text().count("CLIENT_TRAFFIC_SECRET_0") == 2


def test_keylog_file_set_after_watch_does_not_matter_in_tls_1_2(tmp_path: pathlib.Path) -> None:
    # Its keys follow from the master secret.
    client, server = tls.contexts(TLS_1_2)
    client.keylog_filename = server.keylog_filename = str(tmp_path / "log")
    with tls.connect(client, server) as pair:
        if tls.ENGINE == "native":
            prove(pair)
        else:  # it has the master secret from nowhere else
            with pytest.raises(pyktls.HandoffRefused, match=f"^{re.escape(REPLACED)}$"):
                pyktls.extract(pair.client)


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_message_callback_set_after_watch_is_refused(version: ssl.TLSVersion) -> None:
    client, server = tls.contexts(version)
    client._msg_callback = lambda *_: None  # type: ignore[attr-defined]
    with tls.connect(client, server) as pair:
        with pytest.raises(pyktls.HandoffRefused, match=f"^{re.escape(NOT_WATCHED)}$"):
            pyktls.extract(pair.client)
        pair.exchange()


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_watch_between_wrapping_and_handshake_is_too_late(version: ssl.TLSVersion) -> None:
    client, server = tls.contexts(version, watch=False)
    with tls.wrap_pair(client, server) as pair:
        pyktls.watch(client)
        pyktls.watch(server)
        tls.together(pair.client.do_handshake, pair.server.do_handshake, pair)
        for sock in (pair.client, pair.server):
            with pytest.raises(pyktls.HandoffRefused, match=f"^{re.escape(NOT_WATCHED)}$"):
                pyktls.extract(sock)
        pair.exchange()


def test_watch_after_the_handshake_is_too_late_for_a_key_update_too() -> None:
    client, server = tls.contexts(TLS_1_3, watch=False)
    with tls.connect(client, server) as pair:
        pyktls.watch(client)
        pyktls.watch(server)
        key_update("both", request=True)(pair)  # gives a secret for each direction
        for sock in (pair.client, pair.server):
            with pytest.raises(pyktls.HandoffRefused, match=f"^{re.escape(NOT_WATCHED)}$"):
                pyktls.extract(sock)


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
@pytest.mark.parametrize(
    ("first_watched", "second_watched"),
    [(True, True), (True, False), (False, True), (False, False)],
)
def test_sni_callback_that_switches_contexts(
    version: ssl.TLSVersion, first_watched: bool, second_watched: bool
) -> None:
    client, first = tls.contexts(version, watch=False)
    _, second = tls.contexts(version, watch=False)
    pyktls.watch(client)
    if first_watched:
        pyktls.watch(first)
    if second_watched:
        pyktls.watch(second)

    def switch(sock: ssl.SSLObject, _name: str, _context: ssl.SSLContext) -> None:
        sock.context = second

    first.sni_callback = switch
    with tls.connect(client, first) as pair:
        assert pair.server.context is second
        if first_watched and second_watched:
            data_before(pair)
            prove(pair)
        else:
            with pytest.raises(pyktls.HandoffRefused, match=f"^{re.escape(NOT_WATCHED)}$"):
                pyktls.extract(pair.server)
            pair.exchange()


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_sni_callback_that_stays(version: ssl.TLSVersion) -> None:
    client, server = tls.contexts(version)
    names = []
    server.sni_callback = lambda _sock, name, _context: names.append(name)
    with tls.connect(client, server) as pair:
        prove(pair)
    assert names == [tls.HOST]


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_contexts_may_go_before_their_connections(version: ssl.TLSVersion) -> None:
    pair = tls.handshaken(version)  # its contexts have no other name
    gc.collect()
    with pair:
        pair.exchange()
        prove(pair)


def test_connections_without_a_socket_may_go_unused() -> None:
    client, server = tls.contexts()
    for _ in range(200):
        client.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=tls.HOST)
        server.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
    with tls.connect(client, server) as pair:
        prove(pair)


def test_many_connections_of_one_context_do_not_mix() -> None:
    client, server = tls.contexts()
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(tls.connect(client, server)) for _ in range(8)]
        for n, pair in enumerate(pairs):
            for _ in range(n):
                pair.exchange()
        keys = set()
        for n, pair in enumerate(pairs):
            sessions = prove(pair)
            assert sessions[0].tx.sequence == n
            keys.add(bytes(sessions[0].tx.key))
        assert len(keys) == 8


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_forty_connections_of_one_context_over_eight_threads(version: ssl.TLSVersion) -> None:
    client, server = tls.contexts(version)
    begin = threading.Barrier(8)
    done: list[int] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            begin.wait(tls.TIMEOUT)
            for n in range(5):
                with tls.connect(client, server) as pair:
                    for _ in range(n):
                        pair.exchange()
                    prove(pair)
                    done.append(n)
        except BaseException as e:  # noqa: BLE001
            failures.append(e)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(done) == 40


# ---- leaving -----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_a_session_notices_that_openssl_went_on(version: ssl.TLSVersion) -> None:
    with tls.handshaken(version) as pair:
        sent, received = pyktls.extract(pair.client), pyktls.extract(pair.server)
        assert not sent.has_moved()
        assert not received.has_moved()
        pair.client.sendall(b"one record")
        assert sent.has_moved()
        assert not received.has_moved()
        tls.recv_exactly(pair.server, 10)
        assert received.has_moved()
        assert not pyktls.extract(pair.client).has_moved()


@pytest.mark.parametrize("leave", ["detach", "close"])
@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_a_session_notices_it_of_a_socket_that_is_gone(version: ssl.TLSVersion, leave: str) -> None:
    with tls.handshaken(version, tickets=0) as pair:
        session, unused = pyktls.extract(pair.client), pyktls.extract(pair.server)
        pair.client.sendall(b"one record")
        if leave == "detach":
            plain = socket.socket(fileno=pair.client.detach())
        else:
            plain = socket.socket()
            pair.client.close()
        pair.client = plain  # type: ignore[assignment]  # the other one is gone
        gc.collect()
        assert session.has_moved()
        assert not unused.has_moved()
        if leave == "detach":
            with pytest.raises(pyktls.HandoffRefused, match=r"^records have passed"):
                pyktls.install(plain, session)


def test_a_session_notices_a_change_of_keys() -> None:
    # A KeyUpdate puts the number back, here to the very value that the session has.
    with tls.handshaken(tickets=0) as pair:
        session = pyktls.extract(pair.client)
        assert session.tx.sequence == 0
        tls.send_key_update(pair.client, request=False)
        assert session.has_moved()


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_detaching_sends_nothing_and_the_session_goes_on(version: ssl.TLSVersion) -> None:
    with tls.handshaken(version, tickets=0) as pair:
        session = pyktls.extract(pair.client)
        with socket.socket(fileno=pair.client.detach()) as plain:
            gc.collect()
            assert not session.has_moved()
            plain.settimeout(tls.TIMEOUT)
            sealer, opener = (
                Sealer(session.cipher, session.tx),
                Opener(session.cipher, session.rx),
            )
            plain.sendall(sealer.seal(APPLICATION_DATA, b"from user space"))
            assert tls.recv_exactly(pair.server, 15) == b"from user space"
            pair.server.sendall(b"answer")
            record = plain.recv(1000)
            assert opener.open(record) == (APPLICATION_DATA, b"answer")


# The portable engine has no such call, and leaves the session to OpenSSL's rules.
def resumed_after(*, leaves: bool) -> bool:
    client, server = tls.contexts(
        TLS_1_2, tickets=0, engine="native"
    )  # so the server's cache is what counts
    with tls.connect(client, server) as first:
        session = tls.resumable_session(first)
        if leaves:
            native.leave(first.server._sslobj)  # type: ignore[attr-defined]
        assert tls.unread_bytes(first.client) == 0
    del first
    gc.collect()
    with tls.connect(client, server, session) as second:
        return bool(second.client.session_reused)


@tls.needs_native
def test_left_in_good_order_a_connection_keeps_its_session_resumable() -> None:
    assert resumed_after(leaves=True)


def leaves_by_itself() -> bool:
    """Whether this CPython ends each connection for OpenSSL; some 3.13.x began to."""
    module = pathlib.Path(getattr(_ssl, "__file__", sys.executable))
    return b"SSL_set_shutdown" in module.read_bytes()


@pytest.mark.skipif(leaves_by_itself(), reason="this CPython does the same by itself")
@tls.needs_native
def test_otherwise_openssl_throws_the_session_away() -> None:
    assert not resumed_after(leaves=False)


# ---- memory ----------------------------------------------------------------------------------


def memory_in_use() -> int:
    """Bytes that malloc has given out; where the C library does not tell, the process's size."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallctl"):  # FreeBSD: jemalloc(3), which counts anew when told so
        epoch, used = ctypes.c_uint64(1), ctypes.c_size_t()
        size = ctypes.c_size_t(ctypes.sizeof(used))
        libc.mallctl(b"thread.tcache.flush", None, None, None, ctypes.c_size_t(0))
        libc.mallctl(b"epoch", None, None, ctypes.byref(epoch), ctypes.c_size_t(8))
        libc.mallctl(
            b"stats.allocated", ctypes.byref(used), ctypes.byref(size), None, ctypes.c_size_t(0)
        )
        return used.value
    if hasattr(libc, "mallinfo2"):
        fields = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"

        class MallInfo(ctypes.Structure):
            _fields_ = tuple((name, ctypes.c_size_t) for name in fields.split())

        libc.mallinfo2.restype = MallInfo
        return int(libc.mallinfo2().uordblks)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_what_hangs_on_a_connection_is_freed_with_it() -> None:
    client, server = tls.contexts(tickets=0)

    def some(count: int) -> None:
        for _ in range(count):
            with tls.connect(client, server) as pair:
                pyktls.extract(pair.client).wipe()
        gc.collect()

    some(50)
    before = memory_in_use()
    some(500)
    # A connection that is not freed leaves more than 200 bytes at each end.
    assert memory_in_use() - before < 500 * 2 * 100
