"""pyktls serve: from the target of a request to an open file, and never to one outside."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import socket
import stat
import tempfile
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyktls.serve import files
from pyktls.serve.files import Directory, File, Root, status_of
from pyktls.serve.media_types import media_type
from pyktls.serve.paths import BadTarget, Path, parse_target
from pyktls.serve.site import Site
from support.serving import descriptors

INSIDE = b"inside"
SECRET = b"outside"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A root with all kinds of things in it, and secrets around it."""
    place = tmp_path_factory.mktemp("world")
    root = place / "root"
    (root / "directory" / "deep").mkdir(parents=True)
    (root / "empty").mkdir()
    for name in ("secret", "root-secret"):
        (place / name).write_bytes(SECRET)
    for name in ("file", "directory/file", "directory/deep/file", "with space", "a\\b", "é", "a:b"):
        (root / name).write_bytes(INSIDE)
    (root / os.fsdecode(b"\xff\xfe")).write_bytes(INSIDE)
    (root / "directory" / "index.html").write_bytes(INSIDE)
    (root / "link-to-secret").symlink_to(place / "secret")
    (root / "link-to-file").symlink_to("file")
    (root / "link-up").symlink_to("..")
    (root / "link-to-directory").symlink_to("directory")
    (root / "dangling").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    (root / "linked-index").mkdir()
    (root / "linked-index" / "index.html").symlink_to(place / "secret")
    (root / "directory-as-index" / "index.html").mkdir(parents=True)
    os.mkfifo(root / "fifo")
    os.mkfifo(root / "empty" / "index.html")
    with socket.socket(socket.AF_UNIX) as sock:
        before = pathlib.Path.cwd()
        os.chdir(root)  # the path may be longer than a socket's may be
        try:
            sock.bind("socket")
        finally:
            os.chdir(before)
    return root


@pytest.fixture(scope="module")
def site(world):
    site = Site(world)
    yield site
    site.close()


@pytest.fixture(scope="module")
def listing_site(world):
    site = Site(world, index=True)
    yield site
    site.close()


def fetch(site: Site, target: bytes, method: bytes = b"GET") -> Any:
    """The response, with the file's content as its body."""
    response = site.respond(method, target, {}, 1e9)
    if response.file is not None:
        response.body = response.file.read(response.offset, response.count)
        response.close()
    return response


# ---- targets -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/", Path((), True, b"")),
        (b"/a", Path((b"a",), False, b"")),
        (b"/a/b/", Path((b"a", b"b"), True, b"")),
        (b"/a?b/../c", Path((b"a",), False, b"b/../c")),
        (b"/a?b?c", Path((b"a",), False, b"b?c")),
        (b"/%41%2e%2Ehtml", Path((b"A..html",), False, b"")),
        (b"/%252e", Path((b"%2e",), False, b"")),
        (b"/...", Path((b"...",), False, b"")),
        (b"/a\\b", Path((b"a\\b",), False, b"")),
        (b"/..\\x", Path((b"..\\x",), False, b"")),
        (b"/a+b", Path((b"a+b",), False, b"")),
        (b"/%ff", Path((b"\xff",), False, b"")),
        (b"https://localhost", Path((), True, b"")),
        (b"http://localhost:80/a", Path((b"a",), False, b"")),
        (b"HTTPS://[::1]?q", Path((), True, b"q")),
        (b"//", None),
        (b"//a", None),
        (b"/a//b", None),
        (b"/.", None),
        (b"/..", None),
        (b"/../", None),
        (b"/a/../b", None),
        (b"/%2e%2e/b", None),
        (b"/.%2E/b", None),
        (b"/a%2fb", None),
        (b"/%2F", None),
        (b"/%2e%2e%2fsecret", None),
    ],
)
def test_names_in_a_target(target, path):
    assert parse_target(target) == path


@pytest.mark.parametrize(
    "target",
    [
        b"", b"*", b"a", b"a/b", b"localhost:443", b"ftp://localhost/", b"https:///a", b"/#",
        b"/a#b", b"/%", b"/%4", b"/%4g", b"/%00", b"/a%00/b", b"/%u0041", b"?", b"https://",
    ],
)  # fmt: skip
def test_no_target_of_a_get(target):
    with pytest.raises(BadTarget):
        parse_target(target)


@given(st.binary(max_size=40) | st.text(alphabet="./%2eEfF\\a0?#:", max_size=20).map(str.encode))
@example(b"/" + b"/" * 1000)
def test_any_target_has_names_that_stay_below_or_none(target):
    try:
        path = parse_target(b"/" + target)
    except BadTarget:
        return
    for name in path.names if path is not None else ():
        assert name not in {b"", b".", b".."}
        assert b"/" not in name
        assert b"\0" not in name


def test_a_redirection_stays_on_this_host():
    for target in (b"/%5Cevil.org", b"/\\evil.org", b"/a%20b/%E9?x=%41&y"):
        path = parse_target(target)
        assert path is not None
        location = path.as_directory()
        assert location[:1] == b"/"
        assert location[1:2] not in {b"/", b"\\"}
        again = parse_target(location)
        assert again == Path(path.names, True, path.query)


