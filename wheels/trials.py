"""Installs the wheels of dist/ in clean environments, and runs the unit tests there.

    python -m wheels.trials [--wheels DIRECTORY] [--only NAME ...] [--refresh] [--strict] [--jobs N]
                            [PYTEST ARGUMENTS]

How this works. The Pythons, the environments and the table are those of tests/pythons.py; but
instead of building the tree, pip is given the directory with the wheels, and nothing else, and has
to find the one that fits. Three Pythons are there besides:

* a free-threaded one, built from Debian's source. There are no builds of `cryptography` for 3.13t,
  so it runs the tests that do without;
* one on musl, built in a Debian release from Debian's sources, with an OpenSSL, a zlib and a libffi
  of its own;
* one of aarch64: Debian's packages for arm64, unpacked and no more, under qemu-user. There a part
  of the tests runs, as the emulator is slow and does not know all that Linux has.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tests.lab.errors import LabError
from tests.lab.kernels import Apt, unpack
from tests.lab.sources import find_mirrors
from tests.pythons import (
    CACHE,
    UNFINISHED,
    BrokenError,
    FreeThreaded,
    Installed,
    MissingError,
    Packaged,
    Python,
    Release,
    Trial,
    carry_out,
    options_of,
    reason,
    say,
    unpacked_source,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).resolve().parent.parent
#: Every test, with a third of its variants.
EVERYTHING = ("tests/unit", "--variants=1/3")
#: What does without certificates, and so without cryptography.
WITHOUT_CRYPTOGRAPHY = tuple(
    f"tests/unit/test_{name}.py"
    for name in (
        *("counters", "freebsd", "key_update", "linux_abi", "post_handshake", "record_limit"),
        "serve_rules",
    )
)
#: What loads and uses both modules and the real OpenSSL, and asks for nothing of an emulator.
EMULATED = (
    *(
        f"tests/unit/test_{name}.py"
        for name in (
            *("ciphers", "counters", "freebsd", "handoff", "key_schedule", "key_update", "ledger"),
            *("linux_abi", "native_engine", "post_handshake", "record_limit", "takeover"),
        )
    ),
    # The packages are there without a compiler; the emulator does not know SOL_TLS and TCP_ULP,
    # and has not all of TCP_INFO, which the portable engine needs.
    *(
        f"--deselect=tests/unit/test_{name}"
        for name in (
            "linux_abi.py::test_what_differs_from_the_systems_headers_does_not_compile",
            "linux_abi.py::test_older_headers_are_no_obstacle",
            "linux_abi.py::TestC::test_set_keys_checks_before_it_calls",
            "linux_abi.py::TestCalls::test_errors_name_the_call[set_ulp-setsockopt(TCP_ULP)]",
            "takeover.py::test_without_memory_to_let_go_of_the_socket_the_connection_is_dead[portable]",
        )
    ),
)

BINFMT = Path("/proc/sys/fs/binfmt_misc")
QEMU = "qemu-aarch64-static"
#: How the files of programs for aarch64 begin, and which bits of that count: linux's
#: Documentation/admin-guide/binfmt-misc.rst.  F opens the emulator now, so that it is found
#: where another directory is the root.
MAGIC = r"\x7fELF\x02\x01\x01" + r"\x00" * 9 + r"\x02\x00\xb7\x00"
MASK = r"\xff" * 7 + r"\x00" + r"\xff" * 8 + r"\xfe\xff\xff\xff"


#: musl-gcc knows musl's headers alone, and takes itself for gcc: CPython's configure asks.
COMPILER = """\
#!/bin/sh
[ "$1" != --print-multiarch ] || exec echo x86_64-linux-musl
headers=$(dirname "$0")/../kernel
[ -e "$headers" ] || {
    mkdir "$headers"
    ln -s /usr/include/linux /usr/include/asm-generic /usr/include/x86_64-linux-gnu/asm "$headers"
}
exec musl-gcc -idirafter "$headers" "$@"
"""
OPENSSL = """
    ./Configure linux-x86_64 no-asm no-tests no-engine no-legacy shared -O1 \\
        --prefix=$prefix --libdir=lib --openssldir=/etc/ssl
    make -s build_libs
    make -s install_dev
"""
ZLIB = """
    CFLAGS="-O1 -fPIC" ./configure --static --prefix=$prefix
    make -s
    make -s install
