"""The netlink messages of examples/nfs_tls, against bytes written by hand.

Little-endian here as on every machine that the tests are run on: netlink is in the machine's order.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys

import pytest

from nfs_tls import upcall
from nfs_tls.policy import Verdict
from nfs_tls.upcall import HandshakeUpcall, Netlink, UpcallError
from support.systems import linux_only

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="the bytes are little-endian")

# nlmsghdr: length 28, type 0x1c, flags REQUEST, sequence 7, port 0; genlmsghdr: ACCEPT, version 1;
# attribute: length 8, HANDLER_CLASS (2), 1.
ACCEPT = bytes.fromhex("1c000000 1c00 0100 07000000 00000000 02 01 0000 0800 0200 01000000")

ACCEPT_REPLY = bytes.fromhex(
    "0800 0100 05000000"  # SOCKFD 5
    "0800 0300 01000000"  # MESSAGE_TYPE ClientHello
    "0800 0400 10270000"  # TIMEOUT 10000 ms
    "0800 0500 03000000"  # AUTH_MODE x509
    "0800 0600 11000000"  # PEER_IDENTITY, twice
    "0800 0600 12000000"
    "1400 0780 0800 0100 21000000 0800 0200 22000000"  # CERTIFICATE, nested
    "0e00 0800 6c6f63616c686f737400 0000"  # PEERNAME "localhost", padded
    "0800 0900 33000000"  # KEYRING
    "0600 5500 aabb 0000"  # something that is not known yet
)

DONE = bytes.fromhex(
    "0800 0100 0d000000"  # STATUS EACCES
    "0800 0200 05000000"  # SOCKFD
    "0800 0300 ffffffff"  # REMOTE_AUTH, twice
    "0800 0300 44000000"
)

# NLMSG_ERROR of request 1, -EAGAIN: -11 on Linux.
TRY_AGAIN = (
    bytes.fromhex("24000000 0200 0000 01000000 00000000")
    + struct.pack("<i", -errno.EAGAIN)
    + bytes(16)
)
ACKNOWLEDGED = bytes.fromhex("24000000 0200 0001 01000000 00000000 00000000") + bytes(16)
BUSY = bytes.fromhex("24000000 0200 0000 01000000 00000000 f0ffffff") + bytes(16)


def reply(kind: int, sequence: int, attributes: bytes) -> bytes:
    return (
        struct.pack("<IHHIIBBH", 20 + len(attributes), kind, 0, sequence, 0, 2, 1, 0) + attributes
    )


def test_accept_is_asked_for_as_the_kernel_wants_it():
    attributes = upcall.pack_u32(upcall.A_ACCEPT_HANDLER_CLASS, upcall.HANDLER_CLASS_TLSHD)
    assert upcall.pack_message(0x1C, upcall.CMD_ACCEPT, 7, attributes) == ACCEPT


def test_everything_in_a_request_is_read():
    found = upcall.unpack_accept(upcall.unpack_attributes(ACCEPT_REPLY))
    assert found == upcall.Upcall(
        5,
        upcall.MSG_TYPE_CLIENTHELLO,
        upcall.AUTH_X509,
        10000,
        "localhost",
        (0x11, 0x12),
        ((0x21, 0x22),),
        0x33,
    )


def test_what_may_be_missing_may_be_missing():
    found = upcall.unpack_accept(upcall.unpack_attributes(ACCEPT_REPLY[:8]))
    assert found == upcall.Upcall(5)


@linux_only  # and its numbers of errors
@pytest.mark.parametrize(
    ("verdict", "status"),
    [
        (Verdict.OK, 0),
        (Verdict.DENIED, 13),
        (Verdict.TRY_AGAIN, 110),
        (Verdict.UNSUPPORTED, 95),
        (Verdict.INVALID, 22),
    ],
)
def test_done_says_a_positive_errno(verdict, status):
    expected = struct.pack("<HHI", 8, 1, status) + bytes.fromhex("0800 0200 05000000")
    assert upcall.pack_done(5, verdict) == expected


def test_every_verdict_has_an_errno():
    assert set(upcall.ERRORS) == set(Verdict)
    assert [v for v, error in upcall.ERRORS.items() if error == 0] == [Verdict.OK]


def test_done_names_the_peers_keys():
    assert upcall.pack_done(5, Verdict.DENIED, (upcall.PEER_WITHOUT_KEY, 0x44)) == DONE


@linux_only
def test_an_error_is_an_errno():
    found = upcall.unpack_message(TRY_AGAIN)
    assert (found.kind, found.sequence, found.error) == (upcall.NLMSG_ERROR, 1, errno.EAGAIN)
    assert upcall.unpack_message(ACKNOWLEDGED).error == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        ACCEPT[:10],
        b"\xff\0\0\0" + ACCEPT[4:],
        b"\x04\0\0\0" + ACCEPT[4:],
        TRY_AGAIN[:18],
        bytes.fromhex("12000000 0200 0000 01000000 00000000 f5ff"),
        bytes.fromhex("12000000 1c00 0000 01000000 00000000 0201"),
        ACCEPT[:20] + bytes.fromhex("0300 0200 01000000"),
        ACCEPT[:20] + bytes.fromhex("0900 0200 01000000"),
        b"\x16\0\0\0" + ACCEPT[4:20] + b"\x08\0",
    ],
)
def test_what_is_no_message_is_told(data):
    with pytest.raises(UpcallError):
        upcall.unpack_message(data)


@pytest.mark.parametrize(
    "attributes",
    [
        b"",
        ACCEPT_REPLY[8:],
        ACCEPT_REPLY[:8] * 2,
        bytes.fromhex("0600 0100 0500 0000"),
        bytes.fromhex("0800 0100 ffffffff"),
    ],
)
def test_a_request_without_one_socket_is_none(attributes):
    with pytest.raises(UpcallError):
        upcall.unpack_accept(upcall.unpack_attributes(attributes))


@pytest.mark.parametrize(
    "broken", ["0600 0300 0100 0000", "0600 0600 0100 0000", "0800 0780 0900 0100"]
)
def test_the_socket_of_a_broken_request_is_closed(broken):
    fd = os.open(os.devnull, os.O_RDONLY)
    attributes = struct.pack("<HHi", 8, 1, fd) + bytes.fromhex(broken)
    with pytest.raises(UpcallError):
        upcall.unpack_accept(upcall.unpack_attributes(attributes))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


# ---- families ----------------------------------------------------------------------------------


def group(index: int, name: bytes, number: int) -> bytes:
    padded = name + bytes(-len(name) % 4)
    inner = struct.pack("<HHI", 8, 2, number) + struct.pack("<HH", 4 + len(name), 1) + padded
    return struct.pack("<HH", 4 + len(inner), index | 0x8000) + inner


def family(*groups: bytes) -> bytes:
    inner = b"".join(groups)
    return bytes.fromhex("0600 0100 1c00 0000") + struct.pack("<HH", 4 + len(inner), 0x8007) + inner


def test_the_group_is_found_by_its_name():
    attributes = family(group(1, b"none\0", 8), group(2, b"tlshd\0", 9))
    assert upcall.group_number(upcall.unpack_attributes(attributes), "tlshd") == 9
    assert upcall.group_number(upcall.unpack_attributes(attributes), "other") is None
    assert upcall.group_number((), "tlshd") is None


# ---- the sockets, with a kernel of ours at the other end ----------------------------------------


@pytest.fixture
def pair():
    ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, kernels:
        yield Netlink(ours), kernels


def made_of(netlink: Netlink) -> HandshakeUpcall:
    made = HandshakeUpcall.__new__(HandshakeUpcall)
    made._requests, made._family = netlink, 0x1C
    return made


def test_a_request_is_fetched(pair):
    netlink, kernels = pair
    kernels.send(reply(0x1C, 99, b""))  # an old answer to something else
    kernels.send(reply(0x1C, 1, ACCEPT_REPLY))
    assert made_of(netlink).accept().peername == "localhost"
    assert kernels.recv(100) == ACCEPT.replace(b"\x07", b"\x01", 1)


def test_an_empty_queue_is_none(pair):
    netlink, kernels = pair
    kernels.send(TRY_AGAIN)
    assert made_of(netlink).accept() is None


@pytest.mark.parametrize(
    ("answer", "expected"), [(ACKNOWLEDGED, True), (BUSY, False)], ids=["waits", "given up"]
)
def test_done_is_asked_to_be_acknowledged(pair, answer, expected):
    netlink, kernels = pair
    kernels.send(answer)
    found = made_of(netlink).done(5, Verdict.DENIED, (upcall.PEER_WITHOUT_KEY, 0x44))
    assert found is expected
    asked = kernels.recv(100)
    assert asked[6:8] == b"\x05\0"  # REQUEST, ACK
    assert asked[16:20] == b"\x03\x01\0\0"
    assert asked[20:] == DONE


def test_other_errors_are_raised(pair):
    netlink, kernels = pair
    kernels.send(BUSY.replace(b"\xf0", b"\xff"))  # EPERM
    with pytest.raises(PermissionError):
        made_of(netlink).done(5, Verdict.OK)


@linux_only
def test_a_kernel_without_the_family_is_told(pair, monkeypatch):
    netlink, kernels = pair
    monkeypatch.setattr(upcall, "Netlink", lambda: netlink)
    kernels.send(BUSY.replace(b"\xf0", b"\xfe"))  # ENOENT
    with pytest.raises(UpcallError, match=r"no handshake upcall: Linux 6\.4"):
        HandshakeUpcall()
    assert netlink.sock.fileno() == -1
    assert kernels.recv(100)[16:] == bytes.fromhex("03 01 0000 0e00 0200") + b"handshake\0" + bytes(
        2
    )


@linux_only
def test_the_socket_of_the_events_has_an_address_before_it_joins(pair, monkeypatch):
    """Else Linux finds that nobody listens, and refuses the mount (seen on 7.3)."""
    calls = []

    class Events:
        def bind(self, address):
            calls.append(("bind", address))

        def setsockopt(self, *arguments):
            calls.append(arguments)

        def close(self):
            pass

    netlink, kernels = pair
    monkeypatch.setattr(upcall, "Netlink", lambda: netlink)
    monkeypatch.setattr(upcall.socket, "socket", lambda *_: Events())
    kernels.send(reply(16, 1, family(group(2, b"tlshd\0", 9))))
    HandshakeUpcall().close()
    assert calls == [("bind", (0, 0)), (270, 1, 9)]


@linux_only
def test_a_family_without_the_group_is_told(pair, monkeypatch):
    netlink, kernels = pair
    monkeypatch.setattr(upcall, "Netlink", lambda: netlink)
    kernels.send(reply(16, 1, family(group(1, b"none\0", 8))))
    with pytest.raises(UpcallError, match="no group tlshd"):
        HandshakeUpcall()


@linux_only
def test_this_kernel_answers_or_is_told_to_lack_it():
    """Whatever kernel runs the tests: the codec and a real one understand each other."""
    netlink = Netlink()
    try:
        name = upcall.pack_attribute(upcall.CTRL_ATTR_FAMILY_NAME, b"nlctrl\0")
        found = netlink.ask(upcall.GENL_ID_CTRL, upcall.CTRL_CMD_GETFAMILY, name)
        assert dict(found.attributes)[upcall.CTRL_ATTR_FAMILY_ID] == b"\x10\0"
        assert upcall.group_number(found.attributes, "notify") == 16
    finally:
        netlink.close()
