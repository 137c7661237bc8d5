"""Keys do not stay in the process once it has no use for them.

A child process makes or negotiates a connection, and tells the keys to this one, masked.  This one
then looks through all of the child's writable memory for them: while they are in use, where they
have to be found (so that the search is known to work), and after what the test is about.  With them
it looks for what else is secret: IVs of 12 bytes, and traffic secrets.  (The IV of AES-GCM and
AES-CCM in TLS 1.2 has 4 bytes, which are found anywhere; it is kept, and wiped, with the key.)

What this does not show: OpenSSL 3.0 leaves the traffic secrets and the IVs of TLS 1.3 in the memory
of its freed connections, whether pyktls takes part or not; so of a connection that was negotiated
the secrets are not looked for.  And immutable ``bytes`` cannot be wiped: who takes ``key`` out of a
``linux.CryptoInfo``, or makes ``DirectionKeys`` out of ``bytes``, has copies that live until the
memory is used again.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pyktls.ciphers import TLS_1_2, TLS_1_3
from pyktls.key_schedule import next_traffic_secret, traffic_keys
from support import kernel

if TYPE_CHECKING:
    from collections.abc import Callable

PREAMBLE = """
import errno, gc, json, socket, sys
import pyktls
from pyktls import Direction, DirectionKeys, KTLSSocket, Role, Session, linux, switch
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

# ``kept`` lives on to the end: it is the wiping of its buffers that is shown, not luck with freed
# memory.
HAND_MADE = """
suite = kernel.suite(VERSION, CIPHER)
near, far = tls.tcp_pair()
long_iv = VERSION == 0x0304 or "CHACHA" in CIPHER

def keys():
    parts = random(suite.aead.key_length), random(12 if long_iv else 4), random(suite.hash_length)
    made = DirectionKeys(parts[0], parts[1], 0, secret=parts[2] if VERSION == 0x0304 else None)
    for part in parts:
        part[:] = bytes(len(part))
    return made

session = Session(suite, Role.CLIENT, keys(), keys())
kept = [(k, k.key, k.iv, k.secret) for k in (session.tx, session.rx)]
told = {}
for direction in Direction:
    told[f"{direction} key"] = session.keys(direction).key
    if long_iv:
        told[f"{direction} iv"] = session.keys(direction).iv
    if VERSION == 0x0304:
        told[f"{direction} secret"] = session.keys(direction).secret
tell(**told)
"""

USED = """
pyktls.install(near, session)
near.sendall(b"data")
sock = KTLSSocket(session, near.detach())
pause("in use")
sock.close()
pause("closed")
"""

REFUSED = """
# The kernel takes no other version in the one direction than it has in the other.
linux.set_ulp(near)
linux.set_crypto_info(near, linux.TLS_TX, linux.CryptoInfo(
    0x0304 if VERSION == 0x0303 else 0x0303, linux.TLS_CIPHER_AES_GCM_256,
    key=bytes(32), salt=bytes(4), iv=bytes(8), rec_seq=0))
for _ in range(3):
    try:
        pyktls.install(near, session, tx=False)
    except OSError as e:
        assert e.errno == errno.EINVAL
    else:
        raise SystemExit("it was not refused")
pause("refused")
for keys, *_ in kept:
    keys.wipe()
pause("wiped")
"""

ASKED = """
pyktls.install(near, session)
near.sendall(b"data")
pause("in use")
for keys, *_ in kept:
    keys.wipe()
fd = near.fileno()
for _ in range(3):
    for direction in Direction:
        assert linux.system.next_sequence(fd, direction) == (direction is Direction.TX)
    linux.system.go_on_receiving(fd)
    pyktls.status(near)
    infos = [linux.get_crypto_info(near, option) for option in (linux.TLS_TX, linux.TLS_RX)]
    assert infos[0] != infos[1]
    for info in infos:
        info.wipe()
pause("asked")
"""

REKEYED = """
pyktls.install(near, session)
pause("before")
done = 0
for direction in Direction:
    try:
        switch.rekey_fd(near.fileno(), session, direction)
    except OSError as e:
        assert e.errno == errno.EBUSY
    else:
        done += 1
assert done in (0, 2)
later = [(k, k.key, k.iv, k.secret) for k in (session.tx, session.rx)]
pause("changed" if done else "refused")
for keys, *_ in later:
    keys.wipe()
pause("wiped")
"""

MOVED = """
pyktls.install(near, session)
sock = KTLSSocket(session, near.detach())
ways = socket.socketpair()
pause("in use")
pyktls.send_socket(ways[0], sock, secrets=True)
moved = pyktls.receive_socket(ways[1])
after = [(k, k.key, k.iv, k.secret) for k in (moved._layer.session.tx, moved._layer.session.rx)]
pause("moved")
moved.close()
pause("closed")
"""

NEGOTIATED = """
client, server = tls.contexts(kernel.OPENSSL_VERSIONS[VERSION], CIPHER, watch=False)
pyktls.watch(client)
pair = tls.connect(client, server)
sock = pyktls.offload(pair.client)
kept = sock._layer.session.tx, sock._layer.session.rx
buffers = [(k.key, k.iv) for k in kept]  # live on: it is their wiping that is shown
told = {"tx key": kept[0].key, "rx key": kept[1].key}
if len(kept[0].iv) == 12:
    told |= {"tx iv": kept[0].iv, "rx iv": kept[1].iv}
tell(**told)
sock.sendall(b"data")
assert pair.server.recv(4) == b"data"
pause("in use")
# The peer is in the same process and has the same keys.
pair.close()
sock.close()
del pair, sock, client, server
pause("closed")
"""

