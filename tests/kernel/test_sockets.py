"""pyktls.sockets and the counters on a real kernel: many connections, others' and elsewhere."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pathlib
import re
import resource
import socket
import subprocess
import sys
import threading
import time

import pytest

import pyktls
from pyktls import InvalidValue, Mode, SocketInfo, TCPState, Unavailable, linux
from pyktls.ciphers import TLS_1_2, TLS_1_3
from pyktls.linux import counters, sock_diag
from pyktls.survey import Endpoint
from support import kernel, tls
from support.kernel import SUITES, Background, suite_id

SUITE = kernel.suite(TLS_1_3)
CLONE_NEWNET = 0x40000000
ONLY_ADMIN = "this kernel tells which connections have TLS only to those with CAP_NET_ADMIN"

# Old kernels tell nobody else, and network namespaces are root's.
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="is run by root in the lab")


def ipv6_pair(host="::1", server="::1", **options):
    with socket.create_server((server, 0), family=socket.AF_INET6, **options) as listener:
        near = socket.socket(socket.AF_INET6)
        near.settimeout(kernel.TIMEOUT)
        near.connect((host, listener.getsockname()[1]))
        far, _ = listener.accept()
        far.settimeout(kernel.TIMEOUT)
    return near, far


def mapped_pair():
    """IPv4 between sockets of IPv6."""
    return ipv6_pair("::ffff:127.0.0.1", "::", dualstack_ipv6=True)


PAIRS = {"IPv4": tls.tcp_pair, "IPv6": ipv6_pair, "IPv4 in IPv6": mapped_pair}


@pytest.fixture(params=PAIRS)
def tcp(request):
    near, far = PAIRS[request.param]()
    with near, far:
        yield near, far


@pytest.fixture
def pair():
    near, far = tls.tcp_pair()
    with near, far:
        yield near, far


def inode_of(sock):
    return os.fstat(sock.fileno()).st_ino


def found(sock, *, processes=False):
    """What the list has of this socket, None if nothing."""
    infos = [i for i in pyktls.sockets(processes=processes) if i.inode == inode_of(sock)]
    assert len(infos) <= 1
    return infos[0] if infos else None


def install(sock, suite=SUITE, **directions):
    session, _ = kernel.sessions(suite)
    pyktls.install(sock, session, **directions)


def script(code, *args, **more):
    """Start a program, which prints JSON when it is ready, and ends when its input does."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(["src", "tests"])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **more,
    )


@contextlib.contextmanager
def running(code, *args, **more):
    with script(code, *args, **more) as child:
        line = child.stdout.readline()
        assert line, "the program failed"
        yield child, json.loads(line)
        child.stdin.close()
        assert child.wait(kernel.TIMEOUT) == 0


# ---- what there is ---------------------------------------------------------------------------


def test_none():
    assert pyktls.sockets() == []
    near, far = tls.tcp_pair()
    with near, far:
        assert pyktls.sockets(processes=True) == []


