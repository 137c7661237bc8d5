"""pyktls.freebsd against the kernel: what it takes, what it refuses, what reading has in store."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import select
import signal
import socket
import struct
import tempfile
import time
from typing import TYPE_CHECKING, Any

import pytest

import pyktls
from freebsd.wire import ALERT, APP, CBCS, G12, G13, SENDS, T10, Peer
from pyktls import _records, linux
from pyktls import freebsd as system
from pyktls.errors import InvalidValue, Unavailable
from pyktls.lowlevel import ffi, lib
from support.kernel import Background, recv_exactly, wait_readable
from support.records import read_record

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Plain

Tcp = tuple[socket.socket, socket.socket]
TX, RX = system.TCP_TXTLS_ENABLE, system.TCP_RXTLS_ENABLE
TX_MODE, RX_MODE = system.TCP_TXTLS_MODE, system.TCP_RXTLS_MODE
NONE, SOFTWARE, IFNET = (
    system.TCP_TLS_MODE_NONE,
    system.TCP_TLS_MODE_SW,
    system.TCP_TLS_MODE_IFNET,
)
SUITE = G13[0]
both = pytest.mark.parametrize("option", [TX, RX], ids=["tx", "rx"])


def enable(sock: socket.socket, option: int, peer: Peer | None = None) -> Peer:
    peer = peer or Peer(SUITE)
    system.set_tls_enable(sock, option, peer.info())
    return peer


def refusal(sock: socket.socket, option: int, peer: Peer | None = None) -> int | None:
    """The errno with which keys are refused."""
    with pytest.raises(OSError, match=r"setsockopt\(IPPROTO_TCP, TCP_[TR]XTLS_ENABLE\)") as caught:
        enable(sock, option, peer)
    return caught.value.errno


def raw_option(sock: socket.socket, option: int, value: Any, size: int) -> int:
    """setsockopt(2) with nothing checked: 0 or the errno."""
    result = lib.setsockopt(sock.fileno(), socket.IPPROTO_TCP, option, value, size)
    return ffi.errno if result < 0 else 0


def next_record(peer: Peer, sock: socket.socket) -> tuple[int, bytes]:
    return peer.open(read_record(functools.partial(recv_exactly, sock)))


def next_data(peer: Peer, sock: socket.socket, size: int) -> bytes:
    """So many bytes, of as many records as that is."""
    whole = b""
    while len(whole) < size:
        whole += next_record(peer, sock)[1]
    return whole


def plain_write(sock: socket.socket, data: bytes, flags: int = 0) -> int:
    deadline = _records.Deadline(None)
    return _records.send(sock.fileno(), data, flags, _records.NO_RECORD_TYPE, deadline)


def error_of(caught: pytest.ExceptionInfo[OSError]) -> int | None:
    return caught.value.errno


# ---- enabling --------------------------------------------------------------------------------


@both
def test_modes_tell_which_direction_is_on(tcp: Tcp, option: int) -> None:
    for mode in (TX_MODE, RX_MODE):
        assert system.get_mode(tcp[0], mode) == NONE
    enable(tcp[0], option)
    assert system.get_mode(tcp[0], TX_MODE) == (SOFTWARE if option == TX else NONE)
    assert system.get_mode(tcp[0], RX_MODE) == (SOFTWARE if option == RX else NONE)
    assert system.get_mode(tcp[1], TX_MODE) == NONE


@both
def test_keys_are_taken_once(tcp: Tcp, option: int) -> None:
    enable(tcp[0], option)
    assert refusal(tcp[0], option) == errno.EALREADY


@both
def test_keys_cannot_be_read_back(tcp: Tcp, option: int) -> None:
    enable(tcp[0], option)
    value, size = ffi.new("struct tls_enable *"), ffi.new("unsigned int *", 64)
    level = socket.IPPROTO_TCP
    assert lib.getsockopt(tcp[0].fileno(), level, option, value, size) == -1
    assert ffi.errno == errno.ENOPROTOOPT


@pytest.mark.parametrize("size", [0, 48, 55, 57, 63])
@both
def test_a_short_struct_is_refused(tcp: Tcp, option: int, size: int) -> None:
    assert raw_option(tcp[0], option, Peer(SUITE).info().struct(), size) == errno.EINVAL


def test_a_long_struct_is_taken(tcp: Tcp) -> None:
    peer = Peer(SUITE)
    info = peer.info()
    memory = ffi.new("char[128]")
    ffi.memmove(memory, info.struct(), 64)
    assert raw_option(tcp[0], TX, memory, 128) == 0


def test_the_struct_without_a_sequence_number_is_for_sending_only(tcp: Tcp) -> None:
    peer = Peer(SUITE)
    info = peer.info()
    assert raw_option(tcp[0], RX, info.struct(), 56) == errno.EINVAL
    assert raw_option(tcp[0], TX, info.struct(), 56) == 0
    plain_write(tcp[0], b"first")
    assert next_record(peer, tcp[1]) == (APP, b"first")


@both
@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("cipher_key", 0, errno.EFAULT),
        ("iv", 0, errno.EFAULT),
        ("flags", 1, errno.EINVAL),
        ("tls_vmajor", 2, errno.EINVAL),
        ("tls_vminor", 5, errno.EINVAL),
        ("tls_vminor", 0, errno.EINVAL),
        ("cipher_key_len", 24, errno.EINVAL),
        ("cipher_key_len", 0, errno.EINVAL),
        ("iv_len", 11, errno.EINVAL),
        ("iv_len", 17, errno.EINVAL),
        ("auth_algorithm", 7, errno.EINVAL),
        ("auth_key_len", 20, errno.EINVAL),
        ("cipher_algorithm", 12, errno.EINVAL),
    ],
)
def test_what_the_kernel_refuses(tcp: Tcp, option: int, field: str, value: int, error: int) -> None:
    info = Peer(SUITE).info()
    struct = info.struct()
    pointer = field in ("cipher_key", "iv")
    setattr(struct, field, ffi.NULL if pointer else value)
    assert raw_option(tcp[0], option, struct, 64) == error


@both
def test_no_struct_at_all(tcp: Tcp, option: int) -> None:
    assert raw_option(tcp[0], option, ffi.NULL, 64) == errno.EFAULT


@both
def test_a_short_mac_key_is_taken_by_the_kernel_and_refused_here(tcp: Tcp, option: int) -> None:
    peer = Peer(CBCS[0])
    peer.auth_key = b"short"
    with pytest.raises(InvalidValue, match=r"^auth_key must be 20 bytes here, not 5$"):
        enable(tcp[0], option, peer)
    assert peer.enable_unchecked(tcp[0].fileno(), option) == 0


def test_a_sequence_number_from_which_the_count_begins_again(tcp: Tcp) -> None:
    peer = Peer(SUITE, sequence=2**64 - 1)
    with pytest.raises(InvalidValue, match=r"the kernel would go on at 0$"):
        enable(tcp[0], TX, peer)
    assert peer.enable_unchecked(tcp[0].fileno(), TX) == 0


@both
def test_other_sockets(option: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect(("127.0.0.1", 9))
        assert refusal(udp, option) == errno.EINVAL
    one, two = socket.socketpair()
    with one, two:
        assert refusal(one, option) == errno.EINVAL
    with tempfile.TemporaryFile() as file:
        assert Peer(SUITE).enable_unchecked(file.fileno(), option) == errno.ENOTSOCK
    assert Peer(SUITE).enable_unchecked(file_that_is_closed(), option) == errno.EBADF


def file_that_is_closed() -> int:
    with tempfile.TemporaryFile() as file:
        return file.fileno()


@both
@pytest.mark.parametrize("who", ["peer", "us", "us, reading"])
def test_a_connection_that_one_side_has_finished(tcp: Tcp, option: int, who: str) -> None:
    if who == "peer":
        tcp[1].shutdown(socket.SHUT_WR)
    else:
        tcp[0].shutdown(socket.SHUT_WR if who == "us" else socket.SHUT_RD)
    enable(tcp[0], option)


@both
def test_a_connection_that_was_reset(tcp: Tcp, option: int) -> None:
    tcp[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    tcp[1].close()
    _records.wait_readable(tcp[0].fileno(), _records.Deadline(20))
    assert Peer(SUITE).enable_unchecked(tcp[0].fileno(), option) == errno.ECONNRESET


@both
def test_closed_gates(fake: Any, tcp: Tcp, option: int) -> None:
    fake.set_sysctl("kern.ipc.tls.enable", 0)
    assert refusal(tcp[0], option) == errno.EOPNOTSUPP
    fake.set_sysctl("kern.ipc.tls.enable", 1)
    fake.set_sysctl("kern.ipc.tls.cbc_enable", 0)
    assert refusal(tcp[0], option, Peer(CBCS[0])) == errno.EOPNOTSUPP
    enable(tcp[0], option)


def test_gates_of_one_direction(fake: Any, tcp: Tcp) -> None:
    fake.set_sysctl("kern.ipc.tls.rx_enable", 0)
    fake.set_sysctl("kern.ipc.mb_use_ext_pgs", 0)
    assert refusal(tcp[0], RX) == errno.EOPNOTSUPP
    assert refusal(tcp[0], TX) == errno.ENXIO
    fake.set_sysctl("kern.ipc.tls.rx_enable", 1)
    enable(tcp[0], RX)


def test_a_gate_that_is_closed_later_leaves_live_sessions_alone(fake: Any, tcp: Tcp) -> None:
    peer = enable(tcp[0], TX)
    fake.set_sysctl("kern.ipc.tls.enable", 0)
    plain_write(tcp[0], b"on")
    assert next_record(peer, tcp[1]) == (APP, b"on")


@both
def test_which_error_wins(fake: Any, tcp: Tcp, option: int) -> None:
    wrong = Peer(CBCS[0]).info()
    struct = wrong.struct()
    struct.flags = 1
    enable(tcp[0], option)
    fake.set_sysctl("kern.ipc.tls.cbc_enable", 0)
    assert raw_option(tcp[0], option, struct, 64) == errno.EALREADY
    fake.set_sysctl("kern.ipc.tls.enable", 0)
    assert raw_option(tcp[0], option, struct, 64) == errno.EOPNOTSUPP
    fake.set_sysctl("kern.ipc.tls.enable", 1)
    assert raw_option(tcp[1], option, struct, 64) == errno.EOPNOTSUPP
    fake.set_sysctl("kern.ipc.tls.cbc_enable", 1)
    assert raw_option(tcp[1], option, struct, 64) == errno.EINVAL


@both
def test_a_kernel_without_kernel_tls(fake: Any, tcp: Tcp, option: int) -> None:
    fake.kern_tls = False
    assert refusal(tcp[0], option) == errno.ENOPROTOOPT
    with pytest.raises(OSError, match="TCP_TXTLS_MODE") as caught:
        system.get_mode(tcp[0], TX_MODE)
    assert error_of(caught) == errno.ENOPROTOOPT


# ---- modes -----------------------------------------------------------------------------------


def test_setting_the_mode(tcp: Tcp) -> None:
    for mode in (SOFTWARE, IFNET):
        system.set_tx_mode(tcp[0], mode)  # no kernel TLS: succeeds, and does nothing
        assert system.get_mode(tcp[0], TX_MODE) == NONE
    enable(tcp[0], TX)
    system.set_tx_mode(tcp[0], SOFTWARE)
    with pytest.raises(OSError, match="TCP_TXTLS_MODE") as caught:
        system.set_tx_mode(tcp[0], IFNET)
    assert error_of(caught) in (errno.EOPNOTSUPP, errno.ENXIO)  # loopback is no such card
    for mode in (NONE, 3, 4, -1):
        with pytest.raises(OSError, match="TCP_TXTLS_MODE") as caught:
            system.set_tx_mode(tcp[0], mode)
        assert error_of(caught) == errno.EINVAL


def test_the_receiving_mode_cannot_be_set(tcp: Tcp) -> None:
    enable(tcp[0], RX)
    assert raw_option(tcp[0], RX_MODE, ffi.new("int *", 1), 4) == errno.ENOPROTOOPT


@pytest.mark.parametrize("option", [TX_MODE, RX_MODE])
def test_the_mode_of_a_listening_socket(option: int) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        pytest.raises(OSError, match="TLS_MODE") as caught,
    ):
        system.get_mode(listener, option)
    assert error_of(caught) == errno.EINVAL


# ---- sending ---------------------------------------------------------------------------------


def test_writes_are_split_and_never_merged(tcp: Tcp) -> None:
    peer = enable(tcp[0], TX)
    plain_write(tcp[0], bytes(40000))
    plain_write(tcp[0], b"a")
    plain_write(tcp[0], b"b")
    sizes = [len(next_record(peer, tcp[1])[1]) for _ in range(5)]
    assert sizes == [16384, 16384, 7232, 1, 1]


@pytest.mark.parametrize("suite", G12, ids=lambda s: s.name)
def test_explicit_nonces_begin_at_random_and_count(tcp: Tcp, suite: Any) -> None:
    peer = enable(tcp[0], TX, Peer(suite, sequence=7))
    for _ in range(3):
        plain_write(tcp[0], b"x")
        next_record(peer, tcp[1])
    first, second, third = (int.from_bytes(nonce, "big") for nonce in peer.explicit)
    assert first not in (0, 7)
    assert second == (first + 1) % 2**64
    assert third == (first + 2) % 2**64


@pytest.mark.parametrize("suite", CBCS, ids=lambda s: s.name)
def test_cbc_ivs_are_random(tcp: Tcp, suite: Any) -> None:
    peer = enable(tcp[0], TX, Peer(suite))
    for _ in range(4):
        plain_write(tcp[0], b"x")
        next_record(peer, tcp[1])
    assert len(set(peer.explicit)) == 4


@pytest.mark.parametrize("suite", T10, ids=lambda s: s.name)
def test_cbc_of_tls_1_0_is_chained(tcp: Tcp, suite: Any) -> None:
    peer = enable(tcp[0], TX, Peer(suite))
    for size in (1, 100, 20000):
        plain_write(tcp[0], bytes(size))
    assert sum(len(next_record(peer, tcp[1])[1]) for _ in range(4)) == 20101


@pytest.mark.parametrize("record_type", [1, ALERT, 22, 99, 255])
def test_any_type_can_be_sent(tcp: Tcp, record_type: int) -> None:
    peer = enable(tcp[0], TX)
    assert system.send_record(tcp[0], b"ab", record_type) == 2
    assert next_record(peer, tcp[1]) == (record_type, b"ab")


@pytest.mark.parametrize("record_type", [0, -1, 256])
def test_types_that_are_refused(tcp: Tcp, record_type: int) -> None:
    enable(tcp[0], TX)
    with pytest.raises(InvalidValue, match="record_type must be from 1 to 255"):
        system.send_record(tcp[0], b"ab", record_type)
    if record_type >= 0:
        with pytest.raises(OSError, match="sendmsg") as caught:
            _records.send(tcp[0].fileno(), b"ab", 0, record_type, _records.Deadline(None))
        assert error_of(caught) == errno.EINVAL


def test_a_long_control_message_is_several_records(tcp: Tcp) -> None:
    peer = enable(tcp[0], TX)
    assert system.send_record(tcp[0], bytes(20000), 22) == 20000
    assert [(k, len(p)) for k, p in (next_record(peer, tcp[1]) for _ in "ab")] == [
        (22, 16384),
        (22, 3616),
    ]


def test_a_control_message_goes_out_whole_or_not_at_all(tcp: Tcp) -> None:
    enable(tcp[0], TX)
    tcp[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    room = tcp[0].getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    with pytest.raises(OSError, match="sendmsg") as caught:
        system.send_record(tcp[0], bytes(room + 1), 22)
    assert error_of(caught) == errno.EMSGSIZE
    tcp[0].setblocking(False)
    half = bytes(room // 2)
    with contextlib.suppress(BlockingIOError):
        for _ in range(1000):
            assert system.send_record(tcp[0], half, 22) == len(half)
        pytest.fail("there always was room")


@pytest.mark.parametrize("suite", SENDS, ids=lambda s: s.name)
def test_nothing_cannot_be_sent(tcp: Tcp, suite: Any) -> None:
    peer = enable(tcp[0], TX, Peer(suite))
    if suite in T10:
        assert system.send_record(tcp[0], b"", 23) == 0
        assert next_record(peer, tcp[1]) == (APP, b"")
    else:
        with pytest.raises(OSError, match="sendmsg") as caught:
            system.send_record(tcp[0], b"", 23)
        assert error_of(caught) == errno.EINVAL


def test_data_of_no_bytes_is_nothing(tcp: Tcp) -> None:
    """The kernel says EINVAL; a socket that is not TLS, and Linux's, take it."""
    peer = enable(tcp[0], TX)
    assert plain_write(tcp[0], b"") == 0
    deadline = _records.Deadline(None)
    for buffers in ([], [b""], [b"", bytearray()]):
        assert _records.sendmsg(tcp[0].fileno(), buffers, 0, _records.NO_RECORD_TYPE, deadline) == 0
    plain_write(tcp[0], b"x")
    assert next_record(peer, tcp[1]) == (APP, b"x")


