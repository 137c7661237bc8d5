"""The Content-Type of a file, by its name."""

from __future__ import annotations

import functools
import mimetypes
import os

__all__ = ["media_type"]

UNKNOWN = b"application/octet-stream"
# A file that is compressed is sent as such.  To send a .tar.gz as a tar with a Content-Encoding
# would make clients unpack what people want to keep packed.
COMPRESSED = {
    "gzip": b"application/gzip",
    "bzip2": b"application/x-bzip2",
    "xz": b"application/x-xz",
    "compress": b"application/x-compress",
}


def media_type(name: bytes) -> bytes:
    """What ``mimetypes`` says of the last two suffixes of ``name``."""
    return _of_suffix(b".".join(name.rsplit(b".", 2)[1:]))


@functools.lru_cache(maxsize=1024)
def _of_suffix(suffix: bytes) -> bytes:
    if not suffix:
        return UNKNOWN
    # With a name before it, since "data:" and the like mean something to guess_type.
    found, encoding = mimetypes.guess_type(f"name.{os.fsdecode(suffix)}", strict=False)
    if encoding is not None:
        return COMPRESSED.get(encoding, UNKNOWN)
    return found.encode("ascii") if found is not None else UNKNOWN
