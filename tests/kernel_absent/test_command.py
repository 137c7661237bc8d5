"""pyktls doctor, stat and sockets where the kernel has no TLS."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import pyktls


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pyktls", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_doctor_says_no_and_what_would_help():
    done = run("doctor", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (3, "")
    assert found["verdict"]["level"] == "no"
    fault = found["findings"][0]
    assert fault["fault"] is True
    assert fault["remedy"]
    code = pyktls.probe().tls.code.value
    assert found["kernel"]["tls"]["code"] == code
    # Without the module there is something to be done here; another kernel is no command.
    assert bool(fault["commands"]) is (code == "no-module")
    assert found["openssl"]["own"] is None
    assert found["openssl"]["not_tried"] == "there is no kernel TLS to try it with"


def test_the_doctor_for_people():
    done = run("doctor")
    assert (done.returncode, done.stderr) == (3, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "no: there is no kernel TLS for this process"
    assert lines[2] == "What is in the way"
    assert "Advice" not in lines
    # A command stays on its line.
    assert all(len(line) <= 80 or line.startswith(" " * 7) for line in lines)


@pytest.mark.parametrize("command", ["stat", "sockets"])
def test_the_others_say_why_not(command):
    done = run(command)
    assert (done.returncode, done.stdout) == (3, "")
    assert "/proc/net/tls_stat does not exist" in done.stderr
    assert "modprobe tls" in " ".join(done.stderr.split())
    assert "error" in json.loads(run(command, "--json").stdout)


def test_watching_what_is_not_there_ends_at_once():
    assert run("stat", "--watch").returncode == 3