def test_asking_leaves_nothing_behind():
    """Where there is none a connection is made to find out whether that would be told."""

    def waiting():
        found = re.search(r"TCP: .* tw (\d+)", pathlib.Path("/proc/net/sockstat").read_text())
        return int(found[1])

    before, stat = waiting(), linux.tls_stat()
    descriptors = len(list(pathlib.Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        assert pyktls.sockets() == []
    assert waiting() <= before
    assert len(list(pathlib.Path("/proc/self/fd").iterdir())) == descriptors
    assert linux.tls_stat() == stat


@pytest.mark.parametrize("suite", SUITES, ids=suite_id)
@pytest.mark.parametrize(
    ("tx", "rx"), [(True, False), (False, True), (True, True)], ids=["tx", "rx", "both"]
)
def test_every_version_cipher_and_direction(tcp, suite, tx, rx):
    near, far = tcp
    install(near, suite, tx=tx, rx=rx)
    assert found(far) is None
    info = found(near)
    status = pyktls.status(near)
    modes = {True: Mode.SOFTWARE, False: Mode.NONE}
    assert info == SocketInfo(
        family=near.family,
        local=Endpoint(*near.getsockname()[:2]),
        remote=Endpoint(*near.getpeername()[:2]),
        state=TCPState.ESTABLISHED,
        interface=None,
        uid=0,
        inode=inode_of(near),
        rqueue=0,
        wqueue=0,
        version=suite.version,
        cipher=suite.aead.name,
        tx=modes[tx],
        rx=modes[rx],
        zerocopy_ro=False,
        rx_no_pad=False,
        tx_max_payload_len=status.tx_max_payload_len,
    )
    # And the question about one socket has the same answer.
    for field in ("version", "cipher", "tx", "rx", "zerocopy_ro", "rx_no_pad"):
        assert getattr(status, field) == getattr(info, field), field


def test_the_protocol_without_keys(tcp):
    linux.set_ulp(tcp[0])
    info = found(tcp[0])
    assert (info.version, info.cipher, info.tx, info.rx) == (None, None, Mode.NONE, Mode.NONE)
    assert info.zerocopy_ro is info.rx_no_pad is info.tx_max_payload_len is None


def test_options_are_seen(tcp):
    near = tcp[0]
    install(near)
    linux.set_tx_zerocopy_ro(near, True)  # no effect without a network card that encrypts
    assert (found(near).zerocopy_ro, found(near).rx_no_pad) == (False, False)
    kernel.expect_no_pad(near)
    assert found(near).rx_no_pad is True
    try:
        assert linux.get_tx_max_payload_len(near) == found(near).tx_max_payload_len == 16384
    except Unavailable:
        assert found(near).tx_max_payload_len is None
    else:
        linux.set_tx_max_payload_len(near, 4096)
        assert found(near).tx_max_payload_len == 4096


def test_the_queues(tcp):
    near, far = tcp
    install(near)
    near.sendall(b"y" * 1000)
    kernel.wait_readable(far)
    assert found(near).wqueue in {0, 5 + 1000 + 1 + 16}  # perhaps acknowledged by now
    far.sendall(b"\x17\x03\x03\x08\x00" + bytes(995))  # the first half of a record
    deadline = time.monotonic() + kernel.TIMEOUT
    while found(near).rqueue != 1000:
        assert time.monotonic() < deadline


def test_a_socket_that_is_bound_to_an_interface(tcp):
    install(tcp[0])
    tcp[0].setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
    info = found(tcp[0])
    assert info.interface == socket.if_nametoindex("lo")
    assert info.local.scope_id == 0


# ---- states ----------------------------------------------------------------------------------


def test_the_peer_has_closed(tcp):
    near, far = tcp
    install(near)
    far.close()
    kernel.wait_readable(near)
    info = found(near)
    assert info.state is TCPState.CLOSE_WAIT
    assert (info.tx, info.rx) == (Mode.SOFTWARE, Mode.SOFTWARE)


def test_this_end_has_shut_down(tcp):
    near, far = tcp
    install(near)
    near.shutdown(socket.SHUT_WR)
    kernel.wait_readable(far)
    assert found(near).state in {TCPState.FIN_WAIT1, TCPState.FIN_WAIT2}
    assert found(near).tx is Mode.SOFTWARE


def test_a_closed_socket_whose_data_is_not_through_yet(tcp):
    """The kernel goes on alone: nobody's, without keys, for the records are encrypted already."""
    near, far = tcp
    far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    install(near)
    local = Endpoint(*near.getsockname()[:2])
    near.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            near.send(bytes(1 << 16))
    near.close()
    (info,) = [i for i in pyktls.sockets(processes=True) if i.local == local]
    assert info.state is TCPState.FIN_WAIT1
    assert (info.inode, info.processes, info.tx, info.rx) == (0, (), Mode.NONE, Mode.NONE)
    assert info.wqueue > 0


# ---- many ------------------------------------------------------------------------------------

MANY = 2000  # connections, each with both ends here


def test_many_in_one_dump():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 2 * MANY + 200), hard), hard))
    info = kernel.crypto_info(SUITE)
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))
        expected = set()
        for _ in range(MANY):
            near = stack.enter_context(socket.create_connection(listener.getsockname()))
            far, _ = listener.accept()
            stack.enter_context(far)
            for sock in (near, far):
                # No TIME_WAIT for each of them when they are closed.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            linux.set_ulp(near)
            linux.set_crypto_info(near, linux.TLS_TX, info)
            expected.add(inode_of(near))
        begun = time.monotonic()
        listed = pyktls.sockets()
        print(f"{len(listed)} sockets in {time.monotonic() - begun:.3f} s")
        assert len(listed) == MANY
        assert {i.inode for i in listed} == expected
        assert {(i.version, i.tx, i.rx) for i in listed} == {(TLS_1_3, Mode.SOFTWARE, Mode.NONE)}
        owners = {i.processes for i in pyktls.sockets(processes=True)}
        assert owners == {(os.getpid(),)}


