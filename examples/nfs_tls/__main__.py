"""Starts the daemon: ``python -m nfs_tls --config nfs-tls.toml``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from pathlib import Path

import pyktls

from . import privileges
from .daemon import serve, to_stderr
from .keyring import Keyring, KeyringError
from .policy import ConfigurationError, Policy
from .upcall import HandshakeUpcall, UpcallError

#: Keyrings that kernels and administrators keep TLS keys in (nfs(5), nvme-cli's documentation).
KEYRINGS = (".nfs", ".nvme")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m nfs_tls",
        description="Make the TLS handshakes of this kernel's NFS client and server.",
        epilog="SIGHUP reads configuration, certificates and revocation lists again. docs/nfs.md "
        "tells the rest.",
    )
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE",
        help="TOML: tables [client] and [server], see nfs-tls.toml",
    )  # fmt: skip
    parser.add_argument(
        "--user", metavar="NAME",
        help="become this user, who must be able to read the keys (default: stay who I am)",
    )  # fmt: skip
    parser.add_argument(
        "--keyring", action="append", default=[], metavar="NAME",
        help=f"a keyring to look for keys in, besides {' and '.join(KEYRINGS)}",
    )  # fmt: skip
    parser.add_argument(
        "--check", action="store_true", help="read the configuration, say what is wrong, and end"
    )
    return parser.parse_args(arguments)


def why_not() -> str | None:
    """What is missing for kernel TLS here; None if nothing is."""
    answer = pyktls.probe().tls
    if answer:
        return None
    return f"{answer.reason}; {answer.remedy}" if answer.remedy else answer.reason


def open_keyring(names: tuple[str, ...]) -> Keyring | None:
    """The keyring, or None and a line in the log."""
    try:
        return Keyring(names)
    except KeyringError as e:
        to_stderr(f"no keys of the kernel's keyrings: {e}")
        return None


def start(options: argparse.Namespace) -> None:
    """Run the daemon.  Raises ConfigurationError, UpcallError, OSError, KeyError."""
    if options.check:
        Policy.read(options.config)
        print("the configuration is good")
        return
    if (reason := why_not()) is not None:
        raise UpcallError(reason)
    # Keyrings are linked while this may still be root's doing; files are read as the user who has
    # to read them again at SIGHUP.
    keyring = open_keyring((*KEYRINGS, *options.keyring))
    privileges.drop(options.user)
    policy = Policy.read(options.config)
    with contextlib.closing(HandshakeUpcall()) as kernel:
        asyncio.run(serve(kernel, options.config, policy, keyring))


def main() -> int:
    """Run the program; returns the exit status."""
    options = parse()
    try:
        start(options)
    except KeyError as e:
        print(f"nfs_tls: {e.args[0]}", file=sys.stderr)
        return 1
    except (ConfigurationError, UpcallError, OSError, pyktls.Error) as e:
        print(f"nfs_tls: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
