"""Every engine gives the same Session.

Each connection has two ends, each with an engine of its own, so one engine's keys and numbers are
held against another's for the same connection, and against the wire: what each end's keys seal is
opened with the other's, and OpenSSL goes on from there.  Every engine meets the native one on both
sides, and itself; where OpenSSL is hidden (test_hidden_openssl.py) those pairs without it remain.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import select
import socket
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from OpenSSL import SSL

import pyktls
from pyktls import Session, handoff
from pyktls.engines import native, portable
from support import tls
from support.records import APPLICATION_DATA, HANDSHAKE, Opener, Sealer, read_record
from support.tls import TLS_1_2, TLS_1_3

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NEW_SESSION_TICKET = 4
NO_ENCRYPT_THEN_MAC = 1 << 19
BIG = bytes(range(256)) * 79  # two records


# ---- ends ------------------------------------------------------------------------------------


class SocketEnd:
    """An ``ssl.SSLSocket``, watched by an engine."""

    def __init__(
        self,
        engine: str,
        sock: socket.socket,
        context: ssl.SSLContext,
        *,
        server: bool,
        session: ssl.SSLSession | None = None,
    ) -> None:
        pyktls.watch(context, engine=engine)
        self.source = context.wrap_socket(
            sock,
            server_side=server,
            server_hostname=None if server else tls.HOST,
            do_handshake_on_connect=False,
            session=session,
        )
        self.source.setblocking(False)

    def step(self) -> None:
        self.source.do_handshake()

    def ready(self) -> None:
        self.source.settimeout(tls.TIMEOUT)

    def send(self, data: bytes) -> None:
        self.source.sendall(data)

    def recv(self, size: int) -> bytes:
        return tls.recv_exactly(self.source, size)

    def raw_recv(self, size: int) -> bytes:
        return tls.raw_recv_exactly(self.source, size)

    def raw_send(self, data: bytes) -> None:
        tls.raw(self.source).sendall(data)

    def session_reused(self) -> bool:
        return bool(self.source.session_reused)

    def close(self) -> None:
        self.source.close()


class DriverEnd:
    """A ``MemoryBIOHandshake``; data goes under the session's keys from the first record on."""

    def __init__(
        self,
        sock: socket.socket,
        context: Any,
        *,
        server: bool,
        session: ssl.SSLSession | None = None,
    ) -> None:
        sock.setblocking(False)
        self.source = pyktls.MemoryBIOHandshake(
            sock,
            context,
            server_side=server,
            server_hostname=None if server else tls.HOST,
            session=session,
        )
        self.sock = sock

    def step(self) -> None:
        self.source.do_handshake()

    def ready(self) -> None:
        self.sock.settimeout(tls.TIMEOUT)
        session = self.source.session()
        self.sealer, self.opener = (
            Sealer(session.cipher, session.tx),
            Opener(session.cipher, session.rx),
        )

    def send(self, data: bytes) -> None:
        self.sock.sendall(self.sealer.seal(APPLICATION_DATA, data))

    def recv(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            kind, piece = self.opener.open(read_record(self.raw_recv))
            if kind == APPLICATION_DATA:
                data += piece
            else:
                assert (kind, piece[0]) == (HANDSHAKE, NEW_SESSION_TICKET)
        return data

    def raw_recv(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.sock.recv(size - len(data))
            assert piece
            data += piece
        return data

    def session_reused(self) -> bool:
        return bool(self.source.tls.session_reused)

    def close(self) -> None:
        self.sock.close()


End = SocketEnd | DriverEnd


@functools.cache
def pem_files() -> tuple[trustme.CA, dict[str, trustme.LeafCert]]:
    return tls.authority(), {
        "ecdsa": tls.certificate(),
        "rsa": tls.certificate(trustme.KeyType.RSA),
    }


def pyopenssl_context(case: Case, *, server: bool) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD if server else SSL.TLS_CLIENT_METHOD)
    version = SSL.TLS1_2_VERSION if case.version == TLS_1_2 else SSL.TLS1_3_VERSION
    context.set_min_proto_version(version)
    context.set_max_proto_version(version)
    authority, leaves = pem_files()
    with authority.cert_pem.tempfile() as path:
        context.load_verify_locations(path)
    context.set_cipher_list(b"ALL:@SECLEVEL=0")
    if case.cipher is not None and case.version == TLS_1_3:
        context.set_tls13_ciphersuites(case.cipher.encode())
    if case.no_encrypt_then_mac:
        context.set_options(NO_ENCRYPT_THEN_MAC)
    if server or case.knobs.get("client_certificate"):
        kinds = ["ecdsa"]
        if server and case.version == TLS_1_2 and case.cipher and "ECDSA" not in case.cipher:
            kinds = ["rsa"]
        for kind in kinds:
            with leaves[kind].private_key_and_cert_chain_pem.tempfile() as path:
                context.use_certificate_chain_file(path)
                context.use_privatekey_file(path)
    mode = SSL.VERIFY_PEER
    if server:
        wanted = bool(case.knobs.get("client_certificate"))
        mode = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT if wanted else SSL.VERIFY_NONE
    context.set_verify(mode, lambda *arguments: bool(arguments[-1]))
    return context


def make_end(engine: str, sock: socket.socket, context: Any, **knobs: Any) -> End:
    if engine in {"native", "portable"}:
        return SocketEnd(engine, sock, context, **knobs)
    return DriverEnd(sock, context, **knobs)


def handshake(*ends: End) -> None:
    """Step both until both are done."""
    todo = list(ends)
    while todo:
        reading, writing = [], []
        for end in list(todo):
            try:
                end.step()
            except ssl.SSLWantReadError:
                reading.append(end)
            except ssl.SSLWantWriteError:
                writing.append(end)
            else:
                todo.remove(end)
        if len(todo) == len(reading) + len(writing) and todo:
            socks = [
                [e.source if isinstance(e, SocketEnd) else e.sock for e in some]
                for some in (reading, writing)
            ]
            select.select(*socks, [], 0.05)
    for end in ends:
        end.ready()


@dataclass
class Connected:
    client: End
    server: End

    def exchange(self, data: bytes = b"both ways") -> None:
        for sender, receiver in ((self.client, self.server), (self.server, self.client)):
            sender.send(data)
            assert receiver.recv(len(data)) == data


@dataclass
class Case:
    name: str
    version: ssl.TLSVersion
    cipher: str | None = None
    before: Callable[[Connected], None] | None = None
    #: What each end has sent and what it has read: client tx, client rx, server tx, server rx.
    numbers: tuple[int, int, int, int] | None = None
    knobs: dict[str, Any] = field(default_factory=dict)
    resumed: bool = False
    no_encrypt_then_mac: bool = False

    @property
    def of_sockets_only(self) -> bool:
        """A driver does the handshake and no more."""
        return self.before is not None


@contextlib.contextmanager
def connected(case: Case, client_engine: str, server_engine: str) -> Iterator[Connected]:
    contexts: list[Any] = list(tls.contexts(case.version, case.cipher, watch=False, **case.knobs))
    if case.no_encrypt_then_mac:
        for context in contexts:
            context.options |= NO_ENCRYPT_THEN_MAC
    for i, engine in enumerate((client_engine, server_engine)):
        if engine == "pyopenssl":
            contexts[i] = pyopenssl_context(case, server=bool(i))
    session = None
    if case.resumed:
        # The first connection is OpenSSL's own, on the same contexts.
        for context, engine in zip(contexts, (client_engine, server_engine), strict=True):
            pyktls.watch(context, engine=engine)
        with tls.connect(*contexts) as first:
            session = tls.resumable_session(first)
            tls.together(first.client.unwrap, first.server.unwrap, first)
    near, far = tls.tcp_pair()
    with contextlib.ExitStack() as stack:
        stack.callback(near.close)
        stack.callback(far.close)
        client = make_end(client_engine, near, contexts[0], server=False, session=session)
        stack.callback(client.close)
        server = make_end(server_engine, far, contexts[1], server=True)
        stack.callback(server.close)
        handshake(client, server)
        if case.resumed:
            assert client.session_reused()
        pair = Connected(client, server)
        if case.before is not None:
            case.before(pair)
        yield pair


# ---- cases -----------------------------------------------------------------------------------


def data_before(pair: Connected) -> None:
    pair.exchange()
    pair.exchange(BIG)


def key_updates(pair: Connected) -> None:
    """Requested by one side, and by both; all of it has arrived."""
    for who in ((pair.client,), (pair.server,), (pair.client, pair.server)):
        for end in who:
            assert isinstance(end, SocketEnd)
            tls.send_key_update(end.source, request=True)
        pair.exchange()
        pair.exchange()


TLS_1_2_SUITES = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-ECDSA-AES128-CCM",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "AES256-GCM-SHA384",
)
CBC_SUITES = (
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-ECDSA-AES128-SHA256",
    "AES256-SHA256",
    "ECDHE-RSA-AES256-SHA384",
)
AFTER_12 = (1, 1, 1, 1)

