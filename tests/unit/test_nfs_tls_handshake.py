"""Handshakes of examples/nfs_tls over loopback, and the daemon around them.

The kernel is replaced in two places: ``handshake.give_to_kernel``, where keys would be installed,
and ``FakeKernel``, which stands for ``upcall.HandshakeUpcall``.  tests/nfs has the real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import socket
import ssl
import struct

import pytest
from cryptography.hazmat.primitives import serialization

import pyktls
from nfs_tls import daemon as daemon_module
from nfs_tls import handshake, policy
from nfs_tls.daemon import Daemon
from nfs_tls.handshake import shake_hands
from nfs_tls.keyring import PROCESS_KEYRING
from nfs_tls.policy import (
    Auth,
    ConfigurationError,
    Policy,
    Request,
    Role,
    Settings,
    SharedKey,
    Side,
    Verdict,
)
from nfs_tls.upcall import PEER_WITHOUT_KEY, Upcall, UpcallError
from support.authority import Authority
from support.probing import open_descriptors
from support.systems import linux_only

IN_KERNEL = pyktls.Status("tls", 0x0304, "?", pyktls.Mode.SOFTWARE, pyktls.Mode.SOFTWARE)
GIVE_TO_KERNEL = handshake.give_to_kernel
CLIENT = Request(Role.CLIENT, Auth.UNAUTHENTICATED, "localhost")
MUTUAL = Request(Role.CLIENT, Auth.X509, "localhost")
SERVER = Request(Role.SERVER, Auth.X509)


class Switched(list):
    """The connections that were given to the kernel, and what it said of them."""

    status = IN_KERNEL
    error: Exception | None = None

    def __call__(self, tls: ssl.SSLSocket) -> pyktls.Status:
        session = pyktls.extract(tls)  # in a state in which a kernel could go on
        self.append((session.role, session.version, session.tx.sequence, session.rx.sequence))
        self.alpn = tls.selected_alpn_protocol()
        session.wipe()
        if self.error is not None:
            raise self.error
        return self.status


@pytest.fixture(autouse=True)
def switched(monkeypatch) -> Switched:
    made = Switched()
    monkeypatch.setattr(handshake, "give_to_kernel", made)
    return made


@pytest.fixture
def authority(tmp_path) -> Authority:
    made = Authority(tmp_path)
    made.issue("server", "localhost", "127.0.0.1")
    made.issue("client", "client.test", "10.1.2.3", "2001:db8::7")
    return made


def side(authority: Authority, name: str | None, **options) -> Side:
    shown = {} if name is None else {
        "certificate": authority.place / f"{name}.pem", "key": authority.place / f"{name}.key"
    }  # fmt: skip
    return Side(**{"ca": authority.path, **shown, **options})


def both(authority: Authority, client: dict | None = None, server: dict | None = None) -> Policy:
    return Policy(
        Settings(
            side(authority, "client", **(client or {})),
            side(authority, "server", **(server or {})),
        )
    )


@contextlib.contextmanager
def connected():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far = listener.accept()[0]
    with near, far:
        yield near, far


def descriptors() -> int:
    gc.collect()
    return len(open_descriptors())


def shake(made: Policy, client: Request = CLIENT, server: Request = SERVER):
    """Both ends by our daemon's code; an end that fails hangs up, as the kernel does."""

    async def end(sock: socket.socket, request: Request):
        outcome = await shake_hands(sock.fileno(), made.plan(request))
        if not outcome.ok:
            sock.shutdown(socket.SHUT_RDWR)
        return outcome

    async def run():
        with connected() as (near, far):
            outcomes = await asyncio.gather(end(near, client), end(far, server))
            assert os.get_blocking(near.fileno())
            assert os.get_blocking(far.fileno())
            return outcomes

    return asyncio.run(run())


# ---- good ones ---------------------------------------------------------------------------------


def test_an_anonymous_client_and_a_verified_server(switched, authority):
    client, server = shake(both(authority))
    assert (client.verdict, server.verdict) == (Verdict.OK, Verdict.OK)
    assert client.peer is not None
    assert server.peer is not None
    assert client.peer.names == ("localhost", "127.0.0.1")
    assert str(server.peer) == "anonymous"
    # No tickets: the first record of each direction is the kernel's.
    assert sorted(switched) == [("client", 0x0304, 0, 0), ("server", 0x0304, 0, 0)]
    assert switched.alpn == "sunrpc"


