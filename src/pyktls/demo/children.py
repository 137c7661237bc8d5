"""A forked child, and what it says through its pipe.

A child runs one function and sends messages: a server its Port, a client how much it has Received,
and each as its last word one Report or one Failure.  Children are forked, not started afresh: in
the emulated machine of tests/lab a new Python takes five seconds, and what the parent has imported
and found out they inherit.  Every wait has a limit, and a child that is still there when its
``with`` block ends is killed.
"""

from __future__ import annotations

import multiprocessing
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from . import limits
from .steps import StepFailed

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from .evidence import Evidence

__all__ = ["Child", "Port", "Received", "Report"]


class Silence(StepFailed):
    """The Python end did not say anything in time."""


@dataclass(frozen=True, slots=True)
class Port:
    """From a server child: where it listens."""

    number: int


@dataclass(frozen=True, slots=True)
class Received:
    """From a client child: its progress."""

    bytes: int


@dataclass(frozen=True, slots=True)
class Failure:
    """From a child, as its last word: what went wrong."""

    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """From a child, as its last word: what it did.

    ``started`` and ``ended`` are of CLOCK_MONOTONIC, which all processes share.  ``cpu_seconds``
    is user and system time of the child over the transfer, without hashing.  ``sha256`` and
    ``bytes`` are of what was received, or of None and what was sent.
    """

    cipher: str
    bytes: int
    started: float
    ended: float
    cpu_seconds: float
    sha256: str | None
    evidence: Evidence


class Child:
    """A forked process that runs ``target(*args, pipe)``; killed when the block is left."""

    def __init__(self, target: Callable[..., None], *args: object) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, self._far = context.Pipe()
        self._process = context.Process(
            target=_child, args=(target, args, self._far, self._pipe), daemon=True
        )

    def __enter__(self) -> Self:
        self._process.start()
        self._far.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def hear(self, seconds: float) -> Any:
        """Its next message; raises StepFailed if that is a Failure, or does not come."""
        if not self._pipe.poll(seconds):
            raise Silence(f"the Python end said nothing for {seconds:.0f} seconds")
        try:
            message = self._pipe.recv()
        except EOFError:
            self._process.join(limits.END_TIMEOUT)
            raise StepFailed(
                f"the Python end died (exit status {self._process.exitcode})"
            ) from None
        if isinstance(message, Failure):
            raise StepFailed(message.reason)
        return message

    def report(self, progress: Callable[[int], None] | None = None) -> Report:
        """Its report."""
        while True:
            match self.hear(limits.STALL_TIMEOUT):
                case Report() as report:
                    self._process.join(limits.END_TIMEOUT)
                    return report
                case Received(received) if progress is not None:
                    progress(received)

    def explain(self, error: StepFailed) -> StepFailed:
        """``error``, with what the child says about it, which is more likely the cause."""
        try:
            self.hear(2.0)
        except Silence:
            return error
        except StepFailed as own:
            return StepFailed(f"{own}; {error}")
        return error  # a Report: it has done its part


def _child(
    target: Callable[..., None],
    args: tuple[object, ...],
    pipe: Connection[Any, Any],
    other_end: Connection[Any, Any],
) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    other_end.close()
    try:
        target(*args, pipe)
    except StepFailed as e:
        pipe.send(Failure(str(e)))
    except Exception as e:  # noqa: BLE001  (whatever it is, it belongs in the table)
        pipe.send(Failure(f"{type(e).__name__}: {e}"))
