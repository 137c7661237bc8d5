"""The server: listening, and stopping without cutting anybody off."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Self

from pyktls import aio

from .access_log import AccessLog, JSONLog
from .connection import Connection
from .limits import Limits
from .service import Service
from .site import Site

if TYPE_CHECKING:
    import os
    import socket
    import ssl as ssl_module
    from collections.abc import Sequence
    from typing import TextIO

__all__ = ["Server", "create_server"]

#: For a transport that closes.  What limits it is the connection's own deadline, which knows of a
#: client that reads slowly and reads.
SHUTDOWN_TIMEOUT = 3600.0
#: For what is left when everybody has been cut off.
END_TIMEOUT = 5.0


async def create_server(
    directory: str | os.PathLike[str],
    host: str | Sequence[str] | None = "127.0.0.1",
    port: int = 8443,
    *,
    ssl: ssl_module.SSLContext,
    index: bool = False,
    limits: Limits | None = None,
    log: TextIO | None = None,
    json_log: bool = False,
    require: bool = False,
    **options: Any,
) -> Server:
    """Serve the files below ``directory`` over HTTPS, and return the running ``Server``.

    ``ssl`` is a server's context with its certificate loaded.  ``index`` turns lists of directories
    on.  ``log`` is a text file that gets a line for each response, in the Common Log Format, or
    with ``json_log`` as an object (``JSONLog`` in access_log.py).  With ``require`` a connection
    that the kernel's TLS cannot take is ended, instead of being served by OpenSSL.  ``host`` None
    is every address, ``port`` 0 any that is free; ``options`` are more of those of
    ``pyktls.aio.create_server``: ``sock``, ``backlog``, ``reuse_port`` and so on.

    Raises OSError if the directory cannot be opened or the address not be had.
    """
    limits = limits or Limits()
    site = Site(directory, index=index)
    try:
        lines = (JSONLog if json_log else AccessLog)(log) if log is not None else None
        service = Service(site, limits, lines)
        if "sock" in options:
            host, port = None, None  # type: ignore[assignment]
        listener = await aio.create_server(
            lambda: Connection(service),
            host,
            port,
            ssl=ssl,
            ssl_handshake_timeout=limits.handshake_timeout,
            ssl_shutdown_timeout=SHUTDOWN_TIMEOUT,
            require=require,
            **options,
        )
    except BaseException:
        site.close()
        raise
    return Server(listener, service)


class Server:
    """What ``create_server`` returns.  Leaving an ``async with`` block stops it."""

    def __init__(self, listener: Any, service: Service) -> None:
        self._listener = listener
        self._service = service
        self._stopped = False
        self._cut_off = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop(0)

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """Those that listen; none when it has been stopped."""
        return tuple(self._listener.sockets)

    @property
    def connections(self) -> int:
        """How many there are, without those whose handshake is not done."""
        return len(self._service.connections)

    async def stop(self, grace: float = 10.0) -> bool:
        """Stop listening, let responses end within ``grace`` seconds, and close all connections.

        Who waits for nothing is closed at once.  Returns false if a response had to be cut off.
        """
        service = self._service
        if self._stopped:
            return True
        self._stopped = service.stopping = True
        self._listener.close()
        for connection in list(service.connections):
            connection.stop()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await service.empty.wait()
        finally:
            await self._end()
        return not self._cut_off

    def abort(self) -> None:
        """Cut all connections off; ``stop`` then has nothing to wait for."""
        for connection in list(self._service.connections):
            if connection.cut_off():
                self._cut_off = True

    async def _end(self) -> None:
        self.abort()
        # Handshakes that are under way.
        if hasattr(self._listener, "abort_clients"):
            self._listener.abort_clients()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_TIMEOUT):
                await self._service.empty.wait()
                await self._listener.wait_closed()
        self._service.site.close()
