"""Debian's stock kernels: which there are, and a cache of them.

How this works. A name such as `6.12` stands for the newest kernel of that series in one Debian
suite. apt fetches its packages with a sources list and state directories of its own, so the
machine's apt is not touched; apt checks the archive's signatures as always. `dpkg -x` unpacks,
`depmod` indexes the modules, nothing is installed. One kernel in the cache is a directory

    kernels/NAME/info.json             release and package version
    kernels/NAME/boot/vmlinuz-RELEASE
    kernels/NAME/lib/modules/RELEASE/

which is what virtme-ng expects: it finds the modules by going up from the image. A kernel is built
in a temporary directory and renamed when it is whole, under a lock; users hold the same lock,
shared, while they boot from it. So a half-made kernel is never seen, and a refresh never pulls one
away from a running guest.

`NAME-notls` is the same kernel without the `tls` module: there `TCP_ULP` fails with ENOENT, as it
does on every machine that was built or installed without it. `NAME-main` is the series as the main
archive has it, without security updates: 6.1-main stays at 6.1.176, and has defects in net/tls that
pyktls must find out and refuse to meet. So has 6.12.107, which is that release and no newer one: an
archive drops such a kernel some time, and then only the cache has it.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .errors import LabError
from .sources import Mirrors, find_mirrors
from .tools import require, search_path

# series: the suite that has it
SUITES = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie", "7.3": "trixie-backports"}
# One release of a series, and the suite that has it
RELEASES = {"6.12.107": "trixie"}
NO_TLS = "-notls"
WITHOUT_UPDATES = "-main"
# The kernels with TLS; 5.10 is configured without. Run on all of these unless told otherwise.
STOCK = ("6.1", "6.12", "7.3")
NAMES = ("5.10", *STOCK, f"6.1{WITHOUT_UPDATES}", *RELEASES, *(name + NO_TLS for name in STOCK))
FETCH_ATTEMPTS = 2
FETCH_PAUSE = 10.0
METAPACKAGE = "linux-image-amd64"
KEYRINGS = tuple(
    Path(f"/usr/share/keyrings/debian-archive-keyring.{ending}") for ending in ("pgp", "gpg")
)


@dataclass(frozen=True)
class Kernel:
    name: str
    release: str  # as `uname -r` says it
    image: Path
    package_version: str = ""


def suite_of(name: str) -> str:
    """The Debian suite that a kernel comes from."""
    return (SUITES | RELEASES)[name.partition("-")[0]]


# The cache


def cache_root() -> Path:
    if place := os.environ.get("PYKTLS_LAB_CACHE"):
        return Path(place).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "pyktls" / "lab"


def cached(name: str) -> Kernel | None:
    """The kernel of that name, if the cache has it."""
    root = cache_root() / "kernels" / name
    try:
        info = json.loads((root / "info.json").read_text())
    except FileNotFoundError:
        return None
    release = info["release"]
    return Kernel(name, release, root / "boot" / f"vmlinuz-{release}", info["package_version"])


def local(path: Path) -> Kernel:
    """A kernel of one's own: a bzImage, with lib/modules/RELEASE in a directory above it."""
    if not path.is_file():
        names = ", ".join(NAMES)
        raise LabError(f"no such kernel: {path} (neither a file nor one of {names})")
    return Kernel(path.name, image_release(path), path.resolve())


def image_release(path: Path) -> str:
    """The release a bzImage carries in its header (Linux Documentation/arch/x86/boot.rst)."""
    with path.open("rb") as image:
        head = image.read(0x10000)
    if head[0x202:0x206] != b"HdrS":
        raise LabError(f"{path} is not an x86 kernel image (bzImage)")
    start = int.from_bytes(head[0x20E:0x210], "little") + 0x200
    return head[start:].split(b"\0", 1)[0].split(b" ", 1)[0].decode("ascii", "replace")


