"""CPython 3.15, whose `SSLSocket.sendfile` uses kernel TLS where OpenSSL has switched to it.

It is this Python itself, one on the PATH, or that of the Debian release which `make pythons` has
made in the cache (docs/pythons.md); for the last root's privilege is needed.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import ends
from .ends import Channel
from .tables import Missing

FIRST = (3, 15)
CACHE = Path(os.environ.get("PYKTLS_LAB_CACHE", "~/.cache/pyktls/lab")).expanduser().parent
ROOTS = CACHE / "pythons"


def find() -> list[str]:
    """The command that starts it; raises Missing."""
    if sys.version_info >= FIRST:
        return [sys.executable]
    name = f"python{FIRST[0]}.{FIRST[1]}"
    if found := shutil.which(name):
        return [found]
    return [*in_release("forky", name), f"/usr/bin/{name}"]


def in_release(release: str, program: str) -> list[str]:
    """What makes a Debian release of the cache the root directory of a command that follows."""
    root = ROOTS / release
    if not (root / "usr/bin" / program).exists():
        raise Missing(f"no {program} on this machine (`make pythons` makes a Debian {release})")
    if os.geteuid() != 0:
        raise Missing(f"only root can use the Debian {release} that has {program}")
    chroot = shutil.which("chroot", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if chroot is None:
        raise Missing("no chroot(8) here")
    return [chroot, str(root)]


def serve(channel: Channel, listener: socket.socket, chain: str, file: Any) -> None:
    """Have it be the near end (ends.alone); what is said in the channel goes to it and back."""
    command = find()
    ours, its = socket.socketpair()
    text = Path(ends.__file__).read_text(encoding="utf-8") + "\nalone()\n"
    process = subprocess.Popen(
        [*command, "-c", text],
        stdin=its.fileno(),
        pass_fds=[listener.fileno(), file.fileno()],
        cwd="/",
    )
    its.close()
    inner = Channel(ours)
    try:
        inner.say(listener=listener.fileno(), file=file.fileno(), chain=chain)
        while True:
            message = inner.hear()
            channel.say(**message)
            if "missing" in message:
                return
            inner.say(**channel.hear())
    finally:
        inner.close()
        with process:
            process.kill()
