"""The demo as far as any machine can show it: what it prints, its exit status, how it fails.

The steps with Python's own ssl run for real here; those with pyktls are in tests/kernel.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from pyktls import __version__, demo, linux
from pyktls.__main__ import main
from pyktls.ciphers import TLS_1_2, TLS_1_3
from pyktls.demo import CANNOT_RUN, FAILED, OK, ends, limits, material, results, running
from pyktls.demo.display import Display
from pyktls.demo.evidence import Evidence
from pyktls.demo.outcomes import Outcome, doubts
from pyktls.demo.steps import MIB, SERVED, Setting, Step, all_steps
from pyktls.errors import Unavailable
from support.systems import linux_only

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pyktls.demo.display import Progress

SIZE = 3 * MIB
STAT = {"TlsCurrTxSw": 0, "TlsTxSw": 2, "TlsRxSw": 2, "TlsDecryptError": 0}


def evidence(**changes: Any) -> Evidence:
    values: dict[str, Any] = {
        "socket": "127.0.0.1:65535 to 127.0.0.1:65534",
        "ulp": "tls",
        "version": TLS_1_3,
        "cipher": "CHACHA20_POLY1305",
        "tx": "software",
        "rx": "software",
        "sock_diag": {"name": "tls", "version": 772, "cipher_type": 54, "tx_conf": 2, "rx_conf": 2},
        "ss": "tcp-ulp-tls version: 1.3 cipher: aes-gcm-256 rxconf: sw txconf: sw",
        "counters": {"TlsCurrTxSw": 1, "TlsCurrRxSw": 1, "TlsTxSw": 1, "TlsRxSw": 1},
        "tx_records": 4097,
        "rx_records": 1,
    }
    return Evidence(**values | changes)


def outcome(
    python: str = "pyktls", peer: str = "s_client", version: int = TLS_1_3, **changes: Any
) -> Outcome:
    values: dict[str, Any] = {
        "cipher": "TLS_AES_256_GCM_SHA384",
        "bytes": 64 * MIB,
        "seconds": 2.0,
        "cpu_seconds": 0.5 if python == "pyktls" else 1.5,
        "sha256": "00" * 32,
        "evidence": evidence() if python == "pyktls" else evidence(ulp="", tx="none", rx="none"),
    }
    return Outcome(Step(version, python, peer), **values | changes)


def all_outcomes(failure: str | None = None) -> list[Outcome]:
    return [
        outcome(step.python, step.peer, step.version, failure=failure)
        for step in all_steps(curl=True)
    ]


def children() -> list[int]:
    """The processes that this one has started and that are still there."""
    return children_of(os.getpid())


def children_of(parent: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        path = pathlib.Path(f"/proc/{parent}/task/{parent}/children")
        return [int(pid) for pid in path.read_text().split()]
    command = ["ps", "-ax", "-o", "pid=", "-o", "ppid="]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as ps:
        rows = [map(int, line.split()) for line in ps.communicate()[0].splitlines()]
    return [pid for pid, its_parent in rows if its_parent == parent and pid != ps.pid]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    place = tmp_path_factory.mktemp("demo")
    openssl = material.find_openssl()
    material.make_certificate(openssl, place)
    sha256 = material.make_file(place / SERVED, SIZE, ignore)
    return Setting(openssl, shutil.which("curl"), None, place, SIZE, sha256)


def ignore(_done: int, _size: int) -> None:
    pass


# ---- what is shown ---------------------------------------------------------------------------


def test_the_table_fits_80_columns() -> None:
    outcomes = [
        outcome(cipher="TLS_CHACHA20_POLY1305_SHA256", seconds=0.001, cpu_seconds=1234.5),
        outcome(peer="s_server", version=TLS_1_2, evidence=evidence(tx="kernel", rx="device")),
        outcome("ssl", cipher="ECDHE-ECDSA-AES256-GCM-SHA384", version=TLS_1_2),
        Outcome(Step(TLS_1_3, "pyktls", "curl"), failure="it went wrong"),
        outcome(cipher="A_CIPHER_OF_THE_FUTURE_WITH_A_LONG_NAME"),
    ]
    lines = results.table(outcomes)
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == (
        ["TLS", "sent", "by", "->", "to", "cipher", "TX", "RX", "MB/s", "CPU", "s", "result"]
    )
    assert lines[2].split()[1:7] == ["pyktls", "->", "s_client", "CHACHA20", "software", "software"]
    assert lines[2].split()[7:] == ["67109", "1234", "ok"]
    assert lines[3].split()[1:7] == ["s_server", "->", "pyktls", "AES_256_GCM", "kernel", "device"]
    assert lines[4].split()[5:7] == ["OpenSSL", "OpenSSL"]
    assert lines[5].split()[4:] == ["-", "-", "-", "-", "-", "FAILED"]


@pytest.mark.parametrize("failure", [None, "the kernel did not confirm: " + "it said no, " * 30])
def test_all_that_is_shown_fits_80_columns(failure: str | None) -> None:
    out = io.StringIO()
    display = Display(out)
    outcomes = all_outcomes(failure)
    for one in outcomes:
        results.show_evidence(one, display)
    results.show_evidence(
        outcome(evidence=evidence(sock_diag=None, ss=None, version=None)), display
    )
    results.show_evidence(outcome(evidence=None), display)
    results.show_counters(STAT, dict.fromkeys(STAT, 10**7), 6, display)
    results.show_results(outcomes, display)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert all(line == line.rstrip() for line in lines)
    assert sum(line.startswith("FAILED  TLS 1.") for line in lines) == (10 if failure else 0)


def test_the_comparison_is_one_sentence_with_the_ratio() -> None:
    assert results.comparison(all_outcomes()) == (
        "To send this file to s_client, Python's ssl took 3.0 times the CPU time of pyktls's "
        "sendfile in this run: 1.50 s against 0.50 s with TLS 1.3, 1.50 s against 0.50 s with "
        "TLS 1.2."
    )


def test_nothing_is_compared_with_what_failed() -> None:
    assert results.comparison(all_outcomes("no")) == "There is nothing to compare in this run."
    assert results.cpu_ratio({}) is None
    assert results.comparison([outcome(cpu_seconds=0.0), outcome("ssl")]) == results.comparison([])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_one_changing_line_on_a_terminal_and_nothing_elsewhere() -> None:
    for out in (Terminal(), io.StringIO()):
        display = Display(out)
        progress = display.progress("[1/10] a step")
        progress(MIB, 64 * MIB)
        progress(2 * MIB, 64 * MIB)  # too soon
        time.sleep(0.11)
        progress(32 * MIB, 64 * MIB)
        display.line("[1/10] a step: done")
        text = out.getvalue()
        assert text.endswith("[1/10] a step: done\n")
        assert text.count("\n") == 1
        if isinstance(out, Terminal):
            assert text.startswith("[1/10] a step ...\r")
            assert "\r[1/10] a step: 1 of 67 MB, " in text
            assert "\r[1/10] a step: 34 of 67 MB, " in text
            assert "2 of 67" not in text
        else:
            assert "\r" not in text


# ---- is it enough? ---------------------------------------------------------------------------


def test_full_evidence_leaves_no_doubt() -> None:
    assert doubts(outcome()) == []
    fetched = evidence(tx_records=1, rx_records=4099)
    assert doubts(outcome(peer="s_server", evidence=fetched)) == []
    # What the kernel does not tell is no contradiction.
    silent = evidence(sock_diag=None, ss=None, tx="kernel", rx="kernel", tx_records=None)
    assert doubts(outcome(evidence=silent)) == []
    # A card keeps the numbers itself, and has a counter of its own.
    card = evidence(tx="device", tx_records=0, counters={"TlsTxDevice": 1, "TlsRxSw": 1})
    assert doubts(outcome(evidence=card)) == []


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({"ulp": ""}, "TCP_ULP is ''"),
        ({"tx": "none"}, "TX is not in the kernel"),
        ({"rx": "none"}, "RX is not in the kernel"),
        ({"tx_records": 4095}, "4095 TX records are too few for 67108864 bytes"),
        ({"rx_records": 0}, "0 RX records are too few for 1 bytes"),
        ({"counters": {"TlsRxSw": 1}}, "/proc/net/tls_stat counted no TX session"),
        ({"counters": {"TlsTxSw": 1}}, "/proc/net/tls_stat counted no RX session"),
        (
            {"sock_diag": {"tx_conf": 2, "rx_conf": 1}},
            "sock_diag says that RX is not in the kernel",
        ),
    ],
)
def test_each_gap_in_the_evidence_is_a_doubt(changes: dict[str, Any], doubt: str) -> None:
    assert doubts(outcome(evidence=evidence(**changes))) == [doubt]


def test_no_evidence_is_a_doubt() -> None:
    assert doubts(outcome(evidence=None))


# ---- the command -----------------------------------------------------------------------------


@pytest.fixture
def no_kernel_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "check_kernel", lambda: None)
    monkeypatch.setattr(linux, "tls_stat", lambda: dict(STAT))


def pretend(failure: str | None) -> Callable[..., Outcome]:
    def run_step(step: Step, _: Setting, progress: Progress) -> Outcome:
        progress(MIB, MIB)
        fails = step.python == "pyktls" and step.peer == "curl"
        return outcome(step.python, step.peer, step.version, failure=failure if fails else None)

    return run_step


@pytest.mark.usefixtures("no_kernel_needed")
@pytest.mark.parametrize(("failure", "code"), [(None, OK), ("the far end has more", FAILED)])
def test_json_is_all_of_stdout_and_the_exit_status_follows_the_steps(
    failure: str | None,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(demo, "run_step", pretend(failure))
    assert main(["demo", "--size", "1", "--json"]) == code
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["ok"] is (code == OK)
    assert result["pyktls"] == __version__
    assert result["file"]["bytes"] == MIB
    assert len(result["file"]["sha256"]) == 64
    assert result["tls_stat"] == {"before": STAT, "after": STAT}
    assert result["cpu_ratio"] == {"all": 3.0, "TLS 1.3": 3.0, "TLS 1.2": 3.0}
    steps = result["steps"]
    assert {(s["tls"], s["python"], s["peer"]) for s in steps} >= {
        (version, "pyktls", peer)
        for version in ("TLS 1.3", "TLS 1.2")
        for peer in ("s_client", "s_server")
    }
    wanted = {
        "tls", "python", "peer", "direction", "ok", "failure", "cipher", "tx", "rx", "bytes",
        "seconds", "megabytes_per_second", "cpu_seconds", "sha256", "evidence",
    }  # fmt: skip
    assert all(set(step) == wanted for step in steps)
    assert {step["failure"] for step in steps} == {None, failure}
    # And people see the same on the other stream.
    assert ("FAILED  TLS 1.3, pyktls -> curl: the far end has more" in captured.err) is bool(
        failure
    )


@pytest.mark.usefixtures("no_kernel_needed")
def test_without_json_all_is_on_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "run_step", pretend(None))
    assert main(["demo", "--size", "1"]) == OK
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "[1/10] TLS 1.3, pyktls -> s_client: 67 MB in 2.0 s, 34 MB/s, SHA-256 equal" in (
        captured.out.splitlines()
    )
    lines = captured.out.splitlines()
    assert max(len(line) for line in lines if not line.startswith("the file:")) <= 80


@pytest.mark.usefixtures("no_kernel_needed")
def test_without_curl_the_rest_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "openssl").symlink_to(material.find_openssl())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(demo, "run_step", pretend("never"))
    assert main(["demo", "--size", "1", "--json"]) == OK
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["left_out"] == ["curl"]
    assert {step["peer"] for step in result["steps"]} == {"s_client", "s_server"}
    assert "curl not found: left out" in captured.err


@linux_only
def test_a_kernel_without_tls_is_one_sentence_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def set_ulp(*_: object) -> None:
        raise OSError(errno.ENOENT, "setsockopt(TCP_ULP): No such file or directory")

    monkeypatch.setattr(linux.system, "set_ulp", set_ulp)
    assert main(["demo"]) == CANNOT_RUN
    captured = capsys.readouterr()
    assert captured.out == ""
    assert all(len(line) <= 80 for line in captured.err.splitlines())
    said = " ".join(captured.err.split())
    assert said.startswith("pyktls demo: this kernel offers no TLS: ")
    assert "modprobe tls" in said
    assert "`make demo` runs the demo in a virtual machine" in said

    assert main(["demo", "--json"]) == CANNOT_RUN
    result = json.loads(capsys.readouterr().out)
    assert result["ok"] is False
    assert "this kernel offers no TLS" in result["cannot_run"]


@linux_only
def test_a_python_that_cannot_be_watched_is_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def watch(_: object) -> None:
        raise Unavailable("this Python's OpenSSL cannot be reached")

    monkeypatch.setattr(material, "watch", watch)
    assert main(["demo"]) == CANNOT_RUN
    assert "cannot be reached" in capsys.readouterr().err


def test_without_openssl_it_says_so_with_status_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["demo"]) == CANNOT_RUN
    assert "the `openssl` program was not found" in capsys.readouterr().err


@pytest.mark.usefixtures("no_kernel_needed")
def test_an_openssl_that_makes_no_certificate_is_status_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "openssl"
    program.write_text("#!/bin/sh\necho no entropy >&2; exit 7\n")
    program.chmod(0o700)
    monkeypatch.setattr(demo, "find_openssl", lambda: str(program))
    assert main(["demo", "--size", "1"]) == CANNOT_RUN
    assert "`openssl req` made no certificate: no entropy" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b""])
def test_a_file_that_cannot_be_sent_is_status_2(
    content: bytes | None, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    assert main(["demo", "--file", str(file)]) == CANNOT_RUN
    assert str(file) in capsys.readouterr().err


@pytest.mark.parametrize("size", ["0", "-1", "many"])
def test_a_size_that_is_none_is_status_2(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["demo", f"--size={size}"])
    assert caught.value.code == CANNOT_RUN
    assert "--size" in capsys.readouterr().err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["demo", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines
        assert max(map(len, lines)) <= 80


def test_temporary_files_go_to_tmpdir_or_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert material.choose_place(MIB) is None  # tempfile takes it from there
    monkeypatch.delenv("TMPDIR")
    assert material.choose_place(1 << 60) is None  # no room
    assert material.choose_place(MIB) in ("/dev/shm", None)  # noqa: S108


# ---- steps -----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
@pytest.mark.parametrize("peer", ["s_client", "curl", "s_server"])
def test_pythons_own_ssl_runs_the_same_steps(version: int, peer: str, setting: Setting) -> None:
    if peer == "curl" and setting.curl is None:
        pytest.skip("this machine has no curl")
    seen: list[int] = []
    done = running.run_step(Step(version, "ssl", peer), setting, lambda now, _: seen.append(now))
    assert done.failure is None
    assert done.bytes == SIZE
    assert done.sha256 == setting.sha256
    assert done.cipher is not None
    assert "GCM" in done.cipher
    assert done.seconds is not None
    assert 0 < done.seconds < 60
    assert done.cpu_seconds is not None
    assert 0 < done.cpu_seconds < 60
    assert done.evidence is not None
    assert (done.evidence.ulp, done.evidence.tx, done.evidence.rx) == ("", "none", "none")
    assert peer == "s_server" or seen[-1] == SIZE
    assert children() == []


@pytest.mark.parametrize("peer", ["s_client", "s_server"])
def test_another_hash_or_size_fails_the_step(peer: str, setting: Setting) -> None:
    other = dataclasses.replace(setting, sha256="0" * 64)
    done = running.run_step(Step(TLS_1_3, "ssl", peer), other, ignore)
    assert done.failure == f"the SHA-256 at the far end is another: {setting.sha256}"
    longer = dataclasses.replace(setting, size=SIZE + 1)
    done = running.run_step(Step(TLS_1_3, "ssl", peer), longer, ignore)
    assert done.failure == f"{SIZE} of {SIZE + 1} bytes arrived"


@linux_only
def test_a_pyktls_step_without_evidence_fails(
    monkeypatch: pytest.MonkeyPatch, setting: Setting
) -> None:
    """An offload that does nothing: everything arrives, and still the step has failed."""
    monkeypatch.setattr(linux, "tls_stat", lambda: dict(STAT))
    monkeypatch.setattr(ends, "offload", lambda tls: tls)
    done = running.run_step(Step(TLS_1_3, "pyktls", "s_client"), setting, ignore)
    assert done.sha256 == setting.sha256
    assert done.failure is not None
    assert done.failure.startswith("the kernel did not confirm: TCP_ULP is '', TX is not in ")


@linux_only
def test_a_failing_python_end_is_the_reason(
    monkeypatch: pytest.MonkeyPatch, setting: Setting
) -> None:
    def offload(_: object) -> None:
        raise Unavailable("this kernel offers no TLS", remedy="load it")

    monkeypatch.setattr(linux, "tls_stat", lambda: dict(STAT))
    monkeypatch.setattr(ends, "offload", offload)
    for peer in ("s_client", "s_server"):
        done = running.run_step(Step(TLS_1_3, "pyktls", peer), setting, ignore)
        assert done.failure is not None
        assert done.failure.startswith("Unavailable: this kernel offers no TLS; load it")
        assert children() == []


def test_a_python_end_that_dies_is_noticed(
    monkeypatch: pytest.MonkeyPatch, setting: Setting
) -> None:
    monkeypatch.setattr(ends, "read_request", lambda _: os._exit(3))
    done = running.run_step(Step(TLS_1_3, "ssl", "s_client"), setting, ignore)
    assert done.failure is not None
    assert done.failure.startswith("the Python end died (exit status 3)")


def test_a_peer_that_fails_is_named_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, setting: Setting
) -> None:
    monkeypatch.setattr(
        running, "s_client", lambda *_: ["sh", "-c", "echo 'I will not' >&2; exit 4"]
    )
    done = running.run_step(Step(TLS_1_3, "ssl", "s_client"), setting, ignore)
    assert done.failure == "s_client ended with status 4: I will not"
    monkeypatch.setattr(running, "s_server", lambda *_: ["sh", "-c", "echo 'Nor I' >&2; exit 5"])
    done = running.run_step(Step(TLS_1_3, "ssl", "s_server"), setting, ignore)
    assert done.failure == "s_server ended with status 5: Nor I"
    monkeypatch.setattr(running, "s_server", lambda *_: ["/no/such/program"])
    done = running.run_step(Step(TLS_1_3, "ssl", "s_server"), setting, ignore)
    assert done.failure is not None
    assert "/no/such/program" in done.failure
    assert children() == []


@pytest.mark.parametrize("peer", ["s_client", "s_server"])
def test_a_peer_that_hangs_is_killed(
    peer: str, monkeypatch: pytest.MonkeyPatch, setting: Setting
) -> None:
    monkeypatch.setattr(limits, "START_TIMEOUT", 0.5)
    monkeypatch.setattr(limits, "STALL_TIMEOUT", 0.5)
    monkeypatch.setattr(running, peer, lambda *_: ["sleep", "1000"])
    started = time.monotonic()
    done = running.run_step(Step(TLS_1_3, "ssl", peer), setting, ignore)
    assert time.monotonic() - started < 10
    assert done.failure is not None
    assert f"{peer} printed nothing for 0 seconds" in done.failure
    assert children() == []


@pytest.mark.parametrize("peer", ["s_client", "s_server"])
def test_a_python_end_that_hangs_is_killed(
    peer: str, monkeypatch: pytest.MonkeyPatch, setting: Setting
) -> None:
    def hang(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)

    # The server is waited for from its start, the client only once s_server listens.
    waits = {"s_client": "START_TIMEOUT", "s_server": "STALL_TIMEOUT"}
    monkeypatch.setattr(limits, waits[peer], 0.5)
    monkeypatch.setattr(running, "serve", hang)
    monkeypatch.setattr(running, "fetch", hang)
    done = running.run_step(Step(TLS_1_3, "ssl", peer), setting, ignore)
    assert done.failure == "the Python end said nothing for 0 seconds"
    assert children() == []
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
@pytest.mark.parametrize("hanging", ["serve", "s_client"])
@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["alone", "group"])
def test_when_it_is_ended_nothing_stays_behind(
    send: Callable[[int, int], None], number: int, code: int, hanging: str, tmp_path: pathlib.Path
) -> None:
    """In the middle of a step that hangs; Ctrl-C goes to the whole group, kill to one process."""
    hang = "lambda *_: time.sleep(1000)" if hanging == "serve" else 'lambda *_: ["sleep", "1000"]'
    script = (
        "import signal, sys, time\n"
        # Whoever runs the tests may ignore them, as nohup does.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "from pyktls import demo, linux\n"
        "from pyktls.__main__ import main\n"
        "from pyktls.demo import running\n"
        "demo.check_kernel = lambda: None\n"
        "linux.tls_stat = lambda: {}\n"
        f"running.{hanging} = {hang}\n"
        'sys.exit(main(["demo", "--size", "1"]))\n'
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        for line in process.stdout:
            if line.startswith("SHA-256"):
                break
        started = wait_for_children(process.pid, 1 if hanging == "serve" else 2)
        assert list(tmp_path.iterdir())
        send(process.pid, number)
        rest, _ = process.communicate(timeout=30)
        assert process.returncode == code
        assert "Traceback" not in rest
        assert list(tmp_path.iterdir()) == []
        wait_until_gone(started)


def wait_until_gone(pids: Iterable[int]) -> None:
    """They have been ended; whoever is the parent of an orphan may need a moment to notice."""
    end = time.monotonic() + 20
    while left := [pid for pid in pids if is_there(pid)]:
        assert time.monotonic() < end, f"processes stay behind: {left}"
        time.sleep(0.05)


def is_there(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def wait_for_children(pid: int, number: int) -> list[int]:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        found = children_of(pid)
        if len(found) >= number:
            time.sleep(0.2)  # until they are waited for
            return found
        time.sleep(0.02)
    raise AssertionError(f"{number} children never came")