def test_urgent_data_is_refused(tcp: Tcp) -> None:
    """The kernel takes it, and TCP of the other end takes a byte out of the record."""
    peer = enable(tcp[0], TX)
    for call in (
        lambda: plain_write(tcp[0], b"urgent", socket.MSG_OOB),
        lambda: system.send_record(tcp[0], b"urgent", 22, socket.MSG_OOB),
    ):
        with pytest.raises(OSError, match="sendmsg") as caught:
            call()
        assert error_of(caught) == errno.EOPNOTSUPP
    plain_write(tcp[0], b"x")
    assert next_record(peer, tcp[1]) == (APP, b"x")


def test_msg_eor_is_refused(tcp: Tcp) -> None:
    enable(tcp[0], TX)
    with pytest.raises(OSError, match="sendmsg") as caught:
        plain_write(tcp[0], b"x", socket.MSG_EOR)
    assert error_of(caught) == errno.EINVAL


def test_a_record_type_on_a_plain_socket_is_refused(tcp: Tcp) -> None:
    with pytest.raises(OSError, match="sendmsg") as caught:
        system.send_record(tcp[0], b"x", 23)
    assert error_of(caught) == errno.EINVAL


def test_what_was_sent_before_goes_out_as_it_is(tcp: Tcp) -> None:
    plain_write(tcp[0], b"plain")
    peer = enable(tcp[0], TX)
    plain_write(tcp[0], b"secret")
    assert tcp[1].recv(5, socket.MSG_WAITALL) == b"plain"
    assert next_record(peer, tcp[1]) == (APP, b"secret")


