"""The two extension modules; everything else about the package is in pyproject.toml."""

import runpy

from Cython.Build import cythonize
from setuptools import Extension, setup

kernel = runpy.run_path("csrc/build_kernel.py")
stable_abi = kernel["STABLE_ABI"]

records = Extension(
    "pyktls._records",
    sources=["src/pyktls/_records.pyx", *kernel["kernel_sources"]()],
    depends=["csrc/kernel.h", "csrc/abi_linux.h", "csrc/abi_freebsd.h", "csrc/wipe.h"],
    include_dirs=["csrc"],
    define_macros=[
        ("_GNU_SOURCE", None),
        ("CYTHON_CLINE_IN_TRACEBACK", "0"),
        *([("Py_LIMITED_API", "0x030B0000")] if stable_abi else []),
    ],
    # Cython's own code is not clean at -Wextra; ours, in csrc/, is compiled so for _kernel.
    extra_compile_args=["-std=c11"],
    py_limited_api=stable_abi,
)

setup(
    cffi_modules=["csrc/build_kernel.py:ffibuilder"],
    ext_modules=cythonize([records], build_dir="build", language_level=3),
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if stable_abi else {},
)
