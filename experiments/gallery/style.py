"""One style for all pictures of the lecture: legible at the width of a README, and by the colour-blind."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#999999"
)  # fmt: skip  # Okabe and Ito
DPI = 110
WIDTH = 9.0  # inches
SIZE = 10  # points of text
GREYS = "gray"  # of pictures
SIGNED = "RdBu_r"  # of values about zero: blue below, red above


def canvas(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure of the common width, `height` inches high, and its axes [rows, columns]."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained", dpi=DPI)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes


def mosaic(height: float, layout: str, **options: Any) -> tuple[Figure, dict[str, Axes]]:
    """A figure of the common width, and its axes by their letters in a layout such as "AAB;CCC"."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained", dpi=DPI)
    return figure, figure.subplot_mosaic(layout, **options)


def picture(axes: Axes, image: ArrayLike, title: str = "", signed: bool = False, numbered: bool = False) -> None:
    """Draw an image [H, W] or [H, W, 3] without axes.

    Args:
        signed: about zero, in colour.
        numbered: write each value into its cell.
    """
    values = np.asarray(image)
    largest = float(np.abs(values).max()) or 1.0
    limits = {"vmin": -largest, "vmax": largest, "cmap": SIGNED} if signed else {"cmap": GREYS}
    axes.imshow(values, interpolation="nearest", **limits)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=SIZE)
    if numbered:
        for (row, column), value in np.ndenumerate(values):
            dark = abs(value) > 0.6 * largest if signed else value < values.min() + 0.5 * np.ptp(values)
            axes.text(column, row, f"{value:g}", ha="center", va="center", fontsize=SIZE - 2,
                color="white" if dark else "black")  # fmt: skip


def chart(axes: Axes, title: str, x: str, y: str) -> None:
    """Titles, labels and a grid for a chart."""
    axes.set_title(title, fontsize=SIZE)
    axes.set_xlabel(x, fontsize=SIZE - 1)
    axes.set_ylabel(y, fontsize=SIZE - 1)
    axes.tick_params(labelsize=SIZE - 2)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def connections(
    axes: Axes, matrix: ArrayLike, marked: ArrayLike, title: str = "", names: str = "xs", shaded: bool = True,
    level: int = 0,
) -> None:  # fmt: skip
    """Draw a layer as a graph: outputs above inputs, a line wherever one depends on the other.

    Args:
        matrix: the Jacobian, or any matrix [outputs, inputs] that is not zero where there is a connection.
        marked: the same, of lines that are strong.
        names: of an input and of an output, which are numbered from 1.
        shaded: colour the ends of strong lines.
        level: layers that are drawn below.
    """
    connected = np.asarray(matrix) != 0
    strong = connected & (np.asarray(marked) != 0)
    counts = connected.shape[::-1]
    places = [np.linspace(0, max(counts) - 1, count) for count in counts]
    for output, input in np.argwhere(connected):
        color, width, order = (BLUE, 2.5, 2) if strong[output, input] else (GREY, 1, 1)
        axes.plot([places[0][input], places[1][output]], [level, level + 1], color=color, linewidth=width, zorder=order)
    for row, (name, ends) in enumerate(zip(names, (strong.any(0), strong.any(1)), strict=True), start=level):
        for number, (place, end) in enumerate(zip(places[row - level], ends, strict=True), start=1):
            axes.text(place, row, f"${name}_{{{number}}}$", ha="center", va="center", fontsize=SIZE, bbox={
                "boxstyle": "circle,pad=0.25", "facecolor": SKY if end and shaded else "white", "edgecolor": "black"
            })  # fmt: skip
    axes.set(xlim=(-0.6, max(counts) - 0.4), ylim=(-0.3, level + 1.3))
    axes.set_title(title, fontsize=SIZE)
    axes.axis("off")
