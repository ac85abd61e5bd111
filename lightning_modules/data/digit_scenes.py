"""Scenes of real digits on real photographs with a label for each pixel, no download.

Each scene is a crop of a dimmed photograph, in whose cells digits are written: enlarged, shifted, and in a light colour
of their own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from lightning_modules.data.datasets import BatchDataset, BatchedImages
from lightning_modules.data.digits import DigitsDataModule
from lightning_modules.data.photographs import NATURAL, Part, parts, photograph
from lightning_modules.data.splits import SplitDataModule, Splits, check_positive, generators
from lightning_modules.module import Batch

EDGE = 1  # pixels of paper around a digit, so that its outermost ink fades, too
SHARPNESS = 4.0  # of the edges of the enlarged ink, in digits' grey levels a level
INK = 0.4  # darkness from which on a pixel is ink; the strokes of many digits are no darker than half
PAPER = 0.6  # brightness to which the photographs are dimmed
INK_COLOR = (0.7, 1.0)  # darkest and lightest, of each channel of each digit by itself
EVAL_BATCH = 20  # scenes of one size


class SceneMaker:
    """Draws scenes from the digits and photographs of one split.

    Args:
        digits: images in -1 to 1, and their labels 0 to 9.
        part: of photographs [C, H, W] in 0 to 1.
        digit_sizes: smallest and largest side of a digit in pixels.
        density: share of the cells, as large as the largest digit, that have a digit.
    """

    def __init__(self, digits: BatchedImages, part: Part, digit_sizes: tuple[int, int], density: float) -> None:
        self.ink = F.pad((digits.images + 1) / 2, (EDGE,) * 4)  # [digits, 1, h, w]
        self.labels = digits.labels
        self.part = part
        self.digit_sizes = digit_sizes
        self.density = density

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator | None = None) -> Batch:
        """Images [count, C, *size] in -1 to 1, and labels [count, *size]: 0 background, 1 to 10 the digits 0 to 9."""
        which = torch.randint(len(self.part.blocks), (count,), generator=generator)
        paper = PAPER * self.part.crops(which, size, generator)
        cell = self.digit_sizes[1]
        rows, columns = size[0] // cell, size[1] // cell
        shape = (count, rows, columns)
        chosen = torch.randint(len(self.labels), shape, generator=generator)
        written = torch.rand(shape, generator=generator) < self.density
        ink = self._written(chosen.flatten(), generator).view(*shape, cell, cell) * written[..., None, None]
        label = (self.labels[chosen] + 1)[..., None, None] * (ink > 0.5)

        darkest, lightest = INK_COLOR
        color = darkest + (lightest - darkest) * torch.rand(count, paper.shape[1], rows, columns, generator=generator)
        color = color[..., None, None].expand(*color.shape, cell, cell)

        top, left = (
            int(torch.randint(extent - cell * cells + 1, (), generator=generator))
            for extent, cells in zip(size, (rows, columns), strict=True)
        )
        inside = (..., slice(top, top + rows * cell), slice(left, left + columns * cell))
        images, labels = 2 * paper - 1, torch.zeros(count, *size, dtype=torch.long)
        images[inside] += _tiled(ink)[:, None] * (2 * _tiled(color) - 1 - images[inside])
        labels[inside] = _tiled(label)
        return images, labels

    def _written(self, chosen: Tensor, generator: torch.Generator | None) -> Tensor:
        """How much ink there is, 0 to 1, in cells [N, cell, cell] with the digits `chosen` [N] enlarged and shifted."""
        smallest, cell = self.digit_sizes
        side = smallest + (cell - smallest) * torch.rand(len(chosen), generator=generator)
        shift = (1 - side[:, None] / cell) * (2 * torch.rand(len(chosen), 2, generator=generator) - 1)
        scale = cell / side
        maps = torch.zeros(len(chosen), 2, 3)  # from places in the cell to places in the digit, each -1 to 1
        maps[:, 0, 0] = maps[:, 1, 1] = scale
        maps[:, :, 2] = -scale[:, None] * shift
        places = F.affine_grid(maps, [len(chosen), 1, cell, cell], align_corners=False)
        grey = F.grid_sample(self.ink[chosen], places, mode="bicubic", align_corners=False)[:, 0]
        return (SHARPNESS * (grey - INK) + 0.5).clamp(0, 1)


class RandomScenes(BatchDataset):
    """Scenes that are drawn anew each time, by torch's global generator; height and width are drawn for each batch."""

    def __init__(self, maker: SceneMaker, count: int, sizes: Sequence[int]) -> None:
        self.maker = maker
        self.count = count
        self.sizes = sizes

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, indices: list[int]) -> Batch:
        return self.maker.draw(len(indices), drawn_size(self.sizes))


