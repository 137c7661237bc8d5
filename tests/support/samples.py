"""The samples of README.md, docs/ and the docstrings, taken and run as they stand there.

A fenced block is named by a comment on the line before it: ``<!-- sample: server -->`` is a
program, ``<!-- output: server -->`` what one prints, where ``...`` stands for anything.  Readers
see neither.  A docstring's sample is its literal block (behind ``::``) that is Python; the name is
that of the class or function, and ``module`` for a module.

A test runs a sample by ``run_sample`` (a program, to its end), ``started_sample`` (a program that
others talk to) or ``execute_sample`` (in this process).  The page and the name are written out in
that call: tests/unit/test_samples.py holds all these calls to all blocks, so that none is run by
nobody.
"""

from __future__ import annotations

import ast
import contextlib
import os
import pathlib
import re
import socket
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trustme

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = pathlib.Path(__file__).parents[2]
#: What the samples' file.bin holds.
CONTENT = bytes(range(256)) * 4096
#: The port in the samples; one that is free takes its place.
PORT = "4433"
#: How often it is looked, every 0.1 s, whether a sample listens: in the lab a start takes long.
_TRIES = 2000

_OPENING = re.compile(r"^( {0,3})(`{3,}|~{3,})(.*)$")
_NAMED = re.compile(r"^<!-- (sample|output): (\S+) -->$")
# What is indented behind a paragraph that ends in two colons, unless that is a directive.
_LITERAL = re.compile(
    r"^(?P<indent> *)(?!\.\. )(?:\S.*)?::\n\n(?P<text>(?:(?P=indent) +\S.*\n|\n)+)", re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page; ``kind`` and ``name`` are empty where no comment names it."""

    page: str
    line: int
    language: str
    kind: str
    name: str
    text: str


def pages() -> list[str]:
    """Every page that may have samples, as a path below the project's root."""
    found = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").rglob("*.rst")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def modules() -> list[str]:
    """Every file whose docstrings may have samples, as a path below the project's root."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "src").rglob("*.py"))


def blocks(page: str, text: str | None = None) -> list[Block]:
    """The blocks of a page or a module (or of ``text``, for tests), in order."""
    content = (ROOT / page).read_text(encoding="utf-8") if text is None else text
    return _literal(page, content) if page.endswith(".py") else _fenced(page, content)


def _literal(page: str, text: str) -> list[Block]:
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        docstring = (ast.get_docstring(node) or "") + "\n"
        name = "module" if isinstance(node, ast.Module) else node.name
        for literal in _LITERAL.finditer(docstring):
            line = node.body[0].lineno + docstring.count("\n", 0, literal.start("text"))
            code = textwrap.dedent(literal["text"]).rstrip("\n") + "\n"
            if compiles(code):
                found.append(Block(page, line, "python", "sample", name, code))
            else:
                found.append(Block(page, line, "text", "", "", code))
    return found


def compiles(code: str) -> bool:
    """Whether it is Python, as far as that can be told from outside."""
    try:
        compile(code, "", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except SyntaxError:
        return False
    return True


def _fenced(page: str, text: str) -> list[Block]:
    lines = text.splitlines()
    found = []
    number = 0
    while number < len(lines):
        opening = _OPENING.match(lines[number])
        number += 1
        if not opening:
            continue
        begin = number
        fence = re.compile(rf"^ {{0,3}}{opening[2]}{opening[2][0]}*\s*$")
        while number < len(lines) and not fence.match(lines[number]):
            number += 1
        assert number < len(lines), f"{page}, line {begin}: the block has no end"
        named = _NAMED.match(lines[begin - 2]) if begin >= 2 else None
        kind, name = (named[1], named[2]) if named else ("", "")
        content = "".join(f"{line}\n" for line in lines[begin:number])
        found.append(Block(page, begin, opening[3].strip(), kind, name, content))
        number += 1
    return found


def block(page: str, kind: str, name: str) -> Block:
    (found,) = [b for b in blocks(page) if (b.kind, b.name) == (kind, name)]
    return found


# ---- running ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finished:
    """What became of a program."""

    status: int
    output: str
    errors: str


def _program(page: str, name: str, port: int | None, before: str) -> str:
    code = block(page, "sample", name).text
    if port is not None:
        assert PORT in code
        code = code.replace(PORT, str(port))
    return before + code


def _command(page: str, name: str, port: int | None, before: str) -> list[str]:
    code = _program(page, name, port, before)
    if block(page, "sample", name).language == "sh":
        # The words `python` and `pip` mean this Python's.
        return ["sh", "-euc", f'python() {{ "{sys.executable}" "$@"; }}\n{code}']
    return [sys.executable, "-u", "-c", code]


def _environment() -> dict[str, str]:
    """Without proxies and certificates of this machine's, which clients would use."""
    unwanted = re.compile("(?i).*_proxy|.*_CA_BUNDLE|SSL.*|PYKTLS_ENGINE")
    return {name: value for name, value in os.environ.items() if not unwanted.fullmatch(name)}


def run_sample(
    page: str,
    name: str,
    directory: pathlib.Path,
    *,
    port: int | None = None,
    before: str = "",
) -> Finished:
    """Run a sample in ``directory`` as a program of its own, to its end.

    ``port`` takes the place of the sample's, ``before`` is put in front of it.
    """
    done = subprocess.run(
        _command(page, name, port, before),
        cwd=directory,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


class Running:
    """A sample that runs."""

    def __init__(self, process: subprocess.Popen[str], port: int | None) -> None:
        self.process = process
        self.port = port

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def wait(self) -> Finished:
        """Its end, which has to come by itself."""
        output, errors = self.process.communicate(timeout=200)
        return Finished(self.process.returncode, output, errors)


@contextlib.contextmanager
def started_sample(
    page: str, name: str, directory: pathlib.Path, *, port: int, before: str = ""
) -> Iterator[Running]:
    """Run a sample in ``directory`` meanwhile; at the end it is killed, if it has not ended."""
    with subprocess.Popen(
        _command(page, name, port, before),
        cwd=directory,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Running(process, port)
        finally:
            process.kill()


def execute_sample(
    page: str, name: str, names: dict[str, Any], replace: Mapping[str, str] | None = None
) -> Any:
    """Run a sample in this process, with ``names`` as its global names.

    Each key of ``replace``, which has to be there, gives way to its value.  One that awaits runs
    when what is returned is awaited.
    """
    code = block(page, "sample", name).text
    for old, new in (replace or {}).items():
        assert old in code, old
        code = code.replace(old, new)
    program = compile(code, f"{page}: {name}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    return eval(program, names)  # noqa: S307


def shown(page: str, name: str) -> Output:
    """What the page says that a sample prints."""
    return Output(block(page, "output", name).text)


class Output:
    """Equal to every text that it describes: ``...`` stands for anything."""

    def __init__(self, text: str) -> None:
        self.text = text
        pattern = ".*".join(map(re.escape, text.split("...")))
        self._pattern = re.compile(pattern, re.DOTALL)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and self._pattern.fullmatch(other) is not None

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self.text)


# ---- what the samples need -------------------------------------------------------------------


def prepare(directory: pathlib.Path) -> tuple[trustme.CA, int]:
    """The files that a sample wants, who signed its certificate, and a port that is free."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(directory / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    authority.cert_pem.write_to_path(directory / "ca.pem")
    (directory / "file.bin").write_bytes(CONTENT)
    return authority, free_port()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def connect(port: int) -> socket.socket:
    """A connection to a sample, as soon as it listens."""
    for _ in range(_TRIES):
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=30)
        except ConnectionRefusedError:
            time.sleep(0.1)
    raise AssertionError("the sample does not listen")


def wait_until_listening(port: int) -> None:
    """For a sample that takes one connection, which is not to be this one (Linux)."""
    for _ in range(_TRIES):
        lines = pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]
        # local address, remote address, state: proc(5); 0A is TCP_LISTEN
        if any(f[1].endswith(f":{port:04X}") and f[3] == "0A" for f in map(str.split, lines)):
            return
        time.sleep(0.1)
    raise AssertionError("the sample does not listen")
