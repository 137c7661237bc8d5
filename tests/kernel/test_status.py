"""pyktls.status: asks the kernel, for any socket, whoever switched it."""

from __future__ import annotations

import os
import re
import socket
import ssl
import subprocess
import sys

import pytest

import pyktls
from pyktls import HandoffRefused, Mode, Role, Status, linux
from pyktls.ciphers import TLS_1_2, TLS_1_3
from pyktls.linux.sock_diag import UlpInfo, ulp_info
from support import kernel, tls
from support.kernel import SUITES, both_ways, suite_id

SUITE = kernel.suite(TLS_1_3)
NOTHING = Status("", None, None, Mode.NONE, Mode.NONE)
# Of an ssl.SSLSocket OpenSSL is asked as well.
NEITHER = Status("", None, None, Mode.NONE, Mode.NONE, openssl_tx=False, openssl_rx=False)
# What the kernel tells besides of a socket with keys, if it tells this caller at all.
OPTIONS = {"zerocopy_ro": False, "rx_no_pad": False}
OP_ENABLE_KTLS = 0x8  # in the ssl module from Python 3.12 on


@pytest.fixture(params=["IPv4", "IPv6"])
def tcp(request):
    if request.param == "IPv4":
        near, far = tls.tcp_pair()
    else:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
            near = socket.create_connection(listener.getsockname()[:2], kernel.TIMEOUT)
            far, _ = listener.accept()
            far.settimeout(kernel.TIMEOUT)
    with near, far:
        yield near, far


def options():
    """OPTIONS, with what only some kernels have: found by trying (Linux 6.19)."""
    near, far = tls.tcp_pair()
    with near, far:
        linux.set_ulp(near)
        try:
            return OPTIONS | {"tx_max_payload_len": linux.get_tx_max_payload_len(near)}
        except pyktls.Unavailable:
            return OPTIONS


# ---- each state ------------------------------------------------------------------------------


def test_a_plain_connection(tcp):
    for sock in tcp:
        status = pyktls.status(sock)
        assert status == NOTHING
        assert not status.tx
        assert not status.rx
    assert ulp_info(tcp[0]) is None


def test_the_protocol_without_keys(tcp):
    linux.set_ulp(tcp[0])
    assert pyktls.status(tcp[0]) == Status("tls", None, None, Mode.NONE, Mode.NONE)
    assert pyktls.status(tcp[1]) == NOTHING


@pytest.mark.parametrize(
    ("tx", "rx"), [(True, False), (False, True), (True, True)], ids=["tx", "rx", "both"]
)
def test_each_direction(tcp, tx, rx):
    session, _ = kernel.sessions(SUITE)
    pyktls.install(tcp[0], session, tx=tx, rx=rx)
    modes = {True: Mode.SOFTWARE, False: Mode.NONE}
    assert pyktls.status(tcp[0]) == Status(
        "tls", TLS_1_3, "AES_128_GCM", modes[tx], modes[rx], **options()
    )
    conf = {True: 2, False: 1}  # TLS_CONF_SW, TLS_CONF_BASE
    assert ulp_info(tcp[0]) == UlpInfo("tls", TLS_1_3, 51, conf[tx], conf[rx], **options())
    assert pyktls.status(tcp[1]) == NOTHING


@pytest.mark.parametrize("suite", SUITES, ids=suite_id)
def test_every_cipher_has_its_name(suite):
    near, far = tls.tcp_pair()
    with near, far:
        session, _ = kernel.sessions(suite)
        pyktls.install(near, session)
        status = pyktls.status(near)
        assert (status.version, status.cipher) == (suite.version, suite.aead.name)


def test_ipv6_carries_data(tcp):
    one, two = kernel.sessions(SUITE)
    pyktls.install(tcp[0], one)
    pyktls.install(tcp[1], two)
    both_ways(*tcp, kernel.pattern(50_000))


