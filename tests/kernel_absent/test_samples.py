"""The samples of docs/ that say what is missing, on a kernel without TLS."""

from __future__ import annotations

from support.samples import (
    connect,
    prepare,
    run_sample,
    shown,
    started_sample,
    wait_until_listening,
)


def test_the_tutorial(tmp_path):
    _, port = prepare(tmp_path)
    done = run_sample("docs/tutorial.md", "certificate", tmp_path)
    assert done.status == 0, done.errors
    with started_sample("docs/tutorial.md", "server", tmp_path, port=port) as server:
        wait_until_listening(port)
        client = run_sample("docs/tutorial.md", "client", tmp_path, port=port)
        assert client.status == 0, client.errors
        assert client.output.startswith("OpenSSL goes on: this kernel offers no TLS: ")
        assert client.output.endswith("\n1000000 bytes, the same\n")
        ended = server.wait()
    assert ended.status == 0, ended.errors
    assert ended.output == shown("docs/tutorial.md", "server-without")


def test_a_connection_that_requires_kernel_tls(tmp_path):
    _, port = prepare(tmp_path)
    with started_sample("docs/drop-in.md", "http-server", tmp_path, port=port):
        connect(port).close()
        done = run_sample("docs/drop-in.md", "require", tmp_path, port=port)
    assert done.status == 0, done.errors
    assert done.output.startswith("no connection: this kernel offers no TLS")


def test_is_it_on(tmp_path):
    _, port = prepare(tmp_path)
    with started_sample("docs/drop-in.md", "http-server", tmp_path, port=port):
        connect(port).close()
        done = run_sample("docs/is-it-on.md", "status", tmp_path, port=port)
    assert done.status == 0, done.errors
    first, second = done.output.splitlines()
    assert first == "sending: none - receiving: none"
    assert second.startswith("Unavailable - this kernel offers no TLS")


def test_the_start_of_a_container(tmp_path):
    done = run_sample("docs/containers.md", "entry", tmp_path)
    assert done.status == 1
    assert ": no kernel TLS\n" in done.output
    assert done.errors.startswith("no kernel TLS: ")
