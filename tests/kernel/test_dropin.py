"""pyktls.wrap_context on a real kernel: programs with one line changed, and each call of ssl's."""

from __future__ import annotations

import pytest

import pyktls
from pyktls import Mode
from support import kernel, programs
from support.programs import PROGRAMS

over_versions = pytest.mark.parametrize(
    "version", kernel.OPENSSL_VERSIONS.values(), ids=kernel.VERSION_NAMES.values()
)


@over_versions
@pytest.mark.parametrize("name", PROGRAMS)
def test_with_one_line_changed(name, version, monkeypatch):
    seen = programs.Watcher(monkeypatch)
    PROGRAMS[name](pyktls.wrap_context, version)
    assert seen.made
    for status in (*seen.made, *seen.closed):
        assert status.refusal is None
        assert (status.ulp, status.version) == ("tls", version)
        assert status.tx is Mode.SOFTWARE
        assert status.rx is Mode.SOFTWARE
        assert (status.openssl_tx, status.openssl_rx) == (False, False)
    assert len(seen.closed) == len(seen.made)
