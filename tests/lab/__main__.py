"""The lab's command line: run, fetch, headers, programs, list, doctor.

See `python -m tests.lab --help`.

The command's own stdout and stderr pass through; what the lab says goes to stderr and begins with
"lab:". Exit status: the command's; 125 if the lab itself failed (nothing fetched, no boot, guest
died, time ran out). With several kernels, that of the first that failed.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from . import programs
from .boot import DEFAULT_CPUS, DEFAULT_MEMORY, boot
from .errors import LabError
from .kernels import NAMES, STOCK, SUITES, cache_root, cached, headers, obtain, say, suite_of
from .sources import find_mirrors
from .tools import FETCH_TOOLS, find, how_to_get, missing_tools, require_all

LAB_FAILED = 125


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m tests.lab",
        description="Run a command on Debian's stock kernels, in QEMU, with this machine's files.",
        epilog=f"Kernels: {', '.join(NAMES)} (-notls: without the tls module), or the path of a "
        "bzImage. Environment: PYKTLS_LAB_CACHE, PYKTLS_LAB_MIRROR, PYKTLS_LAB_SECURITY_MIRROR.",
    )
    commands = top.add_subparsers(dest="action", required=True)

    run = commands.add_parser("run", help="boot kernels one after the other, run a command in each")
    run.add_argument(
        "--kernel", action="append", metavar="NAME|PATH",
        help=f"may be given several times (default: {', '.join(STOCK)})",
    )  # fmt: skip
    run.add_argument("--memory", default=DEFAULT_MEMORY, help="of the guest (default: %(default)s)")
    run.add_argument("--cpus", type=int, default=DEFAULT_CPUS, help="(default: %(default)s)")
    run.add_argument(
        "--icount", action="store_true",
        help="guest time counts instructions, on one CPU: for benchmarks that repeat",
    )  # fmt: skip
    run.add_argument("--timeout", type=float, metavar="S", help="seconds for the command")
    run.add_argument(
        "--env", action="append", default=[], metavar="NAME[=VALUE]",
        help="pass on a variable, or set it (PATH, HOME, CI, PYTHON*, PYKTLS_* always are)",
    )  # fmt: skip
    run.add_argument(
        "--write", action="append", default=[], type=Path, metavar="DIR",
        help="a directory the guest may write to, besides the current one",
    )  # fmt: skip
    run.add_argument(
        "--programs", action="store_true",
        help="with Debian's programs for NFS, in the directory PYKTLS_LAB_PROGRAMS",
    )  # fmt: skip
    run.add_argument("--console", type=Path, metavar="FILE", help="keep the guest's console")
    run.add_argument("command", nargs="+", metavar="COMMAND", help="after --, with its arguments")

    fetch = commands.add_parser("fetch", help="get kernels into the cache")
    fetch.add_argument("names", nargs="*", default=list(STOCK), metavar="NAME")
    fetch.add_argument("--refresh", action="store_true", help="look for newer ones")

    include = commands.add_parser("headers", help="get a kernel's user-space headers; print where")
    include.add_argument("name", choices=sorted(SUITES))

    commands.add_parser("programs", help="get Debian's programs for NFS; print where")

    commands.add_parser("list", help="the kernels, and which of them are in the cache")
    doctor = commands.add_parser("doctor", help="say what is missing on this machine")
    for command in (run, fetch, doctor):
        command.add_argument(
            "--install", action="store_true", help="install what is missing with apt-get, as root"
        )
    return top


def run_all(options: argparse.Namespace) -> int:
    require_all(options.install)
    env = chosen_environment(options.env)
    if options.programs:
        env[programs.VARIABLE] = str(programs.obtain().root)
    summary: list[str] = []
    overall = 0
    for wanted in options.kernel or STOCK:
        started = time.monotonic()
        name, release = wanted, "-"
        try:
            with obtain(wanted) as kernel:
                name, release = kernel.name, kernel.release
                result = boot(
                    kernel, options.command, memory=options.memory, cpus=options.cpus,
                    icount=options.icount, timeout=options.timeout, env=env,
                    writable=options.write, console_log=options.console,
                )  # fmt: skip
            status, outcome = result.status, f"exit {result.status}"
        except LabError as error:
            say(f"{name}: {error}")
            status, outcome = LAB_FAILED, "LAB FAILED"
        overall = overall or status
        seconds = time.monotonic() - started
        summary.append(f"{name:10}  {release:24}  {outcome}  {seconds:.0f} s")
    for line in summary:
        say(line)
    return overall


def chosen_environment(items: list[str]) -> dict[str, str]:
    """What --env says: NAME=VALUE sets, NAME passes the host's on, if it has it."""
    chosen = {}
    for item in items:
        name, equals, value = item.partition("=")
        if equals:
            chosen[name] = value
        elif name in os.environ:
            chosen[name] = os.environ[name]
    return chosen


def fetch_all(options: argparse.Namespace) -> int:
    if unknown := [name for name in options.names if name not in NAMES]:
        raise LabError(f"unknown: {', '.join(unknown)}; known: {', '.join(NAMES)}")
    if options.install:
        require_all(install=True)
    for name in options.names:
        with obtain(name, options.refresh) as kernel:
            say(f"{name:10}  {kernel.release:24}  {kernel.package_version}")
    return 0


def list_all() -> int:
    print(f"cache: {cache_root()}")
    for name in NAMES:
        kernel = cached(name)
        print(f"{name:10}  {suite_of(name):16}  {kernel.release if kernel else 'not in the cache'}")
    return 0


def doctor(options: argparse.Namespace) -> int:
    if options.install:
        require_all(install=True)
    missing = missing_tools()
    print(how_to_get(missing) if missing else "booting: everything is there")
    no_fetch = [program for program in FETCH_TOOLS if find(program) is None]
    try:
        find_mirrors()
        print(how_to_get(no_fetch) if no_fetch else "fetching kernels: everything is there")
    except LabError as error:
        print(f"fetching kernels: {error}")
    list_all()
    return 1 if missing else 0


def main() -> int:
    options = parser().parse_args()
    # Turn the end of this process into an exception, so that the guest is ended in good order.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    try:
        match options.action:
            case "run":
                return run_all(options)
            case "fetch":
                return fetch_all(options)
            case "list":
                return list_all()
            case "headers":
                print(headers(options.name))
                return 0
            case "programs":
                print(programs.obtain().root)
                return 0
            case _:
                return doctor(options)
    except LabError as error:
        say(str(error))
        return LAB_FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # our reader has gone, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


if __name__ == "__main__":
    sys.exit(main())
