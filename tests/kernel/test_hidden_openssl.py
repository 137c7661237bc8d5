"""Kernel TLS in a Python whose OpenSSL nobody can reach: tests of this directory once more.

Their interpreter has an ``_ssl`` that is linked statically with every symbol hidden
(``support/hidden_openssl.py``), as Pythons have that are one static binary.  It is built on the
machine, not in a guest of the lab: `make test` sees to it, and tests/unit/test_hidden_openssl.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import hidden_openssl

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

#: File, which of its tests (pytest -k), how many at least pass.
PARTS = {
    "engines": ("test_engines.py", "", 16),
    "resumption": ("test_resumption.py", "", 16),
    "post-handshake": ("test_post_handshake.py", "", 4),
    "every-method-of-SSLSocket": ("test_dropin.py", "reaches_the_wire and portable", 100),
    "every-method-of-KTLSSocket": ("test_directions.py", "reaches_the_wire", 50),
    "dropin": ("test_dropin.py", "not reaches_the_wire and not one_line_changed", 60),
    "programs": ("test_dropin.py", "one_line_changed", 20),
}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", PARTS)
def test_what_holds_elsewhere_holds_there(part):
    name, wanted, least = PARTS[part]
    environment = {**os.environ}
    environment.pop("PYKTLS_ENGINE", None)
    before = filter(None, [environment.get("PYTHONPATH")])
    environment["PYTHONPATH"] = os.pathsep.join([str(hidden_openssl.build()), *before])
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
    command += [str(HERE / name), "-k", wanted]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) >= least, done.stdout[-2000:]
    # Skipped is what is about the native engine, and nothing else.
    for line in done.stdout.splitlines():
        if line.startswith("SKIPPED"):
            assert "about the native engine, which cannot work here" in line, line
