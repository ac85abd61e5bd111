"""Channels need not all be connected.

A convolution connects every output channel with every input channel. If each output channel sees two of them only, the
layer has fewer weights and operations, by as much as there are fewer connections: here an eighth. The diagrams show
channels, not positions; as lines and letters were read off the layers, so was the table of LeNet-5, in which each map
of the third layer sees three, four or six maps of the second.

The networks below learn the same digits, with fewer and fewer channels connected in their second layer. These digits
lose little of their accuracy, since the last layer, which sees all channels, puts together what they found.
The networks are trained by PyTorch's operations; everything else is computed by Triton's.
"""

import torch
from torch import Tensor

from experiments.gallery.exact import differing
from experiments.gallery.example import Claim, Example
from experiments.gallery.style import BLUE, GREEN, ORANGE, canvas, chart, picture
from experiments.gallery.training import accuracy, digits, train
from experiments.gallery.wiring import draw_wiring, numbers, responses
from experiments.summary.trace import layers_of
from kernels import conv, use_backend
from kernels.functional import conv2d, table_conv2d
from lightning_modules.architectures import ConnectivityNet, LeNet5

SOURCE = "Deep Learning, figure 9.15 and section 9.5; LeCun et al. (1998), table I"
SHOWS = (conv2d, table_conv2d, conv.forward)
BACKEND = "triton"

CHANNELS, SEEN = 4, 2
SIZE, FILTERS = 12, (16, 32)
GROUPS = (1, 2, 4, 8, 16)


def draw() -> Example:
    full = responses(lambda x: conv2d(x, numbers(CHANNELS, CHANNELS, 1, 1)), (CHANNELS, 1, 1))
    pairs = responses(lambda x: conv2d(x, numbers(CHANNELS, SEEN, 1, 1), groups=CHANNELS // SEEN), (CHANNELS, 1, 1))
    table = LeNet5().c3.table
    connected = responses(lambda x: table_conv2d(x, torch.ones(int(table.sum()), 1, 1), table), (table.shape[1], 1, 1))
    grouped, chosen = same_by_table()

    networks = [ConnectivityNet((1, SIZE, SIZE), groups=groups, filters=FILTERS) for groups in GROUPS]
    layers = [next(row for row in layers_of(n, (1, SIZE, SIZE)) if row.name == "conv2") for n in networks]
    seen = [FILTERS[0] // groups for groups in GROUPS]
    data, images, labels = digits(SIZE)
    accuracies = []
    with use_backend("torch"):
        for network in networks:
            train(network, data, epochs=5, batch_size=64, lr=0.01)
            accuracies.append(accuracy(network, images, labels))

    figure, axes = canvas(5.4, rows=2, columns=3)
    draw_wiring(axes[0, 0], full, "all channels: 16 connections")
    draw_wiring(axes[0, 1], pairs, "each sees two: 8 connections")
    picture(axes[0, 2], connected, "LeNet-5, white: of 6 maps (rows)\nthose that each of 16 sees")
    parameters, flops = [row.weights + row.biases for row in layers], [row.flops for row in layers]
    for axis, title, values, color in (
        (axes[1, 0], "parameters of the layer", parameters, BLUE), (axes[1, 1], "its FLOPs", flops, ORANGE),
        (axes[1, 2], "accuracy of the network", accuracies, GREEN),
    ):  # fmt: skip
        bars = axis.bar(list(map(str, seen)), values, color=color)
        axis.bar_label(bars, [f"{value:,}" if value > 1 else f"{value:.3f}" for value in values], fontsize=8)
        axis.margins(y=0.1)
        chart(axis, title, f"channels that each of {FILTERS[1]} sees", "")

    two, positions = seen.index(SEEN), (SIZE // 2) ** 2
    return Example(
        figure,
        [
            Claim("input channels that each output channel sees", SEEN, seen_by_each(pairs), "book"),
            Claim("output channels that each input channel reaches", SEEN, seen_by_each(pairs.T), "book"),
            Claim("connections of LeNet-5's C3", 60, int(connected.count_nonzero()), "paper"),
            Claim("outputs that differ from a dense convolution with zeros", 0, differing(grouped, chosen)),
            Claim("parameters, all channels", FILTERS[1] * (FILTERS[0] * 9 + 1), parameters[0]),
            Claim("parameters, two channels", FILTERS[1] * (SEEN * 9 + 1), parameters[two]),
            Claim("FLOPs, all channels", 2 * positions * FILTERS[1] * FILTERS[0] * 9, flops[0]),
            Claim("FLOPs, all channels to two", FILTERS[0] / SEEN, flops[0] / flops[two]),
            Claim("accuracy, all channels", 0.93, accuracies[0], "stated beforehand", ">="),
            Claim("accuracy lost with two channels", 0.03, accuracies[0] - accuracies[two], "stated beforehand", "<="),
        ],
        {"channels seen": seen, "parameters": parameters, "FLOPs": flops, "accuracy": accuracies},
    )


def seen_by_each(matrix: Tensor) -> int:
    """How many rows each column of a matrix has entries in; -1 where they differ."""
    counts = matrix.count_nonzero(0).unique()
    return int(counts) if len(counts) == 1 else -1


def same_by_table() -> tuple[Tensor, Tensor]:
    """Whole numbers, whose sums are exact, convolved in groups, and with a table of the same connections."""
    x, weight = (
        torch.randint(-9, 10, (1, CHANNELS, 5, 5)).float(),
        torch.randint(-9, 10, (CHANNELS, SEEN, 3, 3)).float(),
    )
    table = torch.block_diag(*[torch.ones(SEEN, SEEN)] * (CHANNELS // SEEN)).bool()
    return conv2d(x, weight, groups=CHANNELS // SEEN), table_conv2d(x, weight.flatten(0, 1), table)
