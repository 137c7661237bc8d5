"""The kernel's socket diagnostics without a kernel: messages made by hand, and what they become.

``Kernel`` stands in for the netlink socket.  It has a script, one list of datagrams for each time
that it is asked; in a datagram a message's sequence number None means that of the request.
The real kernel is for tests/kernel/test_sockets.py.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any, Self

import hypothesis.strategies as st
import pytest
from hypothesis import given

import pyktls
from pyktls import Mode, SocketInfo, TCPState, Unavailable, linux, survey
from pyktls.linux import sock_diag
from pyktls.linux.sock_diag import Connection, UlpInfo
from pyktls.survey import Endpoint
from support import tls
from support.systems import linux_only

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = linux_only

REPLY, ERROR, DONE, NOOP, OVERRUN = 20, 2, 3, 1, 4
MULTI, INTERRUPTED = 0x2, 0x10
TLS_1_3 = 0x0304
CALL = "netlink(SOCK_DIAG_BY_FAMILY)"


# ---- messages --------------------------------------------------------------------------------


def attribute(kind: int, value: bytes) -> bytes:
    return (struct.pack("=HH", 4 + len(value), kind) + value).ljust((len(value) + 7) & ~3, b"\0")


def u16(kind: int, number: int) -> bytes:
    return attribute(kind, struct.pack("=H", number))


def ulp(*attributes: bytes, name: bytes = b"tls\0") -> bytes:
    """INET_DIAG_ULP_INFO; nested as the kernel does it, with NLA_F_NESTED where it has that."""
    inner = attribute(1, name) + (attribute(2, b"".join(attributes)) if attributes else b"")
    return attribute(19, inner)


KEYED = ulp(u16(1, TLS_1_3), u16(2, 51), u16(3, 2), u16(4, 2))
EVERYTHING = ulp(
    u16(1, TLS_1_3), u16(2, 54), u16(3, 3), u16(4, 1), attribute(5, b""), attribute(6, b""),
    u16(7, 4096),
)  # fmt: skip


def diag(
    attributes: bytes = KEYED,
    *,
    family: int = socket.AF_INET,
    state: int = 1,
    near: tuple[str, int] = ("192.0.2.1", 443),
    far: tuple[str, int] = ("198.51.100.7", 50000),
    interface: int = 0,
    inode: int = 4711,
) -> bytes:
    """The body of a reply: a struct inet_diag_msg with INET_DIAG_SHUTDOWN and INFO behind it."""
    ends = [socket.inet_pton(family, ip).ljust(16, b"\0") for ip, _ in (near, far)]
    head = struct.pack("=BBBB", family, state, 0, 0) + struct.pack("!HH", near[1], far[1])
    head += b"".join(ends) + struct.pack("=I8s", interface, b"cookie!!")
    head += struct.pack("=IIIII", 0, 11, 22, 1000, inode)
    assert len(head) == 72
    return head + attribute(8, b"\0") + attribute(2, bytes(232)) + attributes


class Message:
    def __init__(self, kind: int, body: bytes = b"", *, flags: int = 0, sequence: Any = None):
        self.kind, self.body, self.flags, self.sequence = kind, body, flags, sequence

    def bytes(self, sequence: int) -> bytes:
        number = sequence if self.sequence is None else self.sequence
        size = 16 + len(self.body)
        head = struct.pack("=IHHII", size, self.kind, self.flags, number, 4242)
        return (head + self.body).ljust((size + 3) & ~3, b"\0")


def reply(body: bytes, flags: int = MULTI, **fields: Any) -> Message:
    return Message(REPLY, body, flags=flags, **fields)


def done(error: int = 0) -> Message:
    return Message(DONE, struct.pack("=i", error), flags=MULTI)


def refusal(error: int) -> Message:
    return Message(ERROR, struct.pack("=i", -error) + bytes(16))


class Datagram:
    def __init__(self, *messages: Message | bytes, sender: int = 0, flags: int = 0):
        self.messages, self.sender, self.flags = messages, sender, flags

    def bytes(self, sequence: int) -> bytes:
        parts = (m if isinstance(m, bytes) else m.bytes(sequence) for m in self.messages)
        return b"".join(parts)


class Kernel:
    """In place of ``sock_diag._open``: answers by its script."""

    def __init__(self, *script: list[Datagram]) -> None:
        self.script = list(script)
        self.requests: list[bytes] = []
        self.sizes: list[int] = []
        self.opened = self.closed = 0

    def __call__(self) -> Kernel:
        self.opened += 1
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed += 1

    def settimeout(self, seconds: float) -> None:
        assert 0 < seconds <= 5

    def sendto(self, request: bytes, address: tuple[int, int]) -> int:
        assert address == (0, 0)
        self.requests.append(request)
        (self.sequence,) = struct.unpack_from("=I", request, 8)
        self.queue = self.script.pop(0)
        return len(request)

    def recvmsg(self, size: int) -> tuple[bytes, list[Any], int, tuple[int, int]]:
        self.sizes.append(size)
        if not self.queue:
            raise TimeoutError("timed out")
        datagram = self.queue.pop(0)
        return datagram.bytes(self.sequence), [], datagram.flags, (datagram.sender, 0)


@pytest.fixture
def plays(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Kernel]:
    def play(*script: list[Datagram]) -> Kernel:
        kernel = Kernel(*script)
        monkeypatch.setattr(sock_diag, "_open", kernel)
        return kernel

    return play


@pytest.fixture
def sock() -> Any:
    near, far = tls.tcp_pair()
    with near, far:
        yield near


def connection(**changes: Any) -> Connection:
    fields = {
        "family": socket.AF_INET, "state": 1, "local": ("192.0.2.1", 443),
        "remote": ("198.51.100.7", 50000), "interface": 0, "rqueue": 11, "wqueue": 22,
        "uid": 1000, "inode": 4711, "ulp": UlpInfo("tls", TLS_1_3, 51, 2, 2),
    }  # fmt: skip
    return Connection(**(fields | changes))


# ---- one socket ------------------------------------------------------------------------------


def test_the_question_names_exactly_this_connection(plays: Any, sock: socket.socket) -> None:
    kernel = plays([Datagram(reply(diag(), flags=0))])
    sock_diag.ulp_info(sock)
    (request,) = kernel.requests
    near, far = sock.getsockname(), sock.getpeername()
    assert struct.unpack_from("=IHHII", request) == (72, REPLY, 1, 1, 0)
    assert struct.unpack_from("=BBBxI", request, 16) == (socket.AF_INET, 6, 2, 0xFFFFFFFF)
    assert struct.unpack_from("!HH", request, 24) == (near[1], far[1])
    assert request[28:32] == request[44:48] == socket.inet_aton("127.0.0.1")
    assert request[60:] == bytes(4) + b"\xff" * 8
    assert kernel.closed == kernel.opened == 1


def test_a_descriptor_will_do_and_nothing_happens_to_the_socket(
    plays: Any, sock: socket.socket
) -> None:
    kernel = plays([Datagram(reply(diag(), flags=0))], [Datagram(reply(diag(), flags=0))])
    sock_diag.ulp_info(sock)
    sock.setblocking(True)
    socket.setdefaulttimeout(5.0)
    try:
        sock_diag.ulp_info(sock.fileno())
    finally:
        socket.setdefaulttimeout(None)
    assert os.get_blocking(sock.fileno())
    asked, again = (request[16:] for request in kernel.requests)
    assert asked == again


def test_what_is_no_socket() -> None:
    with open(os.devnull) as file, pytest.raises(OSError, match="getsockname"):  # noqa: PTH123
        sock_diag.ulp_info(file)
    with socket.socket() as unconnected, pytest.raises(OSError):
        sock_diag.ulp_info(unconnected)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        (b"", None),
        (KEYED, UlpInfo("tls", TLS_1_3, 51, 2, 2)),
        (EVERYTHING, UlpInfo("tls", TLS_1_3, 54, 3, 1, True, True, 4096)),
        (ulp(), UlpInfo("tls")),
        (ulp(u16(3, 1), u16(4, 1)), UlpInfo("tls", None, None, 1, 1)),
        (ulp(attribute(6, b"")), UlpInfo("tls", rx_no_pad=True)),
        (ulp(attribute(5, b"")), UlpInfo("tls", zerocopy_ro=True)),
        (ulp(u16(7, 63)), UlpInfo("tls", tx_max_payload_len=63)),
        # What a later kernel may add, and numbers that nobody knows.
        (ulp(u16(1, 0x0305), u16(2, 999), u16(3, 4), attribute(8, b"later"), u16(4, 77)),
         UlpInfo("tls", 0x0305, 999, 4, 77)),
        (ulp(name=b"mptcp\0"), UlpInfo("mptcp")),
        (ulp(name=b"no end"), UlpInfo("no end")),
        (ulp(name=b"\xff\xfe\0"), UlpInfo("\ufffd\ufffd")),
        (attribute(19, b""), UlpInfo("")),
        # Nested attributes are flagged as such by newer kernels.
        (attribute(19 | 0x8000, attribute(2 | 0x8000, u16(1, TLS_1_3))), UlpInfo("", TLS_1_3)),
    ],
)  # fmt: skip
def test_every_attribute(plays: Any, sock: Any, attributes: bytes, expected: UlpInfo) -> None:
    plays([Datagram(reply(diag(attributes), flags=0))])
    assert sock_diag.ulp_info(sock) == expected


@pytest.mark.parametrize("error", [errno.ENOENT, errno.EPERM, errno.EINVAL, errno.EPROTONOSUPPORT])
def test_the_kernels_refusal(plays: Any, sock: Any, error: int) -> None:
    plays([Datagram(refusal(error))])
    with pytest.raises(OSError) as caught:
        sock_diag.ulp_info(sock)
    assert caught.value.errno == error
    assert str(caught.value) == f"[Errno {error}] {CALL}: {os.strerror(error)}"


def test_what_others_send_is_no_answer(plays: Any, sock: Any) -> None:
    lie = reply(diag(ulp(u16(1, 0x0303), u16(3, 3))), flags=0)
    other = reply(diag(ulp(u16(1, 0x0303))), flags=0, sequence=77)
    plays([
        Datagram(lie, sender=4321),
        Datagram(b"rubbish", sender=4321),
        Datagram(refusal(errno.EPERM), sender=4321, flags=socket.MSG_TRUNC),
        Datagram(other, Message(NOOP)),
        Datagram(reply(diag(), flags=0)),
    ])  # fmt: skip
    assert sock_diag.ulp_info(sock) == UlpInfo("tls", TLS_1_3, 51, 2, 2)


def test_no_answer_is_a_timeout_with_the_calls_name(plays: Any, sock: Any) -> None:
    plays([Datagram(Message(NOOP))])
    with pytest.raises(TimeoutError) as caught:
        sock_diag.ulp_info(sock)
    said = os.strerror(errno.ETIMEDOUT)
    assert str(caught.value) == f"[Errno {errno.ETIMEDOUT}] {CALL}: {said}"


def test_a_flood_of_others_ends(plays: Any, sock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 1.0)
    monkeypatch.setattr(sock_diag.time, "monotonic", lambda: next(clock))
    kernel = plays([Datagram(b"", sender=1)] * 1000)
    with pytest.raises(TimeoutError):
        sock_diag.ulp_info(sock)
    assert len(kernel.queue) > 900


def test_a_long_answer_may_take_its_time(plays: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 1.0)
    monkeypatch.setattr(sock_diag.time, "monotonic", lambda: next(clock))
    plays([*[Datagram(reply(diag()))] * 100, Datagram(done())])
    assert len(sock_diag.connections(socket.AF_INET)) == 100


@pytest.mark.parametrize("error", [errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT])
def test_no_netlink(sock: Any, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    refuse_netlink(monkeypatch, error)
    with pytest.raises(OSError) as caught:
        sock_diag.ulp_info(sock)
    assert str(caught.value) == f"[Errno {error}] socket(AF_NETLINK): {os.strerror(error)}"


def refuse_netlink(monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    real = socket.socket

    class Refusing(real):  # type: ignore[misc,valid-type]
        def __init__(self, family: int = -1, *rest: Any, **more: Any) -> None:
            if family == socket.AF_NETLINK:
                raise OSError(error, "no")
            super().__init__(family, *rest, **more)

    monkeypatch.setattr(socket, "socket", Refusing)


# ---- dumps -----------------------------------------------------------------------------------


def test_the_question_for_all(plays: Any) -> None:
    kernel = plays([Datagram(done())])
    assert sock_diag.connections(socket.AF_INET6) == []
    (request,) = kernel.requests
    assert struct.unpack_from("=IHHII", request) == (72, REPLY, 0x301, 1, 0)
    family, protocol, ext, states = struct.unpack_from("=BBBxI", request, 16)
    assert (family, protocol, ext) == (socket.AF_INET6, 6, 2)
    wanted = {state for state in TCPState if states & 1 << state}
    assert wanted == {
        TCPState.ESTABLISHED, TCPState.FIN_WAIT1, TCPState.FIN_WAIT2, TCPState.CLOSE_WAIT,
        TCPState.LAST_ACK, TCPState.CLOSING,
    }  # fmt: skip
    assert request[24:60] == bytes(36)


def test_several_datagrams_with_several_messages(plays: Any) -> None:
    kernel = plays([
        Datagram(reply(diag(inode=1)), reply(diag(b"", inode=2)), reply(diag(inode=3))),
        Datagram(reply(diag(EVERYTHING, inode=4, state=8, interface=5))),
        Datagram(),
        Datagram(reply(diag(ulp(name=b"espintcp\0"), inode=6)), done()),
        Datagram(reply(diag(inode=99))),
    ])  # fmt: skip
    assert sock_diag.connections(socket.AF_INET) == [
        connection(inode=1),
        connection(inode=3),
        connection(
            inode=4, state=8, interface=5, ulp=UlpInfo("tls", TLS_1_3, 54, 3, 1, True, True, 4096)
        ),
        connection(inode=6, ulp=UlpInfo("espintcp")),
    ]
    assert len(kernel.queue) == 1  # what comes after the end is not read


def test_ipv6_addresses(plays: Any) -> None:
    ends = {"near": ("2001:db8::1", 1), "far": ("::ffff:192.0.2.1", 65535)}
    plays([Datagram(reply(diag(family=socket.AF_INET6, **ends)), done())])
    (found,) = sock_diag.connections(socket.AF_INET6)
    assert (found.family, found.local, found.remote) == (socket.AF_INET6, *ends.values())


def test_an_interrupted_dump_is_asked_for_again(plays: Any) -> None:
    cut = [Datagram(reply(diag(inode=1)), reply(diag(inode=2), MULTI | INTERRUPTED), done())]
    late = [Datagram(reply(diag(inode=3))), Datagram(Message(DONE, bytes(4), flags=INTERRUPTED))]
    kernel = plays(cut, late, [Datagram(reply(diag(inode=4)), done())])
    assert sock_diag.connections(socket.AF_INET) == [connection(inode=4)]
    sequences = [struct.unpack_from("=I", request, 8)[0] for request in kernel.requests]
    assert sequences == [1, 2, 3]
    assert kernel.opened == kernel.closed == 3


def test_what_is_always_interrupted_ends(plays: Any) -> None:
    cut = [Datagram(reply(diag(), MULTI | INTERRUPTED), done())]
    kernel = plays(*[list(cut) for _ in range(100)])
    with pytest.raises(OSError) as caught:
        sock_diag.connections(socket.AF_INET)
    assert caught.value.errno == errno.EBUSY
    assert str(caught.value).endswith(
        f"{CALL}: {os.strerror(errno.EBUSY)}: no whole answer in 5 attempts"
    )
    assert kernel.opened == kernel.closed == 5


def test_an_overrun_is_asked_for_again(plays: Any) -> None:
    plays([Datagram(Message(OVERRUN))], [Datagram(reply(diag()), done())])
    assert sock_diag.connections(socket.AF_INET) == [connection()]


def test_a_truncated_datagram_is_asked_for_again_with_more_room(plays: Any) -> None:
    cut = Datagram(reply(diag()), b"\x50\0\0\0", flags=socket.MSG_TRUNC)
    kernel = plays([cut], [Datagram(reply(diag(inode=5)), done())])
    assert sock_diag.connections(socket.AF_INET) == [connection(inode=5)]
    first, second = kernel.sizes
    assert second > first >= 32768
    kernel = plays(*[[cut] for _ in range(100)])
    with pytest.raises(OSError, match="no whole answer"):
        sock_diag.connections(socket.AF_INET)
    assert max(kernel.sizes) <= 1 << 24


@pytest.mark.parametrize("end", [done(-errno.EINVAL), refusal(errno.EINVAL)])
def test_a_dump_that_fails_is_no_short_list(plays: Any, end: Message) -> None:
    plays([Datagram(reply(diag())), Datagram(end)])
    with pytest.raises(OSError) as caught:
        sock_diag.connections(socket.AF_INET)
    assert caught.value.errno == errno.EINVAL


def test_a_dump_without_end_is_no_short_list(plays: Any) -> None:
    plays([Datagram(reply(diag()))])
    with pytest.raises(TimeoutError):
        sock_diag.connections(socket.AF_INET)


# ---- hostile replies -------------------------------------------------------------------------

LONG = struct.pack("=HH", 100, 19)
HEADER = struct.pack("=IHHII", 16, REPLY, 0, 1, 0)


@pytest.mark.parametrize(
    ("datagram", "text"),
    [
        (b"\x10", "a message without a header"),
        (HEADER[:15], "a message without a header"),
        (b"\0" * 16, "a message of 0 bytes in 16"),
        (b"\x0f" + HEADER[1:], "a message of 15 bytes in 16"),
        (b"\x11" + HEADER[1:], "a message of 17 bytes in 16"),
        (b"\xff" * 16, "a message of 4294967295 bytes in 16"),
        (HEADER, "an inet_diag_msg of 0 bytes"),
        (reply(diag()[:71]), "an inet_diag_msg of 71 bytes"),
        (reply(diag(b"\0")), "an attribute without a header"),
        (reply(diag(b"\0\0\0\0")), "an attribute of 0 bytes in 4"),
        (reply(diag(b"\3\0\x13\0")), "an attribute of 3 bytes in 4"),
        (reply(diag(LONG)), "an attribute of 100 bytes in 4"),
        (reply(diag(attribute(19, LONG))), "an attribute of 100 bytes in 4"),
        (reply(diag(attribute(19, attribute(2, LONG)))), "an attribute of 100 bytes in 4"),
        (reply(diag(ulp(attribute(1, b"")))), "version in 0 bytes"),
        (reply(diag(ulp(attribute(7, b"123")))), "tx_max_payload_len in 3 bytes"),
        (Message(ERROR, b"123"), "an error without a number"),
        (Message(DONE), "an error without a number"),
    ],
)
def test_a_reply_that_makes_no_sense(plays: Any, sock: Any, datagram: Any, text: str) -> None:
    for ask in (lambda: sock_diag.ulp_info(sock), lambda: sock_diag.connections(socket.AF_INET)):
        plays([Datagram(datagram)])
        with pytest.raises(OSError) as caught:
            ask()
        assert caught.value.errno == errno.EPROTO
        assert str(caught.value) == f"[Errno {errno.EPROTO}] {CALL}: {text}"


def test_a_socket_of_a_family_that_was_not_asked_for(plays: Any) -> None:
    plays([Datagram(reply(b"\7" + diag()[1:]))])
    with pytest.raises(OSError, match="a socket of address family 7"):
        sock_diag.connections(socket.AF_INET)


def answers(data: bytes) -> None:
    """A result, or a clean error; and one comes."""
    kernel = Kernel(*[[Datagram(data), Datagram(done())] for _ in range(10)])
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(OSError):
        patch.setattr(sock_diag, "_open", kernel)
        for found in sock_diag.connections(socket.AF_INET):
            assert isinstance(found, Connection)
            assert isinstance(found.ulp, UlpInfo)
    assert kernel.opened == kernel.closed <= 5


@given(st.binary(max_size=400))
def test_any_datagram(data: bytes) -> None:
    answers(data)


@given(st.binary(max_size=200))
def test_any_attributes(data: bytes) -> None:
    answers(Message(REPLY, diag(data)).bytes(1))
    answers(Message(REPLY, diag(attribute(19, data))).bytes(1))
    answers(Message(REPLY, diag(attribute(19, attribute(2, data)))).bytes(1))


WHOLE = b"".join(m.bytes(1) for m in (reply(diag(EVERYTHING)), reply(diag(KEYED)), done()))


@given(st.data())
def test_any_change_of_a_good_answer(data: st.DataObject) -> None:
    changed = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(WHOLE) - 1))] = data.draw(st.integers(0, 255))
    answers(bytes(changed[: data.draw(st.integers(0, len(WHOLE)))]))


@given(
    st.dictionaries(st.sampled_from([1, 2, 3, 4, 7]), st.integers(0, 0xFFFF)),
    st.sets(st.sampled_from([5, 6])),
    st.randoms(),
)
def test_what_is_put_in_comes_out(numbers: dict[int, int], flags: set[int], random: Any) -> None:
    parts = [u16(*item) for item in numbers.items()] + [attribute(f, b"") for f in flags]
    random.shuffle(parts)
    found = sock_diag._parse_ulp_of(memoryview(diag(ulp(*parts))))
    assert found == UlpInfo(
        "tls", *map(numbers.get, (1, 2, 3, 4)), 5 in flags, 6 in flags, numbers.get(7)
    )


# ---- pyktls.sockets --------------------------------------------------------------------------


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have the diagnostics answer with these connections."""

    def set_up(*found: Connection, told: bool | OSError = True, **gauges: int) -> None:
        def connections(family: int) -> list[Connection]:
            return [c for c in found if c.family == family]

        def is_told() -> bool:
            if isinstance(told, OSError):
                raise told
            return told

        counters = linux.TLSStat({"TlsCurrTxSw": 0, "TlsTxSw": 5} | gauges, 1.0)
        monkeypatch.setattr(sock_diag, "connections", connections)
        monkeypatch.setattr(sock_diag, "is_told", is_told)
        monkeypatch.setattr(survey, "tls_stat", lambda: counters)

    return set_up


