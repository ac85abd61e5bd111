"""The heuristic's tiles beside the tuned ones, both by the estimate of the kernels as they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.tune.compiling import Compilers, Job
from experiments.tune.task import Task
from kernels import heuristics, table
from kernels.heuristics import INTERPRETER


def compare(console: Console, target: str, path: Path, tasks: Sequence[Task], compilers: Compilers) -> None:
    """Print a row for each task whose class is in the table, and how much slower the heuristic is in all.

    Raises:
        ValueError: the table has none of them, or is the interpreter's, of which there are no estimates.
    """
    if target == INTERPRETER:
        raise ValueError("--compare goes by estimates, of which there are none for the interpreter")
    records = table.read(path, target).records
    known = [(task, records[task.product.problem_class]) for task in tasks if task.product.problem_class in records]
    if not known:
        raise ValueError(f"{path} holds none of these problems: run the same command without --compare first")
    jobs = []
    for task, record in known:
        for tile in (heuristics.choose(target, task.product), record.tile):
            jobs.append(Job(task, tile))
    outcomes = compilers.outcomes(jobs)
    shown = Table(
        "operation", "problem", "heuristic", "percent", "tuned", "percent", "limit", "time, heuristic / tuned"
    )
    logs = []
    for (task, _), usual, tuned in zip(known, outcomes[::2], outcomes[1::2], strict=True):
        ratio = usual.seconds / tuned.seconds if not usual.fault and not tuned.fault else math.nan
        logs.append(math.log(ratio))
        shown.add_row(
            task.operation, str(task.problem), str(usual.tile), usual.fault or _percent(usual.fraction),
            str(tuned.tile), tuned.fault or _percent(tuned.fraction), tuned.limit, f"{ratio:.3f}",
        )  # fmt: skip
    console.print(shown)
    sound = [log for log in logs if not math.isnan(log)]
    within = sum(log <= math.log(1.1) for log in sound)
    text = f"{target}: {len(sound)} compared, {len(tasks) - len(known)} not in {path}"
    if sound:
        mean, worst = math.exp(math.fsum(sound) / len(sound)), math.exp(max(sound))
        text += f"; heuristic / tuned: geometric mean {mean:.3f}, worst {worst:.3f}, {within} within 10 %"
    console.print(text, markup=False, soft_wrap=True)


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"
