"""Candidates compiled in processes of their own, and what the machine code of each promises."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.compile_pool import CompilePool
from experiments.gpu.step import reason
from experiments.tune.task import Task
from kernels import conv, model
from kernels.candidates import order
from kernels.estimate import Estimate
from kernels.inspect import Compiled, compiling_for
from kernels.targets import TARGETS
from kernels.tile import Product, Tile
from kernels.tuning import use_tile


@dataclass(frozen=True)
class Job:
    """A tile to compile for a task; `fused`, with all that can be fused into it."""

    task: Task
    tile: Tile
    fused: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Args:
        seconds: the estimate for all launches of the operation; infinite where there is a fault. Where it is only to be
            compiled, or no rates are known, by the model.
        cycles: the same without the traffic that sets the time of small products: what decides between equals.
        fraction: of the tensor cores' peak; None without matrix products.
        limit: what sets the time.
        fault: why the tile cannot be used; "" where it can.
    """

    tile: Tile
    seconds: float = float("inf")
    cycles: float = float("inf")
    fraction: float | None = None
    limit: str = ""
    fault: str = ""


class Compilers(CompilePool[Job, Outcome]):
    """Processes that compile and estimate, to be used in a `with` block."""

    def __init__(self, processes: int | None = None) -> None:
        super().__init__(work, processes)

    def outcomes(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Return the outcomes of jobs, in their order."""
        found = dict(self.run(jobs))
        return [found[number] or Outcome(job.tile, fault="crashes the compiler") for number, job in enumerate(jobs)]


def work(job: Job) -> Outcome:
    """Compile and estimate; any error is the tile's fault."""
    try:
        target = job.task.target
        with compiling_for(target) as kernels, use_tile(job.tile):
            _launch(job)
        if fault := _fault(target, kernels):
            return Outcome(job.tile, fault=fault)
        if job.fused or TARGETS[target].rates is None:
            seconds = model.seconds(model.rates_of(target), job.task.product, job.tile)
            return Outcome(job.tile, seconds, seconds)
        return _estimated(job, kernels)
    except Exception as error:  # the compiler has many; the other candidates can go on
        if os.environ.get("CONVNETS_DEBUG") == "1":
            raise
        return Outcome(job.tile, fault=reason(error))


def _launch(job: Job) -> None:
    problem, operation = job.task.problem, job.task.operation
    x, weight, dy = problem.tensors("meta")
    if not job.fused:
        problem.run(operation, x, weight, dy)
    elif operation == "forward":
        conv.forward(x, weight, weight.new_empty(len(weight)), dy, problem.window, True)
    elif operation == "input_gradient":
        conv.transpose(dy, weight, x.new_empty(problem.channels), dy, problem.window, problem.size, True)
    else:
        conv.weight_gradient(x, dy, dy, problem.window, True)


def _fault(target: str, kernels: Sequence[Compiled]) -> str:
    limit = TARGETS[target].shared_memory
    for kernel in kernels:
        if kernel.spills:
            return "spills registers"
        if kernel.shared_memory > limit:
            return f"needs {kernel.shared_memory} bytes of shared memory, the target has {limit}"
    return ""


def _estimated(job: Job, kernels: Sequence[Compiled]) -> Outcome:
    """The first launch does the work and the traffic that are needed; others add up its shares."""
    problem = job.task.problem
    first, *rest = kernels
    needed = problem.bytes(job.task.operation)
    found = [_seconds(job, first, problem.flops, needed), _seconds(job, first, problem.flops, 0)]
    extra = sum(_seconds(job, kernel, 0, 0)[0] + model.LAUNCH for kernel in rest)
    (seconds, estimate), (cycles, _) = found
    seconds, cycles = seconds + extra, cycles + extra
    whole = sum(kernel.estimate(0, kernel.tensor_bytes).seconds for kernel in rest) + estimate.seconds
    fraction = None if estimate.fraction is None else estimate.fraction * estimate.seconds / whole
    return Outcome(job.tile, seconds, cycles, fraction, estimate.limit)


def _seconds(job: Job, kernel: Compiled, flops: int, compulsory_bytes: int) -> tuple[float, Estimate]:
    """The estimate of a launch, longer where its pipeline is too short to hide the latency of loads."""
    estimate = kernel.estimate(flops, compulsory_bytes)
    rates = model.rates_of(job.task.target)
    main = estimate.loops[estimate.main]
    together = min(estimate.resident, estimate.busiest)
    step = main.cycles[main.limit]
    waiting = model.starvation(rates, job.tile.stages, together, step) if main.products and step else 1.0
    traffic = compulsory_bytes / rates.dram_bytes
    return max(estimate.seconds, traffic, kernel.estimate(flops, 0).seconds * waiting), estimate


def ranked(product: Product, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return those without a fault, the fastest first, equals in the order of candidates."""
    sound = [outcome for outcome in outcomes if not outcome.fault]
    return sorted(sound, key=lambda o: (o.seconds, o.cycles, order(product, o.tile)))
