"""The kernel's keyrings, which a container's seccomp filter often forbids."""

from __future__ import annotations

import ctypes
import errno
import os
import pathlib
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.x509 import load_pem_x509_certificate

from nfs_tls.keyring import Keyring, KeyringError
from support import nfs
from support.nfs import wait_for

LIBRARY = ctypes.CDLL("libkeyutils.so.1", use_errno=True)
USER = -4  # KEY_SPEC_USER_KEYRING


def listed(description: str) -> int:
    lines = pathlib.Path("/proc/keys").read_text(encoding="utf-8").splitlines()
    return len([line for line in lines if description in line])


def test_a_key_is_made_read_found_and_gone():
    keys = Keyring()
    serial = keys.add("user", "NVMe0R01 a;b", bytes(range(48)))
    assert keys.read(serial) == bytes(range(48))
    assert keys.description(serial) == "NVMe0R01 a;b"
    assert keys.search("user", "NVMe0R01 a;b") == serial
    assert keys.search("user", "another") is None
    keys.unlink(serial)
    with pytest.raises(KeyringError, match="keyctl_read"):
        keys.read(serial)
    with pytest.raises(KeyringError, match="keyctl_describe"):
        keys.description(1)  # no key has this number


def test_its_trial_leaves_nothing():
    Keyring()
    wait_for(lambda: listed("nfs_tls") == 0)  # the kernel collects keys a little later


def new_keyring(name: str) -> int:
    return _add(b"keyring", name, None, USER)


def new_key(name: str, content: bytes, keyring: int) -> int:
    return _add(b"user", name, content, keyring)


def _add(kind: bytes, name: str, content: bytes | None, keyring: int) -> int:
    size = ctypes.c_size_t(len(content or b""))
    serial: int = LIBRARY.add_key(kind, name.encode(), content, size, keyring)
    assert serial > 0, ctypes.get_errno()
    return serial


def test_a_keyring_that_is_named_is_searched():
    outer = new_keyring("pyktls-test")
    key = new_key("inside", b"abc", outer)
    assert Keyring().search("user", "inside") is None
    keys = Keyring(("pyktls-test", ".not-there"))
    assert keys.linked == ("pyktls-test",)
    assert keys.search("user", "inside") == key
    assert keys.read(key) == b"abc"


def test_a_borrowed_keyring_is_given_back_by_the_last():
    """The kernel links the keyring of a request into the process's; here we are the kernel."""
    outer = new_keyring("pyktls-borrowed")
    key = new_key("borrowed", b"abc", outer)
    keys = Keyring()
    for _ in range(2):
        assert LIBRARY.keyctl_link(outer, -2) == 0
        keys.borrow(outer)
    assert keys.search("user", "borrowed") == keys.search("user", "borrowed", outer) == key
    keys.give_back(outer)
    assert keys.search("user", "borrowed") == key
    keys.give_back(outer)
    assert keys.search("user", "borrowed") is None


def test_a_keyring_of_the_configuration_is_kept():
    outer = new_keyring("pyktls-kept")
    key = new_key("kept", b"abc", outer)
    keys = Keyring(("pyktls-kept",))
    keys.borrow(outer)
    keys.give_back(outer)
    assert keys.search("user", "kept") == key


# The kernel's .nfs is root's: whoever is another user already cannot link it.
READ = """
import sys
from nfs_tls import privileges
from nfs_tls.keyring import Keyring
if sys.argv[1] == "early":
    privileges.drop("nobody")
keys = Keyring(("pyktls-roots",))
if sys.argv[1] == "late":
    privileges.drop("nobody")
print(keys.linked, keys.search("user", "roots"))
"""


def test_it_is_linked_before_the_privileges_are_given_up():
    outer = new_keyring("pyktls-roots")
    key = new_key("roots", b"abc", outer)
    for keyring in (outer, key):  # as .nfs: everything for who possesses it, and for root
        assert LIBRARY.keyctl_setperm(keyring, 0x3F3F0000) == 0, ctypes.get_errno()
    said = {}
    for when in ("late", "early"):
        said[when] = subprocess.run(
            [sys.executable, "-W", "error", "-c", READ, when],
            capture_output=True, text=True, check=False, timeout=nfs.PATIENCE,
            env={**os.environ, "PYTHONPATH": str(nfs.ROOT / "examples")},
        )  # fmt: skip
    assert said["late"].stdout == f"('pyktls-roots',) {key}\n", said["late"].stderr
    assert said["early"].stdout == "() None\n", said["early"].stderr


def test_a_mount_with_a_certificate_of_its_own(server, place, authority, sides):
    """cert_serial= and privkey_serial= of mount(8), keys in the kernel's .nfs: since Linux 7.2."""
    made = authority.issue("of-the-mount", "mount.test")
    certificate = load_pem_x509_certificate(made["certificate"].read_bytes())
    private = serialization.load_pem_private_key(made["key"].read_bytes(), None)
    der = (
        certificate.public_bytes(serialization.Encoding.DER),
        private.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
    ring = LIBRARY.find_key_by_type_and_desc(b"keyring", b".nfs", 0)
    old = tuple(int(n) for n in os.uname().release.split("-")[0].split(".")[:2]) < (7, 2)
    assert (ring > 0) is not old
    where = USER if old else ring
    serials = [new_key(f"pyktls-mount-{n}", data, where) for n, data in enumerate(der)]
    options = "soft,timeo=50,retrans=1,cert_serial={},privkey_serial={}".format(*serials)
    server.export("mtls")
    target = place / "mount"
    with nfs.running(place, "own-certificate", **sides()) as daemon:
        if old:
            assert nfs.mount(target, "mtls", options=options) == errno.EINVAL
            return
        with nfs.mounted(target, "mtls", options=options):
            (target / "file").write_bytes(b"by mount.test")
        (server.export_root / "file").unlink()
        lines = daemon.wait_for_line(": ok ", 2)
        assert [line for line in lines if line.startswith("server ") and "peer=mount.test:" in line]
