"""An ``_ssl`` module whose OpenSSL nobody can reach, as in Pythons that are one static binary.

``build()`` compiles CPython's own ``Modules/_ssl.c`` for the running interpreter and links OpenSSL
into it, with every symbol hidden (``--exclude-libs,ALL``, as python-build-standalone does).  First
on ``sys.path`` it takes the place of the interpreter's own ``_ssl``; a ``dlsym`` for any function
of OpenSSL then truly fails.

Both sources are Debian's packages, fetched once into the cache (``PYKTLS_LAB_CACHE``): CPython's
source of the same minor version, and OpenSSL's static libraries in the oldest of the releases, so
that they link on any newer one.  ``PYKTLS_CPYTHON_SOURCE`` names a source tree to use instead.

As a program (``python -m support.hidden_openssl``, in tests/) it builds it, and says where it is.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import platform
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DOOR = "pyktls_test_door"

#: Where Debian has the source of which CPython.
SUITES = {(3, 11): "bookworm", (3, 13): "trixie", (3, 14): "forky", (3, 15): "forky"}
OPENSSL_SUITE = "bookworm"


class NoSourceError(Exception):
    """The archive names a source of this CPython, and does not have it."""


class Inside:
    """Functions of the hidden OpenSSL, by the tests' own door; used like a ``ctypes.CDLL``."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._door = getattr(library, DOOR)
        self._door.argtypes, self._door.restype = (ctypes.c_char_p,), ctypes.c_void_p

    def __getattr__(self, name: str) -> Any:
        address = self._door(name.encode())
        if address is None:
            raise AttributeError(f"hidden_openssl.c has no door for {name}")
        function = self._library._FuncPtr(address)
        setattr(self, name, function)
        return function


def sources_known() -> bool:
    """Whether there is a source of this interpreter's minor version to build from."""
    return bool(os.environ.get("PYKTLS_CPYTHON_SOURCE")) or sys.version_info[:2] in SUITES


def build() -> Path:
    """The directory with the module in it; built if the cache has none for this interpreter."""
    present = built()
    if present is not None:  # a guest of the lab can only read the cache
        return present
    root = _root()
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        source = _python_source(root)
        openssl = _openssl(root)
        return _compile(root, source, openssl)


def built() -> Path | None:
    """The same, if the cache has it."""
    root = _root()
    source, openssl = _python_source_place(root), root / "openssl"
    if not (source.exists() and openssl.exists()):
        return None
    _, place = _command(root, source, openssl)
    return place if place.exists() else None


def _root() -> Path:
    from lab.kernels import cache_root  # noqa: PLC0415  # tls.py imports this file everywhere

    return cache_root().parent / "hidden-openssl"


def _apt(scratch: Path, suite: str) -> Any:
    from lab.kernels import Apt  # noqa: PLC0415
    from lab.sources import find_mirrors  # noqa: PLC0415

    # Not the security archive: any version will do, and there they come and go.
    return Apt(scratch / "apt", suite, replace(find_mirrors(), security=None))


def _run(command: list[str], cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"


def _python_source_place(root: Path) -> Path:
    own = os.environ.get("PYKTLS_CPYTHON_SOURCE")
    return Path(own) if own else root / "python{}.{}".format(*sys.version_info)


def _python_source(root: Path) -> Path:
    """A directory with CPython's ``Modules``."""
    from lab.errors import LabError  # noqa: PLC0415

    version = sys.version_info[:2]
    name = f"python{version[0]}.{version[1]}"
    place = _python_source_place(root)
    if not place.exists():
        with tempfile.TemporaryDirectory(dir=root) as directory:
            scratch = Path(directory)
            apt = _apt(scratch, SUITES[version])
            try:
                archive = apt.source(name)
            except LabError as e:
                if "404" not in str(e):
                    raise
                raise NoSourceError(f"{SUITES[version]} has no source of {name} at present") from e
            with tarfile.open(archive) as tar:
                members = [m for m in tar.getmembers() if m.name.split("/")[1:2] == ["Modules"]]
                tar.extractall(scratch / "unpacked", members, filter="data")
            (tree,) = (scratch / "unpacked").iterdir()
            tree.rename(place)
    return place


def _openssl(root: Path) -> Path:
    """A directory with OpenSSL's headers and static libraries."""
    place = root / "openssl"
    if not place.exists():
        with tempfile.TemporaryDirectory(dir=root) as directory:
            apt = _apt(Path(directory), OPENSSL_SUITE)
            version = apt.show("libssl-dev")[0]
            (archive,) = apt.download(["libssl-dev"], version)
            _run(["dpkg", "-x", str(archive), str(Path(directory) / "unpacked")])
            (Path(directory) / "unpacked" / "usr").rename(place)
    return place


def _command(root: Path, source: Path, openssl: Path) -> tuple[list[str], Path]:
    """How it is compiled, but for the output, and the directory for what comes of that."""
    include = sysconfig.get_path("include")
    (libraries,) = (path.parent for path in openssl.rglob("libssl.a"))
    (configuration,) = (path.parent.parent for path in openssl.rglob("opensslconf.h"))
    header, door = HERE / "hidden_openssl.h", HERE / "hidden_openssl.c"
    command = [
        "gcc", "-shared", "-fPIC", "-O1", "-g0", "-w", "-fvisibility=hidden",
        "-DPy_BUILD_CORE_MODULE", "-include", str(header), f"-I{include}", f"-I{include}/internal",
        f"-I{source}/Modules", f"-I{source}/Modules/_ssl",
        f"-I{openssl}/include", f"-I{configuration}", f"{source}/Modules/_ssl.c", str(door),
        "-Wl,--exclude-libs,ALL", "-Wl,-Bsymbolic",
        f"{libraries}/libssl.a", f"{libraries}/libcrypto.a", "-lpthread", "-ldl",
    ]  # fmt: skip
    what = [platform.python_version(), sys.abiflags, sys.base_prefix, *command]
    inputs = repr(what).encode() + header.read_bytes() + door.read_bytes()
    digest = hashlib.sha256(inputs).hexdigest()[:16]
    return command, root / f"{sys.implementation.cache_tag}{sys.abiflags}-{digest}"


def _compile(root: Path, source: Path, openssl: Path) -> Path:
    command, place = _command(root, source, openssl)
    if not place.exists():
        with tempfile.TemporaryDirectory(dir=root) as directory:
            made = Path(directory) / "made"
            made.mkdir()
            suffix = sysconfig.get_config_var("EXT_SUFFIX")
            _run([*command, "-o", str(made / f"_ssl{suffix}")])
            made.rename(place)
    return place


def main() -> None:
    if not sources_known():
        sys.exit("Debian has no source of this CPython; set PYKTLS_CPYTHON_SOURCE to one")
    try:
        print(build())
    except NoSourceError as e:
        sys.exit(f"{e}; set PYKTLS_CPYTHON_SOURCE to one")


if __name__ == "__main__":
    main()
