"""What there must be before the first step: a kernel that can, programs, a certificate, a file.

What is missing is said by raising CannotRun.  ``prepare`` also says on the display what this
machine is.  The file is made of random bytes, the same each time, which do not compress; a file of
the user's is only linked to.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import random
import shutil
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING

from pyktls import __version__, linux
from pyktls.ciphers import AEADS
from pyktls.errors import Error, Unavailable
from pyktls.handoff import watch
from pyktls.selfsigned import request_command
from pyktls.socket_calls import loopback_pair

from .steps import MIB, NAME, SERVED, VERSIONS, Setting
from .tools import run_tool, what_it_prints

if TYPE_CHECKING:
    import pathlib

    from .display import Display, Progress

__all__ = ["CannotRun", "check_kernel", "choose_place", "find_openssl", "prepare", "size_of"]

SEED = 20250  # the file is the same every time


class CannotRun(Exception):
    """The demo cannot run on this machine; the text says why, and what would help."""


def check_kernel() -> None:
    """Raise CannotRun unless this kernel and this Python can do it."""
    if not sys.platform.startswith("linux"):
        raise CannotRun("the demo needs Linux: it reads Linux's TLS counters")
    try:
        watch(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    except Unavailable as e:
        raise CannotRun(f"{e}.") from e
    try:
        near, far = loopback_pair()
        with near, far:
            linux.system.attach(near.fileno())  # loads the module where we may
        linux.tls_stat()
    except Unavailable as e:
        raise CannotRun(
            f"{e}. From a source checkout, `make demo` runs the demo in a virtual machine whose "
            "kernel has it."
        ) from e
    except (OSError, Error) as e:
        raise CannotRun(f"the loopback interface does not work here: {e}.") from e
    # What a child would find out with a pair of sockets each, it inherits from here.
    for version in VERSIONS:
        aead = next(a for a in AEADS if a.name == "AES_256_GCM")
        try:
            linux.system.cipher_refusal(version, aead)
        except Unavailable as e:
            raise CannotRun(f"{e}.") from e
        linux.system.can_rekey(version, aead)  # asked by the first read


def find_openssl() -> str:
    """The path of the openssl program."""
    found = shutil.which("openssl")
    if found is None:
        raise CannotRun(
            "the `openssl` program was not found: it is the demo's peer, and makes its "
            "certificate. Debian and others have it in the package openssl."
        )
    return found


def choose_place(needed: int) -> str | None:
    """The directory for temporary files: $TMPDIR, or memory if there is room, or the default."""
    memory = "/dev/shm"  # noqa: S108  (mkdtemp makes a private directory in it)
    with contextlib.suppress(OSError):
        if (
            not os.environ.get("TMPDIR")
            and os.access(memory, os.W_OK | os.X_OK)
            and shutil.disk_usage(memory).free > needed + 16 * MIB
        ):
            return memory
    return None


def size_of(file: pathlib.Path) -> int:
    """The size of the user's file; raises CannotRun if it is none that can be sent."""
    try:
        size = file.stat().st_size
    except OSError as e:
        raise CannotRun(f"--file: {e}.") from e
    if not file.is_file() or not size:
        raise CannotRun(f"--file: {file} is no regular file, or empty.")
    return size


def prepare(
    place: pathlib.Path,
    openssl: str,
    curl: str | None,
    file: pathlib.Path | None,
    size: int,
    display: Display,
) -> Setting:
    """Say what this machine is, and make the certificate and the file."""
    display.line(
        f"pyktls {__version__}, Linux {platform.release()}, Python {platform.python_version()}"
    )
    display.line(f"Python's ssl: {ssl.OPENSSL_VERSION}")
    display.line(f"the peers:    {first_line([openssl, 'version'])}")
    if curl is None:
        display.line("              curl not found: left out")
    else:
        display.line("              " + " ".join(first_line([curl, "--version"]).split()[:2]))
    try:
        make_certificate(openssl, place)
        if file is None:
            sha256 = make_file(place / SERVED, size, display.progress("making the file"))
            display.line(f"the file:     {size} random bytes, in {place}")
        else:
            (place / SERVED).symlink_to(file.resolve())
            size, sha256 = hash_file(file, display.progress("hashing the file"))
            display.line(f"the file:     {size} bytes, {file}")
    except OSError as e:
        raise CannotRun(f"the file could not be prepared: {e}.") from e
    display.line(f"SHA-256:      {sha256}")
    return Setting(openssl, curl, shutil.which("ss"), place, size, sha256)


def first_line(command: list[str]) -> str:
    """The first line that a program prints, empty if it fails."""
    return what_it_prints(command).partition("\n")[0]


def make_certificate(openssl: str, place: pathlib.Path) -> None:
    """A key and a self-signed certificate for localhost, with a configuration of our own."""
    command = request_command(openssl, place, (NAME, "127.0.0.1"), 2)
    try:
        made = run_tool(command)
    except subprocess.TimeoutExpired:
        raise CannotRun("`openssl req` made no certificate in time.") from None
    if made.returncode:
        said = made.stderr.strip().splitlines()
        raise CannotRun(f"`openssl req` made no certificate: {said[-1] if said else 'no reason'}")


def make_file(path: pathlib.Path, size: int, progress: Progress) -> str:
    """Write ``size`` bytes that do not compress, the same each time; returns their SHA-256."""
    source = random.Random(SEED)  # noqa: S311  (no secret)
    sha256 = hashlib.sha256()
    with path.open("wb") as file:
        for done in range(0, size, MIB):
            piece = source.randbytes(min(MIB, size - done))
            file.write(piece)
            sha256.update(piece)
            progress(done + len(piece), size)
    return sha256.hexdigest()


def hash_file(path: pathlib.Path, progress: Progress) -> tuple[int, str]:
    """Size and SHA-256 of the user's file."""
    sha256 = hashlib.sha256()
    total, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while piece := file.read(MIB):
            sha256.update(piece)
            total += len(piece)
            progress(total, size)
    return total, sha256.hexdigest()
