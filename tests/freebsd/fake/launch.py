"""Runs a program on the fake kernel: ``python -m freebsd.fake.launch PROGRAM [ARGUMENT...]``."""

from __future__ import annotations

import runpy
import sys

from .likeness import assume

if __name__ == "__main__":
    assume()
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
