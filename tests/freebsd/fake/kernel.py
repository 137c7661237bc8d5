"""A FreeBSD kernel in Python, as far as kernel TLS goes.

What it does is what FreeBSD 14 was seen to do, call by call: the order in which errors win, the
gates, one record for each recvmsg, the rest of a record without its type, errors that come late,
and what blocks for ever.  Bytes travel over real TCP sockets, and are protected by real ciphers.

``Kernel.install()`` puts its methods behind the calls that the fake build of pyktls makes
(calls.h).  The methods can be called from tests too, in place of calls that pyktls never makes:
``send`` and ``recv`` are a plain write and read, ``listen`` and ``sendto`` what these calls do.

How it is done.  Where signals are about to come a call of the main thread is made by another one,
as their handlers run in the main thread, and a kernel does what it does whatever they raise; one
that waits then ends with EINTR or with what it has done.  (A handler that just returns interrupts
nothing: ``interruptions`` does.)

What is received is taken out of the real socket, all but the last byte of each
record: that stays until the caller has all of the record.  So select and poll tell the truth to
others too, once a part of a record has been looked at.  What is sent and finds no room in the real
socket goes out from a thread, as it would from the kernel's queue.

What is not done: network cards, privilege, and connections that sendto(2) begins.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import stat
import struct
import threading
import time
from _thread import start_new_thread
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cffi

from .ciphers import AES_CBC, AES_GCM, CHACHA20, LARGEST, MACS, BadRecord, FatalRecord, Protection

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable

TXTLS_ENABLE, TXTLS_MODE, RXTLS_ENABLE, RXTLS_MODE = 39, 40, 41, 42
MODE_NONE, MODE_SW, MODE_IFNET = 0, 1, 2
ENABLE_SIZE, ENABLE_V0_SIZE = 64, 56
ENABLE = struct.Struct("@PPPiiiiiiBB")
TCP_CLOSE = 7
MOST_PIECES = 1024  # UIO_MAXIOV
AT_ONCE = 1 << 16  # what one call finds room for: send buffers of FreeBSD begin at 32 KiB
FOREVER = 20.0  # how long a test may wait for what never comes
MOMENT = 0.0005  # between two looks at whether something can go on
SOON = 10.0

ffi = cffi.FFI()
ffi.cdef("""
    struct iovec { void *iov_base; size_t iov_len; };
    struct fake_calls {
        int (*set_option)(int, int, const void *, unsigned);
        int (*get_option)(int, int, void *, unsigned *);
        int64_t (*receive)(int, void *, size_t, int, unsigned char *, int *, int *);
        int64_t (*transmit)(int, const struct iovec *, size_t, int, int);
        int (*send_file)(int, int, int64_t, size_t, const struct iovec *, int,
                         const struct iovec *, int, int64_t *);
        int (*read_sysctl)(const char *, void *, size_t *);
        int (*wait_for)(int, short, int);
        int raised;
    };
    extern struct fake_calls fake_calls;
    int64_t fake_recvmsg_with_room(int, void *, size_t, size_t, int *, int *);
