"""What importing takes."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from .subjects import attempt
from .tables import Missing, Table

if TYPE_CHECKING:
    from .material import Setting

MODULES = {
    "nothing": "pass",
    "`ssl`": "import ssl",
    "`asyncio`": "import asyncio, ssl",
    "`pyktls`": "import pyktls",
    "`pyktls.aio`": "import pyktls.aio",
    "`aiofastnet`": "import aiofastnet",
}
COLUMN = "processor time"


def measure(setting: Setting) -> list[Table]:
    table = Table(
        "imports",
        "Import: milliseconds of processor time",
        "ms",
        [COLUMN],
        "A Python that imports this and ends (`python -I -c`); what it takes without an import is "
        "in each figure. `asyncio` is with `ssl`.",
        digits=1,
        base="nothing",
    )
    for name, text in MODULES.items():
        attempt(setting, name, [table], functools.partial(one, setting, name, text, table))
    return [table]


def one(setting: Setting, name: str, text: str, table: Table) -> None:
    for repeat in range(setting.scale.imports + 1):
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", text],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None  # noqa: S101
        with process.stderr:
            said = process.stderr.read().decode(errors="replace").strip().splitlines()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            raise Missing(said[-1])
        if repeat:
            table.add(name, COLUMN, 1000 * (usage.ru_utime + usage.ru_stime))
