"""pyktls.probe without a kernel that has TLS: its types, what it remembers, and that it is safe.

What runs the whole probe runs it in a child process, in a situation made for it: under a kernel
that lies, under a seccomp filter, without descriptors, without /proc, without loopback.  The tests
know from support.own_kernel whether this machine's kernel has TLS.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import pickle
import re
import resource
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import zlib
from dataclasses import replace
from typing import Any, Self

import pytest

import pyktls
from pyktls import Answer, Cause, Direction, KernelSupport, linux
from pyktls import probe as probe_function
from pyktls.ciphers import AEADS, TLS_1_2, TLS_1_3
from pyktls.errors import InvalidType, InvalidValue, Unavailable
from pyktls.kernel_support import FEATURES, OPTIONS, VERSIONS, KernelModule, Privileges, refusal
from pyktls.linux import probing
from pyktls.linux.trial import Pretended
from pyktls.socket_calls import loopback_pair
from support.own_kernel import has_kernel_tls
from support.probing import FILTER, LIMIT, Child, in_child, in_fork
from support.systems import linux_only
from support.tls import REAL_FREEBSD

TESTS = pathlib.Path(__file__).resolve().parents[1]
probe_module = sys.modules["pyktls.probe"]
TX, RX = Direction.TX, Direction.RX
YES = Answer(True, "it works")
NO = Answer(False, "it does not", "another kernel", Cause.NO_MODULE, errno.ENOENT)
KEYS = [(v, aead.name, d) for v in VERSIONS for aead in AEADS for d in Direction]

on_linux = linux_only


def support(answer: Answer = YES, **changes: Any) -> KernelSupport:
    """A made-up result, all of it the same answer."""
    values: dict[str, Any] = {
        "system": "Linux",
        "release": "9.9",
        "tls": answer,
        "ciphers": dict.fromkeys(KEYS, answer),
        "rekey": dict.fromkeys(Direction, answer),
        "options": dict.fromkeys(OPTIONS, answer),
        "features": dict.fromkeys(FEATURES, answer),
        "module": KernelModule("loaded", YES),
        "privileges": Privileges(1000, 0, False, True, "off", False, False),
        "settings": {"kernel.modules_disabled": 0, "crypto.fips_enabled": None},
        "seconds": 0.001,
    }
    return KernelSupport(**{**values, **changes})


# ---- the types -------------------------------------------------------------------------------


def test_an_answer_is_true_or_false() -> None:
    assert YES
    assert not NO
    assert str(YES) == "yes: it works"
    assert str(NO) == "no: it does not"
    assert (YES.code, YES.remedy, YES.errno) == (Cause.YES, None, None)
    with pytest.raises(AttributeError):
        YES.yes = False  # type: ignore[misc]


def test_a_result_cannot_be_changed() -> None:
    found = support()
    with pytest.raises(AttributeError):
        found.tls = NO  # type: ignore[misc]
    for mapping in (found.ciphers, found.rekey, found.options, found.features, found.settings):
        with pytest.raises(TypeError):
            mapping["x"] = NO  # type: ignore[index]
        assert not hasattr(mapping, "clear")


def test_a_result_is_a_copy_of_what_it_was_made_from() -> None:
    ciphers = dict.fromkeys(KEYS, YES)
    found = support(ciphers=ciphers)
    ciphers.clear()
    assert len(found.ciphers) == len(KEYS)


def test_a_result_is_true_where_there_is_tls() -> None:
    assert support()
    assert not support(NO)


def test_results_are_compared_without_their_time() -> None:
    assert support() == support(seconds=5.0)
    assert support() != support(tls=NO)


def test_pickle() -> None:
    found = support(rekey={TX: YES, RX: NO})
    copy = pickle.loads(pickle.dumps(found))  # noqa: S301
    assert copy == found
    assert copy.rekey[RX].code is Cause.NO_MODULE
    assert copy.seconds == found.seconds
    with pytest.raises(TypeError):
        copy.rekey[TX] = NO


@pytest.mark.parametrize("direction", [None, TX, RX, "tx", "rx"])
def test_supports(direction: Any) -> None:
    assert support().supports(TLS_1_3, "AES_128_GCM", direction)
    assert not support(NO).supports(TLS_1_3, "AES_128_GCM", direction)


def test_supports_means_both_directions() -> None:
    key = (TLS_1_2, "AES_256_GCM", RX)
    found = support(ciphers={**dict.fromkeys(KEYS, YES), key: NO})
    aead = next(a for a in AEADS if a.name == "AES_256_GCM")
    assert not found.supports(TLS_1_2, aead)
    assert not found.supports(TLS_1_2, aead, "rx")
    assert found.supports(TLS_1_2, aead, TX)
    assert found.supports(TLS_1_3, aead)
    assert found.answer(TLS_1_2, aead, RX) is NO


def test_supports_takes_the_versions_of_the_ssl_module() -> None:
    import ssl  # noqa: PLC0415

    assert support().supports(ssl.TLSVersion.TLSv1_2, "AES_128_GCM")


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((0x0302, "AES_128_GCM"), InvalidValue, "version must be 0x0303"),
        ((TLS_1_3, "AES-128-GCM"), InvalidValue, "cipher must be one of AES_128_GCM, AES_256_GCM"),
        ((TLS_1_3, "AES_128_GCM", "both"), InvalidValue, "direction must be tx or rx, not 'both'"),
        (("TLSv1.3", "AES_128_GCM"), InvalidType, "version must be int, not str"),
        ((True, "AES_128_GCM"), InvalidType, "version must be int, not bool"),
        ((TLS_1_3, 51), InvalidType, "cipher must be str, not int"),
    ],
)
def test_what_supports_refuses(arguments: tuple[Any, ...], error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        support().supports(*arguments)


def plain(value: Any) -> bool:
    if type(value) is dict:
        return all(type(k) is str and plain(v) for k, v in value.items())
    return type(value) in (str, int, float, bool, type(None))


@pytest.mark.parametrize("answer", [YES, NO], ids=["yes", "no"])
def test_as_dict_is_for_json(answer: Answer) -> None:
    found = support(answer).as_dict()
    assert plain(found)
    assert json.loads(json.dumps(found)) == found
    assert list(found["ciphers"]) == ["TLS 1.2", "TLS 1.3"]
    for ciphers in found["ciphers"].values():
        assert list(ciphers) == [aead.name for aead in AEADS]
        assert all(list(directions) == ["tx", "rx"] for directions in ciphers.values())
    assert found["tls"] == {
        "yes": answer.yes,
        "reason": answer.reason,
        "remedy": answer.remedy,
        "code": answer.code.value,
        "errno": answer.errno,
    }
    assert found["module"]["autoload"]["yes"] is True
    assert found["privileges"]["seccomp"] == "off"
    assert found["settings"]["kernel.modules_disabled"] == 0


def test_the_table() -> None:
    some = {**dict.fromkeys(KEYS, YES), (TLS_1_3, "SM4_CCM", TX): NO}
    for key in KEYS:
        if "CBC" in key[1]:
            some[key] = Answer(False, "Linux has none", None, Cause.NOT_IN_SYSTEM)
    long = Answer(False, "a reason that is longer than a line " * 5, "a remedy " * 20, Cause.FAILED)
    found = support(ciphers=some, rekey={TX: YES, RX: long}, options=dict.fromkeys(OPTIONS, NO))
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "Linux 9.9: kernel TLS, found in 1.0 ms"
    assert "AES_128_GCM         yes     yes     yes     yes" in lines
    assert "SM4_CCM             yes     yes     no [1]  yes" in lines
    assert "change of keys, tx        yes" in lines
    assert "change of keys, rx        no [2]" in lines
    assert "TLS_TX_ZEROCOPY_RO        no [1]" in lines  # the same reason, the same number
    assert lines.count("[1] it does not") == 1
    assert lines[lines.index("[1] it does not") + 1] == "    -> another kernel"
    assert any(line.startswith("Linux has no AES_128_CBC_SHA") for line in lines)
    assert "tls module: loaded" in lines


def test_the_table_without_tls() -> None:
    lines = str(
        support(NO, module=KernelModule("missing", NO, "m", "/proc/config.gz"))
    ).splitlines()
    assert lines[0] == "Linux 9.9: no kernel TLS"
    assert "[1] it does not" in lines
    assert not any("AES" in line for line in lines)
    assert "tls module: missing (CONFIG_TLS=m, says /proc/config.gz)" in lines
    assert "would be loaded for this process: no, it does not" in lines


def test_every_cause_is_documented_by_its_own_name() -> None:
    assert {cause.value for cause in Cause} == {
        cause.name.lower().replace("_", "-") for cause in Cause
    }


# ---- errors as answers -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EPERM, Cause.BLOCKED),
        (errno.EACCES, Cause.BLOCKED),
        (errno.ENOSYS, Cause.BLOCKED),
        (errno.EMFILE, Cause.NO_RESOURCES),
        (errno.ENFILE, Cause.NO_RESOURCES),
        (errno.ENOMEM, Cause.NO_RESOURCES),
        (errno.EBADMSG, Cause.TOO_OLD),
    ],
)
def test_refusal(number: int, code: Cause) -> None:
    error = OSError(number, "some call: words")
    answer = refusal(error, "what it means", Cause.TOO_OLD)
    assert (answer.yes, answer.code, answer.errno) == (False, code, number)
    assert answer.reason == f"what it means ([Errno {number}] some call: words)"
    assert (answer.remedy is None) == (code is Cause.TOO_OLD)


def test_an_error_that_nobody_knows_has_a_remedy_too() -> None:
    answer = refusal(OSError(errno.EIO, "some call: words"))
    assert answer.code is Cause.FAILED
    assert "dmesg" in (answer.remedy or "")


def test_refusal_of_what_is_unavailable_keeps_its_remedy_once() -> None:
    error = Unavailable("no such thing", remedy="a remedy")
    error.__cause__ = OSError(errno.ENOPROTOOPT, "x")
    answer = refusal(error)
    assert answer == Answer(False, "no such thing", "a remedy", Cause.FAILED, errno.ENOPROTOOPT)


def said_by(old: dict[int, int | None]) -> dict[Any, Any]:
    """What a kernel says that answers every cipher of a version with an errno, None for yes."""
    return {
        (version, aead): dict.fromkeys(Direction, OSError(number, "call") if number else None)
        for version, number in old.items()
        for aead in AEADS
    }


GCM, ARIA = AEADS[0], next(a for a in AEADS if a.name == "ARIA_128_GCM")


def test_a_kernel_before_tls_1_3() -> None:
    said = said_by({TLS_1_2: None, TLS_1_3: errno.EINVAL})
    answer = probing._cipher_answer(said, TLS_1_3, GCM, TX)
    assert (answer.code, answer.errno) == (Cause.VERSION_UNSUPPORTED, errno.EINVAL)
    assert answer.remedy == "a newer kernel"
    assert probing._cipher_answer(said, TLS_1_2, GCM, TX)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (None, "use it with TLS 1.2"),
        (errno.ENOENT, "where the kernel has it, it goes with TLS 1.2"),
    ],
)
def test_a_cipher_of_one_version_only(number: int | None, remedy: str) -> None:
    said = said_by({TLS_1_2: None, TLS_1_3: None})
    said[TLS_1_3, ARIA] = dict.fromkeys(Direction, OSError(errno.EINVAL, "call"))
    said[TLS_1_2, ARIA] = dict.fromkeys(Direction, OSError(number, "call") if number else None)
    answer = probing._cipher_answer(said, TLS_1_3, ARIA, RX)
    assert (answer.code, answer.remedy) == (Cause.VERSION_UNSUPPORTED, remedy)


def test_a_cipher_that_the_kernel_does_not_know() -> None:
    said = said_by({TLS_1_2: None, TLS_1_3: None})
    for version in VERSIONS:
        said[version, ARIA] = dict.fromkeys(Direction, OSError(errno.EINVAL, "call"))
        answer = probing._cipher_answer(said, version, ARIA, RX)
    assert (answer.code, answer.remedy) == (
        Cause.TOO_OLD,
        "Linux has ARIA_128_GCM since 6.1, if configured",
    )


def test_a_cipher_that_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    said = said_by({TLS_1_2: errno.ENOENT, TLS_1_3: errno.ENOENT})
    monkeypatch.setattr(probing, "_number", lambda _: None)
    answer = probing._cipher_answer(said, TLS_1_3, ARIA, TX)
    assert (answer.code, answer.errno) == (Cause.CIPHER_MISSING, errno.ENOENT)
    assert "FIPS" not in answer.remedy
    monkeypatch.setattr(probing, "_number", lambda _: 1)
    assert "FIPS" in probing._cipher_answer(said, TLS_1_3, ARIA, TX).remedy


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOPROTOOPT, Cause.TOO_OLD), (errno.EPERM, Cause.BLOCKED), (errno.EIO, Cause.FAILED)],
)
def test_other_refusals_of_a_cipher(number: int, code: Cause) -> None:
    said = said_by({TLS_1_2: number, TLS_1_3: number})
    assert probing._cipher_answer(said, TLS_1_2, GCM, RX).code is code


def test_a_cipher_that_is_pretended() -> None:
    said = {(TLS_1_2, GCM): dict.fromkeys(Direction, Pretended("the kernel said yes"))}
    answer = probing._cipher_answer(said, TLS_1_2, GCM, RX)
    assert (answer.code, answer.reason) == (
        Cause.PRETENDED,
        "the kernel said yes: it has no kernel TLS",
    )


DEFECT = linux.defects.Defect("it loses data", "a fix")
UNTRIED = linux.defects.Defect("it could not be tried", None, OSError(errno.EPERM, "splice: no"))


@linux_only
@pytest.mark.parametrize(
    ("defect", "expected"),
    [
        (None, (True, Cause.YES, None)),
        (DEFECT, (False, Cause.DEFECTIVE, "a fix")),
        (UNTRIED, (False, Cause.BLOCKED, refusal(OSError(errno.EPERM, "")).remedy)),
    ],
    ids=["sound", "defect", "untried"],
)
@pytest.mark.parametrize("name", ["expect_no_pad", "splice_to_pipe", "splice_from_pipe"])
def test_defects_are_answers(
    monkeypatch: pytest.MonkeyPatch, name: str, defect: Any, expected: tuple[Any, ...]
) -> None:
    # No kernel of the lab has all of them: here the trials are played.
    class Connection(probing._Connection):
        def switch_on(self, *, receives: bool) -> None:
            assert receives

        def rekey(self) -> dict[Direction, Answer]:
            return {}

    for trial in ("expect_no_pad", "splice_to_pipe", "splice_from_pipe"):
        found = defect if trial == name else None
        monkeypatch.setattr(linux.defects, trial, lambda found=found: found)
    monkeypatch.setattr(linux.options, "get_rx_expect_no_pad", lambda _: False)
    monkeypatch.setattr(probing, "_Connection", Connection)
    ciphers = dict.fromkeys(KEYS, YES)
    tls, _, others = probing._try_on_connections(ciphers, probing.privileges())
    assert tls
    key = "TLS_RX_EXPECT_NO_PAD" if name == "expect_no_pad" else name
    assert (others[key].yes, others[key].code, others[key].remedy) == expected
    for other in {"TLS_RX_EXPECT_NO_PAD", "splice_to_pipe", "splice_from_pipe"} - {key}:
        assert others[other]


class NoSpare:
    """In place of trial.Spare: no connections at all."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def socket(self) -> None:
        pass

    def used(self) -> None:
        pass


