"""Sessions, and what a kernel can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_type

import pyktls

if TYPE_CHECKING:
    import socket
    import ssl


def switched(tls: ssl.SSLSocket, plain: socket.socket) -> int:
    session = assert_type(pyktls.extract(tls), pyktls.Session)
    assert_type(pyktls.install(plain, session, tx=True, rx=False), None)
    assert_type(session.version, int)
    suite = assert_type(session.cipher, pyktls.CipherSuite)
    assert_type(suite.aead, pyktls.AEAD)
    assert_type(suite.aead.key_length, int)
    assert_type(session.role, pyktls.Role)
    for keys in (session.tx, session.rx, session.keys(pyktls.Direction.TX)):
        assert_type(keys, pyktls.DirectionKeys)
        assert_type(keys.key, bytearray)
        assert_type(keys.iv, bytearray)
        assert_type(keys.secret, bytearray | None)
    return assert_type(session.tx.sequence, int)


def by_hand(suite: pyktls.CipherSuite, key: bytes, iv: bytes) -> pyktls.Session:
    keys = pyktls.DirectionKeys(key, iv, 0)
    return pyktls.Session(suite, pyktls.Role.CLIENT, keys, pyktls.DirectionKeys(key, iv, 1))


def handshake(context: ssl.SSLContext, plain: socket.socket) -> pyktls.KTLSSocket:
    made = pyktls.MemoryBIOHandshake(plain, context, server_hostname="example.org")
    assert_type(made.do_handshake(), None)
    assert_type(made.complete, bool)
    return pyktls.offload(made)


def able() -> str:
    support = assert_type(pyktls.probe(refresh=True), pyktls.KernelSupport)
    answer = assert_type(support.answer(0x0304, "AES_128_GCM", "tx"), pyktls.Answer)
    assert_type(answer.code, pyktls.Cause)
    assert_type(answer.reason, str)
    assert_type(support.supports(0x0304, "AES_128_GCM"), bool)
    for engine in pyktls.engines():
        assert_type(engine, pyktls.EngineInfo)
    for one in pyktls.sockets(processes=True):
        assert_type(one, pyktls.SocketInfo)
        assert_type(one.state, pyktls.TCPState | int)
    return str(support)
