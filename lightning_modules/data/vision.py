"""Data sets that torchvision reads: MNIST, Fashion-MNIST, CIFAR-10 and -100, and images in folders such as ImageNet's.

Nothing is downloaded unless `download` says so.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate
from torchvision import datasets
from torchvision.transforms import v2

from lightning_modules.data.image_files import read_image
from lightning_modules.data.splits import SplitDataModule, Splits, stratified
from lightning_modules.module import Batch


class Transformed(Dataset[Batch]):
    """Some of a data set's images, transformed, and their labels.

    Args:
        samples: a data set of torchvision, whose images are PIL's.
        indices: of those to take.
        transform: makes tensors of one size of the images.
    """

    def __init__(self, samples: Dataset[Any], indices: Tensor, transform: Callable[[Any], Tensor]) -> None:
        self.samples = samples
        self.indices = indices
        self.transform = transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Batch:
        image, label = self.samples[int(self.indices[index])]
        return self.transform(image), torch.tensor(label)

    def __getitems__(self, indices: list[int]) -> Batch:
        samples = [self[index] for index in indices]
        shapes = {tuple(image.shape): None for image, _ in samples}  # in order
        if len(shapes) > 1:
            one, other, *_ = map(list, shapes)
            raise ValueError(f"the transforms must give all images one size, got {one} and {other}: add a Resize")
        images, labels = default_collate(samples)
        return images, labels


def whole(samples: Any, transform: Callable[[Any], Tensor]) -> Transformed:
    return Transformed(samples, torch.arange(len(samples)), transform)


class VisionDataModule(SplitDataModule):
    """Images [N, C, H, W], normalised, with labels [N]; prediction runs over the test.

    Transforms work on images of 8 bits a value; afterwards these become floats in 0 to 1 of which `mean` is subtracted,
    and which are divided by `std`. Where the data have no validation of their own, it is a stratified part of the
    training images, and transformed like the test.

    Args:
        root: directory of the data.
        batch_size: images a step, and in evaluation.
        train_transforms: what is done with a training image, one after the other; None takes the default.
        eval_transforms: the same for validation and test.
        validation: share of the training images that are taken for it.
        num_workers: processes that load batches.
        split_seed: which of them.

    Raises:
        ValueError: the batch size is not positive or the share not between 0 and 1; on setup, the data are not there.
    """

    mean: ClassVar[Sequence[float]]
    std: ClassVar[Sequence[float]]
    wanted: str  # in the directory

    def __init__(
        self,
        root: str,
        batch_size: int = 128,
        train_transforms: list[nn.Module] | None = None,
        eval_transforms: list[nn.Module] | None = None,
        validation: float = 0.1,
        num_workers: int = 0,
        split_seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, split_seed)
        if not 0 < validation < 1:
            raise ValueError(f"validation must be between 0 and 1, got {validation}")
        self.root = root
        self.train_transforms = self.default_train_transforms() if train_transforms is None else train_transforms
        self.eval_transforms = self.default_eval_transforms() if eval_transforms is None else eval_transforms
        self.validation = validation

    def default_train_transforms(self) -> list[nn.Module]:
        return []

    def default_eval_transforms(self) -> list[nn.Module]:
        return []

    @abstractmethod
    def samples(self, split: str) -> Any:
        """torchvision's data set for "train", "val" or "test"; None for one of the latter where the data have none."""

    def make_splits(self) -> Splits:
        with self._one_line():
            train, val, test = (self.samples(split) for split in ("train", "val", "test"))
        for part in (val, test):
            if part is not None and part.classes != train.classes:
                raise ValueError(f"all splits in root must have the same classes, got others in {self.root!r}")
        augmented, plain = (
            v2.Compose(
                [v2.ToImage(), *transforms, v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std)]
            )
            for transforms in (self.train_transforms, self.eval_transforms)
        )
        labels = torch.as_tensor(train.targets)
        if val is None:
            kept, out = stratified(labels, round(self.validation * len(labels)), self.split_seed)
            splits = Transformed(train, kept, augmented), Transformed(train, out, plain)
        else:
            splits = whole(train, augmented), whole(val, plain)
        made = (*splits, whole(val if test is None else test, plain))
        self.classes = len(train.classes)
        self.input_shape = tuple(made[2][0][0].shape)
        return made

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, OSError) as error:
            reason = str(error).split("\n")[0]
            raise ValueError(f"root must be a directory with {self.wanted}, got {self.root!r}: {reason}") from error


