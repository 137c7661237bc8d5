"""``pyktls.probe()`` in a process of its own, in a situation that a test has made for it.

``in_child`` and ``in_fork`` run it and look at what it left behind.  As a program this module is
that child.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyktls

from . import seccomp

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = pathlib.Path(__file__).resolve().parents[1]


#: For ``before``: leaves that many descriptors free.
LIMIT = """
import os, resource
used = max(fd for fd in open_descriptors())
while (fd := os.open("/dev/null", os.O_RDONLY)) < used:
    pass  # fill the gaps
os.close(fd)
resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1 + {0}, used + 1 + {0}))
"""
#: For ``before``: call, errno, arguments by their index (or None).
FILTER = "seccomp.refuse({!r}, {}, {})"


@dataclass
class Child:
    """What the child found.  ``support`` is as_dict()."""

    support: dict[str, Any]
    text: str
    again: dict[str, Any]  # the second call
    same: bool  # the second call gave the same object

    @property
    def tls(self) -> dict[str, Any]:
        return self.support["tls"]

    @property
    def code(self) -> str:
        return self.support["tls"]["code"]

    def cipher(self, version: str = "TLS 1.3", name: str = "AES_128_GCM", direction: str = "tx"):
        return self.support["ciphers"][version][name][direction]


def in_child(
    before: str = "", *, prefix: tuple[str, ...] = (), env: dict[str, str] | None = None
) -> Child:
    """Probe in a new interpreter, in which every warning is an error.

    ``before`` is Python code for it to run first (with ``seccomp`` and ``open_descriptors``),
    ``prefix`` a command that starts it.  Descriptors or threads that are left over fail.
    """
    done = subprocess.run(
        [*prefix, sys.executable, "-X", "dev", "-W", "error", "-m", "support.probing", before],
        env={**os.environ, "PYTHONPATH": str(TESTS), **(env or {})},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return _child(done.stdout)


def in_fork(before: str) -> Child:
    """The same in a copy of this process, which is much faster in the lab."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(200)
            os.close(reading)
            sys.modules["pyktls.probe"]._known = None
            pyktls.linux.defects._results.clear()
            pyktls.linux.system._accepted.clear()
            pyktls.linux.system._refused.clear()
            os.write(writing, _report(before).encode())
            status = 0
        except BaseException:  # noqa: BLE001  (it must not go on as a second pytest)
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as file:
        report = file.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return _child(report)


def answers(value: Any) -> Iterator[dict[str, Any]]:
    """All answers within what as_dict() gives."""
    if isinstance(value, dict):
        if "remedy" in value:
            yield value
        for part in value.values():
            yield from answers(part)


def check_every_no(support: dict[str, Any]) -> None:
    """Every "no" has its reason, what would help, and a cause; a "yes" has nothing to help."""
    found = list(answers(support))
    assert len(found) > 40
    for answer in found:
        assert answer["reason"], answer
        assert answer["yes"] is (answer["code"] == "yes"), answer
        assert bool(answer["remedy"]) is not answer["yes"], answer


def _child(text: str) -> Child:
    report = json.loads(text)
    for support in (report["support"], report["again"]):
        check_every_no(support)
    assert report["descriptors"][0] == report["descriptors"][1]
    assert report["threads"][0] == report["threads"][1]
    assert all(len(line) <= 80 for line in report["text"].splitlines())
    return Child(report["support"], report["text"], report["again"], report["same"])


def open_descriptors() -> list[int]:
    found = []
    for fd in range(512):
        try:
            os.fstat(fd)
        except OSError:
            continue
        found.append(fd)
    return found


def _report(before: str) -> str:
    exec(before, {"seccomp": seccomp, "open_descriptors": open_descriptors})  # noqa: S102
    descriptors, threads = open_descriptors(), threading.active_count()
    found = pyktls.probe()
    after = open_descriptors()
    again = pyktls.probe()
    report = {
        "support": found.as_dict(),
        "text": str(found),
        "again": again.as_dict(),
        "same": again is found,
        "descriptors": [descriptors, after],
        "threads": [threads, threading.active_count()],
    }
    return json.dumps(report)


if __name__ == "__main__":
    print(_report(sys.argv[1]))
