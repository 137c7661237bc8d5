"""What the connections of one server share."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from .dates import http_date

if TYPE_CHECKING:
    from .access_log import AccessLog
    from .connection import Connection
    from .limits import Limits
    from .site import Site

__all__ = ["Service"]

BUFFER_SIZE = 65536
#: So many more than the limit of connections are told so; those beyond are closed without a word.
TOLD = 64


class Service:
    """The files, the limits, the log, and who is connected."""

    def __init__(self, site: Site, limits: Limits, log: AccessLog | None) -> None:
        self.site = site
        self.limits = limits
        self.log = log
        self.loop = asyncio.get_running_loop()
        self.buffer = memoryview(bytearray(BUFFER_SIZE))
        self.stopping = False
        #: Set while there is no connection.
        self.empty = asyncio.Event()
        self.empty.set()
        #: In the order of their coming.
        self.connections: dict[Connection, None] = {}
        self._surplus: set[Connection] = set()
        self._date = (-1, b"")

    def enter(self, connection: Connection) -> bool:
        """Count a new connection; false if it is not to be talked to."""
        full = len(self.connections) - len(self._surplus) >= self.limits.connections
        if self.stopping or (full and len(self._surplus) >= TOLD):
            return False
        if full:
            self._surplus.add(connection)
        self.connections[connection] = None
        self.empty.clear()
        return True

    def leave(self, connection: Connection) -> None:
        """It is gone."""
        self.connections.pop(connection, None)
        self._surplus.discard(connection)
        if not self.connections:
            self.empty.set()

    def is_full(self, connection: Connection) -> bool:
        """Whether ``connection`` is one too many."""
        return connection in self._surplus

    def date(self) -> bytes:
        """Now, for the field Date: made once in a second."""
        now = int(time.time())
        if self._date[0] != now:
            self._date = now, http_date(now)
        return self._date[1]
