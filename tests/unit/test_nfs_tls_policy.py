"""The decisions of examples/nfs_tls: configuration, contexts, plans, and who the peer is."""

from __future__ import annotations

import pathlib
import re
import ssl

import pytest

import pyktls
from nfs_tls import policy
from nfs_tls.policy import (
    Auth,
    ConfigurationError,
    Identity,
    Policy,
    Refused,
    Request,
    Role,
    Settings,
    Side,
    Verdict,
    check,
)
from support.authority import Authority
from support.systems import linux_only

POLICY = pathlib.Path(policy.__file__)
CLIENT = Request(Role.CLIENT, Auth.UNAUTHENTICATED, "localhost")
SERVER = Request(Role.SERVER, Auth.X509)


@pytest.fixture
def authority(tmp_path: pathlib.Path) -> Authority:
    return Authority(tmp_path)


def write(path: pathlib.Path, text: str) -> pathlib.Path:
    config = path / "nfs-tls.toml"
    config.write_text(text)
    return config


# ---- the file ----------------------------------------------------------------------------------


def test_every_option_is_read(tmp_path):
    config = write(
        tmp_path,
        '[client]\nca = "ca.pem"\ncertificate = "/etc/c.pem"\nkey = "c.key"\ncrl = "crl.pem"\n'
        "timeout = 3\n"
        '[server]\ncertificate = "s.pem"\nkey = "s.key"\nca = "ca.pem"\n'
        'require_certificate = true\nclients = ["A.example"]\n',
    )
    settings = policy.read_settings(config)
    assert settings.client == Side(
        certificate=type(tmp_path)("/etc/c.pem"),
        key=tmp_path / "c.key",
        ca=tmp_path / "ca.pem",
        crl=tmp_path / "crl.pem",
        timeout=3.0,
    )
    assert settings.server is not None
    assert settings.server.require_certificate
    assert settings.server.clients == ("a.example",)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "neither"),
        ("[client", "TOML|Expected"),
        ("client = 1", "must be a table"),
        ("[klient]", "unknown: klient"),
        ("[client]\nca = 1", "ca must be the name of a file"),
        ("[client]\nca = ''", "ca must be the name of a file"),
        ('[client]\nca = "a\\u0000b"', "ca must be the name of a file"),
        ("[client]\nclients = []", "clients is not known"),
        ("[client]\nnonsense = 1", "nonsense is not known"),
        ("[client]\nkey = 'k'", "key is nothing without certificate"),
        ("[client]\ntimeout = 0", "a number of seconds"),
        ("[client]\ntimeout = true", "a number of seconds"),
        ("[client]\ntimeout = '1'", "a number of seconds"),
        ("[server]\nca = 'ca.pem'", "certificate is missing"),
        ("[server]\ncertificate = 's'\nrequire_certificate = 1", "true or false"),
        ("[server]\ncertificate = 's'\nrequire_certificate = true", "needs ca"),
        ("[server]\ncertificate = 's'\nclients = ['a']", "needs ca"),
        ("[server]\ncertificate = 's'\ncrl = 'crl.pem'", "needs ca"),
        ("[server]\ncertificate = 's'\nclients = 'a'", "a list of names"),
        ("[server]\ncertificate = 's'\nclients = [1]", "a list of names"),
    ],
)
def test_a_wrong_file_is_told_with_its_name(tmp_path, text, complaint):
    config = write(tmp_path, text)
    with pytest.raises(ConfigurationError, match=complaint) as caught:
        policy.read_settings(config)
    assert str(config) in str(caught.value)


def test_what_is_no_utf_8_is_told_with_its_name(tmp_path):
    config = write(tmp_path, "")
    config.write_bytes(b'[client]\nca = "\xff"\n')
    with pytest.raises(ConfigurationError, match=r"nfs-tls\.toml: .*utf-8"):
        policy.read_settings(config)


