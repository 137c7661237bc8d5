"""Which bytes of a file a Range field asks for (RFC 9110 section 14).

One range is served.  Several are not: the field is ignored then, and the whole file sent, which
RFC 9110 section 14.2 leaves to the server ("A server MAY ignore the Range header field").
``multipart/byteranges`` could not go out in one sendfile(2), is asked for by next to nobody, and
many small or overlapping ranges are a known way to make a server work.

"A server that supports range requests MAY ignore or reject a Range header field that contains an
invalid ranges-specifier": it is ignored.  So is any unit but bytes, as it must be.
"""

from __future__ import annotations

import re

__all__ = ["Unsatisfiable", "select"]

SPECIFIER = re.compile(rb"bytes=[ \t]*([0-9]*)-([0-9]*)[ \t]*", re.IGNORECASE)
# No file is longer than 2**63 - 1 bytes, which has 19 digits; more would only cost time to read.
DIGITS = 19


class Unsatisfiable(ValueError):
    """The range begins behind the end of the file, or is its last 0 bytes."""


def select(value: bytes, size: int) -> tuple[int, int] | None:
    """Offset and count of what is asked for of ``size`` bytes; None if all of them are to be sent.

    Raises Unsatisfiable where the answer is 416 (Range Not Satisfiable).
    """
    found = SPECIFIER.fullmatch(value)
    if not found:
        return None
    first, last = (_number(digits) for digits in found.groups())
    if first is None:
        if last is None:
            return None
        if last == 0:
            raise Unsatisfiable
        if size == 0:
            # Satisfiable, and there is no Content-Range that says so.
            return None
        return max(0, size - last), min(last, size)
    if last is not None and last < first:
        return None
    if first >= size:
        raise Unsatisfiable
    end = size if last is None else min(last + 1, size)
    return first, end - first


def _number(digits: bytes) -> int | None:
    if not digits:
        return None
    digits = digits.lstrip(b"0") or b"0"
    return int(digits) if len(digits) <= DIGITS else int(10**DIGITS)
