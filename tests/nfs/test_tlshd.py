"""Debian's tlshd at one end and our daemon at the other, each in a network namespace."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from support import nfs

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVER, CLIENT = "10.0.0.1", "10.0.0.2"


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[nfs.Net]:
    """Another machine, as far as the upcall is concerned: the client's."""
    here, other = nfs.Net(), nfs.Net.new()
    here.join(other, SERVER, CLIENT)
    yield other
    other.close()
    here.close()


@pytest.mark.parametrize("xprtsec", ["tls", "mtls"])
@pytest.mark.parametrize("ours", ["client", "server"])
def test_a_mount(server, programs, place, sides, elsewhere, ours, xprtsec):
    server.export(xprtsec)
    here = nfs.Net()
    made = sides()
    name = f"{ours}-{xprtsec}"
    theirs = "server" if ours == "client" else "client"
    place_of = {"client": elsewhere.entered, "server": here.entered}
    with place_of[theirs]():
        tlshd = nfs.Tlshd(programs, place, f"tlshd-{name}", **{theirs: made[theirs]})
    with place_of[ours]():
        daemon = nfs.Daemon(place, f"beside-tlshd-{name}", **{ours: made[ours]})
    target = place / "mount"
    block = os.urandom(1 << 20)
    try:
        with elsewhere.entered():
            options = {"address": SERVER, "own": CLIENT}
            with nfs.mounted(target, xprtsec, "server.test", **options):
                (target / "file").write_bytes(block * 8)
                assert nfs.kernel_tls() == (1, 1)
                with here.entered():
                    assert nfs.kernel_tls() == (1, 1)
            with nfs.mounted(target, xprtsec, "server.test", **options):
                found = hashlib.sha256((target / "file").read_bytes()).digest()
        assert found == hashlib.sha256(block * 8).digest()
        assert len(daemon.wait_for_line(": ok ", 2)) == 2
        assert all(line.startswith(ours) for line in daemon.lines(": ok "))
        if ours == "server":
            peer = "client.test" if xprtsec == "mtls" else "anonymous"
            assert all(f"peer={peer}:" in line for line in daemon.lines(": ok "))
        assert len(tlshd.wait_for_line("successful", 2)) == 2
    finally:
        print(daemon.said(), tlshd.said())
        assert daemon.end() == 0
        tlshd.end()
        here.close()
