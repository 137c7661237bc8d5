"""What was found, put together: as text for people, and as a dict for JSON."""

from __future__ import annotations

import dataclasses
import platform
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyktls import __version__
from pyktls.commands.terminal import fold
from pyktls.kernel_support import VERSIONS

from .cards import FEATURES
from .crypto import ALGORITHMS
from .remedies import contained
from .verdict import Level

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from pyktls.commands.terminal import Paint
    from pyktls.engines.choice import EngineInfo
    from pyktls.kernel_support import KernelSupport

    from .cards import Card
    from .crypto import Crypto
    from .machine import Machine
    from .openssl import OpenSSL
    from .remedies import Finding
    from .verdict import Offered, Verdict

__all__ = ["Report"]


@dataclass(frozen=True, slots=True)
class Report:
    """All that ``pyktls doctor`` has to say."""

    verdict: Verdict
    findings: tuple[Finding, ...]
    support: KernelSupport
    offered: tuple[Offered, ...]
    engines: tuple[EngineInfo, ...]
    openssl: OpenSSL
    machine: Machine
    crypto: Crypto | None
    cards: tuple[Card, ...] | None

    # ---- for programs

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        openssl = dataclasses.asdict(self.openssl)
        if self.openssl.own is not None:
            openssl["own"] = {
                version: {d: d in given for d in ("tx", "rx")}
                for version, given in self.openssl.own.items()
            }
        return {
            "pyktls": __version__,
            "verdict": {"level": self.verdict.level.value, "text": self.verdict.text},
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "offered_by_default": [
                {"version": VERSIONS[version], "cipher": name} for version, name in self.offered
            ],
            "kernel": self.support.as_dict(),
            "machine": dataclasses.asdict(self.machine),
            "python": {
                "version": platform.python_version(),
                "implementation": sys.implementation.name,
                "executable": sys.executable,
            },
            "openssl": openssl,
            "engines": [dataclasses.asdict(engine) for engine in self.engines],
            "crypto": None if self.crypto is None else dataclasses.asdict(self.crypto),
            "cards": None if self.cards is None else [dataclasses.asdict(c) for c in self.cards],
        }

    # ---- for people

    def as_text(self, paint: Paint) -> Iterator[str]:
        """The verdict, what to do, then the details."""
        colour = {Level.YES: paint.good, Level.PARTLY: paint.middling, Level.NO: paint.bad}
        first, *rest = fold(f"{self.verdict.level.value}: {self.verdict.text}")
        head, _, tail = first.partition(":")
        yield f"{colour[self.verdict.level](head)}:{tail}"
        yield from rest
        for title, fault in (("What is in the way", True), ("Advice", False)):
            found = [finding for finding in self.findings if finding.fault is fault]
            if found:
                yield from ("", paint.bold(title))
                for finding in found:
                    yield from _finding(finding, paint)
        for title, lines in (
            ("Kernel", self._kernel()),
            ("Machine", self._machine()),
            ("Python", self._python()),
            ("Speed", self._speed()),
            ("Network cards", self._cards()),
        ):
            yield from ("", paint.bold(title))
            yield from lines

    def _kernel(self) -> Iterator[str]:
        yield from str(self.support).splitlines()
        if self.machine.ulp is not None:
            protocols = " ".join(self.machine.ulp) or "none"
            yield f"tcp_available_ulp: {protocols}"
        if self.machine.config:
            values = (f"{n}={v}" for n, v in self.machine.config.items())
            yield from fold(f"{self.machine.config_source}: {' '.join(values)}", indent="  ")

    def _machine(self) -> Iterator[str]:
        yield self.machine.distribution or "no /etc/os-release"
        inside, mark = contained(self.support, self.machine), self.machine.container
        if inside:
            yield f"container: {mark or 'yes, of an unknown kind'}"
        else:
            yield f"container: no{f', though there is a mark of {mark}' if mark else ''}"
        where = self.machine.at_boot
        yield f"tls module loaded at boot: {f'yes, {where}' if where else 'nothing says so'}"

    def _python(self) -> Iterator[str]:
        openssl = self.openssl
        yield f"{sys.implementation.name} {platform.python_version()}, {openssl.version}"
        yield from fold(f"libssl: {' '.join(openssl.libraries) or 'built in'}", indent="  ")
        yield from fold(
            "its functions can be reached"
            if openssl.hidden is None
            else f"its functions cannot be reached: {openssl.hidden}",
            indent="  ",
        )
        name = "there is" if openssl.op_enable_ktls else "no name in this Python, 8 does the same"
        yield f"ssl.OP_ENABLE_KTLS: {name}"
        if openssl.own is None:
            yield from fold(f"OpenSSL's own use of it: not tried, {openssl.not_tried}", indent="  ")
        else:
            given = (
                f"{version} {'and '.join(f'{d.value} ' for d in own) or 'not at all'}".strip()
                for version, own in openssl.own.items()
            )
            yield from fold(f"OpenSSL's own use of it: {', '.join(given)}", indent="  ")
        for engine in self.engines:
            yield from fold(f"engine {engine}", indent="  ")

    def _speed(self) -> Iterator[str]:
        if self.crypto is None:
            yield "not known on this system"
            return
        yield from fold(
            f"processor: {' '.join(self.crypto.flags) or 'no flags known'}", indent="  "
        )
        for name, title in ALGORITHMS.items():
            driver = self.crypto.drivers.get(name)
            what = f"{driver.name}, module {driver.module}" if driver else "not in use"
            yield from fold(f"{title}: {what}", indent="  ")

    def _cards(self) -> Iterator[str]:
        if self.cards is None:
            yield "not known on this system"
            return
        for card in self.cards:
            can = [
                f"{FEATURES[name]} ({name}, {state})"
                for name, state in (card.features or {}).items()
                if state != "fixed"
            ]
            driver = f" ({card.driver})" if card.driver else ""
            nothing = "no TLS" if card.features is not None else "does not tell"
            yield from fold(f"{card.name}{driver}: {', '.join(can) or nothing}", indent="  ")


def _finding(finding: Finding, paint: Paint) -> Iterator[str]:
    lines = fold(finding.text, "* ", "  ")
    yield from (paint.bad(line) if finding.fault else line for line in lines)
    if finding.remedy:
        yield from fold(f"-> {finding.remedy}", "  ", "     ")
    if finding.commands:
        where = "on the host, as root" if finding.on_host else "as root"
        yield f"     {where}:"
        # A command stays on its line, however long: it is there to be copied.
        yield from (f"       {command}" for command in finding.commands)
