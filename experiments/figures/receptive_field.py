"""The receptive field grows with depth.

A unit of the first layer sees three pixels, one of the second sees five: its inputs see three each, and overlap. So
deep units see much of the picture though every connection is short. With plain windows of three the field grows by two
a layer. Where layers take strides of two, or windows are dilated by 1, 2, 4, 8, it doubles.

What a unit can see, by arithmetic, is what it does see: where the gradient of a unit in the middle by the input is not
zero. But it does not see all of it equally well. There are more paths through the network from the middle of the field
than from its edges: with equal weights the gradient is trinomial, nearly a Gaussian.
"""

from typing import Any

import torch
from torch import Tensor, nn

from experiments.gallery.example import Claim, Example
from experiments.gallery.style import BLUE, GREEN, ORANGE, canvas, chart, picture
from experiments.gallery.wiring import connections, derivative
from experiments.summary.trace import layers_of
from kernels import transpose
from kernels.functional import conv1d
from kernels.layers import Conv1d, Conv2d

SOURCE = "Deep Learning, figure 9.4; of dilation, Yu and Koltun (2016); of the Gaussian, Luo et al. (2016)"
SHOWS = (conv1d, transpose._transpose_kernel)
BACKEND = "triton"

DEPTH, PIXELS = 4, 65
STRIDES = {"plain": (1, 1, 1, 1), "strides of 2": (2, 2, 2, 2), "dilated by 1, 2, 4, 8": (1, 1, 1, 1)}
DILATIONS = {"plain": (1, 1, 1, 1), "strides of 2": (1, 1, 1, 1), "dilated by 1, 2, 4, 8": (1, 2, 4, 8)}
EXPECTED = {"plain": 1 + 2 * DEPTH, "strides of 2": 2 ** (DEPTH + 1) - 1, "dilated by 1, 2, 4, 8": 2 ** (DEPTH + 1) - 1}
LOOKS: tuple[dict[str, Any], ...] = (
    {"color": BLUE, "marker": "o"}, {"color": ORANGE, "marker": "s", "markersize": 10, "linewidth": 4},
    {"color": GREEN, "marker": "^"},
)  # fmt: skip  # the last two curves are the same


def draw() -> Example:
    figure, axes = canvas(3.4, columns=3, width_ratios=(1.2, 1.1, 0.9))
    layer = Conv1d(1, 1, 3, padding="same", bias=False)
    one = derivative(layer, 5)
    seen = torch.zeros(5, 5).index_fill(0, torch.tensor(2), 1)  # g3 sees its window, and these units theirs
    connections(axes[0, 0], one, (one[2] != 0)[:, None].float() * one, names="xh")
    connections(axes[0, 0], one, seen, "what $g_3$ sees", names="hg", level=1)

    claims = [Claim("pixels that a unit of the second layer sees", 5, float((one @ one)[2].count_nonzero()), "book")]
    numbers = {}
    for (name, expected), look in zip(EXPECTED.items(), LOOKS, strict=True):
        network = nn.Sequential(*(Conv1d(1, 1, 3, stride, dilation, dilation, bias=False)
            for stride, dilation in zip(STRIDES[name], DILATIONS[name], strict=True)))  # fmt: skip
        by_arithmetic = [row.field[0] for row in layers_of(network, (1, PIXELS)) if row.field is not None]
        measured = [1, *(pixels_seen(network[:depth]) for depth in range(1, DEPTH + 1))]
        claims += [
            Claim(f"pixels that a unit of layer {DEPTH} sees, {name}", expected, measured[-1]),
            Claim(f"layers where that is not as by `convnets summary`, {name}", 0,
                sum(mine != its for mine, its in zip(measured, by_arithmetic, strict=True))),
        ]  # fmt: skip
        numbers[name] = measured
        axes[0, 1].plot(measured, label=name, **look)
    axes[0, 1].legend(fontsize=8)
    chart(axes[0, 1], "windows of three", "layers", "pixels seen, measured by gradients")

    paths = influence()
    picture(axes[0, 2], paths, "influence of each pixel\non a unit of layer 6, 3x3", signed=True)
    middle = slice(4, 9)
    claims.append(Claim("of 13x13 pixels seen, influence of the middle 5x5, in percent: (573 / 729)^2",
        100 * (573 / 729) ** 2, 100 * float(paths[middle, middle].sum() / paths.sum()), within=1e-4))  # fmt: skip
    return Example(figure, claims, {"pixels seen, by depth": numbers})


def pixels_seen(network: nn.Module) -> int:
    """By how many pixels the unit in the middle of the output has a gradient that is not zero."""
    return int(gradient(network, torch.randn(1, PIXELS)).count_nonzero())


def gradient(network: nn.Module, image: Tensor) -> Tensor:
    """Of the unit in the middle of the output, by the pixels of an image [1, *grid]."""
    image.requires_grad_()
    output = network(image).flatten()
    return torch.autograd.grad(output[len(output) // 2], image)[0][0]


def influence() -> Tensor:
    """Paths from each pixel to one unit through six layers of 3x3, [13, 13]: its gradient where weights are one."""
    network = nn.Sequential(*(Conv2d(1, 1, 3, bias=False) for _ in range(6)))
    for weight in network.parameters():
        nn.init.ones_(weight)
    return gradient(network, torch.zeros(1, 13, 13))
