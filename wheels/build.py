"""The sdist and the wheels of a commit, the same bytes each time.

How this works. What is built is the commit, not the files as they lie around: ``git archive`` gives
them. The sdist comes first, and every wheel from it, each in a directory of its own. All times are
the commit's (SOURCE_DATE_EPOCH): setuptools does that for wheels; for the sdist it is done here.
The tools are those of requirements.txt, the compiler is among them.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .targets import Target, headers, sysconfig_data

ROOT = Path(__file__).resolve().parent.parent
#: What of the environment a compiler or setuptools would listen to.
LEFT_OUT = ("CC", "CXX", "CPP", "LDSHARED", "AR", "CFLAGS", "CPPFLAGS", "LDFLAGS", "ARCHFLAGS")


class BuildError(Exception):
    """Something could not be built, or is not what it should be; the text says what."""


def zig_program() -> Path:
    """The compiler, out of the wheel `ziglang`."""
    found = importlib.util.find_spec("ziglang")
    if found is None or found.origin is None:
        raise BuildError("ziglang is missing: this Python has not got wheels/requirements.txt")
    return Path(found.origin).with_name("zig")


def commit_time() -> str:
    """When the commit that is built was made, in seconds since 1970."""
    return _run(["git", "log", "-1", "--format=%ct", "HEAD"], ROOT).strip()


def build(directory: Path, targets: tuple[Target, ...], jobs: int) -> list[Path]:
    """Build the sdist and the wheels in an empty directory; their paths are returned.

    :raises BuildError: with what the tool that failed said.
    """
    zig = zig_program()
    epoch = commit_time()
    out = directory / "out"
    out.mkdir(parents=True)
    tree = directory / "tree"
    tree.mkdir()
    archive = subprocess.run(
        ["git", "archive", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(tree, filter="data")
    _build(["--sdist"], tree, out, _environment(epoch))
    (sdist,) = out.glob("*.tar.gz")
    normalize(sdist, int(epoch))

    def wheel(target: Target) -> None:
        place = directory / target.name
        source = unpack(sdist, place)
        include = headers(target, place / "include")
        told = place / "told"
        told.mkdir()
        (told / "told_sysconfig.py").write_text(sysconfig_data(target, zig, include, source))
        environment = _environment(epoch) | {
            "_PYTHON_SYSCONFIGDATA_NAME": "told_sysconfig",
            "_PYTHON_HOST_PLATFORM": f"linux-{target.machine.name}",
            "PYTHONPATH": str(told),
        }
        option = f"--config-setting=--build-option=--plat-name={target.platform}"
        _build(["--wheel", option], source, out, environment)
        shutil.rmtree(place)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(wheel, targets))
    return sorted(out.iterdir())


def unpack(sdist: Path, directory: Path) -> Path:
    """Unpack an sdist; the directory that is in it."""
    with tarfile.open(sdist) as tar:
        tar.extractall(directory, filter="data")
    return directory / sdist.name.removesuffix(".tar.gz")


def normalize(sdist: Path, epoch: int) -> None:
    """Write an sdist anew, in order and without times, owners and whims of the machine."""
    with tarfile.open(sdist) as tar:
        members = [
            (member, file.read() if (file := tar.extractfile(member)) else b"")
            for member in sorted(tar.getmembers(), key=lambda member: member.name)
        ]
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member, data in members:
            info = tarfile.TarInfo(member.name)
            info.type, info.size, info.mtime = member.type, len(data), epoch
            info.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            tar.addfile(info, io.BytesIO(data))
    with sdist.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=epoch) as packed:
        packed.write(plain.getvalue())


def digests(paths: list[Path]) -> dict[str, str]:
    """The SHA-256 of each file, by its name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def compare(first: dict[str, str], second: dict[str, str]) -> None:
    """See that two builds are the same.

    :raises BuildError: they are not; the text has the names.
    """
    other = sorted(name for name, _ in first.items() ^ second.items())
    if other:
        raise BuildError(f"built a second time these are others: {' '.join(dict.fromkeys(other))}")


def _environment(epoch: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
    return kept | {"SOURCE_DATE_EPOCH": epoch, "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def _build(what: list[str], source: Path, out: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", *what, f"--outdir={out}", "."]
    # A wheel keeps the modes of its files.
    _run(command, source, environment, umask=0o022)


def _run(
    command: list[str], directory: Path, environment: dict[str, str] | None = None, umask: int = -1
) -> str:
    done = subprocess.run(
        command, cwd=directory, env=environment, umask=umask, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}")
    return done.stdout
