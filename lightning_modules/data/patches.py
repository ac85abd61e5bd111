"""Patches and crops of the photographs that scikit-learn and scikit-image ship, no download."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from lightning_modules.data.crops import CropsDataModule
from lightning_modules.data.datasets import BatchedImages
from lightning_modules.data.photographs import GAP, NATURAL, parts
from lightning_modules.data.splits import Splits, balanced, generators
from lightning_modules.data.whitening import filtered, fit_whitening, whitening_filter

PATCHES = 100_000  # that the whitening is fitted to


class PatchesDataModule(CropsDataModule):
    """Crops [N, C, size, size] of photographs, with the index of their photograph as labels [N].

    To learn without labels from patches of the size of a kernel, whiten by "pca"; to learn a convolution from larger
    crops, by "filter". To learn which photograph a crop comes from, not at all: then they are in -1 to 1. Test and
    validation are other parts of each photograph than those trained on, see `photographs`. Training crops are drawn
    anew each time, but with "pca" once. Prediction runs over the test crops.

    Args:
        batch_size: crops a step.
        size: side of a crop in pixels.
        color: three channels instead of one.
        photographs: their names; None takes the seven natural scenes in colour.
        whitening: "none"; "pca" whitens the training crops exactly and the others alike, see
            `whitening.fit_whitening`; "filter" whitens the photographs by one filter, which makes the middle pixel of
            so whitened patches, before crops are taken.
        components: principal components that whitening keeps.
        window: side in pixels of the whitening filter.
        flips: half of the training crops are mirrored left to right.
        train_samples: crops an epoch.
        eval_samples: crops for the validation, and as many for the test.
        num_workers: processes that load batches.
        split_seed: which of the possible splits, and which evaluation crops.

    Raises:
        ValueError: a size or count is not positive, a photograph is not known or has no colour, the whitening is not
            known, has more components than there can be or a window of a size that it cannot have; or, on setup, crops
            are larger than the blocks into which the photographs are divided.
    """

    def __init__(
        self,
        batch_size: int = 64,
        size: int = 32,
        color: bool = False,
        photographs: Sequence[str] | None = None,
        whitening: Literal["none", "pca", "filter"] = "none",
        components: int = 80,
        window: int = 11,
        flips: bool = False,
        train_samples: int = 10_000,
        eval_samples: int = 2_000,
        num_workers: int = 0,
        split_seed: int = 0,
    ) -> None:
        names = NATURAL if photographs is None else photographs
        axes = (3,) if flips else ()
        super().__init__(
            names, size, color, train_samples, eval_samples, axes, batch_size, num_workers, split_seed
        )  # fmt: skip
        if whitening not in ("none", "pca", "filter"):
            raise ValueError(f"whitening must be none, pca or filter, got {whitening!r}")
        if whitening == "filter" and not (window % 2 and 3 <= window <= GAP + 1):
            raise ValueError(f"window must be odd and in 3 to {GAP + 1}, got {window}")
        side, known = (window, PATCHES) if whitening == "filter" else (size, train_samples)
        most = min(self.input_shape[0] * (side**2 - 1), known - 1)  # patches without their mean, less the mean patch
        if whitening != "none" and not 1 <= components <= most:
            raise ValueError(f"components must be in 1 to {most} for {known} patches of {side}, got {components}")
        self.whitening = whitening
        self.components = components
        self.window = window

    def make_splits(self) -> Splits:
        if self.whitening != "pca":
            return super().make_splits()
        counts = (self.train_samples, self.eval_samples, self.eval_samples)
        patches, *evaluated = (
            self.fixed_crops(part, count, generator, flips)
            for part, count, generator, flips in zip(
                self.parts(), counts, generators(self.split_seed), (self.flips, (), ()), strict=True
            )
        )
        whitening = fit_whitening(patches.images, self.components)
        train, val, test = (BatchedImages(whitening(crops.images), crops.labels) for crops in (patches, *evaluated))
        return train, val, test

    def pictures(self) -> list[Tensor]:
        pictures = super().pictures()
        if self.whitening != "filter":
            return pictures
        train, _, _ = parts(pictures, self.split_seed)
        window = (self.window, self.window)
        patches = train.crops(balanced(PATCHES, self.classes), window, generators(self.split_seed)[0])
        weight = whitening_filter(patches, self.components)
        return [filtered(picture, weight) for picture in pictures]
