"""The list that a release has to pass; `make release-check`.

    python -m tests.release [--quick] [--only ITEM ...] [--dist DIR]

Each item prints ``ok``, or what is missing. The slow ones (they build, and fetch headers) are left
out with --quick, and then it is no release yet. The exit status is 0 only if every item was ok.

An item is a function that looks at a ``Tree`` and returns what is missing, one sentence each. It
changes nothing in the tree but dist/ and what the documentation's build leaves.
"""

from __future__ import annotations

import argparse
import ast
import email
import re
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT = Path(__file__).resolve().parent.parent
#: What may be uploaded: 1.2.3, or one that comes before it.
RELEASE = re.compile(r"\d+\.\d+\.\d+((a|b|rc)\d+)?")
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/*.md", "examples/*.md", "wheels/*.md")
#: What an sdist has to have besides the sources.
IN_SDIST = (
    "LICENSE",
    "README.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
    "pyproject.toml",
)
IN_WHEEL = ("pyktls/py.typed", "pyktls/_kernel.pyi", "pyktls/_records.pyi")
#: The results are of these.
BEHAVIOUR = ("src", "csrc", "setup.py")


@dataclass
class Tree:
    """What is looked at: the files, and a way to run commands in them."""

    root: Path
    dist: Path
    #: Runs a command in the root; exit status and output.
    run: Callable[[Sequence[str]], tuple[int, str]] = field(repr=False)

    def text(self, name: str) -> str:
        path = self.root / name
        return path.read_text(encoding="utf-8") if path.exists() else ""

    @property
    def project(self) -> dict[str, Any]:
        return dict(tomllib.loads(self.text("pyproject.toml"))["project"])

    @property
    def version(self) -> str:
        return str(self.project["version"])

    def pages(self) -> Iterator[tuple[str, str]]:
        """Name and text of every page that people read."""
        for pattern in PAGES:
            for path in sorted(self.root.glob(pattern)):
                yield str(path.relative_to(self.root)), path.read_text(encoding="utf-8")

    def targets(self) -> set[str]:
        return set(re.findall(r"^([a-z][a-z-]*):(?!=)", self.text("Makefile"), re.MULTILINE))


def assigned(source: str, name: str) -> Any:
    """The value of a constant at the top of a Python file, None if there is none."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and any(ast.unparse(t) == name for t in node.targets):
            return ast.literal_eval(node.value)
    return None


# ---- the items ---------------------------------------------------------------------------------


def version(tree: Tree) -> list[str]:
    missing = []
    said = assigned(tree.text("src/pyktls/__init__.py"), "__version__")
    if said != tree.version:
        missing.append(f"pyproject.toml says {tree.version}, pyktls.__version__ is {said}")
    if not RELEASE.fullmatch(tree.version):
        missing.append(f"{tree.version} is no version of a release")
    return missing


def changelog(tree: Tree) -> list[str]:
    """The newest section is this version's, with a date, and nothing is left under Unreleased."""
    sections = re.split(r"^## +(.+)$", tree.text("CHANGELOG.md"), flags=re.MULTILINE)[1:]
    found = {title.strip(): text for title, text in zip(sections[::2], sections[1::2], strict=True)}
    missing = []
    if found.pop("Unreleased", "").strip():
        missing.append("there are entries under Unreleased: they belong to this version")
    title = next(iter(found), "")
    match = re.fullmatch(r"\[?([^\]\s]+)\]?(?: - (\d{4}-\d\d-\d\d))?", title)
    if match is None or match[1] != tree.version:
        missing.append(f"the newest section is not {tree.version}'s: {title or 'there is none'!r}")
    elif match[2] is None:
        missing.append(
            f"the section of {tree.version} has no date (## {tree.version} - YYYY-MM-DD)"
        )
    elif not re.search(r"^- ", found[title], re.MULTILINE):
        missing.append(f"the section of {tree.version} has no entry")
    return missing


def clean_tree(tree: Tree) -> list[str]:
    status, said = tree.run(["git", "status", "--porcelain"])
    if status:
        return [f"git: {said.strip()}"]
    missing = [f"not committed: {line}" for line in said.splitlines()]
    tag = f"v{tree.version}"
    status, of_tag = tree.run(["git", "rev-list", "-n", "1", tag])
    if status == 0 and of_tag.strip() != tree.run(["git", "rev-parse", "HEAD"])[1].strip():
        missing.append(f"the tag {tag} is there already, at another commit")
    return missing


def claims(tree: Tree) -> list[str]:
    """README's table of support against what the project says in other places."""
    readme, project = tree.text("README.md"), tree.project
    classifiers = project["classifiers"]
    missing = []

    pythons = sorted(
        int(name.rpartition(".")[2])
        for name in classifiers
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", name)
    )
    claimed = re.search(r"CPython 3\.(\d+) to 3\.(\d+)", readme)
    if claimed is None:
        missing.append('README.md does not say which Pythons ("CPython 3.X to 3.Y")')
    elif list(range(int(claimed[1]), int(claimed[2]) + 1)) != pythons:
        missing.append(f"README.md says {claimed[0]}, the classifiers say {pythons}")
    oldest = pythons[0] if pythons else 0
    if project["requires-python"] != f">=3.{oldest}":
        missing.append(f"requires-python is {project['requires-python']}, not >=3.{oldest}")
    setup = tree.text("setup.py")
    signs = (f'"cp3{oldest}"', f"0x03{oldest:02X}0000")
    missing += [f"setup.py is not for 3.{oldest}: no {s}" for s in signs if s not in setup]

    (row,) = re.findall(r"^\| system \|(.*)\|$", readme, re.MULTILINE) or [""]
    for system in ("Linux", "FreeBSD"):
        has = any(
            name.startswith("Operating System") and name.endswith(system) for name in classifiers
        )
        if has != (system in row):
            missing.append(f"{system}: in README.md's table or in the classifiers, not in both")
    kernels = assigned(tree.text("tests/run.py"), "KERNELS") or ()
    if list(kernels) != re.findall(r"\b\d+\.\d+\b", row.partition("Linux")[2].partition(" on ")[0]):
        missing.append(f"README.md's kernels are not those of tests/run.py: {', '.join(kernels)}")
    if f"License: {project['license']}" not in readme:
        missing.append(f"README.md does not name the license {project['license']}")
    return missing


def contact(tree: Tree) -> list[str]:
    """Where a hole is reported: SECURITY.md sends people to what the metadata names."""
    people = [*tree.project.get("authors", ()), *tree.project.get("maintainers", ())]
    if tree.project.get("urls") or any("email" in person for person in people):
        return []
    return ["pyproject.toml has neither a URL nor an address, and SECURITY.md sends people to one"]


def code_in(text: str) -> list[str]:
    """The commands of a page: lines of its blocks, and what stands between backquotes."""
    fence = re.compile(r"^```.*?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    blocks = "\n".join(fence.findall(text)).splitlines()
    rest = fence.sub("", text)
    return [
        *(line.strip() for line in blocks),
        *re.findall(r"`([^`\n]+)`", rest),
        *re.findall(r"^ {4,}(\S.*)$", rest, re.MULTILINE),
    ]


def names(tree: Tree) -> list[str]:
    """What the pages tell a reader to run, and where they send him, exists."""
    targets, extras = tree.targets(), {*tree.project["optional-dependencies"], "c", "pythons"}
    missing = []
    for page, text in tree.pages():
        wrong: set[str] = set()
        for code in code_in(text):
            named = re.findall(r"(?:^|[;&] )(?:[A-Z]+=\S+ )*g?make ([a-z][a-z-]*)", code)
            wrong |= {f"make {name}" for name in named if name not in targets}
            for some in re.findall(r"\.\[([a-z,]+)\]|tests/setup\.sh ([a-z,]+)", code):
                wrong |= {f"the extra {e}" for e in "".join(some).split(",") if e not in extras}
            for module in re.findall(r"python -m ((?:tests|benchmarks|wheels)[\w.]*)", code):
                place = tree.root.joinpath(*module.split("."))
                if not place.with_suffix(".py").exists() and not (place / "__main__.py").exists():
                    wrong.add(f"python -m {module}")
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
            if not (tree.root / page).parent.joinpath(link).exists():
                wrong.add(f"the file {link}")
        missing += [f"{page} names {name}, which is not there" for name in sorted(wrong)]
    return missing


def results(tree: Tree) -> list[str]:
    """docs/test-results.md names a commit, and nothing that was tested has changed since."""
    match = re.search(r"\bcommit `?([0-9a-f]{7,40})\b", tree.text("docs/test-results.md"))
    if match is None:
        return ['docs/test-results.md names no commit ("commit 0123abc")']
    if tree.run(["git", "merge-base", "--is-ancestor", match[1], "HEAD"])[0]:
        return [f"the commit of docs/test-results.md, {match[1]}, is not in this history"]
    _, changed = tree.run(["git", "diff", "--name-only", match[1], "HEAD", "--", *BEHAVIOUR])
    return [f"changed since what docs/test-results.md tells: {name}" for name in changed.split()]


def make(target: str) -> Callable[[Tree], list[str]]:
    """An item that a make target answers."""

    def item(tree: Tree) -> list[str]:
        if target not in tree.targets():
            return [f"there is no make {target}"]
        status, said = tree.run(["make", "--silent", target])
        last = "\n".join(said.strip().splitlines()[-8:])
        return [f"make {target}: exit status {status}\n{last}"] if status else []

    return item


def wheels(tree: Tree) -> list[str]:
    """Builds what is uploaded: every wheel there is, if there is a way to, else the one."""
    return make("wheels" if "wheels" in tree.targets() else "wheel")(tree)


def dist(tree: Tree) -> list[str]:
    """What is in dist/ is of this version, whole, and what an index takes."""
    prefix = f"pyktls-{tree.version}"
    sdists = sorted(tree.dist.glob("*.tar.gz"))
    built = sorted(tree.dist.glob("*.whl"))
    missing = [
        f"{path.name} in {tree.dist.name} is not of {tree.version}"
        for path in (*sdists, *built)
        if not path.name.startswith((f"{prefix}.tar", f"{prefix}-"))
    ]
    if missing:
        return missing
    if len(sdists) != 1 or not built:
        return [f"{tree.dist.name} has {len(sdists)} sdists and {len(built)} wheels"]
    with tarfile.open(sdists[0]) as archive:
        there = {name.removeprefix(f"{prefix}/") for name in archive.getnames()}
    missing += [f"the sdist has no {name}" for name in IN_SDIST if name not in there]
    missing += [f"{p.name} is for this machine only" for p in built if "-linux_" in p.name]
    licenses = tree.project["license-files"]
    for path in built:
        with zipfile.ZipFile(path) as archive:
            inside = set(archive.namelist())
            about = f"{prefix}.dist-info/"
            metadata = email.message_from_bytes(archive.read(f"{about}METADATA"))
        missing += [f"{path.name} has no {name}" for name in IN_WHEEL if name not in inside]
        missing += [
            f"{path.name} has no {name}"
            for name in licenses
            if f"{about}licenses/{name}" not in inside
        ]
        if metadata.get_all("License-File") != licenses:
            missing.append(f"the metadata of {path.name} names {metadata.get_all('License-File')}")
    files = [str(path) for path in (*sdists, *built)]
    status, said = tree.run([sys.executable, "-m", "twine", "check", "--strict", *files])
    if status:
        missing.append(f"twine: {said.strip()}")
    return missing


@dataclass(frozen=True)
class Item:
    """One line of the list."""

    name: str
    check: Callable[[Tree], list[str]]
    slow: bool = False


ITEMS = (
    Item("version", version),
    Item("changelog", changelog),
    Item("clean tree", clean_tree),
    Item("claims", claims),
    Item("contact", contact),
    Item("names", names),
    Item("results", results),
    Item("abi", make("abi"), slow=True),
    Item("docs", make("docs"), slow=True),
    Item("wheels", wheels, slow=True),
    Item("dist", dist, slow=True),
)


def go_through(tree: Tree, items: Sequence[Item], say: Callable[[str], None]) -> bool:
    """Whether every item is ok; an item that fails in itself is not."""
    good = True
    for item in items:
        begin = time.monotonic()
        try:
            missing = item.check(tree)
        except Exception as e:  # noqa: BLE001  (the other items are to go on)
            missing = [f"{type(e).__name__}: {e}"]
        good = good and not missing
        seconds = f"  ({time.monotonic() - begin:.0f} s)" if item.slow else ""
        if not missing:
            say(f"ok       {item.name}{seconds}")
        for text in missing:
            say(f"missing  {item.name}: " + text.replace("\n", "\n         "))
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="leave out what builds or fetches")
    parser.add_argument("--only", action="append", metavar="ITEM", choices=[i.name for i in ITEMS])
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", metavar="DIR")
    options = parser.parse_args()

    def run(command: Sequence[str]) -> tuple[int, str]:
        done = subprocess.run(
            command, cwd=ROOT, text=True, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return done.returncode, done.stdout

    wanted = [i for i in ITEMS if options.only is None or i.name in options.only]
    left_out = [i for i in wanted if i.slow and options.quick]
    tree = Tree(ROOT, options.dist, run)
    good = go_through(
        tree, [i for i in wanted if i not in left_out], lambda line: print(line, flush=True)
    )
    for item in left_out:
        print(f"left out {item.name}")
    whole = len(wanted) == len(ITEMS) and not left_out
    end = "ready to be released" if whole else "that much is ok; the rest was not looked at"
    print(end if good else "not ready")
    return 0 if good and whole else 1


if __name__ == "__main__":
    sys.exit(main())
