"""docs/: all public names are in the reference, and tables say what the code says."""

from __future__ import annotations

import importlib
import pathlib
import re

import pytest
from tests import run

import pyktls
from pyktls import Cause, freebsd
from pyktls.ciphers import AEADS
from pyktls.linux import crypto_info, options
from pyktls.record_limit import record_limits
from support.samples import ROOT, pages
from support.selftest import EXPECTED_FAILURES

DOCS = ROOT / "docs"
MODULES = ("pyktls", "pyktls.aio", "pyktls.linux", "pyktls.freebsd", "pyktls.lowlevel")
#: What `pyktls.serve` has besides, for the command.
NOT_FOR_PROGRAMS = {f"pyktls.serve.{name}" for name in ("EXIT_STATUS", "add_arguments", "run")}


def read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def rows(text: str) -> list[list[str]]:
    """The cells of all rows of all tables of a Markdown text."""
    found = re.findall(r"^\|(.*)\|$", text, re.MULTILINE)
    return [[cell.strip() for cell in row.split("|")] for row in found]


def section(text: str, heading: str) -> str:
    """What stands below the heading that begins so, up to the next one of its level or above."""
    (level, body) = re.findall(
        rf"^(#+) {re.escape(heading)}.*?\n(.*)", text, re.MULTILINE | re.DOTALL
    )[0]
    return re.split(rf"^#{{1,{len(level)}}} ", body, maxsplit=1, flags=re.MULTILINE)[0]


# ---- the reference ---------------------------------------------------------------------------


def documented(text: str) -> set[str]:
    """The full names that a page of the reference has an entry for, and its modules."""
    found = set()
    module = ""
    for kind, name in re.findall(r"^\.\. ([a-z]+):: ([\w.]+)", text, re.MULTILINE):
        if kind == "currentmodule":
            module = name
        elif kind == "automodule":
            found.add(name)
        elif kind == "data" or kind.startswith("auto"):
            found.add(f"{module}.{name}")
    return found


def test_every_public_name_is_in_the_reference_and_no_other():
    entries = {}
    for page in (DOCS / "reference").glob("*.rst"):
        for name in documented(page.read_text(encoding="utf-8")):
            entries[name] = page.name
    public = {
        f"{module}.{name}"
        for module in (*MODULES, "pyktls.serve")
        for name in importlib.import_module(module).__all__
    }
    assert public - entries.keys() == NOT_FOR_PROGRAMS
    # Modules are entries too; those that are not public have something to tell about a public name.
    told = {"pyktls", "pyktls.errors", "pyktls.probe", "pyktls.moving"}
    assert entries.keys() - public <= told


def test_entries_are_found():
    text = ".. automodule:: a.b\n\n.. currentmodule:: a\n\n.. autoclass:: C()\n   :members:\n"
    assert documented(f"{text}\n.. data:: d\n.. note:: n\n") == {"a.b", "a.C", "a.d"}


# ---- the pages -------------------------------------------------------------------------------


def test_the_index_has_every_page_once():
    toctrees = re.findall(
        r"^```\{toctree\}\n(.*?)^```$", read("index.md"), re.MULTILINE | re.DOTALL
    )
    named = [
        line for tree in toctrees for line in tree.splitlines() if line and not line.startswith(":")
    ]
    there = {
        str(pathlib.Path(page).relative_to("docs").with_suffix(""))
        for page in pages()
        if page.startswith("docs/")
    } - {"index"}
    assert len(set(named)) == len(named)
    assert set(named) == there
    assert "suppress_warnings" not in read("conf.py")


def test_every_link_to_a_file_leads_to_one():
    for page in pages():
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_the_readme_says_how_much_a_key_is_good_for():
    (told,) = re.findall(r"about (\d+) GB with AES-GCM", (ROOT / "README.md").read_text())
    (hard,) = {record_limits(aead)[1] for aead in AEADS if aead.name.startswith("AES_")} - {2**23}
    assert abs(int(told) - hard * 2**14 / 1e9) < 5


#: How README.md speaks of each file of tests/kernel that runs on one kernel alone.
ON_ONE_KERNEL = {
    "bad_input": "random arguments",
    "benchmarks": "benchmarks",
    "command": "the command",
    "cpython_ssl": "CPython's own tests of `ssl`",
    "demo": "the demo",
    "examples": "the examples",
    "module_loading": "privileges",
    "probe": "the probe",
    "samples": "the samples of the documentation",
    "serve": "`pyktls serve`",
    "serve_clients": "and its clients",
}
PARTS = {10: "a tenth", 16: "a sixteenth"}


