"""Boots a kernel, runs one command in it, and passes on its output and exit status as they come.

How this works. `vng` (virtme-ng) makes an initramfs with the kernel's 9p modules and starts QEMU
with the host's file system as root, read-only; the working directory is mounted again, writeable.
In the guest it starts guest.py, which reads the job (a JSON file) and answers through a virtio
port. QEMU connects that port to a named pipe that we read. The console (boot messages, vng's own
words, kernel warnings) is another pipe: it is kept, and shown only if the guest fails.

Everything runs under keeper.py, in a session of its own. Whether the command ends, time runs out,
Ctrl-C or SIGTERM comes, or this process is killed outright, the keeper ends QEMU and all that
belongs to it.
"""

import collections
import contextlib
import json
import os
import re
import select
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from . import guest, keeper
from .errors import LabError
from .kernels import Kernel, obtain, say
from .tools import require, require_all, search_path

DEFAULT_MEMORY = "2G"
DEFAULT_CPUS = 2
# Seen: a kernel with two processors that dies at 3 s, of an int3 that it was just patching away.
BOOT_ATTEMPTS = 3
BOOT_TIMEOUT = 300.0  # it takes 10 s; much more on a busy machine, and with icount

# What the command sees of the host's environment. Add to it with `env=` or `--env`.
PASSED_ON = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TERM", "NO_COLOR", "CI")
PASSED_ON_PREFIXES = ("PYKTLS_", "PYTHON")

# tls itself, AES with the processor's instructions, and what sock_diag and the other ciphers need.
MODULES = (
    "tls", "aesni_intel", "ghash_clmulni_intel", "inet_diag", "tcp_diag", "ccm", "chacha20poly1305",
)  # fmt: skip

# Where virtme-ng's init mounts an empty file system: what we need from there is mounted again.
TMP = "/tmp"  # noqa: S108
HIDDEN = ("/run", "/var/run", "/var/tmp", "/var/log", "/var/cache", "/dev/shm")  # noqa: S108
# Places that it makes writeable with an overlay; changes vanish with the guest.
OVERLAID = ("/etc", "/lib", "/home", "/opt", "/srv", "/usr", "/var", TMP)
# Python installed here shares its directory with everything else.
SYSTEM_PREFIXES = (Path("/"), Path("/usr"), Path("/usr/local"))

CONSOLE_LINES = 60
# Right after the time stamp: virtme-ng's init writes warnings of its own to the kernel's log.
KERNEL_COMPLAINT = re.compile(rb"\] (WARNING: |BUG: |Oops: |general protection fault)")


class GuestError(LabError):
    """The guest did not boot, died, or ran out of time: there is no exit status of the command."""


class BootError(GuestError):
    """The guest did not get as far as to start the command."""


@dataclass(frozen=True)
class Result:
    status: int
    release: str
    seconds: float
    boot_seconds: float


def run(
    kernel: str,
    command: Sequence[str],
    *,
    memory: str = DEFAULT_MEMORY,
    cpus: int = DEFAULT_CPUS,
    icount: bool = False,
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    writable: Sequence[Path] = (),
    cwd: Path | None = None,
    output: BinaryIO | None = None,
) -> int:
    """Run `command` on the kernel of that name (or path) and return its exit status.

    Output appears on this process's stdout and stderr, or all of it in `output`. Raises LabError if
    the lab cannot do it.
    """
    require_all()
    with obtain(kernel) as found:
        return boot(
            found, command, memory=memory, cpus=cpus, icount=icount, timeout=timeout, env=env,
            writable=writable, cwd=cwd, stdout=output, stderr=output,
        ).status  # fmt: skip


def boot(
    kernel: Kernel,
    command: Sequence[str],
    *,
    memory: str = DEFAULT_MEMORY,
    cpus: int = DEFAULT_CPUS,
    icount: bool = False,
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    writable: Sequence[Path] = (),
    cwd: Path | None = None,
    console_log: Path | None = None,
    stdout: BinaryIO | None = None,
    stderr: BinaryIO | None = None,
) -> Result:
    """Boot `kernel`, run `command`, and say how it went.

    `timeout` is for the command, in seconds, counted from when the guest is up. `icount` makes
    guest time count instructions (on one CPU): a benchmark then repeats on a busy machine too.
    An emulated machine does not always come up: a guest that did not get as far as to start the
    command is booted again.
    """
    attempts = BOOT_ATTEMPTS
    while True:
        session = _Session(
            stdout or sys.stdout.buffer, stderr or sys.stderr.buffer, timeout, console_log
        )
        try:
            return _boot(
                kernel, command, session, memory=memory, cpus=cpus, icount=icount, env=env or {},
                writable=writable, place=(cwd or Path.cwd()).resolve(),
            )  # fmt: skip
        except BootError as error:
            attempts -= 1
            if not attempts:
                raise
            say(f"{kernel.name}: {error}")
            say(f"{kernel.name}: booting again")


