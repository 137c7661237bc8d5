"""The programs of docs/asyncio.md are run as they stand there."""

from __future__ import annotations

import hashlib
import pathlib
import re
import subprocess
import sys

import pytest

from kernel.test_readme import CONTENT, connect, prepare

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "asyncio.md"


def program(name: str, port: int) -> str:
    (code,) = re.findall(
        rf"^```python\n# {name}\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    assert "4433" in code
    return code.replace("4433", str(port))


@pytest.fixture
def server(tmp_path):
    authority, port = prepare(tmp_path)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    (tmp_path / "server.py").write_text(program("aiohttp-server", port))
    with subprocess.Popen([sys.executable, "server.py"], cwd=tmp_path) as running:
        connect(port).close()
        yield port, tmp_path
        running.terminate()


def test_httpx_fetches_from_aiohttp(server):
    port, directory = server
    code = program("httpx-client", port).replace(
        "print(response.status_code",
        "import hashlib; print(hashlib.sha256(response.content).hexdigest()); "
        "print(response.status_code",
    )
    (directory / "client.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "client.py"], cwd=directory, capture_output=True, text=True, timeout=200,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    digest, line = done.stdout.splitlines()
    assert digest == hashlib.sha256(CONTENT).hexdigest()
    assert line.startswith(f"200 {len(CONTENT)} Status(ulp='tls'")
    assert "refusal=None" in line


def test_aiohttp_sends_the_file_by_sendfile(tmp_path):
    """Its fallback is not called: it is replaced by something that fails."""
    authority, port = prepare(tmp_path)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    spoilt = (
        "from aiohttp import web_fileresponse\n"
        "async def fail(*_):\n    raise AssertionError('read and written')\n"
        "web_fileresponse.FileResponse._sendfile_fallback = fail\n"
    )
    (tmp_path / "server.py").write_text(spoilt + program("aiohttp-server", port))
    with subprocess.Popen([sys.executable, "server.py"], cwd=tmp_path) as running:
        connect(port).close()
        done = subprocess.run(
            ["curl", "-sS", "--cacert", "ca.pem", "--resolve", f"localhost:{port}:127.0.0.1",
             f"https://localhost:{port}/files/file.bin", "-o", "got"],
            cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        running.terminate()
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "got").read_bytes() == CONTENT
