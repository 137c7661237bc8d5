"""_kernel.pyi has what csrc/*.cdef.txt declares, in every system's part, and nothing else."""

from __future__ import annotations

import ast
import asyncio
import inspect
import pathlib
import re

import pytest

import pyktls
from pyktls import aio
from pyktls._kernel import ffi, lib
from pyktls.aio import keywords

ROOT = pathlib.Path(__file__).resolve().parents[2]
PARTS = sorted((ROOT / "csrc").glob("*.cdef.txt"))
STUB = ast.parse((ROOT / "src" / "pyktls" / "_kernel.pyi").read_text(encoding="utf-8"))

#: Name: "int" for a number, else the types of the parameters by name, and what comes back.
Declared = dict[str, "str | tuple[dict[str, str], str]"]


def python_type(declaration: str, pointer: str) -> str:
    """What stands for a type of C; ``pointer`` for a pointer."""
    if "*" in declaration:
        return pointer
    return "None" if declaration.strip() == "void" else "int"


def declared_in_c() -> Declared:
    found: Declared = {}
    for part in PARTS:
        text = re.sub(r"/\*.*?\*/|struct \w+ \{.*?\};", "", part.read_text(), flags=re.DOTALL)
        found |= dict.fromkeys(re.findall(r"^#define (\w+) \.\.\.$", text, re.MULTILINE), "int")
        for result, name, inside in re.findall(r"([\w *]+?)(\w+)\(([^)]*)\);", text):
            parameters = [p for p in " ".join(inside.split()).split(", ") if p != "void"]
            types = {p.split()[-1].lstrip("*"): python_type(p, "_Pointer") for p in parameters}
            found[name] = (types, python_type(result, "_CData"))
    return found


def declared_in_stub() -> Declared:
    (lib_class,) = (n for n in STUB.body if isinstance(n, ast.ClassDef) and n.name == "_Lib")
    found: Declared = {}
    for node in lib_class.body:
        if isinstance(node, ast.AnnAssign):
            assert ast.unparse(node.annotation) == "Final[int]"
            found[ast.unparse(node.target)] = "int"
        else:
            assert isinstance(node, ast.FunctionDef)
            myself, *parameters = node.args.posonlyargs or node.args.args
            assert myself.arg == "self"
            # cffi's functions take no keywords.
            assert node.args.posonlyargs or not parameters
            types = {p.arg: ast.unparse(p.annotation) for p in parameters if p.annotation}
            assert node.returns is not None
            found[node.name] = (types, ast.unparse(node.returns))
    return found


def test_lib_has_the_names_and_types_of_c() -> None:
    in_c = declared_in_c()
    assert len(PARTS) == 3
    assert len(in_c) > 120
    assert declared_in_stub() == in_c


def test_lib_has_no_name_that_the_stub_lacks() -> None:
    """What is compiled is this system's part."""
    stub = declared_in_stub()
    names = set(dir(lib))
    assert names <= set(stub)
    for name in names:
        value = getattr(lib, name)
        if stub[name] == "int":
            assert isinstance(value, int), name
        else:
            assert len(ffi.typeof(value).args) == len(stub[name][0]), name


def test_ffi_has_every_name_of_the_stub() -> None:
    (ffi_class,) = (n for n in STUB.body if isinstance(n, ast.ClassDef) and n.name == "_FFI")
    names = {n.name for n in ffi_class.body if isinstance(n, ast.FunctionDef)}
    names |= {ast.unparse(n.target) for n in ffi_class.body if isinstance(n, ast.AnnAssign)}
    assert len(names) > 15
    assert {name for name in names if not hasattr(ffi, name)} == set()


def test_a_struct_goes_through_ffi_as_the_stub_says() -> None:
    info = ffi.new("struct tls_crypto_info *", {"version": 0x0304})
    assert isinstance(info, ffi.CData)
    buffer = ffi.buffer(info)
    assert isinstance(buffer[0], bytes)
    assert isinstance(buffer[:2], bytes)
    assert len(buffer) == ffi.sizeof(info[0]) == ffi.sizeof("struct tls_crypto_info")
    assert isinstance(ffi.from_buffer(b"x"), ffi.CData)
    assert isinstance(ffi.from_buffer("char[]", bytearray(1), require_writable=True), ffi.CData)
    assert isinstance(ffi.typeof(info), ffi.CType)
    with pytest.raises(ffi.error):
        ffi.new("struct nothing *")


# asyncio's own, with what a type checker sees of **keywords written out.
@pytest.mark.parametrize("name", ["create_connection", "create_server"])
def test_the_keywords_of_aio_are_those_of_the_loop(name: str) -> None:
    own = inspect.signature(getattr(aio, name)).parameters
    typed = {
        "create_connection": (keywords.ConnectingKeywords, keywords.ConnectionKeywords),
        "create_server": (keywords.ListeningKeywords, keywords.ServerKeywords),
    }[name]
    tcp, everything = (set(of.__annotations__) for of in typed)
    theirs = set(inspect.signature(getattr(asyncio.BaseEventLoop, name)).parameters)
    positional = {"protocol_factory", "host", "port"}
    assert theirs - {"self"} <= set(own) | tcp
    # Of newer Pythons than the oldest.
    assert (set(own) - {"tcp"}) | tcp <= theirs | {"require", "all_errors", "keep_alive"}
    # open_connection and start_server pass on what these take.
    assert everything == (set(own) - positional - {"tcp"}) | tcp


def test_the_types_go_with_the_package() -> None:
    package = pathlib.Path(pyktls.__file__).parent
    assert {path.name for path in package.glob("*.pyi")} == {"_kernel.pyi", "_records.pyi"}
    assert (package / "py.typed").exists()
