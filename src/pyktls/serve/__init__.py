"""A static HTTPS file server, whose files go from the page cache to the client through kernel TLS.

Where things are.  ``command`` is the command, ``server`` what Python code uses.  ``connection`` is
the protocol, with the limits of ``limits``, and has ``deadlines`` and ``sending`` (with
``progress``); what the connections have in common is in ``service``.  ``site`` decides on
responses, from ``requests``, ``paths``, ``files``, ``conditions``, ``ranges``, ``dates``,
``media_types``, ``listing`` and ``responses``, none of which knows of connections.
``certificates`` makes one, ``access_log`` writes lines.

This module imports none of that, so that other commands need neither asyncio nor h11.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from typing import TYPE_CHECKING

from pyktls.commands.terminal import fold
from pyktls.errors import Error, Unavailable

if TYPE_CHECKING:
    from .limits import Limits
    from .server import Server, create_server

__all__ = ["EXIT_STATUS", "Limits", "Server", "add_arguments", "create_server", "run"]

DESCRIPTION = """\
Serve the files below a directory over HTTPS (HTTP/1.1, GET and HEAD).  Where
the kernel has TLS, files go out with sendfile(2) and are encrypted there.
"""
EPILOG = """\
SIGINT and SIGTERM stop it: running responses may end, for --grace seconds; a
second one stops it at once.
"""
CANNOT_RUN = 2
EXIT_STATUS = {
    0: "it was stopped",
    1: "responses were cut off then",
    CANNOT_RUN: "it cannot run, or wrong usage",
}

_HOMES = {"Limits": ".limits", "Server": ".server", "create_server": ".server"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _need_h11()
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def _need_h11() -> None:
    remedy = 'pip install "pyktls[serve]"'
    try:
        h11 = importlib.import_module("h11")
    except ImportError:
        raise Unavailable("pyktls serve needs h11, which is not installed", remedy=remedy) from None
    # Before 0.16 it takes chunks that do not end as they should (CVE-2025-43859).
    if tuple(map(int, h11.__version__.split(".")[:2])) < (0, 16):
        raise Unavailable(
            f"pyktls serve needs h11 0.16 or later, not {h11.__version__}", remedy=remedy
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Tell ``parser`` what the command takes."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("directory", metavar="DIR", help="what is below it can be read by anybody")
    parser.add_argument("--cert", metavar="FILE", help="certificate (PEM), with its chain")
    parser.add_argument("--key", metavar="FILE", help="its key, if it is not in the same file")
    parser.add_argument(
        "--selfsigned", action="store_true", help="make a certificate, for trying it out"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=8443, help="default: %(default)s")
    parser.add_argument("--index", action="store_true", help="list directories")
    parser.add_argument("--quiet", action="store_true", help="no line for each response")
    parser.add_argument(
        "--json", action="store_true", help="the lines on standard output are JSON objects"
    )
    parser.add_argument(
        "--require", action="store_true", help="end connections that the kernel cannot take"
    )
    parser.add_argument(
        "--max-connections", type=_count, default=1000, metavar="N", help="default: %(default)s"
    )
    for name, default, meaning in (
        ("handshake", 10, "for the TLS handshake"),
        ("request", 10, "for a request, from its first byte on"),
        ("idle", 30, "between two requests"),
        ("send", 30, "for a client that does not read"),
    ):
        parser.add_argument(
            f"--{name}-timeout", type=_seconds, default=default, metavar="S",
            help=f"{meaning} (default: %(default)s)",
        )  # fmt: skip
    parser.add_argument(
        "--grace", type=_grace, default=10, metavar="S",
        help="for running responses when it is stopped (default: %(default)s)",
    )  # fmt: skip
    parser.set_defaults(usage_error=parser.error)


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError("must be from 0 to 65535")
    return port


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return count


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError("must be more than 0")
    return seconds


def _grace(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < 1e9:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return seconds


def cannot_run(error: Exception, options: argparse.Namespace) -> int:
    """Say why, and return the exit status."""
    remedy = getattr(error, "remedy", None)
    text = str(error).removesuffix(f"; {remedy}")
    lines = fold(f"pyktls serve: {text}", indent="  ")
    if remedy is not None:  # on a line of its own: it may be a command to be copied
        lines += fold(f"-> {remedy}", "  ", "     ")
    print("\n".join(lines), file=sys.stderr)
    if options.json:
        print(json.dumps({"event": "error", "error": str(error)}))
    return CANNOT_RUN


def run(options: argparse.Namespace) -> int:
    """Run the server until it is stopped, and return its exit status."""
    if options.selfsigned == (options.cert is not None) or (options.selfsigned and options.key):
        options.usage_error("either --cert (and --key), or --selfsigned")
    try:
        _need_h11()
    except Error as e:
        return cannot_run(e, options)
    from .command import serve  # noqa: PLC0415  (see above)

    return serve(options)
