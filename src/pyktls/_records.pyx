"""recvmsg(2) and sendmsg(2) for TLS records: the hot path, and nothing else.

Every read goes through a control buffer, because a plain read of a kernel TLS socket fails at a
control record (Linux) or takes it for data (FreeBSD).  The calls run without the GIL, straight
into and out of the caller's buffer.  Timeouts and signals are as in the socket module: a call that
a signal interrupts is taken up again unless the handler raises (PEP 475), and the deadline counts
from the beginning.

A ``timeout`` is as socket.gettimeout() gives it: None waits for ever, 0 does not wait, any other
number is a limit in seconds.  The descriptor has the blocking mode that goes with it.

There are three floors.  Functions (``recv``, ``send``, ...) make one call on a descriptor.
``Channel`` is what the hot path has to know of one connection; record_layer.py derives from it and
adds all the rest.  ``SocketMethods`` puts its calls under the names that a socket has.  A read or a
write goes from there straight to the kernel as long as there is nothing else to do; whatever is
out of the ordinary, an argument to be refused included, goes to record_layer.py.

The module does not declare that it can do without the GIL, so a free-threaded Python switches it on
again: ``Lock`` and ``Channel.timeout`` rely on it (docs/pythons.md).
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.errno cimport EAGAIN, EBADF, EINTR, errno
from libc.math cimport ceil

import os

from pyktls.errors import InvalidType, InvalidValue, syscall_error


cdef extern from "<time.h>" nogil:
    # Not posix.time: its header, <sys/time.h>, declares these only by way of Python.h, if at all.
    ctypedef long time_t
    struct timespec:
        time_t tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *time)


cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    short POLLIN
    short POLLOUT
    int poll(pollfd *fds, unsigned long count, int timeout)


cdef extern from "<sys/stat.h>" nogil:
    # A member of type off_t, which has 64 bits wherever this is built (CPython sees to that).
    struct file_status "stat":
        long long st_size
    int fstat(int fd, file_status *status)


cdef extern from "<sys/socket.h>" nogil:
    int MSG_EOR
    int MSG_PEEK
    int MSG_DONTWAIT


cdef extern from "Python.h":
    # Declared without their exceptions, which are cleared at once: a frame to catch them would cost
    # more than the calls.
    int get_buffer_or_error "PyObject_GetBuffer" (object source, Py_buffer *view, int flags) noexcept
    Py_ssize_t as_ssize_t_or_error "PyLong_AsSsize_t" (object number) noexcept
    void *PyErr_Occurred() noexcept
    void PyErr_Clear() noexcept


cdef extern from "pythread.h":
    # Python's own locks, as threading uses them; they are in the stable ABI.
    ctypedef void *PyThread_type_lock
    ctypedef enum PyLockStatus:
        PY_LOCK_FAILURE
        PY_LOCK_ACQUIRED
        PY_LOCK_INTR
    PyThread_type_lock PyThread_allocate_lock()
    void PyThread_free_lock(PyThread_type_lock)
    int PyThread_acquire_lock(PyThread_type_lock, int wait) nogil
    PyLockStatus PyThread_acquire_lock_timed(
        PyThread_type_lock, long long microseconds, int interruptible) nogil
    void PyThread_release_lock(PyThread_type_lock)
    unsigned long PyThread_get_thread_ident()


cdef extern from "kernel.h" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    int PYKTLS_NO_RECORD_TYPE
    Py_ssize_t pyktls_recv_record_vector(int fd, const iovec *iov, size_t iov_count, int flags,
                                         int *record_type, int *msg_flags)
    int pyktls_system()
    int PYKTLS_FREEBSD
    Py_ssize_t pyktls_send_record(int fd, const iovec *iov, size_t iov_count, int flags,
                                  int record_type)


#: What stands for a record type where the kernel gave none, or where none is to be given.
NO_RECORD_TYPE = PYKTLS_NO_RECORD_TYPE

cdef enum:
    MOST_BUFFERS = 1024  # IOV_MAX of both systems
    LONGEST_POLL_MS = 1 << 30
    HANDSHAKE = 22  # RFC 8446 section 5.1
    APPLICATION_DATA = 23
    MOST_FLAGS = 0x7FFFFFFF
    FULL_RECORD_BITS = 14  # a full record has 2**14 bytes
    NOT_YET = -(1 << 30)  # no result of a system call


cdef int get_buffer(object source, Py_buffer *view, int flags) except -1:
    """PyObject_GetBuffer with an error of ours."""
    try:
        PyObject_GetBuffer(source, view, flags)
    except (TypeError, BufferError) as e:
        raise InvalidType(str(e)) from None
    return 0


cdef bint gives_buffer(object source, Py_buffer *view, int flags) noexcept:
    """The same without an error: whatever it is, it comes again where it is looked at."""
    if get_buffer_or_error(source, view, flags) == 0:
        return True
    PyErr_Clear()
    return False


cdef double now() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <double>t.tv_sec + <double>t.tv_nsec * 1e-9


cdef struct Wait:
    bint bounded  # False: no limit
    bint waits  # False: a call that would block fails at once
    bint begun  # the clock is running
    double limit  # seconds; once it has begun, the time by the monotonic clock
    const int *open_fd  # the Channel's descriptor, which another thread may close; or NULL


cdef void begin(Wait *wait) noexcept nogil:
    """Let the clock run.  A call that need not wait never looks at it."""
    if wait.bounded and not wait.begun:
        wait.limit += now()
        wait.begun = True


cdef Wait wait_for(object timeout) except *:
    cdef Wait wait
    wait.bounded = timeout is not None
    wait.limit = 0.0 if timeout is None else float(timeout)
    wait.waits = not wait.bounded or wait.limit != 0.0
    wait.begun = False
    wait.open_fd = NULL
    return wait


cdef int check_open(int fd, const Wait *wait, str call) except -1:
    """EBADF if another thread has closed the connection: ``fd`` may be another one's by now."""
    if wait.open_fd != NULL and (fd < 0 or wait.open_fd[0] != fd):
        raise syscall_error(EBADF, call)
    return 0


