"""Time a GPU without its host: by the calls of a CUDA graph, on inputs that L2 does not hold."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from experiments.gpu.step import DEVICE

REPLAYS = 7
LEAST = 10  # calls in a graph
SECONDS = 2e-3  # that a timing lasts at least: to start a graph takes the host as long as a few small calls

Call = Callable[[], object]


class Timing(NamedTuple):
    """Seconds of a call: of the device, and of the host that launches it; and how the device was timed."""

    device: float
    host: float
    how: str


def timed(calls: Sequence[Call]) -> Timing:
    """Time calls that do the same to different tensors: the median over replays of a graph of all of them.

    Where they cannot be captured, events around the same calls are read, which then wait for the host too.
    """
    for call in calls[:2]:
        call()  # compile, and let cuDNN choose
    host = host_seconds(calls, rounds=5 if DEVICE == "cuda" else 1)
    if DEVICE == "cpu":
        return Timing(host, host, "CPU")
    calls = [calls[number % len(calls)] for number in range(max(LEAST, len(calls)))]
    try:
        graph = capture(calls)
    except RuntimeError as error:
        seconds = [elapsed(lambda: [call() for call in calls]) for _ in range(REPLAYS)]
        return Timing(statistics.median(seconds) / len(calls), host, f"events ({str(error).splitlines()[0][:80]})")
    graph.replay()
    times = math.ceil(SECONDS / max(elapsed(graph.replay), 1e-5))
    seconds = [elapsed(graph.replay, times) for _ in range(REPLAYS)]
    return Timing(statistics.median(seconds) / len(calls), host, "graph")


def capture(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    """Capture calls that have run before, one after another.

    Raises:
        RuntimeError: one cannot be captured.
    """
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def elapsed(run: Call, times: int = 1) -> float:
    """Return the seconds of a run between events, as the mean of `times` runs.

    One more goes before, so that the device is busy while the host starts those that count.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    run()
    start.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / times


def host_seconds(calls: Sequence[Call], rounds: int) -> float:
    """Return the seconds that a call keeps the host, the least of some rounds; the device may lag behind."""
    calls = calls[:10]
    best = float("inf")
    for _ in range(rounds):
        synchronize()
        started = time.perf_counter()
        for call in calls:
            call()
        best = min(best, (time.perf_counter() - started) / len(calls))
    synchronize()
    return best


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