EACH = pytest.mark.parametrize(
    ("version", "cipher"),
    [(TLS_1_2, "AES_128_GCM"), (TLS_1_2, "CHACHA20_POLY1305"), (TLS_1_3, "AES_256_GCM")],
    ids=["TLS1.2", "TLS1.2-ChaCha", "TLS1.3"],
)


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


def look_through(
    script: str,
    version: int,
    cipher: str,
    derive: Callable[[dict[str, bytes]], dict[str, bytes]] | None = None,
) -> dict[str, dict[str, int]]:
    """Occurrences of each secret, at each pause of the script.

    ``derive`` makes more of them, out of what the child tells.
    """
    code = f"{PREAMBLE}\nVERSION, CIPHER = {version!r}, {cipher!r}\n{script}"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(["src", "tests"])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    found = {}
    with process:
        try:
            masked = json.loads(process.stdout.readline())
            secrets = {name: bytes(b ^ 0x5A for b in values) for name, values in masked.items()}
            secrets |= derive(secrets) if derive is not None else {}
            while True:
                process.stdin.write("\n")
                process.stdin.flush()
                line = process.stdout.readline()
                if not line:
                    break
                found[json.loads(line)] = occurrences(process.pid, secrets)
            assert process.wait(kernel.TIMEOUT) == 0
        finally:
            process.kill()
    return found


def each(found: dict[str, int], number: int, *kinds: str) -> bool:
    """Whether each secret, or each of those kinds, is there so many times."""
    chosen = [n for n in found if not kinds or n.rpartition(" ")[2] in kinds]
    assert chosen
    return all(found[name] == number for name in chosen)


@EACH
def test_keys_of_a_session_are_gone_after_close(version, cipher):
    found = look_through(HAND_MADE + USED, version, cipher)
    # Once each: the session's own copy.  The structs made for the kernel are wiped.
    assert each(found["in use"], 1), found
    assert each(found["closed"], 0), found


@EACH
def test_keys_that_the_kernel_refused_are_the_sessions_alone(version, cipher):
    found = look_through(HAND_MADE + REFUSED, version, cipher)
    assert each(found["refused"], 1), found
    assert each(found["wiped"], 0), found


@EACH
def test_asking_the_kernel_for_numbers_leaves_no_keys_behind(version, cipher):
    """They come with its answers, while this process has no copy of its own any more."""
    found = look_through(HAND_MADE + ASKED, version, cipher)
    assert each(found["in use"], 1), found
    assert each(found["asked"], 0), found


def next_keys(cipher: str) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    def derive(secrets: dict[str, bytes]) -> dict[str, bytes]:
        suite = kernel.suite(TLS_1_3, cipher)
        more = {}
        for direction in ("tx", "rx"):
            secret = next_traffic_secret(suite, secrets[f"{direction} secret"])
            key, iv = traffic_keys(suite, secret)
            names = (f"{direction} next {kind}" for kind in ("secret", "key", "iv"))
            more |= zip(names, map(bytes, (secret, key, iv)), strict=True)
        return more

    return derive


@pytest.mark.parametrize("cipher", ["AES_128_GCM", "AES_256_GCM", "CHACHA20_POLY1305"])
def test_a_change_of_keys_leaves_neither_the_old_ones_nor_more_of_the_new_ones(cipher):
    """Where the kernel refuses it (before 6.14), the new ones are gone and the old ones there."""
    found = look_through(HAND_MADE + REKEYED, TLS_1_3, cipher, next_keys(cipher))

    def counts(word: str) -> tuple[set[int], set[int]]:
        old = {number for name, number in found[word].items() if "next" not in name}
        return old, {number for name, number in found[word].items() if "next" in name}

    assert counts("before") == ({1}, {0}), found
    if "changed" in found:
        assert counts("changed") == ({0}, {1}), found
    else:
        assert counts("refused") == ({1}, {0}), found
    assert counts("wiped")[1] == {0}, found


def test_a_connection_that_has_moved_leaves_nothing_behind():
    found = look_through(HAND_MADE + MOVED, TLS_1_3, "AES_128_GCM")
    assert each(found["in use"], 1), found
    # Only the kernel has keys and IVs now; of the traffic secrets the new owner has a copy.
    assert each(found["moved"], 0, "key", "iv"), found
    assert each(found["moved"], 1, "secret"), found
    assert each(found["closed"], 0), found


@pytest.mark.parametrize(
    ("version", "cipher"),
    [
        (TLS_1_2, "ECDHE-RSA-AES128-GCM-SHA256"),
        (TLS_1_2, "ECDHE-RSA-CHACHA20-POLY1305"),
        (TLS_1_3, "TLS_AES_128_GCM_SHA256"),
    ],
    ids=["TLS1.2", "TLS1.2-ChaCha", "TLS1.3"],
)
def test_negotiated_keys_are_gone_after_close(version, cipher):
    found = look_through(NEGOTIATED, version, cipher)
    assert all(found["in use"].values()), found
    assert each(found["closed"], 0, "key"), found
    # Each end's SSL object has had both IVs, and in TLS 1.3 OpenSSL does not overwrite them.
    left = 2 if version == TLS_1_3 else 0
    assert all(number <= left for number in found["closed"].values()), found
