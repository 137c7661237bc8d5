"""What tests/kernel/selftests stands on: the kernel's own TLS scenarios, through pyktls.

The kernel's selftest (tools/testing/selftests/net/tls.c) has a fixture for each kind of scenario,
and runs most of them once for each version and cipher.  Here:

* ``VARIANTS`` are those versions and ciphers by the selftest's names, ``TAKEN`` the ones that this
  kernel has, found by trying.
* ``pair(variant)`` is a connection on which ``near`` has sending keys and ``far`` receiving keys.
* ``relay(variant)`` is two connections, so that the test sees and alters what is on the wire.
* ``EXPECTED_FAILURES`` are the scenarios that older kernels cannot pass, with the release that can.

The sockets are blocking ones, as in the selftest, and SO_RCVTIMEO and SO_SNDTIMEO end every call
after PATIENCE seconds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import select
import socket
import struct
import termios
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from pyktls import Unavailable, linux
from pyktls.ciphers import TLS_1_2, TLS_1_3, aead_by_linux_type
from pyktls.lowlevel import lib

from . import records, tls

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 30.0
#: Long enough for a thread to fall asleep in a call, and for what must not happen to be seen.
MOMENT = 0.15
DATA, HANDSHAKE, ALERT = records.APPLICATION_DATA, records.HANDSHAKE, records.ALERT
#: A record type that no protocol uses; the kernel takes any.
CONTROL = 100
MOST = 16384  # bytes of plaintext in one record
FIRST_NUMBER = 5  # of the first record of a pair
PAGE = os.sysconf("SC_PAGE_SIZE")
#: RFC 8446 section 4.6.3: KeyUpdate, update_not_requested.
KEY_UPDATE = b"\x18\x00\x00\x01\x00"


# ---- versions and ciphers --------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """A version and a cipher under the name that the selftest gives them."""

    name: str
    version: int
    cipher_type: int
    no_pad: bool = False

    @property
    def aead(self):
        aead = aead_by_linux_type(self.cipher_type)
        assert aead is not None
        return aead

    @property
    def overhead(self) -> int:
        """What a record is longer than its plaintext: header, nonce or type, tag."""
        inside = 1 if self.version == TLS_1_3 else self.aead.explicit_nonce_length
        return records.HEADER_LENGTH + inside + 16


VARIANTS = (
    Variant("12_aes_gcm", TLS_1_2, linux.TLS_CIPHER_AES_GCM_128),
    Variant("13_aes_gcm", TLS_1_3, linux.TLS_CIPHER_AES_GCM_128),
    Variant("12_chacha", TLS_1_2, linux.TLS_CIPHER_CHACHA20_POLY1305),
    Variant("13_chacha", TLS_1_3, linux.TLS_CIPHER_CHACHA20_POLY1305),
    Variant("13_sm4_gcm", TLS_1_3, linux.TLS_CIPHER_SM4_GCM),
    Variant("13_sm4_ccm", TLS_1_3, linux.TLS_CIPHER_SM4_CCM),
    Variant("12_aes_ccm", TLS_1_2, linux.TLS_CIPHER_AES_CCM_128),
    Variant("13_aes_ccm", TLS_1_3, linux.TLS_CIPHER_AES_CCM_128),
    Variant("12_aes_gcm_256", TLS_1_2, linux.TLS_CIPHER_AES_GCM_256),
    Variant("13_aes_gcm_256", TLS_1_3, linux.TLS_CIPHER_AES_GCM_256),
    Variant("13_nopad", TLS_1_3, linux.TLS_CIPHER_AES_GCM_128, no_pad=True),
    Variant("12_aria_gcm", TLS_1_2, linux.TLS_CIPHER_ARIA_GCM_128),
    Variant("12_aria_gcm_256", TLS_1_2, linux.TLS_CIPHER_ARIA_GCM_256),
)
BY_NAME = {variant.name: variant for variant in VARIANTS}
#: Those of the selftest's tls_err.
ERROR_VARIANTS = (BY_NAME["12_aes_gcm"], BY_NAME["13_aes_gcm"])


def _refused(variant: Variant) -> bool:
    if lib.pyktls_system() != lib.PYKTLS_LINUX:
        return False
    return linux.system.cipher_refusal(variant.version, variant.aead) is not None


#: Where there is no TLS at all nothing is refused: the tests are there, and fail for that reason.
REFUSED = tuple(variant for variant in VARIANTS if _refused(variant))
TAKEN = tuple(variant for variant in VARIANTS if variant not in REFUSED)
TAKEN_1_3 = tuple(variant for variant in TAKEN if variant.version == TLS_1_3)


def keys(variant: Variant, which: int = 0, *, rec_seq: int = FIRST_NUMBER) -> linux.CryptoInfo:
    """Keys of a variant, always the same ones; ``which`` makes others."""
    salt = 4 if variant.aead.implicit_iv_length == 4 else 0
    return linux.CryptoInfo(
        variant.version,
        variant.cipher_type,
        key=bytes(range(which, which + variant.aead.key_length)),
        salt=bytes([0xA0 + which] * salt),
        iv=bytes([0xB0 + which] * (12 - salt)),
        rec_seq=rec_seq,
    )


# ---- connections -----------------------------------------------------------------------------


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected blocking sockets, with limits of the kernel's own."""
    ends = tls.tcp_pair()
    for sock in ends:
        bounded(sock)
    return ends