def test_what_is_missing_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def give_keys(_: object, option: int, info: linux.CryptoInfo) -> None:
        asked.append((info.version, info.cipher_type))
        aria_with_1_3 = info.version == TLS_1_3 and info.cipher_type in (57, 58)
        del option
        raise OSError(errno.EINVAL if aria_with_1_3 else errno.ENOENT, "call")

    monkeypatch.setattr(linux.system, "give_keys", give_keys)
    monkeypatch.setattr(probing, "Spare", NoSpare)
    answers, _ = probing._try_ciphers()
    # AES-GCM, AES-CCM, ChaCha20-Poly1305, SM4-GCM, SM4-CCM, ARIA-GCM; once each.
    sought = [(v, c) for v, c in asked if v == TLS_1_2 or c < 57]
    assert sought == [(TLS_1_3, c) for c in (51, 53, 54, 55, 56)] + [(TLS_1_2, 57)]
    assert {a.code for k, a in answers.items() if "ARIA" in k[1] and k[0] == TLS_1_2} == {
        Cause.CIPHER_MISSING
    }
    assert {a.code for k, a in answers.items() if "ARIA" in k[1] and k[0] == TLS_1_3} == {
        Cause.VERSION_UNSUPPORTED
    }
    assert answers[TLS_1_2, "AES_256_GCM", RX].code is Cause.CIPHER_MISSING


