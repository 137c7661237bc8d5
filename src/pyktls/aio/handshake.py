"""From a TCP connection to one that a transport can use: handshake and switch, without waiting.

OpenSSL makes the handshake on the socket itself, as an ssl.SSLSocket that does not block, because
only so it takes no more from the socket than the kernel can do without (see handoff.py; asyncio's
own TLS reads ahead into memory).  Then the keys go to the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from socket import IPPROTO_TCP, TCP_NODELAY
from typing import TYPE_CHECKING

from pyktls.ciphers import find_suite_by_openssl_name
from pyktls.engines.foreign import makes_its_own
from pyktls.errors import Error, HandoffRefused, InvalidType, Unavailable
from pyktls.handoff import watch
from pyktls.offloading import offload
from pyktls.probe import kernel_has_none
from pyktls.running_system import system
from pyktls.ssl_sockets import WatchedSocket, requires_kernel
from pyktls.takeover import as_far_as_possible, is_dead

from .ends import KernelEnd, OpenSSLEnd
from .futures import settle
from .tls_object import TLSObject

if TYPE_CHECKING:
    import socket

    from .ends import End

__all__ = [
    "HANDSHAKE_TIMEOUT",
    "SHUTDOWN_TIMEOUT",
    "connect_tls",
    "is_for_kernel",
]

# As asyncio's, in seconds.
HANDSHAKE_TIMEOUT = 60.0
SHUTDOWN_TIMEOUT = 30.0


def is_for_kernel(context: ssl.SSLContext, *, require: bool) -> bool:
    """Watch ``context``; False if its connections are for asyncio's own TLS, known beforehand.

    With ``require`` that is an error: HandoffRefused or Unavailable.
    """
    if not isinstance(context, ssl.SSLContext):
        raise InvalidType(f"ssl must be an ssl.SSLContext, not {type(context).__name__}")
    maker = makes_its_own(context)
    if maker is not None:  # which may be what checks the peer's certificate
        if require:
            raise HandoffRefused(f"{maker} makes the context's connections, which pyktls cannot")
        return False
    try:
        watch(context)
    except (HandoffRefused, Unavailable):
        if require:
            raise
        return False
    if kernel_has_none():
        if require:
            raise Unavailable("this kernel has no TLS", remedy="pyktls.probe() tells more")
        return False
    return True


async def connect_tls(
    sock: socket.socket,
    context: ssl.SSLContext,
    *,
    server_side: bool,
    server_hostname: str | None,
    timeout: float,  # noqa: ASYNC109  (it is the error that asyncio's users expect)
    require: bool,
) -> tuple[End, TLSObject]:
    """Make the handshake on a connected socket, which is used up, and switch to the kernel.

    Raises what the handshake raises, ConnectionAbortedError after ``timeout`` seconds, and with
    ``require`` HandoffRefused or Unavailable where the kernel does not take the connection.  The
    socket is then closed.
    """
    loop = asyncio.get_running_loop()
    try:
        # Small writes go out at once, as with asyncio's own transports.
        with contextlib.suppress(OSError):  # it may be no TCP socket
            sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        # Not context.wrap_socket: the class that wrap_context sets would make the switch itself.
        tls = WatchedSocket._create(  # type: ignore[attr-defined]  # noqa: SLF001
            sock=sock,
            server_side=server_side,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
            server_hostname=server_hostname,
            context=context,
        )
    except BaseException:
        sock.close()
        raise
    try:
        try:
            async with asyncio.timeout(timeout):
                await _shake_hands(loop, tls)
                await _try_cipher(loop, tls)
        except TimeoutError as e:
            raise ConnectionAbortedError(
                f"SSL handshake is taking longer than {timeout} seconds: the connection is closed"
            ) from e
        return _switch(tls, context, require=require)
    except BaseException:
        tls.close()
        raise


async def _shake_hands(loop: asyncio.AbstractEventLoop, tls: ssl.SSLSocket) -> None:
    fd = tls.fileno()
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            add, remove = loop.add_reader, loop.remove_reader
        except ssl.SSLWantWriteError:
            add, remove = loop.add_writer, loop.remove_writer
        except ssl.SSLEOFError as e:
            raise ConnectionResetError("the peer closed the connection in the handshake") from e
        else:
            return
        ready = loop.create_future()
        add(fd, settle, ready)
        try:
            await ready
        finally:
            remove(fd)


async def _try_cipher(loop: asyncio.AbstractEventLoop, tls: ssl.SSLSocket) -> None:
    """Have a cipher that is new to this process tried out, in a thread.

    The trial makes connections and has the kernel look for modules; without this the switch would
    make it, and the loop wait.
    """
    negotiated = tls.cipher()
    suite = find_suite_by_openssl_name(negotiated[0]) if negotiated else None
    if suite is None or system.is_tried(suite.version, suite.aead):
        return

    def ask() -> None:
        if system.cipher_refusal(suite.version, suite.aead) is None:
            system.can_rekey(suite.version, suite.aead)

    # Whatever it is, the switch will tell; RuntimeError: the executor is shut down.
    with contextlib.suppress(OSError, Error, RuntimeError):
        await loop.run_in_executor(None, ask)


def _switch(tls: ssl.SSLSocket, context: ssl.SSLContext, *, require: bool) -> tuple[End, TLSObject]:
    """Give the connection to the kernel, as far as it takes it."""
    about = TLSObject(tls, context)
    require = require or requires_kernel(tls.context)  # which an sni_callback may have changed
    sock, refusal = as_far_as_possible(tls, lambda rx: offload(tls, rx=rx), alone=not require)
    if sock is not None:
        about.carried_by(sock)
        return KernelEnd(sock, refusal), about
    assert refusal is not None  # noqa: S101  (for mypy)
    if require or is_dead(refusal):
        raise refusal
    about.left_to(tls)
    return OpenSSLEnd(tls, refusal), about
