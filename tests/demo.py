"""`make demo`: runs `python -m pyktls demo` here if this kernel has TLS, else in the lab.

python -m tests.demo [--kernel NAME|PATH ...] [ARGUMENTS OF THE DEMO]
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from tests import lab
from tests.support.own_kernel import has_kernel_tls


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kernel", action="append", default=[], metavar="NAME|PATH")
    options, arguments = parser.parse_known_args()
    command = [sys.executable, "-m", "pyktls", "demo", *arguments]
    if not options.kernel and has_kernel_tls():
        return subprocess.run(command, check=False).returncode
    kernels = options.kernel or list(lab.STOCK)
    if not options.kernel:
        print(f"This kernel has no TLS: booting {', '.join(kernels)} in QEMU, one after the other.")
    outcomes = {}
    reasons = {}
    for kernel in kernels:
        print(f"\n==== Linux {kernel}", flush=True)
        try:
            outcomes[kernel] = lab.run(kernel, command)
        except lab.LabError as e:
            print(f"lab: {e}", file=sys.stderr)
            outcomes[kernel] = 125
            reasons[kernel] = f": {str(e).partition(chr(10))[0]}"
    print()
    for kernel, status in outcomes.items():
        said = f"FAILED ({status}){reasons.get(kernel, '')}" if status else "all as it should be"
        print(f"Linux {kernel:<10} {said}")
    return max(outcomes.values())


if __name__ == "__main__":
    sys.exit(main())
