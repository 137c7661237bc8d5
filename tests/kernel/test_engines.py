"""A connection goes to the kernel whichever engine read its keys, and goes on there."""

from __future__ import annotations

import contextlib
import ssl

import pytest
from OpenSSL import SSL

import pyktls
from pyktls import Role
from pyktls.ciphers import TLS_1_2, TLS_1_3
from support import kernel, tls
from support.kernel import Background, both_ways, pattern, recv_to_end

VERSIONS = {TLS_1_2: ssl.TLSVersion.TLSv1_2, TLS_1_3: ssl.TLSVersion.TLSv1_3}

over_versions = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3], ids=["TLS1.2", "TLS1.3"])
over_roles = pytest.mark.parametrize("role", list(Role), ids=str)


def goes_on(sock, peer, engine, version):
    """Both ways, and both ends see the other's close_notify; the kernel says that it is its."""
    assert sock._layer.session.engine == engine
    assert sock.ktls.tx
    assert sock.ktls.rx
    assert sock.ktls.version == version
    assert sock.getpeercert(True) or sock._layer.session.role is Role.SERVER
    for _ in range(2):
        both_ways(sock, peer, pattern(50_000))
        both_ways(peer, sock, pattern(50_000))
    sock.close()
    assert recv_to_end(peer) == b""


@over_versions
@over_roles
@pytest.mark.parametrize("engine", [pytest.param("native", marks=tls.needs_native), "portable"])
@pytest.mark.parametrize("before", [b"", b"before the switch"])
def test_an_ssl_socket(version, role, engine, before):
    client, server = tls.contexts(VERSIONS[version], watch=False)
    own = client if role is Role.CLIENT else server
    pyktls.watch(own, engine=engine)
    assert pyktls.engine_of(own) == engine
    with tls.connect(client, server) as pair:
        near, peer = (
            (pair.client, pair.server) if role is Role.CLIENT else (pair.server, pair.client)
        )
        if before:
            peer.sendall(before)
            assert near.recv(1) == before[:1]  # the rest is decrypted, and not read
        with pyktls.offload(near) as sock:
            assert sock.pending() == len(before[1:])
            assert kernel.recv_exactly(sock, len(before[1:])) == before[1:]
            peer.settimeout(kernel.TIMEOUT)
            sock.settimeout(kernel.TIMEOUT)
            goes_on(sock, peer, engine, version)


def pyopenssl_context(version, role):
    context = SSL.Context(SSL.TLS_METHOD)
    for limit in (context.set_min_proto_version, context.set_max_proto_version):
        limit(version)
    if role is Role.CLIENT:
        tls.authority().configure_trust(context)
    else:
        tls.certificate().configure_cert(context)
    return context


@over_versions
@over_roles
@pytest.mark.parametrize("library", ["ssl", "pyOpenSSL"])
def test_a_handshake_over_memory(version, role, library):
    contexts = dict(zip(Role, tls.contexts(VERSIONS[version], watch=False), strict=True))
    other = Role.SERVER if role is Role.CLIENT else Role.CLIENT
    context = contexts[role] if library == "ssl" else pyopenssl_context(version, role)
    near, far = tls.tcp_pair()

    def handshake():
        if other is Role.SERVER:
            return contexts[other].wrap_socket(far, server_side=True)
        return contexts[other].wrap_socket(far, server_hostname=tls.HOST)

    with contextlib.ExitStack() as stack:
        stack.enter_context(near)
        with Background(handshake) as there:
            names = {"server_hostname": tls.HOST} if role is Role.CLIENT else {"server_side": True}
            here = pyktls.MemoryBIOHandshake(near, context, **names)
            here.do_handshake()
            peer = stack.enter_context(there.result())
        sock = stack.enter_context(pyktls.offload(here))
        assert sock.pending() == 0
        peer.settimeout(kernel.TIMEOUT)
        sock.settimeout(kernel.TIMEOUT)
        goes_on(sock, peer, "membio", version)


def test_roles_are_in_the_order_of_contexts():
    assert list(Role) == [Role.CLIENT, Role.SERVER]
