"""Learned kernels next to the Gabor functions they come closest to, and a score that noise does not reach.

Networks that learn from photographs learn edge detectors in their first layer, whatever their task, and so does the
visual cortex: both look like Gabor functions. How alike are they? Each kernel of the sparse autoencoder of the
experiment learned-kernels is shown with its closest Gabor function and with what is left, the best first; R2 says which
share of the kernel's variance the function explains. With eight parameters something is explained of any kernel, noise
too, so the score is held to what 95 % of noise stays below. Untrained kernels are not above it. A kernel is strictly
Gabor-like if it is besides neither blob nor grating nor a single pixel. (Training and fit are by PyTorch's operations.)
"""

import numpy as np

from experiments.figures import learned_kernels
from experiments.gallery.example import Claim, Example
from experiments.gallery.style import BLUE, GREY, ORANGE, SIZE, chart, mosaic, picture
from lightning_modules.gabor import fit_gabor, is_gabor
from lightning_modules.gabor_score import Likeness, likeness, phase_scrambled, scores
from lightning_modules.pictures import fit_grid, rgb

SOURCE = "Deep Learning, figure 9.19 and section 9.10"
SHOWS = (fit_gabor, is_gabor, phase_scrambled)
BACKEND = "torch"

SEED = 0


def draw() -> Example:
    kernels = list(learned_kernels.learn(SEED).kernels.values())
    before, after = likeness(kernels[0]), likeness(kernels[-1])
    found = {"before": figures_of(before), "after": figures_of(after)}

    figure, axes = mosaic(7.0, "AB;AC", width_ratios=(1.7, 1))
    picture(axes["A"], rgb(fit_grid(after)), "kernel, closest Gabor function, what is left")
    bins = list(np.linspace(0, 1, 21))
    axes["B"].hist(before.fit.r2.numpy(), bins, color=GREY, label="before training")
    axes["B"].hist(after.fit.r2.numpy(), bins, color=BLUE, alpha=0.8, label="after")
    axes["B"].axvline(after.null, color="black", linestyle="--", linewidth=1, label="95 % of noise")
    axes["B"].legend(fontsize=SIZE - 2)
    chart(axes["B"], "how well Gabor functions fit", "R2", "kernels")
    table = after.table()
    above = table["above_null"].bool()
    for chosen, colour, marker, label in (
        (above, BLUE, "o", "above the noise"),
        (~above, ORANGE, "x", "not above it"),
    ):
        axes["C"].scatter(
            table["orientation"][chosen].rad2deg(), table["frequency"][chosen], color=colour, marker=marker, label=label
        )
    axes["C"].set(xlim=(0, 180), ylim=(0, 0.5), xticks=range(0, 181, 45))
    axes["C"].legend(fontsize=SIZE - 2, loc="lower right")
    chart(axes["C"], "all directions, many widths", "direction of the wave, degrees", "cycles a pixel")

    return Example(
        figure,
        [
            Claim("mean R2 before training", 0.3, found["before"]["mean_r2"], "stated beforehand", "<="),
            Claim("mean R2 after", 0.65, found["after"]["mean_r2"], "stated beforehand", ">="),
            Claim("kernels above 95 % of noise before, a share", 0.1, found["before"]["fraction_above_null"],
                "stated beforehand", "<="),
            Claim("kernels above 95 % of noise after", 0.3, found["after"]["fraction_above_null"],
                "stated beforehand", ">="),
            Claim("strictly Gabor-like before", 0.05, found["before"]["fraction"], "stated beforehand", "<="),
            Claim("strictly Gabor-like after", 0.3, found["after"]["fraction"], "stated beforehand", ">="),
            Claim("evenness of the directions (1: all alike frequent)", 0.6, found["after"]["orientation_entropy"],
                "stated beforehand", ">="),
        ],
        found,
    )  # fmt: skip


def figures_of(layer: Likeness) -> dict[str, float]:
    """The scores of a layer's kernels, and the R2 that 95 % of noise stays below."""
    numbers = {name: float(value) for name, value in scores(layer.table()).items()} | {"null": layer.null}
    return {name: value for name, value in numbers.items() if np.isfinite(value)}
