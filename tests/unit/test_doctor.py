"""pyktls doctor: each verdict and each remedy, from results made by hand, and what it reads."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import pathlib
import platform
import re
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest

from pyktls import Answer, Cause, Direction, EngineInfo, KernelSupport, doctor, engines
from pyktls.__main__ import main
from pyktls.ciphers import AEADS, TLS_1_2, TLS_1_3
from pyktls.commands.terminal import Paint
from pyktls.doctor import cards, crypto, machine, openssl
from pyktls.doctor.cards import Card
from pyktls.doctor.crypto import Crypto, Driver
from pyktls.doctor.machine import Machine
from pyktls.doctor.openssl import OpenSSL
from pyktls.doctor.remedies import Finding, find
from pyktls.doctor.report import Report
from pyktls.doctor.verdict import Level, judge, missing, offered_by_default
from pyktls.kernel_support import FEATURES, OPTIONS, VERSIONS, KernelModule, Privileges
from pyktls.linux import probing
from pyktls.lowlevel import lib
from support.systems import linux_only

if TYPE_CHECKING:
    import array
    from collections.abc import Callable

TX, RX = Direction.TX, Direction.RX
YES = Answer(True, "it works")
KEYS = [(v, aead.name, d) for v in VERSIONS for aead in AEADS for d in Direction]
RELEASE = "6.12.9-test"
OFFERED = tuple(
    (version, name)
    for version in (TLS_1_3, TLS_1_2)
    for name in ("AES_256_GCM", "CHACHA20_POLY1305", "AES_128_GCM")
)
NATIVE = (
    EngineInfo("native", True, None, True, "it is the preferred one"),
    EngineInfo("portable", True, None),
    EngineInfo("membio", True, None),
)
HERE = Privileges(0, (1 << 41) - 1, True, True, "off", False, False)
INSIDE = Privileges(0, 0, False, True, "filter", False, True)
LOADED_AT_BOOT = Machine(RELEASE, modules=True, at_boot="/etc/modules-load.d/tls.conf")
DEBIAN = Machine(RELEASE, ("debian",), "Debian GNU/Linux 13 (trixie)", "13", modules=True)


def no(code: Cause, reason: str = "it does not", remedy: str | None = "another kernel") -> Answer:
    return Answer(False, reason, remedy, code, errno.ENOENT)


def support(answer: Answer = YES, *, state: str = "loaded", **changes: Any) -> KernelSupport:
    """A made-up result, all of it the same answer."""
    values: dict[str, Any] = {
        "system": "Linux",
        "release": RELEASE,
        "tls": answer,
        "ciphers": dict.fromkeys(KEYS, answer),
        "rekey": dict.fromkeys(Direction, answer),
        "options": dict.fromkeys(OPTIONS, answer),
        "features": dict.fromkeys(FEATURES, answer),
        "module": KernelModule(state, YES),
        "privileges": HERE,
        "settings": {"kernel.modules_disabled": 0},
        "seconds": 0.001,
    }
    return KernelSupport(**{**values, **changes})


def lacking(answer: Answer, *which: tuple[int, str, Direction], **changes: Any) -> KernelSupport:
    """One with that answer for those ciphers."""
    return support(ciphers={**dict.fromkeys(KEYS, YES), **dict.fromkeys(which, answer)}, **changes)


def found(
    result: KernelSupport,
    where: Machine = LOADED_AT_BOOT,
    known: tuple[EngineInfo, ...] = NATIVE,
    speed: Crypto | None = None,
) -> tuple[Finding, ...]:
    return find(result, missing(result, OFFERED), known, where, speed)


def only(*arguments: Any, **more: Any) -> Finding:
    (finding,) = found(*arguments, **more)
    return finding


# ---- the verdict -----------------------------------------------------------------------------


def test_all_is_well() -> None:
    assert judge(support(), NATIVE, OFFERED).level is Level.YES
    assert found(support()) == ()


@pytest.mark.parametrize("code", [code for code in Cause if code is not Cause.YES])
def test_no_tls_is_no_and_has_something_to_say(code: Cause) -> None:
    result = support(no(code))
    assert judge(result, NATIVE, OFFERED).level is Level.NO
    finding = only(result)
    assert finding.fault
    assert "it does not" in finding.text
    assert finding.remedy


def test_none_of_the_ciphers_is_no() -> None:
    nothing = no(Cause.CIPHER_MISSING)
    result = lacking(nothing, *((v, name, d) for v, name in OFFERED for d in Direction))
    assert judge(result, NATIVE, OFFERED).level is Level.NO


def test_one_cipher_less_is_partly() -> None:
    answer = no(Cause.CIPHER_MISSING, "no ChaCha20 here", "configure it")
    which = [(v, "CHACHA20_POLY1305", d) for v in VERSIONS for d in Direction]
    result = lacking(answer, *which)
    said = judge(result, NATIVE, OFFERED)
    assert said.level is Level.PARTLY
    assert "does not send with CHACHA20_POLY1305 with TLS 1.3" in said.text
    assert "does not receive with CHACHA20" in said.text
    finding = only(result)  # one reason, one finding
    assert finding.text.startswith("no ChaCha20 here (CHACHA20_POLY1305 TLS 1.3 tx, ")
    assert (finding.fault, finding.remedy) == (True, "configure it")


CHACHA20 = lacking(
    no(Cause.CIPHER_MISSING, "no code", "since 5.11"),
    *((v, "CHACHA20_POLY1305", d) for v in VERSIONS for d in Direction),
)


@pytest.mark.parametrize(
    ("value", "ids", "remedy", "commands"),
    [
        ("n", ("debian",), "it takes a kernel that is built with {option}=m; since 5.11", ()),
        ("y", ("debian",), "since 5.11", ()),
        (
            "m",
            ("ubuntu",),
            "Ubuntu keeps part of a kernel's modules in a package of its own",
            (f"apt install linux-modules-extra-{RELEASE}", "modprobe chacha20poly1305"),
        ),
    ],
)
def test_code_that_is_not_there(
    value: str, ids: tuple[str, ...], remedy: str, commands: tuple[str, ...]
) -> None:
    option = "CONFIG_CRYPTO_CHACHA20POLY1305"
    where = dataclasses.replace(LOADED_AT_BOOT, ids=ids, config={option: value})
    finding = only(CHACHA20, where)
    assert (finding.remedy, finding.commands) == (remedy.format(option=option), commands)


def test_code_that_is_there_and_not_approved() -> None:
    where = dataclasses.replace(LOADED_AT_BOOT, config={"CONFIG_CRYPTO_CHACHA20POLY1305": "m"})
    settings = {"crypto.fips_enabled": 1}
    finding = only(dataclasses.replace(CHACHA20, settings=settings), where)
    assert (finding.remedy, finding.commands) == ("since 5.11", ())


def test_one_direction_is_partly() -> None:
    answer = no(Cause.TOO_OLD, "it does not receive")
    said = judge(lacking(answer, *((v, n, RX) for v, n in OFFERED)), NATIVE, OFFERED)
    assert said.level is Level.PARTLY
    assert "does not receive with any cipher" in said.text
    assert "not send" not in said.text


def test_what_is_not_offered_does_not_matter() -> None:
    result = lacking(no(Cause.CIPHER_MISSING), (TLS_1_3, "SM4_GCM", TX), (TLS_1_2, "SM4_CCM", RX))
    assert judge(result, NATIVE, OFFERED).level is Level.YES
    assert found(result) == ()


def test_no_engine_is_partly() -> None:
    none = (
        EngineInfo("native", False, "hidden"),
        EngineInfo("portable", False, "no memfd"),
        EngineInfo("membio", True, None),
    )
    said = judge(support(), none, OFFERED)
    assert said.level is Level.PARTLY
    assert "cannot be taken out of this Python's OpenSSL" in said.text
    finding = only(support(), known=none)
    assert finding.fault
    assert "native: hidden; portable: no memfd" in finding.text
    assert "MemoryBIOHandshake" in str(finding.remedy)
    neither = (*none[:2], EngineInfo("membio", False, "nothing at all"))
    assert only(support(), known=neither).remedy == "another build of Python"


def test_an_engine_that_is_forced_and_does_not_work_is_partly() -> None:
    forced = (EngineInfo("native", False, "hidden", True, "PYKTLS_ENGINE=native"), *NATIVE[1:])
    assert judge(support(), forced, OFFERED).level is Level.PARTLY
    assert only(support(), known=forced).fault


def test_the_second_best_engine_is_advice() -> None:
    portable = (
        EngineInfo("native", False, "its OpenSSL is hidden"),
        EngineInfo("portable", True, None, True, "the native engine does not work"),
        NATIVE[2],
    )
    assert judge(support(), portable, OFFERED).level is Level.YES
    finding = only(support(), known=portable)
    assert not finding.fault
    assert finding.text.endswith("its OpenSSL is hidden")


def test_a_forced_second_best_is_nobodys_fault() -> None:
    forced = (NATIVE[2].__class__("native", True, None), EngineInfo("portable", True, None, True))
    assert found(support(), known=forced) == ()


def test_what_openssl_offers() -> None:
    offered = offered_by_default()
    assert (TLS_1_3, "AES_256_GCM") in offered
    assert (TLS_1_2, "CHACHA20_POLY1305") in offered
    assert not [name for _, name in offered if "CBC" in name]
    assert len(set(offered)) == len(offered)


# ---- no TLS on Linux -------------------------------------------------------------------------

LOAD = ("modprobe tls", "echo tls >/etc/modules-load.d/tls.conf")


def test_a_module_that_is_not_loaded() -> None:
    finding = only(support(no(Cause.NO_MODULE), state="on-disk"))
    assert finding.commands == LOAD
    assert not finding.on_host


def test_a_module_of_which_nothing_is_known() -> None:
    finding = only(support(no(Cause.NO_MODULE, remedy="load it"), state="unknown"))
    assert (finding.remedy, finding.commands) == ("load it", LOAD)


@pytest.mark.parametrize(
    ("ids", "commands"),
    [
        (("ubuntu", "debian"), (f"apt install linux-modules-extra-{RELEASE}", *LOAD)),
        (("mint", "ubuntu"), (f"apt install linux-modules-extra-{RELEASE}", *LOAD)),
        (
            ("debian",),
            (
                f"apt install --reinstall $(dpkg-query -Wf '${{Package}} ' 'linux-*-{RELEASE}')",
                *LOAD,
            ),
        ),
        (
            ("rocky", "rhel", "centos", "fedora"),
            (
                f"dnf install kernel-modules-{RELEASE}",
                f"dnf install kernel-modules-extra-{RELEASE}",
                *LOAD,
            ),
        ),
        (("amzn", "fedora"), (f"dnf install kernel-modules-extra-{RELEASE}", *LOAD)),
        (("opensuse-leap", "suse"), (LOAD[1], "zypper install kernel-default", "reboot")),
        (("alpine",), (LOAD[1], "apk add linux-lts", "reboot")),
        (("arch",), (LOAD[1], "pacman -S linux", "reboot")),
    ],
    ids=lambda value: value[0] if isinstance(value[0], str) and "/" not in value[0] else "",
)
def test_a_module_in_another_package(ids: tuple[str, ...], commands: tuple[str, ...]) -> None:
    where = Machine(RELEASE, ids, modules=True)
    assert only(support(no(Cause.NO_MODULE), state="missing"), where).commands == commands


def test_a_module_in_another_package_of_a_distribution_that_is_not_known() -> None:
    finding = only(support(no(Cause.NO_MODULE), state="missing"), Machine(RELEASE, ("plan9",)))
    assert RELEASE in str(finding.remedy)
    assert finding.commands == LOAD


def test_a_kernel_whose_modules_were_replaced_since_it_was_booted() -> None:
    where = Machine(RELEASE, ("arch",), modules=False, other_kernels=("6.13.1-arch1",))
    finding = only(support(no(Cause.NO_MODULE), state="unknown"), where)
    assert "6.13.1-arch1" in finding.text
    assert finding.commands == (LOAD[1], "reboot")


def test_no_module_is_loaded_any_more() -> None:
    settings = {"kernel.modules_disabled": 1}
    result = support(no(Cause.NO_MODULE, remedy="at boot"), state="on-disk", settings=settings)
    assert only(result).commands == (LOAD[1], "reboot")


@pytest.mark.parametrize("mark", ["docker", None])
def test_in_a_container_the_host_has_to_do_it(mark: str | None) -> None:
    where = Machine(RELEASE, ("alpine",), container=mark, modules=False)
    finding = only(support(no(Cause.NO_MODULE), state="unknown", privileges=INSIDE), where)
    assert finding.on_host
    assert finding.commands == LOAD
    assert f"container: {mark or 'of an unknown kind'}" in finding.text


def test_a_mark_of_a_container_counts_where_the_namespaces_do_not_tell() -> None:
    where = Machine(RELEASE, container="docker", modules=True)
    assert not only(support(no(Cause.NO_MODULE), state="on-disk"), where).on_host
    unknown = support(no(Cause.NO_MODULE), state="on-disk", privileges=Privileges(0))
    assert only(unknown, where).on_host


def test_gvisor() -> None:
    finding = only(support(no(Cause.PRETENDED, "it says yes and does nothing")))
    assert "gVisor" in finding.text
    assert "docker run --runtime=runc" in str(finding.remedy)


CONFIG = dict.fromkeys(machine.OPTIONS, "n")


def test_a_kernel_that_is_built_without() -> None:
    where = Machine(RELEASE, ("debian",), config={**CONFIG, "CONFIG_INET_DIAG": "m"}, modules=True)
    remedy = str(only(support(no(Cause.NOT_BUILT)), where).remedy)
    assert "CONFIG_TLS=m CONFIG_TLS_DEVICE=y CONFIG_CRYPTO_GCM=m" in remedy
    assert "CONFIG_INET_DIAG" not in remedy
    assert "from Debian 12 on" in remedy
    elsewhere = Machine(RELEASE, ("plan9",), modules=True)
    assert only(support(no(Cause.NOT_BUILT)), elsewhere).remedy == (
        "it takes a kernel that is built with CONFIG_TLS=m"
    )


@pytest.mark.parametrize(
    ("release", "who", "word"),
    [
        ("5.15.1-microsoft-standard-WSL2", HERE, "wsl --update"),
        ("6.6.1-linuxkit", INSIDE, "Docker Desktop"),
        (RELEASE, INSIDE, "on the host of this container"),
        (RELEASE, HERE, "whoever runs the machine brings the kernel"),
    ],
)
def test_a_kernel_that_somebody_else_built(release: str, who: Privileges, word: str) -> None:
    where = Machine(release, ("debian",), config=CONFIG, modules=False)
    finding = only(support(no(Cause.NOT_BUILT), privileges=who), where)
    assert word in str(finding.remedy)


def test_a_filter() -> None:
    answer = no(Cause.BLOCKED, "setsockopt is refused", "have it allowed")
    finding = only(support(answer))
    assert (finding.text, finding.remedy) == ("setsockopt is refused", "have it allowed")
    who = Privileges(1000, 0, False, True, "filter", True, True)
    finding = only(support(answer, privileges=who), Machine(RELEASE, container="podman"))
    assert finding.text == (
        "setsockopt is refused (a seccomp filter is on for this process, no_new_privs is set, "
        "it is in podman)"
    )
    assert "podman run --security-opt seccomp=unconfined" in str(finding.remedy)


def test_other_reasons_are_passed_on() -> None:
    finding = only(support(no(Cause.NO_LOOPBACK, "no loopback", "ip link set lo up")))
    assert (finding.text, finding.remedy) == ("no loopback", "ip link set lo up")


# ---- FreeBSD ---------------------------------------------------------------------------------

GATES = {
    "kern.ipc.tls.enable": 1,
    "kern.ipc.tls.rx_enable": 1,
    "kern.ipc.tls.cbc_enable": 0,
    "kern.ipc.mb_use_ext_pgs": 1,
}


def freebsd(release: str = "14.1", who: Privileges | None = None, **shut: int):
    return {
        "system": "FreeBSD",
        "release": release,
        "settings": {**GATES, **{f"kern.ipc.{name}": value for name, value in shut.items()}},
        "privileges": who or Privileges(0, container=False),
    }


def test_freebsds_gates() -> None:
    answer = no(Cause.GATE_CLOSED)
    result = support(answer, **freebsd(**{"tls.enable": 0}))
    finding = only(result)
    assert "kern.ipc.tls.enable is 0" in finding.text
    assert finding.commands == (
        "sysctl kern.ipc.tls.enable=1",
        "echo kern.ipc.tls.enable=1 >>/etc/sysctl.conf",
    )
    assert not finding.on_host
    jailed = Privileges(0, container=True)
    assert only(support(answer, **freebsd(who=jailed, **{"tls.enable": 0}))).on_host


def test_freebsds_gate_for_receiving() -> None:
    answer = no(Cause.GATE_CLOSED)
    values = freebsd(**{"tls.rx_enable": 0})
    result = lacking(answer, *((v, n, RX) for v, n in OFFERED), **values)
    assert judge(result, NATIVE, OFFERED).level is Level.PARTLY
    assert "sysctl kern.ipc.tls.rx_enable=1" in only(result).commands


def test_freebsd_13_needs_a_module() -> None:
    answer = no(Cause.TOO_OLD)
    finding = only(support(answer, **freebsd("13.2-RELEASE")))
    assert finding.commands == ("kldload ktls_ocf", "sysrc kld_list+=ktls_ocf")
    assert only(support(answer, **freebsd("14.1-RELEASE"))).commands == ()


# ---- advice ----------------------------------------------------------------------------------


def test_a_module_that_is_gone_after_the_next_boot() -> None:
    finding = only(support(), Machine(RELEASE, modules=True))
    assert (finding.fault, finding.commands) == (False, LOAD[1:])
    assert found(support(state="built-in"), Machine(RELEASE)) == ()
    assert found(support(privileges=INSIDE), Machine(RELEASE)) == ()


def test_aes_in_plain_code() -> None:
    driver = Driver("gcm_base(ctr(aes-generic),ghash-generic)", "gcm", 100)
    slow = Crypto(("aes",), {"gcm(aes)": driver}, "aesni_intel")
    finding = only(support(), speed=slow)
    assert (finding.fault, finding.commands) == (False, ("modprobe aesni_intel",))
    assert driver.name in finding.text
    assert found(support(), speed=Crypto(("aes",), {"gcm(aes)": driver})) == ()


def test_connections_that_are_not_told() -> None:
    answer = Answer(False, "only to root", "ask as root", Cause.PRIVILEGE)
    result = support(features={**dict.fromkeys(FEATURES, YES), "sock_diag": answer})
    finding = only(result)
    assert "only to root" in finding.text
    assert (finding.fault, finding.remedy) == (False, "ask as root")


def test_faults_come_before_advice() -> None:
    which = (TLS_1_3, "AES_128_GCM", TX)
    findings = found(lacking(no(Cause.FAILED), which), Machine(RELEASE, modules=True))
    assert [finding.fault for finding in findings] == [True, False]


# ---- what is read ----------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """An empty machine."""
    for name in ("KUBERNETES_SERVICE_HOST", "container"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "n", RELEASE, "v", "m")))
    monkeypatch.setattr(probing, "_read", {}.get)

    def nothing() -> None:
        raise FileNotFoundError

    monkeypatch.setattr(platform, "freedesktop_os_release", nothing)
    return tmp_path


def put(root: pathlib.Path, path: str, text: str = "") -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_a_machine_of_which_nothing_is_known(root: pathlib.Path) -> None:
    assert machine.read_machine(str(root)) == Machine(RELEASE, modules=False)


def test_the_distribution(root: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"ID": "mint", "ID_LIKE": "ubuntu debian", "PRETTY_NAME": "M 1", "VERSION_ID": "1"}
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: values)
    read = machine.read_machine(str(root))
    assert read.ids == ("mint", "ubuntu", "debian")
    assert (read.distribution, read.distribution_version) == ("M 1", "1")


@pytest.mark.parametrize(
    ("path", "text", "name"),
    [
        (".dockerenv", "", "docker"),
        ("run/.containerenv", "", "podman"),
        ("run/systemd/container", "systemd-nspawn\n", "systemd-nspawn"),
        ("proc/1/cgroup", "4:cpu:/kubepods/besteffort/pod1\n", "kubepods"),
        ("proc/1/cgroup", "0::/init.scope\n", None),
    ],
)
def test_marks_of_a_container(root: pathlib.Path, path: str, text: str, name: str | None) -> None:
    put(root, path, text)
    assert machine.read_machine(str(root)).container == name


def test_marks_of_a_container_in_the_environment(
    root: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("container", "lxc")
    assert machine.read_machine(str(root)).container == "lxc"
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert machine.read_machine(str(root)).container == "kubernetes"


def test_the_configuration(root: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"CONFIG_NET=y\nCONFIG_TLS=m\n# CONFIG_TLS_DEVICE is not set\nCONFIG_CRYPTO_GCM=y\n"
    monkeypatch.setattr(probing, "_read", {f"/boot/config-{RELEASE}": text}.get)
    read = machine.read_machine(str(root))
    assert read.config_source == f"/boot/config-{RELEASE}"
    assert read.config == {**CONFIG, "CONFIG_TLS": "m", "CONFIG_CRYPTO_GCM": "y"}
    monkeypatch.setattr(probing, "_read", {f"/boot/config-{RELEASE}": b"rubbish"}.get)
    assert machine.read_machine(str(root)).config == {}


def test_protocols_and_modules(root: pathlib.Path) -> None:
    put(root, "proc/sys/net/ipv4/tcp_available_ulp", "mptcp tls\n")
    put(root, f"lib/modules/{RELEASE}/kernel/net/tls/tls.ko")
    put(root, "lib/modules/5.0/kernel/net/tls/tls.ko.zst")
    put(root, "lib/modules/4.0/kernel/net/ipv4/x.ko")
    read = machine.read_machine(str(root))
    assert read.ulp == ("mptcp", "tls")
    assert read.modules is True
    assert read.other_kernels == ("5.0",)


@pytest.mark.parametrize(
    ("path", "text", "found_there"),
    [
        ("etc/modules-load.d/net.conf", "# for us\nbridge\n tls \n", True),
        ("usr/lib/modules-load.d/tls.conf", "tls\n", True),
        ("etc/modules", "tls\n", True),
        ("etc/modules-load.d/net.conf", "#tls\nxt_tls\n", False),
        ("etc/modules-load.d/tls", "tls\n", False),
    ],
)
def test_modules_at_boot(root: pathlib.Path, path: str, text: str, found_there: bool) -> None:
    put(root, path, text)
    assert machine.read_machine(str(root)).at_boot == (f"/{path}" if found_there else None)


CPUINFO = "processor\t: 0\nflags\t\t: fpu sse2 aes pclmulqdq avx2\n\nprocessor\t: 1\n"
ENTRY = "name         : {}\ndriver       : {}\nmodule       : {}\npriority     : {}\n{}\n"


def entry(name: str, driver: str, priority: int, more: str = "internal     : no\n") -> str:
    return ENTRY.format(name, driver, "m", priority, more)


@pytest.fixture
def files(tmp_path: pathlib.Path) -> Callable[..., Crypto | None]:
    def read(cpuinfo: str, *entries: str, arch: str = "x86_64") -> Crypto | None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
        (tmp_path / "crypto").write_text("\n".join(entries))
        return crypto.read_crypto(str(tmp_path / "cpuinfo"), str(tmp_path / "crypto"), arch)

    return read


PLAIN_AES = entry("gcm(aes)", "gcm_base(ctr(aes-generic),ghash-generic)", 100)
FAST_AES = entry("gcm(aes)", "generic-gcm-aesni", 400)


def test_the_driver_with_the_highest_priority_is_taken(files: Any) -> None:
    read = files(
        CPUINFO,
        PLAIN_AES,
        FAST_AES,
        entry("gcm(aes)", "inner", 999, "internal     : yes\n"),
        entry("ccm(aes)", "ccm_base", 7),
        entry("cbc(aes)", "other", 1),
    )
    assert read.flags == ("aes", "pclmulqdq", "avx2")
    assert read.drivers == {
        "gcm(aes)": Driver("generic-gcm-aesni", "m", 400),
        "ccm(aes)": Driver("ccm_base", "m", 7),
    }
    assert read.slow_aes is None


@pytest.mark.parametrize(
    ("cpuinfo", "arch", "module"),
    [
        (CPUINFO, "x86_64", "aesni_intel"),
        ("Features\t: fp asimd aes pmull\n", "aarch64", "ghash_ce"),
        (CPUINFO, "mips", None),
        ("flags\t: fpu sse2\n", "x86_64", None),  # nothing to be gained
    ],
)
def test_a_processor_that_could_do_better(
    files: Any, cpuinfo: str, arch: str, module: str | None
) -> None:
    assert files(cpuinfo, PLAIN_AES, arch=arch).slow_aes == module


def test_no_proc(tmp_path: pathlib.Path) -> None:
    assert crypto.read_crypto(str(tmp_path / "none"), str(tmp_path / "none")) is None


# ---- network cards ---------------------------------------------------------------------------

NAMES = [f"f{i}" for i in range(40)]
NAMES[3], NAMES[35], NAMES[36] = cards.FEATURES


class Ethtool:
    """Answers as the kernel does, for a card with 40 features in two words."""

    def __init__(self, available: set[int], active: set[int], fixed: set[int]) -> None:
        self.sets = (available, set(), active, fixed)

    def __call__(self, interface: str, request: array.array[int]) -> None:
        (command,) = struct.unpack_from("=I", request)
        answer = {0x03: self.drvinfo, 0x37: self.size, 0x1B: self.names, 0x3A: self.bits}[command]
        assert interface == "eth9"
        answer(request)

    def drvinfo(self, request: array.array[int]) -> None:
        assert len(request) == 196
        struct.pack_into("=I32s", request, 0, 0x03, b"mlx5_core")

    def size(self, request: array.array[int]) -> None:
        assert struct.unpack("=IIQI", request)[2] == 1 << 4
        struct.pack_into("=I", request, 16, len(NAMES))

    def names(self, request: array.array[int]) -> None:
        assert struct.unpack_from("=III", request) == (0x1B, 4, len(NAMES))
        assert len(request) == 12 + 32 * len(NAMES)
        for number, name in enumerate(NAMES):
            struct.pack_into("=32s", request, 12 + 32 * number, name.encode())

    def bits(self, request: array.array[int]) -> None:
        assert struct.unpack_from("=II", request) == (0x3A, 2)
        assert len(request) == 8 + 2 * 16
        for word in range(2):
            values = (sum(1 << b % 32 for b in s if b // 32 == word) for s in self.sets)
            struct.pack_into("=4I", request, 8 + 16 * word, *values)


def test_a_card_that_does_tls() -> None:
    ask = Ethtool(available={3, 35, 36}, active={3}, fixed={36})
    assert cards._card("eth9", ask) == Card(
        "eth9",
        "mlx5_core",
        {"tls-hw-tx-offload": "on", "tls-hw-rx-offload": "off", "tls-hw-record": "fixed"},
    )


def test_a_card_that_does_not_tell() -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "ioctl")

    assert cards._card("eth9", refuse) == Card("eth9", None, None)


@linux_only
def test_the_cards_of_this_machine() -> None:
    listed = cards.read_cards()
    assert [card.name for card in listed] == [name for _, name in socket.if_nameindex()]
    loopback = next(card for card in listed if card.name == "lo")
    # Every Linux names these features since 4.20, and no loopback device has them.
    assert loopback.features == dict.fromkeys(cards.FEATURES, "fixed")


# ---- OpenSSL ---------------------------------------------------------------------------------


def test_openssl_without_a_kernel_to_try_it_with() -> None:
    looked = openssl.look_at_openssl(support(no(Cause.NO_MODULE)))
    assert looked.own is None
    assert looked.not_tried == "there is no kernel TLS to try it with"
    assert looked.version.startswith("OpenSSL ")
    native = engines()[0]
    assert looked.hidden == native.reason


def test_openssl_is_tried_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connections are real; the kernel's answer is made by hand."""
    seen = []

    def status(sock: Any) -> Any:
        seen.append((sock.version(), bool(sock.context.options & openssl.OP_ENABLE_KTLS)))
        modes = (True, sock.version() == "TLSv1.2")
        return type("Status", (), {"tx": modes[0], "rx": modes[1]})

    monkeypatch.setattr(openssl, "status", status)
    looked = openssl.look_at_openssl(support())
    assert looked.not_tried is None
    assert looked.own == {"TLS 1.2": (TX, RX), "TLS 1.3": (TX,)}
    assert seen == [("TLSv1.2", True), ("TLSv1.3", True)]


