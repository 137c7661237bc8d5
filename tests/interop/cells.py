"""The cells of the table: a peer, our role, a suite, a feature.  Each is tried, and judged.

The cells of one peer, role and suite are a ``Group``, and share connections (peer.Purpose).  On
every connection our end is handed over to the kernel right after the handshake, the kernel is asked
whether it has it, with the right version and cipher, and all data is compared.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import pathlib
import socket
import tempfile
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import pyktls
from pyktls import RecordError, Role, linux
from pyktls.ciphers import TLS_1_2, TLS_1_3, CipherSuite, suites
from support import kernel

from . import own
from .curl import Curl
from .gnutls import Gnutls
from .nginx import Nginx
from .openssl import Openssl
from .own import NotYet, Own, session_to_resume
from .peer import (
    DOWN,
    HOST,
    TIMEOUT,
    UP,
    End,
    Feature,
    Peer,
    Purpose,
    Refused,
    Setting,
    Side,
    Untold,
    connect_to,
    shorten,
    stopping,
)
from .python_ssl import PythonSSL, make_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, Iterator

PEERS: tuple[Peer, ...] = (
    Openssl(ktls=False),
    Openssl(ktls=True),
    Gnutls(),
    Curl(),
    Nginx(ktls=False),
    Nginx(ktls=True),
    PythonSSL(),
    Own(),
)
SMALL = b"0123456789\n"
# How a kernel that cannot change keys ends a connection: part of RecordError's text.
CANNOT_FOLLOW = "this kernel cannot follow"
#: Key exchanges that need more than a certificate of the server's.  Which one there was means
#: nothing to the kernel; each AEAD is there with all others.
_NOT_TRIED = ("PSK", "SRP", "ADH", "AECDH", "DSS")


class Kind(enum.StrEnum):
    """How a cell ended."""

    OK = "ok"
    #: The kernel cannot change keys, and the connection ended with the documented error.
    DOCUMENTED = "documented error"
    REFUSED = "refused by the peer"
    #: Nothing was lost, and whether the peer has seen the close_notify cannot be had from it.
    UNTOLD = "not told by the peer"
    NOT_YET = "not yet"
    FAILED = "failed"


@dataclass(frozen=True)
class Outcome:
    """``words``: why it is not OK.  ``peer_ktls``: what the kernel says of the peer's end."""

    kind: Kind
    words: str = ""
    peer_ktls: str = ""
    trace: str = ""


@dataclass(frozen=True)
class Group:
    """The cells of one peer and suite; ``role`` is ours."""

    peer: Peer
    role: Role
    suite: CipherSuite

    @property
    def peer_name(self) -> str:
        """What the peer is called in the other role."""
        return self.peer.server_name() if self.role is Role.CLIENT else self.peer.client_name()

    @property
    def features(self) -> list[Feature]:
        """TLS 1.2 has no KeyUpdate."""
        return [
            feature
            for feature in Feature
            if self.suite.version == TLS_1_3 or feature is not Feature.KEY_UPDATE
        ]

    def __str__(self) -> str:
        return f"{self.role}-{self.peer_name}-{self.suite.openssl_name}".replace(" ", "")


def kernel_suites(version: int) -> tuple[CipherSuite, ...]:
    """The suites with a certificate whose cipher this kernel takes."""
    return tuple(
        suite
        for suite in suites(version=version)
        if not any(word in suite.openssl_name for word in _NOT_TRIED)
        and linux.system.cipher_refusal(suite.version, suite.aead) is None
    )


def peers_and_roles() -> list[tuple[Peer, Role]]:
    """Every peer, with the roles that it leaves to us."""
    servers = [(peer, Role.CLIENT) for peer in PEERS if peer.is_server]
    clients = [(peer, Role.SERVER) for peer in PEERS if peer.is_client]
    return servers + clients


def groups() -> list[Group]:
    """Everything there is on this kernel."""
    chosen = [suite for version in (TLS_1_2, TLS_1_3) for suite in kernel_suites(version)]
    return [Group(peer, role, suite) for peer, role in peers_and_roles() for suite in chosen]


