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
