"""Where this machine gets Debian packages from, read from its own apt configuration.

How this works. No mirror's address is written in this project. A Debian machine already names one,
in `/etc/apt/sources.list`, `sources.list.d/*.list` (one line each) or `*.sources` (deb822
paragraphs). The first entry for a Debian suite with the component `main` gives the main archive,
the first for a security suite the security archive. Elsewhere (Ubuntu, say) PYKTLS_LAB_MIRROR and
PYKTLS_LAB_SECURITY_MIRROR name them.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import LabError

RELEASES = {"bullseye", "bookworm", "trixie", "forky", "duke", "sid"}
ALIASES = {"stable", "oldstable", "oldoldstable", "testing", "unstable"}
NO_MIRROR = (
    "no Debian archive found in this machine's apt sources: "
    "set PYKTLS_LAB_MIRROR to the address of a Debian mirror (it usually ends in /debian)"
)


@dataclass(frozen=True)
class Entry:
    """One archive and one of its suites."""

    uri: str
    suite: str
    components: tuple[str, ...]

    @property
    def is_debian(self) -> bool:
        # Other archives use the code names too, but with a suffix or without a component `main`.
        release = re.sub("(-updates|-backports|-security|/updates)$", "", self.suite)
        return release in RELEASES | ALIASES and "main" in self.components

    @property
    def is_security(self) -> bool:
        return self.suite.endswith(("-security", "/updates"))


@dataclass(frozen=True)
class Mirrors:
    main: str
    security: str | None


def parse_list(text: str) -> Iterator[Entry]:
    """The one-line format: deb [options] URI SUITE COMPONENT..."""
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[[^]]*\]\s*)?([^#]+)", line)
        fields = match[1].split() if match else []
        if len(fields) >= 2:
            yield Entry(fields[0].rstrip("/"), fields[1], tuple(fields[2:]))


def parse_deb822(text: str) -> Iterator[Entry]:
    """The paragraph format: Types, URIs, Suites, Components."""
    text = re.sub(r"(?m)^#.*\n?", "", text)
    for paragraph in re.split(r"\n\s*\n", text):
        # A continuation line starts with a blank.
        unfolded = re.sub(r"\n[ \t]+", " ", paragraph)
        pairs = (line.partition(":") for line in unfolded.splitlines())
        fields = {name.strip().lower(): value.split() for name, _, value in pairs}
        off = fields.get("enabled", ["yes"])[:1] in (["no"], ["false"], ["0"], ["off"])
        if off or "deb" not in fields.get("types", []):
            continue
        for suite in fields.get("suites", []):
            for uri in fields.get("uris", []):
                yield Entry(uri.rstrip("/"), suite, tuple(fields.get("components", [])))


def host_entries(etc_apt: Path = Path("/etc/apt")) -> Iterator[Entry]:
    parts = etc_apt / "sources.list.d"
    for path in [etc_apt / "sources.list", *sorted(parts.glob("*.list"))]:
        if path.is_file():
            yield from parse_list(path.read_text())
    for path in sorted(parts.glob("*.sources")):
        yield from parse_deb822(path.read_text())


def find_mirrors(etc_apt: Path = Path("/etc/apt")) -> Mirrors:
    main = os.environ.get("PYKTLS_LAB_MIRROR")
    security = os.environ.get("PYKTLS_LAB_SECURITY_MIRROR")
    if not main:
        debian = [entry for entry in host_entries(etc_apt) if entry.is_debian]
        mains = [entry.uri for entry in debian if not entry.is_security]
        main = next((uri for uri in mains if uri.endswith("/debian")), next(iter(mains), None))
        security = security or next((entry.uri for entry in debian if entry.is_security), None)
    if not main:
        raise LabError(NO_MIRROR)
    return Mirrors(main.rstrip("/"), security.rstrip("/") if security else None)
