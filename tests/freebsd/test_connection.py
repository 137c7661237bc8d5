"""Whole connections on a FreeBSD kernel: OpenSSL's handshake, the hand-over, and what follows.

The far end is an unmodified ``ssl.SSLSocket``, or a record layer in user space that can misbehave
(support/kernel.py).  What FreeBSD's kernel gets wrong for a plain reader (freebsd.py tells) must
not be seen through a ``KTLSSocket``.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import socket
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import pyktls
from pyktls import (
    HandoffRefused,
    KTLSSocket,
    Mode,
    RecordError,
    Role,
    TLSAlert,
    TruncationError,
    Unavailable,
    freebsd,
)
from pyktls.ciphers import TLS_1_2, TLS_1_3
from support import kernel, records, tls
from support.kernel import Background, both_ways, offloaded, recv_exactly, recv_to_end, wired

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

NO_ENCRYPT_THEN_MAC = 1 << 19
MATRIX = (
    *((TLS_1_3, name) for name in tls.TLS_1_3_SUITES[:3]),
    (TLS_1_2, "ECDHE-RSA-AES128-GCM-SHA256"),
    (TLS_1_2, "ECDHE-ECDSA-AES256-GCM-SHA384"),
    (TLS_1_2, "ECDHE-RSA-CHACHA20-POLY1305"),
    (TLS_1_2, "ECDHE-RSA-AES128-SHA"),
    (TLS_1_2, "ECDHE-RSA-AES256-SHA"),
    (TLS_1_2, "ECDHE-RSA-AES128-SHA256"),
    (TLS_1_2, "ECDHE-RSA-AES256-SHA384"),
    (TLS_1_2, "AES256-SHA256"),
)
over_versions = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3], ids=["1.2", "1.3"])
over_roles = pytest.mark.parametrize("role", list(Role), ids=str)


@contextlib.contextmanager
def handshaken(
    version: int, cipher: str, role: Role, *, install: bool = True
) -> Iterator[tuple[Any, ssl.SSLSocket]]:
    """(our end, the other end); ours is a KTLSSocket, or with ``install`` off still OpenSSL's."""
    contexts = tls.contexts(kernel.OPENSSL_VERSIONS[version], cipher)
    for context in contexts:
        context.options |= NO_ENCRYPT_THEN_MAC
    with tls.connect(*contexts) as pair:
        ours, other = pair.client, pair.server
        if role is Role.SERVER:
            ours, other = other, ours
        if not install:
            yield ours, other
            return
        sock = pyktls.offload(ours)
        try:
            yield sock, other
        finally:
            other.close()
            kernel.close_quietly(sock)


# ---- data ------------------------------------------------------------------------------------


@over_roles
@pytest.mark.parametrize(("version", "cipher"), MATRIX, ids=str)
def test_data_goes_both_ways(version: int, cipher: str, role: Role) -> None:
    with handshaken(version, cipher, role) as (sock, peer):
        assert sock.ktls == pyktls.Status("", None, None, Mode.SOFTWARE, Mode.SOFTWARE)
        assert sock.cipher()[0] == cipher
        both_ways(sock, peer)
        big = kernel.pattern(300_000)
        with Background(peer.sendall, big):
            assert recv_exactly(sock, len(big)) == big
        with Background(sock.sendall, big):
            assert recv_exactly(peer, len(big)) == big
        both_ways(peer, sock)
        with Background(peer.unwrap):
            assert sock.recv(100) == b""
            sock.close()


@over_versions
def test_what_openssl_had_decrypted_comes_first(version: int) -> None:
    with kernel.openssl_pair(version) as (ours, peer):
        peer.sendall(b"abcdefgh")
        assert ours.recv(2) == b"ab"
        with pyktls.offload(ours) as sock:
            assert sock.pending() == 6
            peer.sendall(b"ij")
            assert recv_exactly(sock, 8) == b"cdefghij"


def test_session_tickets_are_taken_in() -> None:
    with offloaded(TLS_1_3, tickets=4) as (sock, peer):
        peer.sendall(b"after four tickets")
        assert recv_exactly(sock, 18) == b"after four tickets"


