"""openssl s_client and s_server, with and without OpenSSL's own kernel TLS.

Both read commands from their standard input unless they are told not to: a letter at the beginning
of what one read(2) gives, such as K and k for a KeyUpdate and Q for the end.  s_server can do that
only where it prints all about the session too.  ``-msg`` writes the messages that it sends and
receives into a file, which is how it says that close_notify has come.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING

from support.kernel import Background, recv_exactly

from . import peer
from .peer import FILE, Peer, Program, Purpose, Refused, Setting, Side, ask, find_program
from .pipes import PipeEnd

if TYPE_CHECKING:
    import pathlib
    import socket

# A configuration with which OpenSSL switches to kernel TLS in every program.
KTLS = """\
openssl_conf = init
[init]
ssl_conf = ssl
[ssl]
system_default = defaults
[defaults]
Options = KTLS
"""
SAW_CLOSE = r"<<< .*close_notify"
PAUSE = 0.3  # around a command, which has to be a read of its own


@functools.cache
def openssl() -> str:
    return find_program("openssl")


@functools.cache
def has_ktls_option(program: str) -> tuple[bool, str]:
    """Whether s_client or s_server takes -ktls (OpenSSL 3.2), and what it says if not."""
    status, text = ask(openssl(), program, "-ktls", "-help")
    return status == 0, peer.shorten(text.partition("\n")[0])


class OpensslEnd(PipeEnd):
    def check_close(self) -> None:
        self.program.finish()
        # Of s_server's connections the first had one, too.
        seen = self.program.wait_for_log(SAW_CLOSE, after="Finished")
        assert seen, "it has seen no close_notify"

    def command(self, letter: bytes) -> None:
        time.sleep(PAUSE)
        self.program.say(letter)
        time.sleep(PAUSE)

    def hang_up(self) -> None:
        self.command(b"Q\n")

    def key_update(self, sock: socket.socket, *, request: bool) -> None:
        self.command(b"K\n" if request else b"k\n")
        if self.program.has_ended():
            raise Refused(self.program.refusal())


class ClientEnd(OpensslEnd):
    def closed(self) -> None:
        self.program.finish()  # now the session is in its file


class TalkativeEnd(OpensslEnd):
    """s_server with commands: what it received comes between other things that it prints."""

    def exchange(self, sock: socket.socket, up: bytes, down: bytes) -> tuple[bytes, bytes]:
        with Background(self.program.say, down):
            sock.sendall(up)
            self.program.skip_to(up)
            return up, recv_exactly(sock, len(down))


class WebEnd(OpensslEnd):
    """s_server -WWW, which answers with a file and closes; on its command Q it just ends."""

    def give_then_close(self, sock: socket.socket, down: bytes) -> bytes:
        sock.sendall(f"GET /{FILE} HTTP/1.0\r\n\r\n".encode())
        return peer.read_answer_to_the_end(sock)


class OpensslSide(Side):
    """s_server is one process for all connections, s_client one for each."""

    def __init__(self, setting: Setting, command: list[str], environment: dict[str, str]) -> None:
        self.setting = setting
        self.command = command
        self.environment = environment
        self.programs: list[Program] = []

    @property
    def program(self) -> Program | None:
        return self.programs[-1] if self.programs else None

    def start(self, *more: str) -> Program:
        messages = self.setting.scratch("messages")
        command = [*self.command, "-msg", "-msgfile", str(messages), *more]
        program = Program(self.setting, command, self.environment)
        program.said_to.append(messages)
        self.programs.append(program)
        return program

    def refusal(self) -> str:
        return self.programs[-1].refusal() if self.programs else ""

    def stop(self) -> None:
        for program in self.programs:
            program.stop()


class ServerSide(OpensslSide):
    def __init__(
        self, setting: Setting, command: list[str], environment: dict[str, str],
        end: type[OpensslEnd],
    ) -> None:  # fmt: skip
        super().__init__(setting, command, environment)
        self.end = end
        self.port = peer.free_port()
        self.start("-accept", f"127.0.0.1:{self.port}")

    def begin(self) -> OpensslEnd:
        return self.end(self.programs[0])


class ClientSide(OpensslSide):
    """With ``session`` the first connection leaves its session in that file for the others."""

    def __init__(
        self, setting: Setting, command: list[str], environment: dict[str, str],
        session: pathlib.Path | None,
    ) -> None:  # fmt: skip
        super().__init__(setting, command, environment)
        self.session = session

    def begin(self) -> OpensslEnd:
        more: list[str] = []
        if self.session is not None:
            more = ["-sess_in" if self.programs else "-sess_out", str(self.session)]
        return ClientEnd(self.start(*more))


class Openssl(Peer):
    def __init__(self, *, ktls: bool) -> None:
        self.ktls = ktls
        self.name = "openssl -ktls" if ktls else "openssl"

    def server_name(self) -> str:
        return "s_server -ktls" if self.ktls else "s_server"

    def client_name(self) -> str:
        return "s_client -ktls" if self.ktls else "s_client"

    def version(self) -> str:
        return " ".join(ask(openssl(), "version")[1].split()[:2])

    def note(self) -> str:
        """How it was told to use kernel TLS, where that is not by -ktls."""
        known, words = has_ktls_option("s_server")
        if not self.ktls or known:
            return ""
        instead = "here `Options = KTLS` in the configuration of OPENSSL_CONF does the same"
        return f'"{words}" (it came with OpenSSL 3.2): {instead}'

    def command(self, program: str, setting: Setting) -> tuple[list[str], dict[str, str]]:
        command, environment = [openssl(), program], {}
        if self.ktls:
            if has_ktls_option(program)[0]:
                command.append("-ktls")
            else:
                configuration = setting.place / "ktls.cnf"
                configuration.write_text(KTLS, encoding="ascii")
                environment["OPENSSL_CONF"] = str(configuration)
        name = setting.suite.openssl_name
        if setting.is_tls_1_3:
            command += ["-tls1_3", "-ciphersuites", name, "-cipher", "DEFAULT:@SECLEVEL=0"]
        else:
            command += ["-tls1_2", "-cipher", f"{name}:@SECLEVEL=0"]
        return command, environment

    def serve(self, setting: Setting, purpose: Purpose) -> Side:
        command, environment = self.command("s_server", setting)
        command += ["-cert", str(setting.certificate)]
        match purpose:
            case Purpose.ITS_CLOSE:
                setting.file_to_send()
                return ServerSide(setting, [*command, "-WWW"], environment, WebEnd)
            case Purpose.KEY_UPDATE:
                return ServerSide(setting, command, environment, TalkativeEnd)
            case _:
                # It ends after the second connection; then it has written what it has seen.
                command += ["-quiet", "-naccept", "2"]
                return ServerSide(setting, command, environment, OpensslEnd)

    def connect(self, setting: Setting, purpose: Purpose, port: int) -> Side:
        command, environment = self.command("s_client", setting)
        command += ["-connect", f"127.0.0.1:{port}", "-servername", peer.HOST]
        # -brief, and not -quiet, which would turn the commands off.
        command += ["-CAfile", str(setting.ca), "-verify_return_error", "-brief"]
        session = setting.scratch("session") if purpose is Purpose.TRANSFER else None
        return ClientSide(setting, command, environment, session)
