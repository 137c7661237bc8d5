"""Builds pyktls as for FreeBSD, with its system calls sent to the fake.

The package is built a second time, into build/freebsd-fake, with csrc/kernel_freebsd.c in place of
kernel_linux.c and calls.h in front of every C file.  The Python files are the same.  What is there
already and not older than its sources is kept.
"""

from __future__ import annotations

import fcntl
import os
import pathlib
import shlex
import subprocess
import sys
import sysconfig

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
BASE = ROOT / "build" / f"freebsd-fake-{sys.implementation.cache_tag}"
PACKAGES = BASE / "lib"
LIBRARY = PACKAGES / "libfake_freebsd.so"


def build() -> pathlib.Path:
    """Build what is not up to date; returns the directory to put in front of sys.path."""
    PACKAGES.mkdir(parents=True, exist_ok=True)
    with (BASE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        header = HERE / "calls.h"
        sources = [header, HERE / "calls.c", *(ROOT / "csrc").glob("*.[ch]")]
        newest = max(path.stat().st_mtime for path in sources)
        fresh = LIBRARY.exists() and LIBRARY.stat().st_mtime >= newest
        if not fresh:
            compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
            run([*compiler, "-shared", "-fPIC", "-O1", "-o", str(LIBRARY), str(HERE / "calls.c")])
        environment = {
            **os.environ,
            "PYKTLS_TARGET_PLATFORM": "freebsd",
            "CFLAGS": f"-g -O1 -I{HERE / 'include'} -include {header}",
            "LDFLAGS": f"-L{PACKAGES} -Wl,--no-as-needed -lfake_freebsd -Wl,-rpath,{PACKAGES} -ldl",
        }
        command = [sys.executable, "setup.py", "-q", "build", "--build-base", str(BASE / "base")]
        command += ["--build-lib", str(PACKAGES), *(() if fresh else ("--force",))]
        run(command, env=environment)
    return PACKAGES


def run(command: list[str], env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}:\n{done.stdout}{done.stderr}")
