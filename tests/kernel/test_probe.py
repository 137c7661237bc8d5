"""pyktls.probe on real kernels: each answer against a trial of the test's own.

The trials here are made with plain setsockopt and getsockopt, and numbers written down once more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import socket
import struct
import subprocess
import sys
import tempfile
import time

import pytest

import pyktls
from pyktls import Cause, Direction, Mode, linux
from pyktls.ciphers import AEADS, TLS_1_2, TLS_1_3
from pyktls.kernel_support import FEATURES, OPTIONS, VERSIONS
from support import kernel, tls
from support.probing import (
    FILTER,
    LIMIT,
    check_every_no,
    in_child,
    in_fork,
    open_descriptors,
)

SOL_TLS, TCP_ULP = 282, 31
NUMBER = {Direction.TX: 1, Direction.RX: 2}
# cipher_type, and the sizes of iv, key, salt and rec_seq.
STRUCTS = {
    "AES_128_GCM": (51, 8, 16, 4, 8),
    "AES_256_GCM": (52, 8, 32, 4, 8),
    "AES_128_CCM": (53, 8, 16, 4, 8),
    "CHACHA20_POLY1305": (54, 12, 32, 0, 8),
    "SM4_GCM": (55, 8, 16, 4, 8),
    "SM4_CCM": (56, 8, 16, 4, 8),
    "ARIA_128_GCM": (57, 8, 16, 4, 8),
    "ARIA_256_GCM": (58, 8, 32, 4, 8),
}


MODPROBE = pathlib.Path("/proc/sys/kernel/modprobe")


@pytest.fixture(autouse=True, scope="module")
def found():
    """The first probe.  It loads what modules it needs.

    After that, in the lab, the kernel finds no modprobe(8) any more: to start it in vain for the
    ciphers that a kernel lacks takes seconds there, each time.
    """
    begin = time.monotonic()
    found = pyktls.probe(refresh=True)
    took = time.monotonic() - begin
    print(f"\nthe first probe: {took * 1e3:.1f} ms")
    assert found.seconds <= took
    if "PYKTLS_LAB" not in os.environ:
        yield found
        return
    before = MODPROBE.read_bytes()
    MODPROBE.write_bytes(b"/nonexistent\n")
    try:
        yield found
    finally:
        MODPROBE.write_bytes(before)


@pytest.fixture(scope="module")
def child():
    return in_child()


@contextlib.contextmanager
def attached():
    near, far = tls.tcp_pair()
    with near, far:
        near.settimeout(None)
        for sock in (near, far):
            sock.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
        yield near, far


def packed(version, cipher, *, key=0, sequence=0):
    number, *sizes = STRUCTS[cipher]
    iv, key_size, salt, _ = sizes
    body = bytes(iv) + bytes([key]) * key_size + bytes(salt) + sequence.to_bytes(8, "big")
    return struct.pack("=HH", version, number) + body


def errno_of(call, *arguments):
    try:
        call(*arguments)
    except OSError as e:
        return e.errno
    return None


# ---- each answer -----------------------------------------------------------------------------


def test_there_is_tls(found):
    assert found
    assert found.tls.yes
    assert found.tls.code is Cause.YES
    assert found.release == os.uname().release


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("cipher", STRUCTS)
@pytest.mark.parametrize("version", VERSIONS, ids=VERSIONS.get)
def test_cipher(found, version, cipher, direction):
    with attached() as (near, _):
        number = errno_of(near.setsockopt, SOL_TLS, NUMBER[direction], packed(version, cipher))
        back = b""
        if number is None:
            back = near.getsockopt(SOL_TLS, NUMBER[direction], 4)
    answer = found.answer(version, cipher, direction)
    assert answer.yes is (number is None)
    assert answer.errno == number
    if number is None:
        assert back == packed(version, cipher)[:4]
        assert answer.remedy is None
    else:
        expected = {errno.ENOENT: Cause.CIPHER_MISSING, errno.EINVAL: Cause.VERSION_UNSUPPORTED}
        assert answer.code is expected[number]
        assert answer.remedy


def test_ciphers_of_other_systems(found):
    others = [aead for aead in AEADS if aead.name not in STRUCTS]
    assert others
    for aead in others:
        for version in VERSIONS:
            assert not found.supports(version, aead)
            assert found.answer(version, aead, "tx").code is Cause.NOT_IN_SYSTEM


@pytest.mark.parametrize("direction", Direction)
def test_rekey(found, direction):
    with attached() as (near, _):
        near.setsockopt(SOL_TLS, NUMBER[direction], packed(TLS_1_3, "AES_128_GCM"))
        new = packed(TLS_1_3, "AES_128_GCM", key=7)
        number = errno_of(near.setsockopt, SOL_TLS, NUMBER[direction], new)
    assert found.rekey[direction].yes is (number is None)
    assert found.rekey[direction].errno == number
    assert found.rekey[direction].code is (Cause.YES if number is None else Cause.TOO_OLD)
    assert number in (None, errno.EBUSY)


@pytest.mark.parametrize(
    ("name", "number", "value"),
    [("TLS_TX_ZEROCOPY_RO", 3, b"\1\0\0\0"), ("TLS_TX_MAX_PAYLOAD_LEN", 5, b"\0\4")],
)
def test_options(found, name, number, value):
    with attached() as (near, _):
        near.setsockopt(SOL_TLS, 1, packed(TLS_1_3, "AES_128_GCM"))
        error = errno_of(near.setsockopt, SOL_TLS, number, value)
        kept = error is None and near.getsockopt(SOL_TLS, number, len(value)) == value
    assert found.options[name].yes is kept
    assert found.options[name].errno == error
    if not kept:
        assert error == errno.ENOPROTOOPT
        assert found.options[name].code is Cause.TOO_OLD
        assert "Linux has it since" in found.options[name].remedy


def padded_data_arrives():
    """CVE-2026-74611: what follows a padded record has to arrive where it belongs."""
    with attached() as (near, far):
        near.setsockopt(SOL_TLS, 1, packed(TLS_1_3, "AES_128_GCM"))
        far.setsockopt(SOL_TLS, 2, packed(TLS_1_3, "AES_128_GCM"))
        far.setsockopt(SOL_TLS, 4, b"\1\0\0\0")
        near.sendmsg([b"ab\x17" + bytes(200)], [(SOL_TLS, 1, b"\0")])
        near.sendall(b"cdef")
        time.sleep(0.5)
        got = b""
        while len(got) < 6:
            piece = far.recv(300)
            if not piece:
                break
            got += piece
        return got == b"abcdef"


def test_expect_no_pad(found):
    answer = found.options["TLS_RX_EXPECT_NO_PAD"]
    assert answer.yes is padded_data_arrives()
    if not answer:
        assert answer.code is Cause.DEFECTIVE
        assert "CVE-2026-74611" in answer.reason


def test_msg_eor(found):
    with attached() as (near, _):
        near.setsockopt(SOL_TLS, 1, packed(TLS_1_2, "AES_128_GCM"))
        number = errno_of(near.send, b"x", socket.MSG_EOR)
    answer = found.features["msg_eor"]
    assert answer.yes is (number is None)
    assert answer.errno == number
    assert answer.code is (Cause.YES if number is None else Cause.TOO_OLD)


def test_sendfile(found):
    with attached() as (near, far), tempfile.TemporaryFile() as file:
        file.write(b"0123456789")
        file.flush()
        near.setsockopt(SOL_TLS, 1, packed(TLS_1_3, "AES_128_GCM"))
        far.setsockopt(SOL_TLS, 2, packed(TLS_1_3, "AES_128_GCM"))
        assert os.sendfile(near.fileno(), file.fileno(), 0, 10) == 10
        assert kernel.recv_exactly(far, 10) == b"0123456789"
    assert found.features["sendfile"]


def test_splice(found):
    assert found.features["splice_to_pipe"].yes is (linux.defects.splice_to_pipe() is None)
    assert found.features["splice_from_pipe"].yes is (linux.defects.splice_from_pipe() is None)
    for name in ("splice_to_pipe", "splice_from_pipe"):
        answer = found.features[name]
        if not answer:
            assert answer.code is Cause.DEFECTIVE
            assert answer.remedy


def test_key_readback(found):
    given = True
    for cipher in STRUCTS:
        if not found.supports(TLS_1_3, cipher):
            continue
        with attached() as (near, _):
            info = packed(TLS_1_3, cipher, key=9, sequence=3)
            near.setsockopt(SOL_TLS, 2, info)
            try:
                given = given and near.getsockopt(SOL_TLS, 2, len(info)) == info
            except OSError:
                given = False
    assert found.features["key_readback"].yes is given


def test_counters(found):
    assert found.features["counters"].yes is pathlib.Path("/proc/net/tls_stat").exists()


def test_sock_diag(found):
    # pyktls.status says which it is only if the kernel tells.
    with attached() as (near, _):
        near.setsockopt(SOL_TLS, 1, packed(TLS_1_3, "AES_128_GCM"))
        told = pyktls.status(near).tx is Mode.SOFTWARE
    assert found.features["sock_diag"].yes is told


def test_the_module(found):
    listed = pathlib.Path("/proc/modules").read_text().splitlines()
    loaded = any(line.startswith("tls ") for line in listed)
    assert found.module.state == ("loaded" if loaded else "built-in")
    assert found.privileges.euid == os.geteuid()


def test_answers_are_complete(found):
    assert set(found.options) == set(OPTIONS)
    assert set(found.features) == set(FEATURES)
    assert set(found.rekey) == set(Direction)
    check_every_no(found.as_dict())


def test_the_table(found):
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert "AES_128_GCM         yes     yes     yes     yes" in lines


# ---- what it leaves, what it costs -----------------------------------------------------------


def gauges():
    stat = linux.tls_stat()
    return [stat[name] for name in ("TlsCurrTxSw", "TlsCurrRxSw")]


def test_it_leaves_nothing(found):
    descriptors, before = open_descriptors(), gauges()
    assert pyktls.probe(refresh=True) == found
    assert open_descriptors() == descriptors
    assert gauges() == before


def test_cost(found):
    times = [pyktls.probe(refresh=True).seconds for _ in range(5)]
    begin = time.monotonic()
    for _ in range(100):
        pyktls.probe()
    each = (time.monotonic() - begin) / 100
    print(
        f"\nprobe: the first {found.seconds * 1e3:.1f} ms, then {min(times) * 1e3:.1f} ms without "
        f"modprobe(8) for missing ciphers; remembered: {each * 1e6:.0f} us"
    )
    # Emulated, on a machine that has other work too.
    assert found.seconds < 120
    assert min(times) < 10
    assert each < 0.05


def test_install_asks_no_more(found, monkeypatch):
    def no_trial(*_):
        raise AssertionError("tried again")

    monkeypatch.setattr(linux.system, "try_cipher", no_trial)
    for version in VERSIONS:
        for aead in AEADS:
            if found.supports(version, aead):
                assert linux.system.cipher_refusal(version, aead) is None


def test_install_and_probe_say_the_same(found):
    for version in VERSIONS:
        for aead in (a for a in AEADS if a.name in ("AES_128_GCM", "SM4_GCM")):
            error = linux.system.cipher_refusal(version, aead)
            assert found.supports(version, aead) is (error is None)
            if error is not None:
                assert error.errno == found.answer(version, aead, "rx").errno


def test_a_refused_cipher_is_asked_again_but_not_at_once(monkeypatch):
    """Each time it starts modprobe(8), and peers choose the cipher."""
    asked = []

    def refuse(_spare, *cipher):
        asked.append(cipher)
        return dict.fromkeys(linux.system._OPTION, OSError(errno.ENOENT, "no such module"))

    monkeypatch.setattr(linux.system, "try_cipher", refuse)
    monkeypatch.setattr(linux.system, "_accepted", set())
    monkeypatch.setattr(linux.system, "_refused", {})
    aead = AEADS[0]
    for _ in range(3):
        assert linux.system.cipher_refusal(TLS_1_3, aead).errno == errno.ENOENT
    assert asked == [(TLS_1_3, aead)]
    assert linux.system.cipher_refusal(TLS_1_2, aead).errno == errno.ENOENT  # another question
    assert asked == [(TLS_1_3, aead), (TLS_1_2, aead)]
    later = time.monotonic() + linux.system.ASK_AGAIN + 0.1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert linux.system.cipher_refusal(TLS_1_3, aead) is not None
    assert len(asked) == 3


# ---- other callers ---------------------------------------------------------------------------


def without_sock_diag(support):
    """Everything but what depends on who asks."""
    out = {k: v for k, v in support.items() if k not in ("privileges", "module", "seconds")}
    return {**out, "features": {k: v for k, v in out["features"].items() if k != "sock_diag"}}


def told_without_the_capability():
    """Whether sock_diag tells a process without CAP_NET_ADMIN."""
    script = (
        "from support import tls\n"
        "from pyktls.linux.sock_diag import ulp_info\n"
        "near, far = tls.tcp_pair()\n"
        "near.setsockopt(6, 31, b'tls')\n"
        "print(ulp_info(near) is not None)\n"
    )
    done = subprocess.run(
        ["setpriv", "--bounding-set=-net_admin", sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout == "True\n"


def test_without_the_capability(child):
    other = in_child(prefix=("setpriv", "--bounding-set=-net_admin"))
    assert without_sock_diag(other.support) == without_sock_diag(child.support)
    assert other.support["privileges"]["net_admin"] is False
    autoload = other.support["module"]["autoload"]
    assert autoload["code"] == (
        "yes" if child.support["module"]["state"] == "built-in" else "privilege"
    )
    diag = other.support["features"]["sock_diag"]
    assert diag["code"] == ("yes" if told_without_the_capability() else "privilege")
    assert diag["yes"] or "CAP_NET_ADMIN" in diag["remedy"]
    assert other.same


def test_unprivileged(child):
    other = in_child(prefix=("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"))
    assert without_sock_diag(other.support) == without_sock_diag(child.support)
    assert other.support["privileges"]["euid"] == 65534
    assert other.support["privileges"]["capabilities"] == 0


def test_in_a_user_namespace(child):
    other = in_child(prefix=("unshare", "--user", "--map-root-user"))
    assert without_sock_diag(other.support) == without_sock_diag(child.support)
    who = other.support["privileges"]
    assert (who["net_admin"], who["initial_user_namespace"], who["container"]) == (
        True,
        False,
        True,
    )


def test_in_a_container_with_its_own_network(child):
    up = 'ip link set lo up && exec "$@"'
    other = in_child(prefix=("unshare", "--user", "--map-root-user", "--net", "sh", "-c", up, "sh"))
    assert other.support["tls"] == child.support["tls"]
    assert other.support["ciphers"] == child.support["ciphers"]


def test_without_loopback():
    other = in_child(prefix=("unshare", "--user", "--map-root-user", "--net"))
    assert other.code == "no-loopback"
    assert not other.same


def test_without_proc(child):
    mount = 'mount -t tmpfs none /proc && exec "$@"'
    other = in_child(prefix=("unshare", "--mount", "sh", "-c", mount, "sh"))
    assert other.tls == child.tls
    assert other.support["ciphers"] == child.support["ciphers"]
    assert other.support["module"]["state"] == "unknown"
    assert other.support["features"]["counters"]["code"] == "blocked"
    assert other.support["features"]["sendfile"]["yes"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS], ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["setsockopt", "getsockopt", "socket"])
def test_a_filter_on_all_of_it(call, number):
    other = in_fork(FILTER.format(call, number, None))
    assert (other.code, other.tls["errno"]) == ("blocked", number)
    assert not any(other.cipher(direction=d.value)["yes"] for d in Direction)


@pytest.mark.parametrize(
    ("call", "arguments", "blocked"),
    [
        ("socket", {0: 16}, ["sock_diag"]),
        ("fcntl", {1: 1031}, ["splice_to_pipe", "splice_from_pipe"]),
        ("splice", None, ["splice_to_pipe", "splice_from_pipe"]),
        ("pipe2", None, ["splice_to_pipe", "splice_from_pipe"]),
        ("sendfile", None, ["sendfile"]),
        ("memfd_create", None, ["sendfile"]),
        ("setsockopt", {1: SOL_TLS, 2: 3}, ["TLS_TX_ZEROCOPY_RO"]),
        ("getsockopt", {1: SOL_TLS, 2: 4}, ["TLS_RX_EXPECT_NO_PAD"]),
    ],
)
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS], ids=errno.errorcode.get)
def test_a_filter_on_one_thing(child, call, arguments, blocked, number):
    other = in_fork(FILTER.format(call, number, arguments))
    assert other.tls == child.tls
    for part in ("features", "options", "rekey"):
        for name, answer in other.support[part].items():
            if name in blocked:
                assert (answer["code"], answer["errno"]) == ("blocked", number)
            else:
                assert answer == child.support[part][name]


def test_a_kernel_that_only_sends(child):
    other = in_fork(FILTER.format("setsockopt", errno.ENOPROTOOPT, {1: SOL_TLS, 2: 2}))
    assert other.tls["reason"] == "what was sent came out encrypted"
    for version in ("TLS 1.2", "TLS 1.3"):
        assert other.cipher(version) == child.cipher(version)
        assert other.cipher(version, direction="rx")["code"] == "too-old"
    assert other.support["features"]["sendfile"]["code"] == "not-tried"


@pytest.mark.parametrize(
    ("option", "call"), [(3, "setsockopt"), (4, "getsockopt"), (5, "setsockopt")]
)
def test_a_kernel_without_the_option(option, call):
    other = in_fork(FILTER.format(call, errno.ENOPROTOOPT, {1: SOL_TLS, 2: option}))
    name = {3: OPTIONS[0], 4: OPTIONS[1], 5: OPTIONS[2]}[option]
    answer = other.support["options"][name]
    assert (answer["code"], answer["errno"]) == ("too-old", errno.ENOPROTOOPT)
    assert other.tls["yes"]


@pytest.mark.parametrize("free", [0, 2, 3, 4, 5, 6, 8, 12])
def test_with_few_descriptors(child, free):
    other = in_fork(LIMIT.format(free))
    if free < 3:
        assert other.code == "no-resources"
    if free >= 8:
        assert without_sock_diag(other.support) == without_sock_diag(child.support)
    for part in ("features", "options", "rekey"):
        for name, answer in other.support[part].items():
            assert answer == child.support[part][name] or answer["code"] == "no-resources"


def test_a_kernel_that_pretends_all_the_same(tmp_path):
    """The real kernel, with one lie in front: it says that it has keys, and was given none."""
    library = tmp_path / "fake_kernel.so"
    source = pathlib.Path(__file__).parents[1] / "support" / "fake_kernel.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    other = in_child(env={"LD_PRELOAD": str(library), "FAKE_KERNEL": "honest"})
    assert other.code == "pretended"
    assert "sends plain text" in other.tls["reason"]
    assert not other.cipher()["yes"]


def test_after_dropping_privileges_in_a_child_process():
    """Remembered by the parent as root; somebody else in the child asks anew."""
    script = (
        "import os, pyktls\n"
        "first = pyktls.probe()\n"
        "if os.fork() == 0:\n"
        "    same = pyktls.probe() is first\n"
        "    os.setgid(65534); os.setuid(65534)\n"
        "    now = pyktls.probe()\n"
        "    ok = same and now is not first and now.privileges.euid == 65534 and bool(now)\n"
        "    os._exit(0 if ok and now.privileges.net_admin is False else 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.wait()[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
