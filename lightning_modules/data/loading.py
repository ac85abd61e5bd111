"""The one way in which the data modules make their loaders."""

from typing import Any

from torch.utils.data import DataLoader, Dataset, default_convert

from lightning_modules.classifier import Batch


def loader(
    dataset: Dataset[Batch], batch_size: int, *, shuffle: bool = False, num_workers: int = 0, seed: int = 0
) -> DataLoader[Any]:
    """A loader of a data set whose `__getitems__` gives a whole batch."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=default_convert,
    )
