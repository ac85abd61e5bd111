"""The handwritten digits that scikit-learn ships: 1,797 real images of 8x8, no download.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits" (1998), UCI Machine Learning Repository;
scikit-learn holds the test half of it.
"""

import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from lightning_modules.data.datasets import BatchedImages
from lightning_modules.data.splits import SplitDataModule, Splits, stratified

DARKEST = 16.0  # pixels count the dark ones of a 4x4 block of the scan
EVALUATED = 270  # digits for validation, and as many for the test: 15 % of all


class DigitsDataModule(SplitDataModule):
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

    train: BatchedImages
    val: BatchedImages
    test: BatchedImages
    classes = 10
    eval_batch_size = EVALUATED

    def __init__(
        self,
        batch_size: int = 64,
        image_size: int = 8,
        max_shift: int = 0,
        num_workers: int = 0,
        split_seed: int = 0,
    ) -> None:
        if batch_size < 1 or image_size < 1 or max_shift < 0:
            raise ValueError(
                "batch_size and image_size must be positive and max_shift not negative, "
                f"got {batch_size}, {image_size} and {max_shift}"
            )
        super().__init__(batch_size, num_workers, split_seed)
        self.image_size = image_size
        self.max_shift = max_shift

    def make_splits(self) -> Splits:
        digits = load_digits()
        images = torch.from_numpy(digits.images).float()[:, None] * (2 / DARKEST) - 1  # [N, 1, 8, 8]
        labels = torch.from_numpy(digits.target).long()
        if self.image_size != images.shape[-1]:
            images = F.interpolate(images, size=(self.image_size, self.image_size), mode="bilinear", antialias=True)

        rest, test = stratified(labels, EVALUATED, self.split_seed)
        kept, val = stratified(labels[rest], EVALUATED, self.split_seed)
        return (
            BatchedImages(images[rest[kept]], labels[rest[kept]], self.max_shift),
            BatchedImages(images[rest[val]], labels[rest[val]]),
            BatchedImages(images[test], labels[test]),
        )
