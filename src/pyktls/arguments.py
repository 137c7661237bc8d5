"""Checks of arguments that are the same everywhere."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

from .errors import InvalidType, InvalidValue

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "buffer_view",
    "buffer_views",
    "count",
    "flags",
    "hostname",
    "integer",
    "set_timeout",
    "size",
]


def integer(
    name: str, value: object, lowest: int, highest: int, *, bounds: str = "from {} to {}"
) -> int:
    """``value``, if it is an int (and no bool) from ``lowest`` to ``highest``.

    Raises InvalidType and InvalidValue; ``bounds`` is how the message puts the limits.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidType(f"{name} must be an int, not {type(value).__name__}")
    if not lowest <= value <= highest:
        raise InvalidValue(f"{name} must be {bounds.format(lowest, highest)}, not {value}")
    return value


def count(name: str, value: object, lowest: int = 0) -> int:
    """A number of bytes, or an offset, that the kernel takes as a signed one of 64 bits."""
    return integer(name, value, lowest, 2**63 - 1, bounds="from {} to 2**63 - 1")


def size(value: object, call: str, what: str = "buffersize") -> int:
    """A number of bytes, as the methods of a socket take it: anything that is an integer."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidType(f"{what} must be an int, not {type(value).__name__}") from None
    if number < 0:
        raise InvalidValue(f"negative {what} in {call}")
    if number > 2**63 - 1:
        raise InvalidValue(f"{what} is too large in {call}")
    return number


def buffer_view(value: object, *, writable: bool = False) -> memoryview:
    """The bytes of a buffer; to be released, or used in a ``with`` statement."""
    try:
        view = memoryview(value).cast("B")  # type: ignore[arg-type]
    except (TypeError, BufferError) as e:
        raise InvalidType(str(e)) from None
    if writable and view.readonly:
        raise InvalidType("the buffer to receive into is read-only")
    return view


def buffer_views(values: object, *, writable: bool = False) -> list[memoryview]:
    """The same of several."""
    try:
        items = list(values)  # type: ignore[call-overload]
    except TypeError as e:
        raise InvalidType(f"buffers: {e}") from None
    except ValueError as e:  # a file that is closed
        raise InvalidValue(f"buffers: {e}") from None
    return [buffer_view(item, writable=writable) for item in items]


def flags(value: object) -> int:
    """The flags of a system call: a C int."""
    return integer("flags", value, 0, 2**31 - 1, bounds="from 0 to 2**31 - 1")


def hostname(value: object) -> str | None:
    """``server_hostname``: a str that IDNA (RFC 3490) takes, or None."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidType(f"server_hostname must be a str, not {type(value).__name__}")
    try:
        value.encode("idna")
    except UnicodeError as e:
        raise InvalidValue(f"server_hostname: {e}") from None
    if "\0" in value:
        raise InvalidValue("server_hostname: embedded null character")
    return value


def set_timeout(setter: Callable[[float | None], None], value: float | None) -> None:
    """socket.settimeout, which says in our terms of a value that it is no timeout."""
    try:
        setter(value)
    except TypeError as e:
        raise InvalidType(f"timeout: {e}") from None
    except (ValueError, OverflowError) as e:
        raise InvalidValue(f"timeout: {e}") from None