def representative() -> list[Group]:
    """Every peer in every role, with one suite of each version: each time another AEAD."""
    chosen = []
    for number, (peer, role) in enumerate(peers_and_roles()):
        for version in (TLS_1_2, TLS_1_3):
            cipher = kernel.CIPHERS[(number + version) % len(kernel.CIPHERS)]
            chosen.append(Group(peer, role, kernel.suite(version, cipher)))
    return chosen


@functools.cache
def can_rekey() -> bool:
    return kernel.kernel_can_rekey()


class DocumentedError(Exception):
    """The connection ended with the error that is documented for this kernel."""


class FullHandshake(AssertionError):
    """A session was there, and has not been resumed."""


def judge(error: Exception, peer_ktls: str = "") -> Outcome:
    """The outcome of what ended with an exception."""
    match error:
        case Untold():
            return Outcome(Kind.UNTOLD, str(error), peer_ktls)
        case Refused():
            return Outcome(Kind.REFUSED, str(error), peer_ktls)
        case NotYet():
            return Outcome(Kind.NOT_YET, str(error), peer_ktls)
        case DocumentedError():
            return Outcome(Kind.DOCUMENTED, str(error), peer_ktls)
    words = shorten(f"{type(error).__name__}: {error}")
    return Outcome(Kind.FAILED, words, peer_ktls, "".join(traceback.format_exception(error)))


@dataclass
class Connection:
    """One of ours, after the switch."""

    sock: pyktls.KTLSSocket
    end: End
    before: ssl.SSLSession | None
    reused: bool


def run(group: Group) -> dict[Feature, Outcome]:
    """Try all cells of a group.  Whatever happens is an outcome."""
    with tempfile.TemporaryDirectory(prefix="pyktls-peers-") as place:
        return Trial(group, Setting(pathlib.Path(place), group.suite)).run()


