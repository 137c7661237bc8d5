"""Futures that are waited for, and may have been given up."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

__all__ = ["settle"]


def settle(future: asyncio.Future[None] | None) -> None:
    """Let whoever waits for it go on."""
    if future is not None and not future.done():
        future.set_result(None)
