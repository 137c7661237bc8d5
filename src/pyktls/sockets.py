"""A socket whose TLS runs in the kernel.

``KTLSSocket`` is a ``socket.socket``: data goes in and out with one system call and no copy of our
own, ``sendfile`` takes a file's pages as they are.  What a plain socket would get wrong is done
here.

*Reading.*  Every read asks the kernel for the record's type.  Data goes to the caller.  Alerts and
handshake messages go to the state machine in post_handshake.py, and the caller's read carries on:
a session ticket is taken in silently, a KeyUpdate changes keys, close_notify is the end of the
stream (``b""``), a fatal alert raises ``TLSAlert``.  An end without close_notify raises
``TruncationError``.  Whatever breaks the record layer is final: the error is kept, and every later
read raises it again without asking the kernel, which would block for ever.  FreeBSD gives the type
only with the first part of a record that is read in parts, so what is being read is remembered.

*Writing.*  One lock covers everything that is sent, so that a control record never comes between
the parts of a message, and a change of keys never between the records of one send.

*Closing.*  The kernel counts bytes as sent once they are encrypted.  If the last record is then
only partly in the TCP queue, close(2) and shutdown(2) throw the rest of it away.  So closing is a
protocol: wait until the socket can be written (the rest is through), send close_notify (which also
flushes what MSG_MORE held back), wait again, and only then close.  ``close_timeout`` bounds it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any, NoReturn, Self

from . import _records, arguments, linux
from ._kernel import lib
from .ciphers import TLS_1_2, TLS_1_3
from .engines import native
from .errors import (
    Error,
    HandoffRefused,
    InvalidType,
    InvalidValue,
    RecordError,
    TLSAlert,
    TruncationError,
    syscall_error,
)
from .handoff import ssl_object
from .post_handshake import (
    ALERT,
    APPLICATION_DATA,
    BAD_RECORD_MAC,
    CLOSE_NOTIFY,
    FATAL,
    HANDSHAKE,
    INTERNAL_ERROR,
    PROTOCOL_VERSION,
    RECORD_OVERFLOW,
    WARNING,
    AlertReceived,
    CloseNotifyReceived,
    KeyUpdateReceived,
    PostHandshake,
    SendWarning,
    Violation,
    alert,
    key_update,
)
from .session import Direction, Session
from .socket_calls import descriptor
from .status import Status, status
from .switch import check_socket, install_fd, rekey_fd, system

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, Iterator, Sequence

    from _typeshed import ReadableBuffer, WriteableBuffer

    from .socket_calls import HasFileno

__all__ = ["KTLSSocket", "offload"]

# A control record is never longer than this, and a handshake message may come in several.
_CONTROL_SIZE = 16384
_NO_WAIT = 0.0
_SENDFILE_STEP = 1 << 30
# What only Linux has.
_MSG_MORE: int = getattr(socket, "MSG_MORE", 0)
_SPLICE_NONBLOCK: int = getattr(os, "SPLICE_F_NONBLOCK", 0)
_SPLICE_MORE: int = getattr(os, "SPLICE_F_MORE", 0)

# What the kernel says when a record cannot be right, and the alert that tells the peer so
# (RFC 8446 section 6.2).  Linux: net/tls/tls_sw.c.
_BROKEN_RECORD = {
    errno.EBADMSG: (BAD_RECORD_MAC, "a record failed authentication, or is too short"),
    errno.EMSGSIZE: (RECORD_OVERFLOW, "a record is longer than TLS allows"),
    errno.EINVAL: (PROTOCOL_VERSION, "a record's header carries another protocol version"),
    errno.EIO: (INTERNAL_ERROR, "the kernel could not process a record"),
    # Linux: a handshake record that begins like a KeyUpdate where keys cannot be changed.
    getattr(errno, "EKEYEXPIRED", -1): (
        BAD_RECORD_MAC,
        "the kernel waits for a change of keys that cannot be made",
    ),
}

_ON_FREEBSD = lib.pyktls_system() == lib.PYKTLS_FREEBSD
if _ON_FREEBSD:
    # sys/kern/uipc_ktls.c.  EBADMSG comes when the receive buffer is empty: good records that were
    # behind the bad one have then been read.
    _BROKEN_RECORD = {
        errno.EBADMSG: (
            BAD_RECORD_MAC,
            "a record failed authentication, and data read just before may be what followed it",
        ),
        errno.EMSGSIZE: (
            RECORD_OVERFLOW,
            "a record is too long, too short, or was cut off by the end of the connection",
        ),
        errno.EINVAL: (
            PROTOCOL_VERSION,
            "a record's header carries another protocol version, or in TLS 1.3 another type",
        ),
    }
# FreeBSD reports an error once and then blocks the next read for ever, so all are kept but these.
_PASSING = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR, errno.EBADF, errno.EFAULT, errno.ENOMEM}


class KTLSSocket(socket.socket):
    """A connected TCP socket with kernel TLS in both directions; ``pyktls.offload`` makes it.

    It is used like any socket: blocking, with a timeout, or non-blocking.  Differences:

    * ``recv`` and the like return ``b""`` (or 0) only after the peer's close_notify.
    * ``close`` and ``shutdown(SHUT_WR)`` first send what is under way and a close_notify, and wait
      for at most ``close_timeout`` seconds (a socket timeout, if one is set, instead).
    * It cannot be duplicated or pickled: the state after the handshake is in this object.

    Raises ``TLSAlert``, ``TruncationError`` and ``RecordError`` (all ``ConnectionError``) where the
    connection ends otherwise than by close_notify.
    """

    __slots__ = (
        "_answer_due",
        "_connection",
        "_leftover",
        "_post",
        "_reading_data",
        "_receive_ended",
        "_receive_error",
        "_receive_lock",
        "_send_ended",
        "_send_lock",
        "_session",
        "close_timeout",
    )

    _session: Session
    _post: PostHandshake

    def __init__(
        self, session: Session, fileno: int, *, connection: _Connection | None = None
    ) -> None:
        # Set before anything can fail: __del__ runs on a half-made object too.
        self._receive_lock = threading.RLock()
        self._send_lock = threading.RLock()
        self._leftover = b""
        self._receive_error: Error | OSError | None = None
        self._reading_data = False  # FreeBSD: the rest of a data record comes next, without a type
        self._receive_ended = False  # close_notify was received
        self._send_ended = True  # close_notify was sent, or nothing may be sent any more
        self._answer_due = False  # the peer asked for a KeyUpdate, which is still to be sent
        self.close_timeout: float = 30.0
        super().__init__(fileno=fileno)
        self._session = session
        self._connection = connection
        self._post = PostHandshake(session.version, session.role)
        self._send_ended = False

    # ---- what the connection is --------------------------------------------------------------

    @property
    def ktls(self) -> Status:
        """What the kernel says of this socket; see pyktls.status."""
        return status(self)

    def version(self) -> str:
        """``"TLSv1.2"`` or ``"TLSv1.3"``, as ssl.SSLSocket.version."""
        return {TLS_1_2: "TLSv1.2", TLS_1_3: "TLSv1.3"}[self._session.version]

    def cipher(self) -> tuple[str, str, int]:
        """``(OpenSSL's name, version, bits of the key)``, as ssl.SSLSocket.cipher."""
        suite = self._session.cipher
        return suite.openssl_name, self.version(), 8 * suite.aead.key_length

    def selected_alpn_protocol(self) -> str | None:
        """The protocol that ALPN chose in the handshake, or None."""
        return self._connection.alpn if self._connection else None

    def getpeercert(self, binary_form: bool = False) -> Any:
        """The peer's certificate, as ssl.SSLSocket.getpeercert gave it before the switch."""
        if self._connection is None:
            return None
        return self._connection.peer_der if binary_form else self._connection.peer

    def pending(self) -> int:
        """Bytes that OpenSSL had decrypted before the switch and that are still to be read.

        They are not seen by select or poll.
        """
        return len(self._leftover)

    def __repr__(self) -> str:
        state = "closed" if self.fileno() < 0 else f"fd={self.fileno()}"
        session = getattr(self, "_session", None)
        return f"<pyktls.KTLSSocket {state} {session!r}>"

    # ---- receiving ---------------------------------------------------------------------------

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Receive at most ``bufsize`` bytes; ``b""`` after the peer's close_notify."""
        bufsize = arguments.size(bufsize, "recv")
        if flags != 0:
            arguments.flags(flags)
        if self._plain(flags) and bufsize:
            with self._receive_lock:
                if not self._leftover and not self._receive_ended and not self._receive_error:
                    deadline = _records.Deadline(self.gettimeout())
                    while True:
                        data = self._recv_once(bufsize, flags, deadline)
                        if data is not None:
                            return data
        buffer = bytearray(bufsize)
        received = self.recv_into(buffer, 0, flags)
        return bytes(memoryview(buffer)[:received])

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0, /) -> int:
        """Receive into ``buffer``; returns the number of bytes, 0 after the peer's close_notify."""
        nbytes = arguments.size(nbytes, "recv_into")
        if flags != 0:
            arguments.flags(flags)
        with (
            arguments.buffer_view(buffer, writable=True) as whole,
            whole[: nbytes or len(whole)] as view,
        ):
            if nbytes > len(whole):
                raise InvalidValue("buffer too small for requested bytes")
            if not view:
                return 0
            with self._receive_lock:
                return self._recv_into(view, flags)

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, None]:
        """As recv; the address of a TCP peer is None, as with any connected TCP socket."""
        return self.recv(bufsize, flags), None

    def recvfrom_into(
        self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0, /
    ) -> tuple[int, None]:
        """As recv_into; see recvfrom."""
        return self.recv_into(buffer, nbytes, flags), None

    def recvmsg(
        self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[bytes, list[tuple[int, int, bytes]], int, None]:
        """As recv.  There is never ancillary data: record types are dealt with here."""
        arguments.size(ancbufsize, "recvmsg", "ancillary data buffer size")
        return self.recv(bufsize, flags), [], 0, None

    def recvmsg_into(
        self, buffers: Iterable[WriteableBuffer], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[tuple[int, int, bytes]], int, None]:
        """As recv_into, into the ``buffers`` one after the other."""
        arguments.size(ancbufsize, "recvmsg_into", "ancillary data buffer size")
        arguments.flags(flags)
        views = [view for view in arguments.buffer_views(buffers, writable=True) if len(view)]
        with self._receive_lock:
            return self._recv_into_vector(views, flags), [], 0, None

    def _recv_into_vector(self, views: list[memoryview], flags: int) -> int:
        """recvmsg_into under the receive lock; ``views`` are writable and not empty."""
        if len(views) > 1 and self._plain(flags) and not self._leftover:
            deadline = _records.Deadline(self.gettimeout())
            while not self._receive_ended and not self._receive_error:
                fd = self._descriptor()
                try:
                    received, record_type, msg_flags = _records.recvmsg_into(
                        fd, views, flags, deadline
                    )
                except OSError as e:
                    self._receive_failed(e)
                if not self._is_data(record_type, received, msg_flags, flags):
                    self._not_data(views, received, record_type, msg_flags, flags, deadline)
                elif received:
                    return received
        done = 0
        for view in views:
            received = self._recv_into(view, flags)
            done += received
            if received < len(view) or not flags & socket.MSG_WAITALL:
                break
        return done

    @staticmethod
    def _plain(flags: int) -> bool:
        return not flags & (socket.MSG_PEEK | socket.MSG_WAITALL)

    def _recv_into(self, view: memoryview, flags: int) -> int:
        peek = bool(flags & socket.MSG_PEEK)
        wait_all = bool(flags & socket.MSG_WAITALL) and not peek
        deadline = _records.Deadline(self.gettimeout())
        done = self._take_leftover(view, peek=peek)
        if done and (peek or not wait_all):
            return done
        while done < len(view):
            if self._receive_error is not None:
                if done:
                    break  # the next call raises it
                self._raise_again()
            if self._receive_ended:
                break
            try:
                received = self._recv_into_once(view[done:], flags, deadline)
            except (OSError, Error):
                # What is in the buffer must not be lost.  A failure that lasts is kept, or comes
                # again; one that does not (a timeout) loses nothing.
                if done:
                    break
                raise
            if received is None:
                continue
            done += received
            if not wait_all:
                break
        return done

    def _take_leftover(self, view: memoryview, *, peek: bool) -> int:
        taken = min(len(self._leftover), len(view))
        if taken:
            view[:taken] = self._leftover[:taken]
            if not peek:
                self._leftover = self._leftover[taken:]
        return taken

    def _recv_into_once(
        self, view: memoryview, flags: int, deadline: _records.Deadline
    ) -> int | None:
        """One read from the kernel; None if it was no data and the caller should go on."""
        fd = self._descriptor()
        try:
            received, record_type, msg_flags = _records.recv_into(fd, view, 0, flags, deadline)
        except OSError as e:
            self._receive_failed(e)
        if self._is_data(record_type, received, msg_flags, flags):
            if not received and flags & socket.MSG_PEEK:
                # Empty records with something else behind them: a look does not take them away.
                _records.recv(fd, 1, 0, deadline)
            return received or None  # an empty record is no end of the stream
        self._not_data([view], received, record_type, msg_flags, flags, deadline)
        return 0 if self._receive_ended else None

    def _recv_once(self, bufsize: int, flags: int, deadline: _records.Deadline) -> bytes | None:
        """The same into new bytes."""
        fd = self._descriptor()
        try:
            data, record_type, msg_flags = _records.recv(fd, bufsize, flags, deadline)
        except OSError as e:
            self._receive_failed(e)
        if self._is_data(record_type, len(data), msg_flags, flags):
            return data or None
        self._control(data, record_type, msg_flags, flags, bufsize, deadline)
        return b"" if self._receive_ended else None

    def _is_data(self, record_type: int, received: int, msg_flags: int, flags: int) -> bool:
        """Whether a read returned application data; also remembers where it stopped."""
        rest = self._reading_data and record_type == _records.NO_RECORD_TYPE and received > 0
        if not rest and record_type != APPLICATION_DATA:
            return False
        if _ON_FREEBSD and not flags & socket.MSG_PEEK:
            # An empty record has no MSG_EOR, and no rest either.
            self._reading_data = received > 0 and not msg_flags & socket.MSG_EOR
        if not rest:
            self._data_arrives()
        return True

    def _descriptor(self) -> int:
        fd = self.fileno()
        if fd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return fd

    def _data_arrives(self) -> None:
        try:
            self._post.data_arrives()
        except Violation as e:
            self._fail(e.description, RecordError(str(e)))

    def _not_data(
        self,
        views: list[memoryview],
        received: int,
        record_type: int,
        msg_flags: int,
        flags: int,
        deadline: _records.Deadline,
    ) -> None:
        """_control, with what is in the caller's buffers, and must not stay there."""
        piece = bytearray()
        for view in views:
            part = view[: received - len(piece)]
            piece += part
            part[:] = bytes(len(part))
        asked = sum(map(len, views))
        self._control(piece, record_type, msg_flags, flags, asked, deadline)

    def _control(
        self,
        piece: bytes | bytearray,
        record_type: int,
        msg_flags: int,
        flags: int,
        asked: int,
        deadline: _records.Deadline,
    ) -> None:
        """Deal with what a read returned that was no application data."""
        if record_type == _records.NO_RECORD_TYPE:
            if piece:
                self._fail(
                    INTERNAL_ERROR, RecordError("the kernel gave data without a record type")
                )
            self._receive_error = TruncationError(
                "the peer closed the connection without close_notify: "
                "what was received may be incomplete"
            )
            self._raise_again()
        fd = self._descriptor()
        record = bytearray(piece)
        if flags & socket.MSG_PEEK:  # it is still there: take it out
            record.clear()
            asked, msg_flags = 0, 0
        # A record that did not fit comes in pieces, each at once.
        last = len(record)
        while last == asked and not msg_flags & socket.MSG_EOR:
            asked = _CONTROL_SIZE
            data, _, msg_flags = _records.recv(fd, asked, 0, deadline)
            record += data
            last = len(data)
        try:
            for action in self._post.receive(record_type, bytes(record)):
                self._act(action)
        except Violation as e:
            self._fail(e.description, RecordError(str(e)))

    def _act(self, action: object) -> None:
        match action:
            case CloseNotifyReceived():
                self._receive_ended = True
                # RFC 5246 section 7.2.1: answer at once, and send nothing more.  If there is no
                # room for the answer now, close() sends it, after what is under way.
                if self._session.version == TLS_1_2 and self._try_to_send(
                    alert(WARNING, CLOSE_NOTIFY), ALERT
                ):
                    self._send_ended = True
            case AlertReceived(level, description):
                self._send_ended = True
                self._receive_error = TLSAlert(level, description)
                self._raise_again()
            case SendWarning(description):
                self._try_to_send(alert(WARNING, description), ALERT)
            case KeyUpdateReceived(answer_wanted):
                self._change_receiving_keys()
                if answer_wanted:
                    self._answer_due = True
                    self._answer_if_free()
            case _:  # a ticket: for OpenSSL to resume with, which has left
                pass

    # ---- receiving into a pipe ---------------------------------------------------------------

    def splice_to(self, pipe: HasFileno | int, count: int) -> int:
        """Move at most ``count`` bytes of received data into a pipe, as the kernel has them.

        Returns the number of bytes, at most one record's; 0 after the peer's close_notify.  Control
        records on the way are dealt with as in recv.  Waits, as the socket's timeout allows, for
        data and for room in the pipe.

        Raises what recv raises, and Unavailable where the kernel cannot do it without losing data
        (pyktls.linux.splice_to_pipe).
        """
        arguments.count("count", count, lowest=1)
        target = descriptor(pipe)
        with self._receive_lock:
            deadline = _records.Deadline(self.gettimeout())
            if self._leftover:  # out of OpenSSL's memory, and no kernel has it
                _wait_writable(target, deadline)
                moved = os.write(target, self._leftover[: min(count, select.PIPE_BUF)])
                self._leftover = self._leftover[moved:]
                return moved
            while not self._receive_ended:
                if self._receive_error is not None:
                    self._raise_again()
                fd = self._descriptor()
                error = None
                try:
                    moved = linux.splice_to_pipe(fd, target, count, _SPLICE_NONBLOCK)
                except BlockingIOError:
                    # For either end's sake.
                    _wait_readable(fd, deadline)
                    _wait_writable(target, deadline)
                    continue
                except OSError as e:
                    if e.errno != errno.EINVAL:
                        self._receive_failed(e)
                    moved, error = 0, e
                if moved:
                    self._data_arrives()
                    return moved
                self._after_empty_splice(error)
            return 0

    def _after_empty_splice(self, error: OSError | None) -> None:
        """Find out why splice(2) moved nothing: with EINVAL, or without an error.

        EINVAL is for a control record, which stays; for a header that is broken, which is reported
        only once and has been now; and for a pipe that is none.  No error is for the end of the
        stream, and for empty records.
        """
        view = memoryview(bytearray(1))
        flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
        try:
            found = self._recv_into_once(view, flags, _records.Deadline(_NO_WAIT))
        except BlockingIOError:
            if error is not None:
                self._receive_failed(error)
            return
        if found and error is not None:
            raise error

    # ---- receiving: what ends it -------------------------------------------------------------

    def _receive_failed(self, error: OSError) -> NoReturn:
        """Map what a read raised; errors of the record layer are kept."""
        broken = _BROKEN_RECORD.get(error.errno or 0)
        if broken is None:
            if _ON_FREEBSD and error.errno is not None and error.errno not in _PASSING:
                self._send_ended = True
                self._receive_error = error
            raise error
        description, reason = broken
        # The kernel keeps an error for the next send as well; reading it clears it.
        with contextlib.suppress(OSError):
            self.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._fail(description, RecordError(f"{reason} ({error})"), error)

    def _fail(self, description: int, error: Error, cause: Exception | None = None) -> NoReturn:
        """End the connection: tell the peer if that is possible at once, and remember why."""
        self._try_to_send(alert(FATAL, description), ALERT)
        self._send_ended = True
        self._receive_error = error
        self._raise_again(cause)

    def _raise_again(self, cause: BaseException | None = None) -> NoReturn:
        error = self._receive_error
        assert error is not None  # noqa: S101  (the callers have looked)
        # A new object each time: a kept one would grow a traceback with every raise.
        fresh = (
            TLSAlert(error.level, error.description)
            if isinstance(error, TLSAlert)
            else type(error)(*error.args)
        )
        raise fresh from cause

    # ---- changing keys -----------------------------------------------------------------------

    def _change_receiving_keys(self) -> None:
        try:
            rekey_fd(self._descriptor(), self._session, Direction.RX)
        except OSError as e:
            self._fail(
                INTERNAL_ERROR,
                RecordError(
                    "the peer changed its keys (KeyUpdate), and this kernel cannot follow: "
                    f"{system.NO_REKEY} ({e})"
                ),
                e,
            )

    def _answer_if_free(self) -> None:
        """Answer a KeyUpdate now, unless another thread is sending: then that one does."""
        if self._send_lock.acquire(blocking=False):
            try:
                with contextlib.suppress(BlockingIOError):
                    self._answer(_records.Deadline(_NO_WAIT))
            finally:
                self._send_lock.release()

    def _answer(self, deadline: _records.Deadline) -> None:
        """Send the KeyUpdate that is due, and change the sending keys right after it."""
        if not self._answer_due or self._send_ended:
            return
        fd = self._descriptor()
        flags = 0 if deadline.remaining() != _NO_WAIT else socket.MSG_DONTWAIT
        _records.send(fd, key_update(request=False), flags, HANDSHAKE, deadline)
        self._answer_due = False
        try:
            rekey_fd(fd, self._session, Direction.TX)
        except BaseException:
            # The peer now expects the new keys: nothing more can be sent that it could read.
            self._send_ended = True
            raise

    # ---- sending -----------------------------------------------------------------------------

    def send(self, data: ReadableBuffer, flags: int = 0, /) -> int:
        """Send; returns the number of bytes that the kernel took."""
        if flags != 0:
            arguments.flags(flags)
        with self._send_lock:
            deadline = self._before_sending()
            if not arguments.buffer_view(data).nbytes:
                return 0  # no such record can be sent, and none is needed
            return _records.send(self.fileno(), data, flags, _records.NO_RECORD_TYPE, deadline)

    def sendall(self, data: ReadableBuffer, flags: int = 0, /) -> None:
        """Send all of ``data``; on an error nothing tells how much of it was sent."""
        if flags != 0:
            arguments.flags(flags)
        with self._send_lock:
            deadline = self._before_sending()
            _records.sendall(self.fileno(), data, flags, deadline)

    def sendmsg(
        self,
        buffers: Iterable[ReadableBuffer],
        ancdata: Iterable[object] = (),
        flags: int = 0,
        address: object = None,
        /,
    ) -> int:
        """Send the ``buffers`` in one call; ancillary data and an address are refused."""
        arguments.flags(flags)
        if ancdata != ():
            try:
                ancdata = list(ancdata)
            except (TypeError, ValueError) as e:
                raise InvalidType(f"ancdata: {e}") from None
        if ancdata:
            raise InvalidValue("a KTLSSocket sends no ancillary data: the record type is its own")
        if address is not None:
            raise InvalidValue("a connected socket sends to no other address")
        with self._send_lock:
            deadline = self._before_sending()
            return _records.sendmsg(
                self.fileno(), buffers, flags, _records.NO_RECORD_TYPE, deadline
            )

    def sendto(self, *_: object) -> NoReturn:
        """Refused: the socket is connected."""
        raise InvalidValue("a connected socket sends to no other address")

    def sendfile(
        self,
        file: Any,
        offset: int = 0,
        count: int | None = None,
        *,
        headers: Sequence[ReadableBuffer] = (),
        trailers: Sequence[ReadableBuffer] = (),
    ) -> int:
        """Send a file; the kernel encrypts its pages as they are.

        As socket.sendfile, with its fallback to ``send`` for objects that are no real files.
        ``headers`` are sent before the file and ``trailers`` after it, in as few records as there
        can be; they count.  ``count`` beyond the end of the file means up to its end, and of a file
        that becomes shorter meanwhile comes what there is.
        """
        _check_file(file, offset, count)
        headers = arguments.buffer_views(headers)
        trailers = arguments.buffer_views(trailers)
        with self._send_lock:
            self._before_sending()
            try:
                source = file.fileno()
                size = os.fstat(source).st_size
            except (AttributeError, OSError):
                size = 0
            except ValueError as e:
                raise InvalidValue(str(e)) from None  # it is closed
            if self.gettimeout() == 0:
                raise InvalidValue("non-blocking sockets are not supported")
            if not size:  # no real file, or one like /proc's: read it
                total = self._send_pieces(headers, 0)
                read: int = self._sendfile_use_send(file, offset, count)  # type: ignore[attr-defined]
                return total + read + self._send_pieces(trailers, 0)
            left = max(0, size - offset) if count is None else min(count, max(0, size - offset))
            more = _MSG_MORE if left else 0  # the file's beginning goes into the same record
            total = self._send_pieces(headers, more)
            done = 0
            try:
                for taken in self._send_file_pages(source, offset, left):
                    done += taken
            finally:
                if done and hasattr(file, "seek"):
                    file.seek(offset + done)
            if more and not done:  # the file has lost its content since
                deadline = _records.Deadline(self.gettimeout())
                _records.sendmsg(self._descriptor(), (), 0, APPLICATION_DATA, deadline)
            return total + done + self._send_pieces(trailers, 0)

    def _send_pieces(self, pieces: Sequence[ReadableBuffer], flags: int) -> int:
        total = 0
        for piece in pieces:
            deadline = _records.Deadline(self.gettimeout())
            _records.sendall(self._descriptor(), piece, flags, deadline)
            total += len(memoryview(piece))
        return total

    def _send_file_pages(self, source: int, offset: int, left: int) -> Iterator[int]:
        """sendfile(2) until ``left`` bytes are sent, or the file has none; yields each step."""
        fd = self._descriptor()
        while left > 0:
            # As with socket.sendfile the timeout is for each step, not for the whole file.
            deadline = _records.Deadline(self.gettimeout())
            sent, error = system.sendfile(fd, source, offset, min(left, _SENDFILE_STEP))
            yield sent
            offset += sent
            left -= sent
            if isinstance(error, BlockingIOError):
                _records.wait_writable(fd, deadline)
            elif error is not None and not isinstance(error, InterruptedError):
                raise error
            elif error is None and not sent:
                return  # the file has become shorter

    def splice_from(self, pipe: HasFileno | int, count: int, *, more: bool = False) -> int:
        """Send at most ``count`` bytes that are in a pipe, as the kernel has them.

        Returns the number of bytes that were taken, 0 at the end of the pipe.  ``more`` keeps the
        record open for what is sent next, as MSG_MORE does.  Waits, as the socket's timeout allows,
        for content of the pipe and for room.

        Raises OSError of splice(2), and Unavailable where the kernel corrupts such records
        (pyktls.linux.splice_from_pipe).
        """
        arguments.count("count", count, lowest=1)
        source = descriptor(pipe)
        with self._send_lock:
            deadline = self._before_sending()
            fd = self._descriptor()
            flags = _SPLICE_NONBLOCK | (_SPLICE_MORE if more else 0)
            while True:
                try:
                    return linux.splice_from_pipe(source, fd, count, flags)
                except BlockingIOError:
                    _wait_readable(source, deadline)
                    _wait_writable(fd, deadline)

    def _before_sending(self) -> _records.Deadline:
        """What every send begins with, under the send lock; OSError if nothing can be sent."""
        self._descriptor()
        if self._send_ended:
            raise syscall_error(errno.EPIPE, "send after the end of the TLS connection")
        deadline = _records.Deadline(self.gettimeout())
        if self._answer_due:
            # RFC 8446 section 4.6.3: before the next application data record.
            self._answer(deadline)
        return deadline

    def _try_to_send(self, payload: bytes, record_type: int) -> bool:
        """Send a control record if that is possible at once; tells whether it was."""
        if not self._send_lock.acquire(blocking=False):
            return False
        try:
            if self._send_ended:
                return False
            _records.send(
                self.fileno(),
                payload,
                socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL,
                record_type,
                _records.Deadline(_NO_WAIT),
            )
        except OSError:
            return False
        else:
            return True
        finally:
            self._send_lock.release()

    # ---- closing -----------------------------------------------------------------------------

    def unwrap(self) -> None:
        """End TLS in both directions: send close_notify and wait for the peer's.

        Data of the peer that has not been read is not thrown away: if there is any, Error is
        raised after our close_notify is out, and the data can still be received.  Unlike
        ssl.SSLSocket.unwrap this gives no plain socket back: the kernel knows no way back.
        Raises TruncationError if the peer just closes.
        """
        deadline = _records.Deadline(self.gettimeout())
        with self._send_lock:
            self._finish_sending(deadline)
        with self._receive_lock:
            if self._recv_into(memoryview(bytearray(1)), socket.MSG_PEEK):
                raise Error("the peer has sent data that has not been read: receive it first")

    def shutdown(self, how: int, /) -> None:
        """As socket.shutdown; before the sending half ends, close_notify is sent."""
        try:
            if how in (socket.SHUT_WR, socket.SHUT_RDWR) and not self._is_dead():
                self._finish_in_time("shutdown")
        finally:
            super().shutdown(how)

    def detach(self) -> int:
        """Give up the object and keep the descriptor, whose kernel TLS goes on.

        What comes after is the caller's affair: control records, changes of keys, close_notify.
        Raises HandoffRefused while ``pending()`` bytes are unread, which would be lost.
        """
        if self._leftover:
            raise HandoffRefused(
                f"{len(self._leftover)} bytes that OpenSSL had decrypted are still to be read"
            )
        fd = super().detach()
        self._forget()
        return fd

    def dup(self) -> NoReturn:
        """Refused: the state after the handshake is in this object."""
        raise InvalidType("a KTLSSocket cannot be duplicated; os.dup(sock.fileno()) can")

    def _finish_in_time(self, call: str) -> None:
        """_finish_sending within the socket's timeout, or close_timeout; else TimeoutError.

        Another thread's send that does not come to its end counts as that: closing is the way to
        interrupt it.
        """
        deadline = _records.Deadline(self.gettimeout() or self.close_timeout)
        too_late = TimeoutError(
            errno.ETIMEDOUT, f"{call}: the peer took no more data, and some was not delivered"
        )
        if not self._send_lock.acquire(timeout=deadline.remaining() or 0.0):
            raise too_late
        try:
            self._finish_sending(deadline)
        except TimeoutError:
            raise too_late from None
        finally:
            self._send_lock.release()

    def _finish_sending(self, deadline: _records.Deadline) -> None:
        """Get everything out that was sent, and a close_notify after it.  Holds the send lock."""
        fd = self._descriptor()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while not self._send_ended:
                _wait_writable(fd, deadline)
                try:
                    self._answer(_records.Deadline(_NO_WAIT))
                    _records.send(
                        fd,
                        alert(WARNING, CLOSE_NOTIFY),
                        socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL,
                        ALERT,
                        _records.Deadline(_NO_WAIT),
                    )
                except BlockingIOError:
                    continue
                except OSError as e:
                    # A broken record has come that nobody has read.  Taking the kernel's error for
                    # it makes sending possible again.
                    if e.errno in _BROKEN_RECORD and self.getsockopt(
                        socket.SOL_SOCKET, socket.SO_ERROR
                    ):
                        continue
                    raise
                self._send_ended = True
            _wait_writable(fd, deadline)
        self._send_ended = True

    def _take_in_unseen_records(self) -> None:
        """Read what waits before the next data, such as session tickets, without waiting.

        Linux answers unread bytes with a reset when the socket closes, and a reset takes from the
        peer what it has not read yet.  For data that is as with any socket; for records that the
        user never sees it must not be.
        """
        if self._receive_ended or self._receive_error or not self._receive_lock.acquire(False):
            return
        try:
            view = memoryview(bytearray(1))
            with contextlib.suppress(OSError, Error):
                flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
                while self._recv_into_once(view, flags, _records.Deadline(_NO_WAIT)) is None:
                    pass
        finally:
            self._receive_lock.release()

    def _is_dead(self) -> bool:
        """Whether an error has ended both directions, so that nothing is left to be delivered."""
        return isinstance(self._receive_error, TLSAlert | RecordError | OSError) and not isinstance(
            self._receive_error, TruncationError
        )

    def _aborts(self) -> bool:
        """Whether the user chose to close with a reset (SO_LINGER with 0 seconds)."""
        value = self.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
        on, seconds = struct.unpack("ii", value)
        return bool(on) and seconds == 0

    def _real_close(self, *args: Any) -> None:
        # socket.close comes here when the last file object of makefile() is closed too.
        try:
            if self.fileno() >= 0 and not self._is_dead() and not self._aborts():
                self._finish_in_time("close")
                self._take_in_unseen_records()
        finally:
            super()._real_close(*args)  # type: ignore[misc]
            self._forget()

    def _disown(self) -> None:
        """Forget the descriptor without a word to the peer: it stays somebody else's."""
        super().detach()
        self._forget()

    def _forget(self) -> None:
        """Wipe what is secret; the object is closed."""
        self._send_ended = True
        self._leftover = b""
        session = getattr(self, "_session", None)
        if session is not None:
            session.wipe()

    def __del__(self) -> None:
        if self.fileno() >= 0 and not sys.is_finalizing():
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=1)
            with contextlib.suppress(OSError):
                self.close()

    def __enter__(self) -> Self:
        return self


