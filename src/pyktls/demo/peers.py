"""The unmodified programs at the other end: openssl s_client, openssl s_server and curl.

A Peer is such a program with pipes to its standard input and output.  The ones that fetch print
the file, and ``hash_output`` hashes that; s_server prints where it listens, and
``listening_port`` finds it there.  Every wait has a limit, and a program that is still there when
its ``with`` block ends is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Self

from pyktls.ciphers import TLS_1_3

from . import limits
from .steps import CHUNK, MIB, NAME, SERVED, StepFailed

if TYPE_CHECKING:
    from .display import Progress
    from .steps import Setting, Step

__all__ = ["Peer", "curl", "hash_output", "listening_port", "s_client", "s_server"]


class Peer:
    """An unmodified program at the other end; killed when the block is left."""

    def __init__(self, name: str, command: list[str], setting: Setting) -> None:
        self.name = name
        self._errors = setting.place / "peer.err"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                cwd=setting.place, bufsize=0,
            )  # fmt: skip
        assert self._process.stdout is not None  # noqa: S101
        # The usual 64 KiB make it wait for us at every turn; elsewhere pipes grow by themselves.
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._process.stdout, fcntl.F_SETPIPE_SZ, MIB)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:  # closes the pipes, and waits for its end
            self._process.kill()

    def say(self, text: str) -> None:
        """Write to its standard input, which stays open: its end would mean something."""
        assert self._process.stdin is not None  # noqa: S101
        with contextlib.suppress(BrokenPipeError):  # it will say why it ended
            self._process.stdin.write(text.encode())

    def output(self, timeout: float) -> bytes:
        """The next piece of its standard output, empty at the end."""
        assert self._process.stdout is not None  # noqa: S101
        fd = self._process.stdout.fileno()
        if not select.select([fd], [], [], timeout)[0]:
            raise StepFailed(f"{self.name} printed nothing for {timeout:.0f} seconds")
        return os.read(fd, CHUNK)

    def finish(self) -> None:
        """Wait for its end; raises StepFailed if it was not a good one."""
        try:
            status = self._process.wait(limits.END_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise StepFailed(f"{self.name} did not end") from None
        if status:
            raise StepFailed(self.complaint())

    def complaint(self) -> str:
        """How it ended, if it has ended and not well; else empty."""
        status = self._process.poll()
        if not status:
            return ""
        said = self._errors.read_text("utf-8", "replace").strip().splitlines()
        return f"{self.name} ended with status {status}" + (f": {said[-1]}" if said else "")


def s_client(step: Step, setting: Setting, port: int) -> list[str]:
    """The command line of openssl s_client; -quiet also makes it wait for the server's end."""
    return [
        setting.openssl, "s_client", "-connect", f"127.0.0.1:{port}", "-servername", NAME,
        "-CAfile", str(setting.certificate), "-verify_return_error", "-quiet",
        "-tls1_3" if step.version == TLS_1_3 else "-tls1_2",
    ]  # fmt: skip


def curl(step: Step, setting: Setting, port: int) -> list[str]:
    """The command line of curl, free of the user's own configuration."""
    assert setting.curl is not None  # noqa: S101  (all_steps has no curl without it)
    version = "1.3" if step.version == TLS_1_3 else "1.2"
    return [
        setting.curl, "-q", "--silent", "--show-error", "--noproxy", "*",
        "--cacert", str(setting.certificate), "--resolve", f"{NAME}:{port}:127.0.0.1",
        f"--tlsv{version}", "--tls-max", version, f"https://{NAME}:{port}/{SERVED}",
    ]  # fmt: skip


def s_server(step: Step, setting: Setting) -> list[str]:
    """The command line of openssl s_server, which with -HTTP sends files as they are."""
    return [
        setting.openssl, "s_server", "-accept", "127.0.0.1:0", "-naccept", "1", "-HTTP",
        "-cert", str(setting.certificate), "-key", str(setting.key),
        "-tls1_3" if step.version == TLS_1_3 else "-tls1_2",
    ]  # fmt: skip


def listening_port(peer: Peer) -> int:
    """The port that s_server has chosen, from the line that it prints."""
    printed = b""
    while not (found := re.search(rb"ACCEPT \S*:(\d+)\s", printed)):
        more = peer.output(limits.START_TIMEOUT)
        if not more:
            peer.finish()
            raise StepFailed("s_server ended before it listened")
        printed += more
    return int(found[1])


def hash_output(
    peer: Peer, size: int, progress: Progress, *, headed: bool
) -> tuple[int, str, float]:
    """Hash what the peer prints, without the HTTP header: bytes, SHA-256, time of the last byte."""
    sha256 = hashlib.sha256()
    total, last, header = 0, time.monotonic(), b""
    while piece := peer.output(limits.STALL_TIMEOUT):
        if headed:
            header += piece
            _, found, piece = header.partition(b"\r\n\r\n")
            if not found:
                if len(header) > 65536:
                    raise StepFailed(f"{peer.name} printed no HTTP header")
                continue
            headed = False
        sha256.update(piece)
        total += len(piece)
        last = time.monotonic()
        progress(total, size)
    return total, sha256.hexdigest(), last
