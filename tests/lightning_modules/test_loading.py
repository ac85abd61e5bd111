import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from lightning_modules.data.datasets import BatchedImages
from lightning_modules.data.loading import ResumableLoader, loader


class Noisy(Dataset):
    """Its samples are their index, and a random number."""

    def __init__(self, samples: int = 23) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.rand(()), index


def epoch(batches: ResumableLoader, number: int) -> list[tuple[list[int], list[float]]]:
    batches.sampler.set_epoch(number)
    return [(labels.tolist(), noise.tolist()) for noise, labels in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_depend_on_seed_and_number_alone(workers):
    first, again = (loader(Noisy(), 5, shuffle=True, num_workers=workers) for _ in range(2))
    before = torch.get_rng_state()
    one, two = epoch(first, 0), epoch(first, 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert [len(labels) for labels, _ in one] == [5, 5, 5, 5, 3]
    assert sorted(sum((labels for labels, _ in one), [])) == list(range(23))
    assert len({noise for _, batch in one + two for noise in batch}) == 2 * 23
    assert [labels for labels, _ in one] != [labels for labels, _ in two]

    torch.rand(7)
    assert epoch(again, 1) == two
    assert epoch(loader(Noisy(), 5, shuffle=True), 1) == two, "the same by workers"
    assert epoch(loader(Noisy(), 5, shuffle=True, seed=1), 1) != two
    torch.manual_seed(8)
    assert epoch(loader(Noisy(), 5, shuffle=True), 1) != two


@pytest.mark.parametrize("workers", [0, 2])
def test_goes_on_where_it_was_left(workers):
    whole = epoch(loader(Noisy(), 5, shuffle=True), 3)
    interrupted = loader(Noisy(), 5, shuffle=True, num_workers=workers)
    interrupted.sampler.set_epoch(3)
    batches = iter(interrupted)
    next(batches), next(batches)
    state = interrupted.state_dict()

    resumed = loader(Noisy(), 5, shuffle=True, num_workers=workers)
    resumed.load_state_dict(state)
    assert len(resumed) == 5
    assert epoch(resumed, 3) == whole[2:]
    assert resumed.state_dict()["given"] == 5
    assert epoch(resumed, 3) == whole, "once"

    with pytest.raises(ValueError, match="23 samples in batches of 5.*23 in batches of 6"):
        loader(Noisy(), 6).load_state_dict(state)


def test_in_order():
    assert [labels for labels, _ in epoch(loader(Noisy(4), 3), 2)] == [[0, 1, 2], [3]]


@pytest.mark.parametrize("samples", [23, 21, 20])
def test_processes_share_a_batch(monkeypatch, samples):
    """Three processes of two samples see what one of six does; a process without a sample gets that of another."""
    (whole, *_) = [[labels for labels, _ in epoch(loader(Noisy(samples), 6, shuffle=True), 1)]]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    shares, noises = [], []
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        mine = epoch(loader(Noisy(samples), 2, shuffle=True), 1)
        shares.append([labels for labels, _ in mine])
        noises += [noise for _, batch in mine for noise in batch]
    assert len(set(noises)) == len(noises), "each process draws for itself"
    for number, batch in enumerate(whole):
        parts = [share[number] for share in shares]
        assert all(parts) and max(map(len, parts)) - min(map(len, parts)) <= 1
        together = sum(parts, [])
        assert together == batch if len(batch) >= 3 else set(together) == set(batch)


def test_whole_batches_and_samples():
    images, labels = torch.randn(6, 1, 2, 2), torch.arange(6)
    for dataset in (BatchedImages(images, labels), TensorDataset(images, labels)):
        for data, expected in ((dataset, [0, 1, 2, 3]), (Subset(dataset, [5, 3, 1, 2]), [5, 3, 1, 2])):
            (given,) = loader(data, 4) if isinstance(data, Subset) else list(loader(data, 4))[:1]
            assert torch.equal(given[0], images[expected]) and given[1].tolist() == expected


def test_sizes_are_checked():
    for option in ({"batch_size": 0}, {"num_workers": -1}, {"seed": -1}):
        with pytest.raises(ValueError, match=r"batch_size must be positive.*got .*(0|-1)"):
            loader(Noisy(), **{"batch_size": 1, **option})


def test_a_split_without_samples_is_refused():
    for shuffle, split in ((True, "training"), (False, "evaluation")):
        with pytest.raises(ValueError, match=f"the {split} split of the data has no samples"):
            loader(TensorDataset(torch.zeros(0, 1)), 4, shuffle=shuffle)
