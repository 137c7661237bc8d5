"""pyktls.wrap_context where the kernel does not take the connection: it stays ssl's, and whole."""

from __future__ import annotations

import pytest

import pyktls
from pyktls import HandoffRefused, Unavailable
from support import programs, tls
from support.programs import PROGRAMS

over_versions = pytest.mark.parametrize(
    "version", [tls.TLS_1_2, tls.TLS_1_3], ids=["TLS1.2", "TLS1.3"]
)


@over_versions
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_go_on_in_user_space(name, version, monkeypatch):
    seen = programs.Watcher(monkeypatch)
    PROGRAMS[name](pyktls.wrap_context, version)
    assert seen.made
    for status in (*seen.made, *seen.closed):
        assert isinstance(status.refusal, HandoffRefused | Unavailable)
        assert not status.tx
        assert not status.rx
    assert len(seen.closed) == len(seen.made)
