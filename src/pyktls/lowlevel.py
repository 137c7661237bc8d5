"""The compiled layer itself: ``ffi`` and ``lib`` of the cffi extension.

For scripts that want the structs of ``linux/tls.h`` in their own hands.  ``lib`` holds the
constants by their C names, ``setsockopt`` and ``getsockopt`` (both return -1 on failure, with the
error in ``ffi.errno``) and the functions of ``csrc/kernel.h``; ``ffi.new`` makes the structs.

Nothing here checks anything: what the kernel accepts is installed.
"""

from pyktls._kernel import ffi, lib

__all__ = ["ffi", "lib"]
