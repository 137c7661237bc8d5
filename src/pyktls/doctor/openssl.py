"""The OpenSSL that this Python has, and whether it can use kernel TLS by itself.

OpenSSL can be built without that, and says nowhere how it was: with the option on, it then simply
goes on by itself.  So a connection is made and the kernel is asked.  pyktls needs none of this; it
is for those who compare, or have another program with the same OpenSSL.
"""

from __future__ import annotations

import _ssl
import concurrent.futures
import pathlib
import re
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyktls.engines import native
from pyktls.errors import Error
from pyktls.kernel_support import VERSIONS
from pyktls.serve.certificates import load_selfsigned
from pyktls.session import Direction
from pyktls.socket_calls import loopback_pair
from pyktls.status import status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyktls.kernel_support import KernelSupport

__all__ = ["OpenSSL", "look_at_openssl"]

#: SSL_OP_ENABLE_KTLS (openssl/ssl.h); the ssl module has a name for it since Python 3.12.
OP_ENABLE_KTLS = 1 << 3
_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class OpenSSL:
    """``version`` is what it says of itself, ``libraries`` the files of libssl in this process.

    ``hidden`` is why its functions cannot be reached, None if they can (the native engine needs
    them).  ``op_enable_ktls`` is whether the ssl module has that name.  ``own`` tells, by version
    of the protocol, which directions OpenSSL itself gave to the kernel with that option, as a
    server; it is None where that could not be tried, and ``not_tried`` says why.
    """

    version: str
    module: str | None
    libraries: tuple[str, ...]
    hidden: str | None
    op_enable_ktls: bool
    own: Mapping[str, tuple[Direction, ...]] | None
    not_tried: str | None


def look_at_openssl(support: KernelSupport) -> OpenSSL:
    """Look at it, and try it where there is kernel TLS."""
    own, not_tried = None, None
    if not support.tls:
        not_tried = "there is no kernel TLS to try it with"
    elif ssl.OPENSSL_VERSION_INFO < (3, 0):
        not_tried = "OpenSSL has it since 3.0"
    else:
        try:
            own = _try_own()
        except (OSError, Error, concurrent.futures.TimeoutError) as e:
            not_tried = str(e) or type(e).__name__
    return OpenSSL(
        version=ssl.OPENSSL_VERSION,
        module=getattr(_ssl, "__file__", None),
        libraries=_libraries(),
        hidden=native.why_not(),
        op_enable_ktls=hasattr(ssl, "OP_ENABLE_KTLS"),
        own=own,
        not_tried=not_tried,
    )


def _libraries() -> tuple[str, ...]:
    try:
        maps = pathlib.Path("/proc/self/maps").read_text("utf-8", "replace")
    except OSError:
        return ()
    return tuple(sorted(set(re.findall(r"(/\S*libssl[^/\s]*)$", maps, re.MULTILINE))))


def _try_own() -> dict[str, tuple[Direction, ...]]:
    server, client = (
        ssl.SSLContext(protocol) for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT)
    )
    load_selfsigned(server)
    server.options |= OP_ENABLE_KTLS
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    found = {}
    for number, name in VERSIONS.items():
        version = ssl.TLSVersion(number)
        server.minimum_version, server.maximum_version = ssl.TLSVersion.TLSv1_2, version
        found[name] = _given_to_the_kernel(server, client)
    return found


def _given_to_the_kernel(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[Direction, ...]:
    near, far = loopback_pair()
    with near, far, concurrent.futures.ThreadPoolExecutor(1) as pool:
        for sock in (near, far):
            sock.settimeout(_TIMEOUT)
        shaking = pool.submit(client.wrap_socket, near)
        with server.wrap_socket(far, server_side=True) as tls, shaking.result(_TIMEOUT):
            said = status(tls)
    return tuple(d for d, mode in ((Direction.TX, said.tx), (Direction.RX, said.rx)) if mode)
