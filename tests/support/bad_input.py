"""Arguments that nobody should pass, and what may come of them.

``world()`` makes sockets, files and objects in all kinds of states; ``throw`` draws arguments for
one function from it and from plain values, calls the function, and looks at what comes back:

* a result, where the arguments happen to be right;
* ``pyktls.Error``, with a text;
* ``OSError`` whose text names the system call: ``[Errno 88] getsockopt(TCP_ULP): ...``.

Nothing else, no secret in the text, and the good connection of the world still works (the function
may have made it a TLS one, and then has to say so).
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import socket
import ssl
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

import pyktls
from pyktls import DirectionKeys, Role, Session, freebsd, linux
from pyktls.ciphers import SUITES, TLS_1_3
from pyktls.lowlevel import lib

from . import tls
from .kernel import TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ON_LINUX = lib.pyktls_system() == lib.PYKTLS_LINUX

SECRET = bytes(range(0xA0, 0xC0))
COMPILED_CALL = re.compile(r"\w+\(\) (takes|got) ")
#: What Python says of a closed socket, before any call.
CLOSED = f"[Errno {errno.EBADF}] {os.strerror(errno.EBADF)}"
NAMED_CALL = re.compile(
    r"^\[Errno \d+\] [a-z_]+(\([^)]*\))?( after the end of the TLS connection)?: \S"
)


def callables(module: Any, prefix: str) -> dict[str, Callable[..., Any]]:
    found = {}
    for name in module.__all__:
        value = getattr(module, name)
        if callable(value) and not (isinstance(value, type) and issubclass(value, Exception)):
            found[f"{prefix}{name}"] = value
    return found


#: Classes that only hold what a call gave: nobody else makes them.
RESULTS = {"Record", "TLSStat", "TLSStatChange"}

FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        name: getattr(pyktls, name)
        for name in (
            "engine_of",
            "engines",
            "extract",
            "install",
            "offload",
            "probe",
            "receive_socket",
            "send_socket",
            "sockets",
            "status",
            "watch",
            "wrap_context",
            "MemoryBIOHandshake",
            "Session",
            "DirectionKeys",
        )
    },
    "CryptoInfo.unpack": linux.CryptoInfo.unpack,
    "KTLSSocket.from_state": pyktls.KTLSSocket.from_state,
    **{
        f"linux.{name}": function
        for name, function in callables(linux, "").items()
        if name not in RESULTS
    },
    **{
        f"freebsd.{name}": function
        for name, function in callables(freebsd, "").items()
        if name not in RESULTS
    },
}

#: What needs no test here, and why.
EXCEPT = {
    "AEAD": "a row of a table, made by nobody else",
    "CipherSuite": "the same",
    "Direction": "an enum",
    "EngineInfo": "holds what engines gave",
    "Mode": "an enum",
    "Role": "an enum",
    "SSLSocket": "has no constructor, as ssl.SSLSocket",
    "Status": "holds what status gave",
    "Answer": "holds what probe gave",
    "KernelModule": "the same",
    "KernelSupport": "the same",
    "Privileges": "the same",
    "Endpoint": "holds what sockets gave",
    "SocketInfo": "holds what sockets gave",
    "Cause": "an enum",
    "TCPState": "an enum",
    "KTLSSocket": "made by offload; its methods are in tests/kernel/test_bad_input.py",
}

#: Methods that send or receive, with arguments that are right as far as they go.
METHODS = (
    "recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into", "send", "sendall",
    "sendmsg", "sendto", "sendfile", "splice_to", "splice_from", "getpeercert", "pending",
    "cipher", "version", "selected_alpn_protocol", "dup", "settimeout", "setblocking",
    "update_keys", "export_state",
)  # fmt: skip


#: Methods of pyktls.SSLSocket, ssl's and socket's own among them, and why some are not thrown at.
SSL_EXCEPT = {
    "close": "it ends the connection, with nothing to be wrong",
    "detach": "the same",
    "shutdown": "it ends the connection: with tests of its own",
    "unwrap": "the same",
    "do_handshake": "it has been made; what comes of another is OpenSSL's affair",
    "selected_npn_protocol": "a warning that it is no more, from Python 3.10 on",
    "set_inheritable": "it is the descriptor's own",
    "setsockopt": "the kernel's own, which may break the connection and is meant to",
}
SSL_METHODS = tuple(
    name
    for name in dir(pyktls.SSLSocket)
    if not name.startswith("_")
    and callable(getattr(pyktls.SSLSocket, name))
    and name not in SSL_EXCEPT
)
#: Python's own, which take what fits into a C number.
SSL_OWN = {"getsockopt", "setblocking"}
#: What ssl.SSLSocket does not have says so by NotImplementedError, and so do we.
SSL_NOT_THERE = {"dup", "recvmsg", "recvmsg_into", "sendmsg", "sendmsg_afalg"}


def not_covered() -> set[str]:
    """Public names of the package that are neither thrown at nor excepted."""
    names = set(callables(pyktls, ""))
    return names - set(EXCEPT) - set(FUNCTIONS)


@dataclass(repr=False)
class World:
    things: list[Any]
    good: tuple[socket.socket, socket.socket]
    closing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def renew(self) -> None:
        for sock in self.good:
            sock.close()
        self.good = tls.tcp_pair()

    def check(self) -> None:
        """The good connection is plain and works, or TLS and says so; then it is replaced."""
        near, far = self.good
        if not any(pyktls.status(sock).ulp for sock in self.good):
            state = [pyktls.status(sock) for sock in self.good]
            if not any(s.tx or s.rx for s in state):
                near.settimeout(10)
                far.settimeout(10)
                near.sendall(b"still works")
                received = b""  # behind what the call has sent
                while not received.endswith(b"still works"):
                    piece = far.recv(1 << 16)
                    assert piece, "the connection has ended"
                    received = received[-11:] + piece
                return
        self.renew()


class Odd:
    """Has a fileno, and it is of no use."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def fileno(self) -> Any:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


