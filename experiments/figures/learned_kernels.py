"""What the first layer of a network looks like, before and after it was trained.

A kernel of the first layer can be looked at, as it is as large as the patch of the image that it weighs: dark where it
wants darkness, bright where it wants light. Before training there is noise. Then a sparse autoencoder, a convolution
and its transpose with the same kernels, learns to rebuild patches of photographs from a code of which most values
should be small. No label is given, and nothing is said of edges; yet edge detectors come out, at all angles, places and
widths. The code of new patches is then sparser than that by kernels of noise. (The training, by PyTorch's operations,
is a shorter one than that of experiments/autoencoder.yaml.)
"""

from typing import NamedTuple

import torch
from torch import Tensor

from experiments.gallery.example import Claim, Example
from experiments.gallery.style import BLUE, chart, mosaic, picture
from kernels import conv, use_backend
from kernels.functional import conv2d, conv_transpose2d
from lightning_modules.architectures import SparseAutoencoder
from lightning_modules.data import PatchesDataModule
from lightning_modules.pictures import kernel_grid, rgb

SOURCE = "Deep Learning, section 9.10; Le et al., ICA with reconstruction cost (2011)"
SHOWS = (conv2d, conv_transpose2d, conv._forward_kernel)
BACKEND = "triton"

SEED = 0
FILTERS, WINDOW = 48, 11
STEPS, BATCH, RATE = 1500, 500, 0.01
SHOWN = (0, 100, STEPS)  # steps after which the kernels are shown
SPARSITY, ERROR, SOFTNESS = 1.0, 0.9, 0.01  # weights of the loss, and the rounding of the absolute value


class Learned(NamedTuple):
    """Kernels [FILTERS, 1, WINDOW, WINDOW] after each of the SHOWN steps, the loss of every step, and new patches."""

    kernels: dict[int, Tensor]
    losses: list[float]
    patches: Tensor


def draw() -> Example:
    kernels, losses, patches = learn(SEED)
    results = {step: result(weight, patches) for step, weight in kernels.items()}

    figure, axes = mosaic(5.6, "ABC;LLL", height_ratios=(1.5, 1))
    for place, (step, weight) in zip((axes[letter] for letter in "ABC"), kernels.items(), strict=True):
        picture(place, rgb(kernel_grid(weight)), f"after {step} steps" if step else "before")
    axes["L"].plot(losses, color=BLUE, linewidth=1)
    chart(axes["L"], "a sparse code from which patches can be rebuilt", "steps", "loss")

    variance, kurtosis = zip(results[0], results[STEPS], strict=True)
    return Example(
        figure,
        [
            Claim("variance of new patches that is rebuilt, after", 0.5, variance[1], "stated beforehand", ">="),
            Claim("kurtosis of the code of new patches, after / before", 1.3, kurtosis[1] / kurtosis[0],
                "stated beforehand", ">="),
            Claim("loss, last 50 steps / first", 0.8, sum(losses[-50:]) / 50 / losses[0], "stated beforehand", "<="),
        ],
        {"variance before and after": variance, "kurtosis before and after (normal: 3)": kurtosis},
    )  # fmt: skip


def learn(seed: int) -> Learned:
    """Train a sparse autoencoder on whitened patches of photographs."""
    torch.manual_seed(seed)
    data = PatchesDataModule(
        size=WINDOW, whitening="pca", components=70, train_samples=50_000, eval_samples=2_000
    )  # fmt: skip
    data.setup("fit")
    network = SparseAutoencoder((1, WINDOW, WINDOW), FILTERS, WINDOW)
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    weight, kernels, losses = network.conv.weight, {}, []
    with use_backend("torch"):
        for step in range(STEPS + 1):
            if step in SHOWN:
                kernels[step] = weight.detach().clone()
            images, _ = data.train.__getitems__(torch.randint(len(data.train), (BATCH,)).tolist())
            rebuilt, code = network(images)
            sparsity = (code.square() + SOFTNESS).sqrt().sum() / BATCH
            loss = SPARSITY * sparsity + ERROR * (rebuilt - images).square().sum() / BATCH
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    return Learned(kernels, losses, data.test.images)


def result(weight: Tensor, patches: Tensor) -> tuple[float, float]:
    """Share of the variance of patches that is rebuilt, and the kurtosis of their code, which is 3 for normal noise."""
    code = conv2d(patches, weight)
    rest = patches - conv_transpose2d(code, weight)
    centred = code - code.mean(0)
    kurtosis = centred.pow(4).mean(0) / centred.square().mean(0).square()
    return float(1 - rest.var() / patches.var()), float(kurtosis.mean())
