"""Servers that are programs: `openssl s_server` and `pyktls serve`."""

from __future__ import annotations

import contextlib
import functools
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pyktls

from .ends import TIMEOUT
from .other_python import in_release
from .tables import Missing

if TYPE_CHECKING:
    from collections.abc import Iterator

S_SERVER = "`openssl s_server -ktls -sendfile`"
SERVE = "`pyktls serve`"
#: Where the release's files have an empty directory for our own.
INSIDE = "/mnt"


def takes(command: list[str], *options: str) -> bool:
    """Whether s_server knows the options."""
    done = subprocess.run(
        [*command, "s_server", "-help"], capture_output=True, text=True, check=False
    )
    return all(f" {option} " in done.stdout + done.stderr for option in options)


@functools.cache
def find_openssl(place: str) -> tuple[list[str], str]:
    """The command, and where it finds the files of ``place``; raises Missing."""
    own = shutil.which("openssl")
    if own is not None and takes([own], "-ktls", "-sendfile"):
        return [own], place
    release = in_release("trixie", "openssl")
    # A name space of its own, where the directory can be put into the release's files.
    enter = 'mount --bind "$1" "$2/mnt" && shift 2 && exec "$@"'
    command = [
        *("unshare", "--mount", "sh", "-e", "-c", enter, "sh", place, release[1]),
        *(*release, "/usr/bin/env", f"--chdir={INSIDE}", "/usr/bin/openssl"),
    ]
    if not takes(command, "-ktls", "-sendfile"):
        raise Missing("s_server of neither OpenSSL here has -ktls and -sendfile (3.2 has)")
    return command, INSIDE


def openssl_version(place: str) -> str:
    """What the openssl of s_server says of itself."""
    command, _ = find_openssl(place)
    return subprocess.run(
        [*command, "version"], capture_output=True, text=True, check=True
    ).stdout.strip()


@contextlib.contextmanager
def s_server(host: str, port: int, place: str, chain: Path) -> Iterator[subprocess.Popen[bytes]]:
    command, inside = find_openssl(place)
    here = f"{inside}/{chain.name}"
    # Its web server takes names relative to where it is.
    begin = ["env", f"--chdir={place}"] if inside == place else []
    with started(
        [
            *begin, *command, "s_server", "-accept", f"{host}:{port}", "-cert", here, "-key", here,
            "-WWW", "-sendfile", "-ktls", "-quiet", "-http_server_binmode",
        ],
        host, port,
    ) as process:  # fmt: skip
        yield process


@contextlib.contextmanager
def serve(host: str, port: int, place: str, chain: Path) -> Iterator[subprocess.Popen[bytes]]:
    if not (Path(pyktls.__file__).parent / "serve").is_dir():
        raise Missing("this pyktls has no `serve`")
    command = [sys.executable, "-m", "pyktls", "serve", place]
    command += ["--cert", str(chain), "--host", host, "--port", str(port), "--require", "--quiet"]
    with started(command, host, port) as process:
        yield process


@contextlib.contextmanager
def started(command: list[str], host: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The program, once it listens."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            wait_for_port(process, host, port)
            yield process
        finally:
            process.kill()


def wait_for_port(process: subprocess.Popen[bytes], host: str, port: int) -> None:
    """Wait until somebody listens, without connecting: s_server would begin a handshake."""
    limit = time.monotonic() + TIMEOUT
    wanted = f":{port:04X}"
    while not any(
        fields[1].endswith(wanted) and fields[3] == "0A"
        for fields in map(str.split, Path("/proc/net/tcp").read_text(encoding="ascii").splitlines())
        if len(fields) > 3
    ):
        if process.poll() is not None:
            assert process.stderr is not None  # noqa: S101
            said = process.stderr.read().decode(errors="replace").strip().splitlines()
            raise Missing(said[-1] if said else f"it has ended at once ({process.returncode})")
        if time.monotonic() > limit:
            raise Missing(f"it does not listen on {host}:{port}")
        time.sleep(0.02)


def free_port(host: str) -> int:
    with socket.create_server((host, 0)) as sock:
        return int(sock.getsockname()[1])


def own_kernel_tls() -> None:
    """Raise Missing where this kernel has no TLS; a program that falls back would not say so."""
    with contextlib.suppress(OSError):
        if "tls" in Path("/proc/sys/net/ipv4/tcp_available_ulp").read_text().split():
            return
    raise Missing("this kernel has no TLS")


__all__ = [
    "SERVE",
    "S_SERVER",
    "free_port",
    "openssl_version",
    "own_kernel_tls",
    "s_server",
    "serve",
]
