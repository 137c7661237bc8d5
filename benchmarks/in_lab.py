"""`make bench`: the benchmarks in the lab, counted in instructions, and docs/benchmarks.md."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import machine, plot, report
from .tables import Results

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "test-results"
KERNEL = "7.3"
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
        counted = {machine.COUNTED: "1"}
        status = lab.run(kernel, command, icount=True, memory=MEMORY, env=counted)
        failed |= bool(status)
        if file.exists():
            found.append(Results.from_json(file.read_text(encoding="utf-8")))
    # A part of it is for looking at, not for the page.
    if found and not only:
        write(found)
    return failed


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
