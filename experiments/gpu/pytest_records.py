"""A pytest plugin: run a share of the tests, and record failures and counts as they come.

CONVNETS_GPU_SHARE is "number/shares": of the tests in their order every shares-th, from the number-th on. Where a test
leaves the process without the device, another process goes on with the next; CONVNETS_GPU_FIRST says with which.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from experiments.gpu.step import MARK, device_is_lost, unless_it_hangs

_OUTPUT = os.dup(1)  # before pytest captures it
_SHARE, _SHARES = map(int, os.environ.get("CONVNETS_GPU_SHARE", "0/1").split("/"))
_FIRST = int(os.environ.get("CONVNETS_GPU_FIRST", "0"))
_LABEL = f"{_SHARE}+{_FIRST}"
_finished = 0
_lost = False
_failed = False
_counts: Counter[str] = Counter()
_written = 0.0


def _record(**fields: Any) -> None:
    os.write(_OUTPUT, (MARK + json.dumps(fields) + "\n").encode())


def _record_counts() -> None:
    global _written
    _written = time.monotonic()
    _record(what="counts", share=_LABEL, **_counts)


def pytest_collection_modifyitems(items: list[Any]) -> None:
    own = items[_SHARE::_SHARES]
    if not _FIRST:
        _record(what="collected", share=_LABEL, tests=len(own))
    items[:] = own[_FIRST:]


def pytest_runtest_logreport(report: Any) -> None:
    global _failed
    if report.failed:
        _failed = True
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


def _give_up(test: str, fault: str) -> None:
    """Record a test that hangs, and have the process that takes the place of this one start with the next."""
    _counts["failed"] += 1
    _record(what="failure", test=test, when="call", message=fault)
    _record_counts()
    os.environ["CONVNETS_GPU_FIRST"] = str(_FIRST + _finished + 1)
    for number in (1, 2):  # which pytest has captured
        os.dup2(_OUTPUT, number)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: Any) -> Iterator[None]:
    global _finished, _failed, _lost
    _failed = False
    try:
        with unless_it_hangs(functools.partial(_give_up, item.nodeid), sys.orig_argv):
            return (yield)
    finally:
        _finished += 1
        if _failed and device_is_lost():
            _lost = True
            item.session.shouldstop = "the device is lost to this process"


def pytest_sessionfinish(session: Any) -> None:
    _record_counts()
    if _lost:
        environment = os.environ | {"CONVNETS_GPU_FIRST": str(_FIRST + _finished)}
        session.exitstatus = subprocess.run(sys.orig_argv, env=environment, stdout=_OUTPUT).returncode
