"""INPUT - CONV - RELU - POOL - FC: every volume of a trained network on one image.

A crop of a photograph of brick, grass or gravel goes in, three scores come out. CONV slides twelve learned kernels over
it and gives a map for each; RELU sets to zero what is negative; POOL keeps the largest of each 2x2 pixels, so that the
maps become smaller but not fewer; FC weighs all that is left into a score for each class. CONV and FC have parameters,
RELU and POOL none. In our library CONV and RELU are one kernel, and give bitwise the same as one after the other. (The
network is trained by PyTorch's operations.)
"""

import math

import torch
from torch import Tensor
from torchvision.utils import make_grid

from experiments.gallery.exact import differing
from experiments.gallery.example import Claim, Example
from experiments.gallery.style import BLUE, GREEN, ORANGE, SIZE, mosaic, picture
from experiments.gallery.training import accuracy, train
from experiments.gallery.volumes import draw_volumes
from kernels import conv, use_backend
from kernels.functional import conv2d
from lightning_modules.architectures import ConvNet
from lightning_modules.data import TexturesDataModule

SOURCE = "CS231n, Convolutional Networks: architecture overview"
SHOWS = (ConvNet, conv._forward_kernel)
BACKEND = "triton"

FILTERS, KERNEL = 12, 7
SHAPES = {"INPUT": (1, 32, 32), "CONV": (12, 32, 32), "RELU": (12, 32, 32), "POOL": (12, 16, 16), "FC": (3, 1, 1)}
AXES = ("channels", "rows", "columns")
EPSILON = torch.finfo(torch.float32).eps


def draw() -> Example:
    data = TexturesDataModule(size=32, train_samples=1000, eval_samples=300)
    data.setup("fit")
    network = ConvNet(input_shape=(1, 32, 32), filters=FILTERS, kernel_size=KERNEL, classes=data.classes)
    with use_backend("torch"):
        train(network, data.train, epochs=5, batch_size=50, lr=0.01)
        share = accuracy(network, data.test.images, data.test.labels)
    image = data.test.images[:1]
    volumes = stages(network, image)
    with torch.no_grad():
        fused = network.conv(image)[0]
        scores = network(image)[0]
        terms = network.fc.weight.double() * volumes["POOL"].flatten()  # [classes, values]
        exact = terms.sum(1) + network.fc.bias

    figure, axes = mosaic(5.6, "AAAAA;BCDEF", height_ratios=(1, 1.3))
    shapes = [volume.shape for volume in volumes.values()]
    draw_volumes(axes["A"], shapes, list(volumes), colours=(ORANGE, BLUE, BLUE, BLUE, GREEN), gap=0.8)
    picture(axes["B"], image[0, 0], f"INPUT: {data.photographs[int(data.test.labels[0])]}")
    for place, name in zip((axes[letter] for letter in "CDE"), ("CONV", "RELU", "POOL"), strict=True):
        picture(place, maps(volumes[name]), f"{name}: {len(volumes[name])} maps", signed=True)
    axes["F"].barh(data.photographs, scores.tolist(), color=GREEN)
    axes["F"].axvline(0, color="black", linewidth=0.8)
    axes["F"].tick_params(labelsize=SIZE - 2)
    axes["F"].set_title("FC: scores", fontsize=SIZE)

    return Example(
        figure,
        [
            *(
                Claim(f"{name}: {what}", expected, measured)
                for name, shape in SHAPES.items()
                for what, expected, measured in zip(AXES, shape, volumes[name].shape, strict=True)
            ),
            Claim("values below zero after RELU", 0, int((volumes["RELU"] < 0).sum())),
            Claim("values of CONV + RELU in one kernel that differ", 0, differing(fused, volumes["RELU"])),
            Claim("error of the scores, against float64", 0, float((scores - exact).abs().max()),
                within=math.log2(terms.shape[1]) * EPSILON * float(terms.abs().sum(1).max())),
            Claim("test crops that are recognised, a share", 0.85, share, "stated beforehand", ">="),
        ],
        {"scores": dict(zip(data.photographs, scores.tolist(), strict=True))},
    )  # fmt: skip


@torch.no_grad()
def stages(network: ConvNet, image: Tensor) -> dict[str, Tensor]:
    """The volume (C, H, W) after each stage of one image [1, C, H, W], computed one by one."""
    convolved = conv2d(image, network.conv.weight, network.conv.bias, padding="same")
    rectified = convolved.relu()
    pooled = network.pool(rectified)
    scores = network.fc(pooled.flatten(1))[..., None, None]
    return dict(zip(SHAPES, (each[0] for each in (image, convolved, rectified, pooled, scores)), strict=True))


def maps(volume: Tensor) -> Tensor:
    """The channels of a volume side by side, three a row, each on a scale of its own."""
    largest = volume.abs().amax((1, 2), keepdim=True).clamp(min=EPSILON)
    return make_grid((volume / largest)[:, None], nrow=3, padding=2)[0]
