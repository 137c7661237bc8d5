"""The portable engine: what CPython's ``ssl`` module tells in Python, and no call into OpenSSL.

For interpreters whose OpenSSL is linked in and hidden, where the native engine cannot reach it.
Three sources together give what the native engine sees:

* ``SSLContext._msg_callback`` (CPython 3.8 and later, undocumented there: "a debugging hook") is
  called for each record header and each handshake message, in order.  It gives the counts, the
  randoms, and what the hellos agreed on.
* the key log (keylog.py) gives the secrets.  Before a header is counted the log is looked at: a new
  traffic secret that has come since the header before is the change of keys, exactly there.
* the kernel's count of the connection's bytes (moved_bytes.py) is the other column of the ledger,
  for OpenSSL's own count of them cannot be asked.  Its starting point is taken at the first event:
  when we send first, nothing has gone out yet; when the peer does, OpenSSL has read five bytes.

So a record boundary is proved here by the same arithmetic as in the native engine.  Where the
kernel does not count (another system than Linux, a socket that is not TCP) it cannot be proved, and
the connection is refused.

What is known of a connection hangs on its ``SSLSocket``, and goes with it.  Secrets are held as
bytearrays and overwritten; CPython's own copies of them, and OpenSSL's, are out of reach.

The price against the native engine is a Python call for each record while OpenSSL does the work,
and ``leave``: OpenSSL cannot be told that the connection has ended well.
"""

from __future__ import annotations

import ssl
import weakref
from typing import TYPE_CHECKING

from pyktls.ciphers import TLS_1_3
from pyktls.errors import HandoffRefused, Unavailable
from pyktls.protocol import (
    ALERT,
    APPLICATION_DATA,
    CHANGE_CIPHER_SPEC,
    CLIENT_HELLO,
    CLOSE_NOTIFY,
    HANDSHAKE,
    KEY_UPDATE,
    SERVER_HELLO,
    USER_CANCELED,
    VERSION_NAMES,
    WARNING,
    Direction,
)
from pyktls.running_system import system

from .evidence import Evidence, Half, refusals, session_from
from .hellos import UPDATE_REQUESTED, Hellos
from .keylog import CLIENT_TRAFFIC_SECRET, MASTER_SECRET, KeyLog, Secrets
from .moved_bytes import counts_here, moved_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from pyktls.session import Session

__all__ = ["check", "counters", "extract", "leave", "watch", "why_not"]

# What the message callback is called for (SSL_CTX_set_msg_callback(3), RFC 8446 section 5.1).
_RECORD_HEADER = 256
_INNER_CONTENT_TYPE = 257

_HEADER_SIZE = 5
_TLS_1_3_OVERHEAD = 17  # inner content type and tag
_SENT, _RECEIVED = 1, 2

_VERSIONS = {"TLSv1": 0x0301, "TLSv1.1": 0x0302, **{n: v for v, n in VERSION_NAMES.items()}}

#: Where a connection's state hangs on its SSLSocket.
_STATE = "_pyktls_portable"


def why_not() -> str | None:
    """None if this engine works in this interpreter, else the reason why it does not."""
    for name in ("_msg_callback", "keylog_filename"):
        if not hasattr(ssl.SSLContext, name):
            return f"ssl.SSLContext has no {name} here"
    if not counts_here():
        return "this kernel does not count a connection's bytes (TCP_INFO of Linux 4.1 and later)"
    return None


def check() -> None:
    """Raise Unavailable if this engine does not work in this interpreter."""
    reason = why_not()
    if reason is not None:
        raise Unavailable(f"the portable engine does not work here: {reason}")


# ---- the state of a connection ---------------------------------------------------------------


class _Counted(Half):
    """One direction, with what shows that no change of keys was missed."""

    __slots__ = ("key_updates", "secrets")

    def __init__(self) -> None:
        super().__init__()
        self.secrets = 0  # traffic secrets since the handshake's end, the first included
        self.key_updates = 0


