"""Training of an image classifier: cross-entropy, and the accuracy on each split."""

from typing import NamedTuple, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

Batch = tuple[Tensor, Tensor]  # images [N, C, H, W], labels [N]


class Predictions(NamedTuple):
    """What the network makes of a batch, each [N]: the true class, the predicted one and its probability."""

    label: Tensor
    prediction: Tensor
    probability: Tensor


class Classifier(pl.LightningModule):
    """Any network from images to scores, trained by cross-entropy.

    Logs `loss` and `accuracy` under `train/`, `val/` and `test/`, once an epoch. Its checkpoints hold tensors and
    plain values only, so that they load with `weights_only=True`.

    Args:
        network: maps images [N, *network.input_shape] to scores [N, network.classes].
        optimizer: makes the optimizer of the parameters.
        lr_scheduler: makes the schedule of its learning rate, stepped once an epoch; None keeps the rate constant.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.example_input_array = torch.zeros(1, *cast("tuple[int, int, int]", network.input_shape))
        self.train_accuracy, self.val_accuracy, self.test_accuracy = (
            MulticlassAccuracy(cast(int, network.classes), average="micro", validate_args=False) for _ in range(3)
        )

    def setup(self, stage: str) -> None:
        """Raises ValueError if the data have more classes than the network has scores."""
        given, known = getattr(getattr(self.trainer, "datamodule", None), "classes", 0), cast(int, self.network.classes)
        if given > known:
            raise ValueError(f"the data have {given} classes, but the network only {known} scores: set its classes")

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, classes] of images [N, C, H, W]."""
        return self.network(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._step(batch, "train", self.train_accuracy)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "val", self.val_accuracy)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "test", self.test_accuracy)

    def predict_step(self, batch: Batch, batch_idx: int) -> Predictions:
        images, labels = batch
        probability, prediction = self(images).softmax(dim=1).max(dim=1)
        return Predictions(labels, prediction, probability)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer(self.parameters())
        if self.lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.lr_scheduler(optimizer)}

    def _step(self, batch: Batch, split: str, accuracy: MulticlassAccuracy) -> Tensor:
        images, labels = batch
        scores = self(images)
        loss = F.cross_entropy(scores, labels)
        accuracy.update(scores, labels)
        values: dict[str, Tensor | Metric] = {f"{split}/loss": loss, f"{split}/accuracy": accuracy}
        self.log_dict(
            values, on_step=False, on_epoch=True, prog_bar=split == "val", sync_dist=True, batch_size=len(labels)
        )
        return loss
