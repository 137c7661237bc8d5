"""What ``get_extra_info("ssl_object")`` gives: the answers of an ssl.SSLObject, without OpenSSL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyktls.takeover import Handshake

if TYPE_CHECKING:
    import ssl

    from pyktls.sockets import KTLSSocket

__all__ = ["TLSObject"]


class _Answers:
    """What an ssl.SSLSocket answers right after the handshake, and not once it is closed."""

    __slots__ = ("_cipher", "_handshake", "_version")

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self._handshake = Handshake.of(tls)
        self._version = tls.version()
        self._cipher = tls.cipher()

    def version(self) -> str | None:
        return self._version

    def cipher(self) -> tuple[str, str, int] | None:
        return self._cipher

    def selected_alpn_protocol(self) -> str | None:
        return self._handshake.alpn

    def getpeercert(self, binary_form: bool) -> Any:
        return self._handshake.peer_der if binary_form else self._handshake.peer


# What ssl.SSLSocket itself has among its attributes, besides those with an underscore.
_SSLS_OWN = frozenset({"do_handshake_on_connect", "suppress_ragged_eofs"})


class TLSObject:
    """Answers about a handshake, as ssl.SSLObject gives them, after its OpenSSL object is gone.

    What a program has set on the object that its ``sni_callback`` was given is here too.
    """

    __slots__ = ("__dict__", "_answers", "_session", "_sock", "_tls_unique", "context",
                 "first_context", "server_hostname", "server_side", "session_reused")  # fmt: skip

    def __init__(self, tls: ssl.SSLSocket, first_context: ssl.SSLContext) -> None:
        self.context: ssl.SSLContext = tls.context
        #: The one that the connection was begun with; an sni_callback may change it.
        self.first_context: ssl.SSLContext = first_context
        self.server_side: bool = tls.server_side
        self.server_hostname: str | None = tls.server_hostname
        self.session_reused: bool | None = tls.session_reused
        self._tls_unique: bytes | None = tls.get_channel_binding("tls-unique")
        self._session: ssl.SSLSession | None = None
        self._sock: KTLSSocket | ssl.SSLSocket = tls
        self._answers: KTLSSocket | ssl.SSLSocket | _Answers = tls
        for name, value in vars(tls).items():
            if not name.startswith("_") and name not in _SSLS_OWN and not hasattr(self, name):
                setattr(self, name, value)

    def carried_by(self, sock: KTLSSocket) -> None:
        """The connection has left OpenSSL."""
        self._sock = self._answers = sock

    def left_to(self, tls: ssl.SSLSocket) -> None:
        """The connection stays with OpenSSL, which forgets the handshake when it is closed."""
        self._answers = _Answers(tls)

    def closing(self) -> None:
        """The connection is about to be closed: keep the newest ticket that OpenSSL has."""
        if isinstance(self._answers, _Answers):
            self._session = self._sock.session

    @property
    def session(self) -> ssl.SSLSession | None:
        """As ssl.SSLSocket.session; tickets that came after the switch count."""
        return self._sock.session or self._session

    def version(self) -> str | None:
        """As ssl.SSLObject.version."""
        return self._answers.version()

    def cipher(self) -> tuple[str, str, int] | None:
        """As ssl.SSLObject.cipher."""
        return self._answers.cipher()

    def compression(self) -> str | None:
        """As ssl.SSLObject.compression: None, for a compressed connection is not handed over."""
        return None

    def selected_alpn_protocol(self) -> str | None:
        """As ssl.SSLObject.selected_alpn_protocol."""
        return self._answers.selected_alpn_protocol()

    def getpeercert(self, binary_form: bool = False) -> Any:
        """As ssl.SSLObject.getpeercert."""
        return self._answers.getpeercert(binary_form)

    def get_channel_binding(self, cb_type: str = "tls-unique") -> bytes | None:
        """As ssl.SSLObject.get_channel_binding; ValueError for another type than tls-unique."""
        if cb_type != "tls-unique":
            raise ValueError(f"{cb_type} channel binding type not implemented")
        return self._tls_unique

    def pending(self) -> int:
        """As ssl.SSLObject.pending."""
        return self._sock.pending()