def test_the_socket_of_offload_tells_it_too():
    with kernel.offloaded(TLS_1_2, "ECDHE-RSA-AES128-GCM-SHA256") as (sock, peer):
        expected = Status("tls", TLS_1_2, "AES_128_GCM", Mode.SOFTWARE, Mode.SOFTWARE, **options())
        assert sock.ktls == pyktls.status(sock) == expected
        assert pyktls.status(peer) == NEITHER  # an ssl.SSLSocket


def test_a_connection_that_the_peer_has_closed_still_tells(tcp):
    session, _ = kernel.sessions(SUITE)
    pyktls.install(tcp[0], session)
    tcp[1].close()
    kernel.wait_readable(tcp[0])
    status = pyktls.status(tcp[0])
    assert status.tx
    assert status.rx


def test_options_that_are_set(tcp):
    session, _ = kernel.sessions(SUITE)
    pyktls.install(tcp[0], session)
    kernel.expect_no_pad(tcp[0])
    expected = options() | {"rx_no_pad": True}
    if "tx_max_payload_len" in expected:
        linux.set_tx_max_payload_len(tcp[0], 4096)
        expected["tx_max_payload_len"] = 4096
    linux.set_tx_zerocopy_ro(tcp[0], True)  # no effect without a network card that encrypts
    assert pyktls.status(tcp[0]) == Status(
        "tls", TLS_1_3, "AES_128_GCM", Mode.SOFTWARE, Mode.SOFTWARE, **expected
    )
    assert ulp_info(tcp[0]) == UlpInfo("tls", TLS_1_3, 51, 2, 2, **expected)


@pytest.mark.skipif(os.geteuid() != 0, reason="binding to an interface is root's")
def test_a_socket_that_is_bound_to_an_interface(tcp):
    tcp[0].setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
    session, _ = kernel.sessions(SUITE)
    pyktls.install(tcp[0], session)
    assert pyktls.status(tcp[0]).tx is Mode.SOFTWARE


def test_what_is_a_socket_by_fileno_and_getsockopt_alone(tcp):
    class Least:
        fileno, getsockopt = tcp[0].fileno, tcp[0].getsockopt

    session, _ = kernel.sessions(SUITE)
    pyktls.install(tcp[0], session)
    assert pyktls.status(Least()) == pyktls.status(tcp[0])
    assert pyktls.status(Least()).tx is Mode.SOFTWARE


def test_sockets_that_have_no_such_protocol():
    with socket.socket() as unconnected:
        assert pyktls.status(unconnected) == NOTHING
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert pyktls.status(listener) == NOTHING
    with socket.socket(type=socket.SOCK_DGRAM) as datagram:
        assert pyktls.status(datagram) == NOTHING
    near, far = socket.socketpair()
    with near, far:
        assert pyktls.status(near) == NOTHING


def test_arguments_that_are_no_open_socket():
    with pytest.raises(pyktls.InvalidType, match="a socket is needed, not int"):
        pyktls.status(5)
    sock = socket.socket()
    sock.close()
    with pytest.raises(pyktls.InvalidValue, match="the socket is closed"):
        pyktls.status(sock)


# ---- without privileges ----------------------------------------------------------------------