"""
LIBFFI = """
    autoreconf -i
    ./configure -q --host=x86_64-linux-musl --disable-docs --disable-builddir \\
        --disable-multi-os-directory --prefix=$prefix CFLAGS="-O1 -fPIC"
    make -s
    make -s install
"""
#: As for another system, with the help of Debian's own of the same version.
CPYTHON = """
    ./configure -q --build=x86_64-linux-gnu --host=x86_64-linux-musl \\
        --with-build-python=/usr/bin/python$version --disable-test-modules --prefix=$prefix \\
        --with-openssl=$prefix --with-openssl-rpath=auto CFLAGS="-O1 -g0" \\
        CPPFLAGS=-I$prefix/include LDFLAGS="-L$prefix/lib -Wl,-rpath,$prefix/lib" \\
        PKG_CONFIG_LIBDIR=$prefix/lib/pkgconfig \\
        ac_cv_file__dev_ptmx=yes ac_cv_file__dev_ptc=no ac_cv_buggy_getaddrinfo=no
    make -s
    make -s altinstall
"""


class Musl(Packaged):
    """One linked to musl, built from the source of a Debian release's Python."""

    #: The libraries that it needs, in this order: package and release, and how each is built.
    LIBRARIES = (
        # Debian's archive has lost the source of newer ones now and then.
        ("openssl", "bookworm", OPENSSL),
        ("zlib", "trixie", ZLIB),
        ("libffi", "trixie", LIBFFI),
    )

    def __init__(self, version: str, suite: str) -> None:
        super().__init__(version, suite)
        self.name += "-musl"

    def obtain(self) -> Path:
        super().obtain()
        prefix = self.place.store / f"python{self.version}-musl"
        interpreter = prefix / "bin" / f"python{self.version}"
        if not self.place.outside(interpreter).exists():
            try:
                self._build(prefix)
            except MissingError:
                shutil.rmtree(self.place.outside(prefix), ignore_errors=True)
                raise
        return interpreter

    def _build(self, prefix: Path) -> None:
        say(f"building {self.name} and its libraries")
        store = self.place.outside(self.place.store)
        compiler = prefix / "bin" / "musl-cc"
        self.place.outside(compiler).parent.mkdir(parents=True, exist_ok=True)
        self.place.outside(compiler).write_text(COMPILER)
        self.place.outside(compiler).chmod(0o755)
        with tempfile.TemporaryDirectory(dir=store, prefix=UNFINISHED) as scratch:
            python = (f"python{self.version}", self.place.suite, CPYTHON)
            for package, suite, commands in (*self.LIBRARIES, python):
                tree = unpacked_source(package, suite, Path(scratch))
                inside = Path("/") / tree.relative_to(self.place.root)
                done = self.place.run(
                    ["sh", "-ec", commands],
                    subprocess.PIPE,
                    inside,
                    CC=str(compiler),
                    MAKEFLAGS=f"-j{os.cpu_count()}",
                    prefix=str(prefix),
                    version=self.version,
                )
                if done.returncode:
                    print(done.stdout, flush=True)
                    raise MissingError(f"{package} could not be built: {reason(done.stdout)}")


