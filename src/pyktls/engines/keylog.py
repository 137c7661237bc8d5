"""What OpenSSL logs of a context's secrets, kept in memory and handed out by connection.

``ssl.SSLContext.keylog_filename`` takes the name of a file and nothing else, so it gets one that
only this process can see: a memfd(2) through ``/proc/self/fd``, or where there is no such name a
temporary file that is removed as soon as it is open.  CPython appends a line at a time
(SSL_CTX_set_keylog_callback(3) has the format); ``harvest`` takes the new ones out.

*Whose line it is* says the client's random in it.  A connection registers its own, which it does
before OpenSSL has any secret, and gets the lines of that random in their order.  Lines of nobody
are dropped.

*What stays.*  A line that was read is overwritten with zeros at once, and whole pages of zeros are
given back to the system; the file grows in length only.  The secrets then live in ``Secrets``, one
for each connection, and are overwritten with it.

*The user's own log.*  A ``keylog_filename`` that the context had before goes on being written: its
lines are copied on as they are read, which is a moment later than OpenSSL would have.

*fork(2).*  Parent and child would append to the one file, and each could overwrite the other's
lines before they are read.  So the lines are taken out just before, and the child, before it does
anything else, gives each context a file of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import mmap
import os
import tempfile
import threading
import weakref
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from pyktls.errors import HandoffRefused, Unavailable
from pyktls.key_schedule import wipe

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

__all__ = ["CLIENT_TRAFFIC_SECRET", "MASTER_SECRET", "SERVER_TRAFFIC_SECRET", "KeyLog", "Secrets"]

MASTER_SECRET = b"CLIENT_RANDOM"  # TLS 1.2
CLIENT_TRAFFIC_SECRET = b"CLIENT_TRAFFIC_SECRET_"  # then 0, or N after a KeyUpdate
SERVER_TRAFFIC_SECRET = b"SERVER_TRAFFIC_SECRET_"
_LABELS = (MASTER_SECRET, CLIENT_TRAFFIC_SECRET, SERVER_TRAFFIC_SECRET)

#: Where the system shows this process's open files; one of them is the memory file.
PROC = "/proc/self/fd"

_ROOM = 16384  # the longest line has some 300 bytes
_PAGES_AT_ONCE = 16 * mmap.PAGESIZE
_LONGEST_FILE = 1 << 20  # where zeros cannot be given back

_DIGITS = {ord(c): int(c, 16) for c in "0123456789abcdefABCDEF"}


class Secrets:
    """What was logged of one connection and is not used yet: (label, secret), oldest first.

    ``ambiguous`` is set if another connection has the same client random.  Then both ends of a
    connection use one context in this process, and nobody can tell which of them logged a line.
    """

    __slots__ = ("__weakref__", "ambiguous", "lines")

    def __init__(self) -> None:
        self.lines: deque[tuple[bytes, bytearray]] = deque()
        self.ambiguous = False

    def wipe(self) -> None:
        """Overwrite and forget them."""
        while self.lines:
            wipe(self.lines.popleft()[1])

    def __del__(self) -> None:
        self.wipe()


class KeyLog:
    """The log of one ``ssl.SSLContext``; made once, it stays on the context.

    CPython's log is OpenSSL's one keylog callback, so giving the context a file removes any other.
    ``installed`` is called with the context each time, to put another back in front of it.
    """

    def __init__(
        self, context: ssl.SSLContext, installed: Callable[[ssl.SSLContext], object] | None = None
    ) -> None:
        self._context = weakref.ref(context)
        self._installed = installed
        self._lock = threading.RLock()
        self._busy = False
        self._buffer = bytearray(_ROOM)
        self._secrets: weakref.WeakValueDictionary[bytes, Secrets] = weakref.WeakValueDictionary()
        self._fd = -1
        self._copy_to = -1
        self.path = ""
        self.take_over()
        with _logs_lock:
            _logs.add(self)

    # ---- the file ----------------------------------------------------------------------------

    def take_over(self) -> None:
        """See that the context logs here; again is harmless.

        Raises HandoffRefused if the context's present log file cannot be opened to be continued,
        Unavailable if no file can be made.
        """
        context = self._context()
        if context is None or (self.path and context.keylog_filename == self.path):
            return
        present = context.keylog_filename
        if present:
            try:
                # Not to wait for the reader of a pipe.
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
                copy_to = os.open(present, flags, 0o666)
            except OSError as e:
                raise HandoffRefused(
                    f"the context's keylog_filename cannot be opened to be continued ({e}): "
                    "set it to None, or to a file that can be written"
                ) from e
        else:
            copy_to = -1
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                self.harvest()  # what was logged here until then
        self._stop_copying()  # also where the log has been switched off since
        self._copy_to = copy_to
        self._install(context)

    def _install(self, context: ssl.SSLContext) -> None:
        """Give the context a new file."""
        old = self._fd
        try:
            self._fd, self.path = _memory_file(context) or _temporary_file(context)
        except OSError as e:
            raise Unavailable(f"there is no place for a key log: {e}") from e
        if old >= 0:
            os.close(old)
        # CPython begins an empty file with a comment; _released is how much of it is given back.
        self._offset = os.fstat(self._fd).st_size
        self._released = 0
        if self._installed is not None:
            self._installed(context)

    def _stop_copying(self) -> None:
        if self._copy_to >= 0:
            os.close(self._copy_to)
            self._copy_to = -1

    def __del__(self) -> None:
        if self._fd < 0:
            return
        with contextlib.suppress(OSError):
            self.harvest()
        os.close(self._fd)
        self._fd = -1
        self._stop_copying()

    def before_fork(self) -> None:
        """Hold still, with no line left that the child may need."""
        self._lock.acquire()
        with contextlib.suppress(OSError):
            self.harvest()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Leave the parent's file alone, and have one of our own."""
        self._lock = threading.RLock()
        self._busy = False
        context = self._context()
        if context is not None and context.keylog_filename == self.path:
            self._install(context)

    # ---- lines -------------------------------------------------------------------------------

    def register(self, client_random: bytes, secrets: Secrets) -> None:
        """From now on give the lines with that random to ``secrets``."""
        with self._lock:
            other = self._secrets.get(client_random)
            if other is not None and other is not secrets:
                secrets.ambiguous = other.ambiguous = True
            self._secrets[client_random] = secrets

    def harvest(self) -> bool:
        """Take the new lines out of the file.

        Returns False if another call is at it in the same thread (a signal handler came in
        between): then the order is lost.
        """
        with self._lock:
            if self._busy:
                return False
            self._busy = True
            try:
                while size := os.preadv(self._fd, [self._buffer], self._offset):
                    # A line that is still being written comes next time.
                    end = self._buffer.rfind(b"\n", 0, size) + 1
                    if end == 0 and size < _ROOM:
                        break
                    end = end or size
                    self._take(end)
                    self._copy_on(end)
                    os.pwrite(self._fd, bytes(end), self._offset)
                    self._offset += end
                    self._release()
            finally:
                wipe(self._buffer)
                self._busy = False
            return True

    def _take(self, end: int) -> None:
        buffer = self._buffer
        start = 0
        while start < end:
            stop = buffer.find(b"\n", start, end)
            first = buffer.find(b" ", start, stop)
            second = buffer.find(b" ", first + 1, stop)
            if first > start and second > first and buffer.startswith(_LABELS, start):
                self._hand_out(bytes(buffer[start:first]), first + 1, second, stop)
            start = stop + 1 if stop >= 0 else end

    def _hand_out(self, label: bytes, random: int, secret: int, stop: int) -> None:
        """One line: ``random`` is where the random begins, ``secret`` the space before the secret.

        The label and the random are no secrets, the rest is decoded without a copy of it.
        """
        client_random = _from_hex(self._buffer, random, secret)
        receiver = self._secrets.get(bytes(client_random))
        if receiver is not None:
            receiver.lines.append((label, _from_hex(self._buffer, secret + 1, stop)))

    def _copy_on(self, end: int) -> None:
        if self._copy_to >= 0:
            # A log that cannot be written is no reason to end a handshake; OpenSSL's own writer
            # does not tell either.
            with contextlib.suppress(OSError), memoryview(self._buffer) as view, view[:end] as part:
                os.write(self._copy_to, part)

    def _release(self) -> None:
        """Give pages of zeros back, without changing where OpenSSL's next line goes."""
        pages = self._offset - self._offset % mmap.PAGESIZE
        if pages - self._released < _PAGES_AT_ONCE:
            return
        try:
            with mmap.mmap(self._fd, pages - self._released, offset=self._released) as mapping:
                mapping.madvise(mmap.MADV_REMOVE)
            self._released = pages
        except (AttributeError, OSError):
            # Not Linux, or a file system that cannot.  A line that OpenSSL writes just now would
            # be lost with the rest; its connection is then refused (a secret is missing).
            if self._offset >= _LONGEST_FILE and os.fstat(self._fd).st_size == self._offset:
                os.ftruncate(self._fd, 0)
                self._offset = self._released = 0


