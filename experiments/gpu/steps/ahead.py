"""Compile in parallel what layers and training will launch, and estimate the layers: Triton's disk cache keeps all.

CONVNETS_GPU_TARGET names a GPU that is not here, as "sm_90", to compile for one elsewhere.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any
from unittest import mock

from experiments.gpu.step import REHEARSAL, TARGET, cores, earlier, reason, record

os.environ.pop("TRITON_INTERPRET", None)

from experiments.gpu.stub import stubbed  # noqa: E402
from experiments.inspection.reports import Operation  # noqa: E402
from experiments.inspection.work import Job, inspect  # noqa: E402
from kernels.problem import OPERATIONS  # noqa: E402


def target() -> str:
    """Return the GPU to compile for: the one named, that of a rehearsal, or the one here."""
    named = os.environ.get("CONVNETS_GPU_TARGET") or (TARGET if REHEARSAL else None)
    if named is None:
        from kernels import tuning

        named = tuning.target()
    return named


def estimate_of(key: str, target: str, found: Operation) -> dict[str, object]:
    """Return the record of an operation: what its launches are estimated at, and what limits the longest."""
    longest = found.longest
    estimate = longest.estimate if longest is not None else None
    return {
        "what": "estimate",
        "key": key,
        "operation": found.operation,
        "target": target,
        "estimated_seconds": found.seconds,
        "flops": found.flops,
        "bytes": found.bytes,
        "limit": estimate.limit if estimate is not None else None,
        "launches": [
            {
                "kernel": launch.name.strip("_"), "block": launch.block, "programs": launch.programs,
                "warps": launch.warps, "registers": launch.registers, "spills": launch.spills,
                "shared_memory": launch.shared_memory, "resident": launch.resident,
                "estimated_seconds": launch.estimate.seconds if launch.estimate is not None else None,
                "limit": launch.estimate.limit if launch.estimate is not None else launch.reason,
                "cycles": launch.estimate.loops[launch.estimate.main].cycles if launch.estimate is not None else {},
            }
            for launch in found.launches
        ],
    }  # fmt: skip


def estimate_layers(target: str, pool: Executor) -> None:
    """Compile and record every operation of the layers; one that does not compile does not keep the others."""
    from experiments.gpu.problems import layers

    done = {(each.get("key"), each.get("operation")) for each in earlier("ahead") if each.get("target") == target}
    work = [(key, operation, problem) for key, _, problem in layers() for operation in OPERATIONS]
    work = [each for each in work if each[:2] not in done]
    jobs = [Job(target, problem, operation) for _, operation, problem in work]
    for (key, operation, _), found in zip(work, pool.map(inspected_or_fault, jobs), strict=True):
        if isinstance(found, str):
            record(what="no estimate", key=key, operation=operation, target=target, fault=found)
        else:
            record(**estimate_of(key, target, found))


def inspected_or_fault(job: Job) -> Operation | str:
    """Return the report of a job, or what is wrong."""
    try:
        return inspect(job)
    except ValueError as error:
        return str(error)


def specialisation(kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any]) -> str:
    """Return what Triton compiles a kernel anew for: types, integers that are 1 or multiples of 16, constants."""

    def kind(value: Any) -> object:
        if isinstance(value, tuple):
            return tuple(map(kind, value))
        if isinstance(value, int):
            return value if value == 1 else value % 16 == 0
        return getattr(value, "dtype", value is None)

    return repr((kernel.fn.__name__, kind(arguments), sorted(constants.items(), key=lambda item: item[0])))


@contextmanager
def compiling_share(target: str, share: int, shares: int) -> Iterator[list[str]]:
    """Compile a share of what is launched, for `target`, and launch nothing; gives what that is, each kernel once.

    With each kernel its launcher is built, which before Triton 3.7 is a run of gcc for each signature.
    """
    from kernels import backend

    compiled: list[str] = []
    with stubbed(target):

        def compile_or_skip(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
            key = specialisation(kernel, arguments, constants)
            if 0 not in grid and zlib.crc32(key.encode()) % shares == share and key not in compiled:
                compiled.append(key)
                kernel.warmup(*arguments, grid=grid, **backend.OPTIONS | constants)._init_handles()

        with mock.patch.object(backend, "launch", compile_or_skip):
            yield compiled


def compile_training(target: str, batch: int, share: int, shares: int) -> int:
    """Compile a share of the kernels of a training step on CPU tensors that hold nothing; return their number."""
    import torch

    import kernels
    from experiments.gpu.steps.training import network, prepared, step_of

    torch.set_num_threads(1)
    with compiling_share(target, share, shares) as compiled, kernels.use_backend("triton"):
        step_of(prepared(network(), "cpu"), batch, "cpu")()
    return len(compiled)


def main() -> int:
    from experiments.gpu.steps.training import BATCHES

    name, shares = target(), cores()
    work = [(name, batch, share, shares) for batch in BATCHES for share in range(shares)]
    try:
        with ProcessPoolExecutor(shares, get_context("spawn")) as pool:
            estimate_layers(name, pool)
            kernels = sum(pool.map(compile_training, *zip(*work, strict=True)))
        record(what="training", target=name, kernels=kernels, fault="")
    except Exception as error:  # of the compiler, or a process that ended: later steps then compile by themselves
        record(what="training", target=name, kernels=0, fault=reason(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
