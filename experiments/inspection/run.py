"""`convnets inspect` itself: which kernels, and where the report goes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import torch
import triton
from rich.console import Console
from rich.progress import track

from experiments.convolutions import ARCHITECTURES, convolutions_of
from experiments.inspection.reports import Operation, totals
from experiments.inspection.tables import WIDTH, print_details, print_rows, print_sources
from experiments.inspection.user_kernel import read_call
from experiments.inspection.work import Job, inspected
from experiments.tune.task import Task
from kernels.checks import make_window
from kernels.model import accumulators
from kernels.problem import Problem
from kernels.shape import Window
from kernels.targets import TARGETS
from kernels.tile import Tile, fault
from lightning_modules.files import replace, replacing

MOST_HELD = 512  # registers, twice what a thread has


def run(options: argparse.Namespace) -> int:
    """Inspect what the options ask for, print and write the report.

    Raises:
        ValueError: whatever the user can put right.
    """
    target = TARGETS[options.target]
    if target.rates is None and (options.plot is not None or options.logdir is not None):
        raise ValueError(f"--plot and --logdir need estimates, of which there are none for {options.target}")
    jobs = jobs_of(options)
    silent = not sys.stderr.isatty()
    progress = track(
        inspected(jobs), "compiling", len(jobs), console=Console(stderr=True), transient=True, disable=silent
    )  # fmt: skip
    operations = list(progress)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    device = f" ({target.rates.device})" if target.rates is not None else ": registers, spills and LDS only"
    console.print(f"{options.target}{device}; torch {torch.__version__}, triton {triton.__version__}", highlight=False)
    if len(operations) == 1 or options.details:
        for each in operations:
            print_details(console, each, target)
    if len(operations) > 1:
        print_rows(console, operations, target)
    print_sources(console, target)
    if options.json is not None:
        replace(options.json, json.dumps(figures_of(options.target, operations), indent=1) + "\n")
    if options.plot is not None or options.logdir is not None:
        from experiments.inspection.figure import roofline, write_to_tensorboard  # takes a second to import

        figure = roofline(options.target, operations)
        if options.plot is not None:
            with replacing(options.plot) as draft:
                figure.savefig(draft, dpi=150)
        if options.logdir is not None:
            write_to_tensorboard(figure, options.logdir, options.target)
    return 0


def jobs_of(options: argparse.Namespace) -> list[Job]:
    """One job for each operation of each layer, or one for a kernel."""
    if options.kernel is not None:
        return [Job(options.target, call := read_call(options.kernel, options.arguments), "", layer=call.function)]
    batch, dtype = options.batch or 32, getattr(torch, options.dtype or "float16")
    if options.architecture is None:
        problem = problem_of(options, batch, dtype)
        tile = options.tile
        return [
            Job(options.target, problem, operation, tile=tile and tile_of(tile, options.target, problem, operation))
            for operation in options.operation
        ]
    names = list(ARCHITECTURES) if "all" in options.architecture else dict.fromkeys(options.architecture)
    return [
        Job(options.target, layer.problem, operation, name, layer.names[0], layer.count)
        for name in names
        for layer in convolutions_of(name, batch, dtype)[: options.limit]
        for operation in options.operation
    ]


def tile_of(numbers: Sequence[int], target: str, problem: Problem, operation: str) -> Tile:
    """Return the tile of the numbers of --tile.

    Raises:
        ValueError: the operation cannot be launched with it, or the compiler would take minutes to spill its result.
    """
    product = Task.of(target, problem, operation).product
    tile = Tile(*numbers, dot=not product.depthwise)
    reason = fault(product, tile)
    if not reason and (held := accumulators(product, tile, TARGETS[target].warp_size)) > MOST_HELD:
        reason = f"a thread would hold {held:.0f} values of the result, at most {MOST_HELD} are tried"
    if reason:
        raise ValueError(f"--tile {','.join(map(str, numbers))}, {operation}: {reason}")
    return tile


def problem_of(options: argparse.Namespace, batch: int, dtype: torch.dtype) -> Problem:
    """The layer that the options describe.

    Raises:
        ValueError: its window does not fit, or its groups do not divide its channels.
    """
    outputs = options.outputs or options.channels
    if options.size is None:
        return Problem(batch, options.channels, outputs, (), Window((), (), (), ()), dtype)
    axes = len(options.size)
    if axes > 3:
        raise ValueError(f"--size takes 1 to 3 extents, got {axes}")
    kernel = options.kernel_size or [1]
    if len(kernel) not in (1, axes):
        raise ValueError(f"--kernel_size must have 1 or {axes} extents, as --size has, got {len(kernel)}")
    window = make_window(
        "inspect", kernel * axes if len(kernel) == 1 else kernel, _setting(options.stride, 1),
        _setting(options.padding, 0), _setting(options.dilation, 1), options.groups or 1,
    )  # fmt: skip
    for name, count in (("channels", options.channels), ("outputs", outputs)):
        if count % window.groups:
            raise ValueError(f"--groups {window.groups} does not divide --{name} {count}")
    problem = Problem(batch, options.channels, outputs, tuple(options.size), window, dtype)
    if min(problem.output_size) < 1:
        raise ValueError(f"the window does not fit --size {' '.join(map(str, options.size))} with this padding")
    return problem


def _setting(values: list[int] | None, default: int) -> int | tuple[int, ...]:
    if values is None:
        return default
    return values[0] if len(values) == 1 else tuple(values)


def figures_of(target: str, operations: Sequence[Operation]) -> dict[str, Any]:
    """All figures, as JSON has them."""
    rates = TARGETS[target].rates
    rows = []
    for each in operations:
        row = dataclasses.asdict(each) | {"seconds": each.seconds}
        if rates is not None:
            row |= {"bound": each.bound(rates), "of_peak": each.of_peak(rates), "of_bound": each.of_bound(rates)}
        rows.append(row)
    return {
        "target": target,
        "what": "an estimate by the model of kernels/estimate.py, not a measurement",
        "rates": dataclasses.asdict(rates) if rates is not None else None,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "operations": rows,
        "totals": [
            {"architecture": group, "operation": name} | dataclasses.asdict(sums)
            for group, name, sums in totals(operations, rates)
            if group
        ],
    }
