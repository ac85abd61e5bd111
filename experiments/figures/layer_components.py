"""The stages of a convolutional layer, and its two terminologies.

A convolutional layer has three stages: convolutions, which are affine; a detector stage, where each value goes through
a nonlinearity; and pooling. One may call all of it a layer, with three stages, or call each stage a layer, so that not
every layer has parameters. The stages of a trained layer are shown on one digit. In our library the complex layer is
one kernel, which writes the pooled maps only; taken apart it gives the same values, in three steps and with all that
lies between written to memory. (The network is trained by PyTorch's operations.)
"""

import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from torch import nn

from experiments.gallery.exact import rounding
from experiments.gallery.example import Claim, Example
from experiments.gallery.style import BLUE, GREEN, ORANGE, SIZE, mosaic, picture
from experiments.gallery.training import accuracy, train
from kernels import conv, use_backend
from kernels.backend import launch_count
from kernels.functional import conv2d, max_pool2d
from kernels.layers import Conv2d, Linear, MaxPool2d
from lightning_modules.data import DigitsDataModule

SOURCE = "Deep Learning, figure 9.7"
SHOWS = (Conv2d, conv.forward_max, conv._forward_kernel)
BACKEND = "triton"

SIDE, FILTERS, KERNEL = 16, 8, 5
STAGES = ("convolution", "detector", "pooling")
DETAILS = ("affine transform", "nonlinearity, e.g. rectified linear", "e.g. the largest of each 2x2")


def draw() -> Example:
    data = DigitsDataModule(image_size=SIDE)
    data.setup("fit")
    layer = Conv2d(1, FILTERS, KERNEL, padding="same", activation="relu", pool=MaxPool2d(2))
    network = nn.Sequential(layer, nn.Flatten(), Linear(FILTERS * (SIDE // 2) ** 2, data.classes))
    with use_backend("torch"):
        train(network, data.train, epochs=6, batch_size=64, lr=0.01)
        share = accuracy(network, data.test.images, data.test.labels)

    image = data.test.images[:1]
    with torch.no_grad():
        before = launch_count()
        complex_layer = layer(image)
        launches = launch_count() - before
        convolved = conv2d(image, layer.weight, layer.bias, padding="same")
        detected = convolved.relu()
        pooled = max_pool2d(detected, 2)

    figure, axes = mosaic(6.2, "IITTTTTT;abcdefgh;ijklmnop;qrstuvwx", height_ratios=(2.2, 1, 1, 1))
    picture(axes["I"], image[0, 0], "input")
    draw_terminology(axes["T"])
    for row, name, volume in zip(
        ("abcdefgh", "ijklmnop", "qrstuvwx"), STAGES, (convolved, detected, pooled), strict=True
    ):
        for letter, values in zip(row, volume[0], strict=True):
            picture(axes[letter], values, signed=True)
        axes[row[0]].set_ylabel(name, fontsize=SIZE - 1)

    return Example(
        figure,
        [
            Claim("largest difference of the complex layer from three simple ones", 0,
                float((complex_layer - pooled).abs().max()), within=rounding(image, layer.weight, "same")),
            Claim("values below zero after the detector stage", 0, int((detected < 0).sum())),
            Claim("values that the detector stage changes but should not", 0,
                int((detected != convolved)[convolved > 0].sum())),
            Claim("values that are written by the three / by the complex layer", 9,
                sum(each.numel() for each in (convolved, detected, pooled)) / complex_layer.numel()),
            Claim("test digits that are recognised, a share", 0.9, share, "stated beforehand", ">="),
        ],
        {"kernels launched for the complex layer": launches, "values below zero before": int((convolved < 0).sum())},
    )  # fmt: skip


def draw_terminology(axes: Axes) -> None:
    """One layer of three stages on the left, three layers on the right."""
    for left, kind, frame in ((0.0, "stage", BLUE), (5.2, "layer", ORANGE)):
        for place, (name, detail) in enumerate(zip(STAGES, DETAILS, strict=True)):
            axes.add_patch(FancyBboxPatch((left + 0.3, 2.2 - 1.1 * place), 4, 0.7, "round,pad=0.1", facecolor="white",
                edgecolor=GREEN if kind == "stage" else frame))  # fmt: skip
            axes.text(
                left + 2.3, 2.55 - 1.1 * place, f"{name} {kind}:\n{detail}", ha="center", va="center", fontsize=SIZE - 2
            )
    axes.add_patch(
        FancyBboxPatch((0.1, -0.2), 4.4, 3.3, "round,pad=0.1", facecolor="none", edgecolor=BLUE, linewidth=2)
    )
    axes.text(2.3, 3.45, "complex layer terminology: one layer", ha="center", fontsize=SIZE)
    axes.text(7.5, 3.45, "simple layer terminology: three layers", ha="center", fontsize=SIZE)
    axes.set(xlim=(-0.3, 10), ylim=(-0.5, 3.9))
    axes.set_axis_off()
