"""Real TLS connections on the loopback interface, made without threads and without waiting.

``contexts()`` makes a client's and a server's ``SSLContext`` that trust each other, ``connect()``
makes a handshaken pair of ``SSLSocket`` from them.  All certificates come from one CA, made once.
The functions at the end reach OpenSSL through ctypes, for what the ssl module does not offer.

``ENGINE`` is the engine that ``pyktls.watch`` takes here.  The tests hold for either.
"""

from __future__ import annotations

import _ssl
import array
import contextlib
import ctypes
import fcntl
import functools
import os
import select
import socket
import ssl
import termios
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import pytest
import trustme

import pyktls
from pyktls.engines import native, portable

from . import hidden_openssl
from .records import read_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOST = "localhost"
ENGINE = next((info.name for info in pyktls.engines() if info.chosen), "none")
TIMEOUT = 20.0
needs_native = pytest.mark.skipif(
    native.why_not() is not None, reason="about the native engine, which cannot work here"
)
TLS_1_2 = ssl.TLSVersion.TLSv1_2
TLS_1_3 = ssl.TLSVersion.TLSv1_3

#: OpenSSL's names of the TLS 1.3 suites that it enables by itself only in part.
TLS_1_3_SUITES = (
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_AES_128_CCM_SHA256",
)


# ---- certificates and contexts ---------------------------------------------------------------


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


@functools.cache
def certificate(kind: trustme.KeyType = trustme.KeyType.ECDSA) -> trustme.LeafCert:
    """The one certificate with this kind of key, for both sides."""
    return authority().issue_cert(HOST, key_type=kind)


def certificates() -> tuple[trustme.LeafCert, ...]:
    """One of each kind: ECDSA, RSA."""
    return certificate(), certificate(trustme.KeyType.RSA)


def client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority().configure_trust(context)
    return context


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate().configure_cert(context)
    return context


def contexts(
    version: ssl.TLSVersion = TLS_1_3,
    cipher: str | None = None,
    *,
    watch: bool = True,
    engine: str | None = None,
    tickets: int | None = None,
    hello_retry: bool = False,
    client_certificate: bool = False,
    post_handshake_auth: bool = False,
) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A client's and a server's context for one version.

    ``cipher`` is OpenSSL's name of the only suite.  ``tickets`` is the number of session tickets
    that the server sends (TLS 1.3) or whether it sends one (TLS 1.2).  ``hello_retry`` makes the
    server insist on a group for which the client sends no key share at first.
    """
    client, server = client_context(), server_context()
    for context in (client, server):
        context.minimum_version = context.maximum_version = version
        if cipher is not None:
            set_suite(context, version, cipher)
    if version == TLS_1_2 and cipher is not None and "ECDSA" not in cipher:
        certificate(trustme.KeyType.RSA).configure_cert(server)
    if tickets is not None:
        if version == TLS_1_3:
            server.num_tickets = tickets
        elif not tickets:
            server.options |= ssl.OP_NO_TICKET
    if hello_retry:
        server.set_ecdh_curve("secp384r1")
    if client_certificate or post_handshake_auth:
        certificate().configure_cert(client)
        authority().configure_trust(server)
        server.verify_mode = ssl.CERT_REQUIRED
    if post_handshake_auth:
        client.post_handshake_auth = True
        server.post_handshake_auth = True
        server.verify_mode = ssl.CERT_OPTIONAL
    if watch:
        pyktls.watch(client, engine=engine)
        pyktls.watch(server, engine=engine)
    return client, server


def set_suite(context: ssl.SSLContext, version: ssl.TLSVersion, cipher: str) -> None:
    """Leave ``cipher`` as the only suite of ``version``."""
    if version == TLS_1_3:  # the ssl module has this only from 3.15 on
        if not libssl().SSL_CTX_set_ciphersuites(context_pointer(context), cipher.encode()):
            raise ValueError(f"OpenSSL knows no {cipher}")
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # short tags are below OpenSSL 3.5's level 1
    else:
        context.set_ciphers(f"{cipher}:@SECLEVEL=0")


# ---- connections -----------------------------------------------------------------------------


#: Bytes in a segment of an ordinary network.  The loopback interface has 65483: with buffers no
#: larger than that a window may open too little for a segment, and nothing moves until TCP's
#: persist timer, which doubles each time, has run.
ORDINARY_MSS = 1400
#: Not the fake, whose TCP is this machine's.
REAL_FREEBSD = os.uname().sysname == "FreeBSD"


def tcp_pair(mss: int | None = None) -> tuple[socket.socket, socket.socket]:
    """Two connected TCP sockets with a timeout, so that no mistake of a test hangs.

    ``mss`` is the most that they put into a segment.
    """
    if REAL_FREEBSD:  # whose persist timer begins at 5 seconds
        mss = mss or ORDINARY_MSS
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.socket()
        if not REAL_FREEBSD:
            set_mss(mss, listener, near)
        near.settimeout(TIMEOUT)
        near.connect(listener.getsockname())
        far, _ = listener.accept()
    if REAL_FREEBSD:  # it can only be made less, and before the connection it is 536
        set_mss(mss, near, far)
    far.settimeout(TIMEOUT)
    for sock in (near, far):  # small records, one after the other: do not collect them
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def set_mss(mss: int | None, *socks: socket.socket) -> None:
    if mss is not None:
        for sock in socks:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, mss)


@dataclass
class Pair:
    """The two ends of one connection; a context manager that closes both."""

    client: ssl.SSLSocket
    server: ssl.SSLSocket

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.client.close()
        self.server.close()

    def ends(self) -> tuple[tuple[ssl.SSLSocket, ssl.SSLSocket], ...]:
        """(one end, the other end), both ways round."""
        return (self.client, self.server), (self.server, self.client)

    def exchange(self, data: bytes = b"both ways through OpenSSL") -> None:
        """Show that the connection works: data goes through ssl in both directions."""
        for sender, receiver in self.ends():
            send_and_receive(sender, receiver, data)


def wrap_pair(
    client: ssl.SSLContext, server: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> Pair:
    """A connected pair whose handshake has not begun."""
    near, far = tcp_pair()
    return Pair(
        client.wrap_socket(
            near, server_hostname=HOST, do_handshake_on_connect=False, session=session
        ),
        server.wrap_socket(far, server_side=True, do_handshake_on_connect=False),
    )


def connect(
    client: ssl.SSLContext, server: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> Pair:
    """A handshaken pair.  In TLS 1.3 the tickets are then in the client's socket, unread."""
    pair = wrap_pair(client, server, session)
    try:
        together(pair.client.do_handshake, pair.server.do_handshake, pair)
    except BaseException:
        pair.close()
        raise
    return pair


