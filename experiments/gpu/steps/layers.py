"""Layers of well-known networks, forward and both gradients: held to float64, then timed beside cuDNN."""

from __future__ import annotations

from experiments.gpu.step import DEVICE, earlier, interpret_in_rehearsal, reason, record

interpret_in_rehearsal()

from experiments.bench.measure import Contender, call_of, fair_conditions  # noqa: E402
from experiments.gpu.problems import layers  # noqa: E402
from experiments.gpu.timing import copies_of, timed  # noqa: E402
from kernels.problem import OPERATIONS, Problem  # noqa: E402


def measure(key: str, network: str, problem: Problem, operation: str) -> None:
    """Record one operation of a layer: how close to float64, and the times of ours and of cuDNN."""
    what = {"key": key, "network": network, "operation": operation}
    try:
        reached = Contender("triton", DEVICE).prepare(problem, operation)
        if not reached.close:
            record(**what, fault=f"wrong: {reached}")
            return
        copies = copies_of(problem.tensors(DEVICE))
        times = {
            name: timed([call_of(name, problem, operation, *tensors) for tensors in copies])
            for name in ("triton", "torch")
        }
    except Exception as error:  # a compiler or a driver: the other layers can go on
        record(**what, fault=reason(error))
        return
    record(
        **what,
        fault="",
        error=reached.error,
        allowed=reached.allowed,
        flops=problem.cost.flops,
        bytes=problem.cost.bytes,
        **{f"{name}_seconds": timing.device for name, timing in times.items()},
        **{f"{name}_host_seconds": timing.host for name, timing in times.items()},
        timed=times["triton"].how,
    )


def main() -> int:
    done = {(each["key"], each["operation"]) for each in earlier("layers") if not each["fault"]}
    with fair_conditions(DEVICE):
        for key, layer, problem in layers():
            for operation in OPERATIONS:
                if (key, operation) not in done:
                    measure(key, layer.network, problem, operation)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