def test_shutdown_sends_no_close_notify(tcp: Tcp) -> None:
    enable(tcp[0], TX)
    tcp[0].shutdown(socket.SHUT_WR)
    assert tcp[1].recv(100) == b""


# ---- receiving -------------------------------------------------------------------------------


def test_what_is_there_already_is_decrypted_too(tcp: Tcp) -> None:
    peer = Peer(SUITE)
    tcp[1].sendall(peer.seal(APP, b"early"))
    tcp[0].recv(1, socket.MSG_PEEK)
    peer.sequence = 0
    enable(tcp[0], RX, peer)
    assert system.recv_record(tcp[0], 100).data == b"early"


def test_one_call_gives_one_record(tcp: Tcp) -> None:
    peer = enable(tcp[0], RX)
    tcp[1].sendall(peer.seal(APP, b"one") + peer.seal(APP, b"two") + peer.seal(ALERT, b"\1\0"))
    for kind, data in ((APP, b"one"), (APP, b"two"), (ALERT, b"\1\0")):
        record = system.recv_record(tcp[0], 100, socket.MSG_WAITALL)
        assert (record.record_type, record.data, record.length) == (kind, data, len(data))
        assert record.flags & socket.MSG_EOR


def test_the_rest_of_a_record_has_no_type(tcp: Tcp) -> None:
    peer = enable(tcp[0], RX)
    tcp[1].sendall(peer.seal(APP, b"abcdefg"))
    first, second, third = (system.recv_record(tcp[0], 3) for _ in range(3))
    assert first == system.Record(b"abc", APP, 0x0303, 7, 0)
    assert second == system.Record(b"def", None, None, None, 0)
    assert third == system.Record(b"g", None, None, None, socket.MSG_EOR)
    assert [r.ends for r in (first, second, third)] == [False, False, True]


