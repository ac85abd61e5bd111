"""Training of an autoencoder: a sparse code from which the images can be reconstructed."""

from typing import Literal, NamedTuple

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import ExplainedVariance, Metric

from lightning_modules.module import Batch, NetworkModule


class Reconstructions(NamedTuple):
    """What there is to say of a batch: reconstructions [N, C, *grid] of its images, and their code [N, *]."""

    reconstruction: Tensor
    code: Tensor


class Reconstruction(NetworkModule):
    """Any autoencoder, trained to reconstruct its images from a sparse code.

    The loss of an image x with code z and reconstruction r is

        sparsity_weight * sum sqrt(z^2 + softness)  +  error_weight * sum (r - x)^2

    the first sum over all values of the code, the second over those of the image. Logs `loss`, `sparsity` and `error`
    (the two sums, a mean image) and `explained_variance` (1 - variance of x - r over that of x, of all pixels of the
    split) under `train/`, `val/` and `test/`, once an epoch. Labels are not used. Its checkpoints hold tensors and
    plain values only.

    Source: Le, Karpenko, Ngiam and Ng, "ICA with reconstruction cost for efficient overcomplete feature learning"
    (2011), equation 3.

    Args:
        network: maps images [N, *network.input_shape] to a pair, their reconstruction and the code [N, *].
        optimizer: makes the optimizer of the parameters.
        lr_scheduler: makes the schedule of its learning rate; None keeps the rate constant.
        lr_scheduler_interval: whether the schedule is stepped once an "epoch", or after each "step" of the optimizer.
        sparsity_weight, error_weight: of the two sums.
        softness: what rounds the corner of the absolute value, in units of z squared; positive.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
        sparsity_weight: float = 1.0,
        error_weight: float = 1.5,
        softness: float = 0.01,
    ) -> None:
        super().__init__(network, optimizer, lr_scheduler, lr_scheduler_interval)
        if softness <= 0:
            raise ValueError(f"softness must be positive, got {softness}")
        self.sparsity_weight = sparsity_weight
        self.error_weight = error_weight
        self.softness = softness
        self.train_variance, self.val_variance, self.test_variance = (ExplainedVariance() for _ in range(3))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The reconstruction of images [N, C, *grid], of the same shape, and their code."""
        return self.network(images)

    def compute(self, images: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """Return the loss, its two sums and the reconstruction."""
        reconstruction, code = self(images)
        sparsity = (code.float().square() + self.softness).sqrt().flatten(1).sum(1).mean()
        error = (reconstruction - images).square().flatten(1).sum(1).mean()
        loss = self.sparsity_weight * sparsity + self.error_weight * error
        return loss, sparsity.detach(), error.detach(), reconstruction.detach()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._step(batch, "train", self.train_variance)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "val", self.val_variance)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "test", self.test_variance)

    def predict_step(self, batch: Batch, batch_idx: int) -> Reconstructions:
        return Reconstructions(*self(batch[0]))

    def _step(self, batch: Batch, split: str, variance: ExplainedVariance) -> Tensor:
        images, _ = batch
        loss, sparsity, error, reconstruction = self.compute(*batch)
        variance.update(reconstruction.flatten(), images.flatten())
        values: dict[str, Tensor | Metric] = {
            f"{split}/loss": loss,
            f"{split}/sparsity": sparsity,
            f"{split}/error": error,
            f"{split}/explained_variance": variance,
        }
        self.log_dict(
            values, on_step=False, on_epoch=True, prog_bar=split == "val", sync_dist=True, batch_size=len(images)
        )
        return loss
