"""What a kernel says when a record cannot be right, and what that means.

Whatever is listed here is final.  Linux reports a broken header once and then never says anything
again; FreeBSD reports every error once and then blocks the next read for ever.  So it is the
record layer that has to remember.
"""

from __future__ import annotations

import errno

from ._kernel import lib
from .errors import RecordError, TruncationError
from .protocol import BAD_RECORD_MAC, INTERNAL_ERROR, PROTOCOL_VERSION, RECORD_OVERFLOW

__all__ = [
    "BROKEN_RECORD",
    "ON_FREEBSD",
    "RefusedRecord",
    "broken_record",
    "concerns_receiving",
    "is_gone",
    "is_kept",
    "passes",
    "truncation",
]

ON_FREEBSD = lib.pyktls_system() == lib.PYKTLS_FREEBSD

#: errno: the alert that tells the peer (RFC 8446 section 6.2), and the reason in words.
#: Linux: net/tls/tls_sw.c, whose EBADMSG has two more reasons, that nothing tells apart: a record
#: of TLS 1.3 without a content type, and one too short to be authentic, such as a ChangeCipherSpec.
#: The alert of these would be unexpected_message (RFC 8446 sections 5 and 5.4).
BROKEN_RECORD = {
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

if ON_FREEBSD:
    # sys/kern/uipc_ktls.c.  EBADMSG comes when the receive buffer is empty: good records that were
    # behind the bad one have then been read.
    BROKEN_RECORD = {
        errno.EBADMSG: (
            BAD_RECORD_MAC,
            "a record failed authentication, and data read just before may be what followed it",
        ),
        errno.EMSGSIZE: (
            RECORD_OVERFLOW,
            "a record is longer or shorter than TLS allows",
        ),
        errno.EINVAL: (
            PROTOCOL_VERSION,
            "a record's header carries another protocol version, or in TLS 1.3 another type",
        ),
    }


def broken_record(error: OSError, fd: int) -> tuple[int | None, RecordError | TruncationError]:
    """The alert, and the error for the user, of an error in BROKEN_RECORD.

    No alert is for a connection that has ended within a record.
    """
    if _is_cut_off(error, fd):
        return None, truncation()
    description, reason = BROKEN_RECORD[error.errno or 0]
    return description, RecordError(f"{reason} ({error})")


def truncation() -> TruncationError:
    """The error of a connection that ends without close_notify."""
    return TruncationError(
        "the peer closed the connection without close_notify: what was received may be incomplete"
    )


def _is_cut_off(error: OSError, fd: int) -> bool:
    """Whether an error of a read is FreeBSD's for a connection that ends within a record.

    Linux tells an end there, too.  FreeBSD has the same number for a record of a length that cannot
    be; but then it drops the connection, which has no modes any more (sys/kern/uipc_ktls.c).
    """
    if not ON_FREEBSD or error.errno != errno.EMSGSIZE:
        return False
    mode: int = lib.pyktls_freebsd_get_mode(fd, lib.TCP_RXTLS_MODE)
    return mode > lib.TCP_TLS_MODE_NONE


class RefusedRecord(OSError):
    """A record that OpenSSL refuses, where it has the receiving half: the alert, and its words."""

    def __init__(self, description: int, reason: str) -> None:
        super().__init__(errno.EBADMSG, reason)
        self.description = description
        self.reason = reason


def concerns_receiving(error: OSError) -> bool:
    """Whether an error of a *send* is about a record that was received.

    FreeBSD gives a socket's pending error (so_error) to whoever calls next, and forgets it
    (sys/kern/uipc_socket.c, kern_sendfile.c).  Data that is sent cannot cause these two.
    """
    return ON_FREEBSD and error.errno in (errno.EBADMSG, errno.EMSGSIZE)


_PASSING = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR, errno.EBADF, errno.EFAULT, errno.ENOMEM}
if ON_FREEBSD:
    _PASSING.add(errno.EOPNOTSUPP)  # of our own, to MSG_OOB: kernel_freebsd.c


_GONE = {
    errno.ECONNABORTED,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETRESET,
    errno.ENETUNREACH,
    errno.EPIPE,
    errno.ETIMEDOUT,
}


def is_gone(error: OSError) -> bool:
    """Whether the connection is over for TCP.

    Linux says it once, to whoever reads or writes; after that its TLS takes data that goes nowhere.
    """
    return error.errno in _GONE


def passes(error: OSError) -> bool:
    """Whether an error says nothing of the connection."""
    return error.errno is None or error.errno in _PASSING


def is_kept(error: OSError) -> bool:
    """Whether an error outside BROKEN_RECORD has to be remembered as well."""
    return ON_FREEBSD and not passes(error)
