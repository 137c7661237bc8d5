"""How much, and for how long, a client may make the server wait."""

from __future__ import annotations

import dataclasses

from pyktls.errors import InvalidValue

__all__ = ["Limits"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of a server.  Times are in seconds, sizes in bytes."""

    #: Connections at a time; those beyond are told 503 (Service Unavailable).
    connections: int = 1000
    #: The target of a request: 414 (URI Too Long).
    target: int = 8192
    #: Names and values of a request's fields together, and how many there may be: 431.
    fields_size: int = 16384
    fields: int = 100
    #: The content of a request, which is read and thrown away: 413 (Content Too Large).
    content: int = 65536
    #: From the TCP connection to the end of the TLS handshake.
    handshake_timeout: float = 10.0
    #: From a request's first byte to its last: 408 (Request Timeout).  It is also how long the
    #: first byte may take after the handshake.
    request_timeout: float = 10.0
    #: Between two requests.
    idle_timeout: float = 30.0
    #: Without any byte acknowledged by a client that something is sent to.
    send_timeout: float = 30.0
    #: For a client to close when it has got everything; if it has not sent its whole request, to
    #: read why that is not wanted.
    linger_timeout: float = 3.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0:
                raise InvalidValue(f"{field.name} must be more than 0")
