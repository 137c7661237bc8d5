"""``pyktls stat``: the kernel's TLS counters, once or again and again.

Linux counts connections, changes of keys and errors, not bytes or records (net/tls/tls_proc.c).
"""

from __future__ import annotations

import argparse
import datetime as dt
import itertools
import json
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pyktls import freebsd, linux
from pyktls._kernel import lib
from pyktls.errors import Error, InvalidValue

from .terminal import Paint, complain, fold

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any, TextIO

    from pyktls.linux.counters import ErrorCount

__all__ = ["EXIT_STATUS", "add_arguments", "run"]

DESCRIPTION = """\
Show the kernel's TLS counters for this network namespace: how many
connections it encrypts and decrypts now and since boot, changes of keys, and
errors, each that is not zero with what it means.  The kernel does not count
bytes.
"""
EPILOG = """\
With --watch a line is written every so many seconds, with how many
connections there are and what came per second since the line before.
With --json it is one JSON object, and with --watch one in each line.
"""
OK, NO_SUCH_PROCESS, NOT_HERE = 0, 1, 3
EXIT_STATUS = {
    OK: "the counters were shown",
    NO_SUCH_PROCESS: "with --pid: there is no such process, or it is not to be looked at",
    2: "wrong usage",
    NOT_HERE: "this kernel has no such counters: `pyktls doctor` says why",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Tell ``parser`` what the command takes."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument(
        "--watch", type=_seconds, nargs="?", const=1.0, metavar="SECONDS",
        help="go on, with a line every so many seconds (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--count", type=_count, metavar="N", help="with --watch: end after that many lines"
    )
    parser.add_argument(
        "--pid", type=_count, metavar="PID",
        help="of the network namespace that this process is in (Linux)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="JSON instead of text")
    parser.set_defaults(usage_error=parser.error)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.01 <= seconds < 1e6:
        raise argparse.ArgumentTypeError("must be from 0.01 to 1000000")
    return seconds


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return count


@dataclass(frozen=True, slots=True)
class Reading:
    """The counters at one moment, from whichever system.

    ``gauges`` go up and down, ``counters`` only up; ``errors`` are counters that are not zero and
    should be.  ``taken`` is the moment, by time.monotonic().
    """

    taken: float
    gauges: Mapping[str, int]
    counters: Mapping[str, int]
    errors: tuple[ErrorCount, ...] = ()

    def change(self, earlier: Reading) -> Change:
        """What happened since.  Raises InvalidValue where the counters have begun anew."""
        seconds = self.taken - earlier.taken
        if seconds <= 0:
            raise InvalidValue("no time has passed between the two readings")
        increase = {name: n - earlier.counters.get(name, 0) for name, n in self.counters.items()}
        for name, value in increase.items():
            if value < 0:
                raise InvalidValue(f"{name} went down: the kernel or its tls module has restarted")
        return Change(seconds, increase)


@dataclass(frozen=True, slots=True)
class Change:
    """How much each counter went up within ``seconds``."""

    seconds: float
    increase: Mapping[str, int]
    rates: Mapping[str, float] = field(init=False)

    def __post_init__(self) -> None:
        rates = {name: value / self.seconds for name, value in self.increase.items()}
        object.__setattr__(self, "rates", rates)


def read_linux(pid: int | None) -> Reading:
    """/proc/net/tls_stat."""
    stat = linux.tls_stat(pid)
    return Reading(stat.taken, stat.gauges, stat.counters, stat.errors)


#: The gauges of FreeBSD are these and what begins so.
_FREEBSD_GAUGES = (
    "stats.active",
    "sw.",
    "ifnet.c",
    "ifnet.gcm",
    "toe.",
    "stats.threads",
    "tasks_active",
)
_FREEBSD_PREFIX = "kern.ipc.tls."


def read_freebsd(pid: int | None) -> Reading:
    """The sysctls below kern.ipc.tls, without that prefix; FreeBSD has them once."""
    if pid is not None:
        raise InvalidValue("FreeBSD has one set of counters for all: --pid is for Linux")
    found = {n.removeprefix(_FREEBSD_PREFIX): v for n, v in freebsd.statistics().items()}
    gauges = {
        name: value
        for name, value in found.items()
        if name.startswith(_FREEBSD_GAUGES) or name.endswith(("_inqueue", "_pending"))
    }
    counters = {name: value for name, value in found.items() if name not in gauges}
    return Reading(time.monotonic(), gauges, counters)


def read(pid: int | None) -> Reading:
    """The counters now.  Raises Unavailable, ProcessLookupError, PermissionError, InvalidValue."""
    if lib.pyktls_system() == lib.PYKTLS_FREEBSD:
        return read_freebsd(pid)
    return read_linux(pid)


def run(options: argparse.Namespace) -> int:
    """Show the counters, and return the exit status."""
    if options.count is not None and options.watch is None:
        options.usage_error("--count goes with --watch")
    try:
        if options.watch is None:
            show(read(options.pid), options.json, sys.stdout)
        else:
            watch(options.pid, options.watch, options.count, options.json, sys.stdout)
    except (ProcessLookupError, PermissionError) as e:
        return complain("stat", e, NO_SUCH_PROCESS, as_json=options.json)
    except Error as e:
        return complain("stat", e, NOT_HERE, as_json=options.json)
    return OK


# ---- once ------------------------------------------------------------------------------------


def as_dict(reading: Reading, change: Change | None = None) -> dict[str, Any]:
    """For JSON; ``change`` is what happened since the reading before."""
    found: dict[str, Any] = {
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "gauges": dict(reading.gauges),
        "counters": dict(reading.counters),
        "errors": [
            {"name": e.name, "count": e.count, "meaning": e.meaning} for e in reading.errors
        ],
    }
    if change is not None:
        found["seconds"] = change.seconds
        found["rates"] = dict(change.rates)
    return found


def show(reading: Reading, as_json: bool, out: TextIO) -> None:
    """All counters, and what the errors mean."""
    if as_json:
        print(json.dumps(as_dict(reading), indent=2), file=out)
        return
    paint = Paint(out)
    wrong = {error.name for error in reading.errors}
    for title, values in (("now", reading.gauges), ("since boot", reading.counters)):
        print(paint.bold(title), file=out)
        for name, value in values.items():
            line = f"  {name:<30}{value:>12}"
            print(paint.bad(line) if name in wrong else line, file=out)
    for line in explained(reading.errors):
        print(line, file=out)


def explained(errors: tuple[ErrorCount, ...]) -> list[str]:
    """What each of them means, in lines."""
    lines: list[str] = [""] if errors else []
    for error in errors:
        lines += fold(f"{error.name}: {error.meaning}", indent="  ")
    return lines


# ---- again and again -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Column:
    """A column of --watch: the sum of the counters ``names``, or of how fast they go up."""

    title: str
    names: tuple[str, ...]
    rate: bool = False

    def text(self, reading: Reading, change: Change) -> str:
        """What stands in it, "-" where this kernel has none of them."""
        values = change.rates if self.rate else reading.gauges
        found = [values[name] for name in self.names if name in values]
        if not found:
            return "-"
        return f"{sum(found):.1f}" if self.rate else str(sum(found))


_COLUMNS = {
    "Linux": (
        Column("tx", ("TlsCurrTxSw", "TlsCurrTxDevice")),
        Column("rx", ("TlsCurrRxSw", "TlsCurrRxDevice")),
        Column("in card", ("TlsCurrTxDevice", "TlsCurrRxDevice")),
        Column("tx", ("TlsTxSw", "TlsTxDevice"), rate=True),
        Column("rx", ("TlsRxSw", "TlsRxDevice"), rate=True),
        Column("rekeys", ("TlsTxRekeyOk", "TlsRxRekeyOk"), rate=True),
        Column(
            "errors",
            ("TlsDecryptError", "TlsTxRekeyError", "TlsRxRekeyError"),
            rate=True,
        ),
    ),
    "FreeBSD": (
        Column("active", ("stats.active",)),
        Column("switched", ("stats.offload_total",), rate=True),
        Column("corrupted", ("stats.corrupted_records",), rate=True),
        Column("failed", ("stats.failed_crypto",), rate=True),
    ),
}
_TIME, _CELL = 8, 10
#: The header comes again on a terminal, after so many lines.
_PAGE = 20


def watch(pid: int | None, seconds: float, count: int | None, as_json: bool, out: TextIO) -> None:
    """A line every ``seconds``, ``count`` of them or until somebody interrupts.

    Raises what ``read`` raises.
    """
    line = _json_lines(out) if as_json else _text_lines(out)
    earlier = read(pid)
    due = earlier.taken
    for _ in itertools.count() if count is None else range(count):
        due = max(due + seconds, time.monotonic())
        time.sleep(max(due - time.monotonic(), 0))
        later = read(pid)
        try:
            change = later.change(earlier)
        except InvalidValue as e:
            print(f"pyktls stat: {e}", file=sys.stderr)
        else:
            line(later, change)
        earlier = later


def _json_lines(out: TextIO) -> Callable[[Reading, Change], None]:
    def line(reading: Reading, change: Change) -> None:
        print(json.dumps(as_dict(reading, change)), file=out, flush=True)

    return line


def _text_lines(out: TextIO) -> Callable[[Reading, Change], None]:
    columns = _COLUMNS["FreeBSD" if lib.pyktls_system() == lib.PYKTLS_FREEBSD else "Linux"]
    paint = Paint(out)
    numbers = itertools.count()

    def line(reading: Reading, change: Change) -> None:
        number = next(numbers)
        if number == 0 or (out.isatty() and number % _PAGE == 0):
            for head in _header(columns):
                print(paint.bold(head), file=out)
        cells = (f"{column.text(reading, change):>{_CELL}}" for column in columns)
        print(f"{time.strftime('%H:%M:%S')}{''.join(cells)}", file=out)
        for text in _news(reading, change):
            print(paint.bad(text), file=out)
        out.flush()

    return line


def _header(columns: tuple[Column, ...]) -> Iterator[str]:
    gauges = sum(not column.rate for column in columns)
    groups = ("now", gauges), ("new per second", len(columns) - gauges)
    yield " " * _TIME + "".join(f"{title:>{number * _CELL}}" for title, number in groups)
    yield f"{'time':<{_TIME}}" + "".join(f"{column.title:>{_CELL}}" for column in columns)


def _news(reading: Reading, change: Change) -> Iterator[str]:
    """The errors that came since the reading before, with what they mean."""
    for error in reading.errors:
        if more := change.increase[error.name]:
            text = f"{error.name} +{more}: {error.meaning}"
            yield from fold(text, " " * (_TIME + 2), " " * (_TIME + 4))