class Trial:
    """One run of a group."""

    def __init__(self, group: Group, setting: Setting) -> None:
        self.group = group
        self.setting = setting
        self.outcomes: dict[Feature, Outcome] = {}
        self.peer_ktls = ""
        self.try_it = {
            Feature.DATA: self.data,
            Feature.SENDFILE: self.sendfile,
            Feature.RESUMPTION: self.resumption,
            Feature.OUR_CLOSE: self.our_close,
            Feature.ITS_CLOSE: self.its_close,
            Feature.KEY_UPDATE: self.key_update,
        }

    def run(self, purposes: Iterable[Purpose] = Purpose) -> dict[Feature, Outcome]:
        for purpose in purposes:
            features = [f for f in self.group.features if f in purpose.value]
            if not features:
                continue
            try:
                self.counters = linux.tls_stat()
                with Opener(self.group, self.setting, purpose) as opener:
                    if purpose is Purpose.TRANSFER:
                        self.transfer(opener)
                    else:
                        self.one_connection(opener, features)
            except Exception as e:  # noqa: BLE001  (it belongs into the table)
                outcome = judge(e, self.peer_ktls)
                if purpose is Purpose.KEY_UPDATE and outcome.kind is Kind.FAILED:
                    outcome = self.control(outcome)
                # Where one connection ends for one of them, it ends for all that come after it.
                for feature in features:
                    self.outcomes.setdefault(feature, outcome)
        return {f: self.outcomes[f] for f in self.group.features if f in self.outcomes}

    def control(self, outcome: Outcome) -> Outcome:
        """The same KeyUpdate with Python's ``ssl`` in our place: if that fails too, it is the peer.

        (OpenSSL 3.0 announces new keys, and leaves the old ones in its kernel.)
        """
        try:
            with (
                Opener(self.group, self.setting, Purpose.KEY_UPDATE) as opener,
                opener.connection(switch=False) as connection,
            ):
                for request in (False, True):
                    connection.end.key_update(connection.sock, request=request)
                    assert connection.end.exchange(connection.sock, SMALL, SMALL) == (SMALL, SMALL)
        except AssertionError:
            return outcome
        except OSError as e:
            words = f"Python's ssl in our place cannot read on either: {e}"
            return Outcome(Kind.REFUSED, shorten(words), self.peer_ktls)
        return outcome

    def one_connection(
        self, opener: Opener, features: list[Feature], session: ssl.SSLSession | None = None
    ) -> None:
        with opener.connection(session) as connection:
            self.try_all(connection, features)

    def try_all(self, connection: Connection, features: Iterable[Feature]) -> None:
        for feature in features:
            try:
                self.try_it[feature](connection)
            except FullHandshake as e:
                self.outcomes[feature] = judge(e)  # the connection is as good as another
            else:
                self.outcomes[feature] = Outcome(Kind.OK, "", self.peer_ktls)

    def transfer(self, opener: Opener) -> None:
        """Two connections, of which the second resumes the first."""
        session = None
        with opener.connection() as connection:
            assert not connection.reused
            if connection.end.idle:
                assert connection.sock.recv(1) == b""
            else:
                self.try_all(connection, [Feature.DATA, Feature.SENDFILE])
            try:
                if self.group.role is Role.CLIENT:
                    session = session_to_resume(connection.sock, connection.before)
                else:
                    connection.end.remember()
            except NotYet as e:
                self.outcomes[Feature.RESUMPTION] = judge(e)
            connection.sock.close()
            connection.end.closed()
        rest = [f for f in Purpose.TRANSFER.value if f not in self.outcomes]
        self.one_connection(opener, rest, session)

    def resumption(self, connection: Connection) -> None:
        if not connection.reused:
            raise FullHandshake("the session was not resumed")
        assert connection.end.exchange(connection.sock, UP, DOWN) == (UP, DOWN)

    def data(self, connection: Connection) -> None:
        sock = connection.sock
        assert connection.end.exchange(sock, UP, DOWN) == (UP, DOWN)
        self.look_at_the_peer(sock)

    def sendfile(self, connection: Connection) -> None:
        path = self.setting.scratch("up.txt")
        path.write_bytes(UP)
        with path.open("rb") as file:
            sent: list[int] = []
            got = connection.end.take(
                connection.sock, lambda: sent.append(connection.sock.sendfile(file)), len(UP)
            )
        assert sent == [len(UP)]
        assert got == UP

    def our_close(self, connection: Connection) -> None:
        assert connection.end.take_then_see_close(connection.sock, UP) == UP
        assert connection.sock.fileno() == -1

    def its_close(self, connection: Connection) -> None:
        # Whatever reads to the end here gets TruncationError unless there is a close_notify.
        assert connection.end.give_then_close(connection.sock, DOWN) == DOWN

    def key_update(self, connection: Connection) -> None:
        """Both kinds: without, and with a request for ours."""
        sock, end = connection.sock, connection.end
        assert end.exchange(sock, UP, DOWN) == (UP, DOWN)
        for request in (False, True):
            before = linux.tls_stat()
            end.key_update(sock, request=request)
            if not can_rekey():
                self.expect_the_documented_error(sock)
                return
            assert end.exchange(sock, SMALL, SMALL) == (SMALL, SMALL)
            after = linux.tls_stat()
            if after["TlsRxRekeyReceived"] == before["TlsRxRekeyReceived"]:
                raise Refused("it goes on with its old keys, and says nothing")
            assert after["TlsRxRekeyOk"] > before["TlsRxRekeyOk"]
            if request:
                # The answer is due before the next data: there may have been a send under way.
                assert end.exchange(sock, SMALL, SMALL) == (SMALL, SMALL)
                assert linux.tls_stat()["TlsTxRekeyOk"] > before["TlsTxRekeyOk"]
        assert end.exchange(sock, DOWN, UP) == (DOWN, UP)
        check_our_end(sock, self.group.suite)

    @staticmethod
    def expect_the_documented_error(sock: pyktls.KTLSSocket) -> None:
        sock.settimeout(TIMEOUT / 4)
        try:
            data = sock.recv(1)
        except TimeoutError:
            raise Refused("it goes on with its old keys, and says nothing") from None
        except RecordError as e:
            if CANNOT_FOLLOW not in str(e):
                raise
            raise DocumentedError(str(e)) from e
        raise AssertionError(f"neither a KeyUpdate nor silence: {data!r}")

    def look_at_the_peer(self, sock: pyktls.KTLSSocket) -> None:
        """Find the peer's end among the kernel's TLS connections, and in the counters."""
        counters = {"tx": "TlsCurrTxSw", "rx": "TlsCurrRxSw"}
        stat = linux.tls_stat()
        ours, its = sock.getsockname()[1], sock.getpeername()[1]
        try:
            listed = {(found.local.port, found.remote.port): found for found in pyktls.sockets()}
        except pyktls.Unavailable:  # up to Linux 6.12 the list is for root
            directions = [
                name for name, counter in counters.items()
                if stat[counter] - self.counters[counter] > 1
            ]  # fmt: skip
        else:
            assert (ours, its) in listed
            found = listed.get((its, ours))
            modes = {} if found is None else {"tx": found.tx, "rx": found.rx}
            directions = [name for name, mode in modes.items() if mode]
            if found is not None and directions:
                suite = self.group.suite
                assert (found.version, found.cipher) == (suite.version, suite.aead.name)
        self.peer_ktls = "+".join(directions) or "none"
        assert self.group.peer.ktls or self.peer_ktls == "none"
        for name, counter in counters.items():
            assert stat[counter] >= 1 + (name in directions), (counter, stat[counter])


