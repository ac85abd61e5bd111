"""Training of an image classifier: cross-entropy, and the accuracy on each split."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from lightning_modules.module import Batch, LabelledModule, split_outputs

TOP = 5


class Predictions(NamedTuple):
    """What the network makes of a batch, each [N]: the true class, the predicted one and its probability."""

    label: Tensor
    prediction: Tensor
    probability: Tensor


class Classifier(LabelledModule):
    """Any network from images to scores, trained by cross-entropy.

    Logs `loss` and `accuracy` under `train/`, `val/` and `test/`, once an epoch; of more than five classes under the
    last two also `top5_accuracy`, for which the true class is to be among the five with the largest scores. Its
    checkpoints hold tensors and plain values only, so that they load with `weights_only=True`.

    Args:
        network: maps images [N, *network.input_shape] to scores [N, network.classes]; in training mode possibly to a
            tuple of these and the scores of auxiliary classifiers.
        optimizer: makes the optimizer of the parameters.
        lr_scheduler: makes the schedule of its learning rate; None keeps the rate constant.
        lr_scheduler_interval: whether the schedule is stepped once an "epoch", or after each "step" of the optimizer.
        label_smoothing: share of a label that is spread evenly over the classes while training, from 0 to 1
            (Szegedy et al., "Rethinking the Inception architecture", 2016, section 7).
        mix: maps a training batch to images and labels [N, classes] that are mixed from several, such as
            torchvision.transforms.v2.MixUp. The training accuracy then counts the class with the largest share.
        auxiliary_weight: of the loss of each auxiliary classifier (0.3 in Szegedy et al., "Going deeper with
            convolutions", 2015, section 5).
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
        label_smoothing: float = 0.0,
        mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        auxiliary_weight: float = 0.3,
    ) -> None:
        super().__init__(network, optimizer, lr_scheduler, lr_scheduler_interval, auxiliary_weight)
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must be from 0 to 1, got {label_smoothing}")
        self.label_smoothing = label_smoothing
        self.mix = mix
        self.train_accuracy, self.val_accuracy, self.test_accuracy = (self._accuracy() for _ in range(3))
        if self.classes > TOP:
            self.val_top5_accuracy, self.test_top5_accuracy = (self._accuracy(TOP) for _ in range(2))

    def compute(self, images: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """Return the loss and the scores [N, classes]."""
        scores, auxiliary = split_outputs(self(images))
        loss = self._loss(scores, targets)
        for other in auxiliary:
            loss = loss + self.auxiliary_weight * self._loss(other, targets)
        return loss, scores.detach()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = self.mix(*batch) if self.mix else batch
        loss, scores = self.compute(images, labels)
        self.train_accuracy.update(scores, labels if labels.dim() == 1 else labels.argmax(1))
        self._log("train", len(labels), loss=loss, accuracy=self.train_accuracy)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Predictions:
        images, labels = batch
        probability, prediction = self(images).softmax(dim=1).max(dim=1)
        return Predictions(labels, prediction, probability)

    def _accuracy(self, top: int = 1) -> MulticlassAccuracy:
        return MulticlassAccuracy(self.classes, top_k=top, average="micro", validate_args=False)

    def _loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(scores, labels, self.label_smoothing)

    def _evaluate(self, batch: Batch, split: str) -> None:
        images, labels = batch
        scores = self(images)
        loss = cross_entropy(scores, labels)
        metrics = {name: getattr(self, f"{split}_{name}", None) for name in ("accuracy", "top5_accuracy")}
        known = {name: metric for name, metric in metrics.items() if metric is not None}
        for metric in known.values():
            metric.update(scores, labels)
        self._log(split, len(labels), loss=loss, **known)

    def _log(self, split: str, samples: int, **values: Tensor | Metric) -> None:
        named = {f"{split}/{name}": value for name, value in values.items()}
        self.log_dict(named, on_step=False, on_epoch=True, prog_bar=split == "val", sync_dist=True, batch_size=samples)


def cross_entropy(scores: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean loss of scores [N, classes], given labels [N] or the shares of the classes [N, classes].

    Raises:
        ValueError: the labels are neither.
    """
    wanted = scores.shape if labels.is_floating_point() else scores.shape[:1]
    if labels.shape != wanted:
        raise ValueError(
            f"labels must be [{len(scores)}] whole numbers, one an image, got {list(labels.shape)} of {labels.dtype}"
        )
    return F.cross_entropy(scores, labels, label_smoothing=label_smoothing)
