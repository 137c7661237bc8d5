"""The subcommands of ``pyktls``: which there are, and the parser of all or some of them.

Each lives in a module of its own, which is imported only when it is wanted.  It says what it takes
(``add_arguments``), does it (``run``, which returns the exit status) and tells what that status
means (``EXIT_STATUS``).  ``manual`` makes the man page of all of them.
"""

from __future__ import annotations

import argparse
import importlib
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyktls import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["COMMANDS", "DESCRIPTION", "EXIT_STATUS", "Command", "build_parser"]


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand: the module that does it, and what it is good for in a few words."""

    module: str
    summary: str

    def load(self) -> Any:
        """The module."""
        return importlib.import_module(self.module)


#: By name, in the order of the help.
COMMANDS = {
    "doctor": Command("pyktls.doctor", "what this machine can do, and what would help"),
    "demo": Command(
        "pyktls.demo", "send a file through kernel TLS to unmodified peers, and prove it"
    ),
    "serve": Command("pyktls.serve", "serve the files of a directory over HTTPS"),
    "sockets": Command("pyktls.commands.sockets", "list the connections that have kernel TLS"),
    "stat": Command("pyktls.commands.stat", "show the kernel's TLS counters"),
}

DESCRIPTION = "Kernel TLS for Python: look at it, try it, use it."

#: Of every command, besides its own.
EXIT_STATUS: Mapping[int, str] = {
    74: "the output cannot be written: the disk is full, say",
    130: "interrupted (SIGINT); `pyktls serve`, which is ended so, has its own status for it",
    141: "nobody reads the output any more (SIGPIPE)",
}

_WIDTH = 78


def build_parser(names: Iterable[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """The parser of the whole command, with the arguments of the subcommands ``names``.

    The others are in it by name and summary, so that the help lists them.
    """
    wanted = set(names)
    parser = argparse.ArgumentParser(
        prog="pyktls",
        description=DESCRIPTION,
        epilog="`pyktls COMMAND --help` has the options of each, and its exit status.",
    )
    parser.add_argument("--version", action="version", version=f"pyktls {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(
            name, help=command.summary, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name in wanted:
            module = command.load()
            module.add_arguments(subparser)
            parts = (subparser.epilog, _status_text(module.EXIT_STATUS))
            subparser.epilog = "\n".join(part for part in parts if part)
            subparser.set_defaults(run=module.run)
    return parser


def _status_text(statuses: Mapping[int, str]) -> str:
    lines = ["exit status:"]
    for number, meaning in statuses.items():
        lines += textwrap.wrap(
            meaning, _WIDTH, initial_indent=f"  {number}  ", subsequent_indent=" " * 5
        )
    return "\n".join(lines) + "\n"
