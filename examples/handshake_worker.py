"""Read and write over TLS without knowing anything of it: handshake_daemon.py and the kernel do.

    python examples/handshake_worker.py --socket /run/tls.sock fetch www.example.org /
    sudo -u nobody python examples/handshake_worker.py --socket /run/tls.sock echo --port 8443

``fetch`` gets a page from an HTTPS server, ``echo`` is a server that sends back what it receives.
Neither has keys, certificates or a TLS library's context: ``upgrade`` gives the TCP socket to the
daemon and gets a connection that the kernel encrypts.
"""

from __future__ import annotations

import argparse
import pathlib
import signal
import socket
import socketserver
import sys
from typing import Any

import pyktls

# Seconds: for the daemon, and for each step of a peer.
DAEMON_TIMEOUT = 60.0
TIMEOUT = 60.0
LONGEST = 1024


class Refused(Exception):
    """The daemon has made no connection of it, and says why."""


def upgrade(tcp: socket.socket, what: str, daemon: pathlib.Path) -> pyktls.KTLSSocket:
    """Have the daemon make the handshake; ``what`` is "client NAME" or "server".

    ``tcp`` is closed here in any case.  Raises Refused, and OSError if there is no daemon.
    """
    with tcp, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as unix:
        unix.settimeout(DAEMON_TIMEOUT)
        try:
            unix.connect(str(daemon))
        except OSError as e:
            raise OSError(e.errno, f"{daemon}: {e.strerror}") from None
        socket.send_fds(unix, [what.encode("ascii", "replace")], [tcp.fileno()])
        answer = unix.recv(LONGEST)
        if answer != b"ok":
            text = answer.decode("utf-8", "replace").removeprefix("error ")
            raise Refused(text or "the daemon has ended")
        sock = pyktls.receive_socket(unix)
    sock.settimeout(TIMEOUT)
    return sock


# ---- a client --------------------------------------------------------------------------------


def fetch(options: argparse.Namespace) -> int:
    """Get a page; the body goes to standard output."""
    tcp = socket.create_connection((options.host, options.port), TIMEOUT)
    with upgrade(tcp, f"client {options.host}", options.socket) as sock:
        request = f"GET {options.path} HTTP/1.0\r\nHost: {options.host}\r\n\r\n"
        sock.sendall(request.encode("ascii"))
        # HTTP/1.0 without a length ends with the connection, and recv tells an end, which gives
        # b"", from a connection that was cut off: TruncationError.
        with sock.makefile("rb") as response:
            status = response.readline()
            while response.readline() not in (b"\r\n", b""):
                pass
            while piece := response.read1(65536):
                sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
    print(status.decode("latin-1").strip(), file=sys.stderr)
    return 0 if b" 200 " in status else 1


# ---- a server --------------------------------------------------------------------------------


class Handler(socketserver.BaseRequestHandler):
    """One connection."""

    server: Server

    def handle(self) -> None:
        """Echo up to the client's close_notify; closing sends ours."""
        with upgrade(self.request, "server", self.server.daemon) as sock:
            size = 0
            while data := sock.recv(65536):
                sock.sendall(data)
                size += len(data)
        print(f"{self.client_address[0]}: {size} bytes", flush=True)


class Server(socketserver.ThreadingTCPServer):
    """Each connection in a thread."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int], daemon: pathlib.Path) -> None:
        self.daemon = daemon
        super().__init__(address, Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One line for what clients do; the base class prints a traceback."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError | Refused | pyktls.Error):
            super().handle_error(request, client_address)
            return
        print(f"{client_address[0]}: {error}", file=sys.stderr, flush=True)


def echo(options: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # KeyboardInterrupt, as SIGINT does
    with Server((options.host, options.port), options.socket) as server:
        host, port = server.socket.getsockname()[:2]
        print(f"echo at {host}:{port}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("stopped", flush=True)
    return 0


# ---- the program -----------------------------------------------------------------------------


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options; ``run`` is the function."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--socket", type=pathlib.Path, required=True, help="the daemon's")
    commands = parser.add_subparsers(required=True, metavar="fetch | echo")
    client = commands.add_parser("fetch", help="get a page from an HTTPS server")
    client.add_argument("host")
    client.add_argument("path")
    client.add_argument("--port", type=int, default=443, help="(default: %(default)s)")
    client.set_defaults(run=fetch)
    server = commands.add_parser("echo", help="send back what is received")
    server.add_argument("--host", default="127.0.0.1", help="(default: %(default)s)")
    server.add_argument("--port", type=int, default=8443, help="(default: %(default)s; 0: any)")
    server.set_defaults(run=echo)
    options = parser.parse_args(arguments)
    if options.run is fetch and not all(
        text.isascii() and text.isprintable() and " " not in text
        for text in (options.host, options.path)
    ):
        parser.error("host and path: printable ASCII without spaces")
    return options


def main() -> int:
    """Run the program; returns the exit status."""
    options = parse()
    try:
        status: int = options.run(options)
    except (OSError, OverflowError, Refused, pyktls.Error) as e:
        print(f"handshake_worker: {e}", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