def test_keys_that_are_not_given_back() -> None:
    assert probing._readback_answer({})
    old = probing._readback_answer({"AES_128_CCM": OSError(errno.EINVAL, "call")})
    assert (old.code, old.errno) == (Cause.TOO_OLD, errno.EINVAL)
    assert old.reason.startswith("not those of AES_128_CCM")
    assert probing._readback_answer({"X": OSError(errno.EPERM, "call")}).code is Cause.BLOCKED
    assert probing._readback_answer({"X": ValueError("another key")}).code is Cause.FAILED


# ---- what is read from files -----------------------------------------------------------------


class Files:
    """In place of files: paths and their content; what is not named is not there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.content: dict[str, bytes] = {}
        self.module: str | None = None
        self.namespaces: dict[str, int] = dict(probing._INITIAL)
        monkeypatch.setattr(probing, "_read", self.content.get)
        monkeypatch.setattr(probing, "_file", lambda _: self.module)
        monkeypatch.setattr(probing, "_namespace", self.namespaces.get)

    def status(self, capabilities: int, seccomp: int = 0, no_new_privs: int = 0) -> None:
        text = f"Name:\tx y\nCapEff:\t{capabilities:016x}\nNoNewPrivs:\t{no_new_privs}\n"
        text += f"Seccomp:\t{seccomp}\nSeccomp_filters:\t3\n"
        self.content["/proc/self/status"] = text.encode()

    def config(self, line: str) -> None:
        text = f"CONFIG_NET=y\n{line}\nCONFIG_TLS_DEVICE=y\n".encode()
        squeeze = zlib.compressobj(wbits=31)
        self.content["/proc/config.gz"] = squeeze.compress(text) + squeeze.flush()

    def no_module(self) -> tuple[Answer, KernelModule]:
        who = probing.privileges()
        module = probing._module(False, "9.9", who)
        error = OSError(errno.ENOENT, "setsockopt(TCP_ULP)")
        return probing._no_module(error, module, who, "9.9"), module


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Files:
    return Files(monkeypatch)


ALL = (1 << 41) - 1


def test_privileges_of_root(files: Files) -> None:
    files.status(ALL)
    assert probing.privileges() == Privileges(os.geteuid(), ALL, True, True, "off", False, False)


def test_privileges_in_a_container(files: Files) -> None:
    files.status(ALL & ~(1 << 12), seccomp=2, no_new_privs=1)
    files.namespaces["pid"] = 4026532205
    assert probing.privileges() == Privileges(
        os.geteuid(), ALL & ~(1 << 12), False, True, "filter", True, True
    )
    files.namespaces["user"] = 4026532200
    assert probing.privileges().initial_user_namespace is False


def test_privileges_where_proc_tells_nothing(files: Files) -> None:
    files.namespaces.clear()
    assert probing.privileges() == Privileges(os.geteuid())
    files.content["/proc/self/status"] = b"\xff\xfe\nCapEff:\tnonsense\nSeccomp:\t9\n"
    assert probing.privileges() == Privileges(os.geteuid())


def test_a_kernel_without_config_tls(files: Files) -> None:
    files.status(ALL)
    files.config("# CONFIG_TLS is not set")
    answer, module = files.no_module()
    assert (module.state, module.config, module.config_source) == (
        "not-built",
        "n",
        "/proc/config.gz",
    )
    assert answer.code is Cause.NOT_BUILT
    assert "another kernel" in answer.remedy
    assert module.autoload.code is Cause.NOT_BUILT


@pytest.mark.parametrize("broken", [b"", b"\x1f\x8b broken"])
def test_a_config_that_cannot_be_read(files: Files, broken: bytes) -> None:
    files.content["/proc/config.gz"] = broken
    files.content["/boot/config-9.9"] = b"CONFIG_TLS=m\n"
    assert probing._config("9.9") == ("m", "/boot/config-9.9")
    files.content["/boot/config-9.9"] = b"nothing of the kind"
    assert probing._config("9.9") == (None, None)


def test_a_module_that_is_on_the_disk(files: Files) -> None:
    files.status(0)
    files.module = "/lib/modules/9.9/kernel/net/tls/tls.ko.xz"
    files.content["/proc/modules"] = b"tls_other 1 0 - Live 0x0\n"
    answer, module = files.no_module()
    assert (module.state, module.path) == ("on-disk", files.module)
    assert answer.code is Cause.NO_MODULE
    assert "`modprobe tls`" in answer.remedy
    assert "modules-load.d" in answer.remedy
    assert module.autoload.code is Cause.PRIVILEGE


def test_a_module_that_is_in_another_package(files: Files) -> None:
    files.status(ALL)
    files.config("CONFIG_TLS=m")
    answer, module = files.no_module()
    assert (module.state, module.config) == ("missing", "m")
    assert "linux-modules-extra-9.9" in answer.remedy
    assert module.autoload.code is Cause.NO_MODULE


def test_in_a_container_the_host_has_to_do_it(files: Files) -> None:
    files.status(0)
    files.config("CONFIG_TLS=m")
    files.module = "/lib/modules/9.9/kernel/net/tls/tls.ko"
    files.namespaces["pid"] = 1
    answer, module = files.no_module()
    assert (module.state, module.path) == ("unknown", None)
    assert answer.remedy.startswith("on the host")
    assert module.autoload.remedy == answer.remedy


def test_a_module_that_is_loaded_and_denied(files: Files) -> None:
    files.status(ALL)
    files.content["/proc/modules"] = b"x 1\ntls 1 0 - Live 0x0\n"
    answer, module = files.no_module()
    assert (module.state, answer.code) == ("loaded", Cause.BLOCKED)
    assert "seccomp" in answer.remedy


def test_nothing_is_known(files: Files) -> None:
    files.namespaces.clear()
    answer, module = files.no_module()
    assert module == KernelModule(
        "unknown",
        Answer(
            False,
            "/proc does not tell which privileges this process has",
            "have /proc mounted where this process runs",
            Cause.NOT_TRIED,
        ),
    )
    assert answer.remedy == linux.ulp.NO_TLS_REMEDY


def test_no_modules_any_more(files: Files) -> None:
    files.status(ALL)
    files.module = "/lib/modules/9.9/kernel/net/tls/tls.ko"
    files.content["/proc/sys/kernel/modules_disabled"] = b"1\n"
    answer, module = files.no_module()
    assert module.autoload.code is Cause.GATE_CLOSED
    assert "boots again" in answer.remedy
    files.content["/proc/sys/kernel/modules_disabled"] = b"0\n"
    files.content["/proc/sys/kernel/modprobe"] = b"\n"
    answer, module = files.no_module()
    assert module.autoload.code is Cause.GATE_CLOSED
    assert "kernel.modprobe is empty" in module.autoload.reason
    files.content["/proc/sys/kernel/modprobe"] = b"/sbin/modprobe\n"
    assert files.no_module()[1].autoload


def test_a_user_namespace_has_no_say(files: Files) -> None:
    files.status(ALL)
    files.namespaces["user"] = 1
    assert files.no_module()[1].autoload.code is Cause.PRIVILEGE


@pytest.mark.parametrize(
    ("listed", "state"),
    [(b"tls 155648 0 - Live 0x0\n", "loaded"), (b"x 1 0\n", "built-in"), (None, "unknown")],
)
def test_where_tls_works(files: Files, listed: bytes | None, state: str) -> None:
    files.status(0)
    if listed is not None:
        files.content["/proc/modules"] = listed
    module = probing._module(True, "9.9", probing.privileges())
    assert (module.state, module.config, module.path) == (state, None, None)
    assert module.autoload.yes is (state == "built-in")


def test_the_modules_file_is_looked_for_in_every_form(tmp_path: pathlib.Path, monkeypatch) -> None:
    monkeypatch.setattr(probing, "_MODULE_ROOTS", (str(tmp_path / "none"), str(tmp_path)))
    assert probing._file("9.9") is None
    directory = tmp_path / "9.9/kernel/net/tls"
    directory.mkdir(parents=True)
    for ending in (".gz", ".zst", ".xz", ""):
        (directory / f"tls.ko{ending}").touch()
        assert probing._file("9.9") == str(directory / f"tls.ko{ending}")


# ---- what is remembered ----------------------------------------------------------------------


class System:
    """In place of a system's module: counts."""

    def __init__(self) -> None:
        self.result = support()
        self.now: tuple[object, ...] = (0,)
        self.without = True
        self.examined = 0
        self.asked = 0
        self.wait = 0.0

    def examine(self) -> KernelSupport:
        self.examined += 1
        time.sleep(self.wait)
        return replace(self.result)

    def situation(self) -> tuple[object, ...]:
        return self.now

    def still_without(self) -> bool:
        self.asked += 1
        return self.without


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> System:
    system = System()
    monkeypatch.setattr(probe_module, "_system", system)
    monkeypatch.setattr(probe_module, "_known", None)
    return system


