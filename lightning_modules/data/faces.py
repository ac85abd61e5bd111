"""The faces that scikit-image ships, no download: 100 faces and 100 pieces of their backgrounds, 25 x 25 in grey.

Source: Huang, Mattar, Lee and Learned-Miller, "Learning to align from scratch" (2012): a part of Labeled Faces in the
Wild, from which scikit-image's developers cropped and resized these.
"""

import torch
from skimage.data import lfw_subset
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.data.crops import mirrored
from lightning_modules.data.datasets import BatchedImages, shifted
from lightning_modules.data.splits import SplitDataModule, Splits, check_positive, generators, stratified
from lightning_modules.module import Batch

FACES = 100  # come first
HELD_OUT = 30  # for the validation, and as many for the test


class MirroredImages(BatchedImages):
    """Images of which half are mirrored left to right, besides being shifted."""

    def __getitems__(self, indices: list[int]) -> Batch:
        images, labels = super().__getitems__(indices)
        return mirrored(images, (3,)), labels


class FacesDataModule(SplitDataModule):
    """Images [N, 1, image_size, image_size] in -1 to 1 with labels [N]: 0 no face, 1 a face.

    The split is stratified: 140 images for training, 30 each for validation and test. Training images are mirrored at
    random. Prediction runs over the test images.

    Args:
        batch_size: images a step.
        image_size: side of the images in pixels; other than 25, they are resized bilinearly.
        max_shift: training images are shifted by up to so many pixels along each axis, at random; 0 for none.
        eval_shifts: each image for validation and test is there so many times, shifted likewise but for good; 0 has
            each once, and not shifted.
        num_workers: processes that load batches. The images are in memory: 0 is the quickest.
        split_seed: which of the possible splits.

    Raises:
        ValueError: a size is not positive, or the shift or the number of shifts negative.
    """

    classes = 2

    def __init__(
        self,
        batch_size: int = 20,
        image_size: int = 25,
        max_shift: int = 0,
        eval_shifts: int = 0,
        num_workers: int = 0,
        split_seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, split_seed)
        check_positive(image_size=image_size)
        for name, number in (("max_shift", max_shift), ("eval_shifts", eval_shifts)):
            if number < 0:
                raise ValueError(f"{name} must not be negative, got {number}")
        self.image_size = image_size
        self.max_shift = max_shift
        self.eval_shifts = eval_shifts
        self.input_shape = (1, image_size, image_size)

    def make_splits(self) -> Splits:
        images = torch.from_numpy(lfw_subset()).float()[:, None] * 2 - 1  # [200, 1, 25, 25]
        labels = (torch.arange(len(images)) < FACES).long()
        if self.image_size != images.shape[-1]:
            images = F.interpolate(images, size=(self.image_size, self.image_size), mode="bilinear", antialias=True)
        rest, test = stratified(labels, HELD_OUT, self.split_seed)
        kept, out = stratified(labels[rest], HELD_OUT, self.split_seed)
        train, val = rest[kept], rest[out]
        _, *seeded = generators(self.split_seed)
        return (
            MirroredImages(images[train], labels[train], self.max_shift),
            self._evaluated(images[val], labels[val], seeded[0]),
            self._evaluated(images[test], labels[test], seeded[1]),
        )

    def _evaluated(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> BatchedImages:
        if not self.eval_shifts:
            return BatchedImages(images, labels)
        repeated = images.repeat(self.eval_shifts, 1, 1, 1)
        return BatchedImages(shifted(repeated, self.max_shift, generator), labels.repeat(self.eval_shifts))
