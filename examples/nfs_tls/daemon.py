"""The daemon: fetches the kernel's requests, makes the handshakes, answers, and writes the log.

One task for each handshake, at most ``MOST`` at once (the kernel keeps what is beyond in its own
queue, and its time runs meanwhile).  Whatever happens in a task, the kernel is told once, and then
the descriptor is closed.

SIGHUP reads the configuration, certificates and revocation lists again; what is wrong with them is
logged, and the old ones stay.  Connections that are established are not touched: there is no
descriptor of them here any more.  SIGTERM and SIGINT: be asked no more, finish what was begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

from . import keyring as keys
from .handshake import Outcome, shake_hands
from .keyring import Keyring, KeyringError
from .policy import (
    Auth,
    ConfigurationError,
    Identity,
    Policy,
    Refused,
    Request,
    Role,
    SharedKey,
    Verdict,
)
from .upcall import (
    AUTH_PSK,
    AUTH_UNAUTH,
    AUTH_X509,
    MSG_TYPE_CLIENTHELLO,
    MSG_TYPE_SERVERHELLO,
    PEER_WITHOUT_KEY,
    Upcall,
    UpcallError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from typing import Protocol

    class Kernel(Protocol):
        """What ``upcall.HandshakeUpcall`` is; a test's is another."""

        events: socket.socket

        def drain(self) -> None:
            """Read all events away."""

        def accept(self) -> Upcall | None:
            """Fetch one request."""

        def done(self, fd: int, verdict: Verdict, remote_auth: Iterable[int] = ()) -> bool:
            """Say how it went."""

        def leave(self) -> None:
            """Be asked no more."""

        def close(self) -> None:
            """Close everything."""


MOST = 256
# Seconds until it is tried again to fetch a request.
PAUSE = 1.0
#: Of linux/key.h: the types that pre-shared keys have, NVMe's own and the general one.
KEY_TYPES = ("psk", "user")

_ROLES = {MSG_TYPE_CLIENTHELLO: Role.CLIENT, MSG_TYPE_SERVERHELLO: Role.SERVER}
_MODES = {AUTH_UNAUTH: Auth.UNAUTHENTICATED, AUTH_PSK: Auth.PSK, AUTH_X509: Auth.X509}


