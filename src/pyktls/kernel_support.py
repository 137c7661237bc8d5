"""What ``pyktls.probe`` answers: types without any system call in them.

The same shape on every system, so a program asks the same questions everywhere.  An ``Answer`` is
true or false, and a false one says why (for people), what would help (for people), and its
``Cause`` (for programs).
"""

from __future__ import annotations

import dataclasses
import enum
import errno
import textwrap
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .ciphers import AEAD, AEADS, TLS_1_2, TLS_1_3
from .errors import InvalidType, InvalidValue, Unavailable
from .protocol import Direction
from .socket_calls import BLOCKED

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "FEATURES",
    "OPTIONS",
    "VERSIONS",
    "Answer",
    "Cause",
    "KernelModule",
    "KernelSupport",
    "Privileges",
    "refusal",
]

#: The protocol versions that are asked for, with their names.
VERSIONS = {TLS_1_2: "TLS 1.2", TLS_1_3: "TLS 1.3"}
#: Linux's socket options besides the keys: the keys of ``KernelSupport.options``.
OPTIONS = ("TLS_TX_ZEROCOPY_RO", "TLS_RX_EXPECT_NO_PAD", "TLS_TX_MAX_PAYLOAD_LEN")
#: The keys of ``KernelSupport.features``, with what each means.
FEATURES = {
    "sendfile": "a file is sent without a copy through the process",
    "splice_to_pipe": "what is received can be moved into a pipe",
    "splice_from_pipe": "what is in a pipe can be sent",
    "msg_eor": "MSG_EOR on send ends a record",
    "sock_diag": "the kernel tells this process, of any connection, software from network card",
    "counters": "the kernel's TLS counters can be read",
    "key_readback": "the kernel gives installed keys back to whoever holds the descriptor",
}
_WIDTH = 80


class Cause(enum.StrEnum):
    """Why the answer is what it is, for programs."""

    YES = "yes"
    #: The tls module is not loaded, and was not loaded for this process.
    NO_MODULE = "no-module"
    #: The kernel is built without it; it has to be another one.
    NOT_BUILT = "not-built"
    #: There is no loopback interface to try things on.
    NO_LOOPBACK = "no-loopback"
    #: No free descriptors, no memory: it may be otherwise in a moment.
    NO_RESOURCES = "no-resources"
    #: A seccomp filter or a security module forbids the system call.
    BLOCKED = "blocked"
    #: The process lacks a privilege.
    PRIVILEGE = "privilege"
    #: The kernel says yes and does nothing (gVisor).
    PRETENDED = "pretended"
    #: The kernel knows the cipher, and has no code for it.
    CIPHER_MISSING = "cipher-missing"
    #: The cipher does not go with this version of the protocol here.
    VERSION_UNSUPPORTED = "version-unsupported"
    #: The kernel does not know of it: a newer one does.
    TOO_OLD = "too-old"
    #: It is there, and loses or corrupts data: a trial has just shown it.
    DEFECTIVE = "defective"
    #: A setting of the administrator (sysctl) forbids it.
    GATE_CLOSED = "gate-closed"
    #: No kernel of this system has it.
    NOT_IN_SYSTEM = "not-in-system"
    #: It stands on something that is not there, or nobody knows how to try it.
    NOT_TRIED = "not-tried"
    #: The trial ended in an error of another kind.
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Answer:
    """Yes, or no with the reason.  In a condition it is ``yes``.

    "No" means that it is not to be relied on: what could not be tried is a no too, and ``code``
    tells.  ``remedy`` is what would help, None where nothing is known; ``errno`` the number with
    which the kernel refused, where it did.
    """

    yes: bool
    reason: str
    remedy: str | None = None
    code: Cause = Cause.YES
    errno: int | None = None

    def __bool__(self) -> bool:
        return self.yes

    def __str__(self) -> str:
        return f"{'yes' if self.yes else 'no'}: {self.reason}"


@dataclass(frozen=True, slots=True)
class KernelModule:
    """The kernel's TLS module.

    ``state`` is ``"loaded"``, ``"built-in"``, ``"on-disk"`` (there, and not loaded), ``"missing"``
    (the kernel is one that has it as a module, and the file is not there), ``"not-built"`` or
    ``"unknown"``.  ``config`` is what CONFIG_TLS is, ``"y"``, ``"m"`` or ``"n"``, and
    ``config_source`` who says so; ``path`` is the module's file.  All three are looked for only
    where TLS is not there, and are None where nothing tells.  In a container the files are the
    container's own, so there ``path`` is None.

    ``autoload`` answers whether the kernel would load it for this very process, which it does when
    ``TCP_ULP`` is asked for.
    """

    state: str
    autoload: Answer
    config: str | None = None
    config_source: str | None = None
    path: str | None = None


