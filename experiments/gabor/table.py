"""The scores of layers as a table in the terminal, and as JSON has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from experiments.gabor.layers import window_of
from lightning_modules.gabor_score import Likeness, scores

COLUMNS = {  # of scores, with how they are written
    "mean R2": ("mean_r2", ".2f"),
    "median R2": ("median_r2", ".2f"),
    "above null": ("fraction_above_null", ".0%"),
    "Gabor-like": ("fraction", ".0%"),
    "entropy": ("orientation_entropy", ".2f"),
    "octaves": ("bandwidth_octaves", ".2f"),
    "n_x": ("n_x", ".2f"),
    "n_y": ("n_y", ".2f"),
    "dead": ("dead", ".0f"),
    "null R2": ("null", ".2f"),
    "share": ("share", ".0%"),
}


def print_table(console: Console, title: str, found: Mapping[str, Likeness], rest: Mapping[str, Tensor]) -> None:
    """A row for each layer that was scored, and for each window of the `rest` why it was not."""
    table = Table(title=title, title_justify="left")
    table.add_column("layer", overflow="fold")
    for column in ("kernels", "window", *COLUMNS):
        table.add_column(column, justify="right")
    for name, likeness in found.items():
        values = summary_of(likeness)
        cells = [_written(values[score], form) for score, form in COLUMNS.values()]
        table.add_row(name, str(len(likeness.kernels)), _sides(likeness.fit.window), *cells)
    for window in sorted({window_of(weight) for weight in rest.values()}):
        same = {name: weight for name, weight in rest.items() if window_of(weight) == window}
        first, *more = same
        kernels = sum(len(weight) for weight in same.values())
        table.add_row(
            first + (f" and {len(more)} more" if more else ""), str(kernels), _sides(window),
            "no window" if window == (1, 1) else "too small", *["-"] * (len(COLUMNS) - 1),
        )  # fmt: skip
    console.print(table)


def summary_of(likeness: Likeness) -> dict[str, float]:
    """The scores of a layer, its null model's r2, and the mean share of energy that was scored."""
    table = likeness.table()
    found = {name: float(score) for name, score in scores(table).items()}
    return found | {"null": likeness.null, "share": float(table["share"].mean())}


def figures_of(likeness: Likeness) -> dict[str, Any]:
    """All figures of a layer, as JSON has them; of each property of its kernels a list."""
    columns = {name: column.tolist() for name, column in likeness.table().items()}
    return {"window": list(likeness.fit.window), "scores": summary_of(likeness), "kernels": columns}


def _written(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "-"


def _sides(window: tuple[int, int]) -> str:
    return f"{window[0]}x{window[1]}"
