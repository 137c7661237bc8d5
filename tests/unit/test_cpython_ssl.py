"""CPython's tests of its ssl module pass where a pyktls.SSLSocket stays in user space."""

from __future__ import annotations

import pytest

from support import cpython_ssl
from support.own_kernel import has_kernel_tls
from support.systems import linux_only

FAILS, PASSES, SKIPPED = "Traceback: it failed", "ok", "skipped: not here"


@linux_only
@pytest.mark.skipif(not cpython_ssl.are_there(), reason="this Python has no test.test_ssl")
@pytest.mark.skipif(has_kernel_tls(), reason="tests/kernel/test_cpython_ssl.py runs here")
def test_cpythons_tests_in_user_space():
    report = cpython_ssl.run(280)
    assert cpython_ssl.compare(report["results"], cpython_ssl.LIST["user_space"]) == []
    assert report["switched"] == 0
    assert report["stayed"] > 100


def test_the_comparison_is_strict():
    results = {"a": PASSES, "b": FAILS, "c": SKIPPED}
    assert cpython_ssl.compare(results, {"b": "why"}) == []
    assert cpython_ssl.compare(results, {}) == [f"b fails and is not on the list:\n{FAILS}"]
    (passes,) = cpython_ssl.compare(results, {"a": "why", "b": "why", "c": "why"})
    assert passes == "a passes; the list says: why"
