"""What a connection of the ssl module says about itself, kept for when OpenSSL's object is gone.

Where OpenSSL is hidden nobody can take the socket away from it: its object has the descriptor's
number for as long as it lives.  So it does not live on there once the kernel has the connection.
What code may still ask of it is asked before, and answered from here.
"""

from __future__ import annotations

import copy
import ssl
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["QUESTIONS", "Answers"]

#: The names of ``_ssl._SSLSocket`` that ask, and change nothing.
QUESTIONS = frozenset(
    {
        "cipher",
        "client_sigalg",
        "compression",
        "get_channel_binding",
        "get_unverified_chain",
        "get_verified_chain",
        "getpeercert",
        "group",
        "selected_alpn_protocol",
        "selected_npn_protocol",
        "server_hostname",
        "server_side",
        "server_sigalg",
        "session_reused",
        "shared_ciphers",
        "version",
    }
)


class Answers:
    """In the place of a ``_ssl._SSLSocket`` whose handshake is done.

    It has those of ``QUESTIONS`` that this Python's object has, and keeps nothing of OpenSSL's
    connection.
    """

    def __init__(self, sslobj: Any) -> None:
        self.context: ssl.SSLContext = sslobj.context
        self._session: ssl.SSLSession | None = sslobj.session
        self._certificates = sslobj.getpeercert(False), sslobj.getpeercert(True)
        self._tls_unique: bytes | None = sslobj.get_channel_binding("tls-unique")
        self._told: dict[str, Any] = {}
        for name in QUESTIONS:
            if hasattr(sslobj, name):  # it depends on the version of Python
                answer = getattr(sslobj, name)
                self._told[name] = _Told(answer) if callable(answer) else answer

    def __getattr__(self, name: str) -> Any:
        try:
            return self._told[name]
        except KeyError:
            raise AttributeError(f"{name} is not available: OpenSSL's object is gone") from None

    def getpeercert(self, binary_mode: bool = False) -> Any:
        """The peer's certificate."""
        return copy.copy(self._certificates[bool(binary_mode)])

    def get_channel_binding(self, cb_type: str = "tls-unique") -> bytes | None:
        """The only one that ssl has."""
        if cb_type != "tls-unique":
            raise ValueError(f"'{cb_type}' channel binding type not implemented")
        return self._tls_unique

    @property
    def session(self) -> ssl.SSLSession | None:
        """The session as it was when OpenSSL left the connection."""
        return self._session

    @session.setter
    def session(self, _: Any) -> None:
        why = "for server-side SSLSocket" if self._told["server_side"] else "after handshake"
        raise ValueError(f"Cannot set session {why}.")

    def verify_client_post_handshake(self) -> NoReturn:
        """Refuse what OpenSSL refuses too, unless it is a server of TLS 1.3."""
        reason = "NOT_SERVER" if self._told["version"]() == "TLSv1.3" else "WRONG_SSL_VERSION"
        error = ssl.SSLError(
            ssl.SSL_ERROR_SSL, f"[SSL: {reason}] {reason.replace('_', ' ').lower()}"
        )
        error.library, error.reason = "SSL", reason
        raise error


class _Told:
    """A method without arguments that says what it said once."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        self._answer: Any = None
        self._missing = ""
        try:
            self._answer = ask()
        except NotImplementedError as e:  # this OpenSSL has it not
            self._missing = str(e)

    def __call__(self) -> Any:
        if self._missing:
            raise NotImplementedError(self._missing)
        # What ssl makes anew for each call its callers may change.
        return copy.copy(self._answer)
