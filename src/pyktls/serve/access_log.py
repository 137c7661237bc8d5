"""One line for each response, in the Common Log Format.

The number of bytes is that of the content; ``-`` where the response was not sent whole.
"""

from __future__ import annotations

import re
import time
from typing import TextIO

__all__ = ["AccessLog"]

# Quotes, backslashes and what is not printable: a line stays one line, and a field one field.
TO_ESCAPE = re.compile(rb"[^\x20\x21\x23-\x5b\x5d-\x7e]")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class AccessLog:
    """Writes to ``out``, until that cannot be written to any more."""

    def __init__(self, out: TextIO) -> None:
        self._out: TextIO | None = out
        self._second = -1
        self._stamp = ""

    def write(self, peer: str, request: bytes, status: int, sent: int | None, now: float) -> None:
        """Log one response; ``request`` is the request line, empty if there was none to read."""
        if self._out is None:
            return
        if int(now) != self._second:
            self._second = int(now)
            t = time.gmtime(now)
            self._stamp = (
                f"{t.tm_mday:02}/{MONTHS[t.tm_mon - 1]}/{t.tm_year:04}"
                f":{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02} +0000"
            )
        line = TO_ESCAPE.sub(lambda c: b"\\x%02x" % c[0][0], request).decode("ascii") or "-"
        size = "-" if sent is None else sent
        try:
            self._out.write(f'{peer} - - [{self._stamp}] "{line}" {status} {size}\n')
            self._out.flush()
        except (OSError, ValueError):
            # Nobody reads it any more, or it is closed: no reason to stop serving.
            self._out = None
