"""The record boundary: each state between two records is refused, and only those.

The peer's records are sealed here with the peer's own keys, so they can be cut anywhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import re
import select
import socket
import ssl
from typing import TYPE_CHECKING

import pytest

import pyktls
from support import tls
from support.records import APPLICATION_DATA, HANDSHAKE, Opener, Sealer, read_record
from support.tls import TLS_1_2, TLS_1_3, Pair

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSIONS = [
    pytest.param((TLS_1_2, "ECDHE-ECDSA-AES128-GCM-SHA256"), id="1.2 GCM"),
    pytest.param((TLS_1_2, "ECDHE-ECDSA-CHACHA20-POLY1305"), id="1.2 ChaCha20"),
    pytest.param((TLS_1_3, "TLS_AES_128_GCM_SHA256"), id="1.3 GCM"),
    pytest.param((TLS_1_3, "TLS_CHACHA20_POLY1305_SHA256"), id="1.3 ChaCha20"),
]
ENDS = ["client", "server"]

INCOMPLETE_MESSAGE = (
    "the last handshake message is incomplete, or was padded: read on, then try again"
)
IN_INIT = "the handshake, or a message after it, is not finished"


def off_boundary_in(records: int, wire: int, rest: str) -> str:
    return (
        f"not on a record boundary: {records} bytes of records received against {wire} bytes on "
        f"the wire; {rest}"
    )


PART_OF_HEADER = "OpenSSL has read ahead, or has a part of a record's header"
PART_OF_RECORD = "OpenSSL has a part of a record: read on until it is whole"


def refused(sock: ssl.SSLSocket, text: str) -> None:
    with pytest.raises(pyktls.HandoffRefused, match=f"^{re.escape(text)}$") as caught:
        pyktls.extract(sock)
    assert type(caught.value) is pyktls.HandoffRefused


def bytes_read(sock: ssl.SSLSocket) -> int:
    """What crossed the socket BIO, asked of OpenSSL past pyktls."""
    libssl = tls.libssl()
    libssl.SSL_get_rbio.argtypes = (ctypes.c_void_p,)
    libssl.SSL_get_rbio.restype = ctypes.c_void_p
    libssl.BIO_number_read.argtypes = (ctypes.c_void_p,)
    libssl.BIO_number_read.restype = ctypes.c_uint64
    return int(libssl.BIO_number_read(libssl.SSL_get_rbio(tls.ssl_pointer(sock))))


@pytest.fixture(params=VERSIONS)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    version, cipher = request.param
    with tls.handshaken(version, cipher, tickets=0) as made:
        made.exchange()
        yield made


@pytest.fixture
def pair_13() -> Iterator[Pair]:
    with tls.handshaken(TLS_1_3, tickets=0) as made:
        yield made


def ends(pair: Pair, reader: str) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """(the one that reads, its peer)."""
    return (pair.client, pair.server) if reader == "client" else (pair.server, pair.client)


# ---- reading ---------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", ENDS)
@pytest.mark.parametrize(
    "cut", [1, 3, 4, 5, 6, 20, -1], ids=lambda n: f"{n} bytes" if n > 0 else "all but one byte"
)
def test_part_of_a_record_read(pair: Pair, reader: str, cut: int) -> None:
    sock, peer = ends(pair, reader)
    before = pyktls.extract(sock)
    sealer = Sealer(before.cipher, before.rx)
    record = sealer.seal(APPLICATION_DATA, b"cut in two somewhere")
    start = bytes_read(sock)

    tls.deliver(peer, sock, record[:cut])
    assert tls.read_what_is_there(sock) == b""
    part = len(record[:cut])
    assert bytes_read(sock) == start + part
    if part < 5:
        refused(sock, off_boundary_in(start, start + part, PART_OF_HEADER))
    else:
        refused(sock, off_boundary_in(start + len(record), start + part, PART_OF_RECORD))

    tls.deliver(peer, sock, record[cut:])
    assert tls.read_what_is_there(sock) == b"cut in two somewhere"
    after = pyktls.extract(sock)
    assert after.rx.sequence == before.rx.sequence + 1
    assert after.tx.sequence == before.tx.sequence
    # And it is the right number: a record under it is read.
    tls.deliver(peer, sock, Sealer(after.cipher, after.rx).seal(APPLICATION_DATA, b"next"))
    assert tls.recv_exactly(sock, 4) == b"next"


@pytest.mark.parametrize("reader", ENDS)
def test_every_byte_of_two_records_one_at_a_time(pair: Pair, reader: str) -> None:
    # Only the ends of the records are boundaries.
    sock, peer = ends(pair, reader)
    first = pyktls.extract(sock).rx.sequence
    sealer = Sealer(pyktls.extract(sock).cipher, pyktls.extract(sock).rx)
    records = [sealer.seal(APPLICATION_DATA, b"1st"), sealer.seal(APPLICATION_DATA, b"second")]
    allowed = []
    wire = b"".join(records)
    for n in range(len(wire)):
        tls.deliver(peer, sock, wire[n : n + 1])
        tls.read_what_is_there(sock)
        try:
            allowed.append((n + 1, pyktls.extract(sock).rx.sequence - first))
        except pyktls.HandoffRefused as e:
            assert str(e).startswith("not on a record boundary: ")  # noqa: PT017
    assert allowed == [(len(records[0]), 1), (len(wire), 2)]


@pytest.mark.parametrize("reader", ENDS)
def test_plaintext_left(pair: Pair, reader: str) -> None:
    sock, peer = ends(pair, reader)
    before = pyktls.extract(sock).rx.sequence
    peer.sendall(b"x" * 100)
    assert sock.recv(1) == b"x"
    refused(
        sock,
        "OpenSSL still holds 99 bytes of received plaintext: read them first, or use "
        "pyktls.offload, which serves them",
    )
    assert tls.recv_exactly(sock, 99) == b"x" * 99
    assert pyktls.extract(sock).rx.sequence == before + 1


@pytest.mark.parametrize("reader", ENDS)
def test_whole_records_that_openssl_has_not_touched_are_no_obstacle(
    pair: Pair, reader: str
) -> None:
    sock, peer = ends(pair, reader)
    for data in (b"one", b"two", b"three"):
        peer.sendall(data)
    assert tls.recv_exactly(sock, 3) == b"one"
    session = pyktls.extract(sock)
    opener = Opener(session.cipher, session.rx)
    for data in (b"two", b"three"):
        assert opener.open(tls.raw_read_record(sock)) == (APPLICATION_DATA, data)


def test_read_ahead(pair: Pair) -> None:
    # CPython never turns it on; the ledger notices all the same.
    libssl = tls.libssl()
    libssl.SSL_set_read_ahead.argtypes = ctypes.c_void_p, ctypes.c_int
    libssl.SSL_set_read_ahead(tls.ssl_pointer(pair.client), 1)
    before = pyktls.extract(pair.client)
    sealer = Sealer(before.cipher, before.rx)
    records = [sealer.seal(APPLICATION_DATA, data) for data in (b"one", b"two")]
    start = bytes_read(pair.client)
    tls.deliver(pair.server, pair.client, b"".join(records))
    assert pair.client.recv(3) == b"one"
    wire = start + len(records[0]) + len(records[1])
    refused(pair.client, off_boundary_in(start + len(records[0]), wire, PART_OF_HEADER))
    assert tls.recv_exactly(pair.client, 3) == b"two"
    assert pyktls.extract(pair.client).rx.sequence == before.rx.sequence + 2


# ---- writing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", ENDS)
def test_half_written_record(pair: Pair, writer: str) -> None:
    sock, peer = ends(pair, writer)
    before = pyktls.extract(sock)
    opener = Opener(before.cipher, before.tx)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sock.setblocking(False)
    block = bytes(range(256)) * 64
    with contextlib.suppress(ssl.SSLWantWriteError):
        for _ in range(10_000):
            sock.send(block)
        pytest.fail("the socket took everything")

    with pytest.raises(pyktls.HandoffRefused) as caught:
        pyktls.extract(sock)
    found = re.fullmatch(
        r"not on a record boundary: (\d+) bytes of records sent against (\d+) bytes on the wire; "
        r"a record is only partly written: repeat the write until it succeeds",
        str(caught.value),
    )
    assert found
    assert 0 < int(found[1]) - int(found[2]) <= len(block) + 5 + 8 + 17

    # A read meanwhile makes OpenSSL forget that it wants to write; the ledger does not.
    assert tls.read_what_is_there(sock) == b""
    refused(sock, str(caught.value))

    wire = b""
    while True:  # make room, until the rest of the record is out
        readable, writable, _ = select.select([peer], [sock], [], tls.TIMEOUT)
        assert readable or writable
        if readable:
            wire += tls.raw_recv(peer, 65536)
        if writable:
            with contextlib.suppress(ssl.SSLWantWriteError):
                assert sock.send(block) == len(block)
                break
    after = pyktls.extract(sock)
    stream = io.BytesIO(wire)

    def recv_exactly(size: int) -> bytes:
        data = stream.read(size)
        return data + tls.raw_recv_exactly(peer, size - len(data))

    while opener.sequence < after.tx.sequence:
        record = read_record(recv_exactly)
        assert opener.open(record) == (APPLICATION_DATA, block)
    assert tls.unread_bytes(peer) == 0
    assert after.rx.sequence == before.rx.sequence


# ---- handshake messages ----------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
@pytest.mark.parametrize("reader", ENDS)
def test_key_update_in_two_records(pair_13: Pair, reader: str, cut: int) -> None:
    sock, peer = ends(pair_13, reader)
    before = pyktls.extract(sock)
    message = bytes((24, 0, 0, 1, 0))
    sealer = Sealer(before.cipher, before.rx)
    tls.deliver(peer, sock, sealer.seal(HANDSHAKE, message[:cut]))
    assert tls.read_what_is_there(sock) == b""
    # With the four bytes of the message's header OpenSSL itself knows of the message.
    refused(sock, IN_INIT if cut == 4 else INCOMPLETE_MESSAGE)

    tls.deliver(peer, sock, sealer.seal(HANDSHAKE, message[cut:]))
    assert tls.read_what_is_there(sock) == b""
    after = pyktls.extract(sock)
    sealer.rekey()
    assert (after.rx.sequence, after.rx.key) == (0, sealer.key)
    assert after.tx == before.tx


@pytest.mark.parametrize("cut", [1, 3, 4, 5, 50])
def test_ticket_in_two_records(cut: int) -> None:
    # A real ticket, sealed anew in two parts.
    with tls.handshaken(TLS_1_3, tickets=1) as pair:
        session = pyktls.extract(pair.client)
        opener = Opener(session.cipher, session.rx)
        record_type, ticket = opener.open(tls.raw_read_record(pair.client))
        assert (record_type, ticket[0]) == (HANDSHAKE, 4)

        sealer = Sealer(session.cipher, session.rx)
        tls.deliver(pair.server, pair.client, sealer.seal(HANDSHAKE, ticket[:cut]))
        assert tls.read_what_is_there(pair.client) == b""
        refused(pair.client, INCOMPLETE_MESSAGE if cut < 4 else IN_INIT)

        tls.deliver(pair.server, pair.client, sealer.seal(HANDSHAKE, ticket[cut:]))
        assert tls.read_what_is_there(pair.client) == b""
        after = pyktls.extract(pair.client)
        assert after.rx.sequence == 2
        tls.deliver(pair.server, pair.client, sealer.seal(APPLICATION_DATA, b"still in step"))
        assert tls.recv_exactly(pair.client, 13) == b"still in step"


def test_several_tickets_in_one_record() -> None:
    with tls.handshaken(TLS_1_3, tickets=2) as pair:
        session = pyktls.extract(pair.client)
        opener = Opener(session.cipher, session.rx)
        tickets = b"".join(opener.open(tls.raw_read_record(pair.client))[1] for _ in range(2))
        sealer = Sealer(session.cipher, session.rx)
        tls.deliver(pair.server, pair.client, sealer.seal(HANDSHAKE, tickets + tickets[:3]))
        assert tls.read_what_is_there(pair.client) == b""
        refused(pair.client, INCOMPLETE_MESSAGE)
        rest = tickets[3 : len(tickets) // 2]
        tls.deliver(pair.server, pair.client, sealer.seal(HANDSHAKE, rest))
        assert tls.read_what_is_there(pair.client) == b""
        assert pyktls.extract(pair.client).rx.sequence == 2


def test_padded_handshake_message_cannot_be_told_from_an_incomplete_one() -> None:
    # OpenSSL does not say how much of a record is padding; a change of keys clears the account.
    with tls.handshaken(TLS_1_3, tickets=1) as pair:
        session = pyktls.extract(pair.client)
        opener = Opener(session.cipher, session.rx)
        _, ticket = opener.open(tls.raw_read_record(pair.client))
        sealer = Sealer(session.cipher, session.rx)
        tls.deliver(pair.server, pair.client, sealer.seal(HANDSHAKE, ticket, padding=7))
        assert tls.read_what_is_there(pair.client) == b""
        refused(pair.client, INCOMPLETE_MESSAGE)
        tls.deliver(pair.server, pair.client, sealer.seal(HANDSHAKE, bytes((24, 0, 0, 1, 0))))
        assert tls.read_what_is_there(pair.client) == b""
        assert pyktls.extract(pair.client).rx.sequence == 0


def test_padded_data_is_no_obstacle(pair_13: Pair) -> None:
    session = pyktls.extract(pair_13.client)
    sealer = Sealer(session.cipher, session.rx)
    record = sealer.seal(APPLICATION_DATA, b"data", padding=100)
    tls.deliver(pair_13.server, pair_13.client, record)
    assert tls.recv_exactly(pair_13.client, 4) == b"data"
    assert pyktls.extract(pair_13.client).rx.sequence == 1


def test_empty_records_count(pair: Pair) -> None:
    session = pyktls.extract(pair.client)
    sealer = Sealer(session.cipher, session.rx)
    tls.deliver(pair.server, pair.client, sealer.seal(APPLICATION_DATA, b""))
    assert tls.read_what_is_there(pair.client) == b""
    assert pyktls.extract(pair.client).rx.sequence == session.rx.sequence + 1
