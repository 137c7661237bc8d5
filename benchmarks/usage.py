"""What processes use: processor time and memory, as the kernel tells it."""

from __future__ import annotations

import time
from pathlib import Path

KIB = 1024
_PAGE = 4 * KIB


def processor_time(pid: int) -> int:
    """Nanoseconds that all threads of a process have run, exact at any moment.

    The clock's number is made of the process's as clock_getcpuclockid(3) does it on Linux.
    """
    return time.clock_gettime_ns(~pid << 3 | 2)


def user_memory(pid: int | str = "self") -> dict[str, int]:
    """Bytes of a process: `rss`, of these `anonymous`, and `pss`, which divides what is shared."""
    process = Path("/proc") / str(pid)
    status = _fields(process / "status")
    pss = _fields(process / "smaps_rollup")["Pss"]
    return {"rss": status["VmRSS"], "anonymous": status["RssAnon"], "pss": pss}


def kernel_memory() -> dict[str, int]:
    """Bytes of the whole kernel: its small objects, and its pages for sockets' content."""
    slab = _fields(Path("/proc/meminfo"))["Slab"]
    tcp = Path("/proc/net/sockstat").read_text(encoding="ascii").partition("TCP: ")[2].split()
    pages = int(tcp[tcp.index("mem") + 1])
    return {"slab": slab, "sockets": pages * _PAGE}


def _fields(path: Path) -> dict[str, int]:
    found = {}
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        name, colon, value = line.partition(":")
        words = value.split()
        if colon and len(words) == 2 and words[1] == "kB":
            found[name] = int(words[0]) * KIB
    return found
