r"""Receive mail by SMTP, and send it, over connections that go from plain text to kernel TLS.

    python examples/starttls_mail.py serve DIRECTORY --cert cert.pem --key key.pem
    python examples/starttls_mail.py send MESSAGE --from a@example.org --to b@example.org \
        --ca ca.pem --port 8025 localhost

The server stores messages as files.  It takes none before STARTTLS (RFC 3207), whose three steps
are in ``upgrade``: the reply, OpenSSL's handshake on the same socket, and ``pyktls.offload``.  The
client is smtplib with ``pyktls.wrap_context``.

What makes an upgrade secure is what is *not* taken over from before it.  Anybody on the way can put
commands behind a client's STARTTLS, and a server that keeps them in its buffer carries them out
after the handshake, as if the client had sent them (CVE-2011-0411).  So here nothing may stand
behind STARTTLS, the state of the dialogue begins anew, and so does the buffer.  A client that goes
on in plain text where STARTTLS is not offered has no security at all; this one gives up.

``Dialogue`` is the protocol without any input or output; the rest of the server is around it.  It
is an example: no relaying, no authentication, no delivery.
"""

from __future__ import annotations

import argparse
import enum
import os
import pathlib
import re
import signal
import smtplib
import socket
import socketserver
import ssl
import sys
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import pyktls

if TYPE_CHECKING:
    from collections.abc import Iterator

# Seconds; RFC 5321 section 4.5.3.2 asks a server for five minutes.
TIMEOUT = 300.0
HANDSHAKE_TIMEOUT = 30.0
# Bytes.  RFC 5321 section 4.5.3.1 has 512 for a command and 1000 for a line of text as the least.
LONGEST_COMMAND = 512
LONGEST_TEXT = 8192
LARGEST_MESSAGE = 64 << 20
MOST_RECIPIENTS = 100


# ---- the protocol ----------------------------------------------------------------------------


class Next(enum.Enum):
    """What comes after a reply."""

    COMMAND = enum.auto()
    MESSAGE = enum.auto()
    TLS = enum.auto()
    END = enum.auto()


class Reply(NamedTuple):
    """What the server says, and what comes then."""

    text: str
    next: Next = Next.COMMAND


# "<" [A-d-l ":"] mailbox ">", and parameters behind it (RFC 5321 section 4.1.2).
PATH = re.compile(r"(FROM|TO):[ ]?<(?:@[^:>]*:)?([^<>\s]*)>((?: [^\s]+)*)", re.IGNORECASE)


@dataclass
class Dialogue:
    """The server's side of SMTP.  ``secure`` is whether TLS is up; then a new one begins."""

    host: str
    secure: bool = False
    greeted: bool = False
    sender: str | None = None
    recipients: list[str] = field(default_factory=list)

    def command(self, line: bytes, *, more: bool) -> Reply:
        """Carry out one line; ``more`` is whether the client has already sent something behind."""
        try:
            verb, _, argument = line.decode("ascii").partition(" ")
        except UnicodeDecodeError:
            return Reply("500 5.5.2 Only ASCII is understood here")
        match verb.upper(), argument.strip():
            case ("EHLO" | "HELO") as hello, name:
                return self._hello(hello, name)
            case "NOOP", _:
                return Reply("250 2.0.0 Ok")
            case "QUIT", _:
                return Reply("221 2.0.0 Bye", Next.END)
            case "STARTTLS", parameters:
                return self._starttls(parameters, more=more)
            case other, rest:
                if self.secure:
                    return self._under_tls(other, rest)
                return Reply("530 5.7.0 Must issue a STARTTLS command first")  # RFC 3207 section 4

    def _under_tls(self, verb: str, argument: str) -> Reply:
        match verb, argument:
            case "MAIL", path:
                return self._mail(path)
            case "RCPT", path:
                return self._rcpt(path)
            case "DATA", "":
                if not self.recipients:
                    return Reply("503 5.5.1 MAIL and RCPT come first")
                return Reply("354 End data with <CR><LF>.<CR><LF>", Next.MESSAGE)
            case "RSET", "":
                self.reset()
                return Reply("250 2.0.0 Ok")
        return Reply("500 5.5.2 Not understood")

    def reset(self) -> None:
        """Forget the message that was about to be sent."""
        self.sender = None
        self.recipients = []

    def _hello(self, verb: str, name: str) -> Reply:
        if not name:
            return Reply("501 5.5.4 Who are you?")
        self.reset()
        self.greeted = True
        if verb == "HELO":
            return Reply(f"250 {self.host}")
        # RFC 3207 section 4.2: not offered again once TLS is up.
        keywords = [] if self.secure else ["STARTTLS"]
        lines = [self.host, "ENHANCEDSTATUSCODES", f"SIZE {LARGEST_MESSAGE}", *keywords]
        return Reply("\r\n".join([*(f"250-{text}" for text in lines[:-1]), f"250 {lines[-1]}"]))

    def _starttls(self, parameters: str, *, more: bool) -> Reply:
        if self.secure:
            return Reply("503 5.5.1 TLS is up")
        if parameters:
            return Reply("501 5.5.4 Syntax error (no parameters allowed)")
        if more:
            # STARTTLS ends a group of commands (RFC 2920 section 3.1).  What stands behind it came
            # before the handshake, and so from anybody.  Not even an honest client goes on here.
            return Reply("554 5.5.1 Nothing may come behind STARTTLS before its reply", Next.END)
        return Reply("220 2.0.0 Ready to start TLS", Next.TLS)

    def _mail(self, text: str) -> Reply:
        path = PATH.fullmatch(text)
        if path is None or path[1].upper() != "FROM":
            return Reply("501 5.5.4 MAIL FROM:<address>")
        if not self.greeted or self.sender is not None:
            return Reply("503 5.5.1 EHLO comes first, and MAIL once")
        size = re.search(r" SIZE=(\d{1,20})(?!\S)", path[3], re.IGNORECASE)
        if size is not None and int(size[1]) > LARGEST_MESSAGE:  # RFC 1870
            return Reply("552 5.3.4 Too large")
        self.sender = path[2]
        return Reply("250 2.1.0 Ok")

    def _rcpt(self, text: str) -> Reply:
        path = PATH.fullmatch(text)
        if path is None or path[1].upper() != "TO" or not path[2]:
            return Reply("501 5.5.4 RCPT TO:<address>")
        if self.sender is None:
            return Reply("503 5.5.1 MAIL comes first")
        if len(self.recipients) >= MOST_RECIPIENTS:
            return Reply("452 4.5.3 Too many recipients")
        self.recipients.append(path[2])
        return Reply("250 2.1.5 Ok")


