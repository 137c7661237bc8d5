"""Mail servers that know as many commands as the tests of imaplib and poplib use.

``ImapHandler`` (RFC 3501, with STARTTLS) and ``PopHandler`` (RFC 1939, with STLS of RFC 2595) are
for ``socketserver``; the server has an attribute ``context``, the TLS context, and ``message``,
the only mail.  Before TLS is up they give nothing away.
"""

from __future__ import annotations

import contextlib
import socketserver
import ssl


class _Lines(socketserver.BaseRequestHandler):
    greeting = ""

    def handle(self) -> None:
        self.file = self.request.makefile("rwb")
        self.say(self.greeting)
        while line := self.file.readline():  # of another file after STARTTLS
            if not self.command(line.decode().split()):
                break
        self.file.close()

    def finish(self) -> None:
        if isinstance(self.request, ssl.SSLSocket):
            with contextlib.suppress(OSError):  # the clients just close
                self.request.unwrap()
            self.request.close()

    def say(self, line: str, more: bytes = b"") -> None:
        self.file.write(line.encode() + b"\r\n" + more)
        self.file.flush()

    def start_tls(self) -> None:
        self.file.close()
        self.request = self.server.context.wrap_socket(self.request, server_side=True)
        self.file = self.request.makefile("rwb")

    @property
    def secure(self) -> bool:
        return isinstance(self.request, ssl.SSLSocket)

    def command(self, words: list[str]) -> bool:
        raise NotImplementedError


class ImapHandler(_Lines):
    greeting = "* OK ready"

    def command(self, words: list[str]) -> bool:
        tag, command, message = words[0], words[1].upper(), self.server.message
        match command:
            case "CAPABILITY":
                self.say(f"* CAPABILITY IMAP4rev1{'' if self.secure else ' STARTTLS'}")
            case "STARTTLS":
                self.say(f"{tag} OK begin")
                self.start_tls()
                return True
            case "LOGOUT":
                self.say("* BYE")
            case _ if not self.secure:
                self.say(f"{tag} NO STARTTLS first")
                return True
            case "SELECT":
                self.say("* 1 EXISTS")
            case "FETCH":
                literal = b"* 1 FETCH (RFC822 {%d}\r\n" % len(message)
                self.file.write(literal + message + b")\r\n")
        self.say(f"{tag} OK {command} done")
        return command != "LOGOUT"


class PopHandler(_Lines):
    greeting = "+OK ready"

    def command(self, words: list[str]) -> bool:
        command, message = words[0].upper(), self.server.message
        match command:
            case "CAPA":
                self.say("+OK", b"USER\r\n" + (b"" if self.secure else b"STLS\r\n") + b".\r\n")
            case "STLS":
                self.say("+OK begin")
                self.start_tls()
            case "QUIT":
                self.say("+OK bye")
                return False
            case _ if not self.secure:
                self.say("-ERR STLS first")
            case "STAT":
                self.say(f"+OK 1 {len(message)}")
            case "RETR":
                self.say(f"+OK {len(message)} octets", message + b".\r\n")
            case _:
                self.say("+OK")
        return True