cdef class Channel


@cython.final
cdef class Deadline:
    """When a call has to be over: from a timeout as socket.gettimeout() gives it.

    One that a Channel has made also ends the call (OSError, EBADF) once that is closed.
    """

    cdef Wait wait
    cdef Channel channel  # which has what wait.open_fd points to
    cdef int backoff

    def __cinit__(self, timeout):
        self.wait = wait_for(timeout)
        begin(&self.wait)

    def remaining(self):
        """Seconds left, as a timeout: None without limit, never below 0."""
        if not self.wait.bounded:
            return None
        if not self.wait.waits:
            return 0.0
        return max(0.0, self.wait.limit - now())

    def back_off(self):
        """Pause where poll(2) says ready and the call gives nothing: longer each time, up to 15 ms."""
        back_off(&self.backoff, &self.wait)

    def for_another(self):
        """The same moment, for another descriptor, which the Channel does not close."""
        cdef Deadline deadline = Deadline.__new__(Deadline, None)
        deadline.wait = self.wait
        deadline.wait.open_fd = NULL
        return deadline


cdef int wait_until_ready(int fd, short events, Wait *wait) except -1:
    """Waits for poll(2); raises TimeoutError at the deadline, BlockingIOError if it is at once."""
    cdef pollfd p
    cdef double left
    cdef int milliseconds, ready, error
    begin(wait)
    while True:
        check_open(fd, wait, "poll")
        milliseconds = -1
        if not wait.waits:
            milliseconds = 0
        elif wait.bounded:
            left = wait.limit - now()
            if left <= 0.0:
                raise TimeoutError("timed out")
            left = ceil(left * 1000.0)
            milliseconds = LONGEST_POLL_MS if left > LONGEST_POLL_MS else <int>left
        p.fd = fd
        p.events = events
        p.revents = 0
        with nogil:
            ready = poll(&p, 1, milliseconds)
            error = errno
        if ready > 0:
            return 0
        if ready == 0 and not wait.waits:
            raise BlockingIOError(EAGAIN, "the descriptor is not ready")
        if ready < 0:
            if error != EINTR:
                raise syscall_error(error, "poll")
            PyErr_CheckSignals()


def wait_readable(int fd, Deadline deadline not None):
    """Wait until ``fd`` can be read; raises TimeoutError at the deadline.

    With a timeout of 0 it only looks, and raises BlockingIOError if it cannot be read.
    """
    wait_until_ready(fd, POLLIN, &deadline.wait)


def wait_writable(int fd, Deadline deadline not None):
    """Wait until ``fd`` can be written; otherwise as wait_readable."""
    wait_until_ready(fd, POLLOUT, &deadline.wait)


def file_size(int fd):
    """The size of a file by fstat(2), or 0 where there is no such descriptor.

    os.fstat gives this among much else, and takes nearly three times as many instructions for it.
    """
    cdef file_status status
    cdef int failed
    with nogil:
        failed = fstat(fd, &status)
    return 0 if failed else status.st_size


cdef int back_off(int *backoff, Wait *wait) except -1:
    """Sleep so many milliseconds, at most up to the deadline; more the next time."""
    cdef int milliseconds = backoff[0]
    cdef double left
    backoff[0] = min(2 * milliseconds + 1, 15)
    if milliseconds == 0:
        return 0
    if wait.bounded:
        left = (wait.limit - now()) * 1000.0
        if left < milliseconds:
            milliseconds = <int>ceil(left)
    if milliseconds > 0:
        with nogil:
            poll(NULL, 0, milliseconds)
        PyErr_CheckSignals()
    return 0


