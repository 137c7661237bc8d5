"""Runs CPython's own tests of the ssl module with every context wrapped by pyktls.

    python cpython_test_ssl.py CLASS[.TEST] ...

Writes a JSON object to standard output: ``results``, each test's name with ``ok``, ``skipped`` or
the text of its failure; ``switched`` and ``stayed``, how many connections the kernel took and how
many it did not; ``slowest``.  Run by tests that compare this with their list of differences.
"""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import sys
import time
import unittest

import pyktls

COUNTS = {"switched": 0, "stayed": 0}


def wrap_all_contexts() -> None:
    """What pyktls.wrap_context does to one context, for all that will be made."""
    pyktls.watch(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))  # which makes a context, the first time
    make, switch = ssl.SSLContext.__new__, pyktls.SSLSocket._switch

    def watched(cls, *arguments, **keywords):
        context = make(cls, *arguments, **keywords)
        with contextlib.suppress(pyktls.Error):
            pyktls.watch(context)
        return context

    def counted(sock):
        switch(sock)
        COUNTS["switched" if sock._layer is not None else "stayed"] += 1

    ssl.SSLContext.__new__ = watched
    ssl.SSLContext.sslsocket_class = pyktls.SSLSocket
    pyktls.SSLSocket._switch = counted


class Results(unittest.TestResult):
    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    def name(self, test: unittest.TestCase) -> str:
        return ".".join(test.id().rsplit(".", 2)[1:])

    def startTest(self, test) -> None:  # noqa: N802
        super().startTest(test)
        self.began = time.monotonic()

    def stopTest(self, test) -> None:  # noqa: N802
        super().stopTest(test)
        self.seconds[self.name(test)] = round(time.monotonic() - self.began, 1)

    def addSuccess(self, test) -> None:  # noqa: N802
        self.found.setdefault(self.name(test), "ok")

    def addSkip(self, test, reason) -> None:  # noqa: N802
        self.found[self.name(test)] = f"skipped: {reason}"

    def addFailure(self, test, error) -> None:  # noqa: N802
        self.found[self.name(test)] = self._exc_info_to_string(error, test)

    addError = addFailure  # noqa: N815

    def addSubTest(self, test, subtest, error) -> None:  # noqa: N802, ARG002
        if error is not None:
            self.addFailure(test, error)


def main() -> None:
    wrap_all_contexts()
    from test import test_ssl  # noqa: PLC0415

    output = os.dup(1)
    os.dup2(2, 1)  # the tests print
    test_ssl.setUpModule()
    results = Results()
    unittest.defaultTestLoader.loadTestsFromNames(sys.argv[1:], test_ssl).run(results)
    unittest.doModuleCleanups()
    slowest = sorted(results.seconds.items(), key=lambda item: -item[1])[:10]
    with os.fdopen(output, "w", encoding="utf-8") as file:
        json.dump({"results": results.found, **COUNTS, "slowest": dict(slowest)}, file)


if __name__ == "__main__":
    main()
