"""Kernels that say yes and do nothing, or half of it.

gVisor answers success to TCP_ULP and to every option of SOL_TLS, and then sends plain text.  A
library loaded before libc plays such kernels (tests/support/fake_kernel.c); what runs under it is a
process of its own, which watches, shakes hands, offloads, and reports what came of it.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

import pyktls
from pyktls import lowlevel
from pyktls.linux import CryptoInfo
from support import tls
from support.tls import TLS_1_2, TLS_1_3

if TYPE_CHECKING:
    import ssl

TESTS = pathlib.Path(__file__).resolve().parents[1]
SECRET = b"not one byte of this may be seen"
NO_TLS = "it has no kernel TLS"
OR_OLD = f"{NO_TLS}, or one before Linux 5.11"
ACCEPTED = "the kernel accepted keys for TLS_RX and"

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="plays a Linux kernel with LD_PRELOAD"
)


@dataclass
class Run:
    """What came of one connection under one kernel."""

    report: dict[str, Any]
    calls: list[list[str]]  # direction and packed struct of each installation


class Kernels:
    """Runs ``main`` below in a process that a fake kernel surrounds, once for each case."""

    def __init__(self, shim: pathlib.Path, logs: pathlib.Path) -> None:
        self.shim = shim
        self.logs = logs
        self.runs: dict[tuple[str, str], Run] = {}

    def __call__(self, kernel: str, version: str) -> Run:
        if (kernel, version) not in self.runs:
            self.runs[kernel, version] = self._run(kernel, version)
        return self.runs[kernel, version]

    def _run(self, kernel: str, version: str) -> Run:
        log = self.logs / f"{kernel} {version}"
        environment = {
            **os.environ,
            "LD_PRELOAD": str(self.shim),
            "FAKE_KERNEL": kernel,
            "FAKE_KERNEL_LOG": str(log),
            "PYTHONPATH": str(TESTS),
        }
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-W", "error", __file__, version],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        calls = log.read_text().splitlines() if log.exists() else []
        return Run(json.loads(done.stdout), [line.split() for line in calls])


@pytest.fixture(scope="module")
def under(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    program = shutil.which(compiler) or shutil.which("cc") or shutil.which("gcc")
    assert program, "a C compiler is needed"
    directory = tmp_path_factory.mktemp("fake_kernel")
    library = directory / "fake_kernel.so"
    source = TESTS / "support" / "fake_kernel.c"
    command = [program, "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"]
    subprocess.run([*command, str(library), str(source), "-ldl"], check=True)
    return Kernels(library, directory)


def main(version: ssl.TLSVersion) -> dict[str, Any]:
    """One connection under the fake kernel.  The report is what the tests look at."""
    client, server = tls.contexts(version)
    report: dict[str, Any] = {}
    with tls.connect(client, server) as pair:
        pair.exchange()
        session = pyktls.extract(pair.client)
        report["expected"] = {
            direction: [keys.key.hex(), keys.iv.hex(), keys.sequence]
            for direction, keys in (("tx", session.tx), ("rx", session.rx))
        }
        report["suite"] = session.cipher.iana_id
        try:
            sock = pyktls.offload(pair.client)
        except pyktls.Error as e:
            report["error"] = [type(e).__name__, str(e)]
        else:
            report["error"] = None
            report["detached"] = pair.client.fileno() == -1
            report["session"] = repr(sock)
            sock._disown()  # nothing may go through it: the kernel is not real
            return report

        # The peer looks at the wire itself: data that goes on now has to be in TLS records.
        before = tls.unread_bytes(pair.server)
        report["leaked at once"] = before
        pair.client.sendall(SECRET * 100)
        record = tls.raw_read_record(pair.server)
        report["record type"] = record[0]
        report["plain"] = SECRET[:8] in record
        # It was taken off the wire; put it back for OpenSSL.
        tls.deliver(pair.client, pair.server, record)
        report["received"] = tls.recv_exactly(pair.server, len(SECRET) * 100) == SECRET * 100
        tls.send_and_receive(pair.server, pair.client, b"and back")
        report["extractable"] = repr(pyktls.extract(pair.client))
    return report


VERSIONS = [pytest.param("TLSv1_2", id="1.2"), pytest.param("TLSv1_3", id="1.3")]
NUMBERS = {"TLSv1_2": "0x0303", "TLSv1_3": "0x0304"}


def still_encrypted(report: dict[str, Any]) -> None:
    """The connection goes on in OpenSSL as if nothing had been asked."""
    assert report["leaked at once"] == 0
    assert report["record type"] == 23
    assert report["plain"] is False
    assert report["received"] is True
    assert report["extractable"].startswith("<Session ")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("kernel", "text"),
    [
        ("gvisor", f"the kernel accepted TCP_ULP and then denied knowing it: {NO_TLS}"),
        ("nothing", f"the kernel accepted TCP_ULP and attached nothing: {NO_TLS}"),
        ("ulp", f"{ACCEPTED} then denied having them: {OR_OLD}"),
        ("cipher", f"{ACCEPTED} reports version VERSION, cipher 25443 instead: {OR_OLD}"),
        ("version", f"{ACCEPTED} reports version 0x0202, cipher CIPHER instead: {OR_OLD}"),
        ("short", f"{ACCEPTED} then denied having them: {OR_OLD}"),
        ("tx_lies", f"{ACCEPTED} then denied having them: {OR_OLD}".replace("RX", "TX")),
    ],
    ids=["gvisor", "nothing", "ulp", "cipher", "version", "short", "tx_lies"],
)
def test_kernel_that_lies_from_the_start(
    under: Kernels, kernel: str, text: str, version: str
) -> None:
    report = under(kernel, version).report
    text = text.replace("VERSION", NUMBERS[version]).replace("CIPHER", "52")
    assert report["error"] == ["Unavailable", text]
    still_encrypted(report)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kernel", ["gvisor", "nothing", "ulp", "cipher", "tx_lies"])
def test_no_key_is_given_to_a_kernel_that_lies(under: Kernels, kernel: str, version: str) -> None:
    assert under(kernel, version).calls == []


@pytest.mark.parametrize("version", VERSIONS)
def test_sending_keys_fail_after_receiving_keys_were_taken(under: Kernels, version: str) -> None:
    report = under("tx_fails", version).report
    reason = "[Errno 22] setsockopt(SOL_TLS, TLS_TX): Invalid argument"
    text = f"the kernel took the rx keys and refused the others ({reason}): "
    text += "the connection is dead, close it"
    assert report["error"] == ["HandoffRefused", text]
    assert report["leaked at once"] == 0
    assert report["plain"] is False


@pytest.mark.parametrize("version", VERSIONS)
def test_honest_kernel_is_given_exactly_the_sessions_keys_receiving_first(
    under: Kernels, version: str
) -> None:
    run = under("honest", version)
    report, lines = run.report, run.calls
    assert report["error"] is None
    assert report["detached"] is True
    assert [direction for direction, _ in lines] == ["rx", "tx"]
    for direction, packed in lines:
        key, iv, sequence = report["expected"][direction]
        info = CryptoInfo.unpack(bytes.fromhex(packed))
        assert info.version == int(NUMBERS[version], 16)
        assert info.cipher_type == lowlevel.lib.TLS_CIPHER_AES_GCM_256
        assert info.key.hex() == key
        assert (info.salt + info.iv).hex().startswith(iv)
        assert info.rec_seq == sequence > 0
        if version == "TLSv1_2":
            assert any(info.iv)
    nonces = {CryptoInfo.unpack(bytes.fromhex(packed)).iv for _, packed in lines}
    assert len(nonces) == 2


if __name__ == "__main__":
    print(json.dumps(main({"TLSv1_2": TLS_1_2, "TLSv1_3": TLS_1_3}[sys.argv[1]])))
