"""``pyktls sockets``: every connection with kernel TLS in this network namespace."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import socket
import sys
from typing import TYPE_CHECKING

from pyktls.errors import Error
from pyktls.kernel_support import VERSIONS
from pyktls.status import Mode
from pyktls.survey import TCPState, sockets

from .terminal import WIDTH, Paint, complain, fold

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from typing import Any

    from pyktls.survey import Endpoint, SocketInfo

__all__ = ["EXIT_STATUS", "add_arguments", "run"]

DESCRIPTION = """\
List the TCP connections that have kernel TLS, whoever switched it on: both
ends, version and cipher, how each direction is done, and the processes.  Those
of this network namespace, and each end of a connection by itself.
"""
EPILOG = """\
How a direction is done: "software" (by the kernel), "device" (by the network
card), "none" (not by the kernel), "kernel" (it does not tell how).  Processes
of others are told to root alone, and Linux up to 6.12 tells nobody else which
connections have TLS.
"""
OK, NOT_HERE = 0, 3
EXIT_STATUS = {
    OK: "the list is whole; it may be empty",
    2: "wrong usage",
    NOT_HERE: "the kernel does not tell: it has no TLS, or tells only root, or is FreeBSD's",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Tell ``parser`` what the command takes."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("--json", action="store_true", help="a JSON object instead of text")


def run(options: argparse.Namespace) -> int:
    """Show the list, and return the exit status."""
    try:
        found = sockets(processes=True)
    except (Error, OSError) as e:
        return complain("sockets", e, NOT_HERE, as_json=options.json)
    if options.json:
        print(json.dumps({"sockets": [as_dict(info) for info in found]}, indent=2))
        return OK
    if not found:
        print("no connection in this network namespace has kernel TLS")
    paint = Paint(sys.stdout)
    for info in found:
        for line in as_text(info, paint):
            print(line)
    return OK


def name_of(pid: int) -> str | None:
    """What a process is called, None if it is gone or not to be looked at."""
    try:
        name = pathlib.Path(f"/proc/{pid}/comm").read_text("utf-8", "replace").strip()
    except OSError:
        return None
    # A process gives itself its name, and may mean to write on somebody's terminal.
    return "".join(c if c.isprintable() else "?" for c in name)


def _state(info: SocketInfo) -> str:
    return info.state.name if isinstance(info.state, TCPState) else f"state {int(info.state)}"


def as_dict(info: SocketInfo) -> dict[str, Any]:
    """For JSON: the fields of ``SocketInfo``, with names in place of numbers where there are."""
    processes: list[dict[str, Any]] | None = None
    if info.processes is not None:
        processes = [{"pid": pid, "name": name_of(pid)} for pid in info.processes]
    return {
        **{field.name: getattr(info, field.name) for field in dataclasses.fields(info)},
        "family": "IPv4" if info.family == socket.AF_INET else "IPv6",
        "local": info.local._asdict(),
        "remote": info.remote._asdict(),
        "state": _state(info),
        "version": VERSIONS.get(info.version, str(info.version)) if info.version else None,
        "tx": info.tx.value,
        "rx": info.rx.value,
        "processes": processes,
    }


def as_text(info: SocketInfo, paint: Paint) -> Iterator[str]:
    """Two lines, or more where addresses are long or processes many."""
    yield from _ends(info.local, info.remote, _state(info), paint)
    if info.version is None:
        yield "    no keys"
    else:
        version = VERSIONS.get(info.version, f"{info.version:#06x}")
        modes = [f"tx {_mode(info.tx, paint)}", f"rx {_mode(info.rx, paint)}"]
        yield f"    {version} {info.cipher}  {'  '.join(modes)}"
    details = [
        text
        for text, there in (
            ("files without a copy (zerocopy_ro)", info.zerocopy_ro),
            ("expects no padding (rx_no_pad)", info.rx_no_pad),
            (f"records of at most {info.tx_max_payload_len} bytes", _is_short(info)),
            (f"{info.rqueue} bytes not read", info.rqueue),
            (f"{info.wqueue} bytes not acknowledged", info.wqueue),
        )
        if there
    ]
    if details:
        yield from fold(", ".join(details), "    ", "    ")
    if info.processes is None:
        yield f"    inode {info.inode} of uid {info.uid}, process unknown"
    elif info.processes:
        names = (f"{pid} ({name_of(pid) or '?'})" for pid in info.processes)
        yield from fold(f"pid {', '.join(names)}", "    ", "        ")
    else:
        yield "    closed by its process, the kernel carries it to its end"


def _ends(local: Endpoint, remote: Endpoint, state: str, paint: Paint) -> Iterator[str]:
    line = f"{local} - {remote}"
    if len(line) + 2 + len(state) <= WIDTH:
        yield f"{paint.bold(line)}  {state}"
    else:
        yield paint.bold(str(local))
        yield f"{paint.bold(f'  - {remote}')}  {state}"


def _mode(mode: Mode, paint: Paint) -> str:
    return paint.middling(mode.value) if mode is Mode.NONE else paint.good(mode.value)


def _is_short(info: SocketInfo) -> bool:
    # 2**14 bytes are what RFC 8446 section 5.1 allows, and the kernel's default.
    return info.tx_max_payload_len is not None and 0 < info.tx_max_payload_len < 2**14
