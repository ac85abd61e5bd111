import pytest
import torch

from lightning_modules.data import DigitsDataModule
from lightning_modules.data.datasets import shifted


def made(**options) -> DigitsDataModule:
    data = DigitsDataModule(**options)
    data.setup("fit")
    return data


def rows(images: torch.Tensor) -> set[tuple[float, ...]]:
    return {tuple(image.flatten().tolist()) for image in images}


def test_split_is_whole_stratified_and_fixed():
    data = made()
    parts = (data.train, data.val, data.test)
    assert [len(part) for part in parts] == [1257, 270, 270]
    assert rows(data.train.images).isdisjoint(rows(data.test.images) | rows(data.val.images))
    counts = torch.stack([part.labels.bincount(minlength=10) for part in parts])
    expected = counts.sum(0) * torch.tensor([[1257], [270], [270]]) / 1797
    assert (counts - expected).abs().max() < 2  # one for each of the two divisions

    torch.manual_seed(1)
    assert torch.equal(made().train.images, data.train.images)
    assert not torch.equal(made(split_seed=1).train.images, data.train.images)


def test_batches():
    data = made(batch_size=100)
    batches = list(data.train_dataloader())
    assert [len(labels) for _, labels in batches] == [100] * 12 + [57]
    images, labels = batches[0]
    assert images.shape == (100, 1, 8, 8) and images.dtype == torch.float32 and labels.dtype == torch.int64
    assert images.min() == -1 and images.max() == 1
    assert rows(torch.cat([images for images, _ in batches])) == rows(data.train.images)
    ((images, labels),) = data.predict_dataloader()
    assert torch.equal(images, data.test.images) and torch.equal(labels, data.test.labels)


def test_one_sample_is_that_of_the_batch():
    data = made()
    image, label = data.val[3]
    assert torch.equal(image, data.val.images[3]) and label == data.val.labels[3]


def test_shuffling_follows_the_seed():
    data = made(batch_size=1257)

    def order(seed: int, epoch: int) -> torch.Tensor:
        torch.manual_seed(seed)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        ((_, labels),) = loader
        return labels

    assert torch.equal(order(5, 1), order(5, 1))
    assert not torch.equal(order(5, 0), order(5, 1)) and not torch.equal(order(5, 1), order(6, 1))


def test_images_are_resized():
    assert made(image_size=16).train.images.shape == (1257, 1, 16, 16)


def test_only_training_digits_are_shifted():
    data = made(max_shift=1)
    ((images, _),) = data.val_dataloader()
    assert torch.equal(images, data.val.images)
    images, _ = next(iter(data.train_dataloader()))
    assert not rows(images) <= rows(data.train.images)


def test_shifts_are_whole_pixels_of_each_image():
    images = torch.randn(40, 2, 5, 4)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
    moved = shifted(images, 1)
    seen = set()
    for index, image in enumerate(moved):
        found = [
            (down, right)
            for down in range(3)
            for right in range(3)
            if torch.equal(image, padded[index, :, down : down + 5, right : right + 4])
        ]
        assert len(found) == 1
        seen.update(found)
    assert len(seen) > 4


@pytest.mark.parametrize("option", [{"batch_size": 0}, {"image_size": -1}, {"max_shift": -1}])
def test_sizes_are_checked(option):
    with pytest.raises(ValueError, match=r"must be positive.*got .*(0|-1)"):
        DigitsDataModule(**option)