def bounded(sock: socket.socket, seconds: float = PATIENCE) -> None:
    """Make a socket blocking, but for ``seconds`` at most: then calls fail with EAGAIN."""
    sock.settimeout(None)
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


@dataclass
class Pair:
    """``near`` sends and ``far`` receives; the rest is short for what the tests do most."""

    variant: Variant
    near: socket.socket
    far: socket.socket

    def send(self, data: bytes, record_type: int | None = None, flags: int = 0) -> None:
        """Send ``data`` whole with one call."""
        assert linux.send_record(self.near, data, record_type, flags) == len(data)

    def send_key_update(self) -> None:
        self.send(KEY_UPDATE, HANDSHAKE)

    @property
    def sent(self) -> int:
        """How many records ``near`` has sent, by the kernel's number of the next one."""
        return linux.get_rec_seq(self.near, linux.TLS_TX) - FIRST_NUMBER

    @property
    def received(self) -> int:
        """How many records ``far`` has decrypted."""
        return linux.get_rec_seq(self.far, linux.TLS_RX) - FIRST_NUMBER

    def arrived(self, *sizes: int) -> None:
        """Wait until records with plaintexts of these sizes are there, none of them read yet."""
        wait_queued(self.far, sum(sizes) + len(sizes) * self.variant.overhead)


@contextlib.contextmanager
def pair(variant: Variant) -> Iterator[Pair]:
    """The selftest's fixture ``tls``."""
    near, far = tcp_pair()
    with near, far:
        install(near, linux.TLS_TX, variant)
        install(far, linux.TLS_RX, variant)
        yield Pair(variant, near, far)


def install(sock: socket.socket, direction: int, variant: Variant, which: int = 0) -> None:
    """Keys of one direction, with all that belongs to the variant."""
    if not linux.get_ulp(sock):
        linux.set_ulp(sock)
    linux.set_crypto_info(sock, direction, keys(variant, which))
    if variant.no_pad and direction == linux.TLS_RX:
        linux.set_rx_expect_no_pad(sock, True)
        assert linux.get_rx_expect_no_pad(sock) is True


@dataclass
class Relay:
    """``near`` encrypts towards ``tap``, ``far`` decrypts what comes from ``source``."""

    variant: Variant
    near: socket.socket
    tap: socket.socket
    source: socket.socket
    far: socket.socket

    def record(self, data: bytes, record_type: int | None = None) -> bytearray:
        """One record as the kernel makes it, from its header to its tag."""
        assert linux.send_record(self.near, data, record_type) == len(data)
        record = bytearray(records.read_record(self._exactly))
        assert len(record) == len(data) + self.variant.overhead
        return record

    def _exactly(self, size: int) -> bytes:
        return self.tap.recv(size, socket.MSG_WAITALL)

    def forward(self, *pieces: bytes) -> None:
        """Give ``far`` these bytes, and wait until they are there."""
        data = b"".join(pieces)
        before = queued(self.far)
        self.source.sendall(data)
        wait_queued(self.far, before + len(data))


@contextlib.contextmanager
def relay(variant: Variant) -> Iterator[Relay]:
    """The selftest's fixture ``tls_err``."""
    near, tap = tcp_pair()
    source, far = tcp_pair()
    with near, tap, source, far:
        install(near, linux.TLS_TX, variant)
        install(far, linux.TLS_RX, variant)
        yield Relay(variant, near, tap, source, far)


