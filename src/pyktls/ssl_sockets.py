"""``pyktls.SSLSocket``: an ssl.SSLSocket that goes to the kernel by itself after its handshake.

``wrap_context`` has a context make its sockets of this class, so that whatever calls
``context.wrap_socket`` (http.client, http.server, urllib3, smtplib, ...) uses kernel TLS without a
further change.  Where the kernel cannot, the socket stays what ssl made it, nothing is lost, and
``ktls.refusal`` says why.

The methods of ssl.SSLSocket do their work through ``_sslobj``, OpenSSL's side of the connection.
After the switch ``_Switched`` stands in its place: questions (certificate, cipher, session, ...)
it passes on, everything that would read or write it answers with the record layer.  OpenSSL itself
is given other BIOs, or where it is hidden its object is let go of (engines/answers.py), so that it
could not reach the connection even if it were asked to: what it wrote there would be encrypted
twice.

Errors are those that code for ssl.SSLSocket expects: ssl_errors.py.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import ssl
import sys
import warnings
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

from . import _records, arguments, closing, file_transfer
from .engines.answers import QUESTIONS
from .engines.foreign import check_modules, keeps_another, overrides
from .errors import (
    Error,
    HandoffRefused,
    InvalidType,
    InvalidValue,
    TruncationError,
    Unavailable,
)
from .handoff import watch
from .record_layer import RecordLayer
from .ssl_errors import SSLErrors, SSLUnavailable, SSLUnreadData, as_failed_handshake
from .status import Status, status
from .takeover import as_far_as_possible, extract_checked, is_dead, take_over

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from _typeshed import ReadableBuffer

    from .socket_calls import HasFileno

__all__ = ["SSLSocket", "wrap_context"]

T = TypeVar("T")


class _SendErrors(SSLErrors):
    """The same for a send, which remembers that it has timed out."""

    __slots__ = ("_layer",)

    def __init__(self, layer: _SSLRecordLayer) -> None:
        super().__init__(writing=True)
        self._layer = layer

    def __exit__(
        self, kind: object, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, TimeoutError):
            self._layer.timed_out = True
        super().__exit__(kind, error, traceback)


class _SSLRecordLayer(RecordLayer):
    """A record layer whose errors, and whose view of a ragged end, are those of the ssl module."""

    quiet_after_fork = True  # servers that fork for each request close what the child has
    suppress_ragged_eofs = True

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.most_flags = 0
        #: A send has ended with TimeoutError: the program knows that not everything went out.
        self.timed_out = False

    def writing(self) -> _SendErrors:
        """Turn the errors of a send."""
        return _SendErrors(self)

    def _reading(self, call: Callable[..., T], at_end: T, *arguments: Any) -> T:
        """Call; turn errors; of a ragged end, which ssl suppresses by default, make an end."""
        with SSLErrors(writing=False):
            try:
                return call(*arguments)
            except TruncationError:
                if not self.suppress_ragged_eofs:
                    raise
        return at_end

    @staticmethod
    def _no_flags(flags: Any, call: str) -> None:
        if flags != 0:
            raise InvalidValue(f"non-zero flags not allowed in calls to {call}() on an SSLSocket")

    def recv_slowly(self, bufsize: Any, flags: Any) -> bytes:
        self._no_flags(flags, "recv")
        return self._reading(super().recv_slowly, b"", bufsize, flags)

    def recv_into_slowly(self, buffer: Any, nbytes: Any, flags: Any) -> int:
        self._no_flags(flags, "recv_into")
        if isinstance(nbytes, int):  # ssl takes any, and gives what fits
            with arguments.buffer_view(buffer, writable=True) as view:
                nbytes = nbytes if 0 < nbytes < len(view) else 0
        return self._reading(super().recv_into_slowly, 0, buffer, nbytes, flags)

    def _recv_after_other(self, *arguments: Any) -> bytes:
        return self._reading(super()._recv_after_other, b"", *arguments)

    def _recv_into_after_other(self, *arguments: Any) -> int:
        return self._reading(super()._recv_into_after_other, 0, *arguments)

    def receive_failed(self, error: OSError) -> NoReturn:
        try:
            with SSLErrors(writing=False):
                super().receive_failed(error)
        finally:
            del error  # its traceback may have this frame
        raise AssertionError("it raises")

    def send_failed(self, error: OSError) -> None:
        try:
            with self.writing():
                super().send_failed(error)
                raise error
        finally:
            del error

    def send_slowly(self, data: ReadableBuffer, flags: Any) -> int:
        self._no_flags(flags, "send")
        with self.writing():
            return super().send_slowly(data, flags)

    def sendall_slowly(self, data: ReadableBuffer, flags: Any) -> None:
        self._no_flags(flags, "sendall")
        with self.writing():
            super().sendall_slowly(data, flags)


# ---- in the place of OpenSSL -----------------------------------------------------------------


class _Switched:
    """What takes the place of ``_sslobj`` once the kernel has the connection."""

    def __init__(self, sock: SSLSocket, sslobj: Any, layer: RecordLayer) -> None:
        # Weakly: the socket owns this, and is to go as soon as nobody has it any more.
        self._reference = weakref.ref(sock)
        self._sslobj = sslobj
        self._layer = layer

    @property
    def _sock(self) -> SSLSocket:
        sock = self._reference()
        if sock is None:
            raise InvalidValue("the socket is gone")
        return sock

    def __getattr__(self, name: str) -> Any:
        # Questions; what would do something is below, or does not exist for OpenSSL any more.
        if name not in QUESTIONS:
            raise AttributeError(f"{name} is not available once the kernel has the connection")
        with self._alone():
            answer = getattr(self._sslobj, name)
        return functools.partial(self._ask, answer) if callable(answer) else answer

    def _ask(self, question: Callable[..., T], *arguments: Any) -> T:
        with self._alone():
            return question(*arguments)

    def _alone(self) -> contextlib.AbstractContextManager[Any]:
        """Keep others out who bring OpenSSL a ticket: it makes a new session of it."""
        tickets = self._layer.tickets
        return contextlib.nullcontext() if tickets is None else tickets.lock

    def read(self, size: int = 1024, buffer: Any = None) -> Any:
        if buffer is None:
            return self._sock.recv(size) if size else b""
        view = memoryview(buffer).cast("B")
        size = len(view) if size <= 0 else min(size, len(view))
        return self._sock.recv_into(view, size) if size else 0

    def write(self, data: ReadableBuffer) -> int:
        return self._sock.send(data)

    def pending(self) -> int:
        return self._layer.pending()

    def do_handshake(self) -> None:
        """Nothing: it is done."""

    def shutdown(self) -> SSLSocket:
        self._sock.unwrap()
        return self._sock

    def verify_client_post_handshake(self) -> None:
        if not self._sock.server_side or self._sslobj.version() != "TLSv1.3":
            self._sslobj.verify_client_post_handshake()  # which refuses it, in its own words
        raise SSLUnavailable(
            ssl.SSL_ERROR_SSL,
            "the peer cannot be asked for a certificate any more: the kernel has the connection, "
            "and the transcript that the answer signs is gone with OpenSSL",
        )

    def uses_ktls_for_send(self) -> bool:
        # That OpenSSL uses it, which could then be asked to send a file.
        return False

    def uses_ktls_for_recv(self) -> bool:
        return False

    @property
    def session(self) -> Any:
        if self._layer.tickets is not None:
            return self._layer.tickets.session
        return self._sslobj.session

    @session.setter
    def session(self, value: Any) -> None:
        self._sslobj.session = value  # which refuses it: the handshake is done

    @property
    def context(self) -> Any:
        return self._sslobj.context

    @context.setter
    def context(self, value: Any) -> None:
        self._sslobj.context = value

    @property
    def owner(self) -> SSLSocket | None:
        return self._reference()


# ---- the socket ------------------------------------------------------------------------------


class WatchedSocket(ssl.SSLSocket):
    """An ssl.SSLSocket of a watched context that stays watched when an sni_callback changes it."""

    _context: ssl.SSLContext
    _sslobj: Any

    @property
    def context(self) -> ssl.SSLContext:
        """The context.  One that an sni_callback sets is watched from then on."""
        return self._context

    @context.setter
    def context(self, value: ssl.SSLContext) -> None:
        with contextlib.suppress(HandoffRefused, Unavailable):  # the switch will say it
            watch(value)
        self._context = value
        self._sslobj.context = value


class _HandshakeFirst(WatchedSocket):
    """What reads and writes in ssl.SSLSocket, with a handshake of its own before the first byte.

    OpenSSL would make it on the way, and nobody would learn that it is time for the switch.
    """

    _handshaken = False

    def _shake_hands(self) -> None:
        if not self._handshaken and self._sslobj is not None:
            self.do_handshake()

    def read(self, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002  (ssl's name)
        """As ssl.SSLSocket.read."""
        self._shake_hands()
        return super().read(len, buffer)

    def write(self, data: ReadableBuffer) -> int:
        """As ssl.SSLSocket.write."""
        self._shake_hands()
        return super().write(data)

    def send(self, data: ReadableBuffer, flags: int = 0) -> int:
        """As ssl.SSLSocket.send."""
        self._shake_hands()
        return super().send(data, flags)


class SSLSocket(_records.SocketMethods, _HandshakeFirst):
    """An ssl.SSLSocket that is switched to kernel TLS when its handshake is done.

    Made by a context that ``wrap_context`` was called for.  Differences to ssl.SSLSocket once
    ``ktls.tx`` and ``ktls.rx`` are true:

    * ``close`` and ``shutdown`` send what is under way and a close_notify, and wait for at most
      ``close_timeout`` seconds (a socket timeout, if one is set, instead); then TimeoutError is
      raised, and the socket closed all the same.  After a fork a process that has never sent or
      received on it closes it without a word: the other one has it.
    * ``unwrap`` ends TLS and returns the socket itself, which can send and receive nothing more:
      the kernel knows no way back to plain text.
    * ``sendfile`` has the kernel encrypt the file's pages as they are.
    """

    #: Whether a connection that the kernel cannot take is an error.
    require = False
    close_timeout: float = 30.0

    _layer: _SSLRecordLayer | None = None
    _refusal: Exception | None = None

    def __new__(cls, *arguments: Any, **keywords: Any) -> Self:
        """Make the object as socket.socket does; SocketMethods, which comes first, cannot."""
        return socket.socket.__new__(cls, *arguments, **keywords)

    # ---- the switch --------------------------------------------------------------------------

    def do_handshake(self, block: bool = False) -> None:
        """As ssl.SSLSocket.do_handshake; then the connection goes to the kernel.

        Where that is impossible it stays with OpenSSL, unless it is required: then HandoffRefused
        or Unavailable is raised, and the socket closed.
        """
        super().do_handshake(block)
        self._handshaken = True
        if self._layer is None:
            self._switch()

    def _switch(self) -> None:
        layer, refusal = as_far_as_possible(
            self,
            lambda rx: take_over(self, extract_checked(self, rx=rx), _SSLRecordLayer, rx=rx),
            alone=not self._is_required(),
        )
        self._refusal = refusal
        if layer is None:
            assert refusal is not None  # noqa: S101  (for mypy)
            self._stay(refusal)
            return
        layer.suppress_ragged_eofs = self.suppress_ragged_eofs  # type: ignore[attr-defined]
        self._sslobj = _Switched(self, self._sslobj, layer)
        self._layer = layer

    def _stay(self, refusal: HandoffRefused | Unavailable) -> None:
        """Stay with OpenSSL, if that is allowed."""
        if self._is_required() or is_dead(refusal):
            self.close()
            if self.fileno() >= 0:  # file objects of makefile() would go on with it
                self._real_close()
            raise as_failed_handshake(refusal) from refusal

    def _is_required(self) -> bool:
        return self.require or requires_kernel(self.context)  # an sni_callback may have changed it

    @property
    def ktls(self) -> Status:
        """What the kernel says of this socket, and why it has not got it; see pyktls.status."""
        found = status(self)
        return replace(found, refusal=self._refusal) if self._refusal is not None else found

    # ---- once it is switched -----------------------------------------------------------------

    def settimeout(self, value: float | None, /) -> None:
        """As socket.settimeout."""
        arguments.set_timeout(super().settimeout, value)
        if self._layer is not None:
            self._layer.timeout = self.gettimeout()

    def setblocking(self, flag: bool, /) -> None:
        """As socket.setblocking."""
        super().setblocking(flag)
        if self._layer is not None:
            self._layer.timeout = self.gettimeout()

    def recvmsg_into(self, *arguments: Any, **keywords: Any) -> NoReturn:
        """Not there, as in ssl.SSLSocket."""
        raise NotImplementedError(f"recvmsg_into not allowed on instances of {self.__class__}")

    def sendmsg(self, *arguments: Any, **keywords: Any) -> NoReturn:
        """Not there, as in ssl.SSLSocket."""
        raise NotImplementedError(f"sendmsg not allowed on instances of {self.__class__}")

    def sendmsg_afalg(self, *arguments: Any, **keywords: Any) -> NoReturn:
        """Not there: what it sends would pass by everything here."""
        raise NotImplementedError(f"sendmsg_afalg not allowed on instances of {self.__class__}")

    def sendfile(
        self,
        file: Any,
        offset: int = 0,
        count: int | None = None,
        *,
        headers: Sequence[ReadableBuffer] = (),
        trailers: Sequence[ReadableBuffer] = (),
    ) -> int:
        """Send a file, as KTLSSocket.sendfile; by OpenSSL where the kernel has not taken over.

        With an ``offset`` of 0 it begins where the file is, as ssl.SSLSocket.sendfile does, and not
        as that of other sockets.
        """
        if self._layer is not None:
            use_send: Callable[..., int] = self._sendfile_use_send  # type: ignore[attr-defined]
            if offset == 0:
                with contextlib.suppress(AttributeError, OSError, ValueError):
                    offset = file.tell()
            with self._layer.writing():
                return file_transfer.sendfile(
                    self._layer, file, offset, count, headers, trailers, use_send
                )
        file_transfer.check_file(file, offset, count)
        total = self._send_pieces(headers)
        total += super().sendfile(file, offset, count)
        return total + self._send_pieces(trailers)

    def _send_pieces(self, pieces: Sequence[ReadableBuffer]) -> int:
        for piece in pieces:
            self.sendall(piece)
        return sum(memoryview(piece).nbytes for piece in pieces)

    def splice_to(self, pipe: HasFileno | int, count: int) -> int:
        """As KTLSSocket.splice_to; Unavailable where the kernel has not taken over."""
        with SSLErrors(writing=False):
            return file_transfer.splice_to(self._kernels(), pipe, count)

    def splice_from(self, pipe: HasFileno | int, count: int, *, more: bool = False) -> int:
        """As KTLSSocket.splice_from; Unavailable where the kernel has not taken over."""
        with SSLErrors(writing=True):
            return file_transfer.splice_from(self._kernels(), pipe, count, more=more)

    def update_keys(self, request_peer: bool = False) -> None:
        """As KTLSSocket.update_keys; Unavailable where the kernel has not taken over."""
        with SSLErrors(writing=True):
            self._kernels().update_keys(bool(request_peer))

    def _kernels(self) -> RecordLayer:
        if self._layer is None:
            raise Unavailable("the kernel does not have this connection") from self._refusal
        return self._layer

    # ---- closing -----------------------------------------------------------------------------

    def unwrap(self) -> Any:
        """End TLS in both directions: send close_notify and wait for the peer's.

        Returns a socket as ssl.SSLSocket.unwrap does.  Once the kernel has the connection that is
        this socket itself, and nothing more can be sent over it.
        """
        if self._layer is None or self._sslobj is None:  # the latter when it is closed
            return super().unwrap()
        with SSLErrors(writing=True):
            closing.end_sending(self._layer)
        with SSLErrors(writing=False):
            try:
                closing.await_end(self._layer)
            except closing.UnreadData as e:
                raise SSLUnreadData(ssl.SSL_ERROR_SSL, str(e)) from None
        return self

    def shutdown(self, how: int, /) -> None:
        """As socket.shutdown; before the sending half ends, close_notify is sent."""
        if self._layer is None:
            super().shutdown(how)
            return
        try:
            closing.before_shutdown(self._layer, how, self.gettimeout() or self.close_timeout)
        finally:
            socket.socket.shutdown(self, how)

    def detach(self) -> int:
        """As KTLSSocket.detach."""
        if self._layer is None:
            return super().detach()
        self._layer.check_detachable()
        fd = super().detach()
        self._layer.forget()
        return fd

    def _real_close(self) -> None:
        layer = self._layer
        if layer is None:
            super()._real_close()  # type: ignore[misc]
            return
        try:
            closing.close(layer, self.gettimeout() or self.close_timeout)
        except TimeoutError:
            # Nothing new to a program that cleans up after a send that timed out: that error is
            # the one it should see.
            if not layer.timed_out:
                raise
        finally:
            layer.fd = -1
            self._sslobj = None
            socket.socket._real_close(self)  # type: ignore[attr-defined]  # noqa: SLF001
            layer.forget()

    def __del__(self) -> None:
        if self._layer is None:
            super().__del__()  # type: ignore[misc]  # of socket.socket, which closes it
        elif self.fileno() >= 0 and not sys.is_finalizing():
            try:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=1)
            finally:  # the warning may be an error
                with contextlib.suppress(OSError, Error):
                    self.close()


class _RequiredSSLSocket(SSLSocket):
    """The same, where the kernel must have every connection."""

    require = True


def requires_kernel(context: ssl.SSLContext) -> bool:
    """Whether ``wrap_context(context, require=True)`` was called."""
    return issubclass(context.sslsocket_class, SSLSocket) and context.sslsocket_class.require


# ---- wrap_context ----------------------------------------------------------------------------


def wrap_context(context: ssl.SSLContext, require: bool = False) -> ssl.SSLContext:
    """Have ``context`` make sockets that go to the kernel after their handshake.

    Returns the context, for use in the same line.  From now on ``context.wrap_socket`` gives
    ``pyktls.SSLSocket`` objects.  A connection that the kernel cannot take stays with OpenSSL, and
    its ``ktls.refusal`` is the error that says why; with ``require`` it is closed, and the error
    raised by the handshake.  Where the kernel can send and not receive, it sends and OpenSSL
    receives (not with ``require``): ``ktls.tx`` is true then, and ``ktls.refusal`` is there too.
    ``wrap_bio`` (asyncio's TLS) is not concerned.

    Raises InvalidType for anything but an ssl.SSLContext, InvalidValue for one that has a
    ``sslsocket_class`` of its own or hands its connections on (truststore's), and with ``require``
    for one with another ``wrap_socket`` than ssl's, Unavailable where gevent or eventlet has
    replaced Python's sockets, and with ``require`` what ``pyktls.watch`` raises.
    """
    if not isinstance(context, ssl.SSLContext):
        raise InvalidType(f"an ssl.SSLContext is needed, not {type(context).__name__}")
    check_modules()
    if keeps_another(context):
        kind = type(context)
        raise InvalidValue(
            f"the context, a {kind.__module__}.{kind.__qualname__}, has another one make its "
            "connections, and checks them itself: sslsocket_class would not be asked for"
        )
    present = context.sslsocket_class
    if present not in (ssl.SSLSocket, SSLSocket, _RequiredSSLSocket):
        raise InvalidValue(
            f"the context has a sslsocket_class of its own, {present.__name__}: derive that from "
            "pyktls.SSLSocket, and call pyktls.watch"
        )
    if require and overrides(context, "wrap_socket"):
        raise InvalidValue(
            f"{type(context).__qualname__}.wrap_socket may make other sockets than sslsocket_class "
            "says, so that kernel TLS cannot be required of them"
        )
    try:
        watch(context)
    except (HandoffRefused, Unavailable):
        if require:
            raise
        # Each connection will say why it cannot be switched.
    context.sslsocket_class = _RequiredSSLSocket if require else SSLSocket
    return context
