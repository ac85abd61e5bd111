"""The handwritten digits that scikit-learn ships: 1,797 real images of 8x8, no download.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits" (1998), UCI Machine Learning Repository;
scikit-learn holds the test half of it.
"""

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_modules.data.loading import loader
from lightning_modules.module import Batch

DARKEST = 16.0  # pixels count the dark ones of a 4x4 block of the scan
EVALUATION_FRACTION = 0.15  # of all digits for validation, and as many for the test


class BatchedImages(Dataset[Batch]):
    """Images and labels that give a whole batch by one indexing, where the default collects it sample by sample."""

    def __init__(self, images: Tensor, labels: Tensor, max_shift: int = 0) -> None:
        self.images = images
        self.labels = labels
        self.max_shift = max_shift

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> Batch:
        images, labels = self.images[indices], self.labels[indices]
        return (shifted(images, self.max_shift) if self.max_shift else images), labels


class DigitsDataModule(pl.LightningDataModule):
    """Digits [N, 1, image_size, image_size] in -1 to 1 with labels [N] in 0 to 9.

    The split is stratified and does not depend on the seed of the training: 1,257 digits for training, 270 each for
    validation and test. Prediction runs over the test digits.

    Args:
        batch_size: digits a step; evaluation has no gradients to keep and takes a split as one batch.
        image_size: side of the images in pixels; other than 8, they are resized bilinearly.
        max_shift: training digits are shifted by up to so many pixels along each axis, at random; 0 for none.
        num_workers: processes that load batches. The digits are in memory: 0 is the quickest.
        split_seed: which of the possible splits.

    Raises:
        ValueError: a size is not positive or the shift negative.
    """

    classes = 10

    def __init__(
        self,
        batch_size: int = 64,
        image_size: int = 8,
        max_shift: int = 0,
        num_workers: int = 0,
        split_seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1 or image_size < 1 or max_shift < 0:
            raise ValueError(
                "batch_size and image_size must be positive and max_shift not negative, "
                f"got {batch_size}, {image_size} and {max_shift}"
            )
        self.batch_size = batch_size
        self.image_size = image_size
        self.max_shift = max_shift
        self.num_workers = num_workers
        self.split_seed = split_seed

    def setup(self, stage: str) -> None:
        digits = load_digits()
        images = torch.from_numpy(digits.images).float()[:, None] * (2 / DARKEST) - 1  # [N, 1, 8, 8]
        labels = torch.from_numpy(digits.target).long()
        if self.image_size != images.shape[-1]:
            images = F.interpolate(images, size=(self.image_size, self.image_size), mode="bilinear", antialias=True)

        evaluated = round(EVALUATION_FRACTION * len(labels))
        rest, test = self._divide(torch.arange(len(labels)), labels, evaluated)
        train, val = self._divide(rest, labels, evaluated)
        self.train = BatchedImages(images[train], labels[train], self.max_shift)
        self.val, self.test = (BatchedImages(images[part], labels[part]) for part in (val, test))

    def train_dataloader(self) -> DataLoader[Batch]:
        return loader(self.train, self.batch_size, shuffle=True, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[Batch]:
        return loader(self.val, len(self.val), num_workers=self.num_workers)

    def test_dataloader(self) -> DataLoader[Batch]:
        return loader(self.test, len(self.test), num_workers=self.num_workers)

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self.test_dataloader()

    def _divide(self, indices: Tensor, labels: Tensor, held_out: int) -> tuple[Tensor, Tensor]:
        kept, out = train_test_split(
            indices.numpy(), test_size=held_out, stratify=labels[indices].numpy(), random_state=self.split_seed
        )
        return torch.from_numpy(kept), torch.from_numpy(out)


def shifted(images: Tensor, max_shift: int, generator: torch.Generator | None = None) -> Tensor:
    """Each image moved by its own whole number of pixels along each axis, the edge repeated where it moved away.

    Args:
        images: [N, C, H, W].
        max_shift: largest shift in pixels; every shift from -max_shift to max_shift is equally likely.
        generator: of the shifts; None takes torch's global one.

    Returns:
        A tensor like `images`.
    """
    count, _, height, width = images.shape
    padded = F.pad(images, (max_shift,) * 4, mode="replicate")
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # [N, C, shifts, shifts, H, W]
    down, right = torch.randint(2 * max_shift + 1, (2, count), generator=generator, device=images.device)
    return windows[torch.arange(count, device=images.device), :, down, right]
