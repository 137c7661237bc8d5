"""Clients, and connections that turn to TLS later."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import ssl as ssl_module
from typing import TYPE_CHECKING, Any

from pyktls import arguments
from pyktls.errors import HandoffRefused, InvalidType, InvalidValue
from pyktls.ssl_sockets import requires_kernel

from .futures import settle
from .handshake import (
    HANDSHAKE_TIMEOUT,
    SHUTDOWN_TIMEOUT,
    connect_tls,
    is_for_kernel,
)
from .transport import KTLSTransport

if TYPE_CHECKING:
    from collections.abc import Callable
    from ssl import SSLContext
    from typing import TypeVar, Unpack

    from .keywords import ConnectingKeywords, ConnectionKeywords

    P = TypeVar("P", bound=asyncio.BaseProtocol)

__all__ = [
    "STREAM_LIMIT",
    "StreamWriter",
    "create_connection",
    "duplicate",
    "open_connection",
    "start_tls",
    "timeouts",
]

STREAM_LIMIT = 1 << 16  # as asyncio's streams


def timeouts(tls: object, handshake: float | None, shutdown: float | None) -> tuple[float, float]:
    """The two timeouts of a TLS connection, checked as asyncio does."""
    for name, value in (("ssl_handshake_timeout", handshake), ("ssl_shutdown_timeout", shutdown)):
        if value is None:
            continue
        if not tls:
            raise InvalidValue(f"{name} is only meaningful with ssl")
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise InvalidType(f"{name} must be a number of seconds, not {type(value).__name__}")
        if value <= 0:
            raise InvalidValue(f"{name} should be a positive number, got {value}")
    return (
        HANDSHAKE_TIMEOUT if handshake is None else handshake,
        SHUTDOWN_TIMEOUT if shutdown is None else shutdown,
    )


async def create_connection(
    protocol_factory: Callable[[], P],
    host: str | None = None,
    port: int | str | None = None,
    *,
    ssl: SSLContext | bool | None = None,
    sock: socket.socket | None = None,
    server_hostname: str | None = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
    require: bool = False,
    **tcp: Unpack[ConnectingKeywords],
) -> tuple[asyncio.Transport, P]:
    """As ``loop.create_connection``, with TLS in the kernel where it can be.

    The other keywords are those of the loop's method: ``family``, ``proto``, ``flags``,
    ``local_addr``, ``happy_eyeballs_delay``, ``interleave`` and ``all_errors``, as far as the loop
    has them.  ``ssl=True`` means ``ssl.create_default_context()``.

    ``require`` makes an error of whatever would have the connection carried by user space: then it
    raises HandoffRefused or Unavailable.  Otherwise it raises what the loop's method raises:
    OSError of the connection, ssl.SSLError of the handshake, ConnectionAbortedError when that takes
    longer than ``ssl_handshake_timeout`` seconds (60).  ``ssl_shutdown_timeout`` (30 seconds)
    is how long ``transport.close()`` may take.  ``sock`` belongs to the transport, which closes it.
    """
    loop: Any = asyncio.get_running_loop()
    handshake_timeout, shutdown_timeout = timeouts(ssl, ssl_handshake_timeout, ssl_shutdown_timeout)
    if not ssl:
        if require:
            raise InvalidValue("require is only meaningful with ssl")
        plain: tuple[asyncio.Transport, P] = await loop.create_connection(
            protocol_factory, host, port, sock=sock, server_hostname=server_hostname, **tcp
        )
        return plain
    if server_hostname is None:
        if not host:
            raise InvalidValue("You must set server_hostname when using ssl without a host")
        server_hostname = host
    server_hostname = arguments.hostname(server_hostname)
    context = ssl_module.create_default_context() if ssl is True else ssl
    if not isinstance(context, ssl_module.SSLContext):
        raise InvalidType(f"ssl must be an ssl.SSLContext or True, not {type(ssl).__name__}")
    if ssl is True and not server_hostname:
        context.check_hostname = False
    require = require or requires_kernel(context)
    if not is_for_kernel(context, require=require):
        loops: tuple[asyncio.Transport, P] = await loop.create_connection(
            protocol_factory,
            host,
            port,
            ssl=context,
            sock=sock,
            server_hostname=server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
            **tcp,
        )
        return loops
    tcp_socket = await _connect(loop, host, port, sock, tcp)
    with contextlib.ExitStack() as after_error:
        if sock is not None:
            after_error.callback(sock.close)
        end, about = await connect_tls(
            tcp_socket,
            context,
            server_side=False,
            server_hostname=server_hostname or None,
            timeout=handshake_timeout,
            require=require,
        )
        after_error.callback(end.discard)
        protocol = protocol_factory()
        transport = KTLSTransport(
            loop, end, protocol, about, shutdown_timeout=shutdown_timeout, given=sock
        )
        after_error.pop_all()
    transport.start()
    return transport, protocol


async def open_connection(
    host: str | None = None,
    port: int | str | None = None,
    *,
    limit: int = STREAM_LIMIT,
    **keywords: Unpack[ConnectionKeywords],
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """As asyncio.open_connection, with TLS in the kernel where it can be.

    The keywords are those of ``create_connection``, and what it raises.  The writer's ``start_tls``
    is ``aio.start_tls``.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=limit, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await create_connection(lambda: protocol, host, port, **keywords)
    return reader, StreamWriter(transport, protocol, reader, loop)


