"""Compiling and reading, in processes of their own: Triton compiles only where it does not interpret."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

from experiments.compile_pool import CompilePool
from experiments.inspection.reports import Launch, Operation
from experiments.inspection.user_kernel import Call, launch
from kernels.problem import Problem
from kernels.targets import TARGETS
from kernels.tile import Tile


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
    tile: Tile | None = None


def inspected(jobs: Sequence[Job]) -> Iterator[Operation]:
    """The reports of jobs, in their order, as they are done.

    Raises:
        ValueError: a kernel does not compile, or does not take its arguments.
    """
    done: dict[int, Operation | str] = {}
    with CompilePool(inspected_or_fault) as pool:
        results = pool.run(jobs)
        for number in range(len(jobs)):
            while number not in done:
                other, result = next(results)
                done[other] = result or f"{described(jobs[other])}: its process ended, perhaps for want of memory"
            found = done.pop(number)
            if isinstance(found, str):
                raise ValueError(found)
            yield found


def inspected_or_fault(job: Job) -> Operation | str:
    """Return the report of a job, or what is wrong."""
    try:
        return inspect(job)
    except ValueError as error:
        return str(error)


def described(job: Job) -> str:
    """Return what a job compiles, in words."""
    return job.work.function if isinstance(job.work, Call) else f"{job.operation} of {job.work}"


def inspect(job: Job) -> Operation:
    """Compile what the job launches, and read it."""
    from kernels import tuning
    from kernels.inspect import compiling_for

    tile = tuning.use_tile(job.tile) if job.tile is not None else nullcontext()
    try:
        with compiling_for(job.target) as compiled, tile:
            if isinstance(job.work, Call):
                launch(job.work)
            else:
                job.work.run(job.operation, *job.work.tensors("meta"))
    except ValueError:
        raise
    except Exception as error:  # of the compiler, which has many kinds
        raise ValueError(f"{described(job)} does not compile for {job.target}: {_reason(error)}") from None
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


def _reason(error: BaseException) -> str:
    """Return the compiler's own words, which stand last, and the line that they are of, which stands first.

    What a function of a kernel is refused for is the cause of what the kernel is.
    """
    while type(error.__cause__) is type(error):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^")]
    if len(lines) < 2:
        return f"{type(error).__name__}: {' '.join(lines)}".rstrip(": ")
    place = f"{lines[0].rstrip(':')}: " if lines[0].startswith("at ") else ""
    return f"{type(error).__name__}: {place}{lines[-1]}"
