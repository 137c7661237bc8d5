"""What the daemon decides: certificates, names, revocation, modes of authentication, time limits.

Nothing here knows how the kernel asks, so that it serves another kernel's upcall as well (FreeBSD's
rpctls system calls).  A ``Request`` comes in.  ``Policy.plan`` answers with a ``Plan``: the context
to make the handshake with, the peer's name to verify, the time it may take.  When the handshake is
over, ``Plan.judge`` looks at the peer once more, and ``check`` at what the kernel says of the
socket.  Whatever must not be raises ``Refused``, with a ``Verdict`` that an upcall translates.

RFC 9289 asks for TLS 1.3 and the ALPN name "sunrpc".  Kernels neither answer a KeyUpdate nor keep
session tickets, and there is nobody left in user space who could: the server sends no tickets, and
nobody changes keys.
"""

from __future__ import annotations

import enum
import ipaddress
import os
import ssl
import tomllib
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import pyktls

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ALPN = "sunrpc"  # RFC 9289 section 8.2
# Seconds.  Linux gives its client 10 and its server 5 (net/sunrpc/xprtsock.c, svcsock.c): less, so
# that the answer still finds somebody who waits for it.
CLIENT_TIMEOUT = 9.0
SERVER_TIMEOUT = 4.5
# Part of the time that a kernel grants (NVMe/TCP names it).
TIMEOUT_SHARE = 0.9
# Where Python has callbacks for pre-shared keys: since 3.13.
HAS_PSK = hasattr(ssl.SSLContext, "set_psk_client_callback")


class Role(enum.StrEnum):
    """Which side of the handshake this machine is."""

    CLIENT = "client"
    SERVER = "server"


class Auth(enum.StrEnum):
    """How the kernel wants this side authenticated."""

    #: A client without a certificate; the server shows one, and is verified.
    UNAUTHENTICATED = "unauthenticated"
    #: Both sides know a key (NVMe/TCP; NFS does not use it).
    PSK = "psk"
    #: A certificate.
    X509 = "x509"


class Verdict(enum.Enum):
    """What the kernel is told."""

    OK = "ok"
    #: The peer is not whom it has to be, or one side does not want the other: do not try again.
    DENIED = "denied"
    #: The peer did not answer in time, or went away: it may be tried again.
    TRY_AGAIN = "try again"
    #: This machine cannot do what was asked.
    UNSUPPORTED = "unsupported"
    #: The request makes no sense.
    INVALID = "invalid"


class Refused(Exception):
    """The handshake must not be, or must not count; ``verdict`` is never OK."""

    def __init__(self, verdict: Verdict, reason: str) -> None:
        super().__init__(reason)
        self.verdict = verdict


class ConfigurationError(Exception):
    """The configuration cannot be used; the message names the file and what is wrong."""


@dataclass(frozen=True)
class Identity:
    """What this side shows: a certificate (and its chain) with its key, both PEM."""

    certificate: bytes
    key: bytes = field(repr=False)


@dataclass(frozen=True)
class SharedKey:
    """A pre-shared key.  ``serial`` is the kernel's number of it, 0 if it has none."""

    identity: str
    key: bytes = field(repr=False)
    serial: int = 0


@dataclass(frozen=True)
class Request:
    """What the kernel asks for.

    ``peername`` is the name of the server as the mount command was given it (clients).  ``timeout``
    is in seconds, None where the kernel names none.  ``identity`` is what the kernel itself brings
    along instead of the configured certificate.  ``shared_keys`` are what a client may use, and
    ``find_key`` is how a server looks an identity up.
    """

    role: Role
    auth: Auth
    peername: str | None = None
    timeout: float | None = None
    identity: Identity | None = None
    shared_keys: tuple[SharedKey, ...] = ()
    find_key: Callable[[str], SharedKey | None] = lambda _: None


@dataclass(frozen=True)
class Peer:
    """Who the peer has proved to be.

    ``certificate`` is DER, None where it showed none.  ``names`` are the DNS names and addresses
    of its subjectAltName.  ``shared_key`` is the one that was used, if any.
    """

    certificate: bytes | None = None
    names: tuple[str, ...] = ()
    shared_key: SharedKey | None = None

    def __str__(self) -> str:
        if self.shared_key is not None:
            return f"psk {self.shared_key.identity}"
        if self.certificate is None:
            return "anonymous"
        return ",".join(self.names) or "a certificate without names"