class EmulatedRelease(Release):
    """A Debian release for arm64, whose programs run under qemu-user.

    Its packages are unpacked and not set up, for which hundreds of programs would have to run.
    """

    def __init__(self, suite: str, packages: Sequence[str]) -> None:
        super().__init__(suite, packages)
        self.root = CACHE / f"{suite}-arm64"

    def _bootstrap(self) -> None:
        say(f"fetching {self.suite} for arm64")
        with tempfile.TemporaryDirectory(dir=CACHE, prefix=UNFINISHED) as scratch:
            root = Path(scratch) / "root"
            root.mkdir()
            try:
                apt = Apt(Path(scratch) / "apt", self.suite, find_mirrors(), "arm64")
                archives = apt.download_with_dependencies(("base-files", *self.packages))
                # The one with the links from /lib to /usr/lib first.
                archives.sort(key=lambda path: not path.name.startswith("base-files_"))
                unpack(archives, root)
            except LabError as e:
                raise MissingError(reason(str(e))) from e
            for directory in ("proc", "sys", "dev", "mnt", "root", "tmp", "etc/apt/apt.conf.d"):
                (root / directory).mkdir(parents=True, exist_ok=True)
            (root / "tmp").chmod(0o1777)
            (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
            (root / "etc/group").write_text("root:x:0:\n")
            if not (root / "usr/bin/sh").exists():
                (root / "usr/bin/sh").symlink_to("dash")
            self._finish(root, Path(scratch))


class Emulated(Python):
    """Debian's Python for arm64."""

    #: Nothing in EMULATED needs these, and each takes its time here.
    without = (
        *("aiohttp", "aiosmtpd", "Cython", "httpx", "pyftpdlib", "requests", "setuptools"),
        *("urllib3", "uvloop"),
    )

    def __init__(self, version: str, suite: str) -> None:
        self.version = version
        self.name = f"{suite}-{version}-aarch64"
        packages = (f"python{version}-venv", "ca-certificates", "coreutils", "dash", "mount")
        self.place: Release = EmulatedRelease(suite, (*packages, "openssl"))

    def obtain(self) -> Path:
        if not any(path.read_text().startswith("enabled") for path in emulators()):
            raise MissingError("nothing runs programs for aarch64 here: see emulation()")
        self.place.make()
        return Path(f"/usr/bin/python{self.version}")


def emulators() -> list[Path]:
    """What the kernel has been told about programs for aarch64."""
    return [path for path in BINFMT.glob("*") if "aarch64" in path.name]


@contextlib.contextmanager
def emulation() -> Iterator[None]:
    """Have the kernel run programs for aarch64 by qemu-user, if it does not already."""
    emulator = shutil.which(QEMU)
    if emulators() or emulator is None or os.geteuid() != 0:
        yield
        return
    mounted = (BINFMT / "register").exists()
    if not mounted:
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT], check=False)
    name = "pyktls-aarch64"
    # A run that is ended leaves nothing behind, either.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        (BINFMT / "register").write_text(f":{name}:M::{MAGIC}:{MASK}:{emulator}:F")
        yield
    finally:
        if (BINFMT / name).exists():
            (BINFMT / name).write_text("-1")
        if not mounted:
            subprocess.run(["umount", BINFMT], check=False)


@dataclass
class WheelTrial(Trial):
    """The tests on one Python, with the wheel that is for it."""

    tests: Sequence[Sequence[str]] = (EVERYTHING,)
    wheels: Path = field(default=ROOT / "dist")

    def _install(self, pip: list[str | Path], tree: Path, output: IO[bytes]) -> None:
        place = self.python.place
        offered = tree / "wheels-to-try"
        shutil.copytree(self.wheels, place.outside(offered))
        command = [*pip, "--pre", "--no-index", "--no-deps", "--force-reinstall"]
        command += ["--only-binary=pyktls", f"--find-links={offered}", "pyktls"]
        if place.run(command, output).returncode:
            raise BrokenError("no wheel is for this Python, see above")


def pythons() -> dict[Python, Sequence[str]]:
    """Where the wheels are tried, and the tests that run there."""
    free_threaded = FreeThreaded("3.13", "trixie")
    # cffi 2 refuses 3.13t; newer releases of hypothesis, and the others, have no builds for it.
    free_threaded.limits = ("cffi<2", "hypothesis<6.156")
    free_threaded.without = (
        *("aiohttp", "aiosmtpd", "cryptography", "httpx", "pyOpenSSL", "trustme", "uvloop"),
    )
    return {
        **{Installed(version): EVERYTHING for version in ("3.11", "3.12", "3.13")},
        Packaged("3.14", "forky"): EVERYTHING,
        Packaged("3.15", "forky"): EVERYTHING,
        free_threaded: WITHOUT_CRYPTOGRAPHY,
        # The hidden OpenSSL of the tests is Debian's, and so glibc's.
        Musl("3.13", "trixie"): (*EVERYTHING, "--ignore=tests/unit/test_hidden_openssl.py"),
        Emulated("3.13", "trixie"): EMULATED,
    }


def main() -> int:
    there = pythons()
    parser = options_of(__doc__ or "", [python.name for python in there])
    parser.add_argument("--wheels", type=Path, default=ROOT / "dist", metavar="DIRECTORY")
    options, arguments = parser.parse_known_args()
    trials = [
        WheelTrial(python, tests=(tests,), wheels=options.wheels.absolute())
        for python, tests in there.items()
        if not options.only or python.name in options.only
    ]
    with emulation():
        return carry_out(trials, options, arguments)


if __name__ == "__main__":
    sys.exit(main())
