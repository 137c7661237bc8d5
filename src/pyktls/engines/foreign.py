"""What is not ssl's own: sockets of gevent and eventlet, contexts that hand on their connections.

gevent and eventlet put classes of their own in the place of Python's sockets; theirs wait in their
loop, ours in the system, where nothing of theirs would go on.  truststore has contexts that keep
another one within, and check certificates themselves: whoever makes connections of such a context
past its ``wrap_socket`` and ``wrap_bio`` makes unchecked ones.
"""

from __future__ import annotations

import _ssl
import ssl
from types import FunctionType

from pyktls.errors import Unavailable

__all__ = ["check_modules", "keeps_another", "makes_its_own", "overrides"]

_FILE = ssl.create_default_context.__code__.co_filename


def check_modules() -> None:
    """Raise Unavailable where Python's sockets have been replaced in this process."""
    owner = ssl.SSLSocket.__module__.partition(".")[0]
    if owner != "ssl":
        raise Unavailable(
            f"{owner} has replaced Python's sockets in this process, and what it runs would stand "
            "still while a socket of pyktls waits",
            remedy="use pyktls in a process without that",
        )


def makes_its_own(context: ssl.SSLContext) -> str | None:
    """What makes the connections of a context in the place of ssl's own; None if nothing does."""
    for name in ("wrap_socket", "wrap_bio", "_wrap_socket", "_wrap_bio"):
        if overrides(context, name):
            return _name_of(type(context), name)
    made = context.sslobject_class
    for name in ("_create", "do_handshake"):
        if not _is_ssls(_in_class(made, name)):
            return _name_of(made, name)
    return None if made is ssl.SSLObject else f"{made.__module__}.{made.__qualname__}"


def overrides(context: ssl.SSLContext, name: str) -> bool:
    """Whether a method of the context is not what ssl has for it, by a subclass or by a patch."""
    if name in vars(context):
        return True
    found = _in_class(type(context), name)
    if name.startswith("_"):
        return found is not vars(_ssl._SSLContext)[name]  # noqa: SLF001
    return not _is_ssls(found)


def keeps_another(context: ssl.SSLContext) -> bool:
    """Whether the connections are made by another context within: truststore's are."""
    return overrides(context, "wrap_socket") and isinstance(
        getattr(context, "_ctx", None), ssl.SSLContext
    )


def _in_class(owner: type, name: str) -> object:
    # Not by getattr, which asks properties; inspect.getattr_static takes as long as a system call.
    return next((vars(c)[name] for c in owner.__mro__ if name in vars(c)), None)


def _is_ssls(method: object) -> bool:
    # By the code itself: decorators copy names, and proxies everything that can be asked for.
    function = method.__func__ if isinstance(method, classmethod) else method
    return type(function) is FunctionType and function.__code__.co_filename == _FILE


def _name_of(owner: type, name: str) -> str:
    return f"{owner.__module__}.{owner.__qualname__}.{name}"
