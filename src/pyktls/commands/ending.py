"""How a command ends: as a shell expects after a signal, and quietly when nobody reads."""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

__all__ = ["CANNOT_WRITE", "CLOSED_PIPE", "INTERRUPTED", "run_to_its_end"]

CANNOT_WRITE = os.EX_IOERR
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
        _write_nowhere(sys.stdout, sys.stderr)
        return CLOSED_PIPE
    except OSError as e:
        # The interpreter's own 1 would be an answer of some command.
        if e.errno not in _FULL:
            raise
        _write_nowhere(sys.stdout)
        print(f"pyktls: the output cannot be written: {e.strerror}", file=sys.stderr)
        return CANNOT_WRITE


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def _write_nowhere(*streams: TextIO | None) -> None:
    """What is still buffered goes to /dev/null, at the interpreter's end, without a word."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for stream in streams:
            if stream is not None:
                os.dup2(nowhere, stream.fileno())
    finally:
        os.close(nowhere)
