"""What must not be: the mount fails, the server closes, nothing hangs, and nothing is left."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import os
import pathlib
import signal
import socket
import ssl
import struct
import sys
import threading
import time
from typing import Any

import pytest

import pyktls
from support import nfs
from support.authority import Authority

REFUSED = {errno.EACCES, errno.EPERM, errno.EIO, errno.ECONNREFUSED, errno.ETIMEDOUT}
# Seconds that the kernel's client may take to give a mount up.  It tries again for a while where
# the server closes a connection that was good for the client.
LONG = 120.0


@pytest.fixture
def target(place: pathlib.Path) -> pathlib.Path:
    return place / "mount"


def good_mount(target: pathlib.Path, xprtsec: str = "tls") -> None:
    with nfs.mounted(target, xprtsec):
        pass


# ---- certificates ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["name", "expired", "revoked", "authority"])
def test_a_server_that_is_not_believed(server, place, authority, sides, target, how):
    server.export("tls")
    changes: dict[str, Any] = {}
    host, word = "localhost", how
    if how == "name":
        host = word = "elsewhere.test"
    elif how == "expired":
        expired = authority.issue_expired("old-server", "localhost")
        changes = {f"server_{option}": path for option, path in expired.items()}
    elif how == "revoked":
        changes = {"client_crl": authority.revoke(authority.place / "server.pem")}
    else:
        changes = {"client_ca": foreign(authority)}
        word = "self-signed certificate in certificate chain"
    with nfs.running(place, f"server-{how}", **sides()) as daemon:
        good_mount(target)
        daemon.reload(**sides(**changes))
        begin = time.monotonic()
        assert nfs.mount(target, "tls", host) == errno.EACCES
        assert time.monotonic() - begin < LONG
        (line,) = [x for x in daemon.wait_for_line(": denied:") if x.startswith("client")][:1]
        assert word in line
        # With what is right the same machine mounts at once.
        daemon.reload(**sides())
        good_mount(target)


@pytest.mark.parametrize("how", ["name", "expired", "revoked", "authority"])
def test_a_client_that_is_not_believed(server, place, authority, sides, target, how):
    server.export("mtls")
    word = how
    if how == "name":
        changes = {"server_clients": ["other.test"]}
        word = "none of those allowed"
    elif how == "expired":
        expired = authority.issue_expired("old-client", "client.test")
        changes = {f"client_{option}": path for option, path in expired.items()}
    elif how == "revoked":
        changes = {"server_crl": authority.revoke(authority.place / "client.pem")}
    else:
        changes = {"server_ca": foreign(authority)}
        word = "self-signed certificate in certificate chain"
    with nfs.running(place, f"client-{how}", **sides()) as daemon:
        good_mount(target, "mtls")
        daemon.reload(**sides(**changes))
        assert nfs.begin_mount(target, "mtls").wait(LONG) in REFUSED
        (line,) = [x for x in daemon.wait_for_line(": denied:") if x.startswith("server")][:1]
        assert word in line
        daemon.reload(**sides())
        good_mount(target, "mtls")


def foreign(authority: Authority) -> pathlib.Path:
    """The certificate of another authority."""
    return Authority(authority.place, "foreign").path


def test_a_client_without_a_certificate(server, place, sides, target):
    """It may make the handshake, and is not let into an export for mtls."""
    server.export("mtls")
    without = sides(client_certificate=None, client_key=None)
    with nfs.running(place, "without", **without) as daemon:
        assert nfs.mount(target, "tls") in {errno.EACCES, errno.EPERM}
        lines = daemon.lines("server ")
        assert lines
        assert all(": ok peer=anonymous" in line for line in lines)
        # And a mount that wants to show one fails before a byte is sent.
        assert nfs.mount(target, "mtls") == errno.EACCES
        assert daemon.wait_for_line("[client] has no certificate")
        assert nfs.mount(target, "none") in {errno.EACCES, errno.EPERM}


def test_no_daemon(server, place, sides, target):
    server.export("tls")
    assert nfs.begin_mount(target, "tls").wait(LONG) == errno.ESRCH
    with nfs.running(place, "later", **sides()):
        good_mount(target)


# ---- the answer is no --------------------------------------------------------------------------


def shake_hands(authority, timeout: float = nfs.PATIENCE) -> ssl.SSLSocket:
    """A client of ours, up to the end of the handshake."""
    context = ssl.create_default_context(cafile=authority.path)
    sock = socket.create_connection(("localhost", nfs.PORT), timeout)
    try:
        assert nfs.starttls(sock) == b"STARTTLS"
        return context.wrap_socket(sock, server_hostname="localhost")
    except BaseException:
        sock.close()
        raise


def answers(tls: ssl.SSLSocket) -> bool:
    """Whether the server replies to a call."""
    try:
        tls.sendall(nfs.rpc_call(2))
        return nfs.receive_reply(tls)[:8] == struct.pack("!II", 2, 1)
    except (OSError, ssl.SSLError):
        return False


def ends_it(tls: ssl.SSLSocket) -> bool:
    """Whether the server ends the connection without a byte, be it in clear, when it is called."""
    with socket.socket(fileno=os.dup(tls.fileno())) as sock:
        sock.settimeout(nfs.PATIENCE)
        try:
            tls.sendall(nfs.rpc_call(2))
            return sock.recv(100) == b""
        except ConnectionError:
            return True


# The kernel refuses the keys of a direction, or has none of that direction when it is asked.
@pytest.mark.parametrize("what", ["TLS_TX", "TLS_RX", "sending", "receiving"])
def test_a_kernel_without_a_direction(server, place, sides, authority, target, what):
    server.export("tls")
    with nfs.running(place, "good", **sides()):
        with shake_hands(authority) as tls:
            assert answers(tls)  # the same client with a good daemon
        with shake_hands(authority) as tls:
            assert not ends_it(tls)
    config = place / "refusing.toml"
    config.write_text(nfs.toml(sides()))
    script = nfs.ROOT / "tests/support/nfs_refusing.py"
    path = os.pathsep.join(str(nfs.ROOT / name) for name in ("examples", "tests"))
    refusing = nfs.Process(
        [sys.executable, str(script), "--config", str(config)],
        place, "refusing", PYTHONPATH=path, NFS_TLS_REFUSED=what,
    )  # fmt: skip
    word = "setsockopt" if what.startswith("TLS") else f"kernel TLS is not on for {what}: refused"
    with nfs.watched(refusing):
        # The server refuses the calls.
        with shake_hands(authority) as tls:
            assert ends_it(tls)
        lines = refusing.wait_for_line(": unsupported:")
        assert [x for x in lines if x.startswith("server") and word in x]
        # The client refuses the mount.
        assert nfs.mount(target, "tls") == errno.EACCES
        lines = refusing.lines(": unsupported:")
        assert [x for x in lines if x.startswith("client") and word in x]


# ---- peers that stall, daemons that die ----------------------------------------------------------


def test_a_client_that_stalls(server, place, sides, target):
    server.export("tls")
    with nfs.running(place, "stall", **sides()) as daemon:
        with socket.create_connection(("localhost", nfs.PORT), nfs.PATIENCE) as sock:
            assert nfs.starttls(sock) == b"STARTTLS"
            begin = time.monotonic()
            good_mount(target)  # meanwhile
            assert sock.recv(1) == b""  # closed by the server
            assert time.monotonic() - begin < nfs.PATIENCE
        assert "not over after 4.5 s" in daemon.wait_for_line(": try again:")[0]


def test_a_server_that_stalls(place, sides, target):
    """It agrees on TLS and says nothing more."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                with contextlib.suppress(OSError):
                    nfs.agree_on_tls(sock)
                held.append(sock)

    held: list[socket.socket] = []
    options = "soft,timeo=50,retrans=1,port={}"
    with nfs.running(place, "stalled", **sides(client_timeout=2)) as daemon:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            port = listener.getsockname()[1]
            found = nfs.begin_mount(target, "tls", options=options.format(port)).wait(LONG)
            assert found in REFUSED
            lines = daemon.wait_for_line(": try again: not over after 2 s")
            assert all(line.startswith("client localhost 127.0.0.1:") for line in lines)
            listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for sock in held:
            sock.close()