def test_a_missing_file_is_told_with_its_name(tmp_path):
    with pytest.raises(ConfigurationError, match=r"absent\.toml"):
        Policy.read(tmp_path / "absent.toml")


def test_the_example_is_good_with_its_files(authority, tmp_path):
    example = POLICY.with_name("nfs-tls.toml")
    text = example.read_text(encoding="ascii")
    authority.issue("server", "localhost")
    authority.issue("client", "client.example.org")
    authority.revoke()
    Policy.read(write(tmp_path, text))
    # Every option that is commented out is one that there is.
    everything = "\n".join(
        line.removeprefix("#") if re.match(r"#\w+ = ", line) else line for line in text.splitlines()
    )
    Policy.read(write(tmp_path, everything))


@pytest.mark.parametrize("option", ["ca", "crl", "certificate"])
def test_what_is_no_certificate_is_told_with_its_name(authority, tmp_path, option):
    good = authority.issue("client", "client.test")
    (tmp_path / "bad.pem").write_text("nothing")
    side = Side(**{"ca": authority.path, **good, option: tmp_path / "bad.pem"})
    with pytest.raises(ConfigurationError, match=r"bad\.pem"):
        Policy(Settings(client=side))


def test_a_list_without_a_revocation_list_in_it_is_no_list(authority):
    side = Side(ca=authority.path, crl=authority.path)
    with pytest.raises(ConfigurationError, match="no revocation list"):
        Policy(Settings(client=side))


def test_a_key_of_somebody_else_is_told(authority):
    mine = authority.issue("client", "client.test")
    other = authority.issue("other", "other.test")
    side = Side(ca=authority.path, certificate=mine["certificate"], key=other["key"])
    with pytest.raises(ConfigurationError, match=r"client\.pem"):
        Policy(Settings(client=side))


# ---- plans -------------------------------------------------------------------------------------


@pytest.fixture
def both(authority) -> Policy:
    client = Side(ca=authority.path, **authority.issue("client", "client.test"))
    server = Side(ca=authority.path, **authority.issue("server", "localhost"))
    return Policy(Settings(client, server))


@pytest.mark.parametrize("request_", [CLIENT, SERVER], ids=["client", "server"])
def test_contexts_are_tls_1_3_alone_watched_and_without_tickets(both, request_):
    context = both.plan(request_).context
    assert context.minimum_version is context.maximum_version is ssl.TLSVersion.TLSv1_3
    assert pyktls.engine_of(context) is not None
    if request_.role is Role.SERVER:
        assert context.num_tickets == 0


def test_a_client_verifies_the_name_it_mounts(both):
    plan = both.plan(CLIENT)
    assert plan.server_hostname == "localhost"
    assert plan.context.verify_mode is ssl.CERT_REQUIRED
    assert plan.context.check_hostname
    assert not plan.context.hostname_checks_common_name


def test_a_client_without_authorities_believes_the_systems():
    store = Policy(Settings(client=Side())).plan(CLIENT).context.cert_store_stats()
    default = ssl.create_default_context().cert_store_stats()
    assert store == default


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({"ca": None}, ssl.CERT_NONE),
        ({}, ssl.CERT_OPTIONAL),
        ({"require_certificate": True}, ssl.CERT_REQUIRED),
        ({"clients": ("a",)}, ssl.CERT_REQUIRED),
    ],
)
def test_whom_a_server_asks_for_a_certificate(authority, options, mode):
    side = Side(**{"ca": authority.path, **authority.issue("server", "localhost"), **options})
    assert Policy(Settings(server=side)).plan(SERVER).context.verify_mode is mode