cdef Py_ssize_t receive(int fd, const iovec *iov, size_t count, int flags, Wait *wait,
                        int *record_type, int *msg_flags, Py_ssize_t first=NOT_YET) except -1:
    """``first`` is the result of the first call, where that has been made."""
    cdef Py_ssize_t received = first
    cdef int backoff = 0
    while True:
        if received == NOT_YET:
            check_open(fd, wait, "recvmsg")
            with nogil:
                received = pyktls_recv_record_vector(fd, iov, count, flags, record_type, msg_flags)
        if received >= 0:
            return received
        if received == -EINTR:
            PyErr_CheckSignals()
        elif received == -EAGAIN and wait.bounded and wait.waits:
            # Linux before 6.5 says POLLIN for a part of a record, which recvmsg does not give:
            # without a pause a peer that stops within a record would keep the processor busy.
            back_off(&backoff, wait)
            wait_until_ready(fd, POLLIN, wait)
        else:
            raise syscall_error(<int>-received, "recvmsg")
        received = NOT_YET


cdef Py_ssize_t transmit(int fd, const iovec *iov, size_t count, int flags, int record_type,
                         Wait *wait, Py_ssize_t first=NOT_YET) except -1:
    """``first`` is the result of the first call, where that has been made."""
    cdef Py_ssize_t sent = first
    while True:
        if sent == NOT_YET:
            check_open(fd, wait, "sendmsg")
            with nogil:
                sent = pyktls_send_record(fd, iov, count, flags, record_type)
        if sent >= 0:
            return sent
        if sent == -EINTR:
            PyErr_CheckSignals()
        elif sent == -EAGAIN and wait.bounded and wait.waits:
            wait_until_ready(fd, POLLOUT, wait)
        else:
            raise syscall_error(<int>-sent, "sendmsg")
        sent = NOT_YET


cdef int transmit_all(int fd, const void *data, size_t size, int flags, Wait *wait,
                      Py_ssize_t first=NOT_YET) except -1:
    cdef iovec iov
    cdef Py_ssize_t sent
    iov.iov_base = <void *>data
    iov.iov_len = size
    while iov.iov_len > 0:
        sent = transmit(fd, &iov, 1, flags, PYKTLS_NO_RECORD_TYPE, wait, first)
        first = NOT_YET
        iov.iov_base = <char *>iov.iov_base + sent
        iov.iov_len -= <size_t>sent
        PyErr_CheckSignals()
    return 0


def recv_into(int fd, buffer, size_t size, int flags, Deadline deadline not None):
    """Receive into ``buffer``, at most ``size`` bytes of it (0: all of it).

    Returns ``(bytes received, record type, msg_flags)``.  The type is NO_RECORD_TYPE where the
    kernel gave none: with 0 bytes that is the end of the stream.
    """
    cdef Py_buffer view
    cdef iovec iov
    cdef int record_type, msg_flags
    cdef Py_ssize_t received
    get_buffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    try:
        if size == 0 or size > <size_t>view.len:
            size = <size_t>view.len
        iov.iov_base = view.buf
        iov.iov_len = size
        received = receive(fd, &iov, 1, flags, &deadline.wait, &record_type, &msg_flags)
    finally:
        PyBuffer_Release(&view)
    return received, record_type, msg_flags


def recv(int fd, Py_ssize_t size, int flags, Deadline deadline not None):
    """Receive at most ``size`` bytes; returns ``(bytes, record type, msg_flags)``."""
    cdef int record_type, msg_flags
    cdef Py_ssize_t received
    cdef bytes data = PyBytes_FromStringAndSize(NULL, size)
    cdef iovec iov
    iov.iov_base = PyBytes_AsString(data)
    iov.iov_len = <size_t>size
    received = receive(fd, &iov, 1, flags, &deadline.wait, &record_type, &msg_flags)
    if received < size:
        data = PyBytes_FromStringAndSize(<char *>iov.iov_base, received)
    return data, record_type, msg_flags


def send(int fd, buffer, int flags, int record_type, Deadline deadline not None):
    """Send ``buffer`` in one call; returns the number of bytes the kernel took.

    ``record_type`` is NO_RECORD_TYPE for application data, or the type of a control record.
    """
    cdef Py_buffer view
    cdef iovec iov
    get_buffer(buffer, &view, PyBUF_SIMPLE)
    try:
        iov.iov_base = view.buf
        iov.iov_len = <size_t>view.len
        return transmit(fd, &iov, 1, flags, record_type, &deadline.wait)
    finally:
        PyBuffer_Release(&view)


