"""Builds pyktls and runs the unit tests on every Python there is.

    python -m tests.pythons [--only NAME ...] [--python PATH ...] [--refresh] [--strict] [--jobs N]
                            [PYTEST ARGUMENTS]

How this works. A Python is one of three kinds:

* one of this machine's, on the PATH or of pyenv;
* one of another Debian release, which has an OpenSSL of its own besides. debootstrap makes the
  release's files in a directory, which commands have as their root directory: root's privilege is
  needed for both. The mirror is the one of this machine's own apt, as in tests/lab;
* a free-threaded one, which Debian does not have: built in such a directory from the source that
  goes with its Python.

For each the tree is copied, so that building does not disturb it; pyktls is installed from the copy
into a virtual environment, not in place, so that the tests run on what a user gets; then tests/unit
and, in a process of its own and on the fake of its kernel, tests/freebsd run. As many Pythons at
once as there are processors (--jobs); the output of each comes when it has ended.

The releases, the Pythons and the virtual environments stay in the cache, beside the lab's: a second
run only builds pyktls. --refresh throws them away first. Ends with a table (docs/pythons.md has
one). A Python that cannot be had is in it with the reason, and a failure only with --strict.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import tomllib
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tests.lab.errors import LabError
from tests.lab.kernels import KEYRINGS, Apt, cache_root
from tests.lab.sources import find_mirrors
from tests.lab.tools import search_path
from tests.run import read_counts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).resolve().parent.parent
CACHE = cache_root().parent / "pythons"
#: Each in a process of its own: tests/freebsd brings its own build of the package.
TESTS = (("tests/unit",), ("tests/freebsd",))
#: What runs and builds leave in the tree; the rest of it is copied.
LEAVINGS = shutil.ignore_patterns(
    ".*", "__pycache__", "*.egg-info", "*.so", "_kernel.c", "build", "dist", "test-results"
)
HIDDEN = {".clang-tidy"}  # what is of the sources all the same

#: What builds pyktls, what the tests start, and what pip builds where the index has no wheel.
PACKAGES = ("ca-certificates", "curl", "gcc", "libc6-dev", "libffi-dev", "mount", "openssl")
#: What CPython is built from besides.
FOR_CPYTHON = ("libbz2-dev", "liblzma-dev", "libssl-dev", "make", "pkgconf", "zlib1g-dev")
#: What its libraries are built from, for musl, and with what.
FOR_MUSL = ("autoconf", "automake", "libltdl-dev", "libtool", "musl-tools", "perl")
RELEASES = {
    "trixie": ("python3.13-dev", "python3.13-venv", *PACKAGES, *FOR_CPYTHON, *FOR_MUSL),
    "forky": (
        *("python3.14-dev", "python3.14-venv", "python3.15-dev", "python3.15-venv"),
        *(*PACKAGES, *FOR_CPYTHON),
    ),
}
#: What of this machine's environment goes into another release too, by the beginning of its name.
PASSED_ON = ("PIP_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "PYKTLS_LAB_MIRROR")
#: What of its apt's configuration.
APT_PASSED_ON = ("Acquire::Check", "Acquire::http")
#: Files that pip needs to reach its index as it does on this machine: these, and what these name.
FILES = ("/etc/resolv.conf", "/etc/pip.conf")
NAMING_FILES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")

LOOK = """
import json, ssl, sys, sysconfig, warnings
warnings.simplefilter("ignore")  # that the GIL was switched on again
import pyktls
free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
print(json.dumps({
    "python": sys.version.split()[0] + ("t" if free_threaded else ""),
    "openssl": ssl.OPENSSL_VERSION.split()[1],
    "engine": next((engine.name for engine in pyktls.engines() if engine.chosen), "none"),
    "gil": getattr(sys, "_is_gil_enabled", lambda: True)(),
    "free_threaded": free_threaded,
    "apart": pyktls.__file__.startswith(sys.prefix),
}))
"""
#: What is started and mounted after this is gone with it: nothing of this machine's ever lies under
#: a directory that is removed later.
APART = (
    *("unshare", "--mount", "--propagation", "private"),
    *("--pid", "--fork", "--kill-child", "--mount-proc"),
)
#: How the names of directories begin that a run which was killed leaves behind.
UNFINISHED = "unfinished-"
PRINTING = threading.Lock()


class MissingError(Exception):
    """This Python cannot be had here; the text says why."""


class BrokenError(Exception):
    """pyktls could not be built or tried with this Python."""


def left_out(directory: str, names: list[str]) -> set[str]:
    """For shutil.copytree."""
    return LEAVINGS(directory, names) - HIDDEN


def reason(output: str) -> str:
    """The line of a program's output that tells why it failed: apt's first error, or the last."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
    return next((line for line in lines if line.startswith("E: ")), lines[-1])


