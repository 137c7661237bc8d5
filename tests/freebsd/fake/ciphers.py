"""The record protection that FreeBSD's kernel does, for the fake: written from the RFCs alone.

One ``Protection`` is one direction of one session.  It shares no code with the record layer that
the tests hold it against (wire.py), nor with pyktls.
"""

from __future__ import annotations

import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

AES_CBC, AES_GCM, CHACHA20 = 11, 25, 41
MACS = {7: ("sha1", 20), 18: ("sha256", 32), 19: ("sha384", 48)}
BLOCK = 16
LARGEST = 16384


class BadRecord(Exception):
    """EBADMSG: the record is dropped, and the connection goes on."""


class FatalRecord(Exception):
    """The connection is dropped with the errno in ``args``."""


class Protection:
    def __init__(
        self, cipher: int, minor: int, key: bytes, iv: bytes, auth: int, auth_key: bytes, seq: int
    ) -> None:
        self.cipher, self.minor = cipher, minor
        self.key, self.iv, self.seq = key, iv, seq
        if cipher == AES_CBC:
            self.hash, self.mac_length = MACS[auth]
            self.auth_key = auth_key
            self.head = BLOCK if minor > 1 else 0
            self.tail = self.mac_length + BLOCK
        else:
            self.aead = (AESGCM if cipher == AES_GCM else ChaCha20Poly1305)(key)
            self.head = 8 if cipher == AES_GCM and minor == 3 else 0
            self.tail = 16 + (minor == 4)
        # GCM of TLS 1.2: a random beginning for each session, then one more for each record.
        self.explicit = int.from_bytes(os.urandom(8), "big")

    @property
    def is_chained(self) -> bool:
        """AES-CBC of TLS 1.0, which has empty records against its predictable IVs."""
        return self.cipher == AES_CBC and self.minor == 1

    @property
    def wire_version(self) -> bytes:
        return bytes((3, min(self.minor, 3)))

    def next_seq(self) -> bytes:
        number = self.seq.to_bytes(8, "big")
        self.seq = (self.seq + 1) & (2**64 - 1)
        return number

    def nonce(self, seq: bytes) -> bytes:
        return bytes(a ^ b for a, b in zip(self.iv, bytes(4) + seq, strict=True))

    def mac(self, head: bytes, data: bytes) -> bytes:
        return hmac.digest(self.auth_key, head + len(data).to_bytes(2, "big") + data, self.hash)

    # ---- sending

    def protect(self, kind: int, data: bytes) -> bytes:
        seq = self.next_seq()
        if self.minor == 4:
            inner = data + bytes((kind,))
            header = bytes((23, 3, 3)) + (len(inner) + 16).to_bytes(2, "big")
            return header + self.aead.encrypt(self.nonce(seq), inner, header)
        start = bytes((kind,)) + self.wire_version
        if self.cipher == AES_CBC:
            body = self.cbc_encrypt(data + self.mac(seq + start, data))
        elif self.cipher == AES_GCM:
            explicit = self.explicit.to_bytes(8, "big")
            self.explicit = (self.explicit + 1) & (2**64 - 1)
            aad = seq + start + len(data).to_bytes(2, "big")
            body = explicit + self.aead.encrypt(self.iv + explicit, data, aad)
        else:
            aad = seq + start + len(data).to_bytes(2, "big")
            body = self.aead.encrypt(self.nonce(seq), data, aad)
        return start + len(body).to_bytes(2, "big") + body

    def cbc_encrypt(self, plain: bytes) -> bytes:
        pad = BLOCK - 1 - len(plain) % BLOCK
        plain += bytes((pad,)) * (pad + 1)
        iv = os.urandom(BLOCK) if self.minor > 1 else self.iv
        encryptor = Cipher(algorithms.AES(self.key), modes.CBC(iv)).encryptor()
        out = encryptor.update(plain) + encryptor.finalize()
        if self.minor > 1:
            return iv + out
        self.iv = out[-BLOCK:]
        return out

    # ---- receiving

    def check_length(self, length: int) -> bool:
        if not self.head + self.tail <= length <= self.head + LARGEST + self.tail:
            # CBC's minimum has no room for a whole block of padding yet.
            least = self.head + -(-(getattr(self, "mac_length", 0) + 1) // BLOCK) * BLOCK
            if self.cipher != AES_CBC or not least <= length < self.head + self.tail:
                return False
        return self.cipher != AES_CBC or length % BLOCK == 0

    def unprotect(self, record: bytes) -> tuple[int, bytes]:
        header, body = record[:5], record[5:]
        seq = self.next_seq()
        try:
            if self.minor == 4:
                return self.strip(self.aead.decrypt(self.nonce(seq), body, header))
            if self.cipher == AES_CBC:
                return header[0], self.cbc_decrypt(seq + header[:3], body)
            length = len(body) - self.head - 16
            aad = seq + header[:3] + length.to_bytes(2, "big")
            nonce = self.iv + body[:8] if self.head else self.nonce(seq)
            return header[0], self.aead.decrypt(nonce, body[self.head :], aad)
        except InvalidTag:
            raise BadRecord from None

    @staticmethod
    def strip(inner: bytes) -> tuple[int, bytes]:
        if len(inner) > LARGEST + 1:
            raise FatalRecord("EMSGSIZE")
        inner = inner.rstrip(b"\0")
        if not inner:
            raise BadRecord
        return inner[-1], inner[:-1]

    def cbc_decrypt(self, head: bytes, body: bytes) -> bytes:
        decryptor = Cipher(algorithms.AES(self.key), modes.CBC(body[:BLOCK])).decryptor()
        plain = decryptor.update(body[BLOCK:]) + decryptor.finalize()
        pad = plain[-1]
        end = len(plain) - pad - 1
        if end < self.mac_length or plain[end:] != bytes((pad,)) * (pad + 1):
            raise BadRecord
        data, mac = plain[: end - self.mac_length], plain[end - self.mac_length : end]
        if not hmac.compare_digest(mac, self.mac(head, data)):
            raise BadRecord
        return data