def check_our_end(sock: pyktls.KTLSSocket, suite: CipherSuite) -> None:
    """Ask the kernel."""
    found = sock.ktls
    assert found == pyktls.status(sock)
    assert found.tx, found
    assert found.rx, found
    assert (found.version, found.cipher) == (suite.version, suite.aead.name)


class Opener:
    """Starts the peer, and makes connections with it, one after the other."""

    def __init__(self, group: Group, setting: Setting, purpose: Purpose) -> None:
        self.group = group
        self.client = group.role is Role.CLIENT
        self.context = make_context(setting, server=not self.client)
        pyktls.watch(self.context)
        self.listener: socket.socket | None = None
        self.side: Side
        if self.client:
            self.side = group.peer.serve(setting, purpose)
        else:
            self.listener = socket.create_server(("127.0.0.1", 0))
            self.side = group.peer.connect(setting, purpose, self.listener.getsockname()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.side.stop()
        if self.listener is not None:
            self.listener.close()

    @contextlib.contextmanager
    def connection(
        self, session: ssl.SSLSession | None = None, *, switch: bool = True
    ) -> Iterator[Connection]:
        with stopping(self.side.begin()) as end:
            tcp = connect_to(self.side) if self.listener is None else self.accept(self.listener)
            tcp.settimeout(TIMEOUT)
            try:
                if self.client:
                    tls = self.context.wrap_socket(tcp, server_hostname=HOST, session=session)
                else:
                    tls = self.context.wrap_socket(tcp, server_side=True)
            except OSError as e:
                # So far none of ours has had a part in it but Python's own ssl.
                tcp.close()
                if words := self.side.refusal():
                    raise Refused(words) from e
                raise
            if end.idle or not switch:
                with tls:
                    yield Connection(tls, end, None, reused=False)
                return
            reused = bool(tls.session_reused)
            try:
                sock, before = own.switch(tls)
            except BaseException:
                tls.close()
                raise
            try:
                check_our_end(sock, self.group.suite)
                yield Connection(sock, end, before, reused)
            finally:
                kernel.close_quietly(sock)

    def accept(self, listener: socket.socket) -> socket.socket:
        """The client's connection; Refused if it ends before it makes one."""
        deadline = time.monotonic() + TIMEOUT
        listener.settimeout(0.2)
        while True:
            try:
                return listener.accept()[0]
            except TimeoutError:
                program = getattr(self.side, "program", None)
                if program is not None and program.has_ended():
                    raise Refused(program.refusal()) from None
                assert time.monotonic() < deadline, f"no connection: {self.side.refusal()}"
