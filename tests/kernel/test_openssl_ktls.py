"""SSL_OP_ENABLE_KTLS with an OpenSSL that has it for sure, and for all: Debian 13's, 3.5.

That of this Python may be built without kernel TLS, and before 3.2 it leaves receiving to itself in
TLS 1.3.  The lab's guests have Debian 13's libraries (``--programs``), and this Python runs with
them if its dynamic loader is theirs, which finds their libc and their libssl.  So a part of
test_status.py is run once more in a process of its own, where it asserts more.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import sysconfig

import pytest

from lab import programs

HERE = pathlib.Path(__file__).parent


def run_with_debians_openssl(*arguments: str) -> str:
    root = programs.in_guest().root
    libraries = root / programs.LIBRARIES
    own = sysconfig.get_config_var("LIBDIR")  # where there may be a libpython
    loader = [str(root / programs.LOADER), "--library-path", f"{libraries}:{own}"]
    done = subprocess.run(
        [*loader, sys.executable, *arguments],
        env=os.environ | {"PYKTLS_OPENSSL_HAS_KTLS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.timeout(900)  # emulated, and with nothing of it in the cache
def test_what_openssl_switched_itself():
    version = run_with_debians_openssl("-c", "import ssl; print(ssl.OPENSSL_VERSION)")
    assert version.startswith("OpenSSL 3.5."), f"its _ssl is not linked to libssl.so.3: {version}"
    test = f"{HERE / 'test_status.py'}::test_what_openssl_switched_itself_is_seen_and_left_alone"
    said = run_with_debians_openssl("-m", "pytest", "-q", "-p", "no:cacheprovider", test)
    assert "4 passed" in said, said