def test_while_connections_come_and_go():
    stop = threading.Event()

    def churn():
        count = 0
        while not stop.is_set():
            near, far = tls.tcp_pair()
            with near, far:
                linux.set_ulp(near)
                count += 1
        return count

    near, far = tls.tcp_pair()
    with near, far, Background(churn) as background:
        install(near)
        for _ in range(50):
            assert found(near).tx is Mode.SOFTWARE
        stop.set()
        assert background.result() > 0


# ---- other processes -------------------------------------------------------------------------

OTHER = """
import json, os, sys
import pyktls
from support import kernel, tls

os.setgid(1234)
os.setuid(1234)
near, far = tls.tcp_pair()
session, _ = kernel.sessions(kernel.suite(0x0304))
pyktls.install(near, session)
print(json.dumps([os.getpid(), os.fstat(near.fileno()).st_ino]), flush=True)
sys.stdin.read()
"""

HOLDER = """
import os, sys
print(os.getpid(), flush=True)
sys.stdin.read()
"""


def test_another_process_and_another_user(pair):
    install(pair[0])
    with running(OTHER) as (child, (pid, inode)):
        assert child.pid == pid
        infos = {i.inode: i for i in pyktls.sockets(processes=True)}
        assert infos.keys() == {inode, inode_of(pair[0])}
        assert (infos[inode].uid, infos[inode].processes) == (1234, (pid,))
        mine = infos[inode_of(pair[0])]
        assert (mine.uid, mine.processes) == (0, (os.getpid(),))
        assert {i.processes for i in pyktls.sockets()} == {None}
    assert [i.inode for i in pyktls.sockets()] == [inode_of(pair[0])]


def test_a_socket_that_two_processes_share(pair):
    install(pair[0])
    with running(HOLDER, pass_fds=(pair[0].fileno(),)) as (child, pid):
        assert child.pid == pid
        assert found(pair[0], processes=True).processes == tuple(sorted((os.getpid(), pid)))
    assert found(pair[0], processes=True).processes == (os.getpid(),)


# ---- without privileges ----------------------------------------------------------------------

AS_NOBODY = """
import json, os, sys
import pyktls
from pyktls.linux import counters, sock_diag
from support import kernel, tls

near, far = tls.tcp_pair()
os.setgroups([])
os.setgid(65534)
os.setuid(65534)

def ask():
    try:
        return [[i.inode, str(i.tx), i.processes] for i in pyktls.sockets(processes=True)]
    except pyktls.Unavailable as e:
        return str(e)

none = ask()
session, _ = kernel.sessions(kernel.suite(0x0304))
pyktls.install(near, session)
one = ask()
told = sock_diag.is_told()
print(json.dumps([os.getpid(), os.fstat(near.fileno()).st_ino, told, none, one]))
"""


def test_without_privileges_told_or_an_error_and_never_an_empty_list(pair):
    """Linux up to 6.12 tells only CAP_NET_ADMIN; 6.18 everybody."""
    install(pair[0])  # root's
    # What this process may see in /proc is not the subject: not dumpable after setuid.
    with running(AS_NOBODY) as (_, (pid, inode, told, none, one)):
        pass
    release = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
    if release < (6, 13):
        assert not told
    elif release >= (6, 18):
        assert told
    if told:
        mine = [inode_of(pair[0]), "software", None]
        assert none == [mine]
        assert mine in one
        assert [i for i in one if i != mine] in ([[inode, "software", p]] for p in ([pid], None))
    else:
        assert none == one
        assert none.startswith(ONLY_ADMIN)


# ---- network namespaces ----------------------------------------------------------------------


def unshare_network():
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())


ELSEWHERE = """
import ctypes, fcntl, json, os, socket, struct, sys
import pyktls
from pyktls import linux
from support import kernel, tls

assert ctypes.CDLL(None).unshare(0x40000000) == 0

def ask():
    return [i.inode for i in pyktls.sockets()]

without_loopback = ask()
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    request = struct.pack("16sh14x", b"lo", 1)          # IFF_UP
    fcntl.ioctl(sock, 0x8914, request)                  # SIOCSIFFLAGS
empty = ask()
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
    address = socket.inet_pton(socket.AF_INET6, "fe80::7")
    fcntl.ioctl(sock, 0x8916, address + struct.pack("Ii", 64, 1))   # SIOCSIFADDR
pairs = [tls.tcp_pair()]
with socket.socket(socket.AF_INET6) as listener:
    while True:
        try:                                            # until the address is known to be unique
            listener.bind(("fe80::7", 0, 0, 1))
            break
        except OSError:
            pass
    listener.listen()
    near = socket.socket(socket.AF_INET6)
    near.connect(listener.getsockname())
    pairs.append((near, listener.accept()[0]))
for near, far in pairs:
    session, _ = kernel.sessions(kernel.suite(0x0304))
    pyktls.install(near, session, rx=False)
inodes = [os.fstat(near.fileno()).st_ino for near, _ in pairs]
local = pairs[1][0].getsockname()
infos = pyktls.sockets()
print(json.dumps({
    "without loopback": without_loopback, "empty": empty, "inodes": inodes,
    "listed": [i.inode for i in infos], "interface": infos[1].interface,
    "local": [str(infos[1].local), str(infos[1].remote)],
    "expected": ["[fe80::7%%1]:%d" % s.getsockname()[1] for s in pairs[1]],
    "status": str(pyktls.status(pairs[1][0]).tx),
    "counters": dict(linux.tls_stat()),
}), flush=True)
sys.stdin.read()
"""


