"""What was found, as tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table

from experiments.inspection.reports import Launch, Operation, totals
from kernels import estimate, sass
from kernels.targets import Rates, Target

WIDTH = 180  # characters, where no terminal says how many there are
UNIT = 1024  # multiply-adds


def print_details(console: Console, operation: Operation, target: Target) -> None:
    """Resources, loops and the estimate of each launch of an operation."""
    console.print(f"\n{', '.join(filter(None, (operation.problem, operation.name)))}", style="bold", highlight=False)
    for launch in operation.launches:
        console.print(_resources(launch, target), highlight=False)
        if launch.estimate is not None:
            console.print(_instructions(launch.estimate, launch.warps))
            console.print(_cycles(launch.estimate))
        console.print(_conclusion(launch), highlight=False)
    if len(operation.launches) > 1 and operation.seconds is not None:
        console.print(f"estimate of all launches: {_time(operation.seconds)}", highlight=False)
    if target.rates is not None and operation.seconds is not None:
        console.print(_bound(operation, target.rates), highlight=False)


def print_rows(console: Console, operations: Sequence[Operation], target: Target) -> None:
    """For each architecture, or for the one problem, a row for each operation; then the totals of architectures."""
    rates = target.rates
    for group, members in groupby(operations, key=lambda each: each.group):
        own = list(members)
        console.print(_rows(own, f"{group}: " if group else "", rates))
    for each in operations:
        for launch in each.launches:
            if launch.reason and rates is not None:
                where = " ".join(filter(None, (each.group, each.layer, each.problem, each.operation)))
                console.print(f"{where}: {launch.name}: {launch.reason}", highlight=False)
    _print_totals(console, operations, rates)


def _rows(operations: Sequence[Operation], title: str, rates: Rates | None) -> Table:
    """A row for each; what all problems have in common, batch and type, goes into the title."""
    endings = {", ".join(each.problem.split(", ")[-2:]) for each in operations}
    common = f", {endings.pop()}" if len(endings) == 1 and operations[0].group else ""
    what = "estimates, not measurements" if rates is not None else "registers, spills and LDS"
    table = Table(title=f"{title}{what}{common}", title_justify="left")
    named = [*(("layer",) if operations[0].layer else ()), "problem", "operation", "tile"]
    for column in named:
        table.add_column(column, overflow="fold")
    for column in ("registers", "spills", "LDS" if rates is None else "shared", *(_ESTIMATED if rates else ())):
        table.add_column(column, justify="right")
    before = None
    for each in operations:
        here = each.layer, each.problem
        if before is not None and here != before:
            table.add_section()
        times = f" x{each.count}" if each.count > 1 else ""
        heads = ["", ""] if here == before else [each.layer + times, each.problem.removesuffix(common)]
        heads = heads[4 - len(named) :]
        before = here
        main = each.longest or next(iter(each.launches), None)
        if main is None:
            table.add_row(*heads, each.operation, "nothing is launched")
            continue
        cells = [str(main.registers), str(each.spills), f"{main.shared_memory:,}"]
        table.add_row(*heads, each.operation, _tile(main), *cells, *(_figures(each, main, rates) if rates else ()))
    return table


def print_sources(console: Console, target: Target) -> None:
    if target.rates is None:
        console.print(f"source: {target.source}", style="dim", highlight=False)
        return
    console.print(f"rates of the {target.rates.device}, from:", style="dim", highlight=False)
    for source in target.rates.sources:
        console.print(f"  {source}", style="dim", highlight=False)
    console.print("how the estimate is made, and what it cannot see: kernels/estimate.py", style="dim", highlight=False)


_ESTIMATED = ("blocks/SM", "launches", "estimate", "% of peak", "% of bound", "limit")


def _figures(operation: Operation, main: Launch, rates: Rates) -> list[str]:
    if operation.seconds is None or main.estimate is None:
        return [str(main.resident or "-"), str(len(operation.launches)), "-", "-", "-", "-"]
    return [
        str(main.resident), str(len(operation.launches)), _time(operation.seconds),
        _percent(operation.of_peak(rates)), _percent(operation.of_bound(rates)), main.estimate.limit,
    ]  # fmt: skip


def _print_totals(console: Console, operations: Sequence[Operation], rates: Rates | None) -> None:
    named = [each for each in operations if each.group]
    if not named:
        return
    table = Table(title="totals, each layer as often as it occurs", title_justify="left")
    columns = (
        "architecture", "operation", "layers", "spilling", "no estimate", "estimate", "bound", "estimate / bound",
        "% of bound, geometric mean", "% of peak, geometric mean",
    )  # fmt: skip
    for place, title in enumerate(columns if rates is not None else columns[:4]):
        table.add_column(title, justify="left" if place < 2 else "right")
    for group, name, sums in totals(named, rates):
        cells = [group, name, str(sums.operations), str(sums.spilling)]
        if rates is not None:
            cells += [str(sums.operations - sums.estimated), _time(sums.seconds), _time(sums.bound)]
            cells += [f"{sums.seconds / sums.bound:.2f}" if sums.bound else "-"]
            cells += [_percent(sums.of_bound), _percent(sums.of_peak)]
        table.add_row(*cells)
    console.print(table)


def _resources(launch: Launch, target: Target) -> str:
    memory = "LDS" if target.rates is None else "shared memory"
    parts = [
        f"{launch.name} {_tile(launch)}: {launch.programs:,} blocks of {launch.warps} warps",
        f"{launch.registers} registers a thread",
        f"{launch.spills} {'vector registers' if target.rates is None else 'bytes'} spilled",
        f"{launch.shared_memory:,} bytes of {memory}",
    ]
    if launch.tensor_memory:
        parts.append(f"{launch.tensor_memory} columns of tensor memory")
    if launch.resident is not None:
        parts.append(f"{launch.resident} resident blocks an SM")
    return ", ".join(parts)


def _instructions(found: estimate.Estimate, warps: int) -> Table:
    """Instructions of a warp in one trip, by pipe; then of all warps for UNIT multiply-adds, where there are any."""
    title = f"instructions of a warp in one trip (and of all warps, for {UNIT:,} multiply-adds of matrix products)"
    table = Table(title=title, title_justify="left")
    table.add_column("code")
    for column in ("trips", "multiply-adds", "all", *sass.PIPES):
        table.add_column(column, justify="right")
    table.add_column("loads and stores, by bits of a thread", overflow="fold")
    for place, loop in enumerate(found.loops):
        counts = [sum(loop.instructions.values()), *(loop.instructions.get(pipe, 0) for pipe in sass.PIPES)]
        cells = [
            f"{count} ({count * warps * UNIT / loop.products:.2g})" if loop.products and count else str(count)
            for count in counts
        ]
        widths = ", ".join(f"{count} {access}" for access, count in sorted(loop.accesses.items()))
        products = f"{loop.products:,}" if loop.products else ""
        table.add_row(_named(found, place), f"{loop.trips:,}", products, *cells, widths)
    return table


def _cycles(found: estimate.Estimate) -> Table:
    table = Table(title="cycles of an SM that one trip of a block keeps each pipe busy", title_justify="left")
    table.add_column("code")
    for pipe in estimate.PIPES:
        table.add_column(pipe, justify="right")
    table.add_column("limit")
    for place, loop in enumerate(found.loops):
        cells = [
            f"[bold]{cycles:.0f}[/]" if pipe == loop.limit else f"{cycles:.0f}" for pipe, cycles in loop.cycles.items()
        ]
        table.add_row(_named(found, place), *cells, loop.limit)
    return table


def _named(found: estimate.Estimate, place: int) -> str:
    name = f"loop {place}" if place else "outside of loops"
    return f"{name}, main" if place == found.main else name


def _conclusion(launch: Launch) -> str:
    found = launch.estimate
    if found is None:
        return launch.reason
    parts = [f"estimate: {_time(found.seconds)}"]
    if found.fraction is not None:
        parts.append(f"{_percent(found.fraction)} % of the tensor cores' peak")
    parts.append(f"{_percent(found.bandwidth)} % of the memory's bandwidth")
    parts.append(f"limit: {found.limit}")
    parts.append(f"blocks of the busiest SM: {found.busiest}, at once: {found.resident}")
    parts.append(f"{_percent(found.fill)} % waiting for first loads")
    if found.padding:
        parts.append(f"{_percent(found.padding)} % more multiplied than needed")
    return ", ".join(parts)


def _bound(operation: Operation, rates: Rates) -> str:
    return (
        f"bound: {_time(operation.bound(rates))}, for {operation.flops:,} operations and {operation.bytes:,} bytes;"
        f" it is {_percent(operation.of_bound(rates))} % of the estimate"
    )


def _tile(launch: Launch) -> str:
    return "x".join(map(str, launch.block))


def _time(seconds: float) -> str:
    """Three digits."""
    unit, name = (1e6, "us") if seconds < 1e-3 else (1e3, "ms")
    return f"{seconds * unit:.3g} {name}"


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"
