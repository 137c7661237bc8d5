"""Looks into wheels: does each hold what it should, and run where its name says?"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING, Any, TypeVar

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerSymSection
from elftools.elf.sections import SymbolTableSection

from .build import ROOT, BuildError
from .targets import musl

if TYPE_CHECKING:
    from pathlib import Path

    from .targets import Target

S = TypeVar("S")
NO_VERSION = ("VER_NDX_LOCAL", "VER_NDX_GLOBAL")
MODULES = ("_kernel", "_records")
#: What belongs to the sources.
SOURCES = re.compile(r"\.(c|h|pyx|o|txt)$|build_kernel|^csrc|^tests|^wheels")


def audit(wheel: Path, target: Target, traces: tuple[bytes, ...]) -> str:
    """See that a wheel is right; a line about it.

    ``traces`` are paths of the machine that built it, none of which may be in it.

    :raises BuildError: it is not; the text says why.
    """
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    _look_at_names(wheel, target, list(files))
    for module in MODULES:
        name = f"pyktls/{module}.{'abi3' if 'abi3' in target.name else target.soabi}.so"
        if name not in files:
            raise BuildError(f"{wheel.name} has no {name}")
        _look_at_module(f"{wheel.name}: {name}", files[name], target)
    for name, data in files.items():
        if found := [trace.decode() for trace in traces if trace in data]:
            raise BuildError(f"{wheel.name}: {name} has the builder's path {found[0]}")
    said = f"{wheel.name}: {_ask_auditwheel(wheel, target)}"
    if "abi3" in target.name:
        _ask_abi3audit(wheel)
        said += ", abi3audit agrees"
    return said


def _look_at_names(wheel: Path, target: Target, names: list[str]) -> None:
    if not wheel.name.endswith(f"-{target.name}.whl"):
        raise BuildError(f"{wheel.name} is not called {target.name}")
    information = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info/"
    for name in names:
        if not name.startswith(("pyktls/", information)):
            raise BuildError(f"{wheel.name} has {name}")
        if SOURCES.search(name) and not name.startswith(information):
            raise BuildError(f"{wheel.name} has {name}, which belongs to the sources")


def _look_at_module(name: str, data: bytes, target: Target) -> None:
    elf = ELFFile(io.BytesIO(data))
    if elf["e_machine"] != target.machine.elf:
        raise BuildError(f"{name} is for {elf['e_machine']}")
    tags: list[Any] = list(_section(elf, ".dynamic", DynamicSection).iter_tags("DT_NEEDED"))
    needed = {tag.needed for tag in tags}
    if found := [library for library in needed if re.match("lib(ssl|crypto|python)", library)]:
        raise BuildError(f"{name} is linked to {found[0]}")
    if missing := sorted(_outside(elf, target)):
        raise BuildError(f"{name} needs {missing}, which {target.libc.abi} does not have")


def _outside(elf: ELFFile, target: Target) -> set[str]:
    """The names that a module needs and neither Python nor the C library has."""
    symbols = _section(elf, ".dynsym", SymbolTableSection)
    outside = [
        (number, symbol.name)
        for number, symbol in enumerate(symbols.iter_symbols())
        if symbol["st_shndx"] == "SHN_UNDEF" and symbol["st_info"]["bind"] == "STB_GLOBAL"
        if not re.match("_?Py", symbol.name)
    ]
    if target.libc.abi == "gnu":
        # Each of glibc's names got a version when the module was linked.
        versions = _section(elf, ".gnu.version", GNUVerSymSection)
        return {
            name for number, name in outside if versions.get_symbol(number)["ndx"] in NO_VERSION
        }
    with musl(target.machine).open("rb") as file:
        library = _section(ELFFile(file), ".dynsym", SymbolTableSection)
        has = {
            symbol.name for symbol in library.iter_symbols() if symbol["st_shndx"] != "SHN_UNDEF"
        }
    return {name for _, name in outside} - has


def _section(elf: ELFFile, name: str, kind: type[S]) -> S:
    found = elf.get_section_by_name(name)
    if not isinstance(found, kind):
        raise BuildError(f"there is no {name}")
    return found


def _ask_auditwheel(wheel: Path, target: Target) -> str:
    """The oldest system that auditwheel sees it run on."""
    said = json.loads(_say([sys.executable, "-m", "auditwheel", "show", "--json", str(wheel)]))
    family, newest = target.libc.newest
    found = re.fullmatch(rf"{family}_(\d+)_(\d+)_{target.machine.name}", said["overall_tag"])
    if found is None or (int(found[1]), int(found[2])) > newest:
        raise BuildError(f"{wheel.name} is {said['overall_tag']}, says auditwheel: {said}")
    if said["external_libs"]:
        raise BuildError(f"{wheel.name} needs {said['external_libs']}, says auditwheel")
    return f"auditwheel says {said['overall_tag']}"


def _ask_abi3audit(wheel: Path) -> None:
    _say([sys.executable, "-m", "abi3audit", "--strict", "--summary", str(wheel)])


def ask_cibuildwheel(targets: tuple[Target, ...]) -> None:
    """See that cibuildwheel, by pyproject.toml, would build the same but for what it dropped."""
    command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers"]
    said = set(_say([*command, "--platform", "linux", str(ROOT)]).split())
    expected = {
        # Its release 4 has no 3.13t any more.
        f"cp{target.python.nodot}-{target.libc.platform[:9]}_{target.machine.name}"
        for target in targets
        if target.python.nodot != "313t"
    }
    if said != expected:
        raise BuildError(
            f"cibuildwheel would build {sorted(said - expected)} and not {sorted(expected - said)}"
        )


def _say(command: list[str]) -> str:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout
