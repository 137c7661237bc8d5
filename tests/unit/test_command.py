"""The command: its help, how it ends, stat and sockets with answers made by hand, the man page."""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import errno
import io
import itertools
import json
import os
import pathlib
import pty
import re
import signal
import socket
import subprocess
import sys
from typing import Any

import pytest

from pyktls import InvalidValue, Mode, SocketInfo, TCPState, Unavailable, __version__
from pyktls import commands as table
from pyktls.__main__ import main
from pyktls.commands import COMMANDS, build_parser, ending, manual, sockets, stat
from pyktls.commands.stat import Change, Reading
from pyktls.commands.terminal import Paint, fold
from pyktls.linux import TLSStat
from pyktls.serve import access_log
from pyktls.survey import Endpoint
from support.systems import linux_only

COMMAND = [sys.executable, "-m", "pyktls"]
# As when a shell starts it.
SIGNALS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (found,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(found.choices)


# ---- help and version ------------------------------------------------------------------------


def test_help_lists_all(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert list(COMMANDS) == ["doctor", "demo", "serve", "sockets", "stat"]
    for name, command in COMMANDS.items():
        assert re.search(rf"^    {name} +{re.escape(command.summary)}$", out, re.MULTILINE)
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each(name: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([name, "--help"])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "--json" in out
    for number in COMMANDS[name].load().EXIT_STATUS:
        assert re.search(rf"^  {number}  \S", out[out.index("\nexit status:\n") :], re.MULTILINE)


def test_each_says_what_wrong_usage_is() -> None:
    for command in COMMANDS.values():
        assert "wrong usage" in command.load().EXIT_STATUS[2]  # argparse's


@pytest.mark.parametrize("arguments", [[], ["--json"], ["nonsense"], ["stat", "--nonsense"]])
def test_wrong_usage(arguments: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: pyktls")


def test_a_command_is_loaded_only_when_it_is_wanted() -> None:
    script = (
        "import sys, pyktls.__main__ as m\n"
        "before = set(sys.modules)\n"
        "try: m.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(*sorted(n for n in sys.modules if n.startswith(('pyktls.doctor', 'pyktls.demo',"
        " 'pyktls.serve', 'pyktls.commands.s'))))\n"
    )

    def loaded(*arguments: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()[-1].split()

    assert loaded("--version") == []
    assert loaded("--help") == []
    assert loaded("stat", "--help") == ["pyktls.commands.stat"]
    assert {name.split(".")[1] for name in loaded("demo", "--help")} == {"demo"}


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"pyktls {__version__}\n")


# ---- endings ---------------------------------------------------------------------------------


def test_the_status_is_passed_on() -> None:
    assert ending.run_to_its_end(lambda: 7) == 7


def interrupted() -> int:
    raise KeyboardInterrupt


def test_an_interrupt_is_no_traceback(capsys: Any) -> None:
    assert ending.run_to_its_end(interrupted) == 130
    assert capsys.readouterr().err == ""


#: A command that writes for ever, as fast as it can.
ENDLESS = (
    SIGNALS + "import sys\n"
    "from pyktls.commands import stat\n"
    "from pyktls.__main__ import main\n"
    "numbers = iter(range(1, 1000000))\n"
    "stat.read = lambda pid: stat.Reading(next(numbers), {'TlsCurrTxSw': 1}, {'TlsTxSw': 2})\n"
    "stat.time.sleep = lambda seconds: None\n"
    "sys.exit(main(['stat', '--watch', *sys.argv[1:]]))\n"
)


def endless(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ENDLESS, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("arguments", [[], ["--json"]], ids=["text", "json"])
def test_a_closed_pipe_ends_it_quietly(arguments: list[str]) -> None:
    with endless(*arguments) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 141


def test_a_pipe_that_is_closed_before_anything_is_written() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    # Unbuffered it is argparse who sees the error, and passes over it.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [*COMMAND, "--help"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env=environment,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["doctor", "stat"])
def test_a_full_disk_is_no_answer(command: str, unbuffered: str) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [*COMMAND, command, "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 74
    message = "pyktls: the output cannot be written: No space left on device"
    assert done.stderr.splitlines()[-1] == message
    assert "Traceback" not in done.stderr


def test_other_errors_are_not_swallowed() -> None:
    def fail() -> int:
        raise OSError(errno.EBADMSG, "a bug")

    with pytest.raises(OSError, match="a bug"):
        ending.run_to_its_end(fail)


def test_an_interrupt_ends_it_quietly() -> None:
    with endless() as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.stderr.read() == ""
        assert process.wait(60) == 130


def test_without_any_standard_output() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ("import sys; from pyktls.__main__ import main; sys.stdout = None\n"
         "main(['--help'])")],
        stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr


# ---- colours and widths ----------------------------------------------------------------------


@pytest.fixture
def xterm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.usefixtures("xterm")
def test_colours() -> None:
    paint = Paint(Terminal())
    shown = {paint.bold("x"), paint.good("x"), paint.middling("x"), paint.bad("x")}
    assert len(shown) == 4
    assert all(re.fullmatch(r"\x1b\[\d+mx\x1b\[0m", text) for text in shown)
    assert paint.bad("") == ""


@pytest.mark.usefixtures("xterm")
def test_no_colours_where_nobody_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Paint(io.StringIO()).on
    assert not Paint(None).on
    monkeypatch.setenv("TERM", "dumb")
    assert not Paint(Terminal()).on
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "")
    assert Paint(Terminal()).on
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Paint(Terminal()).on
    assert Paint(Terminal()).bad("x") == "x"


def test_colours_on_a_real_terminal_only() -> None:
    def through_a_terminal(**environment: str) -> bytes:
        main_side, other_side = pty.openpty()
        keep = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
        with subprocess.Popen(
            [*COMMAND, "doctor"], stdout=other_side, env={**keep, "TERM": "xterm", **environment}
        ) as process:
            os.close(other_side)
            shown = bytearray()
            while True:
                try:
                    piece = os.read(main_side, 65536)
                except OSError:  # EIO: the other side is closed
                    break
                if not piece:
                    break
                shown += piece
            assert process.wait(60) in (0, 1, 3)
        os.close(main_side)
        return bytes(shown)

    coloured, plain = through_a_terminal(), through_a_terminal(NO_COLOR="1")
    assert coloured.startswith(b"\x1b[3")
    assert b"\x1b" not in plain
    assert "\x1b" not in run("doctor").stdout


def test_what_cannot_be_broken_stays_whole() -> None:
    path = "/" + "x" * 100
    assert path in fold(f"see {path} for more")
    assert fold("a b", "* ") == ["* a b"]


# ---- stat ------------------------------------------------------------------------------------

LINUX = {
    "TlsCurrTxSw": 3, "TlsCurrRxSw": 2, "TlsCurrTxDevice": 1, "TlsCurrRxDevice": 0,
    "TlsTxSw": 30, "TlsRxSw": 20, "TlsTxDevice": 10, "TlsRxDevice": 0,
    "TlsDecryptError": 0, "TlsRxDeviceResync": 0, "TlsDecryptRetry": 0, "TlsRxNoPadViolation": 0,
    "TlsTxRekeyOk": 4, "TlsRxRekeyOk": 0, "TlsTxRekeyError": 0, "TlsRxRekeyError": 0,
}  # fmt: skip


def reading(taken: float = 1.0, **values: int) -> Reading:
    found = TLSStat({**LINUX, **values}, taken)
    return Reading(found.taken, found.gauges, found.counters, found.errors)


@pytest.fixture
def linux_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Linux, whatever this is."""
    monkeypatch.setattr(stat, "_COLUMNS", dict.fromkeys(stat._COLUMNS, stat._COLUMNS["Linux"]))


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[Any]:
    """What is read next: a Reading, or an error."""
    request.getfixturevalue("linux_columns")
    following: list[Any] = []

    def read(pid: int | None) -> Reading:
        assert pid in (None, 42)
        item = following.pop(0)
        if isinstance(item, BaseException):
            raise item
        return item

    monkeypatch.setattr(stat, "read", read)
    monkeypatch.setattr(stat.time, "sleep", lambda _: None)
    return following


def test_stat(readings: list[Any], capsys: Any) -> None:
    readings.append(reading())
    assert main(["stat"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "now"
    assert "  TlsCurrTxSw                              3" in lines
    assert lines.index("  TlsTxSw                                 30") > lines.index("since boot")
    assert len(lines) == len(LINUX) + 2  # no error, no explanation


def test_stat_explains_errors(readings: list[Any], capsys: Any) -> None:
    readings.append(reading(TlsDecryptError=7, TlsNewRekeyError=1))
    assert main(["stat", "--pid", "42"]) == 0
    out = capsys.readouterr().out
    assert "  TlsDecryptError                          7\n" in out
    assert "\nTlsDecryptError: a received record did not decrypt" in out
    assert "\nTlsNewRekeyError: an error that pyktls does not know of" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.usefixtures("xterm")
def test_stat_shows_errors_in_red() -> None:
    out = Terminal()
    stat.show(reading(TlsDecryptError=7), False, out)
    red = re.findall(r"\x1b\[31m(.*?)\x1b", out.getvalue())
    assert [line.split() for line in red] == [["TlsDecryptError", "7"]]


def test_stat_json(readings: list[Any], capsys: Any) -> None:
    readings.append(reading(TlsDecryptError=7))
    assert main(["stat", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"time", "gauges", "counters", "errors"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found["time"])
    assert {**found["gauges"], **found["counters"]} == {**LINUX, "TlsDecryptError": 7}
    assert set(found["gauges"]) == {name for name in LINUX if name.startswith("TlsCurr")}
    (error,) = found["errors"]
    assert (error["name"], error["count"]) == ("TlsDecryptError", 7)
    assert error["meaning"].startswith("a received record")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Unavailable("no such file", remedy="load it"), 3),
        (ProcessLookupError(3, "no such process"), 1),
        (PermissionError(13, "not yours"), 1),
        (InvalidValue("not on this system"), 3),
    ],
)
def test_stat_that_cannot(readings: list[Any], capsys: Any, error: Exception, status: int) -> None:
    readings += [error, error]
    assert main(["stat"]) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert str(error) in said.err
    assert main(["stat", "--json", "--watch", "5"]) == status
    assert json.loads(capsys.readouterr().out) == {"error": str(error)}


def test_watch(readings: list[Any], capsys: Any) -> None:
    readings += [
        reading(10.0),
        reading(12.0, TlsTxSw=33, TlsTxDevice=12, TlsCurrTxSw=5),
        reading(13.0, TlsTxSw=33, TlsTxDevice=12, TlsDecryptError=2, TlsTxRekeyOk=5),
        reading(14.0, TlsTxSw=33, TlsTxDevice=12, TlsDecryptError=2, TlsTxRekeyOk=5),
    ]
    assert main(["stat", "--watch", "--count", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["now", "new", "per", "second"]
    assert lines[1].split() == ["time", "tx", "rx", "in", "card", "tx", "rx", "rekeys", "errors"]
    assert lines[2].split()[1:] == ["6", "2", "1", "2.5", "0.0", "0.0", "0.0"]
    assert lines[3].split()[1:] == ["4", "2", "1", "0.0", "0.0", "1.0", "2.0"]
    assert re.match(r"\d\d:\d\d:\d\d ", lines[2])
    assert len([line for line in lines if "TlsDecryptError" in line]) == 1
    assert lines[4].split()[:2] == ["TlsDecryptError", "+2:"]
    assert max(map(len, lines)) <= 80


def test_watch_where_a_counter_is_not_there() -> None:
    old = {k: v for k, v in LINUX.items() if "Rekey" not in k}
    first, second = (
        Reading(t, {}, {k: v for k, v in old.items() if "Curr" not in k}) for t in (1.0, 2.0)
    )
    texts = [column.text(second, second.change(first)) for column in stat._COLUMNS["Linux"]]
    assert texts == ["-", "-", "-", "0.0", "0.0", "-", "0.0"]


def test_watch_json(readings: list[Any], capsys: Any) -> None:
    readings += [reading(10.0), reading(10.5, TlsTxSw=31), reading(11.0, TlsTxSw=31)]
    assert main(["stat", "--watch", "0.5", "--count", "2", "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert set(first) == {"time", "gauges", "counters", "errors", "seconds", "rates"}
    assert first["seconds"] == 0.5
    assert set(first["rates"]) == set(first["counters"])
    assert (first["rates"]["TlsTxSw"], second["rates"]["TlsTxSw"]) == (2.0, 0.0)


def test_watch_goes_on_after_the_counters_began_anew(readings: list[Any], capsys: Any) -> None:
    readings += [reading(1.0), reading(2.0, TlsTxSw=0), reading(3.0, TlsTxSw=1)]
    assert main(["stat", "--watch", "--count", "2"]) == 0
    said = capsys.readouterr()
    assert "TlsTxSw went down" in said.err
    assert len(said.out.splitlines()) == 3


def test_watch_ends_when_the_module_is_gone(readings: list[Any], capsys: Any) -> None:
    readings += [reading(1.0), reading(2.0), Unavailable("it is gone")]
    assert main(["stat", "--watch"]) == 3
    assert "it is gone" in capsys.readouterr().err


@pytest.mark.usefixtures("linux_columns", "xterm")
def test_the_header_comes_again_on_a_terminal() -> None:
    for out, headers in ((Terminal(), 3), (io.StringIO(), 1)):
        line = stat._text_lines(out)
        for number in range(45):
            line(reading(number + 1.0), reading(number + 1.0).change(reading(number)))
        assert out.getvalue().count("new per second") == headers


def test_watch_waits_as_long_as_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow reading does not shift the ones after it."""
    now = [100.0]
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        now[0] += seconds

    def read(_: object) -> Reading:
        taken = now[0]
        now[0] += 0.25
        return reading(taken)

    monkeypatch.setattr(stat, "read", read)
    monkeypatch.setattr(stat.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(stat.time, "sleep", sleep)
    stat.watch(None, 1.0, 4, True, io.StringIO())
    assert waited == [0.75] * 4


@pytest.mark.parametrize(
    "arguments",
    [["--count", "2"], ["--watch", "0"], ["--watch", "nan"], ["--watch", "x"], ["--pid", "0"],
     ["--watch", "--count", "0"]],
)  # fmt: skip
def test_stat_refuses(arguments: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["stat", *arguments])
    assert caught.value.code == 2
    assert "usage: pyktls stat" in capsys.readouterr().err


def test_a_change_needs_time() -> None:
    with pytest.raises(InvalidValue, match="no time"):
        reading(1.0).change(reading(1.0))
    assert reading(3.0).change(reading(1.0)) == Change(
        2.0, {name: 0 for name in LINUX if "Curr" not in name}
    )


def test_freebsds_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "kern.ipc.tls.stats.active": 2,
        "kern.ipc.tls.stats.offload_total": 9,
        "kern.ipc.tls.stats.sw_tx_inqueue": 1,
        "kern.ipc.tls.sw.gcm": 2,
        "kern.ipc.tls.ifnet.reset": 3,
        "kern.ipc.tls.ifnet.gcm": 0,
    }
    monkeypatch.setattr(stat.freebsd, "statistics", lambda: values)
    found = stat.read_freebsd(None)
    assert found.gauges == {
        "stats.active": 2,
        "stats.sw_tx_inqueue": 1,
        "sw.gcm": 2,
        "ifnet.gcm": 0,
    }
    assert found.counters == {"stats.offload_total": 9, "ifnet.reset": 3}
    later = dataclasses.replace(found, taken=found.taken + 1)
    change = later.change(found)
    texts = [column.text(later, change) for column in stat._COLUMNS["FreeBSD"]]
    assert texts == ["2", "0.0", "-", "-"]
    with pytest.raises(InvalidValue, match="--pid is for Linux"):
        stat.read_freebsd(1)


@linux_only
def test_a_process_that_is_not_there(capsys: Any) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    assert main(["stat", "--pid", str(child.pid)]) == 1
    assert "No such process" in capsys.readouterr().err


# ---- sockets ---------------------------------------------------------------------------------


def info(**changes: Any) -> SocketInfo:
    values: dict[str, Any] = {
        "family": socket.AF_INET,
        "local": Endpoint("192.0.2.1", 443),
        "remote": Endpoint("198.51.100.7", 50000),
        "state": TCPState.ESTABLISHED,
        "interface": None,
        "uid": 1000,
        "inode": 77,
        "rqueue": 0,
        "wqueue": 0,
        "version": 0x0304,
        "cipher": "AES_256_GCM",
        "tx": Mode.SOFTWARE,
        "rx": Mode.NONE,
        "zerocopy_ro": False,
        "rx_no_pad": False,
        "tx_max_payload_len": 16384,
        "processes": (os.getpid(),),
    }
    return SocketInfo(**{**values, **changes})


LONG = "2001:db8:1111:2222:3333:4444:5555:6666"
INFOS = (
    info(),
    info(
        family=socket.AF_INET6,
        local=Endpoint(LONG, 65535),
        remote=Endpoint(LONG, 65534),
        state=99,
        zerocopy_ro=True,
        rx_no_pad=True,
        tx_max_payload_len=1000,
        rqueue=5,
        wqueue=6,
        processes=tuple(range(10**9, 10**9 + 20)),
    ),
    info(version=None, cipher=None, tx=Mode.NONE, processes=None),
    info(inode=0, processes=()),
)


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(*, processes: bool) -> list[SocketInfo]:
        assert processes
        return list(INFOS)

    monkeypatch.setattr(sockets, "sockets", found)


@pytest.mark.usefixtures("listed")
def test_sockets(capsys: Any) -> None:
    assert main(["sockets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    name = sockets.name_of(os.getpid()) or "?"
    assert lines[:3] == [
        "192.0.2.1:443 - 198.51.100.7:50000  ESTABLISHED",
        "    TLS 1.3 AES_256_GCM  tx software  rx none",
        f"    pid {os.getpid()} ({name})",
    ]
    assert lines[3:5] == [f"[{LONG}]:65535", f"  - [{LONG}]:65534  state 99"]
    text = " ".join(" ".join(lines).split())
    assert "zerocopy_ro), expects no padding (rx_no_pad), records of at most 1000 bytes" in text
    assert "5 bytes not read, 6 bytes not acknowledged" in text
    assert "pid 1000000000 (?), 1000000001 (?)" in text
    assert "    no keys" in lines
    assert "    inode 77 of uid 1000, process unknown" in lines
    assert "    closed by its process, the kernel carries it to its end" in lines
    assert max(map(len, lines)) <= 80


@pytest.mark.usefixtures("listed")
def test_sockets_json(capsys: Any) -> None:
    assert main(["sockets", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["sockets"]
    assert len(found) == len(INFOS)
    assert all(set(one) == {f.name for f in dataclasses.fields(SocketInfo)} for one in found)
    assert found[0]["family"] == "IPv4"
    assert found[0]["local"] == {"ip": "192.0.2.1", "port": 443, "scope_id": 0}
    assert (found[0]["state"], found[0]["version"]) == ("ESTABLISHED", "TLS 1.3")
    assert (found[0]["tx"], found[0]["rx"]) == ("software", "none")
    mine = {"pid": os.getpid(), "name": sockets.name_of(os.getpid())}
    assert found[0]["processes"] == [mine]
    assert (found[1]["family"], found[1]["state"]) == ("IPv6", "state 99")
    assert found[2]["version"] is None
    assert (found[2]["processes"], found[3]["processes"]) == (None, [])


def test_no_sockets(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sockets, "sockets", lambda **_: [])
    assert main(["sockets"]) == 0
    assert capsys.readouterr().out.startswith("no connection")
    assert main(["sockets", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"sockets": []}


@pytest.mark.parametrize("error", [Unavailable("no", remedy="ask as root"), OSError(5, "input")])
def test_sockets_that_are_not_told(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, error: Exception
) -> None:
    def refuse(**_: bool) -> list[SocketInfo]:
        raise error

    monkeypatch.setattr(sockets, "sockets", refuse)
    assert main(["sockets", "--json"]) == 3
    said = capsys.readouterr()
    assert json.loads(said.out) == {"error": str(error)}
    assert str(error) in said.err


@linux_only
def test_the_name_of_a_process_writes_nothing_on_the_terminal() -> None:
    script = (
        "import ctypes; ctypes.CDLL(None).prctl(15, b'a\\x1b[31m\\nb', 0, 0, 0); print(); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert sockets.name_of(child.pid) == "a?[31m?b"
        child.communicate("\n", timeout=60)
    assert sockets.name_of(child.pid) is None


# ---- the man page ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page() -> str:
    return manual.manual()


def section(page: str, title: str) -> str:
    found = re.search(rf"^\.SH {title}\n(.*?)(?=^\.SH |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def plain(text: str) -> str:
    return text.replace("\\-", "-").replace("\\&", "").replace("\\e", "\\")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_and_exit_status_is_in_it(page: str, name: str) -> None:
    part = plain(section(page, f"PYKTLS {name.upper()}"))
    parser = subparsers(build_parser({name}))[name]
    for action in parser._actions:
        for word in action.option_strings or [action.metavar]:
            assert re.search(rf"^\.B (?:.*, )?{re.escape(word)}\b", part, re.MULTILINE), word
    for number, meaning in COMMANDS[name].load().EXIT_STATUS.items():
        assert f".B {number}\n{meaning}\n" in part
    words = set(re.findall(r"\w+", parser.description or ""))
    assert words <= set(re.findall(r"\w+", part))


def test_what_is_common_is_in_it(page: str) -> None:
    for number, meaning in table.EXIT_STATUS.items():
        assert f".B {number}\n{meaning}\n" in section(page, "EXIT STATUS")
    description = plain(section(page, "DESCRIPTION"))
    for name, command in COMMANDS.items():
        assert f".B pyktls {name}\n{command.summary}\n" in description
    assert f'"pyktls {__version__}"' in page.splitlines()[0]
    assert "NO_COLOR" in section(page, "ENVIRONMENT")


def test_synopsis_is_as_the_parsers_say(page: str) -> None:
    synopsis = plain(section(page, "SYNOPSIS"))
    assert "[--watch [SECONDS]] [--count N] [--pid PID] [--json]\n" in synopsis
    options = plain(section(page, "PYKTLS STAT"))
    assert "\n.B --watch [SECONDS]\n" in options
    assert "\n.B --count N\n" in options
    assert "\n.B --json\n" in options
    assert re.search(r"^\.B pyktls serve\n\[-h\].* DIR$", synopsis, re.MULTILINE)


def test_roff_is_not_surprised(page: str) -> None:
    known = {"TH", "SH", "SS", "PP", "TP", "IP", "B", "BR"}
    for line in page.splitlines():
        assert line == line.rstrip()
        assert line, "an empty line"
        if line.startswith((".", "'")):
            assert re.match(r"\.(\w+)", line)[1] in known  # type: ignore[index]
        else:
            assert not re.search(r"(?<!\\)-", line), line
    assert manual._text(".x'y\\z-") == r"\&.x'y\ez\-"


def test_the_module_prints_it(page: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pyktls.commands.manual"], capture_output=True, text=True, check=True
    )
    assert done.stdout == page


# ---- the documentation -----------------------------------------------------------------------

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs/command.md"


def example(title: str) -> str:
    """The first example below that heading."""
    part = DOCS.read_text().partition(f"\n## {title}\n")[2]
    return re.search(r"```(?:text|json)\n(.*?)```", part, re.DOTALL)[1]


@pytest.mark.usefixtures("linux_columns")
def test_the_example_of_stat(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(1)
    monkeypatch.setattr(stat.time, "strftime", lambda _: f"12:00:0{next(clock)}")
    nothing = dict.fromkeys(LINUX, 0)
    out = io.StringIO()
    line = stat._text_lines(out)
    before = reading(1.0, **nothing)
    for now in (
        reading(
            2.0, **{**nothing, "TlsCurrTxSw": 12, "TlsCurrRxSw": 12, "TlsTxSw": 3, "TlsRxSw": 3}
        ),
        reading(
            3.0,
            **{
                **nothing,
                "TlsCurrTxSw": 14,
                "TlsCurrRxSw": 14,
                "TlsTxSw": 5,
                "TlsRxSw": 5,
                "TlsDecryptError": 1,
            },
        ),
    ):
        line(now, now.change(before))
        before = now
    assert out.getvalue() == example("stat")


def test_the_example_of_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "name_of", lambda _: "python3")
    shown = sockets.as_text(info(rx=Mode.SOFTWARE, wqueue=1448, processes=(1234,)), Paint(None))
    assert "\n".join(shown) + "\n" == example("sockets")


def test_the_examples_of_serve_are_what_it_writes() -> None:
    listening, response = map(json.loads, example("serve").splitlines())
    log = io.StringIO()
    peer, request = response["peer"], response["request"].encode()
    now = dt.datetime.fromisoformat(response["time"]).timestamp()
    access_log.JSONLog(log).write(peer, request, response["status"], response["bytes"], now)
    assert log.getvalue() == f"{json.dumps(response)}\n"
    assert listening["event"] == "listening"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_mentioned_in_the_documentation(name: str) -> None:
    parser = subparsers(build_parser({name}))[name]
    text = DOCS.read_text()
    if name == "serve":  # has a page of its own
        text += DOCS.with_name("serve.md").read_text()
    for action in parser._actions:
        for option in action.option_strings:
            assert option in ("-h", "--help") or option in text, option