@dataclass(frozen=True)
class Side:
    """What is configured for one role: the tables [client] and [server].

    ``certificate`` and ``key`` are shown to the peer.  ``ca`` says which authorities are believed
    (a client without it believes the system's, a server without it asks no client for anything).
    ``crl`` is a file of revoked certificates: with it every certificate of the peer's chain must
    have one there, or the peer is refused.  ``timeout`` is in seconds.

    For servers: ``require_certificate`` refuses a client without one in the handshake (else the
    export's xprtsec= decides); ``clients`` are the DNS names and addresses of which a client's
    certificate must have one (subjectAltName), if any are given.
    """

    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    crl: Path | None = None
    timeout: float | None = None
    require_certificate: bool = False
    clients: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """The whole configuration; None where a role is not to be served."""

    client: Side | None = None
    server: Side | None = None


# ---- configuration -----------------------------------------------------------------------------


def read_settings(path: Path) -> Settings:
    """Read the TOML file; relative names in it are relative to its directory.

    Raises ConfigurationError for what cannot be read or understood.
    """
    try:
        with path.open("rb") as file:
            tables = tomllib.load(file)
    except (OSError, ValueError) as e:  # what is no TOML, or no UTF-8
        raise ConfigurationError(f"{path}: {e}") from e
    try:
        return _settings(tables, path.parent)
    except (TypeError, ValueError) as e:
        raise ConfigurationError(f"{path}: {e}") from e


def _settings(tables: dict[str, Any], directory: Path) -> Settings:
    if unknown := set(tables) - {role.value for role in Role}:
        raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
    if not tables:
        raise ValueError("neither [client] nor [server]")
    return Settings(**{name: _read_side(name, table, directory) for name, table in tables.items()})


def _read_side(name: str, table: Any, directory: Path) -> Side:
    if not isinstance(table, dict):
        raise TypeError(f"{name} must be a table: [{name}]")
    known = {entry.name for entry in fields(Side)}
    if name == Role.CLIENT:
        known -= {"require_certificate", "clients"}
    values: dict[str, Any] = {}
    for option, value in table.items():
        if option not in known:
            raise ValueError(f"[{name}] {option} is not known")
        try:
            values[option] = _reader(option)(value, directory)
        except (TypeError, ValueError) as e:
            raise ValueError(f"[{name}] {option} must be {e}") from None
    side = Side(**values)
    _check_side(name, side)
    return side


def _read_file(value: Any, directory: Path) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("the name of a file")
    return directory / value


