"""pyktls.wrap_context where the kernel does not take the connection: it stays ssl's, and whole."""

from __future__ import annotations

import _ssl
import asyncio
import contextlib
import copy
import gc
import pickle
import socket
import ssl
import tempfile

import pytest

import pyktls
from pyktls import (
    HandoffRefused,
    InvalidType,
    InvalidValue,
    Unavailable,
    ssl_errors,
    ssl_sockets,
    takeover,
)
from pyktls.engines.answers import QUESTIONS
from pyktls.lowlevel import lib
from support import kernel, programs, tls
from support.own_kernel import has_kernel_tls
from support.programs import PROGRAMS

# Where the kernel has TLS (Linux's, FreeBSD's, or the fake of that) it is made to refuse.
REFUSING = lib.pyktls_system() == lib.PYKTLS_FREEBSD or has_kernel_tls()


@pytest.fixture(autouse=True)
def _no_kernel_tls(monkeypatch):
    def refuses(*_, **__):
        raise Unavailable("this kernel offers no TLS")

    if REFUSING:
        monkeypatch.setattr(takeover, "install_fd", refuses)


over_versions = pytest.mark.parametrize(
    "version", [tls.TLS_1_2, tls.TLS_1_3], ids=["TLS1.2", "TLS1.3"]
)


@over_versions
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_go_on_in_user_space(name, version, monkeypatch):
    seen = programs.Watcher(monkeypatch)
    PROGRAMS[name](pyktls.wrap_context, version)
    assert seen.made
    for status in (*seen.made, *seen.closed):
        assert isinstance(status.refusal, HandoffRefused | Unavailable)
        assert not status.tx
        assert not status.rx
    assert len(seen.closed) == len(seen.made)


# ---- wrap_context ------------------------------------------------------------------------------


def test_it_returns_the_context():
    context = tls.client_context()
    assert pyktls.wrap_context(context) is context
    assert context.sslsocket_class is pyktls.SSLSocket


@pytest.mark.parametrize("wrong", [None, 3, "context", ssl, ssl.SSLContext])
def test_what_is_no_context(wrong):
    with pytest.raises(InvalidType, match=r"an ssl\.SSLContext is needed"):
        pyktls.wrap_context(wrong)


def test_twice_and_with_the_other_choice():
    context = pyktls.wrap_context(pyktls.wrap_context(tls.client_context()), require=True)
    assert issubclass(context.sslsocket_class, pyktls.SSLSocket)
    assert context.sslsocket_class.require
    pyktls.wrap_context(context)
    assert not context.sslsocket_class.require


def test_a_class_of_its_own():
    class Own(ssl.SSLSocket):
        pass

    context = tls.client_context()
    context.sslsocket_class = Own
    with pytest.raises(InvalidValue, match="a sslsocket_class of its own, Own: derive that from"):
        pyktls.wrap_context(context)
    assert context.sslsocket_class is Own


def test_a_class_derived_from_ours():
    class Own(pyktls.SSLSocket):
        pass

    client, server = tls.contexts()
    client.sslsocket_class = Own
    with tls.connect(client, server) as pair:
        assert type(pair.client) is Own
        assert refused(pair.client)
        pair.exchange()


def test_a_default_context():
    context = pyktls.wrap_context(ssl.create_default_context(cafile=None))
    tls.authority().configure_trust(context)
    with tls.connect(context, tls.server_context()) as pair:
        assert isinstance(pair.client, pyktls.SSLSocket)
        pair.exchange()


def test_a_context_that_cannot_be_watched():
    context = tls.client_context()
    context._msg_callback = lambda *_: None
    with pytest.raises(HandoffRefused, match="_msg_callback"):
        pyktls.wrap_context(context, require=True)
    assert context.sslsocket_class is ssl.SSLSocket
    pyktls.wrap_context(context)
    with tls.connect(context, tls.server_context()) as pair:
        assert "nobody watched the handshake" in str(pair.client.ktls.refusal)
        pair.exchange()


def test_what_the_class_is_not_made_by():
    with pytest.raises(TypeError, match="does not have a public constructor"):
        pyktls.SSLSocket(socket.AF_INET, socket.SOCK_STREAM)


# ---- a connection that is refused --------------------------------------------------------------


def wrapped(version=tls.TLS_1_3, *, require=False, **knobs):
    client, server = tls.contexts(version, watch=False, **knobs)
    return pyktls.wrap_context(client, require), server


def refused(sock):
    """Why; the kernel was asked as well."""
    status = sock.ktls
    assert not status.tx
    assert not status.rx
    assert isinstance(status.refusal, HandoffRefused | Unavailable)
    return str(status.refusal)


