"""Pooling over channels learns what to be invariant to: here rotation.

Pooling over neighbouring pixels makes translations matter less, and nothing else. Pooling over channels that have
kernels of their own (maxout) can learn any invariance that the data ask for. Digits turned by up to 90 degrees either
way are classified by the largest of three detectors a digit, each a kernel as large as the image. Nobody told them to
share the work: yet each comes to answer at its own angles, and the three kernels of a digit become turned copies of
each other. Whichever answers, the pooled answer is large. With one detector a digit, its kernel must do for all angles.
(They are trained by PyTorch's operations.)
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.gallery.exact import rounding
from experiments.gallery.example import Claim, Example
from experiments.gallery.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SIZE, chart, mosaic, picture
from experiments.gallery.training import accuracy, train
from kernels import conv, use_backend
from kernels.functional import conv2d, cross_channel_max_pool
from kernels.layers import Conv2d, CrossChannelMaxPool
from lightning_modules.data import DigitsDataModule
from lightning_modules.data.datasets import BatchedImages

SOURCE = "Deep Learning, figure 9.9; Goodfellow et al., Maxout networks (2013)"
SHOWS = (cross_channel_max_pool, conv.forward_max, conv._forward_kernel)
BACKEND = "triton"

SIDE, EDGE = 12, 2  # pixels of a digit, and of background around it
PIECES = 3  # detectors a digit
LARGEST = 90  # degrees
ANGLES = torch.linspace(-LARGEST, LARGEST, 13)
SHOWN = 5  # the digit of the book's figure


def draw() -> Example:
    data = DigitsDataModule(image_size=SIDE)
    data.setup("fit")
    digits, test = (F.pad((split.images + 1) / 2, (EDGE,) * 4) for split in (data.train, data.test))  # [N, 1, 16, 16]
    digits, labels = digits.repeat(4, 1, 1, 1), data.train.labels.repeat(4)
    digits = turned(digits, LARGEST * (2 * torch.rand(len(digits)) - 1))
    mean = digits.mean(0)
    size = SIDE + 2 * EDGE
    networks = {
        "largest of three detectors": Conv2d(1, 10 * PIECES, size, pool=CrossChannelMaxPool(PIECES)),
        "one detector": Conv2d(1, 10, size),
    }
    found = {}
    for name, layer in networks.items():
        network = nn.Sequential(layer, nn.Flatten())
        with use_backend("torch"):
            train(network, BatchedImages(digits - mean, labels), epochs=15, batch_size=64, lr=0.01, weight_decay=0.3)
        found[name] = [accuracy(network, turned(test, angle) - mean, data.test.labels) for angle in ANGLES]
    maxout = networks["largest of three detectors"]
    detected, pooled = answers(maxout, test[data.test.labels == SHOWN], mean)
    aligned, apart = likeness(maxout.weight.detach().view(10, PIECES, 1, size, size))

    figure, axes = mosaic(6.0, "ABCDEF;LLLRRR", height_ratios=(1, 1.7))
    for piece, place in enumerate(axes[letter] for letter in "ABC"):
        picture(
            place, maxout.weight[SHOWN * PIECES + piece, 0].detach(), f"kernel {piece + 1} of a {SHOWN}", signed=True
        )
    for place, angle in zip((axes[letter] for letter in "DEF"), (-LARGEST, 0, LARGEST), strict=True):
        example = test[data.test.labels == SHOWN][:1]
        picture(place, turned(example, torch.tensor(float(angle)))[0, 0], f"turned by {angle}°")
    left, right = axes["L"], axes["R"]
    for piece, colour in enumerate((BLUE, GREEN, PURPLE)):
        left.plot(ANGLES, detected[:, piece], color=colour, label=f"kernel {piece + 1}")
    left.plot(ANGLES, pooled, color="black", linewidth=3, alpha=0.5, label="the largest", zorder=0)
    left.set_ylim(top=1.35 * float(pooled.max()))
    left.legend(fontsize=SIZE - 2, loc="upper center", ncols=4, columnspacing=1, handlelength=1.2)
    chart(left, f"average answer to {SHOWN}s", "degrees", "detector's value")
    for (name, shares), colour, marker in zip(found.items(), (BLUE, ORANGE), "os", strict=True):
        right.plot(ANGLES, shares, marker=marker, color=colour, label=name)
    right.axhline(0.1, color=GREY, linestyle="--", linewidth=1)
    right.set_ylim(0, 1)
    right.legend(fontsize=SIZE - 2, loc="lower center")
    chart(right, "test digits that are recognised", "degrees", "share")

    means = {name: sum(shares) / len(shares) for name, shares in found.items()}
    gain = means["largest of three detectors"] - means["one detector"]
    swing = (pooled.max() - pooled.min()) / (detected.amax(0) - detected.amin(0)).max()
    fused = maxout(test - mean) - cross_channel_max_pool(conv2d(test - mean, maxout.weight, maxout.bias), PIECES)
    return Example(
        figure,
        [
            Claim("test digits recognised, on average of all angles, gained", 0.08, gain, "stated beforehand", ">="),
            Claim("swing over angles, pooled / of a detector", 0.5, float(swing), "stated beforehand", "<="),
            Claim("correlation of a digit's kernels, best turned", 0.6, aligned, "stated beforehand", ">="),
            Claim("and above that of the kernels as they are", 0.2, aligned - apart, "stated beforehand", ">="),
            Claim(
                "maxout in one kernel - in two",
                0,
                float(fused.detach().abs().max()),
                within=rounding(test - mean, maxout.weight),
            ),
        ],
        {"angles": ANGLES.tolist(), "recognised": found, "means": means},
    )


def turned(images: Tensor, degrees: Tensor) -> Tensor:
    """Images [N, C, H, W], turned clockwise by an angle each or by one angle."""
    angle = torch.deg2rad(degrees).expand(len(images))
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(len(images))
    matrix = torch.stack([cos, sin, zero, -sin, cos, zero], 1).view(-1, 2, 3)
    return F.grid_sample(images, F.affine_grid(matrix, list(images.shape), align_corners=False), align_corners=False)


@torch.no_grad()
def answers(layer: Conv2d, images: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Average values of the shown digit's detectors [angles, PIECES], and of the largest of them [angles]."""
    detected, pooled = [], []
    for angle in ANGLES:
        values = conv2d(turned(images, angle) - mean, layer.weight, layer.bias)  # [N, 10 * PIECES, 1, 1]
        detected.append(values.view(-1, 10, PIECES)[:, SHOWN].mean(0))
        pooled.append(cross_channel_max_pool(values, PIECES)[:, SHOWN].mean())
    return torch.stack(detected), torch.stack(pooled)


def likeness(kernels: Tensor) -> tuple[float, float]:
    """Correlation of kernels [10, PIECES, 1, H, W] of the same digit, turned so that it is largest, and as they are."""
    angles = torch.arange(-180.0, 180.0, 10.0)
    copies = torch.stack([turned(kernels.flatten(0, 1), angle) for angle in angles]).view(len(angles), *kernels.shape)
    copies, kernels = (F.normalize((k - k.mean((-2, -1), keepdim=True)).flatten(-3), dim=-1) for k in (copies, kernels))
    products = torch.einsum("adip,djp->adij", copies, kernels)[..., ~torch.eye(PIECES, dtype=torch.bool)]
    return float(products.amax(0).mean()), float(products[angles.tolist().index(0)].mean())
