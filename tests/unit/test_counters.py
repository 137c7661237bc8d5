"""The kernel's counters without a kernel: files made by hand, differences, rates, errors."""

from __future__ import annotations

import contextlib
import errno
import json
import pathlib
import pickle
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from pyktls import InvalidType, InvalidValue, Unavailable, linux
from pyktls.linux import TLSStat, TLSStatChange, counters, tls_stat

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="plays the Linux kernel's part of /proc"
)

# As Linux 7.3 prints it.
NAMES = (
    "TlsCurrTxSw", "TlsCurrRxSw", "TlsCurrTxDevice", "TlsCurrRxDevice", "TlsTxSw", "TlsRxSw",
    "TlsTxDevice", "TlsRxDevice", "TlsDecryptError", "TlsRxDeviceResync", "TlsDecryptRetry",
    "TlsRxNoPadViolation", "TlsRxRekeyOk", "TlsRxRekeyError", "TlsTxRekeyOk", "TlsTxRekeyError",
    "TlsRxRekeyReceived",
)  # fmt: skip
ATTRIBUTES = {
    "curr_tx_sw": "TlsCurrTxSw",
    "curr_rx_sw": "TlsCurrRxSw",
    "curr_tx_device": "TlsCurrTxDevice",
    "curr_rx_device": "TlsCurrRxDevice",
    "tx_sw": "TlsTxSw",
    "rx_sw": "TlsRxSw",
    "tx_device": "TlsTxDevice",
    "rx_device": "TlsRxDevice",
    "decrypt_error": "TlsDecryptError",
    "rx_device_resync": "TlsRxDeviceResync",
    "decrypt_retry": "TlsDecryptRetry",
    "rx_no_pad_violation": "TlsRxNoPadViolation",
    "rx_rekey_ok": "TlsRxRekeyOk",
    "rx_rekey_error": "TlsRxRekeyError",
    "tx_rekey_ok": "TlsTxRekeyOk",
    "tx_rekey_error": "TlsTxRekeyError",
    "rx_rekey_received": "TlsRxRekeyReceived",
}
VALUES = {name: 100 + i for i, name in enumerate(NAMES)}