def sendall(int fd, buffer, int flags, Deadline deadline not None):
    """Send all of ``buffer`` as application data.

    On an error nothing tells how much was sent, as with socket.sendall.
    """
    cdef Py_buffer view
    get_buffer(buffer, &view, PyBUF_SIMPLE)
    try:
        transmit_all(fd, view.buf, <size_t>view.len, flags, &deadline.wait)
    finally:
        PyBuffer_Release(&view)


def send_out(int fd, bytearray pending, int flags, Deadline deadline not None):
    """Send all of ``pending`` as it is, and remove from it what the kernel took.

    An exception, also one of a signal handler, never comes between the two.
    """
    cdef Py_buffer view
    cdef iovec iov
    cdef Py_ssize_t sent
    while len(pending) > 0:
        get_buffer(pending, &view, PyBUF_SIMPLE)
        try:
            iov.iov_base = view.buf
            iov.iov_len = <size_t>view.len
            sent = transmit(fd, &iov, 1, flags, PYKTLS_NO_RECORD_TYPE, &deadline.wait)
        finally:
            PyBuffer_Release(&view)
        del pending[:sent]


@cython.final
cdef class Vector:
    """The memory of several buffers, held for as long as this object lives."""

    cdef Py_buffer *views
    cdef iovec *iov
    cdef size_t count
    cdef size_t held

    def __cinit__(self, buffers, bint writable):
        cdef list items
        try:
            items = list(buffers)
        except TypeError as e:
            raise InvalidType(f"buffers: {e}") from None
        except ValueError as e:  # a file that is closed
            raise InvalidValue(f"buffers: {e}") from None
        cdef int flags = PyBUF_SIMPLE | PyBUF_WRITABLE if writable else PyBUF_SIMPLE
        cdef size_t i
        self.count = len(items)
        if self.count > MOST_BUFFERS:
            raise InvalidValue(f"at most {MOST_BUFFERS} buffers in one call, not {self.count}")
        self.views = <Py_buffer *>PyMem_Malloc((self.count + 1) * sizeof(Py_buffer))
        self.iov = <iovec *>PyMem_Malloc((self.count + 1) * sizeof(iovec))
        if self.views == NULL or self.iov == NULL:
            raise MemoryError
        for i in range(self.count):
            get_buffer(items[i], &self.views[i], flags)
            self.held += 1
            self.iov[i].iov_base = self.views[i].buf
            self.iov[i].iov_len = <size_t>self.views[i].len

    cdef Py_ssize_t size(self) noexcept:
        cdef size_t i, total = 0
        for i in range(self.count):
            total += self.iov[i].iov_len
        return <Py_ssize_t>total

    cdef void release(self) noexcept:
        while self.held > 0:
            self.held -= 1
            PyBuffer_Release(&self.views[self.held])

    def __dealloc__(self):
        self.release()
        PyMem_Free(self.views)
        PyMem_Free(self.iov)


def recvmsg_into(int fd, buffers, int flags, Deadline deadline not None):
    """Receive into the ``buffers``, one after the other; returns as recv_into."""
    cdef Vector vector = Vector(buffers, True)
    cdef int record_type, msg_flags
    cdef Py_ssize_t received
    try:
        received = receive(
            fd, vector.iov, vector.count, flags, &deadline.wait, &record_type, &msg_flags
        )
    finally:
        vector.release()
    return received, record_type, msg_flags


def sendmsg(int fd, buffers, int flags, int record_type, Deadline deadline not None):
    """Send the ``buffers`` one after the other, gathered in one call.

    ``record_type`` is as in send.  Returns the number of bytes the kernel took.
    """
    cdef Vector vector = Vector(buffers, False)
    try:
        return transmit(fd, vector.iov, vector.count, flags, record_type, &deadline.wait)
    finally:
        vector.release()


# ---- locks ------------------------------------------------------------------------------------


cdef unsigned long era = 1  # grows with each fork, in the parent too
cdef unsigned long first_era = 1  # of this process
cdef unsigned long survivor = 0  # the thread that the latest fork has left


def _has_forked():
    global era
    era += 1


def _was_forked():
    global era, first_era, survivor
    era += 1
    first_era = era
    survivor = PyThread_get_thread_ident()


os.register_at_fork(after_in_child=_was_forked, after_in_parent=_has_forked)


