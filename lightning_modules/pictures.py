"""Pictures of kernels, pixel by pixel: a grid of them, their best Gabor functions beside them, and their growth."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from PIL.Image import Dither
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from lightning_modules.files import replacing
from lightning_modules.gabor_score import Likeness

CELL = 64  # pixels that a kernel's longer side takes at least
ANIMATED_CELL = 32  # the same in an animation
GAP = 4  # white pixels between kernels
KERNELS_A_ROW = 8  # kernels a row
WHITE = 255
LARGEST = 12  # rows and columns shown of a layer with many channels
MOST = LARGEST**2  # kernels shown of others

Scale = Literal["kernel", "layer"]


def kernel_grid(weight: Tensor, scale: Scale = "kernel", cell: int = CELL) -> Tensor:
    """Kernels side by side: zero is grey, and the largest weight black or white.

    Args:
        weight: [O, C, kh, kw]. Kernels of one channel are drawn in grey and those of three in colour, the first 144 of
            them. Of others each row is a kernel and each column a channel, up to 12 of them.
        scale: whether each kernel has a largest weight of its own, or the "layer" one for all.
        cell: pixels that a kernel's longer side takes at least.

    Returns:
        uint8 [3, height, width] for kernels in colour, [1, height, width] for others.
    """
    return _grid(_in_grey(weight, scale), cell)


def fit_grid(likeness: Likeness) -> Tensor:
    """The kernels of `shown`, each with the Gabor function closest to it and what is left, on one scale.

    Returns:
        uint8 [1, height, width].
    """
    chosen = shown(likeness)
    kernels = likeness.kernels[chosen]
    fits = likeness.fit.gabor.kernels(likeness.fit.window)[chosen]
    cells = _enlarged(_in_grey(torch.stack([kernels, fits, kernels - fits], dim=1).float(), "kernel"), CELL)
    gap = cells.new_full((*cells.shape[:3], GAP // 4), WHITE)
    kernel, fit, rest = cells.unbind(1)  # [O, height, width]
    triples = torch.cat([kernel, gap[:, 0], fit, gap[:, 0], rest], dim=2)
    return make_grid(triples[:, None], nrow=KERNELS_A_ROW // 2, padding=GAP, pad_value=WHITE)[:1]


def shown(likeness: Likeness) -> Tensor:
    """The numbers of the kernels in `fit_grid`: those of largest r2 come first, and of many it shows 144 of all r2."""
    best_first = likeness.fit.r2.argsort(descending=True)
    count = len(best_first)
    return best_first[torch.linspace(0, count - 1, min(count, MOST)).round().long()]


def frame(weight: Tensor) -> Tensor:
    """What `save_growth` needs of a weight [O, C, kh, kw]: its kernels in grey levels, uint8."""
    largest = (LARGEST, LARGEST) if weight.shape[1] not in (1, 3) else (MOST, None)
    return _in_grey(weight[: largest[0], : largest[1]], "kernel")


def save_growth(frames: Sequence[Tensor], path: Path, milliseconds: int = 400) -> None:
    """Write a GIF of kernels growing, one `frame` after another; the last stays longest."""
    images = [to_pil_image(_grid(frame, ANIMATED_CELL)) for frame in frames]
    if images[0].mode == "RGB":
        images = [image.quantize(dither=Dither.NONE) for image in images]  # each to the nearest of a palette
    pauses = [milliseconds] * (len(images) - 1) + [5 * milliseconds]
    with replacing(path) as draft:
        images[0].save(draft, save_all=True, append_images=images[1:], duration=pauses, loop=0, optimize=False)


def rgb(image: Tensor) -> Tensor:
    """An image [1 or 3, height, width] as [height, width, 3], which matplotlib shows as it is."""
    return image.expand(3, -1, -1).movedim(0, -1)


def png(image: Tensor) -> bytes:
    """An image, uint8 [1 or 3, height, width], as PNG."""
    buffer = io.BytesIO()
    to_pil_image(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _in_grey(weight: Tensor, scale: Scale) -> Tensor:
    """Weights [N, ...] to levels of grey, uint8, with zero in the middle."""
    largest = weight.abs().flatten(1).amax(1)
    if scale == "layer":
        largest = largest.max().expand_as(largest)
    largest = largest.clamp(min=torch.finfo(weight.dtype).tiny)
    return (WHITE * (0.5 + weight / (2 * largest.view(-1, *[1] * (weight.ndim - 1))))).round().byte()


def _enlarged(cells: Tensor, side: int) -> Tensor:
    """Cells [N, C, kh, kw] with each weight as a square block of pixels, the longer side `side` or a little more."""
    return F.interpolate(cells, scale_factor=float(-(-side // max(cells.shape[2:]))), mode="nearest")


def _grid(cells: Tensor, side: int) -> Tensor:
    """Cells [O, C, kh, kw] side by side; see `kernel_grid`."""
    columns = KERNELS_A_ROW
    if cells.shape[1] in (1, 3):
        cells = cells[:MOST]
    else:
        cells = cells[:LARGEST, :LARGEST]
        columns = cells.shape[1]
        cells = cells.flatten(0, 1)[:, None]
    return make_grid(_enlarged(cells, side), nrow=columns, padding=GAP, pad_value=WHITE)[: cells.shape[1]]
