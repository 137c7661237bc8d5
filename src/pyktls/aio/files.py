"""Files over a transport, on any event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from pyktls.errors import InvalidType
from pyktls.file_transfer import check_file, file_size

from .transport import KTLSTransport, leave_position

if TYPE_CHECKING:
    from typing import BinaryIO

__all__ = ["sendfile"]

_CHUNK = 1 << 18
_NEEDED = ("write", "is_closing", "get_protocol")  # of a transport


async def sendfile(
    transport: asyncio.WriteTransport | asyncio.StreamWriter,
    file: BinaryIO,
    offset: int = 0,
    count: int | None = None,
    *,
    fallback: bool = True,
) -> int:
    """Send a file, without a copy in user space where the kernel has the connection.

    As ``loop.sendfile``, and on every event loop; ``transport`` may also be an
    ``asyncio.StreamWriter``.  Returns the number of bytes sent, and leaves the file's position
    behind them, also when it fails.  What was written before is sent first; nothing can be written
    meanwhile.  A file that has less than ``count`` bytes is sent up to its end.

    Where sendfile(2) cannot be used (the file has no descriptor, OpenSSL has the connection), it is
    read and written; without ``fallback`` that is RuntimeError.  Raises RuntimeError on a transport
    that is closing, ConnectionError if it is closed meanwhile, OSError of sendfile(2), InvalidType
    and InvalidValue for wrong arguments.
    """
    way: Any = transport.transport if isinstance(transport, asyncio.StreamWriter) else transport
    if not isinstance(way, KTLSTransport) and not all(hasattr(way, name) for name in _NEEDED):
        raise InvalidType(f"a transport or a StreamWriter is needed, not {type(way).__name__}")
    check_file(file, offset, count)
    if way.is_closing():
        raise RuntimeError("Transport is closing")
    if isinstance(way, KTLSTransport):
        size = file_size(file) if way.sends_files else 0
        if size:
            left = max(0, size - offset)
            return await way.send_pages(file, offset, left if count is None else min(left, count))
    else:
        if hasattr(file, "seek"):
            file.seek(offset)  # asyncio does not, where it is 0
        try:
            return await asyncio.get_running_loop().sendfile(
                way, file, offset, count, fallback=fallback
            )
        except NotImplementedError:  # uvloop has none
            pass
    if not fallback:
        raise RuntimeError("sendfile(2) cannot be used here, and there is to be no fallback")
    return await _read_and_write(way, file, offset, count)


class _Pace(asyncio.Protocol):
    """Stands for a transport's protocol while a file is written to it."""

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol
        self.paused = False
        self.lost = False
        self._changed: asyncio.Future[None] | None = None

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        if self.paused:
            self.paused = False
        else:  # it was paused before we came
            self.protocol.resume_writing()
        self._wake_up()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._wake_up()
        self.protocol.connection_lost(exc)

    def _wake_up(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    async def until_ready(self, transport: asyncio.WriteTransport) -> None:
        """Wait until more can be written; ConnectionError if nothing can any more."""
        _, most = transport.get_write_buffer_limits()
        # The latter where it was paused before we came.
        while (self.paused or transport.get_write_buffer_size() > most) and not self.lost:
            self._changed = asyncio.get_running_loop().create_future()
            await self._changed
        if self.lost or transport.is_closing():
            raise ConnectionAbortedError("the transport was closed while it sent a file")


async def _read(file: Any, size: int) -> Any:
    """Read in a thread, which is done with the file when this is over, also when it is cancelled.

    Otherwise it would move the file's position behind our back.
    """
    reading = asyncio.get_running_loop().run_in_executor(None, file.read, size)
    try:
        await asyncio.wait([reading])
    except asyncio.CancelledError:
        try:
            await asyncio.wait([reading])
        finally:
            if not reading.cancel():  # a second cancellation, which waits no longer
                reading.exception()  # nobody wants to know it
        raise
    return reading.result()


async def _read_and_write(transport: Any, file: Any, offset: int, count: int | None) -> int:
    pace = _Pace(transport.get_protocol())
    reads = transport.is_reading()
    transport.pause_reading()
    transport.set_protocol(pace)
    sent = 0
    try:
        if hasattr(file, "seek"):
            file.seek(offset)
        while count is None or sent < count:
            size = _CHUNK if count is None else min(_CHUNK, count - sent)
            data = await _read(file, size)
            if not data:
                break
            await pace.until_ready(transport)
            transport.write(data)
            sent += len(data)
        await pace.until_ready(transport)
    finally:
        try:
            leave_position(file, offset + sent)
        finally:
            if not pace.lost:
                transport.set_protocol(pace.protocol)
                if pace.paused:
                    pace.protocol.pause_writing()
                if reads:
                    transport.resume_reading()
    return sent