@pytest.mark.parametrize(
    ("settings", "wanted", "verdict", "reason"),
    [
        (Settings(client=Side()), SERVER, Verdict.UNSUPPORTED, r"no \[server\]"),
        (Settings(server=None), CLIENT, Verdict.UNSUPPORTED, r"no \[client\]"),
        (
            Settings(client=Side()),
            Request(Role.CLIENT, Auth.X509, "a"),
            Verdict.DENIED,
            "has no certificate",
        ),
        (
            Settings(client=Side()),
            Request(Role.CLIENT, Auth.UNAUTHENTICATED),
            Verdict.INVALID,
            "names no server",
        ),
        (
            Settings(client=Side()),
            Request(Role.CLIENT, Auth.UNAUTHENTICATED, ""),
            Verdict.INVALID,
            "names no server",
        ),
    ],
)
def test_what_is_refused_before_a_byte_is_sent(settings, wanted, verdict, reason):
    with pytest.raises(Refused, match=reason) as caught:
        Policy(settings).plan(wanted)
    assert caught.value.verdict is verdict


@pytest.mark.parametrize(
    ("configured", "granted", "expected"),
    [
        (None, None, policy.CLIENT_TIMEOUT),
        (2.0, None, 2.0),
        (None, 100.0, 90.0),
        (2.0, 100.0, 2.0),
        (200.0, 100.0, 90.0),
    ],
)
def test_the_time_that_a_handshake_may_take(configured, granted, expected):
    made = Policy(Settings(client=Side(timeout=configured)))
    wanted = Request(Role.CLIENT, Auth.UNAUTHENTICATED, "a", timeout=granted)
    assert made.plan(wanted).timeout == expected


def test_servers_have_less_time_than_the_kernel_gives_them(both):
    assert both.plan(SERVER).timeout < 5
    assert both.plan(CLIENT).timeout < 10


@linux_only  # memory that OpenSSL reads as a file
def test_a_certificate_of_the_kernels_takes_the_place_of_the_configured_one(authority):
    made = authority.issue("mount", "mount.test")
    identity = Identity(made["certificate"].read_bytes(), made["key"].read_bytes())
    wanted = Request(Role.CLIENT, Auth.X509, "localhost", identity=identity)
    Policy(Settings(client=Side(ca=authority.path))).plan(wanted)
    assert "PRIVATE" not in repr(wanted)


@linux_only
def test_a_certificate_of_the_kernels_that_is_none(authority):
    wanted = Request(Role.CLIENT, Auth.X509, "localhost", identity=Identity(b"a", b"b"))
    with pytest.raises(Refused, match="certificate and key") as caught:
        Policy(Settings(client=Side(ca=authority.path))).plan(wanted)
    assert caught.value.verdict is Verdict.INVALID


@pytest.mark.skipif(policy.HAS_PSK, reason="about Pythons before 3.13")
def test_without_callbacks_a_shared_key_is_refused():
    with pytest.raises(Refused, match=r"3\.13") as caught:
        Policy(Settings(client=Side())).plan(Request(Role.CLIENT, Auth.PSK, "a"))
    assert caught.value.verdict is Verdict.UNSUPPORTED


# ---- the kernel's word -------------------------------------------------------------------------


def status(tx: pyktls.Mode, rx: pyktls.Mode) -> pyktls.Status:
    return pyktls.Status("tls", 0x0304, "AES_256_GCM", tx, rx)


@pytest.mark.parametrize("tx", list(pyktls.Mode))
@pytest.mark.parametrize("rx", list(pyktls.Mode))
def test_both_directions_or_none(tx, rx):
    if pyktls.Mode.NONE not in {tx, rx}:
        check(status(tx, rx))
        return
    with pytest.raises(Refused) as caught:
        check(status(tx, rx))
    assert caught.value.verdict is Verdict.UNSUPPORTED
    assert ("sending" in str(caught.value)) is (not tx)
    assert ("receiving" in str(caught.value)) is (not rx)


def test_policy_knows_nothing_of_the_kernels_interface():
    text = POLICY.read_text(encoding="utf-8")
    imports = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
    assert not [line for line in imports if "upcall" in line or "keyring" in line or "." in line]
