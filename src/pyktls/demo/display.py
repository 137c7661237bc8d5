"""Where the demo writes: lines, and on a terminal one more that changes.

The changing line is for progress; it is wiped before anything is said for good, and elsewhere than
on a terminal it is never written.
"""

from __future__ import annotations

import textwrap
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

    # Bytes so far, and of how many.
    Progress = Callable[[int, int], None]

__all__ = ["Display"]


class Display:
    """Lines of text; on a terminal also one line that changes while something is going on."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._live = out.isatty()
        self._shown = 0
        self._next = 0.0

    def line(self, text: str = "") -> None:
        """One line, for good."""
        self._erase()
        print(text, file=self._out, flush=True)

    def paragraph(self, text: str, first: str = "", indent: str = "") -> None:
        """Text broken into lines of less than 80 columns."""
        lines = textwrap.wrap(
            text, 79, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False
        )
        for line in lines:
            self.line(line)

    def progress(self, title: str) -> Progress:
        """What is to be called with the bytes so far: shows them and the speed, if anywhere."""
        begun: tuple[float, int] | None = None

        def show(done: int, size: int) -> None:
            nonlocal begun
            now = time.monotonic()
            if begun is None:
                begun = now, done
            if now >= self._next:
                speed = (done - begun[1]) / 1e6 / max(now - begun[0], 1e-3)
                self._passing(f"{title}: {done / 1e6:.0f} of {size / 1e6:.0f} MB, {speed:.0f} MB/s")
                self._next = now + 0.1

        self._next = 0.0
        self._passing(f"{title} ...")
        return show

    def _passing(self, text: str) -> None:
        if self._live:
            self._erase()
            text = text[:79]
            self._shown = len(text)
            print(text, end="", file=self._out, flush=True)

    def _erase(self) -> None:
        if self._shown:
            print("\r" + " " * self._shown + "\r", end="", file=self._out)
            self._shown = 0
