"""The list that a release has to pass: ok for a good tree, and for another what is missing.

The trees are made up, and so are git, make and twine: what they answer is given.
"""

from __future__ import annotations

import io
import pathlib
import re
import subprocess
import sys
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest

import release

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[2]

PYPROJECT = """\
[project]
name = "pyktls"
version = "1.2.3"
license = "BSD-2-Clause"
license-files = ["LICENSE"]
requires-python = ">=3.11"
authors = [{ name = "somebody", email = "somebody@x.example" }]
classifiers = [
    "Operating System :: POSIX :: BSD :: FreeBSD",
    "Operating System :: POSIX :: Linux",
    "Programming Language :: Python :: 3 :: Only",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
]
[project.optional-dependencies]
lab = []
test = []
"""
README = """\
# pyktls

Run `make test`, not make anything.  See [there](docs/page.md#part) and [elsewhere](https://x.example/).

    PYTHON=python3 make wheel
    tests/setup.sh lab,test && python -m tests.run
    pip install ".[test]"

```sh
make test
```

| system | Linux with the `tls` module: 6.1 and 7.3 on x86-64 | FreeBSD 13 to 15 is written |
| Python | [CPython 3.11 to 3.12](docs/page.md) | PyPy |

License: BSD-2-Clause.
"""
CHANGELOG = """\
# Changelog

## Unreleased

## 1.2.3 - 2026-11-26

### Added

- Something.

## 1.2.2 - 2026-01-01
"""
FILES = {
    "pyproject.toml": PYPROJECT,
    "README.md": README,
    "CHANGELOG.md": CHANGELOG,
    "Makefile": "VENV := x\nwheel:\n\techo\ntest: wheel\n\techo\nabi:\n\techo\n",
    "setup.py": 'options={"bdist_wheel": {"py_limited_api": "cp311"}}, "0x030B0000"',
    "src/pyktls/__init__.py": '__version__ = "1.2.3"\n',
    "tests/run.py": 'KERNELS = ("6.1", "7.3")\n',
    "tests/setup.sh": "",
    "docs/page.md": "[back](../README.md)\n",
    "docs/test-results.md": "`make test` of commit `0123abc`, on a machine.\n",
}
GIT = {
    "git status --porcelain": (0, ""),
    "git rev-list -n 1 v1.2.3": (128, "unknown revision"),
    "git rev-parse HEAD": (0, "beef\n"),
    "git merge-base --is-ancestor 0123abc HEAD": (0, ""),
    "git diff --name-only 0123abc HEAD -- src csrc setup.py": (0, ""),
}


class Made:
    """A tree that every item is content with."""

    def __init__(self, root: pathlib.Path) -> None:
        self.root = root
        self.answers = dict(GIT)
        self.asked: list[str] = []
        for name, text in FILES.items():
            self.write(name, text)
        self.tree = release.Tree(root, root / "dist", self.run)

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def change(self, name: str, old: str, new: str) -> None:
        text = (self.root / name).read_text(encoding="utf-8")
        assert old in text
        self.write(name, text.replace(old, new))

    def run(self, command: Sequence[str]) -> tuple[int, str]:
        line = " ".join(command)
        self.asked.append(line)
        if "twine" in line:
            return self.answers.get("twine", (0, ""))
        return self.answers[line]

    def build(self, version: str = "1.2.3", **without: str) -> None:
        """An sdist and a wheel in dist/; ``without`` leaves a file out of one."""
        dist = self.root / "dist"
        dist.mkdir(exist_ok=True)
        name = f"pyktls-{version}"
        with tarfile.open(dist / f"{name}.tar.gz", "w:gz") as sdist:
            for inside in release.IN_SDIST:
                if inside != without.get("sdist"):
                    sdist.addfile(tarfile.TarInfo(f"{name}/{inside}"), io.BytesIO())
        about = f"{name}.dist-info"
        license_line = "" if without.get("wheel") == "License-File" else "License-File: LICENSE\n"
        with zipfile.ZipFile(dist / f"{name}-cp311-abi3-manylinux2014_x86_64.whl", "w") as wheel:
            wheel.writestr(f"{about}/METADATA", f"Name: pyktls\n{license_line}\n")
            for inside in (*release.IN_WHEEL, f"{about}/licenses/LICENSE"):
                if inside != without.get("wheel"):
                    wheel.writestr(inside, "")


@pytest.fixture
def made(tmp_path: pathlib.Path) -> Made:
    return Made(tmp_path)


STATIC = [release.version, release.changelog, release.clean_tree, release.claims]
STATIC += [release.contact, release.names, release.results]


@pytest.mark.parametrize("item", STATIC)
def test_a_good_tree_is_ok(made: Made, item) -> None:
    assert item(made.tree) == []


