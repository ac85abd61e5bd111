"""The batches that a data module gives, by their shapes."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from experiments.precompile.step import Batch
from lightning_modules.data.loading import Batches

LOADERS = {  # of a data module, for each command of Lightning; True where gradients are computed
    "fit": (("train_dataloader", True), ("val_dataloader", False)),
    "validate": (("val_dataloader", False),),
    "test": (("test_dataloader", False),),
    "predict": (("predict_dataloader", False),),
}


def batches_of(data: pl.LightningDataModule, stage: str) -> list[Batch]:
    """Return the batches of different shapes that a command of Lightning takes from a data module that is set up."""
    found: dict[Batch, None] = {}
    for name, training in LOADERS[stage]:
        if not is_overridden(name, data):
            continue
        for loader in tree_leaves(getattr(data, name)()):
            sizes, samples = sizes_of(loader)
            grid = image_shape(samples)
            found |= dict.fromkeys(Batch((size, *grid), training) for size in sizes)
    return list(found)


def sizes_of(loader: DataLoader[Any]) -> tuple[set[int], Any]:
    """Return the sizes of a loader's batches, in any of the processes that train together, and its data set."""
    if isinstance(loader.dataset, Batches):
        return loader.dataset.sizes(), loader.dataset.dataset
    count, size = len(loader.dataset), loader.batch_size or 1  # type: ignore[arg-type]
    rest = count % size
    return {min(size, count), *([rest] if rest and not loader.drop_last else [])}, loader.dataset


def image_shape(samples: Any) -> tuple[int, ...]:
    """Return the shape of the first image of a data set; random numbers go on as if it had not been asked for."""
    with torch.random.fork_rng(devices=[]):
        return tuple(samples[0][0].shape)