CASES = [
    *(Case(f"1.3 {s}", TLS_1_3, s, numbers=(0, 0, 2, 0)) for s in tls.TLS_1_3_SUITES),
    *(Case(f"1.2 {s}", TLS_1_2, s, numbers=AFTER_12) for s in TLS_1_2_SUITES),
    *(
        Case(f"1.2 {s}", TLS_1_2, s, numbers=AFTER_12, no_encrypt_then_mac=True)
        for s in CBC_SUITES
    ),
    *(
        Case(f"1.3 {n} tickets", TLS_1_3, numbers=(0, 0, n, 0), knobs={"tickets": n})
        for n in (0, 2, 5)
    ),
    Case("1.2 no ticket", TLS_1_2, numbers=AFTER_12, knobs={"tickets": 0}),
    Case("1.3 hello retry", TLS_1_3, numbers=(0, 0, 2, 0), knobs={"hello_retry": True}),
    Case("1.3 client certificate", TLS_1_3, numbers=(0, 0, 2, 0),
         knobs={"client_certificate": True}),
    Case("1.3 hello retry and client certificate", TLS_1_3, numbers=(0, 0, 2, 0),
         knobs={"client_certificate": True, "hello_retry": True}),
    Case("1.2 client certificate", TLS_1_2, numbers=AFTER_12, knobs={"client_certificate": True}),
    Case("1.3 resumed", TLS_1_3, numbers=(0, 0, 1, 0), resumed=True),
    Case("1.2 resumed by ticket", TLS_1_2, numbers=AFTER_12, resumed=True),
    Case("1.2 resumed by session id", TLS_1_2, numbers=AFTER_12, knobs={"tickets": 0},
         resumed=True),
    Case("1.3 data before", TLS_1_3, before=data_before, numbers=(3, 5, 5, 3)),
    Case("1.2 data before", TLS_1_2, before=data_before, numbers=(4, 4, 4, 4)),
    Case("1.3 KeyUpdates before", TLS_1_3, before=key_updates),
    *(
        Case(f"1.3 {s} KeyUpdates before", TLS_1_3, s, before=key_updates)
        for s in tls.TLS_1_3_SUITES
    ),
]  # fmt: skip

