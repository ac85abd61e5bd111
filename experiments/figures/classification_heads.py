"""Three ways from a volume to the scores of classes, and which of them take images of any size.

Convolution and pooling do not mind how large an image is: their output is as large as it gives. A fully connected
layer does, as it has a weight for each value of its input. So the first network takes images of one size only. The
second pools over a fixed grid of regions, which grow with the image, and the third has no fully connected layer: it
makes a map for each class and averages it. Both take any size, here three, with the same weights. Mind the parameters:
a fully connected layer over a large volume has most of those of its network.
"""

import torch

from experiments.gallery.example import Claim, Example
from experiments.gallery.style import BLUE, GREEN, ORANGE, SIZE, canvas
from experiments.gallery.volumes import draw_volumes, root
from experiments.summary.table import totals
from experiments.summary.trace import layers_of
from kernels.functional import adaptive_avg_pool2d, adaptive_max_pool2d
from lightning_modules.architectures import ClassificationNet
from lightning_modules.architectures.classification_heads import HEADS
from lightning_modules.data.photographs import photograph

SOURCE = "Deep Learning, figure 9.11"
SHOWS = (adaptive_max_pool2d, adaptive_avg_pool2d, ClassificationNet)
BACKEND = "triton"

SIZES = ((256, 256), (96, 128), (160, 112))  # of images, the first the one that all networks take
VECTORS = {"fully_connected": 16_384, "pooled_regions": 576}  # values of the flattened volume
CLASSES = 1000


def draw() -> Example:
    picture = photograph("coffee", color=True)[:, 100:356, 100:356]
    networks = {head: ClassificationNet(head=head, classes=CLASSES).eval() for head in HEADS}
    rows = {head: layers_of(network, (3, 256, 256)) for head, network in networks.items()}
    parameters = {head: totals(found).parameters for head, found in rows.items()}
    scores = {head: [scores_of(network, picture, size) for size in SIZES] for head, network in networks.items()}

    figure, axes = canvas(6.8, rows=3)
    for place, head in zip(axes[:, 0], HEADS, strict=True):
        taken = sum(count == CLASSES for count in scores[head])
        colours = [ORANGE] + [BLUE] * (len(rows[head]) - 2) + [GREEN]
        draw_volumes(
            place, [row.output for row in rows[head]], [row.kind for row in rows[head]], root, colours, gap=0.75
        )
        place.set_title(
            f"{head.replace('_', ' ')}: {parameters[head]:,} parameters, takes {taken} of 3 sizes",
            fontsize=SIZE,
        )
    return Example(
        figure,
        [
            *(
                Claim(f"{head}: values of the vector", expected, rows[head][-1].input[0], "book")
                for head, expected in VECTORS.items()
            ),
            Claim("class_maps: maps of classes", CLASSES, rows["class_maps"][-1].input[0], "book"),
            Claim("class_maps: side of a map", 16, rows["class_maps"][-1].input[1], "book"),
            *(Claim(f"{head}: scores of 256x256", CLASSES, scores[head][0], "book") for head in HEADS),
            Claim("fully_connected: other sizes taken", 0, sum(map(bool, scores["fully_connected"][1:])), "book"),
            Claim("pooled_regions: other sizes taken", 2, scores["pooled_regions"][1:].count(CLASSES), "book"),
            Claim("class_maps: other sizes taken", 2, scores["class_maps"][1:].count(CLASSES), "book"),
            Claim(
                "fully_connected: parameters of the last layer", 16_384 * CLASSES + CLASSES,
                totals(rows["fully_connected"][-1:]).parameters,
            ),
        ],
        {"parameters": parameters, "scores of each size": scores},
    )  # fmt: skip


@torch.no_grad()
def scores_of(network: ClassificationNet, picture: torch.Tensor, size: tuple[int, int]) -> int:
    """How many scores an image of this height and width gets, 0 if it is refused."""
    image = picture[None, :, : size[0], : size[1]]
    try:
        return network(image).shape[1]
    except ValueError:
        return 0
