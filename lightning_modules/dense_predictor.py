"""Training of a network that labels every pixel: cross-entropy, and accuracy and mean IoU on each split."""

from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from lightning_modules.module import Batch, LabelledModule, split_outputs


class DensePredictions(NamedTuple):
    """What the network makes of a batch, each [N, H, W]: the true class, the predicted one and its probability."""

    label: Tensor
    prediction: Tensor
    probability: Tensor


class DensePredictor(LabelledModule):
    """Any network from images to scores of every pixel, trained by cross-entropy.

    Logs `loss`, `accuracy` (of pixels) and `mean_iou` under `train/`, `val/` and `test/`, once an epoch. The mean IoU
    is that of the data set: intersections and unions are summed over all pixels of a split, and their ratios averaged
    over the classes that occur in it, labelled or predicted (Everingham et al., "The Pascal visual object classes
    challenge: a retrospective", 2015). Its checkpoints hold tensors and plain values only.

    Args:
        network: maps images [N, C, H, W] to scores [N, network.classes, H, W]. In training it may give a tuple, the
            scores and auxiliary ones of the same shape.
        optimizer: makes the optimizer of the parameters.
        lr_scheduler: makes the schedule of its learning rate; None keeps the rate constant.
        lr_scheduler_interval: whether the schedule is stepped once an "epoch", or after each "step" of the optimizer.
        auxiliary_weight: of the cross-entropy of each auxiliary output in the loss that is trained.
        ignore_index: label of pixels that count neither in the loss nor in the metrics.

    Raises:
        ValueError: while running, labels are not [N, H, W], or one is outside the classes.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
        auxiliary_weight: float = 1.0,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(network, optimizer, lr_scheduler, lr_scheduler_interval, auxiliary_weight, ignore_index)
        self.train_metrics, self.val_metrics, self.test_metrics = (
            self._metrics(split) for split in ("train", "val", "test")
        )

    def compute(self, images: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """Return the loss with auxiliary outputs, the loss without, and the scores [N, classes, H, W]."""
        scores, auxiliary = split_outputs(self(images))
        loss = self._cross_entropy(scores, targets)
        losses = [self._cross_entropy(output, targets) for output in auxiliary]
        trained_loss = loss + self.auxiliary_weight * torch.stack(losses).sum() if losses else loss
        return trained_loss, loss.detach(), scores.detach()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._step(batch, "train", self.train_metrics)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "val", self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "test", self.test_metrics)

    def predict_step(self, batch: Batch, batch_idx: int) -> DensePredictions:
        images, labels = batch
        scores, _ = split_outputs(self(images))
        probability, prediction = scores.softmax(dim=1).max(dim=1)
        return DensePredictions(labels, prediction, probability)

    def _metrics(self, split: str) -> MetricCollection:
        known: dict[str, Any] = {
            "num_classes": self.classes,
            "ignore_index": self.ignore_index,
            "validate_args": False,
        }
        metrics: dict[str, Metric | MetricCollection] = {
            "accuracy": MulticlassAccuracy(average="micro", **known),
            "mean_iou": MulticlassJaccardIndex(average="macro", **known),
        }
        return MetricCollection(metrics, prefix=f"{split}/")

    def _step(self, batch: Batch, split: str, metrics: MetricCollection) -> Tensor:
        images, labels = batch
        trained_loss, loss, scores = self.compute(images, labels)
        metrics.update(scores.argmax(dim=1), labels)
        kept: dict[str, Any] = {
            "on_step": False,
            "on_epoch": True,
            "prog_bar": split == "val",
            "batch_size": len(labels),
        }
        self.log(f"{split}/loss", loss, sync_dist=True, **kept)
        self.log_dict(metrics, **kept)
        return trained_loss

    def _cross_entropy(self, scores: Tensor, labels: Tensor) -> Tensor:
        if labels.shape != scores[:, 0].shape:
            raise ValueError(f"labels must be {list(scores[:, 0].shape)}, one a pixel, got {list(labels.shape)}")
        pixels = scores.movedim(1, -1).flatten(0, -2)  # [N H W, classes]: CUDA's loss over a grid is not deterministic
        ignored = -100 if self.ignore_index is None else self.ignore_index
        return F.cross_entropy(pixels, labels.flatten(), ignore_index=ignored)
