"""pyktls.install on plain TCP sockets, and every state in which it, or offload, has to refuse.

After each refusal the test shows that the socket is what it was before.
"""

from __future__ import annotations

import contextlib
import errno
import socket

import pytest

import pyktls
from pyktls import (
    Direction,
    HandoffRefused,
    InvalidType,
    InvalidValue,
    Mode,
    Role,
    linux,
    switch,
)
from pyktls.ciphers import TLS_1_2, TLS_1_3
from support import kernel, records, tls
from support.kernel import ONE_OF_EACH, SUITES, TIMEOUT, both_ways, recv_exactly, suite_id

over_suites = pytest.mark.parametrize("suite", SUITES, ids=suite_id)
over_versions = pytest.mark.parametrize("suite", ONE_OF_EACH, ids=suite_id)
SUITE = kernel.suite(TLS_1_3)


@pytest.fixture
def tcp():
    near, far = tls.tcp_pair()
    with near, far:
        near.settimeout(TIMEOUT)
        far.settimeout(TIMEOUT)
        yield near, far


def ends(suite=SUITE):
    return kernel.sessions(suite)


@contextlib.contextmanager
def refused(kind, message):
    """The block raises exactly ``kind`` with exactly ``message``."""
    with pytest.raises(kind) as caught:
        yield
    assert type(caught.value) is kind
    assert str(caught.value) == message


def assert_keys_not_used_up(session):
    for direction in Direction:
        session.keys(direction).claim(direction)


# ---- it works --------------------------------------------------------------------------------


@over_suites
def test_both_directions(tcp, suite):
    one, other = ends(suite)
    assert pyktls.install(tcp[0], one) is None
    pyktls.install(tcp[1], other)
    for sock in tcp:
        found = pyktls.status(sock)
        assert found.ulp == "tls"
        assert (found.version, found.cipher) == (suite.version, suite.aead.name)
        assert (found.tx, found.rx) == (Mode.SOFTWARE, Mode.SOFTWARE)
    both_ways(*tcp, kernel.pattern(100_000))


@over_versions
def test_only_sending(tcp, suite):
    one, other = ends(suite)
    pyktls.install(tcp[0], one, rx=False)
    found = pyktls.status(tcp[0])
    assert (found.tx, found.rx) == (Mode.SOFTWARE, Mode.NONE)
    wire = kernel.Wire(tcp[1], other)
    tcp[0].sendall(b"encrypted")
    assert wire.recv() == (records.APPLICATION_DATA, b"encrypted")
    tcp[1].sendall(b"plain")
    assert recv_exactly(tcp[0], 5) == b"plain"
    # The other half can follow.
    pyktls.install(tcp[0], one, tx=False)
    wire.send_data(b"encrypted too")
    assert recv_exactly(tcp[0], 13) == b"encrypted too"


@over_versions
def test_only_receiving(tcp, suite):
    one, other = ends(suite)
    pyktls.install(tcp[0], one, tx=False)
    found = pyktls.status(tcp[0])
    assert (found.tx, found.rx) == (Mode.NONE, Mode.SOFTWARE)
    tcp[0].sendall(b"plain")
    assert recv_exactly(tcp[1], 5) == b"plain"
    kernel.Wire(tcp[1], other).send_data(b"encrypted")
    assert recv_exactly(tcp[0], 9) == b"encrypted"


def test_a_record_that_waits_already_is_read_with_the_new_keys(tcp):
    """The selftest's ``prequeue``."""
    one, other = ends()
    wire = kernel.Wire(tcp[1], other)
    for _ in range(3):
        wire.send_data(b"early " * 100)
    kernel.wait_readable(tcp[0])
    pyktls.install(tcp[0], one)
    assert recv_exactly(tcp[0], 1800) == b"early " * 300


