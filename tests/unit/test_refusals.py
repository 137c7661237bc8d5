"""Every refusal: its class, its text to the letter, and that nothing was harmed by asking."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import ssl
import warnings
from typing import TYPE_CHECKING, Any

import pytest

import pyktls
from pyktls import Direction, DirectionKeys, Role, Session, linux, switch
from pyktls.ciphers import AEAD, find_suite
from support import tls
from support.systems import linux_only
from support.tls import TLS_1_2, TLS_1_3, Pair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VERSIONS = [pytest.param(TLS_1_2, id="1.2"), pytest.param(TLS_1_3, id="1.3")]

NOT_WATCHED = (
    "nobody watched the handshake: call pyktls.watch(context) before the connection is made "
    "(a context that sni_callback switches to has to be watched as well)"
)
UNFINISHED = "the handshake, or a message after it, is not finished"
NO_SESSION = "the socket has no TLS session: it is not connected, or unwrapped"
NO_TLS = (
    "this kernel offers no TLS: the tls module is not there or not loaded; an administrator can "
    "load it with `modprobe tls`, and for every boot with a line `tls` in "
    "/etc/modules-load.d/tls.conf; a kernel built without CONFIG_TLS has to be replaced"
)


@contextlib.contextmanager
def raises(kind: type[Exception], text: str) -> Iterator[pytest.ExceptionInfo[Exception]]:
    with pytest.raises(kind, match=f"^{re.escape(text)}$") as caught:
        yield caught
    assert type(caught.value) is kind


#: Those that refuse for the connection's sake.
REFUSING = (pyktls.extract, pyktls.offload)


def refused_by_both(sock: ssl.SSLSocket, text: str) -> None:
    """extract and offload give the same reason."""
    for function in REFUSING:
        with raises(pyktls.HandoffRefused, text):
            function(sock)


# ---- extract and offload: the connection -------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_context_that_nobody_watched(version: ssl.TLSVersion) -> None:
    with tls.handshaken(version, watch=False) as pair:
        for sock in (pair.client, pair.server):
            refused_by_both(sock, NOT_WATCHED)
        pair.exchange()


@pytest.mark.parametrize("version", VERSIONS)
def test_handshake_not_begun_and_half_way(version: ssl.TLSVersion) -> None:
    with tls.wrap_pair(*tls.contexts(version)) as pair:
        for sock in (pair.client, pair.server):
            refused_by_both(sock, UNFINISHED)
        pair.client.setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):
            pair.client.do_handshake()
        pair.client.settimeout(tls.TIMEOUT)
        refused_by_both(pair.client, UNFINISHED)
        pair.server.setblocking(False)
        tls.wait_for_bytes(pair.server, 1)
        with pytest.raises(ssl.SSLWantReadError):
            pair.server.do_handshake()
        pair.server.settimeout(tls.TIMEOUT)
        refused_by_both(pair.server, UNFINISHED)

        tls.together(pair.client.do_handshake, pair.server.do_handshake, pair)
        pyktls.extract(pair.client)
        pyktls.extract(pair.server)
        pair.exchange()


@pytest.mark.parametrize("version", VERSIONS)
def test_after_close_notify(version: ssl.TLSVersion) -> None:
    with tls.handshaken(version) as pair:
        pair.exchange()
        pair.client.setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):
            pair.client.unwrap()
        refused_by_both(pair.client, "close_notify has already been sent")
        assert pair.server.recv(1) == b""
        refused_by_both(pair.server, "close_notify has already been received")
        # The half that is still open goes on working (RFC 8446 section 6.1).
        if version == TLS_1_3:
            pair.server.sendall(b"last words")
            pair.client.settimeout(tls.TIMEOUT)
            assert tls.recv_exactly(pair.client, 10) == b"last words"


def test_after_unwrap() -> None:
    with tls.handshaken() as pair:
        pair.exchange()
        tls.together(pair.client.unwrap, pair.server.unwrap, pair)
        for sock in (pair.client, pair.server):
            refused_by_both(sock, NO_SESSION)
        pair.client.sendall(b"plain")
        assert pair.server.recv(5) == b"plain"


@pytest.mark.parametrize(
    ("version", "cipher", "number"),
    [
        (TLS_1_2, "ECDHE-ECDSA-CAMELLIA128-SHA256", "0xc072"),
        (TLS_1_2, "ECDHE-ECDSA-AES256-CCM", "0xc0ad"),
        (TLS_1_2, "ECDHE-ECDSA-AES128-CCM8", "0xc0ae"),
        (TLS_1_3, "TLS_AES_128_CCM_8_SHA256", "0x1305"),
    ],
)
def test_suites_that_no_kernel_knows(version: ssl.TLSVersion, cipher: str, number: str) -> None:
    with tls.handshaken(version, cipher) as pair:
        for sock in (pair.client, pair.server):
            refused_by_both(sock, f"cipher suite {number} is not one that a kernel can carry on")
        pair.exchange()


@pytest.mark.parametrize("cipher", ["ECDHE-ECDSA-AES128-SHA", "ECDHE-RSA-AES256-SHA384"])
def test_encrypt_then_mac(cipher: str) -> None:
    """RFC 7366; OpenSSL agrees on it wherever both sides can, unless told not to."""
    with tls.handshaken(TLS_1_2, cipher) as pair:
        for sock in (pair.client, pair.server):
            with pytest.raises(
                pyktls.HandoffRefused, match=r"^the handshake agreed on encrypt-then-MAC for TLS_"
            ):
                pyktls.extract(sock)
        pair.exchange()


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("who", ["client", "server"])
def test_without_encrypt_then_mac(who: str, *, resumed: bool) -> None:
    contexts = tls.contexts(TLS_1_2, "ECDHE-RSA-AES256-SHA384")
    contexts[who == "server"].options |= 1 << 19  # SSL_OP_NO_ENCRYPT_THEN_MAC
    session = None
    if resumed:
        with tls.connect(*contexts) as pair:
            session = tls.resumable_session(pair)
    with tls.connect(*contexts, session) as pair:
        assert pair.client.session_reused is resumed
        one, other = pyktls.extract(pair.client), pyktls.extract(pair.server)
        assert one.tx == other.rx
        assert one.rx == other.tx
        assert len(one.tx.mac_key) == 48
        assert one.tx.mac_key != one.rx.mac_key
        pair.exchange()


def test_tls_1_1() -> None:
    client, server = tls.contexts(TLS_1_2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for context in (client, server):
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
            context.set_ciphers("ALL:@SECLEVEL=0")
    with tls.connect(client, server) as pair:
        for sock in (pair.client, pair.server):
            refused_by_both(sock, "protocol version 0x0302 is neither TLS 1.2 nor TLS 1.3")
        pair.exchange()


def test_plaintext_pending_is_refused_by_extract_only() -> None:
    # What offload does with it needs a kernel that takes the connection: tests/kernel.
    with tls.handshaken() as pair:
        pair.server.sendall(b"0123456789")
        assert pair.client.recv(4) == b"0123"
        with raises(
            pyktls.HandoffRefused,
            "OpenSSL still holds 6 bytes of received plaintext: read them first, or use "
            "pyktls.offload, which serves them",
        ):
            pyktls.extract(pair.client)
        assert tls.recv_exactly(pair.client, 6) == b"456789"
        pyktls.extract(pair.client)
        pair.exchange()


def test_closed_socket() -> None:
    with tls.handshaken() as pair:
        pair.client.close()
        refused_by_both(pair.client, "the socket is closed")


def test_detached_socket() -> None:
    with tls.handshaken() as pair:
        os.close(pair.client.detach())
        refused_by_both(pair.client, "the socket is closed")


def test_sockets_that_were_never_connected() -> None:
    client, server = tls.contexts()
    with client.wrap_socket(socket.socket(), server_hostname=tls.HOST) as unconnected:
        refused_by_both(unconnected, NO_SESSION)
    listener = socket.create_server(("127.0.0.1", 0))
    with server.wrap_socket(listener, server_side=True) as listening:
        refused_by_both(listening, NO_SESSION)


def test_open_file_objects_are_refused_by_offload_only() -> None:
    with tls.handshaken() as pair:
        file = pair.client.makefile("rb")
        with raises(
            pyktls.HandoffRefused,
            "file objects made by makefile() are open on the socket, and may hold data: close them",
        ):
            pyktls.offload(pair.client)
        pyktls.extract(pair.client)
        pair.server.sendall(b"a line\n")
        assert file.readline() == b"a line\n"
        file.close()
        pair.exchange()


def test_tls_on_a_unix_socket_is_refused_by_offload_only() -> None:
    client, server = tls.contexts()
    near, far = socket.socketpair()
    with Pair(
        client.wrap_socket(near, server_hostname=tls.HOST, do_handshake_on_connect=False),
        server.wrap_socket(far, server_side=True, do_handshake_on_connect=False),
    ) as pair:
        tls.together(pair.client.do_handshake, pair.server.do_handshake, pair)
        with raises(pyktls.HandoffRefused, "the socket is not a TCP socket"):
            pyktls.offload(pair.client)
        if tls.ENGINE == "native":
            assert pyktls.extract(pair.client).tx.sequence == 0
        else:
            with raises(
                pyktls.HandoffRefused,
                "the kernel does not count the bytes of this connection (it is no TCP connection, "
                "or was not established when TLS began), so nobody can tell whether OpenSSL holds "
                "a part of a record",
            ):
                pyktls.extract(pair.client)
        pair.exchange()


def test_what_is_no_ssl_socket() -> None:
    context, _ = tls.contexts()
    sslobject = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=tls.HOST)
    with socket.socket() as plain:
        for thing, name in (
            (plain, "socket"),
            (sslobject, "SSLObject"),
            (None, "NoneType"),
            ("socket", "str"),
            (3, "int"),
            (ssl.SSLSocket, "type"),
        ):
            text = f"an ssl.SSLSocket is needed, not {name}"
            for function in (pyktls.extract, pyktls.offload):
                with raises(pyktls.InvalidType, text):
                    function(thing)  # type: ignore[arg-type]
                with pytest.raises(TypeError):
                    function(thing)  # type: ignore[arg-type]


# ---- watch -----------------------------------------------------------------------------------


@tls.needs_native
def test_watch_of_a_context_with_a_message_callback() -> None:
    client, server = tls.contexts(watch=False)
    events: list[object] = []
    client._msg_callback = lambda *event: events.append(event)  # type: ignore[attr-defined]
    with raises(
        pyktls.HandoffRefused,
        "the context has a _msg_callback, whose place in OpenSSL pyktls needs; remove it, or "
        "watch with engine='portable', which goes on calling it",
    ):
        pyktls.watch(client, engine="native")
    with tls.connect(client, server) as pair:
        pair.exchange()
    assert events  # and it still works
    client._msg_callback = None  # type: ignore[attr-defined]
    pyktls.watch(client, engine="native")
    with tls.connect(client, server) as pair:
        assert pyktls.extract(pair.client).engine == "native"


@pytest.mark.parametrize(
    ("thing", "name"),
    [(None, "NoneType"), ("context", "str"), (ssl.SSLContext, "type"), (object(), "object")],
)
def test_watch_of_what_is_no_context(thing: Any, name: str) -> None:
    with raises(pyktls.InvalidType, f"an ssl.SSLContext is needed, not {name}"):
        pyktls.watch(thing)


# ---- install: arguments ------------------------------------------------------------------------

SUITE_13 = find_suite(0x1301)
SUITE_12 = find_suite(0xC02B)
assert SUITE_13 is not None
assert SUITE_12 is not None


def some_session() -> Session:
    return Session(
        SUITE_13,
        Role.CLIENT,
        DirectionKeys(b"k" * 16, b"i" * 12, 3, secret=b"s" * 32),
        DirectionKeys(b"K" * 16, b"I" * 12, 4, secret=b"S" * 32),
    )


@pytest.fixture
def tcp() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = tls.tcp_pair()
    with near, far:
        yield near, far


def still_plain(pair: tuple[socket.socket, socket.socket]) -> None:
    """Plain data goes both ways."""
    for sender, receiver in (pair, pair[::-1]):
        sender.sendall(b"plain")
        assert receiver.recv(100) == b"plain"


def not_connected() -> socket.socket:
    return socket.socket()


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def connected_udp() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(("127.0.0.1", 9))
    return sock


def unix() -> socket.socket:
    one, other = socket.socketpair()
    other.close()
    return one


def closed() -> socket.socket:
    sock = socket.socket()
    sock.close()
    return sock


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (not_connected, "the socket is not connected"),
        (listening, "the socket is a listening socket"),
        (connected_udp, "the socket is not a TCP socket"),
        (unix, "the socket is not a TCP socket"),
        (closed, "the socket is closed"),
    ],
)
def test_install_on_sockets_that_cannot(make: Callable[[], socket.socket], text: str) -> None:
    with make() as sock, raises(pyktls.HandoffRefused, text):
        pyktls.install(sock, some_session())


@pytest.mark.parametrize(("thing", "name"), [(None, "NoneType"), ("s", "str"), (4, "int")])
def test_install_on_what_is_no_socket(thing: Any, name: str) -> None:
    with raises(pyktls.InvalidType, f"sock must be a socket, not {name}"):
        pyktls.install(thing, some_session())


def test_install_on_an_ssl_socket() -> None:
    with tls.handshaken() as pair:
        session = pyktls.extract(pair.client)
        with raises(
            pyktls.InvalidType,
            "sock must not be an ssl.SSLSocket: use pyktls.offload for those",
        ):
            pyktls.install(pair.client, session)
        pair.exchange()


@pytest.mark.parametrize(("thing", "name"), [(None, "NoneType"), ({}, "dict"), (b"key", "bytes")])
def test_install_of_what_is_no_session(
    tcp: tuple[socket.socket, socket.socket], thing: Any, name: str
) -> None:
    with raises(pyktls.InvalidType, f"session must be a Session, not {name}"):
        pyktls.install(tcp[0], thing)
    still_plain(tcp)


def test_install_of_neither_direction(tcp: tuple[socket.socket, socket.socket]) -> None:
    text = "neither tx nor rx is wanted: there is nothing to install"
    with raises(pyktls.InvalidValue, text):
        pyktls.install(tcp[0], some_session(), tx=False, rx=False)
    still_plain(tcp)


@pytest.mark.parametrize(
    ("direction", "field", "wrong", "wanted"),
    [
        ("tx", "key", 15, 16),
        ("rx", "key", 32, 16),
        ("tx", "iv", 4, 12),
        ("rx", "iv", 0, 12),
        ("rx", "secret", 48, 32),
    ],
)
def test_install_of_keys_changed_to_another_length(
    tcp: tuple[socket.socket, socket.socket], direction: str, field: str, wrong: int, wanted: int
) -> None:
    session = some_session()
    setattr(getattr(session, direction), field, bytearray(wrong))
    text = f"{direction}.{field} must be {wanted} bytes for TLS_AES_128_GCM_SHA256, not {wrong}"
    with raises(pyktls.InvalidValue, text):
        pyktls.install(tcp[0], session)
    still_plain(tcp)


def test_install_of_a_wiped_session(tcp: tuple[socket.socket, socket.socket]) -> None:
    session = some_session()
    session.wipe()
    text = "rx.key must be 16 bytes for TLS_AES_128_GCM_SHA256, not 0"
    with raises(pyktls.InvalidValue, text):
        pyktls.install(tcp[0], session)
    still_plain(tcp)


@pytest.mark.parametrize("sends", [True, False])
def test_install_of_a_session_that_openssl_has_gone_on_from(
    tcp: tuple[socket.socket, socket.socket], sends: bool
) -> None:
    with tls.handshaken() as pair:
        session = pyktls.extract(pair.client if sends else pair.server)
        tls.send_and_receive(pair.client, pair.server, b"a record")
        with raises(
            pyktls.HandoffRefused,
            "records have passed through the TLS library since the session was extracted: "
            "extract it again",
        ):
            pyktls.install(tcp[0], session)
        pair.exchange()
    still_plain(tcp)


# ---- install: the kernel's answers -------------------------------------------------------------


class FakeSystem:
    """What pyktls.switch asks of a system, with answers to order; notes what was installed."""

    def __init__(self) -> None:
        self.on: list[Direction] = []
        self.refusal: OSError | None = None
        self.failures: dict[str, list[Exception]] = {"attach": [], "tx": [], "rx": []}
        self.installed: list[tuple[str, int, str, bytes, bytes, int]] = []

    def directions(self, fd: int) -> list[Direction]:
        assert fd >= 0
        return self.on

    def cipher_refusal(
        self, _version: int, _aead: AEAD, _wanted: list[Direction]
    ) -> OSError | None:
        return self.refusal

    def cipher_remedy(self, aead: AEAD, error: OSError) -> str:
        return linux.system.cipher_remedy(aead, error)

    def attach(self, fd: int) -> None:
        assert fd >= 0
        if self.failures["attach"]:
            raise self.failures["attach"].pop(0)

    def install(
        self,
        fd: int,
        direction: Direction,
        version: int,
        aead: AEAD,
        keys: DirectionKeys,
        nonce: bytearray,
    ) -> None:
        assert fd >= 0
        if self.failures[direction]:
            raise self.failures[direction].pop(0)
        self.installed.append(
            (str(direction), version, aead.name, bytes(keys.key), bytes(nonce), keys.sequence)
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeSystem:
    system = FakeSystem()
    monkeypatch.setattr(switch, "system", system)
    return system


RX_13 = ("rx", 0x0304, "AES_128_GCM", b"K" * 16, b"I" * 12, 4)
TX_13 = ("tx", 0x0304, "AES_128_GCM", b"k" * 16, b"i" * 12, 3)


def test_receiving_keys_go_first(
    tcp: tuple[socket.socket, socket.socket], fake: FakeSystem
) -> None:
    pyktls.install(tcp[0], some_session())
    assert fake.installed == [RX_13, TX_13]


@pytest.mark.parametrize(("tx", "expected"), [(True, [TX_13]), (False, [RX_13])])
def test_one_direction_alone(
    tcp: tuple[socket.socket, socket.socket], fake: FakeSystem, tx: bool, expected: list[Any]
) -> None:
    pyktls.install(tcp[0], some_session(), tx=tx, rx=not tx)
    assert fake.installed == expected


def test_explicit_nonces_of_tls_1_2_begin_at_random(
    tcp: tuple[socket.socket, socket.socket], fake: FakeSystem
) -> None:
    for _ in range(3):
        keys = (DirectionKeys(b"k" * 16, b"salt", 1), DirectionKeys(b"K" * 16, b"SALT", 1))
        pyktls.install(tcp[0], Session(SUITE_12, Role.CLIENT, *keys))
    nonces = [nonce for *_, nonce, _sequence in fake.installed]
    assert [nonce[:4] for nonce in nonces] == [b"SALT", b"salt"] * 3
    assert len({nonce[4:] for nonce in nonces}) == 6
    assert all(len(nonce) == 12 for nonce in nonces)


@pytest.mark.parametrize(("on", "text"), [("tx", "tx"), ("rx", "rx"), ("tx rx", "tx and rx")])
def test_kernel_tls_that_is_already_on(
    tcp: tuple[socket.socket, socket.socket], fake: FakeSystem, on: str, text: str
) -> None:
    fake.on = [Direction(name) for name in on.split()]
    session = some_session()
    with raises(pyktls.HandoffRefused, f"kernel TLS is already on for {text}"):
        pyktls.install(tcp[0], session)
    fake.on = []
    pyktls.install(tcp[0], session)  # the keys are not used up


def test_the_other_direction_may_be_on(
    tcp: tuple[socket.socket, socket.socket], fake: FakeSystem
) -> None:
    fake.on = [Direction.RX]
    pyktls.install(tcp[0], some_session(), rx=False)
    assert fake.installed == [TX_13]


def test_keys_are_installed_once(
    tcp: tuple[socket.socket, socket.socket], fake: FakeSystem
) -> None:
    session = some_session()
    pyktls.install(tcp[0], session)
    for direction, tx in (("rx", False), ("rx", True)):
        with raises(
            pyktls.HandoffRefused,
            f"these {direction} keys have been installed already: a second use would repeat nonces",
        ):
            pyktls.install(tcp[0], session, tx=tx)
    assert fake.installed == [RX_13, TX_13]


def test_a_refused_second_use_leaves_the_other_direction_free(
    tcp: tuple[socket.socket, socket.socket], fake: FakeSystem
) -> None:
    session = some_session()
    pyktls.install(tcp[0], session, rx=False)
    with raises(
        pyktls.HandoffRefused,
        "these tx keys have been installed already: a second use would repeat nonces",
    ):
        pyktls.install(tcp[0], session)
    pyktls.install(tcp[0], session, tx=False)
    assert fake.installed == [TX_13, RX_13]


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOENT, errno.ENOMEM])
def test_cipher_that_the_kernel_refuses_when_tried(
    tcp: tuple[socket.socket, socket.socket], fake: FakeSystem, error: int
) -> None:
    fake.refusal = OSError(error, os.strerror(error))
    session = some_session()
    with raises(
        pyktls.Unavailable,
        f"this kernel does not take AES_128_GCM with TLS 1.3 ([Errno {error}] "
        f"{os.strerror(error)}); Linux has AES_128_GCM since 4.13, if configured",
    ) as caught:
        pyktls.install(tcp[0], session)
    assert isinstance(caught.value, pyktls.Unavailable)
    assert caught.value.remedy == "Linux has AES_128_GCM since 4.13, if configured"
    fake.refusal = None
    pyktls.install(tcp[0], session)


def test_refusal_of_the_first_direction_leaves_the_keys_unused(
    tcp: tuple[socket.socket, socket.socket], fake: FakeSystem
) -> None:
    fake.failures["rx"].append(OSError(errno.ENOMEM, "setsockopt(SOL_TLS, TLS_RX): no memory"))
    session = some_session()
    with raises(OSError, f"[Errno {errno.ENOMEM}] setsockopt(SOL_TLS, TLS_RX): no memory"):
        pyktls.install(tcp[0], session)
    pyktls.install(tcp[0], session)
    assert fake.installed == [RX_13, TX_13]


def test_refusal_of_the_second_direction_is_the_end(
    tcp: tuple[socket.socket, socket.socket], fake: FakeSystem
) -> None:
    fake.failures["tx"].append(OSError(errno.EINVAL, "setsockopt(SOL_TLS, TLS_TX): Invalid"))
    session = some_session()
    with raises(
        pyktls.HandoffRefused,
        "the kernel took the rx keys and refused the others ([Errno 22] "
        "setsockopt(SOL_TLS, TLS_TX): Invalid): the connection is dead, close it",
    ):
        pyktls.install(tcp[0], session)
    for tx in (True, False):
        with raises(
            pyktls.HandoffRefused,
            f"these {'tx' if tx else 'rx'} keys have been installed already: a second use would "
            "repeat nonces",
        ):
            pyktls.install(tcp[0], session, tx=tx, rx=not tx)


def test_a_kernel_that_lied_has_seen_the_keys(
    tcp: tuple[socket.socket, socket.socket], fake: FakeSystem
) -> None:
    # It said yes and cannot be believed: the keys are not given a second time.
    fake.failures["rx"].append(pyktls.Unavailable("lied"))
    session = some_session()
    with raises(pyktls.Unavailable, "lied"):
        pyktls.install(tcp[0], session)
    with raises(
        pyktls.HandoffRefused,
        "these rx keys have been installed already: a second use would repeat nonces",
    ):
        pyktls.install(tcp[0], session)


# ---- install: attaching, with the real code and an answer to order -------------------------------


def answer_ulp(
    monkeypatch: pytest.MonkeyPatch, set_error: int | None, get: bytes | int = b""
) -> None:
    def set_ulp(_sock: object, _name: bytes = b"tls") -> None:
        if set_error is not None:
            raise OSError(set_error, f"setsockopt(TCP_ULP): {os.strerror(set_error)}")

    def get_ulp(_sock: object) -> bytes:
        if isinstance(get, int):
            raise OSError(get, f"getsockopt(TCP_ULP): {os.strerror(get)}")
        return get

    monkeypatch.setattr(linux.system, "set_ulp", set_ulp)
    monkeypatch.setattr(linux.system, "get_ulp", get_ulp)
    monkeypatch.setattr(linux.system, "cipher_refusal", lambda *_: None)


NO_ULP = "this kernel has no upper layer protocols for this kind of socket"


@pytest.mark.parametrize(
    ("set_error", "get", "kind", "text"),
    [
        (errno.ENOENT, b"", pyktls.Unavailable, NO_TLS),
        (errno.ENOPROTOOPT, b"", pyktls.Unavailable, NO_ULP),
        (errno.EOPNOTSUPP, b"", pyktls.Unavailable, NO_ULP),
        (
            errno.ENOTCONN,
            b"",
            pyktls.HandoffRefused,
            "the TCP connection is no longer established: one side has already closed it",
        ),
        (
            errno.EEXIST,
            b"espintcp",
            pyktls.HandoffRefused,
            "the socket already has the upper layer protocol 'espintcp'",
        ),
        (
            None,
            errno.ENOPROTOOPT,
            pyktls.Unavailable,
            "the kernel accepted TCP_ULP and then denied knowing it: it has no kernel TLS",
        ),
        (
            None,
            b"",
            pyktls.Unavailable,
            "the kernel accepted TCP_ULP and attached nothing: it has no kernel TLS",
        ),
        (
            errno.EPERM,
            b"",
            PermissionError,
            f"[Errno {errno.EPERM}] setsockopt(TCP_ULP): {os.strerror(errno.EPERM)}",
        ),
    ],
)
@linux_only
def test_attaching_fails(
    tcp: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    set_error: int | None,
    get: bytes | int,
    kind: type[Exception],
    text: str,
) -> None:
    session = some_session()
    answer_ulp(monkeypatch, set_error, get)
    for _ in range(2):  # the keys are not used up by it
        with raises(kind, text):
            pyktls.install(tcp[0], session)
    still_plain(tcp)


@linux_only
def test_offload_on_a_kernel_without_tls_leaves_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer_ulp(monkeypatch, errno.ENOENT)
    with tls.handshaken() as pair:
        for timeout in (None, 0.0, tls.TIMEOUT):
            pair.client.settimeout(timeout)
            with raises(pyktls.Unavailable, NO_TLS) as caught:
                pyktls.offload(pair.client)
            assert isinstance(caught.value, pyktls.Unavailable)
            assert caught.value.remedy == NO_TLS.partition("; ")[2]
            assert pair.client.gettimeout() == timeout
        pair.exchange()
        # Plaintext that OpenSSL holds is still there too.
        pair.server.sendall(b"0123456789")
        assert pair.client.recv(4) == b"0123"
        with raises(pyktls.Unavailable, NO_TLS):
            pyktls.offload(pair.client)
        assert tls.recv_exactly(pair.client, 6) == b"456789"
        pair.exchange()


# ---- DirectionKeys and Session -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("key", "k" * 16, "str"),
        ("key", None, "NoneType"),
        ("key", 16, "int"),
        ("iv", [0] * 12, "list"),
        ("iv", None, "NoneType"),
        ("secret", "s" * 32, "str"),
        ("secret", 0, "int"),
    ],
)
def test_direction_keys_of_a_wrong_type(field: str, value: object, name: str) -> None:
    arguments: dict[str, Any] = {"key": bytes(16), "iv": bytes(12), "sequence": 0, "secret": None}
    arguments[field] = value
    with raises(pyktls.InvalidType, f"{field} must be bytes-like, not {name}"):
        DirectionKeys(**arguments)


@pytest.mark.parametrize(
    ("value", "name"), [("0", "str"), (None, "NoneType"), (1.0, "float"), (True, "bool")]
)
def test_sequence_of_a_wrong_type(value: Any, name: str) -> None:
    with raises(pyktls.InvalidType, f"sequence must be an int, not {name}"):
        DirectionKeys(bytes(16), bytes(12), value)


@pytest.mark.parametrize("value", [-1, 2**64 - 1, 2**64])
def test_sequence_out_of_range(value: int) -> None:
    with raises(pyktls.InvalidValue, f"sequence must be from 0 to 2**64 - 2, not {value}"):
        DirectionKeys(bytes(16), bytes(12), value)


def test_sequence_at_its_ends() -> None:
    assert DirectionKeys(bytes(16), bytes(12), 0).sequence == 0
    assert DirectionKeys(bytes(16), bytes(12), 2**64 - 2).sequence == 2**64 - 2


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_direction_keys_copy_what_they_are_given(kind: Callable[[bytes], Any]) -> None:
    given = bytearray(b"k" * 16)
    keys = DirectionKeys(kind(given), kind(b"i" * 12), 0, secret=kind(b"s" * 32))
    given[:] = bytes(16)
    assert (keys.key, keys.iv, keys.secret) == (b"k" * 16, b"i" * 12, b"s" * 32)
    assert all(type(x) is bytearray for x in (keys.key, keys.iv, keys.secret))


@pytest.mark.parametrize(
    ("number", "key", "iv", "secret", "text"),
    [
        (0x1301, 32, 12, 32, "key must be 16 bytes for TLS_AES_128_GCM_SHA256, not 32"),
        (0x1302, 16, 12, 48, "key must be 32 bytes for TLS_AES_256_GCM_SHA384, not 16"),
        (0x1302, 32, 12, 32, "secret must be 48 bytes for TLS_AES_256_GCM_SHA384, not 32"),
        (0x1303, 32, 4, 32, "iv must be 12 bytes for TLS_CHACHA20_POLY1305_SHA256, not 4"),
        (
            0xC02B,
            16,
            12,
            None,
            "iv must be 4 bytes for TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, not 12",
        ),
        (
            0xCCA9,
            32,
            4,
            None,
            "iv must be 12 bytes for TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, not 4",
        ),
    ],
)
@pytest.mark.parametrize("direction", ["tx", "rx"])
def test_session_with_keys_of_another_suite(
    direction: str, number: int, key: int, iv: int, secret: int | None, text: str
) -> None:
    suite = find_suite(number)
    assert suite is not None
    right = DirectionKeys(
        bytes(suite.aead.key_length),
        bytes(12 if suite.version == 0x0304 else suite.aead.implicit_iv_length),
        0,
    )
    wrong = DirectionKeys(
        bytes(key), bytes(iv), 0, secret=None if secret is None else bytes(secret)
    )
    halves = (wrong, right) if direction == "tx" else (right, wrong)
    with raises(pyktls.InvalidValue, f"{direction}.{text}"):
        Session(suite, Role.CLIENT, *halves)
    Session(suite, Role.CLIENT, right, right)


def test_session_of_wrong_types() -> None:
    keys = DirectionKeys(bytes(16), bytes(12), 0)
    cipher: Any = "TLS_AES_128_GCM_SHA256"
    nothing: Any = None
    with raises(pyktls.InvalidType, "cipher must be a CipherSuite, not str"):
        Session(cipher, Role.CLIENT, keys, keys)
    with raises(pyktls.InvalidType, "tx must be DirectionKeys, not NoneType"):
        Session(SUITE_13, Role.CLIENT, nothing, keys)
    with raises(pyktls.InvalidType, "rx must be DirectionKeys, not NoneType"):
        Session(SUITE_13, Role.CLIENT, keys, nothing)
    with raises(pyktls.InvalidValue, "role must be 'client' or 'server', not 'peer'"):
        Session(SUITE_13, "peer", keys, keys)  # type: ignore[arg-type]


def test_errors_are_also_the_builtin_ones() -> None:
    assert issubclass(pyktls.InvalidValue, ValueError)
    assert issubclass(pyktls.InvalidType, TypeError)
    for kind in (
        pyktls.Unavailable,
        pyktls.HandoffRefused,
        pyktls.InvalidType,
        pyktls.InvalidValue,
        pyktls.TLSAlert,
        pyktls.TruncationError,
        pyktls.RecordError,
    ):
        assert issubclass(kind, pyktls.Error)
    for kind in (pyktls.TLSAlert, pyktls.TruncationError, pyktls.RecordError):
        assert issubclass(kind, ConnectionError)
