"""Compiles and links pyktls for FreeBSD on another system, with `zig cc` and the headers it has.

FreeBSD's headers and libraries come with zig; of Python only the headers are needed, which are this
interpreter's, with a pyconfig.h as FreeBSD's would be.  Python itself is stood in for by a library
that has every name of its headers, and nothing else: whatever the modules import besides has to be
in FreeBSD's libraries, or the link fails.
"""

from __future__ import annotations

import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig

ROOT = pathlib.Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Werror")
OWN = (
    "kernel_freebsd.c",
    "abi_linux.c",
    "abi_freebsd.c",
    "abi_linux_check.c",
    "abi_freebsd_check.c",
    "openssl_tap.c",
    "openssl_apart.c",
    "openssl_half.c",
)
LIMITED = "-DPy_LIMITED_API=0x030B0000"

# What Python.h of 3.11 asks of pyconfig.h, for a FreeBSD with 64-bit pointers.
PYCONFIG = """\
#define HAVE_CLOCK_GETTIME 1
#define HAVE_DECL_ISFINITE 1
#define HAVE_DIRENT_H 1
#define HAVE_DLOPEN 1
#define HAVE_DYNAMIC_LOADING 1
#define HAVE_FCNTL_H 1
#define HAVE_INTTYPES_H 1
#define HAVE_LONG_LONG 1
#define HAVE_PTHREAD_H 1
#define HAVE_SSIZE_T 1
#define HAVE_STDINT_H 1
#define HAVE_SYS_SELECT_H 1
#define HAVE_SYS_SOCKET_H 1
#define HAVE_SYS_STAT_H 1
#define HAVE_SYS_TIME_H 1
#define HAVE_SYS_TYPES_H 1
#define HAVE_UNISTD_H 1
#define HAVE_WCHAR_H 1
#define SIZEOF_DOUBLE 8
#define SIZEOF_FLOAT 4
#define SIZEOF_INT 4
#define SIZEOF_LONG 8
#define SIZEOF_LONG_LONG 8
#define SIZEOF_OFF_T 8
#define SIZEOF_PID_T 4
#define SIZEOF_PTHREAD_T 8
#define SIZEOF_SHORT 2
#define SIZEOF_SIZE_T 8
#define SIZEOF_TIME_T 8
#define SIZEOF_UINTPTR_T 8
#define SIZEOF_VOID_P 8
#define SIZEOF_WCHAR_T 4
#define SIZEOF__BOOL 1
#define ALIGNOF_LONG 8
#define ALIGNOF_SIZE_T 8
#define ALIGNOF_MAX_ALIGN_T 16
#define STDC_HEADERS 1
#define WITH_THREAD 1
#define __BSD_VISIBLE 1
#define _POSIX_C_SOURCE 200809L
#define _XOPEN_SOURCE 700
"""


class CompilerError(Exception):
    """What the compiler said."""


def zig(target: str, *arguments: str | pathlib.Path) -> None:
    command = [sys.executable, "-m", "ziglang", "cc", "-target", target, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompilerError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def headers(directory: pathlib.Path) -> pathlib.Path:
    """This Python's headers with FreeBSD's pyconfig.h in the place of its own."""
    shutil.copytree(sysconfig.get_path("include"), directory)
    (directory / "pyconfig.h").write_text(PYCONFIG)
    return directory


def generated(directory: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """What cffi and Cython make for FreeBSD: _kernel.c and _records.c."""
    directory.mkdir()
    os.environ["PYKTLS_TARGET_PLATFORM"] = "freebsd"
    try:
        builder = runpy.run_path(str(CSRC / "build_kernel.py"))["ffibuilder"]
    finally:
        del os.environ["PYKTLS_TARGET_PLATFORM"]
    kernel = directory / "_kernel.c"
    builder.emit_c_code(str(kernel))
    records = directory / "_records.c"
    source = ROOT / "src" / "pyktls" / "_records.pyx"
    command = [sys.executable, "-m", "cython", "-3", "-o", str(records), str(source)]
    subprocess.run(command, check=True, cwd=ROOT / "src")
    return kernel, records


def compile_own(target: str, directory: pathlib.Path) -> list[pathlib.Path]:
    """Our own C files, every warning an error and every static assertion held."""
    objects = []
    for name in OWN:
        objects.append(directory / f"{name}.o")
        common = ("-std=c11", "-D_GNU_SOURCE", "-O2", "-fPIC", *WARNINGS)
        zig(target, *common, "-c", CSRC / name, "-o", objects[-1])
    return objects


def stand_in(target: str, directory: pathlib.Path, include: pathlib.Path) -> pathlib.Path:
    """A shared library with every name that could be Python's."""
    text = "".join(header.read_text() for header in include.rglob("*.h"))
    names = sorted(set(re.findall(r"\b_?Py[A-Z_]\w*", text)))
    source = directory / "python.c"
    source.write_text("".join(f"char {name};\n" for name in names))
    library = directory / "libpython_stand_in.so"
    zig(target, "-shared", "-fPIC", "-o", library, source)
    return library


def link(
    target: str,
    directory: pathlib.Path,
    include: pathlib.Path,
    source: pathlib.Path,
    objects: list[pathlib.Path],
    python: pathlib.Path | None,
) -> pathlib.Path:
    """One extension module.  Without ``python`` its names are missing, and the link must fail."""
    module = directory / f"{source.stem}.abi3.so"
    arguments = ["-std=c11", "-O1", "-fPIC", "-shared", LIMITED, "-D_GNU_SOURCE", "-Wl,-z,defs"]
    arguments += [f"-I{include}", f"-I{CSRC}", "-o", str(module), str(source), *map(str, objects)]
    zig(target, *arguments, *([str(python)] if python else []))
    return module
