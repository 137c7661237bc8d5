"""Builds pyktls._kernel: cffi, API mode, over the C files beside this one."""

from __future__ import annotations

import os
import pathlib
import sys

from cffi import FFI

HERE = pathlib.Path(__file__).resolve().parent

#: One file per system behind kernel.h, by the beginning of sys.platform.
KERNEL_SOURCES = {"linux": "csrc/kernel_linux.c"}


def kernel_source() -> str:
    """The C file that fills kernel.h on the system that is built for."""
    # Set when building for another system than the one that builds.
    platform = os.environ.get("PYKTLS_TARGET_PLATFORM", sys.platform)
    for prefix, source in KERNEL_SOURCES.items():
        if platform.startswith(prefix):
            return source
    raise SystemExit(
        f"pyktls: no kernel TLS interface is known for {platform!r}; "
        f"it builds for {', '.join(KERNEL_SOURCES)}"
    )


def warning_flags() -> list[str]:
    """-Werror only where asked for (make, CI): a user's younger compiler may warn of more."""
    strict = ["-Werror"] if os.environ.get("PYKTLS_WERROR") else []
    return ["-std=c11", "-Wall", "-Wextra", *strict]


ffibuilder = FFI()
ffibuilder.cdef((HERE / "kernel.cdef.txt").read_text())
ffibuilder.set_source(
    "pyktls._kernel",
    """
    #include <sys/types.h>
    #include <sys/socket.h>
    #include "kernel.h"
    #include "abi_linux.h"
    #include "openssl_tap.h"
    """,
    sources=[kernel_source(), "csrc/abi_linux_check.c", "csrc/openssl_tap.c"],
    depends=[str(p.relative_to(HERE.parent)) for p in sorted(HERE.glob("*.[h]"))]
    + ["csrc/kernel.cdef.txt"],
    include_dirs=["csrc"],
    define_macros=[("_GNU_SOURCE", None)],
    extra_compile_args=warning_flags(),
    libraries=["dl"] if sys.platform.startswith("linux") else [],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
