"""The same as bad_input.py for the functions of pyktls.aio: right arguments, some of them replaced.

``AioWorld`` has an event loop with a server that echoes.  ``throw`` makes one call in it, closes
what comes of it, and looks at the error: one of ours, OSError, or TypeError and ValueError, which
asyncio's own functions raise too.  What asyncio or ssl say of what went through to them is theirs.
Nothing hangs, and the loop goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import pathlib
import socket
import tempfile
import traceback
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

import pyktls
from pyktls import aio

from . import bad_input, tls
from .kernel import TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Keywords that some of them have, with a value that is right.
KEYWORDS: dict[str, dict[str, Any]] = {
    "connect": {
        "ssl_handshake_timeout": 20.0, "ssl_shutdown_timeout": 5.0, "require": False, "sock": None,
        "family": 0, "proto": 0, "flags": 0, "local_addr": None, "interleave": None,
        "happy_eyeballs_delay": None,
    },
    "listen": {
        "ssl_handshake_timeout": 20.0, "ssl_shutdown_timeout": 5.0, "require": False, "sock": None,
        "backlog": 5, "start_serving": True, "family": socket.AF_UNSPEC,
        "flags": socket.AI_PASSIVE, "reuse_address": None, "reuse_port": None,
    },
    "start_tls": {
        "ssl_handshake_timeout": 20.0, "ssl_shutdown_timeout": 5.0, "require": False,
        "server_side": False,
    },
    "sendfile": {"fallback": True},
}  # fmt: skip
FUNCTIONS = {
    "create_connection": "connect",
    "open_connection": "connect",
    "create_server": "listen",
    "start_server": "listen",
    "start_tls": "start_tls",
    "sendfile": "sendfile",
}
#: Arguments that stay right: start_tls asks them before it knows what they are.
TAKEN_AS_THEY_ARE: dict[str, set[int]] = {"start_tls": {0, 1}}
PACKAGE = pathlib.Path(pyktls.__file__).parent
#: RuntimeError: of a transport that is closing, as loop.sendfile.
ALLOWED = (pyktls.Error, OSError, TypeError, ValueError, RuntimeError)
#: Classes whose objects the functions make.
MADE = {"KTLSTransport", "Server", "StreamWriter"}


class Echo(asyncio.Protocol):
    """Sends back what comes."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


def _serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


class AioWorld:
    """An event loop, a server with TLS, and one that begins TLS later."""

    def __init__(self, made: bad_input.World) -> None:
        self.made = made
        self.runner = asyncio.Runner()
        self.client, self.server = tls.contexts(tls.TLS_1_3, watch=False)
        self.runner.get_loop().set_exception_handler(lambda *_: None)
        self.listening = self.runner.run(self._listen())
        self.port: int = self.listening.sockets[0].getsockname()[1]

    async def _listen(self) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        return await loop.create_server(Echo, "127.0.0.1", 0, ssl=self.server)

    def close(self) -> None:
        self.listening.close()
        self.runner.close()

    def throw(self, name: str, data: Any) -> None:
        self.runner.run(asyncio.wait_for(self._throw(name, data), 4 * TIMEOUT))
        gc.collect()

    def check(self) -> None:
        """The loop still makes connections."""
        self.runner.run(asyncio.wait_for(self._check(), TIMEOUT))

    async def _check(self) -> None:
        reader, writer = await aio.open_connection(
            "127.0.0.1", self.port, ssl=self.client, server_hostname=tls.HOST
        )
        writer.write(b"still works")
        assert await reader.readexactly(11) == b"still works"
        writer.close()
        await writer.wait_closed()

    async def _throw(self, name: str, data: Any) -> None:
        async with contextlib.AsyncExitStack() as stack:
            right, keywords = await self._right(name, stack)
            any_value = st.one_of(bad_input.values(self.made), st.just(self.client))
            kind = FUNCTIONS[name]
            names = data.draw(st.lists(st.sampled_from(sorted(KEYWORDS[kind])), max_size=3))
            keywords |= {n: KEYWORDS[kind][n] for n in names}
            open_to_doubt = set(range(len(right))) - TAKEN_AS_THEY_ARE.get(name, set())
            places = st.sampled_from([*sorted(open_to_doubt), *sorted(keywords)])
            for place in data.draw(st.lists(places, min_size=1, max_size=3)):
                value = data.draw(any_value)
                if isinstance(place, str):
                    keywords[place] = value
                else:
                    right[place] = value
            call = f"{name}(*{right!r}, **{keywords!r})"
            try:
                result = await getattr(aio, name)(*right, **keywords)
            except Exception as e:  # noqa: BLE001  (that is the question)
                _judge(e, call)
            else:
                await _finish(result)

    async def _right(
        self, name: str, stack: contextlib.AsyncExitStack
    ) -> tuple[list[Any], dict[str, Any]]:
        tls_keywords = {"ssl": self.client, "server_hostname": tls.HOST}
        if name == "create_connection":
            return [asyncio.Protocol, "127.0.0.1", self.port], tls_keywords
        if name == "open_connection":
            return ["127.0.0.1", self.port], tls_keywords
        if name in ("create_server", "start_server"):
            first = asyncio.Protocol if name == "create_server" else _serve
            return [first, "127.0.0.1", 0], {"ssl": self.server}
        if name == "start_tls":
            loop = asyncio.get_running_loop()
            transport, protocol = await loop.create_connection(
                asyncio.Protocol, "127.0.0.1", self.port
            )
            stack.callback(transport.abort)
            return [transport, protocol, self.client], {"server_hostname": tls.HOST}
        _, writer = await aio.open_connection("127.0.0.1", self.port, **tls_keywords)
        stack.callback(_abort, writer)  # and it is not collected before
        file = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        file.write(b"content")
        file.flush()
        return [writer, file, 0, 5], {}


def _abort(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


def _judge(error: Exception, call: str) -> None:
    place = traceback.extract_tb(error.__traceback__)[-1].filename
    if pathlib.Path(place).is_relative_to(PACKAGE):
        assert isinstance(error, ALLOWED), f"{call} raised {error!r}"
        bad_input.judge_text(error, call)


async def _finish(result: Any) -> None:
    if isinstance(result, asyncio.AbstractServer):
        result.close()
        return
    if isinstance(result, tuple):
        result = result[1] if isinstance(result[1], asyncio.StreamWriter) else result[0]
    if isinstance(result, asyncio.StreamWriter | asyncio.WriteTransport):
        (result.transport if isinstance(result, asyncio.StreamWriter) else result).abort()
        await asyncio.sleep(0)


def not_covered() -> set[str]:
    """Public names of pyktls.aio that are neither thrown at nor made by what is."""
    return set(aio.__all__) - set(FUNCTIONS) - MADE


@contextlib.contextmanager
def world(made: bad_input.World) -> Iterator[AioWorld]:
    """The same; names are not looked up: numbers alone are addresses here."""
    real = socket.getaddrinfo

    def numbers_only(host: Any, port: Any, *rest: Any, flags: int = 0, **more: Any) -> Any:
        return real(host, port, *rest, flags=flags | socket.AI_NUMERICHOST, **more)

    socket.getaddrinfo = numbers_only  # type: ignore[assignment]
    around = AioWorld(made)
    try:
        yield around
    finally:
        around.close()
        socket.getaddrinfo = real
