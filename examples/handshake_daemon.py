r"""Make TLS handshakes for other processes, and give them sockets that the kernel encrypts.

    python examples/handshake_daemon.py --socket /run/tls.sock --group www-data \
        --cert cert.pem --key key.pem --ca ca.pem

It has the shape of FreeBSD's rpc.tlsclntd and rpc.tlsservd, which do this for NFS in the kernel
(RFC 9289).  A worker makes or accepts a TCP connection and hands its descriptor to this daemon.
The daemon makes the handshake, as a client or as a server, verifies the peer, gives the keys to the
kernel, and hands the connection back; from then on it has nothing to do with it.  The worker reads
and writes plain data.  It never sees the certificate's private key, and can be a user who has no
right to read that: handshake_worker.py is one.

What goes over the Unix socket (SOCK_SEQPACKET), one connection for each handshake:

    worker    "client NAME", to verify the peer's certificate for that name, or "server"; with it
              one descriptor, a connected TCP socket over which nothing has passed yet
    daemon    "ok", and then what pyktls.send_socket sends; or "error TEXT"

Who may connect is decided by the mode and the group of the Unix socket.

The worker gets no traffic secrets, so it cannot follow a KeyUpdate: should the peer send one, the
connection ends with RecordError.  What the daemon cannot keep from it are the keys of that one
connection: Linux gives them back to whoever has the descriptor (getsockopt(2) with TLS_TX), and a
seccomp filter is what prevents that.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import signal
import socket
import socketserver
import ssl
import sys
import threading
from typing import TYPE_CHECKING, Any

import pyktls

if TYPE_CHECKING:
    from collections.abc import Callable

# Seconds: for a handshake from its beginning to its end, and for a worker to take its turn.
HANDSHAKE_TIMEOUT = 30.0
WORKER_TIMEOUT = 10.0
# Handshakes at once; who asks for more waits.
MOST = 64
LONGEST = 1024


class Refused(Exception):
    """A request that cannot be carried out, in words for the worker."""


class Handler(socketserver.BaseRequestHandler):
    """One request of a worker."""

    server: Daemon
    request: socket.socket

    def handle(self) -> None:
        """Receive a TCP connection, and send it back with kernel TLS, or say why not."""
        unix = self.request
        unix.settimeout(WORKER_TIMEOUT)
        text, descriptors, _, _ = socket.recv_fds(unix, LONGEST, 8, socket.MSG_CMSG_CLOEXEC)
        what = text.decode("ascii", "replace")
        try:
            with self.server.turn:
                sock = self.server.to_kernel(descriptors, what)
        # ssl's errors are OSErrors; ValueError is a name that can be nobody's.
        except (Refused, OSError, ValueError, pyktls.Error) as e:
            print(f"{what!r}: {e}", file=sys.stderr, flush=True)
            unix.send(f"error {e}".encode()[:LONGEST])
            return
        finally:
            for fd in descriptors:
                os.close(fd)
        with sock:
            about = f"{sock.version()}, {sock.cipher()[0]}"
            unix.send(b"ok")
            pyktls.send_socket(unix, sock)  # closes it here, and wipes the keys
        print(f"{what!r}: {about}", flush=True)


class Daemon(socketserver.ThreadingUnixStreamServer):
    """Each request in a thread."""

    socket_type = socket.SOCK_SEQPACKET
    daemon_threads = False  # the end waits for handshakes that are being made
    request_queue_size = MOST

    def __init__(
        self, path: pathlib.Path, mode: int, client: ssl.SSLContext, server: ssl.SSLContext | None
    ) -> None:
        self.client_context = client
        self.server_context = server
        self.turn = threading.Semaphore(MOST)
        before = os.umask(0o777 & ~mode)
        try:
            super().__init__(str(path), Handler)
        finally:
            os.umask(before)

    def to_kernel(self, descriptors: list[int], what: str) -> pyktls.KTLSSocket:
        """Make a handshake over the one TCP socket in ``descriptors``, which is taken out of it."""
        if len(descriptors) != 1:
            raise Refused(f"one descriptor is needed, not {len(descriptors)}")
        with socket.socket(fileno=descriptors[0]) as tcp:  # OSError if it is no socket at all
            descriptors.clear()
            tls = self._start(tcp, what)  # which takes the descriptor over
        try:
            sock = pyktls.offload(tls)
        except BaseException:
            tls.close()
            raise
        status = sock.ktls
        if not (status.tx and status.rx):  # offload has seen to it; rpc.tlsclntd asks here
            sock.close()
            raise Refused("the kernel does not have both directions")
        sock.settimeout(None)
        return sock

    def _start(self, tcp: socket.socket, what: str) -> ssl.SSLSocket:
        """The handshake; the peer is verified in it."""
        families = socket.AF_INET, socket.AF_INET6
        if tcp.family not in families or tcp.type != socket.SOCK_STREAM:
            raise Refused("the descriptor is no TCP socket")
        # O_NONBLOCK becomes the worker's as well: it belongs to the socket, not to the descriptor.
        tcp.settimeout(HANDSHAKE_TIMEOUT)
        role, _, name = what.partition(" ")
        if role == "client" and name:
            return self.client_context.wrap_socket(tcp, server_hostname=name)
        if what == "server":
            if self.server_context is None:
                raise Refused("this daemon has no certificate (--cert)")
            return self.server_context.wrap_socket(tcp, server_side=True)
        raise Refused('"client NAME" or "server" is needed')

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One line for what workers do; the base class prints a traceback."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError | pyktls.Error):
            super().handle_error(request, client_address)
            return
        print(f"a worker: {error}", file=sys.stderr, flush=True)


def make_contexts(options: argparse.Namespace) -> tuple[ssl.SSLContext, ssl.SSLContext | None]:
    """The context for the client's role, and the one for the server's, if there is a certificate.

    A client is asked for a certificate where --client-ca says whose are good.  As a client this
    daemon shows its own, if a server asks for it.
    """
    client = ssl.create_default_context(cafile=options.ca)
    server = None
    if options.cert is not None:
        client.load_cert_chain(options.cert, options.key)
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=options.client_ca)
        server.load_cert_chain(options.cert, options.key)
        if options.client_ca is not None:
            server.verify_mode = ssl.CERT_REQUIRED
    for context in (client, server):
        if context is not None:
            # Of TLS 1.2 what a kernel can do; the suites of TLS 1.3 are not touched by this.
            context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
            pyktls.watch(context)
    return client, server


def mode(text: str) -> int:
    """A file's mode in octal."""
    number = int(text, 8)
    if not 0 <= number <= 0o777:
        raise ValueError(text)
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
    parser.add_argument(
        "--socket", type=pathlib.Path, required=True, help="the Unix socket to make"
    )
    parser.add_argument(
        "--mode", type=mode, default=0o660, help="of the Unix socket (default: 660)"
    )
    parser.add_argument("--group", help="of the Unix socket (default: this process's)")
    parser.add_argument("--cert", type=pathlib.Path, help="PEM; without it no server's role")
    parser.add_argument(
        "--key", type=pathlib.Path, help="PEM (default: it is in the file of --cert)"
    )
    parser.add_argument(
        "--ca", type=pathlib.Path, help="PEM, who signs servers (default: the system's authorities)"
    )
    parser.add_argument(
        "--client-ca", type=pathlib.Path, help="PEM, who signs clients (default: none is asked)"
    )
    options = parser.parse_args(arguments)
    for name in ("key", "client_ca"):
        if getattr(options, name) is not None and options.cert is None:
            parser.error(f"--{name.replace('_', '-')} needs --cert")
    return options


def run(options: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM."""
    contexts = make_contexts(options)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # KeyboardInterrupt, as SIGINT does
    with Daemon(options.socket, options.mode, *contexts) as daemon:
        try:
            if options.group is not None:
                shutil.chown(options.socket, group=options.group)
            say(f"handshakes at {options.socket}")
            daemon.serve_forever()
        except KeyboardInterrupt:
            say("stopped")
        finally:
            options.socket.unlink(missing_ok=True)


def main() -> int:
    """Run the program; returns the exit status."""
    options = parse()
    if (reason := why_not()) is not None:
        print(f"handshake_daemon: {reason}", file=sys.stderr)
        return 1
    try:
        run(options, lambda text: print(text, flush=True))
    except (OSError, LookupError, pyktls.Error) as e:
        print(f"handshake_daemon: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