def say(text: str) -> None:
    print(f"pythons: {text}", file=sys.stderr, flush=True)


# ---- where commands run -----------------------------------------------------------------------


class Place(ABC):
    """This machine, or the files of another Debian release on it."""

    #: What stays from one run to the next, as commands see it.
    store: Path

    @abstractmethod
    def outside(self, path: Path) -> Path:
        """Where this machine has the file that a command calls ``path``."""

    @abstractmethod
    def command(self, command: Sequence[str], directory: Path) -> list[str]:
        """What this machine has to start, so that a command runs in a directory of the place."""

    @abstractmethod
    def environment(self) -> dict[str, str]:
        """The environment of a command."""

    def run(
        self,
        command: Sequence[str | Path],
        output: IO[bytes] | int,
        directory: Path = Path("/"),
        **variables: str,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command([str(part) for part in command], directory),
            env=self.environment() | variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )


class Machine(Place):
    """This machine itself."""

    store = CACHE

    def outside(self, path: Path) -> Path:
        return path

    def command(self, command: Sequence[str], directory: Path) -> list[str]:
        return ["env", f"--chdir={directory}", *command]

    def environment(self) -> dict[str, str]:
        # Where this program itself has its packages is nothing to them.
        apart = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        return {name: value for name, value in os.environ.items() if name not in apart}


class Release(Place):
    """Another Debian release."""

    store = Path("/opt/pyktls")
    script = Path("/usr/share/debootstrap/scripts/sid")

    def __init__(self, suite: str, packages: Sequence[str] = ()) -> None:
        self.suite = suite
        self.root = CACHE / suite
        self.packages = sorted(packages or RELEASES[suite])

    def outside(self, path: Path) -> Path:
        return self.root / path.relative_to("/")

    def command(self, command: Sequence[str], directory: Path) -> list[str]:
        # Not chroot(8): in there a process may make no user namespaces, which tests do.
        enter = """
            root=$1 directory=$2 && shift 2
            mount --rbind "$root" "$root" && cd "$root"
            mount -t proc proc proc && mount --rbind /dev dev && mount --rbind /sys sys
            pivot_root . mnt && umount -l /mnt && exec env --chdir="$directory" "$@"
        """
        inside = [str(self.root), str(directory), *command]
        return [*APART, "sh", "-e", "-c", enter, "sh", *inside]

    def environment(self) -> dict[str, str]:
        return {
            **{
                name: value
                for name, value in os.environ.items()
                if name.upper().startswith(PASSED_ON)
            },
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LC_ALL": "C.UTF-8",
        }

    def make(self) -> None:
        """See that the release's files are there."""
        if os.geteuid() != 0:
            raise MissingError("only root can make it, and use it")
        made = self.outside(self.store / "packages.json")
        if not made.exists() or json.loads(made.read_text()) != self.packages:
            self._bootstrap()
        settings = []
        if shutil.which("apt-config"):
            dump = subprocess.run(
                ["apt-config", "dump"], capture_output=True, text=True, check=True
            )
            settings = dump.stdout.splitlines(keepends=True)
        passed = [line for line in settings if line.startswith(APT_PASSED_ON)]
        (self.root / "etc/apt/apt.conf.d/90outside").write_text("".join(passed))
        named = [os.environ[name] for name in NAMING_FILES if name in os.environ]
        for path in map(Path, (*FILES, *named)):
            if path.is_file():
                inside = self.outside(path.absolute())
                inside.parent.mkdir(parents=True, exist_ok=True)
                inside.unlink(missing_ok=True)
                shutil.copyfile(path, inside)

    def _bootstrap(self) -> None:
        program = shutil.which("debootstrap", path=search_path())
        if program is None:
            raise MissingError("needs debootstrap: apt-get install debootstrap")
        try:
            mirror = find_mirrors().main
        except LabError as e:
            raise MissingError(str(e)) from e
        say(f"fetching {self.suite}")
        with tempfile.TemporaryDirectory(dir=CACHE, prefix=UNFINISHED) as scratch:
            root = Path(scratch) / "root"
            command = [*APART, program, "--variant=minbase"]
            command += [f"--keyring={path}" for path in KEYRINGS if path.exists()][:1]
            command += [f"--include={','.join(self.packages)}", self.suite, str(root), mirror]
            # sid's way is that of each release here, also where debootstrap does not know its name.
            command += [str(self.script)]
            environment = {**os.environ, "PATH": search_path(), "LC_ALL": "C.UTF-8"}
            done = subprocess.run(
                command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                check=False,
            )  # fmt: skip
            if done.returncode:
                print(done.stdout, done.stderr, sep="\n", flush=True)
                raise MissingError(f"debootstrap: {reason(done.stdout + done.stderr)}")
            self._finish(root, Path(scratch))

    def _finish(self, root: Path, scratch: Path) -> None:
        """Files that have just been made take the place of those that there may be."""
        store = root / self.store.relative_to("/")
        store.mkdir(parents=True)
        (store / "packages.json").write_text(json.dumps(self.packages))
        if self.root.exists():
            self.root.rename(scratch / "old")
        root.rename(self.root)


