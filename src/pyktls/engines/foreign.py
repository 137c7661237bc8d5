"""What is not ssl's own: sockets of gevent and eventlet, contexts that hand on their connections.

gevent and eventlet put classes of their own in the place of Python's sockets; theirs wait in their
loop, ours in the system, where nothing of theirs would go on.  truststore has contexts that keep
another one within, and check certificates themselves: whoever makes connections of such a context
past its ``wrap_socket`` and ``wrap_bio`` makes unchecked ones.
"""

from __future__ import annotations

import ssl

from pyktls.errors import Unavailable

__all__ = ["check_modules", "keeps_another", "makes_its_own"]


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
    for name in ("wrap_socket", "wrap_bio"):
        module = getattr(getattr(context, name), "__module__", None)
        if module != "ssl":
            return f"{module}.{type(context).__qualname__}.{name}"
    made = context.sslobject_class
    return None if made is ssl.SSLObject else f"{made.__module__}.{made.__qualname__}"


def keeps_another(context: ssl.SSLContext) -> bool:
    """Whether the connections are made by another context within: truststore's are."""
    return makes_its_own(context) is not None and isinstance(
        getattr(context, "_ctx", None), ssl.SSLContext
    )
