"""What can this machine do?  ``pyktls.probe()`` tries it out.

::

    support = pyktls.probe()
    if support:                                             # kernel TLS at all
        support.supports(0x0304, "AES_128_GCM")             # both directions
        support.answer(0x0304, "SM4_GCM", "tx").remedy      # what would help
        support.features["splice_to_pipe"]                  # or .code, for a program
    print(support)                                          # a table for people
    json.dumps(support.as_dict())

**By trying.**  Distributions backport, and leave out; containers forbid.  So a version number is
never looked at: the probe connects to itself over the loopback interface, attaches kernel TLS,
installs keys of zeros for every cipher, asks the kernel whether it has them, and looks at what
really travels.  (gVisor answers success to everything and sends plain text: that is
``Cause.PRETENDED``.)  Options and features are tried on such a connection too; those that corrupt
or lose data on some kernels get the trial of what goes wrong there.  It sends nothing beyond the
loopback interface, and leaves no descriptor, thread or process behind.

**What it changes.**  Asking for TLS makes Linux load the module ``tls`` where the process may do
that (CAP_NET_ADMIN in the initial user namespace: root, outside of a user namespace), and the
modules of the ciphers and ``tcp_diag`` for anybody.  The kernel's TLS counters count the trials.

**Every "no" is data.**  It has a reason, what would help, a ``Cause``, and the errno.  The function
does not raise for what the kernel does, what a seccomp filter forbids, or what ``/proc`` hides.  It
needs five free descriptors, and says so where they are not there.

**What it costs.**  Measured in the project's lab, which emulates a machine and is 10 to 20 times
slower than one: 0.2 to 0.5 s for the trials themselves (Linux 6.12, some ten connections), 1.5 ms
for a remembered result.  Where the kernel lacks ciphers (Debian's have neither SM4 nor ARIA) Linux
besides looks for their modules, and starts modprobe(8) 21 times for that: 12 to 20 s in the lab,
where to start any program takes 0.2 s; elsewhere 21 times what ``modprobe -q nothing`` takes.  The
very first time it also loads the modules that are there.  On a real machine without kernel TLS it
is 2 ms, then 40 us each time it is asked again (for root, if there is a modprobe, one start of it),
and a remembered yes costs 16 us.

**What is remembered.**  A yes is remembered for the process, and for its children after a fork.
Somebody else (another effective user, another user or network namespace, on FreeBSD other sysctls)
asks anew.  "No TLS at all" is asked again each time, which is one system call as long as the module
is not there: it may be loaded in the meantime.  ``probe(refresh=True)`` asks everything anew, for
instance after capabilities were dropped or a filter was installed, which is not noticed.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Protocol

from . import freebsd_probing
from ._kernel import lib
from .kernel_support import Answer, Cause, KernelModule, KernelSupport, Privileges
from .linux import probing as linux_probing

__all__ = [
    "Answer",
    "Cause",
    "KernelModule",
    "KernelSupport",
    "Privileges",
    "kernel_has_none",
    "probe",
]


class _System(Protocol):
    """What this asks of a system's module."""

    def examine(self) -> KernelSupport:
        """Try everything, now."""

    def situation(self) -> tuple[object, ...]:
        """What the answers stand on and can change under a process."""

    def still_without(self) -> bool:
        """Whether the kernel still does not know of TLS: cheap."""


_system: _System = freebsd_probing if lib.pyktls_system() == lib.PYKTLS_FREEBSD else linux_probing


@dataclass(frozen=True, slots=True)
class _Known:
    """A result that is kept, and what it stands on."""

    situation: tuple[object, ...]
    support: KernelSupport
    #: It needs no second look.
    settled: bool


_known: _Known | None = None
_lock = threading.RLock()


def _new_lock() -> None:
    """In a child process: the thread that held it was not copied."""
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_new_lock)


def probe(*, refresh: bool = False) -> KernelSupport:
    """Find out what this kernel can do for this process, by trying it on loopback connections.

    The result is remembered; ``refresh`` asks anew.  Where there is no kernel TLS that is asked
    again each time.  Asking makes Linux load its ``tls`` module if this process may do that.  It
    does not raise for anything that the kernel does or forbids: each "no" says why, and what would
    help.  ``pyktls/probe.py`` begins with more on this.
    """
    global _known  # noqa: PLW0603
    with _lock:
        situation = _system.situation()
        if _known is not None and not refresh and _known.situation == situation:
            if _known.settled:
                return _known.support
            if _known.support.tls.code in _NOT_THERE and _system.still_without():
                return _known.support
        found = _system.examine()
        _known = _Known(situation, found, _is_settled(found))
        return found


_seen = False


def kernel_has_none() -> bool:
    """Whether the kernel knows of no TLS at all, as far as can be told cheaply: see the top.

    That it has is remembered: where the module is unloaded later, the switch will find out.
    """
    global _seen  # noqa: PLW0603
    _seen = _seen or not _system.still_without()
    return not _seen


_NOT_THERE = frozenset({Cause.NO_MODULE, Cause.NOT_BUILT})


def _is_settled(found: KernelSupport) -> bool:
    if not found.tls:
        return found.tls.code is Cause.PRETENDED
    # Whatever failed for want of descriptors may work now.
    parts = (found.ciphers, found.rekey, found.options, found.features)
    return all(answer.code is not Cause.NO_RESOURCES for part in parts for answer in part.values())