# ---- the Pythons ------------------------------------------------------------------------------


class Python(ABC):
    """One Python, wherever it comes from."""

    name: str
    place: Place
    #: What pip is told about the tests' needs besides: releases that this Python can do with.
    limits: tuple[str, ...] = ()
    #: Distributions that the tests need and that there are not for this Python.
    without: tuple[str, ...] = ()

    @abstractmethod
    def obtain(self) -> Path:
        """The interpreter, as its place knows it."""


class Installed(Python):
    """One that this machine has, as ``pythonVERSION`` on the PATH or of pyenv."""

    def __init__(self, version: str) -> None:
        self.name = version
        self.place = Machine()

    def obtain(self) -> Path:
        look = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
        for path in self._candidates():
            # pyenv has a shim on the PATH for each version, and most of them fail.
            done = self.place.run([path, "-c", look], subprocess.PIPE)
            if done.returncode == 0 and done.stdout.strip() == self.name:
                return path
        raise MissingError(f"no python{self.name} on the PATH or of pyenv")

    def _candidates(self) -> Iterator[Path]:
        pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
        yield from sorted(pyenv.glob(f"{self.name}.*/bin/python{self.name}"), reverse=True)
        paths = (Path(directory) / f"python{self.name}" for directory in os.get_exec_path())
        yield from (path for path in paths if path.is_file())


class Named(Python):
    """An interpreter of this machine's, by its path."""

    def __init__(self, path: str) -> None:
        self.name = path
        self.place = Machine()

    def obtain(self) -> Path:
        return Path(self.name).absolute()


class Packaged(Python):
    """One of the Pythons of a Debian release."""

    def __init__(self, version: str, suite: str) -> None:
        self.name = f"{suite}-{version}"
        self.version = version
        self.place: Release = Release(suite)

    def obtain(self) -> Path:
        self.place.make()
        return Path(f"/usr/bin/python{self.version}")


class FreeThreaded(Packaged):
    """One without GIL, built from the source of a Debian release's Python."""

    def __init__(self, version: str, suite: str) -> None:
        super().__init__(version, suite)
        self.name += "t"

    def obtain(self) -> Path:
        super().obtain()
        prefix = self.place.store / f"python{self.version}t"
        interpreter = prefix / "bin" / f"python{self.version}t"
        if not self.place.outside(interpreter).exists():
            self._build(prefix)
        return interpreter

    def _build(self, prefix: Path) -> None:
        store = self.place.outside(self.place.store)
        with tempfile.TemporaryDirectory(dir=store, prefix=UNFINISHED) as scratch:
            tree = unpacked_source(f"python{self.version}", self.place.suite, Path(scratch))
            say(f"building {self.name}")
            # Not as fast as it could be, and built in a fraction of the time.
            configure = f"./configure -q --disable-gil --disable-test-modules --prefix={prefix}"
            build = f"{configure} CFLAGS='-O1 -g0' && make -s -j{os.cpu_count()}"
            install = f"{build} && make -s altinstall"
            inside = Path("/") / tree.relative_to(self.place.root)
            done = self.place.run(["sh", "-c", install], subprocess.PIPE, inside)
            if done.returncode:
                shutil.rmtree(self.place.outside(prefix), ignore_errors=True)
                print(done.stdout, flush=True)
                raise MissingError(f"could not be built: {reason(done.stdout)}")


