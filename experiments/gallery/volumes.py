"""Volumes drawn as boxes: as high as they have rows, as deep as they have columns, as wide as they have channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Polygon

from experiments.gallery.style import BLUE, SIZE

SLANT = 0.35  # of what goes into the page, on paper
SHADES = (0.35, 0.2, 0.5)  # front, top and side
Shape = Sequence[int]  # (C, H, W), or (F,)


def draw_volumes(
    axes: Axes, shapes: Sequence[Shape], names: Sequence[str], scale: Callable[[float], float] = float,
    colours: Sequence[str] = (), gap: float = 0.5,
) -> list[tuple[float, float]]:  # fmt: skip
    """A row of boxes, each with its name and its H x W x C below.

    Args:
        scale: from an extent to its length on paper, where they differ too much to be drawn as they are.
        colours: of each box; default: all blue.
        gap: between boxes, in heights of the highest.

    Returns:
        Where each box is on paper, the left and upper corner of its front.
    """
    volumes = [tuple(shape) if len(shape) == 3 else (*shape, 1, 1) for shape in shapes]
    highest = max(scale(height) for _, height, _ in volumes)
    deepest = max(scale(width) for _, _, width in volumes) * SLANT
    left, corners = 0.0, []
    for (channels, height, width), name, colour in zip(volumes, names, colours or [BLUE] * len(names), strict=True):
        top = scale(height) / 2
        draw_box(axes, left, top, scale(channels), scale(height), scale(width), colour)
        middle = left + (scale(channels) + SLANT * scale(width)) / 2
        axes.text(middle, -highest / 2 - 0.06 * highest, f"{name}\n{height} x {width} x {channels}",
            ha="center", va="top", fontsize=SIZE - 2)  # fmt: skip
        corners.append((left, top))
        left += scale(channels) + SLANT * scale(width) + gap * highest
    axes.set_xlim(-0.4 * highest, left - gap * highest + 0.4 * highest)
    axes.set_ylim(-0.85 * highest, highest / 2 + deepest + 0.05 * highest)
    axes.set_aspect("equal")
    axes.set_axis_off()
    return corners


def draw_box(axes: Axes, left: float, top: float, wide: float, high: float, deep: float, colour: str) -> None:
    """A box whose front has its upper left corner at (left, top)."""
    into, right, bottom = SLANT * deep, left + wide, top - high
    faces = [
        [(left, bottom), (right, bottom), (right, top), (left, top)],
        [(left, top), (right, top), (right + into, top + into), (left + into, top + into)],
        [(right, bottom), (right + into, bottom + into), (right + into, top + into), (right, top)],
    ]
    for corners, shade in zip(faces, SHADES, strict=True):
        axes.add_patch(Polygon(corners, facecolor="white", edgecolor="none"))
        axes.add_patch(Polygon(corners, facecolor=(colour, shade), edgecolor=colour, linewidth=0.8))


def root(extent: float) -> float:
    """A scale on which volumes of a few and of thousands of channels fit into one picture."""
    return math.sqrt(extent)
