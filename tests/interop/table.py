"""`make peers`: runs every cell and writes docs/peers.md.

    python -m interop.table [--kernel NAME|PATH ...]        (with PYTHONPATH=tests)

Runs on this machine if its kernel has TLS and none is named, otherwise in the lab, one kernel after
the other.  What came out stays in test-results/, a file for each kernel; the page is made from all
that are there, so that one kernel can be run anew.  Exit status 1 if a cell failed.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import pathlib
import platform
import subprocess
import sys
import textwrap
import time
from typing import Any

import lab
from pyktls import Role
from pyktls.ciphers import TLS_1_2, TLS_1_3
from support.own_kernel import has_kernel_tls

from . import cells
from .cells import Kind
from .peer import Feature

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "test-results"
PAGE = ROOT / "docs" / "peers.md"
KERNELS = ("6.1", "6.12", "7.3")
VERSIONS = {TLS_1_2: "1.2", TLS_1_3: "1.3"}
TIMEOUT = 3 * 3600.0

Result = dict[str, Any]
Row = dict[str, Any]


# ---- in the guest ------------------------------------------------------------------------------


def run_groups(report: pathlib.Path, select: str, *, quick: bool) -> int:
    """Run them all, and write what came out; returns how many cells failed."""
    rows = []
    failed = 0
    for group in cells.representative() if quick else cells.groups():
        if select not in str(group):
            continue
        begin = time.monotonic()
        outcomes = cells.run(group)
        print(f"{time.monotonic() - begin:5.1f} s  {group}", flush=True)
        for feature, outcome in outcomes.items():
            if outcome.kind is not Kind.OK:
                print(f"         {feature}: {outcome.kind}: {outcome.words}", flush=True)
            if outcome.kind is Kind.FAILED:
                failed += 1
                print(outcome.trace, flush=True)
            rows.append(
                {
                    "peer": group.peer_name,
                    "role": str(group.role),
                    "version": VERSIONS[group.suite.version],
                    "suite": group.suite.openssl_name,
                    "feature": str(feature),
                    "kind": str(outcome.kind),
                    "words": outcome.words,
                    "ktls": group.peer.ktls,
                    "peer_ktls": outcome.peer_ktls,
                }
            )
    result = {
        "kernel": platform.release(),
        "all": not quick,
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "versions": sorted({peer.version() for peer in cells.PEERS}),
        "notes": [note for peer in cells.PEERS if (note := peer.note())],
        "suites": {
            name: [suite.openssl_name for suite in cells.kernel_suites(version)]
            for version, name in VERSIONS.items()
        },
        "cells": rows,
    }
    report.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return failed


# ---- the page ----------------------------------------------------------------------------------

INTRODUCTION = """\
# Peers

What pyktls does with the TLS of others, as `make peers` found out by running it: every cell below
was tried, on connections over the loopback interface. This page is generated; do not edit it.

On every connection pyktls's end is handed over to the kernel right after the handshake, and the
kernel is asked whether it has both directions, with the right version and cipher. All data is
compared at both ends.

- **data**: about 100 kB each way, both ways at once where the peer can.
- **sendfile**: `sock.sendfile`, and the peer has the file.
- **our close**: pyktls sends data and closes. The peer has all of it, and has seen close_notify.
- **its close**: the peer sends data and closes. pyktls reads all of it and then the clean end,
  which it reports only after a close_notify.
- **resumption**: a second connection resumes the first one's session, and is handed over too. Where
  pyktls is the server, with a ticket that it has sent; where it is the client, in TLS 1.2 with the
  session that OpenSSL had before the switch, in TLS 1.3 with a ticket that came after it.
- **KeyUpdate**: the peer changes its keys, and then asks for ours to be changed too; the kernel's
  counters show that they were. Before Linux 6.14 no kernel can do that, and the connection must end
  with the documented `RecordError`, which is marked `error`. TLS 1.2 has none.
- **its kernel TLS**: what the kernel lists for the peer's end of the connection. That is asked for
  all; the peers with KTLS in their name were told to use it.

A number is how many suites it works with. A number in brackets is a note, below: how it ended, or,
where it says `no`, what the peer itself says about it. `untold` is where all data has arrived and
the peer does not tell whether a close_notify has; `not yet` is what pyktls cannot do so far.
"""


NAMES = {
    Kind.DOCUMENTED: "error",
    Kind.REFUSED: "no",
    Kind.UNTOLD: "untold",
    Kind.NOT_YET: "not yet",
    Kind.FAILED: "FAILED",
}


class Notes:
    """Numbered notes; the same text has one number."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def number(self, text: str) -> str:
        if text not in self.texts:
            self.texts.append(text)
        return f"[{self.texts.index(text) + 1}]"


def render_page(results: list[Result]) -> str:
    notes = Notes()
    parts = [INTRODUCTION]
    for version in VERSIONS.values():
        # Those that a kernel does not have are not in its numbers.
        suites = sorted({suite for result in results for suite in result["suites"][version]})
        parts.append(
            wrap(f"The {len(suites)} suites of TLS {version}: {', '.join(suites)}.") + "\n"
        )
    parts.append(
        wrap(
            "In TLS 1.2 these are the suites with a certificate and a cipher that the kernel "
            "takes. Other ways to come to keys (PSK, SRP, anonymous, DSS) are left out: the "
            "kernel sees none of that."
        )
        + "\n"
    )
    parts.extend(render_kernel(result, notes) for result in results)
    parts.append("## Notes\n")
    parts.extend(wrap(f"[{number}] {text}") + "\n" for number, text in enumerate(notes.texts, 1))
    return "\n".join(parts).rstrip() + "\n"


