"""Keys do not stay in the process once it has no use for them.

A child process makes or negotiates a connection, and tells the keys to this one, masked.  This one
then looks through all of the child's writable memory for them: while they are in use, where they
have to be found (so that the search is known to work), and after the connection is closed.

What this does not show: OpenSSL 3.0 leaves the traffic secrets of TLS 1.3 in the memory of its
freed connections, whether pyktls takes part or not; so it is the keys that are looked for.  And
immutable ``bytes`` cannot be wiped: who reads keys back with ``linux.get_crypto_info``, or makes
``DirectionKeys`` out of ``bytes``, has copies that live until the memory is used again.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

PREAMBLE = """
import gc, json, sys
import pyktls
from pyktls import DirectionKeys, KTLSSocket, Role, Session
from support import kernel, tls

def random(size):
    buffer = bytearray(size)
    with open("/dev/urandom", "rb", buffering=0) as source:
        source.readinto(buffer)
    return buffer

def tell(**secrets):
    # One byte after the other: no other copy comes into being.
    print(json.dumps({n: [b ^ 0x5A for b in s] for n, s in secrets.items()}), flush=True)
    sys.stdin.readline()

def pause(word):
    gc.collect()
    print(json.dumps(word), flush=True)
    sys.stdin.readline()
"""

HAND_MADE = """
suite = kernel.suite(VERSION, CIPHER)
near, far = tls.tcp_pair()
tx, rx = random(suite.aead.key_length), random(suite.aead.key_length)
iv = random(12 if VERSION == 0x0304 or "CHACHA" in CIPHER else 4)
session = Session(suite, Role.CLIENT, DirectionKeys(tx, iv, 0), DirectionKeys(rx, iv, 0))
buffers = session.tx.key, session.rx.key
for buffer in (tx, rx, iv):
    buffer[:] = bytes(len(buffer))
tell(tx=session.tx.key, rx=session.rx.key)
pyktls.install(near, session)
near.sendall(b"data")
sock = KTLSSocket(session, near.detach())
pause("in use")
sock.close()  # the session lives on: it is its wiping that is shown, not luck with freed memory
pause("closed")
"""

NEGOTIATED = """
client, server = tls.contexts(kernel.OPENSSL_VERSIONS[VERSION], CIPHER, watch=False)
pyktls.watch(client)
pair = tls.connect(client, server)
sock = pyktls.offload(pair.client)
kept = sock._layer.session.tx, sock._layer.session.rx
buffers = [k.key for k in kept]  # live on: it is their wiping that is shown
tell(tx=kept[0].key, rx=kept[1].key)
sock.sendall(b"data")
assert pair.server.recv(4) == b"data"
pause("in use")
# The peer is in the same process and has the same keys.
pair.close()
sock.close()
del pair, sock, client, server
pause("closed")
"""


def occurrences(pid: int, needles: dict[str, bytes]) -> dict[str, int]:
    found = dict.fromkeys(needles, 0)
    with pathlib.Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines():
            place, permissions, *_ = line.split()
            if "w" not in permissions:
                continue
            start, end = (int(part, 16) for part in place.split("-"))
            try:
                memory.seek(start)
                content = memory.read(end - start)
            except OSError:
                continue
            for name, needle in needles.items():
                found[name] += content.count(needle)
    return found


def look_through(script: str, version: int, cipher: str) -> tuple[dict[str, int], dict[str, int]]:
    """Occurrences of each secret ``(while in use, after the close)``."""
    code = f"{PREAMBLE}\nVERSION, CIPHER = {version!r}, {cipher!r}\n{script}"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(["src", "tests"])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            masked = json.loads(process.stdout.readline())
            secrets = {name: bytes(b ^ 0x5A for b in values) for name, values in masked.items()}
            results = []
            for word in ("in use", "closed"):
                process.stdin.write("\n")
                process.stdin.flush()
                assert json.loads(process.stdout.readline()) == word
                results.append(occurrences(process.pid, secrets))
        finally:
            process.kill()
    return results[0], results[1]


@pytest.mark.parametrize(
    ("version", "cipher"),
    [(0x0303, "AES_128_GCM"), (0x0304, "CHACHA20_POLY1305")],
    ids=["TLS1.2", "TLS1.3"],
)
def test_keys_of_a_session_are_gone_after_close(version, cipher):
    in_use, closed = look_through(HAND_MADE, version, cipher)
    # Once each: the session's own copy.  The structs made for the kernel are wiped.
    assert in_use == {"tx": 1, "rx": 1}
    assert closed == {"tx": 0, "rx": 0}


@pytest.mark.parametrize(
    ("version", "cipher"),
    [(0x0303, "ECDHE-RSA-AES128-GCM-SHA256"), (0x0304, "TLS_AES_128_GCM_SHA256")],
    ids=["TLS1.2", "TLS1.3"],
)
def test_negotiated_keys_are_gone_after_close(version, cipher):
    in_use, closed = look_through(NEGOTIATED, version, cipher)
    assert all(in_use.values())
    assert not any(closed.values()), closed
