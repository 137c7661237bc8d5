"""docs/peers.md and what makes it, without running a cell."""

from __future__ import annotations

import pathlib
import re

import pytest

from interop import cells, table
from interop.cells import Kind, Outcome, judge
from interop.own import NotYet
from interop.peer import DOWN, UP, Feature, Purpose, Refused, Untold, shorten
from pyktls import Role

ROOT = pathlib.Path(__file__).resolve().parents[2]


def row(**changes: str) -> table.Row:
    return {
        "peer": "gnutls-serv", "role": "client", "version": "1.2", "suite": "AES128-CCM",
        "feature": "data", "kind": "ok", "words": "", "ktls": False, "peer_ktls": "none",
    } | changes  # fmt: skip


def test_a_field_counts_suites_and_quotes_the_peer():
    notes = table.Notes()
    assert table.render_entry([], notes) == "-"
    assert table.render_entry([row(), row(suite="AES256-GCM-SHA384")], notes) == "2"
    refused = row(kind=str(Kind.REFUSED), words="no such thing")
    assert table.render_entry([row(), row(), refused], notes) == "2, no [1]"
    assert table.render_entry([refused], notes) == "no [2]"
    assert table.render_entry([row(), row(), refused], notes) == "2, no [1]"
    assert notes.texts == [
        "gnutls-serv: no such thing (AES128-CCM)",
        "gnutls-serv: no such thing",
    ]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Kind.DOCUMENTED, "error [1]"),
        (Kind.REFUSED, "no [1]"),
        (Kind.UNTOLD, "untold [1]"),
        (Kind.NOT_YET, "not yet [1]"),
        (Kind.FAILED, "FAILED [1]"),
    ],
)
def test_no_other_end_looks_like_success(kind, text):
    assert table.render_entry([row(kind=str(kind), words="why")], table.Notes()) == text


def test_the_kernel_tls_of_the_peer_is_counted():
    rows = [row(peer_ktls="tx+rx"), row(peer_ktls="tx+rx"), row(peer_ktls="none")]
    notes = table.Notes()
    assert table.render_peer_ktls(rows, notes) == "tx+rx 2, none 1 [1]"
    assert notes.texts == ["gnutls-serv, its kernel TLS: none (AES128-CCM)"]
    assert table.render_peer_ktls(rows[:2], notes) == "tx+rx"
    assert table.render_peer_ktls([row(peer_ktls="")], notes) == "-"


def test_what_an_exception_means():
    assert judge(Refused("no")) == Outcome(Kind.REFUSED, "no")
    assert judge(Untold("either")) == Outcome(Kind.UNTOLD, "either")
    assert judge(NotYet("later"), "tx") == Outcome(Kind.NOT_YET, "later", "tx")
    assert judge(cells.DocumentedError("that one")).kind is Kind.DOCUMENTED
    failed = judge(AssertionError("bytes are missing"))
    assert failed.kind is Kind.FAILED
    assert failed.words == "AssertionError: bytes are missing"
    assert "bytes are missing" in failed.trace


def test_words_are_quoted_without_what_differs_from_run_to_run():
    said = "4047B5F2E77F0000:error:0A00018E:SSL routines:ssl_cipher:lib:../ssl/s.c:2:  x"
    assert shorten(said) == "error:SSL routines:ssl_cipher:lib:s.c:2: x"
    assert shorten("bad " * 100).endswith("...")
    assert shorten("in /tmp/a/b.conf:3 of 127.0.0.1:4711") == "in b.conf:3 of 127.0.0.1"


def test_the_page_has_a_hundred_columns():
    long = [line for line in table.PAGE.read_text("utf-8").splitlines() if len(line) > 100]
    assert not long


def test_every_feature_has_its_purpose():
    assert sorted(f for purpose in Purpose for f in purpose.value) == sorted(Feature)


def test_the_representative_part_has_every_peer_role_version_and_cipher():
    groups = cells.representative()
    assert {(g.peer_name, g.role) for g in groups} == {
        (peer.server_name() if role is Role.CLIENT else peer.client_name(), role)
        for peer, role in cells.peers_and_roles()
    }
    assert len(groups) == 2 * len(cells.peers_and_roles()) == 26
    assert {(g.suite.version, g.suite.aead.name) for g in groups} == {
        (version, cipher) for version in table.VERSIONS for cipher in cells.kernel.CIPHERS
    }


def test_the_data_takes_several_records_and_is_no_command():
    for data in (UP, DOWN):
        assert len(data) > 6 * 16384
        assert set(data) <= set(b"0123456789\n")
    assert UP != DOWN


def test_the_page_is_what_the_generator_writes():
    """Its fixed part; the rest is results."""
    text = table.PAGE.read_text(encoding="utf-8")
    assert text.startswith(table.INTRODUCTION)
    kernels = re.findall(r"^## Linux (\S+)$", text, re.MULTILINE)
    assert kernels
    assert text.count("### pyktls is the client") == len(kernels)
    assert "FAILED [" not in text
    for peer, role in cells.peers_and_roles():
        name = peer.server_name() if role is Role.CLIENT else peer.client_name()
        rows = re.findall(rf"^\| {re.escape(name)} \| 1\.[23] \|", text, re.MULTILINE)
        assert len(rows) >= 2 * len(kernels)
