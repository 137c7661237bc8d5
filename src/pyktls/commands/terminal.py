"""Text for people: 80 columns, and colours where somebody looks at a terminal."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO

__all__ = ["WIDTH", "Paint", "complain", "fold"]

WIDTH = 80


class Paint:
    """Colours for ``out``, if it is a terminal that has them and nobody has said NO_COLOR.

    (no-color.org: the variable counts if it is not empty.)
    """

    def __init__(self, out: TextIO | None) -> None:
        self.on = (
            out is not None
            and out.isatty()
            and not os.environ.get("NO_COLOR")
            and os.environ.get("TERM", "dumb") != "dumb"
        )

    def _in(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.on and text else text

    def bold(self, text: str) -> str:
        """A heading."""
        return self._in("1", text)

    def good(self, text: str) -> str:
        """In green."""
        return self._in("32", text)

    def middling(self, text: str) -> str:
        """In yellow."""
        return self._in("33", text)

    def bad(self, text: str) -> str:
        """In red."""
        return self._in("31", text)


def fold(text: str, first: str = "", indent: str = "") -> list[str]:
    """Lines of at most 80 columns; what has no blank in it is never broken (a path, a command)."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def complain(command: str, error: Exception, status: int, *, as_json: bool) -> int:
    """Say on standard error why the command cannot do it, and return ``status``.

    With ``as_json`` also as an object on standard output, which nobody has to guess then.
    """
    print("\n".join(fold(f"pyktls {command}: {error}", indent="  ")), file=sys.stderr)
    if as_json:
        print(json.dumps({"error": str(error)}))
    return status