class StreamWriter(asyncio.StreamWriter):
    """As asyncio.StreamWriter, with TLS in the kernel after ``start_tls``."""

    _loop: asyncio.AbstractEventLoop
    _protocol: asyncio.StreamReaderProtocol
    _transport: asyncio.WriteTransport

    async def start_tls(
        self,
        sslcontext: SSLContext,
        *,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        require: bool = False,
    ) -> None:
        """As asyncio.StreamWriter.start_tls; see ``aio.start_tls``."""
        protocol = self._protocol
        server_side = protocol._client_connected_cb is not None  # type: ignore[attr-defined]  # noqa: SLF001
        await self.drain()
        self._transport = await start_tls(
            self._transport,
            protocol,
            sslcontext,
            server_side=server_side,
            server_hostname=server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
            require=require,
        )
        if hasattr(protocol, "_replace_transport"):  # Python 3.12
            protocol._replace_transport(self._transport)  # noqa: SLF001
        else:
            protocol._replace_writer(self)  # type: ignore[attr-defined]  # noqa: SLF001


async def start_tls(
    transport: asyncio.WriteTransport,
    protocol: asyncio.BaseProtocol,
    sslcontext: SSLContext,
    *,
    server_side: bool = False,
    server_hostname: str | None = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
    require: bool = False,
) -> asyncio.Transport:
    """As ``loop.start_tls``, with TLS in the kernel where it can be: STARTTLS and the like.

    Returns the transport to go on with; ``transport``, the one of the connection so far, is used
    up.  What is in its write buffer is sent first.  ``protocol.connection_made`` is not called
    again.  If the connection runs over TLS already, for instance to an HTTPS proxy, the new one is
    asyncio's own TLS within it: a kernel has one layer for a socket, and ``require`` is refused.

    The peer must not send before it has been told to begin with TLS.  What it did send is plain
    text, from anybody, and would be read after the handshake as if it had come over TLS
    (CVE-2011-0411): where the protocol is asyncio's StreamReaderProtocol and its reader still holds
    something, that is HandoffRefused.  Other protocols have to look at their own buffers.

    Raises as ``create_connection``, and ConnectionResetError where the connection is over already;
    ``transport`` is closed then.
    """
    loop = asyncio.get_running_loop()
    handshake_timeout, shutdown_timeout = timeouts(
        sslcontext, ssl_handshake_timeout, ssl_shutdown_timeout
    )
    if not isinstance(sslcontext, ssl_module.SSLContext):
        raise InvalidType(f"sslcontext must be an ssl.SSLContext, not {type(sslcontext).__name__}")
    server_hostname = arguments.hostname(server_hostname)
    if not hasattr(transport, "get_extra_info"):
        raise InvalidType(f"transport must be an asyncio transport, not {type(transport).__name__}")
    within_tls = transport.get_extra_info("sslcontext") is not None
    _check_open(transport)  # if it is not, the protocol is told without our doing
    plain = transport.get_extra_info("socket")
    if plain is None or not _is_a_loops(transport, loop):
        raise InvalidType(
            f"transport {transport!r} is not one of a TCP connection, made by the loop"
        )
    require = require or requires_kernel(sslcontext)
    reader = _reader_of(protocol)
    try:
        for_kernel = _check_carrier(plain, within_tls=within_tls, require=require)
        for_kernel = for_kernel and is_for_kernel(sslcontext, require=require)
        await _until_empty(transport, protocol)
        _check_nothing_is_buffered(reader)
    except BaseException as e:
        _drop(transport, protocol, e)
        raise
    if not for_kernel:
        relay = _Relay(protocol)
        try:
            made: asyncio.Transport | None = await _loops_start_tls(loop, transport)(
                transport,
                relay,
                sslcontext,
                server_side=server_side,
                server_hostname=server_hostname,
                ssl_handshake_timeout=ssl_handshake_timeout,
                ssl_shutdown_timeout=ssl_shutdown_timeout,
            )
            if made is None or made.get_extra_info("ssl_object") is None:
                # Of an end that is no error the loops make a success without a handshake.
                raise ConnectionResetError("the connection was lost in the handshake")  # noqa: TRY301
        except BaseException as e:
            transport.abort()
            relay.connection_lost(_reason(e))
            raise
        made.set_protocol(protocol)
        _give_flow_control(made, reader)
        return made
    try:
        tcp_socket = take_socket(transport)
        end, about = await connect_tls(
            tcp_socket,
            sslcontext,
            server_side=server_side,
            server_hostname=server_hostname or None,
            timeout=handshake_timeout,
            require=require,
        )
    except BaseException as e:
        _drop(transport, protocol, e)
        raise
    upgraded = KTLSTransport(loop, end, protocol, about, shutdown_timeout=shutdown_timeout)
    _give_flow_control(upgraded, reader)
    upgraded.start(introduce=False)
    return upgraded


