"""Tune the operations where the clock is farthest above the estimate: the best few are held to float64, and timed."""

from __future__ import annotations

import sys

from experiments.gpu.step import (
    REHEARSAL,
    device_is_lost,
    earlier,
    go_on,
    interpret_in_rehearsal,
    reason,
    record,
)

interpret_in_rehearsal()

from experiments.gpu.problems import layers  # noqa: E402
from experiments.tune.compiling import Compilers  # noqa: E402
from experiments.tune.search import NotTuned, measured_choice  # noqa: E402
from experiments.tune.source import source_of  # noqa: E402
from experiments.tune.task import Task  # noqa: E402
from kernels import table, tuning  # noqa: E402

MOST = 3 if REHEARSAL else 14  # candidates that are compiled
OPERATIONS = 1 if REHEARSAL else 12


def disagreements() -> list[tuple[float, str, str]]:
    """Return measured over estimated, key and operation of every layer that has both, the largest first."""
    estimates = {
        (each["key"], each["operation"]): each["estimated_seconds"]
        for each in earlier("ahead")
        if each["what"] == "estimate"
    }
    found = []
    for each in earlier("layers"):
        estimate = estimates.get((each["key"], each["operation"]))
        if not each["fault"] and estimate:
            found.append((each["triton_seconds"] / estimate, each["key"], each["operation"]))
    return sorted(found, reverse=True)


def tune(task: Task, compilers: Compilers, what: dict[str, object], source: dict[str, object]) -> None:
    """Record the fastest tile of an operation."""
    try:
        choice = measured_choice(task, compilers, MOST)
    except Exception as error:  # none can be used, or a driver: the other operations can go on
        record(**what, fault=f"not tuned: {error}" if isinstance(error, NotTuned) else reason(error))
        return
    entry = table.Record(f"{task.operation}: {task.problem}", task.product, choice.tile, source | choice.figures)
    wrong = [f"{tile}: {fault}" for tile, fault in choice.wrong.items()]
    record(**what, fault="; ".join(wrong), figures=choice.figures, tile=str(choice.tile), entry=table.entry(entry))


def main(first: str = "0") -> int:
    """Tune from the operation of number `first` on."""
    problems = {key: problem for key, _, problem in layers()}
    target = tuning.target()
    source = source_of(target, measured=True)
    done = {(each["key"], each["operation"]) for each in earlier("tuning")}
    with Compilers() as compilers:
        for number, (ratio, key, operation) in enumerate(disagreements()[int(first) : OPERATIONS], int(first)):
            if (key, operation) in done:
                continue
            what = {"key": key, "operation": operation, "measured_over_estimated": ratio}
            tune(Task.of(target, problems[key], operation), compilers, what, source)
            if device_is_lost():
                return go_on("tuning", number + 1)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
