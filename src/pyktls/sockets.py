"""A socket whose TLS runs in the kernel.

``KTLSSocket`` is a ``socket.socket``: data goes in and out with one system call and no copy of our
own, ``sendfile`` takes a file's pages as they are.  What a plain socket would get wrong is the work
of record_layer.py and closing.py; here are the names that users know it by.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import warnings
from typing import TYPE_CHECKING, Any, NoReturn, Self

from . import _records, arguments, closing, file_transfer
from .connection_state import ConnectionState, alone, check_kernel, session_of, snapshot
from .errors import Error, HandoffRefused, InvalidType, InvalidValue
from .post_handshake import PostHandshake
from .protocol import VERSION_NAMES
from .record_layer import NO_WAIT, RecordLayer
from .status import Status, status
from .takeover import Handshake

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, Sequence

    from _typeshed import ReadableBuffer, WriteableBuffer

    from .session import Session
    from .socket_calls import HasFileno

__all__ = ["KTLSSocket"]


class KTLSSocket(_records.SocketMethods, socket.socket):
    """A connected TCP socket with kernel TLS, in both directions or one.

    It is used like any socket: blocking, with a timeout, or non-blocking.  Differences:

    * ``recv`` and the like return ``b""`` (or 0) only after the peer's close_notify.
    * ``close`` and ``shutdown(SHUT_WR)`` first send what is under way and a close_notify, and wait
      for at most ``close_timeout`` seconds (a socket timeout, if one is set, instead); then
      TimeoutError is raised, and the socket closed all the same.  At the end of the interpreter all
      that is open is closed so, in five seconds.  In the child of a fork that has not used it, it
      is closed without a word: the parent goes on with it.
    * Another thread's call that goes the same way is waited for, as the timeout says; on a
      non-blocking socket, and with MSG_DONTWAIT, that is BlockingIOError.
    * It cannot be duplicated or pickled: the state after the handshake is in this object.
      ``pyktls.send_socket`` and ``export_state`` move it to another process.

    Raises ``TLSAlert``, ``TruncationError`` and ``RecordError`` (all ``ConnectionError``) where the
    connection ends otherwise than by close_notify.
    """

    __slots__ = ("_handshake", "_layer", "close_timeout")

    _layer: RecordLayer

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Make the object as socket.socket does; SocketMethods, which comes first, cannot."""
        return socket.socket.__new__(cls)

    def __init__(
        self,
        session: Session,
        fileno: int,
        *,
        handshake: Handshake | None = None,
        layer: RecordLayer | None = None,
    ) -> None:
        # Set before anything can fail: __del__ runs on a half-made object too.
        self._layer = RecordLayer(session, -1) if layer is None else layer
        self.close_timeout: float = 30.0
        self._handshake = handshake
        super().__init__(fileno=fileno)
        self._layer.fd = fileno
        self._layer.timeout = self.gettimeout()

    # ---- what the connection is --------------------------------------------------------------

    @property
    def ktls(self) -> Status:
        """What the kernel says of this socket; see pyktls.status."""
        return status(self)

    def version(self) -> str:
        """``"TLSv1.2"`` or ``"TLSv1.3"``, as ssl.SSLSocket.version."""
        return VERSION_NAMES[self._layer.session.version]

    def cipher(self) -> tuple[str, str, int]:
        """``(OpenSSL's name, version, bits of the key)``, as ssl.SSLSocket.cipher."""
        suite = self._layer.session.cipher
        return suite.openssl_name, self.version(), 8 * suite.aead.key_length

    def selected_alpn_protocol(self) -> str | None:
        """The protocol that ALPN chose in the handshake, or None."""
        return self._handshake.alpn if self._handshake else None

    def getpeercert(self, binary_form: bool = False) -> Any:
        """The peer's certificate, as ssl.SSLSocket.getpeercert gave it before the switch."""
        if self._handshake is None:
            return None
        return self._handshake.peer_der if binary_form else self._handshake.peer

    @property
    def session(self) -> ssl.SSLSession | None:
        """The TLS session, for ``ssl.SSLContext.wrap_socket(session=...)``: clients only.

        Tickets that have been received since the switch count, unless an ssl.SSLSocket made the
        handshake whose OpenSSL is hidden.  None where there is none (yet).
        """
        tickets = self._layer.tickets
        return tickets.session if tickets else None

    def pending(self) -> int:
        """Bytes that OpenSSL has decrypted and that are still to be read.

        They are not seen by select or poll.  They are from before the switch, unless OpenSSL still
        receives.
        """
        return self._layer.pending()

    def __repr__(self) -> str:
        state = "closed" if self.fileno() < 0 else f"fd={self.fileno()}"
        return f"<pyktls.KTLSSocket {state} {self._layer.session!r}>"

    # ---- timeouts ----------------------------------------------------------------------------

    def settimeout(self, value: float | None, /) -> None:
        """As socket.settimeout."""
        arguments.set_timeout(super().settimeout, value)
        self._layer.timeout = self.gettimeout()

    def setblocking(self, flag: bool, /) -> None:
        """As socket.setblocking."""
        self.settimeout(None if flag else 0.0)

    # ---- receiving ---------------------------------------------------------------------------

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, None]:
        """As recv; the address of a TCP peer is None, as with any connected TCP socket."""
        return self.recv(bufsize, flags), None

    def recvfrom_into(
        self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0
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
        return self._layer.recvmsg_into(views, flags), [], 0, None

    def splice_to(self, pipe: HasFileno | int, count: int) -> int:
        """Move at most ``count`` bytes of received data into a pipe, as the kernel has them.

        Returns the number of bytes, at most one record's; 0 after the peer's close_notify.  Control
        records on the way are dealt with as in recv.  Waits, as the socket's timeout allows, for
        data and for room in the pipe.

        Raises what recv raises, and Unavailable where the kernel cannot do it without losing data
        (pyktls.linux.splice_to_pipe).
        """
        return file_transfer.splice_to(self._layer, pipe, count)

    # ---- sending -----------------------------------------------------------------------------

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
        use_send = self._sendfile_use_send  # type: ignore[attr-defined]
        return file_transfer.sendfile(self._layer, file, offset, count, headers, trailers, use_send)

    def splice_from(self, pipe: HasFileno | int, count: int, *, more: bool = False) -> int:
        """Send at most ``count`` bytes that are in a pipe, as the kernel has them.

        Returns the number of bytes that were taken, 0 at the end of the pipe.  ``more`` keeps the
        record open for what is sent next, as MSG_MORE does.  Waits, as the socket's timeout allows,
        for content of the pipe and for room.

        Raises OSError of splice(2), and Unavailable where the kernel corrupts such records
        (pyktls.linux.splice_from_pipe).
        """
        return file_transfer.splice_from(self._layer, pipe, count, more=more)

    def update_keys(self, request_peer: bool = False) -> None:
        """Send a KeyUpdate and change the sending keys (RFC 8446 section 4.6.3).

        With ``request_peer`` the peer is asked to change its own too.  Keys change by themselves
        before a cipher's limit (RFC 8446 section 5.5) is reached; nobody has to call this for that.

        Raises Unavailable where keys cannot be changed: TLS 1.2, Linux before 6.14, FreeBSD.
        Raises BlockingIOError or TimeoutError if the peer takes no data now; nothing has changed
        then.
        """
        self._layer.update_keys(bool(request_peer))

    # ---- closing -----------------------------------------------------------------------------

    def unwrap(self) -> None:
        """End TLS in both directions: send close_notify and wait for the peer's.

        Data of the peer that has not been read is not thrown away: if there is any, Error is
        raised after our close_notify is out, and the data can still be received.  Unlike
        ssl.SSLSocket.unwrap this gives no plain socket back: the kernel knows no way back.
        Raises TruncationError if the peer just closes.
        """
        closing.unwrap(self._layer)

    def shutdown(self, how: int, /) -> None:
        """As socket.shutdown; before the sending half ends, close_notify is sent."""
        try:
            closing.before_shutdown(self._layer, how, self.gettimeout() or self.close_timeout)
        finally:
            super().shutdown(how)

    # ---- going on elsewhere ------------------------------------------------------------------

    def export_state(self, secrets: bool = False) -> bytearray:
        """What ``from_state`` needs besides the descriptor, for a transport of your own.

        pyktls.send_socket is the transport of ours.  The object stays as it is; after this, go on
        with one of the two, and let go of the other by ``abandon()`` or ``detach()``.

        ``secrets`` puts the traffic secrets in (TLS 1.3; wipe the bytearray after use, and let only
        one process keep them).  Without them there is no change of keys on the other side.  The
        peer's certificate, and plaintext not read yet (``pending()``), are in it in any case.

        Raises HandoffRefused, with the reason, if the connection cannot go on elsewhere: it is
        closed or has ended by an error, the kernel has only one direction, another call on it is
        under way, file objects made by makefile() are open and may hold data, or the secrets are
        not here.
        """
        with alone(self._layer):
            return self._packed_state(secrets)

    def _packed_state(self, secrets: bool) -> bytearray:
        """The same; within ``alone``."""
        if not isinstance(secrets, bool):  # nothing else is taken for a yes
            raise InvalidType(f"secrets must be a bool, not {type(secrets).__name__}")
        layer = self._layer
        if self._io_refs:  # type: ignore[attr-defined]
            raise HandoffRefused(
                "file objects made by makefile() are open on the socket, and may hold data: close "
                "them"
            )
        if layer.fd >= 0 and not layer.receive_error:
            with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                layer.answer(layer.deadline_in(NO_WAIT))
        state = snapshot(layer, self._handshake, self.close_timeout, secrets=secrets)
        try:
            return state.pack()
        finally:
            state.wipe()

    @classmethod
    def from_state(cls, state: ReadableBuffer, fileno: int) -> Self:
        """Take up a connection from ``export_state`` and its descriptor, which it takes over.

        ``fileno`` may be the same descriptor, after ``detach()``, or another one of the same socket
        (``os.dup``, one passed over a Unix socket, or inherited).  The timeouts are in the state.

        Everything is checked, and the kernel asked whether it does TLS on that descriptor as the
        state says.  Raises InvalidType and InvalidValue for what is no state, HandoffRefused where
        the kernel says otherwise, OSError that names the call for what is no socket; the descriptor
        then stays the caller's.
        """
        made = ConnectionState.unpack(state)
        try:
            fd = arguments.integer("fileno", fileno, 0, 2**31 - 1, bounds="a file descriptor")
            check_kernel(fd, made.suite)
            handshake = None if made.handshake is None else Handshake(*made.handshake)
            sock = cls(session_of(made, fd), fd, handshake=handshake)
        finally:
            made.wipe()
        try:
            sock.close_timeout = made.close_timeout
            sock.settimeout(made.timeout)
            sock._layer.go_on(
                PostHandshake.restore(made.post),
                made.leftover,
                reading_data=made.reading_data,
                send_ended=made.send_ended,
            )
        except BaseException:
            sock._disown()
            raise
        return sock

    def detach(self) -> int:
        """Give up the object and keep the descriptor, whose kernel TLS goes on.

        Nothing is sent to the peer, no close_notify either, and the secrets here are wiped.  What
        comes after is the caller's affair: control records, changes of keys, close_notify, and that
        a plain close can lose what was sent last.  An ``export_state`` made before is the way back
        (``from_state``).

        Raises HandoffRefused while ``pending()`` bytes are unread, which would be lost, and if the
        kernel has only one direction.
        """
        self._layer.check_detachable()
        fd = super().detach()
        self._layer.forget()
        return fd

    def abandon(self) -> None:
        """Close this process's descriptor and nothing else: another process has the connection.

        No close_notify is sent, nothing is waited for, the secrets here are wiped.  It is for after
        a fork, or after the descriptor was passed on by other means than pyktls.send_socket (which
        does it).  If there is no other descriptor after all, the connection ends as by a crash: the
        peer sees no close_notify, and what was sent last may be lost.  Closed already, it stays so.
        """
        fd = super().detach()
        self._layer.forget()
        if fd >= 0:
            os.close(fd)

    def dup(self) -> NoReturn:
        """Refused: the state after the handshake is in this object."""
        raise InvalidType("a KTLSSocket cannot be duplicated; os.dup(sock.fileno()) can")

    def _real_close(self, *args: Any) -> None:
        # socket.close comes here when the last file object of makefile() is closed too.
        layer = self._layer
        try:
            closing.close(layer, self.gettimeout() or self.close_timeout)
        finally:
            layer.fd = -1
            super()._real_close(*args)  # type: ignore[misc]
            self._layer.forget()

    def _disown(self) -> None:
        """Forget the descriptor without a word to the peer: it stays somebody else's."""
        super().detach()
        self._layer.forget()

    def __del__(self) -> None:
        if self.fileno() >= 0 and not sys.is_finalizing():
            try:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=1)
            finally:  # the warning may be an error
                with contextlib.suppress(OSError, Error):
                    self.close()

    def __enter__(self) -> Self:
        return self
