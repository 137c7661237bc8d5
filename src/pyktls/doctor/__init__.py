"""``pyktls doctor``: what this machine can do, what is in the way, and what would help.

How this works.  ``pyktls.probe`` has tried the kernel and ``pyktls.engines`` looked at OpenSSL; the
rest is read.  ``machine`` reads the system around the kernel, ``openssl`` tries OpenSSL's own use
of kernel TLS, ``crypto`` and ``cards`` ask what makes it fast.  ``verdict`` judges, ``remedies``
knows what to do, and neither does any I/O.  ``report`` shows it all.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from pyktls._kernel import lib
from pyktls.commands.terminal import Paint, complain
from pyktls.engines.choice import engines
from pyktls.errors import Error
from pyktls.probe import probe

from .cards import read_cards
from .crypto import read_crypto
from .machine import read_machine
from .openssl import look_at_openssl
from .remedies import find
from .report import Report
from .verdict import Level, judge, missing, offered_by_default

if TYPE_CHECKING:
    import argparse

__all__ = ["EXIT_STATUS", "Report", "add_arguments", "examine", "run"]

DESCRIPTION = """\
Say what this machine can do of kernel TLS, found by trying: each cipher, TLS
1.2 and 1.3, sending and receiving.  What is in the way comes with what would
help, in commands for this very system.  Then the details: kernel, container,
Python's OpenSSL, processor, network cards.
"""
EPILOG = """\
As root it makes the kernel load its tls module, if that is there.  Nothing is
sent beyond the loopback interface, and no setting is changed.

The verdict is about what connections end up with unless somebody asks for
something else: AES-GCM and ChaCha20-Poly1305 as this Python's OpenSSL offers
them, with TLS 1.2 and 1.3.
"""
#: 2 is argparse's: no script is to take a wrong option for an answer.
EXIT_STATUS = {
    0: "yes: both directions work with what OpenSSL offers by default",
    1: "partly: some of it, or one direction, or the keys cannot be had from OpenSSL",
    2: "wrong usage",
    3: "no: there is no kernel TLS for this process",
}
_STATUS = {Level.YES: 0, Level.PARTLY: 1, Level.NO: 3}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Tell ``parser`` what the doctor takes."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("--json", action="store_true", help="a JSON object instead of text")


def examine() -> Report:
    """Look at everything.  Raises InvalidValue if PYKTLS_ENGINE names no engine."""
    known = engines()
    support = probe()
    on_linux = lib.pyktls_system() == lib.PYKTLS_LINUX
    machine = read_machine()
    crypto = read_crypto() if on_linux else None
    offered = offered_by_default()
    return Report(
        verdict=judge(support, known, offered),
        findings=find(support, missing(support, offered), known, machine, crypto),
        support=support,
        offered=offered,
        engines=known,
        openssl=look_at_openssl(support),
        machine=machine,
        crypto=crypto,
        cards=read_cards() if on_linux else None,
    )


def run(options: argparse.Namespace) -> int:
    """Examine, show, and return the exit status."""
    try:
        report = examine()
    except Error as e:
        return complain("doctor", e, 2, as_json=options.json)
    if options.json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        for line in report.as_text(Paint(sys.stdout)):
            print(line)
    return _STATUS[report.verdict.level]
