"""pyktls.wrap_context on a real kernel: programs with one line changed, and each call of ssl's."""

from __future__ import annotations

import _ssl
import contextlib
import errno
import gc
import os
import socket
import ssl
import tempfile

import pytest

import pyktls
from pyktls import HandoffRefused, Mode, RecordError, Role, TruncationError
from pyktls.engines import apart
from pyktls.engines.answers import Answers
from pyktls.lowlevel import lib
from support import every_method, kernel, programs, tls
from support.kernel import (
    Background,
    both_ways,
    pattern,
    recv_exactly,
    recv_to_end,
    wait_readable,
)
from support.probing import open_descriptors
from support.programs import PROGRAMS

FREEBSD = lib.pyktls_system() == lib.PYKTLS_FREEBSD

over_versions = pytest.mark.parametrize(
    "version", kernel.OPENSSL_VERSIONS.values(), ids=kernel.VERSION_NAMES.values()
)


@over_versions
@pytest.mark.parametrize("name", PROGRAMS)
def test_with_one_line_changed(name, version, monkeypatch):
    seen = programs.Watcher(monkeypatch)
    PROGRAMS[name](pyktls.wrap_context, version)
    assert len(seen.closed) == len(seen.made)
    refused = [status for status in seen.made if status.refusal is not None]
    if name == "ftplib_protected":
        # A server that sends a short file and closes at once may be done before the client is;
        # no kernel takes such a connection.
        assert all("no longer established" in str(status.refusal) for status in refused)
        assert len(seen.made) - len(refused) >= 2  # the control connection, the upload
    else:
        assert refused == []
    on = [status for status in (*seen.made, *seen.closed) if status.refusal is None]
    for status in on:
        assert (status.ulp, status.version) == (kernel.ULP, kernel.version_told(version))
        # Of a connection that the peer has closed sock_diag tells nothing; the socket itself does,
        # but for FreeBSD's.
        known = (Mode.SOFTWARE, Mode.NONE if FREEBSD else Mode.KERNEL)
        assert status.tx in known
        assert status.rx in known
        assert (status.openssl_tx, status.openssl_rx) == (None, None)  # it is out of it
    assert any(status.tx is status.rx is Mode.SOFTWARE for status in on)


READ_TIMED_OUT = r"^The read operation timed out$"
WRITE_TIMED_OUT = r"^The write operation timed out$"


# ---- one connection of pyktls.SSLSocket and ssl.SSLSocket --------------------------------------


over_roles = pytest.mark.parametrize("role", list(Role), ids=lambda role: role.name.lower())
receiving_or_not = pytest.mark.parametrize(
    "rx", [True, pytest.param(False, marks=tls.needs_native)], ids=["both", "sending"]
)
#: "hidden" is the portable one without the functions of OpenSSL that the rest uses.
ENGINES = ("native", "portable", "hidden")
LINUX_ENGINE = pytest.mark.skipif(FREEBSD, reason="the portable engine is Linux's")
MARKS = {"native": tls.needs_native, "portable": LINUX_ENGINE, "hidden": LINUX_ENGINE}
over_engines = pytest.mark.parametrize(
    "engine", [pytest.param(engine, marks=MARKS[engine]) for engine in ENGINES]
)


def wrapped_contexts(version, role=Role.CLIENT, cipher=None, *, require=True, engine=None, **knobs):
    """A client's and a server's context; that of ``role`` is wrapped, the other untouched."""
    client, server = tls.contexts(version, cipher, watch=False, **knobs)
    own = client if role is Role.CLIENT else server
    if engine is not None:
        pyktls.watch(own, engine="portable" if engine == "hidden" else engine)
    pyktls.wrap_context(own, require)
    return client, server


@contextlib.contextmanager
def switched(version=tls.TLS_1_3, role=Role.CLIENT, *, rx=True, engine=None):
    """``(pyktls.SSLSocket, ssl.SSLSocket)`` with a handshake behind them.

    Without ``rx`` the kernel can only send, and OpenSSL receives.
    """
    contexts = wrapped_contexts(version, role, require=rx, engine=engine)
    for context in contexts:
        tls.tell_ragged_ends(context)
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.nullcontext() if rx else kernel.receiving_refused(),
        contextlib.ExitStack() as stack,
    ):
        if engine == "hidden":
            patch.setattr(apart, "works", lambda: False)
        pair = stack.enter_context(tls.connect(*contexts))
        ours, peer = pair.ends()[0] if role is Role.CLIENT else pair.ends()[1]
        peer.suppress_ragged_eofs = False
        yield ours, peer


