"""Validators of a file, and the conditions that a request puts on them (RFC 9110 sections 8.8, 13).

The ETag is made of what the file system changes whenever the content does: inode, size, and the
time of the last status change, which unlike the time of modification nobody can set back.

That time is coarse: two changes within one tick of it look like one.  So until a file has been left
alone for SETTLED seconds its ETag is a weak one, and another than it will have afterwards.  What a
client has got in the meantime is not taken for the same content later on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .dates import parse_date

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

__all__ = ["Validators", "precondition", "range_condition", "validators"]

#: Some file systems count in steps of two seconds.
SETTLED = 2.0

# entity-tag = [ "W/" ] DQUOTE *etagc DQUOTE
TAG = rb'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
ANY_TAG = re.compile(TAG)
TAGS = re.compile(rb"[ \t,]*%s(?:[ \t]*,[ \t,]*%s)*[ \t,]*" % (TAG, TAG))


@dataclass(frozen=True, slots=True)
class Validators:
    """What tells one version of a file from another: an ETag, and seconds since 1970."""

    etag: bytes
    modified: int
    #: Nothing can have changed since without the validators telling.
    settled: bool


def validators(stat: os.stat_result, now: float) -> Validators:
    """Those of a file at the time ``now``.

    "An origin server with a clock MUST NOT generate a Last-Modified date that is later than the
    server's time of message origination (Date)."
    """
    settled = max(stat.st_mtime, stat.st_ctime) + SETTLED < now
    form = b'"%x-%x-%x"' if settled else b'W/"%x-%x-%x-new"'
    etag = form % (stat.st_ino, stat.st_size, stat.st_ctime_ns)
    return Validators(etag, min(int(stat.st_mtime), int(now)), settled)


def precondition(fields: Mapping[bytes, bytes], current: Validators, now: float) -> int:
    """200 if the request is to be carried out, or 304 or 412: the order of section 13.2.2.

    ``fields`` has lower-case names.  Only for GET and HEAD, and for what would be answered with
    200 otherwise.  A condition that is no valid one is: for If-Match not met, for If-None-Match
    met, and for the dates passed over.
    """
    if (tags := fields.get(b"if-match")) is not None:
        if not _strongly_in(tags, current.etag):
            return 412
    elif (value := fields.get(b"if-unmodified-since")) is not None:
        date = parse_date(value, now)
        if date is not None and current.modified > date:
            return 412
    if (tags := fields.get(b"if-none-match")) is not None:
        if _weakly_in(tags, current.etag):
            return 304
    elif (value := fields.get(b"if-modified-since")) is not None:
        date = parse_date(value, now)
        if date is not None and current.modified <= date:
            return 304
    return 200


def range_condition(fields: Mapping[bytes, bytes], current: Validators, now: float) -> bool:
    """Whether the Range field is to be looked at, for If-Range (section 13.1.5).

    The comparison is a strong one; a date has to be exactly that of Last-Modified, and that is to
    be older than the resolution of such a date.
    """
    value = fields.get(b"if-range")
    if value is None:
        return True
    if value.startswith((b'"', b"W/")):
        return value == current.etag and current.etag.startswith(b'"')
    return current.settled and parse_date(value, now) == current.modified


def _list_of_tags(value: bytes) -> list[bytes]:
    return ANY_TAG.findall(value) if TAGS.fullmatch(value) else []


def _strongly_in(tags: bytes, etag: bytes) -> bool:
    return tags == b"*" or (etag.startswith(b'"') and etag in _list_of_tags(tags))


def _weakly_in(tags: bytes, etag: bytes) -> bool:
    opaque = etag.removeprefix(b"W/")
    return tags == b"*" or any(t.removeprefix(b"W/") == opaque for t in _list_of_tags(tags))
