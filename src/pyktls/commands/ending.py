"""How a command ends: as a shell expects after a signal, and quietly when nobody reads."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CLOSED_PIPE", "INTERRUPTED", "run_to_its_end"]

INTERRUPTED = 128 + signal.SIGINT
CLOSED_PIPE = 128 + signal.SIGPIPE


def run_to_its_end(run: Callable[[], int]) -> int:
    """Call ``run`` and return its exit status, or what a shell would tell of the signal.

    Output is flushed here: what the interpreter cannot write at its own end it complains about.
    """
    try:
        try:
            return run()
        finally:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _write_nowhere()
        return CLOSED_PIPE


def _write_nowhere() -> None:
    """What is still buffered goes to /dev/null, at the interpreter's end, without a word."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                os.dup2(nowhere, stream.fileno())
    finally:
        os.close(nowhere)
