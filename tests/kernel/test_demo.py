"""`python -m pyktls demo`, as a user runs it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import pathlib

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

MIB = 1 << 20
CONFIRMED = ("kernel", "software", "device")


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pyktls", "demo", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def test_every_step_is_confirmed_by_hash_and_kernel(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = run_demo("--size", "8", "--json")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["ok"] is True
    assert result["file"]["bytes"] == 8 * MIB

    peers = {"s_client", "s_server"} | ({"curl"} if shutil.which("curl") else set())
    steps = result["steps"]
    assert {(step["tls"], step["peer"]) for step in steps if step["python"] == "pyktls"} == {
        (version, peer) for version in ("TLS 1.3", "TLS 1.2") for peer in peers
    }
    for step in steps:
        assert step["ok"] is True
        assert step["failure"] is None
        assert step["bytes"] == 8 * MIB
        assert step["sha256"] == result["file"]["sha256"]
        assert step["seconds"] > 0
        assert step["cpu_seconds"] > 0
        if step["python"] == "ssl":
            assert (step["tx"], step["rx"]) == ("none", "none")
            continue
        evidence = step["evidence"]
        assert step["tx"] in CONFIRMED
        assert step["rx"] in CONFIRMED
        assert evidence["ulp"] == "tls"
        # 8 MiB in records of at most 16 KiB, and an HTTP header or request.
        bulk, other = ("tx", "rx") if step["direction"] == "serve" else ("rx", "tx")
        assert evidence[f"{bulk}_records"] >= 512
        assert evidence[f"{other}_records"] >= 1
        assert sum(evidence["counters"].get(f"TlsTx{kind}", 0) for kind in ("Sw", "Device")) == 1
        assert sum(evidence["counters"].get(f"TlsRx{kind}", 0) for kind in ("Sw", "Device")) == 1

    before, after = result["tls_stat"]["before"], result["tls_stat"]["after"]
    switched = sum(step["python"] == "pyktls" for step in steps)
    for direction in ("Tx", "Rx"):
        names = [f"Tls{direction}{kind}" for kind in ("Sw", "Device")]
        assert sum(after[n] - before[n] for n in names) == switched
        assert after[f"TlsCurr{direction}Sw"] == before[f"TlsCurr{direction}Sw"]
    assert after["TlsDecryptError"] == before["TlsDecryptError"]
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_the_user_and_what_people_see(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "a file with spaces"
    file.write_bytes(bytes(range(251)) * 4003)  # no multiple of anything
    done = run_demo("--file", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert max(len(line) for line in lines if str(file) not in line) <= 80
    assert "\r" not in done.stdout
    table = lines[lines.index(next(line for line in lines if line.startswith("TLS  sent"))) :]
    for version in ("1.3", "1.2"):
        for title in ("pyktls -> s_client", "ssl -> s_client", "s_server -> pyktls"):
            row = next(line for line in table if line.startswith(f"{version}  {title} "))
            assert row.endswith("  ok")
    assert any("Python's ssl took" in line for line in lines)
    assert list(tmp_path.iterdir()) == [file]