def handshaken(version: ssl.TLSVersion = TLS_1_3, cipher: str | None = None, **knobs: Any) -> Pair:
    """``connect(*contexts(...))``."""
    return connect(*contexts(version, cipher, **knobs))


def together(
    of_client: Callable[[], object], of_server: Callable[[], object], pair: Pair
) -> tuple[object, object]:
    """Run two calls that wait for each other, in turns, until both have returned."""
    todo = [(pair.client, of_client), (pair.server, of_server)]
    results: dict[ssl.SSLSocket, object] = {}
    timeouts = pair.client.gettimeout(), pair.server.gettimeout()
    pair.client.setblocking(False)
    pair.server.setblocking(False)
    try:
        while todo:
            progress = False
            wanted: list[list[ssl.SSLSocket]] = [[], []]
            for item in list(todo):
                sock, call = item
                try:
                    results[sock] = call()
                except ssl.SSLWantReadError:
                    wanted[0].append(sock)
                except ssl.SSLWantWriteError:
                    wanted[1].append(sock)
                else:
                    todo.remove(item)
                    progress = True
            if todo and not progress:
                ready = select.select(wanted[0], wanted[1], [], TIMEOUT)
                assert any(ready), "both ends wait for each other"
    finally:
        pair.client.settimeout(timeouts[0])
        pair.server.settimeout(timeouts[1])
    return results[pair.client], results[pair.server]


