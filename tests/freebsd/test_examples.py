"""Programs of examples/ over FreeBSD's kernel TLS: tests that run on Linux, too.

Not those of handshake_daemon.py: the fake kernel is in one process only.  And not all of the
others: a start of a program takes a while.
"""

from __future__ import annotations

import sys

import pytest

from kernel.test_examples import (  # noqa: F401  (fixtures and tests, by their names)
    data,
    mail_server,
    message,
    pems,
    proxied,
    proxies,
    root,
    running_file_server,
    running_mail_server,
    test_file_server_serves,
    test_mail_from_the_client_to_the_server,
    test_mail_that_is_slipped_in_behind_starttls,
    test_proxy_carries_data_both_ways,
    test_proxy_makes_no_end_of_a_client_that_is_cut_off,
    test_proxy_makes_no_end_of_a_server_that_breaks_off,
    test_proxy_passes_the_end_of_the_client_on,
    test_proxy_passes_the_end_of_the_server_on,
    test_proxy_splices_where_the_kernel_can,
    test_who_encrypts,
)
from support import examples

from .conftest import REAL


@pytest.fixture(autouse=True, scope="module")
def _on_the_fake():
    with pytest.MonkeyPatch.context() as patch:
        if not REAL:
            patch.setenv("PYTHONPATH", str(examples.ROOT / "tests"))
            launcher = [sys.executable, "-W", "error", "-m", "freebsd.fake.launch"]
            patch.setattr(examples, "LAUNCHER", launcher)
        yield
