"""`convnets bench` itself: which tasks, which contenders, round by round."""

from __future__ import annotations

import argparse
import fnmatch
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Protocol

import torch
import triton
from rich.console import Console

from experiments.bench import IMPLEMENTATIONS
from experiments.bench.measure import Contender, call_of, fair_conditions
from experiments.bench.report import WIDTH, print_tables
from experiments.bench.results import CsvFile, Result, Task
from experiments.bench.revisions import ROOT, Worker, checked_out, described, resolved
from experiments.closeness import Closeness
from experiments.convolutions import ARCHITECTURES, convolutions_of
from experiments.interruption import termination_interrupts
from experiments.precompile.compiling import compile_or_warn
from experiments.progress import progress
from kernels import tuning
from kernels.backend import INTERPRETING
from kernels.problem import Problem

BATCH = {"cpu": 1, "cuda": 32}
DTYPE = {"cpu": "float32", "cuda": "float16"}
REPEATS = {"cpu": 3, "cuda": 5}
PAIRED_REPEATS = 10  # of two revisions: the same code twice differed by 2 % a layer (one deviation), by 9 % at 3 rounds


class Runs(Protocol):
    """What runs one implementation: `measure.Contender` here, or `revisions.Worker` in a process of its own."""

    def prepare(self, problem: Problem, operation: str) -> Closeness: ...

    def seconds(self) -> float: ...


def run(options: argparse.Namespace) -> int:
    """Measure what the options ask for and report it; the exit code is 1 if anything was at fault.

    Raises:
        ValueError: whatever the user can put right, before anything is measured.
        KeyboardInterrupt: when interrupted, after the report of what was measured until then.
    """
    device = "cpu" if INTERPRETING else "cuda"
    options.batch = options.batch or BATCH[device]
    options.dtype = options.dtype or DTYPE[device]
    options.repeats = options.repeats or (PAIRED_REPEATS if options.against is not None else REPEATS[device])
    tasks = tasks_of(options)
    rows: list[list[Result]] = []
    interrupted = False
    with ExitStack() as stack:
        stack.enter_context(fair_conditions(device))
        stack.enter_context(termination_interrupts())
        contenders, revisions = contenders_of(options, device, stack)
        provenance = provenance_of(device)
        rows_file = CsvFile(options.csv, provenance) if options.csv is not None else None
        console = Console(width=None if sys.stdout.isatty() else WIDTH)
        console.print(headline(options, provenance), markup=False, highlight=False, soft_wrap=True)
        if options.compile_ahead == "true" and device == "cuda" and ("triton" in contenders or options.against):
            compile_tasks(tasks, tuning.target())
        try:
            for row in measured(tasks, contenders, options.repeats):
                if rows_file is not None:
                    rows_file.add(row, revisions)
                rows.append(row)
        except KeyboardInterrupt:
            interrupted = True
    if rows:
        names = list(contenders)
        print_tables(console, rows, names, rates=device != "cpu")
        if options.plot is not None:
            from experiments.bench.figure import draw  # takes a second to import

            draw(options.plot, rows, names, headline(options, provenance))
    if rows_file is not None:
        rows_file.close()
    if interrupted:
        kept = f", kept in {options.csv}" if rows_file is not None else ""
        raise KeyboardInterrupt(f"{len(rows)} of {len(tasks)} operations were measured{kept}")
    return int(any(result.fault for row in rows for result in row))


def tasks_of(options: argparse.Namespace) -> list[Task]:
    """Every operation of every layer that is asked for.

    Raises:
        ValueError: no layer has a name that matches.
    """
    names = list(ARCHITECTURES) if "all" in options.architecture else dict.fromkeys(options.architecture)
    tasks = []
    for architecture in names:
        layers = convolutions_of(architecture, options.batch, getattr(torch, options.dtype))
        if options.layer is not None:
            layers = [layer for layer in layers if fnmatch.filter(layer.names, options.layer)]
        for layer in layers[: options.limit]:
            tasks += [Task(architecture, layer, operation) for operation in dict.fromkeys(options.operation)]
    if not tasks:
        example = convolutions_of(next(iter(names)), 1, torch.float32)[0].names[0]
        raise ValueError(f"--layer {options.layer!r} matches no layer of {', '.join(names)}; one is {example!r}")
    return tasks


