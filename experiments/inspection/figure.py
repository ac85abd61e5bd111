"""The roofline: what a GPU can do at most for each byte of memory traffic, and where kernels are below it.

(Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", 2009.)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import NullFormatter
from matplotlib.transforms import Bbox

from experiments.inspection.reports import Operation
from kernels.targets import TARGETS, Rates

COLOUR = "#0072b2"
TERA = 1e12
NAMED = 8  # points of a panel that carry their names; of more, numbers with a key
KEY_ROWS = 40
PLACES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (1, -1), (-1, 1))  # of a label, beside its point

Layer = tuple[str, str, str]


def roofline(target: str, operations: Sequence[Operation]) -> Figure:
    """Estimated TFLOP/s over operations a byte, on logarithmic axes: a panel for each operation, a label a point.

    Raises:
        ValueError: nothing has both an estimate and operations to count.
    """
    rates = TARGETS[target].rates
    shown = [each for each in operations if each.seconds is not None and each.flops and each.bytes]
    if rates is None or not shown:
        raise ValueError(f"there is nothing to draw for {target}: no kernel has an estimate and operations to count")
    numbers = {layer: str(number) for number, layer in enumerate(dict.fromkeys(map(_layer, shown)), 1)}
    labels = {layer: " ".join(filter(None, layer[:2])) or layer[2] for layer in numbers}
    by_number = len(numbers) > NAMED
    columns = -(-len(numbers) // KEY_ROWS) if by_number else 0
    names = list(dict.fromkeys(each.operation for each in shown))
    figure = Figure(figsize=(1 + 5 * len(names) + 2.5 * columns, 5.5), layout="constrained")
    panels = figure.subplots(1, len(names) + columns, squeeze=False, width_ratios=[2] * len(names) + [1] * columns)[0]
    for axes, name in zip(panels, names, strict=False):
        own = [each for each in shown if each.operation == name]
        _draw_roofs(axes, rates, shown)
        axes.scatter(*zip(*map(_point, own), strict=True), s=14, color=COLOUR, zorder=3)
        axes.set_title(name.replace("_", " "), fontsize=10)
        axes.set_xlabel("FLOP per byte of compulsory memory traffic")
    panels[0].set_ylabel("TFLOP/s, estimated")
    key = [f"{number}  {labels[layer]}" for layer, number in numbers.items()]
    for column, axes in enumerate(panels[len(names) :]):
        axes.axis("off")
        axes.text(0, 1, "\n".join(key[column * KEY_ROWS : (column + 1) * KEY_ROWS]), va="top", fontsize=7)
    figure.suptitle(f"{target}, {rates.device}: a model's estimates, not measurements", fontsize=10)
    FigureCanvasAgg(figure).draw()  # settles where everything is
    for axes, name in zip(panels, names, strict=False):
        own = [each for each in shown if each.operation == name]
        _label(axes, [_point(each) for each in own], [(numbers if by_number else labels)[_layer(each)] for each in own])
    return figure


def write_to_tensorboard(figure: Figure, folder: Path, target: str) -> None:
    """The figure, under "roofline" and the target."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        writer.add_figure(f"roofline/{target}", figure, close=False)


def _layer(operation: Operation) -> Layer:
    return operation.group, operation.layer, operation.problem


def _point(operation: Operation) -> tuple[float, float]:
    """Operations a byte, 10^12 operations a second."""
    assert operation.seconds is not None
    return operation.flops / operation.bytes, operation.flops / operation.seconds / TERA


def _draw_roofs(axes: Axes, rates: Rates, shown: Sequence[Operation]) -> None:
    """The slope of the memory and the peaks of the tensor cores, on axes that hold all points."""
    kinds = sorted({each.kind for each in shown if each.kind is not None} or {"16"})
    peaks = {kind: rates.peak(kind) / TERA for kind in kinds}
    memory = rates.dram_bytes / TERA
    intensities, rates_reached = zip(*map(_point, shown), strict=True)
    left = min(*intensities, min(peaks.values()) / memory) / 2
    right = max(*intensities, max(peaks.values()) / memory) * 2
    for kind, peak in peaks.items():
        axes.plot([left, peak / memory, right], [left * memory, peak, peak], color="black", linewidth=1)
        name = f"{kind} bits" if kind.isdigit() else kind
        axes.annotate(
            f"tensor cores, {name}: {peak:.0f} TFLOP/s", (right, peak), (-4, 3), textcoords="offset points",
            ha="right", fontsize=8,
        )  # fmt: skip
    axes.annotate(
        f"memory: {1000 * memory:.0f} GB/s", (left, left * memory), (6, 0), textcoords="offset points", va="top",
        fontsize=8,
    )  # fmt: skip
    bottom = min(*rates_reached, left * memory) / 2
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(bottom, 2 * max(peaks.values())))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.grid(which="major", alpha=0.3)


def _label(axes: Axes, points: Sequence[tuple[float, float]], labels: Sequence[str]) -> None:
    """Write labels beside points where they cover neither each other nor anything else, as far as there is room."""
    dots = [*axes.transData.transform(points)]
    for roof in axes.lines:
        corners = axes.transData.transform(roof.get_xydata())
        dots += [dot for start, end in pairwise(corners) for dot in np.linspace(start, end, 100)]
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in dots]
    taken += [text.get_window_extent() for text in axes.texts]
    for point, label in zip(points, labels, strict=True):
        best: tuple[float, Annotation, Bbox] | None = None
        for distance, (right, up) in product((4, 9, 15, 22, 30), PLACES):
            text = axes.annotate(
                label, point, (right * distance, up * distance), textcoords="offset points", fontsize=7,
                ha=("right", "center", "left")[right + 1], va=("top", "center", "bottom")[up + 1],
            )  # fmt: skip
            box = text.get_window_extent()
            outside = not (axes.bbox.contains(box.x0, box.y0) and axes.bbox.contains(box.x1, box.y1))
            covered = sum(Bbox.intersection(box, other) is not None for other in taken) + 5 * outside
            if best is None or covered < best[0]:
                if best is not None:
                    best[1].remove()
                best = covered, text, box
            else:
                text.remove()
            if covered == 0:
                break
        assert best is not None
        taken.append(best[2])
