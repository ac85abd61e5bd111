"""Kernels of different learners side by side, with their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lightning_modules.gabor_figures import columns_of, draw_scores
from lightning_modules.gabor_score import Likeness
from lightning_modules.pictures import kernel_grid, rgb

WIDTH = 3.2  # inches a learner


def draw(weights: Mapping[str, Tensor], found: Mapping[str, Sequence[Likeness]]) -> Figure:
    """A column for each learner: its kernels above, and below the r2 of their best Gabor functions, over all seeds.

    Args:
        weights: [O, C, kh, kw] of one seed, by learner.
        found: of each seed, by learner.
    """
    images = {name: rgb(kernel_grid(weight)).numpy() for name, weight in weights.items()}
    heights = (WIDTH * max(image.shape[0] / image.shape[1] for image in images.values()), 0.7 * WIDTH)
    figure = Figure(figsize=(WIDTH * len(weights), sum(heights) + 0.8), layout="constrained")
    pictures, histograms = figure.subplots(2, len(weights), squeeze=False, height_ratios=heights)
    for axes, (name, image) in zip(pictures, images.items(), strict=True):
        axes.imshow(image, interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(name, fontsize=10)
    for axes, likenesses in zip(histograms, found.values(), strict=True):
        axes.sharey(histograms[0])
        _draw_scores(axes, likenesses)
    histograms[0].set_ylabel("% of the kernels")
    handles, labels = histograms[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    return figure


def _draw_scores(axes: Axes, likenesses: Sequence[Likeness]) -> None:
    draw_scores(axes, columns_of(likenesses), percent=True)
    for place, each in enumerate(likenesses):
        label = "95 % of noise, a line a seed" if place == 0 else None
        axes.axvline(each.null, color="black", linestyle="--", linewidth=0.8, label=label)
