"""How long a computation takes."""

from __future__ import annotations

import timeit
from collections.abc import Callable
from typing import Any

from threadpoolctl import threadpool_limits

REPEATS = 21


def seconds(call: Callable[[], Any]) -> float:
    """The least seconds of a call, on one thread of the CPU: what else the machine does only adds."""
    with threadpool_limits(1):
        return min(timeit.repeat(call, number=1, repeat=REPEATS))
