"""The kernel's TLS counters: /proc/net/tls_stat, one set for each network namespace.

``tls_stat`` takes a snapshot.  Two of them make a difference (``later - earlier``) and rates
(``later.rates(earlier)``).  All are mappings from the kernel's names to numbers, and have an
attribute for each counter that Linux 7.3 has.
"""

from __future__ import annotations

import errno
import os
import pathlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, overload

from pyktls.errors import InvalidType, InvalidValue, Unavailable, syscall_error

from .ulp import NO_TLS_REMEDY

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ErrorCount", "TLSStat", "TLSStatChange", "tls_stat"]

#: What each error counter counts, in one sentence (Documentation/networking/tls.rst).
_ERRORS = {
    "TlsDecryptError": (
        "a received record did not decrypt: it was changed on the way, the keys or the sequence "
        "number are not the peer's, or somebody sent rubbish; that connection is dead"
    ),
    "TlsRxDeviceResync": (
        "a network card lost track of the records it receives and was told where to go on; "
        "the kernel decrypts in its place in the meantime, which costs speed and nothing else"
    ),
    "TlsDecryptRetry": (
        "a record was decrypted twice, because TLS_RX_EXPECT_NO_PAD was on and the record was "
        "padded or no data; it costs speed and nothing else"
    ),
    "TlsRxNoPadViolation": (
        "a padded data record came from a peer of which TLS_RX_EXPECT_NO_PAD says that it does "
        "not pad; each is decrypted twice, so the option does not pay there"
    ),
    "TlsRxRekeyError": "the kernel refused a new key for receiving that it was given",
    "TlsTxRekeyError": "the kernel refused a new key for sending that it was given",
}


@dataclass(frozen=True, slots=True)
class ErrorCount:
    """An error counter that is not zero, and what it counts."""

    name: str
    count: int
    meaning: str


class _Counter:
    """The attribute of a counter: its number, or None where this kernel has no such counter."""

    def __init__(self, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, stat: None, owner: type, /) -> Self: ...
    @overload
    def __get__(self, stat: Mapping[str, int], owner: type, /) -> int | None: ...
    def __get__(self, stat: Mapping[str, int] | None, owner: type, /) -> Self | int | None:
        return self if stat is None else stat.get(self.name)


class _Counters(Mapping[str, int]):
    """What a snapshot and a difference have in common."""

    __slots__ = ("_values",)

    # Connections at this moment with each direction in the kernel, in software or in a network
    # card; such connections since boot.
    curr_tx_sw = _Counter("TlsCurrTxSw")
    curr_rx_sw = _Counter("TlsCurrRxSw")
    curr_tx_device = _Counter("TlsCurrTxDevice")
    curr_rx_device = _Counter("TlsCurrRxDevice")
    tx_sw = _Counter("TlsTxSw")
    rx_sw = _Counter("TlsRxSw")
    tx_device = _Counter("TlsTxDevice")
    rx_device = _Counter("TlsRxDevice")
    # See _ERRORS.
    decrypt_error = _Counter("TlsDecryptError")
    rx_device_resync = _Counter("TlsRxDeviceResync")
    decrypt_retry = _Counter("TlsDecryptRetry")
    rx_no_pad_violation = _Counter("TlsRxNoPadViolation")
    # Changes of key, and KeyUpdates that came (Linux 6.14).
    rx_rekey_ok = _Counter("TlsRxRekeyOk")
    rx_rekey_error = _Counter("TlsRxRekeyError")
    tx_rekey_ok = _Counter("TlsTxRekeyOk")
    tx_rekey_error = _Counter("TlsTxRekeyError")
    rx_rekey_received = _Counter("TlsRxRekeyReceived")

    def __init__(self, values: Mapping[str, int]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> int:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._values}>"

    @property
    def gauges(self) -> dict[str, int]:
        """Those that go up and down: how many there are at this moment."""
        return {name: value for name, value in self.items() if _is_gauge(name)}

    @property
    def counters(self) -> dict[str, int]:
        """Those that only go up."""
        return {name: value for name, value in self.items() if not _is_gauge(name)}

    @property
    def errors(self) -> tuple[ErrorCount, ...]:
        """The error counters that are not zero; TlsDecryptError is the one to worry about."""
        return tuple(
            ErrorCount(name, value, _ERRORS.get(name, "an error that pyktls does not know of"))
            for name, value in self.counters.items()
            if value and (name in _ERRORS or name.endswith("Error"))
        )


def _is_gauge(name: str) -> bool:
    return name.startswith("TlsCurr")