def test_openssl_that_cannot_be_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise OSError(errno.EACCES, "no place for a certificate")

    monkeypatch.setattr(openssl, "load_selfsigned", refuse)
    looked = openssl.look_at_openssl(support())
    assert looked.own is None
    assert "no place for a certificate" in str(looked.not_tried)


# ---- the report ------------------------------------------------------------------------------

LOOKED = OpenSSL(
    "OpenSSL 3.0.0", "/m.so", ("/l.so",), None, True, {"TLS 1.2": (TX, RX), "TLS 1.3": ()}, None
)
SPEED = Crypto(("aes",), {"gcm(aes)": Driver("generic-gcm-aesni", "aesni_intel", 400)})
CARDS = (
    Card("lo", None, None),
    Card("eth0", "virtio_net", dict.fromkeys(cards.FEATURES, "fixed")),
    Card("eth1", "mlx5_core", {"tls-hw-tx-offload": "on", "tls-hw-rx-offload": "off"}),
)


def made(
    result: KernelSupport,
    where: Machine = LOADED_AT_BOOT,
    known: tuple[EngineInfo, ...] = NATIVE,
    **changes: Any,
) -> Report:
    values: dict[str, Any] = {
        "verdict": judge(result, known, OFFERED),
        "findings": found(result, where, known),
        "support": result,
        "offered": OFFERED,
        "engines": known,
        "openssl": LOOKED,
        "machine": where,
        "crypto": SPEED,
        "cards": CARDS,
    }
    return Report(**{**values, **changes})