def test_it_is_the_function_and_not_the_module() -> None:
    assert pyktls.sockets is survey.sockets
    assert {"sockets", "SocketInfo", "TCPState"} <= set(pyktls.__all__)


def test_what_is_told_of_a_connection(lists: Any) -> None:
    lists(connection(ulp=UlpInfo("tls", TLS_1_3, 54, 3, 2, True, False, 4096), state=8))
    (info,) = pyktls.sockets()
    assert info == SocketInfo(
        family=socket.AF_INET,
        local=Endpoint("192.0.2.1", 443),
        remote=Endpoint("198.51.100.7", 50000),
        state=TCPState.CLOSE_WAIT,
        interface=None,
        uid=1000,
        inode=4711,
        rqueue=11,
        wqueue=22,
        version=TLS_1_3,
        cipher="CHACHA20_POLY1305",
        tx=Mode.DEVICE,
        rx=Mode.SOFTWARE,
        zerocopy_ro=True,
        rx_no_pad=False,
        tx_max_payload_len=4096,
        processes=None,
    )
    assert isinstance(info.family, socket.AddressFamily)
    assert isinstance(info.state, TCPState)
    assert f"{info.local} {info.remote}" == "192.0.2.1:443 198.51.100.7:50000"
    with pytest.raises(AttributeError):
        info.uid = 0  # type: ignore[misc]


