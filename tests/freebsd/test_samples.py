"""The samples of README.md and docs/ for FreeBSD, as they stand there."""

from __future__ import annotations

from pyktls import _records, freebsd
from support.samples import execute_sample

from .conftest import REAL


def test_the_example_by_hand(capsys, plain):
    names = {}
    replace = {}
    if not REAL:
        # The socket module knows nothing of the fake kernel.
        names["send"] = lambda sock, data: _records.sendall(
            sock.fileno(), data, 0, _records.Deadline(None)
        )
        names["recv"] = plain.recv
        replace = {"near.sendall(": "send(near, ", "far.recv(": "recv(far, "}
    execute_sample("README.md", "freebsd-by-hand", names, replace)
    assert capsys.readouterr().out == "b'encrypted by the kernel'\n"
    for name in ("near", "far", "listener"):
        names[name].close()


def test_the_gates(capsys):
    execute_sample("docs/freebsd.md", "gates", {})
    *gates, verdict = capsys.readouterr().out.splitlines()
    assert [line.partition(" ")[0] for line in gates] == list(freebsd.GATES)
    assert verdict == "kernel TLS"


def test_a_gate_that_is_shut(capsys, fake):
    fake.set_sysctl("kern.ipc.tls.enable", 0)
    execute_sample("docs/freebsd.md", "gates", {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "kern.ipc.tls.enable 0"
    assert "sysctl kern.ipc.tls.enable=1" in lines[-1]
