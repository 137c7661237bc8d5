"""A program with types, checked against the installed package by mypy and by pyright.

`make types` runs this on the tree, `make wheel` on the wheel.  The program is in downstream/: each
file but one has to be free of errors, and refused.py consists of errors that have to be found.
Both tools are as strict as they can be, and take an ``ignore`` without an error for one.

pyright is basedpyright here: its wheel is complete, where pyright's fetches its program at the
first run.  The rules are those of pyright's strict mode.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

DOWNSTREAM = pathlib.Path(__file__).parent / "downstream"
PYRIGHT = {
    "typeCheckingMode": "strict",
    "enableTypeIgnoreComments": False,  # those are mypy's
    "reportUnnecessaryTypeIgnoreComment": "error",
}
MYPY = ("-m", "mypy", "--strict", "--config-file=", "--cache-dir=.mypy", "--no-error-summary")
TOOLS = {
    "mypy": [*MYPY, "."],
    "pyright": ["-m", "basedpyright", "--pythonpath", sys.executable, "."],
}


# Without this, a tool that finds no types at all (py.typed is missing, say) would be content.
WRONG = """\
import pyktls

state: str = pyktls.probe()
pyktls.offload()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
pyktls.probe()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
"""


@pytest.mark.parametrize("tool", TOOLS)
def test_the_program_has_the_types_it_says_and_a_wrong_file_has_errors(tool, tmp_path):
    # By itself, so that neither our settings nor our sources are in reach.
    program = tmp_path / "downstream"
    shutil.copytree(DOWNSTREAM, program)
    (program / "pyrightconfig.json").write_text(json.dumps(PYRIGHT))
    (program / "wrong.py").write_text(WRONG)
    done = subprocess.run(
        [sys.executable, *TOOLS[tool]],
        cwd=program,
        env={"PATH": os.defpath},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    errors = re.findall(r"(\w+\.py):(\d+)\b.* error\b", said)
    assert errors == [("wrong.py", "3"), ("wrong.py", "5")], said
    assert done.returncode == 1
