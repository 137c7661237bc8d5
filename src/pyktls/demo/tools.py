"""Small programs that are asked one thing: `openssl req`, `ss`, or what version it is."""

from __future__ import annotations

import subprocess

from . import limits

__all__ = ["run_tool", "what_it_prints"]


def run_tool(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with nothing to read; raises OSError or TimeoutExpired."""
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=limits.TOOL_TIMEOUT,
    )  # fmt: skip


def what_it_prints(command: list[str]) -> str:
    """The standard output of a program, empty if it cannot be run or does not end."""
    try:
        return run_tool(command).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