def test_mutual(authority):
    client, server = shake(both(authority), MUTUAL)
    assert (client.verdict, server.verdict) == (Verdict.OK, Verdict.OK)
    assert server.peer is not None
    der = ssl.PEM_cert_to_DER_cert((authority.place / "client.pem").read_text())
    assert server.peer.certificate == der
    assert str(server.peer) == "client.test,10.1.2.3,2001:DB8:0:0:0:0:0:7"


def test_a_server_may_be_mounted_by_its_address(authority):
    client, _ = shake(both(authority), Request(Role.CLIENT, Auth.UNAUTHENTICATED, "127.0.0.1"))
    assert client.ok


@linux_only  # memory that OpenSSL reads as a file
def test_a_certificate_that_the_mount_brings(authority):
    made = authority.issue("mount", "mount.test")
    identity = policy.Identity(made["certificate"].read_bytes(), made["key"].read_bytes())
    wanted = Request(Role.CLIENT, Auth.X509, "localhost", identity=identity)
    client, server = shake(both(authority), wanted)
    assert client.ok
    assert str(server.peer) == "mount.test"


@pytest.mark.parametrize("allowed", ["CLIENT.test", "10.1.2.3", "2001:db8::7", "2001:DB8:0::7"])
@pytest.mark.usefixtures("authority")
def test_a_client_whose_name_is_allowed(tmp_path, allowed):
    config = tmp_path / "nfs-tls.toml"
    config.write_text(
        '[client]\nca = "ca.pem"\ncertificate = "client.pem"\nkey = "client.key"\n'
        '[server]\nca = "ca.pem"\ncertificate = "server.pem"\nkey = "server.key"\n'
        f'clients = ["other.test", "{allowed}"]\n'
    )
    made = Policy.read(config)
    assert [o.verdict for o in shake(made, MUTUAL)] == [Verdict.OK, Verdict.OK]


def test_a_client_is_not_let_in_by_a_common_name(authority):
    authority.issue_by_common_name("client", "client.test")
    assert str(shake(both(authority), MUTUAL)[1].peer) == "a certificate without names"
    _, server = shake(both(authority, server={"clients": ("client.test",)}), MUTUAL)
    assert server.verdict is Verdict.DENIED
    assert "a certificate without names is none of those allowed" in server.detail


def test_revocation_lists_that_name_nobody_here(authority):
    crl = authority.revoke()
    made = both(authority, client={"crl": crl}, server={"crl": crl})
    assert [o.verdict for o in shake(made, MUTUAL)] == [Verdict.OK, Verdict.OK]


# ---- bad ones ----------------------------------------------------------------------------------


def test_a_wrong_name(switched, authority):
    client, server = shake(
        both(authority), Request(Role.CLIENT, Auth.UNAUTHENTICATED, "elsewhere.test")
    )
    assert client.verdict is Verdict.DENIED
    assert "elsewhere.test" in client.detail
    assert server.verdict is Verdict.DENIED
    assert not switched


def test_a_common_name_is_no_name(authority):
    authority.issue_by_common_name("server", "localhost")
    client, _ = shake(both(authority))
    assert client.verdict is Verdict.DENIED
    assert "mismatch" in client.detail
    authority.issue("server", "localhost")  # signed by the same authority
    assert [outcome.verdict for outcome in shake(both(authority))] == [Verdict.OK, Verdict.OK]


def test_a_foreign_authority(authority, tmp_path):
    (tmp_path / "foreign").mkdir()
    foreign = Authority(tmp_path / "foreign")
    client, server = shake(both(authority, client={"ca": foreign.path}))
    assert (client.verdict, server.verdict) == (Verdict.DENIED, Verdict.DENIED)
    assert "self-signed" in client.detail
    assert "unknown ca" in server.detail


def test_an_expired_server(authority):
    authority.issue_expired("server", "localhost")
    client, server = shake(both(authority))
    assert (client.verdict, server.verdict) == (Verdict.DENIED, Verdict.DENIED)
    assert "expired" in client.detail


def test_a_revoked_server(authority):
    crl = authority.revoke(authority.place / "server.pem")
    client, server = shake(both(authority, client={"crl": crl}))
    assert (client.verdict, server.verdict) == (Verdict.DENIED, Verdict.DENIED)
    assert "revoked" in client.detail
    assert "revoked" in server.detail


