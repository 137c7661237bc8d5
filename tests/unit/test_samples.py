"""The samples of README.md, docs/ and the docstrings: each is run by some test, and here those for
any machine; and of the commands on the pages what can be known without running them.

What needs a kernel with TLS, or one without, is in tests/kernel and tests/kernel_absent.
"""

from __future__ import annotations

import ast
import contextlib
import http.client
import io
import json
import pathlib
import re
import shlex
import ssl
import subprocess
import sys
import textwrap

import pytest
from benchmarks.__main__ import parser as benchmarks_parser

import pyktls
import release
from lab.__main__ import parser as lab_parser
from pyktls import record_limit
from pyktls.ciphers import AEADS
from pyktls.commands import COMMANDS, build_parser
from support import samples
from support.samples import (
    CONTENT,
    Output,
    blocks,
    connect,
    execute_sample,
    prepare,
    run_sample,
    started_sample,
)

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
    for node in tree.body:  # what is defined in a test belongs to it
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
    everywhere = [*samples.pages(), *samples.modules()]
    named = [(b.page, b.name) for page in everywhere for b in blocks(page) if b.kind == "sample"]
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


def without_comments(code: str) -> set[str]:
    """The lines, without what is only for readers."""
    return {re.sub(r"\s*(?:#.*)?$", "", line.strip()) for line in code.splitlines()} - {""}


def test_indented_python_is_taken_from_what_is_run():
    """A few lines that are pointed at, of a sample or of one of the examples."""
    run = set()
    for page in samples.pages():
        for b in blocks(page):
            run |= without_comments(b.text) if b.kind == "sample" else set()
    for path in (samples.ROOT / "examples").rglob("*.py"):
        run |= without_comments(path.read_text(encoding="utf-8"))
    taken = set()
    for page in samples.pages():
        text = (samples.ROOT / page).read_text(encoding="utf-8")
        text = re.sub(r"^ {0,3}(```|~~~).*?^ {0,3}\1$", "", text, flags=re.MULTILINE | re.DOTALL)
        for indented in re.findall(r"(?:^ {4}.*\n)+", text, re.MULTILINE):
            code = textwrap.dedent(indented)
            if page.endswith(".md") and samples.compiles(code):
                taken |= without_comments(code)
    assert "pyktls.wrap_context(context)" in taken
    assert taken <= run


#: Literal blocks of docstrings that are no program.
TEXTS = {"src/pyktls/connection_state.py"}


def test_every_literal_block_of_a_docstring_is_a_sample():
    """Unless it is not meant to be Python: what only looks like it has a mistake."""
    others = {b.page for page in samples.modules() for b in blocks(page) if b.kind != "sample"}
    assert others == TEXTS
    for page in [*samples.modules(), "src/pyktls/_records.pyx"]:
        text = (samples.ROOT / page).read_text(encoding="utf-8")
        assert not re.search(r"^ *(>>> |\.\. code)", text, re.MULTILINE), page
    assert not re.search(r"::$", text, re.MULTILINE), "no sample of _records is looked for"


def test_reference_pages_have_no_code_of_their_own():
    """Theirs is in the docstrings."""
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


def test_blocks_of_docstrings():
    text = (
        '"""Top.\n\n::\n\n    a = 1\n\n    await b()\n\nAfter::\n\n  no program\n\n'
        '.. note::\n\n    c\n"""\nclass C:\n    """What.\n\n    How.  ::\n\n        d\n    """\n'
    )
    found = [(b.kind, b.name, b.language, b.line, b.text) for b in blocks("m.py", text)]
    assert found == [
        ("sample", "module", "python", 5, "a = 1\n\nawait b()\n"),
        ("", "", "text", 11, "no program\n"),
        ("sample", "C", "python", 22, "d\n"),
    ]


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
    inner = "def test_a():\n    def child():\n        execute_sample('p', 'd', {})\n"
    assert runs_in(inner) == [("p", "d")]
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


def test_what_the_probe_says(capsys):
    execute_sample("src/pyktls/probe.py", "module", {"pyktls": pyktls, "json": json})
    assert capsys.readouterr().out == f"{pyktls.probe()}\n"


def test_the_records_that_are_counted():
    limits = record_limit.RecordBudget(AEADS[0], 100)
    names = {"budget": limits, "nbytes": 1000, "pieces": 1, "sequence_from_kernel": lambda: 200}
    execute_sample("src/pyktls/record_limit.py", "module", names)
    assert limits.estimate == 100 + names["wanted"]
    assert "decision" not in names
    limits.check_at = limits.estimate
    execute_sample("src/pyktls/record_limit.py", "module", names)
    assert names["decision"] is record_limit.Decision.CONTINUE


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


# ---- commands: what can be known without running them ----------------------------------------
#
# test_release.py knows that each make target, extra and module that a page names is there.

COMMAND = re.compile(
    r"(?:^|[;&|] )(?:\S*python3? -m )?(pyktls|benchmarks|tests\.lab)((?: [^;&|>#]*)?)(?=$|[;&|>#])"
)
PARSERS = {"pyktls": build_parser, "benchmarks": benchmarks_parser, "tests.lab": lab_parser}


def commands(text: str) -> list[tuple[str, list[str]]]:
    """(program, arguments) of each command on a page that is for one of PARSERS."""
    found = []
    for line in release.code_in(text):
        for program, arguments in COMMAND.findall(line):
            found.append((program, shlex.split(arguments)))
    return found


def usage_error(program: str, arguments: list[str]) -> str:
    """What the program's own parser says; empty if it takes the arguments."""
    if not arguments or (program == "pyktls" and " ".join(arguments) in COMMANDS):
        return ""  # spoken of, without what it needs
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            PARSERS[program]().parse_args(arguments)
        except SystemExit as e:
            return said.getvalue() if e.code else ""
    return ""


def test_the_programs_take_the_arguments_that_the_pages_give_them():
    tree = release.Tree(samples.ROOT, samples.ROOT / "dist", lambda _: (1, ""))
    found = [(page, *command) for page, text in tree.pages() for command in commands(text)]
    wrong = [f for f in found if usage_error(*f[1:])]
    assert wrong == []
    named = {" ".join([program, *arguments[:1]]) for _, program, arguments in found}
    assert {f"pyktls {name}" for name in COMMANDS} <= named
    assert {"benchmarks --far", "benchmarks --peer", "tests.lab run"} <= named


def test_commands_are_found_and_judged():
    text = (
        "Run `pyktls stat --watch`, of pyktls; `pyktls.stat` is none.\n\n"
        "    pip install . && python3 -m pyktls demo --size 1 >x  # tried\n"
        "    .venv/bin/python -m tests.lab run -- pyktls doctor\n"
    )
    found = commands(text)
    assert found == [
        ("pyktls", ["stat", "--watch"]),
        ("pyktls", ["demo", "--size", "1"]),
        ("tests.lab", ["run", "--", "pyktls", "doctor"]),
    ]
    assert [usage_error(*command) for command in found] == [""] * 3
    assert usage_error("benchmarks", ["--help"]) == ""
    for wrong in ("pyktls see", "pyktls stat --look", "benchmarks --near", "tests.lab go"):
        program, *arguments = wrong.split()
        assert "usage: " in usage_error(program, arguments), wrong
