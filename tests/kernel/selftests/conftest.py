"""The fixtures of the kernel's selftest, and the marks of what an older kernel cannot do."""

from __future__ import annotations

import pathlib

import pytest

from support import selftest

HERE = pathlib.Path(__file__).parent


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each scenario for each version and cipher that this kernel has."""
    chosen = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "variant" not in metafunc.fixturenames or "variant" in chosen:
        return
    variants = getattr(metafunc.module, "VARIANTS", selftest.TAKEN)
    metafunc.parametrize("variant", variants, ids=[variant.name for variant in variants])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE not in item.path.parents or not isinstance(item, pytest.Function):
            continue
        item.add_marker(pytest.mark.timeout(120))
        name = item.originalname.removeprefix("test_")
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if mark := selftest.expected_failure(name, params.get("variant")):
            item.add_marker(mark)


@pytest.fixture
def pair(variant):
    """A connection with sending keys at ``near`` and receiving keys at ``far``."""
    with selftest.pair(variant) as connection:
        yield connection


@pytest.fixture
def relay(variant):
    """Two connections, with the wire between them in our hands."""
    with selftest.relay(variant) as connection:
        yield connection


@pytest.fixture
def plain():
    """A connection without keys, and without the protocol."""
    near, far = selftest.tcp_pair()
    with near, far:
        yield near, far
