"""Max pooling makes a network less sensitive to small translations.

Above, the book's example: four outputs of a detector and, over them, the largest of each three. When the input moves by
one pixel every value of the detector changes, but only half of the pooled ones, as a maximum asks whether something is
there and not exactly where. Below, what it does for recognition: two networks with the same kernels learn digits that
are in the middle; one pools, the other takes as many outputs by striding, and so skips some pixels altogether. Then the
digits are moved. Where both have seen nothing of the kind, the one that pools keeps more of its answers. (They are
trained by PyTorch's operations.)
"""

import torch
from matplotlib.axes import Axes
from torch import nn
from torch.nn import functional as F

from experiments.gallery.exact import differing
from experiments.gallery.example import Claim, Example
from experiments.gallery.style import BLUE, GREY, ORANGE, SIZE, chart, mosaic
from experiments.gallery.training import train
from kernels import pool, use_backend
from kernels.functional import max_pool1d
from kernels.layers import Conv2d, Linear, MaxPool2d
from lightning_modules.data import DigitsDataModule
from lightning_modules.data.datasets import BatchedImages

SOURCE = "Deep Learning, figure 9.8 and section 9.3"
SHOWS = (max_pool1d, pool._pool_kernel)
BACKEND = "triton"

LINE = torch.tensor([0.3, 0.1, 1.0, 0.2, 0.1])  # of which the detector stage shows four values
POOLED = ((1.0, 1.0, 1.0, 0.2), (0.3, 1.0, 1.0, 1.0))
DIGITS = 100  # that are moved
SHIFTS = range(-4, 5)
FAR = 3  # pixels at which the networks are compared
EDGE = 4  # pixels of background around a digit, to move into


def draw() -> Example:
    detector = (LINE[1:5], LINE[0:4])  # before the input moves to the right by one pixel, and after
    pooled = [max_pool1d(stage[None, None], 3, stride=1, padding=1)[0, 0] for stage in detector]
    changed = differing(*detector)
    pooled_changed = differing(*pooled)
    wrong = differing(torch.stack(pooled), torch.tensor(POOLED))
    curves = {name: answers_kept(pools) for name, pools in (("with pooling", True), ("with strides", False))}

    figure, axes = mosaic(6.2, "AB;CC", height_ratios=(1, 1.4))
    for place, stage, outputs, title in zip(
        (axes["A"], axes["B"]), detector, pooled, ("an input", "moved right by one pixel"), strict=True
    ):
        draw_stages(place, tuple(stage.tolist()), outputs.tolist(), title)
    below = axes["C"]
    for (name, kept), colour, marker in zip(curves.items(), (BLUE, ORANGE), "os", strict=True):
        below.plot(list(SHIFTS), kept, marker=marker, color=colour, label=name)
    below.legend(fontsize=SIZE - 1)
    below.set_ylim(0, 1.05)
    chart(below, "digits that a trained network still gives the same class", "pixels moved to the right", "share")

    far = {name: (kept[SHIFTS.index(FAR)] + kept[SHIFTS.index(-FAR)]) / 2 for name, kept in curves.items()}
    gain = far["with pooling"] - far["with strides"]
    return Example(
        figure,
        [
            Claim("values of the detector that change", 4, changed, "book"),
            Claim("values after pooling that change, of 4", 2, pooled_changed, "book"),
            Claim("pooled values that are not the book's", 0, wrong, "book"),
            Claim(f"share of answers kept {FAR} pixels away, gained by pooling", 0.15, gain, "stated beforehand", ">="),
        ],
        {"answers kept": curves, "shifts": list(SHIFTS)},
    )  # fmt: skip


def answers_kept(pools: bool) -> list[float]:
    """Share of the test digits whose class stays the same, for each shift."""
    data = DigitsDataModule(image_size=16)
    data.setup("fit")
    digits, images = (F.pad(split.images, (EDGE,) * 4, value=-1) for split in (data.train, data.test))  # [N, 1, 24, 24]
    network = small_network(pools)
    with use_backend("torch"):
        train(network, BatchedImages(digits, data.train.labels), epochs=6, batch_size=64, lr=0.005)
    with torch.no_grad():
        moved = torch.cat([images[:DIGITS].roll(shift, 3) for shift in SHIFTS])  # what comes round is background
        classes = network(moved).argmax(1).view(len(SHIFTS), DIGITS)
    return (classes == classes[SHIFTS.index(0)]).float().mean(1).tolist()


def small_network(pools: bool) -> nn.Module:
    """Two convolutions, each followed by pooling or with its stride instead, and a linear layer."""
    first, second = (1, 1) if pools else (2, 6)
    return nn.Sequential(
        Conv2d(1, 16, 5, stride=first, padding=2, activation="relu"), MaxPool2d(2) if pools else nn.Identity(),
        Conv2d(16, 32, 5, stride=second, padding=2, activation="relu"), MaxPool2d(6) if pools else nn.Identity(),
        nn.Flatten(), Linear(2 * 2 * 32, 10),
    )  # fmt: skip


def draw_stages(axes: Axes, detector: tuple[float, ...], pooled: list[float], title: str) -> None:
    """The detector's values below, the maximum of each three neighbours above."""
    for place in range(len(detector)):
        for neighbour in range(max(0, place - 1), min(len(detector), place + 2)):
            axes.plot([neighbour, place], [0.2, 0.8], color=GREY, linewidth=1, zorder=1)
    for height, values, colour in ((0, detector, ORANGE), (1, pooled, BLUE)):
        axes.scatter(range(len(values)), [height] * len(values), s=900, color="white", edgecolor=colour, linewidth=2)
        for place, value in enumerate(values):
            axes.text(place, height, f"{value:.1f}", ha="center", va="center", fontsize=SIZE)
    for height, name in ((0, "detector"), (1, "pooling")):
        axes.text(-0.45, height, name, ha="right", va="center", fontsize=SIZE - 1)
    axes.set(xlim=(-1.4, len(detector) - 0.4), ylim=(-0.5, 1.5))
    axes.set_title(title, fontsize=SIZE)
    axes.set_axis_off()
