"""pyktls.aio where the kernel has not got the connection: OpenSSL, or asyncio's own TLS."""

from __future__ import annotations

import importlib.util

import pytest

from support import tls
from support.aio import ASYNCIO, OPENSSL, Ground
from support.aio_suite import *  # noqa: F403

LOOPS = ["asyncio"] + (["uvloop"] if importlib.util.find_spec("uvloop") else [])


@pytest.fixture(params=[tls.TLS_1_2, tls.TLS_1_3], ids=["TLS1.2", "TLS1.3"])
def version(request):
    return request.param


@pytest.fixture(params=LOOPS)
def loop_name(request):
    return request.param


@pytest.fixture(params=[OPENSSL, ASYNCIO])
def ground(request, loop_name, version, monkeypatch):
    return Ground(request.param, loop_name, version, monkeypatch)


@pytest.fixture
def own_ground(loop_name, version, monkeypatch):
    return Ground(OPENSSL, loop_name, version, monkeypatch)
