"""The keywords that go on to the event loop's own methods, for type checkers.

Which of them a loop has is its own affair, and it refuses the others with TypeError: ``all_errors``
is there since Python 3.12, ``keep_alive`` since 3.13, and not everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    import socket
    import ssl as ssl_module

__all__ = ["ConnectingKeywords", "ConnectionKeywords", "ListeningKeywords", "ServerKeywords"]


class ConnectingKeywords(TypedDict, total=False):
    """Those of ``loop.create_connection`` that are about TCP."""

    family: int
    proto: int
    flags: int
    local_addr: tuple[str, int] | None
    happy_eyeballs_delay: float | None
    interleave: int | None
    all_errors: bool


class ConnectionKeywords(ConnectingKeywords, total=False):
    """All keywords of ``aio.create_connection``."""

    ssl: ssl_module.SSLContext | bool | None
    sock: socket.socket | None
    server_hostname: str | None
    ssl_handshake_timeout: float | None
    ssl_shutdown_timeout: float | None
    require: bool


class ListeningKeywords(TypedDict, total=False):
    """Those of ``loop.create_server`` that are about TCP."""

    family: int
    flags: int
    sock: socket.socket | None
    reuse_address: bool | None
    reuse_port: bool | None
    keep_alive: bool | None


class ServerKeywords(ListeningKeywords, total=False):
    """All keywords of ``aio.create_server``."""

    backlog: int
    ssl: ssl_module.SSLContext | None
    ssl_handshake_timeout: float | None
    ssl_shutdown_timeout: float | None
    start_serving: bool
    require: bool