ENGINES = (
    "native",
    *(("portable",) if portable.why_not() is None else ()),  # it needs Linux
    "membio",
    "pyopenssl",
)
PAIRS = [
    (client, server)
    for client in ENGINES
    for server in ENGINES
    if "native" in {client, server} or client == server
]
if native.why_not() is not None:
    PAIRS = [
        (client, server)
        for client in ENGINES[1:]
        for server in ENGINES[1:]
        if "portable" in {client, server} or client == server == "membio"
    ]


def suits(case: Case, pair: tuple[str, str]) -> bool:
    drivers = {"membio", "pyopenssl"} & set(pair)
    if case.of_sockets_only and drivers:
        return False
    if "pyopenssl" not in pair:
        return True
    # pyOpenSSL's own interface: no number of tickets, no choice of groups, no sessions by name.
    # With itself it negotiates what it likes.
    server_knobs = {"tickets", "hello_retry"} & set(case.knobs)
    return not (
        case.resumed
        or (server_knobs and pair[1] == "pyopenssl")
        or (pair == ("pyopenssl", "pyopenssl") and case.cipher is not None)
    )


MATRIX = [
    pytest.param(case, pair, id=f"{case.name}, {pair[0]} to {pair[1]}")
    for case in CASES
    for pair in PAIRS
    if suits(case, pair)
]