def printed(values: Mapping[str, int]) -> str:
    return "".join(f"{name:<32}\t{value}\n" for name, value in values.items())


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have /proc/.../net/tls_stat contain this; returns the paths that were read."""

    def set_up(content: str | Exception) -> list[str]:
        paths: list[str] = []

        def read_text(path: pathlib.Path, **_: Any) -> str:
            paths.append(str(path))
            if isinstance(content, Exception):
                raise content
            return content

        monkeypatch.setattr(pathlib.Path, "read_text", read_text)
        return paths

    return set_up


# ---- a snapshot ------------------------------------------------------------------------------


def test_a_snapshot(file: Any) -> None:
    paths = file(printed(VALUES))
    before = time.monotonic()
    stat = tls_stat()
    assert before <= stat.taken <= time.monotonic()
    # Not /proc/net: that is the main thread's network namespace.
    assert paths == ["/proc/thread-self/net/tls_stat"]
    assert isinstance(stat, Mapping)
    assert stat == VALUES
    assert dict(stat) == VALUES
    assert list(stat) == list(NAMES)
    assert stat["TlsTxSw"] == VALUES["TlsTxSw"]
    assert "TlsNothing" not in stat
    with pytest.raises(KeyError):
        stat["TlsNothing"]
    for attribute, name in ATTRIBUTES.items():
        assert getattr(stat, attribute) == VALUES[name], attribute
    assert "'TlsTxSw': 104" in repr(stat)
    assert repr(stat).startswith("<TLSStat ")


def test_there_is_an_attribute_for_every_counter_and_no_other() -> None:
    found = {k: v.name for k, v in vars(counters._Counters).items() if hasattr(v, "__get__")
             and isinstance(v, counters._Counter)}  # fmt: skip
    assert found == ATTRIBUTES
    assert set(found.values()) == set(NAMES)
    assert set(counters._ERRORS) <= set(NAMES)


def test_an_old_kernel_and_a_new_one(file: Any) -> None:
    file(printed({"TlsCurrTxSw": 3, "TlsCurrNovelty": 1, "TlsNovelty": 2}))
    stat = tls_stat()
    assert stat.curr_tx_sw == 3
    assert stat.rx_rekey_ok is None
    assert stat["TlsNovelty"] == 2
    assert stat.gauges == {"TlsCurrTxSw": 3, "TlsCurrNovelty": 1}
    assert stat.counters == {"TlsNovelty": 2}


def test_gauges_and_counters() -> None:
    stat = TLSStat(VALUES, 0.0)
    assert list(stat.gauges) == list(NAMES[:4])
    assert list(stat.counters) == list(NAMES[4:])
    assert stat.gauges | stat.counters == VALUES


def test_it_does_not_change_and_can_be_kept() -> None:
    values = dict(VALUES)
    stat = TLSStat(values, 12.5, (4, 4026531840))
    values["TlsTxSw"] = 0
    assert stat["TlsTxSw"] == VALUES["TlsTxSw"]
    with pytest.raises(TypeError):
        stat["TlsTxSw"] = 0  # type: ignore[index]
    assert json.loads(json.dumps(dict(stat))) == VALUES
    again = pickle.loads(pickle.dumps(stat))  # noqa: S301
    assert (again, again.taken, again.namespace) == (stat, stat.taken, stat.namespace)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("TlsTxSw\n", "'TlsTxSw'"),
        ("TlsTxSw 1\nTlsRxSw 1 2\n", "'TlsRxSw 1 2'"),
        ("TlsTxSw one\n", "'TlsTxSw one'"),
        ("TlsTxSw -1\n", "'TlsTxSw -1'"),
        ("TlsTxSw 1\n\nTlsRxSw 1\n", "''"),
        ("<html>", "'<html>'"),
    ],
)
def test_a_file_that_makes_no_sense(file: Any, text: str, line: str) -> None:
    file(text)
    with pytest.raises(OSError) as caught:
        tls_stat()
    assert caught.value.errno == errno.EPROTO
    expected = f"/proc/thread-self/net/tls_stat: {line} is not a name and a number"
    assert str(caught.value) == f"[Errno {errno.EPROTO}] {expected}"


def test_a_counter_twice(file: Any) -> None:
    file("TlsTxSw 1\nTlsTxSw 2\n")
    with pytest.raises(OSError, match="TlsTxSw is there twice"):
        tls_stat()


@given(st.text())
def test_any_text(text: str) -> None:
    values = None
    with contextlib.suppress(OSError):
        values = counters._parse(text, "it")
    if values is not None:
        assert counters._parse(printed(values), "it") == values


@given(st.dictionaries(st.from_regex(r"\ATls[A-Za-z]{1,40}\Z"), st.integers(0, 2**64 - 1)))
def test_any_counters(values: dict[str, int]) -> None:
    assert counters._parse(printed(values), "it") == values


# ---- whose -----------------------------------------------------------------------------------


def test_of_a_process(file: Any) -> None:
    paths = file(printed(VALUES))
    assert tls_stat(pid=1) == VALUES
    assert paths == ["/proc/1/net/tls_stat"]


@pytest.mark.parametrize(
    ("pid", "kind"),
    [(0, InvalidValue), (-1, InvalidValue), (True, InvalidType), ("1", InvalidType)],
)
def test_what_is_no_process(pid: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="pid must be"):
        tls_stat(pid=pid)


def test_the_file_is_not_there(file: Any) -> None:
    file(FileNotFoundError(errno.ENOENT, "no"))
    with pytest.raises(
        Unavailable, match=r"^/proc/net/tls_stat does not exist; an admin"
    ) as caught:
        tls_stat()
    assert "modprobe tls" in caught.value.remedy
    with pytest.raises(Unavailable, match=r"^/proc/1/net/tls_stat does not exist; an admin"):
        tls_stat(pid=1)


def test_the_process_is_not_there(file: Any) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    with pytest.raises(ProcessLookupError) as caught:
        tls_stat(pid=child.pid)
    assert str(caught.value).endswith(f"open(/proc/{child.pid}/net/tls_stat): No such process")
    # One that has ended and was not waited for has a directory, and no network namespace.
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as child:
        child.stdout.read()
        deadline = time.monotonic() + 20
        while ") Z " not in pathlib.Path(f"/proc/{child.pid}/stat").read_text(encoding="ascii"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(ProcessLookupError):
            tls_stat(pid=child.pid)
    file(PermissionError(errno.EACCES, "no"))
    with pytest.raises(PermissionError):
        tls_stat(pid=1)


def test_the_namespace_is_known(file: Any) -> None:
    file(printed(VALUES))
    found = pathlib.Path("/proc/self/ns/net").stat()
    assert tls_stat().namespace == (found.st_dev, found.st_ino)


# ---- differences and rates -------------------------------------------------------------------


def stat(taken: float, namespace: tuple[int, int] | None = None, **values: int) -> TLSStat:
    return TLSStat(values, taken, namespace)


def test_a_difference() -> None:
    earlier = stat(10.0, TlsCurrTxSw=5, TlsTxSw=7, TlsRxSw=3, TlsDecryptError=9)
    later = stat(12.5, TlsCurrTxSw=2, TlsTxSw=17, TlsRxSw=3, TlsDecryptError=10)
    change = later - earlier
    assert type(change) is TLSStatChange
    assert change == {"TlsCurrTxSw": -3, "TlsTxSw": 10, "TlsRxSw": 0, "TlsDecryptError": 1}
    assert change.seconds == 2.5
    assert change.gauges == {"TlsCurrTxSw": -3}
    assert (change.curr_tx_sw, change.tx_sw, change.rx_rekey_ok) == (-3, 10, None)
    assert [(e.name, e.count) for e in change.errors] == [("TlsDecryptError", 1)]
    assert repr(change).startswith("<TLSStatChange {'TlsCurrTxSw': -3")
    assert earlier - earlier == dict.fromkeys(earlier, 0)


def test_rates() -> None:
    earlier = stat(10.0, TlsCurrTxSw=5, TlsTxSw=7, TlsRxSw=3)
    later = stat(12.5, TlsCurrTxSw=2, TlsTxSw=17, TlsRxSw=3)
    assert later.rates(earlier) == {"TlsTxSw": 4.0, "TlsRxSw": 0.0}


@pytest.mark.parametrize(
    ("earlier", "later", "text"),
    [
        (stat(1, TlsTxSw=5), stat(2, TlsTxSw=4), "TlsTxSw went down, from 5 to 4"),
        (stat(2, TlsTxSw=5), stat(1, TlsTxSw=5), "the first snapshot is older"),
        (stat(1, (4, 1), TlsTxSw=5), stat(2, (4, 2), TlsTxSw=6), "different network namespaces"),
        (stat(1, TlsTxSw=5), stat(2, TlsTxSw=5, TlsNew=0), "only one of the snapshots has TlsNew"),
        (stat(1, TlsTxSw=5, TlsOld=0), stat(2, TlsTxSw=5), "only one of the snapshots has TlsOld"),
    ],
)
def test_snapshots_that_do_not_belong_together(earlier: TLSStat, later: TLSStat, text: str) -> None:
    with pytest.raises(InvalidValue, match=text):
        later - earlier
    with pytest.raises(InvalidValue, match=text):
        later.rates(earlier)


def test_a_gauge_may_go_down_and_the_namespace_be_unknown() -> None:
    for one, other in (((4, 1), None), (None, (4, 1)), (None, None), ((4, 1), (4, 1))):
        change = stat(2, other, TlsCurrTxSw=0) - stat(1, one, TlsCurrTxSw=5)
        assert change == {"TlsCurrTxSw": -5}


def test_no_time_has_passed() -> None:
    with pytest.raises(InvalidValue, match="no time has passed"):
        stat(1, TlsTxSw=5).rates(stat(1, TlsTxSw=5))


def test_a_dictionary_is_no_snapshot() -> None:
    with pytest.raises(TypeError):
        stat(1, TlsTxSw=5) - {"TlsTxSw": 4}  # type: ignore[operator]


# ---- errors ----------------------------------------------------------------------------------

ERRORS = {
    "TlsDecryptError", "TlsRxDeviceResync", "TlsDecryptRetry", "TlsRxNoPadViolation",
    "TlsRxRekeyError", "TlsTxRekeyError",
}  # fmt: skip


def test_each_error_has_its_sentence() -> None:
    errors = TLSStat(VALUES, 0.0).errors
    assert {e.name for e in errors} == ERRORS
    assert len({e.meaning for e in errors}) == len(ERRORS)
    for e in errors:
        assert e.count == VALUES[e.name]
        assert len(e.meaning) > 40
        assert "pyktls does not know" not in e.meaning


def test_what_is_zero_is_no_error() -> None:
    assert TLSStat(dict.fromkeys(NAMES, 0), 0.0).errors == ()
    (error,) = TLSStat(dict.fromkeys(NAMES, 0) | {"TlsDecryptError": 2}, 0.0).errors
    assert (error.name, error.count) == ("TlsDecryptError", 2)
    assert "did not decrypt" in error.meaning


def test_an_error_that_pyktls_does_not_know() -> None:
    (error,) = stat(0, TlsNovelError=1, TlsNovelty=1, TlsCurrError=1).errors
    assert (error.name, error.count) == ("TlsNovelError", 1)
    assert "pyktls does not know" in error.meaning


def test_they_are_exported() -> None:
    assert {"TLSStat", "TLSStatChange", "tls_stat"} <= set(linux.__all__)
