"""Ends QEMU when the lab ends, even if the lab is killed with SIGKILL.

How this works. The lab starts this small program, and this one starts virtme-ng in a process group
of its own. The lab holds the writing end of a pipe, the lifeline. The kernel closes it when the
lab is gone for whatever reason; then, or as soon as virtme-ng ends by itself, the whole group is
killed and reaped, and the lab's scratch directory removed. (A parent-death signal would not do:
it reaches one process, and QEMU is the great-grandchild of virtme-ng.)

    python keeper.py LIFELINE_FD SCRATCH_DIRECTORY COMMAND...
"""

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys

PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    lifeline, scratch, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    # Orphans of the group become our children, so that we can wait until every one is gone.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    child = subprocess.Popen(command, start_new_session=True)
    try:
        select.select([lifeline, os.pidfd_open(child.pid)], [], [])
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        try:
            while True:
                os.wait()
        except ChildProcessError:
            pass
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