@over_versions
def test_only_sending(version: int) -> None:
    with kernel.openssl_pair(version) as (ours, peer):
        session = pyktls.extract(ours)
        near = ours.detach()
        with socket.socket(fileno=near) as plain:
            pyktls.install(plain, session, rx=False)
            found = pyktls.status(plain)
            assert (found.tx, found.rx) == (Mode.SOFTWARE, Mode.NONE)
            assert freebsd.send_record(plain, b"through the kernel", 23) == 18
            assert recv_exactly(peer, 18) == b"through the kernel"


def test_status_of_openssls_own_socket() -> None:
    with tls.handshaken(tls.TLS_1_3) as pair:
        found = pyktls.status(pair.client)
        assert (found.tx, found.rx) == (Mode.NONE, Mode.NONE)
        assert (found.openssl_tx, found.openssl_rx) == (False, False)


# ---- reading: what a plain reader would get wrong --------------------------------------------

SUITES = (*kernel.ONE_OF_EACH, *(kernel.suite(v, "CHACHA20_POLY1305") for v in kernel.VERSIONS))
over_suites = pytest.mark.parametrize("suite", SUITES, ids=kernel.suite_id)


@over_suites
@pytest.mark.parametrize("size", [1, 3, 7, 64])
def test_a_record_read_in_parts(suite: Any, size: int) -> None:
    with wired(suite) as (sock, wire):
        data = kernel.pattern(21)
        wire.send_data(data)
        wire.send_data(data)
        wire.close_notify()
        read = []
        while piece := sock.recv(size):
            assert len(piece) <= size
            read.append(piece)
        assert b"".join(read) == data + data


def test_peeking_within_a_record() -> None:
    with wired(SUITES[1]) as (sock, wire):
        wire.send_data(b"abcdef")
        assert sock.recv(2) == b"ab"
        for _ in range(2):
            assert sock.recv(3, socket.MSG_PEEK) == b"cde"
        assert sock.recv(100) == b"cdef"


def test_waiting_for_all_goes_on_over_records() -> None:
    with wired(SUITES[1]) as (sock, wire):
        for piece in (b"abc", b"", b"def", b"ghi"):
            wire.send_data(piece)
        assert sock.recv(8, socket.MSG_WAITALL) == b"abcdefgh"
        buffer = bytearray(1)
        assert sock.recv_into(buffer) == 1
        assert buffer == b"i"


@over_suites
def test_empty_records_are_no_end(suite: Any) -> None:
    with wired(suite) as (sock, wire):
        for piece in (b"", b"a", b"", b"", b"b"):
            wire.send_data(piece)
        assert recv_exactly(sock, 2) == b"ab"
        wire.send_data(b"")
        wire.close_notify()
        assert sock.recv(1) == b""


@over_suites
@pytest.mark.parametrize("size", [1, 2, 100])
def test_an_alert_is_never_data(suite: Any, size: int) -> None:
    with wired(suite) as (sock, wire):
        wire.send_data(b"data")
        wire.send_alert(2, 80)
        assert recv_exactly(sock, 4) == b"data"
        for _ in range(2):
            with pytest.raises(TLSAlert, match="internal_error") as caught:
                sock.recv(size)
            assert caught.value.description == 80


@over_suites
def test_close_notify_ends_the_stream(suite: Any) -> None:
    with wired(suite) as (sock, wire):
        wire.close_notify()
        assert sock.recv(100) == b""
        assert sock.recv(100) == b""
        sock.close()
        assert wire.recv_all() == (b"", [(records.ALERT, b"\1\0")])


@over_suites
def test_an_end_without_close_notify(suite: Any) -> None:
    with wired(suite) as (sock, wire):
        wire.send_data(b"data")
        wire.sock.close()
        assert recv_exactly(sock, 4) == b"data"
        for _ in range(2):
            with pytest.raises(TruncationError):
                sock.recv(100)


@pytest.mark.parametrize("size", [10, 100_000])
def test_urgent_data_is_refused_and_ends_nothing(size: int) -> None:
    with wired(kernel.suite(TLS_1_3)) as (sock, wire):
        for call in (sock.recv, lambda n, flags: sock.recv_into(bytearray(n), n, flags)):
            with pytest.raises(OSError, match="recvmsg: ") as caught:
                call(size, socket.MSG_OOB)
            assert caught.value.errno == errno.EOPNOTSUPP
        wire.send_data(b"data")
        assert recv_exactly(sock, 4) == b"data"
        sock.sendall(b"back")
        assert wire.recv_data(4) == b"back"