class TLSStatChange(_Counters):
    """What happened between two snapshots, ``seconds`` apart.

    Of a gauge it is the change, which may be negative, of a counter the increase.
    """

    __slots__ = ("seconds",)

    def __init__(self, values: Mapping[str, int], seconds: float) -> None:
        super().__init__(values)
        self.seconds = seconds


class TLSStat(_Counters):
    """The counters at one moment: ``stat["TlsTxSw"]``, or ``stat.tx_sw``.

    An attribute is None where this kernel does not have the counter; one that pyktls does not know
    is in the mapping all the same.  ``taken`` is the moment, by time.monotonic().  ``namespace``
    identifies the network namespace (device and inode of its file in /proc), None where this
    process may not know.
    """

    __slots__ = ("namespace", "taken")

    def __init__(
        self, values: Mapping[str, int], taken: float, namespace: tuple[int, int] | None = None
    ) -> None:
        super().__init__(values)
        self.taken = taken
        self.namespace = namespace

    def __sub__(self, earlier: TLSStat) -> TLSStatChange:
        """What happened since ``earlier``.

        Raises InvalidValue where the two have no common history: of two network namespaces, in the
        wrong order, or with a restart of the kernel or of its tls module between them.
        """
        if not isinstance(earlier, TLSStat):
            return NotImplemented
        if None not in (self.namespace, earlier.namespace) and self.namespace != earlier.namespace:
            raise InvalidValue("the two snapshots are of different network namespaces")
        if self.taken < earlier.taken:
            raise InvalidValue("the first snapshot is older than the one to subtract")
        if self.keys() != earlier.keys():
            names = ", ".join(sorted(self.keys() ^ earlier.keys()))
            raise InvalidValue(f"only one of the snapshots has {names}: the kernel is another")
        for name, value in self.counters.items():
            if value < earlier[name]:
                raise InvalidValue(
                    f"{name} went down, from {earlier[name]} to {value}: the snapshots are of "
                    "different network namespaces, or the kernel or its tls module has restarted"
                )
        change = {name: value - earlier[name] for name, value in self.items()}
        return TLSStatChange(change, self.taken - earlier.taken)

    def rates(self, earlier: TLSStat) -> dict[str, float]:
        """How much each counter went up per second since ``earlier``; gauges have no rate.

        Raises InvalidValue as the difference does, and where no time has passed.
        """
        change = self - earlier
        if not change.seconds:
            raise InvalidValue("no time has passed between the two snapshots")
        return {name: value / change.seconds for name, value in change.counters.items()}


def _parse(text: str, path: str) -> dict[str, int]:
    values: dict[str, int] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) != 2 or not words[1].isdecimal():
            raise OSError(errno.EPROTO, f"{path}: {line!r} is not a name and a number")
        name, number = words
        if name in values:
            raise OSError(errno.EPROTO, f"{path}: {name} is there twice")
        values[name] = int(number)
    return values


def tls_stat(pid: int | None = None) -> TLSStat:
    """The kernel's TLS counters for a network namespace.

    It is that of the calling thread, or that of the process ``pid``.  ``TlsCurr…`` are gauges, the
    others count from boot.  Which there are depends on the kernel.

    Raises Unavailable where the file is not there: the tls module is not loaded.  Raises
    ProcessLookupError where there is no such process, or it has ended.
    """
    # /proc/net is /proc/self/net, and that the main thread's: another one may have gone elsewhere.
    process = "/proc/thread-self" if pid is None else f"/proc/{_checked(pid)}"
    path = f"{process}/net/tls_stat"
    try:
        text = pathlib.Path(path).read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        if pid is None:
            path = "/proc/net/tls_stat"
        elif not pathlib.Path(f"{process}/net/dev").exists():
            raise syscall_error(errno.ESRCH, f"open({path})") from None
        raise Unavailable(f"{path} does not exist", remedy=NO_TLS_REMEDY) from None
    taken = time.monotonic()
    return TLSStat(_parse(text, path), taken, _namespace(process))


def _namespace(process: str) -> tuple[int, int] | None:
    try:
        found = os.stat(f"{process}/ns/net")  # noqa: PTH116  (of no file, but of what it names)
    except OSError:  # of somebody else's process it may not be known
        return None
    return found.st_dev, found.st_ino


def _checked(pid: int) -> int:
    if not isinstance(pid, int) or isinstance(pid, bool):
        raise InvalidType(f"pid must be an int, not {type(pid).__name__}")
    if pid <= 0:
        raise InvalidValue(f"pid must be 1 or more, not {pid}")
    return pid
