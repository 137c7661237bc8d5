"""The samples of README.md and docs/: each is run by some test, and here those for any machine.

What needs a kernel with TLS, or one without, is in tests/kernel and tests/kernel_absent.
"""

from __future__ import annotations

import ast
import http.client
import pathlib
import re
import shlex
import ssl
import subprocess
import sys

import pytest

from support import samples
from support.samples import CONTENT, Output, blocks, connect, prepare, run_sample, started_sample

TESTS = pathlib.Path(__file__).resolve().parents[1]
RUNNERS = {"run_sample", "started_sample", "execute_sample"}


# ---- no sample is run by nobody --------------------------------------------------------------


def is_python(language: str) -> bool:
    """Whether the words behind a fence name Python in one of the ways there are."""
    return re.search(r"\b(py|python\d?|pycon|ipython\d?|doctest|testcode)\b", language) is not None


def is_run(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RUNNERS
    )


def runs_in(text: str, file: str = "") -> list[tuple[str, str]]:
    """(page, name) of each call of a runner in a test, or in a fixture, of this file."""
    if not any(runner in text for runner in RUNNERS):
        return []
    found = []
    counted = 0
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef):
            continue
        fixture = any("fixture" in ast.unparse(decorator) for decorator in node.decorator_list)
        for call in ast.walk(node):
            if is_run(call):
                assert fixture or node.name.startswith("test_"), f"{file}: {node.name} is no test"
                page, name = (ast.literal_eval(argument) for argument in call.args[:2])
                found.append((page, name))
    for call in ast.walk(tree):
        counted += is_run(call)
    assert counted == len(found), f"{file}: a sample is run outside of a test"
    return found


def test_every_sample_is_run_by_a_test_and_every_test_runs_one():
    named = [
        (b.page, b.name) for page in samples.pages() for b in blocks(page) if b.kind == "sample"
    ]
    assert len(set(named)) == len(named)
    run = {
        pair
        for path in TESTS.rglob("test_*.py")
        for pair in runs_in(path.read_text(encoding="utf-8"), path.name)
    }
    assert run == set(named)


def test_every_python_block_is_a_sample():
    unnamed = [
        f"{b.page}:{b.line}"
        for page in samples.pages()
        for b in blocks(page)
        if is_python(b.language) and b.kind != "sample"
    ]
    assert unnamed == []


def test_reference_pages_have_no_code_of_their_own():
    """Theirs is in the docstrings, and these are not run."""
    for path in (samples.ROOT / "docs").rglob("*.rst"):
        assert not re.search(r"code-block|code::|::$", path.read_text(), re.MULTILINE), path


def test_a_name_without_its_block_is_noticed():
    """A blank line, say, between the comment and the fence."""
    for page in samples.pages():
        text = (samples.ROOT / page).read_text(encoding="utf-8")
        named = re.findall(r"<!-- *(?:sample|output)\b", text)
        assert len(named) == sum(b.kind != "" for b in blocks(page)), page


def test_blocks():
    text = (
        "<!-- sample: one -->\n```python\na = '```'\n\n```\ntext\n"
        "<!-- output: one -->\n````text\n```\n````\n   ~~~ sh\nls\n   ~~~\n"
    )
    found = [(b.kind, b.name, b.language, b.line, b.text) for b in blocks("p.md", text)]
    assert found == [
        ("sample", "one", "python", 2, "a = '```'\n\n"),
        ("output", "one", "text", 8, "```\n"),
        ("", "", "sh", 11, "ls\n"),
    ]
    with pytest.raises(AssertionError, match="line 1: the block has no end"):
        blocks("p.md", "```python\n")


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("python", True), ("py", True), ("python3", True), ("pycon", True), ("ipython3", True),
        ("text", False),
        ("{code-block} python", True), ("sh", False), ("", False), ("happy", False),
    ],
)  # fmt: skip
def test_ways_to_say_python(language, expected):
    assert is_python(language) is expected


