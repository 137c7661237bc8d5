"""The dates of HTTP (RFC 9110 section 5.6.7): written in one form, read in three.

They are in English whatever the locale, so neither ``strftime`` nor ``strptime`` will do, and
``email.utils`` reads much that is no date of HTTP.
"""

from __future__ import annotations

import calendar
import re
import time

__all__ = ["http_date", "parse_date"]

DAYS = (b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun")
MONTHS = (
    b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun",
    b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec",
)  # fmt: skip
MONTH = rb"(?P<month>%s)" % b"|".join(MONTHS)
TIME = rb"(?P<hour>[01][0-9]|2[0-3]):(?P<minute>[0-5][0-9]):(?P<second>[0-5][0-9]|60)"
FORMS = (
    # Sun, 06 Nov 1994 08:49:37 GMT
    re.compile(
        rb"(?:%s), (?P<day>[0-9]{2}) %s (?P<year>[0-9]{4}) %s GMT" % (b"|".join(DAYS), MONTH, TIME)
    ),
    # Sunday, 06-Nov-94 08:49:37 GMT
    re.compile(
        rb"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day, "
        rb"(?P<day>[0-9]{2})-%s-(?P<year>[0-9]{2}) %s GMT" % (MONTH, TIME)
    ),
    # Sun Nov  6 08:49:37 1994
    re.compile(
        rb"(?:%s) %s (?P<day>[ 0-9][0-9]) %s (?P<year>[0-9]{4})" % (b"|".join(DAYS), MONTH, TIME)
    ),
)


def http_date(seconds: int) -> bytes:
    """``seconds`` since 1970 as ``Sun, 06 Nov 1994 08:49:37 GMT``."""
    year, month, day, hour, minute, second, weekday, _, _ = time.gmtime(seconds)
    return b"%s, %02d %s %04d %02d:%02d:%02d GMT" % (
        DAYS[weekday], day, MONTHS[month - 1], year, hour, minute, second,
    )  # fmt: skip


def parse_date(value: bytes, now: float) -> int | None:
    """Seconds since 1970, or None for what is no date of HTTP.  Names of days are not checked.

    "Recipients of a timestamp value in rfc850-date format, which uses a two-digit year, MUST
    interpret a timestamp that appears to be more than 50 years in the future as representing the
    most recent year in the past that had the same last two digits."
    """
    for form in FORMS:
        if found := form.fullmatch(value):
            break
    else:
        return None
    year, day = int(found["year"]), int(found["day"])
    month = MONTHS.index(found["month"]) + 1
    if len(found["year"]) == 2:
        this_year = time.gmtime(now).tm_year
        year += this_year - this_year % 100
        if year > this_year + 50:
            year -= 100
    if not (year and 1 <= day <= calendar.monthrange(year, month)[1]):
        return None
    clock = (int(found["hour"]), int(found["minute"]), int(found["second"]))
    return calendar.timegm((year, month, day, *clock))