def unpacked_source(package: str, suite: str, directory: Path) -> Path:
    """The source of a Debian package, unpacked somewhere below a directory."""
    try:
        # Not the security archive: any version will do, and there they come and go.
        mirrors = replace(find_mirrors(), security=None)
        archive = Apt(directory / f"apt-{package}", suite, mirrors).source(package)
    except LabError as e:
        raise MissingError(f"the source of {package} cannot be had: {reason(str(e))}") from e
    with tarfile.open(archive) as tar:
        tar.extractall(directory / package, filter="data")
    (tree,) = (directory / package).iterdir()
    return tree


PYTHONS: tuple[Python, ...] = (
    Installed("3.11"),
    Installed("3.12"),
    Installed("3.13"),
    Packaged("3.13", "trixie"),
    Packaged("3.14", "forky"),
    Packaged("3.15", "forky"),
    FreeThreaded("3.14", "forky"),
)


# ---- what is run ------------------------------------------------------------------------------


@dataclass
class Trial:
    """The tests on one Python."""

    python: Python
    tests: Sequence[Sequence[str]] = TESTS
    facts: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    missing: str = ""
    broken: str = ""

    def obtain(self) -> Path | None:
        """The interpreter; None if it cannot be had, and ``missing`` tells why."""
        try:
            return self.python.obtain()
        except MissingError as e:
            self.missing = str(e)
            return None

    def run(self, interpreter: Path, arguments: list[str]) -> None:
        begin = time.monotonic()
        with tempfile.TemporaryFile() as output:
            try:
                self._run(interpreter, arguments, output)
            except MissingError as e:
                self.missing = str(e)
            except BrokenError as e:
                self.broken = str(e)
            output.seek(0)
            text = output.read().decode(errors="replace")
        self.seconds = time.monotonic() - begin
        with PRINTING:
            print(f"\n==== {self.python.name}\n\n{text}", flush=True)

    def _run(self, interpreter: Path, arguments: list[str], output: IO[bytes]) -> None:
        place = self.python.place
        # Always the same, as some of what the tests keep in the cache goes by it.
        tree = place.store / self._called("tree")
        shutil.rmtree(place.outside(tree), ignore_errors=True)
        shutil.copytree(ROOT, place.outside(tree), symlinks=True, ignore=left_out)
        python = self._environment(interpreter, tree, output)
        self._look(python)
        for tests in self.tests:
            report = f"{Path(tests[0]).stem}.xml"
            command: list[str | Path] = [python, "-m", "pytest", *tests, "-q"]
            command += [f"--junitxml={report}", "-p", "no:cacheprovider", *arguments]
            # Without PYTHON_GIL a free-threaded Python warns that it goes on with its GIL.
            done = place.run(command, output, tree, PYTHON_GIL="1")
            counts = read_counts(place.outside(tree) / report)
            if done.returncode or not counts["tests"]:
                self.broken += f"{tests[0]}: exit status {done.returncode} "
            for name, count in counts.items():
                self.counts[name] = self.counts.get(name, 0) + count
        shutil.rmtree(place.outside(tree))

    def _called(self, what: str) -> str:
        return f"{what}-{self.python.name.strip('/').replace('/', '-')}"

    def _environment(self, interpreter: Path, tree: Path, output: IO[bytes]) -> Path:
        """A virtual environment with pyktls, and what the tests need; its interpreter."""
        place = self.python.place
        directory = place.store / self._called("venv")
        python = directory / "bin" / "python"
        version = "import sys; print(sys.version, sys.base_prefix)"
        wanted, found = (
            place.run([path, "-c", version], subprocess.PIPE) for path in (interpreter, python)
        )
        if wanted.returncode:
            raise MissingError(f"{interpreter} does not run: {reason(wanted.stdout)}")
        if found.stdout != wanted.stdout:
            done = place.run([interpreter, "-m", "venv", "--clear", directory], output)
            if done.returncode:
                raise MissingError(f"{interpreter} makes no virtual environment")
        pip: list[str | Path] = [python, "-m", "pip", "install", "-q"]
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        needs = [*project["dependencies"], *project["optional-dependencies"]["test"]]
        without = self.python.without
        needs = [need for need in needs if not need.startswith(without)] if without else needs
        # The limits first: of what it names twice pip looks into the newest that the first allows.
        if place.run([*pip, *self.python.limits, *needs], output).returncode:
            raise MissingError("what the tests need cannot be installed, see above")
        self._install(pip, tree, output)
        return python

    def _install(self, pip: list[str | Path], tree: Path, output: IO[bytes]) -> None:
        if self.python.place.run([*pip, "."], output, tree).returncode:
            raise BrokenError("pyktls cannot be built, see above")

    def _look(self, python: Path) -> None:
        done = self.python.place.run([python, "-c", LOOK], subprocess.PIPE)
        if done.returncode:
            raise BrokenError(f"import pyktls: {reason(done.stdout)}")
        self.facts = json.loads(done.stdout)
        if not self.facts["apart"]:
            raise BrokenError("the tests would run on another pyktls than the one just built")

    def row(self) -> list[str]:
        said = f"not there: {self.missing}" if self.missing else self.broken.strip()
        facts = [self.facts.get(name, "-") for name in ("python", "openssl", "engine")]
        counts = [str(self.counts.get(name, "-")) for name in ("passed", "failed", "skipped")]
        if not said and self.facts["free_threaded"]:
            said = f"the GIL is {'on' if self.facts['gil'] else 'off'} after import"
        return [self.python.name, *facts, *counts, f"{self.seconds:.0f}", said or "ok"]


