"""Python's own ``ssl`` at the other end, in this process, in a thread."""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import TYPE_CHECKING

from support import tls
from support.kernel import Background, recv_exactly, recv_to_end

from .peer import TIMEOUT, End, Peer, Purpose, Setting, Side

if TYPE_CHECKING:
    from collections.abc import Callable

VERSIONS = {False: ssl.TLSVersion.TLSv1_2, True: ssl.TLSVersion.TLSv1_3}


def make_context(setting: Setting, *, server: bool) -> ssl.SSLContext:
    """A context for the setting's one suite; pyktls's own end has one like it."""
    if server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(setting.certificate)
        if setting.suite.openssl_name.startswith("DHE-"):
            context.load_dh_params(str(setting.dh_parameters))
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(setting.ca)
    context.minimum_version = context.maximum_version = VERSIONS[setting.is_tls_1_3]
    tls.set_suite(context, context.minimum_version, setting.suite.openssl_name)
    return context


class PythonEnd(End):
    """A connection of this process.  ``making`` returns it, when its handshake is done."""

    def __init__(self, side: PythonSide, making: Background) -> None:
        self.side = side
        self.making = making

    @property
    def sock(self) -> socket.socket:
        return self.making.result(TIMEOUT)

    def exchange(self, sock: socket.socket, up: bytes, down: bytes) -> tuple[bytes, bytes]:
        # One direction after the other at the peer: an SSLSocket is not for two threads.
        def take_and_give() -> bytes:
            got = recv_exactly(self.sock, len(up))
            self.sock.sendall(down)
            return got

        with Background(take_and_give) as other:
            sock.sendall(up)
            received = recv_exactly(sock, len(down))
            return other.result(TIMEOUT), received

    def take(self, sock: socket.socket, send: Callable[[], object], size: int) -> bytes:
        with Background(recv_exactly, self.sock, size) as got:
            send()
            return got.result(TIMEOUT)

    def take_then_see_close(self, sock: socket.socket, up: bytes) -> bytes:
        # An end without close_notify is an exception: suppress_ragged_eofs is off.
        with Background(recv_to_end, self.sock) as got:
            sock.sendall(up)
            sock.close()
            return got.result(TIMEOUT)

    def give_then_close(self, sock: socket.socket, down: bytes) -> bytes:
        with Background(self.give_and_hang_up, down):
            data = recv_to_end(sock)
            sock.close()
            return data

    def give_and_hang_up(self, down: bytes) -> None:
        self.sock.sendall(down)
        self.sock.unwrap()  # type: ignore[attr-defined]

    def key_update(self, sock: socket.socket, *, request: bool) -> None:
        tls.send_key_update(self.sock, request=request)

    def remember(self) -> None:
        self.side.session = self.session()

    def session(self) -> ssl.SSLSession | None:
        """What the next connection of a client resumes."""
        return self.sock.session  # type: ignore[attr-defined]

    def stop(self) -> None:
        with contextlib.suppress(Exception):
            self.sock.close()


class PythonSide(Side):
    """A listener, or a client's port, and the context."""

    session: ssl.SSLSession | None = None  # what a client's next connection resumes
    before: ssl.SSLSession | None = None  # for a peer that switches: what there was before

    def __init__(self, peer: PythonSSL, setting: Setting, port: int = 0) -> None:
        self.peer = peer
        self.context = make_context(setting, server=not port)
        self.listener = None if port else socket.create_server(("127.0.0.1", 0))
        self.port = port or self.listener.getsockname()[1]
        self.peer.prepare(self.context)

    def begin(self) -> PythonEnd:
        return self.peer.end(self, Background(self.accept if self.listener else self.connect))

    def accept(self) -> socket.socket:
        self.listener.settimeout(TIMEOUT)
        tcp, _ = self.listener.accept()
        return self.finish(tcp, server_side=True)

    def connect(self) -> socket.socket:
        tcp = socket.create_connection(("127.0.0.1", self.port), TIMEOUT)
        return self.finish(tcp, server_hostname=tls.HOST, session=self.session)

    def finish(self, tcp: socket.socket, **how: object) -> socket.socket:
        tcp.settimeout(TIMEOUT)
        sock = self.context.wrap_socket(tcp, suppress_ragged_eofs=False, **how)
        return self.peer.go_on(self, sock)

    def refusal(self) -> str:
        return ""  # whatever goes wrong in this process is to be seen as it is

    def stop(self) -> None:
        if self.listener is not None:
            self.listener.close()


class PythonSSL(Peer):
    name = "Python ssl"
    end = PythonEnd

    def version(self) -> str:
        return f"{ssl.OPENSSL_VERSION.split()[0]} {ssl.OPENSSL_VERSION.split()[1]}"

    def serve(self, setting: Setting, purpose: Purpose) -> Side:
        return PythonSide(self, setting)

    def connect(self, setting: Setting, purpose: Purpose, port: int) -> Side:
        return PythonSide(self, setting, port)

    def prepare(self, context: ssl.SSLContext) -> None:
        """What comes before the handshake."""

    def go_on(self, side: PythonSide, sock: ssl.SSLSocket) -> socket.socket:
        """What comes after it."""
        return sock
