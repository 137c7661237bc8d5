"""The page that lists a directory."""

from __future__ import annotations

import html
import itertools
import os
from urllib.parse import quote_from_bytes

from .responses import Response

__all__ = ["MOST", "listing"]

#: More names than these are not shown: the page is made at one go, while everybody waits.
MOST = 10_000

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title></head>
<body>
<h1>{title}</h1>
<ul>
{items}
</ul>
{more}</body>
</html>
"""


def listing(fd: int, names: tuple[bytes, ...]) -> Response:
    """What is in the open directory ``fd`` and would be served, as a page; raises OSError."""
    with os.scandir(fd) as entries:
        served = (
            os.fsencode(entry.name) + (b"/" if entry.is_dir(follow_symlinks=False) else b"")
            for entry in entries
            if entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False)
        )
        found = list(itertools.islice(served, MOST + 1))
    more = f"<p>Only {MOST} names are shown.</p>\n" if len(found) > MOST else ""
    lines = [_item(name) for name in sorted(found[:MOST])]
    if names:
        lines.insert(0, _item(b"../"))
    title = html.escape(_shown(b"/" + b"".join(name + b"/" for name in names)))
    page = PAGE.format(title=title, items="\n".join(lines), more=more).encode()
    fields = [
        (b"Content-Type", b"text/html; charset=utf-8"),
        (b"Content-Length", b"%d" % len(page)),
        (b"Content-Security-Policy", b"default-src 'none'"),
    ]
    return Response(200, fields, page, count=len(page))


def _item(name: bytes) -> str:
    # With ./ before it, since "a:b" would be a URL with the scheme "a".
    link = quote_from_bytes(name) if name == b"../" else "./" + quote_from_bytes(name)
    return f'<li><a href="{link}">{html.escape(_shown(name))}</a></li>'


def _shown(name: bytes) -> str:
    """A name for people: what is no UTF-8 in it is replaced."""
    return name.decode("utf-8", "replace")
