"""The servers of one file each, and the child that is one: asyncio's, ours, aiofastnet's, programs.

The ones for asyncio do the same: they read a request, send a header and then the file, by the best
means that the library has, and keep the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import programs
from .ends import server_context
from .tables import Missing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .ends import Channel

    Send = Callable[[asyncio.StreamWriter, Any, int], Awaitable[None]]

ASYNCIO, AIO, FAST, FAST_KTLS = "asyncio", "aio", "aiofastnet", "aiofastnet-ktls"
OP_ENABLE_KTLS = 1 << 3  # OpenSSL's number
PIECE = 256 << 10  # what asyncio's own sendfile reads at once where it cannot do better


def serve(channel: Channel, *, kind: str, host: str, material: dict[str, str], place: str) -> None:
    """Be a server of the files in ``place`` until the channel ends."""
    if kind in {"s_server", "pyktls-serve"}:
        run_program(channel, kind, host, material, place)
    else:
        asyncio.run(run_asyncio(channel, kind, host, material, Path(place)))


def run_program(
    channel: Channel, kind: str, host: str, material: dict[str, str], place: str
) -> None:
    programs.own_kernel_tls()
    chain = Path(place) / "chain.pem"
    chain.write_text(material["ecdsa"], encoding="ascii")
    start, version = programs.serve, ""
    if kind == "s_server":
        start, version = programs.s_server, programs.openssl_version(place)
    port = programs.free_port(host)
    with start(host, port, place, chain) as process:
        channel.say(port=port, pid=process.pid, version=version)
        with contextlib.suppress(EOFError):
            channel.hear()


async def run_asyncio(
    channel: Channel, kind: str, host: str, material: dict[str, str], place: Path
) -> None:
    loop = asyncio.get_running_loop()
    context = server_context(material["ecdsa"])
    start_server, send = await OPENERS[kind](loop, context)

    async def send_or_say(writer: asyncio.StreamWriter, file: Any, size: int) -> None:
        try:
            await send(writer, file, size)
        except Missing as e:
            channel.say(missing=str(e))
            raise ConnectionAbortedError from e

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await answer(reader, writer, place, send_or_say)
        writer.close()

    server = await start_server(connected, host, 0, ssl=context, backlog=1024)
    channel.say(port=server.sockets[0].getsockname()[1], pid=os.getpid())
    ended = asyncio.Event()
    loop.add_reader(channel.sock, ended.set)
    await ended.wait()
    # Connections are still open; they end with the process.
    os._exit(0)


async def answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, place: Path, send: Send
) -> None:
    """Answer requests until there are no more."""
    while True:
        request = await reader.readuntil(b"\r\n\r\n")
        path = place / request.split(b" ", 2)[1].decode().lstrip("/")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            await send(writer, file, size)


# ---- the libraries -----------------------------------------------------------------------------


async def open_asyncio(loop: Any, _context: ssl.SSLContext) -> tuple[Any, Send]:
    async def send(writer: asyncio.StreamWriter, file: Any, _size: int) -> None:
        await loop.sendfile(writer.transport, file)

    return asyncio.start_server, send


async def open_aio(_loop: Any, _context: ssl.SSLContext) -> tuple[Any, Send]:
    programs.own_kernel_tls()
    try:
        aio = importlib.import_module("pyktls.aio")
    except ImportError:
        raise Missing("this pyktls has no `aio`") from None

    async def start_server(connected: Any, host: str, port: int, **more: Any) -> Any:
        return await aio.start_server(connected, host, port, require=True, **more)

    async def send(writer: asyncio.StreamWriter, file: Any, _size: int) -> None:
        await aio.sendfile(writer, file)

    return start_server, send


def aiofastnet(loop: Any) -> tuple[Any, Any]:
    try:
        library = importlib.import_module("aiofastnet")
    except ImportError as e:
        raise Missing(f"aiofastnet is not installed, or does not work here ({e})") from None

    async def start_server(*arguments: Any, **more: Any) -> Any:
        return await library.start_server(loop, *arguments, **more)

    return library, start_server


async def open_fast(loop: Any, _context: ssl.SSLContext) -> tuple[Any, Send]:
    """Without kernel TLS its sendfile refuses to work: read, write and drain."""
    _, start_server = aiofastnet(loop)

    async def send(writer: asyncio.StreamWriter, file: Any, _size: int) -> None:
        while piece := file.read(PIECE):
            writer.write(piece)
            await writer.drain()

    return start_server, send


async def open_fast_ktls(loop: Any, context: ssl.SSLContext) -> tuple[Any, Send]:
    programs.own_kernel_tls()
    # Python has the name since 3.12; the library asks for the name, and OpenSSL for the bit.
    option = vars(ssl).setdefault("OP_ENABLE_KTLS", OP_ENABLE_KTLS)
    context.options |= option
    library, start_server = aiofastnet(loop)

    async def send(writer: asyncio.StreamWriter, file: Any, size: int) -> None:
        if not writer.get_extra_info("ktls_send_enabled"):
            raise Missing("aiofastnet has not switched to kernel TLS")
        await library.sendfile(loop, writer.transport, file, 0, size)

    return start_server, send


OPENERS = {ASYNCIO: open_asyncio, AIO: open_aio, FAST: open_fast, FAST_KTLS: open_fast_ktls}
