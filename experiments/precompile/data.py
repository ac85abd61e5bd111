"""The batches that a data module gives, by their shapes."""

from __future__ import annotations

import itertools
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset

from experiments.precompile.step import Batch
from lightning_modules.data.loading import Batches

LOOKED_AT = 32  # samples, as they may differ in size
UNKNOWN = "kernels are compiled ahead for a DataLoader with a batch_size over samples that have a number (--batch), got"
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
        if is_overridden(name, data):
            for loader in tree_leaves(getattr(data, name)()):
                sizes, samples = sizes_of(loader)
                shapes = itertools.product(sizes, shapes_of(samples))
                found |= {Batch((size * count, *grid), training): None for size, (count, *grid) in shapes}
    return list(found)


def sizes_of(loader: Any) -> tuple[set[int], Any]:
    """Return the sizes of a loader's batches, in any of the processes that train together, and its data set.

    Raises:
        ValueError: they are not known before the batches are read.
    """
    if not isinstance(loader, DataLoader):
        raise ValueError(f"{UNKNOWN} {type(loader).__name__}")
    if isinstance(loader.dataset, Batches):
        return loader.dataset.sizes(), loader.dataset.dataset
    if isinstance(loader.dataset, IterableDataset):
        raise ValueError(f"{UNKNOWN} one over the IterableDataset {type(loader.dataset).__name__}")
    if loader.batch_size is None:
        raise ValueError(f"{UNKNOWN} one without a batch_size, over {type(loader.dataset).__name__}")
    wholes, rest = divmod(len(loader.sampler), loader.batch_size)  # type: ignore[arg-type]
    sizes = ([loader.batch_size] if wholes else []) + ([rest] if rest and not loader.drop_last else [])
    return set(sizes), loader.dataset


def shapes_of(samples: Any) -> set[tuple[int, ...]]:
    """Return the shapes of the first images of a data set, [N, C, *grid]: N is 1 unless a sample is a batch of its own.

    Random numbers go on as if nothing had been asked for.
    """
    shapes = set()
    with torch.random.fork_rng(devices=[]):
        for index in range(min(len(samples), LOOKED_AT)):
            many = samples.__getitems__([index]) if hasattr(samples, "__getitems__") else [samples[index]]
            images = many[0][0][None] if isinstance(many, list) else many[0]
            shapes.add(tuple(images.shape))
    return shapes