def test_peeking_shows_the_type_and_takes_nothing(tcp: Tcp) -> None:
    peer = enable(tcp[0], RX)
    tcp[1].sendall(peer.seal(ALERT, b"\1\0"))
    for flags in (socket.MSG_PEEK, socket.MSG_PEEK, 0):
        record = system.recv_record(tcp[0], 100, flags)
        assert (record.data, record.record_type) == (b"\1\0", ALERT)


def test_an_empty_record_is_no_end(tcp: Tcp) -> None:
    peer = enable(tcp[0], RX)
    tcp[1].sendall(peer.seal(APP, b""))
    tcp[1].close()
    empty, end = system.recv_record(tcp[0], 100), system.recv_record(tcp[0], 100)
    assert empty == system.Record(b"", APP, 0x0303, 0, 0)
    assert empty.ends
    assert end == system.Record(b"", None, None, None, 0)
    assert not end.ends


def test_a_plain_read_takes_an_alert_for_data(tcp: Tcp, plain: Plain) -> None:
    peer = enable(tcp[0], RX)
    tcp[1].sendall(peer.seal(ALERT, b"\1\0") + peer.seal(APP, b""))
    assert plain.recv(tcp[0], 100) == b"\1\0"
    assert plain.recv(tcp[0], 100) == b""  # and the connection has not ended


