"""A certificate authority that also revokes, and dates as one likes: trustme, and a list."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

if TYPE_CHECKING:
    import pathlib

DAY = dt.timedelta(days=1)


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class Authority:
    """One CA, whose files are in ``place``: ca.pem, and what is issued."""

    def __init__(self, place: pathlib.Path, name: str = "ca") -> None:
        self.place = place
        self.ca = trustme.CA()
        self.path = place / f"{name}.pem"
        self.ca.cert_pem.write_to_path(self.path)
        self._number = 0

    def issue(self, name: str, *names: str, **dates: dt.datetime) -> dict[str, pathlib.Path]:
        """NAME.pem and NAME.key for hosts of those names: ``certificate`` and ``key``."""
        leaf = self.ca.issue_cert(*names, key_type=trustme.KeyType.ECDSA, **dates)
        made = {"certificate": self.place / f"{name}.pem", "key": self.place / f"{name}.key"}
        made["certificate"].write_bytes(b"".join(b.bytes() for b in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(made["key"])
        made["key"].chmod(0o600)
        return made

    def issue_expired(self, name: str, *names: str) -> dict[str, pathlib.Path]:
        return self.issue(name, *names, not_before=now() - 3 * DAY, not_after=now() - DAY)

    def issue_by_common_name(self, name: str, common_name: str) -> dict[str, pathlib.Path]:
        """One without subjectAltName, as they were before RFC 6125."""
        ours = x509.load_pem_x509_certificate(self.ca.cert_pem.bytes())
        signer = serialization.load_pem_private_key(self.ca.private_key_pem.bytes(), None)
        key = ec.generate_private_key(ec.SECP256R1())
        builder = x509.CertificateBuilder(
            issuer_name=ours.subject,
            subject_name=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)]),
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now() - DAY,
            not_valid_after=now() + DAY,
        ).add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        made = {"certificate": self.place / f"{name}.pem", "key": self.place / f"{name}.key"}
        signed = builder.sign(signer, hashes.SHA256())
        made["certificate"].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        made["key"].write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
        return made

    def revoke(self, *certificates: pathlib.Path, name: str = "crl") -> pathlib.Path:
        """The authority's list, NAME.pem, with those certificates in it, or none."""
        ours = x509.load_pem_x509_certificate(self.ca.cert_pem.bytes())
        key = serialization.load_pem_private_key(self.ca.private_key_pem.bytes(), None)
        self._number += 1
        builder = x509.CertificateRevocationListBuilder(
            issuer_name=ours.subject, last_update=now() - DAY, next_update=now() + DAY
        ).add_extension(x509.CRLNumber(self._number), critical=False)
        for path in certificates:
            serial = x509.load_pem_x509_certificate(path.read_bytes()).serial_number
            revoked = x509.RevokedCertificateBuilder(serial, now() - DAY).build()
            builder = builder.add_revoked_certificate(revoked)
        signed = builder.sign(key, hashes.SHA256())
        made = self.place / f"{name}.pem"
        made.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        return made

    def sides(self, **changes: object) -> dict[str, dict[str, object]]:
        """A daemon's configuration for both roles, with all that mutual TLS needs.

        ``client_ca=...`` changes an option of [client], None takes it away.
        """
        made: dict[str, dict[str, object]] = {
            side: {
                "ca": self.path,
                "certificate": self.place / f"{side}.pem",
                "key": self.place / f"{side}.key",
            }
            for side in ("client", "server")
        }
        for name, value in changes.items():
            side, _, option = name.partition("_")
            made[side][option] = value
            if value is None:
                del made[side][option]
        return made
