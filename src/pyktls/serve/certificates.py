"""A key and a certificate to try things out with, that nobody has to trust.

Both exist as files, for ``load_cert_chain`` takes nothing else, only until they are loaded: in a
directory that only this user can enter, the key readable by this user alone.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
import os
import pathlib
import shutil
import socket
import ssl
import subprocess
import tempfile

from pyktls.errors import Unavailable
from pyktls.selfsigned import is_address, request_command

__all__ = ["load_selfsigned", "names_of_this_host"]

DAYS = 7
TIMEOUT = 30.0


def names_of_this_host() -> list[str]:
    """What a client on this machine, or beside it, may call it."""
    names = ["localhost", "127.0.0.1", "::1"]
    host = socket.gethostname()
    # RFC 5280: a name in a certificate is ASCII, and a label has at most 63 characters.
    if host.isascii() and host.replace("-", "").replace(".", "").isalnum() and len(host) <= 63:
        names += [host] if host not in names else []
    return names


def load_selfsigned(context: ssl.SSLContext) -> str:
    """Make a certificate for this host and load it; returns its SHA-256 in hexadecimal.

    Raises Unavailable if there is neither the ``cryptography`` package nor an ``openssl`` program.
    """
    names = names_of_this_host()
    with tempfile.TemporaryDirectory(prefix="pyktls-serve-") as name:  # made with mode 0700
        place = pathlib.Path(name)
        certificate, key = place / "cert.pem", place / "key.pem"
        key.touch(mode=0o600)
        try:
            _make_with_cryptography(certificate, key, names)
        except ImportError:
            _make_with_openssl(place, names)
        context.load_cert_chain(certificate, key)
        der = ssl.PEM_cert_to_DER_cert(certificate.read_text("ascii"))
    return hashlib.sha256(der).hexdigest()


def _make_with_cryptography(certificate: pathlib.Path, key: pathlib.Path, names: list[str]) -> None:
    # Only where a certificate is wanted: pyktls does not depend on it.
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=DAYS))
        .add_extension(
            x509.SubjectAlternativeName(
                [
                    x509.IPAddress(ipaddress.ip_address(n)) if is_address(n) else x509.DNSName(n)
                    for n in names
                ]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, hashes.SHA256())
    )
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))


def _make_with_openssl(place: pathlib.Path, names: list[str]) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        raise Unavailable(
            "a certificate is made by the cryptography package or the openssl program, and neither "
            "is there",
            remedy="install one of them, or give --cert and --key",
        )
    command = request_command(openssl, place, names, DAYS)
    try:
        subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
            timeout=TIMEOUT, env=os.environ | {"OPENSSL_CONF": os.devnull},
        )  # fmt: skip
    except subprocess.CalledProcessError as e:
        said = e.stderr.strip().splitlines()
        raise Unavailable(
            f"`openssl req` made no certificate: {said[-1] if said else 'no reason'}"
        ) from None
    except (OSError, subprocess.TimeoutExpired) as e:
        raise Unavailable(f"`openssl req` made no certificate: {e}") from None
