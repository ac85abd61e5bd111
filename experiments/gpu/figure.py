"""The plot of a GPU run: estimated against measured time, an operation a point."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lightning_modules.files import replacing

MARKERS = {"forward": "o", "input_gradient": "s", "weight_gradient": "^"}
COLOURS = {"forward": "#0072b2", "input_gradient": "#d55e00", "weight_gradient": "#009e73"}


def draw(pairs: Sequence[dict[str, Any]], path: Path, rehearsal: bool) -> None:
    """Write the scatter plot: ours by operation, cuDNN's in grey, and the line on which estimates are true."""
    figure = Figure(figsize=(7, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xscale="log", yscale="log", aspect="equal")
    values = []
    for operation, marker in MARKERS.items():
        own = [each for each in pairs if each["operation"] == operation]
        x = [1e6 * each["estimated_seconds"] for each in own]
        y = [1e6 * each["triton_seconds"] for each in own]
        values += x + y
        label = operation.replace("_", " ")
        axes.scatter(x, y, s=28, marker=marker, color=COLOURS[operation], label=label, alpha=0.85, zorder=3)
    theirs = [each for each in pairs if each.get("torch_seconds")]
    x = [1e6 * each["estimated_seconds"] for each in theirs]
    axes.scatter(x, [1e6 * each["torch_seconds"] for each in theirs], s=8, color="0.6", label="torch (cuDNN)", zorder=2)
    ends = [min(values) / 1.5, max(values) * 1.5]
    axes.plot(ends, ends, color="0.3", linewidth=1, label="measured = estimated", zorder=1)
    axes.plot(
        ends, [2 * end for end in ends], color="0.7", linewidth=1, linestyle="--", label="twice as long", zorder=1
    )
    axes.set_xlabel("estimated, us")
    axes.set_ylabel("measured, us")
    title = "Rehearsal: interpreted on a CPU" if rehearsal else "Each operation of the layers"
    axes.set_title(title)
    axes.grid(which="both", color="0.92", linewidth=0.5)
    figure.legend(frameon=False, loc="outside lower center", ncols=3)
    with replacing(path) as draft:
        figure.savefig(draft, dpi=130)