class _Connection:
    """What the handshake found out that users ask for afterwards."""

    __slots__ = ("alpn", "peer", "peer_der")

    def __init__(self, ssl_sock: ssl.SSLSocket) -> None:
        self.alpn = ssl_sock.selected_alpn_protocol()
        self.peer = ssl_sock.getpeercert()
        self.peer_der = ssl_sock.getpeercert(binary_form=True)


def _check_file(file: Any, offset: int, count: int | None) -> None:
    arguments.count("offset", offset)
    if count is not None:
        arguments.count("count", count, lowest=1)
    if "b" not in getattr(file, "mode", "b"):
        raise InvalidValue("the file must be opened in binary mode")
    if not hasattr(file, "read"):
        raise InvalidType(f"a file is needed, not {type(file).__name__}")


def _wait_readable(fd: int, deadline: _records.Deadline) -> None:
    """Wait as long as the deadline allows, and look at least once."""
    if deadline.remaining() == _NO_WAIT:
        _look(fd, select.POLLIN, "read")
    else:
        _records.wait_readable(fd, deadline)


def _wait_writable(fd: int, deadline: _records.Deadline) -> None:
    """The same for writing."""
    if deadline.remaining() == _NO_WAIT:
        _look(fd, select.POLLOUT, "written")
    else:
        _records.wait_writable(fd, deadline)


