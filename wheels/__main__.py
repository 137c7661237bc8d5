"""Builds the sdist and the wheels in dist/, checks them, and says what they are.

    python -m wheels [--out DIRECTORY] [--only NAME ...] [--once] [--jobs N]

It is run by the Python that has requirements.txt (`make wheels` sees to it). Everything is built
twice, in two places, and has to be the same; --once saves the second time. --only builds some: a
NAME is any part of a wheel's name, as 314t or musllinux. README.md tells the rest.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from tests.lab.errors import LabError

from .audit import ask_cibuildwheel, audit
from .build import ROOT, BuildError, build, compare, digests
from .targets import TARGETS, Target, fetch


def make(out: Path, targets: tuple[Target, ...], jobs: int, *, once: bool) -> None:
    ask_cibuildwheel(TARGETS)
    fetch(targets)
    with tempfile.TemporaryDirectory(prefix="pyktls-wheels-") as scratch:
        made = build(Path(scratch) / "first", targets, jobs)
        # Longer, so that a path that got into a file would move what comes after it.
        traces = (scratch.encode(), str(ROOT).encode(), sys.prefix.encode())
        for target in targets:
            (wheel,) = (path for path in made if path.name.endswith(f"{target.name}.whl"))
            print(audit(wheel, target, traces), flush=True)
        found = digests(made)
        if not once:
            compare(found, digests(build(Path(scratch) / "the-second-time", targets, jobs)))
            print("built twice, and the same each time")
        out.mkdir(parents=True, exist_ok=True)
        for old in out.glob("pyktls-*"):
            old.unlink()
        for path in made:
            shutil.copy2(path, out)
    print(*(f"{digest}  {name}" for name, digest in found.items()), sep="\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", metavar="DIRECTORY")
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("--once", action="store_true", help="do not build a second time")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N")
    options = parser.parse_args()
    targets = tuple(
        target
        for target in TARGETS
        if not options.only or any(part in target.name for part in options.only)
    )
    if not targets:
        parser.error("there is no such wheel; there are " + " ".join(t.name for t in TARGETS))
    try:
        make(options.out, targets, options.jobs, once=options.once)
    except (BuildError, LabError) as e:
        print(f"wheels: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
