"""`convnets figures` itself: run experiments, hold them to their claims, and write what they give."""

from __future__ import annotations

import argparse
import importlib
import inspect
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Column, Table

from experiments import output
from experiments.figures import NAMES
from experiments.gallery.example import Claim, Example, written
from experiments.gallery.page import write_page
from experiments.interruption import termination_interrupts
from kernels import use_backend
from kernels.backend import INTERPRETING, launch_count

ROOT = Path(__file__).parents[2]
SUMMARY = "index.html"


@dataclass(frozen=True)
class Shown:
    """Lines of a file that are shown beside a picture."""

    path: str
    first: int
    text: str


@dataclass(frozen=True)
class Run:
    """An experiment that was run, and what it took."""

    name: str
    title: str
    notice: str
    source: str
    backend: str
    shows: list[Shown]
    example: Example
    seconds: float
    launches: int

    @property
    def command(self) -> str:
        return f"convnets figures {self.name}"


def listed() -> int:
    """Print what there is."""
    table = Table(Column("name", no_wrap=True), "what it shows", "source", "computed by")
    for name in NAMES:
        module = experiment(name)
        title, _ = described(module)
        table.add_row(name, title, module.SOURCE, module.BACKEND)
    Console().print(table)
    return 0


def run(options: argparse.Namespace) -> int:
    """Run what is asked for, print its claims, write its files; the exit code is 1 where a claim does not hold.

    Raises:
        ValueError: a directory cannot be written.
    """
    options.output.mkdir(parents=True, exist_ok=True)
    names, runs, console = NAMES if options.all else options.names, [], Console(stderr=True)
    with termination_interrupts():
        for name in names:
            with console.status(name):
                done = executed(name)
            write(done, options.output)
            if options.logdir is not None:
                log(done, options.logdir / name)
            print_claims(done)
            runs.append(done)
    if options.all:
        write_page(options.output / SUMMARY, runs, options.output)
        print(f"gallery: {options.output / SUMMARY}")
    return 0 if all(claim.holds for done in runs for claim in done.example.claims) else 1


def executed(name: str) -> Run:
    """Run one experiment on the CPU, always from the same random numbers; without an interpreter PyTorch computes."""
    module = experiment(name)
    title, notice = described(module)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    started, launched = time.perf_counter(), launch_count()
    backend = module.BACKEND if INTERPRETING else "torch"
    with use_backend(backend):
        example = module.draw()
    seconds, launches = time.perf_counter() - started, launch_count() - launched
    shows = [lines_of(function) for function in module.SHOWS]
    return Run(name, title, notice, module.SOURCE, backend, shows, example, seconds, launches)


def experiment(name: str) -> Any:
    return importlib.import_module(f"experiments.figures.{name.replace('-', '_')}")


def described(module: ModuleType) -> tuple[str, str]:
    """The title of an experiment, and what to notice."""
    title, _, notice = inspect.cleandoc(module.__doc__ or "").partition("\n")
    return title.rstrip("."), notice.strip()


def lines_of(function: Callable[..., Any]) -> Shown:
    """The source of a function, or of the function that Triton compiles."""
    function = inspect.unwrap(getattr(function, "fn", function))
    lines, first = inspect.getsourcelines(function)
    return Shown(Path(inspect.getfile(function)).relative_to(ROOT).as_posix(), first, "".join(lines))


def write(done: Run, directory: Path) -> None:
    """NAME.png and NAME.json."""
    picture, figures = output.png(done.example.figure), output.strict_json(figures_of(done))
    output.write(directory, {f"{done.name}.png": picture, f"{done.name}.json": figures})


def figures_of(done: Run) -> dict[str, Any]:
    claims = [asdict(claim) | {"holds": claim.holds} for claim in done.example.claims]
    return {
        "name": done.name, "title": done.title, "source": done.source, "backend": done.backend,
        "seconds": round(done.seconds, 2), "launches": done.launches, "claims": claims, "numbers": done.example.numbers,
    }  # fmt: skip


def log(done: Run, directory: Path) -> None:
    """The picture and the measured numbers, for TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(directory)) as board:
        board.add_figure(done.name, done.example.figure)
        board.add_text(done.name, f"{done.title}\n\n{done.notice}")
        for claim in done.example.claims:
            board.add_scalar(f"{done.name}/{claim.text}", claim.measured)


def print_claims(done: Run) -> None:
    table = Table(title=f"{done.name}: {done.title}, {done.seconds:.1f} s", title_justify="left")
    for column in ("claim", "expected", "from", "measured", ""):
        table.add_column(column, justify="right" if column in ("expected", "measured") else "left")
    for claim in done.example.claims:
        table.add_row(claim.text, claim.expectation, claim.origin, written(claim.measured), mark(claim))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def mark(claim: Claim) -> str:
    return "holds" if claim.holds else "[bold red]DOES NOT HOLD"