@over_versions
@pytest.mark.parametrize("server_side", [False, True], ids=["client", "server"])
def test_required(version, server_side):
    """The handshake raises, and the socket is closed.  It is an OSError too, for accept loops."""
    client, server = tls.contexts(version, watch=False)
    pyktls.wrap_context(server if server_side else client, require=True)
    pair = tls.wrap_pair(client, server)
    ours, other = pair.ends()[1 if server_side else 0]
    with pair, kernel.Background(other.do_handshake):
        with pytest.raises(ssl.SSLError) as caught:
            ours.do_handshake()
        assert isinstance(caught.value, HandoffRefused | Unavailable)
        assert caught.value.errno == ssl.SSL_ERROR_SSL
        assert caught.value.strerror == str(caught.value) == str(caught.value.__cause__)
        assert ours.fileno() == -1


def test_required_of_a_handshake_on_the_way():
    pair = tls.wrap_pair(*wrapped(require=True))
    with pair, kernel.Background(pair.server.do_handshake) as server:
        with pytest.raises(ssl.SSLError) as caught:
            pair.client.send(b"never sent")
        assert isinstance(caught.value, HandoffRefused | Unavailable)
        server.result()
        # As the tickets are unread: a reset, which Linux calls a broken pipe if a FIN came before.
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            assert pair.server.recv(100) == b""


def test_required_while_a_file_object_is_open():
    pair = tls.wrap_pair(*wrapped(require=True))
    with pair, kernel.Background(pair.server.do_handshake):
        file = pair.client.makefile("rwb", buffering=0)
        with pytest.raises(ssl.SSLError):
            pair.client.do_handshake()
        assert pair.client.fileno() == -1
        with pytest.raises(OSError, match="Bad file descriptor"):
            file.write(b"never sent")
        file.close()


def test_required_in_wrap_socket():
    client, server = wrapped(require=True)
    near, far = tls.tcp_pair()
    with far, kernel.Background(server.wrap_socket, far, True) as other:
        with pytest.raises(ssl.SSLError) as caught:
            client.wrap_socket(near, server_hostname=tls.HOST)
        assert isinstance(caught.value, HandoffRefused | Unavailable)
        other.result().close()


def test_an_accept_loop_goes_on():
    """socketserver survives OSError from accept."""
    server = programs.TCPServer(("127.0.0.1", 0), programs.Echo)
    context = pyktls.wrap_context(tls.server_context(), require=True)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with programs.serving(server) as port:
        for _ in range(2):
            tcp = socket.create_connection(("127.0.0.1", port), tls.TIMEOUT)
            with tls.client_context().wrap_socket(tcp, server_hostname=tls.HOST) as sock:
                assert sock.recv(1) == b""


def test_client_authentication_after_the_handshake_is_ssls():
    client, server = tls.contexts(watch=False, post_handshake_auth=True)
    for context in (client, server):
        pyktls.wrap_context(context)
    with tls.connect(client, server) as pair:
        for sock in (pair.client, pair.server):
            assert "post_handshake_auth = False" in refused(sock)
        assert pair.server.getpeercert(True) is None
        pair.server.verify_client_post_handshake()
        pair.server.sendall(b"who are you?")
        assert tls.recv_exactly(pair.client, 12) == b"who are you?"
        pair.client.sendall(b"that is me")
        assert tls.recv_exactly(pair.server, 10) == b"that is me"
        assert pair.server.getpeercert(True)


def test_an_unwatched_context_set_past_us():
    """sni_callback sets the context of OpenSSL itself: then nobody has seen the keys."""
    client, server = tls.contexts(watch=False)
    pyktls.wrap_context(server)
    other = tls.server_context()

    def choose(sock, *_):
        sock._sslobj.context = other

    server.sni_callback = choose
    with tls.connect(client, server) as pair:
        assert "has to be watched as well" in refused(pair.server)
        pair.exchange()


def test_a_context_set_by_an_sni_callback_is_watched():
    client, server = tls.contexts(watch=False)
    pyktls.wrap_context(server)
    other = tls.server_context()
    server.sni_callback = lambda sock, *_: setattr(sock, "context", other)
    with tls.connect(client, server) as pair:
        assert pair.server.context is other
        pyktls.extract(pair.server).wipe()
        with pytest.raises(TypeError):
            pair.server.context = None
        pair.exchange()


@pytest.fixture
def no_memory(monkeypatch):
    """The kernel has none for the switch."""

    def fails(*_, **__):
        raise OSError(12, "setsockopt(TCP_ULP): no memory")

    monkeypatch.setattr(ssl_sockets, "take_over", fails)


