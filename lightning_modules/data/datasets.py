"""Data sets that give a whole batch at once, where the default collects it sample by sample."""

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from lightning_modules.module import Batch


class BatchDataset(Dataset[Batch]):
    """A data set of which a sample is a batch of one."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitems__(self, indices: list[int]) -> Batch:
        """The images [N, C, *grid] and labels [N, *] of so many samples."""

    def __getitem__(self, index: int) -> Batch:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]


class BatchedImages(BatchDataset):
    """Images [N, C, *grid] and labels [N, *], of which each batch is one indexing; see `shifted` for the shift."""

    def __init__(self, images: Tensor, labels: Tensor, max_shift: int = 0) -> None:
        self.images = images
        self.labels = labels
        self.max_shift = max_shift

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> Batch:
        images, labels = self.images[indices], self.labels[indices]
        return (shifted(images, self.max_shift) if self.max_shift else images), labels


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
