"""Who is connected with whom, and by which weight: asked of the layer itself, and drawn."""

from __future__ import annotations

from collections.abc import Callable
from string import ascii_lowercase

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import ArrayLike
from torch import Tensor
from torch.autograd.functional import jacobian

from experiments.gallery.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SIZE, SKY

COLORS = (BLUE, ORANGE, GREEN, PURPLE)


def numbers(*shape: int) -> Tensor:
    """A weight of this shape whose entries are 1, 2, 3, ..."""
    return torch.arange(1.0, torch.Size(shape).numel() + 1).view(shape)


def responses(layer: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """The matrix of a linear layer without bias, [inputs, outputs]: its outputs for one unit of each input of `shape`.

    Where the weights of the layer are `numbers`, each entry names the weight that connects the two, and 0
    says that none does.
    """
    units = torch.eye(torch.Size(shape).numel()).view(-1, *shape)
    return layer(units).flatten(1)


def derivative(layer: Callable[[Tensor], Tensor], units: int) -> Tensor:
    """The Jacobian [outputs, inputs] of a layer over a line [1, units], by its gradients."""
    return jacobian(lambda line: layer(line[None])[0], torch.randn(units)).detach()


def draw_wiring(axes: Axes, matrix: Tensor, title: str) -> None:
    """Draw inputs below, outputs above, and the connections that `matrix` of `responses` names.

    The same colour is the same weight, where there are few; the same letter, too, where there is room for it.
    """
    inputs, outputs = matrix.shape
    weights = matrix.unique()
    numbers = weights[weights != 0].tolist()
    few, lettered = len(numbers) <= len(COLORS), len(numbers) < inputs * outputs
    for source, target in matrix.nonzero().tolist():
        weight = numbers.index(matrix[source, target].item())
        color = COLORS[weight] if few else GREY
        axes.plot([source, target], [0, 1], color=color, linewidth=2.2 if few else 1.4, zorder=1)
        if lettered:
            axes.text(source + 0.32 * (target - source), 0.32, ascii_lowercase[weight], ha="center", va="center",
                fontsize=SIZE - 1, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6})  # fmt: skip
    for height, count, name in ((0, inputs, "x"), (1, outputs, "s")):
        axes.scatter(range(count), [height] * count, s=330, color="white", edgecolors="black", zorder=2)
        for unit in range(count):
            axes.text(unit, height, f"${name}_{unit + 1}$", ha="center", va="center", fontsize=SIZE - 1, zorder=3)
    axes.set_xlim(-0.5, max(inputs, outputs) - 0.5)
    axes.set_ylim(-0.25, 1.25)
    axes.set_axis_off()
    axes.set_title(title, fontsize=SIZE)


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
