"""Labels of pixels that are refined step by step.

The network gives every pixel a label: background, or one of the ten digits. Its first guess is made from the image
alone. Each next step sees the image and the labels of the last one, which the kernels W carry from a pixel to those
around it: strokes that were taken for parts of two digits agree on one, which need not be the true one. The same
kernels serve all steps, so that a network that was taught with three can go on to five, without a parameter more.

The scenes are handwritten digits on photographs; none of the digits, and no part of the photographs, was in training.
Shown are those three of twenty scenes in which most labels change. The network is trained and judged by PyTorch's
operations; the label maps shown are computed by Triton's.
"""

import itertools

import torch
from matplotlib.colors import ListedColormap
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from experiments.gallery.exact import differing
from experiments.gallery.example import Claim, Example
from experiments.gallery.style import BLUE, GREY, canvas, chart, picture
from experiments.gallery.training import train
from experiments.summary.table import totals
from experiments.summary.trace import layers_of
from kernels import conv, use_backend
from kernels.functional import conv2d, conv_transpose2d
from lightning_modules.architectures import RecurrentLabelling
from lightning_modules.data import DigitScenesDataModule
from lightning_modules.module import Batch

SOURCE = "Deep Learning, figure 9.17; Pinheiro and Collobert (2014)"
SHOWS = (conv2d, conv_transpose2d, RecurrentLabelling.refinements, conv.forward)
BACKEND = "triton"

SIZE, DIGITS = 32, (12, 16)
TAUGHT, STEPS = 3, 5
SHOWN = 3
COLORS = ListedColormap(  # the background, then the digits: Tol's muted scheme and black
    [
        "#eeeeee",
        "#cc6677",
        "#332288",
        "#ddcc77",
        "#117733",
        "#88ccee",
        "#882255",
        "#44aa99",
        "#999933",
        "#aa4499",
        "black",
    ]
)


def draw() -> Example:
    scenes = DigitScenesDataModule(8, (SIZE,), digit_sizes=DIGITS, train_samples=800, eval_samples=100)
    scenes.setup("fit")
    test = list(scenes.test_dataloader())
    network = RecurrentLabelling((3, SIZE, SIZE), steps=TAUGHT)
    with use_backend("torch"):
        train(network, scenes.train, epochs=4, batch_size=8, lr=0.01)
        network.eval().steps = STEPS
        quality = mean_iou(network, test)
        images, labels = test[0]
        by_torch = label_maps(network, images)  # [STEPS, N, H, W]
        most = (by_torch[0] != by_torch[-1]).sum((1, 2)).argsort(descending=True)[:SHOWN]
        images, labels, by_torch = images[most], labels[most], by_torch[:, most]
    maps = label_maps(network, images)  # [STEPS, SHOWN, H, W]
    differ = differing(maps, by_torch)

    changed = [int((later != earlier).sum()) for earlier, later in itertools.pairwise(maps)]

    figure, axes = canvas(4.2, rows=SHOWN, columns=STEPS + 3, width_ratios=(1,) * (STEPS + 2) + (2.2,))
    for row in range(SHOWN):
        picture(axes[row, 0], (images[row].movedim(0, -1) + 1) / 2, "image" if row == 0 else "")
        for column, drawn in enumerate([*maps[:, row], labels[row]], start=1):
            name = "true labels" if column > STEPS else f"step {column}"
            picture(axes[row, column], drawn, name if row == 0 else "")
            axes[row, column].images[0].set(cmap=COLORS, clim=(0, 10))
        axes[row, -1].remove()
    first, taught, last = quality[0], quality[TAUGHT - 1], quality[-1]
    quality_axis = figure.add_subplot(axes[0, 0].get_gridspec()[:, -1])
    quality_axis.plot(range(1, STEPS + 1), quality, marker="o", color=BLUE)
    quality_axis.axvline(TAUGHT, color=GREY, linestyle=":")
    quality_axis.text(TAUGHT + 0.1, first, "taught", color=GREY, fontsize=8)
    quality_axis.set_xticks(range(1, STEPS + 1))
    chart(quality_axis, "100 scenes", "step", "mean IoU")

    return Example(
        figure,
        [
            Claim(f"mean IoU after step {TAUGHT}", 0.6, taught, "stated beforehand", ">="),
            Claim(f"mean IoU that steps 2 to {TAUGHT} add", 0.04, taught - first, "stated beforehand", ">="),
            Claim(f"mean IoU lost until step {STEPS}, not taught", 0.03, taught - last, "stated beforehand", "<="),
            Claim(
                f"parameters that {STEPS} steps take more than {TAUGHT}",
                0,
                parameters_of(STEPS) - parameters_of(TAUGHT),
            ),
            Claim("labels that differ between Triton's and PyTorch's", 5, differ, "stated beforehand", "<="),
        ],
        {"mean IoU by step": quality, "labels changed by each step, of the scenes shown": changed},
    )


def label_maps(network: RecurrentLabelling, images: Tensor) -> Tensor:
    """The label of each pixel after each step, [steps, N, H, W]."""
    with torch.no_grad():
        return torch.stack([scores.argmax(1) for scores in network.refinements(images)])


def mean_iou(network: RecurrentLabelling, batches: list[Batch]) -> list[float]:
    """Intersection over union after each step, the mean over the labels."""
    metrics = [MulticlassJaccardIndex(network.classes) for _ in range(network.steps)]
    for images, labels in batches:
        for metric, predicted in zip(metrics, label_maps(network, images), strict=True):
            metric.update(predicted, labels)
    return [float(metric.compute()) for metric in metrics]


def parameters_of(steps: int) -> int:
    network = RecurrentLabelling((3, SIZE, SIZE), steps=steps)
    return totals(layers_of(network, network.input_shape)).parameters
