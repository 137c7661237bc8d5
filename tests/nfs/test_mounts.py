"""Mounts over TLS, with our daemon for both ends: what goes over the wire, and what it counts."""

from __future__ import annotations

import hashlib
import os
import pwd
import re
from typing import TYPE_CHECKING, Any

import pytest

import pyktls
from support import nfs

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

MARK = b"these are bytes of a file, which nobody on the way may see. "
MiB = 1 << 20
HANDSHAKE, DATA = 22, 23  # ContentType, RFC 8446 section 5.1


@pytest.fixture
def daemon(place: pathlib.Path, sides: Any) -> Iterator[nfs.Daemon]:
    with nfs.running(place, **sides()) as made:
        yield made


def write(path: pathlib.Path, blocks: int) -> str:
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(blocks):
            block = os.urandom(MiB)
            file.write(block)
            digest.update(block)
    return digest.hexdigest()


def read(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.parametrize("xprtsec", ["tls", "mtls"])
def test_a_quarter_of_a_gigabyte_there_and_back(server, daemon, place, xprtsec):
    server.export(xprtsec)
    target = place / "mount"
    before = pyktls.linux.tls_stat()
    with nfs.mounted(target, xprtsec):
        now = pyktls.linux.tls_stat()
        assert (now.curr_tx_sw, now.curr_rx_sw) == (before.curr_tx_sw + 2, before.curr_rx_sw + 2)
        written = write(target / "file", 256)
    # Another mount, so that nothing is read that the client still has.
    with nfs.mounted(target, xprtsec):
        assert read(target / "file") == written
    assert read(server.export_root / "file") == written
    (server.export_root / "file").unlink()
    change = pyktls.linux.tls_stat() - before
    assert change["TlsTxSw"] == change["TlsRxSw"] == 4  # two mounts, two ends
    assert not change.errors
    nfs.wait_for(lambda: pyktls.linux.tls_stat().curr_tx_sw == before.curr_tx_sw)
    lines = daemon.wait_for_line(": ok ", 4)
    peer = "client.test" if xprtsec == "mtls" else "anonymous"
    assert len([line for line in lines if line.startswith("client localhost 127.0.0.1:")]) == 2
    ends = [line for line in lines if line.startswith("server ")]
    assert len(ends) == 2
    assert all(re.search(rf"peer={peer}: TLSv1\.3 \w+ tx=software rx=software", e) for e in ends)


@pytest.mark.parametrize("xprtsec", ["tls", "mtls", "none"])
def test_what_is_on_the_wire(server, daemon, place, xprtsec):
    """Records of TLS and nothing of the file; without TLS the same capture finds the file."""
    server.export("none:tls:mtls")
    target = place / "mount"
    content = MARK * (4 * MiB // len(MARK))
    with nfs.Capture() as capture:
        with nfs.mounted(target, xprtsec):
            (target / "file").write_bytes(content)
        with nfs.mounted(target, xprtsec):
            assert (target / "file").read_bytes() == content
    (server.export_root / "file").unlink()
    seen = sum(packet.count(MARK) for packet in capture.packets)
    moved = sum(len(packet) for packet in capture.packets)
    assert moved > 2 * len(content)
    if xprtsec == "none":
        assert seen > len(content) // len(MARK)
        return
    assert seen == 0
    for to_server in (True, False):
        for stream in capture.streams(to_server=to_server):
            found = nfs.records(stream)
            kinds = [kind for kind, _ in found]
            assert kinds[0] == HANDSHAKE
            assert set(kinds[3:]) == {DATA}
    assert "ok" in daemon.said()


def test_the_daemon_has_given_up_what_it_does_not_need(server, daemon, place):
    """CAP_NET_ADMIN is left, and with it alone it serves a mount."""
    fields = dict(line.split(":\t", 1) for line in daemon.status().splitlines())
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert int(fields[name], 16) == 1 << 12, name
    for name in ("CapInh", "CapAmb"):
        assert int(fields[name], 16) == 0, name
    assert fields["NoNewPrivs"] == "1"
    server.export("tls")
    with nfs.mounted(place / "mount", "tls"):
        pass


def test_as_another_user(server, place, authority, sides):
    """It reads its files and serves mounts as nobody, who may not do anything else."""
    keys = list(authority.place.glob("*.key"))
    for path in (authority.place, *authority.place.parents[:2]):
        path.chmod(0o755)
    for path in keys:
        path.chmod(0o644)
    try:
        daemon = nfs.Daemon(place, "as-nobody", "--user", "nobody", **sides())
        try:
            status = daemon.status()
            user = pwd.getpwnam("nobody")
            assert re.search(rf"(?m)^Uid:(\t{user.pw_uid}){{4}}$", status)
            assert re.search(rf"(?m)^Gid:(\t{user.pw_gid}){{4}}$", status)
            assert re.search(rf"(?m)^Groups:\t{user.pw_gid} *$", status)
            assert re.search(r"(?m)^CapEff:\t0*1000$", status)
            server.export("mtls")
            with nfs.mounted(place / "mount", "mtls"):
                pass
            daemon.reload(**sides())
            assert "reload failed" not in daemon.said()
        finally:
            assert daemon.end() == 0
    finally:
        for path in keys:
            path.chmod(0o600)
