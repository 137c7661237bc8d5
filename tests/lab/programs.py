"""Programs of Debian that tests in the guest start, and that this machine need not have.

How this works. The packages and all that they depend on, libc too, are fetched by apt under private
state directories that know of no installed package, and unpacked with `dpkg -x` into one directory
of the cache. Nothing is installed, and no maintainer's script runs. Since libc may be newer than
this machine's, a program is started by the dynamic loader that came with it (`Programs.command`),
with the libraries beside it.

They are fetched here, before a guest is booted, which has no network. The guest sees them where
they are, by the variable PYKTLS_LAB_PROGRAMS.
"""

import contextlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .errors import LabError
from .kernels import Apt, cache_root, say, unpack
from .sources import find_mirrors

SUITE = "trixie"
VARIABLE = "PYKTLS_LAB_PROGRAMS"
# The kernel's NFS server and client are set up with the first, the second is the peer: tlshd.
PACKAGES = ("nfs-kernel-server", "ktls-utils")
LIBRARIES = "usr/lib/x86_64-linux-gnu"
LOADER = f"{LIBRARIES}/ld-linux-x86-64.so.2"


@dataclass(frozen=True)
class Programs:
    """The unpacked packages below `root`, which looks like a system's root."""

    root: Path

    def command(self, program: str, *arguments: str) -> list[str]:
        """The command line that starts `program`, a path from the root on."""
        path = self.root / program
        if not path.is_file():
            raise LabError(f"{program} is not among the programs in {self.root}")
        loader, libraries = str(self.root / LOADER), str(self.root / LIBRARIES)
        return [loader, "--library-path", libraries, str(path), *arguments]


def in_guest() -> Programs:
    """The programs, in a guest that was booted with them."""
    place = os.environ.get(VARIABLE)
    if not place:
        raise LabError(f"{VARIABLE} is not set: boot with `python -m tests.lab run --programs`")
    return Programs(Path(place))


def obtain() -> Programs:
    """The programs, fetched if the cache lacks them."""
    place = cache_root() / "programs" / SUITE
    info = place / "info.json"
    wanted = {"packages": list(PACKAGES)}
    if info.exists() and json.loads(info.read_text()) == wanted:
        return Programs(place / "root")
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{SUITE}@", dir=place.parent) as scratch_name:
        scratch = Path(scratch_name)
        made = scratch / "made"
        _unpack(_download(scratch), made / "root")
        (made / "info.json").write_text(json.dumps(wanted) + "\n")
        made.chmod(0o755)
        if place.exists():  # of other packages
            place.rename(scratch / "old")
        with contextlib.suppress(OSError):  # another process was faster
            made.rename(place)
    return Programs(place / "root")


def _download(scratch: Path) -> list[Path]:
    apt = Apt(scratch / "apt", SUITE, find_mirrors())
    say(f"fetching {', '.join(PACKAGES)} of {SUITE}, with what they depend on")
    return apt.download_with_dependencies(PACKAGES)


def _unpack(archives: list[Path], root: Path) -> None:
    root.mkdir(parents=True)
    unpack(archives, root)
    for place in ("usr/share/doc", "usr/share/man", "usr/share/locale"):
        shutil.rmtree(root / place, ignore_errors=True)
    if not (root / LOADER).exists():
        raise LabError(f"libc of {SUITE} has no {LOADER}")
