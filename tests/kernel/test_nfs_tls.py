"""The daemon of examples/nfs_tls on kernels with its upcall, and on those that have none.

Linux 6.1 has kernel TLS and no upcall (it came with 6.4).  Mounts are in tests/nfs.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nfs_tls.upcall import HandshakeUpcall, UpcallError
from support import nfs
from support.authority import Authority

pytestmark = pytest.mark.every_kernel


def has_upcall() -> bool:
    release = os.uname().release.split("-")[0].split("+")[0].split(".")
    return (int(release[0]), int(release[1])) >= (6, 4)


def test_the_kernel_has_the_upcall_since_6_4():
    if has_upcall():
        upcall = HandshakeUpcall()
        assert upcall.accept() is None
        upcall.close()
    else:
        with pytest.raises(UpcallError, match=r"no handshake upcall: Linux 6\.4"):
            HandshakeUpcall()


def test_the_daemon_starts_or_says_what_is_missing(tmp_path):
    authority = Authority(tmp_path)
    authority.issue("server", "localhost")
    sides = authority.sides()
    del sides["client"]
    if has_upcall():
        daemon = nfs.Daemon(tmp_path, **sides)
        daemon.reload(**sides)
        assert daemon.end() == 0
        said = daemon.said().splitlines()
        assert said[-3:] == ["ready", "reloaded", "stopped"]
        return
    config = tmp_path / "config.toml"
    config.write_text(nfs.toml(sides))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "nfs_tls", "--config", config],
        capture_output=True,
        text=True,
        check=False,
        timeout=nfs.PATIENCE,
        env={**os.environ, "PYTHONPATH": str(nfs.ROOT / "examples")},
    )
    assert done.returncode == 1
    assert done.stderr.endswith(
        "nfs_tls: this kernel has no handshake upcall: Linux 6.4 or later with "
        "CONFIG_NET_HANDSHAKE is needed (6.5 for an NFS client)\n"
    )