def test_runs_are_found_in_tests_and_fixtures_only():
    text = (
        "def test_a():\n    with started_sample('p', 'a') as s:\n        run_sample('p', 'b', 1)\n"
    )
    assert runs_in(text) == [("p", "a"), ("p", "b")]
    assert runs_in("@pytest.fixture\ndef server():\n    run_sample('p', 'c')\n") == [("p", "c")]
    with pytest.raises(AssertionError, match="helper is no test"):
        runs_in("def helper():\n    run_sample('p', 'b')\n")
    with pytest.raises(AssertionError, match="outside of a test"):
        runs_in("run_sample('p', 'b')\n")
    with pytest.raises(ValueError, match="malformed"):
        runs_in("def test_a(name):\n    run_sample('p', name)\n")


def test_outputs_are_compared_to_the_letter():
    assert Output("a ... c\n") == "a b\nb c\n"
    assert Output("a ... c\n") != "a b c\nmore\n"
    assert Output("(a)") != "a"


# ---- those for any machine -------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    authority, port = prepare(tmp_path)
    return tmp_path, authority, port


def fetch(authority, port, path="/file.bin"):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    connect(port).close()
    client = http.client.HTTPSConnection("localhost", port, timeout=30, context=context)
    try:
        client.request("GET", path)
        return client.getresponse().read()
    finally:
        client.close()


def test_the_certificate_of_the_tutorial(tmp_path):
    done = run_sample("docs/tutorial.md", "certificate", tmp_path)
    assert done.status == 0, done.errors
    assert (tmp_path / "file.bin").stat().st_size == 1_000_000
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")


def test_drop_in_programs_with_each_other(files):
    directory, _, port = files
    with started_sample("docs/drop-in.md", "http-server", directory, port=port):
        connect(port).close()
        done = run_sample("docs/drop-in.md", "urllib", directory, port=port)
        assert (done.status, done.output) == (0, f"200 {len(CONTENT)}\n"), done.errors
        done = run_sample("docs/drop-in.md", "requests", directory, port=port)
        assert done.status == 0, done.errors
        status, line = done.output.splitlines()
        assert status.startswith("Status(ulp=")
        assert line == f"200 {len(CONTENT)}"


def test_files_in_threads(files):
    directory, authority, port = files
    with started_sample("docs/serving-files.md", "threads", directory, port=port):
        silent = connect(port)  # keeps nobody else waiting
        assert fetch(authority, port) == CONTENT
        assert fetch(authority, port) == CONTENT
        silent.close()


def test_pyktls_serve_in_a_program(files):
    directory, authority, port = files
    (directory / "files").mkdir()
    (directory / "file.bin").rename(directory / "files" / "file.bin")
    with started_sample("docs/serve.md", "serve", directory, port=port) as server:
        assert f"laddr=('127.0.0.1', {port})" in server.line()
        assert fetch(authority, port) == CONTENT


def test_what_is_this_machine(tmp_path):
    done = run_sample("docs/is-it-on.md", "machine", tmp_path)
    assert done.status == 0, done.errors
    assert re.match("AES-128-GCM in TLS 1.3: |[a-z-]+ - .*\nwhat would help: ", done.output)


def test_which_connections(tmp_path):
    done = run_sample("docs/is-it-on.md", "survey", tmp_path)
    assert (done.status, done.errors) == (0, "")


def test_the_lines_that_call_python(tmp_path):
    """The commands of the pages that are one line of Python, however they are set."""
    lines = set()
    for page in samples.pages():
        text = re.sub(r"(?<=\S)\n(?=\S)", " ", (samples.ROOT / page).read_text(encoding="utf-8"))
        lines |= set(re.findall(r'python -c "[^"]+"', text))
    assert len(lines) == 2, lines
    for line in lines:
        command = [sys.executable, *shlex.split(line)[1:]]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), line
        assert len(done.stdout.splitlines()) >= 3, line
