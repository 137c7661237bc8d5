"""What this FreeBSD can do for this process: the answers of ``pyktls.probe``.

Keys are tried on loopback connections of our own and asked back; the sysctls are read for what
cannot be tried: which gate is shut.  (In capability mode they cannot be read; the trials tell.)
"""

from __future__ import annotations

import errno
import os
import socket
import tempfile
import time
from typing import TYPE_CHECKING, TypeAlias

from . import _records, freebsd
from ._kernel import ffi, lib
from .ciphers import AEAD, AEADS, TLS_1_2, TLS_1_3
from .errors import Error, Unavailable
from .kernel_support import (
    FEATURES,
    OPTIONS,
    VERSIONS,
    Answer,
    Cause,
    KernelModule,
    KernelSupport,
    Privileges,
    refusal,
)
from .protocol import Direction
from .socket_calls import loopback_pair
from .trial_connection import HEADER, SAMPLE, TrialConnection, no_loopback

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["examine", "situation", "still_without"]

Ciphers: TypeAlias = dict[tuple[int, str, Direction], Answer]

_ERRORS = (OSError, Error, ValueError)
_NEW_CONNECTION = "a new connection before the cipher's limit; ChaCha20-Poly1305 has none"
_JAILED = "security.jail.jailed"


def situation() -> tuple[object, ...]:
    """What the answers stand on and can change: who asks, and which gates are open."""
    return os.geteuid(), tuple(freebsd.gates().values())


