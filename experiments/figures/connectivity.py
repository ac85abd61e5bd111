"""Local, shared, full: who is connected, and who shares a weight.

A local layer and a convolution have the same connections: each output sees a few neighbours. They differ in weights:
the local layer has one for each connection, and the convolution uses the same few everywhere (the same letter is the
same weight). A fully connected layer has a connection, and a weight, for every pair. Letters and lines were read off
the layers: the weights are the numbers 1, 2, 3, ..., and a single one was put into each input.

Below, three networks of the same volumes learn the same digits. The one that shares has the fewest parameters by far.
All three recognise digits that stand where those of the training stood; of digits that are moved by up to two pixels,
which were not in training, the convolution recognises most, since what it learned at one place it knows at all. The
networks are trained by PyTorch's operations; everything else is computed by Triton's.
"""

from torch import nn

from experiments.gallery.example import Claim, Example
from experiments.gallery.style import BLUE, GREY, ORANGE, canvas, chart
from experiments.gallery.training import learned
from experiments.gallery.wiring import draw_wiring, numbers, responses
from experiments.summary.table import totals
from experiments.summary.trace import Row, layers_of
from kernels import conv, use_backend
from kernels.functional import conv1d, linear, local_conv2d
from kernels.layers import Linear, MaxPool2d
from lightning_modules.architectures import ConnectivityNet

SOURCE = "Deep Learning, figure 9.14 and section 9.5"
SHOWS = (conv1d, local_conv2d, linear, conv.forward)
BACKEND = "triton"

UNITS, WINDOW = 5, 2
SIZE, FILTERS = 12, (16, 32)
COLORS = (ORANGE, BLUE, GREY)


def draw() -> Example:
    matrices = {
        "local": responses(
            lambda x: local_conv2d(x, numbers(1, UNITS, 1, 1, 1, WINDOW), padding="same"), (1, 1, UNITS)
        ),
        "convolution": responses(lambda x: conv1d(x, numbers(1, 1, WINDOW), padding="same"), (1, UNITS)),
        "full": responses(lambda x: linear(x, numbers(UNITS, UNITS)), (UNITS,)),
    }
    networks = {
        "local": ConnectivityNet((1, SIZE, SIZE), "local", filters=FILTERS),
        "convolution": ConnectivityNet((1, SIZE, SIZE), "full", filters=FILTERS),
        "full": fully_connected(),
    }
    weights = {name: len(matrix[matrix != 0].unique()) for name, matrix in matrices.items()}
    connections = {name: int(matrix.count_nonzero()) for name, matrix in matrices.items()}
    layers = {name: convolutions(network) for name, network in networks.items()}
    sums = {name: totals(rows) for name, rows in layers.items()}
    parameters = {name: each.parameters for name, each in sums.items()}
    flops = {name: each.flops for name, each in sums.items()}
    with use_backend("torch"):
        accuracies = {name: learned(network, SIZE) for name, network in networks.items()}

    figure, axes = canvas(5.6, rows=2, columns=3, height_ratios=(1, 1.1))
    for axis, (name, matrix) in zip(axes[0], matrices.items(), strict=True):
        draw_wiring(axis, matrix, f"{name}: {connections[name]} connections, {weights[name]} weights")
    for axis, title, values in ((axes[1, 0], "parameters", parameters), (axes[1, 1], "FLOPs", flops)):
        bars = axis.bar(list(values), list(values.values()), color=COLORS)
        axis.bar_label(bars, [f"{value:,}" for value in values.values()], fontsize=8)
        chart(axis, f"{title} of two layers, {SIZE}x{SIZE} pixels", "", "")
    axes[1, 0].set(yscale="log", ylim=(1e3, 4e6))
    for which, (label, hatch) in enumerate((("as in training", ""), ("moved", "//"))):
        shares = [pair[which] for pair in accuracies.values()]
        places = [place - 0.2 + 0.4 * which for place in range(len(shares))]
        bars = axes[1, 2].bar(places, shares, 0.4, color=COLORS, hatch=hatch, edgecolor="white", label=label)
        axes[1, 2].bar_label(bars, fmt="{:.2f}", fontsize=8)
    axes[1, 2].set_xticks(range(len(accuracies)), list(accuracies))
    axes[1, 2].set_ylim(0, 1.3)
    axes[1, 2].legend(fontsize=8, ncols=2)
    chart(axes[1, 2], "accuracy on other digits", "", "")

    # Each layer's positions, weights and bias of a kernel, and values before and after it.
    positions, kernels, volumes = (144, 36), (16 * 26, 32 * 145), ((144, 144 * 16), (36 * 16, 36 * 32))
    expected = {
        "local": (9, 9, sum(n * kernel for n, kernel in zip(positions, kernels, strict=True))),
        "convolution": (9, 2, sum(kernels)),
        "full": (25, 25, sum((few + 1) * many for few, many in volumes)),
    }
    products = 2 * (144 * 16 * 25 + 36 * 32 * 144)
    claims = [
        claim
        for name, (lines, different, count) in expected.items()
        for claim in (
            Claim(f"{name}: connections", lines, connections[name], "book"),
            Claim(f"{name}: different weights", different, weights[name], "book"),
            Claim(f"{name}: parameters of the two layers", count, parameters[name]),
            Claim(f"{name}: accuracy", 0.92, accuracies[name][0], "stated beforehand", ">="),
        )
    ]
    return Example(
        figure,
        [
            *claims,
            Claim("FLOPs, local", products, flops["local"]),
            Claim("FLOPs, convolution: as many", products, flops["convolution"]),
            Claim("FLOPs, full", sum(2 * few * many for few, many in volumes), flops["full"]),
            *(
                Claim(
                    f"moved digits: accuracy of the convolution above {name}", 0.02,
                    accuracies["convolution"][1] - accuracies[name][1], "stated beforehand", ">=",
                )
                for name in ("local", "full")
            ),
        ],
        {"accuracy: as in training, and moved": accuracies},
    )  # fmt: skip


def fully_connected() -> nn.Sequential:
    """The network of the others, where each value of a volume sees all those of the volume before."""
    half = SIZE // 2
    return nn.Sequential(
        nn.Flatten(), Linear(SIZE**2, FILTERS[0] * SIZE**2, activation="relu"),
        nn.Unflatten(1, (FILTERS[0], SIZE, SIZE)), MaxPool2d(2),
        nn.Flatten(), Linear(FILTERS[0] * half**2, FILTERS[1] * half**2, activation="relu"),
        nn.Unflatten(1, (FILTERS[1], half, half)), MaxPool2d(2),
        nn.Flatten(), Linear(FILTERS[1] * (half // 2) ** 2, 10),
    )  # fmt: skip


def convolutions(network: nn.Module) -> list[Row]:
    """What `convnets summary` says of the two layers in question: all with parameters but the last."""
    return [row for row in layers_of(network, (1, SIZE, SIZE)) if row.weights][:-1]
