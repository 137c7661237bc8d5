"""Switch a TCP socket to kernel TLS, with the keys of an OpenSSL session.

::

    context = ssl.create_default_context()
    pyktls.watch(context)                                 # before the handshake
    tls = context.wrap_socket(sock, server_hostname=name)
    sock = pyktls.offload(tls)                            # the kernel encrypts from here on
    sock.sendfile(file)

``watch``, ``extract``, ``install`` and ``offload`` are the steps; ``probe`` tells beforehand what
the kernel can do, ``status`` asks it afterwards whether it is so, and ``sockets`` which connections
have it.  ``send_socket`` and ``receive_socket`` move a switched connection to another process.
``pyktls.linux`` and ``pyktls.freebsd`` are the kernels' interfaces as they are,
``pyktls.lowlevel`` the compiled layer under them.  ``pyktls.aio`` is all this for asyncio.
"""

from typing import TYPE_CHECKING

from . import freebsd, linux, lowlevel
from .ciphers import AEAD, CipherSuite
from .engines.choice import EngineInfo, engines
from .engines.membio import MemoryBIOHandshake
from .errors import (
    Error,
    HandoffRefused,
    InvalidType,
    InvalidValue,
    RecordError,
    TLSAlert,
    TruncationError,
    Unavailable,
)
from .handoff import engine_of, extract, watch
from .moving import receive_socket, send_socket
from .offloading import offload
from .probe import Answer, Cause, KernelModule, KernelSupport, Privileges, probe
from .protocol import Direction
from .session import DirectionKeys, Role, Session
from .sockets import KTLSSocket
from .ssl_sockets import SSLSocket, wrap_context
from .status import Mode, Status, status
from .survey import Endpoint, SocketInfo, TCPState, sockets
from .switch import install

if TYPE_CHECKING:
    from . import aio

__all__ = [
    "AEAD",
    "Answer",
    "Cause",
    "CipherSuite",
    "Direction",
    "DirectionKeys",
    "Endpoint",
    "EngineInfo",
    "Error",
    "HandoffRefused",
    "InvalidType",
    "InvalidValue",
    "KTLSSocket",
    "KernelModule",
    "KernelSupport",
    "MemoryBIOHandshake",
    "Mode",
    "Privileges",
    "RecordError",
    "Role",
    "SSLSocket",
    "Session",
    "SocketInfo",
    "Status",
    "TCPState",
    "TLSAlert",
    "TruncationError",
    "Unavailable",
    "aio",
    "engine_of",
    "engines",
    "extract",
    "freebsd",
    "install",
    "linux",
    "lowlevel",
    "offload",
    "probe",
    "receive_socket",
    "send_socket",
    "sockets",
    "status",
    "watch",
    "wrap_context",
]

__version__ = "0.1.0.dev0"

if not TYPE_CHECKING:  # with it, a type checker would take any name for one of ours

    def __getattr__(name: str) -> object:
        """Import ``pyktls.aio`` when it is asked for: asyncio is not needed for anything else."""
        if name == "aio":
            import importlib  # noqa: PLC0415

            return importlib.import_module("pyktls.aio")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