def test_a_daemon_that_is_killed_in_a_servers_handshake(server, place, sides, target):
    """The client of this handshake loses its connection; a mount that begins meanwhile ends."""
    server.export("tls")
    first = nfs.Daemon(place, "killed", **sides(server_timeout=60))
    idle = first.open_files()
    with socket.create_connection(("localhost", nfs.PORT), nfs.PATIENCE) as sock:
        assert nfs.starttls(sock) == b"STARTTLS"
        nfs.wait_for(lambda: first.open_files() > idle)
        first.kill()
        mounting = nfs.begin_mount(target, "tls", options="soft,timeo=100,retrans=5")
        with nfs.running(place, "restarted", **sides()):
            assert sock.recv(1) == b""  # the kernel's own time limit
            status = mounting.wait(LONG)
            if status == 0:
                nfs.umount(target)
            else:  # there was nobody to ask when it began: it ends, and a new one is good
                assert status in REFUSED | {errno.ESRCH}
            good_mount(target)


def test_a_daemon_that_is_killed_in_a_mounts_handshake(server, place, sides, target):
    """The kernel makes another connection when its time is over, and the next daemon is asked."""
    server.export("tls")
    options = "soft,timeo=300,retrans=5,port={}"
    first = nfs.Daemon(place, "killed", **sides(client_timeout=60))
    with nfs.StallingOnce() as between, nfs.running(place, "next", **sides()) as following:
        idle = first.open_files()
        following.signal(signal.SIGSTOP)  # the first is asked
        mounting = nfs.begin_mount(target, "tls", options=options.format(between.port))
        nfs.wait_for(lambda: first.open_files() > idle)
        first.kill()
        following.signal(signal.SIGCONT)
        assert mounting.wait(LONG) == 0
        (target / "file").write_bytes(b"with the second daemon")
        nfs.umount(target)
        lines = following.wait_for_line(": ok ", 2)
        assert sorted(line.split()[0] for line in lines) == ["client", "server"]
    assert (server.export_root / "file").read_bytes() == b"with the second daemon"
    (server.export_root / "file").unlink()