def test_the_readme_says_what_make_test_leaves_out():
    text = re.sub(r"\s+", " ", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert [*ON_ONE_KERNEL] == [
        re.fullmatch(r"tests/kernel/test_(\w+)\.py", path)[1] for path in run.ON_ONE_KERNEL
    ]
    part = text.partition("That is a representative part.")[2].partition("`make test-all`")[0]
    begin, _, alone = part.partition(f"runs on {run.KERNELS[-1]} alone: ")
    for words in (*ON_ONE_KERNEL.values(), "other people's TLS", "and NFS"):
        assert words in alone
    assert f"On {run.KERNELS[-1]} every kernel test runs but one" in begin
    assert f"on {' or on '.join(run.KERNELS[:-1])} once more" in begin
    assert begin.index(PARTS[run.LAST_SHARE]) < begin.index(PARTS[run.OTHERS_SHARE])


# ---- tables ----------------------------------------------------------------------------------


def test_every_cause_is_told():
    codes = [row[0].strip("`") for row in rows(section(read("is-it-on.md"), "On this machine"))]
    assert codes[:2] == ["code", "---"]
    assert codes[2:] == [cause.value for cause in Cause]


def test_the_refusals_are_worded_as_in_the_code():
    table = rows(section(read("is-it-on.md"), "Why this connection was refused"))[2:]
    assert len(table) == 11
    code = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "src" / "pyktls").rglob("*.py")
    )
    # As the program says it: string literals in a row are one.
    said = re.sub(r'"\s*\n\s*f?"', "", code)
    for text, *_ in table:
        for part in text.split("..."):
            assert part.strip() in said, text


#: Whose figures the texts speak of, where docs/benchmarks.md has those of several kernels.
SPOKEN_OF = "7.3"


def figures(text: str) -> dict[tuple[str, str, str], str]:
    """(section, row, column) of every field in docs/benchmarks.md, for one kernel."""
    text = section(text, f"Linux {SPOKEN_OF}.")
    found = {}
    for heading, body in re.findall(r"^### (.*?)\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL):
        table = rows(body)
        for row in table[2:]:
            for column, field in zip(table[0][1:], row[1:], strict=False):
                found[heading, row[0], column] = field
    return found


def test_the_gains_are_those_that_were_measured():
    measured = figures(read("benchmarks.md"))
    table = [row for row in rows(read("gains.md")) if row[1].endswith(" x")]
    assert len(table) == 11
    for what, gain, begin, row, column in table:
        (field,) = {
            value
            for (heading, name, title), value in measured.items()
            if heading.startswith(begin) and (name, title) == (row, column)
        }
        assert field.endswith(f"({gain})"), what


def test_the_costs_that_the_text_names_are_those_that_were_measured():
    text, measured = read("gains.md"), read("benchmarks.md")
    fields = figures(measured)

    def figure(heading: str, row: str, column: str) -> float:
        return float(fields[heading, row, column].partition(" ")[0].replace(",", ""))

    heading = "Handshake, with the switch and without: microseconds"
    without, with_switch, client_without, client_with = (
        figure(heading, f"{role}, ECDSA P-256", f"{what}, processor")
        for role in ("server", "client")
        for what in ("handshake", "handshake and switch")
    )
    assert "about a third of an ECDSA handshake" in text
    assert 0.28 < with_switch / without - 1 < 0.39

    heading = "Sending: seconds of processor time for a GiB"
    ssl, mine = (
        figure(heading, f"`{name}`", "`sendfile`, sender")
        for name in ("ssl.SSLSocket", "pyktls.KTLSSocket")
    )
    won_back = (with_switch - without) * 1e-6 / (ssl - mine) * 2**20
    for page in (text, measured):
        (told,) = re.findall(r"the first\s+(\d+) KiB", page)
        assert abs(int(told) - won_back) < 10

    heading = "The switch alone: microseconds of processor time"
    server, client = (
        figure(heading, "all of `pyktls.offload`", end) for end in ("server", "client")
    )
    rest = with_switch - without - server, client_with - client_without - client
    told = re.findall(r"leaves (\d+),000 at the server and (\d+),000 at the client", measured)
    assert [pytest.approx(float(figure), abs=1) for figure in told[0]] == [*rest]


def test_the_table_of_kernels_says_what_the_code_says():
    since = {row[1]: row[0] for row in rows(section(read("kernels.md"), "Linux"))}
    for name, _, release in options._OPTIONS.values():
        assert since[f"`{name}`"] == release
    assert since["change of keys, for TLS 1.3"] in crypto_info.NO_REKEY
    releases = {".".join(map(str, e.before)) for e in EXPECTED_FAILURES if not e.backports}
    assert releases <= set(since.values())
    defects = section(read("kernels.md"), "What older kernels do wrong")
    for entry in EXPECTED_FAILURES:
        if entry.backports:
            mended = " and ".join(".".join(map(str, release)) for release in entry.backports)
            before = ".".join(map(str, entry.before))
            assert f"| before {before}; mended in {mended} |" in defects


def test_the_table_of_kernels_says_what_the_tests_said():
    (counts,) = (row[1:] for row in rows(read("kernels.md")) if row[0].startswith("scenarios"))
    names = next(row[1:] for row in rows(read("kernels.md")) if row[1:2] == ["6.1.192"])
    results = {row[0]: row[2] for row in rows(read("selftests.md")) if len(row) == 4}
    assert counts == [results[name] for name in names]


def test_the_gates_are_freebsds():
    table = rows(section(read("freebsd.md"), "Switch it on"))[2:]
    told = [row[0].strip("`") for row in table]
    assert len(told) == 5
    assert set(told) < set(freebsd.GATES)


@pytest.mark.parametrize("name", ["tutorial", "drop-in", "one-direction", "moving"])
def test_pages_name_only_what_there_is(name):
    """Attributes of pyktls that a page has in its text."""
    for path in set(re.findall(r"\bpyktls((?:\.[a-z_A-Z]\w*)+)", read(f"{name}.md"))):
        thing = pyktls
        for part in path[1:].split("."):
            thing = getattr(thing, part)