# ---- waiting and checking --------------------------------------------------------------------


def queued(sock: socket.socket, request: int = termios.FIONREAD) -> int:
    """Bytes in the queue of TCP, still encrypted."""
    (count,) = struct.unpack("i", fcntl.ioctl(sock, request, bytes(4)))
    return count


def wait_queued(sock: socket.socket, least: int) -> None:
    limit = time.monotonic() + PATIENCE
    while queued(sock) < least:
        assert time.monotonic() < limit, f"{queued(sock)} of {least} bytes came"
        time.sleep(0.0005)


def readable(sock: socket.socket, seconds: float = 0.0) -> bool:
    """Whether poll(2) says POLLIN, and nothing else, within ``seconds``."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    events = poll.poll(seconds * 1000)
    assert events in ([], [(sock.fileno(), select.POLLIN)])
    return bool(events)


def take(sock: socket.socket, size: int) -> bytes:
    """That many bytes of application data."""
    record = linux.recv_record(sock, size, socket.MSG_WAITALL)
    assert (len(record.data), record.record_type) == (size, DATA)
    return record.data


def take_record(sock: socket.socket, size: int = 20000, flags: int = 0) -> tuple[bytes, int | None]:
    """Data and type of one call."""
    record = linux.recv_record(sock, size, flags)
    return record.data, record.record_type


@contextlib.contextmanager
def fails(number: int, call: str = "") -> Iterator[None]:
    """The block ends with an OSError of that number, of that system call if one is named."""
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno == number, f"{caught.value!r} is not {errno.errorcode[number]}"
    if call:
        assert str(caught.value) == f"[Errno {number}] {call}: {os.strerror(number)}"


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """The block does not wait for the socket's own limit, which is EAGAIN too."""
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < PATIENCE / 2


def assert_nothing_to_read(sock: socket.socket) -> None:
    with at_once(), fails(errno.EAGAIN, "recvmsg"):
        linux.recv_record(sock, 1, socket.MSG_DONTWAIT)


def assert_end(sock: socket.socket) -> None:
    """The stream is over: no bytes, and no type."""
    assert take_record(sock) == (b"", None)


@contextlib.contextmanager
def pipe(pages: int = 16, flags: int = 0) -> Iterator[tuple[int, int]]:
    """``(out, into)`` of a pipe that holds that many pages; neither end ever blocks."""
    out, into = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK | flags)
    try:
        fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, pages * PAGE)
        yield out, into
    finally:
        os.close(out)
        os.close(into)


def write_pages(into: int, data: bytes) -> None:
    """Put each byte of ``data`` on a page of its own: into a pipe made with O_DIRECT."""
    for byte in data:
        assert os.write(into, bytes([byte])) == 1


def splice_all(out: int, sock: socket.socket, size: int, flags: int = 0) -> None:
    """Send ``size`` bytes that are in a pipe."""
    while size:
        moved = linux.splice_from_pipe(out, sock, size, flags)
        assert 0 < moved <= size
        size -= moved


def splice_one(sock: socket.socket, into: int, size: int) -> int:
    """One splice from a socket, once it has something: a pipe that does not block cannot wait."""
    assert readable(sock, PATIENCE)
    return linux.splice_to_pipe(sock, into, size)


# ---- what older kernels cannot do ------------------------------------------------------------


@dataclass(frozen=True)
class ExpectedFailure:
    """Scenarios that fail on kernels before ``before``, with exactly this exception."""

    functions: tuple[str, ...]
    before: tuple[int, ...]
    kind: type[Exception]
    message: str
    #: The only version that is concerned.
    version: int | None = None
    #: Stable releases, at most one of each series, that have the change too: of a defect.
    backports: tuple[tuple[int, int, int], ...] = ()
    #: The selftest's variant with TLS_RX_EXPECT_NO_PAD fails in whatever scenario.
    no_pad: bool = False

    def concerns(self, function: str, variant: Variant | None) -> bool:
        if self.no_pad and variant is not None and variant.no_pad:
            return True
        of_version = self.version is None or variant is None or variant.version == self.version
        return function in self.functions and of_version

    def is_on(self, release: tuple[int, ...]) -> bool:
        """Whether that kernel is one of those that fail."""
        first = next((b for b in self.backports if b[:2] == release[:2]), self.before)
        return release < first


