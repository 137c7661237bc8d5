"""asyncio over kernel TLS: its own functions, with connections that the kernel encrypts.

::

    server = await pyktls.aio.start_server(serve, host, 443, ssl=server_context)
    reader, writer = await pyktls.aio.open_connection(host, 443, ssl=context)
    await pyktls.aio.sendfile(writer, file)             # sendfile(2), encrypted by the kernel

``create_connection``, ``create_server``, ``open_connection`` and ``start_server`` are called as
those of asyncio are, ``start_tls`` as the event loop's method.  ``ssl`` takes any ssl.SSLContext.
OpenSSL makes the handshake, without blocking the loop, and then the keys go to the kernel: what
reads and writes afterwards is a ``KTLSTransport``, over a plain socket.

What cannot go to the kernel works all the same.  Where the kernel has no TLS, or the context is one
that cannot be watched, asyncio's own TLS carries the connection, as if its function had been
called.  Where it turns out after the handshake (a cipher that the kernel does not have, say), the
transport is a ``KTLSTransport`` too, and OpenSSL encrypts behind it.
``transport.get_extra_info("ktls")`` tells: a ``pyktls.Status``, or None where it is asyncio's TLS.
With ``require=True`` either case is an error instead.

It works on every event loop that has ``add_reader``: asyncio's, and uvloop's.  handshake.py has the
way to the kernel, transport.py what comes after it, ends.py the two who can carry a connection.
"""

from __future__ import annotations

from .connecting import StreamWriter, create_connection, open_connection, start_tls
from .files import sendfile
from .serving import Server, create_server, start_server
from .transport import KTLSTransport

__all__ = [
    "KTLSTransport",
    "Server",
    "StreamWriter",
    "create_connection",
    "create_server",
    "open_connection",
    "sendfile",
    "start_server",
    "start_tls",
]
