"""Which engine watches a context, and why not a better one.

``native`` is taken where it works: it is exact, costs next to nothing, and leaves OpenSSL in good
order.  ``portable`` does the same for Pythons whose OpenSSL is hidden.  ``membio`` is another way
to make the handshake, taken by making it so (``MemoryBIOHandshake``).

The environment variable ``PYKTLS_ENGINE`` (``native`` or ``portable``) decides in place of that
order, for tests and for finding faults; the ``engine`` argument of ``watch`` decides before it.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyktls.errors import HandoffRefused, InvalidType, InvalidValue, Unavailable

from . import membio, native, portable
from .foreign import check_modules
from .keylog import KeyLog

if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "ENGINES",
    "EngineInfo",
    "engine_of_context",
    "engines",
    "key_log_of",
    "prepare_membio",
    "read_key_log",
    "watch",
]

#: By preference.
ENGINES = ("native", "portable", "membio")

_VARIABLE = "PYKTLS_ENGINE"


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """One engine.

    ``name`` is ``"native"``, ``"portable"`` or ``"membio"``.  ``usable`` is whether it works in
    this interpreter, ``reason`` why not (None if it does).  ``chosen`` is true for the one that
    ``watch(context)`` takes now; ``why_chosen`` says why, and is None for the others.
    """

    name: str
    usable: bool
    reason: str | None
    chosen: bool = False
    why_chosen: str | None = None

    def __str__(self) -> str:
        state = "works" if self.usable else f"does not work: {self.reason}"
        return f"{self.name} {state}" + (f" (chosen: {self.why_chosen})" if self.chosen else "")


def _why_not(name: str) -> str | None:
    if name == "membio":
        return None if hasattr(ssl.SSLContext, "keylog_filename") else "ssl has no keylog_filename"
    return native.why_not() if name == "native" else portable.why_not()


def engines() -> tuple[EngineInfo, ...]:
    """The engines that read keys out of a TLS library, the preferred one first.

    Raises InvalidValue if the environment variable ``PYKTLS_ENGINE`` names none that watches.
    """
    reasons = {name: _why_not(name) for name in ENGINES}
    forced = _forced()
    chosen = forced or next((n for n in ("native", "portable") if reasons[n] is None), None)
    if forced:
        why = f"{_VARIABLE}={forced}"
    elif chosen == "native":
        why = "it is the preferred one"
    else:
        why = f"the native engine does not work: {reasons['native']}"
    return tuple(
        EngineInfo(name, reason is None, reason, name == chosen, why if name == chosen else None)
        for name, reason in reasons.items()
    )


def _forced() -> str | None:
    value = os.environ.get(_VARIABLE)
    if not value:
        return None
    if value not in ("native", "portable"):
        raise InvalidValue(f"{_VARIABLE} must be 'native' or 'portable', not {value!r}")
    return value


# ---- contexts --------------------------------------------------------------------------------

_lock = threading.RLock()


def _after_fork() -> None:
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()  # another thread may have held it, and is not here


os.register_at_fork(after_in_child=_after_fork)

_watching: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_key_logs: weakref.WeakKeyDictionary[ssl.SSLContext, KeyLog] = weakref.WeakKeyDictionary()


def engine_of_context(context: Any) -> str | None:
    """The name of the engine that watches a context, None if none does."""
    return _watching.get(context)


def key_log_of(context: ssl.SSLContext) -> KeyLog:
    """The key log of a context that the portable or the membio engine watches."""
    return _key_logs[context]


def read_key_log(context: ssl.SSLContext) -> None:
    """Take out of a context's key log, if it has one, what its connections have left there.

    Those that the native engine watches do not read it, and their secrets are to stay in memory no
    longer than those of others.
    """
    log = _key_logs.get(context)
    if log is not None:
        with contextlib.suppress(OSError):
            log.harvest()


def watch(context: Any, engine: str | None = None) -> None:
    """Have an engine watch ``context``; ``pyktls.watch`` has the conditions."""
    if engine is not None and not isinstance(engine, str):
        raise InvalidType(f"engine must be a str or None, not {type(engine).__name__}")
    if engine is not None and engine not in ENGINES:
        raise InvalidValue(f"engine must be 'native', 'portable' or 'membio', not {engine!r}")
    if membio.is_pyopenssl_context(context):
        if engine not in (None, "membio"):
            raise InvalidValue(f"the {engine} engine does not know pyOpenSSL: 'membio' does")
        prepare_membio(context)
        return
    if not isinstance(context, ssl.SSLContext):
        raise InvalidType(f"an ssl.SSLContext is needed, not {type(context).__name__}")
    if engine == "membio":
        prepare_membio(context)
        return
    check_modules()
    read_key_log(context)
    with _lock:
        # One that watches goes on, whatever would be taken for a new context.
        present = _watching.get(context)
        present = None if present == "membio" else present
        name = engine or present or _default()
        if present is not None and name != present:
            raise HandoffRefused(f"the {present} engine watches this context already")
        if name == "native":
            native.watch(context)
        else:
            portable.check()
            _log(context)
            portable.watch(context, _key_logs[context])
        _watching[context] = name


def _default() -> str:
    forced = _forced()
    if forced:
        return forced
    reasons = {name: _why_not(name) for name in ("native", "portable")}
    for name, reason in reasons.items():
        if reason is None:
            return name
    raise Unavailable(
        f"keys cannot be taken from this Python's OpenSSL: {reasons['native']}; and "
        f"{reasons['portable']}"
    )


def prepare_membio(context: Any) -> None:
    """See that connections of the context can be made by ``MemoryBIOHandshake``."""
    with _lock:
        if not isinstance(context, ssl.SSLContext):
            if context not in _watching:
                membio.watch_pyopenssl(context)
                _watching[context] = "membio"
            return
        reason = _why_not("membio")
        if reason is not None:
            raise Unavailable(f"the membio engine does not work here: {reason}")
        _log(context)
        _watching.setdefault(context, "membio")


def _log(context: ssl.SSLContext) -> None:
    log = _key_logs.get(context)
    if log is None:
        _key_logs[context] = KeyLog(context, _put_back)
    else:
        log.take_over()


def _put_back(context: ssl.SSLContext) -> None:
    """The native engine's callback goes in front of the key log's."""
    if _watching.get(context) == "native":
        native.watch(context)
