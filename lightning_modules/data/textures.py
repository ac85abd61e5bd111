"""The textures that scikit-image ships, no download: brick, grass and gravel, 512 x 512 pixels each in grey."""

from lightning_modules.data.crops import CropsDataModule

TEXTURES = ("brick", "grass", "gravel")


class TexturesDataModule(CropsDataModule):
    """Crops [N, 1, size, size] in -1 to 1 of three textures, with labels [N]: 0 brick, 1 grass, 2 gravel.

    Test and validation are other parts of each texture than those trained on, see `photographs`. Training crops are
    drawn anew each time and mirrored at random along both axes. Prediction runs over the test crops.

    Args:
        batch_size: crops a step.
        size: side of a crop in pixels.
        train_samples: crops an epoch.
        eval_samples: crops for the validation, and as many for the test.
        num_workers: processes that load batches.
        split_seed: which of the possible splits, and which evaluation crops.

    Raises:
        ValueError: a size or count is not positive; on setup, crops are larger than the blocks of the textures.
    """

    def __init__(
        self,
        batch_size: int = 64,
        size: int = 32,
        train_samples: int = 3_000,
        eval_samples: int = 1_500,
        num_workers: int = 0,
        split_seed: int = 0,
    ) -> None:
        super().__init__(
            TEXTURES, size, False, train_samples, eval_samples, (2, 3), batch_size, num_workers, split_seed
        )  # fmt: skip