def test_plain_data_in_the_send_queue_goes_out_as_it_is(tcp):
    one, other = ends()
    tcp[1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    tcp[0].setblocking(False)
    data = kernel.pattern(200_000)
    queued = tcp[0].send(data)
    pyktls.install(tcp[0], one)
    tcp[0].settimeout(TIMEOUT)
    with kernel.Background(tcp[0].sendall, b"now encrypted"):
        assert recv_exactly(tcp[1], queued) == data[:queued]
        assert kernel.Wire(tcp[1], other).recv() == (records.APPLICATION_DATA, b"now encrypted")


def test_the_protocol_attached_before_without_keys_is_no_obstacle(tcp):
    linux.set_ulp(tcp[0])
    one, other = ends()
    pyktls.install(tcp[0], one)
    pyktls.install(tcp[1], other)
    both_ways(*tcp)


def test_the_session_keeps_the_keys_and_they_are_the_kernels(tcp):
    one, _ = ends()
    pyktls.install(tcp[0], one)
    for direction, option in ((Direction.TX, linux.TLS_TX), (Direction.RX, linux.TLS_RX)):
        installed = linux.get_crypto_info(tcp[0], option)
        keys = one.keys(direction)
        assert installed.key == keys.key
        assert installed.salt + installed.iv == keys.iv
        assert installed.rec_seq == keys.sequence


# ---- sockets in the wrong state --------------------------------------------------------------


def test_unconnected_is_refused_and_can_connect_afterwards():
    session, _ = ends()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as sock:
        with refused(HandoffRefused, "the socket is not connected"):
            pyktls.install(sock, session)
        sock.connect(listener.getsockname())
        with listener.accept()[0] as far:
            both_ways(sock, far)
            pyktls.install(sock, session)


def test_listening_is_refused_and_still_accepts():
    session, _ = ends()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with refused(HandoffRefused, "the socket is a listening socket"):
            pyktls.install(listener, session)
        near = socket.create_connection(listener.getsockname(), TIMEOUT)
        with near, listener.accept()[0] as far:
            both_ways(near, far)
    assert_keys_not_used_up(session)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX], ids=["UDP", "Unix"])
def test_other_protocols_are_refused(family):
    session, _ = ends()
    if family == socket.AF_UNIX:
        near, far = socket.socketpair()
    else:
        near, far = (socket.socket(family, socket.SOCK_DGRAM) for _ in range(2))
        far.bind(("127.0.0.1", 0))
        near.connect(far.getsockname())
        far.connect(near.getsockname())
    with near, far:
        near.settimeout(TIMEOUT)
        far.settimeout(TIMEOUT)
        with refused(HandoffRefused, "the socket is not a TCP socket"):
            pyktls.install(near, session)
        both_ways(near, far, b"datagram")
    assert_keys_not_used_up(session)


def test_closed_is_refused(tcp):
    session, _ = ends()
    tcp[0].close()
    with refused(HandoffRefused, "the socket is closed"):
        pyktls.install(tcp[0], session)
    assert_keys_not_used_up(session)


CLOSED_ALREADY = "the TCP connection is no longer established: one side has already closed it"


@over_versions
def test_after_the_peers_fin_it_is_refused_and_the_open_half_still_works(tcp, suite):
    """TCP_ULP takes only ESTABLISHED connections, so CLOSE_WAIT is too late."""
    session, _ = ends(suite)
    tcp[1].sendall(b"last words")
    tcp[1].shutdown(socket.SHUT_WR)
    kernel.wait_readable(tcp[0])
    assert tcp[0].recv(100) == b"last words"
    assert tcp[0].recv(1) == b""
    with refused(HandoffRefused, CLOSED_ALREADY):
        pyktls.install(tcp[0], session)
    tcp[0].sendall(b"answer")
    assert recv_exactly(tcp[1], 6) == b"answer"
    assert_keys_not_used_up(session)