def assert_on(sock, *, rx=True):
    status = sock.ktls
    assert (status.refusal is None) == rx
    receiving = Mode.SOFTWARE if rx else Mode.NONE
    assert (status.ulp, status.tx, status.rx) == (kernel.ULP, Mode.SOFTWARE, receiving)
    assert (status.openssl_tx, status.openssl_rx) == (None, None)


@over_versions
@over_roles
def test_a_handshake_without_waiting_switches_too(version, role):
    with switched(version, role) as (sock, peer):  # tls.connect does not block
        assert_on(sock)
        both_ways(sock, peer)


@over_versions
@over_roles
@pytest.mark.parametrize("first", ["send", "recv"])
def test_a_handshake_on_the_way_switches_too(version, role, first):
    """ssl lets the first read or write make the handshake; require holds there as well."""
    pair = tls.wrap_pair(*wrapped_contexts(version, role))
    with pair:
        (sock, peer) = pair.ends()[0] if role is Role.CLIENT else pair.ends()[1]

        def other_end():
            peer.do_handshake()
            if first == "recv":
                peer.sendall(b"first")

        with Background(other_end):
            if first == "send":
                assert sock.send(b"first") == 5
            else:
                assert sock.recv(5) == b"first"
                sock.settimeout(0.05)
                with pytest.raises(TimeoutError, match=READ_TIMED_OUT):
                    sock.recv(1)
                sock.settimeout(kernel.TIMEOUT)
        if first == "send":
            assert recv_exactly(peer, 5) == b"first"
        assert_on(sock)
        both_ways(sock, peer)


@over_versions
@receiving_or_not
def test_without_waiting_after_the_switch(version, rx):
    with switched(version, rx=rx) as (sock, peer):
        sock.setblocking(False)
        with pytest.raises(ssl.SSLWantReadError) as caught:
            sock.recv(1)
        assert caught.value.errno == ssl.SSL_ERROR_WANT_READ
        with pytest.raises(ssl.SSLWantReadError):
            sock.recv_into(bytearray(1))
        with pytest.raises(ssl.SSLWantReadError):
            sock.read(1)
        data = pattern(1 << 20)
        sent = bytearray()
        with pytest.raises(ssl.SSLWantWriteError) as caught:  # noqa: PT012
            while True:
                sent += data[: sock.send(data)]
        assert caught.value.errno == ssl.SSL_ERROR_WANT_WRITE
        with pytest.raises(ssl.SSLWantWriteError):
            sock.unwrap()  # there is no room for close_notify either
        assert recv_exactly(peer, len(sent)) == sent
        sock.settimeout(kernel.TIMEOUT)
        both_ways(sock, peer)
        sock.setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):
            sock.unwrap()
        peer.unwrap()
        sock.settimeout(kernel.TIMEOUT)
        assert sock.unwrap() is sock


@over_versions
@receiving_or_not
def test_timeouts(version, rx):
    with switched(version, rx=rx) as (sock, peer):
        sock.settimeout(0.05)
        for call in (
            lambda: sock.recv(1),
            lambda: sock.read(1),
            lambda: sock.recv_into(bytearray(1)),
        ):
            with pytest.raises(TimeoutError, match=READ_TIMED_OUT):
                call()
        with pytest.raises(TimeoutError, match=WRITE_TIMED_OUT):  # noqa: PT012
            while True:
                sock.sendall(bytes(1 << 20))
        peer.close()
        sock.settimeout(kernel.TIMEOUT)


@over_versions
@over_roles
def test_file_objects(version, role):
    pair = tls.wrap_pair(*wrapped_contexts(version, role))
    with pair:
        (sock, peer) = pair.ends()[0] if role is Role.CLIENT else pair.ends()[1]
        before = sock.makefile("rwb")
        tls.together(pair.client.do_handshake, pair.server.do_handshake, pair)
        assert_on(sock)
        after = sock.makefile("r", encoding="ascii")
        peer.sendall(b"one line\nand\n")
        assert before.readline() == b"one line\n"
        assert before.readline() == b"and\n"
        before.write(b"answer")
        before.flush()
        assert recv_exactly(peer, 6) == b"answer"
        peer.sendall(b"another\n")
        assert after.readline() == "another\n"
        sock.close()  # the files have it still
        assert sock.fileno() >= 0
        peer.sendall(b"more\n")
        assert before.readline() == b"more\n"
        before.close()
        after.close()
        assert sock.fileno() < 0
        assert peer.recv(1) == b""


