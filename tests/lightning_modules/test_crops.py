"""Patches and textures, which are crops of photographs, and the whitening of patches."""

import pytest
import torch

from lightning_modules.data import PatchesDataModule, TexturesDataModule
from lightning_modules.data.crops import mirrored
from lightning_modules.data.photographs import NATURAL
from lightning_modules.data.whitening import filtered, fit_whitening, whitening_filter


def made(module, **options):
    data = module(**options)
    data.setup("fit")
    return data


@pytest.mark.parametrize(
    "module, options, shape, classes",
    [
        pytest.param(TexturesDataModule, {"size": 24}, (1, 24, 24), 3, id="textures"),
        pytest.param(PatchesDataModule, {"size": 11}, (1, 11, 11), 7, id="patches"),
        pytest.param(
            PatchesDataModule, {"color": True, "photographs": ["ihc", "coffee"]}, (3, 32, 32), 2, id="colour crops"
        ),
    ],
)
def test_crops(module, options, shape, classes):
    data = made(module, batch_size=50, train_samples=120, eval_samples=45, **options)
    assert data.classes == classes and data.input_shape == shape
    batches = list(data.train_dataloader())
    assert [len(labels) for _, labels in batches] == [50, 50, 20]
    for images, labels in [*batches, *data.val_dataloader(), *data.predict_dataloader()]:
        assert images.shape[1:] == shape and images.dtype == torch.float32 and labels.dtype == torch.int64
        assert -1 <= images.min() < -0.2 and 0.2 < images.max() <= 1
    for part in (torch.cat([labels for _, labels in batches]), data.val.labels, data.test.labels):
        counts = part.bincount(minlength=classes)
        assert counts.max() - counts.min() <= 1

    image, label = data.train[1]
    assert image.shape == shape and label == 1


def test_evaluation_is_fixed_and_training_follows_the_seed():
    data = made(TexturesDataModule, train_samples=9, eval_samples=30)
    torch.manual_seed(7)
    first, second = (data.train.__getitems__([0, 1, 2])[0] for _ in range(2))
    assert not torch.equal(first, second)
    again = made(TexturesDataModule, train_samples=9, eval_samples=30)
    torch.manual_seed(7)
    assert torch.equal(again.train.__getitems__([0, 1, 2])[0], first)
    assert torch.equal(again.test.images, data.test.images) and not torch.equal(data.val.images, data.test.images)
    other = made(TexturesDataModule, train_samples=9, eval_samples=30, split_seed=1)
    assert not torch.equal(other.test.images, data.test.images)


def test_half_are_mirrored():
    images = torch.randn(200, 1, 3, 4)
    turned = mirrored(images, (3,))
    flipped = (turned == images.flip(3)).flatten(1).all(1)
    assert torch.equal(turned[~flipped], images[~flipped]) and 60 < flipped.sum() < 140
    assert torch.equal(mirrored(images, ()), images)


@pytest.mark.parametrize("color, components", [(False, 30), (True, 40)])
def test_whitened_patches_have_as_many_directions_of_variance_one_as_wanted(color, components):
    options = {"size": 7, "color": color, "components": components, "train_samples": 3000, "eval_samples": 99}
    data = made(PatchesDataModule, whitening="pca", **options)
    values = data.train.images.flatten(1).double()
    variances = torch.linalg.eigvalsh(values.T @ values / len(values))
    expected = torch.ones_like(variances)
    expected[:-components] = 0
    torch.testing.assert_close(variances, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(values.mean(0), torch.zeros_like(values[0]), rtol=0, atol=1e-4)
    assert data.test.images.shape == (99, *data.input_shape) and data.test.images.std() < 2


def test_the_filter_makes_the_middle_of_a_whitened_patch():
    patches = torch.randn(500, 2, 5, 5).cumsum(3)
    weight = whitening_filter(patches, components=30)
    whitening = fit_whitening(patches, components=30)
    middle = whitening(patches)[:, :, 2, 2]
    offset = whitening(torch.zeros(1, 2, 5, 5))[:, :, 2, 2]  # what removing the mean patch does
    for patch, expected in zip(patches[:20], middle - offset, strict=False):
        torch.testing.assert_close(filtered(patch, weight)[:, 2, 2], expected, rtol=1e-3, atol=1e-3)


def test_filtered_photographs_are_nearly_white():
    options = {"size": 24, "train_samples": 700, "eval_samples": 70}
    plain, white = (
        made(PatchesDataModule, whitening=whitening, **options).train.__getitems__(list(range(700)))[0]
        for whitening in ("none", "filter")
    )

    def neighbours(images: torch.Tensor) -> float:
        images = images - images.mean()
        return float((images[..., 1:] * images[..., :-1]).mean() / images.square().mean())

    assert neighbours(plain) > 0.9 and abs(neighbours(white)) < 0.3


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": 0}, "size must be positive, got 0"),
        ({"batch_size": 0}, "batch_size must be positive, got 0"),
        ({"train_samples": 0}, "train_samples must be positive, got 0"),
        ({"photographs": ["lena"]}, "photographs must name photographs, of .*astronaut.*got lena"),
        ({"photographs": []}, "got none"),
        ({"photographs": ["camera"], "color": True}, "photographs in colour, of .*got camera"),
        ({"whitening": "zca"}, "whitening must be none, pca or filter, got 'zca'"),
        ({"whitening": "filter", "window": 4}, "window must be odd and in 3 to 17, got 4"),
        ({"whitening": "pca", "size": 3, "components": 9}, "components must be in 1 to 8 .*got 9"),
        ({"whitening": "pca", "train_samples": 50}, "components must be in 1 to 49 .*got 80"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        PatchesDataModule(**options)


def test_crops_must_fit_into_the_blocks():
    with pytest.raises(ValueError, match=r"size must be at most 89 x 100 for these photographs, got \(90, 90\)"):
        made(PatchesDataModule, size=90, photographs=NATURAL)
