"""Tune the operations where the clock is farthest above the estimate: the best few are held to float64, and timed."""

from __future__ import annotations

import os

from experiments.gpu.step import REHEARSAL, earlier, interpret_in_rehearsal, record

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


def main() -> int:
    problems = {key: problem for key, _, problem in layers()}
    target = tuning.target()
    source = source_of(target, measured=True)
    done = {(each["key"], each["operation"]) for each in earlier("tuning")}
    with Compilers(os.cpu_count() or 1) as compilers:
        for ratio, key, operation in disagreements()[:OPERATIONS]:
            if (key, operation) in done:
                continue
            task = Task.of(target, problems[key], operation)
            what = {"key": key, "operation": operation, "measured_over_estimated": ratio}
            try:
                choice = measured_choice(task, compilers, MOST)
            except NotTuned as error:
                record(**what, fault=f"not tuned: {error}")
                continue
            entry = table.Record(f"{operation}: {task.problem}", task.product, choice.tile, source | choice.figures)
            wrong = [f"{tile}: {fault}" for tile, fault in choice.wrong.items()]
            record(
                **what, fault="; ".join(wrong), figures=choice.figures, tile=str(choice.tile), entry=table.entry(entry)
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
