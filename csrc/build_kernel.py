"""Builds pyktls._kernel: cffi, API mode, over the C files beside this one."""

from __future__ import annotations

import os
import pathlib
import sys
import sysconfig

from cffi import FFI

HERE = pathlib.Path(__file__).resolve().parent

#: The systems there is a file for, and the library that holds dlopen(3) there.  One file per system
#: is behind kernel.h; what it adds to the cdef is beside it.
SYSTEMS = {"linux": ["dl"], "freebsd": []}

#: One build serves every CPython from 3.11 on, except the free-threaded ones: they have no stable
#: ABI before 3.15, and then one that Cython does not know.
STABLE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")


def system() -> str:
    """The system that is built for, by the beginning of sys.platform."""
    # Set when building for another system than the one that builds.
    platform = os.environ.get("PYKTLS_TARGET_PLATFORM", sys.platform)
    for name in SYSTEMS:
        if platform.startswith(name):
            return name
    raise SystemExit(
        f"pyktls: no kernel TLS interface is known for {platform!r}; "
        f"it builds for {' and '.join(SYSTEMS)}"
    )


def kernel_sources() -> list[str]:
    """The C files that fill kernel.h on the system that is built for."""
    return [f"csrc/kernel_{system()}.c", "csrc/abi_linux.c", "csrc/abi_freebsd.c"]


def cdef() -> str:
    """What cffi is to know: the part of every system, and that of the one that is built for."""
    parts = ("kernel.cdef.txt", f"kernel_{system()}.cdef.txt")
    return "\n".join((HERE / part).read_text() for part in parts)


def warning_flags() -> list[str]:
    """-Werror only where asked for (make, CI): a user's younger compiler may warn of more."""
    strict = ["-Werror"] if os.environ.get("PYKTLS_WERROR") else []
    return ["-std=c11", "-Wall", "-Wextra", *strict]


ffibuilder = FFI()
ffibuilder.cdef(cdef())
ffibuilder.set_source(
    "pyktls._kernel",
    """
    #include <sys/types.h>
    #include <sys/socket.h>
    #include "kernel.h"
    #include "abi_linux.h"
    #include "abi_freebsd.h"
    #include "openssl_tap.h"
    #include "openssl_apart.h"
    #include "openssl_half.h"
    """,
    sources=[
        *kernel_sources(),
        "csrc/abi_linux_check.c",
        "csrc/abi_freebsd_check.c",
        "csrc/openssl_tap.c",
        "csrc/openssl_apart.c",
        "csrc/openssl_half.c",
    ],
    depends=[
        str(path.relative_to(HERE.parent))
        for pattern in ("*.h", "*.cdef.txt")
        for path in sorted(HERE.glob(pattern))
    ],
    include_dirs=["csrc"],
    define_macros=[
        ("_GNU_SOURCE", None),
        # cffi 2 knows that by itself, 1.17 not.
        *([] if STABLE_ABI else [("_CFFI_NO_LIMITED_API", None)]),
    ],
    extra_compile_args=warning_flags(),
    libraries=SYSTEMS[system()],
    py_limited_api=STABLE_ABI,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
