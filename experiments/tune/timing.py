"""Candidates held to float64, then timed against each other: on a GPU, or interpreted on the CPU."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.closeness import closeness
from experiments.tune.task import Task
from kernels import reference, tuning
from kernels.problem import Problem
from kernels.tile import Tile
from kernels.tuning import use_tile

MARGIN = 0.98  # of the heuristic's time, that another tile must stay below to be chosen instead
ROUNDS = 5
PRUNED = 4  # candidates that are left after the first round
MILLISECONDS = 40  # for which a round repeats a call on a GPU; half of that to warm up
COPIES = 64  # of the tensors, at most


class Timed(NamedTuple):
    """The winner, the median seconds of every tile that is right and was timed to the end, and what is wrong."""

    winner: Tile
    seconds: dict[Tile, float]
    wrong: dict[Tile, str]


def fastest(
    tiles: Sequence[Tile], check: Callable[[Tile], str], seconds: Callable[[Tile], float], rounds: int = ROUNDS
) -> Timed | None:
    """The fastest of the tiles that are right, the first of which is the heuristic's and wins unless clearly beaten.

    Args:
        check: what is wrong with the result of a tile, "" where nothing is.
        seconds: of one run with a tile.
        rounds: in each, every tile runs once, in turning order, so that what else the machine does cancels.

    Returns:
        None where all tiles are wrong.
    """
    faults = {tile: check(tile) for tile in tiles}
    wrong = {tile: fault for tile, fault in faults.items() if fault}
    right = [tile for tile in tiles if tile not in wrong]
    if not right:
        return None
    times: dict[Tile, list[float]] = {tile: [seconds(tile)] for tile in right}
    usual = tiles[0] if tiles[0] in times else None
    best = sorted(right, key=lambda tile: times[tile][0])[:PRUNED]
    left = [tile for tile in right if tile in best or tile == usual]
    for turn in range(1, rounds):
        for tile in left[:: -1 if turn % 2 else 1]:
            times[tile].append(seconds(tile))
    medians = {tile: statistics.median(times[tile]) for tile in left}
    winner = min(left, key=lambda tile: medians[tile])
    if usual is not None and medians[winner] > MARGIN * medians[usual]:
        winner = usual
    return Timed(winner, medians, wrong)


class Case:
    """An operation of a problem on a device: its tensors, what it should give, and how long it takes."""

    def __init__(self, task: Task, device: str) -> None:
        problem, operation = task.problem, task.operation
        self._problem, self._operation, self._device = problem, operation, device
        self._tensors = problem.tensors(device)
        exact = tuple(t.double() for t in self._tensors)
        factors = (_truncated(t) for t in exact) if device == "cuda" and uses_tf32(problem) else self._tensors
        self._torchs = _expected(problem, operation, *factors).to(problem.dtype)
        self._truth = _expected(problem, operation, *exact)
        self._magnitude = _expected(problem, operation, *(t.abs() for t in exact))
        self._inputs = itertools.cycle(copies_of(self._tensors, device))

    def check(self, tile: Tile) -> str:
        """What is wrong with the result of a tile; "" where it is as close to the truth as the rule of tests asks."""
        try:
            with use_tile(tile):
                result = self._problem.run(self._operation, *self._tensors)
            reached = closeness(result, self._torchs, self._truth, self._magnitude)
        except Exception as error:  # of the compiler or the driver; the other candidates can go on
            return f"failed: {next(iter(str(error).splitlines()), type(error).__name__)[:200]}"
        return "" if reached.close else f"wrong: {reached}"

    def seconds(self, tile: Tile) -> float:
        """Of a run with a tile that was checked before, and so is compiled."""
        with use_tile(tile):
            if self._device != "cuda":
                started = time.perf_counter()
                self._run()
                return time.perf_counter() - started
            from triton.testing import do_bench

            median = do_bench(self._run, warmup=MILLISECONDS // 2, rep=MILLISECONDS, return_mode="median")
            return float(median) / 1e3

    def _run(self) -> None:
        self._problem.run(self._operation, *next(self._inputs))


def copies_of(tensors: Sequence[Tensor], device: str) -> list[tuple[Tensor, ...]]:
    """Return the tensors, on a GPU as often as it takes to fill its L2 cache, so that none is found there."""
    if device != "cuda":
        return [tuple(tensors)]
    cache = torch.cuda.get_device_properties().L2_cache_size
    size = sum(t.numel() * t.element_size() for t in tensors)
    copies = min(COPIES, math.ceil(cache / max(1, size)) + 1)
    return [tuple(tensors), *(tuple(t.clone() for t in tensors) for _ in range(copies - 1))]


def _expected(problem: Problem, operation: str, x: Tensor, weight: Tensor, dy: Tensor) -> Tensor:
    """What PyTorch gives, in the dtype of the tensors; float32 as IEEE has it."""
    window = problem.window
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        if operation == "forward":
            return reference.forward(x, weight, None, None, window, False)
        if operation == "input_gradient":
            return reference.transpose(dy, weight, None, None, window, problem.size, False)
        return reference.weight_gradient(x, dy, None, window, False)[0]


def uses_tf32(problem: Problem) -> bool:
    """Whether float32 is multiplied as TF32 on a GPU that has it, by torch's settings."""
    rule: Any = torch.backends.cuda.matmul if problem.window.axes == 0 else torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return problem.dtype == torch.float32 and tuning.has_tf32() and rule.fp32_precision == "tf32"


def _truncated(t: Tensor) -> Tensor:
    """float64 numbers as TF32 has them, with 10 bits of mantissa: what is lost so is no fault of a tile."""
    return (t.float().view(torch.int32) & ~0x1FFF).view(torch.float32).double()
