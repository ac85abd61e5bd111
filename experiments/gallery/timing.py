"""How long a computation takes."""

from __future__ import annotations

import statistics
import timeit
from collections.abc import Callable
from typing import Any

from threadpoolctl import threadpool_limits

REPEATS = 21


def seconds(call: Callable[[], Any]) -> float:
    """The median seconds of a call, on one thread of the CPU."""
    with threadpool_limits(1):
        return statistics.median(timeit.repeat(call, number=1, repeat=REPEATS))
