"""pyktls.aio over FreeBSD's kernel TLS: the same tests as on Linux."""

from __future__ import annotations

import errno
import os

import pytest

from kernel.test_aio import *  # noqa: F403
from pyktls.running_system import system

from .conftest import REAL


@pytest.fixture(autouse=True)
def _sendfile_of_the_fake(monkeypatch):
    """Python's own sendfile, which asyncio's loop calls, does not come to the fake by itself."""

    def sendfile(out_fd, in_fd, offset, count):
        if out_fd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        sent, error = system.sendfile(out_fd, in_fd, offset, count)
        if error is not None and not sent:
            raise error
        return sent

    if not REAL:
        monkeypatch.setattr(os, "sendfile", sendfile)
