"""NFS over TLS in a guest of the lab: modules, Debian's programs, certificates, a server."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from lab import programs as lab_programs
from support import nfs
from support.authority import Authority

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

# It mounts, exports, and takes the handshakes of the whole machine upon itself.
collect_ignore_glob = [] if "PYKTLS_LAB" in os.environ else ["test_*.py"]

MODULES = ("veth", "sunrpc", "nfsd", "nfsv4")


@pytest.fixture(scope="session")
def programs() -> lab_programs.Programs:
    return lab_programs.in_guest()


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    for module in MODULES:
        subprocess.run(["modprobe", module], check=True)
    return tmp_path_factory.mktemp("nfs")


@pytest.fixture(scope="session")
def authority(place: pathlib.Path) -> Authority:
    made = Authority(place)
    made.issue("server", "localhost", "server.test", "127.0.0.1")
    made.issue("client", "client.test")
    return made


@pytest.fixture(scope="session")
def server(programs: lab_programs.Programs, place: pathlib.Path) -> Iterator[nfs.Server]:
    made = nfs.Server(programs, place, threads=64)
    yield made
    made.close()


@pytest.fixture
def sides(authority: Authority) -> Any:
    return authority.sides
