"""One line for each response, in the Common Log Format or as a JSON object.

The number of bytes is that of the content; ``-``, or null, where the response was not sent whole.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import time
from typing import TextIO

__all__ = ["AccessLog", "JSONLog"]

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
        self._put(f'{peer} - - [{self._stamp}] "{line}" {status} {size}')

    def _put(self, line: str) -> None:
        if self._out is None:
            return
        try:
            self._out.write(f"{line}\n")
            self._out.flush()
        except (OSError, ValueError):
            # Nobody reads it any more, or it is closed: no reason to stop serving.
            self._out = None


class JSONLog(AccessLog):
    """The same with an object in each line.

    Its keys: ``event`` ("response"), ``time`` (RFC 3339, UTC), ``peer``, ``request`` (the request
    line, bytes beyond ASCII as the characters of Latin-1; null if there was none to read),
    ``status``, ``bytes``.
    """

    def write(self, peer: str, request: bytes, status: int, sent: int | None, now: float) -> None:
        """Log one response."""
        time_of = dt.datetime.fromtimestamp(now, dt.UTC).isoformat(timespec="milliseconds")
        response = {
            "event": "response",
            "time": time_of.replace("+00:00", "Z"),
            "peer": peer,
            "request": request.decode("latin-1") or None,
            "status": status,
            "bytes": sent,
        }
        self._put(json.dumps(response))