@over_suites
def test_an_end_within_a_record(suite: Any) -> None:
    with wired(suite) as (sock, wire):
        wire.raw(wire.seal(23, b"data")[:-1])
        wire.sock.close()
        for _ in range(2):
            with pytest.raises(TruncationError, match="without close_notify"):
                sock.recv(100)


def one_read_too_many(sock: KTLSSocket) -> None:
    """A read after a fatal error: it must not reach the kernel, which would block for ever."""

    def read() -> None:
        with pytest.raises(RecordError):
            sock.recv(100)

    Background(read).result(5)


@over_suites
def test_a_bad_record_before_a_good_one(suite: Any, decrypted: Any) -> None:
    with wired(suite) as (sock, wire):
        bad = bytearray(wire.seal(23, b"first"))
        bad[-1] ^= 1
        wire.raw(bytes(bad) + wire.seal(23, b"second"))
        decrypted(sock, len(b"second"))
        assert sock.recv(100) == b"second"  # nobody can know yet
        with pytest.raises(RecordError, match="data read just before may be what followed it"):
            sock.recv(100)
        one_read_too_many(sock)
        assert wire.recv() == (records.ALERT, b"\2\x14")  # bad_record_mac


@pytest.mark.parametrize(
    ("suite", "change"),
    [
        (suite, change)
        for suite in SUITES
        for change in ("version", "too short", "type")
        # TLS 1.2 shows every type: there that is a bad MAC.
        if change != "type" or suite.version == TLS_1_3
    ],
    ids=lambda value: value if isinstance(value, str) else kernel.suite_id(value),
)
def test_broken_headers_are_final(suite: Any, change: str) -> None:
    with wired(suite) as (sock, wire):
        record = bytearray(wire.seal(23, b"first"))
        if change == "version":
            record[2] = 1
        elif change == "type":
            record[0] = 21
        else:
            record = record[:3] + b"\0\1x"
        wire.raw(bytes(record))
        with pytest.raises(RecordError):
            sock.recv(100)
        one_read_too_many(sock)


def test_a_reset_is_final() -> None:
    with wired(SUITES[1]) as (sock, wire):
        tls_linger(wire.sock)
        wire.sock.close()
        for _ in range(2):
            with pytest.raises(ConnectionResetError):
                sock.recv(100)


def tls_linger(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def test_a_key_update_cannot_be_followed() -> None:
    with offloaded(TLS_1_3) as (sock, peer):
        tls.send_key_update(peer, request=False)
        peer.sendall(b"under new keys")
        for _ in range(2):
            with pytest.raises(RecordError, match="FreeBSD takes the keys of a direction once"):
                sock.recv(100)
        with pytest.raises(BrokenPipeError):
            sock.send(b"x")


def spoil(wire: kernel.Wire) -> None:
    """A record that was changed on the way, and a good one behind it."""
    bad = bytearray(wire.seal(23, b"changed"))
    bad[-1] ^= 1
    wire.raw(bytes(bad) + wire.seal(23, b"behind"))


def cut(wire: kernel.Wire) -> None:
    wire.raw(wire.seal(23, b"never whole")[:-1])
    wire.sock.shutdown(socket.SHUT_WR)


def send_a_file(sock: KTLSSocket) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"a file")
        file.flush()
        sock.sendfile(file)


over_damages = pytest.mark.parametrize(
    ("damage", "error"), [(spoil, RecordError), (cut, TruncationError)], ids=["spoilt", "cut"]
)
SENDS = {
    "send": lambda sock: sock.send(b"x"),
    "sendall": lambda sock: sock.sendall(b"x"),
    "sendmsg": lambda sock: sock.sendmsg([b"x"]),
    "an iterator": lambda sock: sock.sendmsg(iter([b"x"])),
    "sendfile": send_a_file,
}