class _State:
    """What is known of one connection."""

    def __init__(self) -> None:
        self.watch: _Watch | None = None
        self.hellos = Hellos()
        self.logged = Secrets()
        self.read = _Counted()
        self.write = _Counted()
        self.master = bytearray()
        #: The kernel's counts where TLS began: bytes written, bytes read.
        self.begin: tuple[int, int] | None = None
        self.begun = False
        self.last_read_length = 0
        self.shutdown = 0
        self.fatal_alert = ""
        self.key_update_due = False
        self.server = False
        #: An event was not dealt with to its end: the counts mean nothing.
        self.broken = False

    def __del__(self) -> None:
        for buffer in (self.master, self.read.secret, self.write.secret):
            buffer[:] = bytes(len(buffer))

    def register(self) -> None:
        """Ask the key log for the lines of this connection, once it has a name."""
        if self.watch is not None and self.hellos.client_random:
            self.watch.log.register(self.hellos.client_random, self.logged)

    def take_secrets(self) -> None:
        """Deal with the lines that were logged since the last record."""
        if self.watch is None or not self.watch.log.harvest():
            self.broken = True
            return
        while self.logged.lines:
            label, secret = self.logged.lines.popleft()
            if label == MASTER_SECRET:
                self.master[:] = bytes(len(self.master))
                self.master = secret
                continue
            by_client = label.startswith(CLIENT_TRAFFIC_SECRET)
            half = self.read if by_client == self.server else self.write
            half.wipe()
            half.secret = secret
            half.secrets += 1
            half.sequence = 0
            half.handshake_bytes = 0
            half.live = True

    def on_header(self, half: _Counted, header: bytes) -> None:
        """Count a record.  The rules are those of ``openssl_tap.c``."""
        self.take_secrets()
        if len(header) != _HEADER_SIZE:  # an SSLv2 ClientHello
            self.broken = True
            return
        length = int.from_bytes(header[3:], "big")
        half.record_bytes += _HEADER_SIZE + length
        if half is self.read:
            self.last_read_length = length
        if self.hellos.version == TLS_1_3:
            # A ChangeCipherSpec record is only there for middleboxes (RFC 8446 appendix D.4).
            if half.live and header[0] == APPLICATION_DATA:
                half.sequence += 1
        elif header[0] == CHANGE_CIPHER_SPEC:
            half.sequence = 0
            half.live = True
        elif half.live:
            half.sequence += 1

    def on_message(self, half: _Counted, message: bytes) -> None:
        """Look at a handshake message."""
        reading = half is self.read
        if self.hellos.version == TLS_1_3 and reading and half.live:
            half.handshake_bytes -= len(message)
        self.hellos.take(message)
        kind = message[0] if message else None
        if kind == CLIENT_HELLO:
            self.server = reading
            # A renegotiation, or its attempt: the old secret does not go with the new randoms.
            self.master[:] = bytes(len(self.master))
            self.master = bytearray()
            self.register()
        elif kind == SERVER_HELLO and self.hellos.version == TLS_1_3:
            for each in (self.read, self.write):
                # A ChangeCipherSpec that came before the version was known begins nothing.
                each.live = bool(each.secret)
        elif kind == KEY_UPDATE and self.hellos.version == TLS_1_3:
            half.key_updates += 1
            if reading:
                self.key_update_due |= message[4:5] == bytes((UPDATE_REQUESTED,))
            else:
                self.key_update_due = False

    def on_inner_type(self, half: _Counted, inner_type: bytes) -> None:
        """Hold the bytes of handshake records against the messages that they make (TLS 1.3).

        A message may begin in one record and end in a later one; the kernel must not take over in
        between.
        """
        if half is self.read and half.live and inner_type == bytes((HANDSHAKE,)):
            half.handshake_bytes += self.last_read_length - _TLS_1_3_OVERHEAD

    def on_alert(self, half: _Counted, alert: bytes) -> None:
        """Note how the connection ends."""
        reading = half is self.read
        level, description = alert[:2]
        if description == CLOSE_NOTIFY:
            self.shutdown |= _RECEIVED if reading else _SENT
        elif level != WARNING or (
            # RFC 8446 section 6: the level says nothing any more.
            self.hellos.version == TLS_1_3 and description != USER_CANCELED
        ):
            self.fatal_alert = "received" if reading else "sent"


