"""Parameter sharing: one weight, used everywhere.

A convolution has one kernel for all positions: its middle weight is used at each of them. Local connection has the same
lines between units, but a kernel for each position, and full connection has a line for each pair of units: there each
weight is used once. How often is measured: with ones for all inputs, a weight's gradient by the sum of all outputs
counts its uses.

Sharing changes nothing in how much is computed, but in what is stored and can be learned: of a picture of
320x280 pixels two weights, 178,640 or 8 billion. It assumes that what is worth seeing at one place is worth seeing at
every other.
"""

import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from experiments.gallery.example import Claim, Example
from experiments.gallery.style import BLUE, GREEN, ORANGE, canvas, chart
from experiments.gallery.wiring import connections
from kernels import weight_gradient
from kernels.functional import conv1d, local_conv2d
from kernels.layers import Conv2d, Linear, LocalConv2d

SOURCE = "Deep Learning, figure 9.5"
SHOWS = (conv1d, local_conv2d, weight_gradient._weight_gradient_kernel)
BACKEND = "triton"

UNITS, SIZES = 5, (5, 10, 20, 50, 100, 200, 500)


def draw() -> Example:
    layers = layers_over(UNITS)
    uses = {name: times_used(layer) for name, layer in layers.items()}
    parameters = {name: [weights(layers_over(units, "meta")[name]) for units in SIZES] for name in layers}
    large = {"convolution": Conv2d(1, 1, (1, 2), bias=False, device="meta"),
        "local connection": LocalConv2d(1, 1, (1, 2), (280, 320), bias=False, device="meta"),
        "full connection": Linear(280 * 320, 280 * 319, bias=False, device="meta")}  # fmt: skip

    figure, axes = canvas(4.6, 2, 2)
    for panel, (name, layer), color in zip(axes.flat, layers.items(), (BLUE, ORANGE, GREEN), strict=False):
        middle = uses[name].numel() // 2
        connections(panel, derivative(layer), derivative(layer, middle),
            f"{name}: where one of its {weights(layer)} weights is used", shaded=False)  # fmt: skip
        axes[1, 1].plot(SIZES, parameters[name], marker="o", color=color, label=name)
    axes[1, 1].set(xscale="log", yscale="log")
    axes[1, 1].legend(fontsize=8)
    chart(axes[1, 1], "windows of three over a line of units", "units", "weights")

    shared, local, full = uses.values()
    return Example(
        figure,
        [
            Claim("times that the middle weight of a convolution is used", 5, float(shared[1]), "book"),
            Claim("times that its first is: not beyond the edge", 4, float(shared[0])),
            Claim("times that a weight of full connection is used, at most", 1, float(full.max()), "book"),
            Claim("times that a weight of local connection is used, at most", 1, float(local.max())),
            Claim("lines of local connection more than of the convolution", 0, float(local.sum() - shared.sum())),
            *(Claim(f"weights of a {name} over five units", count, weights(layers[name]))
                for name, count in (("convolution", 3), ("local connection", 15), ("full connection", 25))),
            *(Claim(f"weights of a {name}, 320x280 pixels in pairs", count, weights(large[name]))
                for name, count in (("convolution", 2), ("local connection", 178_640),
                    ("full connection", 319 * 280 * 320 * 280))),
        ],
        {"units": SIZES, "weights": parameters},
    )  # fmt: skip


def layers_over(units: int, device: str = "cpu") -> dict[str, nn.Module]:
    """Layers over an image [1, 1, units] that is one line: windows of three, and all of it."""
    return {
        "convolution": Conv2d(1, 1, (1, 3), padding=(0, 1), bias=False, device=device),
        "local connection": LocalConv2d(1, 1, (1, 3), (1, units), padding=(0, 1), bias=False, device=device),
        "full connection": Linear(units, units, bias=False, device=device),
    }


def weights(layer: nn.Module) -> int:
    return sum(weight.numel() for weight in layer.parameters())


def times_used(layer: nn.Module) -> Tensor:
    """How many products each weight is a factor of, [weights]."""
    (weight,) = layer.parameters()
    (count,) = torch.autograd.grad(layer(torch.ones(1, 1, UNITS)).sum(), weight)
    return count.flatten()


def derivative(layer: nn.Module, only: int | None = None) -> Tensor:
    """The Jacobian [outputs, inputs] of a layer, or of its weight number `only` alone."""
    (weight,) = layer.parameters()
    kept = torch.ones(weight.numel()) if only is None else torch.eye(weight.numel())[only]
    alone = {"weight": weight.detach() * kept.view_as(weight)}
    return jacobian(lambda line: torch.func.functional_call(layer, alone, line[None, None])[0, 0], torch.ones(UNITS))
