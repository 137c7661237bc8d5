"""What a response is before it is sent, and those that are short texts."""

from __future__ import annotations

import functools
import http
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .files import File

__all__ = ["Response", "message", "reason_of"]

TEXT = b"text/plain; charset=utf-8"


@dataclass(slots=True)
class Response:
    """Status, fields, and ``count`` bytes: either ``body``, or those of ``file`` from ``offset``.

    Whoever sends it adds Date and Connection, and closes it.
    """

    status: int
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    file: File | None = None
    offset: int = 0
    count: int = 0

    def leave_out_content(self) -> None:
        """For HEAD: the fields say what there would be."""
        self.close()
        self.body, self.count = b"", 0

    def close(self) -> None:
        """Close the file."""
        file, self.file = self.file, None
        if file is not None:
            file.close()


@functools.lru_cache(maxsize=64)
def reason_of(status: int) -> bytes:
    """The reason phrase."""
    return http.HTTPStatus(status).phrase.encode("ascii")


def message(status: int, *fields: tuple[bytes, bytes]) -> Response:
    """A response whose content is the status in words."""
    body = b"%d %s\n" % (status, reason_of(status))
    content = [(b"Content-Type", TEXT), (b"Content-Length", b"%d" % len(body))]
    return Response(status, [*fields, *content], body, count=len(body))