@dataclass(frozen=True, slots=True)
class Privileges:
    """Who asks.  None where the system has no such thing, or does not tell (``/proc`` is hidden).

    ``capabilities`` is the effective set as a number, ``net_admin`` whether CAP_NET_ADMIN is in it;
    ``initial_user_namespace`` whether capabilities count outside of a container; ``seccomp`` is
    ``"off"``, ``"strict"`` or ``"filter"``.  ``container``: in a PID or user namespace of its own
    (Linux), in a jail (FreeBSD).
    """

    euid: int
    capabilities: int | None = None
    net_admin: bool | None = None
    initial_user_namespace: bool | None = None
    seccomp: str | None = None
    no_new_privs: bool | None = None
    container: bool | None = None


_POLICY = (
    "a seccomp profile or a security policy forbids it to this process: have it allow the call"
)
_LIMITS = "raise the limit of open files (`ulimit -n`), or free some memory"
_UNKNOWN = "nothing known refuses so: try again, and see what the kernel's log says (dmesg)"


def refusal(error: Exception, what: str = "", code: Cause = Cause.FAILED) -> Answer:
    """The answer for a call that failed; ``code`` where its errno says nothing more."""
    call = error if isinstance(error, OSError) else error.__cause__
    number = call.errno if isinstance(call, OSError) else None
    if isinstance(error, Unavailable):
        reason, remedy = str(error.args[0]), error.remedy
        if remedy is not None:
            reason = reason.removesuffix(f"; {remedy}")
    else:
        reason, remedy = str(error) or type(error).__name__, None
    if number in BLOCKED:
        code, remedy = Cause.BLOCKED, _POLICY
    elif number in _EXHAUSTED:
        code, remedy = Cause.NO_RESOURCES, _LIMITS
    elif code is Cause.FAILED and remedy is None:
        remedy = _UNKNOWN
    return Answer(False, f"{what} ({reason})" if what else reason, remedy, code, number)


_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


def _read_only(mapping: Mapping[Any, Any]) -> Mapping[Any, Any]:
    return MappingProxyType(dict(mapping))