def wrap(text: str) -> str:
    """At 100 columns; names of suites stay whole."""
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def render_kernel(result: Result, notes: Notes) -> str:
    rows = result["cells"]
    counts = {kind: sum(row["kind"] == kind for row in rows) for kind in Kind}
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    lines = [
        f"## Linux {result['kernel']}",
        "",
        wrap(f"{result['date']}; {', '.join(result['versions'])}. {len(rows)} cells: {told}."),
    ]
    if not result["all"]:
        lines.append("Only what the tests run: one suite for each peer, role and version.")
    lines += ["", *(wrap(note + ".") for note in result["notes"])]
    for role in Role:
        lines += [
            "",
            f"### pyktls is the {role}",
            "",
            f"| peer | TLS | {' | '.join(Feature)} | its kernel TLS |",
            "|---|---|" + "---|" * (len(Feature) + 1),
        ]
        of_role = [row for row in rows if row["role"] == role]
        for peer in dict.fromkeys(row["peer"] for row in of_role):
            for version in VERSIONS.values():
                those = [r for r in of_role if (r["peer"], r["version"]) == (peer, version)]
                entries = [
                    render_entry([r for r in those if r["feature"] == feature], notes)
                    for feature in Feature
                ]
                entries.append(render_peer_ktls(those, notes))
                lines.append(f"| {peer} | {version} | {' | '.join(entries)} |")
    return "\n".join(lines) + "\n"


def render_entry(rows: list[Row], notes: Notes) -> str:
    """What is in one field: the number of suites for each way to end."""
    if not rows:
        return "-"
    texts = []
    for kind in Kind:
        those = [row for row in rows if row["kind"] == kind]
        if not those:
            continue
        if kind is Kind.OK:
            texts.append(str(len(those)))
            continue
        said = dict.fromkeys(row["words"] for row in those)
        marks = []
        for words in said:
            suites = [row["suite"] for row in those if row["words"] == words]
            which = "" if len(suites) == len(rows) else f" ({', '.join(suites)})"
            who = "" if kind in {Kind.DOCUMENTED, Kind.NOT_YET} else f"{those[0]['peer']}: "
            marks.append(notes.number(f"{who}{words}{which}"))
        texts.append(f"{NAMES[kind]} {' '.join(marks)}")
    return ", ".join(texts)


def render_peer_ktls(rows: list[Row], notes: Notes) -> str:
    """What the kernel says of the peer's ends; a note names the suites that are the exception."""
    suites: dict[str, list[str]] = {}
    for row in rows:
        if row["feature"] == Feature.DATA and row["peer_ktls"]:
            suites.setdefault(row["peer_ktls"], []).append(row["suite"])
    kinds = sorted(suites, key=lambda kind: -len(suites[kind]))
    if len(kinds) <= 1:
        return "".join(kinds) or "-"
    texts = [f"{kinds[0]} {len(suites[kinds[0]])}"]
    for kind in kinds[1:]:
        mark = notes.number(
            f"{rows[0]['peer']}, its kernel TLS: {kind} ({', '.join(suites[kind])})"
        )
        texts.append(f"{kind} {len(suites[kind])} {mark}")
    return ", ".join(texts)


# ---- here ----------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kernel", action="append", default=[], metavar="NAME|PATH")
    parser.add_argument("--cells", type=pathlib.Path, help="run them here, and write this file")
    parser.add_argument("--select", default="", help="only what has this in its name; no page")
    parser.add_argument("--quick", action="store_true", help="only what the tests run")
    options = parser.parse_args()
    if options.cells:
        return 1 if run_groups(options.cells, options.select, quick=options.quick) else 0
    RESULTS.mkdir(exist_ok=True)
    here = not options.kernel and has_kernel_tls()
    status = 0
    for kernel in ["here"] if here else options.kernel or KERNELS:
        report = RESULTS / f"peers-{kernel.replace('/', '_')}.json"
        report.unlink(missing_ok=True)
        print(f"\n==== {kernel}", flush=True)
        command = [sys.executable, "-m", "interop.table", "--cells", str(report)]
        command += ["--select", options.select, *(["--quick"] if options.quick else [])]
        try:
            if here:
                ended = subprocess.run(command, check=False).returncode
            else:
                ended = lab.run(kernel, command, timeout=TIMEOUT)
        except lab.LabError as e:
            print(f"lab: {e}", file=sys.stderr)
            ended = 125
        status = status or ended
    if not options.select:
        write_page()
    return status


def write_page() -> None:
    results = [json.loads(path.read_text("utf-8")) for path in RESULTS.glob("peers-*.json")]
    results.sort(key=lambda result: [int(n) for n in result["kernel"].split("-")[0].split("+")[0]
                                     .split(".")], reverse=True)  # fmt: skip
    PAGE.write_text(render_page(results), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {', '.join(result['kernel'] for result in results)}")


if __name__ == "__main__":
    sys.exit(main())