@contextlib.contextmanager
def obtain(name: str, refresh: bool = False) -> Iterator[Kernel]:
    """The kernel of that name, fetched if the cache lacks it, and kept in place while in use.

    A name with a slash, or that of an existing file, is a path to one's own kernel.
    """
    if name not in NAMES:
        yield local(Path(name))
        return
    if refresh or cached(name) is None:
        with _lock(name, fcntl.LOCK_EX):
            # Another process may have fetched it while this one waited.
            if refresh or cached(name) is None:
                _make(name, refresh)
    with _lock(name, fcntl.LOCK_SH):
        kernel = cached(name)
        if kernel is None:
            raise LabError(f"kernel {name} was removed from the cache while being used")
        yield kernel


@contextlib.contextmanager
def _lock(name: str, kind: int) -> Iterator[None]:
    path = cache_root() / "kernels" / f"{name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if kind == fcntl.LOCK_SH and cached(name):  # a cache that cannot change
            yield
            return
        raise LabError(f"cannot write to the cache {cache_root()}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another lab that is using or fetching kernel {name}")
            fcntl.flock(fd, kind)
        yield
    finally:
        os.close(fd)


def _make(name: str, refresh: bool) -> None:
    kernels = cache_root() / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    for leftover in kernels.glob(f".{name}@*"):  # of a lab that was killed: we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}@", dir=kernels) as scratch:
        root = Path(scratch) / "root"
        if name.endswith(NO_TLS):
            with obtain(name.removesuffix(NO_TLS), refresh) as base:
                _copy_without(base, root, "tls")
        else:
            _fetch_patiently(name, root, Path(scratch))
        if not root.exists():
            return  # the one in the cache is the newest
        place = kernels / name
        if place.exists():
            place.rename(Path(scratch) / "old")
        root.rename(place)


def _finish(root: Path, release: str, package_version: str) -> None:
    """Index the modules and write down what this is."""
    # Some builds of kmod look for modules in lib, some in usr/lib: they shall find them in both.
    (root / "usr").mkdir(exist_ok=True)
    (root / "usr" / "lib").symlink_to("../lib")
    run_program([require("depmod"), "-b", str(root), release])
    info = {"release": release, "package_version": package_version}
    (root / "info.json").write_text(json.dumps(info) + "\n")


