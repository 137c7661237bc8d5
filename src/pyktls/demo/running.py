"""Running one step: a forked Python end, the peer, and the judgement.

A fetching peer is started when the child has said where it listens, and the hash is of what the
peer prints.  When the peer serves, it is started first, and the hash is in the child's report.  If
something fails at one end, the other end is asked too, for it may know the cause.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import limits
from .children import Child
from .ends import fetch, serve
from .outcomes import Outcome, judge
from .peers import Peer, curl, hash_output, listening_port, s_client, s_server
from .steps import SERVED, StepFailed

if TYPE_CHECKING:
    from .children import Report
    from .display import Progress
    from .steps import Setting, Step

__all__ = ["run_step"]


def run_step(step: Step, setting: Setting, progress: Progress) -> Outcome:
    """Do one step and judge it."""
    outcome = Outcome(step)
    try:
        if step.serves:
            _run_server(outcome, setting, progress)
        else:
            _run_client(outcome, setting, progress)
    except StepFailed as e:
        outcome.failure = str(e)
    except OSError as e:  # a program that cannot be started, no more processes
        outcome.failure = f"{type(e).__name__}: {e}"
    else:
        outcome.failure = judge(outcome, setting)
    return outcome


def _run_server(outcome: Outcome, setting: Setting, progress: Progress) -> None:
    step = outcome.step
    with Child(serve, step, setting) as child:
        port = child.hear(limits.START_TIMEOUT).number
        program = {"s_client": s_client, "curl": curl}[step.peer]
        try:
            with Peer(step.peer, program(step, setting, port), setting) as peer:
                if step.peer == "s_client":
                    peer.say(f"GET /{SERVED} HTTP/1.0\r\n\r\n")
                outcome.bytes, outcome.sha256, last = hash_output(
                    peer, setting.size, progress, headed=step.peer == "s_client"
                )
                peer.finish()
        except StepFailed as e:
            raise child.explain(e) from None
        report = child.report()
    _take_over(outcome, report)
    outcome.seconds = last - report.started


def _run_client(outcome: Outcome, setting: Setting, progress: Progress) -> None:
    with Peer("s_server", s_server(outcome.step, setting), setting) as peer:
        port = listening_port(peer)
        with Child(fetch, outcome.step, setting, port) as child:
            try:
                report = child.report(lambda received: progress(received, setting.size))
            except StepFailed as e:
                raise StepFailed("; ".join(filter(None, (str(e), peer.complaint())))) from None
        outcome.bytes, outcome.sha256 = report.bytes, report.sha256
        peer.finish()
    _take_over(outcome, report)
    outcome.seconds = report.ended - report.started


def _take_over(outcome: Outcome, report: Report) -> None:
    outcome.cipher = report.cipher
    outcome.cpu_seconds = report.cpu_seconds
    outcome.evidence = report.evidence
