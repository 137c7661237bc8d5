"""The portable and the membio engine in a Python whose OpenSSL nobody can reach.

The same tests as everywhere, in an interpreter whose ``_ssl`` is linked statically with every
symbol hidden (``support/hidden_openssl.py``): nothing is patched, ``dlsym`` fails in earnest.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import hidden_openssl
from support.systems import linux_only

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    linux_only,  # the portable engine needs the kernel's counts
    pytest.mark.skipif(
        not hidden_openssl.sources_known(),
        reason="Debian has no source of this CPython; set PYKTLS_CPYTHON_SOURCE to one",
    ),
]

# Those that hold for any engine.  They run with the choice that `watch` makes there by itself.
MODULES = (
    "test_engine_choice.py",
    "test_engines.py",
    "test_handoff.py",
    "test_ledger.py",
    "test_max_fragment_length.py",
    "test_membio_engine.py",
    "test_portable_engine.py",
    "test_refusals.py",
    "test_takeover.py",
)

LOOK = """
import ctypes, _ssl
import pyktls
module = ctypes.CDLL(_ssl.__file__)
for name in "SSL_new", "SSL_CTX_set_keylog_callback", "BIO_number_read", "OPENSSL_init_ssl":
    print(hasattr(module, name))
for info in pyktls.engines():
    print(info)
"""


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    try:
        module = hidden_openssl.build()
    except hidden_openssl.NoSourceError as e:
        pytest.skip(f"{e}; set PYKTLS_CPYTHON_SOURCE to one")
    path = [str(module), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    environment.pop("PYKTLS_ENGINE", None)
    return environment


def test_nobody_reaches_it(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOK],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    hidden = (
        "CRYPTO_get_ex_new_index cannot be reached through the _ssl module: its OpenSSL is hidden"
    )
    assert done.stdout.splitlines() == [
        *["False"] * 4,
        f"native does not work: {hidden}",
        f"portable works (chosen: the native engine does not work: {hidden})",
        "membio works",
    ]


@pytest.mark.timeout(900)
def test_the_engines_do_there_what_they_do_here(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [str(Path(__file__).with_name(name)) for name in MODULES]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) > 500
    # Skipped is what is about the native engine, and nothing else.
    for line in done.stdout.splitlines():
        if line.startswith("SKIPPED"):
            assert "about the native engine, which cannot work here" in line, line
