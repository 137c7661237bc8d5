"""Measures what pyktls costs, beside others, on this machine or in the lab.

    python -m benchmarks [--only MEASURE ...] [--scale NAME] [--peer HOST[:PORT]] [--json FILE]
    python -m benchmarks --far ADDRESS[:PORT]       the other machine, for --peer
    python -m benchmarks --lab [--kernel NAME|PATH ...]
    python -m benchmarks --page FILE ...            write docs/benchmarks.md from --json files

Prints tables in Markdown.  With --peer the far end of each connection is on another machine, where
--far runs: the machines connect to each other, unprotected, so use it between your own only.  With
--lab it boots kernels in QEMU, in which time counts instructions, and writes docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

from . import (
    agents,
    calls,
    crowds,
    handshakes,
    imports,
    in_lab,
    limit,
    machine,
    plot,
    receiving,
    report,
    roundtrip,
    sending,
    serving,
)
from .material import SCALES, Setting
from .tables import Results

MEASURES = {
    "sending": sending.measure,
    "receiving": receiving.measure,
    "roundtrip": roundtrip.measure,
    "serving": serving.measure,
    "handshakes": handshakes.measure,
    "calls": calls.measure,
    "imports": imports.measure,
    "crowds": crowds.measure,
}
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--only", nargs="+", choices=MEASURES, metavar="MEASURE",
                     help=", ".join(MEASURES))  # fmt: skip
    top.add_argument("--scale", choices=SCALES, default="own", help="how much (default: own)")
    top.add_argument("--json", type=Path, metavar="FILE", help="keep the figures")
    top.add_argument("--plot", type=Path, metavar="FILE", help="draw the main figures (SVG)")
    other = top.add_mutually_exclusive_group()
    other.add_argument("--peer", metavar="HOST[:PORT]", help="the far ends are there")
    other.add_argument("--far", metavar="ADDRESS[:PORT]", help="make far ends for a --peer")
    other.add_argument("--lab", action="store_true", help="boot kernels, and write the page")
    other.add_argument("--page", nargs="+", type=Path, metavar="FILE", help="write the page")
    top.add_argument("--kernel", action="append", metavar="NAME|PATH", help="for --lab")
    return top


def run(names: list[str], scale: str, peer: str | None = None, keep: Path | None = None) -> Results:
    """Measure what is named, in the order of MEASURES; ``keep`` gets what there is so far."""
    begin = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - begin:6.0f} s  {text}", file=sys.stderr, flush=True)

    # A file in memory: no disk is measured.
    place = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="pyktls-bench-", dir=place) as directory:
        setting = Setting(
            agents.Agents(peer), SCALES[scale], Path(directory), limit.build(Path(directory)), say
        )
        results = Results(machine.describe(), {})
        if peer is not None:
            results.machine["far end"] = "on another machine"
        for name, measure in MEASURES.items():
            if name in names:
                say(name)
                results.tables |= {table.key: table for table in measure(setting)}
                results.machine |= setting.versions
                results.failures = setting.failures
                if name == "receiving" and "records-sent" in results.tables:
                    insert_rates(results)
                if keep is not None:
                    keep.write_text(results.to_json(), encoding="utf-8")
    return results


def insert_rates(results: Results) -> None:
    """Put the table of rates after the two that it comes from."""
    table = receiving.rates(results.tables["records-sent"], results.tables["records-received"])
    tables = {}
    for key, found in results.tables.items():
        tables[key] = found
        if key == "records-received":
            tables[table.key] = table
    results.tables = tables


def main() -> int:
    options = parser().parse_args()
    if options.lab:
        return in_lab.main(options.kernel, options.only)
    if options.page:
        in_lab.write([Results.from_json(file.read_text("utf-8")) for file in options.page])
        return 0
    if options.far:
        agents.be_far(options.far)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    results = run(options.only or list(MEASURES), options.scale, options.peer, options.json)
    if options.plot and plot.installed():
        plot.draw(results, options.plot)
    print(report.markdown(results))
    for failure in results.failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return bool(results.failures)


if __name__ == "__main__":
    sys.exit(main())
