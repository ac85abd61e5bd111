"""Pooling with a stride makes the volume smaller.

As pooling summarises a whole neighbourhood, there may be fewer pooling windows than detectors: with a stride of two
there are half as many outputs, and the next layer has half as much to do along each axis. Above, the book's example,
windows of three, two apart, over six detectors: the last window has two of them only, and must be taken in all the same
if no detector is to be ignored (`ceil_mode`). Below, windows of 2x2 halve both sides of a volume and leave its depth
alone: each channel is pooled by itself.
"""

import torch
from matplotlib.axes import Axes
from torch import Tensor

from experiments.gallery.exact import differing
from experiments.gallery.example import Claim, Example
from experiments.gallery.style import BLUE, GREY, ORANGE, RED, SIZE, mosaic, picture
from experiments.gallery.volumes import draw_volumes, root
from kernels import pool
from kernels.functional import max_pool1d, max_pool2d
from lightning_modules.data.photographs import photograph

SOURCE = "Deep Learning, figure 9.10; CS231n, Pooling Layer"
SHOWS = (max_pool1d, max_pool2d, pool._pool_kernel)
BACKEND = "triton"

DETECTORS = (0.1, 1.0, 0.2, 0.1, 0.0, 0.1)
POOLED = (1.0, 0.2, 0.1)
SIDE, CHANNELS = 224, 64


def draw() -> Example:
    detectors = torch.tensor([[DETECTORS]])
    pooled = max_pool1d(detectors, 3, stride=2, ceil_mode=True)[0, 0]
    without_last = max_pool1d(detectors, 3, stride=2)[0, 0]

    image = photograph("chelsea", color=False)[:, 30 : 30 + SIDE, 110 : 110 + SIDE]
    volume = image * torch.linspace(0.5, 1.5, CHANNELS).view(-1, 1, 1)  # the channels differ in brightness only
    halved = max_pool2d(volume[None], 2)[0]  # [64, 112, 112]
    blocks = volume.view(CHANNELS, SIDE // 2, 2, SIDE // 2, 2).amax((2, 4))

    figure, axes = mosaic(6.2, "AAA;BCD", height_ratios=(1, 1.5), width_ratios=(1.6, 1, 1))
    draw_windows(axes["A"], pooled)
    draw_volumes(axes["B"], [volume.shape, halved.shape], ("INPUT", "POOL"), root, (ORANGE, BLUE))
    picture(axes["C"], volume[31, 40:100, 60:120], "60x60 pixels of a channel")
    picture(axes["D"], halved[31, 20:50, 30:60], "pooled: 30x30")

    return Example(
        figure,
        [
            Claim("outputs of six detectors, width 3, stride 2", 3, len(pooled), "book"),
            Claim("pooled values that are not the book's", 0, differing(pooled, torch.tensor(POOLED)), "book"),
            Claim("outputs if the last, smaller window is left out", 2, len(without_last)),
            Claim("224x224x64 pooled by 2x2: channels", 64, halved.shape[0]),
            Claim("rows", 112, halved.shape[1]),
            Claim("columns", 112, halved.shape[2]),
            Claim("values that are not the largest of their 2x2 block", 0, differing(halved, blocks)),
            Claim("values of the input for each that is left", 4, volume.numel() / halved.numel()),
        ],
        {"pooled": pooled.tolist()},
    )


def draw_windows(axes: Axes, pooled: Tensor) -> None:
    """Detectors below, the windows over them, and the largest value of each above."""
    for number, value in enumerate(pooled.tolist()):
        start, end = 2 * number, min(2 * number + 2, len(DETECTORS) - 1)
        middle, colour = 2 * number + 1, GREY if 2 * number + 2 < len(DETECTORS) else RED
        for detector in range(start, end + 1):
            axes.plot([detector, middle], [0.18, 0.82], color=colour, linewidth=1.5, zorder=1)
        draw_unit(axes, middle, 1, value, BLUE)
    for detector, value in enumerate(DETECTORS):
        draw_unit(axes, detector, 0, value, ORANGE)
    axes.text(5.5, 0.9, "the last window\nhas two detectors", color=RED, fontsize=SIZE - 1, va="center")
    for height, name in ((0, "detector"), (1, "pooling")):
        axes.text(-0.6, height, name, ha="right", va="center", fontsize=SIZE - 1)
    axes.set(xlim=(-1.6, 7.2), ylim=(-0.4, 1.4))
    axes.set_axis_off()


def draw_unit(axes: Axes, x: float, y: float, value: float, colour: str) -> None:
    axes.scatter([x], [y], s=800, color="white", edgecolor=colour, linewidth=2, zorder=2)
    axes.text(x, y, f"{value:.1f}", ha="center", va="center", fontsize=SIZE)