def test_after_our_own_fin_it_is_refused_and_the_open_half_still_works(tcp):
    session, _ = ends()
    tcp[0].shutdown(socket.SHUT_WR)
    with refused(HandoffRefused, CLOSED_ALREADY):
        pyktls.install(tcp[0], session)
    tcp[1].sendall(b"answer")
    assert recv_exactly(tcp[0], 6) == b"answer"
    assert_keys_not_used_up(session)


def test_after_the_peers_reset_it_is_refused(tcp):
    session, _ = ends()
    tcp[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    tcp[1].close()
    kernel.wait_readable(tcp[0])
    with refused(HandoffRefused, "the socket is not connected"):
        pyktls.install(tcp[0], session)
    assert_keys_not_used_up(session)


# ---- keys that may not be installed ----------------------------------------------------------


@pytest.mark.parametrize(
    ("tx", "rx", "words"),
    [(True, False, "tx"), (False, True, "rx"), (True, True, "tx and rx")],
    ids=["tx", "rx", "both"],
)
def test_a_direction_that_is_on_already_is_refused_and_goes_on(tcp, tx, rx, words):
    one, other = ends()
    pyktls.install(tcp[0], one, tx=tx, rx=rx)
    fresh, _ = ends()
    with refused(HandoffRefused, f"kernel TLS is already on for {words}"):
        pyktls.install(tcp[0], fresh)
    assert_keys_not_used_up(fresh)
    wire = kernel.Wire(tcp[1], other)
    if tx:
        tcp[0].sendall(b"out")
        assert wire.recv() == (records.APPLICATION_DATA, b"out")
    if rx:
        wire.send_data(b"in")
        assert recv_exactly(tcp[0], 2) == b"in"


def test_keys_are_installed_once(tcp):
    one, other = ends()
    pyktls.install(tcp[0], one)
    near, far = tls.tcp_pair()
    with near, far:
        with refused(
            HandoffRefused,
            "these rx keys have been installed already: a second use would repeat nonces",
        ):
            pyktls.install(near, one)
        both_ways(near, far)
        assert pyktls.status(near).ulp == ""
    pyktls.install(tcp[1], other)
    both_ways(*tcp)


def test_a_refusal_for_one_direction_gives_the_other_ones_keys_back(tcp):
    one, other = ends()
    pyktls.install(tcp[0], one, rx=False)
    near, far = tls.tcp_pair()
    with near, far:
        with refused(
            HandoffRefused,
            "these tx keys have been installed already: a second use would repeat nonces",
        ):
            pyktls.install(near, one)
        both_ways(near, far)
    pyktls.install(tcp[0], one, tx=False)  # rx was not used up
    pyktls.install(tcp[1], other)
    both_ways(*tcp)


@pytest.mark.parametrize(
    "second",
    [kernel.suite(TLS_1_2), kernel.suite(TLS_1_3, "CHACHA20_POLY1305")],
    ids=["another version", "another cipher"],
)
def test_directions_that_do_not_match_are_an_error_of_the_named_call(tcp, second):
    """The kernel wants one version and one cipher on a socket."""
    one, other = ends()
    pyktls.install(tcp[0], one, rx=False)
    mismatch, _ = ends(second)
    with refused(OSError, "[Errno 22] setsockopt(SOL_TLS, TLS_RX): Invalid argument"):
        pyktls.install(tcp[0], mismatch, tx=False)
    found = pyktls.status(tcp[0])
    assert (found.tx, found.rx) == (Mode.SOFTWARE, Mode.NONE)
    wire = kernel.Wire(tcp[1], other)
    tcp[0].sendall(b"out")
    assert wire.recv() == (records.APPLICATION_DATA, b"out")
    pyktls.install(tcp[0], one, tx=False)  # the right keys can still come
    wire.send_data(b"in")
    assert recv_exactly(tcp[0], 2) == b"in"
    assert_keys_not_used_up(mismatch)


def test_half_an_installation_is_a_dead_connection_and_said_to_be(tcp, monkeypatch):
    real = linux.system.install

    def refuse_tx(fd, direction, *rest):
        if direction is Direction.TX:
            raise OSError(errno.ENOMEM, "setsockopt(SOL_TLS, TLS_TX): Cannot allocate memory")
        real(fd, direction, *rest)

    monkeypatch.setattr(switch.system, "install", refuse_tx)
    one, _ = ends()
    with refused(
        HandoffRefused,
        "the kernel took the rx keys and refused the others ([Errno 12] setsockopt(SOL_TLS, "
        "TLS_TX): Cannot allocate memory): the connection is dead, close it",
    ):
        pyktls.install(tcp[0], one)
    monkeypatch.undo()
    near, far = tls.tcp_pair()
    with near, far, pytest.raises(HandoffRefused, match="these rx keys have been installed"):
        pyktls.install(near, one)


def test_a_wiped_session_is_refused(tcp):
    session, _ = ends()
    session.wipe()
    with refused(InvalidValue, f"rx.key must be 16 bytes for {SUITE.name}, not 0"):
        pyktls.install(tcp[0], session)
    both_ways(*tcp)


def test_a_session_that_openssl_has_used_since_is_refused_and_openssl_goes_on():
    with kernel.openssl_pair(TLS_1_3) as (own, peer):
        both_ways(own, peer)
        session = pyktls.extract(own)
        both_ways(own, peer)
        with socket.socket(fileno=socket.dup(own.fileno())) as same:
            with refused(
                HandoffRefused,
                "records have passed through the TLS library since the session was extracted: "
                "extract it again",
            ):
                pyktls.install(same, session)
            assert pyktls.status(same).ulp == ""
        both_ways(own, peer)


# ---- wrong arguments -------------------------------------------------------------------------


def test_arguments_of_the_wrong_type(tcp):
    session, _ = ends()
    with refused(InvalidType, "sock must be a socket, not int"):
        pyktls.install(tcp[0].fileno(), session)
    with refused(InvalidType, "session must be a Session, not NoneType"):
        pyktls.install(tcp[0], None)
    with refused(InvalidValue, "neither tx nor rx is wanted: there is nothing to install"):
        pyktls.install(tcp[0], session, tx=False, rx=False)
    both_ways(*tcp)
    assert_keys_not_used_up(session)


def test_an_ssl_socket_is_for_offload_not_for_install():
    with kernel.openssl_pair(TLS_1_3) as (own, peer):
        both_ways(own, peer)
        session = pyktls.extract(own)
        with refused(
            InvalidType, "sock must not be an ssl.SSLSocket: use pyktls.offload for those"
        ):
            pyktls.install(own, session)
        both_ways(own, peer)


# ---- offload in the wrong state --------------------------------------------------------------


def test_a_second_offload_is_refused_and_the_first_goes_on():
    with kernel.openssl_pair(TLS_1_3) as (own, peer), pyktls.offload(own) as sock:
        assert own.fileno() == -1
        with refused(HandoffRefused, "the socket is closed"):
            pyktls.offload(own)
        both_ways(sock, peer)
        with refused(InvalidType, "an ssl.SSLSocket is needed, not KTLSSocket"):
            pyktls.offload(sock)
        both_ways(sock, peer)


def test_offload_of_a_closed_socket_is_refused():
    with kernel.openssl_pair(TLS_1_3) as (own, _):
        own.close()
        with refused(HandoffRefused, "the socket is closed"):
            pyktls.offload(own)


def test_offload_of_a_plain_socket_is_refused(tcp):
    with refused(InvalidType, "an ssl.SSLSocket is needed, not socket"):
        pyktls.offload(tcp[0])
    both_ways(*tcp)


@pytest.mark.parametrize("version", kernel.VERSIONS, ids=kernel.VERSION_NAMES.get)
def test_offload_without_watch_is_refused_and_openssl_goes_on(version):
    with kernel.openssl_pair(version) as (_, own):
        with pytest.raises(HandoffRefused, match=r"call pyktls\.watch\(context\) before") as caught:
            pyktls.offload(own)
        assert type(caught.value) is HandoffRefused
        assert pyktls.status(own).ulp == ""
        both_ways(own, _)


@pytest.mark.parametrize("version", kernel.VERSIONS, ids=kernel.VERSION_NAMES.get)
def test_offload_before_the_handshake_is_refused_and_the_handshake_then_works(version):
    client, server = tls.contexts(kernel.OPENSSL_VERSIONS[version])
    with tls.wrap_pair(client, server) as pair:
        with pytest.raises(HandoffRefused, match="not finished"):
            pyktls.offload(pair.client)
        tls.together(pair.client.do_handshake, pair.server.do_handshake, pair)
        pair.exchange()
        with pyktls.offload(pair.client) as sock:
            both_ways(sock, pair.server)
            pair.server.close()


def test_offload_with_open_file_objects_is_refused_until_they_are_closed():
    with kernel.openssl_pair(TLS_1_3) as (own, peer):
        file = own.makefile("rb")
        with refused(
            HandoffRefused,
            "file objects made by makefile() are open on the socket, and may hold data: close them",
        ):
            pyktls.offload(own)
        both_ways(own, peer)
        file.close()
        with pyktls.offload(own) as sock:
            both_ways(sock, peer)
            peer.close()


def test_offload_within_a_record_is_refused_until_it_is_whole():
    """OpenSSL has taken a part of a record: the kernel would begin in its middle."""
    client, server = tls.contexts(tls.TLS_1_3)
    with tls.connect(client, server) as pair:
        pair.exchange()
        sealer = records.Sealer(*_cipher_and_tx(pyktls.extract(pair.server)))
        record = sealer.seal(records.APPLICATION_DATA, b"in two parts")
        tls.deliver(pair.server, pair.client, record[:11])
        assert tls.read_what_is_there(pair.client) == b""
        with pytest.raises(HandoffRefused, match="not on a record boundary"):
            pyktls.offload(pair.client)
        assert pyktls.status(pair.client).ulp == ""
        tls.deliver(pair.server, pair.client, record[11:])
        assert recv_exactly(pair.client, 12) == b"in two parts"
        with pyktls.offload(pair.client) as sock:
            tls.raw(pair.server).sendall(sealer.seal(records.APPLICATION_DATA, b"and whole"))
            assert recv_exactly(sock, 9) == b"and whole"
            pair.server.close()


def _cipher_and_tx(session):
    return session.cipher, session.tx


def test_offload_after_the_peers_fin_is_refused_and_openssl_still_reads():
    with kernel.openssl_pair(TLS_1_3, tickets=0) as (own, peer):
        both_ways(own, peer)
        peer.sendall(b"last words")
        with socket.socket(fileno=peer.detach()) as raw:
            raw.shutdown(socket.SHUT_WR)
            kernel.wait_readable(own)
            while not own_has_fin(own):
                pass
            with refused(HandoffRefused, CLOSED_ALREADY):
                pyktls.offload(own)
            assert own.recv(100) == b"last words"


def own_has_fin(sock):
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x08"  # TCP_CLOSE_WAIT


@pytest.mark.parametrize("role", Role)
def test_offload_keeps_timeout_and_descriptor(role):
    with kernel.openssl_pair(TLS_1_3, role=role) as (own, peer):
        own.settimeout(12.5)
        fd = own.fileno()
        with pyktls.offload(own) as sock:
            assert (sock.fileno(), sock.gettimeout()) == (fd, 12.5)
            assert sock.version() == "TLSv1.3"
            assert sock.cipher() == peer.cipher()
            assert sock.getpeername() == peer.getsockname()
            if role is Role.CLIENT:
                assert sock.getpeercert()["subject"]
                assert sock.getpeercert(binary_form=True)
            else:
                assert sock.getpeercert() is None
            both_ways(sock, peer)
            peer.close()