def test_numbers_that_pyktls_does_not_know(lists: Any) -> None:
    lists(connection(state=99, ulp=UlpInfo("tls", 0x0305, 999, 4, 77)))
    (info,) = pyktls.sockets()
    assert (info.state, info.version, info.cipher) == (99, 0x0305, "cipher 999")
    assert info.tx is info.rx is Mode.KERNEL
    assert info.tx_max_payload_len is None


@pytest.mark.parametrize("ulp_info", [UlpInfo("tls"), UlpInfo("tls", None, None, 1, 1)])
def test_the_protocol_without_keys(lists: Any, ulp_info: UlpInfo) -> None:
    lists(connection(ulp=ulp_info))
    (info,) = pyktls.sockets()
    assert (info.version, info.cipher, info.tx, info.rx) == (None, None, Mode.NONE, Mode.NONE)
    assert info.zerocopy_ro is info.rx_no_pad is info.tx_max_payload_len is None


def test_ipv4_before_ipv6_and_nothing_but_tls(lists: Any) -> None:
    lists(
        connection(family=socket.AF_INET6, local=("::1", 1), remote=("::1", 2)),
        connection(ulp=UlpInfo("mptcp")),
        connection(inode=8),
    )
    assert [str(info.local) for info in pyktls.sockets()] == ["192.0.2.1:443", "[::1]:1"]


