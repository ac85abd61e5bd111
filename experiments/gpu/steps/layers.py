"""Layers of well-known networks, forward and both gradients: held to float64, then timed beside cuDNN."""

from __future__ import annotations

import functools
import sys

from experiments.gpu.step import (
    DEVICE,
    device_is_lost,
    earlier,
    go_on,
    interpret_in_rehearsal,
    reason,
    record,
    rest_of,
    unless_it_hangs,
)

interpret_in_rehearsal()

from experiments.bench.measure import Contender, call_of, fair_conditions  # noqa: E402
from experiments.gpu.problems import layers  # noqa: E402
from experiments.gpu.timing import timed  # noqa: E402
from experiments.tune.timing import copies_of  # noqa: E402
from kernels.problem import OPERATIONS, Problem  # noqa: E402


def measure(what: dict[str, str], problem: Problem, operation: str) -> bool:
    """Record one operation of a layer: how close to float64, and the times of ours and of cuDNN; False if it failed."""
    try:
        reached = Contender("triton", DEVICE).prepare(problem, operation)
        copies = copies_of(problem.tensors(DEVICE), DEVICE)
        times = {
            name: timed([call_of(name, problem, operation, *tensors) for tensors in copies])
            for name in ("triton", "torch")
        }
    except Exception as error:  # a compiler or a driver: the other layers can go on
        record(**what, fault=reason(error))
        return False
    record(
        **what,
        fault="" if reached.close else f"wrong: {reached}",
        error=reached.error,
        allowed=reached.allowed,
        flops=problem.flops,
        bytes=problem.bytes(operation),
        **{f"{name}_seconds": timing.device for name, timing in times.items()},
        **{f"{name}_host_seconds": timing.host for name, timing in times.items()},
        timed=", ".join(sorted({timing.how for timing in times.values()})),
    )
    return True


def main(first: str = "0") -> int:
    """Measure the operations from number `first` on."""
    done = {(each["key"], each["operation"]) for each in earlier("layers") if not each["fault"]}
    work = [(key, layer, problem, operation) for key, layer, problem in layers() for operation in OPERATIONS]
    with fair_conditions(DEVICE):
        for number, (key, layer, problem, operation) in enumerate(work[int(first) :], int(first)):
            if (key, operation) in done:
                continue
            what = {"key": key, "network": layer.network, "operation": operation}
            with unless_it_hangs(functools.partial(record, **what), rest_of("layers", number + 1)):
                measured = measure(what, problem, operation)
            if not measured and device_is_lost():
                return go_on("layers", number + 1)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