# file, what stands there, what stands there instead, what is said
@pytest.mark.parametrize(
    ("item", "name", "old", "new", "said"),
    [
        ("version", "pyproject.toml", '"1.2.3"', '"1.2.4"', "1.2.4, pyktls.__version__ is 1.2.3"),
        ("version", "src/pyktls/__init__.py", "1.2.3", "1.2.3.dev0", "is 1.2.3.dev0"),
        ("version", "src/pyktls/__init__.py", "__version__", "v", "pyktls.__version__ is None"),
        ("changelog", "CHANGELOG.md", "Unreleased\n", "Unreleased\n\n- More.\n", "Unreleased"),
        ("changelog", "CHANGELOG.md", "## 1.2.3", "## 1.2.4", "not 1.2.3's: '1.2.4 - 2026-11-26'"),
        ("changelog", "CHANGELOG.md", "1.2.3 - 2026-11-26", "1.2.3", "has no date"),
        ("changelog", "CHANGELOG.md", "1.2.3 - 2026-11-26", "1.2.3 - soon", "not 1.2.3's"),
        ("changelog", "CHANGELOG.md", "- Something.", "", "has no entry"),
        ("claims", "README.md", "3.11 to 3.12", "3.11 to 3.13", "the classifiers say [11, 12]"),
        ("claims", "README.md", "CPython", "Python", "does not say which Pythons"),
        ("claims", "pyproject.toml", ">=3.11", ">=3.10", "requires-python is >=3.10"),
        ("claims", "setup.py", "cp311", "cp312", 'not for 3.11: no "cp311"'),
        ("claims", "setup.py", "0x030B", "0x030C", "no 0x030B0000"),
        ("claims", "README.md", "FreeBSD 13 to 15", "nothing else", "FreeBSD: in README.md's"),
        ("claims", "pyproject.toml", "POSIX :: Linux", "Other", "Linux: in README.md's"),
        ("claims", "tests/run.py", '"6.1", ', '"6.1", "6.12", ', "tests/run.py: 6.1, 6.12, 7.3"),
        ("claims", "README.md", "License: BSD-2", "License: MIT", "license BSD-2-Clause"),
        ("contact", "pyproject.toml", ", email =", ", nick =", "neither a URL nor an address"),
        ("names", "README.md", "`make test`", "`make tests`", "README.md names make tests,"),
        ("names", "README.md", "python3 make wheel", "python3 make wheels", "names make wheels,"),
        ("names", "README.md", "```sh\nmake test", "```sh\nmake demo", "names make demo,"),
        ("names", "Makefile", "test: wheel", "#", "README.md names make test,"),
        ("names", "README.md", "docs/page.md#part", "docs/pages.md#part", "the file docs/pages.md"),
        ("names", "docs/page.md", "../README.md", "README.md", "docs/page.md names the file"),
        ("names", "README.md", "tests.run", "tests.walk", "python -m tests.walk"),
        ("names", "README.md", ".[test]", ".[tests]", "the extra tests"),
        ("names", "README.md", "lab,test &&", "laboratory &&", "the extra laboratory"),
        ("results", "docs/test-results.md", "commit `0123abc`", "yesterday", "names no commit"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(made: Made, item, name, old, new, said) -> None:
    made.change(name, old, new)
    missing = getattr(release, item)(made.tree)
    assert said in "\n".join(missing)
    others = {i.__name__: i(made.tree) for i in STATIC if i.__name__ not in {item, "clean_tree"}}
    if name != "pyproject.toml":  # of which more than one item asks
        assert not any(others.values()), others


@pytest.mark.parametrize(
    "instead",
    [
        'maintainers = [{ email = "somebody@x.example" }]',
        '[project.urls]\nSecurity = "https://x.example/"\n[project.x]',
    ],
)
def test_other_ways_to_be_reached(made: Made, instead: str) -> None:
    authors = re.search(r"^authors.*$", PYPROJECT, re.MULTILINE)
    made.change("pyproject.toml", authors[0], instead)
    assert release.contact(made.tree) == []


@pytest.mark.parametrize("version", ["1.2.3.dev0", "1.2", "1.2.3+local", "v1.2.3", "1.2.3b"])
def test_what_is_no_release(made: Made, version: str) -> None:
    made.change("pyproject.toml", "1.2.3", version)
    made.change("src/pyktls/__init__.py", "1.2.3", version)
    assert release.version(made.tree) == [f"{version} is no version of a release"]


@pytest.mark.parametrize("version", ["0.1.0", "1.2.3b1", "1.0.0rc2"])
def test_what_is_a_release(made: Made, version: str) -> None:
    made.change("pyproject.toml", "1.2.3", version)
    made.change("src/pyktls/__init__.py", "1.2.3", version)
    assert release.version(made.tree) == []


@pytest.mark.parametrize(
    ("item", "words", "answer", "said"),
    [
        ("clean_tree", "status", (0, " M a\n?? b\n"), "not committed:  M a\nnot committed: ?? b"),
        ("clean_tree", "status", (128, "not a repository"), "git: not a repository"),
        ("clean_tree", "rev-list", (0, "dead\n"), "the tag v1.2.3 is there already"),
        ("results", "merge-base", (1, ""), "0123abc, is not in this history"),
        ("results", "diff", (0, "src/x.py\n"), "docs/test-results.md tells: src/x.py"),
    ],
)
def test_what_git_says(made: Made, item, words, answer, said) -> None:
    (command,) = (line for line in GIT if line.startswith(f"git {words}"))
    made.answers[command] = answer
    assert said in "\n".join(getattr(release, item)(made.tree))


def test_the_tag_of_this_very_commit_is_no_fault(made: Made) -> None:
    made.answers["git rev-list -n 1 v1.2.3"] = (0, "beef\n")
    assert release.clean_tree(made.tree) == []


def test_what_make_says(made: Made) -> None:
    made.answers |= {"make --silent abi": (0, ""), "make --silent wheel": (2, "a\nno compiler\n")}
    assert release.make("abi")(made.tree) == []
    assert release.make("docs")(made.tree) == ["there is no make docs"]
    assert release.wheels(made.tree) == ["make wheel: exit status 2\na\nno compiler"]
    made.write("Makefile", "wheel:\nwheels:\n")
    made.answers["make --silent wheels"] = (0, "")
    assert release.wheels(made.tree) == []


def test_dist_is_looked_into(made: Made) -> None:
    assert release.dist(made.tree) == ["dist has 0 sdists and 0 wheels"]
    made.build()
    assert release.dist(made.tree) == []
    assert "-m twine check --strict" in made.asked[-1]
    assert made.asked[-1].endswith("pyktls-1.2.3-cp311-abi3-manylinux2014_x86_64.whl")
    made.answers["twine"] = (1, "FAILED long_description\n")
    assert release.dist(made.tree) == ["twine: FAILED long_description"]


@pytest.mark.parametrize(
    ("without", "said"),
    [
        ({"sdist": "LICENSE"}, "the sdist has no LICENSE"),
        ({"sdist": "SECURITY.md"}, "the sdist has no SECURITY.md"),
        ({"wheel": "pyktls/_kernel.pyi"}, "has no pyktls/_kernel.pyi"),
        ({"wheel": "pyktls/py.typed"}, "has no pyktls/py.typed"),
        ({"wheel": "pyktls-1.2.3.dist-info/licenses/LICENSE"}, "whl has no LICENSE"),
        ({"wheel": "License-File"}, "whl names None"),
    ],
)
def test_what_dist_lacks(made: Made, without, said) -> None:
    made.build(**without)
    (missing,) = release.dist(made.tree)
    assert said in missing


def test_a_wheel_that_no_index_takes(made: Made) -> None:
    made.build()
    (wheel,) = made.tree.dist.glob("*.whl")
    wheel.rename(made.tree.dist / wheel.name.replace("manylinux2014", "linux"))
    (missing,) = release.dist(made.tree)
    assert missing == "pyktls-1.2.3-cp311-abi3-linux_x86_64.whl is for this machine only"


def test_dist_of_another_version(made: Made) -> None:
    made.build("1.2.30")
    made.build()
    assert [text.partition(" ")[0] for text in release.dist(made.tree)] == [
        "pyktls-1.2.30.tar.gz",
        "pyktls-1.2.30-cp311-abi3-manylinux2014_x86_64.whl",
    ]


def test_the_list_is_printed_and_its_end_says_whether_it_was_whole(made: Made) -> None:
    def fails(_: release.Tree) -> list[str]:
        raise OSError("no such program")

    lines: list[str] = []
    items = [release.Item("one", lambda _: []), release.Item("two", lambda _: ["a\nb", "c"])]
    assert not release.go_through(made.tree, [*items, release.Item("three", fails)], lines.append)
    assert lines == [
        "ok       one",
        "missing  two: a\n         b",
        "missing  two: c",
        "missing  three: OSError: no such program",
    ]
    lines.clear()
    assert release.go_through(made.tree, items[:1], lines.append)


def test_every_item_is_on_the_list_once() -> None:
    names = [item.name for item in release.ITEMS]
    assert len(names) == len(set(names)) == 11
    checks = {item.check for item in release.ITEMS}
    assert {*STATIC, release.wheels, release.dist} <= checks


def test_this_tree_says_what_is_so() -> None:
    """The items that need neither a build nor a version to be released, on this tree itself."""
    tree = release.Tree(ROOT, ROOT / "dist", lambda _: (1, ""))
    assert release.claims(tree) == []
    assert release.names(tree) == []


def test_the_command_is_not_content_with_a_part() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.release", "--only", "claims"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "ok       claims\nthat much is ok; the rest was not looked at\n"
    assert done.returncode == 1
    done = subprocess.run(
        [sys.executable, "-m", "tests.release", "--only", "dist", "--quick"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert re.match("left out dist\n", done.stdout)
    assert done.returncode == 1
