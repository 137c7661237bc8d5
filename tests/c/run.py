"""Builds and runs the tests of csrc/: with gcc and clang, under sanitizers, under valgrind.

    python tests/c/run.py [--allow-missing] [WORD ...]

Each run is one line; words choose those whose lines contain all of them.  A compiler or a tool that
is missing is a failure, unless --allow-missing says otherwise.  Before a tool is believed it has to
find faults that were made for it (canary.c).

Only Python's own library is needed.  A new test program is a line in PROGRAMS.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Dwarf 4: valgrind of Debian 12 cannot read the 5 of its clang.
FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-gdwarf-4", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
# Some distributions' compilers put checks around the very calls that replaced.h replaces.
FLAGS += ["-U_FORTIFY_SOURCE", f"-I{ROOT / 'csrc'}", f"-I{HERE}"]
FREEBSD = [f"-I{ROOT / 'tests/freebsd/fake/include'}", "-include", str(HERE / "freebsd_calls.h")]
SANITIZERS = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
SANITIZERS += ["-fno-omit-frame-pointer"]
VALGRIND = ["valgrind", "-q", "--error-exitcode=99", "--leak-check=full"]
TIMEOUT = 120.0


@dataclass(frozen=True)
class Program:
    """A test program: NAME.c, what it is linked with, and what it is about."""

    name: str
    with_: tuple[str, ...]  # files of this directory, or of the project if there is a / in the name
    arguments: tuple[str, ...] = ()
    scans: bool = False  # reads its own memory, which only means something without a tool around it


LINUX_SOURCES = ("csrc/kernel_linux.c", "csrc/abi_linux.c", "scripts.c")
FREEBSD_SOURCES = ("csrc/kernel_freebsd.c", "csrc/abi_freebsd.c", "tests/freebsd/fake/calls.c")
TAP_SOURCES = ("csrc/openssl_tap.c", "watched.c", "libfake_ssl.so")
HALF_SOURCES = ("csrc/openssl_half.c", *TAP_SOURCES)
APART_SOURCES = ("csrc/openssl_apart.c", *HALF_SOURCES)
PROGRAMS = (
    Program("test_abi_linux", ("csrc/abi_linux.c",)),
    Program("test_abi_freebsd", ("csrc/abi_freebsd.c",)),
    Program("test_kernel_linux", LINUX_SOURCES),
    Program("test_kernel_freebsd", (*FREEBSD_SOURCES, "scripts.c")),
    Program("test_openssl_tap", TAP_SOURCES, ("./module.so", "./unloaded.so")),
    Program("test_openssl_apart", APART_SOURCES, ("./module.so",)),
    Program("test_openssl_half", HALF_SOURCES, ("./module.so",)),
    Program(
        "test_wipe", (*LINUX_SOURCES, *APART_SOURCES, "memory.c"), ("./module.so",), scans=True
    ),
    Program("test_wipe_freebsd", (*FREEBSD_SOURCES, "scripts.c", "memory.c"), scans=True),
)


@dataclass
class Build:
    """All programs, compiled one way; ``runs`` are the ways to run them."""

    compiler: str
    name: str
    flags: list[str]
    runs: list[Run] = field(default_factory=list)

    def compile(self, directory: pathlib.Path) -> None:
        """Into ``directory``; raises Failure with what the compiler said."""

        def cc(*arguments: str) -> None:
            call([self.compiler, *FLAGS, *self.flags, *arguments], directory)

        shared = ["-shared", "-fPIC", "-o"]
        fake = [str(HERE / "fake_libssl.c"), str(HERE / "fake_libcrypto.c")]
        cc(*shared, "libfake_ssl.so", *fake)
        here = ["-Wl,-rpath,$ORIGIN"]
        cc(*shared, "module.so", *here, "-Wl,--no-as-needed", "libfake_ssl.so")
        shutil.copy(directory / "module.so", directory / "unloaded.so")
        cc("-O0", "-o", "canary", str(HERE / "canary.c"))
        objects: dict[str, str] = {}
        for program in PROGRAMS:
            parts = (f"tests/c/{program.name}.c", *program.with_)
            for part in parts:
                if part not in objects:
                    objects[part] = part
                    if part.endswith(".c"):
                        objects[part] = part.replace("/", "-") + ".o"
                        path = ROOT / part if "/" in part else HERE / part
                        fast = ["-O2"] if part == "memory.c" else []  # reads much, is no subject
                        cc("-c", *fast, *front(part), "-o", objects[part], str(path))
            # Bound lazily, which is the worst case for secrets: the dynamic linker then writes all
            # registers to the stack at the first call of each function.
            linked = [objects[part] for part in parts]
            cc("-o", program.name, *linked, *here, "-Wl,-z,lazy", "-ldl")


def front(source: str) -> list[str]:
    """What is put in front of a C file: csrc/ calls the tests and not the system."""
    if source == "csrc/kernel_freebsd.c":
        return FREEBSD
    return ["-include", str(HERE / "replaced.h")] if source.startswith("csrc/") else []


@dataclass
class Run:
    """One way to run the programs of a build."""

    build: Build
    tool: tuple[str, ...] = ()  # in front of the command
    finds: tuple[str, ...] = ()  # the faults of canary.c that it has to see
    scans: bool = False  # with those that read their own memory

    @property
    def name(self) -> str:
        words = [f"{self.build.compiler:<5}", self.build.name, *self.tool[:1]]
        return " ".join(words)

    @property
    def missing(self) -> list[str]:
        return [tool for tool in (self.build.compiler, *self.tool[:1]) if not shutil.which(tool)]

    def run(self, directory: pathlib.Path) -> str:
        """What the line says; raises Failure."""
        tests = checks = programs = 0
        for fault in ("none", *self.finds):
            try:
                call([*self.tool, "./canary", fault], directory)
            except Failure:
                if fault == "none":
                    raise
            else:
                if fault != "none":
                    raise Failure(f"{self.name} did not see the fault {fault!r} of canary.c")
        for program in PROGRAMS:
            if program.scans and not self.scans:
                continue
            command = [*self.tool, f"./{program.name}", *program.arguments]
            output = call(command, directory)
            found = re.search(r"^(\d+) tests, (\d+) checks, 0 failed$", output, re.MULTILINE)
            if not found or int(found[1]) == 0:
                raise Failure(f"{shlex.join(command)}: no test ran\n{output}")
            programs += 1
            tests += int(found[1])
            checks += int(found[2])
        return f"{programs} programs, {tests} tests, {checks} checks"


class Failure(Exception):
    """A command failed; the text is what it said."""


def call(command: list[str], directory: pathlib.Path) -> str:
    environment = {**os.environ, "LC_ALL": "C", "ASAN_OPTIONS": "detect_leaks=1"}
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Failure(f"{shlex.join(command)}: no end after {TIMEOUT:.0f} s") from None
    if done.returncode:
        raise Failure(f"{shlex.join(command)}: exit status {done.returncode}\n{done.stdout}")
    return done.stdout


def plan() -> list[Build]:
    builds = []
    for compiler in ("gcc", "clang"):
        unoptimised = Build(compiler, "-O0", ["-O0"])
        unoptimised.runs = [Run(unoptimised, scans=True)]
        optimised = Build(compiler, "-O2", ["-O2"])
        optimised.runs = [
            Run(optimised, scans=True),
            Run(optimised, tuple(VALGRIND), ("beyond the end", "leak", "uninitialised")),
        ]
        sanitized = Build(compiler, "ASan+UBSan", SANITIZERS)
        sanitized.runs = [Run(sanitized, (), ("beyond the end", "leak", "overflow"))]
        builds += [unoptimised, optimised, sanitized]
    return builds


def work(build: Build, chosen: list[Run], *, allow_missing: bool) -> list[tuple[str, str, str]]:
    """(name, "ok" or "FAILED" or "missing", text) of each run of a build."""
    results = []
    with tempfile.TemporaryDirectory(prefix="pyktls-test-c-") as name:
        directory = pathlib.Path(name)
        compiled = False
        for run in chosen:
            begin = time.monotonic()
            if run.missing:
                state = "missing" if allow_missing else "FAILED"
                results.append((run.name, state, f"not installed: {', '.join(run.missing)}"))
                continue
            try:
                if not compiled:
                    build.compile(directory)
                    compiled = True
                text = run.run(directory)
                results.append((run.name, "ok", f"{text}, {time.monotonic() - begin:.0f} s"))
            except Failure as e:
                results.append((run.name, "FAILED", str(e)))
                if not compiled:
                    break
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--allow-missing", action="store_true", help="pass over what is missing")
    parser.add_argument("words", nargs="*", metavar="WORD")
    options = parser.parse_args()
    todo = []
    for build in plan():
        runs = [run for run in build.runs if all(word in run.name for word in options.words)]
        if runs:
            todo.append((build, runs))
    if not todo:
        parser.error("no run has all these words")
    good = 0
    failed = False
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        jobs = [pool.submit(work, *job, allow_missing=options.allow_missing) for job in todo]
        for job in jobs:
            for name, state, text in job.result():
                print(f"{name:<22} {state:<8}{text}", flush=True)
                failed |= state == "FAILED"
                good += state == "ok"
    if not good and not failed:
        print("all was passed over")
    return 1 if failed or not good else 0


if __name__ == "__main__":
    sys.exit(main())
