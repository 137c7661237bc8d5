"""``pyktls.probe()`` in a process of its own, in a situation that a test has made for it.

``in_child`` runs it and looks at what it left behind.  Run as a program this module is that child.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import Any

TESTS = pathlib.Path(__file__).resolve().parents[1]


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
    """Probe in a child.  ``before`` is Python code for it to run first; it has ``seccomp``.

    ``prefix`` is a command that starts the child.  What is left over of descriptors or
    threads fails, and so does every warning.
    """
    done = subprocess.run(
        [*prefix, sys.executable, "-X", "dev", "-W", "error", "-m", "support.probing", before],
        env={**os.environ, "PYTHONPATH": str(TESTS), **(env or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert report["descriptors"][0] == report["descriptors"][1]
    assert report["threads"] == 1
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


def main() -> None:
    import pyktls  # noqa: PLC0415

    exec(sys.argv[1])  # noqa: S102
    before = open_descriptors()
    found = pyktls.probe()
    after = open_descriptors()
    again = pyktls.probe()
    report = {
        "support": found.as_dict(),
        "text": str(found),
        "again": again.as_dict(),
        "same": again is found,
        "descriptors": [before, after],
        "threads": threading.active_count(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
