"""The selftest's ``zero_len``: records without content, and what each read returns for them.

The records are made in user space, for the kernel sends no empty ones.  All of them are there
before the first read.
"""

from __future__ import annotations

import errno
import socket

import pytest

from pyktls import linux
from support import records
from support.kernel import suite
from support.selftest import (
    BY_NAME,
    CONTROL,
    DATA,
    FIRST_NUMBER,
    assert_nothing_to_read,
    fails,
    install,
    keys,
    tcp_pair,
    wait_queued,
)

VARIANT = BY_NAME["12_aes_ccm"]
#: What is sent: type and length of each record.
RECORDS = {
    "data": (DATA, 11),
    "0data": (DATA, 0),
    "ctrl": (CONTROL, 11),
    "0ctrl": (CONTROL, 0),
}
#: What the reads return: length and type.  A control record is one read; data is joined.
READS = {
    "data_data_data": [(33, DATA)],
    "data_0ctrl_data": [(11, DATA), (0, CONTROL), (11, DATA)],
    "0data_0data_0data": [],
    "0data_0data_ctrl": [(0, DATA), (11, CONTROL)],
    "0data_0data_0ctrl": [(0, DATA), (0, CONTROL)],
    "0ctrl_0ctrl_0ctrl": [(0, CONTROL), (0, CONTROL), (0, CONTROL)],
    "0data_0data_data": [(11, DATA)],
    "data_0data_0data": [(11, DATA)],
}


def seal(number: int, record_type: int, size: int) -> bytes:
    info = keys(VARIANT)
    return records.seal(
        suite(VARIANT.version, VARIANT.aead.name),
        info.key,
        info.salt,
        FIRST_NUMBER + number,
        record_type,
        bytes([ord("a") + number]) * size,
    )


@pytest.mark.parametrize("sequence", READS)
def test_zero_len(sequence):
    """Reads return exactly these lengths and types, then EAGAIN; and the stream goes on."""
    source, far = tcp_pair()
    with source, far:
        install(far, linux.TLS_RX, VARIANT)
        sent = [RECORDS[name] for name in sequence.split("_")]
        wire = b"".join(seal(i, record_type, size) for i, (record_type, size) in enumerate(sent))
        source.sendall(wire)
        wait_queued(far, len(wire))
        got = []
        content = b""
        for _ in READS[sequence]:
            record = linux.recv_record(far, 100)
            got.append((len(record.data), record.record_type))
            content += record.data
        assert got == READS[sequence]
        expected = b"".join(bytes([ord("a") + i]) * size for i, (_, size) in enumerate(sent))
        assert content == expected
        assert_nothing_to_read(far)
        source.sendall(seal(3, DATA, 5))
        assert linux.recv_record(far, 100).data == b"ddddd"


def test_an_empty_control_record_fails_a_plain_read_too():
    """Nobody takes it for the end of the stream by mistake."""
    source, far = tcp_pair()
    with source, far:
        install(far, linux.TLS_RX, VARIANT)
        source.sendall(seal(0, CONTROL, 0))
        for flags in (0, socket.MSG_PEEK, 0):
            with fails(errno.EIO):
                far.recv(100, flags)
        record = linux.recv_record(far, 100)
        assert (record.data, record.record_type, record.ends) == (b"", CONTROL, True)