@dataclass(frozen=True, slots=True)
class KernelSupport:
    """What this kernel can do for this process.  ``print()`` shows it as a table.

    ``tls`` answers whether there is kernel TLS at all.  ``ciphers`` has an answer for each
    ``(version, name of the cipher, direction)``: TLS 1.2 and 1.3, every cipher that any supported
    system has, both directions.  ``rekey`` is, by direction, whether keys can be changed on a
    running connection.  ``options`` and ``features`` are by the names in ``OPTIONS`` and
    ``FEATURES``.  Where there is no TLS, what stands on it has the same answer as ``tls``.

    ``settings`` are the administrator's switches that matter, by their sysctl names, None where the
    kernel has none or does not tell.  ``seconds`` is how long all this took.
    """

    system: str
    release: str
    tls: Answer
    ciphers: Mapping[tuple[int, str, Direction], Answer]
    rekey: Mapping[Direction, Answer]
    options: Mapping[str, Answer]
    features: Mapping[str, Answer]
    module: KernelModule
    privileges: Privileges
    settings: Mapping[str, int | None]
    seconds: float = field(compare=False)

    def __post_init__(self) -> None:
        for name in _MAPPINGS:
            object.__setattr__(self, name, _read_only(getattr(self, name)))

    def __reduce__(self) -> tuple[Any, ...]:
        # A read-only mapping cannot be pickled.
        values = (getattr(self, f.name) for f in dataclasses.fields(self))
        return type(self), tuple(dict(v) if isinstance(v, MappingProxyType) else v for v in values)

    def __bool__(self) -> bool:
        return self.tls.yes

    # ---- questions

    def answer(self, version: int, cipher: str | AEAD, direction: Direction | str) -> Answer:
        """The answer for one cipher.  Raises InvalidValue for a version or a name not known."""
        if isinstance(cipher, AEAD):
            cipher = cipher.name
        for name, value, types in (("version", version, int), ("cipher", cipher, str)):
            if not isinstance(value, types) or isinstance(value, bool):
                raise InvalidType(f"{name} must be {types.__name__}, not {type(value).__name__}")
        try:
            return self.ciphers[int(version), cipher, Direction(direction)]
        except KeyError:
            pass
        except ValueError:
            raise InvalidValue(f"direction must be tx or rx, not {direction!r}") from None
        if version not in VERSIONS:
            raise InvalidValue(
                f"version must be 0x0303 (TLS 1.2) or 0x0304 (TLS 1.3), not {version!r}"
            )
        raise InvalidValue(
            f"cipher must be one of {', '.join(aead.name for aead in AEADS)}, not {cipher!r}"
        )

    def supports(
        self, version: int, cipher: str | AEAD, direction: Direction | str | None = None
    ) -> bool:
        """Whether the kernel takes this cipher: in ``direction``, or in both if none is named.

        ``version`` is 0x0303 or 0x0304 (``ssl.TLSVersion`` members are these), ``cipher`` an AEAD's
        name such as ``"AES_128_GCM"``, or an ``AEAD``.
        """
        wanted = tuple(Direction) if direction is None else (direction,)
        return all(self.answer(version, cipher, d) for d in wanted)

    def as_dict(self) -> dict[str, Any]:
        """All of it in dicts, lists, strings, numbers, booleans and None: for JSON."""
        ciphers: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in VERSIONS.values()}
        for (version, cipher, direction), answer in self.ciphers.items():
            ciphers[VERSIONS[version]].setdefault(cipher, {})[direction.value] = _plain(answer)
        return {
            "system": self.system,
            "release": self.release,
            "tls": _plain(self.tls),
            "ciphers": ciphers,
            "rekey": {d.value: _plain(answer) for d, answer in self.rekey.items()},
            "options": {name: _plain(answer) for name, answer in self.options.items()},
            "features": {name: _plain(answer) for name, answer in self.features.items()},
            "module": _plain(self.module),
            "privileges": _plain(self.privileges),
            "settings": dict(self.settings),
            "seconds": self.seconds,
        }

    # ---- for people

    def __str__(self) -> str:
        return "\n".join(line for part in self._parts() for line in part)

    def _parts(self) -> list[list[str]]:
        notes = _Notes()
        mark = notes.mark
        head = f"{self.system} {self.release}"
        if not self.tls:
            notes.mark(self.tls)
            return [
                [f"{head}: no kernel TLS"],
                notes.lines(),
                ["", *self._situation()],
            ]
        table = ["", f"{'':20}{'TLS 1.2':16}TLS 1.3", f"{'':20}{'tx':8}{'rx':8}{'tx':8}rx"]
        absent: list[str] = []
        for aead in AEADS:
            answers = [self.ciphers[v, aead.name, d] for v in VERSIONS for d in Direction]
            if all(answer.code is Cause.NOT_IN_SYSTEM for answer in answers):
                absent.append(aead.name)
                continue
            cells = "".join(f"{mark(answer):8}" for answer in answers)
            table.append(f"{aead.name:20}{cells}".rstrip())
        if absent:
            table += _fold(f"{self.system} has no {', '.join(absent)}.")
        rows = [
            *((f"change of keys, {d.value}", answer) for d, answer in self.rekey.items()),
            *self.features.items(),
            *self.options.items(),
        ]
        marks = [f"{name:26}{mark(answer)}".rstrip() for name, answer in rows]
        return [
            [f"{head}: kernel TLS, found in {self.seconds * 1000:.1f} ms"],
            table,
            ["", *marks],
            notes.lines(),
            ["", *self._situation()],
        ]

    def _situation(self) -> list[str]:
        module, who = self.module, self.privileges
        text = f"tls module: {module.state}"
        if module.config is not None:
            text += f" (CONFIG_TLS={module.config}, says {module.config_source})"
        autoload = "yes" if module.autoload else f"no, {module.autoload.reason}"
        tells = {True: "yes", False: "no", None: "unknown"}
        asked = [f"uid {who.euid}"]
        if who.net_admin is not None:
            asked.append(f"CAP_NET_ADMIN {tells[who.net_admin]}")
            asked.append(f"initial user namespace {tells[who.initial_user_namespace]}")
        asked.append(f"container {tells[who.container]}")
        if who.seccomp is not None:
            asked.append(f"seccomp {who.seccomp}")
        lines = [*_fold(text), *_fold(f"would be loaded for this process: {autoload}")]
        lines += _fold(f"asked by: {', '.join(asked)}")
        told = {name: value for name, value in self.settings.items() if value is not None}
        if told:
            lines += _fold("settings: " + ", ".join(f"{n}={v}" for n, v in told.items()))
        return lines


_MAPPINGS = ("ciphers", "rekey", "options", "features", "settings")


def _plain(value: Any) -> dict[str, Any]:
    """A flat dataclass as a dict without enum members."""
    out: dict[str, Any] = {}
    for f in dataclasses.fields(value):
        item = getattr(value, f.name)
        if isinstance(item, enum.Enum):
            item = item.value
        elif dataclasses.is_dataclass(item):
            item = _plain(item)
        out[f.name] = item
    return out


def _fold(text: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent=indent, break_on_hyphens=False)


class _Notes:
    """Footnotes: the same reason has one number, however often it is the answer."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str | None], int] = {}

    def mark(self, answer: Answer) -> str:
        if answer:
            return "yes"
        number = self._numbers.setdefault((answer.reason, answer.remedy), len(self._numbers) + 1)
        return f"no [{number}]"

    def lines(self) -> list[str]:
        out: list[str] = [""] if self._numbers else []
        for (reason, remedy), number in self._numbers.items():
            label = f"[{number}] "
            indent = " " * len(label)
            out += _fold(f"{label}{reason}", indent)
            if remedy is not None:
                out += _fold(f"{indent}-> {remedy}", indent + "   ")
        return out
