"""How long anybody is waited for, in seconds.

Nothing here is slow, except a busy emulated machine.  These are read where they are used, as in
``limits.START_TIMEOUT``, so that a test can shorten one for all at once.
"""

from __future__ import annotations

__all__ = ["END_TIMEOUT", "STALL_TIMEOUT", "START_TIMEOUT", "TOOL_TIMEOUT"]

START_TIMEOUT = 60.0  # for a program to start and shake hands
STALL_TIMEOUT = 60.0  # without a single byte
END_TIMEOUT = 30.0  # for a program to end when all has been said
TOOL_TIMEOUT = 30.0  # for openssl req, ss and the like
