"""Tiled convolution: between one kernel for all positions and one for each.

A tiled convolution has t kernels (t x t of them on a plane) that take turns: neighbours have different ones, and the
first is used again after t steps. With t = 1 it is convolution, and with t as large as the output it is local
connection, to the last bit; what lies between has as many connections as these two, and t (or t x t) times the weights
of a convolution. The letters were read off the layers.

Five networks of two such layers learn the same digits. They all recognise digits that stand where those of the training
stood. Of digits that are moved by up to two pixels, which were not in training, the network of one kernel recognises
most: kernels that see but a part of all positions cannot carry over to the others what they learned. The networks are
trained by PyTorch's operations; everything else is computed by Triton's.
"""

import functools

import torch
from torch import Tensor

from experiments.gallery.exact import differing
from experiments.gallery.example import Claim, Example
from experiments.gallery.style import BLUE, GREEN, ORANGE, canvas, chart
from experiments.gallery.training import learned
from experiments.gallery.wiring import draw_wiring, numbers, responses
from experiments.summary.table import totals
from experiments.summary.trace import layers_of
from kernels import conv, use_backend
from kernels.functional import conv2d, local_conv2d, tiled_conv2d
from lightning_modules.architectures import ConnectivityNet

SOURCE = "Deep Learning, figure 9.16 and equation 9.10; Ngiam et al. (2010)"
SHOWS = (tiled_conv2d, conv.forward)
BACKEND = "triton"

UNITS, WINDOW, TURNS = 5, 2, (1, 2, 5)
SIZE, FILTERS, KERNELS = 12, (16, 32), (5, 3)
TILES = (1, 2, 3, 6)


def draw() -> Example:
    matrices = [responses(functools.partial(tiled, turns=turns), (1, 1, UNITS)) for turns in TURNS]
    used = [len(matrix[matrix != 0].unique()) for matrix in matrices]
    connections = [int(matrix.count_nonzero()) for matrix in matrices]
    as_convolution, as_local = differences()
    networks = [ConnectivityNet((1, SIZE, SIZE), "tiled", tile, 1, FILTERS, KERNELS) for tile in TILES]
    networks.append(ConnectivityNet((1, SIZE, SIZE), "local", 1, 1, FILTERS, KERNELS))
    layers = [[row for row in layers_of(network, (1, SIZE, SIZE)) if row.weights][:-1] for network in networks]
    sums = [totals(rows) for rows in layers]
    parameters = [each.parameters for each in sums]
    with use_backend("torch"):
        standing, moved = zip(*(learned(network, SIZE) for network in networks), strict=True)

    figure, axes = canvas(5.4, rows=2, columns=3)
    names = ("t = 1, convolution", "t = 2, tiled", "t = 5, local")
    for axis, name, matrix, count in zip(axes[0], names, matrices, used, strict=True):
        draw_wiring(axis, matrix, f"{name}: {count} weights")
    for axis, title, values, color in (
        (axes[1, 0], f"parameters on {SIZE}x{SIZE} pixels", parameters, BLUE),
        (axes[1, 1], "accuracy on other digits", standing, GREEN),
        (axes[1, 2], "the same, digits moved", moved, ORANGE),
    ):
        bars = axis.bar([*map(str, TILES), "local"], values, color=color)
        axis.bar_label(bars, [f"{value:,}" if value > 1 else f"{value:.2f}" for value in values], fontsize=8)
        axis.set_ylim(0, 1.1)
        chart(axis, title, "t along each axis", "")
    axes[1, 0].set(yscale="log", ylim=(1e3, 1e6))

    kernels = FILTERS[0] * (KERNELS[0] ** 2 + 1), FILTERS[1] * (FILTERS[0] * KERNELS[1] ** 2 + 1)
    counts = [*(tile**2 * sum(kernels) for tile in TILES), SIZE**2 * kernels[0] + (SIZE // 2) ** 2 * kernels[1]]
    return Example(
        figure,
        [
            Claim("weights, t = 1", WINDOW, used[0], "book"),
            Claim("weights, t = 2", 2 * WINDOW, used[1], "book"),
            Claim("weights, t = 5 of 5 outputs; one reaches nothing", 2 * UNITS - 1, used[2], "book"),
            *(
                Claim(f"connections, t = {turns}", 2 * UNITS - 1, count, "book")
                for turns, count in zip(TURNS, connections, strict=True)
            ),
            Claim("t = 1: outputs that differ from convolution", 0, as_convolution),
            Claim(f"t = {SIZE} of {SIZE}: outputs that differ from local connection", 0, as_local),
            *(
                Claim(f"parameters, t = {tile}", expected, count)
                for tile, expected, count in zip([*TILES, "outputs"], counts, parameters, strict=True)
            ),
            Claim("numbers of FLOPs in the series", 1, len({each.flops for each in sums})),
            Claim("least accuracy of the series", 0.92, min(standing), "stated beforehand", ">="),
            Claim(
                "moved digits: accuracy of convolution above the average of the others", 0.02,
                moved[0] - sum(moved[1:]) / len(moved[1:]), "stated beforehand", ">=",
            ),
        ],
        {"t": [*TILES, "local"], "accuracy": standing, "accuracy on moved digits": moved},
    )  # fmt: skip


def tiled(x: Tensor, turns: int) -> Tensor:
    return tiled_conv2d(x, numbers(1, turns, 1, 1, 1, WINDOW), padding="same")


def differences() -> tuple[float, float]:
    """Outputs of one kernel that differ from a convolution's, and of one for each position, from local connection's."""
    x = torch.randn(1, 1, SIZE, SIZE)
    one, each = torch.randn(1, 1, 4, 1, 5, 5), torch.randn(SIZE, SIZE, 4, 1, 5, 5)
    return (
        differing(conv2d(x, one[0, 0], padding="same"), tiled_conv2d(x, one, padding="same")),
        differing(local_conv2d(x, each, padding="same"), tiled_conv2d(x, each, padding="same")),
    )