WORDY = no(Cause.NO_MODULE, "a long reason " * 20, "a long remedy " * 20)
REPORTS = {
    "yes": made(support()),
    "partly": made(lacking(WORDY, (TLS_1_3, "AES_128_GCM", RX)), DEBIAN),
    "no": made(
        support(WORDY, state="missing"),
        Machine(RELEASE, ("debian",), "Debian", "13", None, ("mptcp",), CONFIG, "/proc/config.gz"),
        openssl=OpenSSL("OpenSSL 3.0.0", None, (), "hidden " * 20, False, None, "no way " * 20),
        crypto=None,
        cards=None,
    ),
    "container": made(support(WORDY, privileges=INSIDE), Machine(RELEASE, container="docker")),
}


def lines_of(shown: Report, out: Any = None) -> list[str]:
    return list(shown.as_text(Paint(out or io.StringIO())))


@pytest.mark.parametrize("name", REPORTS)
def test_it_fits_into_80_columns(name: str) -> None:
    commands = {c for finding in REPORTS[name].findings for c in finding.commands}
    for line in lines_of(REPORTS[name]):
        assert len(line) <= 80 or line.strip() in commands, line
        assert "\x1b" not in line
        assert line == line.rstrip()


def test_the_verdict_comes_first() -> None:
    for name, level in (("yes", "yes: "), ("partly", "partly: "), ("no", "no: ")):
        assert lines_of(REPORTS[name])[0].startswith(level)


