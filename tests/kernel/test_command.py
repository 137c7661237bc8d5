"""pyktls doctor, stat and sockets on a real kernel."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
import time

import pytest

import pyktls
from pyktls import doctor
from pyktls.__main__ import main
from pyktls.ciphers import TLS_1_3
from support import kernel, tls
from support.kernel import both_ways

COMMAND = [sys.executable, "-m", "pyktls"]
SUITE = kernel.suite(TLS_1_3, "AES_256_GCM")
PATIENCE = 120

only_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="is run by root in the lab: old kernels tell nobody else"
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in this process: a program takes long to start in the lab."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([*arguments])
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it."""
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False
    )


@contextlib.contextmanager
def switched():
    """Both ends of a connection, in this process."""
    own, other = kernel.sessions(SUITE)
    with kernel.keyed(own, other) as pair:
        yield pair


# ---- doctor ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found():
    # In this process, which has asked the kernel before: that takes long in the lab.
    return json.loads(json.dumps(doctor.examine().as_dict()))


def test_the_doctor_says_yes(found):
    assert found["verdict"]["level"] == "yes", found["findings"]
    assert [f for f in found["findings"] if f["fault"]] == []
    assert found["kernel"]["tls"]["yes"] is True
    for offered in found["offered_by_default"]:
        answers = found["kernel"]["ciphers"][offered["version"]][offered["cipher"]]
        assert all(answer["yes"] for answer in answers.values())


def test_the_doctor_tries_openssls_own_use(found):
    assert found["openssl"]["not_tried"] is None
    own = found["openssl"]["own"]
    assert set(own) == {"TLS 1.2", "TLS 1.3"}
    client, server = tls.contexts(kernel.OPENSSL_VERSIONS[TLS_1_3], watch=False)
    server.options |= 1 << 3  # SSL_OP_ENABLE_KTLS
    with tls.connect(client, server) as pair:
        said = pyktls.status(pair.server)
        both_ways(pair.client, pair.server)
    assert own["TLS 1.3"] == {"tx": bool(said.tx), "rx": bool(said.rx)}


def test_the_doctor_knows_the_code_that_encrypts(found):
    assert {"gcm(aes)", "rfc7539(chacha20,poly1305)"} <= set(found["crypto"]["drivers"])
    assert "tls" in found["machine"]["ulp"]


def test_the_doctor_for_people():
    done = run("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("yes: kernel TLS works")
    assert "AES_256_GCM         yes     yes     yes     yes" in lines
    assert max(map(len, lines)) <= 80


# ---- stat ------------------------------------------------------------------------------------


def test_stat_is_what_the_kernel_says():
    with switched():
        found = json.loads(run("stat", "--json", "--pid", str(os.getpid())).stdout)
    assert found["gauges"]["TlsCurrTxSw"] >= 2
    assert set(found["gauges"]) | set(found["counters"]) == set(pyktls.linux.tls_stat())


def test_stat_explains_what_went_wrong():
    with kernel.wired(SUITE) as (sock, wire):
        record = bytearray(wire.seal(23, b"changed on the way"))
        record[-1] ^= 1
        wire.raw(bytes(record))
        with pytest.raises(pyktls.RecordError):
            sock.recv(100)
    out = run("stat").stdout
    assert "\nTlsDecryptError: a received record did not decrypt" in out
    assert max(map(len, out.splitlines())) <= 80


@contextlib.contextmanager
def traffic():
    """Connections that come, carry data and go, until the block ends."""
    end = threading.Event()

    def go_on():
        while not end.is_set():
            with switched() as (one, two):
                both_ways(one, two, kernel.pattern(100_000))

    with kernel.Background(go_on):
        try:
            yield
        finally:
            end.set()


def test_watch_shows_a_rate_while_connections_come_and_go():
    with (
        subprocess.Popen(
            [*COMMAND, "stat", "--watch", "0.5", "--json"], stdout=subprocess.PIPE, text=True
        ) as process,
        traffic(),
    ):
        assert process.stdout is not None
        # The first line may be of the time before they came.
        lines = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.stdout.close()
        assert process.wait(PATIENCE) == 141
    assert all(line["seconds"] >= 0.4 for line in lines)
    assert lines[-1]["rates"]["TlsTxSw"] > 0
    assert lines[-1]["rates"]["TlsRxSw"] > 0
    assert lines[-1]["counters"]["TlsTxSw"] > lines[0]["counters"]["TlsTxSw"]


def test_watch_for_people():
    with traffic():
        done = run("stat", "--watch", "0.5", "--count", "3")
    assert (done.returncode, done.stderr) == (0, "")
    header, titles, *lines = done.stdout.splitlines()
    assert header.split() == ["now", "new", "per", "second"]
    assert titles.split()[0] == "time"
    assert len(lines) >= 3  # and more, if some test before has made errors
    assert float(lines[2].split()[4]) > 0


# ---- sockets ---------------------------------------------------------------------------------


@only_root
def test_sockets_lists_a_live_connection_with_its_process():
    with switched() as (one, two):
        found = json.loads(start("sockets", "--json").stdout)["sockets"]
        text = run("sockets").stdout
        ports = {sock.getsockname()[1] for sock in (one, two)}
    mine = [info for info in found if info["local"]["port"] in ports]
    assert {info["local"]["port"] for info in mine} == ports
    for info in mine:
        assert (info["version"], info["cipher"]) == ("TLS 1.3", "AES_256_GCM")
        assert (info["tx"], info["rx"]) == ("software", "software")
        assert info["state"] == "ESTABLISHED"
        assert [p["pid"] for p in info["processes"]] == [os.getpid()]
    for port in ports:
        assert f"127.0.0.1:{port} - " in text
    assert f"    pid {os.getpid()} (" in text
    assert "    TLS 1.3 AES_256_GCM  tx software  rx software" in text


@only_root
def test_sockets_says_that_there_is_none():
    end = time.monotonic() + kernel.TIMEOUT
    while pyktls.sockets():  # of tests before, on their way out
        assert time.monotonic() < end
        time.sleep(0.1)
    done = run("sockets")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "no connection in this network namespace has kernel TLS\n"
