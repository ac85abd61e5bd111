import random
import re
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
    HYPER_PARAMETERS,
    ExactResume,
    LastCheckpoint,
    ShareWeights,
    random_state,
    restore_random_state,
)

IMAGES, TARGETS = torch.randn(22, 3), torch.randn(22, 1)


class Plain(pl.LightningModule):
    """A network with dropout that logs in the ways there are; its loss is a mean over the batch."""

    def __init__(
        self,
        optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
        lr: float = 0.1,
        gamma: float | None = 0.9,
        interval: str = "epoch",
    ) -> None:
        super().__init__()
        self.lr, self.gamma, self.interval = lr, gamma, interval
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

    def configure_optimizers(self) -> tuple[list, list]:
        optimizer = self.optimizer(self.parameters(), lr=self.lr)
        if self.gamma is None:
            return [optimizer], []
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, self.gamma)
        return [optimizer], [{"scheduler": schedule, "interval": self.interval}]


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


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param(
            {"optimizer": torch.optim.SGD},
            "--model.optimizer.class_path is torch.optim.sgd.SGD here and torch.optim.adamw.AdamW in the checkpoint",
            id="optimizer",
        ),
        pytest.param({"lr": 0.2}, "--model.optimizer.lr is 0.2 here and 0.1 in the checkpoint", id="learning rate"),
        pytest.param({"gamma": 0.5}, "--model.lr_scheduler.gamma is 0.5 here and 0.9 in the checkpoint", id="schedule"),
        pytest.param({"gamma": None}, "--model.lr_scheduler.class_path is missing here and", id="no schedule"),
        pytest.param({"interval": "step"}, "--model.lr_scheduler.interval is step here and epoch in", id="interval"),
    ],
)
def test_other_hyper_parameters_are_refused(tmp_path, options, says):
    """They would be ignored: Lightning takes them from the checkpoint. The same ones are taken."""
    callbacks = [ExactResume(), LastCheckpoint()]
    fit(tmp_path, Plain(), callbacks)
    last = tmp_path / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match=f"{re.escape(says)}.*or --resume weights to start anew"):
        fit(tmp_path, Plain(**options), callbacks, ckpt_path=last, max_epochs=2)
    trainer = fit(tmp_path, Plain(), callbacks, ckpt_path=last, max_epochs=2)
    assert trainer.global_step == 4
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.9**2)


def test_the_seed_of_a_checkpoint_is_not_changed(tmp_path, monkeypatch):
    callbacks = [ExactResume(), LastCheckpoint()]
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    fit(tmp_path, Plain(), callbacks)
    monkeypatch.setenv("PL_GLOBAL_SEED", "4")
    with pytest.raises(ValueError, match="--seed_everything is 4 here and 3 in the checkpoint"):
        fit(tmp_path, Plain(), callbacks, ckpt_path=tmp_path / "checkpoints" / "last.ckpt", max_epochs=2)


def test_another_optimizer_than_an_older_checkpoints_is_refused(tmp_path):
    """Such a checkpoint does not say what its run was started with."""
    callbacks = [ExactResume(), LastCheckpoint()]
    fit(tmp_path, Plain(), callbacks)
    last = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    del checkpoint[HYPER_PARAMETERS]
    torch.save(checkpoint, last)
    with pytest.raises(ValueError, match="--model.optimizer.momentum is given here and missing in the checkpoint"):
        fit(tmp_path, Plain(torch.optim.SGD), callbacks, ckpt_path=last, max_epochs=2)
    fit(tmp_path, Plain(), callbacks, ckpt_path=last, max_epochs=2)


def test_the_patience_of_early_stopping_is_the_configured_one(tmp_path):
    def stopping(patience: int) -> list[pl.Callback]:
        return [ExactResume(), LastCheckpoint(), pl.callbacks.EarlyStopping("largest", patience=patience)]

    fit(tmp_path, Plain(), stopping(3))
    callbacks = stopping(5)
    fit(tmp_path, Plain(), callbacks, ckpt_path=tmp_path / "checkpoints" / "last.ckpt", max_epochs=2)
    assert callbacks[-1].patience == 5


def test_an_unseeded_run_goes_on_in_the_order_of_its_checkpoint():
    torch.manual_seed(1)
    first = loader(TensorDataset(IMAGES), 5, shuffle=True)
    batches = list(first)
    torch.manual_seed(2)
    second = loader(TensorDataset(IMAGES), 5, shuffle=True)
    second.load_state_dict({**first.state_dict(), "given": 3})
    assert torch.equal(next(iter(second))[0], batches[3][0])
