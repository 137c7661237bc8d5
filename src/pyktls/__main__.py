"""The command: ``pyktls`` and ``python -m pyktls``.

Each subcommand lives in a module of its own, which says what it needs (``add_arguments``) and does
it (``run``, which returns the exit status).
"""

from __future__ import annotations

import argparse
import sys

from . import __version__, demo, serve

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run the command with ``argv`` (default: the process's own) and return its exit status."""
    parser = argparse.ArgumentParser(prog="pyktls", description="Kernel TLS for Python.")
    parser.add_argument("--version", action="version", version=f"pyktls {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module in (("demo", demo), ("serve", serve)):
        command = commands.add_parser(
            name, help=module.SUMMARY, description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    options = parser.parse_args(argv)
    status: int = options.run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
