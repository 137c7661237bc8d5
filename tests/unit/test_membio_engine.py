"""The handshake driver: sockets of every kind, and that it never reads a byte too many.

That its keys and numbers are right is in test_engines.py.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from OpenSSL import SSL

import pyktls
from support import tls
from support.records import ALERT, APPLICATION_DATA, HANDSHAKE, Opener, Sealer, read_record
from support.samples import execute_sample
from support.systems import linux_only
from support.tls import TLS_1_2, TLS_1_3

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BOTH = pytest.mark.parametrize(
    "version", [pytest.param(TLS_1_2, id="1.2"), pytest.param(TLS_1_3, id="1.3")]
)
#: The context is one of another engine's too.
WATCHED = pytest.mark.parametrize(
    "engine",
    [
        pytest.param("native", marks=tls.needs_native),
        pytest.param("portable", marks=linux_only),
    ],
)
UNFINISHED = "the handshake, or a message after it, is not finished"


@contextlib.contextmanager
def raises(kind: type[Exception], text: str) -> Iterator[None]:
    with pytest.raises(kind, match=f"^{re.escape(text)}$") as caught:
        yield
    assert type(caught.value) is kind


@pytest.fixture
def tcp() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = tls.tcp_pair()
    with near, far:
        yield near, far


def pair_of(
    version: ssl.TLSVersion, socks: tuple[socket.socket, socket.socket], **knobs: Any
) -> tuple[pyktls.MemoryBIOHandshake, pyktls.MemoryBIOHandshake]:
    client, server = tls.contexts(version, watch=False, **knobs)
    return (
        pyktls.MemoryBIOHandshake(socks[0], client, server_hostname=tls.HOST),
        pyktls.MemoryBIOHandshake(socks[1], server, server_side=True),
    )


def in_thread(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


def agree(client: pyktls.MemoryBIOHandshake, server: pyktls.MemoryBIOHandshake) -> None:
    one, other = client.session(), pyktls.extract(server)
    assert one.engine == other.engine == "membio"
    assert (one.tx.key, one.rx.key) == (other.rx.key, other.tx.key)
    sealer, opener = Sealer(one.cipher, one.tx), Opener(other.cipher, other.rx)
    client.sock.settimeout(tls.TIMEOUT)
    server.sock.settimeout(tls.TIMEOUT)
    client.sock.sendall(sealer.seal(APPLICATION_DATA, b"in step"))
    assert opener.open(read_record(exactly(server.sock))) == (APPLICATION_DATA, b"in step")


def exactly(sock: socket.socket) -> Callable[[int], bytes]:
    def recv(size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = sock.recv(size - len(data))
            assert piece
            data += piece
        return data

    return recv


class Narrow(socket.socket):
    """A socket through which only a few bytes pass at a time."""

    at_once = 1

    def recv(self, size: int, flags: int = 0) -> bytes:
        return super().recv(min(size, self.at_once), flags)

    def send(self, data: Any, flags: int = 0) -> int:
        return super().send(data[: self.at_once], flags)


class Stopping(socket.socket):
    """A non-blocking socket that is not ready every other time."""

    calls = 0

    def _stop(self) -> None:
        self.calls += 1
        if self.calls % 2:
            raise BlockingIOError

    def recv(self, size: int, flags: int = 0) -> bytes:
        self._stop()
        return super().recv(size, flags)

    def send(self, data: Any, flags: int = 0) -> int:
        self._stop()
        return super().send(data[:100], flags)


def as_kind(kind: type[socket.socket], sock: socket.socket) -> socket.socket:
    made = kind(fileno=sock.detach())
    made.settimeout(tls.TIMEOUT)
    return made


# ---- sockets of every kind -------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("timeout", [None, 20.0])
def test_blocking(
    version: ssl.TLSVersion, timeout: float | None, tcp: tuple[socket.socket, socket.socket]
) -> None:
    for sock in tcp:
        sock.settimeout(timeout)
    client, server = pair_of(version, tcp)
    thread = in_thread(server.do_handshake)
    client.do_handshake()
    thread.join()
    assert client.complete
    client.do_handshake()  # nothing is left to do
    agree(client, server)


@BOTH
def test_non_blocking(version: ssl.TLSVersion, tcp: tuple[socket.socket, socket.socket]) -> None:
    for sock in tcp:
        sock.setblocking(False)
    client, server = pair_of(version, tcp)
    wanted = 0
    with pytest.raises(ssl.SSLWantReadError) as caught:
        client.do_handshake()
    assert caught.value.errno == ssl.SSL_ERROR_WANT_READ
    while not (client.complete and server.complete):
        for end in (client, server):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                wanted += 1
                with raises(pyktls.HandoffRefused, UNFINISHED):
                    end.session()
    assert wanted
    agree(client, server)


@BOTH
def test_socket_that_is_never_ready_twice(
    version: ssl.TLSVersion, tcp: tuple[socket.socket, socket.socket]
) -> None:
    near, far = (as_kind(Stopping, sock) for sock in tcp)
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        client, server = pair_of(version, (near, far))
        kinds = set()
        while not (client.complete and server.complete):
            for end in (client, server):
                try:
                    end.do_handshake()
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as e:
                    kinds.add((type(e), e.errno))
        assert kinds == {
            (ssl.SSLWantReadError, ssl.SSL_ERROR_WANT_READ),
            (ssl.SSLWantWriteError, ssl.SSL_ERROR_WANT_WRITE),
        }
        for sock in (near, far):
            sock._stop = lambda: None  # type: ignore[method-assign]
        agree(client, server)


@BOTH
@pytest.mark.parametrize("at_once", [1, 7])
def test_socket_that_gives_and_takes_single_bytes(
    version: ssl.TLSVersion, at_once: int, tcp: tuple[socket.socket, socket.socket]
) -> None:
    near, far = (as_kind(Narrow, sock) for sock in tcp)
    with near, far:
        near.at_once = far.at_once = at_once  # type: ignore[attr-defined]
        client, server = pair_of(version, (near, far), client_certificate=True)
        thread = in_thread(server.do_handshake)
        client.do_handshake()
        thread.join()
        near.at_once = far.at_once = 1 << 20  # type: ignore[attr-defined]
        agree(client, server)


@BOTH
def test_a_timeout_is_for_the_whole_and_can_be_repeated(
    version: ssl.TLSVersion, tcp: tuple[socket.socket, socket.socket]
) -> None:
    near, far = tcp
    client, server = pair_of(version, tcp)
    near.settimeout(0.3)
    # Bytes of a record come all the time, and the record does not.
    stop = threading.Event()

    def trickle() -> None:
        for byte in b"\x16\x03\x03\x40\x00":
            far.sendall(bytes((byte,)))
            if stop.wait(0.1):
                return

    thread = in_thread(trickle)
    begin = time.monotonic()
    with raises(TimeoutError, "the handshake operation timed out"):
        client.do_handshake()
    passed = time.monotonic() - begin
    stop.set()
    thread.join()
    assert 0.25 < passed < 5
    del client, server


@BOTH
def test_going_on_after_a_timeout(
    version: ssl.TLSVersion, tcp: tuple[socket.socket, socket.socket]
) -> None:
    client, server = pair_of(version, tcp)
    for end in (client, server) * 20:
        end.sock.settimeout(0.02)
        with contextlib.suppress(TimeoutError):
            end.do_handshake()
    assert client.complete
    assert server.complete
    agree(client, server)


# ---- not a byte too many ---------------------------------------------------------------------


@BOTH
@WATCHED
def test_what_the_server_sends_behind_its_handshake_stays_in_the_socket(
    version: ssl.TLSVersion, engine: str
) -> None:
    client_context, server_context = tls.contexts(version, engine=engine)
    near, far = tls.tcp_pair()
    server = server_context.wrap_socket(far, server_side=True, do_handshake_on_connect=False)
    with near, server:
        client = pyktls.MemoryBIOHandshake(near, client_context, server_hostname=tls.HOST)
        near.setblocking(False)
        server.setblocking(False)
        while server.version() is None:
            for step in (client.do_handshake, server.do_handshake):
                with contextlib.suppress(ssl.SSLWantReadError):
                    step()
        server.settimeout(tls.TIMEOUT)
        server.sendall(b"greeting")
        near.settimeout(tls.TIMEOUT)
        client.do_handshake()
        session = client.session()
        opener = Opener(session.cipher, session.rx)
        kinds = [opener.open(read_record(exactly(near))) for _ in range(version == TLS_1_3 and 2)]
        assert [kind for kind, _ in kinds] == [HANDSHAKE] * len(kinds)
        assert opener.open(read_record(exactly(near))) == (APPLICATION_DATA, b"greeting")
        assert pyktls.extract(server).tx.sequence == opener.sequence
        near.setblocking(False)
        with pytest.raises(BlockingIOError):
            near.recv(1)


@BOTH
@WATCHED
def test_what_the_client_sends_with_its_last_flight_stays_in_the_socket(
    version: ssl.TLSVersion, engine: str
) -> None:
    client_context, server_context = tls.contexts(version, engine=engine)
    near, far = tls.tcp_pair()
    client = client_context.wrap_socket(
        near, server_hostname=tls.HOST, do_handshake_on_connect=False
    )
    with client, far:
        server = pyktls.MemoryBIOHandshake(far, server_context, server_side=True)
        far.setblocking(False)
        client.setblocking(False)
        data = b"GET /" * 3000
        while client.version() is None:
            for step in (client.do_handshake, server.do_handshake):
                # In TLS 1.3 the client is done before the server.
                with contextlib.suppress(ssl.SSLWantReadError):
                    step()
                if client.version() is not None:
                    break
        client.settimeout(tls.TIMEOUT)
        client.sendall(data)
        far.settimeout(tls.TIMEOUT)
        server.do_handshake()
        session = server.session()
        opener = Opener(session.cipher, session.rx)
        assert opener.sequence == (1 if version == TLS_1_2 else 0)
        assert opener.open(read_record(exactly(far))) == (APPLICATION_DATA, data)


# ---- failures --------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("after", [0, 3, 5, 20])
def test_a_peer_that_goes_away(
    version: ssl.TLSVersion, after: int, tcp: tuple[socket.socket, socket.socket]
) -> None:
    client, _ = pair_of(version, tcp)
    tcp[1].sendall(
        b"\x16\x03\x03\x01\x00" + b"x" * 15 if after == 20 else b"\x16\x03\x03\0\x40"[:after]
    )
    tcp[1].shutdown(socket.SHUT_WR)
    for _ in range(2):
        with pytest.raises(ssl.SSLError) as caught:
            client.do_handshake()
        # Early releases of 3.11 call it the latter.
        assert caught.value.errno in {ssl.SSL_ERROR_EOF, ssl.SSL_ERROR_ZERO_RETURN}
    assert not client.complete
    with raises(pyktls.HandoffRefused, UNFINISHED):
        client.session()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"\x16\x03\x03\xff\xff" + b"x" * 100,
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"\x17\x03\x03\x00\x20" + b"x" * 32,
        b"\x16\x03\x03\x00\x00" * 40,
        bytes(100),
    ],
    ids=["http", "too long", "alert", "data", "empty records", "zeros"],
)
@pytest.mark.parametrize("side", ["client", "server"])
def test_what_is_no_tls(data: bytes, side: str, tcp: tuple[socket.socket, socket.socket]) -> None:
    ends = pair_of(TLS_1_3, tcp)
    end = ends[side == "server"]
    peer = tcp[side == "client"]
    peer.sendall(data)
    with pytest.raises(ssl.SSLError):
        end.do_handshake()
    with raises(pyktls.HandoffRefused, UNFINISHED):
        end.session()


@BOTH
def test_a_certificate_that_is_refused(
    version: ssl.TLSVersion, tcp: tuple[socket.socket, socket.socket]
) -> None:
    _, server = pair_of(version, tcp)
    suspicious = ssl.create_default_context()
    suspicious.maximum_version = version
    client = pyktls.MemoryBIOHandshake(tcp[0], suspicious, server_hostname=tls.HOST)
    failures: list[Exception] = []

    def serve() -> None:
        try:
            server.do_handshake()
        except ssl.SSLError as e:
            failures.append(e)

    thread = in_thread(serve)
    with pytest.raises(ssl.SSLCertVerificationError):
        client.do_handshake()
    thread.join()
    assert "alert" in str(failures[0]).lower()  # the client's alert arrived


@BOTH
def test_a_wrong_host_name(
    version: ssl.TLSVersion, tcp: tuple[socket.socket, socket.socket]
) -> None:
    context, _ = tls.contexts(version, watch=False)
    _, server = pair_of(version, tcp)
    client = pyktls.MemoryBIOHandshake(tcp[0], context, server_hostname="elsewhere.example")

    def serve() -> None:
        with contextlib.suppress(ssl.SSLError):
            server.do_handshake()

    thread = in_thread(serve)
    with pytest.raises(ssl.SSLCertVerificationError):
        client.do_handshake()
    thread.join()


# ---- refusals --------------------------------------------------------------------------------


def handshaken(
    version: ssl.TLSVersion, tcp: tuple[socket.socket, socket.socket], **knobs: Any
) -> tuple[pyktls.MemoryBIOHandshake, pyktls.MemoryBIOHandshake]:
    ends = pair_of(version, tcp, **knobs)
    thread = in_thread(ends[1].do_handshake)
    ends[0].do_handshake()
    thread.join()
    return ends


@pytest.mark.parametrize(
    ("version", "cipher", "number"),
    [
        (TLS_1_2, "ECDHE-ECDSA-AES128-CCM8", "0xc0ae"),
        (TLS_1_3, "TLS_AES_128_CCM_8_SHA256", "0x1305"),
    ],
)
def test_suites_that_no_kernel_knows(
    version: ssl.TLSVersion, cipher: str, number: str, tcp: tuple[socket.socket, socket.socket]
) -> None:
    for end in handshaken(version, tcp, cipher=cipher):
        with raises(
            pyktls.HandoffRefused, f"cipher suite {number} is not one that a kernel can carry on"
        ):
            pyktls.extract(end)


def test_encrypt_then_mac(tcp: tuple[socket.socket, socket.socket]) -> None:
    for end in handshaken(TLS_1_2, tcp, cipher="ECDHE-ECDSA-AES128-SHA"):
        with pytest.raises(
            pyktls.HandoffRefused, match=r"^the handshake agreed on encrypt-then-MAC for TLS_"
        ):
            end.session()


def test_tls_1_1(tcp: tuple[socket.socket, socket.socket]) -> None:
    contexts = tls.contexts(TLS_1_2, watch=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for context in contexts:
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
            context.set_ciphers("ALL:@SECLEVEL=0")
    server = pyktls.MemoryBIOHandshake(tcp[1], contexts[1], server_side=True)
    client = pyktls.MemoryBIOHandshake(tcp[0], contexts[0], server_hostname=tls.HOST)
    thread = in_thread(server.do_handshake)
    client.do_handshake()
    thread.join()
    for end in (client, server):
        with raises(
            pyktls.HandoffRefused, "protocol version 0x0302 is neither TLS 1.2 nor TLS 1.3"
        ):
            end.session()


@BOTH
def test_a_limit_on_records(version: ssl.TLSVersion) -> None:
    openssl = shutil.which("openssl")
    assert openssl is not None, "this test needs the openssl program"
    _, context = tls.contexts(version, watch=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(tls.TIMEOUT)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        client = subprocess.Popen(
            [openssl, "s_client", "-connect", address, "-quiet", "-maxfraglen", "1024"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            tcp, _ = listener.accept()
            with tcp:
                tcp.settimeout(tls.TIMEOUT)
                server = pyktls.MemoryBIOHandshake(tcp, context, server_side=True)
                server.do_handshake()
                with raises(
                    pyktls.HandoffRefused,
                    "the handshake limited records to 1024 bytes (max_fragment_length), which the "
                    "kernel would not keep to",
                ):
                    server.session()
        finally:
            client.kill()
            client.communicate()


def test_early_data_that_was_offered(tcp: tuple[socket.socket, socket.socket]) -> None:
    client, server = handshaken(TLS_1_3, tcp)
    server._hellos.offered_early_data = True
    with raises(pyktls.HandoffRefused, "the connection began with early data"):
        server.session()
    client.session()


def test_one_context_for_both_ends(tcp: tuple[socket.socket, socket.socket]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS)
    tls.authority().configure_trust(context)
    tls.certificate().configure_cert(context)
    client = pyktls.MemoryBIOHandshake(tcp[0], context)
    server = pyktls.MemoryBIOHandshake(tcp[1], context, server_side=True)
    thread = in_thread(server.do_handshake)
    client.do_handshake()
    thread.join()
    for end in (client, server):
        with pytest.raises(pyktls.HandoffRefused, match=r"^both ends of this connection use"):
            end.session()


def test_after_leaving_there_is_no_session(tcp: tuple[socket.socket, socket.socket]) -> None:
    client, server = handshaken(TLS_1_3, tcp)
    session = client.session()
    client.leave()
    with raises(pyktls.HandoffRefused, "the connection has been given to the kernel already"):
        pyktls.extract(client)
    assert not client._library.secrets.lines
    assert session.tx.key == server.session().rx.key
    assert tcp[0].fileno() >= 0


def test_a_session_notices_that_the_tls_object_was_used(
    tcp: tuple[socket.socket, socket.socket],
) -> None:
    client, _ = handshaken(TLS_1_3, tcp)
    session = pyktls.extract(client)
    assert not session.has_moved()
    client.tls.write(b"past the driver")
    assert session.has_moved()


# ---- arguments -------------------------------------------------------------------------------


def test_wrong_arguments(tcp: tuple[socket.socket, socket.socket]) -> None:
    near, far = tcp
    context, _ = tls.contexts(watch=False)
    make: Any = pyktls.MemoryBIOHandshake
    for thing, name in ((None, "NoneType"), (3, "int"), (ssl.SSLContext, "type")):
        with raises(pyktls.InvalidType, f"sock must be a socket, not {name}"):
            make(thing, context)
        with raises(
            pyktls.InvalidType,
            f"context must be an ssl.SSLContext or an OpenSSL.SSL.Context, not {name}",
        ):
            make(near, thing)
    with raises(pyktls.InvalidType, "server_hostname must be a str, not bytes"):
        make(near, context, server_hostname=b"localhost")
    with pytest.raises(pyktls.InvalidValue, match=r"^server_hostname: .*too long"):
        make(near, context, server_hostname="x" * 70)
    with raises(pyktls.InvalidValue, "server_hostname: embedded null character"):
        make(near, context, server_hostname="x\0y")
    with raises(pyktls.InvalidType, "session must be an ssl.SSLSession, not str"):
        make(near, context, server_hostname="a", session="b")
    with raises(
        pyktls.InvalidValue,
        "check_hostname requires server_hostname",
    ):
        make(near, context)
    with pytest.raises(pyktls.InvalidValue, match=r"^the context cannot make such a connection: "):
        make(near, context, server_side=True)
    with (
        socket.socket(type=socket.SOCK_DGRAM) as udp,
        raises(pyktls.InvalidValue, "the socket is not a stream socket"),
    ):
        make(udp, context, server_hostname="a")
    handshake = make(near, context, server_hostname="a")
    near.close()
    with raises(pyktls.InvalidValue, "the socket is closed"):
        make(near, context, server_hostname="a")
    with raises(pyktls.HandoffRefused, "the socket is closed"):
        handshake.do_handshake()
    wrapped = context.wrap_socket(far, server_hostname="a", do_handshake_on_connect=False)
    with wrapped, raises(pyktls.InvalidType, "sock must be a plain socket, not an ssl.SSLSocket"):
        make(wrapped, context, server_hostname="a")


@BOTH
def test_what_it_tells(version: ssl.TLSVersion, tcp: tuple[socket.socket, socket.socket]) -> None:
    contexts = tls.contexts(version, watch=False, client_certificate=True)
    for context in contexts:
        context.set_alpn_protocols(["h2"])
    client = pyktls.MemoryBIOHandshake(tcp[0], contexts[0], server_hostname=tls.HOST)
    server = pyktls.MemoryBIOHandshake(tcp[1], contexts[1], server_side=True)
    assert (client.version(), client.selected_alpn_protocol()) == (None, None)
    assert repr(client) == "<MemoryBIOHandshake client incomplete>"
    with raises(pyktls.InvalidValue, "handshake not done yet"):
        client.getpeercert()
    thread = in_thread(server.do_handshake)
    client.do_handshake()
    thread.join()
    name = "TLSv1.2" if version == TLS_1_2 else "TLSv1.3"
    for end, side in ((client, "client"), (server, "server")):
        assert end.version() == name == end.tls.version()
        assert end.selected_alpn_protocol() == "h2"
        certificate = end.getpeercert()
        assert ("DNS", tls.HOST) in certificate["subjectAltName"]
        assert ssl.DER_cert_to_PEM_cert(end.getpeercert(binary_form=True)).startswith("-----BEGIN")
        assert repr(end) == f"<MemoryBIOHandshake {side} complete {name}>"
        assert pyktls.engine_of(end) == "membio"
        for key in (end.session().tx.key, end.session().tx.secret or b"none"):
            assert key.hex() not in repr(vars(end))


def test_the_readmes_example(
    tcp: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts = tls.contexts(watch=False)
    server = pyktls.MemoryBIOHandshake(tcp[1], contexts[1], server_side=True)
    thread = in_thread(server.do_handshake)
    switched: list[pyktls.MemoryBIOHandshake] = []
    monkeypatch.setattr(pyktls, "offload", switched.append)
    names = {"pyktls": pyktls, "sock": tcp[0], "context": contexts[0]}
    execute_sample("README.md", "memory-bio", names, {"example.org": tls.HOST})
    thread.join()
    (handshake,) = switched
    assert handshake.sock is tcp[0]
    assert handshake.session().tx.key == server.session().rx.key


# ---- pyOpenSSL -------------------------------------------------------------------------------


def openssl_contexts() -> tuple[SSL.Context, SSL.Context]:
    client, server = SSL.Context(SSL.TLS_CLIENT_METHOD), SSL.Context(SSL.TLS_SERVER_METHOD)
    with tls.authority().cert_pem.tempfile() as path:
        client.load_verify_locations(path)
    with tls.certificate().private_key_and_cert_chain_pem.tempfile() as path:
        server.use_certificate_chain_file(path)
        server.use_privatekey_file(path)
    client.set_verify(SSL.VERIFY_PEER, lambda *arguments: bool(arguments[-1]))
    return client, server


def test_pyopenssl_tells_the_same(tcp: tuple[socket.socket, socket.socket]) -> None:
    contexts = openssl_contexts()
    contexts[0].set_alpn_protos([b"h2"])
    contexts[1].set_alpn_select_callback(lambda _connection, offered: offered[0])
    for context in contexts:
        assert pyktls.engine_of(context) is None
        for _ in range(2):
            pyktls.watch(context)
        assert pyktls.engine_of(context) == "membio"
    client = pyktls.MemoryBIOHandshake(tcp[0], contexts[0], server_hostname=tls.HOST)
    server = pyktls.MemoryBIOHandshake(tcp[1], contexts[1], server_side=True)
    thread = in_thread(server.do_handshake)
    client.do_handshake()
    thread.join()
    assert client.version() == server.version() == "TLSv1.3"
    assert client.selected_alpn_protocol() == server.selected_alpn_protocol() == "h2"
    der = client.getpeercert(binary_form=True)
    assert ssl.DER_cert_to_PEM_cert(der).startswith("-----BEGIN")
    assert client.getpeercert() == {}
    assert server.getpeercert() is None
    assert server.getpeercert(binary_form=True) is None
    assert server.tls.get_servername() == tls.HOST.encode()
    agree(client, server)


def test_pyopenssl_failures(tcp: tuple[socket.socket, socket.socket]) -> None:
    client, server = openssl_contexts()
    tcp[1].sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
    end = pyktls.MemoryBIOHandshake(tcp[0], client, server_hostname=tls.HOST)
    for _ in range(2):
        with pytest.raises(SSL.Error):
            end.do_handshake()
    other = pyktls.MemoryBIOHandshake(tcp[1], server, server_side=True)
    tcp[0].shutdown(socket.SHUT_WR)
    with pytest.raises(SSL.Error):
        other.do_handshake()


def test_pyopenssl_contexts_that_cannot_be_watched(
    tcp: tuple[socket.socket, socket.socket],
) -> None:
    context, _ = openssl_contexts()
    context.set_keylog_callback(lambda *_: None)
    with raises(
        pyktls.HandoffRefused,
        "the context has a keylog callback, whose place in OpenSSL pyktls needs: make the context "
        "without set_keylog_callback",
    ):
        pyktls.watch(context)
    context, _ = openssl_contexts()
    SSL.Connection(context, None)
    with warnings.catch_warnings():
        # pyOpenSSL may warn of it and go on: then the callback is in place, and that is enough.
        warnings.simplefilter("error", DeprecationWarning)
        with raises(
            pyktls.HandoffRefused,
            "the context has made a connection already: call pyktls.watch before",
        ):
            pyktls.MemoryBIOHandshake(tcp[0], context, server_hostname=tls.HOST)
    for engine in ("native", "portable"):
        with raises(
            pyktls.InvalidValue, f"the {engine} engine does not know pyOpenSSL: 'membio' does"
        ):
            pyktls.watch(openssl_contexts()[0], engine=engine)
    some, _ = tls.contexts(watch=False)
    with tls.handshaken() as pair:
        session = tls.resumable_session(pair)
    with raises(pyktls.InvalidValue, "session is for an ssl.SSLContext"):
        pyktls.MemoryBIOHandshake(tcp[0], openssl_contexts()[0], session=session)
    del some


def test_pyopenssl_is_not_imported() -> None:
    code = """
import sys, ssl, socket
import pyktls
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
pyktls.watch(context)
try:
    pyktls.watch(object())
except pyktls.InvalidType as e:
    print(e)
print("OpenSSL" in sys.modules, "cryptography" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "an ssl.SSLContext is needed, not object\nFalse False\n", done.stderr


def test_alert_is_sent_when_the_library_fails(tcp: tuple[socket.socket, socket.socket]) -> None:
    _, server = pair_of(TLS_1_3, tcp)
    hello = b"\x01\x00\x00\x02\x03\x03"  # cut short
    tcp[0].sendall(b"\x16\x03\x01\x00\x06" + hello)
    with pytest.raises(ssl.SSLError):
        server.do_handshake()
    tcp[1].close()
    record = read_record(exactly(tcp[0]))
    assert record[0] == ALERT
    assert record[5] == 2
