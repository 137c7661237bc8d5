"""After a handshake, ask for each direction whether the kernel has it.

    python examples/who_encrypts.py www.example.org
    python examples/who_encrypts.py --ca ca.pem --port 8443 --tls 1.2 localhost

It connects twice.  The first time ssl.OP_ENABLE_KTLS asks OpenSSL to give its keys to the kernel,
which it does, or does not, without a word; ``BIO_get_ktls_send`` and ``BIO_get_ktls_recv`` tell
afterwards, and ``pyktls.status`` calls both.  The second time ``pyktls.offload`` does it, and says
why if it cannot.  Of any socket, whoever switched it, ``pyktls.status`` asks the kernel itself.

Sending and receiving are asked for apart, since each can be missing alone: OpenSSL before 3.2, for
one, never gives the receiving half of TLS 1.3 to Linux.  The exit status is 0 if both are in the
kernel, both times (or in the one way that --way names), 1 if one is not, 2 if there was no
connection.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import socket
import ssl
import sys
from dataclasses import dataclass

import pyktls

TIMEOUT = 30.0
# <openssl/ssl.h>: SSL_OP_ENABLE_KTLS, SSL_OP_BIT(3); CPython has the name since 3.12.
ENABLE_KTLS = 1 << 3
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
WORDS = {True: "kernel", False: "no", None: "-"}


@dataclass(frozen=True)
class Finding:
    """What was found out about one connection."""

    way: str
    session: str
    status: pyktls.Status
    refusal: Exception | None = None

    def missing(self) -> list[str]:
        """The directions that are not in the kernel, by what the kernel says."""
        directions = ("sending", self.status.tx), ("receiving", self.status.rx)
        return [name for name, mode in directions if not mode]

    def lines(self) -> list[str]:
        """For people: two columns, sending and receiving."""
        status = self.status
        return [
            f"{self.way}: {self.session}",
            f"    {'':16}{'sending':12}receiving",
            f"    {'OpenSSL says':16}{WORDS[status.openssl_tx]:12}{WORDS[status.openssl_rx]}",
            f"    {'the kernel says':16}{status.tx:12}{status.rx}",
        ]


def make_context(options: argparse.Namespace) -> ssl.SSLContext:
    """A client's context."""
    context = ssl.create_default_context(cafile=options.ca)
    if options.tls is not None:
        context.minimum_version = context.maximum_version = VERSIONS[options.tls]
    # Of TLS 1.2 what a kernel can do; the suites of TLS 1.3 are not touched by this.
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    return context


def connect(context: ssl.SSLContext, options: argparse.Namespace) -> ssl.SSLSocket:
    """Connect, and make the handshake."""
    with contextlib.ExitStack() as on_error:
        tcp = socket.create_connection((options.host, options.port), TIMEOUT)
        on_error.callback(tcp.close)
        tls = context.wrap_socket(tcp, server_hostname=options.host)
        on_error.pop_all()
    return tls


def of_openssl(options: argparse.Namespace) -> Finding:
    """OpenSSL is asked to do it."""
    context = make_context(options)
    context.options |= ssl.Options(ENABLE_KTLS)
    with connect(context, options) as tls:
        return Finding("OP_ENABLE_KTLS", describe(tls), pyktls.status(tls))


def of_pyktls(options: argparse.Namespace) -> Finding:
    """Pyktls does it."""
    context = make_context(options)
    refusal: pyktls.Error
    try:
        pyktls.watch(context)  # before the handshake
    except (pyktls.HandoffRefused, pyktls.Unavailable) as e:
        refusal = e  # offload would say that the context is not watched
        with connect(context, options) as tls:
            return Finding("pyktls", describe(tls), pyktls.status(tls), refusal)
    with connect(context, options) as tls:
        about = describe(tls)
        try:
            sock = pyktls.offload(tls)
        except (pyktls.HandoffRefused, pyktls.Unavailable) as e:
            return Finding("pyktls", about, pyktls.status(tls), e)
        with sock:
            return Finding("pyktls", about, pyktls.status(sock))


def describe(tls: ssl.SSLSocket) -> str:
    """Version and suite."""
    suite = tls.cipher()
    return f"{tls.version()}, {suite[0] if suite else 'no suite'}"


WAYS = {"openssl": of_openssl, "pyktls": of_pyktls}


def reason(finding: Finding) -> str | None:
    """Why a direction may be missing, as far as this program knows."""
    if finding.refusal is not None:
        return str(finding.refusal)
    support = pyktls.probe().tls
    if not support:
        return f"{support.reason}; {support.remedy}" if support.remedy else support.reason
    if ssl.OPENSSL_VERSION_INFO < (3, 0):
        return f"{ssl.OPENSSL_VERSION} has no kernel TLS"
    if finding.session.startswith("TLSv1.3") and finding.missing() == ["receiving"]:
        return f"this is {ssl.OPENSSL_VERSION}; on Linux 3.2 was the first with that direction"
    return f"{ssl.OPENSSL_VERSION} does not say why; it may be built without kernel TLS"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("host", help="a TLS server of any kind")
    parser.add_argument("--port", type=int, default=443, help="(default: %(default)s)")
    parser.add_argument(
        "--ca", type=pathlib.Path, help="PEM, who signs (default: the system's authorities)"
    )
    parser.add_argument("--tls", choices=VERSIONS, help="no other version")
    parser.add_argument("--way", choices=WAYS, help="only this one")
    return parser.parse_args(arguments)


def main() -> int:
    """Run the program; returns the exit status."""
    options = parse()
    ways = [options.way] if options.way else list(WAYS)
    status = 0
    try:
        for way in ways:
            finding = WAYS[way](options)
            print(*finding.lines(), sep="\n", flush=True)
            if missing := finding.missing():
                status = 1
                text = f"{finding.way}: not in the kernel: {', '.join(missing)}; {reason(finding)}"
                print(f"who_encrypts: {text}", file=sys.stderr, flush=True)
    except (OSError, OverflowError, pyktls.Error) as e:  # ssl's errors are OSErrors
        print(f"who_encrypts: {e}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