@pytest.mark.parametrize(
    ("ip", "scope"),
    [("fe80::1", 3), ("febf::1", 3), ("fec0::1", 0), ("2001:db8::1", 0), ("::ffff:1.2.3.4", 0)],
)
def test_a_link_local_address_has_its_interface(lists: Any, ip: str, scope: int) -> None:
    ends = {"local": (ip, 1), "remote": ("2001:db8::2", 2)}
    lists(connection(family=socket.AF_INET6, interface=3, **ends))
    (info,) = pyktls.sockets()
    assert info.local == Endpoint(ip, 1, scope)
    assert info.remote == Endpoint("2001:db8::2", 2, 0)
    assert str(info.local) == (f"[{ip}%3]:1" if scope else f"[{ip}]:1")
    assert info.interface == 3


ONLY_ADMIN = (
    "this kernel tells which connections have TLS only to those with CAP_NET_ADMIN; ask as root, "
    "or with CAP_NET_ADMIN in the user namespace that this network namespace belongs to; Linux "
    "6.18 tells everybody"
)


def test_none_is_none_only_where_it_would_be_told(lists: Any) -> None:
    lists(told=True)
    assert pyktls.sockets() == pyktls.sockets(processes=True) == []
    lists(connection(ulp=UlpInfo("mptcp")), told=True)
    assert pyktls.sockets() == []
    lists(told=False)
    with pytest.raises(Unavailable) as caught:
        pyktls.sockets()
    assert str(caught.value) == ONLY_ADMIN
    assert caught.value.remedy in ONLY_ADMIN


