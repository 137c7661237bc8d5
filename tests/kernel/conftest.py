"""Which kernel tests are for the lab's guests alone."""

from __future__ import annotations

import os

from support import cpython_ssl

# It unloads the tls module.
collect_ignore = [] if "PYKTLS_LAB" in os.environ else ["test_module_loading.py"]

# Not every Python comes with its own tests.
if not cpython_ssl.are_there():
    collect_ignore.append("test_cpython_ssl.py")
