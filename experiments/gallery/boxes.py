"""Networks drawn as boxes, a volume each."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Arc, Rectangle

from experiments.gallery.style import BLUE, GREEN, GREY, ORANGE
from experiments.summary.trace import Row

COLORS = {"ConvTranspose": ORANGE, "Conv2d": BLUE, "Pool": GREEN}  # by a part of the layer's kind
GAP = 3.0
ARC = 14.0  # the height of two halves


def draw_boxes(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw the output (C, H, W) of each convolution and pooling as a box, H high and the root of C wide.

    The branches of a module of `trunk` are above one another; arcs lead to where a volume is added.
    """
    boxes: list[tuple[float, tuple[int, ...]]] = []  # the right end, and the volume
    left = right = 0.0
    before = ""
    for row in rows:
        if "residual" in row.kind:
            # Either the last volume of this shape that its own branch did not make, or the one before that branch.
            start, _ = next((box for box in reversed(boxes[:-2]) if box[1] == row.output), boxes[-3])
            place = ((start + right) / 2, row.output[1] / 2)
            axes.add_patch(Arc(place, right - start, ARC, theta2=180, color=GREY))
        color = next((color for kind, color in COLORS.items() if kind in row.kind), None)
        if color is None:
            continue
        channels, height, _ = row.output
        width, module = channels**0.5, ".".join(row.name.split(".")[:2])
        branches = row.name.startswith("trunk.")
        second = branches and module == before
        left = left if second else right + GAP
        bottom = 0 if branches and not second else -height / 2
        box = Rectangle((left, bottom), width, height / 2 if branches else height, facecolor=color, edgecolor="white")
        axes.add_patch(box)
        right = max(right, left + width) if second else left + width
        boxes.append((right, row.output))
        before = module
    highest = max(row.output[1] for row in rows if len(row.output) == 3)
    axes.set_xlim(0, right + GAP)
    axes.set_ylim(-highest / 2 - 1, highest / 2 + ARC / 2 + 1)
    axes.set_axis_off()
