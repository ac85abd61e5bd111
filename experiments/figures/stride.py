"""A stride is a convolution that skips.

Convolution with a stride of two gives every second output of the plain convolution, exactly, and so do its gradients.
One could convolve and then drop what is not wanted, but all of that would have been computed: over images with a stride
of s, nearly s * s times the work. The kernels go through the outputs that are kept, and compute nothing else.

The work is counted, and timed on one CPU thread by PyTorch's convolution, as the interpreter says nothing of speed. The
time falls by less than the work: moving the data takes time, too.
"""

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from experiments.gallery.exact import differing, whole_numbers
from experiments.gallery.example import Claim, Example
from experiments.gallery.style import BLUE, ORANGE, chart, mosaic
from experiments.gallery.timing import seconds
from experiments.gallery.wiring import connections, derivative
from kernels import conv, use_backend
from kernels.functional import conv1d, conv2d

SOURCE = "Deep Learning, figure 9.12 and equation 9.8"
SHOWS = (conv2d, conv._forward_kernel)
BACKEND = "triton"

STRIDES = (1, 2, 3, 4)
CHANNELS, SIDE = 32, 49  # one more than 4 * 12: every stride takes the first pixel and the last


def draw() -> Example:
    kernel = torch.randn(1, 1, 3)
    strided = derivative(lambda x: conv1d(x, kernel, stride=2, padding=1), 5)
    plain = derivative(lambda x: conv1d(x, kernel, padding=1), 5)
    wrong = [wrong_values(stride) for stride in STRIDES]
    skipping, dropping = zip(*map(work, STRIDES), strict=True)

    figure, axes = mosaic(5.2, "AB;CD", width_ratios=(1.1, 1))
    connections(axes["A"], strided, strided, f"a stride of two: {int(strided.count_nonzero())} products")
    kept = torch.tensor([1, 0, 1, 0, 1])
    connections(axes["C"], plain, plain * kept[:, None], names="xz")
    connections(axes["C"], torch.eye(5)[::2], torch.eye(5)[::2],
        f"convolution, {int(plain.count_nonzero())} products, then every second output", "zs", level=1)  # fmt: skip
    for panel, column, title, unit in (
        ("B", 0, f"3x3 over {SIDE}x{SIDE}x{CHANNELS}: work", "million products"),
        ("D", 1, "time", "milliseconds"),
    ):
        for name, found, color in (("stride", skipping, BLUE), ("convolution, then drop", dropping, ORANGE)):
            values = [1e-6 * one[0] / 2 if column == 0 else 1e3 * one[1] for one in found]
            axes[panel].plot(STRIDES, values, marker="o", color=color, label=name)
        axes[panel].set(xticks=STRIDES, ylim=(0, None))
        chart(axes[panel], title, "stride", unit)
    axes["B"].legend(fontsize=8)

    two = STRIDES.index(2)
    return Example(
        figure,
        [
            Claim("outputs of figure 9.12 that differ from every second one", 0, differing(strided, plain[::2]),
                "book"),
            Claim("products of its convolution: 5 of 3, less two beyond the edges", 13, float(plain.count_nonzero())),
            Claim("products with its stride: 3 of 3, less two", 7, float(strided.count_nonzero())),
            *(Claim(f"outputs and gradients that differ, 3x3 over images, stride {stride}", 0, count)
                for stride, count in zip(STRIDES, wrong, strict=True)),
            *(Claim(f"times the work without it, stride {stride}: ({SIDE} / {outputs(stride)})^2",
                (SIDE / outputs(stride)) ** 2, drop[0] / skip[0], within=1e-12)
                for stride, drop, skip in zip(STRIDES, dropping, skipping, strict=True)),
            Claim("times as long without it, stride 2", 1.5, dropping[two][1] / skipping[two][1],
                "stated beforehand", ">="),
        ],
        {"strides": STRIDES, "FLOPs and seconds of a stride": skipping, "of dropping": dropping},
    )  # fmt: skip


def outputs(stride: int) -> int:
    """Of a side, padded by one."""
    return (SIDE - 1) // stride + 1


def wrong_values(stride: int) -> float:
    """Outputs, and gradients by input and kernel, that differ between a stride and dropping."""
    x, kernel = whole_numbers(2, 3, 9, 10).requires_grad_(), whole_numbers(4, 3, 3, 3).requires_grad_()
    skipped, dropped = (
        conv2d(x, kernel, stride=stride, padding=1),
        conv2d(x, kernel, padding=1)[..., ::stride, ::stride],
    )
    error = whole_numbers(*skipped.shape)
    gradients = (torch.autograd.grad(y, (x, kernel), error) for y in (skipped, dropped))
    return differing(skipped, dropped) + sum(differing(one, other) for one, other in zip(*gradients, strict=True))


def work(stride: int) -> list[tuple[int, float]]:
    """FLOPs and seconds of convolution with a stride, and of convolution whose other outputs are dropped."""
    x, kernel = torch.randn(1, CHANNELS, SIDE, SIDE), torch.randn(CHANNELS, CHANNELS, 3, 3)

    def skip() -> Tensor:
        return conv2d(x, kernel, stride=stride, padding=1)

    def drop() -> Tensor:
        return conv2d(x, kernel, padding=1)[..., ::stride, ::stride].contiguous()

    found = []
    with use_backend("torch"):
        for way in (skip, drop):
            with FlopCounterMode(display=False) as counter:
                way()
            found.append((counter.get_total_flops(), seconds(way)))
    return found
