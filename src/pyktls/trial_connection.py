"""The connection on which the probe of each system tries things, and what goes over it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import Error
from .kernel_support import Answer, Cause, refusal
from .socket_calls import loopback_pair

if TYPE_CHECKING:
    from typing import Self

__all__ = ["HEADER", "SAMPLE", "TrialConnection", "no_loopback"]

#: A trial takes a fraction of a millisecond; this is for machines that are stuck.
PATIENCE = 5.0
#: What goes over a connection, and how a record of TLS begins.
SAMPLE = b"pyktls looks at how this travels"
HEADER = b"\x17\x03\x03"


def no_loopback(error: OSError, command: str) -> Answer:
    """The answer where there is no connection to try on; ``command`` brings the interface up."""
    answer = refusal(error, "there is no loopback connection to try it on", Cause.NO_LOOPBACK)
    if answer.code is not Cause.NO_LOOPBACK:
        return answer
    remedy = f"have the loopback interface up (`{command}`) and no firewall on it"
    return Answer(False, answer.reason, remedy, answer.code, answer.errno)


class TrialConnection:
    """A pair: ``near`` sends, and ``far`` receives.  A context manager that closes both."""

    def __init__(self) -> None:
        self.near, self.far = loopback_pair()
        self.near.settimeout(PATIENCE)
        self.far.settimeout(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.near.close()
        self.far.close()

    def receive(self, size: int) -> bytes:
        """At most ``size`` bytes of data, decrypted by the kernel; empty at the end."""
        raise NotImplementedError

    def expect(self, data: bytes) -> None:
        """Raise Error unless exactly that arrives."""
        got = b""
        while len(got) < len(data):
            piece = self.receive(len(data) - len(got))
            if not piece:
                break
            got += piece
        if got != data:
            raise Error("the connection does not deliver what was sent")