_DEALING = {
    _RECORD_HEADER: _State.on_header,
    HANDSHAKE: _State.on_message,
    ALERT: _State.on_alert,
    _INNER_CONTENT_TYPE: _State.on_inner_type,
}


class _Watch:
    """What is on a watched context: the key log, and the message callback."""

    def __init__(self, log: KeyLog, chained: Callable[..., object] | None) -> None:
        self.log = log
        self.chained = chained

    def __call__(
        self,
        conn: Any,
        direction: str,
        version: int,
        content_type: int,
        msg_type: int,
        data: bytes,
    ) -> None:
        """Be ``_msg_callback``."""
        # None if the SSLSocket is gone.  An SSLObject's bytes are its owner's affair.
        if isinstance(conn, ssl.SSLSocket):
            self.see(conn, direction, content_type, data)
        if self.chained is not None:
            self.chained(conn, direction, version, content_type, msg_type, data)

    def see(self, conn: ssl.SSLSocket, direction: str, content_type: int, data: bytes) -> None:
        """Note one event.  What goes wrong here must not go wrong for the connection.

        An event that is missed altogether, because a signal handler raised, leaves the ledger open.
        """
        state: _State | None = conn.__dict__.get(_STATE)
        if state is None:
            state = conn.__dict__[_STATE] = _State()
        half = state.write if direction == "write" else state.read
        try:
            if state.watch is not self:
                # The first event, or sni_callback has changed the context and thereby the log.
                state.watch = self
                state.register()
            if not state.begun:
                state.begun = True
                if content_type == _RECORD_HEADER:
                    state.begin = _where_tls_begins(conn, reading=half is state.read)
            dealing = _DEALING.get(content_type)
            if dealing is not None:
                dealing(state, half, data)
        except BaseException as e:
            state.broken = True
            if not isinstance(e, Exception):
                raise


def _where_tls_begins(sock: ssl.SSLSocket, *, reading: bool) -> tuple[int, int] | None:
    moved = moved_bytes(sock)
    if moved is None:
        return None
    # OpenSSL tells of a record to be sent before it writes, of one received after five bytes.
    return moved[0], moved[1] - (_HEADER_SIZE if reading else 0)


_watches: weakref.WeakKeyDictionary[ssl.SSLContext, _Watch] = weakref.WeakKeyDictionary()


# ---- watch and extract -----------------------------------------------------------------------


def watch(context: ssl.SSLContext, log: KeyLog) -> None:
    """Begin to watch the connections made from ``context``, whose key log is ``log``.

    Again is harmless.  A ``_msg_callback`` that is there already goes on being called.
    """
    check()
    present = context._msg_callback  # type: ignore[attr-defined]  # noqa: SLF001
    known = _watches.get(context)
    if known is not None and present is known:
        return
    known = _Watch(log, present)
    context._msg_callback = known  # type: ignore[attr-defined]  # noqa: SLF001
    _watches[context] = known


def _state_of(ssl_sock: ssl.SSLSocket) -> _State | None:
    state = ssl_sock.__dict__.get(_STATE)
    return state if isinstance(state, _State) else None


def _evidence(ssl_sock: ssl.SSLSocket, state: _State) -> Evidence:
    hellos, context = state.hellos, ssl_sock.context
    known = _watches.get(context)
    version = ssl_sock.version()
    compression = ssl_sock.compression()
    seen = Evidence(
        watched=known is state.watch and bool(hellos.client_random and hellos.server_random),
        keylog_replaced=known is None or context.keylog_filename != known.log.path,
        version=hellos.version if version is None else _VERSIONS.get(version, 0),
        suite=hellos.suite,
        server=ssl_sock.server_side,
        in_init=version is None,
        shutdown=state.shutdown,
        pending=ssl_sock.pending(),
        key_update_due=state.key_update_due,
        compressed=compression is not None or hellos.compression != 0,
        early_data=hellos.early_data,
        max_fragment=hellos.max_fragment,
        encrypt_then_mac=hellos.encrypt_then_mac,
        master=bytearray(state.master),
        client_random=hellos.client_random,
        server_random=hellos.server_random,
    )
    for own, theirs in ((state.read, seen.read), (state.write, seen.write)):
        theirs.sequence = own.sequence
        theirs.record_bytes = own.record_bytes
        theirs.handshake_bytes = own.handshake_bytes
        theirs.live = own.live
        theirs.secret = bytearray(own.secret)
    return seen


