"""tests/run.py: what makes a run fail.  Its parts are small here, each a real run of pytest."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from tests import lab, run
from tests.run import DEFECTIVE, HOST, KERNELS, WITHOUT_TLS, Part

from support.systems import linux_only

if TYPE_CHECKING:
    import pathlib

PASSES = "def test_passes(): pass\n"
FAILS = "def test_fails(): assert 0\n"
SKIPPED = "import pytest\n@pytest.mark.skip('no TLS')\ndef test_skipped(): pass\n"
ONE_SKIPPED = "import pytest\n\ndef test_asks(): pytest.skip('no TLS')\n"
EXPECTED_TO_FAIL = "import pytest\n@pytest.mark.xfail\ndef test_known(): assert 0\n"
#: Those whose tests need a kernel of a certain kind.
KERNEL_TESTS = ("kernel", "kernel_absent", "kernel_defects", "interop", "nfs")


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    # What some kernel tests need is not made for these.
    monkeypatch.setattr(run, "build_hidden_openssl", lambda: None, raising=False)


def ran(
    monkeypatch: pytest.MonkeyPatch, directory: pathlib.Path, text: str, *, skips_allowed: bool
) -> tuple[int, Part]:
    """A whole run of one part, whose tests are ``text``: its exit status, and the part."""
    file = directory / "test_one.py"
    file.write_text(text)
    part = Part("kernel", HOST, (str(file),), skips_allowed=skips_allowed)
    monkeypatch.setattr(run, "plan", lambda *_, **__: [part])
    monkeypatch.setattr(sys, "argv", ["run"])
    return run.main(), part


@pytest.mark.parametrize("skipped", [SKIPPED, ONE_SKIPPED], ids=["mark", "call"])
@pytest.mark.parametrize("others", ["", PASSES], ids=["alone", "among others"])
def test_a_skipped_kernel_test_fails_the_run(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    skipped: str,
    others: str,
) -> None:
    status, part = ran(monkeypatch, tmp_path, skipped + others, skips_allowed=False)
    assert part.status == 0  # pytest itself is content
    assert part.counts["skipped"] == 1
    assert status == 1
    assert "kernel tests were skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "skips_allowed", "why"),
    [
        (PASSES, False, ""),
        (PASSES + EXPECTED_TO_FAIL, False, ""),
        (PASSES + SKIPPED, True, ""),
        (PASSES + FAILS, True, "exit status 1"),
        ("", True, "exit status 5"),
        ("import nothing_of_that_name\n", True, "exit status 2"),
    ],
)
def test_what_else_fails_it(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
    text: str,
    skips_allowed: bool,
    why: str,
) -> None:
    status, part = ran(monkeypatch, tmp_path, text, skips_allowed=skips_allowed)
    assert part.failed == why
    assert status == bool(why)


def test_a_part_that_left_no_report_fails_it() -> None:
    part = Part("kernel", "7.3", ("tests/kernel",), status=0, counts=run.read_counts(run.RESULTS))
    assert part.failed == "no test ran"


@linux_only
def test_a_lab_that_boots_no_kernel_fails_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise lab.LabError("no such kernel\nand more of it")

    monkeypatch.setattr(lab, "run", refuse)
    part = Part("kernel", "7.3", ("tests/kernel",))
    monkeypatch.setattr(run, "plan", lambda *_, **__: [part])
    monkeypatch.setattr(sys, "argv", ["run"])
    assert run.main() == 1
    assert part.failed == "the lab could not run it: no such kernel"


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("kernels", [[], ["6.12"], ["6.1", "7.3"]])
@pytest.mark.parametrize("own", [False, True], ids=["", "this machine has TLS"])
def test_no_kernel_test_may_be_skipped(
    monkeypatch: pytest.MonkeyPatch, own: bool, kernels: list[str], everything: bool
) -> None:
    monkeypatch.setattr(run, "has_kernel_tls", lambda: own)
    parts = run.plan(kernels, host=True, everything=everything)
    for part in parts:
        of_a_kernel = any(path.split("/")[1] in KERNEL_TESTS for path in paths(part))
        assert part.skips_allowed is not of_a_kernel
    wanted = kernels or ([HOST] if own else list(KERNELS))
    assert sorted(of("kernel", parts)) == sorted(wanted)
    if not kernels:
        assert of("kernel_defects", parts) == list(DEFECTIVE)
    assert WITHOUT_TLS in of("kernel_absent", parts)
    if everything:
        assert sorted(of("interop", parts)) == sorted(wanted)


def paths(part: Part) -> list[str]:
    return [path for path in part.paths if path.startswith("tests/")]


def of(directory: str, parts: list[Part]) -> list[str]:
    """The kernels on which the tests of that directory run."""
    return [part.kernel for part in parts if f"tests/{directory}" in part.paths]
