"""Loaders whose batches do not depend on who loads them: seeded, resumable in mid-epoch, shared out among processes.

The n-th batch is a function of the data, the seed and n alone, its random augmentation included. So it is the same
whether this process loads it or a worker, and whether the run was interrupted before it or not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.utils.data import DataLoader, Dataset, default_collate
from torch.utils.data.distributed import DistributedSampler


def loader(
    dataset: Dataset[Any], batch_size: int, *, shuffle: bool = False, num_workers: int = 0, seed: int = 0
) -> "ResumableLoader":
    """Batches of a dataset, for training or evaluation.

    Under distributed training each process gets an equal share of a batch of `batch_size` times the number of
    processes: together they see what one process of that batch size sees, each sample once an epoch.

    Random augmentation must draw from torch's global generator, which is seeded for each batch (and process), and then
    put back. Where nobody calls `set_epoch` of the loader's sampler, as Lightning does, all epochs are the first one.

    Args:
        dataset: gives a sample for an index. Where it has `__getitems__`, that gives for a list of indices either a
            whole batch, a tuple of tensors, or a list of samples.
        batch_size: samples a batch of this process; the last batch of an epoch may be smaller.
        shuffle: whether each epoch has an order of its own.
        num_workers: processes that load, kept from epoch to epoch; 0 loads in this one.
        seed: of the order and of augmentation, on top of the seed of torch's generator when the loader is made.

    Raises:
        ValueError: a size is not positive, the number of workers or the seed negative, or the data set empty.
    """
    if batch_size < 1 or num_workers < 0 or seed < 0:
        raise ValueError(
            "batch_size must be positive, num_workers and seed not negative, "
            f"got {batch_size}, {num_workers} and {seed}"
        )
    batches = Batches(dataset, batch_size, shuffle, seed)
    if not batches.samples:
        raise ValueError(f"the {'training' if shuffle else 'evaluation'} split of the data has no samples")
    return ResumableLoader(
        batches,
        batch_size=None,  # an item is a batch
        sampler=BatchNumbers(batches),
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),  # the seeds of workers, not drawn from the global generator
    )


class Batches(Dataset[Any]):
    """The batches of a dataset by number: batch n is number n % len(self) of epoch n // len(self).

    See `loader` for the arguments.
    """

    def __init__(self, dataset: Dataset[Any], batch_size: int, shuffle: bool, seed: int) -> None:
        self.dataset = dataset
        self.shuffle = shuffle
        self.seed: tuple[int, ...] = (torch.initial_seed(), seed)
        initialized = distributed.is_available() and distributed.is_initialized()
        self.rank, self.processes = (distributed.get_rank(), distributed.get_world_size()) if initialized else (0, 1)
        self.batch_size = batch_size * self.processes
        self._order = (-1, torch.empty(0))

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __getitem__(self, number: int) -> Any:
        indices = self.indices(number)
        with _random_numbers(self._seed(1, number, self.rank)):
            if hasattr(self.dataset, "__getitems__"):
                batch = self.dataset.__getitems__(indices)
            else:
                batch = [self.dataset[index] for index in indices]
        return default_collate(batch) if isinstance(batch, list) else batch

    @property
    def samples(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def size(self, number: int) -> int:
        """Samples of a batch over all processes."""
        return min(self.batch_size, self.samples - number % len(self) * self.batch_size)

    def sizes(self) -> set[int]:
        """Return how many samples a batch can have of a process, over all processes."""
        wholes = {self.size(0), self.size(len(self) - 1)}
        return {max(1, whole // self.processes) for whole in wholes} | {-(-whole // self.processes) for whole in wholes}

    def share(self, number: int) -> slice:
        """Which samples of a batch are this process's."""
        size = self.size(number)
        return slice(self.rank * size // self.processes, (self.rank + 1) * size // self.processes)

    def indices(self, number: int) -> list[int]:
        """The samples of this process's share; one of another's where there are fewer samples than processes."""
        epoch, position = divmod(number, len(self))
        start = position * self.batch_size
        whole = self._epoch(epoch)[start : start + self.batch_size]
        share = whole[self.share(number)]
        return (share if len(share) else whole[:1]).tolist()

    def _epoch(self, epoch: int) -> torch.Tensor:
        if not self.shuffle:
            epoch = 0
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self._seed(0, epoch))
            order = torch.randperm(self.samples, generator=generator) if self.shuffle else torch.arange(self.samples)
            self._order = (epoch, order)
        return self._order[1]

    def _seed(self, *purpose: int) -> int:
        return int(
            np.random.SeedSequence((*self.seed, *purpose)).generate_state(1)[0]
        )  # torch's generator takes 32 bits


class BatchNumbers(DistributedSampler[int]):
    """The numbers of an epoch's batches. The batches are shared out already: by its class it tells Lightning so."""

    dataset: Batches

    def __init__(self, batches: Batches) -> None:
        super().__init__(batches, num_replicas=1, rank=0, shuffle=False)
        self.start = 0  # position in the epoch

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * len(self.dataset)
        return iter(range(first + self.start, first + len(self.dataset)))


class ResumableLoader(DataLoader[Any]):
    """A DataLoader whose state is how many batches of the epoch it has given. See `loader`, which makes it."""

    dataset: Batches
    sampler: BatchNumbers
    given = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator, so that workers start at the first batch: Lightning asks for an iterator, then sets the epoch.
        self.given = getattr(self.sampler, "start", 0)  # none where Lightning overfits: it has put in another sampler
        batches = super().__iter__()
        self.sampler.start = 0
        for batch in batches:
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        batches = self.dataset
        sizes = {"samples": batches.samples, "batch_size": batches.batch_size}
        return {"given": self.given, **sizes, "seed": list(batches.seed)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Have the next epoch go on where that of `state` was left, in its order.

        Raises:
            ValueError: the state is of other data or of another batch size.
        """
        here = self.state_dict()
        there, given = ([each.get(name) for name in ("samples", "batch_size")] for each in (state, here))
        if there != given:
            raise ValueError(
                f"the checkpoint is of epochs of {there[0]} samples in batches of {there[1]}: it cannot be resumed "
                f"with {given[0]} in batches of {given[1]}, but --resume weights starts anew from its weights"
            )
        self.dataset.seed = tuple(state.get("seed", self.dataset.seed))
        self.sampler.start = state["given"] % len(self.sampler)


@contextmanager
def _random_numbers(seed: int) -> Iterator[None]:
    """torch's global generator on the CPU seeded within the block, and after it as before."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