def test_without_loopback_the_counters_decide(lists: Any) -> None:
    nowhere = OSError(errno.ENETUNREACH, "no loopback")
    lists(told=nowhere)
    assert pyktls.sockets() == []
    lists(told=nowhere, TlsCurrRxSw=1)
    with pytest.raises(Unavailable, match="only to those with CAP_NET_ADMIN"):
        pyktls.sockets()


def test_a_kernel_without_tls_is_no_empty_list(lists: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> linux.TLSStat:
        raise Unavailable("not there", remedy="modprobe tls")

    lists()
    monkeypatch.setattr(survey, "tls_stat", absent)
    with pytest.raises(Unavailable, match="not there; modprobe tls"):
        pyktls.sockets()


@pytest.mark.parametrize(
    ("error", "reason", "remedy"),
    [
        (errno.ENOENT, "this kernel has no socket diagnostics for TCP", "modprobe tcp_diag"),
        (errno.EPROTONOSUPPORT, "this kernel has no socket diagnostics", "CONFIG_INET_DIAG"),
        (errno.EPERM, "this process may not ask", "AF_NETLINK"),
        (errno.EACCES, "this process may not ask", "seccomp"),
        (errno.EAFNOSUPPORT, "this process may not ask", "RestrictAddressFamilies"),
    ],
)
def test_no_diagnostics(plays: Any, error: int, reason: str, remedy: str) -> None:
    plays([Datagram(refusal(error))])
    with pytest.raises(Unavailable, match=reason) as caught:
        pyktls.sockets()
    assert remedy in caught.value.remedy
    assert f"[Errno {error}] {CALL}" in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)