def table(trials: Sequence[Trial]) -> str:
    """The result, as Markdown."""
    head = ("", "Python", "OpenSSL", "engine", "passed", "failed", "skipped", "seconds", "")
    lines = [head, ["---"] * len(head), *(trial.row() for trial in trials)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def options_of(text: str, names: Sequence[str]) -> argparse.ArgumentParser:
    """The options of a program that tries Pythons of these names."""
    parser = argparse.ArgumentParser(description=text.partition("\n")[0])
    parser.add_argument("--only", action="append", choices=names, default=[], metavar="NAME")
    parser.add_argument("--refresh", action="store_true", help="throw away the cache first")
    parser.add_argument("--strict", action="store_true", help="each Python has to be there")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N")
    return parser


def carry_out(trials: Sequence[Trial], options: argparse.Namespace, arguments: list[str]) -> int:
    """Run the trials, print the table, and return the exit status."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE.parent / "pythons.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if options.refresh:
            shutil.rmtree(CACHE)
            CACHE.mkdir()
        for place in (trial.python.place for trial in trials):
            for directory in (CACHE, place.outside(place.store)):
                for leftover in directory.glob(f"{UNFINISHED}*"):
                    shutil.rmtree(leftover)
        there = [(trial, path) for trial in trials if (path := trial.obtain())]
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda pair: pair[0].run(pair[1], arguments), there))
    print(f"\n{table(trials)}\n")
    total = {
        key: sum(trial.counts.get(key, 0) for trial in trials)
        for key in ("passed", "failed", "skipped")
    }
    print("{passed} passed, {failed} failed, {skipped} skipped".format(**total))
    missing = [trial for trial in trials if trial.missing]
    failed = any(trial.broken for trial in trials) or len(missing) == len(trials)
    return 1 if failed or (options.strict and missing) else 0


def main() -> int:
    names = [python.name for python in PYTHONS]
    parser = options_of(__doc__ or "", names)
    parser.add_argument("--python", action="append", default=[], metavar="PATH", help="and this")
    options, arguments = parser.parse_known_args()
    chosen = [python for python in PYTHONS if python.name in (options.only or names)]
    trials = [Trial(python) for python in (*chosen, *map(Named, options.python))]
    return carry_out(trials, options, arguments)


if __name__ == "__main__":
    sys.exit(main())