@cython.final
cdef class Lock:
    """A reentrant lock that costs next to nothing while nobody else wants it.

    Reentrant, because a signal handler may use a connection in the middle of a call on it; ``depth``
    is how often its owner has taken it.  In the child of a fork it is free, because the thread that
    held it has stayed with the parent, unless that is the thread that forked.
    """

    cdef PyThread_type_lock lock
    cdef unsigned long owner  # meaningful while depth is not 0
    cdef readonly unsigned long depth
    cdef unsigned long forked

    def __cinit__(self):
        self.lock = PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError
        self.forked = first_era

    def __dealloc__(self):
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    cdef bint take(self) except -1:
        """Take it if it is free, or mine already."""
        cdef unsigned long me = PyThread_get_thread_ident()
        if self.forked != first_era:
            if self.depth == 0 or self.owner != survivor:
                # The old one may be held for ever; it is left as it is.
                self.lock = PyThread_allocate_lock()
                if self.lock == NULL:
                    raise MemoryError
                self.depth = 0
            self.forked = first_era
        if self.depth > 0 and self.owner == me:
            self.depth += 1
            return True
        if not PyThread_acquire_lock(self.lock, 0):
            return False
        self.owner = me
        self.depth = 1
        return True

    cdef int give(self) except -1:
        if self.depth == 0 or self.owner != PyThread_get_thread_ident():
            raise RuntimeError("the lock is not held by this thread")
        self.depth -= 1
        if self.depth == 0:
            PyThread_release_lock(self.lock)
        return 0

    def acquire(self, timeout=None):
        """Take it; waits for at most ``timeout`` seconds (None: for ever); tells whether it has."""
        cdef PyLockStatus status
        cdef long long microseconds = -1
        cdef Wait wait
        if self.take():
            return True
        wait = wait_for(timeout)
        if not wait.waits:
            return False
        begin(&wait)
        while True:
            if wait.bounded:
                microseconds = <long long>max(0.0, min(wait.limit - now(), 1e9) * 1e6)
            with nogil:
                status = PyThread_acquire_lock_timed(self.lock, microseconds, 1)
            if status == PY_LOCK_ACQUIRED:
                self.owner = PyThread_get_thread_ident()
                self.depth = 1
                return True
            if status == PY_LOCK_INTR:
                PyErr_CheckSignals()
            elif wait.bounded and wait.limit <= now():
                return False

    def release(self):
        """Give it back, as often as it was taken."""
        self.give()

    def __enter__(self):
        self.acquire()

    def __exit__(self, *_):
        self.give()


@cython.final
@cython.auto_pickle(False)
cdef class Turn:
    """The context of a call: its lock is held within, and it gives the call's deadline.

    Waiting for another thread's call counts: TimeoutError, or BlockingIOError for a call that is
    not to wait.
    """

    cdef Lock lock
    cdef Deadline deadline
    cdef bint waits

    def __enter__(self):
        if not self.lock.acquire(self.deadline.remaining() if self.waits else 0.0):
            if self.waits:
                raise TimeoutError("timed out")
            raise BlockingIOError(EAGAIN, "another thread is in a call on the connection")
        return self.deadline

    def __exit__(self, *_):
        self.lock.give()


# ---- one connection ---------------------------------------------------------------------------


cdef bint on_freebsd = pyktls_system() == PYKTLS_FREEBSD
cdef long alive = 0


def channels():
    """How many there are in this process."""
    return alive