@over_versions
@pytest.mark.parametrize("suppress", [True, False])
def test_ragged_ends(version, suppress):
    client, server = wrapped_contexts(version)
    near, far = tls.tcp_pair()
    with (
        client.wrap_socket(
            near,
            server_hostname=tls.HOST,
            suppress_ragged_eofs=suppress,
            do_handshake_on_connect=False,
        ) as sock,
        server.wrap_socket(far, server_side=True, do_handshake_on_connect=False) as peer,
    ):
        pair = tls.Pair(sock, peer)
        tls.together(sock.do_handshake, peer.do_handshake, pair)
        peer.sendall(b"data")
        peer.shutdown(socket.SHUT_WR)  # of TCP alone
        assert recv_exactly(sock, 4) == b"data"
        buffer = bytearray(1)
        calls = {
            b"": (lambda: sock.recv(1), lambda: sock.read(1)),
            0: (lambda: sock.recv_into(buffer), lambda: sock.read(1, buffer)),
        }
        for _ in range(2):
            for ended, ways in calls.items():
                for call in ways:
                    if suppress:
                        assert call() == ended
                        continue
                    with pytest.raises(ssl.SSLEOFError) as caught:
                        call()
                    assert isinstance(caught.value, TruncationError)
                    assert caught.value.errno == ssl.SSL_ERROR_EOF


@over_versions
@over_roles
@receiving_or_not
def test_unwrap_on_both_ends(version, role, rx):
    with switched(version, role, rx=rx) as (sock, peer):
        with Background(peer.unwrap) as other:
            assert sock.unwrap() is sock
            plain = other.result()
        plain.close()
        with pytest.raises(BrokenPipeError):
            sock.send(b"in plain?")
        assert sock.recv(1) == b""


@over_versions
@receiving_or_not
def test_unwrap_with_data_unread(version, rx):
    with switched(version, rx=rx) as (sock, peer):
        peer.sendall(b"unread")
        wait_readable(sock)
        with pytest.raises(ssl.SSLError, match="has not been read") as caught:
            sock.unwrap()
        assert isinstance(caught.value, pyktls.Error)
        assert recv_exactly(sock, 6) == b"unread"


@over_versions
@receiving_or_not
def test_an_alert_is_an_ssl_error(version, rx):
    with switched(version, rx=rx) as (sock, peer):
        sock.sendall(b"x")
        tls.raw(peer).sendall(b"\x17\x03\x03\x00\x20" + bytes(32))  # no record of this connection
        with pytest.raises(ssl.SSLError) as caught:
            sock.recv(1)
        assert isinstance(caught.value, RecordError)
        with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):  # noqa: PT012
            while peer.recv(100):
                pass
    with switched(version, rx=rx) as (sock, peer):
        tls.raw(sock).send(b"a plain send")  # becomes a record, of the kernel's
        peer.settimeout(kernel.TIMEOUT)
        assert recv_exactly(peer, 12) == b"a plain send"


def test_garbage_collection_loses_nothing():
    with tls.connect(*wrapped_contexts(tls.TLS_1_3)) as pair:
        pair.server.suppress_ragged_eofs = False
        data = pattern(300_000)
        with Background(recv_to_end, pair.server) as receiver:
            pair.client.sendall(data)
            number = pair.client.fileno()
            with pytest.warns(ResourceWarning, match="unclosed"):  # noqa: PT031
                pair.client = None
                gc.collect()
            assert receiver.result() == data
        assert number not in open_descriptors()
        pair.client = pair.server  # for what closes the pair