AS_NOBODY = """
import os, sys
import pyktls
from pyktls.linux import sock_diag
from support import kernel, tls

near, far = tls.tcp_pair()
session, other = kernel.sessions(kernel.suite(0x0304))
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
with near, far:
    pyktls.install(near, session)     # needs no privilege once the module is loaded
    pyktls.install(far, other)
    kernel.both_ways(near, far)
    status = pyktls.status(near)
    print(status.tx, status.rx, status.version, status.cipher, status.rx_no_pad)
    print(sock_diag.ulp_info(near) is not None)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="is run by root in the lab")
def test_without_privileges_all_works_and_old_kernels_do_not_tell_software_from_nic():
    """Linux up to 6.12 gives the ULP part of sock_diag only to CAP_NET_ADMIN; 6.18 to everybody."""
    run = subprocess.run(
        [sys.executable, "-c", AS_NOBODY],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(["src", "tests"])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    modes, told = run.stdout.splitlines()
    # What this kernel tells decides; what follows from it is asserted.
    mode = {"True": "software", "False": "kernel"}[told]
    assert modes == f"{mode} {mode} {TLS_1_3} AES_128_GCM {'False' if told == 'True' else 'None'}"
    release = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
    if release < (6, 13):
        assert told == "False"
    elif release >= (6, 18):
        assert told == "True"


# ---- OpenSSL's own kernel TLS ----------------------------------------------------------------


#: Said by test_openssl_ktls.py, which runs this with an OpenSSL that is built with kernel TLS.
OPENSSL_HAS_KTLS = "PYKTLS_OPENSSL_HAS_KTLS" in os.environ


def openssl_can_ktls() -> bool:
    """Whether this OpenSSL was built with kernel TLS: its own answer, by trying."""
    with openssl_switched(TLS_1_2, "ECDHE-RSA-AES128-GCM-SHA256") as (own, _):
        return bool(pyktls.status(own).tx)


def openssl_switched(version, cipher):
    client, server = tls.contexts(kernel.OPENSSL_VERSIONS[version], cipher)
    for context in (client, server):
        context.options |= OP_ENABLE_KTLS
    pair = tls.connect(client, server)
    return _Ends(pair)


class _Ends:
    def __init__(self, pair):
        self.pair = pair

    def __enter__(self):
        return self.pair.client, self.pair.server

    def __exit__(self, *_):
        self.pair.close()


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(
    ("version", "cipher"),
    [(TLS_1_2, "ECDHE-RSA-AES128-GCM-SHA256"), (TLS_1_3, "TLS_AES_256_GCM_SHA384")],
)
def test_what_openssl_switched_itself_is_seen_and_left_alone(version, cipher, role):
    with openssl_switched(version, cipher) as ends:
        own, peer = ends if role is Role.CLIENT else reversed(ends)
        status = pyktls.status(own)
        if not OPENSSL_HAS_KTLS and not openssl_can_ktls():
            # It is built without kernel TLS: the option is accepted and does nothing.
            assert status == NEITHER
            both_ways(own, peer)
            return
        assert status.tx is Mode.SOFTWARE
        assert status.openssl_tx is True
        assert bool(status.rx) is status.openssl_rx
        if OPENSSL_HAS_KTLS:  # 3.5: receiving too, in TLS 1.3 as well
            assert status.rx is Mode.SOFTWARE
        assert status.version == version
        message = "OpenSSL has itself switched this connection to kernel TLS (OP_ENABLE_KTLS)"
        for refuse in (pyktls.extract, pyktls.offload):
            with pytest.raises(HandoffRefused) as caught:
                refuse(own)
            assert type(caught.value) is HandoffRefused
            assert str(caught.value) == message
        assert pyktls.status(own) == status
        both_ways(own, peer)


# ---- counters --------------------------------------------------------------------------------


def test_the_counters_count():
    before = linux.tls_stat()
    assert before.keys() >= {"TlsCurrTxSw", "TlsCurrRxSw", "TlsTxSw", "TlsRxSw", "TlsDecryptError"}
    assert all(isinstance(value, int) for value in before.values())
    with kernel.wired(SUITE) as (sock, wire):
        now = linux.tls_stat()
        for name in ("TlsTxSw", "TlsRxSw", "TlsCurrTxSw", "TlsCurrRxSw"):
            assert now[name] == before[name] + 1, name
        wire.raw(b"\x17\x03\x03\x00\x20" + bytes(32))
        with pytest.raises(pyktls.RecordError):
            sock.recv(1)
        assert linux.tls_stat()["TlsDecryptError"] == before["TlsDecryptError"] + 1


def test_the_options_constant_is_the_one_of_the_ssl_module():
    assert getattr(ssl, "OP_ENABLE_KTLS", OP_ENABLE_KTLS) == OP_ENABLE_KTLS
