"""Compile in parallel what layers and training will launch, and estimate the layers: Triton's disk cache keeps all.

CONVNETS_GPU_TARGET names a GPU that is not here, as "sm_90", to compile for one elsewhere.
"""

from __future__ import annotations

import os

from experiments.gpu.step import REHEARSAL, TARGET, earlier, reason, record

os.environ.pop("TRITON_INTERPRET", None)

from experiments.compile_pool import CompilePool  # noqa: E402
from experiments.inspection.reports import Operation  # noqa: E402
from experiments.inspection.work import Job, inspected_or_fault  # noqa: E402
from experiments.precompile.compiling import Outcome, compile_ahead  # noqa: E402
from experiments.precompile.step import Batch, run_batches  # noqa: E402
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


def estimate_layers(target: str) -> None:
    """Compile and record every operation of the layers; one that does not compile does not keep the others."""
    from experiments.gpu.problems import layers

    done = {(each.get("key"), each.get("operation")) for each in earlier("ahead") if each.get("target") == target}
    work = [(key, operation, problem) for key, _, problem in layers() for operation in OPERATIONS]
    work = [each for each in work if each[:2] not in done]
    jobs = [Job(target, problem, operation) for _, operation, problem in work]
    with CompilePool(inspected_or_fault) as pool:
        for number, found in pool.run(jobs):
            key, operation, _ = work[number]
            if isinstance(found, Operation):
                record(**estimate_of(key, target, found))
            else:
                fault = found or "crashes the compiler"
                record(what="no estimate", key=key, operation=operation, target=target, fault=fault)


def compile_training(target: str) -> Outcome:
    """Compile what training steps launch."""
    from experiments.gpu.steps.training import BATCHES, DTYPE, SIDE, network

    batches = [Batch((batch, 3, SIDE, SIDE), training=True) for batch in BATCHES]
    return compile_ahead(target, lambda: run_batches(network(), batches, str(DTYPE).removeprefix("torch.")))


def main() -> int:
    name = target()
    try:
        estimate_layers(name)
        outcome = compile_training(name)
        record(what="training", target=name, kernels=len(outcome.kernels), fault="; ".join(outcome.faults[:1]))
    except Exception as error:  # of the compiler, or a process that ended: later steps then compile by themselves
        record(what="training", target=name, kernels=0, fault=reason(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