def _read_seconds(value: Any, _: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ValueError("a number of seconds")
    return float(value)


def _read_bool(value: Any, _: Path) -> bool:
    if not isinstance(value, bool):
        raise TypeError("true or false")
    return value


def _read_names(value: Any, _: Path) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError("a list of names")
    return tuple(_comparable(item) for item in value)


def _comparable(name: str) -> str:
    """A DNS name or an address in the one form that it has here."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.lower()


def _reader(option: str) -> Callable[[Any, Path], Any]:
    readers: dict[str, Callable[[Any, Path], Any]] = {
        "timeout": _read_seconds,
        "require_certificate": _read_bool,
        "clients": _read_names,
    }
    return readers.get(option, _read_file)


def _check_side(name: str, side: Side) -> None:
    if side.key is not None and side.certificate is None:
        raise ValueError(f"[{name}] key is nothing without certificate")
    if name == Role.SERVER:
        if side.certificate is None:
            raise ValueError("[server] certificate is missing: a server has to show one")
        for option in ("require_certificate", "clients", "crl"):
            if getattr(side, option) and side.ca is None:
                raise ValueError(f"[server] {option} needs ca: whose certificates are good?")


# ---- the policy --------------------------------------------------------------------------------


class Policy:
    """The decisions, from one reading of the configuration and of the files that it names.

    Everything is read when it is made, so that a later reading (SIGHUP) fails or succeeds as a
    whole.  Raises ConfigurationError.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._contexts: dict[tuple[Role, Auth], ssl.SSLContext] = {}
        if settings.client is not None:
            modes = [Auth.UNAUTHENTICATED]
            if settings.client.certificate is not None:
                modes.append(Auth.X509)
            for auth in modes:
                self._contexts[Role.CLIENT, auth] = _context(Role.CLIENT, auth, settings.client)
        if settings.server is not None:
            self._contexts[Role.SERVER, Auth.X509] = _context(
                Role.SERVER, Auth.X509, settings.server
            )

    @classmethod
    def read(cls, path: Path) -> Policy:
        """The policy of a configuration file.  Raises ConfigurationError."""
        return cls(read_settings(path))

    def plan(self, request: Request) -> Plan:
        """How to make the handshake.  Raises Refused if it is not to be made at all."""
        side = self.settings.client if request.role is Role.CLIENT else self.settings.server
        if side is None:
            raise Refused(Verdict.UNSUPPORTED, f"no [{request.role}] in the configuration")
        timeout = _timeout(request, side)
        if request.auth is Auth.PSK:
            return _plan_psk(request, side, timeout)
        if request.role is Role.SERVER:
            # A server shows its certificate whatever the kernel says of authentication.
            auth = Auth.X509
        else:
            auth = request.auth
            if not request.peername:
                raise Refused(Verdict.INVALID, "the kernel names no server: nothing to verify")
        if request.identity is not None:
            context = _context(request.role, auth, side, request.identity)
        else:
            found = self._contexts.get((request.role, auth))
            if found is None:
                raise Refused(
                    Verdict.DENIED, "mutual TLS is wanted, and [client] has no certificate"
                )
            context = found
        plan = Plan(request, side, context, timeout)
        _check_name(plan)
        return plan


@dataclass
class Plan:
    """How one handshake is to be made; ``timeout`` is in seconds."""

    request: Request
    side: Side
    context: ssl.SSLContext
    timeout: float
    #: The pre-shared key that was given to OpenSSL last: with TLS 1.3 the one that was used.
    used: SharedKey | None = None

    @property
    def server_hostname(self) -> str | None:
        """The name that the peer's certificate must have; None for a server and with PSK."""
        return self.request.peername if self.context.check_hostname else None

    def wrap(self, sock: Any) -> ssl.SSLSocket:
        """An SSLSocket that has not begun yet; it takes ``sock``, which is connected, over."""
        return self.context.wrap_socket(
            sock,
            server_side=self.request.role is Role.SERVER,
            server_hostname=self.server_hostname,
            do_handshake_on_connect=False,
        )

    def judge(self, tls: ssl.SSLSocket) -> Peer:
        """Who the peer is, after the handshake.  Raises Refused if it may not be that one."""
        certificate = tls.getpeercert(binary_form=True)
        if self.request.auth is Auth.PSK:
            # OpenSSL calls a connection resumed whose first secret was a shared key.
            if self.used is None or certificate is not None or not tls.session_reused:
                raise Refused(Verdict.DENIED, "the peer did not use a shared key")
            return Peer(shared_key=self.used)
        if certificate is None:
            if self.request.role is Role.CLIENT:
                raise Refused(Verdict.DENIED, "the server showed no certificate")
            return Peer()
        peer = Peer(certificate, _names_in(tls.getpeercert() or {}))
        allowed = self.side.clients
        if self.request.role is Role.SERVER and allowed:
            theirs = {_comparable(name) for name in peer.names}
            if theirs.isdisjoint(allowed):
                raise Refused(Verdict.DENIED, f"client {peer} is none of those allowed")
        return peer


def check(status: pyktls.Status) -> None:
    """Refuse unless the kernel has both directions.

    It is what FreeBSD's rpc.tlsclntd and rpc.tlsservd ask OpenSSL at this point
    (BIO_get_ktls_send, BIO_get_ktls_recv), asked of the kernel.  A client's mount fails then, and
    a server's kernel does not answer calls on the connection.
    """
    if status.tx and status.rx:
        return
    missing = [name for name, on in (("sending", status.tx), ("receiving", status.rx)) if not on]
    raise Refused(Verdict.UNSUPPORTED, f"kernel TLS is not on for {' and '.join(missing)}: refused")


def _check_name(plan: Plan) -> None:
    """Refuse a name that OpenSSL does not take, before there is a socket."""
    if plan.server_hostname is None:
        return
    try:
        plan.context.wrap_bio(
            ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=plan.server_hostname
        )
    except (TypeError, ValueError) as e:  # UnicodeError is one; a NUL is a TypeError
        raise Refused(Verdict.INVALID, f"the peer's name {plan.server_hostname!r}: {e}") from e


def _timeout(request: Request, side: Side) -> float:
    ours = side.timeout
    if ours is None:
        ours = CLIENT_TIMEOUT if request.role is Role.CLIENT else SERVER_TIMEOUT
    if not request.timeout:
        return ours
    granted = TIMEOUT_SHARE * request.timeout
    return granted if side.timeout is None else min(ours, granted)


def _names_in(certificate: Any) -> tuple[str, ...]:
    """The names in what ``getpeercert`` gives.  A common name is none: RFC 9289 section 5.2.1."""
    return tuple(
        value
        for kind, value in certificate.get("subjectAltName", ())
        if kind in {"DNS", "IP Address"}
    )


# ---- contexts ----------------------------------------------------------------------------------


def _bare_context(role: Role) -> ssl.SSLContext:
    protocol = ssl.PROTOCOL_TLS_CLIENT if role is Role.CLIENT else ssl.PROTOCOL_TLS_SERVER
    context = ssl.SSLContext(protocol)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    if role is Role.SERVER:
        context.num_tickets = 0
    return context


def _context(
    role: Role, auth: Auth, side: Side, identity: Identity | None = None
) -> ssl.SSLContext:
    """A watched context.  Raises ConfigurationError."""
    context = _bare_context(role)
    context.set_alpn_protocols([ALPN])
    if role is Role.CLIENT:
        context.hostname_checks_common_name = False  # RFC 9289 section 5.2.1: subjectAltName
    try:
        if auth is Auth.X509:
            _show(context, side, identity)
        what: object = side.ca or "the system's authorities"
        if side.ca is not None:
            context.load_verify_locations(side.ca)
        elif role is Role.CLIENT:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        if side.ca is not None and role is Role.SERVER:
            required = side.require_certificate or side.clients
            context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
        if side.crl is not None:
            what = side.crl
            context.load_verify_locations(side.crl)
            if not context.cert_store_stats()["crl"]:
                raise ConfigurationError(f"{side.crl}: no revocation list in it")
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    except (OSError, ssl.SSLError) as e:
        raise ConfigurationError(f"{what}: {e}") from e
    pyktls.watch(context)
    return context


def _show(context: ssl.SSLContext, side: Side, identity: Identity | None) -> None:
    if identity is not None:
        load_identity(context, identity)
        return
    if side.certificate is None:
        raise ConfigurationError("no certificate is configured")
    try:
        context.load_cert_chain(side.certificate, side.key)
    except (OSError, ssl.SSLError) as e:
        key = "" if side.key is None else f", {side.key}"
        raise ConfigurationError(f"{side.certificate}{key}: {e}") from e


def load_identity(context: ssl.SSLContext, identity: Identity) -> None:
    """Give a certificate and a key in memory to a context, which only reads files.

    Raises Refused for what OpenSSL does not take.
    """
    fd = os.memfd_create("identity", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(identity.certificate + b"\n" + identity.key)
        context.load_cert_chain(f"/dev/fd/{fd}")
    except ssl.SSLError as e:
        raise Refused(Verdict.INVALID, f"the kernel's certificate and key: {e}") from e
    finally:
        os.close(fd)


def _plan_psk(request: Request, side: Side, timeout: float) -> Plan:
    """A context for this one handshake: its callbacks belong to a context, not a connection."""
    if not HAS_PSK:
        raise Refused(Verdict.UNSUPPORTED, "pre-shared keys need Python 3.13")
    context = _bare_context(request.role)
    if request.role is Role.CLIENT:
        if not request.shared_keys:
            raise Refused(Verdict.DENIED, "the kernel names no shared key that can be read")
        # CERT_REQUIRED stays, and no authority is believed: a server cannot come with a
        # certificate instead.
        context.check_hostname = False
    pyktls.watch(context)
    plan = Plan(request, side, context, timeout)

    def for_client(_hint: str | None) -> tuple[str, bytes]:
        plan.used = request.shared_keys[0]
        return plan.used.identity, plan.used.key

    def for_server(identity: str | None) -> bytes:
        plan.used = request.find_key(identity) if identity else None
        return b"" if plan.used is None else plan.used.key

    # Since 3.13: not in what mypy knows of 3.11.
    if request.role is Role.CLIENT:
        context.set_psk_client_callback(for_client)  # type: ignore[attr-defined]
    else:
        context.set_psk_server_callback(for_server)  # type: ignore[attr-defined]
    return plan
