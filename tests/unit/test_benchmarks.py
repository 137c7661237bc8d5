"""The benchmarks' own reckoning: medians, tables, targets, the page and the plot."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import sys
import xml.etree.ElementTree as ET
from typing import Self

import pytest
from benchmarks import __main__ as main
from benchmarks import handshakes, material, plot, programs, receiving, report, sending, targets
from benchmarks.connections import CLASS, KTLS, LIMIT, NAMES, OTHER, PLAIN, SSL
from benchmarks.servers import AIO, ASYNCIO, FAST_KTLS
from benchmarks.serving import NAMES as SERVERS
from benchmarks.tables import TOO_LITTLE, Results, Table

ROOT = pathlib.Path(__file__).resolve().parents[2]


def table(key: str, columns: list[str], rows: dict[str, list[float]], **more: object) -> Table:
    made = Table(key, key.title(), "s", columns, **more)  # type: ignore[arg-type]
    for row, values in rows.items():
        for column, value in zip(columns, values, strict=True):
            made.add(row, column, value)
    return made


def results(*tables: Table) -> Results:
    return Results({"kernel": "Linux 7.3.4", "clock": "time"}, {t.key: t for t in tables})


# ---- tables ------------------------------------------------------------------------------------


def test_a_cell_is_the_median_of_its_samples():
    made = Table("t", "T", "s", ["a"])
    made.add("row", "a", 9.0, 1.0)
    made.add("row", "a", 2.0)
    assert made.value("row", "a") == 2.0
    assert made.rows["row"]["a"].spread == 4.0


def test_no_row_has_a_column_that_the_table_has_not():
    with pytest.raises(KeyError):
        Table("t", "T", "s", ["a"]).add("row", "b", 1.0)


def test_a_reason_fills_what_has_no_figure_and_nothing_else():
    made = Table("t", "T", "s", ["a", "b", "c"])
    made.miss("row", "files only", ["b"])
    made.add("row", "a", 1.0)
    assert not made.whole()
    made.miss("row", "not there")
    assert made.whole()
    assert made.value("row", "a") == 1.0
    assert [made.reason("row", column) for column in "abc"] == ["", "files only", "not there"]


def test_a_table_without_rows_is_not_whole():
    assert not Table("t", "T", "s", ["a"]).whole()


def test_json_brings_everything_back():
    made = results(table("t", ["a"], {"row": [1.5]}, digits=2, base="row"))
    made.tables["t"].miss("other", "why")
    made.failures.append("something")
    again = Results.from_json(made.to_json())
    assert again == made
    assert again.value("t", "row", "a") == 1.5
    assert again.value("t", "row", "b") is None
    assert again.value("u", "row", "a") is None


def test_rates_come_from_both_ends():
    sent = table("records-sent", ["1 B", "64 B", "256 B", "1500 B"], {NAMES[KTLS]: [1, 2, 3, 4e5]})
    received = table("records-received", sent.columns, {NAMES[KTLS]: [1, 2, 7, 1e5]})
    sent.miss(NAMES[SSL], "why")
    rates = receiving.rates(sent, received)
    assert rates.value(NAMES[KTLS], "256 B") == 1e8
    assert rates.value(NAMES[KTLS], "1500 B") == 2000
    assert rates.reason(NAMES[SSL], "1 B") == "why"
    assert rates.whole()


# ---- targets -----------------------------------------------------------------------------------


def good() -> Results:
    """Figures with which every target is reached, just so."""
    counts = ["1 connection", "16 connections"]
    kinds = [
        f"{what}, {clock}"
        for clock in ("processor", "wall")
        for what in (handshakes.ALONE, handshakes.SWITCHED)
    ]
    mine, ssl = NAMES[KTLS], NAMES[SSL]
    return results(
        table(
            "sending", ["`sendfile`, sender"], {NAMES[LIMIT]: [100.0], mine: [103.0], ssl: [206.4]}
        ),
        table(
            "serving",
            counts,
            {
                SERVERS[AIO]: [1.0, 2.0],
                SERVERS[ASYNCIO]: [4.0, 8.0],
                SERVERS[FAST_KTLS]: [1.0, 2.0],
            },
        ),
        table("records", ["256 B"], {mine: [200.0], ssl: [100.0]}),
        *(
            table(f"{name}-{mode}", ["256 B"], {NAMES[PLAIN]: [100.0], NAMES[CLASS]: [110.0]})
            for name in ("send", "recv_into")
            for mode in ("blocking", "timeout")
        ),
        table("handshake", kinds, {end: [100.0, 105.0] * 2 for end in handshakes.ENDS}),
        table(
            "memory",
            ["process, 1,000 connections", "process, 10,000 connections"],
            {mine: [9.0, 2.5], ssl: [9.0, 10.0]},
        ),
        table("lost", ["lost of 1,000", "lost of 10,000"], {mine: [0.0, 0.0]}),
    )


def test_figures_at_the_bound_are_good_enough():
    found = targets.verdicts(good())
    assert [verdict.reached for verdict in found] == [True] * len(found)
    assert len(found) == 11


#: A figure that is just not good enough: (table, row, column, value), and the target's beginning.
SPOILT = [
    (("sending", NAMES[KTLS], "`sendfile`, sender"), 103.2, "`sendfile`: the sender's"),
    (("sending", NAMES[SSL], "`sendfile`, sender"), 205.0, "`sendfile`: the sender's"),
    (("serving", SERVERS[ASYNCIO], "16 connections"), 7.9, "serving a file on asyncio"),
    (("serving", SERVERS[FAST_KTLS], "1 connection"), 0.99, "serving a file on asyncio"),
    (("records", NAMES[KTLS], "256 B"), 199.0, "records of 256 B"),
    (("send-timeout", NAMES[CLASS], "256 B"), 111.0, "`send` of 256 B"),
    (("recv_into-blocking", NAMES[CLASS], "256 B"), 111.0, "`recv_into` of 256 B"),
    (("handshake", "client, RSA 2048", "handshake and switch, wall"), 106.0, "handshake and"),
    (("handshake", "client, RSA 2048", "handshake and switch, processor"), 106.0, "handshake and"),
    (("memory", NAMES[KTLS], "process, 10,000 connections"), 2.6, "memory of the process"),
    (("lost", NAMES[KTLS], "lost of 10,000"), 1.0, "connections that failed"),
]


@pytest.mark.parametrize(("place", "value", "title"), SPOILT)
def test_one_figure_that_is_not_good_enough(place, value, title):
    spoilt = good()
    key, row, column = place
    spoilt.tables[key].rows[row][column].samples = [value]
    (missed,) = [v for v in targets.verdicts(spoilt) if v.reached is False]
    assert missed.title.startswith(title)
    assert missed.word == "**no**"


def test_of_several_columns_the_worst_counts_and_is_named():
    spoilt = good()
    spoilt.tables["serving"].rows[SERVERS[AIO]]["16 connections"].samples = [4.0]
    verdict = targets.verdicts(spoilt)[2]
    assert (verdict.figure, verdict.reached) == ("0.500 x", False)
    assert verdict.note == "the worst: 16 connections"


def test_what_took_no_time_is_no_base_to_compare_with():
    """A clock that counts ticks may see none."""
    coarse = good()
    coarse.tables["sending"].rows[NAMES[LIMIT]]["`sendfile`, sender"].samples = [0.0]
    verdict = targets.verdicts(coarse)[0]
    assert (verdict.reached, verdict.note) == (None, TOO_LITTLE)
    sizes = [f"{size} B" for size in sending.RECORDS]
    none = {name: [0.0] * len(sizes) for name in NAMES.values()}
    rates = receiving.rates(table("sent", sizes, none), table("received", sizes, none))
    assert rates.reason(NAMES[KTLS], sizes[0]) == TOO_LITTLE
    assert rates.whole()


def test_what_was_not_measured_is_neither_reached_nor_missed():
    empty = results()
    assert {verdict.reached for verdict in targets.verdicts(empty)} == {None}
    without = good()
    del without.tables["sending"].rows[NAMES[LIMIT]]
    without.tables["sending"].miss(NAMES[LIMIT], "no C compiler here")
    verdict = targets.verdicts(without)[0]
    assert verdict.reached is None
    assert "no C compiler here" in verdict.note
    assert targets.verdicts(without)[1].reached is True


# ---- the page ----------------------------------------------------------------------------------


def test_the_grid_is_markdown():
    lines = report.grid(["", "a"], [["row", "1"], ["longer", "12,345"]]).splitlines()
    assert lines == [
        "|        |      a |",
        "| ------ | -----: |",
        "| row    |      1 |",
        "| longer | 12,345 |",
    ]


def test_figures_are_shown_with_the_base_in_times():
    made = table("t", ["a"], {"base": [2000.0], "row": [3000.0]}, base="base")
    assert report.cell_text(made, "row", "a") == "3,000 (1.50 x)"
    assert report.cell_text(made, "nobody", "a") == "-"
    made.base = ""
    assert report.cell_text(made, "row", "a") == "3,000"


def test_each_reason_is_said_once():
    made = Table("t", "T", "s", ["a", "b"])
    made.miss("one", "why")
    made.miss("two", "why")
    made.add("three", "a", 1.0)
    made.miss("three", "another")
    assert report.reasons(made) == ["one, two: why", "three (b): another"]


def test_the_page_keeps_what_is_around_the_figures(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Before\n\n{report.BEGIN}\n\nold\n{report.END}\n\nafter\n")
    for _ in range(2):
        report.write_page(page, [report.markdown(good(), "plot.svg")])
        text = page.read_text()
        assert text.startswith("# Before\n")
        assert text.endswith(f"{report.END}\n\nafter\n")
        assert "old" not in text
        assert text.count("## Linux 7.3.4\n") == 1
        assert "](plot.svg)" in text
        assert "| `pyktls.aio`" in text


def test_a_page_without_a_place_is_not_touched(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing of ours")
    with pytest.raises(ValueError, match="no place"):
        report.write_page(page, ["new"])
    assert page.read_text() == "nothing of ours"


def test_the_real_page_has_a_place():
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert text.count(report.BEGIN) == text.count(report.END) == 1
    assert text.index(report.BEGIN) < text.index(report.END)


def test_every_plot_on_the_page_is_there():
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for name in re.findall(r"!\[.*?\]\((.+?)\)", text):
        ET.parse(ROOT / "docs" / name)  # noqa: S314  (our own)


# ---- whose figures they are --------------------------------------------------------------------


class Said:
    """An agent that says what is given, and does what it is told at once."""

    def __init__(self, *messages: dict[str, object]) -> None:
        self.messages = iter(messages)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def hear(self) -> dict[str, object]:
        return next(self.messages)

    def tell(self, **_: object) -> None:
        pass

    def ask(self, **_: object) -> dict[str, object]:
        return {"cpu": 1, "bytes": material.SMALLEST.bulk}


class SaidAgents:
    """Ends that say what real ones do when they are ready."""

    peer = None
    host = "127.0.0.1"

    def near(self, job: str, *, way: str = "", **_: object) -> Said:
        if job == "serve":
            version = "OpenSSL 3.5.9 2 Feb 2026 (Library: OpenSSL 3.5.9 2 Feb 2026)"
            return Said({"port": 1, "pid": os.getpid(), "version": version})
        ready: dict[str, object] = {"ready": True}
        if way == OTHER:
            ready |= {"python": "3.15.1", "openssl": "OpenSSL 3.6.5 1 Jan 2026"}
        return Said({"port": 1}, ready)

    def far(self, _job: str, **_: object) -> Said:
        return Said({"ready": True}, *[{"cpu": 1}] * 100)


@pytest.mark.skipif(sys.platform != "linux", reason="processor time of another process")
def test_the_versions_of_other_programs_get_onto_the_page(monkeypatch, tmp_path):
    """They decide about the figures as much as this Python's own does."""
    monkeypatch.setattr(main, "MEASURES", {"sending": sending.measure})
    monkeypatch.setattr(main.agents, "Agents", lambda _: SaidAgents())
    monkeypatch.setattr(main.limit, "build", lambda _: "")
    kept = tmp_path / "results.json"
    found = main.run(["sending"], "smallest", keep=kept)
    assert found.failures == []
    for made in (found, Results.from_json(kept.read_text())):
        lines = report.markdown(made).splitlines()
        assert "- CPython 3.15, `OP_ENABLE_KTLS`: CPython 3.15.1, OpenSSL 3.6.5" in lines
        assert "- `openssl s_server -ktls -sendfile`: OpenSSL 3.5.9" in lines