def _from_hex(text: bytearray, start: int, stop: int) -> bytearray:
    """The bytes that a row of digits stands for; empty if it is none."""
    size = (stop - start) // 2
    decoded = bytearray(size)
    for i in range(size):
        high = _DIGITS.get(text[start + 2 * i])
        low = _DIGITS.get(text[start + 2 * i + 1])
        if high is None or low is None:
            wipe(decoded)
            return bytearray()
        decoded[i] = high << 4 | low
    return decoded


def _memory_file(context: ssl.SSLContext) -> tuple[int, str] | None:
    if not hasattr(os, "memfd_create"):
        return None
    try:
        fd = os.memfd_create("pyktls")
    except OSError:
        return None
    path = f"{PROC}/{fd}"
    try:
        context.keylog_filename = path
    except OSError:  # no /proc here
        os.close(fd)
        return None
    return fd, path


def _temporary_file(context: ssl.SSLContext) -> tuple[int, str]:
    fd, path = tempfile.mkstemp(prefix="pyktls-")
    try:
        context.keylog_filename = path
    except BaseException:
        os.close(fd)
        raise
    finally:
        Path(path).unlink()
    return fd, path


_logs: weakref.WeakSet[KeyLog] = weakref.WeakSet()
_logs_lock = threading.RLock()
_held: list[KeyLog] = []  # while the process forks


def _copy_on_at_exit() -> None:
    with _logs_lock:
        logs = list(_logs)
    for log in logs:
        with contextlib.suppress(OSError):
            log.harvest()


def _before_fork() -> None:
    _logs_lock.acquire()
    _held[:] = list(_logs)
    for log in _held:
        log.before_fork()


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop().after_fork_in_parent()
    _logs_lock.release()


def _after_fork_in_child() -> None:
    global _logs_lock  # noqa: PLW0603
    _logs_lock = threading.RLock()
    while _held:
        # A context that cannot have a file of its own refuses its next connections.
        with contextlib.suppress(Unavailable):
            _held.pop().after_fork_in_child()


atexit.register(_copy_on_at_exit)
os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
