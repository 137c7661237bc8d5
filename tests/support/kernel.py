"""Kernel TLS connections for tests/kernel, with one end in our hands.

``sessions(suite)`` makes the two mirrored sessions of a connection that no handshake made, so that
the keys are known.  From them:

* ``wired(suite, role)``: a ``KTLSSocket``, and opposite it a ``Wire``, which is a plain TCP socket
  with the user-space record layer of records.py: it can send what no TLS library would.
* ``offloaded(version, ...)``: a ``KTLSSocket`` that took over from OpenSSL, and opposite it an
  unmodified ``ssl.SSLSocket``.

``Background`` runs the other end's part in a thread and hands on what it raised.  Nothing here
waits for longer than TIMEOUT.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import socket
import ssl
import sys
import threading
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import pytest

import pyktls
from pyktls import (
    DirectionKeys,
    HandoffRefused,
    KTLSSocket,
    RecordError,
    Role,
    Session,
    freebsd,
    linux,
    switch,
    takeover,
)
from pyktls.ciphers import AEADS, TLS_1_2, TLS_1_3, CipherSuite, suites
from pyktls.errors import syscall_error
from pyktls.key_schedule import traffic_keys
from pyktls.lowlevel import lib
from pyktls.protocol import KEY_UPDATE
from pyktls.session import iv_length
from pyktls.socket_calls import setsockopt

from . import records, tls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")
TIMEOUT = 30.0
ON_FREEBSD = lib.pyktls_system() == lib.PYKTLS_FREEBSD
#: The kernel's interface, for what both have: recv_record, send_record, sendfile.
interface = freebsd if ON_FREEBSD else linux

#: The algorithms that every kernel of the lab has, by name.
CIPHERS = ("AES_128_GCM", "AES_256_GCM", "AES_128_CCM", "CHACHA20_POLY1305")
VERSIONS = (TLS_1_2, TLS_1_3)
VERSION_NAMES = {TLS_1_2: "TLS1.2", TLS_1_3: "TLS1.3"}
OPENSSL_VERSIONS = {TLS_1_2: ssl.TLSVersion.TLSv1_2, TLS_1_3: ssl.TLSVersion.TLSv1_3}


def aead_by_name(name: str) -> pyktls.AEAD:
    return next(aead for aead in AEADS if aead.name == name)


def suite(version: int, cipher: str = "AES_128_GCM") -> CipherSuite:
    """A suite of that version with that algorithm."""
    return suites(version=version, aead=aead_by_name(cipher))[0]


SUITES = tuple(suite(version, cipher) for version in VERSIONS for cipher in CIPHERS)
ONE_OF_EACH = tuple(suite(version) for version in VERSIONS)


def suite_id(value: CipherSuite) -> str:
    return f"{VERSION_NAMES[value.version]}-{value.aead.name}"


# ---- what this kernel does, found by trying --------------------------------------------------


def kernel_takes(value: CipherSuite) -> bool:
    return linux.system.cipher_refusal(value.version, value.aead) is None


def kernel_can_rekey() -> bool:
    """Whether a second TLS_RX key is taken in TLS 1.3 (the selftest's ``rekey``; Linux 6.14)."""
    if ON_FREEBSD:
        return False
    near, far = tls.tcp_pair()
    with near, far:
        linux.set_ulp(near)
        info = crypto_info(suite(TLS_1_3))
        linux.set_crypto_info(near, linux.TLS_RX, info)
        try:
            linux.set_crypto_info(near, linux.TLS_RX, info)
        except OSError as e:
            if e.errno != errno.EBUSY:
                raise
            return False
        return True


#: Why keys cannot be changed where ``kernel_can_rekey`` says no.
NO_REKEY = "Linux can since 6.14"
#: With this a KeyUpdate of the peer ends the connection there.
CANNOT_FOLLOW = (
    f"the peer changed its keys (KeyUpdate), and this kernel cannot follow: {NO_REKEY} "
    "([Errno 16] setsockopt(SOL_TLS, TLS_RX): Device or resource busy)"
)
#: What pyktls.status has as ``ulp`` of a connection with keys.
ULP = "tls"
if ON_FREEBSD:
    NO_REKEY = "FreeBSD takes the keys of a direction once, and has no rekey"
    CANNOT_FOLLOW = (
        f"the peer changed its keys (KeyUpdate), and this kernel cannot follow: {NO_REKEY} "
        f"({syscall_error(errno.EALREADY, 'setsockopt(IPPROTO_TCP, TCP_RXTLS_ENABLE)')})"
    )
    ULP = ""


def version_told(version: int) -> int | None:
    """What pyktls.status has as ``version`` of a connection of that version."""
    return None if ON_FREEBSD else version


def expect_no_pad(sock: socket.socket) -> None:
    """TLS_RX_EXPECT_NO_PAD on, on kernels too where pyktls does not offer it: for what is shown."""
    on = (1).to_bytes(4, sys.byteorder)
    setsockopt(sock.fileno(), linux.SOL_TLS, linux.TLS_RX_EXPECT_NO_PAD, on, "setsockopt")


# ---- sessions that no handshake made ---------------------------------------------------------


def crypto_info(
    value: CipherSuite, *, rec_seq: int = 0, aead: pyktls.AEAD | None = None, version: int = 0
) -> linux.CryptoInfo:
    """Random keys in the kernel's form; ``aead`` and ``version`` in place of the suite's."""
    aead = aead or value.aead
    salt = 0 if aead.implicit_iv_length == 12 else 4
    return linux.CryptoInfo(
        version or value.version,
        aead.linux.cipher_type,
        key=os.urandom(aead.key_length),
        salt=os.urandom(salt),
        iv=os.urandom(12 - salt),
        rec_seq=rec_seq,
    )


def direction_keys(value: CipherSuite, sequence: int) -> DirectionKeys:
    if value.version == TLS_1_3:
        secret = os.urandom(value.hash_length)
        key, iv = traffic_keys(value, secret)
        return DirectionKeys(key, iv, sequence, secret=secret)
    return DirectionKeys(os.urandom(value.aead.key_length), os.urandom(iv_length(value)), sequence)


def copy_keys(keys: DirectionKeys) -> DirectionKeys:
    return DirectionKeys(keys.key, keys.iv, keys.sequence, secret=keys.secret)


def sessions(
    value: CipherSuite, role: Role = Role.CLIENT, sent: int = 5
) -> tuple[Session, Session]:
    """The session of one end, which has sent so many records, and that of the other end."""
    # TLS 1.2: Finished was record 0 (RFC 5246 section 6.1).
    one = direction_keys(value, sent)
    two = direction_keys(value, 1)
    other = Role.SERVER if role is Role.CLIENT else Role.CLIENT
    return (
        Session(value, role, one, two),
        Session(value, other, copy_keys(two), copy_keys(one)),
    )


# ---- one end on the wire ---------------------------------------------------------------------


class Wire:
    """A TCP socket and a record layer of our own: the peer that can misbehave."""

    def __init__(self, sock: socket.socket, session: Session) -> None:
        self.sock = sock
        self.sealer = records.Sealer(session.cipher, session.tx)
        self.opener = records.Opener(session.cipher, session.rx)

    def seal(self, record_type: int, payload: bytes, *, padding: int = 0) -> bytes:
        return self.sealer.seal(record_type, payload, padding=padding)

    def send(self, record_type: int, payload: bytes, *, padding: int = 0) -> None:
        self.sock.sendall(self.seal(record_type, payload, padding=padding))

    def send_data(self, payload: bytes) -> None:
        self.send(records.APPLICATION_DATA, payload)

    def send_alert(self, level: int, description: int) -> None:
        self.send(records.ALERT, bytes((level, description)))

    def close_notify(self) -> None:
        self.send_alert(1, 0)

    def raw(self, data: bytes) -> None:
        self.sock.sendall(data)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.sock.recv(size - len(data))
            if not piece:
                raise EOFError(f"the stream ended after {len(data)} of {size} bytes")
            data += piece
        return data

    def recv(self) -> tuple[int, bytes]:
        """The next record, opened: ``(type, payload)``; EOFError at the end of the stream."""
        return self.opener.open(records.read_record(self._exactly))

    def recv_data(self, size: int) -> bytes:
        """That many bytes of application data."""
        data = b""
        while len(data) < size:
            record_type, payload = self.recv()
            assert record_type == records.APPLICATION_DATA
            data += payload
        assert len(data) == size
        return data

    def recv_all(self) -> tuple[bytes, list[tuple[int, bytes]]]:
        """Everything up to the end of the stream: the data, and the records that are none.

        Goes on to the next keys at a KeyUpdate.
        """
        data = bytearray()
        others = []
        while True:
            try:
                record_type, payload = self.recv()
            except EOFError:
                return bytes(data), others
            if record_type == records.APPLICATION_DATA:
                data += payload
            else:
                others.append((record_type, payload))
                if record_type == records.HANDSHAKE and payload[0] == KEY_UPDATE:
                    self.opener.rekey()


@contextlib.contextmanager
def wired(
    value: CipherSuite, role: Role = Role.CLIENT, sent: int = 5
) -> Iterator[tuple[KTLSSocket, Wire]]:
    """A KTLSSocket with hand-made keys, and the ``Wire`` opposite."""
    own, other = sessions(value, role, sent)
    near, far = tls.tcp_pair()
    with far:
        wire = Wire(far, other)
        with near:
            pyktls.install(near, own)
            near.settimeout(None)
            sock = KTLSSocket(own, near.detach())
        sock.settimeout(TIMEOUT)
        far.settimeout(TIMEOUT)
        try:
            yield sock, wire
        finally:
            far.close()
            close_quietly(sock)


@contextlib.contextmanager
def keyed(own: Session, other: Session) -> Iterator[tuple[KTLSSocket, KTLSSocket]]:
    """Two KTLSSockets opposite each other, with hand-made keys."""
    near, far = tls.tcp_pair()
    with near, far:
        made = []
        for tcp, session in ((near, own), (far, other)):
            pyktls.install(tcp, session)
            tcp.settimeout(None)
            made.append(KTLSSocket(session, tcp.detach()))
            made[-1].settimeout(TIMEOUT)
    try:
        yield made[0], made[1]
    finally:
        for sock in made:
            close_quietly(sock)


def close_quietly(sock: socket.socket) -> None:
    """Close at the end of a test, whatever state the test has left."""
    with contextlib.suppress(OSError):
        sock.close()


def assert_ended_by_key_update(sock: KTLSSocket, wire: Wire) -> None:
    """Both ends learn it where the kernel cannot follow: here in words, there as internal_error."""
    for _ in range(2):
        with pytest.raises(RecordError, match=f"^{re.escape(CANNOT_FOLLOW)}$"):
            sock.recv(100)
    with pytest.raises(BrokenPipeError, match="after the end of the TLS connection"):
        sock.send(b"x")
    assert wire.recv() == (records.ALERT, b"\x02\x50")


def new_session_ticket(size: int = 18) -> bytes:
    """A NewSessionTicket message of ``size`` bytes, 18 or more (RFC 8446 section 4.6.1)."""
    ticket = size - 4 - 4 - 4 - 1 - 2 - 2
    assert ticket > 0
    body = bytes(8) + b"\0" + ticket.to_bytes(2, "big") + b"t" * ticket + bytes(2)
    return b"\x04" + len(body).to_bytes(3, "big") + body


# ---- one end in OpenSSL ----------------------------------------------------------------------


@contextlib.contextmanager
def openssl_pair(
    version: int, cipher: str | None = None, role: Role = Role.CLIENT, **knobs: Any
) -> Iterator[tuple[ssl.SSLSocket, ssl.SSLSocket]]:
    """``(watched end, other end)``: a handshaken pair, of which only the one in ``role`` is ours.

    The other end is as the ssl module makes it: its context is not watched.
    """
    client, server = tls.contexts(OPENSSL_VERSIONS[version], cipher, watch=False, **knobs)
    pyktls.watch(client if role is Role.CLIENT else server)
    with tls.connect(client, server) as pair:
        pair.client.settimeout(TIMEOUT)
        pair.server.settimeout(TIMEOUT)
        yield (pair.client, pair.server) if role is Role.CLIENT else (pair.server, pair.client)


@contextlib.contextmanager
def offloaded(
    version: int, cipher: str | None = None, role: Role = Role.CLIENT, **knobs: Any
) -> Iterator[tuple[KTLSSocket, ssl.SSLSocket]]:
    """A KTLSSocket that took over from OpenSSL, and the ``ssl.SSLSocket`` opposite."""
    with openssl_pair(version, cipher, role, **knobs) as (own, peer):
        sock = pyktls.offload(own)
        try:
            yield sock, peer
        finally:
            peer.close()
            close_quietly(sock)


@contextlib.contextmanager
def receiving_refused() -> Iterator[None]:
    """Connections whose receiving half is in no state to be handed over."""

    def install(fd: int, session: Session, *, tx: bool, rx: bool) -> None:
        if rx:
            raise HandoffRefused("this connection does not receive through the kernel")
        switch.install_fd(fd, session, tx=tx, rx=rx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(takeover, "install_fd", install)
        yield


# ---- threads ---------------------------------------------------------------------------------


class Background(Generic[T]):
    """A call in a thread.  ``result()`` waits for it, and raises what it raised.

    As a context manager it waits at the end of the block.
    """

    def __init__(self, call: Callable[..., T], *args: Any) -> None:
        self._call = call
        self._args = args
        self._value: T | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._call(*self._args)
        except BaseException as e:  # noqa: BLE001  (raised again by result)
            self._error = e

    def done(self) -> bool:
        return not self._thread.is_alive()

    def result(self, timeout: float = 2 * TIMEOUT) -> T:
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "the other end did not finish"
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def fails(self, *kinds: type[BaseException], match: str | None = None) -> None:
        """See that the call has raised one of these, which then is not raised again."""
        with pytest.raises(kinds, match=match):
            self.result()
        self._error = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.result()
        else:
            self._thread.join(TIMEOUT)


@contextlib.contextmanager
def number_of_another(sock: socket.socket, let_go: Callable[[], object]) -> Iterator[None]:
    """Let go of a socket, and have another one get the number of its descriptor.

    In the end that has what was sent to it, and has sent nothing.
    """
    other, others_peer = socket.socketpair()
    with other, others_peer:
        number = sock.fileno()
        let_go()
        os.dup2(other.fileno(), number)
        try:
            others_peer.sendall(b"for somebody else")
            yield
            other.setblocking(False)
            assert other.recv(100) == b"for somebody else"
            others_peer.setblocking(False)
            with pytest.raises(BlockingIOError):
                others_peer.recv(100)
        finally:
            os.close(number)


def wait_readable(sock: socket.socket) -> None:
    """Wait until there is something to be read, the end of the stream included."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    assert poll.poll(TIMEOUT * 1000), "nothing came"


def recv_exactly(sock: socket.socket, size: int) -> bytes:
    """That many bytes, from any kind of socket."""
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(min(size - len(data), 1 << 16))
        assert piece, f"the stream ended after {len(data)} of {size} bytes"
        data += piece
    return bytes(data)


def recv_to_end(sock: socket.socket) -> bytes:
    """All bytes up to the clean end of the stream."""
    data = bytearray()
    while piece := sock.recv(1 << 16):
        data += piece
    return bytes(data)


def both_ways(one: socket.socket, two: socket.socket, data: bytes = b"both ways") -> None:
    """Show that a connection works: data goes in both directions."""
    for sender, receiver in ((one, two), (two, one)):
        sender.sendall(data)
        assert recv_exactly(receiver, len(data)) == data


def fill(sock: socket.socket, chunk: int) -> bytes:
    """Send without blocking until nothing more is taken; returns what was."""
    data = pattern(2_000_000)
    sock.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < len(data):
            sent += sock.send(data[sent : sent + chunk])
    return data[:sent]


def clog(sock: socket.socket) -> int:
    """Send without waiting until nothing moves any more; returns the number of bytes taken.

    FreeBSD encrypts and sends in threads of its own, and soon has room again.
    """
    sock.setblocking(False)
    sent = 0
    while select.select([], [sock], [], 0.3)[1]:
        with contextlib.suppress(BlockingIOError, ssl.SSLWantWriteError):
            while True:
                sent += sock.send(bytes(16384))
    return sent


def echo(sock: socket.socket) -> int:
    """Send back what comes until the peer ends the stream; returns the number of bytes."""
    count = 0
    while data := sock.recv(1 << 16):
        sock.sendall(data)
        count += len(data)
    return count


def duplex(sock: socket.socket, data: bytes, size: int) -> bytes:
    """Send ``data`` and receive ``size`` bytes at the same time, in one thread, non-blocking.

    (An ``ssl.SSLSocket`` must not be used by two threads at once.)
    """
    sock.setblocking(False)
    view = memoryview(data)
    received = bytearray()
    poll = select.poll()
    while view or len(received) < size:
        wanted = (select.POLLIN if len(received) < size else 0) | (select.POLLOUT if view else 0)
        poll.register(sock, wanted)
        assert poll.poll(TIMEOUT * 1000), "nothing moves"
        with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            while len(received) < size:
                piece = sock.recv(min(size - len(received), 1 << 16))
                assert piece, "the stream ended"
                received += piece
        with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            # OpenSSL wants the same data again after a failure, so the piece does not change.
            while view:
                view = view[sock.send(view[: 1 << 16]) :]
    return bytes(received)


def pattern(size: int, seed: int = 1) -> bytes:
    """Bytes in which nothing can be lost, repeated or swapped unseen: numbered blocks."""
    filler = bytes(range(256)) * 4
    blocks = range(size // (len(filler) + 8) + 1)
    head = seed.to_bytes(4, "big")
    return b"".join(head + i.to_bytes(4, "big") + filler for i in blocks)[:size]