def test_no_list_of_the_servers_authority(authority, tmp_path):
    (tmp_path / "foreign").mkdir()
    crl = Authority(tmp_path / "foreign").revoke()
    client, _ = shake(both(authority, client={"crl": crl}))
    assert client.verdict is Verdict.DENIED
    assert "CRL" in client.detail


# In TLS 1.3 a client is through before the server has looked at its certificate.
@pytest.mark.parametrize(
    ("how", "detail"), [("expired", "expired"), ("revoked", "revoked"), ("foreign", "self-signed")]
)
def test_a_client_that_the_server_does_not_believe(switched, authority, tmp_path, how, detail):
    server = {}
    if how == "expired":
        authority.issue_expired("client", "client.test")
    elif how == "revoked":
        server["crl"] = authority.revoke(authority.place / "client.pem")
    else:
        (tmp_path / "foreign").mkdir()
        server["ca"] = Authority(tmp_path / "foreign").path
    _, outcome = shake(both(authority, server=server), MUTUAL)
    assert outcome.verdict is Verdict.DENIED
    assert detail in outcome.detail
    assert [role for role, *_ in switched] == ["client"]


def test_a_client_without_a_certificate_where_one_is_required(authority):
    _, server = shake(both(authority, server={"require_certificate": True}))
    assert server.verdict is Verdict.DENIED
    assert "did not return a certificate" in server.detail


def test_a_client_whose_name_is_not_allowed(switched, authority):
    _, server = shake(both(authority, server={"clients": ("other.test",)}), MUTUAL)
    assert server.verdict is Verdict.DENIED
    assert "none of those allowed" in server.detail
    assert [role for role, *_ in switched] == ["client"]


@pytest.mark.parametrize("request_", [CLIENT, SERVER], ids=["client", "server"])
def test_tls_1_2_is_not_spoken(switched, authority, request_):
    serves = request_ is CLIENT
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if serves else ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority.path)
    context.load_cert_chain(authority.place / "server.pem", authority.place / "server.key")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    name = None if serves else "localhost"

    def old_peer(sock: socket.socket) -> None:
        with pytest.raises(ssl.SSLError, match=r"(?i)protocol|version"):
            context.wrap_socket(sock, server_side=serves, server_hostname=name)

    async def run():
        with connected() as (near, far):
            plan = both(authority).plan(request_)
            outcome, _ = await asyncio.gather(
                shake_hands(near.fileno(), plan), asyncio.to_thread(old_peer, far)
            )
            return outcome

    assert asyncio.run(run()).verdict is Verdict.DENIED
    assert not switched


@pytest.mark.parametrize("request_", [CLIENT, SERVER], ids=["client", "server"])
def test_a_peer_that_says_nothing(authority, request_):
    made = both(authority, {"timeout": 0.2}, {"timeout": 0.2})
    with connected() as (near, _far):
        outcome = asyncio.run(shake_hands(near.fileno(), made.plan(request_)))
    assert outcome.verdict is Verdict.TRY_AGAIN
    assert "not over after 0.2 s" in outcome.detail
    assert 0.2 <= outcome.seconds < 5


@pytest.mark.parametrize("request_", [CLIENT, SERVER], ids=["client", "server"])
@pytest.mark.parametrize("reset", [False, True])
def test_a_peer_that_goes_away(authority, request_, reset):
    made = both(authority)
    with connected() as (near, far):
        if reset:
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        outcome = asyncio.run(shake_hands(near.fileno(), made.plan(request_)))
    assert outcome.verdict is Verdict.TRY_AGAIN
    assert outcome.detail == "the peer closed the connection"


@pytest.mark.parametrize("request_", [CLIENT, SERVER], ids=["client", "server"])
def test_a_peer_that_speaks_something_else(authority, request_):
    with connected() as (near, far):
        far.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
        outcome = asyncio.run(shake_hands(near.fileno(), both(authority).plan(request_)))
    assert outcome.verdict is Verdict.DENIED
    assert "_" not in outcome.detail


@pytest.mark.parametrize("name", [".x", "a" * 70, "a\0b"])
def test_a_name_that_can_be_none(authority, name):
    with pytest.raises(policy.Refused, match="the peer's name") as caught:
        both(authority).plan(Request(Role.CLIENT, Auth.UNAUTHENTICATED, name))
    assert caught.value.verdict is Verdict.INVALID


