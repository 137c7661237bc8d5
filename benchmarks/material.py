"""What all subjects need alike: certificates, a file in memory, and how much is to be done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trustme

from .ends import HOST

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .agents import Agents

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
FILE_NAME = "file"
KINDS = {"ecdsa": trustme.KeyType.ECDSA, "rsa": trustme.KeyType.RSA}


def certificates(kind: str = "ecdsa") -> dict[str, str]:
    """A CA's certificate, and a server's key and chain of one kind, as texts of PEM.

    A key for RSA takes long to find where instructions are counted: only who needs one has one.
    """
    authority = trustme.CA()
    certificate = authority.issue_cert(HOST, key_type=KINDS[kind])
    return {
        "authority": authority.cert_pem.bytes().decode(),
        kind: certificate.private_key_and_cert_chain_pem.bytes().decode(),
    }


@dataclass
class Scale:
    """How much each measure does."""

    repeats: int
    bulk: int  # bytes
    records: int  # of each size, at once in the buffers
    pings: int
    handshakes: int
    requests: dict[int, tuple[int, int]]  # connections: requests on each, rounds
    request_size: int
    crowds: tuple[int, ...]  # connections
    imports: int
    calls: int  # rounds


#: One processor that counts instructions, some tens of times slower than a real one.
LAB = Scale(
    repeats=3, bulk=8 * MIB, records=100, pings=100, handshakes=20, imports=1, calls=5,
    requests={1: (32, 3), 16: (4, 2), 128: (1, 2)}, request_size=MIB, crowds=(1_000, 10_000),
)  # fmt: skip
#: A real one.
OWN = Scale(
    repeats=5, bulk=1024 * MIB, records=100, pings=5000, handshakes=300, imports=20, calls=15,
    requests={1: (1024, 5), 16: (64, 5), 128: (8, 5)}, request_size=MIB, crowds=(1_000, 10_000),
)  # fmt: skip
#: Whether anything works at all.
SMALLEST = Scale(
    repeats=1, bulk=MIB, records=10, pings=3, handshakes=2, imports=1, calls=1,
    requests={1: (2, 1), 3: (1, 1)}, request_size=64 * KIB, crowds=(20, 40),
)  # fmt: skip
SCALES = {"lab": LAB, "own": OWN, "smallest": SMALLEST}


@dataclass
class Setting:
    """What a measure is given."""

    agents: Agents
    scale: Scale
    place: Path  # a directory in memory
    limit: str  # the C program, empty if there is none
    say: Callable[[str], None]
    certificates: dict[str, str] = field(default_factory=certificates)
    #: Of other programs that take part, by their names in the tables.
    versions: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def make_file(self, size: int) -> Path:
        path = self.place / FILE_NAME
        if not path.exists() or path.stat().st_size != size:
            path.write_bytes(bytes(range(256)) * (size // 256))
        return path