@pytest.mark.usefixtures("no_memory")
def test_a_context_set_by_an_sni_callback_may_require_the_kernel():
    client, server = tls.contexts(tls.TLS_1_2, watch=False)
    pyktls.wrap_context(server)
    other = pyktls.wrap_context(tls.server_context(), require=True)
    server.sni_callback = lambda sock, *_: setattr(sock, "context", other)
    with pytest.raises(OSError) as caught:  # EBADF: the server's socket is closed
        tls.connect(client, server)
    refusal = caught.value.__context__
    assert isinstance(refusal, HandoffRefused)
    assert isinstance(refusal, ssl.SSLError)
    assert "the kernel refused" in str(refusal)


@pytest.mark.usefixtures("no_memory")
def test_a_system_call_that_fails_is_a_refusal():
    with tls.connect(*wrapped()) as pair:
        assert refused(pair.client).startswith("the kernel refused: [Errno 12] setsockopt(TCP_ULP)")
        pair.exchange()


@over_versions
def test_the_refused_socket_is_ssls(version):
    with tls.connect(*wrapped(version)) as pair:
        sock = pair.client
        refused(sock)
        assert sock.version() == {"TLS1.2": "TLSv1.2"}.get(version.name, sock.version())
        with pytest.raises(Unavailable, match="the kernel does not have this connection"):
            sock.update_keys()
        with pytest.raises(Unavailable):
            sock.splice_to(0, 1)
        with pytest.raises(Unavailable):
            sock.splice_from(0, 1)
        with pytest.raises(NotImplementedError):
            sock.sendmsg([b"x"])
        with pytest.raises(NotImplementedError):
            sock.sendmsg_afalg([b"x"], op=0)
        with pytest.raises(NotImplementedError):
            sock.recvmsg_into([bytearray(1)])
        with tempfile.TemporaryFile() as file:
            file.write(b"the file")
            file.seek(0)
            assert sock.sendfile(file, 0, headers=[b"head "], trailers=[b" tail"]) == 18
        assert tls.recv_exactly(pair.server, 18) == b"head the file tail"
        with pytest.raises(pyktls.InvalidType, match="a file is needed, not int"):
            sock.sendfile(5, headers=[b"not sent"])
        with pytest.raises(pyktls.InvalidValue, match="timeout: "):
            sock.settimeout(1e300)
        assert sock.recv_into(bytearray(0)) == 0
        pair.server.sendall(b"0123")
        assert sock.recv(buflen=1) == b"0"
        buffer = bytearray(3)
        assert sock.recv_into(buffer, nbytes=None) == 3
        assert buffer == b"123"
        with kernel.Background(pair.server.unwrap) as other:
            plain = sock.unwrap()
            assert isinstance(plain, socket.socket)
            other.result().close()


def test_copies_and_pickles():
    with tls.connect(*wrapped()) as pair:
        for call in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="cannot pickle"):
                call(pair.client)
        with pytest.raises(NotImplementedError):
            pair.client.dup()
        pair.exchange()


def test_garbage_collection():
    with tls.connect(*wrapped()) as pair:
        pair.server.suppress_ragged_eofs = False
        with pytest.warns(ResourceWarning, match=r"unclosed .*SSLSocket"):  # noqa: PT031
            pair.client = None
            gc.collect()
        pair.client = pair.server
        # Closed, as ssl closes; by a reset, as the tickets are unread.
        with pytest.raises((ssl.SSLEOFError, ConnectionResetError)):
            pair.server.recv(1)


def test_asyncio_with_the_same_context():
    client, server = wrapped()
    pyktls.wrap_context(server, require=True)

    async def serve(reader, writer):
        writer.write(await reader.readexactly(100_000))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def run():
        listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server)
        async with listener:
            port = listener.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=client, server_hostname=tls.HOST
            )
            writer.write(kernel.pattern(100_000))
            assert await reader.read() == kernel.pattern(100_000)
            writer.close()
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                await writer.wait_closed()

    asyncio.run(asyncio.wait_for(run(), tls.TIMEOUT))


class Within(ssl.SSLContext):
    """As truststore's: all that counts is in another context."""

    def __init__(self, protocol):
        del protocol
        self._ctx = ssl.create_default_context()

    def wrap_socket(self, *arguments, **keywords):
        return self._ctx.wrap_socket(*arguments, **keywords)


@pytest.mark.parametrize("require", [False, True])
def test_a_context_that_hands_its_connections_on(require):
    context = Within(ssl.PROTOCOL_TLS_CLIENT)
    with pytest.raises(InvalidValue, match=r"a .*test_wrap_context\.Within, has another one make"):
        pyktls.wrap_context(context, require=require)
    assert context.sslsocket_class is context._ctx.sslsocket_class is ssl.SSLSocket


