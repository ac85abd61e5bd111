"""Crops of photographs, whose class is the photograph: what the modules of patches and of textures have in common."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_modules.data.datasets import BatchDataset, BatchedImages
from lightning_modules.data.photographs import Part, check_photographs, parts, photograph
from lightning_modules.data.splits import SplitDataModule, Splits, balanced, check_positive, generators
from lightning_modules.module import Batch


class RandomCrops(BatchDataset):
    """Crops that are drawn anew each time, as many of each picture; torch's global generator says where.

    Args:
        part: what the crops are taken from.
        count: crops an epoch.
        size: their side in pixels.
        flips: axes of [N, C, H, W] along which half of them are mirrored.
    """

    def __init__(self, part: Part, count: int, size: int, flips: Sequence[int]) -> None:
        self.part = part
        self.count = count
        self.size = size
        self.flips = flips

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, indices: list[int]) -> Batch:
        labels = torch.tensor(indices) % len(self.part.blocks)
        return mirrored(self.part.crops(labels, (self.size, self.size)), self.flips), labels


class CropsDataModule(SplitDataModule):
    """Crops [N, C, size, size] in -1 to 1, with the index of their photograph as labels [N].

    Training crops are drawn anew each time; those for validation and test are fixed.

    Args:
        photographs: names, as in `photographs.PHOTOGRAPHS`.
        size: side of a crop in pixels.
        color: three channels instead of one.
        train_samples: crops an epoch.
        eval_samples: crops for the validation, and as many for the test.
        flips: axes along which training crops are mirrored at random, 2 top to bottom and 3 left to right.
        batch_size, num_workers, split_seed: see `SplitDataModule`.

    Raises:
        ValueError: a size or count is not positive, a photograph is not known, or (on setup) crops are larger than the
            blocks into which the photographs are divided.
    """

    train: BatchDataset
    val: BatchedImages
    test: BatchedImages

    def __init__(
        self,
        photographs: Sequence[str],
        size: int,
        color: bool,
        train_samples: int,
        eval_samples: int,
        flips: Sequence[int],
        batch_size: int,
        num_workers: int,
        split_seed: int,
    ) -> None:
        super().__init__(batch_size, num_workers, split_seed)
        check_positive(size=size, train_samples=train_samples, eval_samples=eval_samples)
        check_photographs(photographs, color)
        self.photographs = tuple(photographs)
        self.size = size
        self.color = color
        self.train_samples = train_samples
        self.eval_samples = eval_samples
        self.flips = tuple(flips)
        self.classes = len(self.photographs)
        self.input_shape = (3 if color else 1, size, size)

    def make_splits(self) -> Splits:
        train, val, test = self.parts()
        _, *seeded = generators(self.split_seed)
        return (
            RandomCrops(train, self.train_samples, self.size, self.flips),
            self.fixed_crops(val, self.eval_samples, seeded[0]),
            self.fixed_crops(test, self.eval_samples, seeded[1]),
        )

    def pictures(self) -> list[Tensor]:
        """What the crops are taken from, each [C, H, W]."""
        return [2 * photograph(name, self.color) - 1 for name in self.photographs]

    def parts(self) -> tuple[Part, Part, Part]:
        """What those of each split are taken from."""
        split = parts(self.pictures(), self.split_seed)
        for part in split:
            part.check_size("size", (self.size, self.size))
        return split

    def fixed_crops(
        self, part: Part, count: int, generator: torch.Generator, flips: Sequence[int] = ()
    ) -> BatchedImages:
        labels = balanced(count, self.classes)
        return BatchedImages(mirrored(part.crops(labels, (self.size, self.size), generator), flips, generator), labels)


def mirrored(images: Tensor, axes: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
    """Images [N, C, H, W], of which half are mirrored along each of `axes` by itself."""
    for axis in axes:
        chosen = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
        images = torch.where(chosen, images.flip(axis), images)
    return images
