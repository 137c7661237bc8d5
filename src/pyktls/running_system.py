"""The system whose kernel this process runs on: what the layers above ask for its answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import freebsd, linux
from ._kernel import lib

if TYPE_CHECKING:
    from .socket_calls import System

__all__ = ["system"]

#: The one that the compiled half is made for.
system: System = freebsd if lib.pyktls_system() == lib.PYKTLS_FREEBSD else linux.system