def test_a_descriptor_of_something_else(authority):
    near, far = socket.socketpair()
    with near, far:
        outcome = asyncio.run(shake_hands(near.fileno(), both(authority).plan(CLIENT)))
    assert outcome.verdict is Verdict.INVALID


@pytest.mark.parametrize(
    ("tx", "rx", "missing"),
    [("none", "software", "sending"), ("software", "none", "receiving"), ("none", "none", "and")],
)
def test_the_kernel_has_to_have_both_directions(switched, authority, tx, rx, missing):
    switched.status = pyktls.Status("tls", 0x0304, "?", pyktls.Mode(tx), pyktls.Mode(rx))
    for outcome in shake(both(authority)):
        assert outcome.verdict is Verdict.UNSUPPORTED
        assert missing in outcome.detail
        assert outcome.peer is None


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (pyktls.Unavailable("no", remedy="yes"), Verdict.UNSUPPORTED),
        (pyktls.HandoffRefused("no"), Verdict.UNSUPPORTED),
        (OSError(95, "setsockopt"), Verdict.UNSUPPORTED),
        (ConnectionResetError(104, "setsockopt"), Verdict.TRY_AGAIN),
    ],
)
def test_a_kernel_that_takes_no_keys(switched, authority, error, verdict):
    switched.error = error
    assert [o.verdict for o in shake(both(authority))] == [verdict, verdict]


def test_the_real_switch(authority, monkeypatch):
    """Where the kernel has no TLS both ends are refused; where it has, both are good."""
    monkeypatch.setattr(handshake, "give_to_kernel", GIVE_TO_KERNEL)
    outcomes = shake(both(authority))
    expected = Verdict.OK if pyktls.probe().tls else Verdict.UNSUPPORTED
    assert [o.verdict for o in outcomes] == [expected, expected]


def test_nothing_is_left_open(switched, authority):
    shake(both(authority))
    before = descriptors()
    shake(both(authority))
    shake(both(authority), Request(Role.CLIENT, Auth.UNAUTHENTICATED, "elsewhere.test"))
    switched.error = OSError(5, "setsockopt")
    shake(both(authority))
    assert descriptors() == before


# ---- pre-shared keys ---------------------------------------------------------------------------

needs_psk = pytest.mark.skipif(not policy.HAS_PSK, reason="Python 3.13 brought the callbacks")
KEY = SharedKey("NVMe0R01 a b", bytes(range(32)), 77)


def psk_client(*keys: SharedKey) -> Request:
    return Request(Role.CLIENT, Auth.PSK, "localhost", shared_keys=keys)


def psk_server(**known: SharedKey) -> Request:
    return Request(Role.SERVER, Auth.PSK, find_key={k.identity: k for k in known.values()}.get)


@needs_psk
def test_a_shared_key(authority):
    client, server = shake(both(authority), psk_client(KEY), psk_server(a=KEY))
    assert (client.verdict, server.verdict) == (Verdict.OK, Verdict.OK), (client, server)
    assert client.peer is not None
    assert server.peer is not None
    assert client.peer.shared_key == server.peer.shared_key == KEY
    assert str(server.peer) == "psk NVMe0R01 a b"
    assert repr(KEY.key) not in repr(server)


@needs_psk
def test_another_shared_key(switched, authority):
    other = SharedKey(KEY.identity, bytes(32))
    client, server = shake(both(authority), psk_client(KEY), psk_server(a=other))
    assert not client.ok
    assert server.verdict is Verdict.DENIED
    assert not switched


@needs_psk
def test_a_server_that_does_not_know_the_identity(switched, authority):
    client, server = shake(both(authority), psk_client(KEY), psk_server())
    assert not client.ok
    assert server.verdict is Verdict.DENIED
    assert not switched


@needs_psk
def test_a_certificate_instead_of_a_shared_key(switched, authority):
    client, _ = shake(both(authority), psk_client(KEY), SERVER)
    assert not client.ok
    assert not [role for role, *_ in switched if role == "client"]


@needs_psk
def test_a_client_with_nothing_instead_of_a_shared_key(switched, authority):
    _, server = shake(both(authority), CLIENT, psk_server(a=KEY))
    assert server.verdict is Verdict.DENIED
    assert not switched


