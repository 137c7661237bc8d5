"""Runs a program on the fake kernel: ``python -m freebsd.fake.launch PROGRAM [ARGUMENT...]``."""

from __future__ import annotations

import runpy
import sys

from . import build

sys.path.insert(0, str(build.build()))

from .kernel import Kernel  # it imports pyktls

if __name__ == "__main__":
    kernel = Kernel()
    kernel.install(build.LIBRARY)
    kernel.boot()
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
