"""nginx, with and without its kernel TLS: files go up with PUT and down with GET.

Whether it has seen a close_notify is in its log, if it tells that apart from an end without one:
nginx has OpenSSL ignore the difference.  So that is tried too.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

from . import peer
from .peer import End, Peer, Program, Purpose, Refused, Setting, Side, Untold, ask, find_program
from .python_ssl import make_context

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

CONFIGURATION = """\
daemon off;
master_process off;
pid {place}/pid;
error_log {place}/error.log debug;
{extra}
events {{ worker_connections 32; }}
http {{
    client_body_temp_path {place}/body;
    proxy_temp_path {place}/proxy;
    fastcgi_temp_path {place}/fastcgi;
    uwsgi_temp_path {place}/uwsgi;
    scgi_temp_path {place}/scgi;
    access_log off;
    server {{
        listen 127.0.0.1:{port} ssl;
        root {place}/files;
        dav_methods PUT;
        client_max_body_size 0;
        ssl_certificate {certificate};
        ssl_certificate_key {certificate};
        {dh_parameters}
        ssl_protocols {version};
        {suite}
        {ktls}
    }}
}}
"""
CLEANLY = "peer shutdown SSL cleanly"


@functools.cache
def nginx() -> str:
    return find_program("nginx")


class NginxEnd(End):
    """A connection that is kept for several requests."""

    def __init__(self, side: NginxSide) -> None:
        self.side = side

    def exchange(self, sock: socket.socket, up: bytes, down: bytes) -> tuple[bytes, bytes]:
        got = self.take(sock, lambda: sock.sendall(up), len(up))
        return got, self.give(sock, down)

    def give(self, sock: socket.socket, down: bytes, more: bytes = b"") -> bytes:
        (self.side.files / "down").write_bytes(down)
        sock.sendall(b"GET /down HTTP/1.1\r\nHost: localhost\r\n" + more + b"\r\n")
        first, received = peer.read_message(sock)
        assert " 200 " in first, first
        return received

    def take(self, sock: socket.socket, send: Callable[[], object], size: int) -> bytes:
        path = self.side.files / "up"
        path.unlink(missing_ok=True)
        sock.sendall(b"PUT /up HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size)
        send()
        first, _ = peer.read_message(sock)
        assert " 201 " in first, first
        return path.read_bytes()

    def take_then_see_close(self, sock: socket.socket, up: bytes) -> bytes:
        got = self.take(sock, lambda: sock.sendall(up), len(up))
        sock.close()
        self.side.expect_close()
        if self.side.calls_anything_clean():
            raise Untold(
                f'it says "{CLEANLY}", of an end without close_notify too; no data is lost'
            )
        return got

    def closed(self) -> None:
        self.side.expect_close()

    def give_then_close(self, sock: socket.socket, down: bytes) -> bytes:
        received = self.give(sock, down, b"Connection: close\r\n")
        assert sock.recv(1) == b""
        sock.close()
        return received

    def key_update(self, sock: socket.socket, *, request: bool) -> None:
        raise Refused(self.side.try_directive("ssl_key_update on;"))


class NginxSide(Side):
    def __init__(self, setting: Setting, *, ktls: bool) -> None:
        self.setting = setting
        self.ktls = ktls
        self.place = setting.scratch("nginx")
        self.files = self.place / "files"
        self.files.mkdir(parents=True)
        self.port = peer.free_port()
        self.closed = 0  # connections that we have closed
        self.program = Program(setting, self.command("nginx.conf"))
        self.program.said_to.append(self.place / "error.log")

    def command(self, name: str, extra: str = "") -> list[str]:
        setting = self.setting
        suite = setting.suite.openssl_name
        dh_parameters = f"ssl_dhparam {setting.dh_parameters};" if suite.startswith("DHE") else ""
        (self.place / name).write_text(
            CONFIGURATION.format(
                place=self.place,
                extra=extra,
                port=self.port,
                certificate=setting.certificate,
                dh_parameters=dh_parameters,
                version="TLSv1.3" if setting.is_tls_1_3 else "TLSv1.2",
                suite=(
                    f"ssl_conf_command Ciphersuites {suite}; ssl_ciphers DEFAULT:@SECLEVEL=0;"
                    if setting.is_tls_1_3
                    else f"ssl_ciphers {suite}:@SECLEVEL=0;"
                ),
                ktls="ssl_conf_command Options KTLS; sendfile on;" if self.ktls else "",
            ),
            encoding="utf-8",
        )
        log = str(self.place / "error.log")
        return [nginx(), "-p", str(self.place), "-c", str(self.place / name), "-e", log]

    def expect_close(self) -> None:
        """One more of its connections must have ended cleanly."""
        self.closed += 1
        assert self.program.wait_for_log(CLEANLY, self.closed), "it has seen no close_notify"

    def calls_anything_clean(self) -> bool:
        """Whether an end without close_notify is the same to it."""
        context = make_context(self.setting, server=False)
        tcp = peer.connect_to(self)
        with context.wrap_socket(tcp, server_hostname=peer.HOST) as sock:
            sock.sendall(b"OPTIONS / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            peer.read_message(sock)
        said = self.program.wait_for_log(CLEANLY, self.closed + 1)
        self.closed += said
        return said

    def begin(self) -> NginxEnd:
        return NginxEnd(self)

    def refusal(self) -> str:
        return self.program.words()

    def stop(self) -> None:
        self.program.stop()

    def try_directive(self, directive: str) -> str:
        """What it says of a directive that it does not know."""
        status, words = ask(*self.command("trial.conf", directive), "-t")
        assert status, "it knows the directive: use it here"
        found = re.search(r"\[emerg\].*", words)
        return f"{peer.shorten(found[0] if found else words)} (exit status {status})"


class Nginx(Peer):
    is_client = False

    def __init__(self, *, ktls: bool) -> None:
        self.ktls = ktls
        self.name = "nginx KTLS" if ktls else "nginx"

    def version(self) -> str:
        return ask(nginx(), "-v")[1].split(": ")[1].strip().replace("/", " ")

    def serve(self, setting: Setting, purpose: Purpose) -> Side:
        return NginxSide(setting, ktls=self.ktls)
