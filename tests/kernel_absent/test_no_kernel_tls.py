"""A kernel without TLS: what is refused, in which words, and that everything else goes on."""

from __future__ import annotations

import asyncio
import errno
import pathlib

import pytest

import pyktls
from pyktls import HandoffRefused, Mode, Role, Status, Unavailable, aio, linux
from pyktls.ciphers import TLS_1_2, TLS_1_3
from support import kernel, tls
from support.kernel import both_ways, suite_id

REMEDY = (
    "an administrator can load it with `modprobe tls`, and for every boot with a line `tls` in "
    "/etc/modules-load.d/tls.conf; a kernel built without CONFIG_TLS has to be replaced"
)
NO_TLS = f"this kernel offers no TLS: the tls module is not there or not loaded; {REMEDY}"
NOTHING = Status("", None, None, Mode.NONE, Mode.NONE)
# Of an ssl.SSLSocket OpenSSL is asked as well.
NEITHER = Status("", None, None, Mode.NONE, Mode.NONE, openssl_tx=False, openssl_rx=False)


@pytest.fixture
def tcp():
    near, far = tls.tcp_pair()
    with near, far:
        yield near, far


def assert_says_so(caught):
    assert type(caught.value) is Unavailable
    assert str(caught.value) == NO_TLS
    assert caught.value.remedy == REMEDY


@pytest.mark.parametrize("version", kernel.VERSIONS, ids=kernel.VERSION_NAMES.get)
@pytest.mark.parametrize("role", Role)
def test_offload_says_what_would_help_and_openssl_goes_on(version, role):
    with kernel.openssl_pair(version, role=role) as (own, peer):
        both_ways(own, peer)
        for _ in range(2):
            with pytest.raises(Unavailable) as caught:
                pyktls.offload(own)
            assert_says_so(caught)
            assert pyktls.status(own) == NEITHER
            both_ways(own, peer, kernel.pattern(50_000))


def test_offload_with_plaintext_left_over_loses_nothing():
    with kernel.openssl_pair(TLS_1_3) as (own, peer):
        peer.sendall(b"0123456789")
        assert own.recv(3) == b"012"
        with pytest.raises(Unavailable):
            pyktls.offload(own)
        assert own.recv(100) == b"3456789"
        assert own.gettimeout() == kernel.TIMEOUT
        both_ways(own, peer)


@pytest.mark.parametrize(
    ("tx", "rx"), [(True, True), (True, False), (False, True)], ids=["both", "tx", "rx"]
)
@pytest.mark.parametrize("suite", kernel.SUITES, ids=suite_id)
def test_install_says_what_would_help_and_the_socket_goes_on(tcp, suite, tx, rx):
    session, _ = kernel.sessions(suite)
    with pytest.raises(Unavailable) as caught:
        pyktls.install(tcp[0], session, tx=tx, rx=rx)
    assert_says_so(caught)
    both_ways(*tcp)
    for direction in pyktls.Direction:  # and the keys are not used up
        session.keys(direction).claim(direction)


def test_what_is_wrong_with_the_socket_comes_first(tcp):
    session, _ = kernel.sessions(kernel.suite(TLS_1_2))
    tcp[0].close()
    with pytest.raises(HandoffRefused, match="the socket is closed"):
        pyktls.install(tcp[0], session)


def test_the_interface_names_the_call(tcp):
    with pytest.raises(FileNotFoundError) as caught:
        linux.set_ulp(tcp[0])
    assert caught.value.errno == errno.ENOENT
    assert str(caught.value) == "[Errno 2] setsockopt(TCP_ULP): No such file or directory"
    assert linux.get_ulp(tcp[0]) == b""
    info = kernel.crypto_info(kernel.suite(TLS_1_3))
    for option, name in ((linux.TLS_TX, "TLS_TX"), (linux.TLS_RX, "TLS_RX")):
        with pytest.raises(OSError, match=rf"setsockopt\(SOL_TLS, {name}\): Protocol not avail"):
            linux.set_crypto_info(tcp[0], option, info)
        with pytest.raises(OSError, match=rf"getsockopt\(SOL_TLS, {name}\): Operation not supp"):
            linux.get_crypto_info(tcp[0], option)
    both_ways(*tcp)


def test_status_is_no_error(tcp):
    assert pyktls.status(tcp[0]) == NOTHING


def test_there_are_no_counters():
    if pathlib.Path("/proc/net/tls_stat").exists():
        pytest.fail("this kernel has TLS after all")
    with pytest.raises(Unavailable) as caught:
        linux.tls_stat()
    assert str(caught.value) == f"/proc/net/tls_stat does not exist; {REMEDY}"
    assert caught.value.remedy == REMEDY


@pytest.mark.parametrize("processes", [False, True])
def test_no_list_of_sockets(processes):
    """An empty list would say that there could be some."""
    with pytest.raises(Unavailable) as caught:
        pyktls.sockets(processes=processes)
    assert str(caught.value) == f"/proc/net/tls_stat does not exist; {REMEDY}"
    assert caught.value.remedy == REMEDY


def test_extract_and_the_structs_need_no_kernel():
    with kernel.openssl_pair(TLS_1_3) as (own, peer):
        both_ways(own, peer)
        session = pyktls.extract(own)
        info = linux.CryptoInfo(
            session.version,
            session.cipher.aead.linux.cipher_type,
            key=session.tx.key,
            salt=session.tx.iv[:4],
            iv=session.tx.iv[4:],
            rec_seq=session.tx.sequence,
        )
        assert linux.CryptoInfo.unpack(info.pack()) == info
        both_ways(own, peer)


@pytest.mark.parametrize("version", [tls.TLS_1_2, tls.TLS_1_3], ids=["TLS1.2", "TLS1.3"])
def test_asyncio_falls_back_to_its_own_tls(version):
    async def main():
        client, server_context = tls.contexts(version, watch=False)

        async def echo(reader, writer):
            writer.write(await reader.readexactly(5))
            writer.close()

        async with await aio.start_server(echo, "127.0.0.1", 0, ssl=server_context) as server:
            port = server.sockets[0].getsockname()[1]
            reader, writer = await aio.open_connection(
                "127.0.0.1", port, ssl=client, server_hostname=tls.HOST
            )
            assert writer.get_extra_info("ktls") is None
            assert writer.get_extra_info("cipher") is not None
            writer.write(b"hello")
            assert await reader.read() == b"hello"
            writer.close()
            await writer.wait_closed()
            with pytest.raises(pyktls.Unavailable, match="no TLS"):
                await aio.open_connection(
                    "127.0.0.1", port, ssl=client, server_hostname=tls.HOST, require=True
                )
            with pytest.raises(pyktls.Unavailable, match="no TLS"):
                await aio.start_server(echo, "127.0.0.1", 0, ssl=server_context, require=True)

    asyncio.run(main())
