"""The lab: run a command on a real Linux kernel, whatever the machine's own kernel is.

How this works. Kernel TLS is a module that many kernels lack, so the tests bring their own
kernels:

* `kernels.py` fetches Debian's stock kernels and keeps them in a cache. Nothing is installed.
* `boot.py` boots one in QEMU (software emulation) with virtme-ng, which shows the guest the host's
  file system, so the same virtual environment and the same working directory are there inside.
* `guest.py` runs inside the guest: it loads the modules, runs the command, and sends output and
  exit status to the host through a port of its own, so no kernel message is ever mixed in.
* `keeper.py` stands between the lab and QEMU and ends QEMU whenever the lab ends, however it ends.
* `programs.py` fetches programs of Debian that tests start in the guest, the same way.
* `sources.py` reads the machine's apt configuration, to know where Debian packages come from.
* `tools.py` knows which programs are needed and how to get the missing ones.

From the shell:  python -m tests.lab run --kernel 6.12 -- python -m pytest tests/kernel
From Python:     status = lab.run("6.12", ["python", "-m", "pytest", "tests/kernel"])

What the guest may write: the current directory (and what `--write` names) is the host's own.
Everything else is the host's, read-only or with changes that vanish with the guest. `/tmp`, `/run`
and `/dev/shm` are in memory.
"""

from . import programs
from .boot import GuestError, run
from .errors import LabError
from .kernels import NAMES, STOCK, Kernel, cached, obtain
from .tools import missing_tools

__all__ = [
    "NAMES",
    "STOCK",
    "GuestError",
    "Kernel",
    "LabError",
    "cached",
    "missing_tools",
    "obtain",
    "programs",
    "run",
]