class Own(ssl.SSLContext):
    def wrap_socket(self, *arguments, **keywords):
        return super().wrap_socket(*arguments, **keywords)


def test_a_context_may_have_a_way_of_its_own_to_wrap():
    context = Own(ssl.PROTOCOL_TLS_CLIENT)
    with pytest.raises(InvalidValue, match=r"^Own\.wrap_socket may make other sockets"):
        pyktls.wrap_context(context, require=True)
    assert context.sslsocket_class is ssl.SSLSocket
    assert pyktls.wrap_context(context).sslsocket_class is pyktls.SSLSocket


def test_where_python_has_other_sockets(monkeypatch):
    """gevent and eventlet: what they run would wait for a socket that knows nothing of them."""
    context = ssl.create_default_context()
    with tls.handshaken(tls.TLS_1_2) as pair:
        monkeypatch.setattr(ssl, "SSLSocket", type("SSLSocket", (), {"__module__": "gevent.ssl"}))
        for call in (
            lambda: pyktls.wrap_context(context),
            lambda: pyktls.wrap_context(context, require=True),
            lambda: pyktls.watch(context),
            lambda: pyktls.offload(pair.client),
        ):
            with pytest.raises(
                Unavailable, match=r"^gevent has replaced Python's sockets"
            ) as caught:
                call()
            assert caught.value.remedy
        monkeypatch.undo()
        pair.client.sendall(b"on")
        assert pair.server.recv(2) == b"on"


@pytest.mark.parametrize("writing", [False, True])
def test_errors_are_ssls_as_well(writing):
    reasons = {
        "the peer sent the fatal alert handshake_failure (40)": "SSLV3_ALERT_HANDSHAKE_FAILURE",
        "the peer sent the fatal alert unknown_ca (48)": "TLSV1_ALERT_UNKNOWN_CA",
        "cut": "UNEXPECTED_EOF_WHILE_READING",
    }
    cases = [
        (pyktls.TLSAlert(2, 40), ssl.SSLError, pyktls.TLSAlert, ssl.SSL_ERROR_SSL),
        (pyktls.TLSAlert(2, 48), ssl.SSLError, pyktls.TLSAlert, ssl.SSL_ERROR_SSL),
        (pyktls.RecordError("broken"), ssl.SSLError, pyktls.RecordError, ssl.SSL_ERROR_SSL),
        (pyktls.TruncationError("cut"), ssl.SSLEOFError, pyktls.TruncationError, ssl.SSL_ERROR_EOF),
    ]
    for error, kind, ours, number in cases:
        with pytest.raises(kind) as caught, ssl_errors.SSLErrors(writing=writing):
            raise error
        assert isinstance(caught.value, ours)
        assert caught.value.errno == number
        assert str(caught.value).endswith(str(error))
        assert caught.value.library in ("SSL", None)
        assert caught.value.reason == reasons.get(str(error))
        again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
        assert (type(again), str(again)) == (type(caught.value), str(caught.value))
    for refusal in (
        pyktls.HandoffRefused("no such state"),
        pyktls.Unavailable("no TLS", remedy="modprobe tls"),
    ):
        error = ssl_errors.as_failed_handshake(refusal)
        again = pickle.loads(pickle.dumps(error))  # noqa: S301
        assert (type(again), str(again)) == (type(error), str(error))
        assert getattr(again, "remedy", None) == getattr(refusal, "remedy", None)
    with pytest.raises(ssl.SSLError) as caught, ssl_errors.SSLErrors(writing=writing):
        raise pyktls.TLSAlert(2, 48)
    assert str(caught.value).startswith("[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca: ")


# ---- what there is in ssl ----------------------------------------------------------------------


def test_every_attribute_of_openssls_object_is_accounted_for():
    """A new one in _ssl is either a question or a deed, and somebody has to say which."""
    public = {name for name in dir(_ssl._SSLSocket) if not name.startswith("_")}
    ours = {name for name in vars(ssl_sockets._Switched) if not name.startswith("_")}
    # Since Python 3.15; ssl goes without where it is not, and SSLSocket.sendfile is another.
    absent = {"sendfile"}
    assert public <= ours | QUESTIONS | absent


def test_what_openssls_object_has_not():
    switched = ssl_sockets._Switched(None.__class__, None, None)
    with pytest.raises(AttributeError, match="ask is not available once the kernel has"):
        switched.ask  # noqa: B018
