"""The transport: asyncio's side of a connection whose handshake is over.

It behaves as asyncio's transport for plain TCP does, over an end (ends.py) that encrypts: a read
and a write are each one call of the end, and ``loop.sendfile`` uses sendfile(2).  What TLS adds:

*Closing* is a procedure.  ``close()`` sends what is buffered, then waits until the kernel has let
go of the last record, sends close_notify, and waits once more.  Then it waits for the peer to end,
taking in what still comes: a socket that is closed with bytes unread, or to which bytes come later,
such as a server's session tickets, is reset, and that can take from the peer what it has not read
yet.  (Nor is the TCP stream ended before: a peer that is not done with its handshake could not give
the connection to its kernel any more.)  Only then the socket is closed, and ``connection_lost``
called.  All that within the shutdown timeout: whoever takes no data until then is an error
(TimeoutError), whoever just does not close is not.  ``abort()``, and whatever ends a connection by
an error, closes at once.

*Reading.*  An end without close_notify is an error (TruncationError), and so is an alert.  Linux
before 6.5 says that a socket can be read when only a part of a record has come; a second such
report in a row makes the transport look away for some milliseconds, so that a peer that stops
within a record does not keep the loop busy.

Only public methods of the event loop are used, so uvloop's serves as well as asyncio's; what
``loop.sendfile`` of asyncio wants besides is in ``_ForLoopSendfile``.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import logging
import socket
import warnings
from asyncio import constants, sslproto, transports, trsock
from itertools import islice
from typing import TYPE_CHECKING, Any

from pyktls.errors import Error, InvalidType
from pyktls.running_system import system
from pyktls.ssl_errors import as_ssl_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, MutableMapping

    from .ends import End
    from .serving import Server
    from .tls_object import TLSObject

__all__ = ["KTLSTransport", "leave_position"]

_log = logging.getLogger("pyktls.aio")

# What can be written; asked for each time, and faster as a tuple than as a union.
_WRITABLE = (bytes, bytearray, memoryview)
# Pieces of one sendmsg(2).
_MOST_PIECES = 512
# For how long to look away after reads in vain, in seconds.
_BACKOFF = (0.0, 0.001, 0.002, 0.004, 0.008, 0.015)


class _ForLoopSendfile:
    """What asyncio's ``loop.sendfile`` takes for the transport's socket.

    It asks for the descriptor before each sendfile(2); so records are counted here, a KeyUpdate
    that is due goes out, and a transport that closes ends the transfer.
    """

    type = socket.SOCK_STREAM

    def __init__(self, transport: KTLSTransport) -> None:
        self._transport = transport

    def gettimeout(self) -> float:
        return 0.0

    def fileno(self) -> int:
        fd: int = self._transport._descriptor_for_file()  # noqa: SLF001
        return fd


class _File:
    """A file on its way, by sendfile(2)."""

    __slots__ = ("left", "offset", "over", "source", "waits")

    def __init__(self, source: int, offset: int, left: int, over: asyncio.Future[None]) -> None:
        self.source = source
        self.offset = offset
        self.left = left
        self.over = over
        self.waits = False  # the loop calls _send_some_pages


class KTLSTransport(transports._FlowControlMixin):  # noqa: SLF001
    """A TLS connection, for asyncio protocols; the functions of ``pyktls.aio`` make it.

    ``get_extra_info`` knows ``socket``, ``sockname``, ``peername``, ``sslcontext``, ``peercert``,
    ``cipher``, ``compression`` and ``ssl_object`` as asyncio's own TLS does, the last an object
    that answers what ssl.SSLObject answers about the handshake.  ``ktls`` is a ``pyktls.Status``,
    and None once ``start_tls`` has begun another TLS within this one.
    """

    __slots__ = (
        "__weakref__",
        "_at_end",
        "_buffer",
        "_buffer_size",
        "_buffered",
        "_closing",
        "_empty_waiter",
        "_end",
        "_ended",
        "_eof",
        "_error_after_file",
        "_fd",
        "_file",
        "_file_of_loop",
        "_given",
        "_in_vain",
        "_later",
        "_lost",
        "_made",
        "_paused",
        "_peername",
        "_protocol",
        "_read_waits",
        "_reading",
        "_server",
        "_shutdown_timeout",
        "_shutdown_timer",
        "_sockname",
        "_tls_object",
        "_write_waits",
        "_writing",
    )

    # Of asyncio's base class, for which there are no types.
    _loop: Any
    _maybe_pause_protocol: Callable[[], None]
    _maybe_resume_protocol: Callable[[], None]

    max_size = 256 * 1024
    # asyncio's loop.start_tls takes it for the carrier of a TLS within.
    _start_tls_compatible = True

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        end: End,
        protocol: asyncio.BaseProtocol,
        tls_object: TLSObject,
        *,
        shutdown_timeout: float,
        server: Server | None = None,
        given: socket.socket | None = None,
    ) -> None:
        self._end: End | None = end
        super().__init__({}, loop)
        self._fd: int = end.sock.fileno()
        self._tls_object = tls_object
        self._sockname = _address(end.sock.getsockname)
        self._peername = _address(end.sock.getpeername)
        self._shutdown_timeout = shutdown_timeout
        self._server = server
        self._given = given  # the caller's socket object, for the same connection
        self._buffer: collections.deque[memoryview] = collections.deque()
        self._buffer_size = 0
        self._writing = False  # the loop calls _write_ready
        self._reading = False  # the loop calls _read_ready
        self._paused = False
        self._closing = False
        self._lost = False  # connection_lost is called, or about to be
        self._made = False
        self._at_end = False  # the peer's close_notify has come
        self._eof = False  # write_eof was called
        self._ended = False  # close_notify is out
        self._read_waits = False  # a read waits until OpenSSL can write
        self._write_waits = False  # a write waits until OpenSSL can read
        self._in_vain = 0
        self._later: asyncio.Handle | None = None  # a read that comes without the loop's doing
        self._shutdown_timer: asyncio.TimerHandle | None = None
        self._empty_waiter: asyncio.Future[None] | None = None
        self._file: _File | None = None  # of send_pages
        self._file_of_loop = False  # the file that is waited for is sent by loop.sendfile
        self._error_after_file: BaseException | None = None
        self.set_protocol(protocol)
        if server is not None:
            server._attach(self)  # noqa: SLF001

    def start(self, *, introduce: bool = True) -> None:
        """Begin to read; before that the protocol is told, unless it is here already."""
        if introduce:
            # In a copy, as asyncio does: what it sets is not for whoever waits for the connection.
            try:
                contextvars.copy_context().run(self._protocol.connection_made, self)
            except BaseException as e:
                self._made = True  # it may have begun something: it is told of the end
                self._force_close(e)
                raise
        self._made = True
        if not self._paused and not self._closing:
            self._start_reading()

    # ---- what it is --------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As asyncio's TLS transport; see the class."""
        ask = _EXTRA.get(name)
        found = None if ask is None else ask(self)
        return default if found is None else found

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """As asyncio.BaseTransport.set_protocol."""
        self._protocol: Any = protocol
        self._buffered = isinstance(protocol, asyncio.BufferedProtocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """As asyncio.BaseTransport.get_protocol."""
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def is_closing(self) -> bool:
        """As asyncio.BaseTransport.is_closing."""
        return self._closing

    def __repr__(self) -> str:
        state = "closed" if self._end is None else "closing" if self._closing else "open"
        return f"<pyktls.aio.KTLSTransport {state} fd={self._fd} buffered={self._buffer_size}>"

    # ---- reading -----------------------------------------------------------------------------

    def is_reading(self) -> bool:
        """As asyncio.ReadTransport.is_reading."""
        return not self._paused and not self._closing

    def pause_reading(self) -> None:
        """As asyncio.ReadTransport.pause_reading."""
        if not self._closing and not self._paused:
            self._paused = True
            self._stop_reading()

    def _pause_reading_lazily(self) -> None:
        """Pause, and have the loop look away only when something comes: mostly nothing does."""
        if self._later is not None:
            self._stop_reading()
        self._paused = True

    def resume_reading(self) -> None:
        """As asyncio.ReadTransport.resume_reading."""
        if not self._closing and self._paused:
            self._paused = False
            if self._made:  # else start does it
                self._start_reading()

    def _start_reading(self) -> None:
        if self._reading or self._at_end or self._end is None:
            return
        self._reading = True
        self._loop.add_reader(self._fd, self._read_ready)
        if self._end.hides_data:
            self._read_soon()

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)
        if self._later is not None:
            self._later.cancel()
            self._later = None

    def _read_soon(self) -> None:
        if self._later is None:
            self._later = self._loop.call_soon(self._read_later)

    def _read_later(self) -> None:
        self._later = None
        if self._paused or self._closing:
            return
        if not self._reading:
            self._reading = True
            self._loop.add_reader(self._fd, self._read_ready)
        self._read_ready()

    def _read_ready(self) -> None:
        end = self._end
        if end is None or self._closing:
            return
        if self._paused:  # by _pause_reading_lazily
            self._stop_reading()
            return
        try:
            if self._buffered:
                self._read_into_protocol(end)
            else:
                self._read(end)
        except (SystemExit, KeyboardInterrupt):
            raise
        except (BlockingIOError, InterruptedError):
            self._nothing_to_read(end)
        except BaseException as e:
            self._fatal_error(e, "Fatal read error on a TLS transport")
        else:
            self._in_vain = 0
            if end.hides_data and self._reading and end.has_hidden_data():
                self._read_soon()
        if self._write_waits and not self._lost:
            self._write_waits = False
            self._start_writing()

    def _read(self, end: End) -> None:
        data = end.recv(self.max_size)
        if not data:
            self._end_of_data()
            return
        try:
            self._protocol.data_received(data)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as e:
            self._fatal_error(e, "Fatal error: protocol.data_received() call failed.")

    def _read_into_protocol(self, end: End) -> None:
        try:
            buffer = self._protocol.get_buffer(-1)
            if not len(buffer):
                raise RuntimeError("get_buffer() returned an empty buffer")  # noqa: TRY301
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as e:
            self._fatal_error(e, "Fatal error: protocol.get_buffer() call failed.")
            return
        received = end.recv_into(buffer)
        if not received:
            self._end_of_data()
            return
        try:
            self._protocol.buffer_updated(received)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as e:
            self._fatal_error(e, "Fatal error: protocol.buffer_updated() call failed.")

    def _nothing_to_read(self, end: End) -> None:
        if end.wants_other:
            end.wants_other = False
            self._read_waits = True
            self._start_writing()
            return
        if self._reading:
            self._look_away(self._read_later)

    def _look_away(self, again: Callable[[], None]) -> None:
        """After a read in vain: read no more for a moment, if it was not the first."""
        pause = _BACKOFF[min(self._in_vain, len(_BACKOFF) - 1)]
        self._in_vain += 1
        if pause:
            self._stop_reading()
            self._later = self._loop.call_later(pause, again)

    def _end_of_data(self) -> None:
        self._at_end = True
        self._stop_reading()
        end = self._end
        try:
            keep_open = self._protocol.eof_received()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as e:
            self._fatal_error(e, "Fatal error: protocol.eof_received() call failed.")
            return
        if keep_open and end is not None and end.half_closes:
            return
        if keep_open:
            _log.warning("with TLS 1.2 the peer's close_notify ends both directions")
        self.close()

    # ---- writing -----------------------------------------------------------------------------

    def get_write_buffer_size(self) -> int:
        """As asyncio.WriteTransport.get_write_buffer_size."""
        return self._buffer_size

    def _check_writing(self, data: object) -> None:
        if not isinstance(data, _WRITABLE):
            raise InvalidType(
                f"data argument must be a bytes-like object, not {type(data).__name__!r}"
            )
        if self._eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self._empty_waiter is not None:
            raise RuntimeError("unable to write; sendfile is in progress")

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """As asyncio.WriteTransport.write."""
        self._check_writing(data)
        if not data or self._is_cut():
            return
        if self._buffer:
            self._keep(data, 0)
            self._maybe_pause_protocol()
            return
        end = self._end
        assert end is not None  # noqa: S101  (it is not cut)
        try:
            sent = end.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as e:
            self._fatal_error(e, "Fatal write error on a TLS transport")
            return
        if self._keep(data, sent):
            self._blocked(end)
            self._maybe_pause_protocol()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """As asyncio.WriteTransport.writelines: gathered into as few records as there can be."""
        pieces = list(list_of_data)
        for data in pieces:
            self._check_writing(data)
        if not pieces or self._is_cut():
            return
        idle = not self._buffer
        for data in pieces:
            self._keep(data, 0)
        if idle and self._buffer:
            self._write_ready()
        self._maybe_pause_protocol()

    def _is_cut(self) -> bool:
        """Whether nothing that is written will arrive any more."""
        return self._closing or self._ended or self._end is None

    def _keep(self, data: bytes | bytearray | memoryview, sent: int) -> bool:
        """Keep what is still to be sent; whether there is any."""
        if not isinstance(data, bytes):  # it may change
            data = bytes(memoryview(data).cast("B")[sent:])
            sent = 0
        if sent == len(data):
            return False
        self._buffer.append(memoryview(data)[sent:])
        self._buffer_size += len(data) - sent
        return True

    def _start_writing(self) -> None:
        if not self._writing and self._end is not None:
            self._writing = True
            self._loop.add_writer(self._fd, self._write_ready)

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)

    def _blocked(self, end: End) -> None:
        """Wait until it can be written; or read, where OpenSSL has to read before it can write."""
        if end.wants_other:
            end.wants_other = False
            self._write_waits = True
            self._stop_writing()
        else:
            self._start_writing()

    def _write_ready(self) -> None:
        end = self._end
        if end is None or self._lost:
            return
        if self._read_waits:
            self._read_waits = False
            self._read_soon()
        if not self._buffer:
            self._stop_writing()
            self._all_written()
            return
        try:
            if len(self._buffer) == 1:
                sent = end.send(self._buffer[0])
            else:
                sent = end.send_gathered(tuple(islice(self._buffer, _MOST_PIECES)))
        except (BlockingIOError, InterruptedError):
            self._blocked(end)
            return
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as e:
            self._fatal_error(e, "Fatal write error on a TLS transport")
            return
        self._forget(sent)
        self._maybe_resume_protocol()  # may write more
        if self._buffer:
            self._start_writing()
        else:
            self._stop_writing()
            self._all_written()

    def _forget(self, sent: int) -> None:
        self._buffer_size -= sent
        buffer = self._buffer
        while sent:
            first = buffer[0]
            if len(first) > sent:
                buffer[0] = first[sent:]
                return
            sent -= len(first)
            buffer.popleft()

    def _all_written(self) -> None:
        if self._empty_waiter is not None:
            self._let_file_begin(self._empty_waiter)
        elif self._closing or self._eof:
            self._finish()

    # ---- ending ------------------------------------------------------------------------------

    def can_write_eof(self) -> bool:
        """Whether it can end sending and go on receiving: with TLS 1.3, not by OpenSSL."""
        return self._end is not None and self._end.ends_first

    def write_eof(self) -> None:
        """Send close_notify after what is buffered, and go on receiving (RFC 8446 section 6.1).

        Raises NotImplementedError with TLS 1.2, where close_notify ends both directions, and where
        OpenSSL carries the connection.
        """
        if self._closing or self._eof:
            return
        if not self.can_write_eof():
            raise NotImplementedError(
                "close_notify ends both directions: with TLS 1.2, and for Python's OpenSSL"
            )
        self._eof = True
        if not self._buffer and self._empty_waiter is None:
            self._finish()

    def close(self) -> None:
        """Send what is buffered and close_notify, await the peer's end, and close.

        ``connection_lost`` follows, with None if everything was sent.
        """
        if self._closing:
            return
        self._closing = True
        self._stop_reading()
        self._shutdown_timer = self._loop.call_later(self._shutdown_timeout, self._too_slow)
        self._send_some_pages()  # no more
        if not self._buffer and self._empty_waiter is None:
            self._finish()

    def abort(self) -> None:
        """Close at once, without close_notify; what is buffered is lost."""
        self._force_close(None)

    def _too_slow(self) -> None:
        if self._ended and not self._lost:
            self._stop_reading()
            self._lose(None)
        else:
            self._force_close(TimeoutError("TLS shutdown timed out"))

    def _finish(self) -> None:
        """End sending; once more each time that the socket can be written, until it is done."""
        end = self._end
        if end is None or self._lost:
            return
        try:
            if not self._ended:
                end.finish()
                self._ended = True
        except (BlockingIOError, InterruptedError):
            self._start_writing()
        except (OSError, Error) as e:
            self._fatal_error(e, "Fatal error at the end of a TLS transport")
        else:
            if self._closing:
                self._in_vain = 0
                self._await_end()

    def _await_end(self) -> None:
        """Take in what still comes, until the peer has ended too."""
        end = self._end
        if end is None or self._lost:
            return
        self._later = None
        if self._at_end or end.skim():
            self._stop_reading()
            self._lose(None)
            return
        self._look_away(self._await_end)
        if self._later is None and not self._reading:
            self._reading = True
            self._loop.add_reader(self._fd, self._await_end)

    def _fatal_error(self, error: BaseException, message: str) -> None:
        # Called where the error is being handled.
        error = _for_protocol(error)
        if isinstance(error, OSError):
            if self._loop.get_debug():
                _log.debug("%r: %s", self, message, exc_info=True)
        else:
            self._loop.call_exception_handler(
                {
                    "message": message,
                    "exception": error,
                    "transport": self,
                    "protocol": self._protocol,
                }
            )
        self._force_close(error)

    def _force_close(self, error: BaseException | None) -> None:
        if self._lost or self._end is None:
            return
        self._closing = True
        self._stop_reading()
        self._stop_writing()
        self._buffer.clear()
        self._buffer_size = 0
        waiter = self._empty_waiter
        if waiter is not None and waiter.done():
            # A file is on its way, and the loop waits for the socket: wake it up.
            self._error_after_file = error or ConnectionAbortedError("the transport was aborted")
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._end.sock, socket.SHUT_RDWR)
            self._send_some_pages()  # no more
            return
        if waiter is not None:
            waiter.set_exception(error or ConnectionAbortedError("the transport was aborted"))
        self._lose(error)

    def _lose(self, error: BaseException | None) -> None:
        self._lost = True
        if self._shutdown_timer is not None:
            self._shutdown_timer.cancel()
            self._shutdown_timer = None
        self._stop_writing()
        self._loop.call_soon(self._call_connection_lost, error)

    def _call_connection_lost(self, error: BaseException | None) -> None:
        end, self._end = self._end, None
        try:
            if self._made:
                self._protocol.connection_lost(error)
        finally:
            if end is not None:
                self._tls_object.closing()
                with contextlib.suppress(OSError):
                    end.discard()
            if self._given is not None:
                self._given.close()
            self._protocol = None
            server, self._server = self._server, None
            if server is not None:
                server._detach(self)  # noqa: SLF001

    def __del__(self) -> None:
        end = getattr(self, "_end", None)
        if end is not None:
            warnings.warn(
                f"unclosed transport {self!r}", ResourceWarning, source=self, stacklevel=1
            )
            self._tls_object.closing()
            with contextlib.suppress(OSError, Error):
                end.close()
            if self._given is not None:
                self._given.close()
            server = self._server
            if server is not None:
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    self._loop.call_soon_threadsafe(server._forgotten)  # noqa: SLF001

    # ---- files -------------------------------------------------------------------------------

    @property
    def _sendfile_compatible(self) -> constants._SendfileMode:
        """Asked by asyncio's ``loop.sendfile``, which then looks into its list of transports."""
        end = self._end
        if end is None or not end.sends_files or system.sendfile_may_stall(self._fd):
            return constants._SendfileMode.FALLBACK  # noqa: SLF001
        known: MutableMapping[object, object] | None = getattr(self._loop, "_transports", None)
        if known is not None:
            known[self._sock_fd] = self
        return constants._SendfileMode.TRY_NATIVE  # noqa: SLF001

    @property
    def _sock_fd(self) -> str:
        # A key of that list, and on purpose no descriptor: add_reader refuses those in the list.
        return f"pyktls.aio {self._fd}"

    @property
    def _sock(self) -> _ForLoopSendfile:
        return _ForLoopSendfile(self)

    def _descriptor_for_file(self) -> int:
        """The descriptor for one sendfile(2); -1 if there must be none."""
        end = self._end
        if end is None or self._closing:
            return -1
        try:
            end.before_file()
        except (BlockingIOError, InterruptedError):
            pass  # of new keys, which come before the limit: there is a next time
        except (OSError, Error) as e:
            self._fatal_error(e, "Fatal write error on a TLS transport")
            return -1
        return self._fd

    def _make_empty_waiter(self, *, of_loop: bool = True) -> asyncio.Future[None]:
        if self._empty_waiter is not None:
            raise RuntimeError("another file is being sent")
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._empty_waiter = waiter
        self._file_of_loop = of_loop
        if not self._buffer:
            self._let_file_begin(waiter)
        return waiter

    def _let_file_begin(self, waiter: asyncio.Future[None]) -> None:
        """Nothing is buffered any more; a KeyUpdate that is due comes first, though."""
        end = self._end
        if waiter.done() or end is None or self._lost:
            return
        try:
            if self._file_of_loop:  # else send_pages sees to it, for just what it sends
                end.before_file()
        except (BlockingIOError, InterruptedError):
            self._start_writing()
        except (OSError, Error) as e:
            self._fatal_error(e, "Fatal write error on a TLS transport")
        else:
            waiter.set_result(None)

    def _reset_empty_waiter(self) -> None:
        self._empty_waiter = None
        error, self._error_after_file = self._error_after_file, None
        if error is not None:
            self._lose(error)
        elif self._buffer:
            self._start_writing()
        elif self._closing or self._eof:
            self._finish()

    @property
    def sends_files(self) -> bool:
        """Whether sendfile(2) can be used: the kernel encrypts."""
        return self._end is not None and self._end.sends_files

    async def send_pages(self, file: Any, offset: int, count: int) -> int:
        """Send ``count`` bytes of a real file by sendfile(2), and tell how many it had.

        For ``pyktls.aio.sendfile``, which see.
        """
        if self._eof:
            raise RuntimeError("Cannot send a file after write_eof()")
        begin = offset
        if count and not self._buffer and self._empty_waiter is None:
            # Mostly there is room for all of it, and then nothing else has to be done.
            sent, more = self._send_pages_now(file, offset, count)
            if sent == count or not more:
                leave_position(file, offset + sent)
                return sent
            offset += sent
            count -= sent
        job: _File | None = None
        # RuntimeError if another file is being sent.
        empty = self._make_empty_waiter(of_loop=False)
        # As loop.sendfile: an answer to what comes could not be written now, and the peer's end
        # would have the protocol close the connection before the file is out.
        reads = self.is_reading()
        if reads:
            self._pause_reading_lazily()
        try:
            await empty
            job = self._file = _File(file.fileno(), offset, count, self._loop.create_future())
            if count:
                self._await_room(job, wanted=offset > begin)
                if not job.waits:
                    self._send_some_pages()
                await job.over
        finally:
            self._file = None
            try:
                if job is not None:
                    self._await_room(job, wanted=False)
                leave_position(file, offset if job is None else job.offset)
            finally:
                self._reset_empty_waiter()
                if reads:
                    self.resume_reading()
        return job.offset - begin

    def _send_pages_now(self, file: Any, offset: int, count: int) -> tuple[int, bool]:
        """Send what there is room for; how much that was, and whether there may be more."""
        end = self._end
        assert end is not None  # noqa: S101  (its caller has asked whether it closes)
        try:
            return end.send_pages(file.fileno(), offset, count)
        except BaseException as e:
            leave_position(file, offset)
            error = _for_protocol(e)
            try:
                raise error from error.__cause__
            finally:
                del error  # the traceback has this frame

    def _send_some_pages(self) -> None:
        """One step of a file; the next one comes when the loop sees that there is room."""
        job, end = self._file, self._end
        if job is None or job.over.done():
            return
        if end is None or self._closing:
            job.over.set_exception(
                ConnectionAbortedError("the transport was closed while it sent a file")
            )
            return
        try:
            sent, more = end.send_pages(job.source, job.offset, job.left)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as e:
            job.over.set_exception(_for_protocol(e))
            return
        job.offset += sent
        job.left -= sent
        if more and job.left:
            self._await_room(job, wanted=True)
        else:
            job.over.set_result(None)

    def _await_room(self, job: _File, *, wanted: bool) -> None:
        if wanted and not job.waits:
            self._loop.add_writer(self._fd, self._send_some_pages)
        elif job.waits and not wanted and self._end is not None:
            self._loop.remove_writer(self._fd)
        job.waits = wanted