def test_another_network_namespace(pair):
    install(pair[0])
    before = linux.tls_stat()
    with running(ELSEWHERE) as (child, report):
        assert report["without loopback"] == report["empty"] == []
        assert report["listed"] == report["inodes"]
        assert report["interface"] == 1
        assert report["local"] == report["expected"]
        assert report["status"] == "software"
        assert [i.inode for i in pyktls.sockets()] == [inode_of(pair[0])]
        # The counters, seen from within and from here.
        there = linux.tls_stat(pid=child.pid)
        assert there == report["counters"]
        assert (there.curr_tx_sw, there.curr_rx_sw) == (2, 0)
        here = linux.tls_stat()
        assert (here - before).counters == dict.fromkeys(before.counters, 0)
        assert here == linux.tls_stat(pid=os.getpid())
        assert here.namespace == before.namespace != there.namespace
        for one, two in ((here, there), (there, here)):
            with pytest.raises(InvalidValue):
                one - two


def test_a_thread_with_a_network_namespace_of_its_own(pair):
    install(pair[0])

    def elsewhere():
        unshare_network()
        return linux.tls_stat(), pyktls.sockets(), linux.tls_stat(pid=os.getpid())

    own, listed, process = Background(elsewhere).result()
    here = linux.tls_stat()
    assert here.curr_tx_sw == 1
    assert not any(own.values())
    assert listed == []
    assert process == here  # the process's is that of its main thread
    with pytest.raises(InvalidValue, match="different network namespaces"):
        here - own


def test_a_process_that_is_not_there():
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    with pytest.raises(ProcessLookupError):
        linux.tls_stat(pid=child.pid)


# ---- counters --------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_differences_and_rates_across_real_traffic(version):
    suite = kernel.suite(version)
    linux.system.cipher_refusal(suite.version, suite.aead)  # its own sockets are counted, too
    before = linux.tls_stat()
    with kernel.wired(suite) as (sock, wire):
        wire.send_data(b"good")
        assert sock.recv(4) == b"good"
        during = linux.tls_stat()
        change = during - before
        assert {k: v for k, v in change.items() if v} == {
            "TlsCurrTxSw": 1, "TlsCurrRxSw": 1, "TlsTxSw": 1, "TlsRxSw": 1,
        }  # fmt: skip
        assert change.errors == ()
        assert change.seconds == during.taken - before.taken > 0
        wire.raw(b"\x17\x03\x03\x00\x20" + bytes(32))
        with pytest.raises(pyktls.RecordError):
            sock.recv(1)
    after = linux.tls_stat()
    change = after - during
    assert {k: v for k, v in change.items() if v} == {
        "TlsCurrTxSw": -1, "TlsCurrRxSw": -1, "TlsDecryptError": 1,
    }  # fmt: skip
    assert [(e.name, e.count) for e in change.errors] == [("TlsDecryptError", 1)]
    rates = after.rates(before)
    assert rates.keys() == after.counters.keys()
    assert rates["TlsTxSw"] == pytest.approx(1 / (after.taken - before.taken))
    assert after.tx_sw == after["TlsTxSw"] == before.tx_sw + 1
    with pytest.raises(InvalidValue):
        before - after


def test_every_counter_of_this_kernel_has_an_attribute():
    stat = linux.tls_stat()
    named = {c.name for c in vars(counters._Counters).values() if isinstance(c, counters._Counter)}
    assert stat.keys() <= named
    assert (stat.rx_rekey_ok is not None) == kernel.kernel_can_rekey()


def test_the_unprivileged_question_is_answered_for_root():
    assert sock_diag.is_told() is True
