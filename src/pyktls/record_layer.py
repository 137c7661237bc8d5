"""One connection's records after the switch: what every read and write has to get right.

``RecordLayer`` belongs to a socket (sockets.py, ssl_sockets.py) and works on its descriptor.  As
long as nothing is out of the ordinary a read or a write does not come here at all: ``Channel`` in
_records.pyx, which this class derives from, passes it straight to the kernel.  What plain calls
would get wrong is done here.

*Reading.*  Every read asks the kernel for the record's type.  Data goes to the caller.  Alerts and
handshake messages go to the state machine in post_handshake.py, and the caller's read carries on:
a session ticket is kept for the next connection, a KeyUpdate changes keys, close_notify is the end
of the stream (``b""``), a fatal alert raises ``TLSAlert``.  An end without close_notify raises
``TruncationError``.  Whatever breaks the record layer is final: the error is kept, and every later
read raises it again without asking the kernel, which would block for ever.

*Writing.*  One lock covers everything that is sent, so that a control record never comes between
the parts of a message, and a change of keys never between the records of one send.

*Keys* are changed when the peer asks, when the user does (``update_keys``), and by itself before
so many records have been sent under one key that its cipher would begin to wear out
(record_limit.py).

Closing is in closing.py, files and pipes in file_transfer.py.  Where only one direction was
switched, the other one's records come from OpenSSL and go to it: openssl_directions.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from . import _records, arguments
from .ciphers import TLS_1_2
from .directions import KernelIncoming, KernelOutgoing
from .errors import (
    Error,
    HandoffRefused,
    InvalidType,
    InvalidValue,
    RecordError,
    TLSAlert,
    TruncationError,
    Unavailable,
    syscall_error,
)
from .post_handshake import (
    AlertReceived,
    CloseNotifyReceived,
    KeyUpdateReceived,
    PostHandshake,
    SendWarning,
    TicketReceived,
    Violation,
    alert,
)
from .protocol import ALERT, CLOSE_NOTIFY, FATAL, HANDSHAKE, INTERNAL_ERROR, KEY_UPDATE, WARNING
from .record_errors import (
    BROKEN_RECORD,
    RefusedRecord,
    broken_record,
    concerns_receiving,
    is_gone,
    is_kept,
    passes,
    truncation,
)
from .record_limit import Decision, RecordBudget
from .running_system import system
from .socket_calls import getsockopt, setsockopt

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from _typeshed import ReadableBuffer, WriteableBuffer

    from .directions import Incoming, Outgoing
    from .resumption import Tickets
    from .session import Session

__all__ = ["NO_WAIT", "RecordLayer"]

# A control record is never longer than this, and a handshake message may come in several.
_CONTROL_SIZE = 16384
_LIKE_KEY_UPDATE = bytes((KEY_UPDATE,))
# What one call may be given: no more records than can be counted before it.
_MOST_AT_ONCE = 1 << 30
NO_WAIT = 0.0

_NO_SECRETS = (
    "this process has no traffic secrets: they were not moved with the connection (secrets=True), "
    "or never given"
)
_KERNEL_INCOMING = KernelIncoming()
_KERNEL_OUTGOING = KernelOutgoing()

# Two processes that went on from the same secret would use the same keys from record 0 on.
_FORKED = "after a fork only the process that made the socket changes keys"


def _anew(error: Error | OSError) -> Error | OSError:
    """The same error without a traceback, which keeps frames, and grows with every raise."""
    if isinstance(error, TLSAlert):
        return TLSAlert(error.level, error.description)
    return type(error)(*error.args)


class RecordLayer(_records.Channel):
    """The records of one connection in both directions; see the top of this file.

    ``fd`` and ``timeout`` are the descriptor and the timeout of the socket that this belongs to;
    it keeps them up to date.  ``leftover`` is what OpenSSL had decrypted and nobody has read yet.
    ``tickets`` gets each NewSessionTicket, and its secrets are wiped with the others.
    ``post_handshake_auth`` tells that our ClientHello offered it.  ``incoming`` and ``outgoing``
    carry the two directions (directions.py): the kernel, unless ``leave_to`` says otherwise.
    """

    #: Whether a process that has forked leaves what it made and never used to the other one.
    quiet_after_fork = False

    def __init__(
        self,
        session: Session,
        fd: int,
        timeout: float | None = None,
        *,
        tickets: Tickets | None = None,
        post_handshake_auth: bool = False,
    ) -> None:
        self.session = session
        self.tickets = tickets
        self.incoming: Incoming = _KERNEL_INCOMING
        self.outgoing: Outgoing = _KERNEL_OUTGOING
        self.post = PostHandshake(
            session.version, session.role, post_handshake_auth=post_handshake_auth
        )
        self.receive_error: Error | OSError | None = None
        self.receive_ended = False  # close_notify was received
        self.send_ended = False  # close_notify was sent, or nothing may be sent any more
        self.sent_unasked = 0  # bytes of files, since it was asked whether anybody is there
        self._leftover = b""
        self._process = os.getpid()
        self.fd = fd
        self.timeout = timeout
        self._budget = RecordBudget(session.cipher.aead, session.tx.sequence)
        self._plan_next_count(1)
        self._look_at_reading()
        self._look_at_sending()

    @property
    def leftover(self) -> bytes:
        """Plaintext that comes before everything that the kernel has."""
        return self._leftover

    @leftover.setter
    def leftover(self, data: bytes) -> None:
        self._leftover = data
        self._look_at_reading()

    def descriptor(self) -> int:
        """The descriptor; OSError (EBADF) once it is closed."""
        fd = self.fd
        if fd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return fd

    def is_anothers(self) -> bool:
        """Whether another process of a fork goes on with it: this one has never used it.

        In the process that made it that counts only where ``quiet_after_fork`` says so.
        """
        if self.used_here():
            return False
        return os.getpid() != self._process or (self.quiet_after_fork and self.forked_since_made())

    def leave_to(
        self, *, incoming: Incoming | None = None, outgoing: Outgoing | None = None
    ) -> None:
        """Have a direction carried by something else than the kernel; before the first use."""
        self.incoming = incoming or self.incoming
        self.outgoing = outgoing or self.outgoing
        self._look_at_reading()
        self._look_at_sending()

    def check_detachable(self) -> None:
        """Raise HandoffRefused while something of the connection is here and not in the kernel."""
        self.check_in_kernel()
        if self._leftover:
            raise HandoffRefused(
                f"{len(self._leftover)} bytes that OpenSSL had decrypted are still to be read"
            )

    def check_in_kernel(self) -> None:
        """Raise HandoffRefused unless the kernel has both directions."""
        if not (self.incoming.in_kernel and self.outgoing.in_kernel):
            doing = "sends on" if self.incoming.in_kernel else "receives from"
            raise HandoffRefused(
                "the kernel has one direction only: it is the OpenSSL of this process that "
                f"{doing} the connection"
            )

    def pending(self) -> int:
        """Bytes of plaintext that are not in the kernel, and that select(2) does not see."""
        return len(self._leftover) + self.incoming.pending()

    def forget(self) -> None:
        """Wipe what is secret: the connection is closed, or somebody else's now."""
        self.fd = -1
        self.end_sending()
        self.leftover = b""
        self.session.wipe()
        self.incoming.release()
        self.outgoing.release()
        if self.tickets is not None:
            self.tickets.wipe()

    def go_on(
        self, post: PostHandshake, leftover: bytes, *, reading_data: bool, send_ended: bool
    ) -> None:
        """Take up a connection where another process has left it; before its first use here."""
        self.post = post
        self.receive_ended = post.closed
        self.reading_data = reading_data
        self.send_ended = send_ended
        self.leftover = leftover
        self._look_at_sending()

    def _look_at_reading(self) -> None:
        self.straight_in = self.incoming.in_kernel and not (
            self._leftover or self.receive_ended or self.receive_error or not self.post.quiet
        )

    def _look_at_sending(self) -> None:
        """Only with the send lock: another thread may be ending it right now."""
        self.straight_out = self.outgoing.in_kernel
        if self.send_ended or self.post.answer_due:
            self.straight_out = False

    def end_sending(self) -> None:
        """From now on nothing is sent."""
        self.send_ended = True
        self.straight_out = False

    # ---- receiving ---------------------------------------------------------------------------

    def recv_slowly(self, bufsize: Any, flags: Any) -> bytes:
        """Do recv with any arguments, in any state."""
        bufsize = arguments.size(bufsize, "recv")
        flags = arguments.flags(flags)
        if not flags & (socket.MSG_PEEK | socket.MSG_WAITALL) and bufsize:
            with self.receiving(flags) as deadline:
                if not self._leftover:
                    return self._recv_new(bufsize, flags, deadline)
        buffer = bytearray(bufsize)
        received = self.recv_into_slowly(buffer, 0, flags)
        return bytes(memoryview(buffer)[:received])

    def _recv_new(self, bufsize: int, flags: int, deadline: _records.Deadline) -> bytes:
        """Read new bytes from the kernel, past whatever else comes."""
        self.descriptor()  # of a closed socket there is none, also past the end
        while not self.receive_ended:
            self.raise_again()
            fd = self.descriptor()
            try:
                data, record_type, msg_flags = self.incoming.recv(fd, bufsize, flags, deadline)
            except OSError as e:
                self.receive_failed(e)
            if self._is_data(record_type, len(data), msg_flags):
                if data:
                    if len(data) < bufsize and self.looks_behind:
                        self._look_behind((data,), len(data))
                    return data
            else:
                self._control(bytearray(data), record_type, msg_flags, bufsize, deadline)
        return b""

    def _recv_after_other(
        self,
        piece: bytearray,
        record_type: int,
        msg_flags: int,
        asked: int,
        deadline: _records.Deadline,
    ) -> bytes:
        """Go on with a recv that has met something else than data."""
        if not self._is_data(record_type, len(piece), msg_flags):
            self._control(piece, record_type, msg_flags, asked, deadline)
        return self._recv_new(asked, 0, deadline)

    def recv_into_slowly(self, buffer: WriteableBuffer, nbytes: Any, flags: Any) -> int:
        """Do recv_into with any arguments, in any state."""
        nbytes = arguments.size(nbytes or 0, "recv_into")
        flags = arguments.flags(flags)
        with (
            arguments.buffer_view(buffer, writable=True) as whole,
            whole[: nbytes or len(whole)] as view,
        ):
            if nbytes > len(whole):
                raise InvalidValue("buffer too small for requested bytes")
            if not view:
                return 0
            with self.receiving(flags) as deadline:
                return self.receive(view, flags, deadline)

    def _recv_into_after_other(
        self,
        buffer: WriteableBuffer,
        asked: int,
        received: int,
        record_type: int,
        msg_flags: int,
        deadline: _records.Deadline,
    ) -> int:
        """Go on with a recv_into that has met something else than data."""
        with arguments.buffer_view(buffer, writable=True) as whole, whole[:asked] as view:
            if not self._is_data(record_type, received, msg_flags):
                self._not_data([view], received, record_type, msg_flags, 0, deadline)
            return self.receive(view, 0, deadline)

    def recvmsg_into(self, views: list[memoryview], flags: int) -> int:
        """Receive into several buffers; ``views`` are writable and not empty."""
        with self.receiving(flags) as deadline:
            plain = not flags & (socket.MSG_PEEK | socket.MSG_WAITALL)
            if len(views) > 1 and plain and not self._leftover:
                while not self.receive_ended and not self.receive_error:
                    received = self._recvmsg_once(views, flags, deadline)
                    if received:
                        return received
            return self._receive_in_turn(views, flags, deadline)

    def _recvmsg_once(
        self, views: list[memoryview], flags: int, deadline: _records.Deadline
    ) -> int:
        """One read into all of them; 0 if it was no data."""
        fd = self.descriptor()
        try:
            received, record_type, msg_flags = self.incoming.recvmsg_into(
                fd, views, flags, deadline
            )
        except OSError as e:
            self.receive_failed(e)
        if not self._is_data(record_type, received, msg_flags):
            self._not_data(views, received, record_type, msg_flags, flags, deadline)
            return 0
        if 0 < received < sum(map(len, views)) and self.looks_behind:
            self._look_behind(views, received)
        return received

    def _receive_in_turn(
        self, views: list[memoryview], flags: int, deadline: _records.Deadline
    ) -> int:
        # A look does not move on: the second buffer would see the same again.
        everything = flags & socket.MSG_WAITALL and not flags & socket.MSG_PEEK
        done = 0
        for view in views:
            try:
                received = self.receive(view, flags, deadline)
            except (OSError, Error):
                if done:  # as in receive
                    break
                raise
            done += received
            if received < len(view) or not everything:
                break
        return done

    def receive(self, view: memoryview, flags: int, deadline: _records.Deadline) -> int:
        """Receive into ``view``, which is not empty.  Holds the receive lock."""
        peek = bool(flags & socket.MSG_PEEK)
        wait_all = bool(flags & socket.MSG_WAITALL) and not peek
        self.descriptor()
        done = self._take_leftover(view, peek=peek)
        if done and (peek or not wait_all):
            return done
        while done < len(view):
            if self.receive_error is not None:
                if done:
                    break  # the next call raises it
                self.raise_again()
            if self.receive_ended:
                break
            try:
                received = self.receive_once(view[done:], flags, deadline)
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
                self.leftover = self._leftover[taken:]
        return taken

    def receive_once(self, view: memoryview, flags: int, deadline: _records.Deadline) -> int | None:
        """One read from the kernel; None if it was no data and the caller should go on."""
        fd = self.descriptor()
        peeked = bool(flags & socket.MSG_PEEK)
        try:
            received, record_type, msg_flags = self.incoming.recv_into(fd, view, 0, flags, deadline)
        except OSError as e:
            self.receive_failed(e)
        if self._is_data(record_type, received, msg_flags, peeked=peeked):
            if not received and peeked:
                # Empty records with something else behind them: a look does not take them away.
                self.incoming.recv(fd, 1, 0, deadline)
            if 0 < received < len(view) and self.looks_behind:
                if peeked:
                    self._keep_readable(fd)
                else:
                    self._look_behind((view,), received)
            return received or None  # an empty record is no end of the stream
        self._not_data([view], received, record_type, msg_flags, flags, deadline)
        return 0 if self.receive_ended else None

    def _look_behind(self, views: Iterable[bytes | memoryview], received: int) -> None:
        """look_behind, without a loss of the data that has just been read into ``views``."""
        try:
            self.look_behind()
        except BaseException:  # a signal handler's
            self.leftover = b"".join(views)[:received] + self._leftover
            raise

    def can_hide(self) -> bool:
        """Whether a KeyUpdate can hide behind data; see look_behind."""
        session = self.session
        return self.incoming.in_kernel and system.can_rekey(session.version, session.cipher.aead)

    def _keep_readable(self, fd: int) -> None:
        """See that select(2) tells of data that was only looked at.

        A look has the kernel decrypt what comes next, too.  If that is a KeyUpdate, there is
        nothing to read, it says, until there are new keys; but the data has to be read before.
        """
        if self.can_hide():
            try:
                _records.wait_readable(fd, self.deadline_in(NO_WAIT))
            except BlockingIOError:
                self.incoming.go_on(fd)

    def keep_error(self, number: int) -> None:
        """Keep an error that was met behind data, and that the kernel may not tell again."""
        error = syscall_error(number, "recvmsg")
        with contextlib.suppress(Error, OSError):
            self.receive_failed(error)
        if self.receive_error is None and not passes(error):
            self._keep(error)

    def take_in_one(self) -> bool:
        """Deal with the next record, of no data; whether there may be another one.

        An error that ends the connection is kept, and the next read raises it.
        """
        deadline = self.deadline_in(NO_WAIT)
        with contextlib.suppress(Error, OSError):
            try:
                data, record_type, msg_flags = self.incoming.recv(
                    self.descriptor(), _CONTROL_SIZE, socket.MSG_DONTWAIT, deadline
                )
            except OSError as e:
                self.receive_failed(e)
            if not self._is_data(record_type, len(data), msg_flags):
                self._control(bytearray(data), record_type, msg_flags, _CONTROL_SIZE, deadline)
                return True
            self.leftover = self._leftover + data
            return not data
        return False

    def _is_data(
        self, record_type: int, received: int, msg_flags: int, *, peeked: bool = False
    ) -> bool:
        """Whether a read returned application data."""
        rest = self.reading_data and record_type == _records.NO_RECORD_TYPE
        if not self.note_data(record_type, received, msg_flags, peeked):
            return False
        if not rest:
            self.data_arrives(received)
        return True

    def data_arrives(self, received: int) -> None:
        """Let the state machine know that a record of application data has begun."""
        try:
            if received:
                self.post.data_arrives()
            else:
                self.post.empty_data_arrives()
        except Violation as e:
            self._fail(e.description, RecordError(str(e)))
        finally:
            self._look_at_reading()

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
        if flags & socket.MSG_PEEK and record_type != _records.NO_RECORD_TYPE:
            # It is still there: take it out.
            piece.clear()
            asked, msg_flags = 0, 0
        self._control(piece, record_type, msg_flags, asked, deadline)

    def _control(
        self,
        piece: bytearray,
        record_type: int,
        msg_flags: int,
        asked: int,
        deadline: _records.Deadline,
    ) -> None:
        """Deal with what a read returned that was no application data."""
        if record_type == _records.NO_RECORD_TYPE:
            if piece:
                self._fail(
                    INTERNAL_ERROR, RecordError("the kernel gave data without a record type")
                )
            self._end_receiving(truncation())
        fd = self.descriptor()
        # A record that did not fit comes in pieces, each at once.
        last = len(piece)
        while last == asked and not msg_flags & socket.MSG_EOR:
            asked = _CONTROL_SIZE
            data, _, msg_flags = self.incoming.recv(fd, asked, 0, deadline)
            piece += data
            last = len(data)
        new_keys = False
        try:
            for action in self.post.receive(record_type, bytes(piece)):
                new_keys = new_keys or isinstance(action, KeyUpdateReceived)
                self._act(action)
            if record_type == HANDSHAKE and piece[:1] == _LIKE_KEY_UPDATE and not new_keys:
                # To Linux this looked like a KeyUpdate, and it waits for keys.  It was a part of
                # one, or the middle of another message.
                self.incoming.go_on(fd)
        except Violation as e:
            self._fail(e.description, RecordError(str(e)))
        finally:
            self._look_at_reading()

    def _act(self, action: object) -> None:
        match action:
            case CloseNotifyReceived():
                self.receive_ended = True
                # RFC 5246 section 7.2.1: answer at once, and send nothing more.  If there is no
                # room for the answer now, close() sends it, after what is under way.
                if self.session.version == TLS_1_2 and self.try_to_send(
                    alert(WARNING, CLOSE_NOTIFY), ALERT
                ):
                    self.end_sending()
            case AlertReceived(level, description):
                self.end_sending()
                self._end_receiving(TLSAlert(level, description))
            case SendWarning(description):
                self.try_to_send(alert(WARNING, description), ALERT)
            case KeyUpdateReceived(answer_wanted):
                self._change_receiving_keys()
                if answer_wanted:
                    self._prepare_answer()
            case TicketReceived(body):
                if self.tickets is not None:
                    self.tickets.add(body)

    # ---- receiving: what ends it -------------------------------------------------------------

    def receive_failed(self, error: OSError) -> NoReturn:
        """Map what a read raised; errors of the record layer are kept."""
        if isinstance(error, RefusedRecord):
            self._fail(
                error.description, RecordError(f"a record was refused: {error.reason}"), error
            )
        if error.errno not in BROKEN_RECORD:
            kept = is_kept(error)
            if kept or is_gone(error):
                self.end_sending()
            if kept:
                self._keep(error)
            try:
                raise error
            finally:
                del error  # the traceback has this frame
        self._broken(error)

    def _broken(self, error: OSError) -> NoReturn:
        """End the connection with what an error in BROKEN_RECORD means."""
        description, meaning = broken_record(error, self.fd)
        if description is None:
            self._end_receiving(meaning, error)
        self._fail(description, meaning, error)

    def take_error(self) -> int:
        """Read SO_ERROR, which clears it."""
        size = struct.calcsize("i")
        value = getsockopt(
            self.descriptor(), socket.SOL_SOCKET, socket.SO_ERROR, size, "getsockopt(SO_ERROR)"
        )
        (number,) = struct.unpack("i", value)
        return int(number)

    def _fail(self, description: int, error: Error, cause: Exception | None = None) -> NoReturn:
        """End the connection: tell the peer if that is possible at once, and remember why."""
        # The kernel keeps an error of a read for the next send as well, FreeBSD also that of a
        # record behind the one that is refused here; reading it clears it.
        with contextlib.suppress(OSError):
            self.take_error()
        # At once for TCP, too: it would keep a small piece back until what was sent before has
        # arrived, and a close with unread data throws away what it has.
        with contextlib.suppress(OSError):
            on = (1).to_bytes(4, sys.byteorder)
            setsockopt(self.descriptor(), socket.IPPROTO_TCP, socket.TCP_NODELAY, on, "setsockopt")
        self.try_to_send(alert(FATAL, description), ALERT)
        self.end_sending()
        self._end_receiving(error, cause)

    def _end_receiving(self, error: Error, cause: BaseException | None = None) -> NoReturn:
        self._keep(error)
        self.raise_again(cause)
        raise AssertionError("it has just been set")

    def _keep(self, error: Error | OSError) -> None:
        """Have each read from now on raise it."""
        self.receive_error = _anew(error)
        self.straight_in = False

    def raise_again(self, cause: BaseException | None = None) -> None:
        """Raise the error that has ended receiving, if one has."""
        if self.receive_error is not None:
            raise _anew(self.receive_error) from cause

    def is_dead(self) -> bool:
        """Whether an error has ended both directions, so that nothing is left to be delivered."""
        return isinstance(self.receive_error, TLSAlert | RecordError | OSError) and not isinstance(
            self.receive_error, TruncationError
        )

    # ---- changing keys -----------------------------------------------------------------------

    def _missing_for_new_keys(self) -> str | None:
        """Why this process cannot work out the next keys; None if it can."""
        if self.session.tx.secret is None or self.session.rx.secret is None:
            return _NO_SECRETS
        return None if os.getpid() == self._process else _FORKED

    def _change_receiving_keys(self) -> None:
        missing = self._missing_for_new_keys()
        if missing is not None:
            self._fail(
                INTERNAL_ERROR,
                RecordError(
                    f"the peer changed its keys (KeyUpdate), and they cannot be followed: {missing}"
                ),
            )
        try:
            self.incoming.change_keys(self.descriptor(), self.session)
        except OSError as e:
            self._fail(
                INTERNAL_ERROR,
                RecordError(
                    "the peer changed its keys (KeyUpdate), and this kernel cannot follow: "
                    f"{system.NO_REKEY} ({e})"
                ),
                e,
            )

    def update_keys(self, request_peer: bool) -> None:
        """Change our sending keys, and ask the peer to change its own if ``request_peer``."""
        with self.sending() as deadline:
            self.before_sending(deadline, 0)
            message = self.post.begin_key_update(request_peer)
            if reason := self._why_no_new_keys():
                raise Unavailable(f"the keys cannot be changed: {reason}")
            self._send_key_update(message, deadline)

    def _why_no_new_keys(self) -> str | None:
        """Why our sending keys cannot be changed; None if they can."""
        missing = self._missing_for_new_keys()
        if missing is None and not self.outgoing.can_change_keys(self.session):
            return system.NO_REKEY
        return missing

    def _send_key_update(self, message: bytes, deadline: _records.Deadline) -> None:
        """Send a KeyUpdate, and change the sending keys right after it.  Holds the send lock."""
        fd = self.descriptor()
        flags = 0 if deadline.remaining() != NO_WAIT else socket.MSG_DONTWAIT
        try:
            self.outgoing.send_key_update(fd, message, flags, deadline)
        except OSError as e:
            self.note_send_error(e)
            raise  # it is a whole record or nothing
        except BaseException:  # a signal handler's: nobody knows when it came
            self.end_sending()
            raise
        try:
            self.outgoing.change_keys(fd, self.session)
        except BaseException:
            # The peer now expects the new keys: nothing more can be sent that it could read.
            self.end_sending()
            raise
        self.post.key_update_sent()
        self._budget.rekeyed()
        self._plan_next_count(1)
        self._look_at_sending()

    def _prepare_answer(self) -> None:
        """Answer the peer's KeyUpdate now or before the next data."""
        # Where the kernel receives, it has just followed, and so it can send under new keys.
        if not self.incoming.in_kernel and (reason := self._why_no_new_keys()):
            # Receiving could go on, but nothing could be sent any more.
            self._fail(
                INTERNAL_ERROR,
                RecordError(f"the peer asked for a change of keys, which cannot be made: {reason}"),
            )
        self.straight_out = False
        self._answer_if_free()

    def _answer_if_free(self) -> None:
        """Answer a KeyUpdate now, unless another thread is sending: then that one does."""
        if self.send_lock.acquire(NO_WAIT):
            try:
                # What is wrong with sending, the next send says: there may be data to be read.
                with contextlib.suppress(OSError):
                    self.answer(self.deadline_in(NO_WAIT))
            finally:
                self.send_lock.release()

    def answer(self, deadline: _records.Deadline) -> None:
        """Send the KeyUpdate that is due, if one is.  Holds the send lock."""
        if self.send_ended:
            return
        message = self.post.answer()
        # In the child of a fork it is the parent's to send.
        if message is not None and os.getpid() == self._process:
            self._send_key_update(message, deadline)

    # ---- counting records --------------------------------------------------------------------

    def _plan_next_count(self, wanted: int) -> None:
        """Let the hot path count from here on; ``wanted`` records are among those counted.

        Lengths alone may give too few records: the user may have set TLS_TX_MAX_PAYLOAD_LEN.  A
        record then has 63 bytes at least, so the count is wrong by a factor of 261 at most, and the
        kernel is asked that much sooner than at the limit.
        """
        budget = self._budget
        self.records_sent = budget.estimate
        left = max(0, budget.check_at - budget.estimate)
        self.next_count = min(budget.check_at, budget.estimate + max(wanted, left >> 9))

    def count_records(self, size: int, pieces: int, deadline: _records.Deadline) -> None:
        """Count the records of ``size`` bytes from ``pieces`` buffers, which are sent next.

        Changes the keys if their time has come, or raises RecordError if it cannot be done.  Holds
        the send lock.
        """
        if self.count(size, pieces):
            return
        wanted = self._budget.bound(size, pieces)
        decision = self._ask_budget(wanted)
        if decision is not Decision.CONTINUE and self._why_no_new_keys() is None:
            self._send_key_update(self.post.begin_key_update(), deadline)
            decision = self._ask_budget(wanted)
        if decision is Decision.REFUSE:
            suite = self.session.cipher
            raise RecordError(
                f"{self._budget.estimate} records have been sent under one key, which is as much "
                f"as {suite.aead.name} is good for, and this connection cannot change its keys"
            )
        self._plan_next_count(wanted)

    def _ask_budget(self, wanted: int) -> Decision:
        sequence = self.outgoing.next_sequence(self.descriptor())
        if sequence is None:  # then the estimate is all there is
            sequence = self.records_sent
        return self._budget.reached(sequence, wanted)

    # ---- sending -----------------------------------------------------------------------------

    def before_sending(self, deadline: _records.Deadline, size: int, pieces: int = 1) -> None:
        """What every send begins with, under the send lock; OSError if nothing can be sent."""
        self.descriptor()
        if self.send_ended:
            raise syscall_error(errno.EPIPE, "send after the end of the TLS connection")
        # RFC 8446 section 4.6.3: before the next application data record.
        self.answer(deadline)
        if size:
            self.count_records(size, pieces, deadline)

    def send_failed(self, error: OSError) -> None:
        """See an error of a send that went straight to the kernel; it is raised afterwards."""
        self.note_send_error(error)

    def note_send_error(self, error: OSError) -> None:
        """Remember what an error of a send says of the connection.

        Raises RecordError or TruncationError if it is one of receiving.
        """
        if is_gone(error):
            self.end_sending()
        if concerns_receiving(error) and self.incoming.in_kernel:
            self._broken(error)

    def note_broken_record(self, error: OSError) -> None:
        """Keep for the next read what was told on another occasion, and is not told again."""
        if self.receive_error is None:
            self._keep(broken_record(error, self.fd)[1])

    @contextlib.contextmanager
    def _sending_data(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            self.note_send_error(e)
            raise

    def send_slowly(self, data: ReadableBuffer, flags: Any) -> int:
        """Do send with any arguments, in any state."""
        flags = arguments.flags(flags)
        with (
            self.sending(flags) as deadline,
            arguments.buffer_view(data) as view,
            view[:_MOST_AT_ONCE] as piece,
        ):
            self.before_sending(deadline, len(piece))
            if not len(piece):
                return 0  # no such record can be sent, and none is needed
            with self._sending_data():
                return self.outgoing.send(self.fd, piece, flags, _records.NO_RECORD_TYPE, deadline)

    def sendall_slowly(self, data: ReadableBuffer, flags: Any) -> None:
        """Do sendall with any arguments, in any state."""
        self.send_all(data, arguments.flags(flags))

    def send_all(self, data: ReadableBuffer, flags: int) -> None:
        """Send all of ``data``, with flags that are the library's own."""
        with self.sending(flags) as deadline, arguments.buffer_view(data) as view:
            self.before_sending(deadline, min(len(view), _MOST_AT_ONCE))
            for begin in range(0, len(view), _MOST_AT_ONCE):
                with view[begin : begin + _MOST_AT_ONCE] as piece:
                    if begin:
                        self.count_records(len(piece), 1, deadline)
                    with self._sending_data():
                        self.outgoing.sendall(self.fd, piece, flags, deadline)

    def sendmsg_slowly(
        self, buffers: Iterable[ReadableBuffer], ancdata: Any, flags: Any, address: object
    ) -> int:
        """Do sendmsg with any arguments, in any state."""
        flags = arguments.flags(flags)
        if ancdata != ():
            try:
                ancdata = list(ancdata)
            except (TypeError, ValueError) as e:
                raise InvalidType(f"ancdata: {e}") from None
        if ancdata:
            raise InvalidValue("a KTLSSocket sends no ancillary data: the record type is its own")
        if address is not None:
            raise InvalidValue("a connected socket sends to no other address")
        views = arguments.buffer_views(buffers)
        with self.sending(flags) as deadline:
            size = sum(map(len, views))
            self.before_sending(deadline, size, len(views) + 1)
            with self._sending_data():
                return self.outgoing.sendmsg(
                    self.fd, views, flags, _records.NO_RECORD_TYPE, deadline
                )

    def try_to_send(self, payload: bytes, record_type: int) -> bool:
        """Send a control record if that is possible at once; tells whether it was."""
        if not self.send_lock.acquire(NO_WAIT):
            return False
        try:
            if self.send_ended:
                return False
            self.outgoing.send(
                self.descriptor(),
                payload,
                socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL,
                record_type,
                self.deadline_in(NO_WAIT),
            )
        except OSError:
            return False
        else:
            return True
        finally:
            self.send_lock.release()