# ---- the proof -------------------------------------------------------------------------------


def engine_name(engine: str) -> str:
    return "membio" if engine == "pyopenssl" else engine


def assert_same(one: Session, other: Session) -> None:
    """What one end sends with, the other receives with."""
    for tx, rx in ((one.tx, other.rx), (other.tx, one.rx)):
        assert tx.key == rx.key
        assert tx.iv == rx.iv
        assert tx.mac_key == rx.mac_key
        assert tx.secret == rx.secret
    assert one.tx.key != one.rx.key
    assert one.cipher is other.cipher
    assert {one.role, other.role} == {pyktls.Role.CLIENT, pyktls.Role.SERVER}


def unread_tickets(receiver: End, receiving: Session, sending: Session) -> Opener:
    """Take what lies between the two numbers off the wire: session tickets and nothing else."""
    opener = Opener(receiving.cipher, receiving.rx)
    while opener.sequence < sending.tx.sequence:
        kind, message = opener.open(read_record(receiver.raw_recv))
        assert (kind, message[0]) == (HANDSHAKE, NEW_SESSION_TICKET)
    return opener


@pytest.mark.parametrize(("case", "pair"), MATRIX)
def test_engines_agree(case: Case, pair: tuple[str, str]) -> None:
    with connected(case, *pair) as ends:
        client, server = pyktls.extract(ends.client.source), pyktls.extract(ends.server.source)
        assert (client.engine, server.engine) == tuple(map(engine_name, pair))
        assert (client.role, server.role) == (pyktls.Role.CLIENT, pyktls.Role.SERVER)
        assert client.version == case.version
        if case.cipher is not None:
            assert client.cipher.openssl_name == case.cipher
        assert_same(client, server)
        numbers = (
            *(keys.sequence for keys in (client.tx, client.rx)),
            *(keys.sequence for keys in (server.tx, server.rx)),
        )
        if case.numbers is not None:
            assert numbers == case.numbers
        else:
            assert (numbers[0], numbers[2]) == (numbers[3], numbers[1])
        again = pyktls.extract(ends.client.source)
        assert (again.tx, again.rx) == (client.tx, client.rx)
        if client.cipher.aead.mac_key_length:
            # The tests' record layer has no CBC: the native engine's end is the reference.
            return
        # Each number is the wire's: the next record of either end opens with the other's keys.
        for sender, sending, receiver, receiving in (
            (ends.client, client, ends.server, server),
            (ends.server, server, ends.client, client),
        ):
            opener = unread_tickets(receiver, receiving, sending)
            sender.send(b"the next record")
            assert opener.open(read_record(receiver.raw_recv)) == (
                APPLICATION_DATA,
                b"the next record",
            )
            assert opener.sequence == sending.tx.sequence + 1


@pytest.mark.parametrize(("case", "pair"), MATRIX)
def test_each_end_reads_what_the_sessions_keys_seal(case: Case, pair: tuple[str, str]) -> None:
    with connected(case, *pair) as ends:
        sessions = pyktls.extract(ends.client.source), pyktls.extract(ends.server.source)
        if sessions[0].cipher.aead.mac_key_length:
            # Not with our own record layer, then: each end reads the other.
            if not {"membio", "pyopenssl"} & set(pair):
                ends.exchange()
            return
        for sending, sender, receiver in (
            (sessions[0], ends.client, ends.server),
            (sessions[1], ends.server, ends.client),
        ):
            record = Sealer(sending.cipher, sending.tx).seal(APPLICATION_DATA, b"sealed by us")
            sock = sender.source if isinstance(sender, SocketEnd) else sender.sock
            if isinstance(sock, ssl.SSLSocket):
                sender.raw_send(record)  # type: ignore[union-attr]
            else:
                sock.sendall(record)
            assert receiver.recv(12) == b"sealed by us"