def test_a_mount_needs_no_daemon_once_it_is_there(server, place, sides, target):
    def sessions_since(before: pyktls.linux.TLSStat) -> tuple[int, int]:
        change = pyktls.linux.tls_stat() - before
        return change["TlsTxSw"], change["TlsRxSw"]

    server.export("mtls")
    content = os.urandom(4 << 20)
    first = nfs.Daemon(place, "killed", **sides())
    assert nfs.mount(target, "mtls") == 0
    (target / "one").write_bytes(content)
    before = pyktls.linux.tls_stat()
    first.kill()
    (target / "two").write_bytes(content)
    assert sessions_since(before) == (0, 0)
    with nfs.running(place, "restarted", **sides()) as daemon:
        before = pyktls.linux.tls_stat()  # it has tried out by now what the kernel can
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3\n")
        for name in ("one", "two"):
            assert (target / name).read_bytes() == content
            (target / name).unlink()
        # Over the same connection: nobody made a handshake, and both ends have their TLS.
        assert sessions_since(before) == (0, 0)
        assert nfs.kernel_tls() == (2, 2)
        assert not daemon.lines(": ")
        nfs.umount(target)
        good_mount(target, "mtls")


@pytest.mark.timeout(900)
def test_two_hundred_at_once(server, place, sides, authority, target):
    """Who finds no place in the kernel's queue, or is too late, is turned away and comes again.

    The kernel gives a handshake 5 seconds, and the emulated machine does a few in that time: those
    that come again spread out.
    """
    server.export("tls")

    def one(number: int) -> bool:
        end = time.monotonic() + 5 * LONG
        while time.monotonic() < end:
            with contextlib.suppress(OSError), shake_hands(authority) as tls:
                if answers(tls):
                    return True
            time.sleep(1 + number * 37 % 200 * LONG / 200)
        return False

    most = 0

    def watch() -> None:
        nonlocal most
        while not over.wait(0.2):
            most = max(most, daemon.open_files())

    over = threading.Event()
    with nfs.running(place, "crowd", **sides()) as daemon:
        good_mount(target)
        nfs.wait_for(lambda: nfs.kernel_tls() == (0, 0))
        idle = daemon.open_files()
        watching = threading.Thread(target=watch)
        watching.start()
        try:
            with concurrent.futures.ThreadPoolExecutor(200) as pool:
                assert all(pool.map(one, range(200)))
        finally:
            over.set()
            watching.join()
        assert len(daemon.lines(": ok ")) >= 200
        assert most >= idle + 2 * 8  # many at once: each has the kernel's descriptor, and a copy
        nfs.nothing_left(daemon, idle)
        good_mount(target)
