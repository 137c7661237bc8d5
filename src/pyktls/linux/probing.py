"""What this Linux can do for this process: the answers of ``pyktls.probe``.

Everything about TLS is tried on loopback connections of our own, and what can be checked is
checked: keys are asked back, and what leaves the socket is looked at.  Files are read only for what
cannot be tried: why there is no TLS, and who asks.  A file that is not there, or not readable,
means "unknown".

Nothing here raises for what the kernel does or refuses, and every descriptor is closed.
"""

from __future__ import annotations

import errno
import os
import pathlib
import re
import socket
import struct
import time
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from pyktls.ciphers import AEAD, AEADS, TLS_1_2, TLS_1_3
from pyktls.errors import Error, Unavailable
from pyktls.kernel_support import (
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
from pyktls.protocol import Direction
from pyktls.socket_calls import loopback_pair
from pyktls.trial_connection import HEADER, SAMPLE, TrialConnection, no_loopback

from . import defects, options
from .abi import TLS_RX, TLS_TX
from .counters import tls_stat
from .crypto_info import NO_REKEY, CryptoInfo, get_crypto_info, set_crypto_info
from .records import recv_record, send_record
from .sock_diag import ulp_info
from .system import cipher_remedy, option_of, try_cipher
from .transfer import sendfile
from .trial import Pretended, Spare, attach, give_keys, zero_keys
from .ulp import NO_TLS_REMEDY, set_ulp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .defects import Defect

__all__ = ["examine", "read_configs", "situation", "still_without"]

Ciphers: TypeAlias = dict[tuple[int, str, Direction], Answer]

#: What a call on a kernel that does as it likes can end in, besides its answer.
_ERRORS = (OSError, Error, ValueError, struct.error)
_CAP_NET_ADMIN = 12
# include/linux/proc_ns.h: the inode numbers of the namespaces that the machine starts with.
_INITIAL = {"user": 0xEFFFFFFD, "pid": 0xEFFFFFFC}
_MODULE_ROOTS = (
    "/lib/modules",
    "/usr/lib/modules",
    "/run/booted-system/kernel-modules/lib/modules",
)
_NO_TLS_1_3 = Answer(
    False,
    "it belongs to TLS 1.3, of which this kernel takes no cipher",
    "a newer kernel",
    Cause.NOT_TRIED,
)


def _read(path: str) -> bytes | None:
    """A file of /proc or the like; None where it cannot be read."""
    try:
        return pathlib.Path(path).read_bytes()
    except OSError:
        return None


def _number(path: str) -> int | None:
    text = _read(path)
    return int(text) if text is not None and text.strip().isdigit() else None


def _namespace(kind: str) -> int | None:
    try:
        return os.stat(f"/proc/self/ns/{kind}").st_ino  # noqa: PTH116  (at each call of probe)
    except OSError:
        return None


# ---- who asks --------------------------------------------------------------------------------


def situation() -> tuple[int | None, ...]:
    """What the answers stand on and a process can change: who it is, and in which namespaces."""
    return os.geteuid(), _namespace("user"), _namespace("net")


def privileges() -> Privileges:
    """Of this thread, as /proc tells."""
    text = _read("/proc/thread-self/status") or _read("/proc/self/status") or b""
    lines = dict(re.findall(rb"^(\w+):[ \t]*(\w+)$", text, re.MULTILINE))

    def field(name: bytes, base: int) -> int | None:
        try:
            return int(lines[name], base)
        except (KeyError, ValueError):
            return None

    effective = field(b"CapEff", 16)
    no_new_privs = field(b"NoNewPrivs", 10)
    initial = {kind: _namespace(kind) for kind in _INITIAL}
    outside = [inode != _INITIAL[kind] for kind, inode in initial.items() if inode is not None]
    return Privileges(
        euid=os.geteuid(),
        capabilities=effective,
        net_admin=None if effective is None else bool(effective >> _CAP_NET_ADMIN & 1),
        initial_user_namespace=(
            None if initial["user"] is None else initial["user"] == _INITIAL["user"]
        ),
        seccomp={0: "off", 1: "strict", 2: "filter"}.get(field(b"Seccomp", 10) or 0)
        if b"Seccomp" in lines
        else None,
        no_new_privs=None if no_new_privs is None else bool(no_new_privs),
        container=any(outside) if outside else None,
    )


# ---- the module ------------------------------------------------------------------------------


def read_configs(release: str) -> Iterator[tuple[str, bytes]]:
    """The running kernel's configuration, from each file that has it: its path and its text."""
    for path in ("/proc/config.gz", f"/boot/config-{release}"):
        text = _read(path)
        if text is None:
            continue
        if path.endswith(".gz"):
            try:
                text = zlib.decompress(text, wbits=31)
            except zlib.error:
                continue
        yield path, text


def _config(release: str) -> tuple[str | None, str | None]:
    """What CONFIG_TLS is, and which file says so."""
    for path, text in read_configs(release):
        found = re.search(rb"^(?:CONFIG_TLS=([ym])|# CONFIG_TLS is not set)$", text, re.MULTILINE)
        # A configuration that does not even name it has it off with what it depends on.
        value = found[1].decode() if found and found[1] else "n"
        if b"CONFIG_NET=" in text or found:
            return value, path
    return None, None


def _file(release: str) -> str | None:
    for root in _MODULE_ROOTS:
        for ending in ("", ".xz", ".zst", ".gz"):
            path = pathlib.Path(f"{root}/{release}/kernel/net/tls/tls.ko{ending}")
            try:
                path.stat()
            except OSError:
                continue
            return str(path)
    return None


def _is_loaded() -> bool | None:
    listed = _read("/proc/modules")
    return None if listed is None else re.search(rb"^tls ", listed, re.MULTILINE) is not None


def _module(has_tls: bool, release: str, who: Privileges) -> KernelModule:
    if has_tls:
        # What works and is no module is built in.
        state = {True: "loaded", False: "built-in", None: "unknown"}[_is_loaded()]
        return KernelModule(state, _autoload(state, who))
    config, source = _config(release)
    path = None if who.container else _file(release)
    if config == "n":
        state = "not-built"
    elif _is_loaded():
        state = "loaded"
    elif path is not None:
        state = "on-disk"
    elif config == "m" and not who.container:
        state = "missing"
    else:
        state = "unknown"
    return KernelModule(state, _autoload(state, who), config, source, path)


def _autoload(state: str, who: Privileges) -> Answer:
    """Whether TCP_ULP would load the module for this process (net/ipv4/tcp_ulp.c)."""
    if state == "built-in":
        return Answer(True, "there is nothing to load: it is built in")
    if state == "not-built":
        return Answer(
            False, "this kernel is built without CONFIG_TLS", _OTHER_KERNEL, Cause.NOT_BUILT
        )
    if _number("/proc/sys/kernel/modules_disabled"):
        return Answer(False, "kernel.modules_disabled is 1", _AT_BOOT, Cause.GATE_CLOSED)
    if _read("/proc/sys/kernel/modprobe") in (b"", b"\n"):
        return Answer(
            False,
            "kernel.modprobe is empty: the kernel loads no modules by itself",
            NO_TLS_REMEDY,
            Cause.GATE_CLOSED,
        )
    if who.net_admin is False or who.initial_user_namespace is False:
        return Answer(
            False,
            "it takes CAP_NET_ADMIN in the initial user namespace",
            _ON_HOST if who.container else NO_TLS_REMEDY,
            Cause.PRIVILEGE,
        )
    if who.net_admin is None or who.initial_user_namespace is None:
        return Answer(
            False, "/proc does not tell which privileges this process has", _PROC, Cause.NOT_TRIED
        )
    if state == "missing":
        return Answer(False, "the module's file is not there", NO_TLS_REMEDY, Cause.NO_MODULE)
    return Answer(True, "it has CAP_NET_ADMIN in the initial user namespace")


_OTHER_KERNEL = "another kernel: this one is built without CONFIG_TLS"
_AT_BOOT = (
    "an administrator adds a line `tls` to /etc/modules-load.d/tls.conf and boots again: "
    "kernel.modules_disabled cannot be taken back"
)
_POLICY = "have the seccomp profile or the security policy of this process allow TCP_ULP"
_PROC = "have /proc mounted where this process runs"
_HONEST = "a kernel that does as it says: gVisor, for one, answers every option with success"
_ON_HOST = (
    "on the host, outside of the container, an administrator loads it with `modprobe tls`, and for "
    "every boot with a line `tls` in /etc/modules-load.d/tls.conf"
)


def _no_module(error: OSError, module: KernelModule, who: Privileges, release: str) -> Answer:
    """The answer where TCP_ULP knows no "tls", as exact as the files allow."""
    code, remedy = Cause.NO_MODULE, NO_TLS_REMEDY
    reason = "this kernel offers no TLS: the tls module is not there or not loaded"
    if module.state == "not-built":
        code, remedy = Cause.NOT_BUILT, _OTHER_KERNEL
        reason = f"this kernel is built without TLS: {module.config_source} has no CONFIG_TLS"
    elif module.state == "loaded":
        code, remedy = Cause.BLOCKED, _POLICY
        reason = "the tls module is loaded, and TCP_ULP is answered as if it were not"
    elif module.autoload.code is Cause.GATE_CLOSED and module.autoload.remedy == _AT_BOOT:
        remedy = _AT_BOOT
        reason = "the tls module is not loaded, and kernel.modules_disabled is 1"
    elif who.container:
        remedy = _ON_HOST
        reason = "the tls module is not loaded on this container's host, or not there"
    elif module.state == "on-disk":
        reason = f"the tls module is there ({module.path}) and not loaded"
        remedy = (
            "an administrator loads it with `modprobe tls`, and for every boot with a line `tls` "
            "in /etc/modules-load.d/tls.conf"
        )
    elif module.state == "missing":
        reason = f"the tls module of this kernel (CONFIG_TLS=m) is not in /lib/modules/{release}"
        remedy = (
            "install the distribution's package with the rest of this kernel's modules "
            f"(linux-modules-extra-{release} or kernel-modules-extra, say), then `modprobe tls`"
        )
    return Answer(False, reason, remedy, code, error.errno)


# ---- is there TLS at all ---------------------------------------------------------------------


def still_without() -> bool:
    """Whether the kernel still knows no "tls".  Needs no connection: without one it says ENOTCONN.

    For a process that may load modules the kernel looks for the module each time.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            set_ulp(sock)
    except OSError as e:
        return e.errno == errno.ENOENT
    return False


def _find_tls(release: str, who: Privileges) -> tuple[Answer, KernelModule]:
    """Whether "tls" can be attached.  The files come after the trial."""

    def without(answer: Answer) -> tuple[Answer, KernelModule]:
        return answer, _module(False, release, who)

    try:
        near, far = loopback_pair()
    except OSError as e:
        return without(no_loopback(e, "ip link set lo up"))
    with near, far:
        try:
            attach(near)
        except Pretended as e:
            return without(_pretended(e))
        except OSError as e:
            if e.errno == errno.ENOENT:
                module = _module(False, release, who)
                return _no_module(e, module, who, release), module
            if e.errno in (errno.ENOPROTOOPT, errno.EOPNOTSUPP):
                since = "this kernel has no upper layer protocols: Linux has them since 4.13"
                return without(Answer(False, since, "a newer kernel", Cause.TOO_OLD, e.errno))
            return without(refusal(e, "the kernel refuses TLS on a connection"))
    return Answer(True, 'the kernel attaches "tls" to a connection'), _module(True, release, who)


def _pretended(error: Exception) -> Answer:
    cause = error.__cause__
    return Answer(
        False,
        f"{error}: it has no kernel TLS",
        _HONEST,
        Cause.PRETENDED,
        cause.errno if isinstance(cause, OSError) else None,
    )


# ---- ciphers ---------------------------------------------------------------------------------


def _try_ciphers() -> tuple[Ciphers, Answer]:
    """An answer for each version, cipher and direction, and whether the keys can be had back."""
    said: dict[tuple[int, AEAD], dict[Direction, Exception | None]] = {}
    kept_back: dict[str, Exception] = {}

    def look(sock: socket.socket, direction: Direction, aead: AEAD) -> None:
        try:
            if any(get_crypto_info(sock, option_of(direction)).key):
                raise ValueError("the kernel gives back another key")
        except _ERRORS as e:
            kept_back[aead.name] = e

    missing: dict[str, dict[Direction, Exception | None]] = {}
    with Spare() as spare:
        # TLS 1.3 first: it refuses what it does not go with before it looks for the cipher.
        for version, aead in ((v, a) for v in (TLS_1_3, TLS_1_2) for a in AEADS if a.linux):
            # What the kernel has no code for is asked once, whatever it is for: each time it starts
            # modprobe(8) several times.  The key's length is no matter there.
            algorithm = re.sub(r"_\d+", "", aead.name)
            if algorithm in missing:
                said[version, aead] = missing[algorithm]
                continue
            try:
                said[version, aead] = {**try_cipher(spare, version, aead, look)}
            except (OSError, Pretended) as e:
                said[version, aead] = dict.fromkeys(Direction, e)
            else:
                if _is_missing(said[version, aead]):
                    missing[algorithm] = said[version, aead]
    answers = {
        (version, aead.name, direction): _cipher_answer(said, version, aead, direction)
        for version, aead in said
        for direction in Direction
    }
    return _with_all(answers), _readback_answer(kept_back)


def _is_missing(said: dict[Direction, Exception | None]) -> bool:
    error = said[Direction.TX]
    return isinstance(error, OSError) and error.errno == errno.ENOENT


def _with_all(answers: Ciphers, otherwise: Answer | None = None) -> Ciphers:
    """All of the table of ciphers: those without an answer get ``otherwise``.

    What no Linux has stays just that.
    """
    whole: Ciphers = {}
    for version in VERSIONS:
        for aead in AEADS:
            none = Answer(
                False,
                f"Linux has no {aead.name}",
                cipher_remedy(aead, OSError()),
                Cause.NOT_IN_SYSTEM,
            )
            for direction in Direction:
                key = (version, aead.name, direction)
                other = none if aead.linux is None or otherwise is None else otherwise
                whole[key] = answers.get(key, other)
    return whole


def _readback_answer(kept_back: dict[str, Exception]) -> Answer:
    if not kept_back:
        return Answer(True, "keys and the number of the next record, with every cipher taken here")
    answer = refusal(next(iter(kept_back.values())), f"not those of {', '.join(kept_back)}")
    if answer.errno == errno.EINVAL:
        since = "Linux gives those of every cipher since 5.16"
        return Answer(False, answer.reason, since, Cause.TOO_OLD, answer.errno)
    return answer


def _cipher_answer(
    said: dict[tuple[int, AEAD], dict[Direction, Exception | None]],
    version: int,
    aead: AEAD,
    direction: Direction,
) -> Answer:
    error = said[version, aead][direction]
    what = f"{aead.name} with {VERSIONS[version]}"
    if error is None:
        return Answer(True, f"the kernel takes {what} and says that it has the keys")
    if isinstance(error, Pretended):
        return _pretended(error)
    number = error.errno if isinstance(error, OSError) else None
    text = f"this kernel does not take {what}"
    remedy = cipher_remedy(aead, OSError())
    if number == errno.ENOENT:
        if _number("/proc/sys/crypto/fips_enabled"):
            remedy += "; in FIPS mode (crypto.fips_enabled) only what is approved"
        return Answer(
            False,
            f"this kernel has no {aead.name}, nor a module with it",
            remedy,
            Cause.CIPHER_MISSING,
            number,
        )
    if number == errno.ENOPROTOOPT:
        only = f"this kernel cannot do TLS for {direction}"
        return Answer(False, only, "a newer kernel", Cause.TOO_OLD, number)
    if number == errno.EINVAL:
        # It looks at the version first, then at the cipher.  A cipher that is unknown is refused
        # with both versions, a version with every cipher.
        other = TLS_1_2 if version == TLS_1_3 else TLS_1_3
        known = said[other, aead][direction]
        if known is None or (isinstance(known, OSError) and known.errno != errno.EINVAL):
            if not any(None in said[v, a].values() for v, a in said if v == version):
                remedy = "a newer kernel"
            elif known is None:
                remedy = f"use it with {VERSIONS[other]}"
            else:
                remedy = f"where the kernel has it, it goes with {VERSIONS[other]}"
            return Answer(False, text, remedy, Cause.VERSION_UNSUPPORTED, number)
        return Answer(False, text, remedy, Cause.TOO_OLD, number)
    return refusal(error, f"this kernel does not take {what}")


# ---- what one connection shows ---------------------------------------------------------------


def _ask(trial: Callable[[], Answer]) -> Answer:
    """The trial's answer; that of its error where it ends in one."""
    try:
        return trial()
    except Unavailable as e:
        return refusal(e, code=Cause.TOO_OLD)
    except _ERRORS as e:
        return refusal(e)


class _Connection(TrialConnection):
    def __init__(self, version: int, aead: AEAD) -> None:
        self.version = version
        self.info = zero_keys(version, aead)
        super().__init__()

    def switch_on(self, *, receives: bool) -> None:
        """Both ends, or the first alone.  Raises Pretended where plain text comes out."""
        attach(self.near)
        give_keys(self.near, TLS_TX, self.info)
        self.near.sendall(SAMPLE)
        # At the other end nothing is in the kernel yet: this is what travels.
        if not self.far.recv(100, socket.MSG_PEEK).startswith(HEADER):
            raise Pretended("the kernel says that it has keys for TLS_TX and sends plain text")
        if receives:
            attach(self.far)
            give_keys(self.far, TLS_RX, self.info)
            self.expect(SAMPLE)

    def receive(self, size: int) -> bytes:
        return recv_record(self.far, size).data

    # ---- one question each

    def sendfile(self) -> Answer:
        file = os.memfd_create("pyktls")
        try:
            os.write(file, SAMPLE)
            sent, error = sendfile(self.near, file)
        finally:
            os.close(file)
        if error is not None:
            raise error
        self.expect(SAMPLE[:sent])
        return Answer(True, "a file went through it")

    def msg_eor(self) -> Answer:
        try:
            send_record(self.near, SAMPLE, flags=socket.MSG_EOR)
        except OSError as e:
            if e.errno != errno.EOPNOTSUPP:
                raise
            text = "this kernel takes no MSG_EOR on a TLS socket"
            since = "Linux takes it since 6.6; without it each send ends a record just the same"
            return Answer(False, text, since, Cause.TOO_OLD, e.errno)
        self.expect(SAMPLE)
        return Answer(True, "the kernel takes MSG_EOR")

    def sock_diag(self, who: Privileges) -> Answer:
        info = ulp_info(self.near)
        if info is not None and info.tx_conf is not None:
            return Answer(True, "the kernel tells how it does TLS on a connection")
        text = "the kernel answers, and leaves out how it does TLS"
        if who.net_admin:
            return Answer(False, text, "Linux tells since 5.4", Cause.TOO_OLD)
        remedy = "before 6.18 it tells only callers with CAP_NET_ADMIN"
        return Answer(False, text, remedy, Cause.PRIVILEGE)

    def zerocopy_ro(self) -> Answer:
        options.set_tx_zerocopy_ro(self.near, True)
        kept = options.get_tx_zerocopy_ro(self.near)
        options.set_tx_zerocopy_ro(self.near, False)
        return _kept(kept)

    def max_payload_len(self) -> Answer:
        options.set_tx_max_payload_len(self.near, 1000)
        kept = options.get_tx_max_payload_len(self.near) == 1000
        options.set_tx_max_payload_len(self.near, 16384)
        return _kept(kept)

    def expect_no_pad(self) -> Answer:
        if self.version != TLS_1_3:
            return _NO_TLS_1_3
        options.get_rx_expect_no_pad(self.far)
        # Only where it works is it harmless to switch it on: so it is not, here.
        return _sound(defects.expect_no_pad())

    def rekey(self) -> dict[Direction, Answer]:
        """The last question: where only one end changes its keys, nothing gets through any more."""
        if self.version != TLS_1_3:
            return dict.fromkeys(Direction, _NO_TLS_1_3)
        info = self.info
        other = bytes([1]) * len(info.key)
        new = CryptoInfo(
            info.version, info.cipher_type, key=other, salt=info.salt, iv=info.iv, rec_seq=0
        )
        answers = {
            Direction.TX: _ask(lambda: _second_keys(self.near, TLS_TX, new)),
            Direction.RX: _ask(lambda: _second_keys(self.far, TLS_RX, new)),
        }
        if all(answers.values()):
            try:
                self.near.sendall(SAMPLE)
                self.expect(SAMPLE)
            except _ERRORS as e:
                answers = dict.fromkeys(Direction, refusal(e, "no data after a change of keys"))
        return answers


def _kept(kept: bool) -> Answer:
    if kept:
        return Answer(True, "the kernel takes it and reads it back")
    return Answer(False, "the kernel takes it and reads back otherwise", _HONEST, Cause.PRETENDED)


def _second_keys(sock: socket.socket, option: int, info: CryptoInfo) -> Answer:
    try:
        set_crypto_info(sock, option, info)
    except OSError as e:
        if e.errno != errno.EBUSY:
            raise
        text = "this kernel takes the keys of a direction once"
        return Answer(False, text, NO_REKEY, Cause.TOO_OLD, e.errno)
    return Answer(True, "the kernel takes new keys on a running connection")


def _sound(defect: Defect | None) -> Answer:
    if defect is None:
        return Answer(True, "a trial of what goes wrong on other kernels went well")
    if defect.error is not None:
        return refusal(defect.error, "it could not be tried out")
    return Answer(False, defect.text, defect.remedy, Cause.DEFECTIVE)


def _spliced(trial: Callable[[], Defect | None]) -> Answer:
    if not hasattr(os, "splice"):
        text = "this Python is built without splice(2)"
        return Answer(False, text, "a Python that has os.splice", Cause.NOT_BUILT)
    return _sound(trial())


def _counters() -> Answer:
    path = "/proc/net/tls_stat"
    try:
        tls_stat()
    except Unavailable:
        if _read("/proc/self/status") is None:
            return Answer(False, f"{path} cannot be read: /proc is not there", _PROC, Cause.BLOCKED)
        since = "Linux has it since 5.5"
        return Answer(False, f"{path} does not exist", since, Cause.TOO_OLD, errno.ENOENT)
    return Answer(True, f"{path} can be read")


# ---- all of it -------------------------------------------------------------------------------


def examine() -> KernelSupport:
    """Try everything, now."""
    began = time.monotonic()
    release = os.uname().release
    who = privileges()
    tls, module = _find_tls(release, who)
    ciphers = _with_all({}, tls)
    rekey = dict.fromkeys(Direction, tls)
    others = dict.fromkeys((*OPTIONS, *FEATURES), tls)
    if tls:
        found, readback = _try_ciphers()
        tls, rekey, others = _try_on_connections(found, who)
        ciphers = found if tls or not any(found.values()) else _with_all({}, tls)
        if tls:
            others["key_readback"] = readback
    return KernelSupport(
        system="Linux",
        release=release,
        tls=tls,
        ciphers=ciphers,
        rekey=rekey,
        options={name: others[name] for name in OPTIONS},
        features={name: others[name] for name in FEATURES},
        module=module,
        privileges=who,
        settings={
            "kernel.modules_disabled": _number("/proc/sys/kernel/modules_disabled"),
            "crypto.fips_enabled": _number("/proc/sys/crypto/fips_enabled"),
        },
        seconds=time.monotonic() - began,
    )


def _try_on_connections(
    ciphers: Ciphers, who: Privileges
) -> tuple[Answer, dict[Direction, Answer], dict[str, Answer]]:
    """Whether there is TLS after all, whether keys can be changed, and all the rest by name."""

    def no(answer: Answer) -> tuple[Answer, dict[Direction, Answer], dict[str, Answer]]:
        everything = dict.fromkeys((*OPTIONS, *FEATURES), answer)
        return answer, dict.fromkeys(Direction, answer), everything

    if not any(ciphers.values()):
        first = ciphers[TLS_1_2, "AES_128_GCM", Direction.TX]
        reason = f'the kernel attaches "tls" and takes no cipher: {first.reason}'
        return no(replace(first, reason=reason))
    for answer in ciphers.values():
        if answer.code is Cause.PRETENDED:
            return no(answer)  # who lies in one point is not believed in the others
    in_order = [(version, aead) for version in (TLS_1_3, TLS_1_2) for aead in AEADS]
    both = [(v, a) for v, a in in_order if all(ciphers[v, a.name, d] for d in Direction)]
    sending = [(v, a) for v, a in in_order if ciphers[v, a.name, Direction.TX]]
    unseen = Answer(
        False, "this kernel takes no cipher in both directions", "a newer kernel", Cause.NOT_TRIED
    )
    if not sending:
        return no(unseen)  # there is no such kernel, and nothing to be seen
    try:
        with _Connection(*(both or sending)[0]) as connection:
            connection.switch_on(receives=bool(both))
            if not both:
                _, rekey, others = no(unseen)
                return Answer(True, "what was sent came out encrypted"), rekey, others
            others = {
                "sendfile": _ask(connection.sendfile),
                "msg_eor": _ask(connection.msg_eor),
                "sock_diag": _ask(lambda: connection.sock_diag(who)),
                "TLS_TX_ZEROCOPY_RO": _ask(connection.zerocopy_ro),
                "TLS_TX_MAX_PAYLOAD_LEN": _ask(connection.max_payload_len),
                "TLS_RX_EXPECT_NO_PAD": _ask(connection.expect_no_pad),
            }
            rekey = connection.rekey()
    except Pretended as e:
        return no(_pretended(e))
    except _ERRORS as e:
        return no(refusal(e, "the kernel takes keys, and nothing gets through a connection"))
    others["splice_to_pipe"] = _ask(lambda: _spliced(defects.splice_to_pipe))
    others["splice_from_pipe"] = _ask(lambda: _spliced(defects.splice_from_pipe))
    others["counters"] = _ask(_counters)
    answer = Answer(True, "what one end of a connection sent came out encrypted, and decrypted")
    return answer, rekey, others
