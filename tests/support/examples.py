"""The programs in examples/, started as a user starts them, or loaded to be looked at.

``Running`` is one that goes on until it is told to stop: it is stopped by SIGTERM, has to end by
itself and with status 0, and may print no traceback.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Any, Self

from . import tls

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[2]
DIRECTORY = ROOT / "examples"
NAMES = sorted(path.stem for path in DIRECTORY.glob("*.py"))
TIMEOUT = 150.0


@functools.cache
def load(name: str) -> Any:
    """The program as a module."""
    spec = importlib.util.spec_from_file_location(f"examples_{name}", DIRECTORY / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


# What starts a program.  Warnings are errors, as in the tests themselves: nothing is left open.
# tests/freebsd has another one, with the fake kernel.
LAUNCHER = [sys.executable, "-W", "error"]


def command(name: str, *arguments: object) -> list[str]:
    return [*LAUNCHER, str(DIRECTORY / f"{name}.py"), *map(str, arguments)]


def run(name: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program that ends by itself."""
    told = {"stdin": subprocess.DEVNULL, "text": True, "timeout": TIMEOUT, **options}
    return subprocess.run(command(name, *arguments), capture_output=True, check=False, **told)


@contextlib.contextmanager
def certificates() -> Iterator[tuple[pathlib.Path, pathlib.Path, pathlib.Path]]:
    """The files of the tests' certificate for "localhost": (who signs, certificate, key)."""
    with tempfile.TemporaryDirectory() as name:
        place = pathlib.Path(name)
        files = place / "ca.pem", place / "cert.pem", place / "key.pem"
        tls.authority().cert_pem.write_to_path(files[0])
        tls.certificate().cert_chain_pems[0].write_to_path(files[1])
        tls.certificate().private_key_pem.write_to_path(files[2])
        files[2].chmod(0o600)
        yield files


class Running:
    """A program that runs while the ``with`` block does; ``options`` are Popen's."""

    def __init__(self, name: str, *arguments: object, **options: Any) -> None:
        self.name = name
        self.out: list[str] = []
        self.err: list[str] = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            command(name, *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        self._threads = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for thread in self._threads:
            thread.start()

    def _read(self, stream: Any, lines: list[str]) -> None:
        for line in stream:
            with self._changed:
                lines.append(line.rstrip("\n"))
                self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.stop()
        finally:
            self.process.kill()
            self.process.wait()
            for thread in self._threads:
                thread.join(TIMEOUT)
            self.process.stdout.close()
            self.process.stderr.close()
        if kind is None:
            assert not any("Traceback" in line or "Warning" in line for line in self.err), self.err

    def forget(self) -> None:
        """Forget what it has said so far, so that another test does not take it for its own."""
        with self._changed:
            assert not any("Traceback" in line or "Warning" in line for line in self.err), self.err
            self.out.clear()
            self.err.clear()

    def stop(self, signal_: int = signal.SIGTERM) -> None:
        """Have it stop, and see that it does."""
        if self.process.poll() is None:
            self.process.send_signal(signal_)
        assert self.process.wait(TIMEOUT) == 0, (self.out, self.err)

    def wait(self, pattern: str, *, err: bool = False, count: int = 1) -> re.Match[str]:
        """Wait for a line in which ``pattern`` is found, the ``count``-th one."""
        lines = self.err if err else self.out
        expression = re.compile(pattern)
        limit = time.monotonic() + TIMEOUT
        with self._changed:
            while True:
                ended = not any(thread.is_alive() for thread in self._threads)
                found = [match for line in lines if (match := expression.search(line))]
                if len(found) >= count:
                    return found[count - 1]
                assert not ended, (pattern, self.out, self.err)
                assert time.monotonic() < limit, (pattern, self.out, self.err)
                self._changed.wait(0.2)

    def port(self) -> int:
        """The port that it says it listens on."""
        return int(self.wait(r"(?:at |^)(?:https://)?127\.0\.0\.1:(\d+)")[1])
