"""What comes right behind data in one read, or behind a look at it (MSG_PEEK).

To fill a buffer the kernel goes on to the next record.  What it meets there it may never tell
again.
"""

from __future__ import annotations

import contextlib
import pathlib
import select
import socket
import struct
import time

import pytest

from pyktls import RecordError
from pyktls.ciphers import TLS_1_2, TLS_1_3
from pyktls.protocol import ALERT, APPLICATION_DATA, HANDSHAKE
from support import kernel
from support.kernel import assert_ended_by_key_update, kernel_can_rekey, wired

SUITE_1_3 = kernel.suite(TLS_1_3)
KEY_UPDATE = b"\x18\x00\x00\x01\x00"
KEY_UPDATE_REQUEST = b"\x18\x00\x00\x01\x01"

over_both_versions = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3], ids=["1.2", "1.3"])
BROKEN_HEADERS = {
    "plain text": b"GET / HTTP/1.1\r\n\r\n",
    "too long": b"\x17\x03\x03\xff\xff" + bytes(100),
    "another version": b"\x17\x02\x00\x00\x20" + bytes(32),
    "runt": b"\x17\x03\x03\x00\x01" + bytes(20),  # TLS 1.2 waits for a nonce
}


@over_both_versions
@pytest.mark.parametrize("header", BROKEN_HEADERS)
def test_a_broken_header_right_behind_data_is_told(version, header):
    """The kernel tells of it once, and to whoever looks first."""
    with wired(kernel.suite(version)) as (sock, wire):
        wire.raw(wire.seal(APPLICATION_DATA, b"good") + BROKEN_HEADERS[header])
        assert sock.recv(100) == b"good"
        for _ in range(2):
            with pytest.raises(RecordError):
                sock.recv(100)
        record_type, payload = wire.recv()
        assert (record_type, payload[0]) == (ALERT, 2)


@over_both_versions
def test_a_reset_right_behind_data_is_told(version):
    with wired(kernel.suite(version)) as (sock, wire):
        wire.send_data(b"good")
        kernel.wait_readable(sock)
        wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wire.sock.close()
        time.sleep(0.2)
        # A reset may take from a reader what he has not read; if not, it comes behind that.
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(100) == b"good"
            with pytest.raises(ConnectionResetError):
                sock.recv(100)


@pytest.mark.parametrize("looks", [False, True], ids=["", "with a look"])
@pytest.mark.parametrize("empty", [0, 1, 3], ids="{} empty records".format)
def test_select_tells_of_data_before_and_behind_a_hidden_key_update(empty, looks):
    follows = kernel_can_rekey()
    with wired(SUITE_1_3) as (sock, wire):
        for number in range(4):
            made = wire.seal(APPLICATION_DATA, b"before")
            made += b"".join(wire.seal(APPLICATION_DATA, b"") for _ in range(empty))
            made += wire.seal(HANDSHAKE, KEY_UPDATE)
            wire.sealer.rekey()
            made += wire.seal(APPLICATION_DATA, b"behind %d" % number)
            wire.raw(made)
            expected = b"beforebehind %d" % number if follows else b"before"
            got = b""
            while len(got) < len(expected):
                assert select.select([sock], [], [], 10)[0], f"nothing after {got!r}"
                if looks:
                    looked = sock.recv(1000, socket.MSG_PEEK)
                    assert select.select([sock], [], [], 10)[0], f"nothing after a look at {looked}"
                    assert sock.recv(len(looked)) == looked
                    got += looked
                else:
                    got += sock.recv(1000)
            assert got == expected
            if not follows:
                assert_ended_by_key_update(sock, wire)
                return


@pytest.mark.parametrize("empty", [1, 3], ids="{} empty records".format)
def test_a_key_update_behind_empty_records_is_found(empty):
    """It came after the data was read, and before it was looked what is behind."""
    with wired(SUITE_1_3) as (sock, wire):
        wire.send_data(b"before")
        assert sock.recv(100) == b"before"
        made = b"".join(wire.seal(APPLICATION_DATA, b"") for _ in range(empty))
        made += wire.seal(HANDSHAKE, KEY_UPDATE)
        wire.sealer.rekey()
        wire.raw(made + wire.seal(APPLICATION_DATA, b"behind"))
        kernel.wait_readable(sock)
        sock._layer.look_behind()
        assert select.select([sock], [], [], 10)[0]
        if kernel_can_rekey():
            assert sock.recv(100) == b"behind"
        else:
            assert_ended_by_key_update(sock, wire)


def test_what_waits_is_read_before_it_is_said_that_nothing_can_be_sent():
    """The answer to a KeyUpdate finds nobody there."""
    if not kernel_can_rekey():
        with wired(SUITE_1_3) as (sock, wire):
            wire.send_data(b"data1")
            wire.send(HANDSHAKE, KEY_UPDATE_REQUEST)
            assert sock.recv(5) == b"data1"
            assert_ended_by_key_update(sock, wire)
        return
    with wired(SUITE_1_3) as (sock, wire):
        made = wire.seal(APPLICATION_DATA, b"data1") + wire.seal(HANDSHAKE, KEY_UPDATE_REQUEST)
        wire.sealer.rekey()
        made += wire.seal(APPLICATION_DATA, b"data2") + wire.seal(ALERT, b"\x01\x00")
        wire.raw(made)
        wire.sock.close()
        kernel.wait_readable(sock)
        sock.sendall(b"answered by a reset")
        time.sleep(0.2)
        assert [sock.recv(5) for _ in range(3)] == [b"data1", b"data2", b""]
        for _ in range(3):
            with pytest.raises(BrokenPipeError):
                sock.sendall(b"to nobody")


def send_this_file(sock):
    with pathlib.Path(__file__).open("rb") as file:
        sock.sendfile(file)


SENDS = {
    "send": lambda sock: sock.send(b"to nobody"),
    "sendall": lambda sock: sock.sendall(b"to nobody"),
    "sendmsg": lambda sock: sock.sendmsg([b"to ", b"nobody"]),
    "with flags": lambda sock: sock.send(b"to nobody", socket.MSG_NOSIGNAL),
    "iterator": lambda sock: sock.sendmsg(iter([b"to ", b"nobody"])),
    "sendfile": send_this_file,
}


@over_both_versions
@pytest.mark.parametrize("send", SENDS)
def test_nothing_is_sent_to_nobody_twice(version, send):
    """Linux reports that the peer is gone once, and then takes what goes nowhere."""
    with wired(kernel.suite(version)) as (sock, wire):
        wire.send_data(b"still to be read")
        wire.sock.close()
        kernel.wait_readable(sock)
        sock.sendall(b"answered by a reset")
        time.sleep(0.2)
        for _ in range(3):
            with pytest.raises(ConnectionError):
                SENDS[send](sock)
        assert sock.recv(100) == b"still to be read"


@over_both_versions
@pytest.mark.parametrize("send", SENDS)
@pytest.mark.parametrize("data", [b"", b"data"])
def test_what_a_read_is_told_counts_for_sending(version, send, data):
    with wired(kernel.suite(version)) as (sock, wire):
        if data:
            wire.send_data(data)
            kernel.wait_readable(sock)
        wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wire.sock.close()
        time.sleep(0.2)
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(100):
                pass
        for _ in range(3):
            with pytest.raises(ConnectionError):
                SENDS[send](sock)
