"""How the ``openssl`` program is asked for a self-signed certificate."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Sequence

__all__ = ["is_address", "request_command"]


def is_address(name: str) -> bool:
    """Whether it is the address of a host, and no name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def request_command(
    openssl: str, place: pathlib.Path, names: Sequence[str], days: int
) -> list[str]:
    """The command that makes key.pem and cert.pem in ``place``, for hosts of those names.

    The configuration is our own, whatever the machine's is, and is written there.
    """
    config = place / "req.cnf"
    alternatives = ", ".join(f"{'IP' if is_address(n) else 'DNS'}:{n}" for n in names)
    config.write_text(
        "[req]\nprompt = no\ndistinguished_name = name\nx509_extensions = extensions\n"
        f"[name]\nCN = {names[0]}\n"
        f"[extensions]\nsubjectAltName = {alternatives}\n"
        "basicConstraints = critical, CA:true, pathlen:0\n",
        encoding="ascii",
    )
    return [
        openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-sha256", "-days", str(days), "-config", str(config),
        "-keyout", str(place / "key.pem"), "-out", str(place / "cert.pem"),
    ]  # fmt: skip