cdef class Channel:
    """What the hot path has to know of one connection; record_layer.RecordLayer has the rest.

    ``fd`` is the descriptor, -1 once it is closed.  ``straight_in`` and ``straight_out`` tell
    whether a read, a write, may go to the kernel at once: no error is kept, no message begun, no
    answer due.  ``records_sent`` is how many records have been sent under the present keys,
    estimated from lengths; at ``next_count`` RecordLayer counts again.

    What is met on the way goes to methods of the derived class, under the lock concerned:
    ``_received_other(piece, record_type, msg_flags, asked, deadline)`` with what was no application
    data, ``receive_failed(error)``, which raises.  They set ``straight_in`` and ``straight_out``.

    ``looks_behind`` tells whether a KeyUpdate can hide behind data that was read (``look_behind``);
    -1 until it is asked.
    """

    cdef public int fd
    cdef public bint straight_in
    cdef public bint straight_out
    cdef public unsigned long long records_sent
    cdef public unsigned long long next_count
    cdef public int most_flags
    cdef public int looks_behind
    cdef readonly Lock receive_lock
    cdef readonly Lock send_lock
    cdef bint _reading_data
    cdef Wait _wait
    cdef object _timeout
    cdef unsigned long _made  # in which era
    cdef unsigned long _used  # in which era last; 0: never

    def __cinit__(self, *_, **__):
        global alive
        alive += 1
        self.fd = -1
        self.receive_lock = Lock()
        self.send_lock = Lock()
        self.timeout = None
        self._made = era
        self.most_flags = MOST_FLAGS
        self.looks_behind = -1

    def __dealloc__(self):
        global alive
        alive -= 1

    @property
    def timeout(self):
        """The timeout of each call, as socket.gettimeout() gives it."""
        return self._timeout

    @timeout.setter
    def timeout(self, value):
        self._wait = wait_for(value)
        self._wait.open_fd = &self.fd
        self._timeout = value

    cdef Deadline deadline_of(self, const Wait *wait):
        """The same moment, for Python."""
        cdef Deadline deadline = Deadline.__new__(Deadline, None)
        deadline.wait = wait[0]
        deadline.channel = self
        begin(&deadline.wait)
        return deadline

    cdef void note_use(self) noexcept:
        self._used = era

    def deadline(self):
        """When a call that begins now has to be over."""
        self.note_use()
        return self.deadline_of(&self._wait)

    def deadline_in(self, seconds):
        """When so many seconds are over; 0 for what does not wait."""
        cdef Wait wait = wait_for(seconds)
        wait.open_fd = &self.fd
        return self.deadline_of(&wait)

    cdef Turn turn(self, Lock lock, int flags):
        cdef Turn turn = Turn.__new__(Turn)
        turn.lock = lock
        turn.deadline = self.deadline()
        turn.waits = turn.deadline.wait.waits and not flags & MSG_DONTWAIT
        return turn

    def receiving(self, int flags=0):
        """``with`` it a call may receive, and has its deadline."""
        return self.turn(self.receive_lock, flags)

    def sending(self, int flags=0):
        """``with`` it a call may send, and has its deadline."""
        return self.turn(self.send_lock, flags)

    def used_here(self):
        """Whether this process has sent or received."""
        return self._used >= first_era

    def forked_since_made(self):
        """Whether there has been a fork, in this process or to it."""
        return self._made != era

    def note_data(self, int record_type, Py_ssize_t received, int msg_flags, bint peeked):
        """Whether a read returned application data; also remembers where it stopped.

        FreeBSD tells the type only with the first part of a record that is read in parts.
        """
        return self.is_data(record_type, received, msg_flags, peeked)

    # These two are not cpdef: each call would look for a method in Python that overrides it.
    cdef bint is_data(
        self, int record_type, Py_ssize_t received, int msg_flags, bint peeked
    ) noexcept:
        cdef bint rest = (
            self._reading_data and record_type == PYKTLS_NO_RECORD_TYPE and received > 0
        )
        if not rest and record_type != APPLICATION_DATA:
            return False
        if on_freebsd and not peeked:
            # An empty record has no MSG_EOR, and no rest either.
            self._reading_data = received > 0 and not msg_flags & MSG_EOR
        return True

    @property
    def reading_data(self):
        """Whether the rest of a data record comes next, without a type (FreeBSD)."""
        return self._reading_data

    @reading_data.setter
    def reading_data(self, value):
        self._reading_data = value

    cdef Py_ssize_t read(self, iovec *iov, Wait *wait, int *record_type, int *msg_flags) except -1:
        cdef Py_ssize_t received
        self.note_use()
        with nogil:
            received = pyktls_recv_record_vector(self.fd, iov, 1, 0, record_type, msg_flags)
        if received >= 0:
            return received
        # What it says is dealt with there, where an error can be caught.
        return self.read_after(received, iov, wait, record_type, msg_flags)

    cdef Py_ssize_t read_after(self, Py_ssize_t result, iovec *iov, Wait *wait, int *record_type,
                               int *msg_flags) except -1:
        try:
            return receive(self.fd, iov, 1, 0, wait, record_type, msg_flags, result)
        except OSError as e:
            self.receive_failed(e)
            raise

    def look_behind(self):
        """Deal with handshake records that come right behind data which a read has just given.

        A read that has room left decrypts the next record too, and stops there if it is of another
        type.  If that is a KeyUpdate, Linux (since 6.14) says from then on that there is nothing to
        read, and select(2) would wait for ever: so it is taken in at once.
        """
        self.take_in()

    cdef int take_in(self) except -1:
        cdef int record_type
        cdef Py_ssize_t found
        if self.looks_behind < 0:
            self.looks_behind = self.can_hide()
        while self.looks_behind:
            found = self.peek(&record_type)
            if found < 0 and found != -EAGAIN:
                self.keep_error(<int>-found)
            # The kernel looks past an empty record, and may have met a KeyUpdate there.
            if found < 0 or not (
                record_type == HANDSHAKE or (record_type == APPLICATION_DATA and found == 0)
            ):
                break
            if not self.take_in_one():
                break
        return 0

    cdef int look_behind_read(self, const void *memory, Py_ssize_t received) except -1:
        """The same, without a loss of the data that has just been read."""
        try:
            self.take_in()
        except BaseException:  # a signal handler's
            self.leftover = PyBytes_FromStringAndSize(<char *>memory, received) + self.leftover
            raise
        return 0

    cdef Py_ssize_t peek(self, int *record_type) noexcept:
        """What comes next: its type, and 1 or 0 (an empty record) or an error's number below 0."""
        cdef char byte
        cdef iovec iov
        cdef int msg_flags
        cdef Py_ssize_t received
        iov.iov_base = &byte
        iov.iov_len = 1
        with nogil:
            received = pyktls_recv_record_vector(
                self.fd, &iov, 1, MSG_PEEK | MSG_DONTWAIT, record_type, &msg_flags)
        return received

    cdef object recv(self, Py_ssize_t size):
        """Read into new bytes; None if the long way has to be gone."""
        cdef Wait wait = self._wait
        cdef int record_type, msg_flags
        cdef Py_ssize_t received
        cdef iovec iov
        if not self.receive_lock.take():
            return None
        try:
            if not self.straight_in:
                return None
            room = PyBytes_FromStringAndSize(NULL, size)
            iov.iov_base = PyBytes_AsString(room)
            iov.iov_len = <size_t>size
            received = self.read(&iov, &wait, &record_type, &msg_flags)
            if received > 0 and self.is_data(record_type, received, msg_flags, False):
                if received == size:
                    return room
                # What shortens it in place is not in the stable ABI.
                data = PyBytes_FromStringAndSize(<char *>iov.iov_base, received)
                if self.looks_behind:
                    self.look_behind_read(iov.iov_base, received)
                return data
            return self._recv_after_other(
                bytearray(room[:received]), record_type, msg_flags, size, self.deadline_of(&wait)
            )
        finally:
            self.receive_lock.give()

    cdef Py_ssize_t recv_into(self, void *memory, Py_ssize_t size, object buffer) except? -1:
        """Read into memory, which is that of ``buffer``; -1 if the long way has to be gone."""
        cdef Wait wait = self._wait
        cdef int record_type, msg_flags
        cdef Py_ssize_t received
        cdef iovec iov
        if not self.receive_lock.take():
            return -1
        try:
            if not self.straight_in:
                return -1
            iov.iov_base = memory
            iov.iov_len = <size_t>size
            received = self.read(&iov, &wait, &record_type, &msg_flags)
            if received > 0 and self.is_data(record_type, received, msg_flags, False):
                if received < size and self.looks_behind:
                    self.look_behind_read(memory, received)
                return received
            return self._recv_into_after_other(
                buffer, size, received, record_type, msg_flags, self.deadline_of(&wait)
            )
        finally:
            self.receive_lock.give()

    def count(self, Py_ssize_t size, unsigned long long pieces):
        """Count the records of a send before it; False if there may be too many."""
        return self.counts(size, pieces)

    cdef bint counts(self, Py_ssize_t size, unsigned long long pieces) noexcept:
        cdef unsigned long long records = self.records_sent + pieces
        records += <unsigned long long>(size >> FULL_RECORD_BITS)
        self.note_use()
        if records > self.next_count:
            return False
        self.records_sent = records
        return True

    cdef Py_ssize_t send(self, object buffer, int flags, bint everything) except? -1:
        """Send a buffer, or all of it; -1 if the long way has to be gone."""
        cdef Wait wait = self._wait
        cdef Py_buffer view
        cdef iovec iov
        cdef Py_ssize_t sent
        if not self.send_lock.take():
            return -1
        try:
            if not self.straight_out:
                return -1
            if not gives_buffer(buffer, &view, PyBUF_SIMPLE):
                return -1
            try:
                if view.len == 0:
                    return 0  # no such record can be sent, and none is needed
                if not self.counts(view.len, 1):
                    return -1
                iov.iov_base = view.buf
                iov.iov_len = <size_t>view.len
                with nogil:
                    sent = pyktls_send_record(self.fd, &iov, 1, flags, PYKTLS_NO_RECORD_TYPE)
                if sent < 0 or (everything and sent < view.len):
                    return self.send_after(sent, &iov, flags, everything, &wait)
                if everything:
                    PyErr_CheckSignals()
                return sent
            finally:
                PyBuffer_Release(&view)
        finally:
            self.send_lock.give()

    cdef Py_ssize_t send_after(self, Py_ssize_t result, iovec *iov, int flags, bint everything,
                               Wait *wait) except? -1:
        """Go on where the first call did not do; here an error can be caught."""
        try:
            if everything:
                transmit_all(self.fd, iov.iov_base, iov.iov_len, flags, wait, result)
                return 0
            return transmit(self.fd, iov, 1, flags, PYKTLS_NO_RECORD_TYPE, wait, result)
        except OSError as e:
            self.send_failed(e)
            raise

    cdef Py_ssize_t send_gathered(self, object buffers, int flags) except? -1:
        """Send buffers, gathered; -1 if the long way has to be gone."""
        cdef Wait wait = self._wait
        cdef Vector vector
        if not self.send_lock.take():
            return -1
        try:
            if not self.straight_out:
                return -1
            vector = Vector(buffers, False)
            try:
                if not self.counts(vector.size(), vector.count + 1):
                    return -1
                return transmit(
                    self.fd, vector.iov, vector.count, flags, PYKTLS_NO_RECORD_TYPE, &wait
                )
            except OSError as e:
                self.send_failed(e)
                raise
            finally:
                vector.release()
        finally:
            self.send_lock.give()


