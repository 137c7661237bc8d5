"""What decides whether a test may run here at all.

tests/kernel, tests/interop and tests/nfs need a kernel with TLS, tests/kernel_defects one with old
defects in its TLS, tests/kernel_absent one without TLS.  None is ever skipped for that: on the
wrong kernel they fail, and say how to run them.  tests/run.py knows the right kernel for each;
`make test` calls it.
"""

from __future__ import annotations

import pathlib

import pytest
from hypothesis import settings

from support.own_kernel import has_kernel_tls
from support.sampling import divide, sample, share

HERE = pathlib.Path(__file__).parent

# How long an example takes depends on what else the machine does, and is not what is tested.
settings.register_profile("pyktls", deadline=None)
settings.load_profile("pyktls")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--variants", type=share, metavar="PART/OF", help="some of each test's variants: 1/4"
    )
    parser.addoption("--tests", type=share, metavar="PART/OF", help="some of the tests: 1/2")
    parser.addoption(
        "--like-freebsd",
        action="store_true",
        help="on the fake of FreeBSD's kernel, in a Python without what only Linux has",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.option.like_freebsd:
        from freebsd.fake import likeness  # noqa: PLC0415  (it builds the package once more)

        likeness.assume()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for option, choose in ((config.option.tests, divide), (config.option.variants, sample)):
        if option is not None:
            kept = set(choose(items, *option, name_of=lambda item: item.nodeid))
            if choose is divide:
                kept.update(item for item in items if item.get_closest_marker("every_kernel"))
            config.hook.pytest_deselected(items=list(set(items).difference(kept)))
            items[:] = [item for item in items if item in kept]
    wants = {
        HERE / "kernel": True,
        HERE / "interop": True,
        HERE / "nfs": True,
        HERE / "kernel_defects": True,
        HERE / "kernel_absent": False,
    }
    here: bool | None = None
    for item in items:
        for directory, wanted in wants.items():
            if directory not in item.path.parents:
                continue
            if here is None:
                here = has_kernel_tls()
            item.add_marker(pytest.mark.kernel)
            if here is not wanted:
                item.add_marker(pytest.mark.usefixtures("wrong_kernel"))


@pytest.fixture
def wrong_kernel() -> None:
    pytest.fail(
        "this kernel is the wrong one for the test (tests/kernel, tests/interop and tests/nfs need "
        "TLS, tests/kernel_absent needs its absence); `make test` boots the right ones",
        pytrace=False,
    )