def test_what_it_says() -> None:
    text = "\n".join(lines_of(REPORTS["yes"]))
    assert "What is in the way" not in text
    assert "AES_128_GCM         yes     yes     yes     yes" in text
    assert "OpenSSL's own use of it: TLS 1.2 tx and rx, TLS 1.3 not at all" in text
    assert "engine native works (chosen: it is the preferred one)" in text
    assert "AES-GCM: generic-gcm-aesni, module aesni_intel" in text
    assert "ChaCha20-Poly1305: not in use" in text
    assert "lo: does not tell\neth0 (virtio_net): no TLS\n" in text
    assert "eth1 (mlx5_core): encrypts (tls-hw-tx-offload, on), decrypts" in text
    assert "tls module loaded at boot: yes, /etc/modules-load.d/tls.conf" in text
    text = "\n".join(lines_of(REPORTS["no"]))
    assert text.index("What is in the way") < text.index("\nKernel\n")
    assert "tcp_available_ulp: mptcp" in text
    assert "ssl.OP_ENABLE_KTLS: no name in this Python, 8 does the same" in text
    assert "     as root:\n       apt install --reinstall" in text
    text = "\n".join(lines_of(REPORTS["container"]))
    assert "     on the host, as root:\n       modprobe tls\n" in text
    assert "container: docker" in text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert lines_of(REPORTS["yes"], Terminal())[0].startswith("\x1b[32myes\x1b[0m: ")
    assert lines_of(REPORTS["no"], Terminal())[0].startswith("\x1b[31mno\x1b[0m: ")
    plain = re.sub(r"\x1b\[\d+m", "", "\n".join(lines_of(REPORTS["no"], Terminal())))
    assert plain == "\n".join(lines_of(REPORTS["no"]))