_NO_SPLICE = r"^splice_to_pipe is not safe here: this kernel loses data when the pipe is full; "
_SPLICE_BACKPORTS = ((6, 1, 190), (6, 12, 113))
# Where two concern a scenario, the first is what it meets first.
EXPECTED_FAILURES = (
    # CVE-2026-74611: pyktls does not offer the option.
    ExpectedFailure(
        ("no_pad", "recvmsg_nopad_retry_iov"),
        (7, 2),
        Unavailable,
        r"^TLS_RX_EXPECT_NO_PAD is not safe here: this kernel writes what follows a padded record "
        r"to the wrong place \(CVE-2026-74611\); ",
        backports=((6, 1, 192), (6, 12, 115)),
        no_pad=True,
    ),
    # Before 6.5 poll(2) asks TCP, which has bytes.  (Measured: 6.1 fails, 6.12 does not.)
    ExpectedFailure(
        ("poll_partial_rec",),
        (6, 5),
        AssertionError,
        r"^poll says that a part of a record is there\n",
    ),
    # Before 6.6 sendmsg(2) takes MSG_EOR on no TLS socket.
    ExpectedFailure(
        ("msg_eor",), (6, 6), OSError, r"^\[Errno 95\] sendmsg: Operation not supported$"
    ),
    # Before 6.14 the second key of a direction is EBUSY in TLS 1.3, as it still is in TLS 1.2.
    ExpectedFailure(
        (
            "rekey",
            "rekey_fail",
            "rekey_peek",
            "splice_rekey",
            "rekey_peek_splice",
            "rekey_getsockopt",
            "rekey_poll_pending",
            "rekey_poll_delay",
            "rekey_rx",
            "rekey_tx",
        ),
        (6, 14),
        Unavailable,
        r"^this kernel cannot change keys: Linux can since 6\.14 "
        r"\(\[Errno 16\] setsockopt\(SOL_TLS, TLS_[TR]X\): Device or resource busy\)$",
        version=TLS_1_3,
    ),
    # Before 6.19 there is no such option.
    ExpectedFailure(
        ("tls_12_tx_max_payload_len", "tls_12_tx_max_payload_len_open_rec"),
        (6, 19),
        Unavailable,
        r"^this kernel has no TLS_TX_MAX_PAYLOAD_LEN \(\[Errno 92\] "
        r"[gs]etsockopt\(SOL_TLS, TLS_TX_MAX_PAYLOAD_LEN\): Protocol not available\); "
        r"Linux has it since 6\.19$",
    ),
    # The kernel's own selftest shows it in splice_to_pipe_small alone; pyktls splices no more.
    ExpectedFailure(
        (
            "splice_to_pipe",
            "splice_cmsg_to_pipe",
            "splice_dec_cmsg_to_pipe",
            "recv_and_splice",
            "peek_and_splice",
            "splice_to_pipe_small",
            "bad_auth_splice",
        ),
        (7, 2),
        Unavailable,
        _NO_SPLICE,
        backports=_SPLICE_BACKPORTS,
    ),
    ExpectedFailure(
        ("splice_rekey", "rekey_peek_splice"),
        (7, 2),
        Unavailable,
        _NO_SPLICE,
        version=TLS_1_3,
        backports=_SPLICE_BACKPORTS,
    ),
)


def kernel_version() -> tuple[int, ...]:
    """The upstream release that runs.  Debian's ``uname -r`` stays at 6.1.0 for every 6.1."""
    system = os.uname()
    found = re.search(r"Debian (\d+)\.(\d+)\.(\d+)", system.version)
    found = found or re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", system.release)
    assert found is not None, system
    return tuple(int(number or 0) for number in found.groups())


def expected_failure(function: str, variant: Variant | None) -> pytest.MarkDecorator | None:
    """The mark for a scenario that the running kernel cannot pass, None for all others."""
    release = kernel_version()
    for entry in EXPECTED_FAILURES:
        if entry.is_on(release) and entry.concerns(function, variant):
            exactly = pytest.RaisesExc(
                entry.kind, match=entry.message, check=lambda e, kind=entry.kind: type(e) is kind
            )
            can = ".".join(map(str, entry.before))
            return pytest.mark.xfail(strict=True, raises=exactly, reason=f"Linux can since {can}")
    return None
