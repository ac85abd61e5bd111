import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from torchmetrics import MeanMetric

from lightning_modules.data.loading import loader
from lightning_modules.reproducibility import (
    ExactResume,
    LastCheckpoint,
    ShareWeights,
    random_state,
    restore_random_state,
)

IMAGES, TARGETS = torch.randn(22, 3), torch.randn(22, 1)


class Plain(pl.LightningModule):
    """A network with dropout that logs in the ways there are; its loss is a mean over the batch."""

    def __init__(self, optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        self.drop = nn.Dropout(0.0)
        self.optimizer = optimizer
        self.metric = MeanMetric()
        self.validated: list[tuple[int, float]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        images, targets = batch
        loss = (self(self.drop(images)) - targets).square().mean()
        self.metric.update(loss.detach())
        self.log("mean", loss, on_step=True, on_epoch=True)
        self.log("largest", loss, on_epoch=True, on_step=False, reduce_fx=torch.max)
        self.log("metric", self.metric, on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.validated.append((self.trainer.global_step, self(batch[0]).mean().item()))

    def configure_optimizers(self) -> torch.optim.lr_scheduler.LRScheduler:
        optimizer = self.optimizer(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


def fit(path: Path, module: pl.LightningModule, callbacks: Sequence[pl.Callback], **options) -> pl.Trainer:
    options = {"max_epochs": 1, "limit_train_batches": 2, "batch_size": 5, "ckpt_path": None, **options}
    size, resumed = options.pop("batch_size"), options.pop("ckpt_path")
    trainer = pl.Trainer(
        accelerator="cpu",
        default_root_dir=path,
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(callback, pl.callbacks.Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
    data = TensorDataset(IMAGES, TARGETS)
    trainer.fit(module, loader(data, size, shuffle=True), loader(data, 22), ckpt_path=resumed, weights_only=True)
    return trainer


class Copies(pl.Callback):
    """Keeps each last.ckpt as it was after each batch and each epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept: list[Path] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_) -> None:
        last = self.path / "checkpoints" / "last.ckpt"
        if last.exists():
            self.kept.append(self.path / f"{len(self.kept)}.ckpt")
            self.kept[-1].write_bytes(last.read_bytes())


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"max_epochs": 2}, id="epochs"),
        pytest.param({"max_steps": 9}, id="steps"),
        pytest.param({"max_epochs": 2, "val_check_interval": 2}, id="validation within epochs"),
        pytest.param({"max_epochs": 2, "accumulate_grad_batches": 2}, id="accumulation"),
        pytest.param({"max_epochs": 3, "limit_train_batches": 3, "check_val_every_n_epoch": 2}, id="parts of epochs"),
    ],
)
def test_resumed_from_any_checkpoint_all_is_as_without_interruption(tmp_path, options):
    options = {"limit_train_batches": None, **options}

    def run(path: Path, *more: pl.Callback, **resumed) -> tuple[dict, dict[str, torch.Tensor], list]:
        torch.manual_seed(0)
        module = Plain()
        module.drop.p = 0.3
        trainer = fit(path, module, [ExactResume(), LastCheckpoint(1), *more], **options, **resumed)
        end = torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)
        logged = {name: value for name, value in trainer.callback_metrics.items() if name != "mean_step"}
        return end, logged, module.validated

    copies = Copies(tmp_path)
    end, metrics, validated = run(tmp_path, copies)
    distinct = {path.read_bytes(): path for path in copies.kept}.values()
    assert len(distinct) > 3
    for path in distinct:
        torch.rand(3), np.random.rand(2), random.random()
        again, logged, later = run(tmp_path / "again", ckpt_path=path)
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "processes"):
            assert same(again[part], end[part]), part
        assert logged == metrics
        step = torch.load(path, weights_only=True)["global_step"]
        assert later == [entry for entry in validated if entry[0] > step]


@pytest.mark.parametrize("accumulated", [1, 2, 3])
def test_accumulation_is_the_large_batch(tmp_path, accumulated):
    """22 samples: the last step has fewer batches, and its last batch fewer samples."""
    weights = []
    for size, batches in ((4 * accumulated, 1), (4, accumulated)):
        torch.manual_seed(0)
        module = Plain(torch.optim.SGD).double()
        fit(tmp_path, module, [ShareWeights()], batch_size=size, accumulate_grad_batches=batches,
            limit_train_batches=None, precision="64-true", max_epochs=2)  # fmt: skip
        weights.append(module.state_dict())
    torch.testing.assert_close(*weights)


def test_random_state_is_restored():
    def numbers() -> list[float]:
        return [torch.rand(()).item(), np.random.rand(), np.random.randn(), random.random(), random.gauss(0, 1)]

    numbers()  # NumPy and Python draw normal numbers in pairs
    state = random_state(torch.device("cpu"))
    first = numbers()
    restore_random_state(state, torch.device("cpu"))
    assert numbers() == first


@pytest.mark.parametrize("every", [0, -1])
def test_steps_are_checked(every):
    with pytest.raises(ValueError, match=f"at least 1, got {every}"):
        LastCheckpoint(every)


def test_another_optimizer_is_refused(tmp_path):
    callbacks = [ExactResume(), LastCheckpoint()]
    fit(tmp_path, Plain(), callbacks)
    with pytest.raises(ValueError, match="another kind of optimizer than SGD: without dampening.* and with .*betas"):
        fit(tmp_path, Plain(torch.optim.SGD), callbacks, ckpt_path=tmp_path / "checkpoints" / "last.ckpt", max_epochs=2)