#: What a program can rely on: keys, and the types of what they have.
SCHEMA: dict[str, Any] = {
    "pyktls": str,
    "verdict": {"level": str, "text": str},
    "findings": [
        {"fault": bool, "text": str, "remedy": (str, None), "commands": [str], "on_host": bool}
    ],
    "offered_by_default": [{"version": str, "cipher": str}],
    "kernel": dict,
    "machine": {
        "release": str,
        "ids": [str],
        "distribution": (str, None),
        "distribution_version": (str, None),
        "container": (str, None),
        "ulp": (list, None),
        "config": dict,
        "config_source": (str, None),
        "modules": (bool, None),
        "other_kernels": [str],
        "at_boot": (str, None),
    },
    "python": {"version": str, "implementation": str, "executable": str},
    "openssl": {
        "version": str,
        "module": (str, None),
        "libraries": [str],
        "hidden": (str, None),
        "op_enable_ktls": bool,
        "own": (dict, None),
        "not_tried": (str, None),
    },
    "engines": [
        {
            "name": str,
            "usable": bool,
            "reason": (str, None),
            "chosen": bool,
            "why_chosen": (str, None),
        }
    ],
    "crypto": (dict, None),
    "cards": (list, None),
}


def fits(value: Any, shape: Any) -> bool:
    if isinstance(shape, dict):
        return set(value) == set(shape) and all(fits(value[k], shape[k]) for k in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(item, shape[0]) for item in value)
    if isinstance(shape, tuple):
        return any(value is None if s is None else isinstance(value, s) for s in shape)
    return type(value) is shape


@pytest.mark.parametrize("name", REPORTS)
def test_json(name: str) -> None:
    found = json.loads(json.dumps(REPORTS[name].as_dict()))
    assert fits(found, SCHEMA)
    assert found["kernel"] == json.loads(json.dumps(REPORTS[name].support.as_dict()))


def test_the_documentation_names_all_of_it() -> None:
    page = pathlib.Path(__file__).resolve().parents[2] / "docs/command.md"
    part = page.read_text().partition("\n## doctor\n")[2].partition("\n## ")[0]
    finding = SCHEMA["findings"][0]
    for name in ({*SCHEMA} - {"pyktls"}) | {*SCHEMA["verdict"]} | {*finding}:
        assert f"`{name}`" in part, name


def test_json_has_the_directions_by_name() -> None:
    own = REPORTS["yes"].as_dict()["openssl"]["own"]
    assert own == {"TLS 1.2": {"tx": True, "rx": True}, "TLS 1.3": {"tx": False, "rx": False}}


# ---- the command -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "status"), [("yes", 0), ("partly", 1), ("no", 3)])
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_exit_status(
    name: str, status: int, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: REPORTS[name])
    assert main(["doctor", *options]) == status
    out = capsys.readouterr().out
    if options:
        assert json.loads(out) == json.loads(json.dumps(REPORTS[name].as_dict()))
    else:
        assert out.splitlines() == lines_of(REPORTS[name])


