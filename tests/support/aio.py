"""Event loops, servers and clients for the tests of pyktls.aio.

``Ground`` is what a test stands on: a carrier (who is to have the connections: the kernel, OpenSSL
behind the same transport, or asyncio's own TLS), and an event loop.  ``ground.run(main)`` runs a
coroutine, and fails if the loop's exception handler was called, a task was left over, a descriptor
was left open or a ResourceWarning came.  ``ground.at_every_suspension(scenario)`` runs one again
and again, with a call in it that is cancelled somewhere else each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import importlib.util
import itertools
import os
import warnings
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, ClassVar

import pyktls
from pyktls import aio
from pyktls.aio import connecting, handshake, serving

from . import tls
from .probing import open_descriptors

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator

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

        loop = uvloop.new_event_loop()
        # The first server has it open /dev/null, for as long as the loop is there.
        loop.run_until_complete(loop.create_server(asyncio.Protocol, "127.0.0.1", 0)).close()
        loop.run_until_complete(asyncio.sleep(0))
        return loop

    def run(self, main: Callable[[], Awaitable[Any]]) -> Any:
        self.warm_up()
        before = open_descriptors()
        gc.freeze()  # so that collecting takes no time for what was there before
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", ResourceWarning)
                with asyncio.Runner(loop_factory=self.new_loop, debug=DEBUG) as runner:
                    loop = runner.get_loop()
                    loop.slow_callback_duration = 60  # the emulated machine is slow
                    loop.set_exception_handler(lambda _, context: self.unexpected.append(context))
                    result = runner.run(self._bounded(main))
                gc.collect()
        finally:
            gc.unfreeze()
        assert not self.unexpected, self.unexpected
        leaks = [str(w.message) for w in caught if issubclass(w.category, ResourceWarning)]
        assert not leaks, leaks
        assert open_descriptors() == before
        return result

    def at_every_suspension(self, scenario: Callable[[Cut], Awaitable[Any]]) -> set[str]:
        """Run a scenario, which has a ``Cut`` make a call, until that was cancelled everywhere.

        That is: once at each of its suspensions, at once and late.  Returns the names of all
        coroutines that were waiting then.
        """
        places: set[str] = set()
        for late in (False, True):
            missed = 0
            for nth in itertools.count(1):
                cut = Cut(nth, late=late)
                self.run(functools.partial(scenario, cut))
                # How often a call has to wait depends on what else the machine does.
                if cut.happened:
                    missed = 0
                    places.update(cut.places)
                elif (missed := missed + 1) == 3:
                    break
        return places

    def was_told_of(self, *kinds: type[BaseException]) -> None:
        """Forget these errors that the loop's exception handler was called with."""
        for context in self.unexpected:
            assert isinstance(context.get("exception"), kinds), context
        self.unexpected.clear()

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


class Cut:
    """Makes one call, in a task that is cancelled where it is suspended for the nth time.

    That is never, where ``nth`` is 0.  With ``late`` what the call waits for comes first, and the
    call does not learn it.
    """

    def __init__(self, nth: int, *, late: bool) -> None:
        self.places: list[str] = []
        self.happened = False
        self.began_to_wait = asyncio.Event()
        self._left = nth
        self._late = late

    async def __call__(self, call: Coroutine[Any, Any, Any]) -> Any:
        """What the call returns; None if it was cancelled."""
        task = asyncio.get_running_loop().create_task(_Watched(call, self.suspended))
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()  # if it is too late for everything
        if not task.cancelled():
            result = task.result()
            assert not self.happened, f"it went on after it was cancelled in {self.places}"
            return result
        assert self.happened, "it was cancelled by something else"
        return None

    def suspended(self, call: Any, waits_for: asyncio.Future[Any] | None) -> None:
        """The call waits: now its time may have come."""
        self.began_to_wait.set()
        self._left -= 1
        if self._left:
            return
        self.happened = True
        while call is not None and hasattr(call, "__qualname__"):
            self.places.append(call.__qualname__)
            call = getattr(call, "cr_await", None)
        task = asyncio.current_task()
        assert task is not None
        if self._late and waits_for is not None:
            # Called before the task is, which waits for it only after this.
            waits_for.add_done_callback(lambda _: task.cancel())
        else:
            task.cancel()


class _Watched(Coroutine[Any, Any, Any]):
    """A coroutine that tells when it is suspended."""

    def __init__(self, call: Coroutine[Any, Any, Any], suspended: Callable[..., None]) -> None:
        self._call = call
        self._suspended = suspended

    def send(self, value: Any) -> Any:
        waits_for = self._call.send(value)
        self._suspended(self._call, waits_for)
        return waits_for

    def throw(self, *error: Any) -> Any:
        waits_for = self._call.throw(*error)
        self._suspended(self._call, waits_for)
        return waits_for

    def close(self) -> None:
        self._call.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        raise NotImplementedError("it is for tasks")


@contextlib.asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """What is begun in here is over at its end, on both sides of each connection."""
    descriptors, tasks = open_descriptors(), asyncio.all_tasks()
    yield
    async with asyncio.timeout(TIMEOUT / 2):  # before a handshake is given up by its timeout
        while open_descriptors() != descriptors or asyncio.all_tasks() - tasks:
            await asyncio.sleep(0.01)


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
