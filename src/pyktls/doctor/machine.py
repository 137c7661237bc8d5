"""The machine around the kernel: distribution, container, configuration, modules on the disk.

Files are read and nothing is tried; what cannot be read is None.
"""

from __future__ import annotations

import os
import pathlib
import platform
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pyktls.linux.probing import read_configs

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["OPTIONS", "Machine", "read_machine"]

#: What a kernel is configured with for TLS, and what for.
OPTIONS = {
    "CONFIG_TLS": "kernel TLS",
    "CONFIG_TLS_DEVICE": "TLS in network cards",
    "CONFIG_CRYPTO_GCM": "AES-GCM",
    "CONFIG_CRYPTO_CCM": "AES-CCM",
    "CONFIG_CRYPTO_CHACHA20POLY1305": "ChaCha20-Poly1305",
    "CONFIG_INET_DIAG": "which connections have TLS",
}
_MODULES = ("lib/modules", "usr/lib/modules")
#: Where systemd-modules-load(8), and what came before it, look at boot.
_AT_BOOT = (
    "etc/modules-load.d/*.conf",
    "run/modules-load.d/*.conf",
    "usr/local/lib/modules-load.d/*.conf",
    "usr/lib/modules-load.d/*.conf",
    "etc/modules",
)
_VARIABLE = "container"
#: Files that a container's runtime leaves in it.
_MARKERS = {".dockerenv": "docker", "run/.containerenv": "podman"}


@dataclass(frozen=True, slots=True)
class Machine:
    """``ids`` are the distribution's id and what it is like, the closest first (os-release(5)).

    ``container`` names the runtime, as far as it leaves a mark; None means no mark.  ``ulp`` are
    the protocols that can be attached to a connection (net.ipv4.tcp_available_ulp; only the
    initial network namespace has it).  ``config`` are the options in ``OPTIONS``: "y", "m" or "n";
    ``config_source`` is the file that says so.

    ``modules`` is whether the running kernel has a directory of modules, ``other_kernels`` those
    that are not running and have the tls module.  ``at_boot`` is the file that has it loaded at
    each boot.
    """

    release: str
    ids: tuple[str, ...] = ()
    distribution: str | None = None
    distribution_version: str | None = None
    container: str | None = None
    ulp: tuple[str, ...] | None = None
    config: Mapping[str, str] = field(default_factory=dict)
    config_source: str | None = None
    modules: bool | None = None
    other_kernels: tuple[str, ...] = ()
    at_boot: str | None = None


def read_machine(root: str = "/") -> Machine:
    """What the files below ``root`` say."""
    place, release = pathlib.Path(root), os.uname().release
    config, source = _config(release)
    ids, name, version = _distribution()
    return Machine(
        release=release,
        ids=ids,
        distribution=name,
        distribution_version=version,
        container=_container(place),
        ulp=_words(place / "proc/sys/net/ipv4/tcp_available_ulp"),
        config=config,
        config_source=source,
        modules=any((place / where / release / "kernel").is_dir() for where in _MODULES),
        other_kernels=_other_kernels(place, release),
        at_boot=_at_boot(place),
    )


def _text(path: pathlib.Path) -> str | None:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return None


def _words(path: pathlib.Path) -> tuple[str, ...] | None:
    text = _text(path)
    return tuple(text.split()) if text is not None else None


def _distribution() -> tuple[tuple[str, ...], str | None, str | None]:
    try:
        found = platform.freedesktop_os_release()
    except OSError:
        return (), None, None
    ids = (found.get("ID", ""), *found.get("ID_LIKE", "").split())
    return tuple(i for i in ids if i), found.get("PRETTY_NAME"), found.get("VERSION_ID")


def _container(root: pathlib.Path) -> str | None:
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes"
    for marker, name in _MARKERS.items():
        if (root / marker).exists():
            return name
    # systemd's convention (systemd.io/CONTAINER_INTERFACE), which LXC follows too.
    named = _text(root / "run/systemd/container") or os.environ.get(_VARIABLE, "")
    if named.strip():
        return named.strip()
    # Control groups of version 1 have the runtime in their paths.
    found = re.search(r"kubepods|docker|libpod|lxc", _text(root / "proc/1/cgroup") or "")
    return found[0] if found else None


def _config(release: str) -> tuple[dict[str, str], str | None]:
    for path, text in read_configs(release):
        listed = text.decode("ascii", "replace")
        values = dict(re.findall(r"^(CONFIG_\w+)=([ym])$", listed, re.MULTILINE))
        if "CONFIG_NET" in values:
            return {name: values.get(name, "n") for name in OPTIONS}, path
    return {}, None


def _other_kernels(root: pathlib.Path, release: str) -> tuple[str, ...]:
    found = {
        path.relative_to(root / where).parts[0]
        for where in _MODULES
        for path in (root / where).glob("*/kernel/net/tls/tls.ko*")
    }
    return tuple(sorted(found - {release}))


def _at_boot(root: pathlib.Path) -> str | None:
    for pattern in _AT_BOOT:
        for path in sorted(root.glob(pattern)):
            if re.search(r"^\s*tls\s*$", _text(path) or "", re.MULTILINE):
                return f"/{path.relative_to(root)}"
    return None
