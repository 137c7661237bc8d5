"""What came of a step, and whether that is enough.

``judge`` is what a step must withstand: all bytes arrived, the SHA-256 at the far end is the
file's, and for pyktls the kernel's evidence leaves no doubt.  ``doubts`` takes what the kernel did
not tell for no contradiction, except that /proc/net/tls_stat must have counted the session.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyktls._kernel import lib
from pyktls.status import Mode

from .steps import VERSION_NAMES

if TYPE_CHECKING:
    from .evidence import Evidence
    from .steps import Setting, Step

__all__ = ["Outcome", "doubts", "judge"]

RECORD = 1 << 14  # a record holds at most this much (RFC 8446 section 5.1)


@dataclass(slots=True)
class Outcome:
    """What came of a step; ``failure`` is None exactly if all of it went well."""

    step: Step
    failure: str | None = None
    cipher: str | None = None
    bytes: int = 0
    seconds: float | None = None
    cpu_seconds: float | None = None
    sha256: str | None = None
    evidence: Evidence | None = None

    @property
    def megabytes_per_second(self) -> float | None:
        """From the first byte sent to the last byte hashed."""
        return self.bytes / self.seconds / 1e6 if self.seconds else None

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "tls": VERSION_NAMES[self.step.version],
            "python": self.step.python,
            "peer": self.step.peer,
            "direction": "serve" if self.step.serves else "fetch",
            "ok": self.failure is None,
            "failure": self.failure,
            "cipher": self.cipher,
            "tx": self.evidence.tx if self.evidence else None,
            "rx": self.evidence.rx if self.evidence else None,
            "bytes": self.bytes,
            "seconds": self.seconds,
            "megabytes_per_second": self.megabytes_per_second,
            "cpu_seconds": self.cpu_seconds,
            "sha256": self.sha256,
            "evidence": dataclasses.asdict(self.evidence) if self.evidence else None,
        }


def judge(outcome: Outcome, setting: Setting) -> str | None:
    """What is wrong with a step that ran to its end, None if nothing."""
    if outcome.bytes != setting.size:
        return f"{outcome.bytes} of {setting.size} bytes arrived"
    if outcome.sha256 != setting.sha256:
        return f"the SHA-256 at the far end is another: {outcome.sha256}"
    if outcome.step.python == "pyktls" and (found := doubts(outcome)):
        return f"the kernel did not confirm: {', '.join(found)}"
    return None


def doubts(outcome: Outcome) -> list[str]:
    """Why it is not certain that the kernel protected this pyktls transfer; empty if it is."""
    evidence = outcome.evidence
    if evidence is None:
        return ["it said nothing"]
    found = []
    if evidence.ulp != "tls":
        found.append(f"TCP_ULP is {evidence.ulp!r}")
    for direction, mode, records, least in (
        ("TX", evidence.tx, evidence.tx_records, outcome.bytes if outcome.step.serves else 1),
        ("RX", evidence.rx, evidence.rx_records, 1 if outcome.step.serves else outcome.bytes),
    ):
        if mode == Mode.NONE:
            found.append(f"{direction} is not in the kernel")
        # In a network card's hands the numbers are the card's.
        if mode != Mode.DEVICE and records is not None and records * RECORD < least:
            found.append(f"{records} {direction} records are too few for {least} bytes")
        name = direction.title()
        if sum(evidence.counters.get(f"Tls{name}{kind}", 0) for kind in ("Sw", "Device")) < 1:
            found.append(f"/proc/net/tls_stat counted no {direction} session")
        conf = (evidence.sock_diag or {}).get(f"{direction.lower()}_conf")
        if conf == lib.TLS_CONF_BASE:
            found.append(f"sock_diag says that {direction} is not in the kernel")
    return found
