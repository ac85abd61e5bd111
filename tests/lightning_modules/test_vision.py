"""torchvision's data sets, from tiny files in the formats in which they come."""

import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms import v2

from lightning_modules.data import (
    CIFAR10DataModule,
    CIFAR100DataModule,
    FashionMNISTDataModule,
    ImageFolderDataModule,
    MNISTDataModule,
)


def made(module, root, **options):
    data = module(str(root), **{"batch_size": 8, **options})
    data.setup("fit")
    return data


def write_idx(root, name: str, train: int, test: int) -> None:
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("t10k", test)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + images.tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())


def write_cifar(root, classes: int, monkeypatch) -> None:
    source = datasets.CIFAR10 if classes == 10 else datasets.CIFAR100
    monkeypatch.setattr(source, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)
    folder = root / source.base_folder
    folder.mkdir()
    generator = np.random.default_rng(0)
    key = "labels" if classes == 10 else "fine_labels"
    for name, _ in source.train_list + source.test_list:
        labels = (np.arange(2 * classes) % classes).tolist()
        pixels = generator.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, key: labels}))
    names = {source.meta["key"]: [f"class {index}" for index in range(classes)]}
    (folder / source.meta["filename"]).write_bytes(pickle.dumps(names))


def write_folders(root, splits: dict[str, int], classes=("cat", "dog")) -> None:
    generator = np.random.default_rng(0)
    for split, count in splits.items():
        for label in classes:
            folder = root / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (30 + index, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")


@pytest.mark.parametrize("module, name", [(MNISTDataModule, "MNIST"), (FashionMNISTDataModule, "FashionMNIST")])
def test_mnist(tmp_path, module, name):
    write_idx(tmp_path, name, train=200, test=30)
    data = made(module, tmp_path, validation=0.2)
    assert [len(part) for part in (data.train, data.val, data.test)] == [160, 40, 30]
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (8, *data.input_shape) == (8, 1, 28, 28) and images.dtype == torch.float32
    assert labels.dtype == torch.int64 and data.classes == 10
    stored = torch.from_numpy(np.fromfile(tmp_path / name / "raw" / "t10k-images-idx3-ubyte", np.uint8, offset=16))
    expected = (stored[:784].view(1, 28, 28) / 255 - data.mean[0]) / data.std[0]
    torch.testing.assert_close(data.test[0][0], expected)


def test_validation_is_stratified_disjoint_and_fixed(tmp_path):
    write_idx(tmp_path, "MNIST", train=200, test=30)
    data = made(MNISTDataModule, tmp_path, validation=0.25)
    train, val = set(data.train.indices.tolist()), set(data.val.indices.tolist())
    assert train.isdisjoint(val) and train | val == set(range(200))
    assert torch.tensor([int(label) for _, label in data.val]).bincount().tolist() == [5] * 10
    torch.manual_seed(1)
    assert set(made(MNISTDataModule, tmp_path, validation=0.25).val.indices.tolist()) == val
    assert set(made(MNISTDataModule, tmp_path, validation=0.25, split_seed=1).val.indices.tolist()) != val


@pytest.mark.parametrize("module, classes", [(CIFAR10DataModule, 10), (CIFAR100DataModule, 100)])
def test_cifar_is_cropped_and_mirrored_in_training_only(tmp_path, monkeypatch, module, classes):
    write_cifar(tmp_path, classes, monkeypatch)
    data = made(module, tmp_path, validation=0.5)
    assert data.classes == classes and data.input_shape == (3, 32, 32)
    assert not torch.equal(data.train[0][0], data.train[0][0])
    assert torch.equal(data.val[0][0], data.val[0][0])
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (8, 3, 32, 32) and labels.max() < classes

    torch.manual_seed(3)
    first = data.train.__getitems__([0, 1])[0]
    torch.manual_seed(3)
    assert torch.equal(data.train.__getitems__([0, 1])[0], first)


def test_transforms_are_the_users(tmp_path, monkeypatch):
    write_cifar(tmp_path, 10, monkeypatch)
    data = made(
        CIFAR10DataModule, tmp_path, train_transforms=[v2.Resize((16, 20))], eval_transforms=[v2.Resize((16, 20))]
    )
    assert data.input_shape == (3, 16, 20) and torch.equal(data.train[0][0], data.train[0][0])


def test_image_folder_as_imagenet_has_it(tmp_path):
    write_folders(tmp_path, {"train": 5, "val": 2})
    data = made(ImageFolderDataModule, tmp_path)
    assert [len(part) for part in (data.train, data.val, data.test)] == [10, 4, 4]
    assert data.classes == 2 and data.input_shape == (3, 224, 224)
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (8, 3, 224, 224)
    assert [int(label) for _, label in data.test] == [0, 0, 1, 1]


def test_image_folder_with_a_test_only(tmp_path):
    write_folders(tmp_path, {"train": 10, "test": 2})
    small = [v2.Resize((8, 8))]
    data = made(ImageFolderDataModule, tmp_path, validation=0.2, train_transforms=small, eval_transforms=small)
    assert [len(part) for part in (data.train, data.val, data.test)] == [16, 4, 4]
    assert set(data.train.indices.tolist()).isdisjoint(data.val.indices.tolist())


@pytest.mark.parametrize(
    "module", [MNISTDataModule, FashionMNISTDataModule, CIFAR10DataModule, CIFAR100DataModule, ImageFolderDataModule]
)
def test_absent_data_are_named_in_one_line(tmp_path, module):
    with pytest.raises(ValueError, match=r"^root must be a directory with .*, got '.*nothing'") as caught:
        made(module, tmp_path / "nothing")
    assert "\n" not in str(caught.value)


def test_a_folder_without_evaluation_is_refused(tmp_path):
    write_folders(tmp_path, {"train": 3})
    with pytest.raises(ValueError, match="root must be a directory with train, and val or test"):
        made(ImageFolderDataModule, tmp_path)


def test_folders_must_have_the_same_classes(tmp_path):
    write_folders(tmp_path, {"train": 3})
    write_folders(tmp_path, {"val": 3}, classes=("dog", "horse"))
    with pytest.raises(ValueError, match="all splits in root must have the same classes"):
        made(ImageFolderDataModule, tmp_path)


def test_nothing_is_downloaded_unless_wanted(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(datasets.MNIST, "download", lambda self: asked.append(self.root))
    MNISTDataModule(str(tmp_path)).prepare_data()
    assert asked == []
    write_idx(tmp_path, "MNIST", train=20, test=10)
    MNISTDataModule(str(tmp_path), download=True).prepare_data()
    assert asked == [str(tmp_path)]


def test_share_is_checked():
    with pytest.raises(ValueError, match="validation must be between 0 and 1, got 1.0"):
        MNISTDataModule("data", validation=1.0)


def test_images_of_16_bits_keep_their_levels(tmp_path):
    write_folders(tmp_path, {"train": 5, "val": 2})
    for path in (tmp_path / "val").rglob("*.png"):
        Image.fromarray(np.full((30, 40), 128 * 257, np.uint16)).save(path)
    data = made(ImageFolderDataModule, tmp_path, eval_transforms=[v2.Resize((8, 8))])
    expected = (128 / 255 - torch.tensor(data.mean)) / torch.tensor(data.std)
    torch.testing.assert_close(data.val[0][0].mean((1, 2)), expected)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_image_is_named(tmp_path, num_workers):
    write_folders(tmp_path, {"train": 5, "val": 2})
    (tmp_path / "train" / "dog" / "3.png").write_bytes(b"no image")
    data = made(ImageFolderDataModule, tmp_path, num_workers=num_workers)
    with pytest.raises(ValueError, match=r"image .*train/dog/3\.png cannot be read"):
        list(data.train_dataloader())


def test_images_of_several_sizes_need_a_transform(tmp_path):
    write_folders(tmp_path, {"train": 5, "val": 2})
    data = made(ImageFolderDataModule, tmp_path, train_transforms=[])
    with pytest.raises(ValueError, match=r"must give all images one size, got \[3, 3., 40\] and \[3, 3., 40\]: add a"):
        list(data.train_dataloader())
