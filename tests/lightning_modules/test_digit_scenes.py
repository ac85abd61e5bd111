import pytest
import torch

from lightning_modules.data import DigitScenesDataModule, DigitsDataModule
from lightning_modules.data.digit_scenes import EVAL_BATCH, SceneMaker


def made(**options) -> DigitScenesDataModule:
    data = DigitScenesDataModule(**{"train_samples": 80, "eval_samples": 50, **options})
    data.setup("fit")
    return data


def test_scenes():
    data = made(batch_size=16)
    sizes = set()
    for batches, counts in (
        (list(data.train_dataloader()), [16] * 5),
        (list(data.val_dataloader()), [EVAL_BATCH, EVAL_BATCH, 10]),
        (list(data.predict_dataloader()), [EVAL_BATCH, EVAL_BATCH, 10]),
    ):
        assert [len(labels) for _, labels in batches] == counts
        for images, labels in batches:
            assert images.shape == (len(labels), 3, *labels.shape[1:]) and set(labels.shape[1:]) <= {48, 56, 64}
            assert images.dtype == torch.float32 and labels.dtype == torch.int64
            assert -1 <= images.min() and images.max() <= 1 and 0 <= labels.min() and labels.max() < data.classes
            sizes.add(tuple(labels.shape[1:]))
        assert len(torch.cat([labels.flatten() for _, labels in batches]).unique()) == 11
    assert len(sizes) > 3


def test_labels_are_where_the_ink_is():
    images, labels = made(color=False).test[0]
    assert images.shape[1] == 1
    paper, ink = images[:, 0][labels == 0], images[:, 0][labels > 0]
    assert paper.max() <= 0.6 and paper.median() < 0  # at most half of the lightest ink on the lightest paper
    assert ink.median() > 0.5
    assert 0.1 < len(ink) / (len(ink) + len(paper)) < 0.3


def test_training_scenes_are_new_each_time_and_others_fixed():
    data = made()
    indices = list(range(4))
    torch.manual_seed(1)
    first, second = data.train.__getitems__(indices), data.train.__getitems__(indices)
    assert first[0].shape != second[0].shape or not torch.equal(first[0], second[0])
    torch.manual_seed(1)
    assert torch.equal(data.train.__getitems__(indices)[0], first[0])

    torch.manual_seed(2)
    again = made()
    for (images, labels), (others, other_labels) in zip(data.test.batches, again.test.batches, strict=True):
        assert torch.equal(images, others) and torch.equal(labels, other_labels)
    assert not torch.equal(made(split_seed=1).test[0][0][:, :, :48, :48], data.test[0][0][:, :, :48, :48])
    image, label = data.train[0]
    assert image.shape[1:] == label.shape


def test_no_digit_and_no_part_of_a_photograph_is_in_two_splits():
    data = made(sizes=[20], digit_sizes=(20, 20), density=1.0, eval_samples=100)
    digits = DigitsDataModule()
    digits.setup("fit")

    def masks(images, indices: torch.Tensor) -> set[tuple[bool, ...]]:
        ink = SceneMaker(images, data.train.maker.part, (20, 20), 1.0)._written(indices, None)
        return {tuple((mask > 0.5).flatten().tolist()) for mask in ink}

    splits = {"train": digits.train, "val": digits.val, "test": digits.test}
    known = {name: masks(images, torch.arange(len(images))) for name, images in splits.items()}
    for name, batches in (("val", data.val.batches), ("test", data.test.batches)):
        seen = {tuple((label > 0).flatten().tolist()) for _, labels in batches for label in labels}
        assert len(seen) > 50 and seen <= known[name] and len(seen & known["train"]) == 0
    _, labels = data.train.__getitems__(list(range(100)))
    assert {tuple((label > 0).flatten().tolist()) for label in labels} <= known["train"]

    blocks = {tuple(block) for block in data.train.maker.part.blocks[0].tolist()}
    assert len(blocks) == 8  # what the three parts share is in test_photographs


def test_labels_are_those_of_the_digits():
    data = made(sizes=[20], digit_sizes=(20, 20), density=1.0, eval_samples=20)
    maker = data.train.maker
    (_, labels), by_mask = maker.draw(40, (20, 20)), {}
    for mask, label in zip(maker._written(torch.arange(len(maker.labels)), None) > 0.5, maker.labels, strict=True):
        by_mask.setdefault(tuple(mask.flatten().tolist()), set()).add(int(label) + 1)
    for scene in labels:
        assert scene.max().item() in by_mask[tuple((scene > 0).flatten().tolist())]


def test_density():
    assert all((labels == 0).all() for _, labels in made(density=0.0).val.batches)
    assert all((labels > 0).flatten(1).any(1).all() for _, labels in made(density=1.0).val.batches)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "batch_size must be positive, got 0"),
        ({"eval_samples": -1}, "eval_samples must be positive, got -1"),
        ({"sizes": [16]}, r"sizes must be at least 24, the largest of the digits, got \[16\]"),
        ({"sizes": []}, "sizes must be at least 24"),
        ({"digit_sizes": (20, 16)}, r"digit_sizes must be positive, the smaller one first, got \(20, 16\)"),
        ({"density": 1.5}, "density must be in 0 to 1, got 1.5"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        DigitScenesDataModule(**options)


def test_scenes_must_fit_into_the_blocks():
    with pytest.raises(ValueError, match="sizes must be at most 89 x 100 for these photographs, got"):
        made(sizes=[200])
