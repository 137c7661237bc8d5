"""Which programs the lab needs, which are missing, and how to get them.

How this works. virtme-ng builds an initramfs with a static busybox, reads the kernel's version
with `file`, and runs QEMU; kmod gives depmod (host) and modprobe (guest). All but virtme-ng come
from the distribution. With `--install` and root they are installed; otherwise the message holds
the exact command.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from .errors import LabError

QEMU = "qemu-system-x86_64"
# program: Debian package
SYSTEM_TOOLS = {
    QEMU: "qemu-system-x86",
    "modprobe": "kmod",
    "busybox": "busybox-static",
    "file": "file",
}
FETCH_TOOLS = {"apt-get": "apt", "apt-cache": "apt", "dpkg": "dpkg", "depmod": "kmod"}


def search_path() -> str:
    """PATH, with this Python's own programs first, and sbin, which a user's PATH lacks, last."""
    places = [str(Path(sys.prefix) / "bin"), os.environ.get("PATH", os.defpath)]
    return os.pathsep.join([*places, "/usr/local/sbin", "/usr/sbin", "/sbin"])


def find(program: str) -> str | None:
    path = shutil.which(program, path=search_path())
    if path and program == "busybox" and b"/ld-linux" in Path(path).read_bytes()[:4096]:
        return None  # dynamically linked: of no use in an initramfs
    return path


def require(program: str) -> str:
    """The program's full path, or an error that says how to get it."""
    path = find(program)
    if path is None:
        raise LabError(how_to_get([program]))
    return path


def missing_tools() -> list[str]:
    """What is missing to boot a kernel that is already there."""
    return [program for program in ["vng", *SYSTEM_TOOLS] if find(program) is None]


def how_to_get(programs: Iterable[str]) -> str:
    programs = list(programs)
    lines = [f"missing: {', '.join(programs)}"]
    packages = _packages(programs)
    if packages and find("apt-get"):
        sudo = "" if os.geteuid() == 0 else "sudo "
        lines.append(f"    {sudo}apt-get install --no-install-recommends {' '.join(packages)}")
        if os.geteuid() == 0:
            lines.append("or let the lab do that: add --install")
        else:
            lines.append("(installing needs root, and this is not root; booting does not)")
    elif packages:
        lines.append(f"no apt-get here: install what Debian calls {' '.join(packages)}")
    if "vng" in programs:
        lines.append(f"    {sys.executable} -m pip install virtme-ng")
    return "\n".join(lines)


def require_all(install: bool = False) -> None:
    """See that everything needed to boot is there; with `install`, get it first."""
    missing = missing_tools()
    if install and (packages := _packages(missing)):
        _apt_install(packages)
        missing = missing_tools()
    if missing:
        raise LabError(how_to_get(missing))


def _packages(programs: Iterable[str]) -> list[str]:
    known = SYSTEM_TOOLS | FETCH_TOOLS
    return sorted({known[program] for program in programs if program in known})


def _apt_install(packages: list[str]) -> None:
    apt = find("apt-get")
    if apt is None:
        raise LabError("--install needs apt-get (Debian, Ubuntu), and it is not here")
    if os.geteuid() != 0:
        raise LabError(f"--install needs root:\n    sudo apt-get install {' '.join(packages)}")
    # Another apt may be at work on this machine: wait for its lock.
    wait = ["-o", "DPkg::Lock::Timeout=600", "-o", "APT::Lock::Timeout=600", "-q"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run([apt, *wait, "update"], stdout=sys.stderr, env=environment, check=False)
    command = [apt, *wait, "install", "-y", "--no-install-recommends", *packages]
    if subprocess.run(command, stdout=sys.stderr, env=environment, check=False).returncode != 0:
        raise LabError(f"could not install {' '.join(packages)}; apt's reason is above")