def compile_tasks(tasks: Sequence[Task], target: str) -> None:
    """Compile our kernels of tasks in parallel, on tensors without values; what does not compile shows when timed."""

    def compute() -> None:
        for task in tasks:
            problem = task.layer.problem
            call_of("triton", problem, task.operation, *problem.tensors("meta"))()

    compile_or_warn(target, compute)


def contenders_of(
    options: argparse.Namespace, device: str, stack: ExitStack
) -> tuple[dict[str, Runs], Mapping[str, str]]:
    """What is compared, by the name that it has in the report, and the revision of each."""
    if options.against is None:
        chosen = options.implementation or [i for i in IMPLEMENTATIONS if device == "cuda" or i != "compile"]
        ours = "interpreted" if device == "cpu" else "triton"
        local = {ours if i == "triton" else i: Contender(i, device) for i in IMPLEMENTATIONS if i in chosen}
        return dict(local), dict.fromkeys(local, described())
    revisions = {"here": described(), options.against: described(resolved(options.against))}
    trees = {"here": ROOT, options.against: stack.enter_context(checked_out(options.against))}
    workers = {name: Worker(tree, device) for name, tree in trees.items()}
    for worker in workers.values():
        stack.callback(worker.close)
    return dict(workers), revisions


def measured(tasks: Sequence[Task], contenders: Mapping[str, Runs], rounds: int) -> Iterator[list[Result]]:
    """The results of one task after another, in the order of the contenders, with a progress bar."""
    with progress() as bar:
        line = bar.add_task("", total=len(tasks))
        for task in tasks:
            bar.update(line, description=f"{task.architecture} {task.layer.names[0]} {task.operation}")
            yield measure(task, contenders, rounds)
            bar.advance(line)


def measure(task: Task, contenders: Mapping[str, Runs], rounds: int) -> list[Result]:
    """Hold every contender to float64; then time those that are right, once a round and in turning order."""
    reached: dict[str, Closeness] = {}
    faults: dict[str, str] = {}
    for name, contender in contenders.items():
        try:
            reached[name] = contender.prepare(task.layer.problem, task.operation)
        except Exception as error:  # it may be a compiler's or a driver's; the others can go on
            if os.environ.get("CONVNETS_DEBUG") == "1":
                raise
            faults[name] = f"failed: {next(iter(str(error).splitlines()), type(error).__name__)}"
        else:
            if not reached[name].close:
                faults[name] = f"wrong: {reached[name]}"
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    right = [name for name in contenders if name not in faults]
    for turn in range(rounds):
        for name in right[:: -1 if turn % 2 else 1]:
            seconds[name].append(contenders[name].seconds())
    return [
        Result(task, name, tuple(times), reached.get(name), faults.get(name, "")) for name, times in seconds.items()
    ]


def provenance_of(device: str) -> dict[str, str]:
    """What the times depend on besides the code."""
    if device == "cpu":
        name = f"{os.cpu_count()} CPU cores ({platform.processor() or platform.machine()})"
        name += f", {torch.get_num_threads()} of them used"
    else:
        name = torch.cuda.get_device_name()
    libraries = {"torch": torch.__version__, "triton": triton.__version__}
    if device == "cuda":
        libraries["cudnn"] = str(torch.backends.cudnn.version())
    return {"device": name, **libraries, "date": datetime.now(UTC).isoformat(timespec="seconds")}


def headline(options: argparse.Namespace, provenance: Mapping[str, str]) -> str:
    """One line on the conditions."""
    device, *others = (value if name == "device" else f"{name} {value}" for name, value in provenance.items())
    how = "kernels interpreted, no figure for a GPU; " if INTERPRETING else ""
    conditions = f"batch {options.batch}, {options.dtype}, {options.repeats} rounds"
    return f"{device}: {how}{conditions}; {', '.join(others[:-1])}; revision {described()}, {provenance['date']}"
