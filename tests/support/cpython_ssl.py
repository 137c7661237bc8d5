"""CPython's own tests of the ssl module, and which of them are expected not to pass.

``run()`` runs them in a process of their own (cpython_test_ssl.py); ``compare`` holds the results
to the list in cpython_ssl.toml, in both directions.
"""

from __future__ import annotations

import importlib.util
import json
import pathlib
import subprocess
import sys
import tomllib
from typing import Any

HERE = pathlib.Path(__file__).parent
LIST = tomllib.loads((HERE / "cpython_ssl.toml").read_text())


def are_there() -> bool:
    """Distributions leave them out of their Python, or put them into a package of their own."""
    return all(importlib.util.find_spec(name) for name in ("test", "test.test_ssl"))


def run(seconds: float) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", HERE / "cpython_test_ssl.py", *LIST["classes"]],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=seconds,
        check=True,
    )
    return json.loads(done.stdout)


def compare(results: dict[str, str], differences: dict[str, str]) -> list[str]:
    """What is not as the list says; empty if all is."""
    wrong = []
    for name, result in results.items():
        if result.startswith("skipped: ") or name in LIST["races"]:
            continue
        if result == "ok" and name in differences:
            wrong.append(f"{name} passes; the list says: {differences[name]}")
        elif result != "ok" and name not in differences:
            wrong.append(f"{name} fails and is not on the list:\n{result}")
    return wrong
