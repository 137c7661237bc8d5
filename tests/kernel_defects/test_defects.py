"""A kernel with known defects in net/tls: pyktls finds them out, and refuses what they would spoil.

The lab's 6.1-main (Linux 6.1.176) and 6.12.107 are before the fixes of CVE-2026-74611 and of the
data lost by splice(2) into a full pipe.  Each defect is shown to be there first, with calls that
are not pyktls's, so that the refusal is known to be deserved.  What of the kernel's own selftest
meets them is in tests/kernel/selftests, as expected failures.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import threading

import pytest

import pyktls
from pyktls import KTLSSocket, linux
from pyktls.ciphers import TLS_1_2, TLS_1_3
from support import kernel, records, tls

NO_PAD = (
    "TLS_RX_EXPECT_NO_PAD is not safe here: this kernel writes what follows a padded record to the "
    "wrong place (CVE-2026-74611); it is mended in Linux 7.2 and in current stable kernels, "
    "6.1.192 and 6.12.115 among them"
)
SPLICE = (
    "splice_to_pipe is not safe here: this kernel loses data when the pipe is full; it is mended "
    "in Linux 7.2 and in current stable kernels, 6.1.190 and 6.12.113 among them; recv has no such "
    "defect"
)


@pytest.fixture
def keyed():
    """A sender that is not pyktls, and a receiver with keys in the kernel."""
    own, other = kernel.sessions(kernel.suite(TLS_1_3))
    near, far = tls.tcp_pair()
    with near, far:
        pyktls.install(near, own)
        far.settimeout(kernel.TIMEOUT)
        yield near, kernel.Wire(far, other)


def test_the_kernel_corrupts_data_under_expect_no_pad(keyed):
    near, wire = keyed
    near.setsockopt(linux.SOL_TLS, linux.TLS_RX_EXPECT_NO_PAD, struct.pack("=I", 1))
    wire.raw(
        wire.seal(records.APPLICATION_DATA, b"hello", padding=300)
        + wire.seal(records.APPLICATION_DATA, b"0123456789")
    )
    near.settimeout(kernel.TIMEOUT)
    assert near.recv(400) != b"hello0123456789"


def test_expect_no_pad_is_refused_and_the_connection_goes_on(keyed):
    near, wire = keyed
    for _ in range(2):
        with pytest.raises(pyktls.Unavailable) as caught:
            linux.set_rx_expect_no_pad(near, True)
        assert str(caught.value) == NO_PAD
        assert caught.value.remedy == NO_PAD.partition("; ")[2]
    assert linux.get_rx_expect_no_pad(near) is False
    linux.set_rx_expect_no_pad(near, False)  # off is always safe
    wire.raw(
        wire.seal(records.APPLICATION_DATA, b"hello", padding=300)
        + wire.seal(records.APPLICATION_DATA, b"0123456789")
    )
    assert kernel.recv_exactly(near, 15) == b"hello0123456789"


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_the_kernel_loses_data_when_it_splices_into_a_full_pipe(version):
    own, other = kernel.sessions(kernel.suite(version))
    near, far = tls.tcp_pair()
    data = kernel.pattern(3 * 16384)
    out, into = os.pipe()
    with near, far:
        pyktls.install(near, own)
        pyktls.install(far, other)
        fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, os.sysconf("SC_PAGE_SIZE"))
        sender = threading.Thread(target=far.sendall, args=(data,))
        sender.start()
        near.settimeout(None)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 3, 0))
        got = b""
        try:
            while len(got) < len(data):
                got += os.read(out, os.splice(near.fileno(), into, len(data)))
        except BlockingIOError:
            pass  # nothing more comes
        sender.join(kernel.TIMEOUT)
        assert not sender.is_alive()
        assert len(got) < len(data)
    os.close(out)
    os.close(into)


def test_splice_to_pipe_is_refused_and_nothing_is_lost(keyed):
    near, wire = keyed
    out, into = os.pipe()
    wire.send_data(b"0123456789")
    for _ in range(2):
        with pytest.raises(pyktls.Unavailable) as caught:
            linux.splice_to_pipe(near, into, 100)
        assert str(caught.value) == SPLICE
    os.set_blocking(out, False)
    with pytest.raises(BlockingIOError):
        os.read(out, 1)
    assert kernel.recv_exactly(near, 10) == b"0123456789"
    os.close(out)
    os.close(into)


def test_splice_of_a_ktls_socket_is_refused_and_nothing_is_lost():
    with kernel.wired(kernel.suite(TLS_1_3)) as (sock, wire):
        assert isinstance(sock, KTLSSocket)
        out, into = os.pipe()
        wire.send_data(b"0123456789")
        with pytest.raises(pyktls.Unavailable, match="splice_to_pipe is not safe here"):
            sock.splice_to(into, 100)
        assert sock.recv(100) == b"0123456789"
        os.close(out)
        os.close(into)


def test_what_works_is_not_refused():
    """Neither kernel has the defect of splicing into a socket."""
    assert linux.defects.splice_from_pipe() is None
    with kernel.wired(kernel.suite(TLS_1_3)) as (sock, wire):
        out, into = os.pipe()
        os.write(into, b"0123456789")
        assert sock.splice_from(out, 100) == 10
        assert wire.recv_data(10) == b"0123456789"
        os.close(out)
        os.close(into)


def test_the_last_option_is_not_known_here(keyed):
    near, _ = keyed
    with pytest.raises(pyktls.Unavailable) as caught:
        linux.set_tx_max_payload_len(near, 100)
    assert str(caught.value) == (
        "this kernel has no TLS_TX_MAX_PAYLOAD_LEN ([Errno 92] setsockopt(SOL_TLS, "
        "TLS_TX_MAX_PAYLOAD_LEN): Protocol not available); Linux has it since 6.19"
    )
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOPROTOOPT
