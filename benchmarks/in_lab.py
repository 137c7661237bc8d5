"""`make bench`: the benchmarks in the lab, counted in instructions, and docs/benchmarks.md."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import plot, report
from .ends import COUNTED
from .tables import Results

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "test-results"
KERNEL = "7.3"
LONGEST = 7200.0  # seconds of this machine
#: Two times ten thousand connections, with OpenSSL's objects at both ends.
MEMORY = "6G"


def main(kernels: list[str] | None, only: list[str] | None) -> int:
    from tests import lab  # noqa: PLC0415  (only a source tree has it)

    found, failed = [], False
    for kernel in kernels or [KERNEL]:
        file = RESULTS / f"benchmarks-{Path(kernel).name}.json"
        file.parent.mkdir(exist_ok=True)
        file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "benchmarks", "--scale", "lab", "--json", str(file)]
        if only:
            command += ["--only", *only]
        try:
            failed |= bool(
                lab.run(
                    kernel, command, icount=True, memory=MEMORY, timeout=LONGEST, env={COUNTED: "1"}
                )
            )
        except lab.LabError as e:
            print(f"lab: {e}", file=sys.stderr)
            failed = True
        if file.exists():
            found.append(Results.from_json(file.read_text(encoding="utf-8")))
    # A part of it is for looking at, not for the page.
    if found and not only:
        write(found)
    return int(failed)


def write(found: Sequence[Results]) -> None:
    """The page and the plots, from what was measured."""
    sections = []
    for results in found:
        name = ""
        if plot.installed():
            short = ".".join(results.machine["kernel"].split()[-1].split(".")[:2])
            name = f"benchmarks-{short}.svg"
            plot.draw(results, PAGE.parent / name)
        else:
            print("no plot: matplotlib is not installed (extra `bench`)", file=sys.stderr)
        sections.append(report.markdown(results, name))
    report.write_page(PAGE, sections)