""")


def pieces_of(iov: Any, count: int) -> list[bytes]:
    return [bytes(ffi.buffer(iov[i].iov_base, iov[i].iov_len)) for i in range(count)]


class Errno(Exception):
    """A call ends with this errno."""


@dataclass
class Ready:
    """A record that has been decrypted, and is still in the socket."""

    kind: int
    data: bytes
    position: int = 0


@dataclass
class State:
    """What the kernel keeps with one socket."""

    tx: Protection | None = None
    rx: Protection | None = None
    partial: bytearray = field(default_factory=bytearray)  # of the next record, less its last byte
    ready: Ready | None = None
    error: int = 0  # so_error: told once, to whoever calls next
    wedged: bool = False  # dropped, with bytes left that nobody will ever decrypt
    cut_off: bool = False  # by the peer, within a record
    pending: bytes = b""
    tx_lock: threading.Lock = field(default_factory=threading.Lock)
    rx_lock: threading.Lock = field(default_factory=threading.Lock)


class Kernel:
    def __init__(self) -> None:
        self._of_this_process()
        os.register_at_fork(after_in_child=self._of_this_process)
        self.boot()

    def _of_this_process(self) -> None:
        self._current = threading.local()
        self._made: Apart | None = None  # the call that the main thread waits for

    def boot(self) -> None:
        """Forget everything: stock settings of 14, with the gate opened."""
        self.states: dict[int, State] = {}
        self.kern_tls = True
        #: 13: no TLS 1.3, CBC or ChaCha20 for receiving, no ChaCha20 for sending.
        self.release = 14
        self.capability_mode = False
        self.broken_promise = False  # says yes to keys and does nothing
        self.blocked_for_ever = 0
        self.interruptions = 0  # so many of the next calls for records end with EINTR
        self.calls: list[str] = []
        self.sysctls: dict[str, tuple[str, int]] = {
            "kern.ipc.tls.enable": ("?", 1),
            "kern.ipc.tls.cbc_enable": ("?", 1),
            "kern.ipc.tls.maxlen": ("=I", LARGEST),
            "kern.ipc.tls.ifnet.permitted": ("=I", 0),
            "kern.ipc.mb_use_ext_pgs": ("=i", 1),
            "kern.ipc.tls.tasks_active": ("=I", 0),
        }
        for name in ("offload_total", "enable_calls", "active", "corrupted_records"):
            self.sysctls[f"kern.ipc.tls.stats.{name}"] = ("=Q", 0)
        for name in ("cbc", "gcm", "chacha20"):
            self.sysctls[f"kern.ipc.tls.sw.{name}"] = ("=Q", 0)

    # ---- sockets

    def state(self, fd: int) -> State:
        try:
            what = os.fstat(fd)
        except OSError:
            raise Errno(errno.EBADF) from None
        if not stat.S_ISSOCK(what.st_mode):
            raise Errno(errno.ENOTSOCK)
        return self.states.setdefault(what.st_ino, State())

    def set_sysctl(self, name: str, value: int) -> None:
        self.sysctls[name] = (self.sysctls.get(name, ("?", 0))[0], value)

    def sysctl(self, name: str) -> int:
        return self.sysctls.get(name, ("", 0))[1]

    def count(self, name: str) -> None:
        form, value = self.sysctls[name]
        self.sysctls[name] = (form, value + 1)

    # ---- options

    def set_option(self, fd: int, option: int, value: Any, size: int) -> int:
        state = self.state(fd)
        with Real(fd) as sock:
            if not self.is_tcp(sock):
                return -errno.EINVAL
            if not self.kern_tls or option == RXTLS_MODE:
                return -errno.ENOPROTOOPT
            if self.is_reset(state, sock):
                return -errno.ECONNRESET
            if option == TXTLS_MODE:
                if size < 4 or value == ffi.NULL:
                    return -errno.EINVAL
                return self.set_mode(state, ffi.cast("int *", value)[0])
            return self.enable(state, sock, option, value, size)

    @staticmethod
    def is_tcp(sock: socket.socket) -> bool:
        return sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM

    @staticmethod
    def is_reset(state: State, sock: socket.socket) -> bool:
        """Dropped by either side; a socket that never was connected has no port."""
        tcp_state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        return state.wedged or (tcp_state == TCP_CLOSE and sock.getsockname()[1] != 0)

    @staticmethod
    def set_mode(state: State, mode: int) -> int:
        if mode not in (MODE_SW, MODE_IFNET):
            return -errno.EINVAL
        if state.tx is None or mode == MODE_SW:
            return 0
        return -errno.EOPNOTSUPP  # the loopback interface cannot

    def enable(self, state: State, sock: socket.socket, option: int, value: Any, size: int) -> int:
        sending = option == TXTLS_ENABLE
        v0 = size == ENABLE_V0_SIZE
        if size < ENABLE_SIZE and not (v0 and sending):
            return -errno.EINVAL
        if value == ffi.NULL:
            return -errno.EFAULT
        self.count("kern.ipc.tls.stats.enable_calls")
        if not self.sysctl("kern.ipc.tls.enable"):
            return -errno.EOPNOTSUPP
        if not sending and self.sysctls.get("kern.ipc.tls.rx_enable", ("?", 1))[1] == 0:
            return -errno.EOPNOTSUPP
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return -errno.ENOTCONN if sending else -errno.EINVAL
        if (state.tx if sending else state.rx) is not None:
            return -errno.EALREADY
        raw = bytes(ffi.buffer(value, ENABLE_V0_SIZE if v0 else ENABLE_SIZE))
        fields = ENABLE.unpack_from(raw)
        key, iv, auth_key, cipher, key_len, iv_len, auth, auth_len, flags, major, minor = fields
        if cipher == AES_CBC and not self.sysctl("kern.ipc.tls.cbc_enable"):
            return -errno.EOPNOTSUPP
        if sending and not self.sysctl("kern.ipc.mb_use_ext_pgs"):
            return -errno.ENXIO
        result = self.check_suite(
            sending, cipher, key_len, iv_len, auth, auth_len, flags, major, minor
        )
        if result:
            return result
        taken = []
        for pointer, length in ((key, key_len), (iv, iv_len), (auth_key, auth_len)):
            if length and not pointer:
                return -errno.EFAULT
            taken.append(bytes(ffi.buffer(ffi.cast("char *", pointer), length)) if length else b"")
        if self.broken_promise:
            return 0
        seq = 0 if v0 else int.from_bytes(raw[50:58], "big")
        half = Protection(cipher, minor, taken[0], taken[1], auth, taken[2], seq)
        if sending:
            state.tx = half
        else:
            state.rx = half
        self.count("kern.ipc.tls.stats.offload_total")
        self.count(
            "kern.ipc.tls.sw." + {AES_CBC: "cbc", AES_GCM: "gcm", CHACHA20: "chacha20"}[cipher]
        )
        return 0

    def check_suite(
        self,
        sending: bool,
        cipher: int,
        key_len: int,
        iv_len: int,
        auth: int,
        auth_len: int,
        flags: int,
        major: int,
        minor: int,
    ) -> int:
        bad = -errno.EINVAL
        if flags or major != 3 or not 1 <= minor <= 4 or key_len not in (16, 32):
            return bad
        if not 0 <= iv_len <= 16 or not 0 <= auth_len <= 1024:
            return bad
        old = self.release == 13
        if cipher == AES_CBC:
            hashes = MACS if minor == 3 or old else {7: None}
            if minor == 4 or auth not in hashes or not auth_len or (minor == 1 and iv_len != 16):
                return bad
            if not sending and old:
                return -errno.EOPNOTSUPP
            return -errno.EPROTONOSUPPORT if minor == 1 and not sending else 0
        if auth or auth_len or minor < 3:
            return bad
        if cipher == AES_GCM:
            if iv_len != (12 if minor == 4 else 4):
                return bad
            return -errno.EOPNOTSUPP if old and minor == 4 and not sending else 0
        if cipher == CHACHA20 and not old:
            return 0 if (key_len, iv_len) == (32, 12) else bad
        return bad

    def get_option(self, fd: int, option: int, value: Any, size: Any) -> int:
        state = self.state(fd)
        if option == socket.SO_ERROR:
            ffi.cast("int *", value)[0] = self.take_error(fd, state)
            size[0] = 4
            return 0
        with Real(fd) as sock:
            if not self.is_tcp(sock):
                return -errno.EINVAL
            if not self.kern_tls or option in (TXTLS_ENABLE, RXTLS_ENABLE):
                return -errno.ENOPROTOOPT
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return -errno.EINVAL
            if self.is_reset(state, sock):
                return -errno.ECONNRESET
        if size[0] < 4:
            return -errno.EINVAL
        half = state.tx if option == TXTLS_MODE else state.rx
        ffi.cast("int *", value)[0] = MODE_NONE if half is None else MODE_SW
        size[0] = 4
        return 0

    def listen(self, fd: int) -> None:
        """listen(2): a socket with keys cannot."""
        state = self.state(fd)
        if state.tx is not None or state.rx is not None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        with Real(fd) as sock:
            sock.listen()

    # ---- receiving

    def receive(
        self, fd: int, buffer: Any, size: int, flags: int, record: Any, has: Any, msg_flags: Any
    ) -> int:
        """recvmsg(2) with room for the control message."""
        data, kind, out_flags = self.recvmsg(fd, size, flags)
        ffi.memmove(buffer, data, len(data))
        if kind is not None:
            has[0] = 1
            ffi.memmove(record, kind, len(kind))
        msg_flags[0] = out_flags
        return len(data)

    def recv(self, fd: int, size: int, flags: int = 0) -> bytes:
        """recv(2), which pyktls never uses: the type is lost."""
        try:
            return self.recvmsg(fd, size, flags)[0]
        except Errno as e:
            raise OSError(e.args[0], os.strerror(e.args[0])) from None

    def recvmsg_with_room(self, fd: int, size: int, room: int) -> tuple[bytes, int, bool]:
        """recvmsg(2) by way of calls.h: (data, control messages, whether one was cut)."""
        buffer, messages, flags = ffi.new("char[]", size), ffi.new("int *"), ffi.new("int *")
        received = self._library.fake_recvmsg_with_room(fd, buffer, size, room, messages, flags)
        if received < 0:
            raise OSError(-received, os.strerror(-received))
        cut = bool(flags[0] & socket.MSG_CTRUNC)
        return bytes(ffi.buffer(buffer, received)), messages[0], cut

    def recvmsg(self, fd: int, size: int, flags: int = 0) -> tuple[bytes, bytes | None, int]:
        """(data, struct tls_get_record if there was one, msg_flags); raises Errno."""
        state = self.state(fd)
        if flags & socket.MSG_OOB:
            raise Errno(errno.EINVAL)  # there is no urgent data
        with Real(fd) as sock:
            if state.rx is None:
                return self.when_ready(sock, select.POLLIN, sock.recv, size, flags), None, 0
            with state.rx_lock:
                waits = self.blocking(sock.fileno(), flags)
                begin = time.monotonic()
                while not self.look(state, sock):
                    if not waits:
                        raise Errno(errno.EAGAIN)
                    if time.monotonic() - begin > FOREVER:
                        self.blocked_for_ever += 1
                        raise Errno(errno.EDEADLK)
                    self.pause()
                if state.ready is not None:
                    return self.deliver(state, sock, size, flags)
                if state.error:
                    error, state.error = state.error, 0
                    raise Errno(error)
                return b"", None, 0

    def look(self, state: State, sock: socket.socket) -> bool:
        """Whether a read would come back; decrypts until there is a record, or nothing more."""
        while state.ready is None:
            if state.wedged or state.cut_off:
                return bool(state.error)
            record = self.gather(state, sock)
            if record is None:
                return bool(state.error)  # no whole one yet
            if not record:
                if not state.partial:
                    return True  # the end
                state.error, state.cut_off = errno.EMSGSIZE, True
                return True
            self.decrypt(state, sock, record)
        return True

    @staticmethod
    def gather(state: State, sock: socket.socket) -> bytes | None:
        """The next whole record; None if it is not there, b"" at the end of the stream."""
        partial = state.partial
        while True:
            have = len(partial)
            size = 5 + int.from_bytes(partial[3:5], "big") if have >= 5 else 5
            last = have + 1 >= size
            flags = socket.MSG_DONTWAIT | (socket.MSG_PEEK if last else 0)
            try:
                piece = sock.recv(1 if last else size - 1 - have, flags)
            except BlockingIOError:
                return None
            except OSError as e:
                raise Errno(e.errno) from None
            if not piece:
                return b""
            if not last:
                partial += piece
            elif size > 5 or (partial[3], piece[0]) == (0, 0):
                return bytes(partial) + piece
            else:
                partial += sock.recv(1)  # it ended the header, not the record

    @staticmethod
    def consume(state: State, sock: socket.socket) -> None:
        sock.recv(1)
        state.partial.clear()

    def decrypt(self, state: State, sock: socket.socket, record: bytes) -> None:
        rx = state.rx
        assert rx is not None
        if record[1:3] != rx.wire_version or (rx.minor == 4 and record[0] != 23):
            self.drop(state, sock, errno.EINVAL)
        elif not rx.check_length(len(record) - 5):
            self.drop(state, sock, errno.EMSGSIZE)
        else:
            try:
                kind, data = rx.unprotect(record)
            except BadRecord:
                self.count("kern.ipc.tls.stats.corrupted_records")
                state.error = errno.EBADMSG
                self.consume(state, sock)
            except FatalRecord:
                self.drop(state, sock, errno.EMSGSIZE)
            else:
                state.ready = Ready(kind, data)

    def drop(self, state: State, sock: socket.socket, error: int) -> None:
        """End the connection: the peer gets a reset.  What is in the buffer stays there."""
        state.error = error
        state.wedged = True
        address = struct.pack("=H14x", socket.AF_UNSPEC)
        ctypes.CDLL(None).connect(sock.fileno(), address, len(address))

    def deliver(
        self, state: State, sock: socket.socket, size: int, flags: int
    ) -> tuple[bytes, bytes | None, int]:
        ready = state.ready
        assert ready is not None
        assert state.rx is not None
        piece = ready.data[ready.position : ready.position + size]
        first = ready.position == 0
        ends = ready.position + len(piece) == len(ready.data)
        if not flags & socket.MSG_PEEK:
            ready.position += len(piece)
            if ends:
                state.ready = None
                self.consume(state, sock)
        record = bytes((ready.kind,)) + state.rx.wire_version + b"\0"
        record += len(ready.data).to_bytes(2, "big")
        # An empty record has no MSG_EOR, and only the first part has the control message.
        eor = socket.MSG_EOR if ends and ready.data else 0
        return piece, record if first else None, eor

    # ---- sending

    def transmit(self, fd: int, iov: Any, count: int, flags: int, record_type: int) -> int:
        """sendmsg(2)."""
        if count > MOST_PIECES:
            return -errno.EMSGSIZE
        return self.sendmsg(fd, b"".join(pieces_of(iov, count)), flags, record_type)

    def sendmsg(self, fd: int, data: bytes, flags: int = 0, record_type: int = -1) -> int:
        """``record_type`` of -1 is no control message; raises Errno."""
        state = self.state(fd)
        with Real(fd) as sock:
            if flags & socket.MSG_EOR:
                raise Errno(errno.EINVAL)
            if state.tx is None:
                if record_type >= 0:
                    raise Errno(errno.EINVAL)
                return self.when_ready(sock, select.POLLOUT, sock.send, data, flags)
            if state.wedged:
                raise Errno(errno.EPIPE)
            if not data and not state.tx.is_chained:
                raise Errno(errno.EINVAL)
            self.tell_error(state, sock)
            waits = self.blocking(sock.fileno(), flags)
            room = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            with state.tx_lock:
                if record_type >= 0:
                    if len(data) > room:
                        raise Errno(errno.EMSGSIZE)
                    self.send_records(state, sock, [(record_type, data)], waits=waits)
                    return len(data)
                if not waits:
                    data = data[: max(1, min(room, AT_ONCE))]
                    self.send_records(state, sock, [(23, data)], waits=False)
                    return len(data)
                most = self.sysctl("kern.ipc.tls.maxlen")
                for start in range(0, len(data) or 1, most):
                    try:
                        piece = data[start : start + most]
                        self.send_records(state, sock, [(23, piece)], waits=True)
                    except Errno:
                        if not start:
                            raise
                        return start
                return len(data)

    def send(self, fd: int, data: bytes) -> int:
        """send(2), without a type."""
        try:
            return self.sendmsg(fd, data)
        except Errno as e:
            raise OSError(e.args[0], os.strerror(e.args[0])) from None

    def sendto(self, fd: int, data: bytes, address: tuple[str, int]) -> int:
        """sendto(2), which would connect first: TCP cannot broadcast, with keys or without."""
        self.state(fd)
        if address[0] == "255.255.255.255":
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        raise NotImplementedError(f"{len(data)} bytes to {address}")

    def tell_error(self, state: State, sock: socket.socket) -> None:
        """What sosend and sendfile begin with: so_error, which is forgotten by that."""
        self.decrypt_what_has_come(state, sock)
        if state.error:
            error, state.error = state.error, 0
            raise Errno(error)

    def take_error(self, fd: int, state: State) -> int:
        """SO_ERROR, which is forgotten by that too."""
        with Real(fd) as sock:
            self.decrypt_what_has_come(state, sock)
            error, state.error = state.error, 0
            return error or sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def decrypt_what_has_come(self, state: State, sock: socket.socket) -> None:
        """A thread of the kernel has done that by the time of any other call."""
        if state.rx is not None and state.rx_lock.acquire(blocking=False):
            try:
                self.look(state, sock)
            finally:
                state.rx_lock.release()

    def send_records(
        self, state: State, sock: socket.socket, pieces: list[tuple[int, bytes]], *, waits: bool
    ) -> None:
        """All of it or nothing; what the real socket has no room for goes out from a thread."""
        assert state.tx is not None
        while state.pending or not self.writable(sock):
            if not waits:
                raise Errno(errno.EAGAIN)
            self.pause()
        most = self.sysctl("kern.ipc.tls.maxlen")
        wire = b"".join(
            state.tx.protect(kind, data[start : start + most])
            for kind, data in pieces
            for start in range(0, len(data) or 1, most)
        )
        try:
            sent = sock.send(wire, socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError as e:
            raise Errno(e.errno) from None
        if sent < len(wire):
            state.pending = wire[sent:]
            threading.Thread(
                target=self.flush, args=(state, os.dup(sock.fileno())), daemon=True
            ).start()

    @staticmethod
    def writable(sock: socket.socket) -> bool:
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        return bool(poll.poll(0))

    @staticmethod
    def flush(state: State, fd: int) -> None:
        with socket.socket(fileno=fd) as sock:
            poll = select.poll()
            poll.register(sock, select.POLLOUT)
            try:
                while state.pending:
                    poll.poll(1000)
                    try:
                        sent = sock.send(state.pending, socket.MSG_DONTWAIT)
                    except BlockingIOError:
                        continue
                    state.pending = state.pending[sent:]
            except OSError:
                state.pending = b""

    def send_file(
        self,
        file: int,
        fd: int,
        offset: int,
        count: int,
        headers: Any,
        header_count: int,
        trailers: Any,
        trailer_count: int,
        sent: Any,
    ) -> int:
        """sendfile(2): headers, records that follow the file's pages, trailers."""
        state = self.state(fd)
        if max(header_count, trailer_count) > MOST_PIECES:
            return -errno.EINVAL
        end = os.fstat(file).st_size
        if count:
            end = min(end, offset + count)
        # The headers go with the first page, and nowhere if there is none.
        pieces = pieces_of(headers, header_count if offset < end else 0)
        position = offset
        while position < end:
            size = min(LARGEST - position % LARGEST, end - position)
            pieces.append(os.pread(file, size, position))
            position += size
        pieces = [piece for piece in pieces if piece]
        if trailers != ffi.NULL:  # a write of its own, of nothing too
            pieces.append(b"".join(pieces_of(trailers, trailer_count)))
        with Real(fd) as sock:
            for piece in pieces:
                if state.tx and not piece and not state.tx.is_chained:
                    return -errno.EINVAL
                try:
                    if state.tx is None:
                        sock.sendall(piece)
                    else:
                        with state.tx_lock:
                            self.tell_error(state, sock)
                            waits = self.blocking(sock.fileno(), 0)
                            self.send_records(state, sock, [(23, piece)], waits=waits)
                except Errno as e:
                    return -e.args[0]
                except OSError as e:
                    return -(e.errno or errno.EIO)
                sent[0] += len(piece)
        return 0

    # ---- the rest

    def read_sysctl(self, name: Any, value: Any, size: Any) -> int:
        if self.capability_mode:
            return -errno.EPERM
        found = self.sysctls.get(ffi.string(name).decode())
        if found is None:
            return -errno.ENOENT
        data = struct.pack(*found)
        if size[0] < len(data):
            return -errno.ENOMEM
        ffi.memmove(value, data, len(data))
        size[0] = len(data)
        return 0

    def wait_for(self, fd: int, events: int, timeout: int) -> int:
        """poll(2) of one descriptor: a partial record is nothing to read."""
        state = self.state(fd)
        end = time.monotonic() + (FOREVER if timeout < 0 else timeout / 1000)
        with Real(fd) as sock:
            poll = select.poll()
            poll.register(sock, events)
            while True:
                found = poll.poll(0)
                ready = found[0][1] if found else 0
                if ready & select.POLLIN and state.rx and not state.wedged:
                    with state.rx_lock:
                        if not self.look(state, sock):
                            ready &= ~select.POLLIN
                if ready & select.POLLOUT and state.pending:
                    ready &= ~select.POLLOUT
                if ready or time.monotonic() >= end:
                    return ready
                self.pause()

    def pause(self) -> None:
        """Wait a moment; EINTR where whoever called has been interrupted."""
        stop = getattr(self._current, "stop", None)
        if stop is None:
            time.sleep(MOMENT)
        elif stop.wait(MOMENT):
            raise Errno(errno.EINTR)

    def when_ready(
        self, sock: socket.socket, event: int, call: Callable[..., Any], data: Any, flags: int
    ) -> Any:
        """A call on a socket without keys in that direction."""
        poll = select.poll()
        poll.register(sock, event)
        try:
            if self.blocking(sock.fileno(), flags):
                while not poll.poll(0):
                    self.pause()
            return call(data, flags)
        except OSError as e:
            raise Errno(e.errno) from None

    @staticmethod
    def blocking(fd: int, flags: int) -> bool:
        return not flags & socket.MSG_DONTWAIT and not (
            fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
        )

    # ---- behind the calls

    def install(self, library: pathlib.Path) -> None:
        self._library: Any = ffi.dlopen(str(library))
        table = self._library.fake_calls
        self._callbacks = []
        for name, member in ffi.typeof("struct fake_calls").fields:
            if name == "raised":
                continue
            callback = ffi.callback(
                member.type, self._guarded(getattr(self, name)), onerror=self._ended_by
            )
            self._callbacks.append(callback)  # cffi keeps them no longer than we do
            setattr(table, name, callback)

    def _guarded(self, call: Callable[..., int]) -> Callable[..., int]:
        name = call.__name__

        def guarded(*args: Any) -> int:
            self.calls.append(name)
            if self.interruptions and name in ("receive", "transmit"):
                self.interruptions -= 1
                return -errno.EINTR
            if threading.current_thread() is not threading.main_thread() or not signals_may_come():
                return self._called(call, args)
            made = Apart(self, call, args)
            self._made = made  # and nothing of a signal's comes between this and the next line
            start_new_thread(made.run, ())
            made.wait()
            self._made = made.within
            return made.result

        return guarded

    def _ended_by(self, _kind: object, error: BaseException, _where: object) -> int:
        """The handler of a signal raised within a call of the main thread, wherever that was."""
        if threading.current_thread() is not threading.main_thread():
            raise error
        made, self._made = self._made, None
        result = -errno.EINTR
        if made is not None:
            made.stop.set()
            while not made.over:
                try:
                    made.wait()
                except BaseException as e:  # noqa: BLE001  (the last one counts)
                    error = e
            self._made, result = made.within, made.result
        self._raise_afterwards(error)
        return result

    @staticmethod
    def _called(call: Callable[..., int], args: tuple[Any, ...]) -> int:
        try:
            return call(*args)
        except Errno as e:
            return -int(e.args[0])
        except OSError as e:
            return -(e.errno or errno.EIO)

    def _raise_afterwards(self, error: BaseException) -> None:
        def again(*_: object) -> None:
            signal.signal(signal.SIGUSR2, before)
            raise error

        before = signal.signal(signal.SIGUSR2, again)
        self._library.fake_calls.raised = 1