@needs_psk
def test_a_client_that_has_no_key_to_use(authority):
    with pytest.raises(policy.Refused, match="no shared key"):
        both(authority).plan(psk_client())


# ---- the daemon --------------------------------------------------------------------------------


class FakeKernel:
    """A queue of requests with sockets, and what was said to each."""

    def __init__(self) -> None:
        self.events, self._bell = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.events.setblocking(False)
        self.queue: list[Upcall | Exception] = []
        self.answers: dict[int, tuple[Verdict, tuple[int, ...]]] = {}
        self.told = 0
        self._owed: set[int] = set()
        self.waits = True
        self.error: OSError | None = None

    def ring(self, *requests: Upcall | Exception) -> None:
        self.queue += requests
        self._bell.send(b"ready")

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.events.recv(100)

    def accept(self) -> Upcall | None:
        if not self.queue:
            return None
        found = self.queue.pop(0)
        if isinstance(found, Exception):
            raise found
        self._owed.add(found.fd)
        return found

    def done(self, fd, verdict, remote_auth=()) -> bool:
        os.fstat(fd)  # still open
        self._owed.remove(fd)  # told once
        self.told += 1
        self.answers[fd] = verdict, tuple(remote_auth)
        if self.error is not None:
            raise self.error
        if verdict is not Verdict.OK:  # the kernel ends the connection
            with socket.socket(fileno=os.dup(fd)) as sock, contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        return self.waits

    def leave(self) -> None:
        self.events.close()

    def close(self) -> None:
        for sock in (self.events, self._bell):
            sock.close()


async def until(what) -> None:
    async with asyncio.timeout(60):
        while not what():  # noqa: ASYNC110  (a test may look now and then)
            await asyncio.sleep(0.01)


def upcalls(name: str | None = "localhost", auth: int = 1) -> tuple[Upcall, Upcall]:
    """Two ends of one connection, as the kernel would ask for them."""
    with connected() as (near, far):
        fds = os.dup(near.fileno()), os.dup(far.fileno())
    return Upcall(fds[0], 1, auth, 0, name), Upcall(fds[1], 2, 3, 0, None)


class Running:
    """A daemon with a fake kernel, in a test's own loop."""

    def __init__(self, made: Policy, *, reload=None, **options) -> None:
        self.kernel = FakeKernel()
        self.said: list[str] = []
        self.daemon = Daemon(
            self.kernel, made, reload=reload or (lambda: made), log=self.said.append, **options
        )

    async def __aenter__(self):
        self.task = asyncio.create_task(self.daemon.run())
        await asyncio.sleep(0)
        return self

    async def answered(self, count: int) -> dict:
        await until(lambda: self.kernel.told >= count and not self.daemon._tasks)
        return self.kernel.answers

    async def __aexit__(self, *_) -> None:
        self.daemon.stop()
        await asyncio.wait_for(self.task, 60)
        self.kernel.close()


def test_a_mount_and_its_log(authority):
    async def run():
        async with Running(both(authority)) as running:
            ends = upcalls(auth=3)
            running.kernel.ring(*ends)
            answers = await running.answered(2)
            assert answers[ends[0].fd] == (Verdict.OK, (PEER_WITHOUT_KEY,))
            assert answers[ends[1].fd] == (Verdict.OK, (PEER_WITHOUT_KEY,))
            for end in ends:
                with pytest.raises(OSError, match="Bad file"):
                    os.fstat(end.fd)
            return running.said

    said = asyncio.run(run())
    assert len(said) == 2
    address = r"127\.0\.0\.1:\d+"
    pattern = (
        rf"client localhost {address} - {address}: ok peer=localhost,127\.0\.0\.1: "
        r"TLSv1\.3 TLS_\w+ tx=software rx=software \(\d+ ms\)"
    )
    assert [line for line in said if re.fullmatch(pattern, line)], said


def test_only_a_client_with_a_certificate_is_told_as_authenticated(authority):
    async def run():
        async with Running(both(authority)) as running:
            ends = upcalls()
            running.kernel.ring(*ends)
            answers = await running.answered(2)
            assert answers[ends[1].fd] == (Verdict.OK, ())

    asyncio.run(run())


def test_what_waited_before_the_daemon_came(authority):
    async def run():
        running = Running(both(authority))
        running.kernel.queue += upcalls()
        async with running:
            assert len(await running.answered(2)) == 2

    asyncio.run(run())


