"""Zero padding decides how deep a network can be.

Without padding each layer of windows six wide takes five pixels from the grid, and soon there is nothing left. With
padding the grid keeps its size, and the network may be as deep as one likes; the pixels at the edge then see fewer true
values than those in the middle. "Valid" has no padding, "same" keeps the size, and "full" has every window that touches
the grid. One formula gives the size of them all: (n + padding - kernel) // stride + 1.
"""

import itertools

import torch

from experiments.gallery.example import Claim, Example
from experiments.gallery.style import BLUE, GREEN, ORANGE, canvas, chart, picture
from kernels import conv
from kernels.functional import conv1d, conv2d

SOURCE = "Deep Learning, figure 9.13 and section 9.5"
SHOWS = (conv1d, conv.forward)
BACKEND = "triton"

WIDTH, KERNEL, DEPTH = 16, 6, 30
SIZES, KERNELS, STRIDES = (5, 8, 11), (1, 2, 3, 5), (1, 2, 3)


def draw() -> Example:
    unpadded, padded = widths(padding="valid"), widths(padding="same")
    mismatches, cases = wrong_sizes()
    edge = values_seen()

    figure, axes = canvas(3.2, columns=3, width_ratios=(1.4, 1, 1))
    layers = len(unpadded) - 1
    axes[0, 0].plot(unpadded, marker="o", color=ORANGE, label="valid: no padding")
    axes[0, 0].plot(padded[: 2 * layers + 1], marker="s", color=BLUE, label="same: padded by zeros")
    axes[0, 0].legend(fontsize=8)
    chart(axes[0, 0], f"windows of {KERNEL} over {WIDTH} pixels", "layers", "pixels that are left")
    image = torch.ones(1, 1, 5, 5)
    sizes = {name: conv2d(image, torch.ones(1, 1, 3, 3), padding=name)[0, 0] for name in ("valid", "same", "full")}
    axes[0, 1].bar(list(sizes), [len(output) for output in sizes.values()], color=GREEN)
    chart(axes[0, 1], "5x5 pixels, 3x3 windows", "", "pixels of a side")
    picture(axes[0, 2], edge, "true pixels that each output\nof a same convolution sees", numbered=True)

    return Example(
        figure,
        [
            Claim("layers until no window fits, without padding", 3, layers, "book"),
            Claim(f"pixels after {DEPTH} layers, with padding", WIDTH, padded[DEPTH]),
            Claim("sizes that differ from the formula", 0, mismatches),
            Claim("valid, 5 pixels and a window of 3", 3, len(sizes["valid"])),
            Claim("same", 5, len(sizes["same"])),
            Claim("full", 7, len(sizes["full"])),
            Claim("true pixels that a corner of a same 3x3 convolution sees", 4, float(edge[0, 0])),
        ],
        {"widths without padding": unpadded, "widths with padding": padded, "sizes compared": cases},
    )


def widths(padding: str) -> list[int]:
    """Pixels before each layer, until no window fits any more, or after DEPTH layers."""
    pixels, found = torch.ones(1, 1, WIDTH), [WIDTH]
    while pixels.shape[-1] >= KERNEL and len(found) <= DEPTH:
        pixels = conv1d(pixels, torch.ones(1, 1, KERNEL) / KERNEL, padding=padding)
        found.append(pixels.shape[-1])
    return found


def wrong_sizes() -> tuple[int, int]:
    """How often the size of a real output is not the formula's, of how many."""
    wrong = cases = 0
    for size, kernel, stride in itertools.product(SIZES, KERNELS, STRIDES):
        paddings: dict[int | str, int] = {padding: 2 * padding for padding in range(kernel)}  # and how many pixels
        paddings["full"] = 2 * (kernel - 1)
        if stride == 1:
            paddings["same"] = kernel - 1
        for padding, pixels in paddings.items():
            output = conv1d(torch.ones(1, 1, size), torch.ones(1, 1, kernel), stride=stride, padding=padding)
            cases += 1
            wrong += output.shape[-1] != (size + pixels - kernel) // stride + 1
    return wrong, cases


def values_seen() -> torch.Tensor:
    """Ones under a window of ones: how many true pixels it has, [5, 5]."""
    return conv2d(torch.ones(1, 1, 5, 5), torch.ones(1, 1, 3, 3), padding="same")[0, 0]
