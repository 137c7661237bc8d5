"""Serve the files below a directory over HTTPS: sendfile(2), encrypted by the kernel.

    python examples/file_server.py DIRECTORY --cert cert.pem --key key.pem

http.server speaks HTTP, socketserver gives each connection a thread, and of kernel TLS there are
two lines: ``pyktls.wrap_context`` has the context's sockets go to the kernel after their handshake,
and ``sendfile`` on such a socket sends a file's pages without a copy through this process.

It is small so that it can be read.  The real one is ``pyktls serve``: connections that are kept
open, ranges, conditional requests, limits on everything a client can do, no symbolic links out of
the directory, and OpenSSL where the kernel cannot (docs/serve.md).
"""

from __future__ import annotations

import argparse
import functools
import http.server
import pathlib
import signal
import ssl
import sys
from typing import Any

import pyktls

# Seconds for a handshake, and for each step of a client afterwards.
TIMEOUT = 30.0


class Handler(http.server.SimpleHTTPRequestHandler):
    """GET and HEAD for files and listings of directories; one request to a connection."""

    timeout = TIMEOUT
    length = 0

    def send_header(self, keyword: str, value: str) -> None:
        """As in the base class; keep what has been promised of the body."""
        if keyword.lower() == "content-length":
            self.length = int(value)
        super().send_header(keyword, value)

    def copyfile(self, source: Any, outputfile: Any) -> None:  # noqa: ARG002  (the base's name)
        """Send the body; the base class would read the file and write it.

        A listing is no real file: sendfile reads and sends that by itself.  Of a file that has
        grown since its length was told comes that much, and one that has become shorter is noticed
        by the client, for it is told the length.
        """
        if self.length:
            self.connection.sendfile(source, 0, self.length)


class Server(http.server.ThreadingHTTPServer):
    """Each connection in a thread, its handshake included: a slow client holds up nobody."""

    daemon_threads = False  # the end waits for what is being sent

    def __init__(
        self, address: tuple[str, int], directory: pathlib.Path, context: ssl.SSLContext
    ) -> None:
        self.context = context
        super().__init__(address, functools.partial(Handler, directory=str(directory)))

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Make the handshake, then serve.  Closing sends close_notify, and all that is left."""
        request.settimeout(TIMEOUT)
        with self.context.wrap_socket(request, server_side=True) as tls:
            super().finish_request(tls, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One line for what clients do; the base class prints a traceback."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError | pyktls.Error):  # ssl's errors are OSErrors
            super().handle_error(request, client_address)
            return
        print(f"{client_address[0]}: {error}", file=sys.stderr, flush=True)


def make_context(cert: pathlib.Path, key: pathlib.Path | None) -> ssl.SSLContext:
    """A server's context, with the suites of TLS 1.2 that a kernel can do."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")  # those of TLS 1.3 are not touched by this
    context.load_cert_chain(cert, key)
    return pyktls.wrap_context(context, require=True)


def why_not() -> str | None:
    """What is missing for kernel TLS here, and what would help; None if nothing is."""
    answer = pyktls.probe().tls
    if answer:
        return None
    return answer.reason if answer.remedy is None else f"{answer.reason}; {answer.remedy}"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--cert", type=pathlib.Path, required=True, help="PEM, the chain included")
    parser.add_argument(
        "--key", type=pathlib.Path, help="PEM (default: it is in the file of --cert)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="(default: %(default)s)")
    parser.add_argument("--port", type=int, default=8443, help="(default: %(default)s; 0: any)")
    options = parser.parse_args(arguments)
    if not options.directory.is_dir():
        parser.error(f"{options.directory} is no directory")
    return options


def main() -> int:
    """Serve until SIGINT or SIGTERM; returns the exit status."""
    options = parse()
    if (reason := why_not()) is not None:
        print(f"file_server: {reason}", file=sys.stderr)
        return 1
    try:
        context = make_context(options.cert, options.key)
        server = Server((options.host, options.port), options.directory, context)
    except (OSError, OverflowError, pyktls.Error) as e:
        print(f"file_server: {e}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # KeyboardInterrupt, as SIGINT does
    host, port = server.socket.getsockname()[:2]
    print(f"serving {options.directory} at https://{host}:{port}/", flush=True)
    with server:  # its end waits for the threads
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)  # the second one waits for nothing
            print("stopping: what is being sent goes on", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