# ---- the methods of a socket ------------------------------------------------------------------


cdef object ZERO = 0


cdef Py_ssize_t small(object number) noexcept:
    """The value of an int from 0 on; -1 for everything else, and no error."""
    cdef Py_ssize_t value
    if number is ZERO:
        return 0
    if type(number) is not int:
        return -1
    value = as_ssize_t_or_error(number)
    if value == -1 and PyErr_Occurred() != NULL:  # too large
        PyErr_Clear()
    return value if value >= 0 else -1


@cython.binding(False)
@cython.auto_pickle(False)  # the socket class says that it cannot be done
cdef class SocketMethods:
    """recv, recv_into, send, sendall and sendmsg, to stand before a socket class's own.

    The class needs an attribute ``_layer``: a RecordLayer, or None as long as the socket's own
    methods are to be used.
    """

    def recv(self, buflen=1024, flags=0):
        """recv(buflen=1024, flags=0)
        --

        Receive at most buflen bytes; b"" after the peer's close_notify.
        """
        cdef Py_ssize_t size
        layer = self._layer
        if layer is None:
            return super(SocketMethods, self).recv(buflen, flags)
        if flags is ZERO and (<Channel?>layer).straight_in:
            size = small(buflen)
            if size > 0:
                data = (<Channel>layer).recv(size)
                if data is not None:
                    return data
        return layer.recv_slowly(buflen, flags)

    def recv_into(self, buffer, nbytes=0, flags=0):
        """recv_into(buffer, nbytes=0, flags=0)
        --

        Receive into buffer; returns the number of bytes, 0 after the peer's close_notify.
        """
        cdef Py_ssize_t size, received
        cdef Py_buffer view
        layer = self._layer
        if layer is None:
            return super(SocketMethods, self).recv_into(buffer, nbytes, flags)
        if flags is ZERO and (<Channel?>layer).straight_in:
            size = small(nbytes)
            # An object that gives no such buffer gets its error the long way.
            if size >= 0 and gives_buffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE):
                try:
                    if size == 0:
                        size = view.len
                    if 0 < size <= view.len:
                        received = (<Channel>layer).recv_into(view.buf, size, buffer)
                        if received >= 0:
                            return received
                finally:
                    PyBuffer_Release(&view)
        return layer.recv_into_slowly(buffer, nbytes, flags)

    def send(self, data, flags=0):
        """send(data, flags=0)
        --

        Send; returns the number of bytes that the kernel took.
        """
        cdef Py_ssize_t sent, bits
        layer = self._layer
        if layer is None:
            return super(SocketMethods, self).send(data, flags)
        bits = small(flags)
        if 0 <= bits <= (<Channel?>layer).most_flags and (<Channel>layer).straight_out:
            sent = (<Channel>layer).send(data, <int>bits, False)
            if sent >= 0:
                return sent
        return layer.send_slowly(data, flags)

    def sendall(self, data, flags=0):
        """sendall(data, flags=0)
        --

        Send all of data; on an error nothing tells how much of it was sent.
        """
        cdef Py_ssize_t bits
        layer = self._layer
        if layer is None:
            return super(SocketMethods, self).sendall(data, flags)
        bits = small(flags)
        if 0 <= bits <= (<Channel?>layer).most_flags and (<Channel>layer).straight_out:
            if (<Channel>layer).send(data, <int>bits, True) >= 0:
                return None
        return layer.sendall_slowly(data, flags)

    def sendmsg(self, buffers, ancdata=(), flags=0, address=None, /):
        """sendmsg(buffers, ancdata=(), flags=0, address=None, /)
        --

        Send the buffers in one call; ancillary data and an address are refused.
        """
        cdef Py_ssize_t sent, bits
        layer = self._layer
        if layer is None:
            return super(SocketMethods, self).sendmsg(buffers, ancdata, flags, address)
        bits = small(flags)
        if (
            0 <= bits <= (<Channel?>layer).most_flags and address is None and type(ancdata) is tuple and not ancdata
            # An iterator could be gone through only once.
            and (type(buffers) is list or type(buffers) is tuple)
            and (<Channel>layer).straight_out
        ):
            sent = (<Channel>layer).send_gathered(buffers, <int>bits)
            if sent >= 0:
                return sent
        return layer.sendmsg_slowly(buffers, ancdata, flags, address)