@contextlib.contextmanager
def world() -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        closed = socket.socket()
        closed.close()
        with tempfile.TemporaryFile() as closed_file:
            pass
        listener = enter(socket.create_server(("127.0.0.1", 0)))
        out, into = os.pipe()
        stack.callback(os.close, out)
        stack.callback(os.close, into)
        os.set_blocking(out, False)
        os.set_blocking(into, False)
        file = stack.enter_context(tempfile.TemporaryFile())
        file.write(b"content")
        file.flush()
        unix = socket.socketpair()
        for sock in unix:
            enter(sock)
            sock.setblocking(False)
        datagram = enter(socket.socket(type=socket.SOCK_DGRAM))
        reset_near, reset_far = tls.tcp_pair()
        enter(reset_near)
        reset_far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        reset_far.close()
        reset_near.setblocking(False)
        datagram.setblocking(False)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        suite = next(s for s in SUITES if s.version == TLS_1_3 and s.aead.key_length == 32)
        keys = DirectionKeys(SECRET, SECRET[:12], 0)
        info = linux.CryptoInfo(
            TLS_1_3, 51, key=SECRET[:16], salt=SECRET[:4], iv=SECRET[4:12], rec_seq=0
        )
        wiped = linux.CryptoInfo(
            TLS_1_3, 51, key=SECRET[:16], salt=SECRET[:4], iv=SECRET[4:12], rec_seq=0
        )
        wiped.wipe()
        enable = freebsd.TLSEnable(TLS_1_3, 25, key=SECRET[:16], iv=SECRET[:12], rec_seq=0)
        unconnected = enter(socket.socket())
        unconnected.setblocking(False)
        things = [
            closed,
            closed_file,
            listener,
            out,
            into,
            file,
            file.fileno(),
            *unix,
            datagram,
            reset_near,
            unconnected,
            context,
            suite,
            keys,
            info,
            wiped,
            enable,
            Session(suite, Role.CLIENT, DirectionKeys(SECRET, SECRET[:12], 0), keys),
            Odd(None),
            Odd("3"),
            Odd(2**40),
            Odd(-1),
            Odd(True),
            Odd(ValueError("no")),
            Odd(OSError(9, "no")),
            [b"one", b"two"],
            [b"one", "two"],
            (bytearray(3), bytearray(0)),
            memoryview(bytearray(8)),
            memoryview(bytes(8))[::2],
            SECRET,
            info.pack(),
            999_999,  # no such descriptor
        ]
        made = World(things, tls.tcp_pair())
        stack.callback(lambda: [sock.close() for sock in made.good])
        yield made


def values(made: World) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.sampled_from(range(len(made.things))).map(made.things.__getitem__),
        st.sampled_from([0, 1]).map(lambda i: made.good[i]),
        st.sampled_from([0, 1]).map(lambda i: made.good[i].fileno()),
        st.none(),
        st.booleans(),
        st.integers(-3, 5),
        st.sampled_from([0x0303, 0x0304, 51, 54, 25, 2**31, 2**63, 2**64, 2**200, -(2**70)]),
        st.floats(),
        st.binary(max_size=70),
        st.text(max_size=5),
        st.lists(st.binary(max_size=3), max_size=3),
    )


