"""A peer that asked for short records (RFC 6066 section 4): the kernel would send it long ones."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess

import pytest
import trustme

import pyktls


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("agreed", [512, 1024, 2048, 4096, None])
def test_a_limit_on_records_is_refused(version: ssl.TLSVersion, agreed: int | None) -> None:
    openssl = shutil.which("openssl")
    assert openssl is not None, "this test needs the openssl program"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = version
    trustme.CA().issue_cert("localhost").configure_cert(context)
    pyktls.watch(context)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        extra = [] if agreed is None else ["-maxfraglen", str(agreed)]
        client = subprocess.Popen(
            [openssl, "s_client", "-connect", address, "-quiet", *extra],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            tcp, _ = listener.accept()
            with context.wrap_socket(tcp, server_side=True) as tls:
                if agreed is None:
                    pyktls.extract(tls).wipe()
                else:
                    message = (
                        f"the handshake limited records to {agreed} bytes (max_fragment_length), "
                        "which the kernel would not keep to"
                    )
                    with pytest.raises(pyktls.HandoffRefused, match=f"^{re.escape(message)}$"):
                        pyktls.extract(tls)
                tls.sendall(b"still TLS\n")
                assert client.stdout is not None
                assert client.stdout.readline() == b"still TLS\n"
        finally:
            client.kill()
            client.communicate()
