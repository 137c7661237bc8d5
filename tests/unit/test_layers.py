"""Who may import whom: docs/architecture.md, held to the imports.

Only imports that happen count, also those within a function; what stands under TYPE_CHECKING does
not.  A module that is in no layer here is a face of the library (a command, a package over it): it
may import everything, and no layer may import it.
"""

from __future__ import annotations

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "pyktls"

#: From below to above.  A package's name stands for all modules in it.
LAYERS = {
    "ground": {"arguments", "ciphers", "errors", "protocol"},
    "kernel": {
        "_records",
        "freebsd",
        "freebsd_probing",
        "kernel_support",
        "linux",
        "lowlevel",
        "probe",
        "running_system",
        "socket_calls",
        "trial_connection",
    },
    "session": {"engines", "handoff", "key_schedule", "session"},
    "connection": {
        "closing",
        "connection_state",
        "directions",
        "file_transfer",
        "moving",
        "offloading",
        "openssl_directions",
        "post_handshake",
        "record_errors",
        "record_layer",
        "record_limit",
        "resumption",
        "sealing",
        "sockets",
        "ssl_errors",
        "ssl_sockets",
        "status",
        "survey",
        "switch",
        "takeover",
    },
    "asyncio": {"aio"},
}
#: What each may import besides itself.  The kernel's layer and the session's know nothing of each
#: other: they meet in switch.py.  _kernel is compiled from both, so both have it.
BELOW = {
    "ground": set(),
    "kernel": {"ground", "_kernel"},
    "session": {"ground", "_kernel"},
    "connection": {"ground", "_kernel", "kernel", "session"},
    "asyncio": {"ground", "kernel", "session", "connection"},
}
#: Where OpenSSL is hidden, only the kernel can tell whether OpenSSL has switched a direction.
EXCEPTIONS = {("engines.portable", "running_system")}
#: The state machine after the handshake makes no call: bytes and types in, actions out.
NO_IO = {"post_handshake", "key_schedule", "ciphers", "protocol", "record_limit"}
IO = {"_kernel", "asyncio", "ctypes", "os", "select", "selectors", "socket", "ssl", "subprocess"}


def layer_of(module: str) -> str:
    top = module.partition(".")[0]
    if top == "_kernel":
        return top
    return next((name for name, modules in LAYERS.items() if top in modules), "face")


def imports(path: pathlib.Path) -> set[str]:
    """What a file imports when it is imported or run: pyktls's modules without ``pyktls.``."""
    package = ("pyktls", *path.relative_to(PACKAGE).parent.parts)
    found: set[str] = set()

    def look(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse if ast.unparse(node.test) == "TYPE_CHECKING" else node.body:
                look(child)
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            start = ".".join([*base, *([node.module] if node.module else [])])
            found.update(f"{start}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            look(child)

    look(ast.parse(path.read_text(encoding="utf-8")))
    return {resolve(name) for name in found}


def resolve(name: str) -> str:
    """``pyktls.session.Session`` is ``session``, ``ssl.SSLContext`` is ``ssl``."""
    first, *rest = name.split(".")
    if first != "pyktls":
        return first
    if not rest:
        return "pyktls"
    while rest and not is_module(rest):
        rest.pop()
    return ".".join(rest) or "pyktls"


def is_module(parts: list[str]) -> bool:
    place = PACKAGE.joinpath(*parts)
    return place.is_dir() or any(place.with_suffix(s).exists() for s in (".py", ".pyi"))


def module_of(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def violations() -> list[str]:
    wrong = []
    for module, path in MODULES.items():
        layer = layer_of(module)
        if layer == "face":
            continue
        for name in sorted(imports(path)):
            is_ours = name in MODULES or name in {"_kernel", "_records", "pyktls"}
            if not is_ours or (module, name) in EXCEPTIONS:
                continue
            # ``pyktls`` itself is everything at once.
            other = "face" if name == "pyktls" else layer_of(name)
            if other != layer and other not in BELOW[layer]:
                wrong.append(f"{module} ({layer}) imports {name} ({other})")
    return wrong


def test_imports_go_downwards() -> None:
    assert violations() == []


def test_every_name_of_the_layers_is_a_module() -> None:
    listed = [name for modules in LAYERS.values() for name in modules]
    assert len(listed) == len(set(listed))
    assert [name for name in listed if not is_module([name])] == []
    assert {module for module, _ in EXCEPTIONS} <= set(MODULES)
    for module, name in EXCEPTIONS:
        assert name in imports(MODULES[module]), "the exception is needed no more"


@pytest.mark.parametrize("module", sorted(NO_IO))
def test_what_works_without_io_imports_nothing_that_has_it(module: str) -> None:
    assert imports(MODULES[module]) & IO == set()


@pytest.mark.parametrize("layer", ["ground", "kernel"])
def test_only_the_layers_above_know_of_ssl(layer: str) -> None:
    knows = [m for m, path in MODULES.items() if layer_of(m) == layer and "ssl" in imports(path)]
    assert knows == []


def test_the_c_files_keep_apart() -> None:
    """The kernel's know nothing of OpenSSL, OpenSSL's nothing of the kernel, and none of Python."""
    for path in (ROOT / "csrc").glob("*.[ch]"):
        names = re.findall(r'^ *# *include [<"]([^">]+)[">]', path.read_text(), re.MULTILINE)
        assert "Python.h" not in names, path
        foreign = r"kernel|abi_" if path.name.startswith("openssl_") else "openssl"
        assert [name for name in names if re.match(foreign, name)] == [], path


def test_the_page_has_every_module_of_the_layers_where_it_belongs() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for layer, modules in LAYERS.items():
        ((row,),) = (re.findall(rf"^\| {layer} \| (.*?) \|", page, re.MULTILINE),)
        assert set(re.findall(r"`([a-z_]+)(?:\.pyx|/)?`", row)) == modules
        # And in the drawing.
        drawing = page.partition("## Who knows what")[0]
        assert [name for name in modules if not re.search(rf"\b{name}\b", drawing)] == []