def test_openssl_is_asked_for_its_version(monkeypatch):
    echo = [sys.executable, "-c", "import sys; print('OpenSSL', *sys.argv[1:])"]
    monkeypatch.setattr(programs, "find_openssl", lambda place: ([*echo, place], place))
    assert programs.openssl_version("here") == "OpenSSL here version"


# ---- the plot ----------------------------------------------------------------------------------


def test_bars_are_the_rows_with_figures():
    memory = good().tables["memory"]
    assert plot.bars(memory, None) == [("pyktls.KTLSSocket", 2.5), ("ssl.SSLSocket", 10.0)]
    memory.miss("other", "why")
    assert len(plot.bars(memory, None)) == 2


@pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="the extra `bench` is not installed"
)
def test_the_plot_is_well_formed_and_the_same_each_time(tmp_path):
    files = [tmp_path / name for name in ("one.svg", "two.svg")]
    for file in files:
        plot.draw(good(), file)
    root = ET.parse(files[0]).getroot()  # noqa: S314
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = "".join(root.itertext())
    for name in ("pyktls.KTLSSocket", "ssl.SSLSocket", "pyktls.aio", "Linux 7.3.4"):
        assert name in words
    assert files[0].read_bytes() == files[1].read_bytes()
    assert "2026" not in words


# ---- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", material.SCALES)
def test_what_is_sent_comes_out_even(scale):
    chosen = material.SCALES[scale]
    assert chosen.bulk % material.MIB == 0
    assert chosen.request_size % 256 == 0
    assert chosen.crowds == tuple(sorted(chosen.crowds))
