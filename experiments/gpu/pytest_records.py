"""A pytest plugin: run a share of the tests, and record failures and counts as they come.

CONVNETS_GPU_SHARE is "number/shares": of the tests in their order every shares-th, from the number-th on.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from typing import Any

from experiments.gpu.step import MARK

_OUTPUT = os.dup(1)  # before pytest captures it
_SHARE, _SHARES = map(int, os.environ.get("CONVNETS_GPU_SHARE", "0/1").split("/"))
_counts: Counter[str] = Counter()
_written = 0.0


def _record(**fields: Any) -> None:
    os.write(_OUTPUT, (MARK + json.dumps(fields) + "\n").encode())


def _record_counts() -> None:
    global _written
    _written = time.monotonic()
    _record(what="counts", share=_SHARE, **_counts)


def pytest_collection_modifyitems(items: list[Any]) -> None:
    _record(what="collected", share=_SHARE, tests=len(items[_SHARE::_SHARES]))
    items[:] = items[_SHARE::_SHARES]


def pytest_runtest_logreport(report: Any) -> None:
    if report.failed:
        _counts["failed" if report.when == "call" else "errors"] += 1
        crash = getattr(report.longrepr, "reprcrash", None)
        message = (crash.message if crash else str(report.longrepr)).splitlines() or [""]
        _record(what="failure", test=report.nodeid, when=report.when, message=message[0][:300])
    elif report.skipped:
        _counts["skipped"] += 1
    elif report.when == "call":
        _counts["passed"] += 1
    if time.monotonic() - _written > 2.0:
        _record_counts()


def pytest_sessionfinish() -> None:
    _record_counts()