@pytest.mark.parametrize(
    ("change", "verdict", "word"),
    [
        ({"message_type": 9}, Verdict.INVALID, "kind of handshake 9"),
        ({"auth_mode": 0}, Verdict.INVALID, "mode of authentication 0"),
        ({"peername": None}, Verdict.INVALID, "names no server"),
        ({"auth_mode": 3, "certificates": ((1, 2),)}, Verdict.UNSUPPORTED, "none are had"),
    ],
)
def test_every_refusal_is_told_to_the_kernel(authority, change, verdict, word):
    async def run():
        async with Running(both(authority)) as running:
            near, far = upcalls()
            os.close(far.fd)
            values = {"message_type": 1, "auth_mode": 1, "peername": "localhost", **change}
            running.kernel.ring(Upcall(near.fd, **values))
            answers = await running.answered(1)
            assert answers[near.fd] == (verdict, ())
            assert word in running.said[0]

    asyncio.run(run())


def test_one_line_of_the_log_for_each_whatever_the_names_are(authority):
    async def run():
        async with Running(both(authority)) as running:
            running.kernel.ring(*upcalls(name="nobody\nserver: ok\x1b[2Jü"))
            await running.answered(2)
            return running.said

    said = asyncio.run(run())
    assert len(said) == 2
    (client,) = (line for line in said if line.startswith("client"))
    assert client.startswith(r"client nobody\nserver: ok\x1b[2Jü 127.0.0.1:")
    assert all(line.isprintable() for line in said)


def test_an_error_of_ours_is_told_too(authority, monkeypatch):
    async def broken(*_):
        raise RuntimeError("a fault")

    monkeypatch.setattr(daemon_module, "shake_hands", broken)

    async def run():
        async with Running(both(authority)) as running:
            ends = upcalls()
            running.kernel.ring(*ends)
            answers = await running.answered(2)
            assert {verdict for verdict, _ in answers.values()} == {Verdict.DENIED}
            return running.said

    assert [line for line in asyncio.run(run()) if "a fault" in line]


def test_a_kernel_that_no_longer_waits(authority):
    async def run():
        async with Running(both(authority)) as running:
            running.kernel.waits = False
            running.kernel.ring(*upcalls())
            await running.answered(2)
            running.kernel.error = OSError(1, "no")
            running.kernel.waits = True
            running.kernel.ring(*upcalls())
            await running.answered(4)
            return running.said

    said = asyncio.run(run())
    assert len([line for line in said if "the kernel had given it up" in line]) == 2
    assert len([line for line in said if "the kernel could not be told" in line]) == 2


def test_a_request_that_cannot_be_fetched_does_not_end_the_daemon(authority):
    async def run():
        async with Running(both(authority)) as running:
            running.kernel.ring(UpcallError("nonsense"), OSError(1, "no"))
            running.kernel.ring(*upcalls())
            await running.answered(2)
            return running.said

    said = asyncio.run(run())
    assert "a request could not be understood: nonsense" in said
    assert [line for line in said if "could not be fetched" in line]


def test_two_hundred_at_once_and_nothing_is_left(authority):
    async def run():
        async with Running(both(authority, {"timeout": 60}, {"timeout": 60})) as running:
            running.kernel.ring(*upcalls())
            await running.answered(2)
            before = descriptors()
            for _ in range(200):
                running.kernel.ring(*upcalls(auth=3))
            answers = await running.answered(402)
            assert {verdict for verdict, _ in answers.values()} == {Verdict.OK}
            assert descriptors() == before

    asyncio.run(run())


def test_no_more_at_once_than_is_said(authority, monkeypatch):
    most = 0

    async def counted(fd, plan):
        nonlocal most
        most = max(most, len(running.daemon._tasks))
        return await shake_hands(fd, plan)

    monkeypatch.setattr(daemon_module, "shake_hands", counted)
    running = Running(both(authority), most=4)

    async def run():
        async with running:
            for _ in range(5):
                running.kernel.ring(*upcalls())
            await running.answered(10)

    asyncio.run(run())
    assert most == 4