@pytest.mark.parametrize(("room", "told"), [(24, True), (23, False), (22, False), (0, False)])
def test_the_control_message_wants_all_its_room(
    tcp: Tcp, plain: Plain, room: int, *, told: bool
) -> None:
    peer = enable(tcp[0], RX)
    tcp[1].sendall(peer.seal(ALERT, b"\1\0") + peer.seal(APP, b"next"))
    data, messages, cut = plain.recvmsg(tcp[0], 100, room)
    assert (data, messages, cut) == (b"\1\0", int(told), not told and room > 0)
    assert system.recv_record(tcp[0], 100).data == b"next"  # that record is gone


def test_a_part_of_a_record_is_not_readable(tcp: Tcp) -> None:
    peer = enable(tcp[0], RX)
    record = peer.seal(APP, b"whole")
    tcp[1].sendall(record[:-1])
    with pytest.raises(TimeoutError):
        _records.wait_readable(tcp[0].fileno(), _records.Deadline(0.05))
    tcp[0].setblocking(False)
    with pytest.raises(BlockingIOError):
        system.recv_record(tcp[0], 100)
    tcp[1].sendall(record[-1:])
    _records.wait_readable(tcp[0].fileno(), _records.Deadline(20))
    assert system.recv_record(tcp[0], 100).data == b"whole"


def fails(sock: socket.socket) -> int | None:
    with pytest.raises(OSError, match="recvmsg") as caught:
        system.recv_record(sock, 100)
    return caught.value.errno


def test_a_bad_record_is_told_of_after_a_later_good_one(tcp: Tcp, decrypted: Any) -> None:
    peer = enable(tcp[0], RX)
    bad = bytearray(peer.seal(APP, b"first"))
    bad[-1] ^= 1
    tcp[1].sendall(bytes(bad) + peer.seal(APP, b"second"))
    decrypted(tcp[0], len(b"second"))
    assert system.recv_record(tcp[0], 100).data == b"second"
    assert fails(tcp[0]) == errno.EBADMSG
    # Once only, and the connection goes on as if nothing had been.
    tcp[1].sendall(peer.seal(APP, b"third"))
    assert system.recv_record(tcp[0], 100).data == b"third"


