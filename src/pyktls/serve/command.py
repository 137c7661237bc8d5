"""``pyktls serve``: from the command's options to a running server, and to its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pathlib
import resource
import signal
import ssl
import sys
from typing import TYPE_CHECKING

from pyktls.commands.terminal import fold
from pyktls.errors import Error
from pyktls.probe import probe

from . import cannot_run
from .certificates import load_selfsigned
from .limits import Limits
from .server import Server, create_server

if TYPE_CHECKING:
    import argparse

__all__ = ["CUT_OFF", "OK", "serve"]

OK, CUT_OFF = 0, 1

#: Descriptors for what is no connection; each of those takes two, itself and a file.
OTHER_DESCRIPTORS = 32


def serve(options: argparse.Namespace) -> int:
    """Serve until a signal says to stop; returns the exit status."""
    try:
        limits = Limits(
            connections=options.max_connections,
            handshake_timeout=options.handshake_timeout,
            request_timeout=options.request_timeout,
            idle_timeout=options.idle_timeout,
            send_timeout=options.send_timeout,
        )
        make_room(limits.connections)
        context, about = make_context(options)
        return asyncio.run(_serve(options, limits, context, about))
    except (OSError, Error) as e:
        return cannot_run(e, options)


def make_room(connections: int) -> None:
    """Raise the limit of descriptors for so many connections; raises Error if it cannot be."""
    needed = 2 * connections + OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise Error(
            f"{connections} connections need {needed} descriptors, and the limit is {hard} "
            "(ulimit -n): choose a lower --max-connections"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def make_context(options: argparse.Namespace) -> tuple[ssl.SSLContext, str]:
    """The TLS context, and a line about its certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Of TLS 1.2 what a kernel can do; the suites of TLS 1.3 are not touched by this.
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    if options.selfsigned:
        return context, f"a certificate of its own, SHA-256 {load_selfsigned(context)}"
    try:
        context.load_cert_chain(options.cert, options.key)
    except (OSError, ssl.SSLError) as e:
        name = options.cert if options.key is None else f"{options.cert} and {options.key}"
        raise Error(f"no certificate with its key in {name}: {e}") from e
    return context, f"the certificate in {options.cert}"


async def _serve(
    options: argparse.Namespace, limits: Limits, context: ssl.SSLContext, about: str
) -> int:
    server = await create_server(
        options.directory,
        options.host,
        options.port,
        ssl=context,
        index=options.index,
        limits=limits,
        log=None if options.quiet else sys.stdout,
        json_log=options.json,
        require=options.require,
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _on_signal, stop, server)
    with contextlib.suppress(OSError):
        for line in startup_lines(options, server, about):
            print(line, flush=True)
    await stop.wait()
    in_time = await server.stop(options.grace)
    return OK if in_time else CUT_OFF


def _on_signal(stop: asyncio.Event, server: Server) -> None:
    if stop.is_set():
        server.abort()
    stop.set()


def startup_lines(options: argparse.Namespace, server: Server, about: str) -> list[str]:
    """Where the server is, and who does the TLS; with --json an object for each address."""
    place = pathlib.Path(options.directory).resolve()
    urls = [url_of(s.getsockname()) for s in server.sockets]
    who = who_does_tls()
    if options.json:
        common = {"directory": str(place), "certificate": about, "kernel_tls": kernel_does_tls()}
        return [
            json.dumps({"event": "listening", "url": url, **common, "tls": who}) for url in urls
        ]
    told = [*(f"{place} at {url}" for url in urls), about, who]
    return [line for text in told for line in fold(f"pyktls serve: {text}", indent="  ")]


def url_of(address: tuple[str | int, ...]) -> str:
    """The URL of a listening socket."""
    host, port = address[:2]
    return f"https://[{host}]:{port}/" if ":" in str(host) else f"https://{host}:{port}/"


def kernel_does_tls() -> bool:
    """Whether the kernel does it, with what is negotiated unless somebody wants something else."""
    support = probe()
    return support.tls.yes and support.supports(0x0304, "AES_256_GCM")


def who_does_tls() -> str:
    """Whether the kernel does, and if not, why."""
    support = probe()
    if kernel_does_tls():
        return "TLS is done by the kernel"
    answer = support.tls if not support.tls else support.answer(0x0304, "AES_256_GCM", "tx")
    remedy = f"; {answer.remedy}" if answer.remedy else ""
    return f"TLS is done by OpenSSL, not by the kernel: {answer.reason}{remedy}"
