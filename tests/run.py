"""Runs the whole suite: on this machine what any kernel can run, the rest on real kernels.

    python -m tests.run [--kernel NAME|PATH ...] [--everything] [--no-host] [--jobs N]
                        [PYTEST ARGUMENTS]

If this machine's own kernel has TLS the kernel tests run here, unless kernels are named; otherwise
in the lab, on each of its kernels, and the tests of a kernel without TLS in the lab's kernel
without the module.  What runs here runs in turn, and the lab beside it: as much at once as there
are processors (--jobs); the output of each comes when it has ended.

Unless --everything is said it is a representative part: every test on the last of the kernels, but
one in LAST_SHARE of its variants (support/sampling.py); each on one of the others as well, with one
in OTHERS_SHARE, but for what differs little from kernel to kernel and takes long in the emulator
(ON_ONE_KERNEL, the peers).

Ends with one line for each part.  A kernel test that was skipped, or a part that ran no test, is a
failure: nothing is left out silently.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import BinaryIO

from tests import lab
from tests.support.own_kernel import has_kernel_tls

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "test-results"
KERNELS = ("6.1", "6.12", "7.3")
WITHOUT_TLS = "6.12-notls"
# Before the fixes of what pyktls.linux.defects looks for, with what of the selftest meets that.
# (test_global.py has also data_steal, at which 6.1.176 stops for good: CVE-2025-38616.)
DEFECTIVE = ("6.1-main", "6.12.107")
DEFECTS = (
    "tests/kernel_defects",
    "tests/kernel/selftests/test_basic.py",
    "tests/kernel/selftests/test_errors.py",
    "tests/kernel/selftests/test_global.py::test_no_pad",
    "tests/kernel/selftests/test_rekey.py",
    "tests/kernel/selftests/test_splice.py",
)
HOST = "this machine"
# Arguments thrown at random, of which tests/unit has many more; the benchmarks; CPython's own tests
# of ssl; what a process may do, by its privileges; the demo, which `make demo` runs on each kernel;
# the programs in examples/.
ON_ONE_KERNEL = tuple(
    f"tests/kernel/test_{name}.py"
    for name in (
        "bad_input",
        "benchmarks",
        "command",
        "cpython_ssl",
        "demo",
        "examples",
        "module_loading",
        "probe",
        "samples",
        "serve",
        "serve_clients",
    )
)
SAME_EVERYWHERE = (
    "tests/unit/test_aio.py",
    "tests/unit/test_command.py",
    "tests/unit/test_samples.py",
    *(f"tests/unit/test_serve_{name}.py" for name in ("command", "files", "rules", "server")),
)
LAST_SHARE, OTHERS_SHARE, DEFECTS_SHARE = 16, 10, 8
# More handshakes than the emulated machine makes in two minutes.
CROWD = "tests/nfs/test_refusals.py::test_two_hundred_at_once"
# Of the mounts in tests/nfs; these kernels know nothing of handshakes in user space.
NFS_SHARE = 3
WITHOUT_UPCALL = ("6.1", "6.1-main")
TIMEOUT = 7200.0
PRINTING = threading.Lock()


@dataclass
class Part:
    """One run of pytest on one kernel."""

    name: str
    kernel: str
    paths: tuple[str, ...]
    skips_allowed: bool = False
    programs: bool = False  # Debian's, which the guest is to have
    status: int | None = None
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    lab_said: str = ""

    @property
    def report(self) -> pathlib.Path:
        return RESULTS / f"{self.name} {self.kernel}.xml".replace("/", "_").replace(" ", "-")

    @property
    def failed(self) -> str:
        """Why this part failed, empty if it did not."""
        if self.status is None:
            return f"the lab could not run it: {self.lab_said}"
        if self.status != 0:
            return f"exit status {self.status}"
        if not self.counts.get("tests"):
            return "no test ran"
        if self.counts["skipped"] and not self.skips_allowed:
            return "kernel tests were skipped"
        return ""

    def run(self, arguments: list[str]) -> None:
        self.report.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", *self.paths, f"--junitxml={self.report}"]
        command += ["-p", "no:cacheprovider", "-q", *arguments]
        say(f"begins: {self.name}, {self.kernel}")
        begin = time.monotonic()
        failure = ""
        with tempfile.TemporaryFile() as output:
            try:
                self.status = self.run_command(command, output)
            except lab.LabError as e:
                failure = f"lab: {e}\n"
                self.lab_said = str(e).partition("\n")[0]
            except Exception as e:  # noqa: BLE001  (the other parts are to go on)
                failure = traceback.format_exc()
                self.lab_said = repr(e)
            output.seek(0)
            text = output.read().decode(errors="replace")
        self.seconds = time.monotonic() - begin
        self.counts = read_counts(self.report)
        say(f"\n==== {self.name}, {self.kernel}\n\n{text}{failure}")

    def run_command(self, command: list[str], output: BinaryIO) -> int:
        if self.kernel == HOST:
            return subprocess.run(
                command, cwd=ROOT, check=False, stdout=output, stderr=subprocess.STDOUT
            ).returncode
        env = {}
        if self.programs:
            env[lab.programs.VARIABLE] = str(lab.programs.obtain().root)
        return lab.run(self.kernel, command, timeout=TIMEOUT, env=env, output=output)


def say(text: str) -> None:
    """Whole texts of several threads, one after the other."""
    with PRINTING:
        print(text, flush=True)


def in_turn(parts: list[Part], arguments: list[str]) -> None:
    for part in parts:
        part.run(arguments)


def read_counts(report: pathlib.Path) -> dict[str, int]:
    """Counts from a JUnit report; expected failures are told apart from skips."""
    counts = {"tests": 0, "passed": 0, "failed": 0, "skipped": 0, "xfailed": 0}
    if not report.exists():
        return counts
    # Our own pytest wrote it.
    for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314
        counts["tests"] += 1
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            counts["failed"] += 1
        elif skipped is None:
            counts["passed"] += 1
        elif skipped.get("type") == "pytest.xfail":
            counts["xfailed"] += 1
        else:
            counts["skipped"] += 1
    return counts


def build_hidden_openssl() -> None:
    """Have it in the cache for tests/kernel/test_hidden_openssl.py: guests cannot make it."""
    done = subprocess.run(
        [sys.executable, "-m", "support.hidden_openssl"],
        cwd=ROOT / "tests",
        check=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        say(f"no kernel test runs with OpenSSL hidden: {done.stderr.strip()}")


def plan(kernels: list[str], *, host: bool, everything: bool) -> list[Part]:
    parts = []
    if host:
        parts.append(Part("unit", HOST, ("tests/unit",), skips_allowed=True))
        # On the fake of its kernel, the unit tests too, without what only Linux has.  Skipped is
        # what is about Linux's calls, and what needs ziglang, where that is not installed.
        # What is the same on every system is left out, unless everything is wanted.
        same = () if everything else tuple(f"--ignore={path}" for path in SAME_EVERYWHERE)
        unit = ("--like-freebsd", "tests/unit", *same)
        parts.append(Part("FreeBSD, unit", HOST, unit, skips_allowed=True))
        parts.append(Part("FreeBSD", HOST, ("tests/freebsd",), skips_allowed=True))
    has_tls = has_kernel_tls()
    chosen = kernels or ([HOST] if has_tls else KERNELS)
    last = chosen[-1]
    left_out = tuple(f"--ignore={path}" for path in ON_ONE_KERNEL)
    # The last one has most to do, and so begins.
    for number, kernel in reversed(list(enumerate(chosen))):
        wanted: tuple[str, ...] = ("tests/kernel",)
        if not everything and kernel == last:
            wanted += (f"--variants={number % LAST_SHARE + 1}/{LAST_SHARE}",)
        elif not everything:
            wanted += (*left_out, f"--tests={number + 1}/{len(chosen) - 1}")
            wanted += (f"--variants={number % OTHERS_SHARE + 1}/{OTHERS_SHARE}",)
        parts.append(Part("kernel", kernel, wanted, programs=kernel != HOST))
    peers = chosen if everything else (last,)
    parts += [Part("peers", kernel, ("tests/interop",)) for kernel in peers]
    # It changes the machine (nfsd, mounts, network namespaces): in the lab alone.
    for kernel in chosen:
        if kernel != HOST and kernel not in WITHOUT_UPCALL and (everything or kernel == last):
            wanted = ("tests/nfs",)
            if not everything:
                wanted += (f"--variants=1/{NFS_SHARE}", f"--deselect={CROWD}")
            parts.append(Part("NFS", kernel, wanted, programs=True))
    absent = WITHOUT_TLS if has_tls or kernels else HOST
    parts.append(Part("kernel without TLS", absent, ("tests/kernel_absent",)))
    if not has_tls and not kernels:
        # Twice: a kernel that never had TLS, and one whose module is missing.
        # The samples fall back as they do here.
        wanted = ("tests/kernel_absent",)
        if not everything:
            wanted += ("--ignore=tests/kernel_absent/test_samples.py",)
        parts.append(Part("kernel without TLS", WITHOUT_TLS, wanted))
    if not kernels:
        wanted = DEFECTS if everything else (*DEFECTS, f"--variants=1/{DEFECTS_SHARE}")
        parts += [Part("kernel with defects", kernel, wanted) for kernel in DEFECTIVE]
    return parts


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kernel", action="append", default=[], metavar="NAME|PATH")
    parser.add_argument("--everything", action="store_true", help="on every kernel")
    parser.add_argument("--no-host", action="store_true", help="only the kernel tests")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N")
    options, arguments = parser.parse_known_args()
    RESULTS.mkdir(exist_ok=True)
    build_hidden_openssl()
    parts = plan(options.kernel, host=not options.no_host, everything=options.everything)
    # This machine's own parts would see each other's connections in the kernel's counters.
    own = [part for part in parts if part.kernel == HOST]
    together = [own, *([part] for part in parts if part.kernel != HOST)]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda some: in_turn(some, arguments), together))
    print(
        f"\n{'part':<20}{'kernel':<14}{'passed':>7}{'failed':>7}{'skipped':>8}{'xfail':>6}{'s':>6}"
    )
    for part in parts:
        c = part.counts
        print(
            f"{part.name:<20}{part.kernel:<14}{c['passed']:>7}{c['failed']:>7}{c['skipped']:>8}"
            f"{c['xfailed']:>6}{part.seconds:>6.0f}  {part.failed or 'ok'}"
        )
    total = {key: sum(p.counts[key] for p in parts) for key in ("passed", "failed", "skipped")}
    print("\n{passed} passed, {failed} failed, {skipped} skipped".format(**total))
    return 1 if any(part.failed for part in parts) else 0


if __name__ == "__main__":
    sys.exit(main())
