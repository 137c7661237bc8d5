"""From a request to its response: what there is below a directory, by the rules of HTTP.

Files are looked up here, and nothing is sent.  The order of the questions is that of RFC 9110: is
the method known and allowed, is there such a file, do the conditions hold, and which range of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .conditions import precondition, range_condition, validators
from .dates import http_date
from .files import Directory, File, Root, status_of
from .listing import listing
from .media_types import media_type
from .paths import BadTarget, Path, parse_target
from .ranges import Unsatisfiable, select
from .responses import Response, message

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

__all__ = ["Site"]

INDEX = b"index.html"
ALLOW = (b"Allow", b"GET, HEAD")
# Those of RFC 9110 section 9 and RFC 5789: known, and not allowed.
OTHER_METHODS = frozenset({
    b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH",
})  # fmt: skip


class Site:
    """The files below ``directory``; with ``index`` also lists of directories without a page."""

    def __init__(self, directory: str | os.PathLike[str], *, index: bool = False) -> None:
        self._root = Root(directory)
        self._index = index

    def close(self) -> None:
        """Close the directory."""
        self._root.close()

    def respond(
        self, method: bytes, target: bytes, fields: Mapping[bytes, bytes], now: float
    ) -> Response:
        """The response to a request; ``fields`` has lower-case names, ``now`` is since 1970."""
        if method not in {b"GET", b"HEAD"}:
            return message(405, ALLOW) if method in OTHER_METHODS else message(501)
        try:
            path = parse_target(target)
        except BadTarget:
            return message(400)
        if path is None:
            return message(404)
        try:
            return self._look_up(path, method, fields, now)
        except OSError as e:
            return message(status_of(e))

    def _look_up(
        self, path: Path, method: bytes, fields: Mapping[bytes, bytes], now: float
    ) -> Response:
        if not path.directory and path.names:
            found = self._root.open(path.names)
            if isinstance(found, Directory):
                return message(301, (b"Location", path.as_directory()))
            return self._file(found, path.names[-1], method, fields, now)
        found = self._root.open_directory(path.names, INDEX, listed=self._index)
        if isinstance(found, File):
            return self._file(found, INDEX, method, fields, now)
        if found.fd is None:
            return message(404)
        try:
            return listing(found.fd, path.names)
        finally:
            found.close()

    @staticmethod
    def _file(
        file: File, name: bytes, method: bytes, fields: Mapping[bytes, bytes], now: float
    ) -> Response:
        size = file.stat.st_size
        current = validators(file.stat, now)
        described = [
            (b"ETag", current.etag),
            (b"Last-Modified", http_date(current.modified)),
        ]
        status = precondition(fields, current, now)
        if status != 200:
            file.close()
            return Response(304, described) if status == 304 else message(status)
        described += [(b"Accept-Ranges", b"bytes"), (b"Content-Type", media_type(name))]
        # Defined for GET alone: "A server MUST ignore a Range header field received with a request
        # method [...] for which range handling is not defined."
        value = fields.get(b"range") if method == b"GET" else None
        chosen = None
        if value is not None and range_condition(fields, current, now):
            try:
                chosen = select(value, size)
            except Unsatisfiable:
                file.close()
                return message(416, (b"Content-Range", b"bytes */%d" % size))
        offset, count = chosen or (0, size)
        if chosen is not None:
            last = offset + count - 1
            described.append((b"Content-Range", b"bytes %d-%d/%d" % (offset, last, size)))
        described.append((b"Content-Length", b"%d" % count))
        return Response(206 if chosen else 200, described, b"", file, offset, count)
