"""What builds and checks the wheels, as far as it needs no compiler (`make wheels` needs one)."""

from __future__ import annotations

import io
import pathlib
import re
import runpy
import tarfile
import tomllib

import pytest
from wheels.build import BuildError, compare, normalize, unpack
from wheels.targets import PYTHONS, TARGETS, sysconfig_data

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def sdist(path: pathlib.Path, names: list[str], **attributes: object) -> pathlib.Path:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            info = tarfile.TarInfo(f"pyktls-1/{name}")
            info.size = len(name)
            for attribute, value in attributes.items():
                setattr(info, attribute, value)
            tar.addfile(info, io.BytesIO(name.encode()))
    return path


def test_an_sdist_depends_on_what_is_in_it_alone(tmp_path: pathlib.Path) -> None:
    (tmp_path / "other").mkdir()
    one = sdist(tmp_path / "pyktls-1.tar.gz", ["a", "b"], mtime=1, uname="me", mode=0o600)
    other = tmp_path / "other" / "pyktls-1.tar.gz"
    sdist(other, ["b", "a"], mtime=2, uid=7, mode=0o664)
    assert one.read_bytes() != other.read_bytes()
    for path in (one, other):
        normalize(path, 1_700_000_000)
    assert one.read_bytes() == other.read_bytes()
    tree = unpack(one, tmp_path / "unpacked")
    assert {path.name: path.read_text() for path in tree.iterdir()} == {"a": "a", "b": "b"}
    sdist(other, ["b", "c"])
    normalize(other, 1_700_000_000)
    assert one.read_bytes() != other.read_bytes()


def test_programs_stay_programs(tmp_path: pathlib.Path) -> None:
    path = sdist(tmp_path / "pyktls-1.tar.gz", ["run"], mode=0o700)
    normalize(path, 0)
    with tarfile.open(path) as tar:
        assert tar.getmember("pyktls-1/run").mode == 0o755


def test_another_second_build_is_noticed() -> None:
    compare({"a": "1", "b": "2"}, {"b": "2", "a": "1"})
    with pytest.raises(BuildError, match=r"others: b$"):
        compare({"a": "1", "b": "2"}, {"a": "1", "b": "3"})
    with pytest.raises(BuildError, match=r"others: c$"):
        compare({"a": "1"}, {"a": "1", "c": "3"})


def test_there_is_a_wheel_for_each_python_library_and_machine() -> None:
    names = [target.name for target in TARGETS]
    assert len(set(names)) == len(names) == 16
    assert "cp311-abi3-manylinux2014_x86_64" in names
    assert "cp314-cp314t-musllinux_1_2_aarch64" in names


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_what_setuptools_is_told(target, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "told.py"
    here = pathlib.PurePath("/p")
    file.write_text(sysconfig_data(target, here / "zig", here / "include", here / "source"))
    told = runpy.run_path(str(file))["build_time_vars"]
    assert bool(told["Py_GIL_DISABLED"]) == target.python.free_threaded == ("t-" in target.name)
    assert told["EXT_SUFFIX"] == f".{told['SOABI']}.so"
    assert told["SOABI"].split("-")[1] == target.python.nodot
    assert f"-target {target.machine.name}-linux-" in told["CC"]
    musl = "musl" in target.platform
    assert ("libc.musl-" in told["LDSHARED"]) == musl
    assert told["SOABI"].endswith("-musl" if musl else "-gnu")


def test_the_stable_abi_is_that_of_the_oldest_python() -> None:
    oldest = PYTHONS[0].version
    assert PROJECT["project"]["requires-python"] == f">={oldest}"
    limited = f"0x03{int(oldest.partition('.')[2]):02X}0000"
    assert f'"Py_LIMITED_API", "{limited}"' in (ROOT / "setup.py").read_text(encoding="utf-8")


def test_every_tool_is_pinned() -> None:
    lines = (ROOT / "wheels" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0] for line in lines if re.fullmatch(r"[\w-]+==[\d.]+", line)}
    assert len(pinned) == len([line for line in lines if not line.startswith("#")])
    needs = {re.split("[>=]", need)[0] for need in PROJECT["build-system"]["requires"]}
    assert needs <= pinned


def test_cibuildwheel_has_all_that_the_tests_read() -> None:
    """It copies these to an empty directory and runs the tests there; the sdist has the same."""
    copied = PROJECT["tool"]["cibuildwheel"]["test-sources"]
    assert all((ROOT / name).exists() for name in copied)
    manifest = (ROOT / "MANIFEST.in").read_text(encoding="utf-8")
    named = " ".join(re.findall(r"^(?:include|graft) +(.+)$", manifest, re.MULTILINE)).split()
    always = {"pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "src"}
    assert set(copied) == always | set(named)
