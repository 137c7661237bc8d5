"""Event loops, servers and clients for the tests of pyktls.aio.

``Ground`` is what a test stands on: a carrier (who is to have the connections: the kernel, OpenSSL
behind the same transport, or asyncio's own TLS), and an event loop.  ``ground.run(main)`` runs a
coroutine, and fails if the loop's exception handler was called, a task was left over, a descriptor
was left open or a ResourceWarning came.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import os
import warnings
from typing import TYPE_CHECKING, Any, ClassVar

import pyktls
from pyktls import aio
from pyktls.aio import connecting, handshake, serving

from . import tls
from .probing import open_descriptors

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

    import pytest


TIMEOUT = 60.0
# The loop's debug mode, but not in an emulated machine, where it takes too long.
DEBUG = "PYKTLS_LAB" not in os.environ
KERNEL = "kernel"
OPENSSL = "openssl"  # which goes on behind a KTLSTransport
ASYNCIO = "asyncio"  # its own TLS

LOOPS = ["asyncio"] + (["uvloop"] if importlib.util.find_spec("uvloop") else [])


class Ground:
    """See the top of this file."""

    _warm: ClassVar[set[tuple[object, ...]]] = set()

    def __init__(
        self, carrier: str, loop_name: str, version: ssl.TLSVersion, patch: pytest.MonkeyPatch
    ) -> None:
        self.carrier = carrier
        self.loop_name = loop_name
        self.version = version
        self.unexpected: list[dict[str, Any]] = []
        if carrier == ASYNCIO:
            for module in (connecting, serving):
                patch.setattr(module, "is_for_kernel", lambda *_, **__: False)
        elif carrier == OPENSSL:
            patch.setattr(handshake, "kernel_has_none", lambda: False)
            patch.setattr(handshake, "offload", self._refuse)
        self.asyncio_loop = loop_name == "asyncio"
        self.in_transport = carrier != ASYNCIO

    @staticmethod
    def _refuse(*_: object, **__: object) -> None:
        raise pyktls.Unavailable("refused for the test")

    def new_loop(self) -> asyncio.AbstractEventLoop:
        if self.asyncio_loop:
            return asyncio.SelectorEventLoop()
        import uvloop  # noqa: PLC0415

        return uvloop.new_event_loop()

    def run(self, main: Callable[[], Awaitable[Any]]) -> Any:
        self.warm_up()
        before = open_descriptors()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ResourceWarning)
            with asyncio.Runner(loop_factory=self.new_loop, debug=DEBUG) as runner:
                loop = runner.get_loop()
                loop.slow_callback_duration = 60  # the emulated machine is slow
                loop.set_exception_handler(lambda _, context: self.unexpected.append(context))
                result = runner.run(self._bounded(main))
            gc.collect()
        assert not self.unexpected, self.unexpected
        leaks = [str(w.message) for w in caught if issubclass(w.category, ResourceWarning)]
        assert not leaks, leaks
        assert open_descriptors() == before
        return result

    def warm_up(self) -> None:
        """What opens descriptors that stay, such as the trial of a cipher, is over."""
        kind = self.carrier, self.loop_name, self.version
        if kind in self._warm:
            return
        self._warm.add(kind)
        tls.contexts(watch=False)
        loop = self.new_loop()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        if self.carrier != KERNEL:
            return
        pair = tls.handshaken(self.version)
        with pyktls.offload(pair.client), pyktls.offload(pair.server):
            pass

    @staticmethod
    async def _bounded(main: Callable[[], Awaitable[Any]]) -> Any:
        async with asyncio.timeout(TIMEOUT):
            result = await main()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for _ in range(20):  # what has just been told its end
            if not others:
                break
            await asyncio.sleep(0.01)
            others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others
        return result

    # ---- the two ends ------------------------------------------------------------------------

    def contexts(self, **knobs: Any) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        return tls.contexts(self.version, watch=False, **knobs)

    @property
    def required(self) -> dict[str, bool]:
        return {"require": True} if self.carrier == KERNEL else {}

    @contextlib.asynccontextmanager
    async def server(
        self, serve: Callable[..., Any], context: ssl.SSLContext, **keywords: Any
    ) -> AsyncIterator[Any]:
        """A server of streams, with its port as ``port``."""
        server = await aio.start_server(
            serve, "127.0.0.1", 0, ssl=context, **{**self.required, **keywords}
        )
        try:
            yield server
        finally:
            await stop(server)

    async def connect(
        self, port: int, context: ssl.SSLContext, **keywords: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        keywords.setdefault("server_hostname", tls.HOST)
        return await aio.open_connection(
            "127.0.0.1", port, ssl=context, **{**self.required, **keywords}
        )


async def stop(server: asyncio.AbstractServer) -> None:
    server.close()
    async with asyncio.timeout(TIMEOUT):
        await server.wait_closed()


def port_of(server: asyncio.AbstractServer) -> int:
    port: int = server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    return port


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


async def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


def plain_client(port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A client of the ssl module, blocking."""
    sock = tls.socket.create_connection(("127.0.0.1", port))
    sock.settimeout(TIMEOUT)
    try:
        return context.wrap_socket(sock, server_hostname=tls.HOST)
    except BaseException:
        sock.close()
        raise


def small_buffers(sock: socket.socket) -> None:
    """So that little is under way at once."""
    for option in (tls.socket.SO_SNDBUF, tls.socket.SO_RCVBUF):
        sock.setsockopt(tls.socket.SOL_SOCKET, option, 16384)
