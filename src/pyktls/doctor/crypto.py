"""What makes the kernel's encryption fast: the processor's instructions, and code that uses them.

A hint only.  /proc/crypto lists what is there, and what is taken is what has the highest priority
(crypto/api.c); pyktls.probe() has used each cipher before this is read, so it is in the list.
"""

from __future__ import annotations

import pathlib
import platform
from dataclasses import dataclass

__all__ = ["ALGORITHMS", "Crypto", "Driver", "read_crypto"]

#: The kernel's names of what TLS uses, with our names of the ciphers.
ALGORITHMS = {
    "gcm(aes)": "AES-GCM",
    "ccm(aes)": "AES-CCM",
    "rfc7539(chacha20,poly1305)": "ChaCha20-Poly1305",
}
#: Of the processor's flags (x86: flags; arm64: Features) those that matter.
_FLAGS = (
    "aes", "pclmulqdq", "vaes", "vpclmulqdq", "avx2", "avx512f", "pmull", "neon", "asimd",
)  # fmt: skip
#: Parts of the names of drivers that use no special instructions.
_PLAIN = ("aes-generic", "aes-lib", "aes-fixed-time")
#: By machine: the module that brings AES-GCM with the processor's instructions.
_MODULES = {"x86_64": "aesni_intel", "aarch64": "ghash_ce"}


@dataclass(frozen=True, slots=True)
class Driver:
    """Which code of the kernel does an algorithm."""

    name: str
    module: str
    priority: int

    @property
    def plain(self) -> bool:
        """Whether it does AES in plain C."""
        return any(part in self.name for part in _PLAIN)


@dataclass(frozen=True, slots=True)
class Crypto:
    """``flags`` are the processor's; ``drivers`` are by the names in ``ALGORITHMS``.

    ``slow_aes`` is the module that would make AES-GCM faster here: the processor has instructions
    for AES, and the kernel does not use them.  None where there is nothing to be gained.
    """

    flags: tuple[str, ...]
    drivers: dict[str, Driver]
    slow_aes: str | None = None


def read_crypto(
    cpuinfo: str = "/proc/cpuinfo", crypto: str = "/proc/crypto", machine: str | None = None
) -> Crypto | None:
    """What the two files say, None where they cannot be read (no Linux, or /proc is hidden)."""
    processor, listed = _read(cpuinfo), _read(crypto)
    if processor is None or listed is None:
        return None
    flags = _flags(processor)
    drivers = _drivers(listed)
    aes = drivers.get("gcm(aes)")
    slow = "aes" in flags and aes is not None and aes.plain
    module = _MODULES.get(machine or platform.machine())
    return Crypto(flags, drivers, module if slow else None)


def _read(path: str) -> str | None:
    try:
        return pathlib.Path(path).read_text("utf-8", "replace")
    except OSError:
        return None


def _flags(text: str) -> tuple[str, ...]:
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            words = set(value.split())
            return tuple(flag for flag in _FLAGS if flag in words)
    return ()


def _drivers(text: str) -> dict[str, Driver]:
    found: dict[str, Driver] = {}
    for block in text.split("\n\n"):
        fields = {
            key.strip(): value.strip()
            for key, _, value in (line.partition(":") for line in block.splitlines())
        }
        name = fields.get("name")
        if name not in ALGORITHMS or fields.get("internal") == "yes":
            continue
        priority = int(fields["priority"]) if fields.get("priority", "").isdigit() else 0
        driver = Driver(fields.get("driver", ""), fields.get("module", ""), priority)
        if name not in found or driver.priority > found[name].priority:
            found[name] = driver
    return found