class Broken(Exception):
    """The client does not keep to the protocol; the text is the last reply that it gets."""


class Lines:
    """The lines that a client sends, each up to <CR><LF>."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = bytearray()

    def more(self) -> bool:
        """Whether something has been received that was not read yet."""
        return bool(self.buffer)

    def read(self, longest: int) -> bytes | None:
        """The next line without its end; None if the client has ended.  Raises Broken.

        A <CR> or an <LF> alone ends no line.  Taken for one by some programs and not by others, it
        lets one message be taken for two (SMTP smuggling, CVE-2023-51764).
        """
        while (end := self.buffer.find(b"\r\n")) < 0:
            if len(self.buffer) > longest:
                raise Broken("500 5.5.2 Line too long")
            data = self.sock.recv(65536)
            if not data:
                return None
            self.buffer += data
        line = bytes(self.buffer[:end])
        del self.buffer[: end + 2]
        if len(line) > longest:
            raise Broken("500 5.5.2 Line too long")
        if b"\n" in line or b"\r" in line:
            raise Broken("500 5.5.2 <CR> and <LF> come together only")
        return line

    def message(self) -> Iterator[bytes]:
        """The lines of a message, up to the one with a dot only (RFC 5321 section 4.5.2)."""
        size = 0
        while (line := self.read(LONGEST_TEXT)) != b".":
            if line is None:
                raise ConnectionResetError("the client ended within a message")
            line = line.removeprefix(b".")
            size += len(line) + 2
            if size > LARGEST_MESSAGE:
                raise Broken("552 5.3.4 Too large")
            yield line + b"\r\n"


# ---- the server ------------------------------------------------------------------------------


class Handler(socketserver.BaseRequestHandler):
    """One client."""

    server: Server
    request: socket.socket

    def handle(self) -> None:
        """Talk to the client; the connection, whatever it has become, is closed at the end."""
        self.sock = self.request
        self.sock.settimeout(TIMEOUT)
        try:
            self.talk()
        finally:
            self.sock.close()

    def talk(self) -> None:
        """The dialogue, in plain text and then under TLS."""
        lines, dialogue = Lines(self.sock), Dialogue(self.server.host)
        self.say(f"220 {self.server.host} ESMTP")
        try:
            while (line := lines.read(LONGEST_COMMAND)) is not None:
                reply = dialogue.command(line, more=lines.more())
                self.say(reply.text)
                if reply.next is Next.END:
                    return
                if reply.next is Next.MESSAGE:
                    self.say(self.store(lines, dialogue))
                    dialogue.reset()
                elif reply.next is Next.TLS:
                    self.sock = self.upgrade(self.sock)
                    # RFC 3207 section 4.2: everything from before is forgotten.
                    lines, dialogue = Lines(self.sock), Dialogue(self.server.host, secure=True)
        except Broken as e:
            self.say(str(e))

    def say(self, text: str) -> None:
        """Send a reply."""
        self.sock.sendall(text.encode("ascii") + b"\r\n")

    def upgrade(self, sock: socket.socket) -> pyktls.KTLSSocket:
        """From plain text to kernel TLS."""
        sock.settimeout(HANDSHAKE_TIMEOUT)
        tls = self.server.context.wrap_socket(sock, server_side=True)
        try:
            switched = pyktls.offload(tls)
        except BaseException:
            tls.close()
            raise
        switched.settimeout(TIMEOUT)
        status = switched.ktls
        print(
            f"{self.client_address[0]}: {switched.version()}, {switched.cipher()[0]}; "
            f"in the kernel: sending {status.tx}, receiving {status.rx}",
            flush=True,
        )
        return switched

    def store(self, lines: Lines, dialogue: Dialogue) -> str:
        """Write a message to a file, under its final name when it is whole; returns the reply."""
        descriptor, name = tempfile.mkstemp(dir=self.server.directory, prefix=".")
        path = pathlib.Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(f"Return-Path: <{dialogue.sender}>\r\n".encode())
                file.writelines(f"Delivered-To: <{to}>\r\n".encode() for to in dialogue.recipients)
                file.writelines(lines.message())
                file.flush()
                os.fsync(file.fileno())
            final = path.rename(path.with_name(path.name.removeprefix(".") + ".eml"))
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return f"250 2.0.0 Ok: {final.name}"


class Server(socketserver.ThreadingTCPServer):
    """Each client in a thread."""

    allow_reuse_address = True
    daemon_threads = True  # what is stored is whole

    def __init__(
        self, address: tuple[str, int], directory: pathlib.Path, context: ssl.SSLContext
    ) -> None:
        self.directory = directory
        self.context = context
        self.host = socket.getfqdn()
        super().__init__(address, Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One line for what clients do; the base class prints a traceback."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError | pyktls.Error):  # ssl's errors are OSErrors
            super().handle_error(request, client_address)
            return
        print(f"{client_address[0]}: {error}", file=sys.stderr, flush=True)


def serve(options: argparse.Namespace) -> int:
    """The server; returns the exit status."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Of TLS 1.2 what a kernel can do; the suites of TLS 1.3 are not touched by this.
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.load_cert_chain(options.cert, options.key)
    pyktls.watch(context)  # once, before the first handshake
    if not options.directory.is_dir():
        raise NotADirectoryError(f"{options.directory} is no directory")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # KeyboardInterrupt, as SIGINT does
    with Server((options.host, options.port), options.directory, context) as server:
        host, port = server.socket.getsockname()[:2]
        print(f"storing mail in {options.directory}, at {host}:{port}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("stopped", flush=True)
    return 0


# ---- the client ------------------------------------------------------------------------------


def send(options: argparse.Namespace) -> int:
    """The client; returns the exit status."""
    message = options.message.read_bytes()
    context = ssl.create_default_context(cafile=options.ca)
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    # smtplib wraps its socket by itself; what it then has is a pyktls.SSLSocket.
    pyktls.wrap_context(context, require=True)
    with smtplib.SMTP(options.host, options.port, timeout=HANDSHAKE_TIMEOUT) as smtp:
        # An error where the server does not offer it: nothing is sent in plain text.  smtplib
        # throws its buffer away, and asks again (EHLO) under TLS what the server can do.
        smtp.starttls(context=context)
        status = pyktls.status(smtp.sock)  # type: ignore[arg-type]
        print(f"in the kernel: sending {status.tx}, receiving {status.rx}", flush=True)
        smtp.sendmail(options.sender, options.recipients, message)
    print(f"sent {len(message)} bytes", flush=True)
    return 0


# ---- the program -----------------------------------------------------------------------------


def why_not() -> str | None:
    """What is missing for kernel TLS here, and what would help; None if nothing is."""
    answer = pyktls.probe().tls
    if answer:
        return None
    return answer.reason if answer.remedy is None else f"{answer.reason}; {answer.remedy}"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options; ``run`` is the function."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="serve | send")
    server = commands.add_parser("serve", help="store mail in a directory")
    server.add_argument("directory", type=pathlib.Path)
    server.add_argument("--cert", type=pathlib.Path, required=True, help="PEM, the chain included")
    server.add_argument(
        "--key", type=pathlib.Path, help="PEM (default: it is in the file of --cert)"
    )
    server.add_argument("--host", default="127.0.0.1", help="(default: %(default)s)")
    server.add_argument("--port", type=int, default=8025, help="(default: %(default)s; 0: any)")
    server.set_defaults(run=serve)
    client = commands.add_parser("send", help="send a message")
    client.add_argument("message", type=pathlib.Path, help="the file, with its header")
    client.add_argument("host")
    client.add_argument("--port", type=int, default=8025, help="(default: %(default)s)")
    client.add_argument("--from", dest="sender", required=True, metavar="ADDRESS")
    client.add_argument(
        "--to", dest="recipients", required=True, action="append", metavar="ADDRESS",
        help="can be given several times",
    )  # fmt: skip
    client.add_argument(
        "--ca", type=pathlib.Path, help="PEM, who signs (default: the system's authorities)"
    )
    client.set_defaults(run=send)
    return parser.parse_args(arguments)


def main() -> int:
    """Run the program; returns the exit status."""
    options = parse()
    if (reason := why_not()) is not None:
        print(f"starttls_mail: {reason}", file=sys.stderr)
        return 1
    try:
        status: int = options.run(options)
    except (OSError, OverflowError, smtplib.SMTPException, pyktls.Error) as e:
        print(f"starttls_mail: {e}", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