class DownloadableDataModule(VisionDataModule):
    """A data set of which torchvision knows where to get it.

    Args:
        root: directory of the data, as torchvision lays them out.
        batch_size, train_transforms, eval_transforms, validation, num_workers, split_seed: see `VisionDataModule`.
        download: fetch what is missing.
    """

    source: ClassVar[type[datasets.VisionDataset]]

    def __init__(
        self,
        root: str,
        batch_size: int = 128,
        train_transforms: list[nn.Module] | None = None,
        eval_transforms: list[nn.Module] | None = None,
        download: bool = False,
        validation: float = 0.1,
        num_workers: int = 0,
        split_seed: int = 0,
    ) -> None:
        super().__init__(root, batch_size, train_transforms, eval_transforms, validation, num_workers, split_seed)
        self.download = download
        self.wanted = f"the files of {self.source.__name__}, unless download is true"

    def prepare_data(self) -> None:
        """Fetches what is missing, if wanted: Lightning calls it in one process only."""
        if self.download:
            with self._one_line():
                self.source(self.root, download=True)

    def samples(self, split: str) -> Any:
        return None if split == "val" else self.source(self.root, train=split == "train")


class MNISTDataModule(DownloadableDataModule):
    """Handwritten digits, 28 x 28 in grey: 54,000 for training, 6,000 for validation and 10,000 for the test.

    Source: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition" (1998).
    """

    classes = 10
    source = datasets.MNIST
    mean, std = (0.1307,), (0.3081,)


class FashionMNISTDataModule(DownloadableDataModule):
    """Articles of clothing, 28 x 28 in grey, as many as of MNIST.

    Source: Xiao, Rasul and Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
    algorithms" (2017).
    """

    classes = 10
    source = datasets.FashionMNIST
    mean, std = (0.2860,), (0.3530,)


class CIFAR10DataModule(DownloadableDataModule):
    """Objects of ten kinds, 32 x 32 in colour: 45,000 for training, 5,000 for validation and 10,000 for the test.

    By default training images are padded by 4 pixels, cropped to 32 x 32 again at random and mirrored at random, as by
    He, Zhang, Ren and Sun, "Deep residual learning for image recognition" (2016), section 4.2.
    Source: Krizhevsky, "Learning multiple layers of features from tiny images" (2009).
    """

    classes = 10
    source = datasets.CIFAR10
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

    def default_train_transforms(self) -> list[nn.Module]:
        return [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]


class CIFAR100DataModule(CIFAR10DataModule):
    """Objects of a hundred kinds, otherwise as in CIFAR-10."""

    classes = 100
    source = datasets.CIFAR100
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


class ImageFolderDataModule(VisionDataModule):
    """Images in files, a folder a class: `root`/train/<class>/<file>, and the same in val or test or both.

    ImageNet unpacked is such a directory, with train and val. Without val, a part of train is taken for it; without
    test, val is the test as well, as usual with ImageNet, whose test has no labels. By default, training images are
    cropped at random, resized to 224 x 224 and mirrored at random; others are resized to a shorter side of 256 and
    cropped in the middle. They are normalised by the mean and standard deviation of ImageNet, as torchvision's models
    expect. `image_files.read_image` says how each mode is read.

    Args:
        root: directory of the data.
        batch_size, train_transforms, eval_transforms, validation, num_workers, split_seed: see `VisionDataModule`.
    """

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    wanted = "train, and val or test, each with a folder of images a class"

    def default_train_transforms(self) -> list[nn.Module]:
        return [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip()]

    def default_eval_transforms(self) -> list[nn.Module]:
        return [v2.Resize(256), v2.CenterCrop(224)]

    def samples(self, split: str) -> Any:
        directory = Path(self.root, split)
        other = {"val": "test", "test": "val"}.get(split)
        if other is not None and not directory.exists() and Path(self.root, other).exists():
            return None
        return datasets.ImageFolder(directory, loader=read_image)
