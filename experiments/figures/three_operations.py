"""The three operations of a convolutional layer.

A layer convolves its input; to learn, it needs two operations more. The transpose carries the error from the output
back to the input: each error is spread over the window that its output saw. The weight gradient multiplies each error
by what its output saw, and sums over all positions. Both are exactly what the calculus asks for: the convolution is
linear, and the inner product of conv(x) with any y is that of x with the transpose of y, and that of the weights with
the weight gradient of x and y.

The middle of the lower row shows what parameter sharing sums: were the kernel of each position its own, as in local
connection, each would have a gradient of its own. As they are one and the same, their gradients add up.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from experiments.gallery.exact import differing, whole_numbers
from experiments.gallery.example import Claim, Example
from experiments.gallery.style import canvas, picture
from kernels import conv, transpose, weight_gradient
from kernels.functional import conv2d, conv_transpose2d, local_conv2d

SOURCE = "Deep Learning, equations 9.8 to 9.13"
SHOWS = (conv._forward_kernel, transpose._transpose_kernel, weight_gradient._weight_gradient_kernel)
BACKEND = "triton"

WINDOWS = [dict(stride=s, padding=p, dilation=d) for s, p, d in ((1, 0, 1), (1, 1, 2), (2, 1, 1), (2, 1, 2), (3, 0, 1))]
BATCH, CHANNELS, OUTPUTS, TAPS = 2, 3, 4, 9
POSITIONS = 9 * 15  # of a window over the grid, at most
EPSILON = torch.finfo(torch.float32).eps  # a sum of n products is off by n of it, at most, times the sum of their sizes


def draw() -> Example:
    x, target = whole_numbers(1, 1, 6, 7).requires_grad_(), whole_numbers(1, 1, 4, 5)
    weight = whole_numbers(1, 1, 3, 3).requires_grad_()

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        return (conv2d(x, weight) - target).square().sum() / 2

    y = conv2d(x, weight)
    error = (y - target).detach()  # the gradient of the loss by y
    dx, dw = torch.autograd.grad(y, (x, weight), error)

    own = weight.detach().expand(4, 5, 1, 1, 3, 3).contiguous().requires_grad_()  # a kernel for each position
    (own_gradients,) = torch.autograd.grad(local_conv2d(x.detach(), own), own, error)
    by_transpose, by_gradient = adjointness()

    figure, axes = canvas(6.2, 2, 3)
    mosaic = own_gradients[:, :, 0, 0].transpose(1, 2).reshape(12, 15)
    panels = {"input x": x[0, 0], "kernel w": weight[0, 0], "convolution": y[0, 0],
        "transpose of the error: gradient of x": dx[0, 0], "gradients of 4x5 kernels of their own": mosaic,
        "weight gradient: their sum": dw[0, 0]}  # fmt: skip
    for panel, (title, values) in zip(axes.flat, panels.items(), strict=True):
        picture(panel, values.detach(), title, signed=True, numbered=values is not mosaic)
    for edge in range(3, 15, 3):
        axes[1, 1].axvline(edge - 0.5, color="black", linewidth=0.8)
        if edge < 12:
            axes[1, 1].axhline(edge - 0.5, color="black", linewidth=0.8)

    with torch.no_grad():
        x_slopes, w_slopes = slopes(lambda x: loss(x, weight), x), slopes(lambda weight: loss(x, weight), weight)
        transposed = conv_transpose2d(error, weight)
    return Example(
        figure,
        [
            Claim("<conv(x), y> - <x, transpose(y)>, as a share of the sum of all sizes, in five windows", 0,
                by_transpose, within=EPSILON * TAPS * (CHANNELS + OUTPUTS)),
            Claim("<conv(x), y> - <w, weight gradient(x, y)>, as the same share", 0,
                by_gradient, within=EPSILON * (TAPS * CHANNELS + BATCH * POSITIONS)),
            Claim("pixels whose gradient differs from the transposed convolution of the error", 0,
                differing(dx, transposed)),
            Claim("pixels, of 42, whose gradient differs from finite differences", 0, differing(dx, x_slopes)),
            Claim("weights, of 9, whose gradient differs from finite differences", 0, differing(dw, w_slopes)),
            Claim("kernels that a gradient arrives at, one for each position with an error", int(error.count_nonzero()),
                int(own_gradients.flatten(2).any(-1).sum())),
            Claim("weights whose gradient is not their sum", 0, differing(own_gradients.sum((0, 1)), dw)),
        ],
    )  # fmt: skip


def slopes(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Central differences, of steps of 1: exact for a loss that is quadratic."""
    steps = torch.eye(at.numel()).view(-1, *at.shape)
    return torch.stack([(loss(at + step) - loss(at - step)) / 2 for step in steps]).view_as(at)


def adjointness() -> list[float]:
    """How far two inner products at most are from that of the convolution, as shares of the sum of all products' sizes:
    that of the transpose, and that of the weight gradient."""
    apart = []
    for window in WINDOWS:
        x, weight = torch.randn(BATCH, CHANNELS, 9, 15), torch.randn(OUTPUTS, CHANNELS, 3, 3, requires_grad=True)
        output = conv2d(x, weight, **window)
        y = torch.randn_like(output)
        (dw,) = torch.autograd.grad(output, weight, y)
        size = inner(conv2d(x.abs(), weight.abs(), **window), y.abs())
        others = inner(x, conv_transpose2d(y, weight, **window)), inner(weight, dw)
        apart.append([abs(inner(output, y) - other) / size for other in others])
    return [max(column) for column in zip(*apart, strict=True)]


def inner(one: Tensor, other: Tensor) -> float:
    return float((one.detach().double() * other.detach().double()).sum())
