"""pyktls.aio where the kernel has not got the connection: OpenSSL, or asyncio's own TLS."""

from __future__ import annotations

import pytest

from support.aio import ASYNCIO, OPENSSL, Ground
from support.aio_suite import *  # noqa: F403


@pytest.fixture(params=[OPENSSL, ASYNCIO])
def ground(request, loop_name, version, monkeypatch):
    return Ground(request.param, loop_name, version, monkeypatch)


@pytest.fixture
def own_ground(loop_name, version, monkeypatch):
    return Ground(OPENSSL, loop_name, version, monkeypatch)
