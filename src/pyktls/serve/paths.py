"""From the target of a request to the names of directories and a file.

A name is the bytes between two slashes, decoded once.  What no file can be called is found out
here: nothing that is returned is empty, ``.`` or ``..``, or has a slash or a NUL in it.  A
backslash is an ordinary character.  Nothing is normalised: clients resolve ``..`` before they send
a path (RFC 3986 section 5.2.4), and who does not wants something else than a file.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

__all__ = ["BadTarget", "Path", "parse_target"]

# http://example.org/path: "a server MUST accept the absolute-form" (RFC 9112 section 3.2.2).
ABSOLUTE = re.compile(rb"https?://[^/?#]+", re.IGNORECASE)
NO_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class BadTarget(ValueError):
    """The target is not that of a GET request at all."""


class Path(NamedTuple):
    """Names below the root; ``directory`` if the path ended in a slash."""

    names: tuple[bytes, ...]
    directory: bool
    query: bytes

    def as_directory(self) -> bytes:
        """The target that says it is a directory: for a redirection."""
        path = "".join(f"/{quote_from_bytes(name, safe='')}" for name in self.names)
        return path.encode("ascii") + b"/" + (b"?" + self.query if self.query else b"")


def parse_target(target: bytes) -> Path | None:
    """The names in ``target``, or None if no file can have them; raises BadTarget."""
    path, _, query = _origin_form(target).partition(b"?")
    names = path[1:].split(b"/")
    if b"%" in path:
        if NO_ESCAPE.search(path):
            raise BadTarget("a percent sign without two hexadecimal digits")
        names = [unquote_to_bytes(name) for name in names]
    directory = names[-1] == b""
    if directory:
        names.pop()
    for name in names:
        if b"\0" in name:
            raise BadTarget("a NUL in a name")
        if name in {b"", b".", b".."} or b"/" in name:
            return None
    return Path(tuple(names), directory, query)


def _origin_form(target: bytes) -> bytes:
    """``target`` without a scheme and a host before its path."""
    if b"#" in target:
        raise BadTarget("a fragment is not for servers")
    if target.startswith(b"/"):
        return target
    authority = ABSOLUTE.match(target)
    if not authority:
        raise BadTarget("neither a path nor an http URL")
    path = target[authority.end() :]
    return path if path.startswith(b"/") else b"/" + path
