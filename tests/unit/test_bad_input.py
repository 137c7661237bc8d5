"""Whatever is thrown at a function, what comes back is an error of ours or an OSError with a call.

Arguments of wrong types, sizes, order and states, drawn at random, for every public function; the
socket that went through it is used afterwards.  Sockets of all kinds are among the arguments.
The same runs on a kernel with TLS (tests/kernel/test_bad_input.py), where more of it gets there.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support import bad_input

SETTINGS = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)


@pytest.fixture(scope="module")
def world():
    with bad_input.world() as made:
        yield made


@pytest.mark.parametrize("name", bad_input.FUNCTIONS)
@SETTINGS
@given(data=st.data())
def test_any_arguments(world, name, data):
    bad_input.throw(world, name, data)


def test_every_public_function_is_there():
    assert bad_input.not_covered() == set()
