"""The README's examples for Linux are run as they stand there."""

from __future__ import annotations

import re
import shlex
import socket
import ssl
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import trustme

from support.readme import README, example

if TYPE_CHECKING:
    import pathlib


def connect(port: int) -> socket.socket:
    for _ in range(600):
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=30)
        except ConnectionRefusedError:
            time.sleep(0.1)  # until the example listens
    raise AssertionError("the example does not listen")


CONTENT = bytes(range(256)) * 4096


def prepare(directory: pathlib.Path) -> tuple[trustme.CA, int]:
    """The files that an example wants, who signed its certificate, and a port that is free."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(directory / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    (directory / "file.bin").write_bytes(CONTENT)
    with socket.create_server(("127.0.0.1", 0)) as free:
        return authority, free.getsockname()[1]


def fetch(authority: trustme.CA, port: int, *, unwrap: bool) -> bytes:
    """What the example serves, up to the end."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    with context.wrap_socket(connect(port), server_hostname="localhost") as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        received = b"".join(iter(lambda: client.recv(65536), b""))
        if unwrap:
            client.unwrap()
    return received


def test_the_example_serves_a_file(tmp_path: pathlib.Path) -> None:
    authority, port = prepare(tmp_path)
    code = example("pyktls.offload")
    assert "4433" in code
    process = subprocess.Popen(
        [sys.executable, "-c", code.replace("4433", str(port))],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        received = fetch(authority, port, unwrap=True)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert received == b"HTTP/1.0 200 OK\r\n\r\n" + CONTENT
    assert process.returncode == 0
    assert "ulp='tls'" in output
    assert "tx=<Mode.SOFTWARE: 'software'>" in output


def serve_once(tmp_path: pathlib.Path, code: str, port_in_it: str) -> tuple[bytes, str]:
    """What a client gets from a server that goes on and on, and the first line that it prints."""
    authority, port = prepare(tmp_path)
    assert port_in_it in code
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code.replace(port_in_it, str(port))],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # a server's log
        text=True,
    )
    try:
        received = fetch(authority, port, unwrap=False)
        assert process.stdout is not None
        return received, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


def test_the_drop_in_example(tmp_path: pathlib.Path) -> None:
    code = example("pyktls.wrap_context", "sendfile")
    received, said = serve_once(tmp_path, code, "4434")
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK\r\n")
    assert body == CONTENT
    assert "tx=<Mode.SOFTWARE: 'software'>, rx=<Mode.SOFTWARE: 'software'>" in said


def test_the_asyncio_example(tmp_path: pathlib.Path) -> None:
    received, said = serve_once(tmp_path, example("aio.start_server"), "4435")
    assert received == b"HTTP/1.0 200 OK\r\n\r\n" + CONTENT
    assert "tx=<Mode.SOFTWARE: 'software'>, rx=<Mode.SOFTWARE: 'software'>" in said


def test_the_example_by_hand() -> None:
    code = example("tls12_crypto_info_aes_gcm_128")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("b'encrypted by the kernel'\n", "")


def test_the_line_that_asks_what_this_machine_can_do() -> None:
    (line,) = re.findall(r"^    (python -c .*probe.*)$", README.read_text(), re.MULTILINE)
    command = [sys.executable, *shlex.split(line)[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert ": kernel TLS, found in " in done.stdout.splitlines()[0]
    assert "AES_128_GCM         yes     yes     yes     yes" in done.stdout.splitlines()
