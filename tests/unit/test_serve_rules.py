"""pyktls serve: dates, ranges, conditions, and the response that comes of them."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyktls.serve.conditions import Validators, precondition, range_condition, validators
from pyktls.serve.dates import http_date, parse_date
from pyktls.serve.ranges import Unsatisfiable, select
from pyktls.serve.site import Site

NOW = 1_800_000_000.0
THEN = 784_111_777
DATE = b"Sun, 06 Nov 1994 08:49:37 GMT"


# ---- dates: RFC 9110 section 5.6.7 ---------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [DATE, b"Sunday, 06-Nov-94 08:49:37 GMT", b"Sun Nov  6 08:49:37 1994"]
)
def test_the_three_forms_of_a_date(value):
    assert parse_date(value, NOW) == THEN


def test_dates_are_written_in_one_form():
    assert http_date(THEN) == DATE
    assert http_date(0) == b"Thu, 01 Jan 1970 00:00:00 GMT"


@given(st.integers(0, 253_402_300_799))
def test_a_date_is_read_as_it_was_written(seconds):
    assert parse_date(http_date(seconds), NOW) == seconds


@pytest.mark.parametrize(
    ("year", "expected"),
    [(b"27", 2027), (b"76", 2076), (b"77", 2077), (b"78", 1978), (b"99", 1999)],
)
def test_two_digits_of_a_year_are_at_most_50_years_ahead(year, expected):
    found = parse_date(b"Monday, 01-Jan-%s 00:00:00 GMT" % year, NOW)
    assert found is not None
    assert http_date(found)[12:16] == b"%d" % expected


@pytest.mark.parametrize(
    "value",
    [
        b"", b"0", b"now", DATE + b", " + DATE, b" " + DATE, DATE.replace(b"GMT", b"UTC"),
        DATE.replace(b"GMT", b"+0000"), DATE.replace(b"06", b"00"), DATE.replace(b"06", b"31"),
        DATE.replace(b"08:", b"24:"), DATE.replace(b":49:", b":60:"), DATE.replace(b"Nov", b"nov"),
        DATE.replace(b"1994", b"0000"), DATE.replace(b"1994", b"19940"), DATE + b"\n",
        b"Sun, 29 Feb 2026 00:00:00 GMT", b"Sun Nov 06 08:49 1994",
    ],
)  # fmt: skip
def test_what_is_no_date(value):
    assert parse_date(value, NOW) is None


@given(st.binary(max_size=40))
def test_any_bytes_are_a_date_or_none(value):
    parse_date(value, NOW)


# ---- ranges: RFC 9110 section 14 -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "chosen"),
    [
        (b"bytes=0-0", (0, 1)),
        (b"bytes=0-9", (0, 10)),
        (b"bytes=0-99", (0, 10)),
        (b"bytes=3-", (3, 7)),
        (b"bytes=9-9", (9, 1)),
        (b"bytes=-1", (9, 1)),
        (b"bytes=-10", (0, 10)),
        (b"bytes=-99", (0, 10)),
        (b"Bytes=1-2", (1, 2)),
        (b"bytes= 1-2 ", (1, 2)),
        (b"bytes=000001-0000000000000000000000002", (1, 2)),
        (b"bytes=5-" + b"9" * 5000, (5, 5)),
        (b"bytes=-" + b"9" * 5000, (0, 10)),
    ],
)
def test_one_range(value, chosen):
    assert select(value, 10) == chosen


@pytest.mark.parametrize(
    "value", [b"bytes=10-", b"bytes=10-11", b"bytes=-0", b"bytes=" + b"9" * 5000 + b"-"]
)
def test_no_such_bytes(value):
    with pytest.raises(Unsatisfiable):
        select(value, 10)


@pytest.mark.parametrize(
    "value",
    [
        b"", b"bytes", b"bytes=", b"bytes=-", b"bytes=a-b", b"bytes=1", b"bytes=2-1", b"bytes=1--2",
        b"bytes=0x1-2", b"items=0-1", b"bytes=0-1,2-3", b"bytes=0-1, 2-3", b"bytes 0-1", b"=0-1",
        b"bytes=+1-2", "bytes=\u0661-\u0662".encode(), b"bytes=1-2;", b"bytes=0-,",
    ],
)  # fmt: skip
def test_what_is_ignored_and_the_whole_is_sent(value):
    assert select(value, 10) is None


def test_an_empty_file_has_no_ranges():
    assert select(b"bytes=-5", 0) is None
    for value in (b"bytes=0-", b"bytes=0-0", b"bytes=-0"):
        with pytest.raises(Unsatisfiable):
            select(value, 0)


@given(
    st.binary(max_size=30) | st.from_regex(rb"bytes=[0-9]{0,30}-[0-9]{0,30}", fullmatch=True),
    st.integers(0, 2**63 - 1),
)
@example(b"bytes=-1", 1)
def test_any_range_is_within_the_file(value, size):
    try:
        chosen = select(value, size)
    except Unsatisfiable:
        return
    if chosen is not None:
        offset, count = chosen
        assert 0 <= offset < size
        assert 0 < count <= size - offset


# ---- conditions: RFC 9110 section 13 -------------------------------------------------------------

ETAG = b'"strong"'
STRONG = Validators(ETAG, THEN, settled=True)
WEAK = Validators(b'W/"weak"', THEN, settled=False)
BEFORE, AFTER = http_date(THEN - 1), http_date(THEN + 1)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 200),
        ({"if-match": ETAG}, 200),
        ({"if-match": b"*"}, 200),
        ({"if-match": b'"a", "strong" ,"b"'}, 200),
        ({"if-match": b'"other"'}, 412),
        ({"if-match": b'W/"strong"'}, 412),
        ({"if-match": b"strong"}, 412),
        ({"if-unmodified-since": DATE}, 200),
        ({"if-unmodified-since": AFTER}, 200),
        ({"if-unmodified-since": BEFORE}, 412),
        ({"if-unmodified-since": b"nonsense"}, 200),
        ({"if-none-match": ETAG}, 304),
        ({"if-none-match": b"*"}, 304),
        ({"if-none-match": b'W/"strong"'}, 304),
        ({"if-none-match": b'"other", "strong"'}, 304),
        ({"if-none-match": b'"other"'}, 200),
        ({"if-none-match": b"strong"}, 200),
        ({"if-none-match": b'"strong" "other"'}, 200),
        ({"if-none-match": b'"a,b", ,"strong",'}, 304),
        ({"if-modified-since": DATE}, 304),
        ({"if-modified-since": AFTER}, 304),
        ({"if-modified-since": BEFORE}, 200),
        ({"if-modified-since": b"nonsense"}, 200),
        ({"if-modified-since": DATE + b", " + DATE}, 200),
        # Section 13.2.2: a tag makes the date count no more.
        ({"if-match": ETAG, "if-unmodified-since": BEFORE}, 200),
        ({"if-match": b'"other"', "if-unmodified-since": AFTER}, 412),
        ({"if-none-match": b'"other"', "if-modified-since": AFTER}, 200),
        ({"if-none-match": ETAG, "if-modified-since": BEFORE}, 304),
        # And what fails comes before what need not be sent.
        ({"if-match": b'"other"', "if-none-match": ETAG}, 412),
        ({"if-match": ETAG, "if-none-match": ETAG}, 304),
        ({"if-unmodified-since": BEFORE, "if-modified-since": AFTER}, 412),
    ],
)
def test_conditions_in_their_order(fields, status):
    assert precondition({name.encode(): v for name, v in fields.items()}, STRONG, NOW) == status


def test_a_weak_tag_is_good_for_a_304_and_nothing_else():
    assert precondition({b"if-none-match": b'W/"weak"'}, WEAK, NOW) == 304
    assert precondition({b"if-match": b'W/"weak"'}, WEAK, NOW) == 412
    assert precondition({b"if-match": b"*"}, WEAK, NOW) == 200
    assert not range_condition({b"if-range": b'W/"weak"'}, WEAK, NOW)
    assert not range_condition({b"if-range": DATE}, WEAK, NOW)


@pytest.mark.parametrize(
    ("value", "holds"),
    [
        (ETAG, True), (b'"other"', False), (b'W/"strong"', False), (DATE, True), (BEFORE, False),
        (AFTER, False), (b"nonsense", False), (b"*", False), (b"", False),
    ],
)  # fmt: skip
def test_if_range(value, holds):
    assert range_condition({b"if-range": value}, STRONG, NOW) is holds
    assert range_condition({}, STRONG, NOW)


@given(st.binary(max_size=40), st.sampled_from([b"if-match", b"if-none-match", b"if-range"]))
def test_any_tags_are_no_error(value, name):
    assert precondition({name: value}, STRONG, NOW) in {200, 304, 412}
    range_condition({name: value}, STRONG, NOW)


def test_a_long_list_of_tags_takes_no_long_time():
    value = b", ".join([b'"x"'] * 4000)
    assert precondition({b"if-none-match": value + b"!"}, STRONG, NOW) == 200
    assert precondition({b"if-none-match": b" ," * 8000 + b"!"}, STRONG, NOW) == 200


def stat_of(**changes):
    values = {"st_ino": 1, "st_size": 2, "st_mtime": NOW - 100.5, "st_ctime": NOW - 100}
    values["st_ctime_ns"] = int((NOW - 100) * 1e9)
    return SimpleNamespace(**{**values, **changes})


def test_whatever_changes_with_the_content_is_in_the_etag():
    tags = {
        validators(stat_of(**changes), NOW).etag
        for changes in ({}, {"st_ino": 3}, {"st_size": 3}, {"st_ctime_ns": 3}, {"st_ctime": NOW})
    }
    assert len(tags) == 5


def test_a_fresh_file_has_a_weak_tag_and_another_one_later():
    fresh = validators(stat_of(), NOW - 99)
    later = validators(stat_of(), NOW)
    assert fresh.etag.startswith(b"W/")
    assert not fresh.settled
    assert later.etag.startswith(b'"')
    assert later.settled
    assert precondition({b"if-none-match": fresh.etag}, later, NOW) == 200


def test_a_file_of_the_future_is_of_now():
    assert validators(stat_of(st_mtime=NOW + 1000), NOW).modified == int(NOW)
    assert validators(stat_of(), NOW).modified == int(NOW - 101)


# ---- responses -----------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path):
    (tmp_path / "file.txt").write_bytes(b"0123456789")
    (tmp_path / "empty").touch()
    os.utime(tmp_path / "file.txt", (THEN, THEN))
    site = Site(tmp_path)
    yield site
    site.close()


def ask(site, method=b"GET", target=b"/file.txt", **fields):
    """The response to a request of long after the file was made, and its fields."""
    named = {name.replace("_", "-").encode(): value for name, value in fields.items()}
    response = site.respond(method, target, named, NOW * 2)
    content = response.body
    if response.file is not None:
        content = response.file.read(response.offset, response.count)
        response.close()
    answer = SimpleNamespace(status=response.status, content=content, count=response.count)
    return answer, dict(response.fields)


def test_a_file_and_what_is_said_of_it(site):
    response, fields = ask(site)
    assert (response.status, response.content, response.count) == (200, b"0123456789", 10)
    assert fields[b"Content-Length"] == b"10"
    assert fields[b"Content-Type"] == b"text/plain"
    assert fields[b"Last-Modified"] == DATE
    assert fields[b"Accept-Ranges"] == b"bytes"
    assert fields[b"ETag"].startswith(b'"')


def test_a_part_of_it(site):
    response, fields = ask(site, range=b"bytes=2-4")
    assert (response.status, response.content) == (206, b"234")
    assert fields[b"Content-Range"] == b"bytes 2-4/10"
    assert fields[b"Content-Length"] == b"3"
    assert b"ETag" in fields


def test_no_part_of_it(site):
    response, fields = ask(site, range=b"bytes=10-")
    assert response.status == 416
    assert fields[b"Content-Range"] == b"bytes */10"
    assert ask(site, target=b"/empty", range=b"bytes=0-")[1][b"Content-Range"] == b"bytes */0"
    assert ask(site, target=b"/empty", range=b"bytes=-1")[0].status == 200


def test_head_knows_no_ranges(site):
    for value in (b"bytes=2-4", b"bytes=10-"):
        response, fields = ask(site, b"HEAD", range=value)
        assert response.status == 200
        assert fields[b"Content-Length"] == b"10"


def test_conditions_come_before_ranges(site):
    etag = ask(site)[1][b"ETag"]
    assert ask(site, range=b"bytes=2-4", if_none_match=etag)[0].status == 304
    assert ask(site, range=b"bytes=10-", if_match=b'"other"')[0].status == 412
    assert ask(site, range=b"bytes=2-4", if_range=etag)[0].status == 206
    assert ask(site, range=b"bytes=2-4", if_range=DATE)[0].status == 206
    for value in (b'"other"', BEFORE):
        assert ask(site, range=b"bytes=2-4", if_range=value)[0].status == 200
        assert ask(site, range=b"bytes=10-", if_range=value)[0].status == 200


def test_not_modified_says_what_the_whole_would_have_said(site):
    fields = ask(site)[1]
    response, without = ask(site, if_none_match=fields[b"ETag"])
    assert (response.status, response.content, response.count) == (304, b"", 0)
    assert without == {name: fields[name] for name in (b"ETag", b"Last-Modified")}


def test_conditions_are_for_what_is_there(site):
    assert ask(site, target=b"/nothing", if_match=b'"x"')[0].status == 404
    assert ask(site, b"POST", if_match=b'"x"')[0].status == 405


@pytest.mark.parametrize(
    "method", [b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"PATCH", b"CONNECT"]
)
def test_methods_that_are_not_allowed(site, method):
    response, fields = ask(site, method)
    assert response.status == 405
    assert fields[b"Allow"] == b"GET, HEAD"


@pytest.mark.parametrize("method", [b"BREW", b"get", b"G", b"PROPFIND"])
def test_methods_that_are_not_known(site, method):
    assert ask(site, method)[0].status == 501