def test_a_yes_is_asked_once(system: System) -> None:
    first = pyktls.probe()
    assert pyktls.probe() is first
    assert (system.examined, system.asked) == (1, 0)
    fresh = pyktls.probe(refresh=True)
    assert fresh is not first
    assert pyktls.probe() is fresh
    assert system.examined == 2


def test_somebody_else_asks_anew(system: System) -> None:
    pyktls.probe()
    system.now = (1000,)
    pyktls.probe()
    assert system.examined == 2
    pyktls.probe()
    assert system.examined == 2


@pytest.mark.parametrize("code", [Cause.NO_MODULE, Cause.NOT_BUILT])
def test_no_tls_is_asked_again_cheaply(system: System, code: Cause) -> None:
    system.result = support(replace(NO, code=code))
    first = pyktls.probe()
    assert pyktls.probe() is first
    assert (system.examined, system.asked) == (1, 1)
    system.without = False
    system.result = support()
    assert pyktls.probe()
    assert system.examined == 2


@pytest.mark.parametrize(
    "code", [Cause.NO_LOOPBACK, Cause.NO_RESOURCES, Cause.BLOCKED, Cause.GATE_CLOSED, Cause.FAILED]
)
def test_what_may_pass_is_not_remembered(system: System, code: Cause) -> None:
    system.result = support(replace(NO, code=code))
    pyktls.probe()
    pyktls.probe()
    assert (system.examined, system.asked) == (2, 0)