def leave_position(file: Any, position: int) -> None:
    """Set the position of a file behind what was sent, if it has one and is still open."""
    if hasattr(file, "seek"):
        try:  # noqa: SIM105  (contextlib.suppress takes as long as the call)
            file.seek(position)
        except ValueError:
            pass  # it was closed meanwhile


def _for_protocol(error: BaseException) -> BaseException:
    """The error as protocols are told it: of a broken connection also an ssl.SSLError."""
    other = as_ssl_error(error)
    if other is not error:
        other.__cause__ = error
    return other


def _address(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except OSError:
        return None


def _ktls(transport: KTLSTransport) -> Any:
    # asyncio's TLS that runs within this one hands the question on, and is in no kernel.
    within = isinstance(transport._protocol, sslproto.SSLProtocol)  # noqa: SLF001
    return None if within or transport._end is None else transport._end.status()  # noqa: SLF001


def _socket(transport: KTLSTransport) -> Any:
    return None if transport._end is None else trsock.TransportSocket(transport._end.sock)  # noqa: SLF001


_EXTRA: dict[str, Callable[[KTLSTransport], Any]] = {
    "cipher": lambda t: t._tls_object.cipher(),  # noqa: SLF001
    "compression": lambda t: t._tls_object.compression(),  # noqa: SLF001
    "ktls": _ktls,
    "peercert": lambda t: t._tls_object.getpeercert(),  # noqa: SLF001
    "peername": lambda t: t._peername,  # noqa: SLF001
    "socket": _socket,
    "sockname": lambda t: t._sockname,  # noqa: SLF001
    "ssl_object": lambda t: t._tls_object,  # noqa: SLF001
    "sslcontext": lambda t: t._tls_object.first_context,  # noqa: SLF001
}