def recv_exactly(sock: ssl.SSLSocket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, f"the stream ended after {len(data)} of {size} bytes"
        data += piece
    return data


def send_and_receive(sender: ssl.SSLSocket, receiver: ssl.SSLSocket, data: bytes) -> None:
    sender.sendall(data)
    assert recv_exactly(receiver, len(data)) == data


def read_what_is_there(sock: ssl.SSLSocket) -> bytes:
    """Have OpenSSL read until the socket is empty; returns the plaintext.

    Bytes may take a moment over the loopback interface: ``deliver`` sends and waits.
    """
    timeout = sock.gettimeout()
    sock.setblocking(False)
    data = b""
    try:
        with contextlib.suppress(ssl.SSLWantReadError):
            while piece := sock.recv(65536):
                data += piece
    finally:
        sock.settimeout(timeout)
    return data


def resumable_session(pair: Pair) -> ssl.SSLSession:
    """The client's session, once its tickets are read."""
    pair.exchange()
    session = pair.client.session
    assert session is not None
    return session


def tell_ragged_ends(context: ssl.SSLContext) -> None:
    """Have connections of the context tell an end without close_notify from one with it.

    Those of Python's first releases with OpenSSL 3 do not.  ``suppress_ragged_eofs`` is as it was.
    """
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF


@contextlib.contextmanager
def ragged_end() -> Iterator[None]:
    """Expect an end without close_notify, or a reset: as where something is unread."""
    with pytest.raises((ssl.SSLError, ConnectionResetError)) as caught:
        yield
    error = caught.value
    # Some versions of ssl know no better name for it; some lose a reset's error number.
    assert isinstance(error, ssl.SSLEOFError | ConnectionResetError) or (
        error.reason == "UNEXPECTED_EOF_WHILE_READING"
    )


# ---- the socket below OpenSSL ----------------------------------------------------------------


def raw(sock: ssl.SSLSocket) -> Any:
    """The socket's plain methods: ``raw(sock).recv(n)`` takes bytes off the wire past OpenSSL."""
    return super(ssl.SSLSocket, sock)


def raw_recv(sock: ssl.SSLSocket, size: int) -> bytes:
    """Take at most ``size`` bytes off the wire past OpenSSL."""
    data: bytes = raw(sock).recv(size)
    _not_of_openssl(sock, read=len(data))
    return data


def raw_recv_exactly(sock: ssl.SSLSocket, size: int) -> bytes:
    """Take ``size`` bytes off the wire past OpenSSL."""
    data = b""
    while len(data) < size:
        piece = raw_recv(sock, size - len(data))
        assert piece, f"the stream ended after {len(data)} of {size} bytes"
        data += piece
    return data


def _not_of_openssl(sock: ssl.SSLSocket, *, written: int = 0, read: int = 0) -> None:
    """Keep bytes that a test moves out of the portable engine's account.

    It asks the kernel how much has passed, and in earnest nobody but OpenSSL moves any.
    """
    state = vars(sock).get(portable._STATE)
    if state is not None and state.begin is not None:
        state.begin = state.begin[0] + written, state.begin[1] + read


def raw_read_record(sock: ssl.SSLSocket) -> bytes:
    """Take one whole record off the wire past OpenSSL."""
    return read_record(functools.partial(raw_recv_exactly, sock))


def unread_bytes(sock: socket.socket) -> int:
    """Bytes in the socket's receive queue."""
    answer = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, answer)
    return answer[0]


def deliver(sender: ssl.SSLSocket, receiver: ssl.SSLSocket, data: bytes) -> None:
    """Put bytes on the wire past OpenSSL, and wait until the other end can read all of them."""
    wanted = unread_bytes(receiver) + len(data)
    raw(sender).sendall(data)
    _not_of_openssl(sender, written=len(data))
    wait_for_bytes(receiver, wanted)


def wait_for_bytes(receiver: ssl.SSLSocket, wanted: int) -> None:
    """Wait until ``wanted`` bytes are in the receive queue."""
    deadline = time.monotonic() + TIMEOUT
    while unread_bytes(receiver) < wanted:
        assert time.monotonic() < deadline, "bytes got lost on the loopback interface"
        os.sched_yield()


# ---- OpenSSL through ctypes ------------------------------------------------------------------

KEY_UPDATE_NOT_REQUESTED = 0
KEY_UPDATE_REQUESTED = 1


@functools.cache
def libssl() -> Any:
    """The OpenSSL that ``_ssl`` uses: libssl and libcrypto, by their symbols' names."""
    library: Any = ctypes.CDLL(_ssl.__file__)
    if hasattr(library, hidden_openssl.DOOR):
        library = hidden_openssl.Inside(library)
    library.SSL_CTX_set_ciphersuites.argtypes = ctypes.c_void_p, ctypes.c_char_p
    library.SSL_key_update.argtypes = ctypes.c_void_p, ctypes.c_int
    library.SSL_get_key_update_type.argtypes = (ctypes.c_void_p,)
    library.SSL_session_reused.argtypes = (ctypes.c_void_p,)
    return library


def context_pointer(context: ssl.SSLContext) -> int:
    """The ``SSL_CTX *`` of a context, where CPython keeps it."""
    pointer = ctypes.c_void_p.from_address(id(context) + object.__basicsize__).value
    assert pointer
    return pointer


def ssl_pointer(sock: ssl.SSLSocket) -> int:
    """The ``SSL *`` of a socket, where CPython keeps it."""
    offset = object.__basicsize__ + ctypes.sizeof(ctypes.c_void_p)
    pointer = ctypes.c_void_p.from_address(id(sock._sslobj) + offset).value
    assert pointer
    return pointer


def send_key_update(sock: ssl.SSLSocket, *, request: bool) -> None:
    """Send a KeyUpdate now (RFC 8446 section 4.6.3)."""
    kind = KEY_UPDATE_REQUESTED if request else KEY_UPDATE_NOT_REQUESTED
    assert libssl().SSL_key_update(ssl_pointer(sock), kind) == 1
    sock.do_handshake()