def test_no_netlink_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_netlink(monkeypatch, errno.EPERM)
    with pytest.raises(Unavailable, match=r"may not ask .*socket\(AF_NETLINK\)"):
        pyktls.sockets()


def test_another_error_stays_what_it_is(plays: Any) -> None:
    plays([Datagram(refusal(errno.ENOMEM))])
    with pytest.raises(OSError) as caught:
        pyktls.sockets()
    assert caught.value.errno == errno.ENOMEM


@pytest.mark.parametrize(("system", "text"), [(2, "pyktls.freebsd.statistics"), (0, "no kernel")])
def test_other_systems(monkeypatch: pytest.MonkeyPatch, system: int, text: str) -> None:
    class Lib:
        PYKTLS_LINUX, PYKTLS_FREEBSD = 1, 2

        @staticmethod
        def pyktls_system() -> int:
            return system

    monkeypatch.setattr(survey, "lib", Lib)
    with pytest.raises(Unavailable, match=text):
        pyktls.sockets()


# ---- processes -------------------------------------------------------------------------------


def inode_of(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def test_the_processes_that_have_a_socket_open(lists: Any, sock: socket.socket) -> None:
    lists(
        connection(inode=inode_of(sock)),
        connection(inode=1 << 31),  # nobody's, as far as can be seen
        connection(inode=0),  # closed
    )
    with socket.socket(fileno=os.dup(sock.fileno())):  # once for each process
        found = [info.processes for info in pyktls.sockets(processes=True)]
    assert found == [(os.getpid(),), None, ()]
    assert [info.processes for info in pyktls.sockets()] == [None] * 3


def test_a_process_that_may_not_be_looked_at(
    lists: Any, sock: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists(connection(inode=inode_of(sock)))
    real = os.listdir

    def refused(path: str) -> list[str]:
        if path == f"/proc/{os.getpid()}/fd":
            raise PermissionError(errno.EACCES, "not yours")
        return real(path)

    monkeypatch.setattr(os, "listdir", refused)
    assert [info.processes for info in pyktls.sockets(processes=True)] == [None]


# ---- status ----------------------------------------------------------------------------------


def ask_status(monkeypatch: pytest.MonkeyPatch, info: UlpInfo | None) -> pyktls.Status:
    status = sys.modules["pyktls.status"]
    both = list(pyktls.Direction)
    monkeypatch.setattr(linux, "get_ulp", lambda _: b"tls")
    monkeypatch.setattr(linux, "get_version_and_cipher", lambda *_: (TLS_1_3, 51))
    monkeypatch.setattr(linux.system, "directions", lambda _: both)
    monkeypatch.setattr(status, "ulp_info", lambda _: info)
    with socket.socket() as sock:
        return pyktls.status(sock)


def test_status_has_what_the_kernel_tells_besides(monkeypatch: pytest.MonkeyPatch) -> None:
    info = UlpInfo("tls", TLS_1_3, 51, 3, 2, True, False, 4096)
    status = ask_status(monkeypatch, info)
    assert status == pyktls.Status(
        "tls", TLS_1_3, "AES_128_GCM", Mode.DEVICE, Mode.SOFTWARE,
        zerocopy_ro=True, rx_no_pad=False, tx_max_payload_len=4096,
    )  # fmt: skip


def test_status_where_the_kernel_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    status = ask_status(monkeypatch, None)
    assert status == pyktls.Status("tls", TLS_1_3, "AES_128_GCM", Mode.KERNEL, Mode.KERNEL)
    assert status.zerocopy_ro is status.rx_no_pad is status.tx_max_payload_len is None


@pytest.mark.parametrize("conf", [None, 1, 4, 99])
def test_status_believes_the_socket_that_it_has_keys(
    monkeypatch: pytest.MonkeyPatch, conf: int | None
) -> None:
    status = ask_status(monkeypatch, UlpInfo("tls", TLS_1_3, 51, conf, 2))
    assert (status.tx, status.rx) == (Mode.KERNEL, Mode.SOFTWARE)


class Least:
    """All that pyktls.SocketLike asks for."""

    def __init__(self, sock: socket.socket) -> None:
        self.fileno = sock.fileno
        self.getsockopt = sock.getsockopt


def test_status_asks_for_no_more_than_it_says(
    monkeypatch: pytest.MonkeyPatch, plays: Any, sock: socket.socket
) -> None:
    monkeypatch.setattr(linux, "get_ulp", lambda _: b"tls")
    monkeypatch.setattr(linux, "get_version_and_cipher", lambda *_: (TLS_1_3, 51))
    monkeypatch.setattr(linux.system, "directions", lambda _: list(pyktls.Direction))
    kernel = plays([Datagram(reply(diag(), flags=0))])
    status = pyktls.status(Least(sock))
    assert (status.tx, status.rx) == (Mode.SOFTWARE, Mode.SOFTWARE)
    assert struct.pack("!HH", sock.getsockname()[1], sock.getpeername()[1]) in kernel.requests[0]


def test_the_reference_to_values_is_ours() -> None:
    # socket.SO_BINDTOIFINDEX is in no Python yet that pyktls supports.
    assert getattr(socket, "SO_BINDTOIFINDEX", 62) == sock_diag._SO_BINDTOIFINDEX
