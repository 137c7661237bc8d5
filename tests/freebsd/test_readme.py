"""The README's example for FreeBSD is run as it stands there."""

from __future__ import annotations

import sys

from pyktls import _records
from support.readme import example


def test_the_example_by_hand(capsys, plain):
    code = example("struct tls_enable")
    names = {}
    if not sys.platform.startswith("freebsd"):
        # The socket module knows nothing of the fake kernel.
        names["send"] = lambda sock, data: _records.sendall(
            sock.fileno(), data, 0, _records.Deadline(None)
        )
        names["recv"] = plain.recv
        assert code.count("near.sendall(") == code.count("far.recv(") == 1
        code = code.replace("near.sendall(", "send(near, ").replace("far.recv(", "recv(far, ")
    exec(code, names)  # noqa: S102
    assert capsys.readouterr().out == "b'encrypted by the kernel'\n"
    for name in ("near", "far", "listener"):
        names[name].close()
