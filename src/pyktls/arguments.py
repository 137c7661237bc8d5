"""Checks of arguments that are the same everywhere."""

from __future__ import annotations

from .errors import InvalidType, InvalidValue

__all__ = ["flags", "integer"]


def integer(name: str, value: object, lowest: int, highest: int, *, bounds: str = "") -> int:
    """``value``, if it is an int (and no bool) from ``lowest`` to ``highest``.

    Raises InvalidType and InvalidValue; ``bounds`` is how the message puts the limits.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidType(f"{name} must be an int, not {type(value).__name__}")
    if not lowest <= value <= highest:
        raise InvalidValue(f"{name} must be {bounds or f'from {lowest} to {highest}'}, not {value}")
    return value


def flags(value: object) -> int:
    """The flags of a system call: a C int."""
    return integer("flags", value, 0, 2**31 - 1, bounds="from 0 to 2**31 - 1")