@pytest.mark.parametrize("send", SENDS)
@over_damages
@over_versions
def test_what_a_send_is_told_about_receiving_is_kept(
    version: int, damage: Any, error: type[Exception], send: str
) -> None:
    """The kernel gives the error to whoever calls next, and forgets it."""
    with wired(kernel.suite(version)) as (sock, wire):
        damage(wire)
        time.sleep(0.2)
        for call in (SENDS[send], lambda sock: sock.recv(100), lambda sock: sock.recv(100)):
            with pytest.raises(error):
                call(sock)
        if damage is cut:  # an end of the other direction
            sock.sendall(b"goes on")
            assert wire.recv_data(7) == b"goes on"
            return
        with pytest.raises((BrokenPipeError, RecordError)):
            sock.send(b"x")
        record_type, payload = wire.recv()
        assert (record_type, payload[0]) == (records.ALERT, 2)


@over_damages
@pytest.mark.parametrize("how", ["close", "shutdown", "unwrap"])
@over_versions
def test_closing_says_close_notify_after_a_bad_record(
    version: int, damage: Any, error: type[Exception], how: str
) -> None:
    with wired(kernel.suite(version)) as (sock, wire):
        damage(wire)
        time.sleep(0.2)
        if how == "close":
            sock.close()
        elif how == "shutdown":
            sock.shutdown(socket.SHUT_WR)
            with pytest.raises(error):
                sock.recv(100)
        else:
            with pytest.raises(error):
                sock.unwrap()
        assert wire.recv() == (records.ALERT, b"\1\0")


def test_a_default_timeout_does_not_change_the_descriptor() -> None:
    near, far = tls.tcp_pair()
    own, other = kernel.sessions(kernel.suite(TLS_1_3))
    near.settimeout(None)
    socket.setdefaulttimeout(5)
    try:
        with near, far:
            wire = kernel.Wire(far, other)
            pyktls.install(near, own)
            assert near.gettimeout() is None
            assert os.get_blocking(near.fileno())
            wire.send_data(b"it waits")
            assert freebsd.recv_record(near, 100).data == b"it waits"
    finally:
        socket.setdefaulttimeout(None)


def test_a_timeout_loses_nothing() -> None:
    with wired(SUITES[1]) as (sock, wire):
        record = wire.seal(23, b"slow")
        wire.raw(record[:10])
        sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            sock.recv(100)
        wire.raw(record[10:])
        sock.settimeout(20)
        assert sock.recv(100) == b"slow"


# ---- sending ---------------------------------------------------------------------------------


@over_suites
def test_records_on_the_wire(suite: Any) -> None:
    with wired(suite) as (sock, wire):
        sock.sendall(bytes(20000))
        assert [len(wire.recv()[1]) for _ in range(2)] == [16384, 3616]
        assert sock.sendmsg([b"ga", b"", b"thered"]) == 8
        assert wire.recv() == (23, b"gathered")
        assert sock.send(b"") == 0
        sock.close()
        assert wire.recv() == (21, b"\1\0")


def test_what_a_full_buffer_holds_back_is_not_lost_at_close() -> None:
    with wired(SUITES[1]) as (sock, wire):
        sock.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += sock.send(kernel.pattern(50_000))
        assert sent
        with Background(wire.recv_all) as far:
            sock.close()
            data, others = far.result()
        assert len(data) == sent
        assert others == [(21, b"\1\0")]


@pytest.fixture(scope="module")
def content() -> bytes:
    return kernel.pattern(1_000_000)


@pytest.fixture
def file(content: bytes) -> Iterator[Any]:
    with tempfile.TemporaryFile() as f:
        f.write(content)
        f.seek(0)
        yield f


@pytest.mark.parametrize(
    ("offset", "count", "expected"),
    [
        (0, None, slice(0, None)),
        (100, None, slice(100, None)),
        (100, 40000, slice(100, 40100)),
        (999_990, 100, slice(999_990, None)),
        (2_000_000, None, slice(0, 0)),
    ],
)
@pytest.mark.parametrize("timeout", [None, 20.0])
def test_sendfile(
    content: bytes, file: Any, offset: int, count: int | None, expected: slice, timeout: float
) -> None:
    wanted = content[expected]
    with wired(SUITES[1]) as (sock, wire):
        sock.settimeout(timeout)
        with Background(wire.recv_all) as far:
            assert sock.sendfile(file, offset, count) == len(wanted)
            sock.close()
            data, others = far.result()
        assert data == wanted
        assert others == [(21, b"\1\0")]
        assert file.tell() == (offset + len(wanted) if wanted else 0)


