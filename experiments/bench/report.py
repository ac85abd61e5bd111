"""What was measured, as tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table

from experiments.bench.results import Quartiles, Result, Task, total
from kernels.problem import Problem

WIDTH = 180  # characters, where no terminal says how many there are

Rows = Sequence[Sequence[Result]]  # the results of each task, in the order of the implementations


def print_tables(console: Console, rows: Rows, names: Sequence[str], rates: bool) -> None:
    """A table of each network's layers, then one of their totals; with TFLOP/s and GB/s of the first if `rates`."""
    for architecture, group in by_architecture(rows):
        table = Table(title=f"{architecture}: milliseconds, as median (quartiles)", title_justify="left")
        for title in ("layer", "problem", "operation"):
            table.add_column(title, overflow="fold")
        for title in (*names, *_ratio_titles(names), *(("TFLOP/s", "GB/s, compulsory") if rates else ())):
            table.add_column(title, justify="right", overflow="fold")
        shown = None
        for row in group:
            task = row[0].task
            if shown is not None and shown is not task.layer:
                table.add_section()
            table.add_row(*_heads(task, shown is task.layer), *_cells(row, rates))
            shown = task.layer
        console.print(table)
    for row in rows:
        for result in row:
            if result.fault:
                task = result.task
                where = f"{task.architecture} {task.layer.names[0]} {task.operation}"
                console.print(
                    f"{where}: {result.implementation} is {result.fault}", style="red", markup=False, highlight=False
                )
    _print_totals(console, rows, names)


def _print_totals(console: Console, rows: Rows, names: Sequence[str]) -> None:
    table = Table(title="totals: milliseconds, each layer as often as it occurs", title_justify="left")
    for title in ("network", "operation"):
        table.add_column(title)
    mean = [f"{title}, geometric mean" for title in _ratio_titles(names)]
    for title in ("layers", *names, *_ratio_titles(names), *mean):
        table.add_column(title, justify="right", overflow="fold")
    for architecture, group in by_architecture(rows):
        for operation in dict.fromkeys(row[0].task.operation for row in group):
            sums = total([row for row in group if row[0].task.operation == operation])
            if sums is not None:
                milliseconds = [_short(sums.seconds[name] * 1e3) for name in names]
                ratios = [_short(sums.seconds[name] / sums.seconds[names[-1]]) for name in names[:-1]]
                means = [_short(sums.ratios[name]) for name in names[:-1]]
                table.add_row(architecture, operation, str(sums.layers), *milliseconds, *ratios, *means)
    console.print(table)


def by_architecture(rows: Rows) -> Iterator[tuple[str, Rows]]:
    for architecture, group in groupby(rows, key=lambda row: row[0].task.architecture):
        yield architecture, list(group)


def _ratio_titles(names: Sequence[str]) -> list[str]:
    return [f"{name} / {names[-1]}" for name in names[:-1]]


def _heads(task: Task, repeated: bool) -> tuple[str, str, str]:
    if repeated:
        return "", "", task.operation
    times = f" x{task.layer.count}" if task.layer.count > 1 else ""
    return task.layer.names[0] + times, named(task.layer.problem), task.operation


def named(problem: Problem) -> str:
    """A problem without its batch and dtype."""
    dtype = str(problem.dtype).removeprefix("torch.")
    return str(problem).removesuffix(f", N {problem.batch}, {dtype}")


def _cells(row: Sequence[Result], rates: bool) -> list[str]:
    times = [_spread(result.time, 1e3) if result.seconds else result.fault.partition(":")[0] for result in row]
    ratios = (result.ratio(row[-1]) for result in row[:-1])
    cells = [*times, *("-" if ratio is None else _spread(ratio) for ratio in ratios)]
    if rates:
        ours = row[0]
        cells += [_short(ours.teraflops), _short(ours.gigabytes)] if ours.seconds else ["-", "-"]
    return cells


def _spread(quartiles: Quartiles, unit: float = 1.0) -> str:
    lower, median, upper = (_short(value * unit) for value in quartiles)
    return f"{median} ({lower}-{upper})"


def _short(value: float) -> str:
    """Three digits at least, without an exponent where it is large."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