def _look(fd: int, event: int, what: str) -> None:
    poll = select.poll()
    poll.register(fd, event)
    if not poll.poll(0):
        raise BlockingIOError(errno.EAGAIN, f"it cannot be {what} yet")


# ---- making one ------------------------------------------------------------------------------


def offload(ssl_sock: ssl.SSLSocket) -> KTLSSocket:
    """Switch a connected ``ssl.SSLSocket`` to kernel TLS, in both directions.

    The context must have been watched (``pyktls.watch``) before the connection was made.  The
    returned socket has taken over the descriptor, the timeout and the plaintext that OpenSSL had
    already decrypted, which it serves first; ``ssl_sock`` is detached and of no further use.

    Nobody may use ``ssl_sock`` in another thread meanwhile.  Raises HandoffRefused (this connection
    is not in a state to switch) and Unavailable (this kernel, or this Python's OpenSSL, cannot):
    then ``ssl_sock`` is as usable as before, unless the message says that the connection is dead.
    """
    sslobj = ssl_object(ssl_sock)
    check_socket(ssl_sock)
    if ssl_sock._io_refs:  # type: ignore[attr-defined]  # noqa: SLF001
        raise HandoffRefused(
            "file objects made by makefile() are open on the socket, and may hold data: close them"
        )
    session = native.extract(sslobj, drained=True)
    sock = KTLSSocket(session, ssl_sock.fileno(), connection=_Connection(ssl_sock))
    try:
        sock.settimeout(ssl_sock.gettimeout())
        install_fd(sock.fileno(), session, tx=True, rx=True)
    except BaseException:
        sock._disown()  # noqa: SLF001
        raise
    # The kernel has the connection.  From here on nothing may fail.
    pending = sslobj.pending()
    if pending:
        # This comes out of OpenSSL's memory; the socket is not asked.
        sock._leftover = sslobj.read(pending)  # noqa: SLF001
    ssl_sock.detach()
    native.leave(sslobj)
    ssl_sock._sslobj = None  # type: ignore[attr-defined]  # noqa: SLF001
    return sock