@pytest.mark.parametrize("change", ["version", "length"])
def test_after_a_fatal_error_reads_block(tcp: Tcp, change: str) -> None:
    peer = enable(tcp[0], RX)
    record = bytearray(peer.seal(APP, b"x" * 64))
    if change == "version":
        record[2] ^= 1
    else:
        record = record[:3] + b"\0\x05" + record[5:10]
    tcp[1].sendall(record)
    assert fails(tcp[0]) == (errno.EINVAL if change == "version" else errno.EMSGSIZE)
    tcp[0].setblocking(False)
    for _ in range(3):
        assert fails(tcp[0]) == errno.EAGAIN  # neither data nor an end: a blocking read would hang
    tcp[1].settimeout(20)
    with pytest.raises(ConnectionResetError):
        tcp[1].recv(1)


def test_inner_plaintext_has_a_limit(tcp: Tcp) -> None:
    peer = enable(tcp[0], RX)
    tcp[1].sendall(peer.seal(APP, bytes(16384)))
    assert len(system.recv_record(tcp[0], 20000).data) == 16384
    tcp[1].sendall(peer.seal(APP, bytes(16384), padding=1))
    assert fails(tcp[0]) == errno.EMSGSIZE


def test_type_0_hides_behind_the_data(tcp: Tcp) -> None:
    peer = enable(tcp[0], RX)
    tcp[1].sendall(peer.seal(0, b"\0\1\2"))
    record = system.recv_record(tcp[0], 100)
    assert (record.record_type, record.data) == (2, b"\0\1")


def test_a_key_update_is_an_ordinary_record(tcp: Tcp) -> None:
    peer = enable(tcp[0], RX)
    tcp[1].sendall(peer.seal(22, b"\x18\0\0\1\0"))
    assert system.recv_record(tcp[0], 100).record_type == 22
    tcp[1].sendall(Peer(SUITE).seal(APP, b"under a new key"))
    assert fails(tcp[0]) == errno.EBADMSG


# ---- timeouts and signals --------------------------------------------------------------------


def later(call: Callable[[], object]) -> Background[object]:
    def wait_and_call() -> object:
        time.sleep(0.3)
        return call()

    return Background(wait_and_call)


def test_reading_keeps_to_the_timeout(tcp: Tcp) -> None:
    peer = enable(tcp[0], RX)
    record = peer.seal(ALERT, b"\1\0")
    tcp[1].sendall(record[:-1])
    tcp[0].settimeout(0.2)
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match="timed out"):
        system.recv_record(tcp[0], 100)
    assert time.monotonic() - begin >= 0.2
    tcp[0].settimeout(20)
    with later(lambda: tcp[1].sendall(record[-1:])):
        assert system.recv_record(tcp[0], 100).data == b"\1\0"
    tcp[0].settimeout(0)
    with pytest.raises(BlockingIOError, match="recvmsg"):
        system.recv_record(tcp[0], 100)
    tcp[0].settimeout(20)
    with pytest.raises(BlockingIOError, match="recvmsg"):
        system.recv_record(tcp[0].fileno(), 100)  # whose timeout nobody knows


def test_sending_keeps_to_the_timeout(tcp: Tcp) -> None:
    peer = enable(tcp[0], TX)
    begins: list[float] = []

    def send_until_it_takes_too_long() -> None:
        while True:
            begins.append(time.monotonic())
            system.send_record(tcp[0], bytes(8192), 22)

    tcp[0].settimeout(0.3)
    with pytest.raises(TimeoutError, match="timed out"):
        send_until_it_takes_too_long()
    assert time.monotonic() - begins[-1] >= 0.3
    with pytest.raises(BlockingIOError, match="sendmsg"):
        system.send_record(tcp[0].fileno(), bytes(8192), 22)  # whose timeout nobody knows
    tcp[0].settimeout(20)
    with later(lambda: [next_record(peer, tcp[1]) for _ in begins]) as received:
        assert system.send_record(tcp[0], b"it waited", 22) == 9
        assert received.result()[-1] == (22, b"it waited")


@pytest.mark.parametrize("timeout", [None, 20, 0], ids=str)
def test_what_a_signal_interrupts_is_done_again(fake: Any, tcp: Tcp, timeout: float | None) -> None:
    peer = enable(tcp[0], TX)
    system.set_tls_enable(tcp[1], RX, peer.info())
    for sock in tcp:
        sock.settimeout(timeout)
    fake.interruptions = 3
    assert system.send_record(tcp[0], b"once", 22) == 4
    assert fake.interruptions == 0
    _records.wait_readable(tcp[1].fileno(), _records.Deadline(20))
    fake.interruptions = 3
    assert system.recv_record(tcp[1], 100).data == b"once"
    assert fake.interruptions == 0


