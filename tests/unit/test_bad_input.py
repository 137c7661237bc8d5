"""Whatever is thrown at a function, what comes back is an error of ours or an OSError with a call.

Arguments of wrong types, sizes, order and states, drawn at random, for every public function; the
socket that went through it is used afterwards.  Sockets of all kinds are among the arguments.
The same runs on a kernel with TLS (tests/kernel/test_bad_input.py), where more of it gets there.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyktls import DirectionKeys, KTLSSocket, Role, Session, SSLSocket, wrap_context
from pyktls._records import SocketMethods
from pyktls.ciphers import SUITES, TLS_1_3
from support import bad_input, bad_input_aio, tls

SETTINGS = settings(
    max_examples=int(os.environ.get("PYKTLS_EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)


WITH_HANDSHAKE = settings(SETTINGS, max_examples=SETTINGS.max_examples // 3)
CONTEXTS = tls.contexts(tls.TLS_1_3, watch=False)
wrap_context(CONTEXTS[0])


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


@pytest.mark.parametrize("name", bad_input.METHODS)
@SETTINGS
@given(data=st.data())
def test_any_arguments_of_a_method(world, name, data):
    """On a connection without keys: what is wrong with the arguments does not depend on them."""
    suite = next(s for s in SUITES if s.version == TLS_1_3 and s.aead.key_length == 16)
    keys = [DirectionKeys(bytes(16), bytes(12), 0, secret=bytes(32)) for _ in range(2)]
    near, far = tls.tcp_pair()
    with near, far:
        sock = KTLSSocket(Session(suite, Role.CLIENT, *keys), near.detach())
        sock.setblocking(False)
        far.sendall(b"0123456789")
        try:
            bad_input.throw_at_method(world, sock, name, data)
        finally:
            sock._layer.end_sending()  # there is no TLS to end
            sock.close()


@pytest.fixture(scope="module")
def loop(world):
    with bad_input_aio.world(world) as around:
        yield around


# What asyncio leaves behind where it has the connection, as here, is its affair.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", bad_input_aio.FUNCTIONS)
@WITH_HANDSHAKE
@given(data=st.data())
def test_any_arguments_for_asyncio(loop, name, data):
    loop.throw(name, data)


def test_the_loop_goes_on(loop):
    assert bad_input_aio.not_covered() == set()
    loop.check()


def test_every_method_is_there():
    names = {*vars(KTLSSocket), *vars(SocketMethods)}
    own = {name for name in names if not name.startswith("_")}
    # They end the connection, or begin one.
    states = {"close_timeout", "ktls", "session", "unwrap", "shutdown", "detach", "abandon"}
    states.add("from_state")
    assert own - states == set(bad_input.METHODS)


@pytest.mark.parametrize("name", bad_input.SSL_METHODS)
@WITH_HANDSHAKE
@given(data=st.data())
def test_any_arguments_of_an_ssl_method(world, name, data):
    """Here nothing is in the kernel: the socket is ssl's own, and stays it."""
    client, server = CONTEXTS
    with tls.connect(client, server) as pair:
        assert isinstance(pair.client, SSLSocket)
        pair.server.sendall(b"0123456789")
        bad_input.throw_at_ssl_method(world, pair.client, name, data)
        bad_input.check_ssl(pair.client, pair.server)
