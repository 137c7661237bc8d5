"""Take TLS connections and pass their data on, to a plain or a TLS server, by splice(2).

    python examples/splice_proxy.py --cert cert.pem --key key.pem localhost:8080
    python examples/splice_proxy.py --cert cert.pem --key key.pem --tls www.example.org:443

The kernel decrypts what comes, moves it into a pipe and from there on, and no byte of it is copied
to this process.  For that a KTLSSocket has ``splice_to`` and ``splice_from``.  Some kernels lose
or corrupt data there; pyktls tries that out (``pyktls.probe().features``), and then this program
moves the data with recv and send, and says so when it starts.

What else a proxy has to get right:

* *Control records* (alerts, session tickets, changes of keys) never get on: each side has its own.
  ``splice_to`` deals with them.
* *The end of one direction* (close_notify, or the FIN of a plain connection) becomes the end of
  that direction on the other side, and the other direction goes on.  With TLS 1.2 there is no such
  thing: a close_notify ends both directions (RFC 5246 section 7.2.1).
* *Errors* never become an end.  If a side breaks, is cut off without close_notify, or sends nothing
  for too long, the other one must not take what it has got for the whole: a TLS connection ends
  without close_notify then, and a plain one with a reset.
* *Nobody waits for somebody else*: the sockets are non-blocking, in one asyncio loop.  The one call
  that may wait, closing, is made in a thread.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import os
import pathlib
import resource
import signal
import socket
import ssl
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import pyktls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

T = TypeVar("T")

# Seconds.
HANDSHAKE_TIMEOUT = 10.0
CONNECT_TIMEOUT = 10.0
CLOSE_TIMEOUT = 5.0
# What a pipe holds, unless somebody has changed it (pipe(7)), and what recv is asked for.
SIZE = 65536
# Two sockets and two pipes.
DESCRIPTORS = 6
OTHER_DESCRIPTORS = 32


class PlainSocket(socket.socket):
    """A TCP socket with those methods of a KTLSSocket that are needed here."""

    def splice_to(self, pipe: int, count: int) -> int:
        """As KTLSSocket.splice_to."""
        return os.splice(self.fileno(), pipe, count, flags=os.SPLICE_F_NONBLOCK)

    def splice_from(self, pipe: int, count: int) -> int:
        """As KTLSSocket.splice_from."""
        return os.splice(pipe, self.fileno(), count, flags=os.SPLICE_F_NONBLOCK)

    def abandon(self) -> None:
        """Close with a reset: a FIN would say that this was all."""
        if self.fileno() >= 0:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close()


End = pyktls.KTLSSocket | PlainSocket


# ---- waiting in the loop ---------------------------------------------------------------------


async def ready(fd: int, *, write: bool) -> None:
    """Wait until a descriptor can be read or written."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not future.done():
            future.set_result(None)

    if write:
        loop.add_writer(fd, wake)
    else:
        loop.add_reader(fd, wake)
    try:
        await future
    finally:
        if write:
            loop.remove_writer(fd)
        else:
            loop.remove_reader(fd)


async def reading(end: End, call: Callable[..., T], *arguments: object) -> T:
    """Call as soon as there is something to read."""
    while True:
        try:
            return call(*arguments)
        except BlockingIOError:
            await ready(end.fileno(), write=False)


async def writing(end: End, call: Callable[..., T], *arguments: object) -> T:
    """Call as soon as there is room."""
    while True:
        try:
            return call(*arguments)
        except BlockingIOError:
            await ready(end.fileno(), write=True)


async def in_thread(call: Callable[..., object], *arguments: object) -> None:
    """Make a call that may wait, in a thread; whatever happens here, it is over afterwards."""
    task = asyncio.ensure_future(asyncio.to_thread(call, *arguments))
    try:
        await asyncio.shield(task)
    finally:
        await asyncio.wait([task])


async def handshake(tls: ssl.SSLSocket) -> pyktls.KTLSSocket:
    """Make the handshake of a non-blocking socket, and give the connection to the kernel."""
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT):
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await ready(tls.fileno(), write=False)
                except ssl.SSLWantWriteError:
                    await ready(tls.fileno(), write=True)
    except TimeoutError:
        raise TimeoutError(f"no handshake within {HANDSHAKE_TIMEOUT:g} s") from None
    sock = pyktls.offload(tls)
    sock.close_timeout = CLOSE_TIMEOUT
    return sock


# ---- one direction ---------------------------------------------------------------------------


async def splice(source: End, target: End, moved: Callable[[int], None]) -> None:
    """Move everything up to the end of ``source``, through a pipe."""
    out, into = os.pipe()
    try:
        # The pipe is empty each time, so it is the source alone that is waited for.
        while left := await reading(source, source.splice_to, into, SIZE):
            while left:
                taken = await writing(target, target.splice_from, out, left)
                left -= taken
                moved(taken)
            await asyncio.sleep(0)  # the others' turn, for nothing above has to wait
    finally:
        os.close(out)
        os.close(into)


