"""The C half, and both extension modules, compile and link for every FreeBSD there is.

Every number, offset and size of csrc/abi_freebsd.h is held to FreeBSD's own headers thereby.  zig
has one set of them, of a release after 14.0, and with each target only its ``__FreeBSD_version``
and its C library: what 13.0's own header lacks is taken out of it in a test.  The first run for a
target takes half a minute, in which zig makes that library.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import struct
import sys
from typing import TYPE_CHECKING

import pytest

from freebsd import cross
from pyktls import freebsd as system
from pyktls.lowlevel import ffi

if TYPE_CHECKING:
    import pathlib

TARGETS = (
    "x86_64-freebsd.13.0",
    "x86_64-freebsd.14.0",
    "x86_64-freebsd.15.0",
    "aarch64-freebsd.13.0",
    "aarch64-freebsd.14.0",
    "aarch64-freebsd.15.0",
)
ILP32 = ("x86-freebsd", "arm-freebsd-eabihf")
MACHINES = {"x86_64": 62, "aarch64": 183}  # e_machine


@pytest.fixture(autouse=True, scope="module")
def _zig() -> None:
    if platform.system() == "FreeBSD":
        pytest.skip("here the build itself is the check")
    if importlib.util.find_spec("ziglang") is None:
        if os.environ.get("PYKTLS_STRICT"):
            pytest.fail("ziglang is missing: pip install -e '.[cross]'")
        pytest.skip("ziglang is not installed: pip install -e '.[cross]'")


@pytest.fixture(scope="module")
def include(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return cross.headers(tmp_path_factory.mktemp("python") / "include")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, pathlib.Path]:
    return cross.generated(tmp_path_factory.mktemp("generated") / "c")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", TARGETS)
def test_both_modules_compile_and_link(
    target: str,
    include: pathlib.Path,
    generated: tuple[pathlib.Path, pathlib.Path],
    tmp_path: pathlib.Path,
) -> None:
    objects = cross.compile_own(target, tmp_path)
    python = cross.stand_in(target, tmp_path, include)
    for source in generated:
        module = cross.link(target, tmp_path, include, source, objects, python)
        data = module.read_bytes()
        assert data[:4] == b"\x7fELF"
        assert struct.unpack_from("<H", data, 18)[0] == MACHINES[target.partition("-")[0]]
        assert b"\0libc.so.7\0" in data  # FreeBSD's


@pytest.mark.timeout(900)
def test_the_link_would_show_what_is_missing(
    include: pathlib.Path, generated: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    with pytest.raises(cross.CompilerError, match="undefined symbol: Py"):
        cross.link(TARGETS[1], tmp_path, include, generated[1], [], None)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", [*TARGETS, *ILP32])
@pytest.mark.parametrize("name", ["abi_freebsd_check.c", "abi_linux_check.c"])
def test_the_interface_is_that_of_the_headers(
    target: str, name: str, tmp_path: pathlib.Path
) -> None:
    cross.zig(
        target, "-std=c11", *cross.WARNINGS, "-c", cross.CSRC / name, "-o", tmp_path / "out.o"
    )


# sys/ktls.h of 13.0 has these headers in it, also for programs, and lacks these names.
KTLS_H_OF_13_0 = """\
#include <sys/refcount.h>
#include <sys/_task.h>
#include_next <sys/ktls.h>
#if __FreeBSD_version >= 1400000
#error "this is not 13"
#endif
#undef TLS_CHACHA20_IV_LEN
#undef TLS_RLTYPE_ALERT
#undef TLS_RLTYPE_HANDSHAKE
"""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", [target for target in TARGETS if target.endswith("13.0")])
def test_the_interface_with_what_13_0_lacks(target: str, tmp_path: pathlib.Path) -> None:
    header = tmp_path / "include" / "sys" / "ktls.h"
    header.parent.mkdir(parents=True)
    source = cross.CSRC / "abi_freebsd_check.c"
    output = tmp_path / "out.o"
    arguments = ["-std=c11", *cross.WARNINGS, f"-I{tmp_path / 'include'}"]
    header.write_text("#error it is this header that is compiled\n")
    with pytest.raises(cross.CompilerError, match="it is this header"):
        cross.zig(target, *arguments, "-c", source, "-o", output)
    header.write_text(KTLS_H_OF_13_0)
    cross.zig(target, *arguments, "-c", source, "-o", output)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", TARGETS)
def test_each_target_has_its_own_version(target: str, tmp_path: pathlib.Path) -> None:
    """By which abi_freebsd_check.c tells what may be missing."""
    release = target.rpartition("freebsd.")[2].partition(".")[0]
    source = tmp_path / "version.c"
    source.write_text(
        "#include <sys/param.h>\n"
        f'_Static_assert(__FreeBSD_version / 100000 == {release}, "the version");\n'
    )
    cross.zig(target, "-std=c11", "-c", source, "-o", tmp_path / "version.o")


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("target", "data_model"),
    [(TARGETS[1], "LP64"), (TARGETS[3], "LP64"), *((t, "ILP32") for t in ILP32)],
)
def test_the_table_of_layouts(target: str, data_model: str, tmp_path: pathlib.Path) -> None:
    lines = ["#include <sys/param.h>", "#include <stddef.h>", "#include <sys/ktls.h>"]
    for field, (offset, size) in system.LAYOUTS[data_model].items():
        if field:
            lines.append(
                f"_Static_assert(offsetof(struct tls_enable, {field}) == {offset} && "
                f'sizeof(((struct tls_enable *)0)->{field}) == {size}, "{field}");'
            )
        else:
            lines.append(f'_Static_assert(sizeof(struct tls_enable) == {size}, "size");')
    source = tmp_path / "layout.c"
    source.write_text("\n".join(lines) + "\n")
    cross.zig(target, "-std=c11", "-c", source, "-o", tmp_path / "layout.o")


def test_a_wrong_layout_would_be_noticed(tmp_path: pathlib.Path) -> None:
    source = tmp_path / "wrong.c"
    source.write_text(
        "#include <sys/param.h>\n#include <sys/ktls.h>\n"
        '_Static_assert(sizeof(struct tls_enable) == 60, "");\n'
    )
    with pytest.raises(cross.CompilerError, match="static assertion failed"):
        cross.zig(TARGETS[1], "-c", source, "-o", tmp_path / "wrong.o")


@pytest.mark.skipif(sys.maxsize < 2**32, reason="a 32-bit Python")
def test_the_layout_on_this_machine() -> None:
    for field, (offset, size) in system.LAYOUTS["LP64"].items():
        if field:
            assert ffi.offsetof("struct tls_enable", field) == offset
            assert ffi.sizeof(dict(ffi.typeof("struct tls_enable").fields)[field].type) == size
        else:
            assert ffi.sizeof("struct tls_enable") == size
