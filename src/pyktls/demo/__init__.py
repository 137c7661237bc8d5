"""The demo: a real file through kernel TLS to programs that know nothing of it, with proof.

How this works.  This process takes no part in the transfers.  For every step it forks a child that
is the Python end (server or client, pyktls or ssl) and measures its own CPU time, starts the
unmodified program that is the other end, and hashes what that program prints.  A child talks back
through a pipe.  Nobody is waited for without a limit, and whoever is still there when a step ends
is killed by its pid.

The evidence is the kernel's, not ours: the socket's own options, its entry in the socket
diagnostics (asked by us and by `ss`), the record sequence numbers that the kernel holds before and
after the transfer, and /proc/net/tls_stat.  `outcomes.doubts` decides whether it is enough.

Where it is.  `steps` says what is done, `material` makes what that takes, `running` runs one step
with its two ends (`children` and `ends`; `peers`), `evidence` asks the kernel, `outcomes` judges,
`display` and `results` show.  `tools` runs small programs, and `limits` are the timeouts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import platform
import shutil
import signal
import ssl
import sys
import tempfile
from typing import TYPE_CHECKING, Any, NoReturn

from pyktls import __version__, linux
from pyktls.commands.terminal import fold

from .display import Display
from .material import CannotRun, check_kernel, choose_place, find_openssl, prepare, size_of
from .results import cpu_pairs, cpu_ratio, is_emulated, show_counters, show_evidence, show_results
from .running import run_step
from .steps import MIB, all_steps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .outcomes import Outcome
    from .steps import Setting, Step

__all__ = ["EXIT_STATUS", "add_arguments", "run"]

DESCRIPTION = """\
Send a real file through kernel TLS to programs that know nothing of it, and
prove it.  For TLS 1.3 and TLS 1.2, on the loopback interface:

  * a pyktls socket serves a file with sendfile; openssl s_client and curl
    fetch it
  * Python's own ssl serves the same file to s_client, for comparison
  * a pyktls client fetches the file from openssl s_server, and so does
    Python's ssl

Each time the SHA-256 is taken at the far end and compared with the file's.
That the kernel did the encryption is read from the kernel.
"""
EPILOG = """\
Temporary files are in $TMPDIR, or else in memory if there is room.
"""

OK, FAILED, CANNOT_RUN = 0, 1, 2
EXIT_STATUS = {
    OK: "every SHA-256 matched and the kernel confirmed every pyktls socket",
    FAILED: "they did not",
    CANNOT_RUN: "the demo cannot run here (no kernel TLS, no openssl), or wrong usage",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Tell ``parser`` what the demo takes."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("--file", type=pathlib.Path, help="send this file (default: make one)")
    parser.add_argument(
        "--size", type=_size, default=64, metavar="MIB",
        help="size of the file that is made (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true",
        help="print the result as JSON on standard output, all else on standard error",
    )  # fmt: skip


def _size(text: str) -> int:
    size = int(text)
    if size < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return size


def run(options: argparse.Namespace) -> int:
    """Run the demo and return its exit status."""
    display = Display(sys.stderr if options.json else sys.stdout)
    try:
        with _orderly_end():
            result = demonstrate(options.file, options.size * MIB, display)
    except CannotRun as e:
        print("\n".join(fold(f"pyktls demo: {e}", indent="  ")), file=sys.stderr)
        if options.json:
            print(json.dumps({"ok": False, "cannot_run": str(e)}))
        return CANNOT_RUN
    except KeyboardInterrupt:
        display.line("interrupted")
        return 128 + signal.SIGINT
    if options.json:
        print(json.dumps(result, indent=2))
    return OK if result["ok"] else FAILED


@contextlib.contextmanager
def _orderly_end() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end this process as an exception does, so that all is cleaned up."""

    def end(number: int, _: object) -> NoReturn:
        sys.exit(128 + number)

    before = {
        number: signal.signal(number, end)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN  # nohup means it
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def demonstrate(file: pathlib.Path | None, size: int, display: Display) -> dict[str, Any]:
    """All of it, shown on ``display``; returns what --json prints."""
    if file is not None:
        size = size_of(file)
    openssl, curl = find_openssl(), shutil.which("curl")
    check_kernel()
    place = choose_place(0 if file is not None else size)
    with tempfile.TemporaryDirectory(prefix="pyktls-demo-", dir=place) as name:
        setting = prepare(pathlib.Path(name), openssl, curl, file, size, display)
        display.line()
        before = dict(linux.tls_stat())
        steps = all_steps(curl=curl is not None)
        outcomes = [
            do(step, setting, f"[{number}/{len(steps)}]", display)
            for number, step in enumerate(steps, 1)
        ]
        after = dict(linux.tls_stat())
    display.line()
    display.line("What the kernel said of the pyktls sockets while they were alive")
    display.line()
    ours = [outcome for outcome in outcomes if outcome.step.python == "pyktls"]
    for outcome in ours:
        show_evidence(outcome, display)
    display.line()
    show_counters(before, after, sum(o.evidence is not None for o in ours), display)
    display.line()
    show_results(outcomes, display)
    pairs = cpu_pairs(outcomes)
    return {
        "ok": all(outcome.failure is None for outcome in outcomes),
        "pyktls": __version__,
        "kernel": platform.release(),
        "machine": platform.machine(),
        "emulated": is_emulated(),
        "python": platform.python_version(),
        "python_openssl": ssl.OPENSSL_VERSION,
        "left_out": [] if curl else ["curl"],
        "file": {"bytes": setting.size, "sha256": setting.sha256},
        "cpu_ratio": {
            "all": cpu_ratio(pairs),
            **{version: cpu_ratio({version: pair}) for version, pair in pairs.items()},
        },
        "steps": [outcome.as_dict() for outcome in outcomes],
        "tls_stat": {"before": before, "after": after},
    }


def do(step: Step, setting: Setting, number: str, display: Display) -> Outcome:
    """One step, and a line about it."""
    title = f"{number} {step.name}"
    outcome = run_step(step, setting, display.progress(title))
    if outcome.failure is not None:
        display.line(f"{title}: FAILED")
        display.paragraph(outcome.failure, "    ", "    ")
    else:
        seconds, speed = outcome.seconds or 0.0, outcome.megabytes_per_second or 0.0
        display.line(
            f"{title}: {outcome.bytes / 1e6:.0f} MB in {seconds:.1f} s, {speed:.0f} MB/s, "
            "SHA-256 equal"
        )
    return outcome