def test_a_lie_is_remembered(system: System) -> None:
    system.result = support(replace(NO, code=Cause.PRETENDED))
    assert pyktls.probe() is pyktls.probe()
    assert (system.examined, system.asked) == (1, 0)


@pytest.mark.parametrize("where", ["features", "options", "ciphers", "rekey"])
def test_an_answer_for_want_of_descriptors_is_not_remembered(system: System, where: str) -> None:
    answers = dict(getattr(support(), where))
    answers[next(iter(answers))] = replace(NO, code=Cause.NO_RESOURCES)
    system.result = support(**{where: answers})
    pyktls.probe()
    system.result = support()
    assert pyktls.probe() == support()
    assert system.examined == 2


def test_threads_ask_once(system: System) -> None:
    system.wait = 0.2
    found: list[KernelSupport] = []
    threads = [threading.Thread(target=lambda: found.append(pyktls.probe())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert system.examined == 1
    assert all(one is found[0] for one in found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_can_ask_while_the_parent_was_asking(system: System) -> None:
    pyktls.probe()
    system.now, system.wait = (1,), 1.0
    thread = threading.Thread(target=pyktls.probe)
    thread.start()
    time.sleep(0.2)  # it is in there, with the lock
    child = os.fork()
    if child == 0:
        system.wait = 0.0
        status = 1
        try:
            if pyktls.probe() == support() and system.examined == 3:
                status = 0
        finally:
            os._exit(status)
    thread.join()
    for _ in range(200):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child waits for a lock that nobody holds")
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_can_try_defects_while_the_parent_was_trying(monkeypatch) -> None:
    monkeypatch.setattr(linux.defects, "_results", {})
    with linux.defects._lock:
        child = os.fork()
        if child == 0:
            os._exit(0 if linux.defects._lock.acquire(timeout=5) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.usefixtures("system")
def test_a_child_knows_what_its_parent_knew() -> None:
    first = pyktls.probe()
    child = os.fork()
    if child == 0:
        os._exit(0 if pyktls.probe() is first else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_importing_asks_nothing() -> None:
    code = "import sys, pyktls; print(sys.modules['pyktls.probe']._known)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


# ---- the pair --------------------------------------------------------------------------------


def test_the_pair_blocks_whatever_the_default_timeout_is() -> None:
    socket.setdefaulttimeout(0.5)
    try:
        near, far = loopback_pair()
    finally:
        socket.setdefaulttimeout(None)
    with near, far:
        for sock in (near, far):
            assert sock.gettimeout() is None
            assert os.get_blocking(sock.fileno())
        near.sendall(b"x")
        assert far.recv(1) == b"x"


def test_a_pair_that_cannot_connect_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A listener whose queue is full does not answer, as if packets were dropped; FreeBSD's resets.
    monkeypatch.setattr(sys.modules["pyktls.socket_calls"], "_PATIENCE", 0.3)
    with socket.socket() as listener, contextlib.ExitStack() as open_sockets:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(4):
            sock = open_sockets.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(address)
        monkeypatch.setattr(socket.socket, "getsockname", lambda _: address)
        begin = time.monotonic()
        with pytest.raises((TimeoutError, ConnectionResetError) if REAL_FREEBSD else TimeoutError):
            loopback_pair()
        assert time.monotonic() - begin < 10


# ---- whole, in a child: this machine's kernel ------------------------------------------------


@pytest.fixture(scope="module")
def here() -> Child:
    return in_child()


@on_linux
def test_the_shape_is_the_same_everywhere(here: Child) -> None:
    made_up = support().as_dict()
    for part in ("ciphers", "rekey", "options", "features"):
        assert list(here.support[part]) == list(made_up[part])
    for version in made_up["ciphers"]:
        assert list(here.support["ciphers"][version]) == list(made_up["ciphers"][version])
    assert set(here.support) == set(made_up)


def answers_in(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, dict):
        return []
    if "remedy" in value:
        return [value]
    return [answer for inner in value.values() for answer in answers_in(inner)]


@on_linux
def test_every_no_has_its_reason_and_every_yes_too(here: Child) -> None:
    answers = answers_in(here.support)
    assert len(answers) == 1 + len(KEYS) + 2 + len(OPTIONS) + len(FEATURES) + 1
    for answer in answers:
        assert answer["reason"]
        assert answer["code"] in {cause.value for cause in Cause}
        assert answer["yes"] is (answer["code"] == "yes")


@on_linux
def test_this_kernel(here: Child) -> None:
    assert here.support["tls"]["yes"] is has_kernel_tls()
    assert here.same
    if not here.tls["yes"]:
        assert here.code in ("no-module", "not-built")
        assert here.tls["errno"] == errno.ENOENT
        assert here.tls["remedy"]
        assert here.cipher() == here.tls
        assert here.support["features"]["sendfile"] == here.tls
        assert here.support["module"]["state"] in ("not-built", "on-disk", "missing", "unknown")
    assert here.cipher(name="AES_128_CBC_SHA")["code"] == "not-in-system"


# ---- kernels that lie ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    program = shutil.which(compiler) or shutil.which("cc") or shutil.which("gcc")
    assert program, "a C compiler is needed"
    library = tmp_path_factory.mktemp("shim") / "fake_kernel.so"
    source = TESTS / "support" / "fake_kernel.c"
    command = [program, "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"]
    subprocess.run([*command, str(library), str(source), "-ldl"], check=True)
    return str(library)


DENIED = "the kernel accepted TCP_ULP and then denied knowing it: it has no kernel TLS"
NOTHING = "the kernel accepted TCP_ULP and attached nothing: it has no kernel TLS"
NO_CIPHER = (
    'the kernel attaches "tls" and takes no cipher: the kernel accepted keys for TLS_TX and '
)
PLAIN = "the kernel says that it has keys for TLS_TX and sends plain text: it has no kernel TLS"


@on_linux
@pytest.mark.parametrize(
    ("lie", "reason", "number"),
    [
        ("gvisor", DENIED, errno.ENOPROTOOPT),
        ("nothing", NOTHING, None),
        ("ulp", f"{NO_CIPHER}then denied having them: it has no kernel TLS", errno.ENOPROTOOPT),
        (
            "cipher",
            f"{NO_CIPHER}reports version 0x0303, cipher 25443 instead: it has no kernel TLS",
            None,
        ),
        (
            "version",
            f"{NO_CIPHER}reports version 0x0202, cipher 51 instead: it has no kernel TLS",
            None,
        ),
        ("short", f"{NO_CIPHER}then denied having them: it has no kernel TLS", errno.EPROTO),
        ("honest", PLAIN, None),
        ("tx_fails", PLAIN, None),
        (
            "tx_lies",
            "the kernel accepted keys for TLS_TX and then denied having them: it has no kernel TLS",
            errno.ENOPROTOOPT,
        ),
    ],
)
def test_a_kernel_that_pretends(shim: str, lie: str, reason: str, number: int | None) -> None:
    child = in_child(env={"LD_PRELOAD": shim, "FAKE_KERNEL": lie})
    assert child.code == "pretended"
    assert child.tls["reason"] == reason
    assert child.tls["errno"] == number
    assert "gVisor" in child.tls["remedy"]
    assert child.same
    for answer in answers_in({**child.support, "module": None}):
        assert not answer["yes"]
        assert answer["code"] in ("pretended", "not-in-system")


# ---- seccomp ---------------------------------------------------------------------------------

REFUSALS = [errno.EPERM, errno.ENOSYS, errno.EACCES]


@on_linux
@pytest.mark.parametrize("number", REFUSALS, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["setsockopt", "socket", "bind", "connect"])
def test_a_filter_on_what_it_takes_to_ask(call: str, number: int) -> None:
    child = in_fork(FILTER.format(call, number, None))
    assert child.code == "blocked"
    assert child.tls["errno"] == number
    assert "seccomp" in child.tls["remedy"]
    assert child.support["privileges"]["seccomp"] == "filter"
    assert child.again["tls"] == child.tls


@on_linux
@pytest.mark.parametrize("number", REFUSALS, ids=errno.errorcode.get)
@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("getsockopt", None),
        ("socket", {0: 16}),  # AF_NETLINK
        ("fcntl", {1: 1031}),  # F_SETPIPE_SZ
        ("splice", None),
        ("sendfile", None),
        ("memfd_create", None),
        ("pipe2", None),
        ("sendmsg", None),
        ("recvmsg", None),
        ("sendto", None),
    ],
)
def test_a_filter_on_what_the_rest_takes(call: str, arguments: Any, number: int) -> None:
    # What is left of the answers on a kernel with TLS is in tests/kernel.
    child = in_fork(FILTER.format(call, number, arguments))
    assert child.support["privileges"]["seccomp"] == "filter"
    if not has_kernel_tls():
        assert child.code in ("no-module", "not-built", "blocked")


# ---- no descriptors --------------------------------------------------------------------------


@on_linux
@pytest.mark.parametrize("free", range(3))
def test_without_descriptors(free: int) -> None:
    child = in_fork(LIMIT.format(free))
    assert child.code == "no-resources"
    assert child.tls["errno"] == errno.EMFILE
    assert "ulimit -n" in child.tls["remedy"]
    assert not child.same


@on_linux
@pytest.mark.parametrize("free", range(3, 12))
def test_with_few_descriptors(free: int) -> None:
    child = in_fork(LIMIT.format(free))
    if not has_kernel_tls():
        assert child.code in ("no-module", "not-built")


# ---- namespaces ------------------------------------------------------------------------------


def needs_unshare(*options: str) -> tuple[str, ...]:
    command = ("unshare", *options)
    done = subprocess.run([*command, "true"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this process may make no namespaces")
    return command


@on_linux
def test_without_proc() -> None:
    mount = 'mount -t tmpfs none /proc && exec "$@"'
    root = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    child = in_child(prefix=(*needs_unshare(*root, "--mount"), "sh", "-c", mount, "sh"))
    who = child.support["privileges"]
    assert who["capabilities"] is who["seccomp"] is who["container"] is None
    assert child.support["module"]["config"] in (None, "y", "m", "n")
    assert child.support["module"]["autoload"]["yes"] is False
    if not has_kernel_tls():
        assert child.code in ("no-module", "not-built")
        assert child.support["settings"]["kernel.modules_disabled"] is None


@on_linux
def test_without_loopback() -> None:
    child = in_child(prefix=needs_unshare("--net", "--user", "--map-root-user"))
    assert child.code == "no-loopback"
    assert child.tls["errno"] in (errno.EADDRNOTAVAIL, errno.ENETUNREACH)
    assert "ip link set lo up" in child.tls["remedy"]
    assert child.support["privileges"]["initial_user_namespace"] is False
    assert child.support["privileges"]["container"] is True
    assert not child.same


@on_linux
def test_in_a_user_namespace() -> None:
    child = in_child(prefix=needs_unshare("--user", "--map-root-user"))
    assert child.tls["yes"] is has_kernel_tls()
    assert child.support["module"]["autoload"]["code"] in ("privilege", "not-built", "yes")
    if child.code == "no-module":
        assert child.tls["remedy"].startswith("on the host")


@linux_only
def test_the_line_in_the_readme() -> None:
    readme = (TESTS.parent / "README.md").read_text()
    (line,) = re.findall(r"^    (python -c .*probe.*)$", readme, re.MULTILINE)
    command = [sys.executable, *shlex.split(line)[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.rstrip() == str(pyktls.probe()) or has_kernel_tls()
    assert ("no kernel TLS" in done.stdout) is not has_kernel_tls()


def test_the_names_are_public() -> None:
    assert pyktls.probe is probe_function
    for name in ("probe", "KernelSupport", "Answer", "Cause"):
        assert name in pyktls.__all__
    assert resource.getrlimit(resource.RLIMIT_NOFILE)  # this process's own limit is as it was