def test_a_stalling_peer_holds_up_nobody(authority):
    async def run():
        async with Running(both(authority, {"timeout": 1}, {"timeout": 1})) as running:
            stalled, far = upcalls()
            running.kernel.ring(stalled)
            ends = upcalls()
            running.kernel.ring(*ends)
            await until(lambda: running.kernel.told == 2)
            assert set(running.kernel.answers) == {ends[0].fd, ends[1].fd}
            answers = await running.answered(3)
            assert answers[stalled.fd] == (Verdict.TRY_AGAIN, ())
            os.close(far.fd)

    asyncio.run(run())


def test_the_end_waits_for_what_was_begun(authority):
    async def run():
        running = Running(both(authority, {"timeout": 0.5}, {"timeout": 0.5}))
        near, far = upcalls()
        late = upcalls()
        async with running:
            running.kernel.ring(near)
            await until(lambda: running.daemon._tasks)
            running.kernel.queue += late
        assert running.kernel.answers == {near.fd: (Verdict.TRY_AGAIN, ())}
        for upcall in (far, *late):
            os.close(upcall.fd)

    asyncio.run(run())


def test_a_reload_takes_the_new_and_keeps_the_old_where_it_is_wrong(authority, tmp_path):
    (tmp_path / "foreign").mkdir()
    foreign = Authority(tmp_path / "foreign")
    next_: list = [both(authority, client={"ca": foreign.path})]

    def read() -> Policy:
        if isinstance(next_[0], Exception):
            raise next_[0]
        return next_[0]

    async def run():
        async with Running(both(authority), reload=read) as running:
            running.daemon.reload()
            ends = upcalls()
            running.kernel.ring(*ends)
            answers = await running.answered(2)
            assert answers[ends[0].fd][0] is Verdict.DENIED
            next_[0] = both(authority)
            running.daemon.reload()
            next_[0] = ConfigurationError("a hole in the file")
            running.daemon.reload()
            ends = upcalls()
            running.kernel.ring(*ends)
            assert (await running.answered(4))[ends[0].fd][0] is Verdict.OK
            return running.said

    said = asyncio.run(run())
    assert said.count("reloaded") == 2
    assert "reload failed, everything stays as it was: a hole in the file" in said


def test_a_reload_sees_what_is_new_in_a_file_of_the_same_name(authority, tmp_path):
    config = tmp_path / "nfs-tls.toml"
    config.write_text(
        '[client]\nca = "ca.pem"\ncrl = "crl.pem"\n'
        '[server]\ncertificate = "server.pem"\nkey = "server.key"\n'
    )
    authority.revoke()

    async def run():
        reading = Running(Policy.read(config), reload=lambda: Policy.read(config))
        async with reading as running:

            async def shown() -> tuple[Verdict, str]:
                ends = upcalls()
                running.kernel.ring(*ends)
                answers = await running.answered(running.kernel.told + 2)
                (line,) = (line for line in running.said[-2:] if line.startswith("client"))
                return answers[ends[0].fd][0], line

            assert (await shown())[0] is Verdict.OK
            authority.issue("server", "localhost", "renewed.test")
            assert "renewed.test" not in (await shown())[1]
            running.daemon.reload()
            assert "peer=localhost,renewed.test:" in (await shown())[1]
            authority.revoke(authority.place / "server.pem")
            assert (await shown())[0] is Verdict.OK
            running.daemon.reload()
            verdict, line = await shown()
            assert verdict is Verdict.DENIED
            assert "revoked" in line
            assert running.said.count("reloaded") == 2

    asyncio.run(run())


@pytest.mark.parametrize("role", [1, 2], ids=["client", "server"])
def test_the_kernel_says_how_long_it_may_take(authority, role):
    """In milliseconds, of which a tenth is left for the answer."""

    async def run():
        async with Running(both(authority)) as running:
            near, far = upcalls()
            running.kernel.ring(Upcall(near.fd, role, 1, 300, "localhost"))
            answers = await running.answered(1)
            assert answers[near.fd] == (Verdict.TRY_AGAIN, ())
            os.close(far.fd)
            return running.said

    assert ": try again: not over after 0.27 s (" in asyncio.run(run())[0]


