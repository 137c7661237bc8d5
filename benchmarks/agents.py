"""The children that do the work, here and on another machine, and the channels to them."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import sys
import time
import traceback
from typing import Any, Self

import pyktls

from .ends import TIMEOUT, Channel
from .tables import Missing

#: What a child may be told to be: a function that is given the channel and the arguments.
JOBS = {
    "end": "connections",
    "handshakes": "handshakes",
    "steps": "handshakes",
    "serve": "servers",
    "load": "loads",
    "crowd": "crowds",
    "visitors": "crowds",
    "calls": "calls",
}
PORT = 4460


def run_job(channel: Channel, job: str, arguments: dict[str, Any]) -> None:
    """Be what ``job`` says; whatever goes wrong is said in the channel."""
    try:
        function = getattr(importlib.import_module(f"benchmarks.{JOBS[job]}"), job)
        function(channel, **arguments)
    except (Missing, pyktls.Unavailable) as e:
        channel.say(missing=str(e))
    except (EOFError, BrokenPipeError):
        pass
    except Exception:  # noqa: BLE001  (it belongs to whoever gave the order)
        with contextlib.suppress(OSError):
            channel.say(failed=traceback.format_exc())


class Agent:
    """A child and the channel to it; a context manager that ends it."""

    def __init__(self, channel: Channel, pid: int = 0) -> None:
        self.channel = channel
        self.pid = pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
        if self.pid:
            end(self.pid)

    def hear(self) -> dict[str, Any]:
        """What it says next; raises what it has failed with."""
        try:
            message = self.channel.hear()
        except EOFError:
            raise RuntimeError("a child has ended without a word") from None
        if "missing" in message:
            raise Missing(message["missing"])
        if "failed" in message:
            raise RuntimeError(message["failed"])
        return message

    def tell(self, **order: Any) -> None:
        self.channel.say(**order)

    def ask(self, **order: Any) -> dict[str, Any]:
        self.tell(**order)
        return self.hear()


def end(pid: int) -> None:
    """Wait for a child that has lost its channel; kill it if it does not mind."""
    limit = time.monotonic() + TIMEOUT / 20
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.monotonic() > limit:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


class Agents:
    """Where children are made: near ones here, far ones here or at ``peer``."""

    def __init__(self, peer: str | None = None) -> None:
        self.peer = peer
        self.host = "127.0.0.1"
        if peer is not None:
            with self._connect() as sock:
                self.host = sock.getsockname()[0]

    def near(self, job: str, **arguments: Any) -> Agent:
        """A child of this process."""
        ours, its = socket.socketpair()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            try:
                ours.close()
                run_job(Channel(its), job, arguments)
            finally:
                os._exit(0)
        its.close()
        ours.settimeout(TIMEOUT)
        return Agent(Channel(ours), pid)

    def far(self, job: str, **arguments: Any) -> Agent:
        """A child that connects to a near one."""
        if self.peer is None:
            return self.near(job, host=self.host, **arguments)
        channel = Channel(self._connect())
        channel.say(job=job, arguments={"host": self.host, **arguments})
        return Agent(channel)

    def _connect(self) -> socket.socket:
        host, _, port = (self.peer or "").partition(":")
        return socket.create_connection((host, int(port or PORT)), TIMEOUT)


def be_far(address: str) -> None:
    """Make far children for whoever asks, until interrupted."""
    host, _, port = address.rpartition(":") if ":" in address else (address, "", "")
    # A child is not waited for: it just ends.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.create_server((host, int(port or PORT))) as listener:
        print(f"waiting for `python -m benchmarks --peer THIS_MACHINE` at {address}", flush=True)
        while True:
            sock, caller = listener.accept()
            if os.fork() == 0:
                try:
                    _be_one(listener, sock)
                finally:
                    os._exit(0)
            print(f"{caller[0]}:{caller[1]}", flush=True)
            sock.close()


def _be_one(listener: socket.socket, sock: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    listener.close()
    channel = Channel(sock)
    with contextlib.suppress(EOFError):
        start = channel.hear()
        run_job(channel, start["job"], start["arguments"])
