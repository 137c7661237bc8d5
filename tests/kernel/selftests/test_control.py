"""The selftest's ``tls``: control records, and the life of a socket."""

from __future__ import annotations

import errno
import socket

from pyktls import linux
from pyktls.socket_calls import getsockopt
from support.kernel import pattern
from support.selftest import (
    CONTROL,
    DATA,
    assert_end,
    assert_nothing_to_read,
    fails,
    keys,
    take,
    take_record,
)


def test_control_msg(pair):
    """A plain read fails for as long as a control record is next; with its type it can be read."""
    pair.send(b"control", CONTROL)
    pair.send(b"data")
    pair.arrived(7, 4)
    for flags in (0, socket.MSG_PEEK, 0):
        with fails(errno.EIO):
            pair.far.recv(100, flags)
    for _ in range(2):
        assert take_record(pair.far, 100, socket.MSG_PEEK) == (b"control", CONTROL)
    record = linux.recv_record(pair.far, 100)
    assert (record.data, record.record_type, record.ends) == (b"control", CONTROL, True)
    assert pair.far.recv(100) == b"data"


def test_control_msg_nomerge(pair):
    """Two control records are two reads, of the same type or not, with all the room there is."""
    for first, second in ((CONTROL, CONTROL), (CONTROL, CONTROL + 1)):
        pair.send(b"first", first)
        pair.send(b"second", second)
        pair.arrived(5, 6)
        assert take_record(pair.far, 100, socket.MSG_PEEK) == (b"first", first)
        assert take_record(pair.far) == (b"first", first)
        assert take_record(pair.far) == (b"second", second)
    # One that does not fit comes in parts, and still alone.
    pair.send(b"first", CONTROL)
    pair.send(b"second", CONTROL)
    pair.arrived(5, 6)
    parts = [linux.recv_record(pair.far, 3) for _ in range(4)]
    assert [part.data for part in parts] == [b"fir", b"st", b"sec", b"ond"]
    assert [part.record_type for part in parts] == [CONTROL] * 4
    assert [part.ends for part in parts] == [False, True, False, True]
    assert_nothing_to_read(pair.far)


def test_data_control_data(pair):
    """A look at what is there stops before the control record."""
    pair.send(b"data one")
    pair.send(b"control", CONTROL)
    pair.send(b"data two")
    pair.arrived(8, 7, 8)
    for flags in (socket.MSG_PEEK, socket.MSG_PEEK | socket.MSG_WAITALL):
        assert take_record(pair.far, 100, flags) == (b"data one", DATA)
    for expected in ((b"data one", DATA), (b"control", CONTROL), (b"data two", DATA)):
        assert take_record(pair.far) == expected
    assert_nothing_to_read(pair.far)


def test_shutdown(pair):
    """What was sent before is read, then the end."""
    data = pattern(2000)
    pair.send(data)
    pair.near.shutdown(socket.SHUT_RDWR)
    assert take(pair.far, len(data)) == data
    assert_end(pair.far)
    pair.far.shutdown(socket.SHUT_RDWR)
    for _ in range(2):
        assert_end(pair.far)


def test_shutdown_unsent(pair):
    """The record that MSG_MORE holds open is gone with a shutdown: why there is linux.flush."""
    pair.send(b"sent")
    pair.send(b"held back", flags=socket.MSG_MORE)
    pair.near.shutdown(socket.SHUT_RDWR)
    assert take_record(pair.far) == (b"sent", DATA)
    assert_end(pair.far)
    assert pair.sent == 1


def test_shutdown_reuse(pair):
    """A socket that had TLS is bound again, and then neither listens nor connects."""
    pair.near.shutdown(socket.SHUT_RDWR)
    pair.far.shutdown(socket.SHUT_RDWR)
    pair.far.close()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pair.near.bind(("127.0.0.1", 0))
        assert pair.near.getsockname()[1] != 0
        with fails(errno.EINVAL):
            pair.near.listen(10)
        with fails(errno.EISCONN):
            pair.near.connect(listener.getsockname())
    assert linux.get_ulp(pair.near) == b"tls"


def test_getsockopt(pair):
    """The short and the whole form of TLS_TX and TLS_RX; no other length is answered."""
    info = keys(pair.variant)
    size = len(info.pack())
    for sock, direction in ((pair.near, linux.TLS_TX), (pair.far, linux.TLS_RX)):
        assert linux.get_version_and_cipher(sock, direction) == (
            pair.variant.version,
            pair.variant.cipher_type,
        )
        assert linux.get_crypto_info(sock, direction).pack() == info.pack()
        for length in (1, 2, 3, 5, size - 1, size + 1):
            with fails(errno.EINVAL, "getsockopt"):
                getsockopt(sock.fileno(), linux.SOL_TLS, direction, length, "getsockopt")
