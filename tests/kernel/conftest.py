"""Which kernel tests are for the lab's guests alone."""

from __future__ import annotations

import os

# It unloads the tls module.
collect_ignore = [] if "PYKTLS_LAB" in os.environ else ["test_module_loading.py"]
