"""What the hellos agreed on, read from real messages and from such that do not add up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyktls.engines.hellos import Hellos
from support import tls
from support.tls import TLS_1_2, TLS_1_3

CLIENT, SERVER = bytes(range(32)), bytes(range(32, 64))


def vector(width: int, data: bytes) -> bytes:
    return len(data).to_bytes(width, "big") + data


def message(kind: int, body: bytes) -> bytes:
    return bytes((kind,)) + vector(3, body)


def extensions(*items: tuple[int, bytes]) -> bytes:
    return vector(2, b"".join(n.to_bytes(2, "big") + vector(2, data) for n, data in items))


def client_hello(*items: tuple[int, bytes]) -> bytes:
    body = b"\x03\x03" + CLIENT + vector(1, b"i" * 32) + vector(2, b"\x13\x01\xc0\x2b")
    return message(1, body + vector(1, b"\0") + extensions(*items))


def server_hello(
    *items: tuple[int, bytes], suite: int = 0xC02B, compression: int = 0, identity: bytes = b"x"
) -> bytes:
    body = b"\x03\x03" + SERVER + vector(1, identity) + suite.to_bytes(2, "big")
    return message(2, body + bytes((compression,)) + extensions(*items))


def after(*messages: bytes) -> Hellos:
    hellos = Hellos()
    for each in messages:
        hellos.take(each)
    return hellos


def everything(hellos: Hellos) -> dict[str, object]:
    return {name: getattr(hellos, name) for name in Hellos.__slots__}


NOTHING = everything(Hellos())


def test_tls_1_2() -> None:
    hellos = after(client_hello((0, b"name"), (23, b"")), server_hello((23, b""), (65281, b"\0")))
    assert everything(hellos) == {
        **NOTHING,
        "client_random": CLIENT,
        "server_random": SERVER,
        "version": 0x0303,
        "suite": 0xC02B,
        "encrypt_then_mac": 0,
    }


def test_tls_1_3() -> None:
    hellos = after(
        client_hello((43, b"\x02\x03\x04"), (42, b""), (1, b"\x02")),
        server_hello((51, bytes(36)), (43, b"\x03\x04"), suite=0x1301),
    )
    assert everything(hellos) == {
        **NOTHING,
        "client_random": CLIENT,
        "server_random": SERVER,
        "version": 0x0304,
        "suite": 0x1301,
        "encrypt_then_mac": 0,
        "offered_early_data": True,
        "offered_max_fragment": 1024,
    }
    hellos.take(message(8, extensions((1, b"\x02"), (42, b""))))
    assert (hellos.max_fragment, hellos.early_data) == (1024, True)
    # Another ServerHello begins anew.
    hellos.take(server_hello((43, b"\x03\x04"), suite=0x1302))
    assert (hellos.suite, hellos.max_fragment, hellos.early_data) == (0x1302, 0, False)
    hellos.take(message(8, extensions((0, b""))))
    assert (hellos.max_fragment, hellos.early_data) == (0, False)


@pytest.mark.parametrize(("code", "limit"), [(1, 512), (2, 1024), (3, 2048), (4, 4096)])
def test_a_limit_on_records(code: int, limit: int) -> None:
    hellos = after(client_hello((1, bytes((code,)))))
    assert (hellos.offered_max_fragment, hellos.max_fragment) == (limit, 0)
    hellos.take(server_hello((1, bytes((code,)))))
    assert hellos.max_fragment == limit
    hellos.take(server_hello())
    assert hellos.max_fragment == 0


@pytest.mark.parametrize("identity", [b"", b"i" * 32])
def test_encrypt_then_mac_and_compression(identity: bytes) -> None:
    hellos = after(server_hello((22, b""), compression=1, identity=identity))
    assert (hellos.encrypt_then_mac, hellos.compression) == (1, 1)


def test_a_server_hello_without_extensions() -> None:
    whole = server_hello()
    hellos = after(message(2, whole[4:-2]))
    assert (hellos.suite, hellos.version, hellos.encrypt_then_mac) == (0xC02B, 0x0303, 0)


@given(st.binary(max_size=200), st.sampled_from([None, 1, 2, 8]))
def test_any_bytes(data: bytes, kind: int | None) -> None:
    hellos = Hellos()
    hellos.take(data if kind is None else message(kind, data))
    assert isinstance(hellos.client_random, bytes)


@given(st.data())
def test_any_cut(data: st.DataObject) -> None:
    whole = data.draw(
        st.sampled_from([client_hello((42, b""), (1, b"\2")), server_hello((22, b""), (1, b"\3"))])
    )
    after(whole[: data.draw(st.integers(0, len(whole)))])


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_those_of_openssl(version: object) -> None:
    client, server = tls.contexts(version, watch=False)  # type: ignore[arg-type]
    messages: list[bytes] = []
    client._msg_callback = (  # type: ignore[attr-defined]
        lambda *event: messages.append(event[5]) if event[3] == 22 else None
    )
    with tls.connect(client, server) as pair:
        hellos = after(*messages)
        assert hellos.version == version
        name = pair.client.cipher()
        assert name is not None
        assert hellos.suite & 0xFFFF in {
            cipher["id"] & 0xFFFF for cipher in client.get_ciphers() if cipher["name"] == name[0]
        }
        assert len(hellos.client_random) == len(hellos.server_random) == 32
