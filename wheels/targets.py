"""What wheels there are, and what a compiler has to be told to make each.

How this works. The C library and the processor are chosen with ``zig cc``, which has the C
libraries of all. What setuptools has to know of the Python that a wheel is for, it asks of
``sysconfig``, and that reads a module whose name is in the environment
(``_PYTHON_SYSCONFIGDATA_NAME``). So a module of ours says what that Python would say, and one
Python builds for all the others. The headers are those of Debian's packages, for each processor its
own.

A free-threaded Python has the headers of the ordinary one; its ``pyconfig.h`` defines
``Py_GIL_DISABLED`` besides (configure.ac of CPython, ``--disable-gil``). It has no stable ABI
before 3.15 (PEP 803), and Cython does not know that one: each release needs a wheel of its own.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.lab.kernels import Apt, cache_root, unpack
from tests.lab.sources import find_mirrors

CACHE = cache_root().parent / "wheels"
#: The oldest musl 1.2 that Debian has.
MUSL_SUITE = "bookworm"


@dataclass(frozen=True)
class Machine:
    """A kind of processor."""

    name: str  # as wheels and zig name it
    debian: str
    elf: str  # e_machine, as pyelftools names it


@dataclass(frozen=True)
class Libc:
    """A C library, and the oldest version of it that a wheel is for."""

    platform: str  # as wheels name it, without the machine
    abi: str  # as Python's own modules and Debian's directories name it
    zig: str
    newest: tuple[str, tuple[int, int]]  # what auditwheel may find at most


@dataclass(frozen=True)
class Python:
    """A Python that wheels are for; headers are in the Debian release ``suite``."""

    version: str
    suite: str
    free_threaded: bool = False

    @property
    def nodot(self) -> str:
        return self.version.replace(".", "") + ("t" if self.free_threaded else "")

    @property
    def tags(self) -> str:
        plain = self.nodot.rstrip("t")
        return f"cp{plain}-cp{self.nodot}" if self.free_threaded else f"cp{plain}-abi3"


@dataclass(frozen=True)
class Target:
    """One wheel."""

    python: Python
    libc: Libc
    machine: Machine

    @property
    def platform(self) -> str:
        return f"{self.libc.platform}_{self.machine.name}"

    @property
    def name(self) -> str:
        return f"{self.python.tags}-{self.platform}"

    @property
    def triple(self) -> str:
        """What zig calls it."""
        return f"{self.machine.name}-linux-{self.libc.zig}"

    @property
    def soabi(self) -> str:
        """What this Python's own modules have in their names."""
        return f"cpython-{self.python.nodot}-{self.machine.name}-linux-{self.libc.abi}"


MACHINES = (Machine("x86_64", "amd64", "EM_X86_64"), Machine("aarch64", "arm64", "EM_AARCH64"))
LIBCS = (
    # manylinux2014 is glibc 2.17 (PEP 599), musllinux_1_2 is musl 1.2 (PEP 656).
    Libc("manylinux2014", "gnu", "gnu.2.17", ("manylinux", (2, 17))),
    Libc("musllinux_1_2", "musl", "musl", ("musllinux", (1, 2))),
)
#: The first serves every ordinary CPython from 3.11 on.
PYTHONS = (
    Python("3.11", "bookworm"),
    Python("3.13", "trixie", free_threaded=True),
    Python("3.14", "forky", free_threaded=True),
    Python("3.15", "forky", free_threaded=True),
)
TARGETS = tuple(
    Target(python, libc, machine) for python in PYTHONS for libc in LIBCS for machine in MACHINES
)


def fetch(targets: tuple[Target, ...]) -> None:
    """Get Python's headers and musl itself into the cache: a few MB for each Python and machine.

    :raises LabError: Debian's archive cannot be asked, or does not have them any more.
    """
    for machine in {target.machine for target in targets}:
        chosen = [target for target in targets if target.machine == machine]
        wanted = {_headers_package(target): target.python.suite for target in chosen} | {
            "musl": MUSL_SUITE
        }
        for suite in sorted(set(wanted.values())):
            names = [name for name, place in wanted.items() if place == suite]
            _fetch(suite, machine, [n for n in names if not _unpacked(n, machine).exists()])


def _fetch(suite: str, machine: Machine, packages: list[str]) -> None:
    if not packages:
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        apt = Apt(Path(scratch) / "apt", suite, find_mirrors(), machine.debian)
        for package in packages:
            unpacked = Path(scratch) / "unpacked"
            unpack(apt.download([package], apt.show(package)[0]), unpacked)
            place = _unpacked(package, machine)
            if place.exists():  # another process was faster
                shutil.rmtree(unpacked)
            else:
                unpacked.rename(place)


def _headers_package(target: Target) -> str:
    return f"libpython{target.python.version}-dev"


def _unpacked(package: str, machine: Machine) -> Path:
    return CACHE / f"{package}-{machine.debian}"


def musl(machine: Machine) -> Path:
    """The library of musl for a machine."""
    return _unpacked("musl", machine) / f"lib/{machine.name}-linux-musl/libc.so"


def headers(target: Target, directory: Path) -> Path:
    """A directory with this Python's headers and its pyconfig.h for this machine."""
    include = _unpacked(_headers_package(target), target.machine) / "usr/include"
    python = f"python{target.python.version}"
    shutil.copytree(include / python, directory)
    # Debian's is only a switch to that of the machine.
    config = include / f"{target.machine.name}-linux-gnu" / python / "pyconfig.h"
    text = config.read_text()
    if target.python.free_threaded:
        unset = r"(?m)^/\* #undef Py_GIL_DISABLED \*/$"
        text, found = re.subn(unset, "#define Py_GIL_DISABLED 1", text)
        if found != 1:
            raise ValueError(f"{config} does not know Py_GIL_DISABLED")
    (directory / "pyconfig.h").write_text(text)
    return directory


def sysconfig_data(target: Target, zig: Path, include: Path, prefix: Path) -> str:
    """The module that tells sysconfig what the Python of the target would tell it.

    ``prefix`` is where sources lie: no path of the machine that builds is to be in a wheel.
    """
    cc = f"{zig} cc -target {target.triple}"
    # No -g, and -s: zig would leave names of its own cache in the file.
    flags = "-O2 -DNDEBUG -fno-strict-overflow -fstack-protector-strong"
    flags += f" -ffile-prefix-map={prefix}=."
    # Not -z defs, as Python's names come from outside: audit.py looks for what is missing.
    shared = f"{cc} -shared -s -Wl,-z,relro,-z,now"
    if target.libc.abi == "musl":
        link = Path(__file__).with_name("link.py")
        shared = f"{sys.executable} {link} libc.musl-{target.machine.name}.so.1 {shared}"
    values = {
        "VERSION": target.python.version,
        "SOABI": target.soabi,
        "EXT_SUFFIX": f".{target.soabi}.so",
        "SHLIB_SUFFIX": ".so",
        "MULTIARCH": f"{target.machine.name}-linux-{target.libc.abi}",
        "INCLUDEPY": str(include),
        "CONFINCLUDEPY": str(include),
        "CC": cc,
        "CXX": cc,
        "CFLAGS": flags,
        "CCSHARED": "-fPIC",
        "LDSHARED": shared,
        "LDCXXSHARED": shared,
        "AR": f"{zig} ar",
        "ARFLAGS": "rcs",
        "Py_DEBUG": 0,
        "Py_GIL_DISABLED": int(target.python.free_threaded),
    }
    return f"build_time_vars = {values!r}\n"