def _boot(
    kernel: Kernel,
    command: Sequence[str],
    session: "_Session",
    *,
    memory: str,
    cpus: int,
    icount: bool,
    env: Mapping[str, str],
    writable: Sequence[Path],
    place: Path,
) -> Result:
    with tempfile.TemporaryDirectory(prefix="pyktls-lab-") as scratch_name:
        scratch = Path(scratch_name).resolve()
        needed = _needed_paths(kernel, scratch)
        shared = [place, *(path.resolve() for path in writable)]
        job = {
            "command": list(command),
            "cwd": str(place),
            "env": command_environment(kernel.name, env),
            "modules": MODULES,
            "cached": [str(path) for path in [*_python_paths(), *_program_paths()]],
            # A tmpfs hides what the host has in /tmp. The overlay there otherwise is in memory too.
            "tmpfs": [] if any(_within(path, TMP) for path in [*needed[1:], *shared]) else [TMP],
        }
        (scratch / "job.json").write_text(json.dumps(job))
        os.mkfifo(scratch / "port")
        argv = vng_command(
            kernel, scratch, memory=memory, cpus=cpus, icount=icount, writable=shared, needed=needed
        )
        return session.run(argv, scratch)


def command_environment(kernel_name: str, extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of the command: part of the host's, this virtual environment, and `extra`."""
    passed = {
        name: value
        for name, value in os.environ.items()
        if name in PASSED_ON or name.startswith(PASSED_ON_PREFIXES)
    }
    passed["PATH"] = search_path()
    if sys.prefix != sys.base_prefix:
        passed["VIRTUAL_ENV"] = sys.prefix
    elif "VIRTUAL_ENV" in os.environ:
        passed["VIRTUAL_ENV"] = os.environ["VIRTUAL_ENV"]
    return {**passed, "PYKTLS_LAB": kernel_name, **extra}


def vng_command(
    kernel: Kernel,
    scratch: Path,
    *,
    memory: str,
    cpus: int,
    icount: bool,
    writable: Sequence[Path],
    needed: Sequence[Path],
) -> list[str]:
    """The command line for virtme-ng. A shell will read it again there, so paths are quoted."""
    port = str(scratch / "port").replace(",", ",,")
    qemu = [
        "-chardev", f"file,id=lab,path={port}",
        "-device", "virtio-serial-pci,id=lab-bus",
        "-device", f"virtserialport,bus=lab-bus.0,name={guest.PORT},chardev=lab",
    ]  # fmt: skip
    # The host's files once more, for guest.py to mount with a cache.
    qemu += [
        "-fsdev", "local,id=lab-fs,path=/,security_model=none,readonly=on,multidevs=remap",
        "-device", f"virtio-9p-pci,fsdev=lab-fs,mount_tag={guest.FILES}",
    ]  # fmt: skip
    if icount:
        qemu += ["-icount", "shift=0,sleep=off"]
    home = Path.home()
    overlays = [] if any(_within(home, place) for place in OVERLAID) else [home]
    unseen = [path for path in needed if any(_within(path, place) for place in HIDDEN)]
    # -I -S: whatever the environment holds, guest.py needs the standard library alone.
    program = str(Path(guest.__file__).resolve())
    agent = [sys.executable, "-I", "-S", program, str(scratch / "job.json")]
    return [
        require("vng"), "--run", shlex.quote(str(kernel.image)),
        "--disable-kvm", "--force-9p", "--verbose",
        "--memory", memory, "--cpus", str(1 if icount else cpus),
        *_options("--overlay-rwdir", overlays),
        *_options("--rodir", unseen),
        *_options("--rwdir", [path for path in dict.fromkeys(writable) if path != Path("/")]),
        f"--qemu-opts={shlex.join(qemu)}",
        "--", shlex.join(agent),
    ]  # fmt: skip


def _options(option: str, paths: Sequence[Path]) -> Iterator[str]:
    for path in paths:
        yield from (option, shlex.quote(str(path)))


def _needed_paths(kernel: Kernel, scratch: Path) -> list[Path]:
    """What the guest must be able to read; the first is only needed until it has read the job."""
    modules = kernel.image.parent.parent
    package = Path(__file__).resolve().parent
    paths = [scratch, modules, package, Path(sys.prefix), Path(sys.base_prefix)]
    return list(dict.fromkeys(path.resolve() for path in paths))


def _python_paths() -> list[Path]:
    """Where Python's own files and the installed packages are: thousands of small reads."""
    base = Path(sys.base_prefix)
    places = [Path(os.__file__).parent if base in SYSTEM_PREFIXES else base]
    if sys.prefix != sys.base_prefix:
        places.append(Path(sys.prefix))
    return [place.resolve() for place in places]


def _program_paths() -> list[Path]:
    """Where programs and their libraries are: loading them anew took longer than running them.

    Not all of /usr/lib: the modules of the guest's kernel are there.
    """
    libraries = sysconfig.get_config_var("MULTIARCH") or "."
    places = [Path("/usr/bin"), Path("/usr/sbin"), Path("/usr/lib", libraries)]
    return [place for place in places if place.is_dir() and place != Path("/usr/lib")]


def _within(path: Path, place: str) -> bool:
    return path.is_relative_to(place) or path.is_relative_to(Path(place).resolve())


class _Session:
    """One guest from start to end."""

    def __init__(
        self, stdout: BinaryIO, stderr: BinaryIO, timeout: float | None, console_log: Path | None
    ) -> None:
        self.streams = {guest.STDOUT: stdout, guest.STDERR: stderr}
        self.timeout = timeout
        self.console = _Console(console_log)
        self.frames = bytearray()
        self.release: str | None = None
        self.status: int | None = None
        self.started = time.monotonic()
        self.ready_at = self.started
        self.deadline: float | None = self.started + BOOT_TIMEOUT

    def run(self, argv: Sequence[str], scratch: Path) -> Result:
        port = os.open(scratch / "port", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            with _kept(argv, scratch) as console, contextlib.closing(self.console):
                self._follow(port, console)
        finally:
            os.close(port)
        if self.status is None or self.release is None:
            raise self._failure()
        if complaints := self.console.complaints:
            say(f"the kernel complained {complaints} time(s): see its console with --console FILE")
        now = time.monotonic()
        return Result(self.status, self.release, now - self.started, self.ready_at - self.started)

    def _follow(self, port: int, console: int) -> None:
        """Pass on everything until the exit status has come or the guest is gone."""
        poller = select.poll()
        poller.register(port, select.POLLIN)
        poller.register(console, select.POLLIN)
        while self.status is None:
            for fd, _ in poller.poll(self._milliseconds_left()):
                try:
                    data = os.read(fd, 65536)
                except BlockingIOError:
                    continue  # poll(2) may say so in vain, and once in an hour it does
                if fd == port:
                    self._take(data)
                else:
                    self.console.write(data)
                if not data:
                    poller.unregister(fd)
                    if fd == console:
                        return  # every process of the guest has ended
            if self.deadline is not None and time.monotonic() >= self.deadline:
                return

    def _milliseconds_left(self) -> int | None:
        if self.deadline is None:
            return None
        return max(0, int((self.deadline - time.monotonic()) * 1000) + 1)

    def _take(self, data: bytes) -> None:
        self.frames += data
        while len(self.frames) >= guest.HEADER.size:
            kind, length = guest.HEADER.unpack_from(self.frames)
            end = guest.HEADER.size + length
            if len(self.frames) < end:
                return
            content = bytes(self.frames[guest.HEADER.size : end])
            del self.frames[:end]
            if kind in self.streams:
                self.streams[kind].write(content)
                self.streams[kind].flush()
            elif kind == guest.READY:
                self.release = content.decode()
                self.ready_at = time.monotonic()
                self.deadline = None if self.timeout is None else self.ready_at + self.timeout
            elif kind == guest.EXIT:
                self.status = int(content)

    def _failure(self) -> GuestError:
        late = self.deadline is not None and time.monotonic() >= self.deadline
        if self.release is None:
            what = f"did not boot within {BOOT_TIMEOUT:.0f} s" if late else "did not boot"
        elif late:
            what = f"was stopped: the command took longer than {self.timeout:.0f} s"
        else:
            what = "died while the command ran"
        tail = self.console.tail()
        kind = BootError if self.release is None else GuestError
        return kind(f"the guest {what}\n--- the end of its console ---\n{tail}\n---")


class _Console:
    """Keeps the last of what the console says, and all of it in a file if wanted."""

    def __init__(self, log: Path | None) -> None:
        self.file = log.open("wb") if log else None
        self.lines: collections.deque[bytes] = collections.deque(maxlen=CONSOLE_LINES)
        self.partial = b""
        self.complaints = 0

    def write(self, data: bytes) -> None:
        if self.file:
            self.file.write(data)
            self.file.flush()
        *lines, self.partial = (self.partial + data).split(b"\n")
        self.lines.extend(lines)
        self.complaints += sum(bool(KERNEL_COMPLAINT.search(line)) for line in lines)

    def tail(self) -> str:
        text = b"\n".join([*self.lines, self.partial]).decode("utf-8", "replace")
        # No carriage returns, no escape sequences: this is shown on terminals and in logs.
        return re.sub(r"\r|\x1b\[[0-9;?]*[A-Za-z]|\x1bc", "", text).strip()

    def close(self) -> None:
        if self.file:
            self.file.close()


@contextlib.contextmanager
def _kept(argv: Sequence[str], scratch: Path) -> Iterator[int]:
    """Run `argv` under the keeper; gives its output. All of it is gone when the block ends."""
    lifeline, lifeline_end = os.pipe()
    # HOME and TMPDIR: virtme-ng's settings and left-behind files belong to this one run.
    environment = {
        **os.environ, "PATH": search_path(), "HOME": str(scratch), "TMPDIR": str(scratch),
    }  # fmt: skip
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__, str(lifeline), str(scratch), *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[lifeline],
            env=environment,
            start_new_session=True,
        )
    except BaseException:
        os.close(lifeline_end)
        raise
    finally:
        os.close(lifeline)
    assert process.stdout is not None
    try:
        yield process.stdout.fileno()
    finally:
        os.close(lifeline_end)
        # Not until QEMU is gone; the pipe is read no more, but nobody waits for it either: SIGKILL.
        process.wait()
        process.stdout.close()
