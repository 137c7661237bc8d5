"""Servers."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl as ssl_module
import weakref
from asyncio import trsock
from typing import TYPE_CHECKING, Any, Self

from pyktls.errors import InvalidType, InvalidValue
from pyktls.ssl_sockets import requires_kernel

from .connecting import STREAM_LIMIT, StreamWriter, duplicate, timeouts
from .futures import settle
from .handshake import connect_tls, is_for_kernel
from .transport import KTLSTransport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from ssl import SSLContext
    from typing import Unpack

    from .keywords import ListeningKeywords, ServerKeywords

__all__ = ["Server", "create_server", "start_server"]

# What accept(2) says when the process or the system has come to its limits, and for how many
# seconds it is then left alone.
_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_ACCEPT_RETRY_DELAY = 1.0


class Server(asyncio.AbstractServer):
    """As asyncio.Server; ``create_server`` and ``start_server`` make it.

    ``wait_closed`` waits until the server is closed and all its connections are, those that are
    still making their handshake too, as asyncio's does since Python 3.12.1.  ``close_clients`` and
    ``abort_clients`` are there on every Python.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sockets: list[socket.socket],
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        context: SSLContext,
        *,
        backlog: int,
        handshake_timeout: float,
        shutdown_timeout: float,
        require: bool,
    ) -> None:
        self._loop = loop
        self._sockets: list[socket.socket] | None = sockets
        self._protocol_factory = protocol_factory
        self._context = context
        self._backlog = backlog
        self._handshake_timeout = handshake_timeout
        self._shutdown_timeout = shutdown_timeout
        self._require = require
        self._serving = False
        self._resting: dict[socket.socket, asyncio.TimerHandle] = {}
        self._handshakes: dict[asyncio.Task[None], socket.socket] = {}
        # Weak, so that a transport that somebody has forgotten is noticed.
        self._transports: weakref.WeakSet[KTLSTransport] = weakref.WeakSet()
        self._connections = 0
        self._closed_waiters: list[asyncio.Future[None]] = []
        self._forever: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<pyktls.aio.Server sockets={self.sockets!r}>"

    # ---- listening ---------------------------------------------------------------------------

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The event loop."""
        return self._loop

    def is_serving(self) -> bool:
        """Whether it accepts connections."""
        return self._serving

    @property
    def sockets(self) -> tuple[trsock.TransportSocket, ...]:
        """The listening sockets; none once it is closed."""
        return tuple(map(trsock.TransportSocket, self._sockets or ()))

    def _begin(self) -> None:
        """Accept connections from now on."""
        if self._serving:
            return
        if self._sockets is None:
            raise RuntimeError(f"server {self!r} is closed")
        self._serving = True
        for sock in self._sockets:
            sock.listen(self._backlog)
            self._loop.add_reader(sock.fileno(), self._accept, sock)

    async def start_serving(self) -> None:
        """Accept connections from now on."""
        self._begin()
        await asyncio.sleep(0)

    async def serve_forever(self) -> None:
        """Accept connections until this is cancelled; then close, and wait for the connections."""
        if self._forever is not None:
            raise RuntimeError(f"server {self!r} is already being awaited on serve_forever()")
        if self._sockets is None:
            raise RuntimeError(f"server {self!r} is closed")
        self._begin()
        self._forever = self._loop.create_future()
        try:
            await self._forever
        except asyncio.CancelledError:
            self.close()
            await self.wait_closed()
            raise
        finally:
            self._forever = None

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(self._backlog):
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as e:
                if e.errno not in _OUT_OF_RESOURCES:
                    raise  # the loop tells of it
                self._rest(listener, e)
                return
            sock.setblocking(False)
            task = self._loop.create_task(self._connect(sock))
            self._handshakes[task] = sock
            task.add_done_callback(self._handshake_over)

    def _rest(self, listener: socket.socket, error: OSError) -> None:
        """Accept nothing for a while: the system keeps saying that there is somebody."""
        self._loop.call_exception_handler(
            {
                "message": "socket.accept() out of system resource",
                "exception": error,
                "socket": trsock.TransportSocket(listener),
            }
        )
        self._loop.remove_reader(listener.fileno())
        self._resting[listener] = self._loop.call_later(_ACCEPT_RETRY_DELAY, self._rested, listener)

    def _rested(self, listener: socket.socket) -> None:
        self._resting.pop(listener, None)
        if self._sockets is not None:
            self._loop.add_reader(listener.fileno(), self._accept, listener)

    # ---- connections -------------------------------------------------------------------------

    async def _connect(self, sock: socket.socket) -> None:
        try:
            end, about = await connect_tls(
                sock,
                self._context,
                server_side=True,
                server_hostname=None,
                timeout=self._handshake_timeout,
                require=self._require,
            )
            try:
                transport = KTLSTransport(
                    self._loop,
                    end,
                    self._protocol_factory(),
                    about,
                    shutdown_timeout=self._shutdown_timeout,
                    server=self,
                )
            except BaseException:
                end.discard()
                raise
        except (SystemExit, KeyboardInterrupt, asyncio.CancelledError):
            raise
        except BaseException as e:
            if self._loop.get_debug():
                self._loop.call_exception_handler(
                    {
                        "message": "Error on transport creation for incoming connection",
                        "exception": e,
                    }
                )
            return
        protocol = transport.get_protocol()
        try:
            transport.start()
        except (SystemExit, KeyboardInterrupt, asyncio.CancelledError):
            raise
        except BaseException as e:
            self._loop.call_exception_handler(
                {
                    "message": "Fatal error: protocol.connection_made() call failed.",
                    "exception": e,
                    "transport": transport,
                    "protocol": protocol,
                }
            )

    def _handshake_over(self, task: asyncio.Task[None]) -> None:
        # It has been taken over, unless the task was cancelled before it began.
        self._handshakes.pop(task).close()
        self._wake_up()

    def _attach(self, transport: KTLSTransport) -> None:
        self._transports.add(transport)
        self._connections += 1

    def _detach(self, transport: KTLSTransport) -> None:
        self._transports.discard(transport)
        self._forgotten()

    def _forgotten(self) -> None:
        """A transport is gone, from ``_transports`` too."""
        self._connections -= 1
        self._wake_up()

    # ---- closing -----------------------------------------------------------------------------

    def close(self) -> None:
        """Stop listening.  Connections go on, and so do handshakes under way."""
        sockets, self._sockets = self._sockets, None
        if sockets is None:
            return
        for timer in self._resting.values():
            timer.cancel()
        self._resting.clear()
        for sock in sockets:
            if self._serving:
                self._loop.remove_reader(sock.fileno())
            sock.close()
        self._serving = False
        if self._forever is not None and not self._forever.done():
            self._forever.cancel()
        self._wake_up()

    def close_clients(self) -> None:
        """Close the transports of all connections; handshakes under way are given up."""
        self._give_up_handshakes()
        for transport in tuple(self._transports):
            transport.close()

    def abort_clients(self) -> None:
        """Close all connections at once."""
        self._give_up_handshakes()
        for transport in tuple(self._transports):
            transport.abort()

    def _give_up_handshakes(self) -> None:
        for task in tuple(self._handshakes):
            task.cancel()

    def _is_over(self) -> bool:
        return self._sockets is None and not self._connections and not self._handshakes

    def _wake_up(self) -> None:
        if not self._is_over():
            return
        waiters, self._closed_waiters = self._closed_waiters, []
        for waiter in waiters:
            settle(waiter)

    async def wait_closed(self) -> None:
        """Wait until it is closed and all connections are."""
        if self._is_over():
            return
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._closed_waiters.append(waiter)
        await waiter

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        await self.wait_closed()


async def create_server(
    protocol_factory: Callable[[], asyncio.BaseProtocol],
    host: str | Sequence[str] | None = None,
    port: int | str | None = None,
    *,
    backlog: int = 100,
    ssl: SSLContext | None = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
    start_serving: bool = True,
    require: bool = False,
    **tcp: Unpack[ListeningKeywords],
) -> asyncio.AbstractServer:
    """As ``loop.create_server``, with TLS in the kernel where it can be.

    The other keywords are those of the loop's method: ``family``, ``flags``, ``sock``,
    ``reuse_address``, ``reuse_port`` and ``keep_alive``, as far as the loop has them.

    Returns a ``Server``, or the loop's own where the kernel has no TLS.  ``require`` makes that an
    error (HandoffRefused, Unavailable), and has connections that the kernel does not take closed.
    Clients that fail in the handshake, or take longer than ``ssl_handshake_timeout`` seconds (60),
    are closed; in debug mode the loop's exception handler hears of them.  ``sock`` belongs to the
    server, which closes it.
    """
    loop: Any = asyncio.get_running_loop()
    handshake_timeout, shutdown_timeout = timeouts(
        ssl is not None, ssl_handshake_timeout, ssl_shutdown_timeout
    )
    if ssl is not None and not isinstance(ssl, ssl_module.SSLContext):
        raise InvalidType(f"ssl must be an ssl.SSLContext or None, not {type(ssl).__name__}")
    if ssl is None and require:
        raise InvalidValue("require is only meaningful with ssl")
    require = require or (ssl is not None and requires_kernel(ssl))
    server: asyncio.AbstractServer
    if ssl is None or not is_for_kernel(ssl, require=require):
        server = await loop.create_server(
            protocol_factory,
            host,
            port,
            backlog=backlog,
            ssl=ssl,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
            start_serving=False,  # cancelled there, asyncio would leave a server to nobody
            **tcp,
        )
    else:
        server = Server(
            loop,
            await _bind(loop, host, port, backlog, tcp),
            protocol_factory,
            ssl,
            backlog=backlog,
            handshake_timeout=handshake_timeout,
            shutdown_timeout=shutdown_timeout,
            require=require,
        )
    if start_serving:
        try:
            await server.start_serving()
        except BaseException:
            server.close()
            raise
    return server


async def _bind(
    loop: Any,
    host: str | Sequence[str] | None,
    port: int | str | None,
    backlog: int,
    tcp: ListeningKeywords,
) -> list[socket.socket]:
    """Sockets that are bound and do not listen yet, made by the loop's own means."""
    given = tcp.get("sock")
    if isinstance(given, ssl_module.SSLSocket):
        raise InvalidType("sock must not be an SSLSocket")
    if isinstance(given, socket.socket):
        # The loop looks at a duplicate, which it closes; the caller's own object goes on.
        with duplicate(given) as sock:
            looked_at = await loop.create_server(
                asyncio.Protocol, host, port, backlog=backlog, start_serving=False,
                **{**tcp, "sock": sock},
            )  # fmt: skip
            looked_at.close()
        given.setblocking(False)
        return [given]
    made = await loop.create_server(
        asyncio.Protocol, host, port, backlog=backlog, start_serving=False, **tcp
    )
    sockets: list[socket.socket] = []
    try:
        for old in made.sockets:
            sockets.append(duplicate(old))  # noqa: PERF401  (what there is, is closed)
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    finally:
        made.close()
    return sockets


async def start_server(
    client_connected_cb: Callable[
        [asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None
    ],
    host: str | Sequence[str] | None = None,
    port: int | str | None = None,
    *,
    limit: int = STREAM_LIMIT,
    **keywords: Unpack[ServerKeywords],
) -> asyncio.AbstractServer:
    """As asyncio.start_server, with TLS in the kernel where it can be.

    The keywords are those of ``create_server``, and what it raises.  The writers' ``start_tls`` is
    ``aio.start_tls``.
    """
    loop = asyncio.get_running_loop()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Any:
        # asyncio has made it, and takes it back from nobody: another one would leave this one to
        # be collected, which closes the transport.
        writer.__class__ = StreamWriter
        return client_connected_cb(reader, writer)

    def factory() -> asyncio.StreamReaderProtocol:
        reader = asyncio.StreamReader(limit=limit, loop=loop)
        return asyncio.StreamReaderProtocol(reader, connected, loop=loop)

    return await create_server(factory, host, port, **keywords)