class Daemon:
    """Serves one kernel's (one network namespace's) requests.

    ``reload`` makes the policy anew, ``keyring`` is None where keys cannot be had, and ``log``
    takes one line.
    """

    def __init__(
        self,
        kernel: Kernel,
        policy: Policy,
        *,
        reload: Callable[[], Policy],
        keyring: Keyring | None = None,
        log: Callable[[str], None],
        most: int = MOST,
    ) -> None:
        self.kernel = kernel
        self.policy = policy
        self.keyring = keyring
        self.log: Callable[[str], None] = lambda line: log(printable(line))
        self.most = most
        self._reload = reload
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Serve until ``stop`` is called, and then until the last handshake has ended."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self.kernel.events.fileno(), self._on_event)
        self._fetch()  # what waits since before there was a daemon
        await self._stopping.wait()
        loop.remove_reader(self.kernel.events.fileno())
        self.kernel.leave()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def stop(self) -> None:
        """Be asked no more; handshakes that are under way go on."""
        self._stopping.set()

    def reload(self) -> None:
        """Read the configuration again.  New handshakes go by it, if it is good."""
        try:
            self.policy = self._reload()
        except ConfigurationError as e:
            self.log(f"reload failed, everything stays as it was: {e}")
        else:
            self.log("reloaded")

    # ---- requests ----------------------------------------------------------------------------

    def _on_event(self) -> None:
        self.kernel.drain()
        self._fetch()

    def _fetch(self) -> None:
        while not self._stopping.is_set() and len(self._tasks) < self.most:
            try:
                upcall = self.kernel.accept()
            except UpcallError as e:
                self.log(f"a request could not be understood: {e}")
                continue
            except OSError as e:
                # There may be more in the queue, and no event comes for what is there already.
                self.log(f"a request could not be fetched: {e}")
                asyncio.get_running_loop().call_later(PAUSE, self._fetch)
                return
            if upcall is None:
                return
            task = asyncio.create_task(self._serve(upcall))
            self._tasks.add(task)
            task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.log(f"internal error: {error!r}")
        self._fetch()  # a place is free

    async def _serve(self, upcall: Upcall) -> None:
        outcome = Outcome(Verdict.DENIED, "internal error")
        who = _who(upcall)
        try:
            with self._keyring_of(upcall):
                outcome = await self._handshake(upcall)
        finally:
            try:
                self._answer(upcall, outcome, who)
            finally:
                os.close(upcall.fd)

    @contextlib.contextmanager
    def _keyring_of(self, upcall: Upcall) -> Iterator[None]:
        """The request's own keyring, which the kernel has linked into this process's."""
        if self.keyring is None or not upcall.keyring:
            yield
            return
        self.keyring.borrow(upcall.keyring)
        try:
            yield
        finally:
            self.keyring.give_back(upcall.keyring)

    async def _handshake(self, upcall: Upcall) -> Outcome:
        unread: list[str] = []  # why keys could not be read: for the one line of the log
        try:
            plan = self.policy.plan(self._request(upcall, unread))
        except Refused as e:
            outcome = Outcome(e.verdict, str(e))
        except ConfigurationError as e:  # a certificate of the keyring, with the files beside it
            outcome = Outcome(Verdict.UNSUPPORTED, str(e))
        else:
            outcome = await shake_hands(upcall.fd, plan)
        return dataclasses.replace(outcome, detail="; ".join([outcome.detail, *unread]))

    def _answer(self, upcall: Upcall, outcome: Outcome, who: str) -> None:
        late = ""
        try:
            if not self.kernel.done(upcall.fd, outcome.verdict, _remote_auth(outcome)):
                late = "; the kernel had given it up"
        except OSError as e:
            late = f"; the kernel could not be told: {e}"
        peer = f" peer={outcome.peer}" if outcome.peer is not None else ""
        milliseconds = round(outcome.seconds * 1000)
        self.log(
            f"{who}: {outcome.verdict.value}{peer}: {outcome.detail} ({milliseconds} ms){late}"
        )

    # ---- from the kernel's numbers to a request ------------------------------------------------

    def _request(self, upcall: Upcall, unread: list[str]) -> Request:
        """Raises Refused for what is not known, or a key that cannot be read."""
        role = _ROLES.get(upcall.message_type)
        auth = _MODES.get(upcall.auth_mode)
        if role is None:
            raise Refused(Verdict.INVALID, f"unknown kind of handshake {upcall.message_type}")
        if auth is None:
            raise Refused(Verdict.INVALID, f"unknown mode of authentication {upcall.auth_mode}")
        identity = None
        if auth is Auth.X509 and upcall.certificates:
            identity = self._identity(*upcall.certificates[0])
        shared: list[SharedKey] = []
        if auth is Auth.PSK:
            found = [self._shared_key(serial, unread) for serial in upcall.identities]
            shared = [key for key in found if key is not None]
        return Request(
            role,
            auth,
            upcall.peername,
            upcall.timeout / 1000 or None,
            identity,
            tuple(shared),
            lambda identity: self._find_key(identity, upcall.keyring, unread),
        )

    def _identity(self, certificate: int, key: int) -> Identity:
        if self.keyring is None:
            raise Refused(Verdict.UNSUPPORTED, "the mount's certificate is a key, and none are had")
        try:
            return Identity(
                keys.certificate_to_pem(self.keyring.read(certificate)),
                keys.private_key_to_pem(self.keyring.read(key)),
            )
        except KeyringError as e:
            raise Refused(Verdict.DENIED, f"the mount's certificate {certificate}: {e}") from e

    def _shared_key(self, serial: int, unread: list[str]) -> SharedKey | None:
        if self.keyring is None:
            return None
        try:
            return SharedKey(self.keyring.description(serial), self.keyring.read(serial), serial)
        except KeyringError as e:
            unread.append(f"key {serial}: {e}")
            return None

    def _find_key(self, identity: str, keyring: int, unread: list[str]) -> SharedKey | None:
        """Look a key up where the request says, else in all that this process can reach."""
        if self.keyring is None:
            return None
        for kind in KEY_TYPES:
            serial = self.keyring.search(kind, identity, keyring or keys.PROCESS_KEYRING)
            if serial is not None:
                return self._shared_key(serial, unread)
        return None


def _remote_auth(outcome: Outcome) -> tuple[int, ...]:
    """What stands for the peer's identity: with it a server lets it use an mtls export."""
    if not outcome.ok or outcome.peer is None:
        return ()
    if outcome.peer.shared_key is not None:
        return (outcome.peer.shared_key.serial or PEER_WITHOUT_KEY,)
    return (PEER_WITHOUT_KEY,) if outcome.peer.certificate is not None else ()


def _who(upcall: Upcall) -> str:
    """Role and addresses, for the log."""
    role = _ROLES.get(upcall.message_type, f"kind {upcall.message_type}")
    name = f" {upcall.peername}" if upcall.peername else ""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(upcall.fd)) as sock:
        return f"{role}{name} {_address(sock.getsockname())} - {_address(sock.getpeername())}"
    return f"{role}{name}"


def _address(address: object) -> str:
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return "?"


def printable(text: str) -> str:
    """What peers have put into a line of the log makes no second line of it, nor anything else."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


# ---- as a process ------------------------------------------------------------------------------


def to_stderr(line: str) -> None:
    """One line of the log; under systemd that is the journal."""
    print(line, file=sys.stderr, flush=True)


def tell_systemd(state: str) -> None:
    """sd_notify(3): a datagram to the socket that NOTIFY_SOCKET names, if it does."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(state.encode(), address)


async def serve(kernel: Kernel, config: Path, policy: Policy, keyring: Keyring | None) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reads ``config`` again."""
    loop = asyncio.get_running_loop()
    daemon = Daemon(
        kernel,
        policy,
        reload=lambda: Policy.read(config),
        keyring=keyring,
        log=to_stderr,
    )
    loop.add_signal_handler(signal.SIGHUP, daemon.reload)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.stop)
    to_stderr("ready")
    tell_systemd("READY=1")
    await daemon.run()
    tell_systemd("STOPPING=1")
    to_stderr("stopped")
