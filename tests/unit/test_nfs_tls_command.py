"""examples/nfs_tls as a command, and what it has of the keyrings, where no kernel is asked."""

from __future__ import annotations

import os
import pathlib
import ssl
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from nfs_tls import __main__ as program
from nfs_tls import keyring, policy, privileges
from support.authority import Authority
from support.systems import linux_only

EXAMPLES = pathlib.Path(program.__file__).parents[1]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "nfs_tls", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES)},
    )


@pytest.fixture
def config(tmp_path) -> pathlib.Path:
    authority = Authority(tmp_path)
    authority.issue("server", "localhost")
    made = tmp_path / "nfs-tls.toml"
    made.write_text('[server]\ncertificate = "server.pem"\nkey = "server.key"\n')
    return made


def test_a_good_configuration(config):
    done = run("--check", "--config", config)
    assert (done.returncode, done.stdout) == (0, "the configuration is good\n"), done.stderr


def test_a_bad_configuration(config):
    config.with_name("server.key").unlink()
    done = run("--check", "--config", config)
    assert done.returncode == 1
    assert "server.pem" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_needs_no_configuration():
    done = run("--help")
    assert done.returncode == 0
    assert "--config" in done.stdout


def test_without_kernel_tls_it_does_not_start(config, monkeypatch, capsys):
    monkeypatch.setattr(program, "why_not", lambda: "no TLS here; load the module")
    monkeypatch.setattr(privileges, "drop", lambda _: pytest.fail("too late"))
    monkeypatch.setattr(sys, "argv", ["nfs_tls", "--config", str(config)])
    assert program.main() == 1
    assert capsys.readouterr().err == "nfs_tls: no TLS here; load the module\n"


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(1, "capset: Operation not permitted"),
        KeyError("getpwnam(): name not found: 'noone'"),
        policy.ConfigurationError("nfs-tls.toml: nonsense"),
    ],
)
def test_what_fails_at_the_start_is_one_line(config, monkeypatch, capsys, error):
    def fail(_):
        raise error

    monkeypatch.setattr(program, "why_not", lambda: None)
    monkeypatch.setattr(privileges, "drop", fail)
    monkeypatch.setattr(program, "open_keyring", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["nfs_tls", "--config", str(config)])
    assert program.main() == 1
    said = capsys.readouterr().err
    assert said.startswith("nfs_tls: ")
    assert said.count("\n") == 1


def test_a_keyring_that_cannot_be_had_is_no_reason_to_end(monkeypatch, capsys):
    monkeypatch.setattr(keyring, "LIBRARY", "libnothing.so.9")
    assert program.open_keyring((".nfs",)) is None
    assert "no keys of the kernel's keyrings: libnothing.so.9" in capsys.readouterr().err


# ---- the unit, and the kernel's forms of keys --------------------------------------------------


def test_the_unit_starts_what_there_is():
    text = (EXAMPLES / "nfs_tls" / "nfs-tls.service").read_text(encoding="ascii")
    lines = text.replace("\\\n", "").splitlines()
    (line,) = [line for line in lines if line.startswith("ExecStart=")]
    options = program.parse(line.partition(" -m nfs_tls ")[2].split())
    assert options.config == pathlib.Path("/etc/nfs-tls/nfs-tls.toml")
    # As another user it could not link .nfs, which the kernel gives to root.
    assert options.user == "nfs-tls"
    assert not [line for line in lines if line.startswith("User=")]
    (line,) = [line for line in lines if line.startswith("CapabilityBoundingSet=")]
    kept = {f"CAP_{name}" for name in ("NET_ADMIN", "SETGID", "SETPCAP", "SETUID")}
    assert set(line.partition("=")[2].split()) == kept
    assert "AF_NETLINK" in text


FORMS = {
    "PKCS8": serialization.PrivateFormat.PKCS8,
    "traditional": serialization.PrivateFormat.TraditionalOpenSSL,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["rsa", "ec"])
def test_a_private_key_in_any_form_is_one_for_openssl(form, kind):
    key = (
        rsa.generate_private_key(65537, 2048)
        if kind == "rsa"
        else ec.generate_private_key(ec.SECP256R1())
    )
    der = key.private_bytes(serialization.Encoding.DER, FORMS[form], serialization.NoEncryption())
    pem = keyring.private_key_to_pem(der)
    expected = key.private_bytes(
        serialization.Encoding.PEM, FORMS[form], serialization.NoEncryption()
    )
    assert pem == expected
    assert keyring.private_key_to_pem(pem) == pem


def test_a_certificate_as_openssl_wants_it(config):
    text = config.with_name("server.pem").read_text(encoding="ascii")
    der = ssl.PEM_cert_to_DER_cert(text)
    assert keyring.certificate_to_pem(der).decode() == text
    assert keyring.certificate_to_pem(text.encode()) == text.encode()


@linux_only  # memory that OpenSSL reads as a file
@pytest.mark.parametrize("junk", [b"", b"\x30", b"\x30\x82", b"junk"])
def test_what_is_no_key_is_refused_by_openssl_and_not_by_an_accident(junk):
    pem = keyring.private_key_to_pem(junk)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with pytest.raises(policy.Refused):
        policy.load_identity(context, policy.Identity(b"", pem))
