"""Which kernel tests are for the lab's guests alone."""

from __future__ import annotations

import os

from lab import programs
from support import cpython_ssl, hidden_openssl

# One unloads the tls module, the other takes the handshakes of this machine's NFS upon itself.
IN_LAB_ALONE = ["test_module_loading.py", "test_nfs_tls.py"]
collect_ignore = [] if "PYKTLS_LAB" in os.environ else [*IN_LAB_ALONE]

# It runs with libraries of Debian's that tests/run.py has the guests see.
if programs.VARIABLE not in os.environ:
    collect_ignore.append("test_openssl_ktls.py")

# Not every Python comes with its own tests.
if not cpython_ssl.are_there():
    collect_ignore.append("test_cpython_ssl.py")

# It is built where there is a network, and from a source that Debian has not of every CPython.
if hidden_openssl.built() is None:
    collect_ignore.append("test_hidden_openssl.py")
