"""`convnets tune` itself: which problems are left, one after another, each recorded as soon as it is tuned."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from experiments.arguments import check_file
from experiments.convolutions import ARCHITECTURES, convolutions_of
from experiments.interruption import interrupted_once
from experiments.progress import progress
from experiments.tune import recording
from experiments.tune.compare import compare
from experiments.tune.compiling import Compilers
from experiments.tune.search import NotTuned, estimated_choice, measured_choice
from experiments.tune.source import is_current, source_of
from experiments.tune.task import Task
from kernels import backend, table, tuning
from kernels.checks import make_window
from kernels.heuristics import INTERPRETER
from kernels.problem import Problem
from kernels.targets import TARGETS
from kernels.tile import Product
from lightning_modules.files import replace

WIDTH = 160  # characters, where no terminal says how many there are


def run(options: argparse.Namespace) -> int:
    """Tune what the options ask for, target by target; the exit code is 1 if any problem could not be tuned.

    Raises:
        ValueError: whatever the user can put right, before anything is tuned.
        KeyboardInterrupt: when interrupted; its message says what is kept.
    """
    targets = options.target or [own_target()]
    for target in targets:
        check_target(target)
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    failed = False
    for target in targets:
        tasks = tasks_of(options, target)
        path = options.table or table.path_of(target)
        if not options.compare:
            check_file(path, "--table")
        with interrupted_once(), Compilers(options.jobs) as compilers:
            if options.compare:
                compare(console, target, path, tasks, compilers)
            else:
                failed |= Tuner(options, target, path, console, compilers).tune(tasks)
    return int(failed)


def own_target() -> str:
    """The GPU of this machine.

    Raises:
        ValueError: there is none.
    """
    if not torch.cuda.is_available():
        raise ValueError(f"there is no GPU here: name a --target, {', '.join(TARGETS)} or {INTERPRETER}")
    return tuning.target()


def check_target(target: str) -> None:
    """Refuse a target that nothing can be said about here.

    Raises:
        ValueError: for such a target.
    """
    if target == INTERPRETER:
        return
    if target not in TARGETS:
        raise ValueError(f"--target must be one of {', '.join((*TARGETS, INTERPRETER))}, got {target!r}")
    if TARGETS[target].rates is None and not is_here(target):
        raise ValueError(f"nothing is estimated for {target}, whose rates are not known: tune it where there is one")


def is_here(target: str) -> bool:
    """Whether the target is what kernels run on in this process."""
    if target == INTERPRETER:
        return True
    return not backend.INTERPRETING and torch.cuda.is_available() and tuning.target() == target


def tasks_of(options: argparse.Namespace, target: str) -> list[Task]:
    """Every operation of every layer that is asked for, one of each problem class, in order of appearance."""
    interpreted = target == INTERPRETER
    batch = options.batch or (1 if interpreted else 32)
    tasks: dict[Product, Task] = {}
    for name in options.dtype or (["float32"] if interpreted else ["float16"]):
        for problem in problems_of(options, batch, getattr(torch, name)):
            for operation in dict.fromkeys(options.operation):
                task = Task.of(target, problem, operation)
                tasks.setdefault(task.product.problem_class, task)
    return list(tasks.values())


def problems_of(options: argparse.Namespace, batch: int, dtype: torch.dtype) -> list[Problem]:
    """The layers of architectures, or the one that is given by its extents.

    Raises:
        ValueError: the extents do not go together.
    """
    if options.channels is None:
        asked = options.architecture or ["all"]
        names = list(ARCHITECTURES) if "all" in asked else dict.fromkeys(asked)
        return [layer.problem for name in names for layer in convolutions_of(name, batch, dtype)]
    size = tuple(options.size or ())
    kernel, stride, padding, dilation = (
        each_axis(name, getattr(options, name), default, len(size))
        for name, default in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1))
    )
    window = make_window("tune", kernel, stride, padding, dilation, options.groups or 1, tile=())
    problem = Problem(batch, options.channels, options.outputs, size, window, dtype)
    if options.channels % window.groups or options.outputs % window.groups:
        raise ValueError(
            f"--groups {window.groups} must divide --channels {problem.channels}, --outputs {problem.outputs}"
        )
    if min(problem.output_size, default=1) < 1:
        raise ValueError(f"the window of {problem} does not fit on its grid: the output would be {problem.output_size}")
    return [problem]


def each_axis(name: str, values: Sequence[int] | None, default: int, axes: int) -> tuple[int, ...]:
    """One number for each axis, of as many or of one.

    Raises:
        ValueError: of another count.
    """
    given = tuple(values or (default,))
    if len(given) not in (1, axes):
        raise ValueError(f"--{name} must be one number, or {axes} for as many axes of --size, got {len(given)}")
    return given * axes if len(given) == 1 else given


class Tuner:
    """Tunes the problems of one target into its table."""

    def __init__(
        self, options: argparse.Namespace, target: str, path: Path, console: Console, compilers: Compilers
    ) -> None:
        self._options, self._target, self._path = options, target, path
        self._console, self._compilers = console, compilers
        self._measures = is_here(target)
        self._source = source_of(target, self._measures)
        found = table.read(path, target)
        self._found, self._held = found.records, len(found.records)
        if found.faults:
            self._keep_a_copy(found.faults)

    def _keep_a_copy(self, faults: Sequence[str]) -> None:
        copy = self._path.with_name(f"{self._path.name}.bad")
        replace(copy, self._path.read_bytes())
        for fault in faults:
            self._say(f"{self._path}: {fault}")
        self._say(f"what is wrong there will be left out; the file as it was is kept in {copy}")

    def tune(self, tasks: Sequence[Task]) -> bool:
        """Whether any problem could not be tuned, or any tile is wrong.

        Raises:
            KeyboardInterrupt: when interrupted.
        """
        left = [task for task in tasks if self._options.again or not self._stands(task)]
        standing, left = len(tasks) - len(left), left[: self._options.limit]
        how = "timed" if self._measures else "estimated, nothing is timed"
        self._say(f"{self._target}: {self._source['device']}, {how}; {len(left)} to tune, {standing} recorded already")
        failed, done = False, 0
        try:
            with progress() as bar:
                line = bar.add_task("", total=len(left))
                for task in left:
                    bar.update(line, description=str(task))
                    failed |= not self._tuned(task)
                    done += 1
                    bar.advance(line)
        except KeyboardInterrupt:
            kept = f"{done} of {len(left)} were done, {self._path} holds {self._held}"
            raise KeyboardInterrupt(f"{kept}; to go on: {self._options.command}") from None
        self._say(f"{self._target}: {done} of {len(left)} done; {self._path} holds {self._held}")
        return failed

    def _tuned(self, task: Task) -> bool:
        """Record the choice for a task; whether there is one, and no candidate was wrong."""
        try:
            choice = (measured_choice if self._measures else estimated_choice)(
                task, self._compilers, self._options.candidates
            )
        except NotTuned as reason:
            self._say(f"{task}: not tuned, {reason}")
            return False
        record = table.Record(
            f"{task.operation}: {task.problem}", task.product, choice.tile, self._source | choice.figures
        )
        self._held = recording.add(self._path, self._target, record)
        self._say(f"{task}: {choice}")
        for tile, fault in choice.wrong.items():
            self._say(f"{task}: {tile} {fault}")
        return not choice.wrong

    def _stands(self, task: Task) -> bool:
        record = self._found.get(task.product.problem_class)
        return record is not None and is_current(record.source, self._source)

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)
