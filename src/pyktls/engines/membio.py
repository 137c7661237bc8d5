"""The membio engine: a handshake over memory buffers, with nothing but documented calls.

``MemoryBIOHandshake`` sits between a TCP socket and a TLS object that does no I/O itself: an
``ssl.SSLObject`` over ``ssl.MemoryBIO``, or a pyOpenSSL ``Connection(context, None)``.  It reads
the socket a record at a time, first the five bytes of the header, then exactly the rest.  So the
boundary of records, which the other engines have to prove, is here by construction: when the
handshake is done, whatever the peer has sent behind it is still in the kernel's queue.

*The numbers* are counted on the wire.  In TLS 1.3 both directions begin at 0 when the handshake
call returns, but for what a server writes in that very step: the session tickets, each a record of
outer type 23 under its application keys.  In TLS 1.2 they count the records behind the
ChangeCipherSpec.

*The secrets* come from the key log (keylog.py for ``ssl``, ``Context.set_keylog_callback`` of
pyOpenSSL), *the randoms and the suite* from the hellos, which are not encrypted.

*Afterwards* the TLS object can still be brought what comes in memory: a client's session tickets
(resumption.py).  What it would say to them goes nowhere.

What cannot be seen is what TLS 1.3 encrypts, the EncryptedExtensions.  Where it matters the
client's offer is taken for the agreement: a limit on records (max_fragment_length), early data.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import sys
import time
import weakref
from typing import TYPE_CHECKING

from pyktls import arguments
from pyktls.ciphers import TLS_1_3
from pyktls.errors import HandoffRefused, InvalidType, InvalidValue, Unavailable
from pyktls.key_schedule import wipe
from pyktls.protocol import APPLICATION_DATA, CHANGE_CIPHER_SPEC, HANDSHAKE, VERSION_NAMES

from .evidence import Evidence, Half, refusals, session_from
from .hellos import Hellos
from .keylog import CLIENT_TRAFFIC_SECRET, MASTER_SECRET, SERVER_TRAFFIC_SECRET, KeyLog, Secrets

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from pyktls.session import Session

    class _Library(Protocol):
        """What the driver needs of a TLS object that does no I/O."""

        secrets: Secrets
        context: Any

        @property
        def session(self) -> Any: ...
        def works(self) -> bool: ...
        def feed(self, records: bytes) -> bool: ...
        def leave(self) -> None: ...
        def put(self, data: bytes | bytearray) -> None: ...
        def end(self) -> None: ...
        def take(self) -> bytes: ...
        def step(self) -> bool: ...
        def register(self, client_random: bytes) -> None: ...
        def collect(self) -> None: ...
        def pending(self) -> int: ...
        def unsent(self) -> int: ...
        def compressed(self) -> bool: ...
        def alpn(self) -> str | None: ...
        def certificate(self) -> tuple[Any, bytes | None]: ...


__all__ = ["MemoryBIOHandshake", "is_pyopenssl_context", "reader_of", "watch_pyopenssl"]

_HEADER = 5
_TYPES = range(20, 25)
_LONGEST_BODY = 2**14 + 2048  # RFC 5246 section 6.2.3; TLS 1.3 allows less
_LONGEST_HELLO = 2**17  # more is no hello that OpenSSL takes
_LABELS = (
    MASTER_SECRET,
    CLIENT_TRAFFIC_SECRET + b"0",
    SERVER_TRAFFIC_SECRET + b"0",
)


# ---- the two libraries -----------------------------------------------------------------------


class _Ssl:
    """An ``ssl.SSLObject``."""

    def __init__(
        self,
        context: ssl.SSLContext,
        log: KeyLog,
        *,
        server_side: bool,
        server_hostname: str | None,
        session: ssl.SSLSession | None,
    ) -> None:
        if context.check_hostname and not server_side and not server_hostname:
            # wrap_socket asks this; wrap_bio does not, and checks no name.
            raise InvalidValue("check_hostname requires server_hostname")
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        try:
            self.object = context.wrap_bio(
                self.incoming,
                self.outgoing,
                server_side=server_side,
                server_hostname=server_hostname,
                session=session,
            )
        except (ValueError, TypeError, ssl.SSLError) as e:
            raise InvalidValue(f"the context cannot make such a connection: {e}") from e
        self.context = context
        self.log = log
        self.secrets = Secrets()

    @property
    def session(self) -> ssl.SSLSession | None:
        return self.object.session

    def works(self) -> bool:
        return True

    def feed(self, records: bytes) -> bool:
        self.incoming.write(records)
        try:
            self.object.read(1)
        except ssl.SSLWantReadError:
            return True  # all is taken in, and then there is nothing more to read
        except ssl.SSLError:
            pass
        return False

    def leave(self) -> None:
        """Nothing: what the ssl module gives as a session is a copy."""

    def put(self, data: bytes | bytearray) -> None:
        self.incoming.write(data)

    def end(self) -> None:
        self.incoming.write_eof()

    def take(self) -> bytes:
        return self.outgoing.read()

    def step(self) -> bool:
        try:
            self.object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def register(self, client_random: bytes) -> None:
        self.log.register(client_random, self.secrets)

    def collect(self) -> None:
        if not self.log.harvest():
            self.secrets.ambiguous = True

    def pending(self) -> int:
        return self.object.pending() + self.incoming.pending

    def unsent(self) -> int:
        return self.outgoing.pending

    def compressed(self) -> bool:
        return self.object.compression() is not None

    def alpn(self) -> str | None:
        return self.object.selected_alpn_protocol()

    def certificate(self) -> tuple[Any, bytes | None]:
        return self.object.getpeercert(), self.object.getpeercert(binary_form=True)


class _PyOpenSSL:
    """An ``OpenSSL.SSL.Connection`` without a socket."""

    def __init__(
        self, context: Any, *, server_side: bool, server_hostname: str | None, session: Any
    ) -> None:
        self.module = sys.modules["OpenSSL.SSL"]
        self.context = context
        self.object = self.module.Connection(context, None)
        self.secrets = Secrets()
        _of_connection[self.object] = self.secrets
        if server_side:
            self.object.set_accept_state()
        else:
            self.object.set_connect_state()
            if server_hostname is not None:
                self.object.set_tlsext_host_name(server_hostname.encode("idna"))
            if session is not None:
                self.object.set_session(session)

    @property
    def session(self) -> Any:
        return self.object.get_session()

    def works(self) -> bool:
        return True

    def feed(self, records: bytes) -> bool:
        self.object.bio_write(records)
        # A connection that has seen close_notify reads nothing.
        self.object.set_shutdown(self.module.SENT_SHUTDOWN)
        try:
            self.object.recv(1)
        except self.module.WantReadError:
            return True
        except self.module.Error:
            pass
        finally:
            self.leave()
        return False

    def leave(self) -> None:
        """Say that it has ended well: else OpenSSL makes its session useless when it goes."""
        self.object.set_shutdown(self.module.SENT_SHUTDOWN | self.module.RECEIVED_SHUTDOWN)

    def put(self, data: bytes | bytearray) -> None:
        self.object.bio_write(bytes(data))

    def end(self) -> None:
        self.object.bio_shutdown()

    def take(self) -> bytes:
        parts = []
        with contextlib.suppress(self.module.WantReadError):
            while True:
                parts.append(self.object.bio_read(65536))
        return b"".join(parts)

    def step(self) -> bool:
        try:
            self.object.do_handshake()
        except self.module.WantReadError:
            return False
        return True

    def register(self, client_random: bytes) -> None:
        """Not needed: the callback says whose line it is."""

    def collect(self) -> None:
        """Not needed: the callback has collected them."""

    def pending(self) -> int:
        return int(self.object.pending())

    def unsent(self) -> int:
        return 0  # it cannot be asked without taking it

    def compressed(self) -> bool:
        return False  # its OpenSSL is built without

    def alpn(self) -> str | None:
        return self.object.get_alpn_proto_negotiated().decode("ascii", "replace") or None

    def certificate(self) -> tuple[Any, bytes | None]:
        certificate = self.object.get_peer_certificate()
        if certificate is None:
            return None, None
        crypto = sys.modules["OpenSSL.crypto"]
        return {}, crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)


_of_connection: weakref.WeakKeyDictionary[Any, Secrets] = weakref.WeakKeyDictionary()


def is_pyopenssl_context(context: object) -> bool:
    """Whether it is an ``OpenSSL.SSL.Context``; pyOpenSSL is not imported to find out."""
    module = sys.modules.get("OpenSSL.SSL")
    return module is not None and isinstance(context, module.Context)


def _on_keylog(connection: Any, line: bytes) -> None:
    secrets = _of_connection.get(connection)
    fields = line.split(b" ")
    if secrets is not None and len(fields) == 3 and fields[0] in _LABELS:
        try:
            secret = bytearray.fromhex(fields[2].decode("ascii"))
        except ValueError:
            return
        secrets.lines.append((fields[0], secret))


def watch_pyopenssl(context: Any) -> None:
    """Begin to watch the connections of an ``OpenSSL.SSL.Context``.

    Raises HandoffRefused for one that has a keylog callback of its own, of which OpenSSL has only
    one, and for one that has made a connection; Unavailable where pyOpenSSL has no keylog callback.
    """
    # Its own attribute; where it should be missing, the callback in place would be replaced.
    if getattr(context, "_keylog_callback", None) is not None:
        raise HandoffRefused(
            "the context has a keylog callback, whose place in OpenSSL pyktls needs: make the "
            "context without set_keylog_callback"
        )
    try:
        context.set_keylog_callback(_on_keylog)
    except (AttributeError, NotImplementedError) as e:
        raise Unavailable("this pyOpenSSL has no Context.set_keylog_callback") from e
    except (RuntimeError, ValueError) as e:
        raise HandoffRefused(
            "the context has made a connection already: call pyktls.watch before"
        ) from e


# ---- the wire --------------------------------------------------------------------------------


class _Direction:
    """What passed in one direction, and what it says."""

    def __init__(self, hellos: Hellos, on_hello: Callable[[], None]) -> None:
        self.hellos = hellos
        self.on_hello = on_hello
        self.half = Half()
        self.protected_records = 0  # outer type 23, for TLS 1.3
        self.bytes = 0
        self._messages = bytearray()
        self._in_the_clear = True

    def record(self, record: bytes | bytearray | memoryview) -> None:
        """Count one whole record."""
        kind = record[0]
        self.bytes += len(record)
        if kind == CHANGE_CIPHER_SPEC and self.hellos.version != TLS_1_3:
            self.half.sequence = 0
            self.half.live = True
            self._in_the_clear = False
        elif self.half.live:
            self.half.sequence += 1
        if kind == APPLICATION_DATA:
            self.protected_records += 1
            self._in_the_clear = False
        if kind == HANDSHAKE and self._in_the_clear:
            self._messages += record[_HEADER:]
            self._look()

    def _look(self) -> None:
        """Show the whole messages to ``hellos``; a message may fill several records."""
        while len(self._messages) >= 4:
            size = 4 + int.from_bytes(self._messages[1:4], "big")
            if len(self._messages) < size:
                if size > _LONGEST_HELLO:
                    self._in_the_clear = False
                return
            self.hellos.take(bytes(self._messages[:size]))
            self.on_hello()
            del self._messages[:size]


class MemoryBIOHandshake:
    """A TLS handshake on a TCP socket, without a TLS socket; then the ``Session`` of it.

    ``sock`` is a connected TCP socket on which TLS is to begin; it stays a plain socket and is not
    closed here.  ``context`` is an ``ssl.SSLContext`` or an ``OpenSSL.SSL.Context``;
    ``pyktls.watch(context, engine="membio")`` prepares it, otherwise the first handshake does,
    which must then be before the context is used for anything else in another thread.
    ``server_side``, ``server_hostname`` and ``session`` (to resume: an ``ssl.SSLSession``, for
    pyOpenSSL an ``OpenSSL.SSL.Session``) are those of ``ssl.SSLContext.wrap_bio``.  ::

        handshake = pyktls.MemoryBIOHandshake(sock, context, server_hostname=name)
        handshake.do_handshake()
        sock = pyktls.offload(handshake)          # or session = handshake.session()

    With pyOpenSSL nobody compares ``server_hostname`` with the certificate, as pyOpenSSL does not:
    look at ``tls.get_peer_certificate()`` before going on.

    ``tls`` is the ``ssl.SSLObject`` or the ``OpenSSL.SSL.Connection``, to be asked about the
    connection.  Whoever sends or receives through it makes the session worthless.

    Raises InvalidType and InvalidValue for wrong arguments, HandoffRefused for a context that
    cannot be watched, Unavailable where there is no key log.
    """

    def __init__(
        self,
        sock: socket.socket,
        context: Any,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        session: Any = None,
    ) -> None:
        if not isinstance(sock, socket.socket):
            raise InvalidType(f"sock must be a socket, not {type(sock).__name__}")
        if isinstance(sock, ssl.SSLSocket):
            raise InvalidType("sock must be a plain socket, not an ssl.SSLSocket")
        if sock.fileno() < 0:
            raise InvalidValue("the socket is closed")
        if sock.type != socket.SOCK_STREAM:
            raise InvalidValue("the socket is not a stream socket")
        server_hostname = arguments.hostname(server_hostname)
        if not (session is None or _is_session(session)):
            raise InvalidType(f"session must be an ssl.SSLSession, not {type(session).__name__}")
        self._sock = sock
        self._server = bool(server_side)
        self._library = _connect(
            context, server_side=self._server, server_hostname=server_hostname, session=session
        )
        self._hellos = Hellos()
        self._in = _Direction(self._hellos, self._on_hello)
        self._out = _Direction(self._hellos, self._on_hello)
        self._incoming = bytearray()  # a part of a record
        self._unsent = memoryview(b"")
        self._begun = self._ended = self._complete = self._left = False
        self._failure: Exception | None = None
        self._protected_before = 0

    # ---- the handshake -----------------------------------------------------------------------

    def do_handshake(self) -> None:
        """Carry the handshake to its end, or as far as the socket goes.

        On a blocking socket it returns when the handshake is done.  With a timeout it raises
        TimeoutError when that has passed for the whole of it.  On a non-blocking socket it raises
        ``ssl.SSLWantReadError`` or ``ssl.SSLWantWriteError``: call it again when the socket can be
        read or written.  It may be called again after a TimeoutError too.  When it is done it
        returns at once.

        What the TLS library finds wrong it raises (``ssl.SSLError``, ``OpenSSL.SSL.Error``), after
        its alert has been sent as far as the socket takes it, and again at each later call.
        """
        if self._sock.fileno() < 0:
            raise HandoffRefused("the socket is closed")
        timeout = self._sock.gettimeout()
        deadline = None if not timeout else time.monotonic() + timeout
        if self._failure is not None:
            raise self._failure
        if not self._begun:
            self._begun = True
            self._step()
        self._flush(deadline)
        while not self._complete:
            self._read_record(deadline)
            self._step()
            self._flush(deadline)

    @property
    def complete(self) -> bool:
        """Whether the handshake is done and all of it is sent."""
        return self._complete and not self._unsent

    def _step(self) -> None:
        """Let the TLS library go on with what it has been given."""
        self._protected_before = self._out.protected_records
        try:
            done = self._library.step()
        except Exception as e:
            self._failure = e
            self._collect_output()
            with contextlib.suppress(OSError, ssl.SSLError):
                self._flush(time.monotonic())
            raise
        self._collect_output()
        self._complete = done
        if self._ended and not done:
            self._failure = ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the peer ended the handshake")
            raise self._failure

    def _collect_output(self) -> None:
        data = self._library.take()
        at = 0
        while at + _HEADER <= len(data):
            end = at + _HEADER + int.from_bytes(data[at + 3 : at + _HEADER], "big")
            self._out.record(data[at:end])
            at = end
        self._unsent = memoryview(bytes(self._unsent) + data)

    def _on_hello(self) -> None:
        self._library.register(self._hellos.client_random)

    # ---- the socket --------------------------------------------------------------------------

    def _wait(self, event: int, deadline: float | None) -> None:
        """Wait until the socket is ready, if it has a timeout; else its own calls wait, or not."""
        if deadline is None:
            return
        poll = select.poll()
        poll.register(self._sock, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError("the handshake operation timed out")

    def _flush(self, deadline: float | None) -> None:
        while self._unsent:
            self._wait(select.POLLOUT, deadline)
            try:
                sent = self._sock.send(self._unsent)
            except BlockingIOError:
                raise ssl.SSLWantWriteError(
                    ssl.SSL_ERROR_WANT_WRITE, "the handshake needs the socket to be writable"
                ) from None
            self._unsent = self._unsent[sent:]

    def _read_record(self, deadline: float | None) -> None:
        """Read the rest of one record, and not a byte more, and give it to the TLS library."""
        if not self._read_up_to(_HEADER, deadline):
            return
        kind, major = self._incoming[0], self._incoming[1]
        length = int.from_bytes(self._incoming[3:_HEADER], "big")
        if kind not in _TYPES or major != 3 or length > _LONGEST_BODY:
            # No TLS, or not any more: for the library to say so.
            self._end_input()
            return
        if not self._read_up_to(_HEADER + length, deadline):
            return
        record, self._incoming = self._incoming, bytearray()
        self._in.record(record)
        self._library.put(record)

    def _read_up_to(self, size: int, deadline: float | None) -> bool:
        """Have ``size`` bytes in ``_incoming``; False if the stream has ended before."""
        while len(self._incoming) < size:
            self._wait(select.POLLIN, deadline)
            try:
                piece = self._sock.recv(size - len(self._incoming))
            except BlockingIOError:
                raise ssl.SSLWantReadError(
                    ssl.SSL_ERROR_WANT_READ, "the handshake needs the socket to be readable"
                ) from None
            if not piece:
                self._end_input()
                return False
            self._incoming += piece
        return True

    def _end_input(self) -> None:
        """Give the TLS library what there is, and say that there is no more."""
        self._library.put(self._incoming)
        self._incoming.clear()
        self._library.end()
        self._ended = True

    # ---- what came of it ---------------------------------------------------------------------

    def session(self) -> Session:
        """The keys, IVs and sequence numbers of both directions; also ``pyktls.extract``.

        It may be called again: the secrets stay here until the object goes.  Raises HandoffRefused
        before the handshake is complete, and for what kernel TLS cannot carry on.
        """
        if self._left:
            raise HandoffRefused("the connection has been given to the kernel already")
        seen = self._evidence()
        try:
            if self._library.secrets.ambiguous:
                raise HandoffRefused(
                    "both ends of this connection use the same context, and its key log does not "
                    "tell them apart: use a context for each side"
                )
            for reason in refusals(seen, drained=False):
                raise HandoffRefused(reason)
            return session_from(seen, "membio")
        finally:
            seen.wipe()

    def _evidence(self) -> Evidence:
        hellos = self._hellos
        seen = Evidence(
            watched=True,
            version=hellos.version,
            suite=hellos.suite,
            server=self._server,
            in_init=not self.complete,
            pending=self._library.pending() if self._complete else 0,
            compressed=self._library.compressed() or hellos.compression != 0,
            encrypt_then_mac=hellos.encrypt_then_mac,
            max_fragment=hellos.max_fragment,
            client_random=hellos.client_random,
            server_random=hellos.server_random,
        )
        if hellos.version == TLS_1_3:
            seen.max_fragment = hellos.offered_max_fragment
            seen.early_data = hellos.offered_early_data
        self._library.collect()
        for direction, half in ((self._in, seen.read), (self._out, seen.write)):
            half.record_bytes = half.moved_bytes = direction.bytes
            half.sequence = direction.half.sequence
            half.live = direction.half.live
        self._give_secrets(seen)
        return seen

    def _give_secrets(self, seen: Evidence) -> None:
        for label, secret in self._library.secrets.lines:
            if label == MASTER_SECRET:
                wipe(seen.master)
                seen.master = bytearray(secret)
            else:
                by_client = label.startswith(CLIENT_TRAFFIC_SECRET)
                half = seen.read if by_client == self._server else seen.write
                half.wipe()
                half.secret = bytearray(secret)
                half.live = True
                # Of what was sent in the last step a server's records are under this key, a
                # client's are the end of the handshake.
                written = self._out.protected_records - self._protected_before
                half.sequence = written if self._server and half is seen.write else 0

    # ---- what SSLSocket tells too ------------------------------------------------------------

    @property
    def sock(self) -> socket.socket:
        """The TCP socket."""
        return self._sock

    @property
    def tls(self) -> Any:
        """The ``ssl.SSLObject``, or the ``OpenSSL.SSL.Connection``."""
        return self._library.object  # type: ignore[attr-defined]

    def version(self) -> str | None:
        """``"TLSv1.2"`` or ``"TLSv1.3"``, as ssl.SSLSocket.version; None before the end."""
        if not self._complete:
            return None
        return VERSION_NAMES.get(self._hellos.version, f"{self._hellos.version:#06x}")

    def selected_alpn_protocol(self) -> str | None:
        """The protocol that ALPN chose, as ssl.SSLSocket.selected_alpn_protocol."""
        return self._library.alpn() if self._complete else None

    def getpeercert(self, binary_form: bool = False) -> Any:
        """The peer's certificate, as ssl.SSLSocket.getpeercert.

        With pyOpenSSL only the binary form (DER) says anything; the other is an empty dict.  Raises
        InvalidValue before the handshake is done.
        """
        if not self._complete:
            raise InvalidValue("handshake not done yet")
        decoded, der = self._library.certificate()
        return der if binary_form else decoded

    def progress(self) -> tuple[int, ...]:
        """Numbers that change whenever anything passes."""
        pending = self._library.pending() if self._complete else 0
        return self._in.bytes, self._out.bytes, pending, self._library.unsent()

    def leave(self) -> None:
        """Give the connection up: no session any more.  The socket is left as it is."""
        self._left = True
        self._library.secrets.wipe()
        self._library.leave()

    def __repr__(self) -> str:
        side = "server" if self._server else "client"
        state = "complete" if self.complete else "incomplete"
        return f"<MemoryBIOHandshake {side} {state} {self.version() or ''}>".replace(" >", ">")


def reader_of(handshake: MemoryBIOHandshake) -> _Library:
    """Its connection in the TLS library, for what comes after the handshake."""
    return handshake._library  # noqa: SLF001


def _is_session(session: object) -> bool:
    module = sys.modules.get("OpenSSL.SSL")
    pyopenssls = () if module is None else (module.Session,)
    return isinstance(session, (ssl.SSLSession, *pyopenssls))


def _connect(
    context: Any,
    *,
    server_side: bool,
    server_hostname: str | None,
    session: Any,
) -> _Library:
    from .choice import key_log_of, prepare_membio  # noqa: PLC0415  # it imports this module

    if is_pyopenssl_context(context):
        if isinstance(session, ssl.SSLSession):
            raise InvalidValue("session is for an ssl.SSLContext")
        prepare_membio(context)
        return _PyOpenSSL(
            context, server_side=server_side, server_hostname=server_hostname, session=session
        )
    if not isinstance(context, ssl.SSLContext):
        raise InvalidType(
            "context must be an ssl.SSLContext or an OpenSSL.SSL.Context, not "
            f"{type(context).__name__}"
        )
    if not (session is None or isinstance(session, ssl.SSLSession)):
        raise InvalidValue("session is for an OpenSSL.SSL.Context")
    prepare_membio(context)
    return _Ssl(
        context,
        key_log_of(context),
        server_side=server_side,
        server_hostname=server_hostname,
        session=session,
    )
