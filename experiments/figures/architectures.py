"""Architectures: how volumes are arranged, and why depth needs shortcuts.

Spatial transducers, all-convolutional networks, Inception and residual networks are made of the same layers. Each box
is the output of one, as high as the grid and as wide as its channels suggest: of a convolution (blue), a transposed
convolution (orange) or pooling (green). A spatial transducer goes down, and up again to a label for every pixel; the
others give up positions for channels. In Inception, boxes above one another are branches side by side; arcs lead to
where a volume is added again.

A deeper network could compute whatever a shallower one does, but learning has to find it. Of plain networks, the one of
44 layers learns even its training digits worse in as many epochs than the one of 20: it does not suffer from having
too many parameters.
With shortcuts, where each block only adds to what it was given, both depths learn. PyTorch's operations train them.
"""

from math import prod

import torch
from torch import nn

from experiments.gallery.boxes import draw_boxes
from experiments.gallery.example import Claim, Example
from experiments.gallery.style import BLUE, ORANGE, SIZE, canvas, chart
from experiments.gallery.training import accuracy, digits, train
from experiments.summary.table import of_prediction, totals
from experiments.summary.trace import Row, layers_of
from kernels.functional import batch_norm, conv2d
from lightning_modules.architectures import AllCNN, CifarResNet, SmallInception, SpatialTransducer
from lightning_modules.architectures.cifar_resnet import Block

SOURCE = 'Deep Learning, chapter 9, lecture slides, "Major architectures"; He et al. (2016), figure 6'
SHOWS = (Block.forward, conv2d, batch_norm)
BACKEND = "torch"

INPUT = (3, 32, 32)
PIXELS, FILTERS = 8, (8, 16, 32)
DEPTHS, EPOCHS = (20, 44), 4


def draw() -> Example:
    networks: dict[str, nn.Module] = {
        "Spatial Transducer": SpatialTransducer(INPUT), "All-CNN-C": AllCNN(INPUT),
        "small Inception": SmallInception(INPUT), "ResNet-20": CifarResNet(INPUT),
    }  # fmt: skip
    layers = {name: of_prediction(layers_of(network, INPUT)) for name, network in networks.items()}
    sums = {name: totals(rows) for name, rows in layers.items()}
    data, images, labels = digits(PIXELS)
    curves, accuracies = {}, {}
    for residual in (False, True):
        for depth in DEPTHS:
            network = CifarResNet((1, PIXELS, PIXELS), (depth - 2) // 6, FILTERS, residual)
            curves[residual, depth] = by_epoch(train(network, data, epochs=EPOCHS, batch_size=64, lr=0.01))
            accuracies[residual, depth] = accuracy(network, images, labels)

    figure, axes = canvas(7.2, rows=3, columns=2, height_ratios=(1, 1, 1.3))
    for axis, (name, rows) in zip(axes[:2].flat, layers.items(), strict=True):
        draw_boxes(axis, rows)
        parameters, flops = sums[name].parameters, sums[name].flops
        axis.set_title(f"{name}: {parameters:,} parameters, {flops / 1e6:,.0f} million FLOPs", fontsize=SIZE - 1)
    for (residual, depth), losses in curves.items():
        name, color = ("residual", BLUE) if residual else ("plain", ORANGE)
        style = "-" if depth == DEPTHS[1] else "--"
        axes[2, 0].plot(range(1, EPOCHS + 1), losses, style, color=color, marker="o", label=f"{name}, {depth} layers")
    axes[2, 0].set_xticks(range(1, EPOCHS + 1))
    axes[2, 0].legend(fontsize=8)
    chart(axes[2, 0], "loss on the digits of training", "epoch", "cross entropy")
    names = [f"{'residual' if residual else 'plain'}\n{depth}" for residual, depth in accuracies]
    bars = axes[2, 1].bar(names, list(accuracies.values()), color=[ORANGE, ORANGE, BLUE, BLUE])
    axes[2, 1].bar_label(bars, fmt="{:.2f}", fontsize=8)
    axes[2, 1].set_ylim(0, 1.1)
    chart(axes[2, 1], "accuracy on other digits", "", "")

    shallow, deep = DEPTHS
    worse = curves[False, deep][-1] - curves[False, shallow][-1]
    better = accuracies[True, deep] - accuracies[False, deep]
    return Example(
        figure,
        [
            *(
                Claim(f"{name}: parameters", sum(p.numel() for p in network.parameters()), sums[name].parameters)
                for name, network in networks.items()
            ),
            *(Claim(f"{name}: FLOPs", sum(map(products, rows)), sums[name].flops) for name, rows in layers.items()),
            Claim(
                "ResNet-20: millions of parameters, by He et al.", 0.27, round(sums["ResNet-20"].parameters / 1e6, 2),
                "paper",
            ),
            Claim("Spatial Transducer: labelled pixels", 32 * 32, prod(layers["Spatial Transducer"][-1].output[1:])),
            Claim(f"plain: loss of {deep} layers above that of {shallow}", 0.3, worse, "stated beforehand", ">="),
            Claim(f"residual: loss of {deep} layers", 0.3, curves[True, deep][-1], "stated beforehand", "<="),
            Claim(f"{deep} layers: accuracy that shortcuts add", 0.2, better, "stated beforehand", ">="),
        ],
        {
            "volumes": {name: [row.output for row in rows] for name, rows in layers.items()},
            "loss of each epoch, accuracy": [
                {"residual": residual, "layers": depth, "loss": losses, "accuracy": accuracies[residual, depth]}
                for (residual, depth), losses in curves.items()
            ],
        },
    )  # fmt: skip


def by_epoch(losses: list[float]) -> list[float]:
    return torch.tensor(losses).view(EPOCHS, -1).mean(1).tolist()


def products(row: Row) -> int:
    """FLOPs of a layer, two for each product of a weight and a value."""
    if not row.weights or "BatchNorm" in row.kind:
        return 0
    if row.window is None:
        return 2 * prod(row.input) * prod(row.output)
    back = "Transpose" in row.kind  # it has the products of the convolution that leads from its output to its input
    before, after = (row.output, row.input) if back else (row.input, row.output)
    return 2 * prod(after) * before[0] // row.window.groups * row.window.taps
