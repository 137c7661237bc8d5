"""recvmsg(2) and sendmsg(2) for TLS records: the hot path, and nothing else.

Every read goes through a control buffer, because a plain read of a kernel TLS socket fails at a
control record (Linux) or takes it for data (FreeBSD).  The calls run without the GIL, straight
into and out of the caller's buffer.  Timeouts and signals are as in the socket module: a call that
a signal interrupts is taken up again unless the handler raises (PEP 475), and the deadline counts
from the beginning.

A ``timeout`` is as socket.gettimeout() gives it: None waits for ever, 0 does not wait, any other
number is a limit in seconds.  The descriptor has the blocking mode that goes with it.
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
from libc.errno cimport EAGAIN, EINTR, errno
from libc.math cimport ceil

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


cdef extern from "kernel.h" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    int PYKTLS_NO_RECORD_TYPE
    Py_ssize_t pyktls_recv_record_vector(int fd, const iovec *iov, size_t iov_count, int flags,
                                         int *record_type, int *msg_flags)
    Py_ssize_t pyktls_send_record(int fd, const iovec *iov, size_t iov_count, int flags,
                                  int record_type)


#: What stands for a record type where the kernel gave none, or where none is to be given.
NO_RECORD_TYPE = PYKTLS_NO_RECORD_TYPE

cdef enum:
    MOST_BUFFERS = 1024  # IOV_MAX of both systems
    LONGEST_POLL_MS = 1 << 30


cdef int get_buffer(object source, Py_buffer *view, int flags) except -1:
    """PyObject_GetBuffer with an error of ours."""
    try:
        PyObject_GetBuffer(source, view, flags)
    except (TypeError, BufferError) as e:
        raise InvalidType(str(e)) from None
    return 0


cdef double now() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <double>t.tv_sec + <double>t.tv_nsec * 1e-9


@cython.final
cdef class Deadline:
    """When a call has to be over: from a timeout as socket.gettimeout() gives it."""

    cdef double limit
    cdef bint waits  # False: a call that would block fails at once
    cdef bint bounded  # False: no limit

    def __cinit__(self, timeout):
        self.bounded = timeout is not None
        self.limit = 0.0
        self.waits = True
        if self.bounded:
            seconds = float(timeout)
            self.waits = seconds != 0.0
            self.limit = now() + seconds

    def remaining(self):
        """Seconds left, as a timeout: None without limit, never below 0."""
        if not self.bounded:
            return None
        if not self.waits:
            return 0.0
        return max(0.0, self.limit - now())


cdef int wait_until_ready(int fd, short events, Deadline deadline) except -1:
    """Waits for poll(2); raises TimeoutError at the deadline."""
    cdef pollfd p
    cdef double left
    cdef int milliseconds, ready, error
    while True:
        milliseconds = -1
        if deadline.bounded:
            left = deadline.limit - now()
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
        if ready < 0:
            if error != EINTR:
                raise syscall_error(error, "poll")
            PyErr_CheckSignals()


def wait_readable(int fd, Deadline deadline not None):
    """Wait until ``fd`` can be read; raises TimeoutError at the deadline."""
    wait_until_ready(fd, POLLIN, deadline)


def wait_writable(int fd, Deadline deadline not None):
    """Wait until ``fd`` can be written; raises TimeoutError at the deadline."""
    wait_until_ready(fd, POLLOUT, deadline)


cdef int pause(int milliseconds, Deadline deadline) except -1:
    """Sleep, at most up to the deadline."""
    cdef double left = (deadline.limit - now()) * 1000.0
    if left < milliseconds:
        milliseconds = <int>ceil(left)
    if milliseconds > 0:
        with nogil:
            poll(NULL, 0, milliseconds)
        PyErr_CheckSignals()
    return 0


cdef Py_ssize_t receive(int fd, const iovec *iov, size_t count, int flags, Deadline deadline,
                        int *record_type, int *msg_flags) except -1:
    cdef Py_ssize_t received
    cdef int backoff = 0
    while True:
        with nogil:
            received = pyktls_recv_record_vector(fd, iov, count, flags, record_type, msg_flags)
        if received >= 0:
            return received
        if received == -EINTR:
            PyErr_CheckSignals()
        elif received == -EAGAIN and deadline.bounded and deadline.waits:
            # Linux before 6.5 says POLLIN for a part of a record, which recvmsg does not give:
            # without a pause a peer that stops within a record would keep the processor busy.
            if backoff:
                pause(backoff, deadline)
            backoff = min(2 * backoff + 1, 15)
            wait_until_ready(fd, POLLIN, deadline)
        else:
            raise syscall_error(<int>-received, "recvmsg")


cdef Py_ssize_t transmit(int fd, const iovec *iov, size_t count, int flags, int record_type,
                         Deadline deadline) except -1:
    cdef Py_ssize_t sent
    while True:
        with nogil:
            sent = pyktls_send_record(fd, iov, count, flags, record_type)
        if sent >= 0:
            return sent
        if sent == -EINTR:
            PyErr_CheckSignals()
        elif sent == -EAGAIN and deadline.bounded and deadline.waits:
            wait_until_ready(fd, POLLOUT, deadline)
        else:
            raise syscall_error(<int>-sent, "sendmsg")


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
        received = receive(fd, &iov, 1, flags, deadline, &record_type, &msg_flags)
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
    received = receive(fd, &iov, 1, flags, deadline, &record_type, &msg_flags)
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
        return transmit(fd, &iov, 1, flags, record_type, deadline)
    finally:
        PyBuffer_Release(&view)


def sendall(int fd, buffer, int flags, Deadline deadline not None):
    """Send all of ``buffer`` as application data.

    On an error nothing tells how much was sent, as with socket.sendall.
    """
    cdef Py_buffer view
    cdef iovec iov
    cdef Py_ssize_t sent
    get_buffer(buffer, &view, PyBUF_SIMPLE)
    try:
        iov.iov_base = view.buf
        iov.iov_len = <size_t>view.len
        while iov.iov_len > 0:
            sent = transmit(fd, &iov, 1, flags, PYKTLS_NO_RECORD_TYPE, deadline)
            iov.iov_base = <char *>iov.iov_base + sent
            iov.iov_len -= <size_t>sent
            PyErr_CheckSignals()
    finally:
        PyBuffer_Release(&view)


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
            fd, vector.iov, vector.count, flags, deadline, &record_type, &msg_flags
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
        return transmit(fd, vector.iov, vector.count, flags, record_type, deadline)
    finally:
        vector.release()
