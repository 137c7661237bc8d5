"""asyncio: pyktls's functions are called as asyncio's own, with the same types."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeVar, assert_type

from pyktls import aio

if TYPE_CHECKING:
    import ssl

P = TypeVar("P", bound=asyncio.BaseProtocol)


class Connects(Protocol):
    """loop.create_connection, as most programs call it."""

    async def __call__(
        self,
        protocol_factory: Any,
        host: str,
        port: int,
        /,
        *,
        ssl: ssl.SSLContext | bool | None = ...,
        family: int = ...,
        proto: int = ...,
        flags: int = ...,
        sock: None = ...,
        local_addr: tuple[str, int] | None = ...,
        server_hostname: str | None = ...,
        ssl_handshake_timeout: float | None = ...,
        ssl_shutdown_timeout: float | None = ...,
        happy_eyeballs_delay: float | None = ...,
        interleave: int | None = ...,
    ) -> tuple[asyncio.Transport, Any]: ...


class Opens(Protocol):
    """asyncio.open_connection."""

    async def __call__(
        self,
        host: str | None = ...,
        port: int | None = ...,
        *,
        limit: int = ...,
        ssl: ssl.SSLContext | None = ...,
        server_hostname: str | None = ...,
        ssl_handshake_timeout: float | None = ...,
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]: ...


class Serves(Protocol):
    """asyncio.start_server."""

    async def __call__(
        self,
        client_connected_cb: Any,
        host: str | None = ...,
        port: int | None = ...,
        /,
        *,
        limit: int = ...,
        ssl: ssl.SSLContext | None = ...,
        backlog: int = ...,
        reuse_port: bool | None = ...,
        ssl_handshake_timeout: float | None = ...,
        start_serving: bool = ...,
    ) -> asyncio.AbstractServer: ...


class Listens(Protocol):
    """loop.create_server."""

    async def __call__(
        self,
        protocol_factory: Any,
        host: str | None,
        port: int,
        /,
        *,
        family: int = ...,
        flags: int = ...,
        sock: None = ...,
        backlog: int = ...,
        ssl: ssl.SSLContext | None = ...,
        reuse_address: bool | None = ...,
        reuse_port: bool | None = ...,
        ssl_handshake_timeout: float | None = ...,
        ssl_shutdown_timeout: float | None = ...,
        start_serving: bool = ...,
    ) -> asyncio.AbstractServer: ...


def interchangeable(loop: asyncio.AbstractEventLoop) -> None:
    connects: tuple[Connects, Connects] = (loop.create_connection, aio.create_connection)
    opens: tuple[Opens, Opens] = (asyncio.open_connection, aio.open_connection)
    serves: tuple[Serves, Serves] = (asyncio.start_server, aio.start_server)
    listens: tuple[Listens, Listens] = (loop.create_server, aio.create_server)
    print(connects, opens, serves, listens)


class Echo(asyncio.Protocol):
    """A protocol of our own: its type comes back."""

    def __init__(self, word: str) -> None:
        self.word = word


async def connections(context: ssl.SSLContext, file: BinaryIO) -> bytes:
    made = await aio.create_connection(lambda: Echo("x"), "localhost", 443, ssl=context)
    assert_type(made, tuple[asyncio.Transport, Echo])
    transport, protocol = made
    assert_type(protocol.word, str)
    await aio.start_tls(transport, protocol, context, server_hostname="localhost", require=True)
    reader, writer = await aio.open_connection("localhost", 443, ssl=context, require=True)
    assert_type(reader, asyncio.StreamReader)
    assert_type(await aio.sendfile(writer, file, 0, 10, fallback=False), int)
    assert_type(await aio.sendfile(transport, file), int)
    await writer.start_tls(context, server_hostname="localhost")
    writer.close()
    return await reader.read()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.readline())
    await writer.drain()


async def servers(context: ssl.SSLContext) -> None:
    server = await aio.start_server(serve, "localhost", 4433, ssl=context, require=True)
    async with server:
        await server.serve_forever()