#: What a thrown-at call may not do: read from, or write to, a descriptor that is somebody else's.
NAMES = (
    "size", "flags", "offset", "count", "headers", "trailers", "pid", "record_type", "data", "key",
    "iv", "salt", "rec_seq", "secret", "mac_key", "tx", "rx", "auth_key", "auth_algorithm",
)  # fmt: skip


def throw(made: World, name: str, data: Any) -> None:
    """Draw arguments, make the call, look at what came back."""
    function = FUNCTIONS[name]
    near, far = made.good
    near.setblocking(False)
    far.setblocking(False)
    any_value = values(made)
    arguments = data.draw(st.lists(any_value, max_size=6))
    if data.draw(st.booleans()):  # give the later arguments a chance
        arguments = [near, *arguments]
    named = data.draw(st.dictionaries(st.sampled_from(NAMES), any_value, max_size=2))
    # The standard streams, and pytest's own files, are not to be written to.
    arguments = [None if _is_low(a) else a for a in arguments]
    try:
        function(*arguments, **named)
    except Exception as e:  # noqa: BLE001  (that is the question)
        judge(e, f"{name}(*{arguments!r}, **{named!r})")
    made.check()


def judge(error: Exception, call: str) -> None:
    """Whether a caller may be given that error."""
    if isinstance(error, TypeError) and not isinstance(error, pyktls.Error):
        # Too many, too few or unknown arguments: Python's own, before anything of ours runs.
        assert error.__traceback__ is not None
        # What is compiled leaves one more entry behind.
        below = error.__traceback__.tb_next
        assert below is None or COMPILED_CALL.match(str(error)), f"{call} raised {error!r}"
        return
    if isinstance(error, pyktls.Error):
        assert str(error), call
    else:
        assert isinstance(error, OSError), f"{call} raised {error!r}"
        assert NAMED_CALL.match(str(error)), f"{call} raised {error!r}, which names no call"
    judge_text(error, call)


def judge_text(error: Exception, call: str) -> None:
    text = f"{error!r} {error}"
    for form in (SECRET[:8].hex(), repr(SECRET[:8])[2:-1], str(list(SECRET[:4]))[1:-1]):
        assert form not in text, call


def _is_low(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2


def throw_at_method(made: World, sock: Any, name: str, data: Any) -> None:
    """The same for a method of a KTLSSocket; the flags of its calls are drawn as well."""
    any_value = st.one_of(values(made), st.sampled_from([0x2, 0x40, 0x4000, 0x8000, 0x4000000]))
    arguments = data.draw(st.lists(any_value, max_size=4))
    call_method(sock, name, arguments)


def call_method(sock: Any, name: str, arguments: list[Any]) -> None:
    arguments = [None if _is_low(a) and name.startswith("splice") else a for a in arguments]
    try:
        getattr(sock, name)(*arguments)
    except Exception as e:  # noqa: BLE001  (that is the question)
        if sock.fileno() >= 0 or str(e) != CLOSED:
            judge(e, f"{name}(*{arguments!r})")


def throw_at_ssl_method(made: World, sock: Any, name: str, data: Any) -> None:
    """The same for a method of a pyktls.SSLSocket.

    Where it does as ssl.SSLSocket, or has ssl.SSLSocket do it, the errors are Python's own.
    """
    any_value = st.one_of(values(made), st.sampled_from([0x2, 0x40, 0x4000, 0x8000, 0x4000000]))
    arguments = data.draw(st.lists(any_value, max_size=4))
    arguments = [None if _is_low(a) and name.startswith("splice") else a for a in arguments]
    allowed: tuple[type[Exception], ...] = (pyktls.Error, OSError, TypeError, ValueError)
    if name in SSL_NOT_THERE:
        allowed += (NotImplementedError,)
    if name in SSL_OWN:
        allowed += (OverflowError,)
    ours = sock.ktls.refusal is None
    if not ours:
        # OpenSSL has it, and Python's own methods what was passed.
        allowed += (OverflowError, AttributeError)
    try:
        result = getattr(sock, name)(*arguments)
        if isinstance(result, io.IOBase):
            result.close()
    except allowed as e:
        if ours:
            judge_text(e, f"{name}(*{arguments!r})")


def check_ssl(sock: ssl.SSLSocket, peer: ssl.SSLSocket) -> None:
    """The connection goes on: what was not read is there, and what was taken has been sent."""
    for end in (sock, peer):
        end.settimeout(TIMEOUT)
    peer.sendall(b"<end>")
    received = b""
    while not received.endswith(b"<end>"):
        received += sock.recv(1 << 16)
    assert b"0123456789<end>".endswith(received)
    sock.sendall(b"still works")
    while not received.endswith(b"still works"):
        received = received[-11:] + peer.recv(1 << 16)
