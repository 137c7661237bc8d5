"""Each measure at its smallest: every subject gives a figure, or says why it has none."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import time

import pytest
from benchmarks import targets
from benchmarks.__main__ import MEASURES
from benchmarks.calls import WAYS as CALLS
from benchmarks.connections import CLASS, KTLS, LIMIT, NAMES, PLAIN, SSL, WRAPPED
from benchmarks.servers import AIO, ASYNCIO
from benchmarks.serving import NAMES as SERVERS
from benchmarks.tables import Results

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

ROOT = pathlib.Path(__file__).resolve().parents[2]
OURS = [NAMES[KTLS], NAMES[WRAPPED], NAMES[SSL]]
#: Rows that have figures on every kernel with TLS; the others may have a reason instead.
ALWAYS = {
    "sending": [*OURS, *([NAMES[LIMIT]] if shutil.which("cc") else [])],
    "receiving": OURS,
    "roundtrip": [*OURS, NAMES[PLAIN]],
    "serving": [SERVERS[AIO], SERVERS[ASYNCIO]],
    "handshakes": [],  # all of them
    "crowds": [NAMES[KTLS], NAMES[SSL]],
    "calls": [NAMES[way] for way in CALLS],
    "imports": ["`pyktls`", "`pyktls.aio`"],
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "--scale", "smallest", *arguments],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=500,
        check=False,
    )  # fmt: skip


def clock_stands_still() -> bool:
    """Whether a process's own clock counts ticks, all the time or now and then."""
    end = time.monotonic_ns() + 300_000_000
    last, since = time.process_time_ns(), time.monotonic_ns()
    while (now := time.monotonic_ns()) < end:
        used = time.process_time_ns()
        if used != last:
            last, since = used, now
        elif now - since > 1_000_000:
            return True
    return False


@pytest.mark.parametrize("measure", MEASURES)
def test_every_subject_has_a_figure_or_a_reason(measure, tmp_path):
    file = tmp_path / "results.json"
    done = run("--only", measure, "--json", str(file))
    assert done.returncode == 0, done.stderr
    results = Results.from_json(file.read_text())
    assert not results.failures
    assert results.tables
    some, ticks = False, clock_stands_still()  # and may see nothing in so few rounds
    for table in results.tables.values():
        assert table.whole(), table
        assert f"### {table.title}" in done.stdout
        if table.key == "lost":
            assert table.value(NAMES[KTLS], "lost of 40") == 0
            assert table.value(NAMES[KTLS], "worked of 40") == 40
            continue
        always = ALWAYS[measure] if measure != "handshakes" else list(table.rows)
        for row in always:
            for column in table.columns:
                assert table.value(row, column) is not None, (row, column, table.reason(row))
                if column.startswith("kernel"):
                    continue  # slab may have shrunk, by what others do
                figure = table.value(row, column)
                # A process may have had the memory for these few already.
                least = 0 if table.unit == "KiB" or ticks else sys.float_info.min
                assert figure >= least, (row, column)
                some = some or figure > 0
    assert some


def test_the_class_on_plain_tcp_is_the_hot_path():
    """What is measured there has to be what runs in earnest, with data that arrives."""
    from benchmarks import connections, ends, material  # noqa: PLC0415

    near, far = connections.pair(CLASS, material.certificates())
    try:
        near.sendall(b"x" * 1000)
        room = memoryview(bytearray(1000))
        ends.receive(far, room, 1000)
        assert bytes(room) == b"x" * 1000
        for sock in (near, far):
            assert not sock.ktls.tx
            assert sock._layer.straight_in
            assert sock._layer.straight_out
        assert near._layer.records_sent == 1
    finally:
        connections.let_go(near)
        connections.let_go(far)


def test_targets_are_judged_from_what_was_measured(tmp_path):
    file = tmp_path / "results.json"
    done = run("--only", "sending", "receiving", "--json", str(file))
    assert done.returncode == 0, done.stderr
    verdicts = targets.verdicts(Results.from_json(file.read_text()))
    judged = [v for v in verdicts if v.reached is not None]
    # sendfile to ssl, records to ssl; and sendfile to the C program where there is a compiler.
    assert len(judged) == 2 + bool(shutil.which("cc"))
    for verdict in judged:
        assert verdict.figure in done.stdout