class WholeBatches(Dataset[Batch]):
    """Fixed batches, whose sizes may differ: one is what others call a sample."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        return self.batches[index]

    def __getitems__(self, indices: list[int]) -> Batch:
        (index,) = indices
        return self.batches[index]


class DigitScenesDataModule(SplitDataModule):
    """Scenes [N, C, H, W] in -1 to 1 with labels [N, H, W]: 0 background, 1 to 10 the digits 0 to 9.

    No digit and no part of a photograph, see `photographs`, is in two splits. Height and width differ from batch to
    batch. Training scenes are drawn anew each time; those for validation and test are fixed, in batches of 20.
    Prediction runs over the test scenes.

    Args:
        batch_size: scenes a step of training.
        sizes: in pixels; each height and each width is one of these.
        color: three channels instead of one.
        digit_sizes: smallest and largest side of a digit in pixels.
        density: share of the places for a digit that have one.
        train_samples: scenes an epoch.
        eval_samples: scenes for the validation, and as many for the test.
        num_workers: processes that load batches.
        split_seed: which of the possible splits, and which evaluation scenes.

    Raises:
        ValueError: a size or count is not positive, the density not in 0 to 1, digits are larger than scenes, or, on
            setup, scenes larger than the blocks into which the photographs are divided.
    """

    classes = 11
    eval_batch_size = 1  # a sample of the evaluation is a batch already

    def __init__(
        self,
        batch_size: int = 16,
        sizes: Sequence[int] = (48, 56, 64),
        color: bool = True,
        digit_sizes: tuple[int, int] = (18, 24),
        density: float = 0.9,
        train_samples: int = 800,
        eval_samples: int = 200,
        num_workers: int = 0,
        split_seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, split_seed)
        check_positive(train_samples=train_samples, eval_samples=eval_samples)
        smallest, largest = digit_sizes
        if not 1 <= smallest <= largest:
            raise ValueError(f"digit_sizes must be positive, the smaller one first, got {digit_sizes}")
        if not sizes or min(sizes) < largest:
            raise ValueError(f"sizes must be at least {largest}, the largest of the digits, got {list(sizes)}")
        if not 0 <= density <= 1:
            raise ValueError(f"density must be in 0 to 1, got {density}")
        self.sizes = tuple(sizes)
        self.color = color
        self.digit_sizes = (smallest, largest)
        self.density = density
        self.train_samples = train_samples
        self.eval_samples = eval_samples

    def make_splits(self) -> Splits:
        digits = DigitsDataModule(split_seed=self.split_seed)
        digits.setup("fit")
        pictures = [photograph(name, self.color) for name in NATURAL]
        makers = []
        for images, part in zip((digits.train, digits.val, digits.test), parts(pictures, self.split_seed), strict=True):
            part.check_size("sizes", (max(self.sizes), max(self.sizes)))
            makers.append(SceneMaker(images, part, self.digit_sizes, self.density))
        val, test = (
            WholeBatches(
                [
                    maker.draw(min(EVAL_BATCH, self.eval_samples - start), drawn_size(self.sizes, generator), generator)
                    for start in range(0, self.eval_samples, EVAL_BATCH)
                ]
            )
            for maker, generator in zip(makers[1:], generators(self.split_seed)[1:], strict=True)
        )
        return RandomScenes(makers[0], self.train_samples, self.sizes), val, test


def drawn_size(sizes: Sequence[int], generator: torch.Generator | None = None) -> tuple[int, int]:
    """A height and a width, each one of `sizes`."""
    height, width = torch.randint(len(sizes), (2,), generator=generator).tolist()
    return sizes[height], sizes[width]


def _tiled(cells: Tensor) -> Tensor:
    """Cells [..., rows, columns, height, width] side by side: [..., rows * height, columns * width]."""
    return cells.transpose(-3, -2).flatten(-2).flatten(-3, -2)
