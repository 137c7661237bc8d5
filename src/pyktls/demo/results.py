"""What is shown when all steps are done: the evidence, the counters, the table, the comparison.

All of it is made from the outcomes, and fits 80 columns.
"""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any

from pyktls._kernel import lib
from pyktls.ciphers import find_suite_by_openssl_name
from pyktls.status import Mode

from .steps import VERSION_NAMES

if TYPE_CHECKING:
    from .display import Display
    from .outcomes import Outcome

__all__ = [
    "cpu_pairs", "cpu_ratio", "is_emulated", "show_counters", "show_evidence", "show_results",
]  # fmt: skip

_CONF_NAMES = {
    lib.TLS_CONF_BASE: "not in the kernel",
    lib.TLS_CONF_SW: "software",
    lib.TLS_CONF_HW: "device",
}


def show_evidence(outcome: Outcome, display: Display) -> None:
    """What the kernel said of one pyktls socket."""
    evidence = outcome.evidence
    if evidence is None:
        return
    keyed = [d for d, mode in (("TX", evidence.tx), ("RX", evidence.rx)) if mode != Mode.NONE]
    version = VERSION_NAMES.get(evidence.version or 0, "-")
    diag = evidence.sock_diag
    facts = {
        "getsockopt": f'ULP "{evidence.ulp}"; keys for {" and ".join(keyed) or "nothing"}: '
        f"{version}, {evidence.cipher}",
        "sock_diag": "silent (Linux up to 6.12 tells only those who have CAP_NET_ADMIN)"
        if diag is None
        else f'ULP "{diag["name"]}"; TX {_conf(diag["tx_conf"])}, RX {_conf(diag["rx_conf"])}',
        "ss -tni": evidence.ss or "",
        "records": ""
        if evidence.tx_records is None or evidence.rx_records is None
        else f"{evidence.tx_records} sent, {evidence.rx_records} received, by the kernel's own "
        "sequence numbers",
        "tls_stat": ", ".join(f"{name} {by:+d}" for name, by in evidence.counters.items())
        or "no change",
    }
    display.line(f"{outcome.step.name}: socket {evidence.socket}")
    for source, fact in facts.items():
        if fact:
            display.paragraph(fact, f"  {source:<11}", " " * 13)


def _conf(number: Any) -> str:
    return _CONF_NAMES.get(number, "untold")


def show_counters(
    before: dict[str, int], after: dict[str, int], switched: int, display: Display
) -> None:
    """What /proc/net/tls_stat was before and after the whole demo."""
    display.line("/proc/net/tls_stat before and after all of it (what is not shown is 0):")
    for name, value in after.items():
        if before.get(name, 0) or value:
            display.line(f"  {name:<20}{before.get(name, 0):>8} -> {value}")
    display.paragraph(
        f"TlsTxSw and TlsRxSw count sessions that were set up, neither bytes nor records: one for "
        f"each socket and direction, and this demo switched {switched} sockets. TlsCurr... counts "
        "those that are alive."
    )


def show_results(outcomes: list[Outcome], display: Display) -> None:
    """The table, what is wrong, and the comparison."""
    for line in table(outcomes):
        display.line(line)
    display.line()
    display.paragraph(
        "TX, RX: who protects the records that the Python end sends and receives. MB/s: from the "
        "first byte sent to the last byte hashed at the far end; 1 MB is 10^6 bytes. CPU s: user "
        "and system time of the Python end, without hashing. result: ok if the SHA-256 at the far "
        "end is the file's, and for pyktls the kernel confirmed all of the above."
    )
    display.line()
    failed = [outcome for outcome in outcomes if outcome.failure is not None]
    for outcome in failed:
        display.paragraph(f"{outcome.step.name}: {outcome.failure}", "FAILED  ", " " * 8)
    if failed:
        display.line()
    display.paragraph(comparison(outcomes))
    if is_emulated():
        display.paragraph(
            "This machine is emulated, AES instructions too: what time things take says little "
            "about a real one."
        )


def table(outcomes: list[Outcome]) -> list[str]:
    """The lines of the closing table, each of at most 79 columns."""
    head = ("TLS", "sent by -> to", "cipher", "TX", "RX", "MB/s", "CPU s", "result")
    rows: list[tuple[str, ...]] = [head, *(_row(outcome) for outcome in outcomes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    to_the_right = {5, 6}
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in to_the_right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines


def _row(outcome: Outcome) -> tuple[str, ...]:
    evidence, speed, cpu = outcome.evidence, outcome.megabytes_per_second, outcome.cpu_seconds
    return (
        VERSION_NAMES[outcome.step.version].removeprefix("TLS "),
        outcome.step.title,
        _short_cipher(outcome.cipher),
        _short_mode(evidence.tx) if evidence else "-",
        _short_mode(evidence.rx) if evidence else "-",
        _number(speed),
        _number(cpu, 2),
        "ok" if outcome.failure is None else "FAILED",
    )


def _number(value: float | None, digits: int = 1) -> str:
    """At most five characters, if the value is below 100000."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if value < 100 else f"{value:.0f}"


def _short_mode(mode: str) -> str:
    # "none" would look as if nobody encrypted.
    return "OpenSSL" if mode == Mode.NONE else mode


def _short_cipher(name: str | None) -> str:
    suite = find_suite_by_openssl_name(name) if name else None
    if suite is None:
        return (name or "-")[:11]
    return suite.aead.name.removesuffix("_POLY1305")


def comparison(outcomes: list[Outcome]) -> str:
    """One sentence: the CPU time of ssl beside that of pyktls, for the same file."""
    pairs = cpu_pairs(outcomes)
    ratio = cpu_ratio(pairs)
    if ratio is None:
        return "There is nothing to compare in this run."
    parts = [
        f"{theirs:.2f} s against {ours:.2f} s with {name}" for name, (theirs, ours) in pairs.items()
    ]
    return (
        f"To send this file to s_client, Python's ssl took {ratio:.1f} times the CPU time of "
        f"pyktls's sendfile in this run: {', '.join(parts)}."
    )


def cpu_pairs(outcomes: list[Outcome]) -> dict[str, tuple[float, float]]:
    """By version: CPU seconds to send the file to s_client, of ssl and of pyktls."""
    pairs = {}
    for version, name in VERSION_NAMES.items():
        spent = {
            outcome.step.python: outcome.cpu_seconds
            for outcome in outcomes
            if outcome.step.version == version
            and outcome.step.peer == "s_client"
            and outcome.failure is None
        }
        theirs, ours = spent.get("ssl"), spent.get("pyktls")
        if theirs is not None and ours:
            pairs[name] = theirs, ours
    return pairs


def cpu_ratio(pairs: dict[str, tuple[float, float]]) -> float | None:
    """How many times pyktls's CPU seconds ssl took, over all versions."""
    if not pairs:
        return None
    return sum(theirs for theirs, _ in pairs.values()) / sum(ours for _, ours in pairs.values())


def is_emulated() -> bool:
    """Whether this is QEMU without a hypervisor, where CPU time is not what it is elsewhere."""
    try:
        return "QEMU TCG" in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
