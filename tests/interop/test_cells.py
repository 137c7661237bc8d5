"""The representative part of docs/peers.md: every peer in every role, with TLS 1.2 and 1.3.

The cipher changes from group to group, so that each is used several times.  `make peers` runs every
suite.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

import pytest

from interop import cells
from interop.cells import Group, Kind
from interop.peer import Feature, Purpose, Setting
from pyktls import KTLSSocket, Role
from pyktls.ciphers import TLS_1_2, TLS_1_3

if TYPE_CHECKING:
    import pathlib

pytestmark = pytest.mark.timeout(600)

NAMES = {TLS_1_2: "TLS1.2", TLS_1_3: "TLS1.3"}

#: What these programs are known to refuse.  A cell is tried all the same; what is refused besides,
#: or fails, is a failure here.  The value is a part of their own words.
KNOWN_REFUSALS = {
    ("curl", Feature.KEY_UPDATE): "unknown",
    ("nginx", Feature.KEY_UPDATE): "unknown directive",
    ("nginx KTLS", Feature.KEY_UPDATE): "unknown directive",
    ("pyktls", Feature.KEY_UPDATE): "cannot be changed",  # Linux before 6.14
    # With OpenSSL 3.0 and 3.1 it tells of new keys, and goes on with the old ones.
    ("s_server -ktls", Feature.KEY_UPDATE): "Python's ssl in our place",
    ("s_client -ktls", Feature.KEY_UPDATE): "Python's ssl in our place",
    ("nginx", Feature.OUR_CLOSE): "of an end without close_notify too",
    ("nginx KTLS", Feature.OUR_CLOSE): "of an end without close_notify too",
}


@functools.cache
def outcomes(group: Group) -> dict[Feature, cells.Outcome]:
    return cells.run(group)


def check(group: Group, feature: Feature) -> None:
    """Assert what the cell must come to."""
    outcome = outcomes(group)[feature]
    match outcome.kind:
        case Kind.OK | Kind.NOT_YET:
            pass
        case Kind.DOCUMENTED:
            assert feature is Feature.KEY_UPDATE
            assert not cells.can_rekey()
        case Kind.REFUSED | Kind.UNTOLD:
            known = KNOWN_REFUSALS.get((group.peer_name, feature))
            assert known, outcome.words
            assert known in outcome.words
        case _:
            pytest.fail(outcome.trace)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each cell; which suites there are depends on the kernel, and is asked there."""
    if "cell" in metafunc.fixturenames:
        every = [(group, feature) for group in cells.representative() for feature in group.features]
        ids = [f"{group}-{feature}".replace(" ", "_") for group, feature in every]
        metafunc.parametrize("cell", every, ids=ids)


def test_cell(cell: tuple[Group, Feature]) -> None:
    check(*cell)


class Rude:
    """A socket whose end is a FIN without a close_notify."""

    def __init__(self, sock: KTLSSocket) -> None:
        self.sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)

    def close(self) -> None:
        os.close(self.sock.detach())


class RudeTrial(cells.Trial):
    def our_close(self, connection: cells.Connection) -> None:
        connection.sock = Rude(connection.sock)
        super().our_close(connection)


@pytest.mark.parametrize(
    "group",
    [g for g in cells.representative() if g.suite.version == TLS_1_3 and not g.peer.ktls],
    ids=str,
)
def test_a_missing_close_notify_is_noticed(group: Group, tmp_path: pathlib.Path) -> None:
    """The same cell with a close that is none: that "our close" can fail."""
    found = RudeTrial(group, Setting(tmp_path, group.suite)).run([Purpose.TRANSFER])
    assert found[Feature.DATA].kind is found[Feature.SENDFILE].kind is Kind.OK
    if group.peer_name == "nginx":
        assert found[Feature.OUR_CLOSE].kind is Kind.UNTOLD
    else:
        assert found[Feature.OUR_CLOSE].kind is Kind.FAILED


@pytest.mark.parametrize("role", Role)
def test_a_peer_with_kernel_tls_has_it(role: Role) -> None:
    """Otherwise that peer would be none; found in the kernel's list of connections."""
    for group in cells.representative():
        if group.peer.ktls and group.role is role and group.suite.version == TLS_1_2:
            assert outcomes(group)[Feature.DATA].peer_ktls == "tx+rx"
