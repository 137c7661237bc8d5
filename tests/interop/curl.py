"""curl, which sends and receives files over HTTP: we are the server that it talks to."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from support.kernel import Background

from . import peer
from .peer import TIMEOUT, End, Peer, Program, Purpose, Refused, Setting, Side, ask, find_program

if TYPE_CHECKING:
    import pathlib
    import socket
    from collections.abc import Callable

OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n"
SAW_CLOSE = r"\(IN\), TLS alert, close notify"


@functools.cache
def curl() -> str:
    return find_program("curl")


class CurlEnd(End):
    """A connection; which requests come on it was said when curl was started.

    On the first: PUT, GET, GET; on the second: GET, GET.
    """

    def __init__(self, program: Program, upload: pathlib.Path, *, second: bool) -> None:
        self.program = program
        self.upload = upload
        self.second = second
        self.gets = 0

    def exchange(self, sock: socket.socket, up: bytes, down: bytes) -> tuple[bytes, bytes]:
        """It sends its file, and then gets one; on the second connection it only gets one."""
        received = down if self.second else self.give(sock, down)
        got = self.take(sock, lambda: sock.sendall(up), len(up))
        return got, received

    def give(self, sock: socket.socket, down: bytes) -> bytes:
        assert self.upload.read_bytes() == down
        first, received = peer.read_message(sock)
        assert first.startswith("PUT "), first
        sock.sendall(OK % (0, b""))
        return received

    def take(self, sock: socket.socket, send: Callable[[], object], size: int) -> bytes:
        self.read_get(sock)
        self.gets += 1
        last = self.gets == 2 and not self.second
        with Background(self.program.read, size) as got:
            sock.sendall(OK % (size, b"Connection: close\r\n" if last else b""))
            send()
            return got.result(TIMEOUT)

    @staticmethod
    def read_get(sock: socket.socket) -> None:
        first, _ = peer.read_message(sock)
        assert first.startswith("GET "), first

    def take_then_see_close(self, sock: socket.socket, up: bytes) -> bytes:
        # Without a length the data ends with the connection, and curl takes any end for that.
        self.read_get(sock)
        with Background(self.program.rest) as got:
            sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
            sock.sendall(up)
            sock.close()
            data = got.result(TIMEOUT)
        self.program.finish()
        # There may have been one on the first connection.
        seen = self.program.wait_for_log(SAW_CLOSE, after="TLS handshake, Finished")
        assert seen, "it has seen no close_notify"
        return data

    def give_then_close(self, sock: socket.socket, down: bytes) -> bytes:
        received = self.give(sock, down)
        assert sock.recv(1) == b""
        sock.close()
        return received

    def key_update(self, sock: socket.socket, *, request: bool) -> None:
        status, words = ask(curl(), "--key-update", "https://127.0.0.1/")
        assert status, "it knows the option: use it here"
        raise Refused(f"{peer.shorten(words.partition(chr(10))[0])} (exit status {status})")


class CurlSide(Side):
    def __init__(self, setting: Setting, command: list[str]) -> None:
        self.setting = setting
        self.command = command
        self.program: Program | None = None

    def begin(self) -> CurlEnd:
        second = self.program is not None
        if self.program is None:
            self.program = Program(self.setting, self.command)
        return CurlEnd(self.program, self.setting.file_to_send(), second=second)

    def refusal(self) -> str:
        return self.program.refusal() if self.program else ""

    def stop(self) -> None:
        if self.program is not None:
            self.program.stop()


class Curl(Peer):
    name = "curl"
    is_server = False

    def version(self) -> str:
        return " ".join(ask(curl(), "--version")[1].split()[:2])

    def connect(self, setting: Setting, purpose: Purpose, port: int) -> Side:
        version = "1.3" if setting.is_tls_1_3 else "1.2"
        suite = setting.suite.openssl_name
        # --next forgets all options but these two.
        command = [curl(), "-q", "--silent", "--show-error", "--verbose"]
        common = ["--noproxy", "*", "--http1.1", "--header", "Expect:", "--no-alpn"]
        common += ["--cacert", str(setting.ca), "--resolve", f"{peer.HOST}:{port}:127.0.0.1"]
        common += [f"--tlsv{version}", "--tls-max", version]
        if setting.is_tls_1_3:
            common += ["--tls13-ciphers", suite, "--ciphers", "DEFAULT:@SECLEVEL=0"]
        else:
            common += ["--ciphers", f"{suite}:@SECLEVEL=0"]
        url = f"https://{peer.HOST}:{port}/file"
        put = [*common, "--upload-file", str(setting.file_to_send()), url]
        get = [*common, url]
        command += put
        if purpose is not Purpose.ITS_CLOSE:
            command += ["--next", *get, url, url, url]
        return CurlSide(setting, command)