def _more_refusals(ssl_sock: ssl.SSLSocket, state: _State, seen: Evidence) -> Iterator[str]:
    """What the native engine has no need to ask, or asks of OpenSSL.

    The ledger's column of the wire is filled in here.
    """
    if state.fatal_alert:
        yield f"a fatal alert has been {state.fatal_alert}: the connection is dead"
    if seen.in_init or seen.shutdown or not seen.watched:
        return  # there are better words for it
    if state.broken:
        yield "an event of the connection was not seen to its end, so its records are not counted"
    if state.logged.ambiguous:
        yield (
            "both ends of this connection use the same context, and its key log does not tell "
            "them apart: use a context for each side"
        )
    moved = moved_bytes(ssl_sock) if state.begin is not None else None
    if moved is None or state.begin is None:
        yield (
            "the kernel does not count the bytes of this connection (it is no TCP connection, or "
            "was not established when TLS began), so nobody can tell whether OpenSSL holds a part "
            "of a record"
        )
        return
    seen.write.moved_bytes = moved[0] - state.begin[0]
    seen.read.moved_bytes = moved[1] - state.begin[1]
    if seen.version == TLS_1_3:
        for half in (state.read, state.write):
            if half.live and half.secrets != 1 + half.key_updates:
                yield "a traffic secret was not seen: its line in the key log was lost"


def extract(ssl_sock: ssl.SSLSocket, *, drained: bool = False) -> Session:
    """The session of a connected ``SSLSocket``.

    With ``drained`` the plaintext that OpenSSL still holds is the caller's affair.  Raises
    HandoffRefused with the first reason against it; nothing is changed.
    """
    check()
    state = _state_of(ssl_sock)
    if state is None:
        state = _State()  # nothing was seen, which is what the refusal will say
    else:
        try:
            state.take_secrets()
        except OSError:
            state.broken = True
    seen = _evidence(ssl_sock, state)
    try:
        _ask_kernel(ssl_sock, seen)
        for reason in _more_refusals(ssl_sock, state, seen):
            raise HandoffRefused(reason)
        for reason in refusals(seen, drained=drained):
            raise HandoffRefused(reason)
        return session_from(seen, "portable")
    finally:
        seen.wipe()


def _ask_kernel(ssl_sock: ssl.SSLSocket, seen: Evidence) -> None:
    """Whether OpenSSL has switched the connection itself: it cannot be asked, the kernel can."""
    switched = set(system.directions(ssl_sock.fileno()))
    seen.ktls_send, seen.ktls_recv = Direction.TX in switched, Direction.RX in switched


def counters(ssl_sock: ssl.SSLSocket) -> Callable[[], tuple[int, ...]]:
    """What gives numbers that change whenever OpenSSL sends or receives anything.

    The last two only as long as the socket has its descriptor.
    """
    state = _state_of(ssl_sock)
    write, read = (_Counted(), _Counted()) if state is None else (state.write, state.read)
    reference = weakref.ref(ssl_sock)

    def progress() -> tuple[int, ...]:
        counted = write.record_bytes, read.record_bytes
        # Less than a header is not told of, but is gone from the socket.
        sock = reference()
        moved = moved_bytes(sock) if sock is not None and sock.fileno() >= 0 else None
        return counted if moved is None else (*counted, *moved)

    return progress


def leave(ssl_sock: ssl.SSLSocket) -> None:
    """Forget the connection, without a byte on the wire."""
    state = _state_of(ssl_sock)
    if state is not None:
        del ssl_sock.__dict__[_STATE]
