"""pyktls.aio where the kernel has not got the connection: OpenSSL, or asyncio's own TLS."""

from __future__ import annotations

import contextlib

import pytest

import pyktls
from support.aio import ASYNCIO, OPENSSL, Ground, closed, port_of
from support.aio_suite import *  # noqa: F403
from support.aio_suite import echo


@pytest.fixture(params=[OPENSSL, ASYNCIO])
def ground(request, loop_name, version, monkeypatch):
    return Ground(request.param, loop_name, version, monkeypatch)


@pytest.fixture
def own_ground(loop_name, version, monkeypatch):
    return Ground(OPENSSL, loop_name, version, monkeypatch)


def test_a_context_set_by_an_sni_callback_may_require_the_kernel(own_ground):
    """Which has not got it here: so it does not come about."""

    async def main():
        client, server_context = own_ground.contexts()
        other = pyktls.wrap_context(own_ground.contexts()[1], require=True)
        server_context.sni_callback = lambda tls_object, *_: setattr(tls_object, "context", other)
        async with own_ground.server(echo, server_context) as server:
            with contextlib.suppress(OSError):  # it may be cut off in the handshake already
                reader, writer = await own_ground.connect(port_of(server), client)
                assert await reader.read() == b""
                await closed(writer)
        assert own_ground.unexpected
        own_ground.was_told_of(pyktls.Unavailable)

    own_ground.run(main)