@over_versions
@over_roles
def test_after_close_everything_is_as_in_ssl(version, role):
    """The same call on a closed socket of ssl's gives the same class of error, or the result."""
    client, server = tls.contexts(version, watch=False)
    with tls.connect(client, server) as plain, switched(version, role) as (sock, _):
        other = plain.client if role is Role.CLIENT else plain.server
        sock.close()
        other.close()
        calls = {
            "recv": (1,), "recv_into": (bytearray(1),), "read": (1,), "send": (b"x",),
            "sendall": (b"x",), "write": (b"x",), "pending": (), "cipher": (), "version": (),
            "getpeercert": (), "selected_alpn_protocol": (), "unwrap": (), "shutdown": (2,),
            "compression": (), "shared_ciphers": (), "get_channel_binding": (), "close": (),
            "getpeername": (), "fileno": (), "makefile": (), "recvmsg": (1,), "dup": (),
            "sendmsg": ([b"x"],), "recvfrom": (1,), "sendto": (b"x", ("127.0.0.1", 1)),
        }  # fmt: skip
        for name, arguments in calls.items():
            assert outcome(sock, name, arguments) == outcome(other, name, arguments), name
        for name in ("session", "session_reused", "context"):
            assert type(getattr(sock, name)) is type(getattr(other, name))


def outcome(sock, name, arguments):
    try:
        result = getattr(sock, name)(*arguments)
    except Exception as e:  # noqa: BLE001  (that is the question)
        base = next(c for c in type(e).__mro__ if c.__module__ in ("builtins", "ssl"))
        return base, getattr(e, "errno", None)
    return result if isinstance(result, int | str | bytes) else type(result)


@over_versions
@over_engines
def test_the_next_connection_resumes(version, engine):
    """With a ticket that came when the kernel had the connection already (TLS 1.3)."""
    contexts = wrapped_contexts(version, engine=engine)
    with pytest.MonkeyPatch.context() as patch:
        if engine == "hidden":
            patch.setattr(apart, "works", lambda: False)
        with tls.connect(*contexts) as pair:
            assert_on(pair.client)
            both_ways(pair.client, pair.server)  # the tickets are read on the way
            both_ways(pair.server, pair.client)
            session = pair.client.session
            assert session is not None
            # OpenSSL has none of those that came later where nobody can bring it any.
            resumes = version == tls.TLS_1_2 or apart.works()
            assert session.has_ticket == resumes
            with pytest.raises(ValueError, match="after handshake"):
                pair.client.session = session
        with tls.connect(*contexts, session=session) as pair:
            assert_on(pair.client)
            assert pair.client.session_reused == resumes
            assert pair.server.session_reused == resumes
            both_ways(pair.client, pair.server)


@over_versions
def test_a_context_that_sni_callback_chooses(version):
    client, server = wrapped_contexts(version, Role.SERVER)
    other = tls.server_context()
    names = []

    def choose(sock, name, _):
        names.append(name)
        sock.context = other

    server.sni_callback = choose
    with tls.connect(client, server) as pair:
        assert names == [tls.HOST]
        assert pair.server.context is other
        assert_on(pair.server)
        both_ways(pair.client, pair.server)


NO_KERNEL_HAS = "AES128-SHA256"  # AES-CBC


@over_roles
def test_a_cipher_that_the_kernel_has_not(role):
    contexts = wrapped_contexts(tls.TLS_1_2, role, NO_KERNEL_HAS, require=False)
    with tls.connect(*contexts) as pair:
        sock, peer = (
            (pair.client, pair.server) if role is Role.CLIENT else (pair.server, pair.client)
        )
        status = sock.ktls
        assert not status.tx
        assert not status.rx
        assert isinstance(status.refusal, HandoffRefused | pyktls.Unavailable)
        both_ways(sock, peer)
        with pytest.raises(pyktls.Unavailable) as caught:
            sock.update_keys()
        assert caught.value.__cause__ is status.refusal


def test_the_accept_loop_of_a_server_survives_that_cipher():
    """With require: that client is refused, the next one served."""
    client, server = wrapped_contexts(tls.TLS_1_2, Role.SERVER, NO_KERNEL_HAS)
    good, _ = tls.contexts(tls.TLS_1_2, watch=False)
    server.set_ciphers("DEFAULT:@SECLEVEL=0")
    echo = programs.TCPServer(("127.0.0.1", 0), programs.Echo)
    echo.socket = server.wrap_socket(echo.socket, server_side=True)
    with programs.serving(echo) as port:
        for context in (client, good):
            tcp = socket.create_connection(("127.0.0.1", port), kernel.TIMEOUT)
            with context.wrap_socket(tcp, server_hostname=tls.HOST) as sock:
                if context is client:
                    assert sock.recv(1) == b""
                    continue
                sock.sendall(b"4\ndata")
                assert recv_exactly(sock, 4) == b"data"
                sock.unwrap()


