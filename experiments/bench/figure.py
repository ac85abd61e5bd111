"""What was measured, as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.bench.report import Rows, by_architecture
from lightning_modules.files import replacing

COLOURS = ("#0072b2", "#009e73", "#d55e00")  # to be told apart by the colour-blind, too (Okabe and Ito)
MARKERS = ("o", "s", "x")
NAMED = 10  # layers whose names fit below a panel


def draw(path: Path, rows: Rows, names: Sequence[str], title: str) -> None:
    """Median times with quartiles, by layer: a row of panels for each network, a column for each operation."""
    networks = list(by_architecture(rows))
    operations = list(dict.fromkeys(row[0].task.operation for row in rows))
    size = (max(7.0, 1.5 + 3.4 * len(operations)), 1.6 + 2.6 * len(networks))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(networks), len(operations), squeeze=False, sharex="row", sharey="row")
    for line, (architecture, group) in zip(panels, networks, strict=True):
        for axes, operation in zip(line, operations, strict=True):
            _draw_panel(axes, [row for row in group if row[0].task.operation == operation], names)
        line[0].set_ylabel(f"{architecture}\nmilliseconds")
    for axes, operation in zip(panels[0], operations, strict=True):
        axes.set_title(operation.replace("_", " "), fontsize=10)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.suptitle(title.replace("; ", "\n"), fontsize=8)
    figure.legend(handles, labels, loc="outside lower center", ncols=len(names), frameon=False)
    with replacing(path) as draft:
        figure.savefig(draft, dpi=150)


def _draw_panel(axes: Axes, rows: Rows, names: Sequence[str]) -> None:
    for column, name in enumerate(names):
        timed = [(place, row[column].time) for place, row in enumerate(rows) if row[column].seconds]
        median = [time.median * 1e3 for _, time in timed]
        below = [(time.median - time.lower) * 1e3 for _, time in timed]
        above = [(time.upper - time.median) * 1e3 for _, time in timed]
        axes.errorbar(
            [place for place, _ in timed], median, (below, above), label=name, color=COLOURS[column],
            marker=MARKERS[column], markersize=4, linestyle="none", elinewidth=1,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(rows) <= NAMED:
        labels = [row[0].task.layer.names[0] for row in rows]
        axes.set_xticks(range(len(rows)), labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=7)
    else:
        axes.set_xlabel("distinct layer, in order", fontsize=8)
