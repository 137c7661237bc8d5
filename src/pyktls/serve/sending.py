"""A response on its way out, and how one notices that it does not get there.

A file that is larger than COPIED is sent by a task, since ``aio.sendfile`` is a coroutine: the
pages go from the page cache to the socket then, through the kernel's TLS, and this process does not
see them.  What is smaller is one write.

Where asyncio's own TLS has the connection there is nothing to be gained by sendfile, which does not
even notice there that the client is gone.  The file is then read and written in pieces, one at a
time, each when the one before is gone.  Once the client has ended its TCP stream without
close_notify, asyncio's own TLS throws away what is written, and does not tell.  So what goes out
later than in the callback in which its request came counts as sent only if the socket was not at
its end before.

A client may read slowly.  One that does not read at all is noticed by its TCP acknowledging nothing
for a while: how much it has acknowledged is asked of the kernel, each time that the deadline has
passed.
"""

from __future__ import annotations

import asyncio
import enum
import sys
from typing import TYPE_CHECKING, Any

from pyktls import aio

from .progress import acknowledged, has_left, outstanding

if TYPE_CHECKING:
    from collections.abc import Callable

    from .deadlines import Deadline
    from .files import File
    from .responses import Response

__all__ = ["Outcome", "Sender"]

#: A file, or a part of one, up to this size is read and written together with the header: a task
#: and sendfile(2) would cost more than to copy it.
COPIED = 32768
#: What is sent at a time by asyncio's own TLS, and where the system does not tell how much has
#: arrived.
PIECE = 1 << 18
#: What is sent at a time otherwise.  sendfile(2) into kernel TLS can go on to take a file although
#: the peer has reset the connection (seen on Linux 7.3), so that is asked for in between.
STEP = 1 << 24


class Outcome(enum.Enum):
    """What has become of a response."""

    SENT = enum.auto()
    #: The file has become shorter than what was announced.
    SHORT = enum.auto()
    #: It may have been thrown away.
    UNKNOWN = enum.auto()
    #: The client is gone, or the file cannot be read.
    FAILED = enum.auto()


class Sender:
    """Sends one response at a time over ``transport``, and calls ``over`` when that is out."""

    __slots__ = (
        "_acknowledged", "_deadline", "_doubtful", "_loop", "_next", "_over", "_paused", "_since",
        "_task", "_timeout", "_transport", "by_asyncio", "half_closes", "late",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: Any,
        deadline: Deadline,
        timeout: float,
        over: Callable[[Outcome], None],
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._deadline = deadline
        self._timeout = timeout
        self._over = over
        self._paused = False  # the transport has not got rid of what was written
        self._next: Callable[[], None] | None = None  # what is to be done when it has
        self._acknowledged: int | None = None
        self._since = 0.0  # when that was asked
        self._task: asyncio.Task[None] | None = None
        #: Whether asyncio's own TLS carries the connection.
        self.by_asyncio = not isinstance(transport, aio.KTLSTransport)
        #: Whether it can go on after the client's close_notify.  asyncio's own TLS cannot, with TLS
        #: 1.2 nobody can, and who is asked to logs a warning.
        self.half_closes = (
            not self.by_asyncio and transport.get_extra_info("ssl_object").version() == "TLSv1.3"
        )
        #: Something goes out later than in the callback in which its request came.
        self.late = False
        self._doubtful = False  # what was written may have been thrown away

    def send(self, header: bytes, response: Response) -> None:
        """Send it; ``over`` may be called before this returns."""
        if self._transport.is_closing():  # it would take it without a word
            self._over(Outcome.FAILED)
            return
        file, content = response.file, response.body
        if file is not None and response.count <= COPIED:
            try:
                content = file.read(response.offset, response.count)
            except OSError:
                self._over(Outcome.FAILED)
                return
            file = None
        self._write(header + content)
        if file is not None and self.by_asyncio:
            self._write_file(file, response.offset, response.count)
        elif file is not None:
            self.watch()
            self._start(file, response.offset, response.count)
        elif len(content) < response.count:
            self._over(Outcome.SHORT)
        else:
            self._drain()

    def _write(self, data: bytes) -> None:
        if self.by_asyncio and self.late:
            self._doubtful = has_left(self._transport.get_extra_info("socket"))
        self._transport.write(data)

    def _start(self, file: File, offset: int, count: int) -> None:
        work = self._send_file(file, offset, count)
        if sys.version_info >= (3, 12):
            task = asyncio.eager_task_factory(self._loop, work)  # begins at once
            self._task = None if task.done() else task
        else:
            self._task = self._loop.create_task(work)

    async def _send_file(self, file: File, offset: int, count: int) -> None:
        end = offset + count
        piece = STEP if self._acknowledged is not None else PIECE
        try:
            while offset < end:
                count = min(piece, end - offset)
                sent = await aio.sendfile(self._transport, file.as_object(), offset, count)
                offset += sent
                if sent < count:
                    break
                self.watch()
        except (OSError, RuntimeError):  # RuntimeError is asyncio's for a closing transport
            self._task = None
            self._over(Outcome.FAILED)
            return
        self._task = None
        if offset < end:
            self._over(Outcome.SHORT)
            return
        self._drain()

    def _write_file(self, file: File, offset: int, count: int) -> None:
        """Write the next piece of a file, and see to it that the one after that is written."""
        if self._transport.is_closing():
            self._over(Outcome.FAILED)
            return
        self.watch()
        size = min(PIECE, count)
        try:
            data = file.read(offset, size)
        except OSError:
            self._over(Outcome.FAILED)
            return
        self._write(data)
        if len(data) < size:
            self._over(Outcome.SHORT)
        elif size == count:
            self._drain()
        else:
            self.late = True
            self._next = lambda: self._write_file(file, offset + size, count - size)
            if not self._paused:
                self._loop.call_soon(self._go_on)  # others have their turn before

    def _drain(self) -> None:
        """All is written; is it gone, too?"""
        if self._transport.is_closing():  # the write has failed
            self._over(Outcome.FAILED)
        elif self._doubtful:
            self._over(Outcome.UNKNOWN)
        elif self._paused:
            self._next = lambda: self._over(Outcome.SENT)
            self.watch()
        else:
            self._over(Outcome.SENT)

    def _go_on(self) -> None:
        if self._next is not None and not self._paused:
            step, self._next = self._next, None
            step()

    def pause_writing(self) -> None:
        """Not everything that was written is gone."""
        self._paused = True

    def resume_writing(self) -> None:
        """Now it is; asyncio's own TLS may say so before ``write`` has returned."""
        self._paused = False
        self._go_on()

    def give_up(self, response: Response | None) -> None:
        """Send no more of it, do not call ``over``, and close the response."""
        self._next = None
        task = self._task
        if task is not None:
            task.cancel()
        if response is None:
            return
        if task is not None:
            # A thread of asyncio's may still read from the file.
            task.add_done_callback(lambda _: response.close())
        else:
            response.close()

    def watch(self) -> None:
        """From now on the peer has to acknowledge something within the time for that."""
        self._acknowledged = acknowledged(self._transport.get_extra_info("socket"))
        self._since = self._loop.time()
        self._deadline.set(self._timeout)

    def is_stuck(self) -> bool:
        """Whether it has not."""
        now = acknowledged(self._transport.get_extra_info("socket"))
        if now is None or now == self._acknowledged:
            return self._loop.time() - self._since >= self._timeout
        self._acknowledged, self._since = now, self._loop.time()
        return False

    def has_arrived(self) -> bool:
        """Whether everything that was sent has been acknowledged, as far as the system tells."""
        return not outstanding(self._transport.get_extra_info("socket"))