def test_a_signal_handler_runs_while_a_record_is_waited_for(tcp: Tcp) -> None:
    peer = enable(tcp[0], RX)
    record = peer.seal(APP, b"from the handler")
    before = signal.signal(signal.SIGALRM, lambda *_: tcp[1].sendall(record))
    try:
        for timeout in (None, 20):
            tcp[0].settimeout(timeout)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            assert system.recv_record(tcp[0], 100).data == b"from the handler"
            record = peer.seal(APP, b"from the handler")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_waiting_in_vain_leaves_the_processor_alone(fake: Any, tcp: Tcp) -> None:
    """After a fatal error poll(2) says for ever that there is something to read."""
    peer = enable(tcp[0], RX)
    record = bytearray(peer.seal(APP, b"x" * 64))
    record[2] ^= 1
    tcp[1].sendall(record)
    assert fails(tcp[0]) == errno.EINVAL
    tcp[0].settimeout(0.3)
    fake.calls.clear()
    with pytest.raises(TimeoutError):
        system.recv_record(tcp[0], 100)
    assert fake.calls.count("receive") < 60


# ---- sendfile --------------------------------------------------------------------------------


@pytest.fixture
def file() -> Any:
    with tempfile.TemporaryFile() as f:
        f.write(os.urandom(50000))
        f.flush()
        yield f


def content(file: Any, offset: int, count: int) -> bytes:
    return os.pread(file.fileno(), count, offset)


def test_sendfile_follows_the_files_pages(tcp: Tcp, file: Any) -> None:
    peer = enable(tcp[0], TX)
    assert system.sendfile(tcp[0], file, 100, 40000) == (40000, None)
    pieces = [next_record(peer, tcp[1]) for _ in range(3)]
    assert [len(data) for _, data in pieces] == [16284, 16384, 7332]
    assert b"".join(data for _, data in pieces) == content(file, 100, 40000)
    assert {kind for kind, _ in pieces} == {APP}


def test_what_goes_around_the_file_are_records_of_their_own(tcp: Tcp, file: Any) -> None:
    peer = enable(tcp[0], TX)
    sent = system.sendfile(
        tcp[0], file, 49990, 0, headers=[b"before", b"it"], trailers=[bytearray(b"after")]
    )
    assert sent == (23, None)
    whole = next_data(peer, tcp[1], 23)
    assert whole == b"beforeit" + content(file, 49990, 10) + b"after"


@pytest.mark.parametrize("trailers", [(), (b"",), (b"", b"")])
def test_only_headers_go_with_the_file(tcp: Tcp, file: Any, trailers: tuple[bytes, ...]) -> None:
    """Of trailers without a byte the kernel would make an empty record, and refuse it."""
    peer = enable(tcp[0], TX)
    sent = system.sendfile(tcp[0], file, 0, 10, headers=[b"before"], trailers=trailers)
    assert sent == (16, None)
    whole = next_data(peer, tcp[1], 16)
    assert whole == b"before" + content(file, 0, 10)


@pytest.mark.parametrize("offset", [0, 10])
def test_what_goes_around_a_file_that_has_ended_is_sent(
    tcp: Tcp, tmp_path: Any, offset: int
) -> None:
    """sendfile(2) itself sends no headers then."""
    peer = enable(tcp[0], TX)
    (tmp_path / "short").write_bytes(b"0123456789"[:offset])
    with (tmp_path / "short").open("rb") as short:
        assert system.sendfile(tcp[0], short, offset, headers=[b"be", b"fore"]) == (6, None)
        assert next_record(peer, tcp[1]) == (APP, b"before")
        assert system.sendfile(tcp[0], short, offset, 5, trailers=[b"after"]) == (5, None)
        assert next_record(peer, tcp[1]) == (APP, b"after")
        sent = system.sendfile(tcp[0], short, offset, headers=[b"be"], trailers=[b"af"])
        assert sent == (4, None)
        assert next_record(peer, tcp[1]) == (APP, b"beaf")
        assert system.sendfile(tcp[0], short, offset) == (0, None)
        assert system.sendfile(tcp[0], short, offset, headers=[b""]) == (0, None)
        plain_write(tcp[0], b"next")
        assert next_record(peer, tcp[1]) == (APP, b"next")
        tcp[0].setblocking(False)
        while select.select([], [tcp[0]], [], 0.3)[1]:
            with contextlib.suppress(BlockingIOError):
                plain_write(tcp[0], bytes(16384))
        sent, error = system.sendfile(tcp[0], short, offset, headers=[b"more"])
        assert sent == 0
        assert str(error) == f"[Errno {errno.EAGAIN}] sendmsg: {os.strerror(errno.EAGAIN)}"


def test_more_pieces_around_a_file_than_a_call_takes(tcp: Tcp, file: Any) -> None:
    peer = enable(tcp[0], TX)
    pieces = [bytes([n % 256]) for n in range(3000)]
    sent = system.sendfile(tcp[0], file, 0, 10, headers=pieces, trailers=pieces[:1025])
    assert sent == (3000 + 10 + 1025, None)
    whole = next_data(peer, tcp[1], 4035)
    assert whole == b"".join(pieces) + content(file, 0, 10) + b"".join(pieces[:1025])


