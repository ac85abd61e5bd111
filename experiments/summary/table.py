"""The volumes of a network as a table in the terminal, and as JSON has them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.summary.trace import Row, sides
from kernels.shape import Window

WIDTH = 220  # characters, where no terminal says how many there are


@dataclass(frozen=True)
class Totals:
    """Of one image; prediction alone, or with what only training does."""

    weights: int
    biases: int
    connections: int
    flops: int
    activations: int
    kept: int

    @property
    def parameters(self) -> int:
        return self.weights + self.biases


def totals(rows: Sequence[Row]) -> Totals:
    names = [field.name for field in dataclasses.fields(Totals)]
    return Totals(**{name: sum(getattr(row, name) for row in rows) for name in names})


def of_prediction(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if not row.training_only]


def print_table(console: Console, title: str, rows: Sequence[Row]) -> None:
    """A row for each layer and the totals."""
    axes = len(rows[0].input) - 1
    table = Table(title=f"{title}, for one image of {volume(rows[0].input, axes)}", title_justify="left")
    for column in ("layer", "operation"):
        table.add_column(column, overflow="fold")
    for column in ("input", "output", "window", "stride", "padding", "field", "jump", "a kernel"):
        table.add_column(column, justify="right")
    for column in ("parameters", "connections", "FLOPs", "output, bytes", "kept, bytes"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*_cells(row, axes))
    table.add_section()
    predicted = of_prediction(rows)
    for name, some in (("prediction", predicted), ("with training's own", rows)):
        if some is predicted or len(some) > len(predicted):
            sums = totals(some)
            kept = f"{totals(rows).kept:,}" if len(some) == len(rows) else "-"
            table.add_row(
                "total", name, *[""] * 8, f"{sums.parameters:,}", f"{sums.connections:,}", f"{sums.flops:,}",
                f"{sums.activations:,}", kept,
            )  # fmt: skip
    console.print(table)


def volume(shape: Sequence[int], axes: int) -> str:
    """(C, H, W) as H x W x C; (F,) as 1 x 1 x F."""
    channels, *grid = shape
    return " x ".join(map(str, (*(grid or (1,) * axes), channels)))


def _cells(row: Row, axes: int) -> list[str]:
    window = [""] * 3
    if row.window is not None:
        window = [sides(row.window.kernel), "-", "-"]
        if not row.window.adaptive:
            window[1:] = [sides(row.window.stride), _padding(row.window)]
        if any(step > 1 for step in row.window.dilation):
            window[0] += f", every {sides(row.window.dilation)}"
    parameters = f"{row.weights:,} + {row.biases:,}" if row.weights or row.biases else "0"
    return [
        row.name, row.kind + (", in training" if row.training_only else ""), volume(row.input, axes),
        volume(row.output, axes), *window,
        "-" if row.field is None else sides(row.field), "-" if row.jump is None else _jump(row.jump),
        _kernel(row), parameters, f"{row.connections:,}", f"{row.flops:,}", f"{row.activations:,}", f"{row.kept:,}",
    ]  # fmt: skip


def _padding(window: Window) -> str:
    """2x2, and 1+2 where it is not the same before and after."""
    return "x".join(str(before) if before == after else f"{before}+{after}" for before, after in window.padding)


def _jump(jump: Sequence[float]) -> str:
    return "x".join(f"{steps:g}" for steps in jump)


def _kernel(row: Row) -> str:
    if row.fan_in is None:
        return ""
    least, most = row.fan_in
    weights = f"{least:,}" if least == most else f"{least:,}-{most:,}"
    return f"{weights} + 1" if row.bias else weights


def figures_of(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    """All figures, as JSON has them."""
    return {
        "network": name,
        "layers": [dataclasses.asdict(row) for row in rows],
        "totals": {
            part: dataclasses.asdict(totals(some)) | {"parameters": totals(some).parameters}
            for part, some in (("prediction", of_prediction(rows)), ("training", rows))
        },
    }
