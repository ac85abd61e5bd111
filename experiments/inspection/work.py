"""Compiling and reading, in processes of their own: Triton compiles only where it does not interpret."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import prod
from multiprocessing import get_context
from typing import Any

from experiments.inspection.reports import Launch, Operation
from experiments.inspection.user_kernel import Call, launch
from kernels.problem import Problem
from kernels.targets import TARGETS


@dataclass(frozen=True)
class Job:
    """An operation to inspect: of a problem, with a tile or the one that would be chosen, or a user's kernel.

    Args:
        group, layer, count: as in reports.Operation.
    """

    target: str
    work: Problem | Call
    operation: str
    group: str = ""
    layer: str = ""
    count: int = 1
    tile: tuple[int, ...] | None = None


def inspected(jobs: Sequence[Job]) -> Iterator[Operation]:
    """The reports of jobs, in their order, as they are done.

    Raises:
        ValueError: a kernel does not compile, or does not take its arguments.
    """
    workers = min(len(jobs), os.cpu_count() or 1)
    with _compiling_environment(), ProcessPoolExecutor(workers, get_context("spawn")) as executor:
        try:
            yield from executor.map(inspect, jobs)
        except BrokenProcessPool as error:
            raise ValueError("a process ended while it compiled: perhaps there is too little memory") from error
        finally:
            executor.shutdown(cancel_futures=True)


def inspect(job: Job) -> Operation:
    """Compile what the job launches, and read it."""
    import torch

    from kernels import tuning
    from kernels.inspect import compiling_for

    torch.set_num_threads(1)
    what = job.work.function if isinstance(job.work, Call) else f"{job.operation} of {job.work}"
    tile = tuning.use_tile(tuning.Tile(*job.tile)) if job.tile is not None else nullcontext()
    try:
        with compiling_for(job.target) as compiled, tile:
            if isinstance(job.work, Call):
                launch(job.work)
            else:
                job.work.run(job.operation, *job.work.tensors("meta"))
    except ValueError:
        raise
    except Exception as error:  # of the compiler, which has many kinds
        raise ValueError(f"{what} does not compile for {job.target}: {_reason(error)}") from None
    products = [_products(kernel) for kernel in compiled]
    main = max(range(len(compiled)), key=products.__getitem__, default=0)
    if isinstance(job.work, Call):
        flops = 2 * sum(products) if job.work.flops is None else job.work.flops
        needed = sum(kernel.tensor_bytes for kernel in compiled) if job.work.bytes is None else job.work.bytes
        bytes_of = [needed] * len(compiled)
    else:
        tensors = job.work.tensors("meta")
        flops, needed = job.work.flops, job.work.bytes(job.operation)
        bytes_of = [kernel.tensor_bytes for kernel in compiled]
        bytes_of[main] -= sum(tensor.nbytes for tensor in tensors) - needed  # no program needs those
    launches = tuple(
        _read(job.target, kernel, flops if place == main else 0, bytes_of[place])
        for place, kernel in enumerate(compiled)
    )
    problem = job.work.path if isinstance(job.work, Call) else str(job.work)
    return Operation(job.group, job.layer, problem, job.operation, job.count, flops, needed, launches)


def _read(target: str, kernel: Any, flops: int, bytes_: int) -> Launch:
    from kernels.estimate import resident_blocks

    estimate, reason, resident = None, "", None
    rates = TARGETS[target].rates
    if rates is not None:
        try:
            resident = resident_blocks(
                rates, kernel.warps, kernel.registers, kernel.shared_memory, kernel.tensor_memory
            )  # fmt: skip
        except ValueError:
            resident = 0
    try:
        estimate = kernel.estimate(flops, bytes_)
    except ValueError as error:
        reason = str(error)
    return Launch(
        kernel.name, kernel.block, prod(kernel.grid), kernel.registers, kernel.warps, kernel.shared_memory,
        kernel.tensor_memory, kernel.spills, resident, flops, bytes_, estimate, reason,
    )  # fmt: skip


def _products(kernel: Any) -> int:
    """Multiply-adds of matrix products of a launch; 0 where they cannot be counted."""
    try:
        return sum(int(loop.trips.sum()) * loop.products for loop in kernel.loops.nest())
    except ValueError:
        return 0


def _reason(error: Exception) -> str:
    """The compiler's own words, which stand last, and the line that they are of, which stands first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^")]
    if len(lines) < 2:
        return f"{type(error).__name__}: {' '.join(lines)}".rstrip(": ")
    place = f"{lines[0].rstrip(':')}: " if lines[0].startswith("at ") else ""
    return f"{type(error).__name__}: {place}{lines[-1]}"


@contextmanager
def _compiling_environment() -> Iterator[None]:
    """Start processes inside that compile: TRITON_INTERPRET is not in their environment."""
    before = os.environ.pop("TRITON_INTERPRET", None)
    try:
        yield
    finally:
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before
