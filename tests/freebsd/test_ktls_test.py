"""The scenarios of FreeBSD's own tests/sys/kern/ktls_test.c, through pyktls: all 565 of them.

They have the names that they have there, without the prefix "ktls_".  Sending is checked by opening
each record in user space, byte for byte; receiving by what a kernel makes of records that were made
in user space, good and bad ones.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from freebsd.wire import (
    ALERT,
    APP,
    CBCS,
    G12,
    INVALID,
    RECEIVES,
    SENDS,
    T10,
    T13,
    Peer,
    Suite,
)
from pyktls import _records
from pyktls import freebsd as system
from support.records import read_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Plain

Tcp = tuple[socket.socket, socket.socket]
LONG = 64 * 1024
TX, RX = system.TCP_TXTLS_ENABLE, system.TCP_RXTLS_ENABLE

#: How often each scenario is run, for the count at the end.
COUNTS: dict[str, int] = {}


def scenario(name: str, suites: tuple[Suite, ...] = (), numbers: tuple[int, ...] = ()) -> Any:
    """Run a test once for each suite and number, with the name it has in ktls_test.c."""

    def decorate(function: Callable[..., None]) -> Any:
        cases = [(suite, number) for suite in suites for number in (numbers or (0,))]
        COUNTS[name] = len(cases)
        ids = [name.replace("S", s.name, 1).replace("N", str(n)) for s, n in cases]
        arguments = "suite, number" if numbers else "suite"
        values = cases if numbers else [suite for suite, _ in cases]
        return pytest.mark.parametrize(arguments, values, ids=ids)(function)

    return decorate


# ---- helpers ---------------------------------------------------------------------------------


def write(sock: socket.socket, data: bytes) -> int:
    return _records.send(sock.fileno(), data, 0, _records.NO_RECORD_TYPE, _records.Deadline(None))


def sending(tcp: Tcp, suite: Suite) -> Peer:
    peer = Peer(suite, sequence=int.from_bytes(os.urandom(7), "big"))
    system.set_tls_enable(tcp[0], TX, peer.info())
    return peer


def receiving(tcp: Tcp, suite: Suite) -> Peer:
    peer = Peer(suite, sequence=int.from_bytes(os.urandom(7), "big"))
    system.set_tls_enable(tcp[0], RX, peer.info())
    return peer


def exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, "the stream ended"
        data += piece
    return data


def records(peer: Peer, sock: socket.socket, size: int) -> Iterator[tuple[int, bytes]]:
    """Records as they were sent, until they have carried ``size`` bytes."""
    while True:
        kind, payload = peer.open(read_record(lambda n: exactly(sock, n)))
        yield kind, payload
        size -= len(payload)
        if size <= 0:
            return


def in_background(call: Callable[..., Any], *args: Any) -> threading.Thread:
    thread = threading.Thread(target=call, args=args)
    thread.start()
    return thread


def receive_fails(tcp: Tcp, data: bytes, error: int, *, close: bool = False) -> None:
    tcp[1].sendall(data)
    if close:
        tcp[1].close()
    with pytest.raises(OSError, match=r"^\[Errno \d+\] recvmsg: ") as caught:
        system.recv_record(tcp[0], LONG)
    assert caught.value.errno == error


def flipped(record: bytes, position: int) -> bytes:
    changed = bytearray(record)
    changed[position] ^= 0xFF
    return bytes(changed)


# ---- sending ---------------------------------------------------------------------------------


@scenario("transmit_S_short", SENDS)
def test_transmit_short(tcp: Tcp, suite: Suite) -> None:
    peer, data = sending(tcp, suite), os.urandom(64)
    assert write(tcp[0], data) == 64
    assert list(records(peer, tcp[1], 64)) == [(APP, data)]


@scenario("transmit_S_long", SENDS)
def test_transmit_long(tcp: Tcp, suite: Suite) -> None:
    # Room for all of it: a write is cut where the buffer is full, too.
    tcp[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * LONG)
    peer, data = sending(tcp, suite), os.urandom(LONG)
    thread = in_background(_records.sendall, tcp[0].fileno(), data, 0, _records.Deadline(None))
    got = list(records(peer, tcp[1], LONG))
    thread.join()
    assert b"".join(payload for _, payload in got) == data
    assert {kind for kind, _ in got} == {APP}
    assert [len(payload) for _, payload in got] == [16384] * 4


@scenario("transmit_S_control", SENDS)
def test_transmit_control(tcp: Tcp, suite: Suite) -> None:
    peer, data = sending(tcp, suite), os.urandom(32)
    assert system.send_record(tcp[0], data, 0x21) == 32
    assert list(records(peer, tcp[1], 32)) == [(0x21, data)]


@scenario("transmit_S_padding_N", (*T10, *CBCS), tuple(range(1, 17)))
def test_transmit_padding(tcp: Tcp, suite: Suite, number: int) -> None:
    peer, data = sending(tcp, suite), os.urandom(number)
    assert system.send_record(tcp[0], data, 0x21) == number
    assert list(records(peer, tcp[1], number)) == [(0x21, data)]


@scenario("transmit_S_empty_fragment", SENDS)
def test_transmit_empty_fragment(tcp: Tcp, plain: Plain, suite: Suite) -> None:
    peer = sending(tcp, suite)
    if suite in T10:
        assert plain.send(tcp[0], b"") == 0
        assert list(records(peer, tcp[1], 0)) == [(APP, b"")]
    else:
        with pytest.raises(OSError, match="Invalid argument") as caught:
            plain.send(tcp[0], b"")
        assert caught.value.errno == errno.EINVAL
    write(tcp[0], b"more")  # goes on
    assert list(records(peer, tcp[1], 4)) == [(APP, b"more")]


@scenario("transmit_invalid_S", INVALID)
def test_transmit_invalid(tcp: Tcp, suite: Suite) -> None:
    assert Peer(suite).enable_unchecked(tcp[0].fileno(), TX) == errno.EINVAL


# ---- receiving -------------------------------------------------------------------------------


@scenario("receive_unsupported_S", T10)
def test_receive_unsupported(tcp: Tcp, suite: Suite) -> None:
    assert Peer(suite).enable_unchecked(tcp[0].fileno(), RX) == errno.EPROTONOSUPPORT


@scenario("receive_S_short", RECEIVES)
def test_receive_short(tcp: Tcp, suite: Suite) -> None:
    peer, data = receiving(tcp, suite), os.urandom(64)
    tcp[1].sendall(peer.seal(APP, data))
    record = system.recv_record(tcp[0], LONG)
    assert record == system.Record(data, APP, min(suite.version, 0x0303), 64, socket.MSG_EOR)
    assert record.ends


def receive_long(tcp: Tcp, suite: Suite, padding: int) -> None:
    peer, data = receiving(tcp, suite), os.urandom(LONG)
    size = 16384 - padding
    pieces = [data[i : i + size] for i in range(0, LONG, size)]
    wire = b"".join(peer.seal(APP, piece, padding=padding) for piece in pieces)
    thread = in_background(tcp[1].sendall, wire)
    for piece in pieces:
        record = system.recv_record(tcp[0], LONG)
        assert (record.data, record.record_type, record.length) == (piece, APP, len(piece))
    thread.join()


@scenario("receive_S_long", RECEIVES)
def test_receive_long(tcp: Tcp, suite: Suite) -> None:
    receive_long(tcp, suite, 0)


@scenario("receive_S_bad_data", RECEIVES)
def test_receive_bad_data(tcp: Tcp, suite: Suite) -> None:
    record = receiving(tcp, suite).seal(APP, os.urandom(64))
    receive_fails(tcp, flipped(record, 5 + suite.explicit_iv), errno.EBADMSG)


@scenario("receive_S_bad_mac", RECEIVES)
def test_receive_bad_mac(tcp: Tcp, suite: Suite) -> None:
    record = receiving(tcp, suite).seal(APP, os.urandom(64))
    # With CBC the MAC begins behind the 64 bytes of data, else the tag ends the record.
    position = 5 + suite.explicit_iv + 64 if suite.hash else -1
    receive_fails(tcp, flipped(record, position), errno.EBADMSG)


@scenario("receive_S_truncated_record", RECEIVES)
def test_receive_truncated_record(tcp: Tcp, suite: Suite) -> None:
    record = receiving(tcp, suite).seal(APP, os.urandom(64))
    receive_fails(tcp, record[:-1], errno.EMSGSIZE, close=True)


@scenario("receive_S_bad_major", RECEIVES)
def test_receive_bad_major(tcp: Tcp, suite: Suite) -> None:
    record = receiving(tcp, suite).seal(APP, os.urandom(64))
    receive_fails(tcp, record[:1] + b"\x04" + record[2:], errno.EINVAL)


@scenario("receive_S_bad_minor", RECEIVES)
def test_receive_bad_minor(tcp: Tcp, suite: Suite) -> None:
    record = receiving(tcp, suite).seal(APP, os.urandom(64))
    receive_fails(tcp, record[:2] + b"\x05" + record[3:], errno.EINVAL)


@scenario("receive_S_small_record", RECEIVES)
def test_receive_small_record(tcp: Tcp, suite: Suite) -> None:
    record = receiving(tcp, suite).seal(APP, os.urandom(64))
    least = suite.explicit_iv + suite.mac_length
    body = record[5 : 5 + least - 1]
    receive_fails(tcp, record[:3] + len(body).to_bytes(2, "big") + body, errno.EMSGSIZE)


@scenario("receive_S_oversized_record", RECEIVES)
def test_receive_oversized_record(tcp: Tcp, suite: Suite) -> None:
    record = receiving(tcp, suite).seal(APP, os.urandom(2 * 16384))
    receive_fails(tcp, record, errno.EMSGSIZE)


@scenario("receive_S_padding_N", CBCS, tuple(range(1, 17)))
def test_receive_padding(tcp: Tcp, suite: Suite, number: int) -> None:
    peer, data = receiving(tcp, suite), os.urandom(number)
    tcp[1].sendall(peer.seal(APP, data))
    assert system.recv_record(tcp[0], LONG).data == data


@scenario("receive_S_padding_N_extra", CBCS, (16, 32))
def test_receive_padding_extra(tcp: Tcp, suite: Suite, number: int) -> None:
    peer, data = receiving(tcp, suite), os.urandom(16)
    tcp[1].sendall(peer.seal(APP, data, padding=number))
    assert system.recv_record(tcp[0], LONG).data == data


@scenario("receive_S_bad_padding", CBCS)
def test_receive_bad_padding(tcp: Tcp, suite: Suite) -> None:
    size = 16 - (suite.mac_length + 8) % 16  # leaves 8 bytes of padding
    record = receiving(tcp, suite).seal(APP, os.urandom(size), bad_padding=True)
    receive_fails(tcp, record, errno.EBADMSG)


@scenario("receive_S_non_block_size", CBCS)
def test_receive_non_block_size(tcp: Tcp, suite: Suite) -> None:
    record = receiving(tcp, suite).seal(APP, os.urandom(64))
    length = (len(record) - 5 - 4).to_bytes(2, "big")
    receive_fails(tcp, record[:3] + length + record[5:-4], errno.EMSGSIZE)


@scenario("receive_S_bad_iv", (*CBCS, *G12))
def test_receive_bad_iv(tcp: Tcp, suite: Suite) -> None:
    record = receiving(tcp, suite).seal(APP, os.urandom(64))
    receive_fails(tcp, flipped(record, 5), errno.EBADMSG)


@scenario("receive_S_short_header", (*CBCS, *G12))
def test_receive_short_header(tcp: Tcp, suite: Suite) -> None:
    record = receiving(tcp, suite).seal(APP, os.urandom(64))
    size = suite.explicit_iv - 1
    receive_fails(tcp, record[:3] + size.to_bytes(2, "big") + record[5 : 5 + size], errno.EMSGSIZE)


@scenario("receive_S_short_padded", T13)
def test_receive_short_padded(tcp: Tcp, suite: Suite) -> None:
    peer, data = receiving(tcp, suite), os.urandom(64)
    tcp[1].sendall(peer.seal(APP, data, padding=16))
    record = system.recv_record(tcp[0], LONG)
    assert (record.data, record.record_type, record.length) == (data, APP, 64)


@scenario("receive_S_long_padded", T13)
def test_receive_long_padded(tcp: Tcp, suite: Suite) -> None:
    receive_long(tcp, suite, 15)


@scenario("receive_S_bad_type", T13)
def test_receive_bad_type(tcp: Tcp, suite: Suite) -> None:
    record = receiving(tcp, suite).seal(APP, os.urandom(64))
    receive_fails(tcp, bytes((ALERT,)) + record[1:], errno.EINVAL)


@scenario("receive_invalid_S", INVALID)
def test_receive_invalid(tcp: Tcp, suite: Suite) -> None:
    assert Peer(suite).enable_unchecked(tcp[0].fileno(), RX) == errno.EINVAL


# ---- sockets ---------------------------------------------------------------------------------

GCM_1_3 = T13[0]


@scenario("sendto_baddst", (GCM_1_3,))
def test_a_socket_that_is_not_connected(suite: Suite, plain: Plain) -> None:
    """There the kernel takes the keys and sendto(2) fails; here they do not get that far."""
    with socket.socket() as fresh:
        with pytest.raises(OSError, match="TCP_TXTLS_ENABLE") as caught:
            system.set_tls_enable(fresh, TX, Peer(suite).info())
        assert caught.value.errno == errno.ENOTCONN
        assert system.get_mode(fresh, system.TCP_TXTLS_MODE) == system.TCP_TLS_MODE_NONE
        assert Peer(suite).enable_unchecked(fresh.fileno(), TX) == 0
        with pytest.raises(PermissionError) as caught:  # of the broadcast address
            plain.sendto(fresh, bytes(64), ("255.255.255.255", 12345))
        assert caught.value.errno == errno.EACCES
        assert system.get_mode(fresh, system.TCP_TXTLS_MODE) == system.TCP_TLS_MODE_SW


@scenario("listening_socket", (GCM_1_3,))
def test_a_listening_socket(suite: Suite, plain: Plain) -> None:
    for option in (TX, RX):
        with socket.socket() as fresh:
            assert Peer(suite).enable_unchecked(fresh.fileno(), option) == 0
            with pytest.raises(OSError, match="Invalid argument") as caught:
                plain.listen(fresh)
            assert caught.value.errno == errno.EINVAL
    with socket.socket() as listener:
        plain.listen(listener)
        assert Peer(suite).enable_unchecked(listener.fileno(), TX) == errno.ENOTCONN
        assert Peer(suite).enable_unchecked(listener.fileno(), RX) == errno.EINVAL


def test_none_is_missing() -> None:
    totals = {
        start: sum(count for name, count in COUNTS.items() if name.startswith(start))
        for start in ("transmit_", "receive_")
    }
    assert totals == {"transmit_": 235, "receive_": 328}
    assert sum(COUNTS.values()) == 565