@over_versions
@receiving_or_not
def test_a_file_with_what_goes_around_it(version, rx):
    with switched(version, rx=rx) as (sock, peer), tempfile.TemporaryFile() as file:
        file.write(b"the file")
        file.seek(0)
        assert sock.sendfile(file, headers=[b"head", b" "], trailers=[b" tail"]) == 18
        assert recv_exactly(peer, 18) == b"head the file tail"
        with pytest.raises(ValueError, match="non-zero flags not allowed in calls to sendall"):
            sock.sendall(b"", socket.MSG_DONTWAIT)
        both_ways(sock, peer)


@pytest.mark.parametrize("buffering", [0, -1], ids=["raw", "buffered"])
@receiving_or_not
def test_a_file_from_where_it_is(rx, buffering):
    """As ssl.SSLSocket does it, and other sockets do not: ours has to be alike, on or off."""
    with (
        switched(rx=rx) as (sock, peer),
        tempfile.TemporaryFile(buffering=buffering) as file,
    ):
        file.write(b"0123456789")
        for sender, receiver in ((sock, peer), (peer, sock)):
            file.seek(0)
            assert file.read(7) == b"0123456"
            assert sender.sendfile(file) == 3
            assert recv_exactly(receiver, 3) == b"789"
            if sender is sock:  # ssl says 3
                assert file.tell() == 10
            file.seek(10)
            assert sender.sendfile(file) == 0
            assert sender.sendfile(file, 4) == 6
            assert recv_exactly(receiver, 6) == b"456789"
            file.seek(2)
            assert sender.sendfile(file, 0, 3) == 3
            assert recv_exactly(receiver, 3) == b"234"
        both_ways(sock, peer)


def test_closing_after_a_send_that_timed_out_has_nothing_to_add():
    """A program that cleans up sees its own error, and not that of close() in its place."""
    with switched() as (sock, _):
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError, match=WRITE_TIMED_OUT):
            sock.sendall(bytes(1 << 26))
        sock.close()
        assert sock.fileno() == -1
    with switched() as (sock, _), tempfile.TemporaryFile() as file:
        file.truncate(1 << 26)
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError, match=WRITE_TIMED_OUT):
            sock.sendfile(file)
        sock.close()
        assert sock.fileno() == -1
    with switched() as (sock, _):  # one that was told nothing is told by close
        kernel.clog(sock)
        sock.close_timeout = 0.2
        with pytest.raises(TimeoutError, match="close: the peer took no more data"):
            sock.close()
        assert sock.fileno() == -1


def test_a_closed_socket_has_no_end():
    with switched() as (sock, peer):
        with Background(sock.recv, 1) as received:
            kernel.close_quietly(peer)
            assert received.result() == b""
        assert sock.recv(1) == b""
        sock.close()
        for call in (sock.recv, lambda n: sock.recv_into(bytearray(n))):
            with pytest.raises(OSError, match="Bad file descriptor") as caught:
                call(1)
            assert caught.value.errno == errno.EBADF


# ---- OpenSSL and the descriptor ----------------------------------------------------------------


def rows(role, version):
    """With each engine; the native one has the kernel send alone as well."""
    name = f"{role.name.lower()}-{kernel.VERSION_NAMES[int(version)]}"
    for engine, rx in ((engine, True) for engine in ENGINES):
        yield pytest.param(role, version, rx, engine, id=f"{name}-{engine}", marks=MARKS[engine])
    yield pytest.param(role, version, False, "native", id=f"{name}-sending", marks=tls.needs_native)


