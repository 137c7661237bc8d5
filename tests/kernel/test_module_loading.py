"""The tls module that is there but not loaded: who may load it, and what the others are told.

Only in the lab, whose guest is ours alone: the module has to be unloaded first, which is nothing to
do to a machine that may be using it.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import textwrap
from typing import Any

SCRIPT = textwrap.dedent(
    """
    import socket, ssl, sys, threading
    import pyktls, trustme

    authority = trustme.CA()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server_context)
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client_context)
    pyktls.watch(client_context)

    def serve(listener):
        with server_context.wrap_socket(listener.accept()[0], server_side=True) as server:
            server.sendall(server.recv(100).upper())
            server.recv(100)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        tcp = socket.create_connection(listener.getsockname())
    client = client_context.wrap_socket(tcp, server_hostname="localhost")
    try:
        client = pyktls.offload(client)
    except pyktls.Unavailable as e:
        print("Unavailable:", e)
    else:
        print("switched:", client.ktls.tx.value, client.ktls.rx.value)
    client.sendall(b"after all")
    print(client.recv(100).decode())
    client.close()
    thread.join()
    """
)

REFUSAL = (
    "Unavailable: this kernel offers no TLS: the tls module is not there or not loaded; an "
    "administrator can load it with `modprobe tls`, and for every boot with a line `tls` in "
    "/etc/modules-load.d/tls.conf; a kernel built without CONFIG_TLS has to be replaced"
)


def is_loaded() -> bool:
    return pathlib.Path("/proc/net/tls_stat").exists()


def run(*prefix: str) -> list[str]:
    done = subprocess.run(
        [*prefix, sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_without_the_privilege_the_refusal_says_what_to_do_and_with_it_the_kernel_loads() -> None:
    subprocess.run(["modprobe", "-r", "tls"], check=True, timeout=60)
    assert not is_loaded()
    try:
        unprivileged = run("setpriv", "--bounding-set=-net_admin")
        assert unprivileged == [REFUSAL, "AFTER ALL"]
        assert not is_loaded()
        assert run() == ["switched: software software", "AFTER ALL"]
        assert is_loaded()
        # Once it is loaded anybody can use it.
        modes = run("setpriv", "--bounding-set=-net_admin")
        assert modes[1] == "AFTER ALL"
        assert modes[0].startswith("switched: ")
    finally:
        subprocess.run(["modprobe", "tls"], check=True, timeout=60)


PROBES = textwrap.dedent(
    """
    import json, sys
    import pyktls

    for _ in sys.stdin:
        print(json.dumps(pyktls.probe().as_dict()), flush=True)
    """
)


def test_the_probe_sees_a_module_that_is_loaded_meanwhile() -> None:
    subprocess.run(["modprobe", "-r", "tls"], check=True, timeout=60)
    command = ["setpriv", "--bounding-set=-net_admin", sys.executable, "-c", PROBES]
    try:
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None

            def ask() -> dict[str, Any]:
                process.stdin.write("\n")
                process.stdin.flush()
                found = json.loads(process.stdout.readline())
                assert isinstance(found, dict)
                return found

            for _ in range(2):
                found = ask()
                assert found["tls"]["code"] == "no-module"
                assert found["module"]["state"] == "on-disk"
                assert found["module"]["path"] in found["tls"]["reason"]
                assert "`modprobe tls`" in found["tls"]["remedy"]
                assert found["module"]["autoload"]["code"] == "privilege"
                assert not is_loaded()
            subprocess.run(["modprobe", "tls"], check=True, timeout=60)
            found = ask()
            assert found["tls"]["yes"]
            assert found["ciphers"]["TLS 1.3"]["AES_128_GCM"]["rx"]["yes"]
            assert found["module"]["state"] == "loaded"
            process.stdin.close()
    finally:
        subprocess.run(["modprobe", "tls"], check=True, timeout=60)


def test_the_probe_loads_the_module_where_it_may() -> None:
    subprocess.run(["modprobe", "-r", "tls"], check=True, timeout=60)
    try:
        code = "import pyktls; f = pyktls.probe(); print(bool(f), f.module.state)"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
        )
        assert done.stdout == "True loaded\n"
        assert is_loaded()
    finally:
        subprocess.run(["modprobe", "tls"], check=True, timeout=60)
