"""gnutls-cli and gnutls-serv.

gnutls-cli sends its input and prints what it receives; its inline command ^rekey^ is a KeyUpdate.
gnutls-serv echoes, or answers one HTTP request with a file and closes.  As an echo server it takes
lines like ``**REHANDSHAKE**`` as commands, and in TLS 1.3 GnuTLS makes a KeyUpdate of that one.
Neither can be told to use kernel TLS: that is a setting of the whole system.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING

from support.kernel import Background, recv_exactly

from . import peer
from .peer import End, Peer, Program, Purpose, Refused, Setting, Side, ask, find_program
from .pipes import PipeEnd

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

CIPHERS = {
    "AES_128_GCM": "AES-128-GCM",
    "AES_256_GCM": "AES-256-GCM",
    "AES_128_CCM": "AES-128-CCM",
    "CHACHA20_POLY1305": "CHACHA20-POLY1305",
}
KEY_EXCHANGES = {"ECDHE-ECDSA-": "ECDHE-ECDSA", "ECDHE-RSA-": "ECDHE-RSA", "DHE-RSA-": "DHE-RSA"}
SAW_CLOSE = r"Alert\[1\|0\] - Close notify - was received"
ANSWER = b"Successfully executed command\n"
NOT_SEEN = "it has seen no close_notify"
PAUSE = 0.3


def priority(setting: Setting) -> str:
    """GnuTLS's way to say: this suite alone."""
    name = setting.suite.aead.name
    cipher = CIPHERS.get(name, name.replace("_", "-"))
    text = f"NORMAL:-VERS-ALL:-CIPHER-ALL:+{cipher}"
    if setting.is_tls_1_3:
        return text + ":+VERS-TLS1.3"
    suite = setting.suite.openssl_name
    exchange = next((v for k, v in KEY_EXCHANGES.items() if suite.startswith(k)), "RSA")
    return text + f":+VERS-TLS1.2:-KX-ALL:+{exchange}"


class CliEnd(PipeEnd):
    def check_close(self) -> None:
        self.program.finish()
        assert self.program.wait_for_log(SAW_CLOSE, after="FINISHED"), NOT_SEEN

    def hang_up(self) -> None:
        self.program.end_input()

    def key_update(self, sock: socket.socket, *, request: bool) -> None:
        time.sleep(PAUSE)
        self.program.say(b"^rekey^\n")
        time.sleep(PAUSE)
        if self.program.has_ended():
            raise Refused(self.program.refusal())


class CliSide(Side):
    """One process for two connections, if it was told to resume."""

    def __init__(self, setting: Setting, command: list[str]) -> None:
        log = setting.scratch("gnutls-cli.log")
        self.command = [*command, "--logfile", str(log)]
        self.setting = setting
        self.log = log
        self.program: Program | None = None

    def begin(self) -> CliEnd:
        first = self.program is None
        if self.program is None:
            self.program = Program(self.setting, self.command)
            self.program.said_to.append(self.log)
        end = CliEnd(self.program)
        end.idle = first and "--resume" in self.command
        return end

    def refusal(self) -> str:
        return self.program.refusal() if self.program else ""

    def stop(self) -> None:
        if self.program is not None:
            self.program.stop()


class EchoEnd(End):
    """gnutls-serv --echo: what it sends is what it has received."""

    def __init__(self, side: ServSide) -> None:
        self.side = side
        self.asked = False

    def exchange(self, sock: socket.socket, up: bytes, down: bytes) -> tuple[bytes, bytes]:
        if self.asked:
            assert recv_exactly(sock, len(ANSWER)) == ANSWER
            self.asked = False
        # Both have gone both ways then.
        with Background(sock.sendall, up + down):
            return recv_exactly(sock, len(up)), recv_exactly(sock, len(down))

    def take(self, sock: socket.socket, send: Callable[[], object], size: int) -> bytes:
        with Background(send):
            return recv_exactly(sock, size)

    def take_then_see_close(self, sock: socket.socket, up: bytes) -> bytes:
        got = self.take(sock, lambda: sock.sendall(up), len(up))
        sock.close()
        self.closed()
        return got

    def closed(self) -> None:
        self.side.closed += 1
        assert self.side.program.wait_for_log(SAW_CLOSE, self.side.closed), NOT_SEEN

    def give_then_close(self, sock: socket.socket, down: bytes) -> bytes:
        assert down  # it is in the file that the server was started with
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return peer.read_answer_to_the_end(sock)

    def key_update(self, sock: socket.socket, *, request: bool) -> None:
        sock.sendall(b"**REHANDSHAKE**\n")  # it takes this command from its peer
        self.asked = True


class ServSide(Side):
    def __init__(self, setting: Setting, command: list[str]) -> None:
        self.closed = 0  # connections that we have closed
        self.port = peer.free_port()
        self.program = Program(setting, [*command, "--port", str(self.port)])

    def begin(self) -> EchoEnd:
        return EchoEnd(self)

    def refusal(self) -> str:
        return self.program.words()

    def stop(self) -> None:
        self.program.stop()


@functools.cache
def gnutls_cli() -> str:
    return find_program("gnutls-cli")


class Gnutls(Peer):
    name = "GnuTLS"

    def server_name(self) -> str:
        return "gnutls-serv"

    def client_name(self) -> str:
        return "gnutls-cli"

    def version(self) -> str:
        return "GnuTLS " + ask(gnutls_cli(), "--version")[1].split()[1]

    def note(self) -> str:
        return (
            "gnutls-cli resumes a connection that it closes at once, too early to be handed over; "
            "what is handed over is the second one"
        )

    def serve(self, setting: Setting, purpose: Purpose) -> Side:
        certificate = str(setting.certificate)
        command = [find_program("gnutls-serv"), "--debug", "5", "--disable-client-cert"]
        command += ["--x509certfile", certificate, "--x509keyfile", certificate]
        command += ["--priority", priority(setting)]
        if purpose is Purpose.ITS_CLOSE:
            command += ["--http", "--httpdata", str(setting.file_to_send())]
        else:
            command.append("--echo")
        return ServSide(setting, command)

    def connect(self, setting: Setting, purpose: Purpose, port: int) -> Side:
        command = [gnutls_cli(), "--debug", "5", "--port", str(port), "--inline-commands"]
        command += ["--x509cafile", str(setting.ca), "--priority", priority(setting)]
        command += ["--sni-hostname", peer.HOST, "--verify-hostname", peer.HOST]
        if purpose is Purpose.TRANSFER:
            command += ["--resume", "--waitresumption"]
        return CliSide(setting, [*command, "127.0.0.1"])