# ---- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        b"/file", b"/directory/file", b"/directory/deep/file", b"/directory/", b"/with%20space",
        b"/a\\b", b"/a%5cb", b"/%c3%a9", b"/%ff%fe", b"/file?query", b"/a:b", b"https://h/file",
    ],
)  # fmt: skip
def test_what_is_served(site, target):
    response = fetch(site, target)
    assert (response.status, response.body) == (200, INSIDE)


NOT_FOUND = [
    b"/nothing", b"/nothing/", b"/file/", b"/file/file", b"/directory/nothing", b"/fifo", b"/fifo/",
    b"/socket", b"/link-to-secret", b"/link-to-file", b"/link-up/secret", b"/link-up/", b"/link-up",
    b"/link-to-directory/file", b"/link-to-directory/", b"/dangling", b"/loop", b"/loop/x",
    b"/linked-index/", b"/directory-as-index/", b"/empty/", b"/", b"/../secret",
    b"/directory/../../secret", b"/%2e%2e/secret", b"/..%2fsecret", b"//file", b"/directory//file",
    b"/directory/./file", b"/" + b"n" * 300, b"/" + b"n" * 300 + b"/x", b"/x" * 4000,
    b"/directory" + b"/x" * 3000, b"/..\\secret", b"/.", b"/..", b"/%2e", b"/directory/..",
]  # fmt: skip


@pytest.mark.parametrize("target", NOT_FOUND, ids=lambda t: t[:40].decode())
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_what_is_not_there(site, target, method):
    assert fetch(site, target, method).status == 404


@pytest.mark.parametrize("target", [b"/\xc3\xa9\0", b"/%00", b"/file%00", b"*", b"x", b"/%"])
def test_what_is_no_request(site, target):
    assert fetch(site, target).status == 400


@given(
    st.lists(
        st.sampled_from([
            "..", ".", "", "%2e%2e", "%2f", "\\", "link-up", "link-to-directory", "link-to-secret",
            "directory", "deep", "file", "root", "secret", "root-secret", "etc", "passwd", "fifo",
            "%00", "n" * 256, "loop", "empty", "index.html",
        ])
        | st.text(max_size=5),
        max_size=6,
    ),
    st.booleans(),
)  # fmt: skip
def test_no_path_leads_out_blocks_or_raises(world, parts, index):
    target = ("/" + "/".join(parts)).encode("utf-8", "surrogatepass")
    site = Site(world, index=index)
    try:
        response = fetch(site, target)
    finally:
        site.close()
    assert response.status in {200, 301, 400, 404}
    assert SECRET not in response.body
    if response.status == 200 and not index:
        assert response.body == INSIDE


def test_nothing_stays_open(site, listing_site):
    before = descriptors()
    for target in [*NOT_FOUND, b"/file", b"/directory", b"/directory/", b"/%00"]:
        fetch(site, target)
        fetch(listing_site, target)
    assert descriptors() == before


def test_a_directory_without_a_slash(site):
    response = fetch(site, b"/directory?a=b")
    assert response.status == 301
    assert dict(response.fields)[b"Location"] == b"/directory/?a=b"


