"""What must not be: the mount fails, the server closes, nothing hangs, and nothing is left."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import os
import pathlib
import socket
import ssl
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import pyktls
from support import nfs

if TYPE_CHECKING:
    from collections.abc import Iterator

REFUSED = {errno.EACCES, errno.EPERM, errno.EIO, errno.ECONNREFUSED, errno.ETIMEDOUT}
# Seconds that the kernel's client may take to give a mount up.  It tries again for a while where
# the server closes a connection that was good for the client.
LONG = 120.0


@contextlib.contextmanager
def running(place: pathlib.Path, name: str, **sides: Any) -> Iterator[nfs.Daemon]:
    made = nfs.Daemon(place, name, **sides)
    try:
        yield made
    finally:
        print(made.said())
        assert made.end() == 0


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
    host, word = "localhost", "certificate"
    if how == "name":
        host = "elsewhere.test"
        word = "elsewhere.test"
    elif how == "expired":
        expired = authority.issue_expired("old-server", "localhost")
        changes = {f"server_{option}": path for option, path in expired.items()}
        word = "expired"
    elif how == "revoked":
        revoked = authority.revoke(authority.place / "server.pem")
        changes = {"client_crl": revoked}
        word = "revoked"
    else:
        changes = {"client_ca": None}
    with running(place, f"server-{how}", **sides(**changes)) as daemon:
        begin = time.monotonic()
        assert nfs.mount(target, "tls", host) == errno.EACCES
        assert time.monotonic() - begin < LONG
        (line,) = [x for x in daemon.wait_for_line(": denied:") if x.startswith("client")][:1]
        assert word in line
        # With what is right the same machine mounts at once.
        daemon.reload(**sides())
        good_mount(target)


@pytest.mark.parametrize("how", ["expired", "revoked"])
def test_a_client_that_is_not_believed(server, place, authority, sides, target, how):
    server.export("mtls")
    if how == "expired":
        expired = authority.issue_expired("old-client", "client.test")
        changes = {f"client_{option}": path for option, path in expired.items()}
    else:
        changes = {"server_crl": authority.revoke(authority.place / "client.pem")}
    with running(place, f"client-{how}", **sides(**changes)) as daemon:
        assert nfs.begin_mount(target, "mtls").wait(LONG) in REFUSED
        (line,) = [x for x in daemon.wait_for_line(": denied:") if x.startswith("server")][:1]
        assert how in line
        daemon.reload(**sides())
        good_mount(target, "mtls")


def test_a_client_without_a_certificate(server, place, sides, target):
    """It may make the handshake, and is not let into an export for mtls."""
    server.export("mtls")
    without = sides(client_certificate=None, client_key=None)
    with running(place, "without", **without) as daemon:
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
    with running(place, "later", **sides()):
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


@pytest.mark.parametrize("direction", ["TLS_TX", "TLS_RX"])
def test_a_kernel_that_refuses_a_direction(server, place, sides, authority, target, direction):
    server.export("tls")
    with running(place, "good", **sides()), shake_hands(authority) as tls:
        assert answers(tls)  # the same client with a good daemon
    config = place / "refusing.toml"
    config.write_text(nfs.toml(sides()))
    script = nfs.ROOT / "tests/support/nfs_refusing.py"
    path = os.pathsep.join(str(nfs.ROOT / name) for name in ("examples", "tests"))
    refusing = nfs.Process(
        [sys.executable, str(script), "--config", str(config)],
        place, "refusing", PYTHONPATH=path, NFS_TLS_REFUSED=direction,
    )  # fmt: skip
    try:
        refusing.wait_for_line("ready")
        # The server refuses the calls.
        with shake_hands(authority) as tls:
            assert not answers(tls)
        assert [x for x in refusing.wait_for_line(": unsupported:") if x.startswith("server")]
        # The client refuses the mount.
        assert nfs.mount(target, "tls") == errno.EACCES
        assert [x for x in refusing.lines(": unsupported:") if x.startswith("client")]
    finally:
        print(refusing.said())
        assert refusing.end() == 0


# ---- peers that stall, daemons that die ----------------------------------------------------------


def test_a_client_that_stalls(server, place, sides, target):
    server.export("tls")
    with running(place, "stall", **sides()) as daemon:
        before = daemon.open_files()
        with socket.create_connection(("localhost", nfs.PORT), nfs.PATIENCE) as sock:
            assert nfs.starttls(sock) == b"STARTTLS"
            begin = time.monotonic()
            good_mount(target)  # meanwhile
            assert sock.recv(1) == b""  # closed by the server
            assert time.monotonic() - begin < nfs.PATIENCE
        assert "not over after 4.5 s" in daemon.wait_for_line(": try again:")[0]
        nfs.wait_for(lambda: daemon.open_files() == before)


def test_a_server_that_stalls(place, sides, target):
    """It agrees on TLS and says nothing more."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                with contextlib.suppress(OSError):
                    xid = nfs.receive_reply(sock)[:4]
                    body = xid + struct.pack("!4I", 1, 0, 0, 8) + b"STARTTLS" + struct.pack("!I", 0)
                    sock.sendall(struct.pack("!I", 0x80000000 | len(body)) + body)
                held.append(sock)

    held: list[socket.socket] = []
    options = "soft,timeo=50,retrans=1,port={}"
    with running(place, "stalled", **sides(client_timeout=2)) as daemon:
        before = daemon.open_files()
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
        nfs.wait_for(lambda: daemon.open_files() == before)


def test_a_daemon_that_is_killed_in_the_middle(server, place, sides, target):
    server.export("tls")
    first = nfs.Daemon(place, "killed", **sides(server_timeout=60))
    idle = first.open_files()
    with socket.create_connection(("localhost", nfs.PORT), nfs.PATIENCE) as sock:
        assert nfs.starttls(sock) == b"STARTTLS"
        nfs.wait_for(lambda: first.open_files() > idle)
        first.kill()
        mounting = nfs.begin_mount(target, "tls", options="soft,timeo=100,retrans=5")
        with running(place, "restarted", **sides()):
            assert sock.recv(1) == b""  # the kernel's own time limit
            status = mounting.wait(LONG)
            if status == 0:
                nfs.umount(target)
            else:  # there was nobody to ask when it began: it ends, and a new one is good
                assert status in REFUSED | {errno.ESRCH}
            good_mount(target)


def keys_in_kernel() -> int:
    return len(pathlib.Path("/proc/keys").read_text(encoding="utf-8").splitlines())


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

    with running(place, "crowd", **sides()) as daemon:
        good_mount(target)
        nfs.wait_for(lambda: pyktls.linux.tls_stat().curr_tx_sw == 0)
        files, keys = daemon.open_files(), keys_in_kernel()
        with concurrent.futures.ThreadPoolExecutor(200) as pool:
            assert all(pool.map(one, range(200)))
        assert len(daemon.lines(": ok ")) >= 200
        nfs.wait_for(lambda: pyktls.linux.tls_stat().curr_tx_sw == 0)
        assert daemon.open_files() == files
        assert keys_in_kernel() <= keys
        good_mount(target)