class Apart:
    """A call that another thread makes for the main one.

    It is waited for by one call, of a lock: what a handler raises comes out of that, and leaves
    nothing half done.
    """

    def __init__(self, kernel: Kernel, call: Callable[..., int], args: tuple[Any, ...]) -> None:
        self.kernel, self.call, self.args = kernel, call, args
        self.within = kernel._made
        self.stop = threading.Event()
        self.over = False
        self.running = threading.Lock()
        self.running.acquire()
        self.result = -errno.EFAULT

    def run(self) -> None:
        self.kernel._current.stop = self.stop
        try:
            self.result = self.kernel._called(self.call, self.args)
        finally:
            self.over = True
            self.running.release()

    def wait(self) -> None:
        while not self.over:
            self.running.acquire()


def signals_may_come() -> bool:
    """Whether a test has an alarm set, or wants SIGUSR1; the limit that pytest sets is far off."""
    return 0 < signal.getitimer(signal.ITIMER_REAL)[0] < SOON or callable(
        signal.getsignal(signal.SIGUSR1)
    )


class Real:
    """The real socket behind a descriptor, held until the call is over, whoever closes it.

    Borrowed, where the table of descriptors is full.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> socket.socket:
        flags = fcntl.fcntl(self.fd, fcntl.F_GETFL)
        try:
            self.own = os.dup(self.fd)
        except OSError as e:
            if e.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self.own = -1
        self.sock = socket.socket(fileno=self.fd if self.own < 0 else self.own)
        if self.sock.gettimeout() is not None:  # socket.setdefaulttimeout concerns nobody here
            self.sock.settimeout(None)
            fcntl.fcntl(self.fd, fcntl.F_SETFL, flags)
        return self.sock

    def __exit__(self, *_: object) -> None:
        self.sock.detach()
        if self.own >= 0:
            os.close(self.own)
