"""tests/unit/test_serve_server.py once more: there asyncio's own TLS has the connections.

Here it is the kernel, which the fixture sees to.
"""

from __future__ import annotations

import pytest

from support import serving

# pytest takes tests and fixtures from wherever they are imported.
from unit.test_serve_server import *  # noqa: F403
from unit.test_serve_server import _files_that_were_left_alone  # noqa: F401


@pytest.fixture(autouse=True)
def _by_the_kernel(monkeypatch):
    """Every server refuses what the kernel does not take."""
    original = serving.create_server

    async def create_server(*arguments, **keywords):
        return await original(*arguments, require=True, **keywords)

    monkeypatch.setattr(serving, "create_server", create_server)
