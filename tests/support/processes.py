"""Children by fork(2), as tests need them."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from typing import TYPE_CHECKING

from .kernel import TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable


def fork(call: Callable[..., object], *arguments: object, limit: float = 2 * TIMEOUT) -> int:
    """Run ``call`` in a child, which has ``limit`` seconds; returns its number.

    What fails there is printed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: a fork with threads
        child = os.fork()
    if child:
        return child
    status = 1
    try:
        signal.alarm(int(limit))
        call(*arguments)
        status = 0
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def wait_for(child: int) -> None:
    """The child ends, and nothing failed in it."""
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
