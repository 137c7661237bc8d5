"""Makes handshakes, many at once, and gives each connection to the kernel.

``shake_hands`` works on a descriptor of its own (``dup``) of the socket that the kernel lends, so
whatever happens in here, the lent one stays open until the kernel has been told.  OpenSSL makes the
handshake on a socket that does not block; asyncio waits.  ``give_to_kernel`` is the one place where
the kernel's TLS comes in, and is what tests without such a kernel replace.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyktls

from .policy import Refused, Verdict, check

if TYPE_CHECKING:
    from .policy import Peer, Plan


@dataclass(frozen=True)
class Outcome:
    """How a handshake ended: what the kernel is told, and what the log says.

    ``peer`` is None unless ``verdict`` is OK.  ``seconds`` is the time that it took.
    """

    verdict: Verdict
    detail: str
    peer: Peer | None = None
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the connection is good."""
        return self.verdict is Verdict.OK


async def shake_hands(fd: int, plan: Plan) -> Outcome:
    """Make the handshake that ``plan`` says on the TCP socket ``fd``, which stays open.

    Nothing that goes wrong with the connection is raised: it is in the outcome.
    """
    begin = time.monotonic()
    blocking = os.get_blocking(fd)
    peer = None
    try:
        peer, detail = await _try(fd, plan)
        verdict = Verdict.OK
    except Refused as e:
        verdict, detail = e.verdict, str(e)
    except TimeoutError:
        verdict, detail = Verdict.TRY_AGAIN, f"not over after {plan.timeout:g} s"
    except ssl.SSLCertVerificationError as e:
        verdict, detail = Verdict.DENIED, f"certificate: {e.verify_message}"
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError):
        verdict, detail = Verdict.TRY_AGAIN, "the peer closed the connection"
    except ssl.SSLError as e:
        verdict, detail = Verdict.DENIED, _reason(e)
    except pyktls.Error as e:
        verdict, detail = Verdict.UNSUPPORTED, str(e)
    except OSError as e:
        verdict, detail = Verdict.TRY_AGAIN, str(e)
    finally:
        # O_NONBLOCK belongs to the socket, not to the descriptor: the kernel has it back as it was.
        os.set_blocking(fd, blocking)
    return Outcome(verdict, detail, peer, time.monotonic() - begin)


async def _try(fd: int, plan: Plan) -> tuple[Peer, str]:
    sock = socket.socket(fileno=os.dup(fd))
    try:
        _check_tcp(sock)
        sock.setblocking(False)
        tls = plan.wrap(sock)
    except BaseException:
        sock.close()
        raise
    try:
        async with asyncio.timeout(plan.timeout):
            await _exchange(tls)
        peer = plan.judge(tls)
        used = f"{tls.version()} {(tls.cipher() or ('?',))[0]}"
        status = _give(tls)
    finally:
        tls.close()  # without a word to the peer: the other descriptor is there
    check(status)
    return peer, f"{used} tx={status.tx} rx={status.rx}"


def _give(tls: ssl.SSLSocket) -> pyktls.Status:
    try:
        return give_to_kernel(tls)
    except ConnectionError:
        raise
    except OSError as e:
        # A system call with keys was refused, and would be the next time.
        raise Refused(Verdict.UNSUPPORTED, str(e)) from e


def _check_tcp(sock: socket.socket) -> None:
    if sock.type != socket.SOCK_STREAM or sock.family not in {socket.AF_INET, socket.AF_INET6}:
        raise Refused(Verdict.INVALID, "the descriptor is no TCP socket")
    try:
        sock.getpeername()
    except OSError as e:
        raise ConnectionResetError("the connection is gone") from e


async def _exchange(tls: ssl.SSLSocket) -> None:
    loop = asyncio.get_running_loop()
    fd = tls.fileno()
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            add, remove = loop.add_reader, loop.remove_reader
        except ssl.SSLWantWriteError:
            add, remove = loop.add_writer, loop.remove_writer
        else:
            return
        ready = asyncio.Event()
        add(fd, ready.set)
        try:
            await ready.wait()
        finally:
            remove(fd)


def give_to_kernel(tls: ssl.SSLSocket) -> pyktls.Status:
    """Switch the connection to kernel TLS in both directions; what the kernel then says of it.

    The keys are wiped here, and ``tls`` is used up.  Raises pyktls.HandoffRefused or
    pyktls.Unavailable, and OSError.
    """
    sock = pyktls.offload(tls)
    try:
        status = sock.ktls
    finally:
        sock.abandon()  # this descriptor only, and no close_notify
    return status


def _reason(error: ssl.SSLError) -> str:
    """OpenSSL's words without the place in its source."""
    return (error.reason or str(error)).lower().replace("_", " ")
