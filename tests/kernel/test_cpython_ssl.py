"""CPython's tests of its ssl module, with the connections of both ends in the kernel."""

from __future__ import annotations

import pytest

from support import cpython_ssl


@pytest.mark.timeout(600)
def test_cpythons_tests_over_the_kernel():
    report = cpython_ssl.run(580)
    print(report["slowest"])
    assert cpython_ssl.compare(report["results"], cpython_ssl.LIST["kernel"]) == []
    assert report["switched"] > report["stayed"]