def still_without() -> bool:
    """Whether the kernel still knows no kernel TLS."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            freebsd.get_mode(sock, freebsd.TCP_TXTLS_MODE)
    except OSError as e:
        return e.errno == errno.ENOPROTOOPT
    return False


def _privileges() -> Privileges:
    try:
        jailed: bool | None = bool(freebsd.sysctl(_JAILED))
    except OSError:
        jailed = None
    return Privileges(euid=os.geteuid(), container=jailed)


def _pretended(text: str) -> Answer:
    return Answer(False, f"{text}: it has no kernel TLS", "another kernel", Cause.PRETENDED)


# ---- ciphers ---------------------------------------------------------------------------------


def _try_cipher(version: int, aead: AEAD) -> dict[Direction, Answer]:
    if aead.freebsd is None:
        none = Answer(
            False,
            f"FreeBSD has no {aead.name}",
            freebsd.cipher_remedy(aead, OSError()),
            Cause.NOT_IN_SYSTEM,
        )
        return dict.fromkeys(Direction, none)
    if aead.mac_key_length and version == TLS_1_3:
        text = f"TLS 1.3 has no {aead.name}"
        return dict.fromkeys(
            Direction, Answer(False, text, "use it with TLS 1.2", Cause.VERSION_UNSUPPORTED)
        )
    try:
        near, far = loopback_pair()
    except OSError as e:
        return dict.fromkeys(Direction, no_loopback(e, "ifconfig lo0 up"))
    with near, far:
        return {d: _answer(version, aead, d, near) for d in Direction}


def _answer(version: int, aead: AEAD, direction: Direction, sock: socket.socket) -> Answer:
    what = f"{aead.name} with {VERSIONS[version]}"
    try:
        freebsd.try_keys(sock, version, aead, direction)
    except Unavailable as e:
        return _pretended(str(e))
    except OSError as e:
        code = Cause.FAILED
        if e.errno in (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENXIO):
            code = Cause.GATE_CLOSED if _shut(aead, direction) else Cause.TOO_OLD
        elif e.errno in (errno.EINVAL, errno.EPROTONOSUPPORT):
            code = Cause.TOO_OLD
        elif e.errno == errno.ENOPROTOOPT:
            code = Cause.NOT_BUILT
        answer = refusal(e, f"this kernel does not take {what} for {direction}", code)
        remedy = answer.remedy or freebsd.cipher_remedy(aead, e)
        return Answer(False, answer.reason, remedy, answer.code, answer.errno)
    return Answer(True, f"the kernel takes {what} and says that it has the keys")


def _shut(aead: AEAD, direction: Direction) -> bool:
    """Whether a gate is known to be shut that this cipher has to pass."""
    names = ["kern.ipc.tls.enable"]
    names.append(
        "kern.ipc.tls.rx_enable" if direction is Direction.RX else "kern.ipc.mb_use_ext_pgs"
    )
    if aead.mac_key_length:
        names.append("kern.ipc.tls.cbc_enable")
    values = freebsd.gates()
    return any(values[name] == 0 for name in names)


# ---- what one connection shows ---------------------------------------------------------------


def _ask(trial: Callable[[], Answer]) -> Answer:
    try:
        return trial()
    except _ERRORS as e:
        return refusal(e)


class _Connection(TrialConnection):
    """One whose far end receives only if this kernel can do that."""

    def __init__(self, version: int, aead: AEAD, *, receives: bool) -> None:
        self.version, self.aead, self.receives = version, aead, receives
        super().__init__()

    def switch_on(self) -> None:
        """Raises Unavailable where plain text comes out all the same."""
        freebsd.try_keys(self.near, self.version, self.aead, Direction.TX)
        freebsd.send_record(self.near, SAMPLE, 23)
        if not self.far.recv(100, socket.MSG_PEEK).startswith(HEADER):
            raise Unavailable("the kernel says that it has the tx keys and sends plain text")
        if self.receives:
            freebsd.try_keys(self.far, self.version, self.aead, Direction.RX)
            self.expect(SAMPLE)

    def receive(self, size: int) -> bytes:
        deadline = _records.Deadline(self.far.gettimeout())
        data, _, _ = _records.recv(self.far.fileno(), size, 0, deadline)
        return data

    # ---- one question each

    def sendfile(self) -> Answer:
        with tempfile.TemporaryFile() as file:
            file.write(SAMPLE)
            file.flush()
            sent, error = freebsd.sendfile(self.near, file)
        if error is not None:
            raise error
        if not self.receives:
            return Answer(True, "the kernel takes a file")
        self.expect(SAMPLE[:sent])
        return Answer(True, "a file went through it")

    def msg_eor(self) -> Answer:
        try:
            freebsd.send_record(self.near, SAMPLE, 23, socket.MSG_EOR)
        except OSError as e:
            if e.errno != errno.EINVAL:
                raise
            text = "FreeBSD's kernel TLS refuses MSG_EOR"
            remedy = "leave it away: every send ends its record"
            return Answer(False, text, remedy, Cause.NOT_IN_SYSTEM, e.errno)
        if self.receives:
            self.expect(SAMPLE)
        return Answer(True, "the kernel takes MSG_EOR")

    def readback(self) -> Answer:
        value, size = ffi.new("struct tls_enable *"), ffi.new("unsigned int *", 64)
        level = socket.IPPROTO_TCP
        fd = self.near.fileno()
        if lib.getsockopt(fd, level, freebsd.TCP_TXTLS_ENABLE, value, size) == 0:
            return Answer(True, "the kernel gives the struct back")
        number = int(ffi.errno)
        text = "FreeBSD gives no keys back, to nobody"
        remedy = "take what you need from the Session of pyktls.extract, before it is installed"
        return Answer(False, text, remedy, Cause.NOT_IN_SYSTEM, number)

    def second_keys(self, direction: Direction) -> Answer:
        sock = self.near if direction is Direction.TX else self.far
        if direction is Direction.RX and not self.receives:
            text = "this kernel does not receive with the cipher that it sends with"
            return Answer(False, text, _NEW_CONNECTION, Cause.NOT_TRIED)
        try:
            freebsd.try_keys(sock, self.version, self.aead, direction)
        except OSError as e:
            if e.errno != errno.EALREADY:
                raise
            return Answer(False, freebsd.NO_REKEY, _NEW_CONNECTION, Cause.NOT_IN_SYSTEM, e.errno)
        return Answer(True, "the kernel takes new keys on a running connection")


def _counters() -> Answer:
    try:
        freebsd.statistics()
    except Unavailable as e:
        return refusal(e, code=Cause.NOT_BUILT)
    return Answer(True, "the sysctls of kern.ipc.tls can be read")


#: What Linux alone has: what is so here, and what a program does instead.
_FOREIGN = {
    "splice_to_pipe": ("FreeBSD has no splice(2)", "recv and write"),
    "splice_from_pipe": ("FreeBSD has no splice(2)", "read and send; sendfile for a file"),
    "sock_diag": (
        "FreeBSD has no sock_diag: TCP_TXTLS_MODE and TCP_RXTLS_MODE tell, of one's own",
        "pyktls.status in the process that has the socket",
    ),
    **{
        name: (f"{name} is an option of Linux", instead)
        for name, instead in zip(
            OPTIONS,
            (
                "leave it away: sendfile makes no copy that it could save",
                "leave it away: it changes nothing in what is received",
                "send at most so much at a time: every send makes records of its own",
            ),
            strict=True,
        )
    },
}


# ---- all of it -------------------------------------------------------------------------------


def _foreign() -> dict[str, Answer]:
    return {
        name: Answer(False, text, instead, Cause.NOT_IN_SYSTEM)
        for name, (text, instead) in _FOREIGN.items()
    }


def examine() -> KernelSupport:
    """Try everything, now."""
    began = time.monotonic()
    ciphers = {
        (version, aead.name, direction): answer
        for version in VERSIONS
        for aead in AEADS
        for direction, answer in _try_cipher(version, aead).items()
    }
    tls, ciphers, rekey, others = _try_on_connection(ciphers)
    return KernelSupport(
        system="FreeBSD",
        release=os.uname().release,
        tls=tls,
        ciphers=ciphers,
        rekey=rekey,
        options={name: others[name] for name in OPTIONS},
        features={name: others[name] for name in FEATURES},
        module=_module(tls),
        privileges=_privileges(),
        settings=freebsd.gates(),
        seconds=time.monotonic() - began,
    )


def _module(tls: Answer) -> KernelModule:
    """Since 14.0 it is in the kernel; 13 has the software half in ktls_ocf."""
    if tls.code is Cause.NOT_BUILT:
        return KernelModule("not-built", Answer(False, tls.reason, tls.remedy, Cause.NOT_BUILT))
    if tls or tls.code is Cause.GATE_CLOSED:
        return KernelModule("built-in", Answer(True, "there is nothing to load: it is built in"))
    text = "FreeBSD loads nothing by itself for kernel TLS"
    return KernelModule("unknown", Answer(False, text, "`kldload ktls_ocf` (13)", Cause.NOT_TRIED))


def _try_on_connection(
    ciphers: Ciphers,
) -> tuple[Answer, Ciphers, dict[Direction, Answer], dict[str, Answer]]:
    def no(answer: Answer) -> tuple[Answer, Ciphers, dict[Direction, Answer], dict[str, Answer]]:
        everything = {**dict.fromkeys((*OPTIONS, *FEATURES), answer), **_foreign()}
        denied = {key: answer if old else old for key, old in ciphers.items()}
        return answer, denied, dict.fromkeys(Direction, answer), everything

    if not any(ciphers.values()):
        first = ciphers[TLS_1_2, "AES_128_GCM", Direction.TX]
        return no(first)
    sending = [
        (ciphers[version, aead.name, Direction.RX].yes, version, aead)
        for version in (TLS_1_3, TLS_1_2)
        for aead in AEADS
        if ciphers[version, aead.name, Direction.TX]
    ]
    if not sending:
        refused = ciphers[TLS_1_2, "AES_128_GCM", Direction.TX]
        _, _, rekey, others = no(refused)
        return Answer(True, "the kernel takes keys for receiving"), ciphers, rekey, others
    # One that it receives too, if there is one.
    receives, version, aead = next((one for one in sending if one[0]), sending[0])
    try:
        with _Connection(version, aead, receives=receives) as connection:
            connection.switch_on()
            others = {
                **_foreign(),
                "sendfile": _ask(connection.sendfile),
                "msg_eor": _ask(connection.msg_eor),
                "key_readback": _ask(connection.readback),
                "counters": _ask(_counters),
            }
            rekey = {d: _ask(lambda d=d: connection.second_keys(d)) for d in Direction}  # type: ignore[misc]
    except Unavailable as e:
        return no(_pretended(str(e)))
    except _ERRORS as e:
        return no(refusal(e, "the kernel takes keys, and nothing gets through a connection"))
    came = "came out encrypted, and decrypted" if receives else "came out encrypted"
    return Answer(True, f"what one end of a connection sent {came}"), ciphers, rekey, others