async def copy(source: End, target: End, moved: Callable[[int], None]) -> None:
    """The same with recv and send."""
    while data := await reading(source, source.recv, SIZE):
        view = memoryview(data)
        while view:
            taken = await writing(target, target.send, view)
            view = view[taken:]
            moved(taken)
        await asyncio.sleep(0)


async def end_sending(end: End) -> None:
    """Tell that nothing more comes: close_notify, then FIN.  It may be gone already."""
    try:
        await in_thread(end.shutdown, socket.SHUT_WR)
    except OSError as e:
        if e.errno != errno.ENOTCONN:
            raise


def reason_to_copy(source_is_tls: bool, target_is_tls: bool) -> str | None:
    """Why data cannot be spliced from such a source to such a target; None if it can."""
    features = pyktls.probe().features
    for needed, name in ((source_is_tls, "splice_to_pipe"), (target_is_tls, "splice_from_pipe")):
        answer = features[name]
        if needed and not answer:
            return f"{answer.reason}; {answer.remedy}" if answer.remedy else answer.reason
    return None


def first(error: BaseException) -> BaseException:
    """The first error in a group of errors."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


# ---- the proxy -------------------------------------------------------------------------------


class Proxy:
    """Accepts connections and carries them, each in a task of its own."""

    def __init__(
        self,
        server_context: ssl.SSLContext,
        upstream: tuple[str, int],
        client_context: ssl.SSLContext | None,
        *,
        idle: float,
        connections: int,
    ) -> None:
        self.server_context = server_context
        self.upstream = upstream
        self.client_context = client_context
        self.idle = idle
        self.free = asyncio.Semaphore(connections)
        self.tasks: set[asyncio.Task[None]] = set()
        tls = client_context is not None
        self.reasons = reason_to_copy(True, tls), reason_to_copy(tls, True)

    async def accept(self, listener: socket.socket) -> None:
        """Accept for ever.  Who comes while there are too many connections waits."""
        loop = asyncio.get_running_loop()
        while True:
            await self.free.acquire()
            try:
                tcp, address = await loop.sock_accept(listener)
            except OSError as e:
                self.free.release()
                print(f"accept: {e}", file=sys.stderr, flush=True)
                await asyncio.sleep(0.1)
                continue
            except asyncio.CancelledError:
                self.free.release()
                raise
            task = asyncio.create_task(self.serve(tcp, f"{address[0]}:{address[1]}"))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def serve(self, tcp: socket.socket, name: str) -> None:
        """One client from its handshake to its end."""
        try:
            async with self.ends(tcp) as (client, upstream):
                up, down = await self.carry(client, upstream)
                print(f"{name}: {client.version()}, {up} bytes up, {down} down", flush=True)
        except* (OSError, pyktls.Error) as group:  # ssl's errors are OSErrors
            print(f"{name}: {first(group)}", file=sys.stderr, flush=True)
        finally:
            self.free.release()

    @contextlib.asynccontextmanager
    async def ends(self, tcp: socket.socket) -> AsyncIterator[tuple[pyktls.KTLSSocket, End]]:
        """Both sides, connected.  After an error neither is told that this was the end."""
        tcp.setblocking(False)
        ends: list[End] = []
        try:
            client = await self.to_kernel(tcp, self.server_context, server_side=True)
            ends.append(client)
            upstream = await self.connect()
            ends.append(upstream)
            yield client, upstream
            # Both directions have been ended, and everything is with TCP: whatever goes wrong with
            # a connection now, nothing is lost by it.
            await asyncio.gather(*(in_thread(end.close) for end in ends), return_exceptions=True)
        finally:
            for end in ends:
                end.abandon()  # which does nothing to one that is closed

    async def to_kernel(
        self, tcp: socket.socket, context: ssl.SSLContext, *, server_side: bool
    ) -> pyktls.KTLSSocket:
        """Make the handshake on a TCP connection, which is closed if that fails."""
        name = None if server_side else self.upstream[0]
        with contextlib.ExitStack() as on_error:
            on_error.callback(tcp.close)
            tls = context.wrap_socket(
                tcp, server_side=server_side, server_hostname=name, do_handshake_on_connect=False
            )
            on_error.callback(tls.close)
            sock = await handshake(tls)
            on_error.pop_all()
        return sock

    async def connect(self) -> End:
        """A connection to the server behind this proxy."""
        tcp = await asyncio.to_thread(socket.create_connection, self.upstream, CONNECT_TIMEOUT)
        tcp.setblocking(False)
        if self.client_context is not None:
            return await self.to_kernel(tcp, self.client_context, server_side=False)
        plain = PlainSocket(tcp.family, tcp.type, tcp.proto, fileno=tcp.detach())
        plain.setblocking(False)
        return plain

    async def carry(self, client: End, upstream: End) -> tuple[int, int]:
        """Move data both ways until both have ended; returns the number of bytes, up and down."""
        loop = asyncio.get_running_loop()
        moved = [0, 0]

        async def pump(number: int, source: End, target: End) -> None:
            def count(size: int) -> None:
                moved[number] += size
                if not limit.expired():
                    limit.reschedule(loop.time() + self.idle)

            move = splice if self.reasons[number] is None else copy
            await move(source, target, count)
            await end_sending(target)

        try:
            async with asyncio.timeout(self.idle) as limit, asyncio.TaskGroup() as pumps:
                pumps.create_task(pump(0, client, upstream))
                pumps.create_task(pump(1, upstream, client))
        except TimeoutError:
            raise TimeoutError(f"nothing has moved for {self.idle:g} s") from None
        return moved[0], moved[1]


# ---- the program -----------------------------------------------------------------------------


async def run(
    proxy_of: Callable[[], Proxy], listener: socket.socket, connections: int, grace: float
) -> None:
    """Carry connections until SIGINT or SIGTERM, then for so many seconds what there is."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(2 * connections))  # each may be closing
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    proxy = proxy_of()
    for reason, direction in zip(proxy.reasons, ("up", "down"), strict=True):
        how = "by splice" if reason is None else f"by recv and send, not by splice: {reason}"
        print(f"{direction}: {how}", flush=True)
    host, port = listener.getsockname()[:2]
    print(f"{host}:{port} to {proxy.upstream[0]}:{proxy.upstream[1]}", flush=True)
    accepting = asyncio.create_task(proxy.accept(listener))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([accepting, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    accepting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await accepting
    listener.close()
    if proxy.tasks:
        await asyncio.wait(proxy.tasks, timeout=grace)
    left = list(proxy.tasks)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    print(f"stopped, {len(left)} connections cut off", flush=True)


def make_contexts(
    options: argparse.Namespace,
) -> tuple[ssl.SSLContext, ssl.SSLContext | None]:
    """The context for clients, and the one for the server behind, if it has TLS."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(options.cert, options.key)
    client = ssl.create_default_context(cafile=options.ca) if options.tls else None
    for context in (server, client):
        if context is not None:
            # Of TLS 1.2 what a kernel can do; the suites of TLS 1.3 are not touched by this.
            context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
            pyktls.watch(context)
    return server, client


def raise_limit(connections: int) -> None:
    """See that there are enough descriptors; raises OSError if there cannot be."""
    needed = DESCRIPTORS * connections + OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise OSError(
            errno.EMFILE,
            f"{connections} connections need {needed} descriptors, and the limit is {hard}",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def address(text: str) -> tuple[str, int]:
    """HOST:PORT; an IPv6 address may stand in brackets."""
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def positive(text: str) -> int:
    """A number of connections."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def why_not() -> str | None:
    """What is missing for kernel TLS here, and what would help; None if nothing is."""
    answer = pyktls.probe().tls
    if answer:
        return None
    return answer.reason if answer.remedy is None else f"{answer.reason}; {answer.remedy}"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("upstream", type=address, metavar="HOST:PORT", help="where data goes")
    parser.add_argument("--tls", action="store_true", help="TLS to there, too")
    parser.add_argument(
        "--ca", type=pathlib.Path, help="PEM, who signs there (default: the system's authorities)"
    )
    parser.add_argument("--cert", type=pathlib.Path, required=True, help="PEM, the chain included")
    parser.add_argument(
        "--key", type=pathlib.Path, help="PEM (default: it is in the file of --cert)"
    )
    parser.add_argument(
        "--listen", type=address, default=("127.0.0.1", 8443), metavar="HOST:PORT",
        help="(default: 127.0.0.1:8443; port 0: any)",
    )  # fmt: skip
    parser.add_argument(
        "--idle", type=float, default=300.0, metavar="S",
        help="cut a connection off on which nothing has moved for so long (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--connections", type=positive, default=256, metavar="N",
        help="as many at once; others wait (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--grace", type=float, default=10.0, metavar="S",
        help="how long connections may go on after SIGTERM (default: %(default)s)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.ca is not None and not options.tls:
        parser.error("--ca is for --tls")
    return options


def main() -> int:
    """Run the program; returns the exit status."""
    options = parse()
    if (reason := why_not()) is not None:
        print(f"splice_proxy: {reason}", file=sys.stderr)
        return 1
    try:
        raise_limit(options.connections)
        server, client = make_contexts(options)
        family = socket.AF_INET6 if ":" in options.listen[0] else socket.AF_INET
        listener = socket.create_server(options.listen, family=family, backlog=128)
    except (OSError, pyktls.Error) as e:
        print(f"splice_proxy: {e}", file=sys.stderr)
        return 1
    listener.setblocking(False)

    def proxy() -> Proxy:
        return Proxy(
            server, options.upstream, client, idle=options.idle, connections=options.connections
        )

    with listener:
        asyncio.run(run(proxy, listener, options.connections, options.grace))
    return 0


if __name__ == "__main__":
    sys.exit(main())
