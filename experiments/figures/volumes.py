"""Layers are volumes, and neurons look at a small part of one, through all of its depth.

A convolutional network takes a volume of height, width and channels, and each layer gives another. A neuron is
connected to few pixels of it, but to all channels of these: over an image of 32x32x3 a window of 5x5 has 5 * 5 * 3 = 75
weights and one bias, over a volume of 16x16x20 one of 3x3 has 180. Here they are counted by asking for the gradient of
one output, which is not zero exactly where that output looks. The depth of the next volume is the number of kernels;
only the fully connected layer at the end sees everything.
"""

import torch
from matplotlib.axes import Axes
from torch import Tensor

from experiments.gallery.example import Claim, Example
from experiments.gallery.style import BLUE, GREEN, ORANGE, RED, SIZE, mosaic
from experiments.gallery.volumes import SLANT, draw_box, draw_volumes
from kernels import conv
from kernels.functional import conv2d
from kernels.layers import Conv2d
from lightning_modules.architectures import ConvNet
from lightning_modules.data.photographs import photograph

SOURCE = "CS231n, Convolutional Networks; Deep Learning, section 9.5"
SHOWS = (conv2d, conv.transpose)
BACKEND = "triton"

NAMES = ("INPUT", "CONV + RELU", "POOL", "FC")
EXPECTED = ((3, 32, 32), (12, 32, 32), (12, 16, 16), (10, 1, 1))


def draw() -> Example:
    network = ConvNet(input_shape=(3, 32, 32), filters=12, classes=10)
    image = photograph("astronaut", color=True)[:, 48:176:4, 160:288:4][None]  # [1, 3, 32, 32]
    after_conv = network.conv(image)
    after_pool = network.pool(after_conv)
    scores = network(image)
    found = [tuple(each.shape[1:]) for each in (image, after_conv, after_pool, scores[..., None, None])]

    small, large = Conv2d(3, 12, 5, padding="same"), Conv2d(20, 1, 3, padding="same")
    seen_small, seen_large = seen_by_a_neuron(small, (3, 32, 32)), seen_by_a_neuron(large, (20, 16, 16))

    figure, axes = mosaic(5.2, "AA;BC", height_ratios=(1.1, 1))
    draw_volumes(axes["A"], found, NAMES, colours=(ORANGE, BLUE, BLUE, GREEN))
    axes["A"].set_title("each layer makes a volume of a volume", fontsize=SIZE)
    for letter, seen, colour in (("B", seen_small, ORANGE), ("C", seen_large, BLUE)):
        draw_seen(axes[letter], seen, colour)

    sizes = [
        Claim(f"{name}: {what}", expected, measured)
        for name, expects, shape in zip(NAMES[1:], EXPECTED[1:], found[1:], strict=True)
        for what, expected, measured in zip(("channels", "rows", "columns"), expects, shape, strict=True)
    ]
    return Example(
        figure,
        [
            Claim("inputs that a neuron of 5x5 over 32x32x3 looks at", 5 * 5 * 3, int(seen_small.sum())),
            Claim("weights of it", 75, small.weight[0].numel()),
            Claim("and biases", 1, parameters_of_a_neuron(small) - small.weight[0].numel()),
            Claim("inputs that a neuron of 3x3 over 16x16x20 looks at", 180, int(seen_large.sum())),
            Claim("channels of the image that are not looked at", 0, int((seen_small.sum((1, 2)) == 0).sum())),
            *sizes,
        ],
        {"volumes (C, H, W)": found},
    )


def seen_by_a_neuron(layer: Conv2d, shape: tuple[int, int, int]) -> Tensor:
    """Which values of a volume (C, H, W) the neuron in the middle depends on, bool as its gradient says."""
    volume = torch.randn(1, *shape, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(volume)[0, 0, shape[1] // 2, shape[2] // 2], volume)
    return gradient[0] != 0


def draw_seen(axes: Axes, seen: Tensor, colour: str) -> None:
    """A volume, and in it in red the box of the values that are seen, bool [C, H, W]."""
    ((left, top),) = draw_volumes(axes, [seen.shape], ["a neuron looks at red, of"], colours=[colour])
    places = seen.nonzero()[:, 1:]  # rows and columns
    first = places.amin(0).tolist()
    extent = (places.amax(0) - places.amin(0) + 1).tolist()
    into = first[1] * SLANT
    draw_box(axes, left + into, top - first[0] + into, len(seen), extent[0], extent[1], RED)
    axes.set_title(f"{extent[0]} x {extent[1]} x {len(seen)} = {int(seen.sum())} weights", fontsize=SIZE)


def parameters_of_a_neuron(layer: Conv2d) -> int:
    """Parameters that one output depends on: those whose gradient is not zero."""
    output = layer(torch.ones(1, layer.in_channels, 32, 32))[0, 0, 16, 16]
    return sum(int((gradient != 0).sum()) for gradient in torch.autograd.grad(output, list(layer.parameters())))