def _is_a_loops(transport: asyncio.WriteTransport, loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a transport is just its socket: another one may say of which it makes use."""
    packages = {type(one).__module__.partition(".")[0] for one in (transport, loop)}
    return getattr(transport, "_start_tls_compatible", False) or packages == {"uvloop"}


def _check_carrier(sock: Any, *, within_tls: bool, require: bool) -> bool:
    """Whether the kernel can encrypt what goes over a connection; HandoffRefused if it must."""
    if sock.family == socket.AF_UNIX:
        reason = "the socket is not a TCP socket"
    elif within_tls:
        reason = "the connection runs over TLS already, and the kernel has one layer for a socket"
    else:
        return True
    if require:
        raise HandoffRefused(reason)
    return False


def _loops_start_tls(loop: Any, transport: asyncio.WriteTransport) -> Callable[..., Any]:
    """The loop's start_tls; asyncio's on a loop that knows no transports but its own (uvloop)."""
    if isinstance(transport, KTLSTransport) and not isinstance(loop, asyncio.BaseEventLoop):
        return functools.partial(asyncio.BaseEventLoop.start_tls, loop)
    method: Callable[..., Any] = loop.start_tls
    return method


def _check_open(transport: asyncio.WriteTransport) -> None:
    if transport.is_closing():
        raise ConnectionResetError("the connection was closed before TLS began")


def _reader_of(protocol: asyncio.BaseProtocol) -> Any:
    """The StreamReader of asyncio's own protocol; None if it is another one."""
    return protocol._stream_reader if isinstance(protocol, asyncio.StreamReaderProtocol) else None  # type: ignore[attr-defined]  # noqa: SLF001


def _check_nothing_is_buffered(reader: Any) -> None:
    """Raise HandoffRefused if plain text is there that would be taken for what came over TLS."""
    if reader is not None and reader._buffer:  # noqa: SLF001
        raise HandoffRefused(
            f"the peer sent {len(reader._buffer)} bytes that were not read before TLS began, "  # noqa: SLF001
            "which nothing protects; the connection is closed"
        )


def _give_flow_control(transport: asyncio.Transport, reader: Any) -> None:
    """Have a StreamReader pause the transport that it now reads from.

    One that has none yet gets it from its protocol's connection_made, which is still to come.
    """
    if reader is not None and reader._transport is not None:  # noqa: SLF001
        reader._transport = transport  # noqa: SLF001  (set_transport is for the first one)


# ---- the socket of a plain connection ----------------------------------------------------------


class _Nobody(asyncio.Protocol):
    """For a transport whose socket is taken away."""


class _Taker(asyncio.Protocol):
    """Takes the socket of a connection as soon as it is there."""

    def __init__(self) -> None:
        self._sock: socket.socket | None = None
        self._error: OSError | None = None

    def connection_made(self, transport: Any) -> None:
        try:
            self._sock = take_socket(transport)
        except OSError as e:
            self._error = e
            transport.abort()

    def drop(self) -> None:
        """Close it, if it is there already."""
        if self._sock is not None:
            self._sock.close()

    def sock(self) -> socket.socket:
        """The socket, once the connection is made."""
        if self._sock is None:
            raise self._error or ConnectionAbortedError("the connection was lost at once")
        return self._sock


def duplicate(old: Any) -> socket.socket:
    """Another descriptor of a socket that a loop has, for one who reads and writes himself."""
    fd = os.dup(old.fileno())
    try:
        sock = socket.socket(old.family, old.type, old.proto, fileno=fd)
    except BaseException:
        os.close(fd)
        raise
    sock.setblocking(False)
    return sock


def take_socket(transport: Any) -> socket.socket:
    """The socket of a plain connection, away from its transport."""
    sock = duplicate(transport.get_extra_info("socket"))
    transport.set_protocol(_Nobody())
    transport.abort()  # closes the other descriptor; nothing goes over the connection
    return sock


async def _connect(
    loop: Any,
    host: str | None,
    port: int | str | None,
    sock: socket.socket | None,
    tcp: ConnectingKeywords,
) -> socket.socket:
    """A connected TCP socket, made by the loop's own means."""
    if sock is None:
        taker = _Taker()
        try:
            await loop.create_connection(lambda: taker, host, port, **tcp)
        except BaseException:
            taker.drop()
            raise
        return taker.sock()
    if host is not None or port is not None:
        raise InvalidValue("host/port and sock can not be specified at the same time")
    if isinstance(sock, ssl_module.SSLSocket):
        raise InvalidType("sock must not be an SSLSocket: pyktls.offload is for those")
    if sock.type != socket.SOCK_STREAM:
        raise InvalidValue(f"A Stream Socket was expected, got {sock!r}")
    # The caller's object is to live as long as the connection, and OpenSSL's takes its descriptor.
    return duplicate(sock)


class _Flow(asyncio.Protocol):
    """Stands for a protocol until everything that was written is in the kernel."""

    def __init__(self, protocol: Any, empty: asyncio.Future[None]) -> None:
        self._protocol = protocol
        self._empty = empty
        self._paused_here = False

    def pause_writing(self) -> None:
        self._paused_here = True

    def resume_writing(self) -> None:
        if not self._paused_here:
            self._protocol.resume_writing()
        settle(self._empty)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._empty.done():
            self._empty.set_exception(
                exc or ConnectionResetError("the connection was closed before TLS began")
            )


async def _until_empty(transport: Any, protocol: asyncio.BaseProtocol) -> None:
    """Wait until everything that was written is in the kernel; nobody is told of its end."""
    transport.pause_reading()
    if not transport.get_write_buffer_size():
        return
    empty: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    transport.set_protocol(_Flow(protocol, empty))
    transport.set_write_buffer_limits(high=0)
    await empty
    _check_open(transport)
    transport.set_protocol(protocol)
    transport.set_write_buffer_limits()


class _Relay(asyncio.Protocol):
    """Stands for a protocol while asyncio makes the handshake, and tells it once of the end.

    asyncio itself does not, where the handshake is cancelled or takes too long.
    """

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self._lost = False

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._lost:
            self._lost = True
            self._protocol.connection_lost(exc)

    # What may come in the moment in which the handshake is over.

    def data_received(self, data: bytes) -> None:
        if not isinstance(self._protocol, asyncio.BufferedProtocol):
            self._protocol.data_received(data)
            return
        while data:
            buffer = memoryview(self._protocol.get_buffer(len(data))).cast("B")
            if not buffer:
                raise RuntimeError("get_buffer() returned an empty buffer")
            size = min(len(buffer), len(data))
            buffer[:size] = data[:size]
            self._protocol.buffer_updated(size)
            data = data[size:]

    def eof_received(self) -> bool | None:
        keep_open: bool | None = self._protocol.eof_received()
        return keep_open

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()


def _drop(transport: Any, protocol: asyncio.BaseProtocol, error: BaseException) -> None:
    """TLS has not come about: the connection is over."""
    transport.set_protocol(_Nobody())
    transport.abort()
    protocol.connection_lost(_reason(error))


def _reason(error: BaseException) -> Exception | None:
    """What a protocol is told; None if it was cancelled."""
    return error if isinstance(error, Exception) else None
