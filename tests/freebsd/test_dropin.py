"""pyktls.wrap_context over FreeBSD's kernel TLS: the same tests as on Linux."""

from __future__ import annotations

from kernel.test_dropin import *  # noqa: F403

from .conftest import REAL

LEFT_OUT = {
    "FreeBSD has no splice(2)": [r"test_nothing_wrong_reaches_the_wire\[splice_.*"],
    "the portable engine is Linux's": [r"test_.*\[.*(portable|hidden).*"],
}
if not REAL:
    LEFT_OUT["Python's own calls do not come to the fake"] = [r"test_an_alert_is_an_ssl_error"]
