"""pyktls at the other end as well, and what the cells need of it that is not there yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyktls

from .peer import Refused
from .python_ssl import PythonEnd, PythonSide, PythonSSL

if TYPE_CHECKING:
    import socket
    import ssl


class NotYet(Exception):
    """A part of pyktls that this would need, and that does not exist so far."""


def switch(sock: ssl.SSLSocket) -> tuple[pyktls.KTLSSocket, ssl.SSLSession | None]:
    """The socket that has gone over to the kernel, and the session that OpenSSL had before.

    In TLS 1.3 that one cannot be resumed: a ticket comes later, if not before the switch by chance.
    """
    session = None if sock.server_side or sock.version() == "TLSv1.3" else sock.session
    return pyktls.offload(sock), session


def resume_session(sock: socket.socket) -> Any:
    """What a later connection can resume, of a client's socket that has gone over to the kernel."""
    return getattr(sock, "session", None)


def session_to_resume(sock: socket.socket, before: ssl.SSLSession | None) -> ssl.SSLSession:
    """The session for a client's next connection; NotYet if there is none."""
    session = before or resume_session(sock)
    if session is None:
        raise NotYet("tickets that come after the switch are not yet kept: KTLSSocket.session")
    return session


class OwnEnd(PythonEnd):
    def session(self) -> ssl.SSLSession | None:
        if self.side.listener is not None:
            return None
        return session_to_resume(self.sock, self.side.before)

    def key_update(self, sock: socket.socket, *, request: bool) -> None:
        try:
            self.sock.update_keys(request_peer=request)  # type: ignore[attr-defined]
        except pyktls.Unavailable as e:
            raise Refused(str(e)) from None


class Own(PythonSSL):
    name = "pyktls"
    ktls = True
    end = OwnEnd

    def version(self) -> str:
        return f"pyktls {pyktls.__version__}"

    def prepare(self, context: ssl.SSLContext) -> None:
        pyktls.watch(context)

    def go_on(self, side: PythonSide, sock: ssl.SSLSocket) -> socket.socket:
        own, side.before = switch(sock)
        return own
