"""What is to be done: the transfers one by one, and the setting that they all share.

A step is one version of TLS, one Python end and one peer.  Who serves and who fetches follows from
the peer: s_client and curl fetch, s_server serves.  ``all_steps`` is the demo's programme; running
a step is the business of `running`.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyktls.ciphers import TLS_1_2, TLS_1_3

if TYPE_CHECKING:
    import pathlib

__all__ = [
    "CHUNK", "MIB", "NAME", "SERVED", "VERSIONS", "VERSION_NAMES",
    "Setting", "Step", "StepFailed", "all_steps",
]  # fmt: skip

MIB = 1 << 20
CHUNK = 256 * 1024  # what is read at once from the peer, and by the client
NAME = "localhost"
SERVED = "file"  # the name under which the file is served

VERSIONS = {TLS_1_3: ssl.TLSVersion.TLSv1_3, TLS_1_2: ssl.TLSVersion.TLSv1_2}
VERSION_NAMES = {TLS_1_3: "TLS 1.3", TLS_1_2: "TLS 1.2"}


class StepFailed(Exception):
    """One step went wrong; the text says why."""


@dataclass(frozen=True, slots=True)
class Step:
    """One transfer.  ``python`` is the Python end ("pyktls" or "ssl"), ``peer`` the other."""

    version: int
    python: str
    peer: str

    @property
    def serves(self) -> bool:
        """Whether the Python end is the server (and sends the file)."""
        return self.peer != "s_server"

    @property
    def title(self) -> str:
        """Sender and receiver."""
        return f"{self.python} -> {self.peer}" if self.serves else f"{self.peer} -> {self.python}"

    @property
    def name(self) -> str:
        """Version, sender and receiver."""
        return f"{VERSION_NAMES[self.version]}, {self.title}"


@dataclass(frozen=True, slots=True)
class Setting:
    """What all steps share.  ``place`` holds the certificate, the key and a link to the file."""

    openssl: str
    curl: str | None
    ss: str | None
    place: pathlib.Path
    size: int
    sha256: str

    @property
    def file(self) -> pathlib.Path:
        """The file that is sent."""
        return self.place / SERVED

    @property
    def certificate(self) -> pathlib.Path:
        """The server's certificate, which is its own authority."""
        return self.place / "cert.pem"

    @property
    def key(self) -> pathlib.Path:
        """The certificate's private key."""
        return self.place / "key.pem"


def all_steps(*, curl: bool) -> list[Step]:
    """The steps, in order."""
    return [
        Step(version, python, peer)
        for version in VERSIONS
        for python, peer in (
            ("pyktls", "s_client"),
            ("ssl", "s_client"),
            ("pyktls", "curl"),
            ("pyktls", "s_server"),
            ("ssl", "s_server"),
        )
        if curl or peer != "curl"
    ]