@pytest.mark.parametrize(
    ("role", "version", "rx", "engine"),
    [*rows(Role.CLIENT, tls.TLS_1_3), *rows(Role.SERVER, tls.TLS_1_2)],
)
@pytest.mark.parametrize("name", every_method.public_names(pyktls.SSLSocket))
def test_nothing_wrong_reaches_the_wire(name, role, version, rx, engine):
    """Whatever is called: the peer's records go on without a gap, and so do ours."""
    with switched(version, role, rx=rx, engine=engine) as (sock, peer):
        peer.settimeout(kernel.TIMEOUT)
        if name in every_method.TERMINAL:
            descriptor = sock.fileno()
            refused = name == "detach" and not rx  # the other half would be lost
            with pytest.raises(HandoffRefused) if refused else contextlib.suppress(OSError):
                peer.setblocking(False)
                call_terminal(sock, name)
            peer.settimeout(kernel.TIMEOUT)
            if name == "detach" and not rx:
                both_ways(sock, peer)
            elif name == "detach":
                os.close(descriptor)
                with tls.ragged_end():
                    peer.recv(1)
            else:
                assert peer.recv(1) == b""  # close_notify: ragged ends raise
            return
        every_method.call(sock, name, kernel.TIMEOUT)
        sends = name in every_method.SENDING and name != "sendmsg"  # which ssl has not
        every_method.assert_nothing_else_was_sent(sock, peer, sends=sends)
        assert_on(sock, rx=rx)
        both_ways(peer, sock)


def call_terminal(sock, name):
    sock.settimeout(0.2)
    getattr(sock, name)(*((socket.SHUT_WR,) if name == "shutdown" else ()))


@over_versions
@over_roles
@over_engines
def test_nobody_is_asked_for_a_certificate_any_more(version, role, engine):
    with (
        switched(version, role, engine=engine) as (sock, peer),
        tls.connect(*tls.contexts(version, watch=False)) as plain,
    ):
        if role is Role.SERVER and version == tls.TLS_1_3:
            text = "the peer cannot be asked for a certificate any more: the kernel has the"
            with pytest.raises(pyktls.Unavailable, match=text) as caught:
                sock.verify_client_post_handshake()
            assert isinstance(caught.value, ssl.SSLError)
        else:
            other = plain.client if role is Role.CLIENT else plain.server
            said = []
            for each in (sock, other):
                with pytest.raises(ssl.SSLError) as caught:
                    each.verify_client_post_handshake()
                said.append((caught.value.library, caught.value.reason))
            assert said[0] == said[1]
        every_method.assert_nothing_else_was_sent(sock, peer, sends=False)
        both_ways(peer, sock)


@tls.needs_native
@over_versions
@over_roles
@pytest.mark.parametrize(
    ("rx", "engine"),
    [(True, "native"), (True, "portable"), (False, "native")],
    ids=["both", "both-portable", "sending"],
)
def test_openssl_cannot_reach_the_connection(version, role, rx, engine):
    with switched(version, role, rx=rx, engine=engine) as (sock, peer):
        inner = sock._sslobj._sslobj
        peer.sendall(b"for the kernel")
        wait_readable(sock)
        sock.settimeout(0.1)  # as long as the ssl module waits for what OpenSSL never gets
        for call in (
            lambda: inner.write(b"to nobody"),
            lambda: inner.read(100),
            inner.do_handshake,
            inner.verify_client_post_handshake,
            inner.shutdown,
        ):
            with contextlib.suppress(OSError):
                call()
        sock.settimeout(kernel.TIMEOUT)
        assert recv_exactly(sock, 14) == b"for the kernel"
        both_ways(sock, peer)


@LINUX_ENGINE
@over_versions
@over_roles
def test_where_it_is_hidden_openssl_has_no_connection_any_more(version, role):
    with switched(version, role, engine="hidden") as (sock, peer):
        assert type(sock._sslobj._sslobj) is Answers
        gc.collect()
        left = [thing for thing in gc.get_objects() if type(thing) is _ssl._SSLSocket]
        assert all(thing.owner is not sock for thing in left)
        assert any(thing.owner is peer for thing in left)
        del left
        # It still tells what it is asked for.
        assert sock.version() == peer.version()
        assert sock.cipher() == peer.cipher()
        assert sock.selected_alpn_protocol() is None
        assert sock.context is sock._context
        if role is Role.CLIENT:
            assert sock.getpeercert(True) == ssl.PEM_cert_to_DER_cert(
                tls.certificate().cert_chain_pems[0].bytes().decode()
            )
            assert sock.getpeercert()["subjectAltName"] == (("DNS", tls.HOST),)
        both_ways(sock, peer)
        both_ways(peer, sock)
