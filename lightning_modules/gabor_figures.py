"""Figures of how Gabor-like the kernels of a layer are: their orientations, shapes and scores, and each beside its fit.

The plane of n_x and n_y is Ringach's ("Spatial structure and symmetry of simple-cell receptive fields in macaque
primary visual cortex", 2002). The area of simple cells in it is bounded by published ratios sigma_x / sigma_y, 0.23 to
0.92 (Jones and Palmer, "An evaluation of the two-dimensional Gabor filter model of simple receptive fields in cat
striate cortex", 1987), and bandwidths, 0.5 to 2.6 octaves (De Valois, Albrecht and Thorell, "Spatial frequency
selectivity of cells in macaque visual cortex", 1982).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from lightning_modules.gabor_score import COLUMNS, Likeness, scores
from lightning_modules.pictures import GAP, KERNELS_A_ROW, fit_grid, rgb, shown

KINDS = {  # with colours to be told apart by the colour-blind, too (Okabe and Ito)
    "strictly Gabor-like": ("#0072b2", "o"),
    "above the null": ("#e69f00", "^"),
    "neither": ("#999999", "x"),
}
CELLS_ASPECT = (0.23, 0.92)
CELLS_OCTAVES = (0.5, 2.6)
CELLS = "simple cells (Jones and Palmer\n1987, De Valois et al. 1982)"
LARGEST_N = (1.5, 3.0)  # n_x and n_y at the ends of the axes
DPI = 100


def shapes(likeness: Likeness, name: str) -> Figure:
    """Three panels: orientation and frequency, n_x and n_y beside those of simple cells, and r2 beside its null."""
    figure = Figure(figsize=(13, 4.2))
    grid = figure.add_gridspec(1, 3, left=0.04, right=0.98, top=0.86, bottom=0.22, wspace=0.2)
    _draw_shapes([figure.add_subplot(grid[0, i], polar=i == 0) for i in range(3)], likeness)
    figure.suptitle(name, fontsize=11)
    return figure


def report(likeness: Likeness, name: str) -> Figure:
    """Each kernel with its best Gabor function, what is left, and its r2, above the panels of `shapes`."""
    image = rgb(fit_grid(likeness)).numpy()
    height = 13 * image.shape[0] / image.shape[1]
    figure = Figure(figsize=(13, height + 5.4), layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=(height, 4.4))
    _draw_fits(figure.add_subplot(grid[0, :]), image, likeness)
    _draw_shapes([figure.add_subplot(grid[1, i], polar=i == 0) for i in range(3)], likeness)
    figure.suptitle(f"{name}\n{_in_words(likeness)}", fontsize=11)
    return figure


def columns_of(likenesses: Sequence[Likeness]) -> dict[str, NDArray[np.float64]]:
    """The columns of several tables, one after another."""
    tables = [each.table() for each in likenesses]
    return {name: torch.cat([table[name] for table in tables]).cpu().numpy() for name in COLUMNS}


def kinds(columns: dict[str, NDArray[np.float64]]) -> list[NDArray[np.bool_]]:
    """Which kernels are of each of KINDS; the dead are of none."""
    live, strict, above = (columns[name] == value for name, value in (("dead", 0), ("gabor", 1), ("above_null", 1)))
    return [live & strict, live & ~strict & above, live & ~strict & ~above]


def draw_scores(axes: Axes, columns: dict[str, NDArray[np.float64]], percent: bool = False) -> None:
    """The distribution of r2, one of KINDS on top of another; in kernels, or in percent of them."""
    chosen = [columns["r2"][kind] for kind in kinds(columns)]
    share = 100 / len(columns["r2"]) if percent else 1.0
    axes.hist(
        chosen, bins=list(np.linspace(0, 1, 26)), weights=[np.full(len(each), share) for each in chosen], stacked=True,
        color=[colour for colour, _ in KINDS.values()], label=list(KINDS), histtype="stepfilled",
    )  # fmt: skip
    axes.set(xlim=(0, 1), xticks=(0, 0.5, 1), xlabel="R2 of the best Gabor function")


def _in_words(likeness: Likeness) -> str:
    found = scores(likeness.table())
    return (
        f"mean R2 {found['mean_r2']:.2f}, above the null {found['fraction_above_null']:.0%}, "
        f"strictly Gabor-like {found['fraction']:.0%} of {len(likeness.kernels)} kernels, {found['dead']:.0f} dead"
    )


def _draw_fits(axes: Axes, image: NDArray[np.uint8], likeness: Likeness) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set_axis_off()
    kernels = shown(likeness).tolist()
    count = len(kernels)
    title = "kernel, best Gabor function, what is left; below, its R2 (bold: strictly Gabor-like)"
    axes.set_title(title if count == len(likeness.kernels) else f"{count} of the kernels: {title}", fontsize=9)
    columns = min(KERNELS_A_ROW // 2, count)
    border = GAP if count > 1 else 0  # a single cell has no border
    width, height = (image.shape[1] - border) / columns, (image.shape[0] - border) / -(-count // columns)
    strict = likeness.strict
    for place, kernel in enumerate(kernels):
        row, column = divmod(place, columns)
        axes.text(
            column * width + border + 2, (row + 1) * height - 3, f"{likeness.fit.r2[kernel]:.2f}", fontsize=6,
            weight="bold" if strict[kernel] else "normal", bbox={"facecolor": "white", "pad": 1, "linewidth": 0},
        )  # fmt: skip


def _draw_shapes(panels: list[Axes], likeness: Likeness) -> None:
    columns = columns_of([likeness])
    polar, plane, histogram = panels
    assert isinstance(polar, PolarAxes)
    for (label, (colour, marker)), chosen in zip(KINDS.items(), kinds(columns), strict=True):
        style: Any = {"s": 22, "color": colour, "marker": marker, "label": f"{label} ({chosen.sum()})", "alpha": 0.8}
        seen = -columns["orientation"][chosen] % math.pi  # rows count downwards
        polar.scatter(seen, columns["frequency"][chosen], clip_on=False, **style)
        n_x, n_y = (columns[name][chosen].clip(max=most) for name, most in zip(("n_x", "n_y"), LARGEST_N, strict=True))
        plane.scatter(n_x, n_y, clip_on=False, **style)
    draw_scores(histogram, columns)
    polar.set_thetamax(180)
    polar.set_thetagrids(range(0, 181, 45))
    polar.set_rlim(0, 0.5)
    polar.set_rticks([0.25, 0.5])
    polar.set_title("direction and frequency (cycles a pixel)", fontsize=9, y=1.0)
    _draw_cells(plane)
    plane.set(xlim=(0, LARGEST_N[0]), ylim=(0, LARGEST_N[1]), xticks=(0, 0.5, 1, 1.5), yticks=(0, 1, 2, 3))
    plane.set(xlabel="n_x: along the wave", ylabel="n_y: across it")
    plane.set_title("standard deviations (wavelengths)", fontsize=9, y=1.0)
    plane.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False)
    histogram.axvline(likeness.null, color="black", linestyle="--", linewidth=1)
    histogram.annotate(
        "95 % of noise ", (likeness.null, 0.97), xycoords=("data", "axes fraction"), fontsize=7, va="top", ha="right"
    )  # fmt: skip
    histogram.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    histogram.margins(y=0.12)
    histogram.set_ylabel("kernels")
    histogram.set_title("scores and their null", fontsize=9, y=1.0)


def _draw_cells(plane: Axes) -> None:
    """The area of simple cells."""
    narrow, broad = (_n_x(octaves) for octaves in CELLS_OCTAVES)
    n_x = np.linspace(broad, narrow, 50)
    thin, round_ = CELLS_ASPECT
    plane.fill_between(n_x, n_x / round_, n_x / thin, color="#009e73", alpha=0.15, linewidth=0, label=CELLS)


def _n_x(octaves: float) -> float:
    """n_x of a Gabor function with a bandwidth of so many octaves; see `Gabor.bandwidth`."""
    return math.sqrt(2 * math.log(2)) / (2 * math.pi) * (2**octaves + 1) / (2**octaves - 1)


def pixels(figure: Figure) -> Tensor:
    """A figure as an image, uint8 [3, height, width]."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy()).movedim(-1, 0)