class FakeKeyring:
    """Keys by their numbers; those with a number below 100 are in the keyring 0."""

    def __init__(self, **keys: tuple[str, bytes]) -> None:
        self.keys = {int(number[1:]): key for number, key in keys.items()}
        self.borrowed: list[int] = []
        self.given_back: list[int] = []

    def borrow(self, keyring):
        self.borrowed.append(keyring)

    def give_back(self, keyring):
        self.given_back.append(keyring)

    def read(self, serial):
        if serial not in self.keys:
            raise daemon_module.KeyringError("keyctl_read: no such key")
        return self.keys[serial][1]

    def description(self, serial):
        self.read(serial)
        return self.keys[serial][0]

    def search(self, _kind, description, keyring):
        within = range(100) if keyring == PROCESS_KEYRING else range(keyring, keyring + 100)
        named = (n for n, (name, _) in self.keys.items() if name == description)
        return next((n for n in named if n in within), None)


def der(path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(path.read_text())


@linux_only
def test_the_mounts_own_certificate_comes_from_the_keyring(authority):
    made = authority.issue("mount", "mount.test")
    key = serialization.load_pem_private_key(made["key"].read_bytes(), None)
    raw = key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    keyring = FakeKeyring(_1=("cert", der(made["certificate"])), _2=("key", raw))

    async def run():
        async with Running(both(authority), keyring=keyring) as running:
            near, far = upcalls(auth=3)
            running.kernel.ring(Upcall(near.fd, 1, 3, 0, "localhost", (), ((1, 2),)), far)
            await running.answered(2)
            near, far = upcalls(auth=3)
            os.close(far.fd)
            running.kernel.ring(Upcall(near.fd, 1, 3, 0, "localhost", (), ((1, 9),)))
            assert (await running.answered(3))[near.fd] == (Verdict.DENIED, ())
            return running.said

    said = asyncio.run(run())
    assert len(said) == 3
    assert [line for line in said if line.startswith("server") and "peer=mount.test" in line]
    assert "no such key" in said[-1]


@needs_psk
def test_shared_keys_come_from_the_keyring(authority):
    keyring = FakeKeyring(_7=("NVMe0R01 a b", bytes(32)))

    async def run():
        async with Running(both(authority), keyring=keyring) as running:
            near, far = upcalls()
            client = Upcall(near.fd, 1, 2, 0, None, (8, 7))
            server = Upcall(far.fd, 2, 2)
            running.kernel.ring(client, server)
            answers = await running.answered(2)
            assert answers == {near.fd: (Verdict.OK, (7,)), far.fd: (Verdict.OK, (7,))}
            return running.said

    said = asyncio.run(run())
    assert len(said) == 2  # a line for each handshake, what could not be read included
    assert [line for line in said if "tx=software rx=software; key 8: keyctl_read: no such" in line]
    assert not keyring.borrowed


@needs_psk
def test_a_shared_key_is_looked_up_in_the_keyring_that_the_kernel_names(authority):
    """Of two consumers each finds its own key, and both keyrings are given back."""
    name = "NVMe0R01 a b"
    keyring = FakeKeyring(_7=(name, bytes(32)), _207=(name, b"\1" * 32), _307=(name, b"\2" * 32))

    async def run():
        async with Running(both(authority), keyring=keyring) as running:
            for serial in (200, 300):
                near, far = upcalls()
                client = Upcall(near.fd, 1, 2, 0, None, (serial + 7,))
                server = Upcall(far.fd, 2, 2, keyring=serial)
                running.kernel.ring(client, server)
                answers = await running.answered(running.kernel.told + 2)
                assert answers[far.fd] == (Verdict.OK, (serial + 7,)), running.said

    asyncio.run(run())
    assert keyring.borrowed == keyring.given_back == [200, 300]


def test_the_requests_keyring_is_given_back_whatever_happens(authority, monkeypatch):
    async def broken(*_):
        raise RuntimeError("a fault")

    monkeypatch.setattr(daemon_module, "shake_hands", broken)
    keyring = FakeKeyring()

    async def run():
        async with Running(both(authority), keyring=keyring) as running:
            near, far = upcalls()
            os.close(far.fd)
            running.kernel.ring(Upcall(near.fd, 1, 1, 0, "localhost", keyring=5))
            await running.answered(1)

    asyncio.run(run())
    assert keyring.borrowed == keyring.given_back == [5]


# ---- systemd -----------------------------------------------------------------------------------


@pytest.mark.parametrize("abstract", [False, pytest.param(True, marks=linux_only)])
def test_systemd_is_told(tmp_path, monkeypatch, abstract):
    name = f"@nfs-tls-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0"))
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        daemon_module.tell_systemd("READY=1")
        assert sock.recv(100) == b"READY=1"
