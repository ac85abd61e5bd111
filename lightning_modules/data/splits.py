"""What the data modules share: three data sets that are made once, and their loaders."""

from abc import ABC, abstractmethod
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_modules.data.loading import loader
from lightning_modules.module import Batch

Splits = tuple[Dataset[Batch], Dataset[Batch], Dataset[Batch]]


class SplitDataModule(pl.LightningDataModule, ABC):
    """Data sets for training, validation and test, made when first needed; prediction runs over the test.

    Args:
        batch_size: samples a step, and in evaluation.
        num_workers: processes that load batches.
        split_seed: which of the possible splits; the seed of the training has no part in it.

    Raises:
        ValueError: the batch size is not positive, or the seed negative.
    """

    eval_batch_size: int | None = None  # None: batch_size

    def __init__(self, batch_size: int, num_workers: int, split_seed: int) -> None:
        super().__init__()
        check_positive(batch_size=batch_size)
        if not 0 <= split_seed < 2**32:
            raise ValueError(f"split_seed must be from 0 to 2^32 - 1, got {split_seed}")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.split_seed = split_seed
        self._made = False

    @abstractmethod
    def make_splits(self) -> Splits:
        """The data sets for training, validation and test; each gives a whole batch by `__getitems__`."""

    def setup(self, stage: str) -> None:
        if not self._made:
            self.train, self.val, self.test = self.make_splits()
            self._made = True

    def train_dataloader(self) -> DataLoader[Any]:
        return loader(self.train, self.batch_size, shuffle=True, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._evaluation(self.val)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._evaluation(self.test)

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.test_dataloader()

    def _evaluation(self, dataset: Dataset[Batch]) -> DataLoader[Any]:
        return loader(dataset, self.eval_batch_size or self.batch_size, num_workers=self.num_workers)


def check_positive(**sizes: int) -> None:
    """Raises ValueError for the first of the named sizes that is below one."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be positive, got {size}")


def generators(split_seed: int) -> tuple[torch.Generator, torch.Generator, torch.Generator]:
    """A generator each for training, validation and test; no two of them, for any seeds, start from the same state."""
    train, val, test = (torch.Generator().manual_seed(3 * split_seed + split) for split in range(3))
    return train, val, test


def balanced(count: int, classes: int) -> Tensor:
    """Labels [count] of which each class has as many as any other, up to one."""
    return torch.arange(count) % classes


def stratified(labels: Tensor, held_out: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the samples that are kept, and of as many as are held out, each class in proportion."""
    kept, out = train_test_split(np.arange(len(labels)), test_size=held_out, stratify=labels.numpy(), random_state=seed)
    return torch.from_numpy(kept), torch.from_numpy(out)