def test_urgent_data_cannot_be_asked_for(tcp: Tcp) -> None:
    """The kernel says EINVAL to it, as it does to a record of another version."""
    peer = Peer(SUITE)
    system.set_tls_enable(tcp[0], RX, peer.info())
    with pytest.raises(OSError, match="recvmsg: ") as caught:
        system.recv_record(tcp[0], 100, socket.MSG_OOB)
    assert caught.value.errno == errno.EOPNOTSUPP
    tcp[1].sendall(peer.seal(APP, b"data"))
    assert system.recv_record(tcp[0], 100).data == b"data"


@both
def test_keys_for_a_connection_that_was_reset(tcp: Tcp, option: int) -> None:
    tcp[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    tcp[1].close()
    wait_readable(tcp[0])
    assert refusal(tcp[0], option) == errno.ECONNRESET


@pytest.mark.parametrize("headers", [(), (b"before",)])
def test_a_file_that_is_none(tcp: Tcp, file: Any, headers: tuple[bytes, ...]) -> None:
    enable(tcp[0], TX)
    number = os.dup(file.fileno())
    os.close(number)
    sent, error = system.sendfile(tcp[0], number, headers=headers)
    assert sent == 0
    assert str(error) == f"[Errno {errno.EBADF}] sendfile: {os.strerror(errno.EBADF)}"


def test_sendfile_says_how_far_it_came(tcp: Tcp, file: Any) -> None:
    enable(tcp[0], TX)
    tcp[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
    tcp[1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    tcp[0].setblocking(False)
    total = 0
    for _ in range(1000):
        sent, error = system.sendfile(tcp[0], file)
        total += sent
        if error is not None:
            break
    assert isinstance(error, BlockingIOError)
    assert str(error).endswith("sendfile: Resource temporarily unavailable")
    assert total > 0


def test_sendfile_to_nobody(tcp: Tcp, file: Any) -> None:
    sent, error = system.sendfile(tcp[0], file, 0, 10)
    assert (sent, error) == (10, None)  # a plain socket has it too
    with pytest.raises(InvalidValue, match="offset must be from 0"):
        system.sendfile(tcp[0], file, -1)


# ---- gates and statistics --------------------------------------------------------------------


def test_gates() -> None:
    found = system.gates()
    assert list(found) == list(system.GATES)
    assert found["kern.ipc.tls.enable"] == 1
    assert found["kern.ipc.tls.maxlen"] == 16384


def test_gates_where_nothing_may_be_asked(fake: Any) -> None:
    fake.capability_mode = True
    assert set(system.gates().values()) == {None}
    with pytest.raises(PermissionError, match=r"sysctlbyname\(kern.ipc.tls.enable\)"):
        system.sysctl("kern.ipc.tls.enable")


@pytest.mark.parametrize("name", ["kern.ipc.tls.enable\0.nothing", "kern.\udc80"])
def test_what_cannot_be_the_name_of_a_sysctl(name: str) -> None:
    with pytest.raises(InvalidValue, match=r"^name must be ASCII without NUL, not 'kern\."):
        system.sysctl(name)


def test_an_unknown_sysctl() -> None:
    with pytest.raises(FileNotFoundError, match=r"sysctlbyname\(kern.ipc.tls.nothing\)"):
        system.sysctl("kern.ipc.tls.nothing")


def test_statistics_count(tcp: Tcp) -> None:
    before = system.statistics()
    enable(tcp[0], TX)
    after = system.statistics()
    name = "kern.ipc.tls.stats.offload_total"
    assert after[name] >= before[name] + 1
    assert set(before) == set(after)


def test_no_statistics(fake: Any) -> None:
    fake.sysctls.clear()
    with pytest.raises(Unavailable, match="options KERN_TLS"):
        system.statistics()


# ---- the other system's interface ------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        linux.set_ulp,
        linux.get_ulp,
        lambda s: linux.get_crypto_info(s, linux.TLS_TX),
        lambda s: linux.get_rec_seq(s, linux.TLS_RX),
        lambda s: linux.set_tx_max_payload_len(s, 100),
        linux.get_tx_zerocopy_ro,
        lambda s: linux.recv_record(s, 1),
        lambda s: linux.recv_record_into(s, [bytearray(1)]),
        lambda s: linux.send_record(s, b"x", 23),
        linux.flush,
        lambda s: linux.sendfile(s, 0),
        lambda s: linux.splice_to_pipe(s, 0, 1),
        lambda s: linux.splice_from_pipe(0, s, 1),
    ],
)
def test_linux_calls_are_refused_here(tcp, call):
    """The same numbers are other options on FreeBSD: nothing may be set by mistake."""
    with pytest.raises(
        Unavailable, match=r"^this system is not Linux; pyktls\.freebsd is for FreeBSD$"
    ):
        call(tcp[0])


def test_no_list_of_connections_but_a_word_on_what_there_is() -> None:
    with pytest.raises(Unavailable, match="FreeBSD does not list") as caught:
        pyktls.sockets()
    assert "pyktls.freebsd.statistics()" in caught.value.remedy