def _copy_without(base: Kernel, root: Path, module: str) -> None:
    """A copy (of hard links) of a cached kernel that lacks one module."""

    def link_or_copy(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    origin = base.image.parent.parent
    for part in ("boot", "lib"):
        shutil.copytree(origin / part, root / part, symlinks=True, copy_function=link_or_copy)
    for path in [*(root / "lib").rglob(f"{module}.ko"), *(root / "lib").rglob(f"{module}.ko.*")]:
        path.unlink()
    _finish(root, base.release, base.package_version)


# Fetching


def _fetch_patiently(name: str, root: Path, scratch: Path) -> None:
    """Fetch; once more, from the archive's index on, if the archive changed or failed under it."""
    for attempt in range(1, FETCH_ATTEMPTS + 1):
        try:
            _fetch(name, root, scratch / str(attempt))
        except LabError as error:
            if attempt == FETCH_ATTEMPTS:
                raise
            say(f"{name}: {error}")
            say(f"{name}: fetching once more")
            shutil.rmtree(root, ignore_errors=True)
            time.sleep(FETCH_PAUSE)
        else:
            return


def _fetch(name: str, root: Path, scratch: Path) -> None:
    series = name.removesuffix(WITHOUT_UPDATES)
    mirrors = find_mirrors()
    if name.endswith(WITHOUT_UPDATES):
        mirrors = replace(mirrors, security=None)
    apt = Apt(scratch / "apt", suite_of(name), mirrors)
    release, version = apt.newest(series)
    known = cached(name)
    if known and known.package_version == version:
        return
    packages = apt.packages(release)
    say(f"fetching {', '.join(packages)} {version}")
    unpacked = scratch / "unpacked"
    unpack(apt.download(packages, version), unpacked)
    # The suites differ: image in boot/ or with the modules, modules in lib/ or usr/lib/.
    images = sorted(unpacked.rglob(f"vmlinuz-{release}")) + sorted(unpacked.rglob("vmlinuz"))
    modules = [unpacked / lib / "modules" / release for lib in ("lib", "usr/lib")]
    modules = [path for path in modules if (path / "kernel").is_dir()]
    if not images or not modules:
        raise LabError(f"the packages {' '.join(packages)} hold no image or no modules")
    (root / "boot").mkdir(parents=True)
    (root / "lib" / "modules").mkdir(parents=True)
    images[0].rename(root / "boot" / f"vmlinuz-{release}")
    modules[0].rename(root / "lib" / "modules" / release)
    (root / "boot" / f"vmlinuz-{release}").chmod(0o644)
    _finish(root, release, version)


def headers(series: str) -> Path:
    """The directory of a series' own user-space headers (linux/tls.h), fetched if need be."""
    place = cache_root() / "headers" / series
    include = place / "usr" / "include"
    if not include.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
            apt = Apt(Path(scratch) / "apt", SUITES[series], find_mirrors())
            version = apt.show("linux-libc-dev")[0]
            say(f"fetching linux-libc-dev {version}")
            unpacked = Path(scratch) / "unpacked"
            unpack(apt.download(["linux-libc-dev"], version), unpacked)
            with contextlib.suppress(FileExistsError):  # another process was faster
                unpacked.rename(place)
    return include


class Apt:
    """apt with one suite (and its security updates), and nothing shared with the machine's own."""

    def __init__(
        self, state: Path, suite: str, mirrors: Mirrors, architecture: str = "amd64"
    ) -> None:
        self.state, self.suite, self.mirrors = state, suite, mirrors
        self.architecture = architecture  # as Debian names it
        self.sources = state / "sources.list"
        for directory in ("lists/partial", "cache/archives/partial"):
            (state / directory).mkdir(parents=True)
        (state / "status").touch()
        self.update()

    def command(self, program: str, *arguments: str) -> list[str]:
        options = {
            "Dir::Etc::SourceList": self.sources,
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "Dir::State": self.state,
            "Dir::State::Lists": self.state / "lists",
            "Dir::State::status": self.state / "status",
            "Dir::Cache": self.state / "cache",
            "APT::Architecture": self.architecture,
            "APT::Architectures": self.architecture,
            "APT::Default-Release": "",
            "APT::Sandbox::User": "root",
            "APT::Update::Error-Mode": "any",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        flags = [f"-o{name}={value}" for name, value in options.items()]
        return [require(program), *flags, "-q", *arguments]

    def update(self) -> None:
        keyring = next((path for path in KEYRINGS if path.exists()), None)
        signed_by = f"[signed-by={keyring}] " if keyring else ""
        lines = [f"deb {signed_by}{self.mirrors.main} {self.suite} main\n"]
        if self.mirrors.security and not self.suite.endswith("-backports"):
            lines.append(f"deb {signed_by}{self.mirrors.security} {self.suite}-security main\n")
        while True:
            self.sources.write_text("".join(lines))
            done = _try(self.command("apt-get", "update"))
            if done.returncode == 0:
                return
            output = done.stdout + done.stderr
            if "NO_PUBKEY" in output or "is not signed" in output:
                raise LabError(
                    f"this machine cannot check the signatures of {self.suite}: "
                    f"install a newer debian-archive-keyring\n{output}"
                )
            if len(lines) == 1:
                raise LabError(f"apt cannot read {self.suite} from the mirror:\n{output}")
            say(f"no security archive for {self.suite} there: using the main archive alone")
            lines.pop()

    def show(self, package: str) -> tuple[str, str]:
        """The version and the dependencies of a package."""
        text = run_program(self.command("apt-cache", "show", "--no-all-versions", package))
        version = re.search(r"(?m)^Version: (.*)$", text)
        depends = re.search(r"(?m)^Depends: (.*)$", text)
        if version is None:
            raise LabError(f"{self.suite} has no package {package}")
        return version[1], depends[1] if depends else ""

    def newest(self, series: str) -> tuple[str, str]:
        """Release and package version of the newest kernel of a series, or of one release."""
        release = image_dependency(self.show(METAPACKAGE)[1])
        if not release.startswith(f"{series}."):
            # A suite such as backports moves on to the next series, and keeps the old for a while.
            prefix = "linux-image-"
            names = run_program(self.command("apt-cache", "pkgnames", f"{prefix}{series}")).split()
            found = newest_release([name.removeprefix(prefix) for name in names], series)
            if found is None:
                raise LabError(
                    f"{self.suite} has no kernel {series} any more (it has {release}): "
                    f"change SUITES or RELEASES in {Path(__file__).name}, or use --kernel PATH"
                )
            release = found
        return release, self.show(f"linux-image-{release}")[0]

    def packages(self, release: str) -> list[str]:
        """The packages that hold image and modules: one, or in newer suites two."""
        image = f"linux-image-{release}"
        depends = self.show(image)[1]
        parts = [f"linux-{part}-{release}" for part in ("binary", "modules")]
        return [part for part in parts if f"{part} (" in depends] or [image]

    def download(self, packages: Sequence[str], version: str) -> list[Path]:
        wanted = [f"{package}={version}" for package in packages]
        run_program(self.command("apt-get", "download", *wanted), cwd=self.state)
        return sorted(self.state.glob("*.deb"))

    def download_with_dependencies(self, packages: Sequence[str]) -> list[Path]:
        """What has to be there for these packages, and they: no package is, as far as it knows."""
        options = ["--download-only", "--no-install-recommends", "--yes"]
        run_program(self.command("apt-get", "install", *options, *packages))
        return sorted((self.state / "cache" / "archives").glob("*.deb"))

    def source(self, package: str) -> Path:
        """The archive of the source that a package was made from, as its authors publish it."""
        lines = self.sources.read_text()
        self.sources.write_text(lines + lines.replace("deb ", "deb-src "))
        run_program(self.command("apt-get", "update"))
        run_program(
            self.command("apt-get", "--download-only", "--tar-only", "source", package),
            cwd=self.state,
        )
        (archive,) = self.state.glob("*.orig.tar.?z")
        return archive


def unpack(archives: Sequence[Path], directory: Path) -> None:
    """Unpack packages, in this order, into a directory; the archives are gone then."""
    for archive in archives:
        run_program([require("dpkg"), "-x", str(archive), str(directory)])
        archive.unlink()


def image_dependency(depends: str) -> str:
    """The kernel release in the metapackage's dependencies."""
    match = re.search(r"\blinux-image-(\d\S*-amd64)\b", depends)
    if match is None:
        raise LabError(f"{METAPACKAGE} depends on no kernel image: {depends!r}")
    return match[1]


def newest_release(releases: Sequence[str], series: str) -> str | None:
    """The newest generic kernel: not -cloud (has no 9p), not -rt, not -dbg, not -unsigned."""
    form = re.compile(rf"({re.escape(series)}(\.[\d.]+)?(-\d+)?([+~][\w.]+)?)-amd64")
    generic = [found for release in releases if (found := form.fullmatch(release))]
    newest = max(generic, key=lambda m: [int(n) for n in re.findall(r"\d+", m[1])], default=None)
    return newest and newest[0]


# Helpers


def say(text: str) -> None:
    print(f"lab: {text}", file=sys.stderr, flush=True)


def _try(command: Sequence[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": search_path(), "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def run_program(command: Sequence[str], cwd: Path | None = None) -> str:
    done = _try(command, cwd)
    if done.returncode != 0:
        shown = " ".join(part for part in command if not part.startswith("-o"))
        raise LabError(f"{shown}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout
