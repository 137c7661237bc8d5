"""What is in the way, and what to do about it on this very machine.

The probe knows why the kernel refuses; here it is put together with the distribution, the
container and the configuration, into commands that somebody can run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyktls.kernel_support import VERSIONS, Cause

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pyktls.engines.choice import EngineInfo
    from pyktls.kernel_support import Answer, KernelSupport

    from .crypto import Crypto
    from .machine import Machine
    from .verdict import Missing

__all__ = ["Finding", "contained", "find"]

LOAD = "modprobe tls"
AT_BOOT = "echo tls >/etc/modules-load.d/tls.conf"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing, why it is so, and what would help.

    ``fault`` is whether it takes something from the verdict; otherwise it is advice.  ``commands``
    are to be run as root, in that order, on the host if ``on_host``.
    """

    fault: bool
    text: str
    remedy: str | None = None
    commands: tuple[str, ...] = ()
    on_host: bool = False


def contained(support: KernelSupport, machine: Machine) -> bool:
    """Whether the kernel's modules are somebody else's business.

    The namespaces tell.  A container's mark alone says little: an image that was made for
    containers may run as a machine of its own.
    """
    if support.privileges.container is not None:
        return support.privileges.container
    return machine.container is not None


# ---- where the module is, by distribution ----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Package:
    """Where a distribution keeps the modules, and how to get them."""

    text: str
    commands: tuple[str, ...]


_SUSE = Package(
    "the package kernel-default has all modules, kernel-default-base has few of them",
    ("zypper install kernel-default", "reboot"),
)
_RED_HAT = Package(
    "a kernel's modules are in packages of their own",
    ("dnf install kernel-modules-{release}", "dnf install kernel-modules-extra-{release}"),
)
#: By the id of os-release(5).
_PACKAGES = {
    "ubuntu": Package(
        "Ubuntu keeps part of a kernel's modules in a package of its own",
        ("apt install linux-modules-extra-{release}",),
    ),
    # linux-image-…; with newer kernels linux-modules-….
    "debian": Package(
        "Debian has it in the kernel's own packages, of which files are missing here",
        ("apt install --reinstall $(dpkg-query -Wf '${{Package}} ' 'linux-*-{release}')",),
    ),
    "amzn": Package(
        "Amazon Linux keeps part of a kernel's modules in a package of its own",
        ("dnf install kernel-modules-extra-{release}",),
    ),
    "fedora": _RED_HAT,
    "rhel": _RED_HAT,
    "centos": _RED_HAT,
    "suse": _SUSE,
    "opensuse": _SUSE,
    "sles": _SUSE,
    "alpine": Package(
        "the package linux-lts has all modules, linux-virt has few of them",
        ("apk add linux-lts", "reboot"),
    ),
    "arch": Package(
        "the modules come with the kernel's package, and go when another one is installed",
        ("pacman -S linux", "reboot"),
    ),
}


def _package(machine: Machine) -> Package:
    """For the running kernel."""
    for name in machine.ids:
        if (found := _PACKAGES.get(name)) is not None:
            commands = (command.format(release=machine.release) for command in found.commands)
            return Package(found.text, tuple(commands))
    text = (
        f"the distribution's package with the rest of the modules of {machine.release} has it "
        "(linux-modules-extra or kernel-modules-extra, say)"
    )
    return Package(text, ())


#: What a kernel's release says of who made it, where that is not the distribution.
_MAKERS = {
    "microsoft": "this is WSL 2, whose kernel Windows brings: `wsl --update` gets a newer one, and "
    "`kernel=` in .wslconfig names one of your own",
    "linuxkit": "this is the kernel of a virtual machine for containers (Docker Desktop), and "
    "comes with that",
}


# ---- there is no TLS -------------------------------------------------------------------------


def _no_tls(support: KernelSupport, machine: Machine) -> Finding:
    answer = support.tls
    if support.system == "FreeBSD":
        return _freebsd(support, answer)
    if answer.code is Cause.PRETENDED:
        return Finding(
            True,
            f"this is no Linux kernel that does as it says, gVisor probably: {answer.reason}",
            "run it under another runtime: `docker run --runtime=runc`, in Kubernetes a pod "
            "without gVisor's runtimeClassName",
        )
    if answer.code is Cause.NOT_BUILT:
        return _not_built(support, machine)
    if answer.code is Cause.BLOCKED:
        return _blocked(support, answer, machine)
    if answer.code is not Cause.NO_MODULE:
        return Finding(True, answer.reason, answer.remedy)
    if contained(support, machine):
        return Finding(
            True,
            f"{answer.reason} (container: {machine.container or 'of an unknown kind'})",
            answer.remedy,
            (LOAD, AT_BOOT),
            on_host=True,
        )
    if support.settings.get("kernel.modules_disabled"):
        return Finding(True, answer.reason, answer.remedy, (AT_BOOT, "reboot"))
    if support.module.state == "on-disk":
        return Finding(True, answer.reason, "load it, and have it loaded at boot", (LOAD, AT_BOOT))
    if support.module.state == "missing" or machine.modules is False:
        return _missing(answer, machine)
    return Finding(True, answer.reason, answer.remedy, (LOAD, AT_BOOT))


def _missing(answer: Answer, machine: Machine) -> Finding:
    if machine.modules is False and machine.other_kernels:
        others = ", ".join(machine.other_kernels)
        return Finding(
            True,
            f"{answer.reason}; there is no module of the running kernel {machine.release} on the "
            f"disk at all, but of {others}: another kernel was installed since it was booted",
            "boot the kernel that is installed",
            (AT_BOOT, "reboot"),
        )
    package = _package(machine)
    if "reboot" in package.commands:
        return Finding(True, answer.reason, package.text, (AT_BOOT, *package.commands))
    return Finding(True, answer.reason, package.text, (*package.commands, LOAD, AT_BOOT))


def _not_built(support: KernelSupport, machine: Machine) -> Finding:
    answer = support.tls
    values = {"CONFIG_TLS_DEVICE": "y"}  # no module of its own
    lacking = [name for name, value in machine.config.items() if value == "n"] or ["CONFIG_TLS"]
    wanted = " ".join(f"{name}={values.get(name, 'm')}" for name in lacking)
    text = f"it takes a kernel that is built with {wanted}"
    for mark, maker in _MAKERS.items():
        if mark in machine.release.lower():
            return Finding(True, answer.reason, f"{text}; {maker}")
    if contained(support, machine):
        text += ", on the host of this container"
    elif machine.modules is False:
        text += (
            f"; there is no module of {machine.release} on this machine's disk, so whoever runs "
            "the machine brings the kernel"
        )
    elif "debian" in machine.ids[:1]:
        text += "; Debian's own kernels have it from Debian 12 on"
    return Finding(True, answer.reason, text)


def _blocked(support: KernelSupport, answer: Answer, machine: Machine) -> Finding:
    who = support.privileges
    suspects = []
    if who.seccomp == "filter":
        suspects.append("a seccomp filter is on for this process")
    if who.no_new_privs:
        suspects.append("no_new_privs is set")
    if contained(support, machine):
        suspects.append(f"it is in {machine.container or 'a container'}")
    text = answer.reason + (f" ({', '.join(suspects)})" if suspects else "")
    remedy = answer.remedy
    if machine.container in ("docker", "podman"):
        remedy = (
            f"{remedy}; try `{machine.container} run --security-opt seccomp=unconfined` to find "
            "out whether it is the profile, then allow just that call in one of your own"
        )
    return Finding(True, text, remedy)


# ---- FreeBSD ---------------------------------------------------------------------------------


def _freebsd(support: KernelSupport, answer: Answer) -> Finding:
    # The gates that concern AES-GCM and ChaCha20-Poly1305 (ktls(4)).
    shut = [name for name in _GATES if support.settings.get(name) == 0]
    if answer.code is Cause.GATE_CLOSED and shut:
        commands = [f"sysctl {name}=1" for name in shut]
        commands += [f"echo {name}=1 >>/etc/sysctl.conf" for name in shut]
        return Finding(
            True,
            f"{answer.reason}: {', '.join(f'{name} is 0' for name in shut)}",
            "open what is shut",
            tuple(commands),
            on_host=bool(support.privileges.container),
        )
    if answer.code is Cause.TOO_OLD and support.release.startswith("13."):
        return Finding(
            True,
            answer.reason,
            "FreeBSD 13 has the part in software in a module of its own",
            ("kldload ktls_ocf", "sysrc kld_list+=ktls_ocf"),
        )
    return Finding(True, answer.reason, answer.remedy)


_GATES = ("kern.ipc.tls.enable", "kern.ipc.tls.rx_enable", "kern.ipc.mb_use_ext_pgs")


# ---- there is, but ---------------------------------------------------------------------------


#: By cipher: the option that a kernel is configured with for it, and the module that is its code.
_CODE = {
    "AES_128_GCM": ("CONFIG_CRYPTO_GCM", "gcm"),
    "AES_256_GCM": ("CONFIG_CRYPTO_GCM", "gcm"),
    "AES_128_CCM": ("CONFIG_CRYPTO_CCM", "ccm"),
    "CHACHA20_POLY1305": ("CONFIG_CRYPTO_CHACHA20POLY1305", "chacha20poly1305"),
}


def _code(
    support: KernelSupport, answer: Answer, name: str, machine: Machine
) -> tuple[str | None, tuple[str, ...]]:
    """What would help where the kernel lacks the code of a cipher."""
    option, module = _CODE.get(name, ("", ""))
    value = machine.config.get(option)
    if value == "n":
        return f"it takes a kernel that is built with {option}=m; {answer.remedy}", ()
    # In FIPS mode code that is there is not to be used, and the answer's remedy says so.
    if value != "m" or support.settings.get("crypto.fips_enabled"):
        return answer.remedy, ()
    package = _package(machine)
    if contained(support, machine) or "reboot" in package.commands:
        return package.text, package.commands
    return package.text, (*package.commands, f"modprobe {module}")


def _lacking(
    support: KernelSupport, lacks: Iterable[Missing], machine: Machine
) -> Iterator[Finding]:
    """A finding for each reason, however many ciphers have it."""
    seen: dict[tuple[str, str | None], list[str]] = {}
    answers: dict[tuple[str, str | None], Answer] = {}
    for version, name, direction in lacks:
        answer = support.answer(version, name, direction)
        # The reason names the cipher, the remedy too.
        key = (answer.code.value, answer.remedy)
        seen.setdefault(key, []).append(f"{name} {VERSIONS[version]} {direction.value}")
        answers[key] = answer
    for key, names in seen.items():
        answer = answers[key]
        remedy: str | None = answer.remedy
        commands: tuple[str, ...] = ()
        if support.system == "FreeBSD":
            finding = _freebsd(support, answer)
            remedy, commands = finding.remedy, finding.commands
        elif answer.code is Cause.CIPHER_MISSING:
            remedy, commands = _code(support, answer, names[0].partition(" ")[0], machine)
        yield Finding(True, f"{answer.reason} ({', '.join(names)})", remedy, commands)


def _engines(engines: Iterable[EngineInfo]) -> Iterator[Finding]:
    engines = tuple(engines)
    chosen = next((e for e in engines if e.chosen), None)
    reasons = {e.name: e.reason for e in engines}
    if chosen is None or not chosen.usable:
        yield Finding(
            True,
            "no engine works that takes keys out of an ssl.SSLSocket: "
            + "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason),
            "pyktls.MemoryBIOHandshake does the handshake by itself (the membio engine)"
            if reasons.get("membio", "") is None
            else "another build of Python",
        )
    elif chosen.name == "portable" and reasons.get("native"):
        yield Finding(
            False,
            f"keys are taken by the portable engine, not the native one: {reasons['native']}",
            "a Python whose _ssl module is linked to OpenSSL's libraries (a distribution's, "
            "pyenv's): the portable engine takes a Python call for each record until the switch",
        )


def _advice(support: KernelSupport, machine: Machine, crypto: Crypto | None) -> Iterator[Finding]:
    loaded = support.tls and support.module.state == "loaded"
    if loaded and machine.at_boot is None and not contained(support, machine):
        yield Finding(
            False,
            "the tls module is loaded, and nothing has it loaded at the next boot",
            "for processes that may not load modules",
            (AT_BOOT,),
        )
    if support.tls and crypto is not None and crypto.slow_aes is not None:
        driver = crypto.drivers["gcm(aes)"].name
        yield Finding(
            False,
            f"this processor has instructions for AES, and the kernel does not use them ({driver})",
            "it is several times faster with them",
            (f"modprobe {crypto.slow_aes}",),
        )
    if support.tls and support.system == "Linux" and not support.features["sock_diag"]:
        answer = support.features["sock_diag"]
        yield Finding(
            False,
            "`pyktls sockets` and pyktls.sockets() will not list connections here: "
            + re.sub(r"\s+", " ", answer.reason),
            answer.remedy,
        )


def find(
    support: KernelSupport,
    lacks: Iterable[Missing],
    engines: Iterable[EngineInfo],
    machine: Machine,
    crypto: Crypto | None,
) -> tuple[Finding, ...]:
    """All of it: what is in the way first."""
    found = [*_lacking(support, lacks, machine)] if support.tls else [_no_tls(support, machine)]
    found += _engines(engines)
    found += _advice(support, machine, crypto)
    return tuple(sorted(found, key=lambda finding: not finding.fault))
