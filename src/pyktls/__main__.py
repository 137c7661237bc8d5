"""The command: ``pyktls`` and ``python -m pyktls``."""

from __future__ import annotations

import sys

from .commands import build_parser
from .commands.ending import run_to_its_end

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run the command with ``argv`` (default: the process's own) and return its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    # Before the subcommand's name there are only options without a value.
    name = next((word for word in arguments if not word.startswith("-")), "")

    def run() -> int:
        options = build_parser({name}).parse_args(arguments)
        status: int = options.run(options)
        return status

    return run_to_its_end(run)


if __name__ == "__main__":
    sys.exit(main())
