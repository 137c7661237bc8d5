"""Marks for tests of one system's calls: the unit tests run on FreeBSD as well, and on its fake."""

from __future__ import annotations

import pytest

from pyktls.lowlevel import lib

linux_only = pytest.mark.skipif(
    lib.pyktls_system() != lib.PYKTLS_LINUX, reason="about the calls of Linux"
)
