"""The man page, made from the parsers: ``python -m pyktls.commands.manual >pyktls.1``.

argparse-manpage does that for any program, and leaves out what stands below a subcommand's options,
which here is the exit status; nor does it know paragraphs and lists in a description.
"""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING

from pyktls import __version__

from . import COMMANDS, DESCRIPTION, EXIT_STATUS, build_parser

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["manual"]

_ENVIRONMENT = {
    "NO_COLOR": "if it is not empty, no colours, on a terminal either",
    "PYKTLS_ENGINE": "the engine that takes keys out of OpenSSL: native or portable",
    "TMPDIR": "where the demo keeps its files",
}
_FILES = {
    "/proc/net/tls_stat": "the counters that stat shows (Linux)",
    "/etc/modules-load.d/tls.conf": "a line `tls` in it has the module loaded at boot",
}


def manual() -> str:
    """The page in the language of man(7)."""
    return "\n".join(_page()) + "\n"


def _page() -> Iterator[str]:
    yield f'.TH PYKTLS 1 "" "pyktls {__version__}" "User Commands"'
    yield ".SH NAME"
    yield _text(f"pyktls - {DESCRIPTION[0].lower()}{DESCRIPTION[1:].rstrip('.')}")
    yield ".SH SYNOPSIS"
    for name in COMMANDS:
        yield from (".PP", *_usage(_parser_of(name)))
    yield from (".PP", ".B pyktls", _text("--help | --version"))
    yield ".SH DESCRIPTION"
    yield _text(
        "pyktls switches TCP sockets to kernel TLS from Python.  Its command has these parts:"
    )
    yield from _list({f"pyktls {name}": command.summary for name, command in COMMANDS.items()})
    yield ".SH OPTIONS"
    yield from _options(build_parser(()))
    for name, command in COMMANDS.items():
        parser = _parser_of(name)
        yield f".SH PYKTLS {name.upper()}"
        yield from _paragraphs(parser.description or "")
        yield from (".SS Options", *_options(parser))
        if parser.epilog:
            yield from (".SS Notes", *_paragraphs(parser.epilog))
        yield from (".SS Exit status", *_statuses(command.load().EXIT_STATUS))
    yield ".SH EXIT STATUS"
    yield _text("Each command has its own, above.  Of all of them:")
    yield from _statuses(EXIT_STATUS)
    yield from (".SH ENVIRONMENT", *_list(_ENVIRONMENT))
    yield from (".SH FILES", *_list(_FILES))
    yield from (".SH SEE ALSO", ".BR tcp (7),", ".BR sendfile (2),", ".BR ss (8)")


def _parser_of(name: str) -> argparse.ArgumentParser:
    """A subcommand's own, without what ``build_parser`` puts below it."""
    parser = argparse.ArgumentParser(prog=f"pyktls {name}")
    COMMANDS[name].load().add_arguments(parser)
    return parser


def _usage(parser: argparse.ArgumentParser) -> Iterator[str]:
    # In one line, however wide this terminal is.  With Python 3.14 it may be coloured.
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=10_000)
    usage = re.sub(r"\x1b\[[\d;]*m", "", parser.format_usage())
    rest = usage.removeprefix("usage:").strip().removeprefix(parser.prog).strip()
    yield f".B {parser.prog}"
    yield _text(rest)


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:  # noqa: SLF001  (argparse has no other list of them)
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            continue
        values = {
            key: value for key, value in vars(action).items() if value is not argparse.SUPPRESS
        }
        yield from _item(_invocation(action), (action.help or "") % {"prog": parser.prog, **values})


def _invocation(action: argparse.Action) -> str:
    if not action.option_strings:
        return str(action.metavar or action.dest)
    argument = ""
    if action.nargs != 0:
        argument = str(action.metavar or action.dest.upper())
        argument = f" [{argument}]" if action.nargs == argparse.OPTIONAL else f" {argument}"
    return ", ".join(f"{option}{argument}" for option in action.option_strings)


def _statuses(statuses: Mapping[int, str]) -> Iterator[str]:
    return _list({str(number): meaning for number, meaning in statuses.items()})


def _list(items: Mapping[str, str]) -> Iterator[str]:
    for tag, text in items.items():
        yield from _item(tag, text)


def _item(tag: str, text: str) -> Iterator[str]:
    yield from (".TP", f".B {_text(tag)}", _text(text))


def _paragraphs(text: str) -> Iterator[str]:
    """Paragraphs, and lists of what begins with a star."""
    for part in re.split(r"\n\s*\n|\n(?=\s*\* )", text.strip("\n")):
        words = " ".join(part.split())
        if words.startswith("* "):
            yield r".IP \(bu 2"
            yield _text(words[2:])
        else:
            yield from (".PP", _text(words))


def _text(text: str) -> str:
    """Escaped: nothing in it is a command of roff's, and a hyphen stays one that can be copied."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped


if __name__ == "__main__":
    sys.stdout.write(manual())
