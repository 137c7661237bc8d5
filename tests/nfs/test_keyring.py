"""The kernel's keyrings, which a container's seccomp filter often forbids."""

from __future__ import annotations

import ctypes
import pathlib

import pytest

from nfs_tls.keyring import Keyring, KeyringError
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


def test_a_keyring_that_is_named_is_searched():
    outer = LIBRARY.add_key(b"keyring", b"pyktls-test", None, ctypes.c_size_t(0), USER)
    assert outer > 0, ctypes.get_errno()
    key = LIBRARY.add_key(b"user", b"inside", b"abc", ctypes.c_size_t(3), outer)
    assert key > 0, ctypes.get_errno()
    assert Keyring().search("user", "inside") is None
    keys = Keyring(("pyktls-test", ".not-there"))
    assert keys.linked == ("pyktls-test",)
    assert keys.search("user", "inside") == key
    assert keys.read(key) == b"abc"