def test_sendfile_to_openssl(content: bytes, file: Any) -> None:
    with (
        offloaded(TLS_1_2, "ECDHE-RSA-AES256-GCM-SHA384") as (sock, peer),
        Background(recv_exactly, peer, len(content)) as far,
    ):
        sock.sendfile(file)
        assert far.result() == content


def test_sendfile_that_takes_too_long(file: Any) -> None:
    with wired(SUITES[1]) as (sock, wire):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        sock.settimeout(0.1)
        with contextlib.suppress(TimeoutError):
            for _ in range(100):
                sock.sendfile(file)
            pytest.fail("there always was room")
        assert 0 < file.tell() < 1_000_000  # tells how far it came
        tls_linger(sock)


def test_sendfile_of_what_is_no_file(file: Any) -> None:
    with wired(SUITES[1]) as (sock, wire):
        assert sock.sendfile(io.BytesIO(b"in memory")) == 9
        assert wire.recv() == (23, b"in memory")
        sock.setblocking(False)
        with pytest.raises(ValueError, match="non-blocking"):
            sock.sendfile(file)


def test_nothing_goes_out_in_the_clear(file: Any, content: bytes) -> None:
    """All bytes on the wire, looked through for what was sent."""
    with wired(SUITES[1]) as (sock, wire):
        seen = bytearray()

        def drain() -> None:
            while piece := wire.sock.recv(1 << 16):
                seen.extend(piece)

        thread = threading.Thread(target=drain)
        thread.start()
        sock.sendall(b"not to be seen" * 10)
        sock.sendfile(file)
        sock.close()
        thread.join()
    assert b"not to be seen" not in seen
    assert content[5000:5064] not in seen


# ---- closing ---------------------------------------------------------------------------------


@over_versions
@over_roles
def test_unwrap_with_openssl(version: int, role: Role) -> None:
    with offloaded(version, role=role) as (sock, peer):
        with Background(peer.unwrap):
            sock.unwrap()
        sock.close()


@over_versions
def test_shutdown_and_read_on(version: int) -> None:
    with offloaded(version) as (sock, peer):
        sock.sendall(b"question")
        sock.shutdown(socket.SHUT_WR)
        assert recv_to_end(peer) == b"question"
        if version == TLS_1_3:
            peer.sendall(b"answer")
            assert recv_exactly(sock, 6) == b"answer"


# ---- what cannot be switched -----------------------------------------------------------------


@contextlib.contextmanager
def refused(kind: type[Exception], match: str, cipher: str = "AES128-GCM-SHA256") -> Iterator[None]:
    """offload fails, and the connection goes on with OpenSSL."""
    with handshaken(TLS_1_2, cipher, Role.CLIENT, install=False) as (sock, peer):
        with pytest.raises(kind, match=match):
            pyktls.offload(sock)
        both_ways(sock, peer)
        yield


def test_the_gate_is_closed(fake: Any) -> None:
    fake.set_sysctl("kern.ipc.tls.enable", 0)
    with refused(Unavailable, r"an administrator can open it with `sysctl kern.ipc.tls.enable=1`$"):
        pass


def test_receiving_is_switched_off(fake: Any) -> None:
    fake.set_sysctl("kern.ipc.tls.rx_enable", 0)
    with refused(Unavailable, r"with `sysctl kern.ipc.tls.rx_enable=1`$"):
        pass
    with kernel.openssl_pair(TLS_1_3) as (ours, peer):
        session = pyktls.extract(ours)
        with socket.socket(fileno=ours.detach()) as plain:
            pyktls.install(plain, session, rx=False)  # sending alone is possible
            freebsd.send_record(plain, b"sent", 23)
            assert recv_exactly(peer, 4) == b"sent"


def test_cbc_is_switched_off(fake: Any) -> None:
    fake.set_sysctl("kern.ipc.tls.cbc_enable", 0)
    with refused(Unavailable, r"with `sysctl kern.ipc.tls.cbc_enable=1`$", "AES128-SHA"):
        pass


def test_no_unmapped_buffers(fake: Any) -> None:
    fake.set_sysctl("kern.ipc.mb_use_ext_pgs", 0)
    with refused(Unavailable, r"an administrator can set kern.ipc.mb_use_ext_pgs to 1"):
        pass