DRIVER_CASES = [case for case in CASES if not case.of_sockets_only]


@tls.needs_native
@pytest.mark.parametrize("watched_first", ["native", "membio"])
@pytest.mark.parametrize("case", DRIVER_CASES, ids=lambda case: case.name)
def test_membio_and_native_on_the_very_same_connection(case: Case, watched_first: str) -> None:
    contexts = tls.contexts(case.version, case.cipher, watch=False, **case.knobs)
    session = None
    for context in contexts:
        if case.no_encrypt_then_mac:
            context.options |= NO_ENCRYPT_THEN_MAC
        for engine in (watched_first, "membio" if watched_first == "native" else "native"):
            pyktls.watch(context, engine=engine)
    if case.resumed:
        with tls.connect(*contexts) as first:
            session = tls.resumable_session(first)
            assert pyktls.extract(first.client).engine == "native"
            tls.together(first.client.unwrap, first.server.unwrap, first)
    near, far = tls.tcp_pair()
    with near, far:
        client = DriverEnd(near, contexts[0], server=False, session=session)
        server = DriverEnd(far, contexts[1], server=True)
        handshake(client, server)
        for end in (client, server):
            ours = end.source.session()
            theirs = native.extract(end.source.tls._sslobj)
            assert (ours.tx, ours.rx) == (theirs.tx, theirs.rx)
            assert ours.tx.mac_key == theirs.tx.mac_key
            assert (ours.cipher, ours.role) == (theirs.cipher, theirs.role)


# ---- what offload does with any of them ------------------------------------------------------


@pytest.mark.parametrize("case", [CASES[0], CASES[4]], ids=lambda case: case.name)
@pytest.mark.parametrize("engine", ENGINES)
def test_taking_plaintext_and_leaving(case: Case, engine: str) -> None:
    if engine == "native" and native.why_not() is not None:
        pytest.skip("about the native engine, which cannot work here")
    with connected(case, engine, "membio") as ends:
        client = ends.client
        if isinstance(client, SocketEnd):
            # The server's tickets come before its data.
            ends.server.send(b"0123456789")
            assert client.recv(4) == b"0123"
            with pytest.raises(pyktls.HandoffRefused, match="OpenSSL still holds 6 bytes"):
                pyktls.extract(client.source)
        session = handoff.extract_for_offload(client.source)
        before = handoff.counters(client.source)()
        sock = handoff.tcp_socket(client.source)
        fd = sock.fileno()
        expected = b"456789" if isinstance(client, SocketEnd) else b""
        assert handoff.take_plaintext(client.source) == expected
        assert handoff.take_plaintext(client.source) == b""
        assert handoff.counters(client.source)() == before
        handoff.release(client.source)
        assert handoff.detach(client.source) == fd
        with pytest.raises(
            pyktls.HandoffRefused, match=r"the socket is closed|given to the kernel"
        ):
            pyktls.extract(client.source)
        with pytest.raises(pyktls.HandoffRefused, match="the socket is closed"):
            handoff.tcp_socket(client.source)
        gc.collect()
        # The descriptor is ours, nothing went over it, and the session goes on.
        with socket.socket(fileno=fd) as plain:
            plain.setblocking(True)
            plain.settimeout(tls.TIMEOUT)
            plain.sendall(Sealer(session.cipher, session.tx).seal(APPLICATION_DATA, b"goes on"))
            assert ends.server.recv(7) == b"goes on"


def test_what_is_nothing_to_offload() -> None:
    for function in (
        handoff.tcp_socket,
        handoff.extract_for_offload,
        handoff.take_plaintext,
        handoff.release,
    ):
        for thing in (None, "socket", 3):
            with pytest.raises(
                pyktls.InvalidType, match=f"an ssl.SSLSocket is needed, not {type(thing).__name__}"
            ):
                function(thing)  # type: ignore[operator]