def test_here() -> None:
    """On this machine, whatever it has."""
    shown = doctor.examine()
    assert fits(json.loads(json.dumps(shown.as_dict())), SCHEMA)
    assert shown.verdict.level is (
        Level.NO if not shown.support.tls else judge(shown.support, engines(), OFFERED).level
    )
    assert bool(shown.findings) or shown.verdict.level is Level.YES
    on_linux = lib.pyktls_system() == lib.PYKTLS_LINUX
    assert (shown.crypto is not None) is on_linux
    assert (shown.cards is not None) is on_linux


def test_an_engine_that_does_not_exist(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("PYKTLS_ENGINE", "steam")
    assert main(["doctor"]) == 2
    assert "PYKTLS_ENGINE" in capsys.readouterr().err


def test_the_example_in_the_documentation() -> None:
    page = pathlib.Path(__file__).resolve().parents[2] / "docs/command.md"
    example = re.search(r"```text\n(no: .*?)```", page.read_text(), re.DOTALL)
    release = "6.12.57+deb13-amd64"
    path = f"/lib/modules/{release}/kernel/net/tls/tls.ko.xz"
    answer = no(Cause.NO_MODULE, f"the tls module is there ({path}) and not loaded")
    shown = "\n".join(lines_of(made(support(answer, state="on-disk"), DEBIAN)))
    assert example is not None
    assert shown.startswith(example[1])
    statuses = re.findall(r"^\| (\d) \| (.*) \|$", page.read_text(), re.MULTILINE)
    assert {int(n): text for n, text in statuses} == {
        n: text for n, text in doctor.EXIT_STATUS.items() if n != 2
    }
