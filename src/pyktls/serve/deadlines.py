"""One deadline of a connection, moved often and met seldom."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ["Deadline"]


class Deadline:
    """Calls ``missed`` when it has passed.

    To move it costs next to nothing: the loop's timer stays where it is, and is set anew when it
    goes off too early, or if it would be too late.
    """

    __slots__ = ("_loop", "_missed", "_timer", "_when")

    def __init__(self, loop: asyncio.AbstractEventLoop, missed: Callable[[], None]) -> None:
        self._loop = loop
        self._missed = missed
        self._when = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """Move it to ``seconds`` from now."""
        self._when = when = self._loop.time() + seconds
        if self._timer is None:
            self._timer = self._loop.call_at(when, self._go_off)
        elif self._timer.when() > when:
            self._timer.cancel()
            self._timer = self._loop.call_at(when, self._go_off)

    def cancel(self) -> None:
        """There is none any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _go_off(self) -> None:
        self._timer = None
        if self._loop.time() < self._when:
            self._timer = self._loop.call_at(self._when, self._go_off)
        else:
            self._missed()
