"""What one call costs: send and recv of pyktls, of the ssl module, and of a plain TCP socket.

    python -m tests.lab run --kernel 7.3 --icount -- python benchmarks/calls.py

Meant for the lab's instruction-counted mode, on one processor: there a nanosecond of the guest's
clock is an instruction, whoever else uses the machine, and a figure repeats within a per cent or
two.  Kernel time is in it: that is where kernel TLS does its work.  Each figure is the median of
several rounds; in a round the sender fills the socket's buffer as far as it goes, and then the
receiver empties it, each timed by itself.
"""

from __future__ import annotations

import contextlib
import pathlib
import platform
import socket
import ssl
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests"))

import pyktls
from support import tls

SIZES = (256, 16 * 1024, 1024 * 1024)
ROUNDS = 7
BUFFER = 4 << 20


def plain_pair():
    return tls.tcp_pair()


def ssl_pair():
    client, server = tls.contexts(ssl.TLSVersion.TLSv1_3, "TLS_AES_128_GCM_SHA256", watch=False)
    pair = tls.connect(client, server)
    return pair.client, pair.server


def ktls_pair():
    client, server = tls.contexts(ssl.TLSVersion.TLSv1_3, "TLS_AES_128_GCM_SHA256")
    pair = tls.connect(client, server)
    return pyktls.offload(pair.client), pyktls.offload(pair.server)


def wrapped_pair():
    client, server = tls.contexts(ssl.TLSVersion.TLSv1_3, "TLS_AES_128_GCM_SHA256", watch=False)
    for context in (client, server):
        pyktls.wrap_context(context, require=True)
    pair = tls.connect(client, server)
    return pair.client, pair.server


KINDS = {
    "socket.socket": plain_pair,
    "ssl.SSLSocket": ssl_pair,
    "pyktls.KTLSSocket": ktls_pair,
    "pyktls.SSLSocket": wrapped_pair,
}


def measure(near, far, size):
    """Nanoseconds of one sendall, and of receiving as much, by recv_into."""
    data = bytes(size)
    room = bytearray(size)
    count = max(1, min(200, (BUFFER // 4) // (size + 600)))
    begin = time.perf_counter_ns()
    for _ in range(count):
        near.sendall(data)
    sent = time.perf_counter_ns()
    view = memoryview(room)
    for _ in range(count):
        left = size
        while left:
            left -= far.recv_into(view[:left])
    received = time.perf_counter_ns()
    return (sent - begin) / count, (received - sent) / count


def main() -> None:
    print(f"Linux {platform.release()}, Python {platform.python_version()}, {ssl.OPENSSL_VERSION}")
    print("nanoseconds of the guest's clock for each call, and in times those of socket.socket\n")
    print(f"{'':19}" + "".join(f"{what:>22}" for what in ("256 B", "16 KiB", "1 MiB")))
    base: dict[tuple[str, int], float] = {}
    for direction in ("sendall", "recv_into"):
        print(direction)
        for name, make in KINDS.items():
            line = f"  {name:<17}"
            for size in SIZES:
                near, far = make()
                with contextlib.closing(near), contextlib.closing(far):
                    for sock in (near, far):
                        sock.settimeout(60)
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
                    # Tickets out of the way, and every path walked once.
                    measure(near, far, size)
                    measure(far, near, size)
                    rounds = [measure(near, far, size) for _ in range(ROUNDS)]
                taken = statistics.median(r[direction == "recv_into"] for r in rounds)
                base.setdefault((direction, size), taken)
                line += f"{taken:>14,.0f} {taken / base[direction, size]:>5.2f} x"
            print(line, flush=True)


if __name__ == "__main__":
    main()