def test_no_kernel_tls(fake: Any) -> None:
    fake.kern_tls = False
    with refused(Unavailable, "need `options KERN_TLS`$"):
        pass


@pytest.mark.parametrize(
    ("version", "cipher"), [(TLS_1_3, "TLS_AES_128_GCM_SHA256"), (TLS_1_2, "AES128-SHA")]
)
def test_an_old_release_sends_and_does_not_receive(fake: Any, version: int, cipher: str) -> None:
    fake.release = 13
    with handshaken(version, cipher, Role.CLIENT, install=False) as (ours, peer):
        with pytest.raises(Unavailable, match=r"this is FreeBSD 13: .*`kldload ktls_ocf`"):
            pyktls.offload(ours)
        both_ways(ours, peer)
        session = pyktls.extract(ours)
        with socket.socket(fileno=ours.detach()) as plain:
            pyktls.install(plain, session, rx=False)
            freebsd.send_record(plain, b"sent", 23)
            assert recv_exactly(peer, 4) == b"sent"


def test_a_kernel_that_says_yes_and_does_nothing(fake: Any) -> None:
    fake.broken_promise = True
    with refused(Unavailable, "accepted the rx keys and then denied having them"):
        pass


def test_ciphers_that_freebsd_lacks() -> None:
    with refused(Unavailable, r"FreeBSD has no such cipher.*AES-GCM for instance$", "AES128-CCM"):
        pass


def test_kernel_tls_that_is_on_already() -> None:
    own, _ = kernel.sessions(SUITES[1])
    second, _ = kernel.sessions(SUITES[1])
    near, far = tls.tcp_pair()
    with near, far:
        pyktls.install(near, own)
        with pytest.raises(HandoffRefused, match="already on for tx and rx"):
            pyktls.install(near, second)


def test_a_session_is_installed_once() -> None:
    own, _ = kernel.sessions(SUITES[1])
    near, far = tls.tcp_pair()
    with near, far:
        pyktls.install(near, own)
        with pytest.raises(HandoffRefused, match="installed already"):
            pyktls.install(far, own)


def test_receiving_keys_go_first(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[int] = []
    real = freebsd.set_tls_enable

    def note(sock: Any, direction: int, info: Any) -> None:
        order.append(direction)
        real(sock, direction, info)

    own, _ = kernel.sessions(SUITES[1])
    near, far = tls.tcp_pair()
    with near, far:
        pyktls.install(near, own)
        fake.calls.clear()
        monkeypatch.setattr(freebsd, "set_tls_enable", note)
        pyktls.install(far, kernel.sessions(SUITES[1])[0])
    assert order == [freebsd.TCP_RXTLS_ENABLE, freebsd.TCP_TXTLS_ENABLE]


def test_errors_name_the_call() -> None:
    own, _ = kernel.sessions(SUITES[1])
    with socket.socket() as fresh, pytest.raises(HandoffRefused, match="not connected"):
        pyktls.install(fresh, own)
    with (
        tempfile.TemporaryFile() as no_socket,
        pytest.raises(OSError, match=r"setsockopt\(IPPROTO_TCP, TCP_TXTLS_ENABLE\)") as caught,
    ):
        freebsd.set_tls_enable(no_socket, freebsd.TCP_TXTLS_ENABLE, kernel_info())
    assert caught.value.errno == errno.ENOTSOCK


def kernel_info() -> freebsd.TLSEnable:
    return freebsd.TLSEnable(
        TLS_1_3, freebsd.CRYPTO_AES_NIST_GCM_16, key=bytes(16), iv=bytes(12), rec_seq=0
    )


@over_versions
def test_a_drop_in_socket_sends_a_file_with_what_goes_around_it(version: int) -> None:
    client, server = tls.contexts(version, watch=False)
    pyktls.wrap_context(client, require=True)
    with tls.connect(client, server) as pair, tempfile.TemporaryFile() as file:
        sock, peer = pair.ends()[0]
        file.write(b"the file")
        file.seek(0)
        assert sock.sendfile(file, headers=[b"head", b" "], trailers=[b" tail"]) == 18
        assert recv_exactly(peer, 18) == b"head the file tail"
