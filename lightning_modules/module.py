"""What the LightningModules share: a network, its optimiser from the recipe, and what the labels must be."""

from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

Batch = tuple[Tensor, Tensor]  # images [N, C, *grid], labels [N] or [N, *grid]
Outputs = Tensor | tuple[Tensor, ...]  # scores [N, classes, *], in training with auxiliary ones after them


class NetworkModule(pl.LightningModule):
    """A network, and how its parameters are optimised.

    Args:
        network: its attribute `input_shape` gives one input (C, *grid).
        optimizer: makes the optimizer of the parameters.
        lr_scheduler: makes the schedule of its learning rate; None keeps the rate constant.
        lr_scheduler_interval: whether the schedule is stepped once an "epoch", or after each "step" of the optimizer.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__()
        self.network = network
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_scheduler_interval = lr_scheduler_interval
        self.example_input_array = torch.zeros(
            1, *attribute(network, "input_shape", "the (channels, *grid) of an image")
        )

    def on_before_batch_transfer(self, batch: Batch | Tensor, dataloader_idx: int) -> Batch | Tensor:
        """The example comes here, too, a tensor that Lightning does not convert to the precision of the weights."""
        return batch.to(self.dtype) if isinstance(batch, Tensor) else batch

    def on_validation_batch_start(self, batch: Batch | Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Raises ValueError where the images hold NaN or infinity: a figure of theirs would choose the checkpoint."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        if not images.isfinite().all():
            raise ValueError(f"the images of batch {batch_idx} to evaluate hold NaN or infinity")

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start

    def on_before_backward(self, loss: Tensor) -> None:
        """Raises ValueError where there is nothing to train, as with weights that are all frozen."""
        if not loss.requires_grad:
            name = type(self.network).__name__
            raise ValueError(f"--model.network has nothing to train: the loss depends on no trainable weight of {name}")

    def compute(self, images: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """Return the loss that is trained, and tensors for the metrics, detached.

        Nothing here updates a metric or logs: a CUDA graph replays what this launches without its Python.
        """
        raise NotImplementedError

    def make_optimizer(self) -> tuple[Optimizer, list[tuple[Any, str]]]:
        """Return a new optimizer of the parameters, and its schedules, none or one, with their intervals.

        Raises:
            ValueError: the schedule follows a metric, and cannot say which.
        """
        optimizer = self.optimizer(self.parameters())
        if self.lr_scheduler is None:
            return optimizer, []
        schedule = self.lr_scheduler(optimizer)
        if isinstance(schedule, ReduceLROnPlateau) and not hasattr(schedule, "monitor"):
            raise ValueError(
                "--model.lr_scheduler must be lightning.pytorch.cli.ReduceLROnPlateau with a monitor, got torch's, "
                "which has none"
            )
        return optimizer, [(schedule, self.lr_scheduler_interval)]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer, schedules = self.make_optimizer()
        config: list[Any] = [{"scheduler": schedule, "interval": interval} for schedule, interval in schedules]
        for each in config:
            if hasattr(each["scheduler"], "monitor"):  # of the ReduceLROnPlateau in lightning.pytorch.cli
                each["monitor"] = each["scheduler"].monitor
        return [optimizer], config


class LabelledModule(NetworkModule):
    """A network with `classes` scores, trained on labels that it must know. See NetworkModule for the arguments.

    Args:
        auxiliary_weight: of the loss of each auxiliary output.
        ignore_index: a label that counts nowhere.
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
        super().__init__(network, optimizer, lr_scheduler, lr_scheduler_interval)
        if auxiliary_weight < 0:
            raise ValueError(f"auxiliary_weight must be at least 0, got {auxiliary_weight}")
        self.auxiliary_weight = auxiliary_weight
        self.ignore_index = ignore_index
        self.classes: int = attribute(network, "classes", "the number of its scores")

    def setup(self, stage: str) -> None:
        """Raises ValueError if the data have more classes than the network has scores."""
        given = getattr(getattr(self.trainer, "datamodule", None), "classes", 0)
        if given > self.classes:
            raise ValueError(
                f"the data have {given} classes, but the network only {self.classes} scores: set its classes"
            )

    def forward(self, images: Tensor) -> Outputs:
        """Scores [N, classes, *] of images [N, C, *grid].

        Raises:
            ValueError: the network gives anything else.
        """
        outputs = self.network(images)
        for scores in outputs if isinstance(outputs, tuple) else (outputs,):
            is_tensor = isinstance(scores, Tensor)
            if not is_tensor or scores.shape[:2] != (len(images), self.classes) or not scores.is_floating_point():
                given = f"{list(scores.shape)} of {scores.dtype}" if is_tensor else type(scores).__name__
                raise ValueError(
                    f"--model.network must give scores [{len(images)}, {self.classes}, ...], as its classes say: "
                    f"{type(self.network).__name__} gives {given}"
                )
        return outputs

    def on_before_batch_transfer(self, batch: Batch | Tensor, dataloader_idx: int) -> Batch | Tensor:
        """Looks at the labels while they are on the CPU: a GPU would have to be waited for."""
        if not isinstance(batch, Tensor):
            if not isinstance(batch, list | tuple) or [isinstance(item, Tensor) for item in batch] != [True, True]:
                raise ValueError(
                    f"--data must give batches of two tensors, images and labels, got {type(batch).__name__}"
                )
            check_labels(batch[1], self.classes, self.ignore_index)
        return super().on_before_batch_transfer(batch, dataloader_idx)


def attribute(network: nn.Module, name: str, meaning: str) -> Any:
    """Return an attribute that a network must have.

    Raises:
        ValueError: it has none.
    """
    if not hasattr(network, name):
        raise ValueError(
            f"--model.network must have the attribute {name}, {meaning}: {type(network).__name__} has none"
        )
    return getattr(network, name)


def check_labels(labels: Tensor, classes: int, ignored: int | None = None) -> None:
    """Hold labels to the classes that a network tells apart.

    Raises:
        ValueError: a label is neither one of 0 to classes - 1 nor the ignored one.
    """
    wrong = (labels < 0) | (labels >= classes)
    if ignored is not None:
        wrong &= labels != ignored
    if wrong.any():
        accepted = f"0 to {classes - 1}" if ignored is None else f"0 to {classes - 1}, or {ignored} to be ignored"
        raise ValueError(f"labels must be {accepted}, for a network with {classes} scores, got {labels[wrong][0]}")


def split_outputs(outputs: Outputs) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The scores of a network, and its auxiliary scores, which only some have and only in training."""
    return (outputs, ()) if isinstance(outputs, Tensor) else (outputs[0], outputs[1:])