@contextlib.contextmanager
def nobody():
    """Without root's right to read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_what_may_not_be_read(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir()
    (tmp_path / "passage").mkdir()
    (tmp_path / "passage" / "file").write_bytes(INSIDE)
    tmp_path.chmod(0o755)
    site = Site(tmp_path, index=True)
    (tmp_path / "file").chmod(0o000)
    (tmp_path / "closed").chmod(0o000)
    (tmp_path / "passage").chmod(0o111)
    try:
        with nobody():
            assert fetch(site, b"/file").status == 403
            assert fetch(site, b"/closed/").status == 403
            assert fetch(site, b"/closed/file").status == 403
            assert fetch(site, b"/passage/").status == 403
            assert fetch(site, b"/passage/file").body == INSIDE
    finally:
        site.close()
        (tmp_path / "closed").chmod(0o700)
        (tmp_path / "passage").chmod(0o700)


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (errno.ENOENT, 404), (errno.ELOOP, 404), (errno.ENAMETOOLONG, 404), (errno.ENXIO, 404),
        (errno.EACCES, 403), (errno.EMFILE, 503), (errno.ENFILE, 503), (errno.EIO, 500),
    ],
)  # fmt: skip
def test_errors_have_a_status(site, monkeypatch, number, status):
    def fails(*_, **__):
        raise OSError(number, "no")

    monkeypatch.setattr(files.os, "open", fails)
    assert fetch(site, b"/file").status == status
    assert status_of(OSError(number, "no")) == status


def test_a_device_is_looked_at_and_not_opened(world, monkeypatch):
    """Where one cannot be made: what says that it is a regular file is asked twice."""
    opened = []
    original = os.open

    def spy(path, flags, **keywords):
        opened.append(path)
        return original(path, flags, **keywords)

    monkeypatch.setattr(files.os, "open", spy)
    root = Root(world)
    try:
        with pytest.raises(FileNotFoundError):
            root.open([b"fifo"])
        assert b"fifo" not in opened
        # It takes the place of a file after that was looked at.
        real = (world / "file").stat()
        monkeypatch.setattr(files.os, "stat", lambda *_, **__: real)
        before = descriptors()
        with pytest.raises(FileNotFoundError):
            root.open([b"fifo"])
        assert b"fifo" in opened
        assert descriptors() == before
        # And a symbolic link does.
        with pytest.raises(OSError, match="link") as caught:
            root.open([b"link-to-secret"])
        assert status_of(caught.value) == 404
    finally:
        root.close()


def test_a_directory_that_becomes_a_link_is_not_followed(tmp_path):
    """The one that is looked up in stays the one that was opened."""
    place = tmp_path / "root"
    place.mkdir()
    (place / "file").write_bytes(INSIDE)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_bytes(SECRET)
    root = Root(place)
    try:
        place.rename(tmp_path / "moved")
        place.symlink_to("other")
        found = root.open([b"file"])
        assert isinstance(found, File)
        assert found.read(0, 100) == INSIDE
        found.close()
        assert isinstance(root.open([]), Directory)
    finally:
        root.close()


def test_a_file_has_two_ways_to_be_closed(world):
    root = Root(world)
    before = descriptors()
    for by_object in (False, True):
        found = root.open([b"file"])
        assert isinstance(found, File)
        if by_object:
            assert found.as_object() is found.as_object()
            assert stat.S_ISREG(os.fstat(found.as_object().fileno()).st_mode)
        found.close()
    assert descriptors() == before
    root.close()


# ---- lists -------------------------------------------------------------------------------------


def test_a_list_has_what_is_served_and_nothing_else(listing_site):
    page = fetch(listing_site, b"/")
    assert page.status == 200
    text = page.body.decode()
    for name in ("file", "directory/", "with space", "a\\b", "é"):
        assert f">{name}</a>" in text
    assert 'href="./%FF%FE"' in text
    assert 'href="./a%3Ab"' in text
    assert 'href="./with%20space"' in text
    for name in ("fifo", "socket", "link-", "dangling", "loop", "../"):
        assert f">{name}" not in text
    assert dict(page.fields)[b"Content-Length"] == b"%d" % len(page.body)
    deep = fetch(listing_site, b"/directory/deep/")
    assert b'href="../"' in deep.body
    assert fetch(listing_site, b"/directory/").body == INSIDE


@given(st.binary(min_size=1, max_size=20).filter(lambda b: not set(b) & {0, 47}))
@example(b"<script>alert(1)</script>".replace(b"/", b"_"))
@example(b"\"onclick='x'&amp;")
@example(b"javascript:alert(1)")
def test_links_of_a_list_lead_to_the_files_and_are_only_text(name):
    if name in {b".", b"..", b"index.html"}:
        return
    with tempfile.TemporaryDirectory() as place:
        (pathlib.Path(place) / os.fsdecode(name)).write_bytes(INSIDE)
        site = Site(place, index=True)
        try:
            body = fetch(site, b"/").body
            item = body.split(b"<ul>")[1].split(b"</ul>")[0].strip()
            assert item.startswith(b'<li><a href="./')
            link, _, rest = item.removeprefix(b'<li><a href="./').partition(b'"')
            text = rest.removeprefix(b">").removesuffix(b"</a></li>")
            assert not set(text) & set(b"<>\"'")
            assert fetch(site, b"/" + link).body == INSIDE
        finally:
            site.close()


def test_a_long_list_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr("pyktls.serve.listing.MOST", 3)
    for number in range(3):
        (tmp_path / str(number)).touch()
    site = Site(tmp_path, index=True)
    try:
        assert b"Only" not in fetch(site, b"/").body
        (tmp_path / "4").touch()
        page = fetch(site, b"/").body
        assert b"Only 3 names" in page
        assert page.count(b"<li>") == 3
    finally:
        site.close()


# ---- types -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"a.html", b"text/html"),
        (b"a.b.css", b"text/css"),
        (b"A.HTML", b"text/html"),
        (b"a.tar.gz", b"application/gzip"),
        (b"a.txt.bz2", b"application/x-bzip2"),
        (b"a.tgz", b"application/gzip"),
        (b"a.svgz", b"application/gzip"),
        (b"a", b"application/octet-stream"),
        (b"a.", b"application/octet-stream"),
        (b".html5-no-such", b"application/octet-stream"),
        (b"a.\xff\xfe", b"application/octet-stream"),
        (b"data:text/html,x.png", b"image/png"),
    ],
)
def test_types(name, expected):
    assert media_type(name) == expected


@given(st.binary(max_size=20))
def test_any_name_has_a_type(name):
    assert b"/" in media_type(name)
