"""The kernel's keyrings, by libkeyutils: pre-shared keys, and certificates by number.

The kernel names keys by their serial numbers (keyrings(7)).  A pre-shared key's description is its
identity; a mount's cert_serial= and privkey_serial= are keys of the type "user" that hold DER.
What is read is only what this process may read, and a container often may not call keyctl(2) at
all: then handshakes that need a key are refused, and the others go on.

Sources: keyctl(2), add_key(2), keyctl_read(3).
"""

from __future__ import annotations

import base64
import collections
import contextlib
import ctypes
import os
import textwrap

PROCESS_KEYRING = -2  # KEY_SPEC_PROCESS_KEYRING: dies with this process
LIBRARY = "libkeyutils.so.1"


class KeyringError(Exception):
    """Keys cannot be had here; the message says why."""


class Keyring:
    """What this process can reach of the keyrings.  Raises KeyringError if that is nothing.

    ``linked`` are the descriptions of keyrings, such as ".nfs", that are to be searched and read
    as this process's own; one that is not there is passed over.
    """

    def __init__(self, linked: tuple[str, ...] = ()) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY, use_errno=True)
        except OSError as e:
            raise KeyringError(f"{LIBRARY} is missing: {e}") from e
        for name in ("keyctl_read", "keyctl_search", "keyctl_describe"):
            getattr(self._library, name).restype = ctypes.c_long
        self._borrowed: collections.Counter[int] = collections.Counter()
        # The process's keyring is made when it is first wanted; here it is seen whether it can be.
        self.unlink(self.add("user", "nfs_tls", b"trial"))
        self._linked = {name: serial for name in linked if (serial := self._link(name))}

    @property
    def linked(self) -> tuple[str, ...]:
        """The descriptions of those keyrings that were there."""
        return tuple(self._linked)

    def _call(self, name: str, *arguments: object) -> int:
        result = int(getattr(self._library, name)(*arguments))
        if result == -1:
            error = ctypes.get_errno()
            raise KeyringError(f"{name}: {os.strerror(error)}")
        return result

    def add(self, kind: str, description: str, payload: bytes) -> int:
        """Make a key in this process's keyring; returns its serial."""
        return self._call(
            "add_key",
            kind.encode(),
            description.encode(),
            payload,
            ctypes.c_size_t(len(payload)),
            PROCESS_KEYRING,
        )

    def unlink(self, serial: int) -> None:
        """Take a key out of this process's keyring, which destroys it unless others have it."""
        self._call("keyctl_unlink", serial, PROCESS_KEYRING)

    def read(self, serial: int) -> bytes:
        """The content of a key."""
        size = self._call("keyctl_read", serial, None, ctypes.c_size_t(0))
        while True:
            buffer = ctypes.create_string_buffer(max(size, 1))
            needed = self._call("keyctl_read", serial, buffer, ctypes.c_size_t(size))
            if needed <= size:
                content = buffer.raw[:needed]
                ctypes.memset(buffer, 0, len(buffer))
                return content
            size = needed

    def description(self, serial: int) -> str:
        """The name of a key: what follows "type;uid;gid;permissions;"."""
        size = self._call("keyctl_describe", serial, None, ctypes.c_size_t(0))
        buffer = ctypes.create_string_buffer(size)
        self._call("keyctl_describe", serial, buffer, ctypes.c_size_t(size))
        return buffer.value.decode(errors="replace").split(";", 4)[-1]

    def search(self, kind: str, description: str, keyring: int = PROCESS_KEYRING) -> int | None:
        """The serial of a key in a keyring or those linked into it; None if it is not there."""
        try:
            return self._call("keyctl_search", keyring, kind.encode(), description.encode(), 0)
        except KeyringError:
            return None

    def borrow(self, serial: int) -> None:
        """Note that a handshake uses a keyring that the kernel has linked into this process's."""
        self._borrowed[serial] += 1

    def give_back(self, serial: int) -> None:
        """Unlink a borrowed keyring when the last handshake that uses it is over.

        The kernel itself never does, as it thinks of a process for each handshake.
        """
        self._borrowed[serial] -= 1
        if not self._borrowed[serial]:
            del self._borrowed[serial]
            if serial not in self._linked.values():
                with contextlib.suppress(KeyringError):  # it was revoked meanwhile
                    self.unlink(serial)

    def _link(self, name: str) -> int:
        """Link a keyring into this process's; its serial, 0 if it cannot be had."""
        try:
            serial = self._call("find_key_by_type_and_desc", b"keyring", name.encode(), 0)
            self._call("keyctl_link", serial, PROCESS_KEYRING)
        except KeyringError:
            return 0
        return serial


# ---- DER and PEM -------------------------------------------------------------------------------


def certificate_to_pem(content: bytes) -> bytes:
    """A certificate of a keyring (DER, as tlshd has it) as PEM; PEM is left as it is."""
    return content if b"-----BEGIN" in content else _pem("CERTIFICATE", content)


def private_key_to_pem(content: bytes) -> bytes:
    """A private key of a keyring as PEM: PKCS #8 (RFC 5958), or RSA's or EC's older form."""
    if b"-----BEGIN" in content:
        return content
    # SEQUENCE { INTEGER version, ...: what follows is a SEQUENCE (PKCS #8: the algorithm), an
    # INTEGER (RFC 8017 A.1.2: the modulus) or an OCTET STRING (RFC 5915: the private key).
    length_bytes = content[1] & 0x7F if len(content) > 1 and content[1] & 0x80 else 0
    following = content[2 + length_bytes + 3 :][:1]
    label = {b"\x02": "RSA PRIVATE KEY", b"\x04": "EC PRIVATE KEY"}.get(following, "PRIVATE KEY")
    return _pem(label, content)


def _pem(label: str, der: bytes) -> bytes:
    body = "\n".join(textwrap.wrap(base64.b64encode(der).decode(), 64))
    return f"-----BEGIN {label}-----\n{body}\n-----END {label}-----\n".encode()
