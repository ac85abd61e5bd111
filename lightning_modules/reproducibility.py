"""Callbacks for a run to give the same weights, interrupted or not, and however its batches are divided."""

import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, distributed

from lightning_modules.data.loading import ResumableLoader

KEY = "processes"  # of a checkpoint: what each process adds to it


class LastCheckpoint(Checkpoint):
    """Keeps `checkpoints/last.ckpt` in the run's directory, for a run that ends for any reason to go on from there.

    It is written at the end of each epoch, and within epochs only where Lightning can resume exactly: after a step of
    the optimizer, and not before a validation that it would then leave out. It always replaces a complete one.

    Args:
        every_n_train_steps: steps from one to the next within an epoch; None writes at the end of epochs only.

    Raises:
        ValueError: `every_n_train_steps` is not positive.
    """

    def __init__(self, every_n_train_steps: int | None = None) -> None:
        if every_n_train_steps is not None and every_n_train_steps < 1:
            raise ValueError(f"every_n_train_steps must be at least 1, got {every_n_train_steps}")
        self.every_n_train_steps = every_n_train_steps
        self.path: Path | None = None
        self._saved = 0  # the step of the last one

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        position = trainer.fit_loop.total_batch_idx if trainer.check_val_every_n_epoch is None else batch_idx
        validates = trainer.enable_validation and (position + 1) % (trainer.val_check_batch or float("inf")) == 0
        if not validates and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._save_within_epoch(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save_within_epoch(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer)

    def _save_within_epoch(self, trainer: pl.Trainer) -> None:
        due = self.every_n_train_steps is not None and trainer.global_step >= self._saved + self.every_n_train_steps
        if due and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save(trainer)

    def _save(self, trainer: Any) -> None:
        if not trainer.fast_dev_run:
            self.path = Path(trainer.log_dir or trainer.default_root_dir, "checkpoints", "last.ckpt")
            self._saved = trainer.global_step
            trainer.save_checkpoint(self.path, weights_only=False)


class ExactResume(pl.Callback):
    """Adds to checkpoints what Lightning leaves out, for a resumed run to be bitwise the one that was not interrupted.

    That is the state of the random number generators of torch, CUDA, NumPy and Python in each process, and what the
    unfinished epoch has logged so far. Where the loader is of `data.loading`, it knows the position in the epoch.

    Raises:
        ValueError: when resuming, the optimizer or the schedule is of another kind than the checkpoint's.
    """

    def __init__(self) -> None:
        self._checkpoint: dict[str, Any] = {}  # while resuming
        self._logged: dict[str, dict[str, Any]] = {}  # until the first step

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        mine = {"random": random_state(pl_module.device), "logged": logged_so_far(trainer)}
        everyones: list[Any] = [mine] * trainer.world_size
        if trainer.world_size > 1:
            distributed.all_gather_object(everyones, mine)
        checkpoint[KEY] = everyones

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn == "fit":
            self._checkpoint = checkpoint

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before Lightning restores the optimizer."""
        states = zip(trainer.optimizers, self._checkpoint.get("optimizer_states", ()), strict=False)
        for optimizer, state in states:
            check_same_kind("optimizer", optimizer, optimizer.param_groups[0], state["param_groups"][0])
        schedules = zip(trainer.lr_scheduler_configs, self._checkpoint.get("lr_schedulers", ()), strict=False)
        for config, state in schedules:
            check_same_kind("schedule", config.scheduler, config.scheduler.state_dict(), state)
        # Where steps are limited, Lightning would restore a finished epoch as an unfinished one.
        self._max_steps, trainer.fit_loop.epoch_loop.max_steps = trainer.max_steps, -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.fit_loop.epoch_loop.max_steps = self._max_steps
        everyones = self._checkpoint.get(KEY, [])
        self._checkpoint = {}
        if trainer.global_rank < len(everyones):
            restore_random_state(everyones[trainer.global_rank]["random"], pl_module.device)
            self._logged = everyones[trainer.global_rank]["logged"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Only now, as Lightning sets what was logged to zero at the first step.
        for name, result in logged_results(trainer).items() if self._logged else ():
            if name in self._logged:
                merge(result, self._logged[name])
        self._logged = {}


class ShareWeights(pl.Callback):
    """Weighs batches by their samples where a step of the optimizer takes several: by accumulation, or of processes.

    Lightning averages their gradients as if all had the same number of samples, and that many batches. This holds but
    for the last step of an epoch, which so becomes that of the one large batch, too. It needs a loader of
    `data.loading`.
    """

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        loader = trainer.train_dataloader
        if isinstance(loader, ResumableLoader):
            weight = self.weight(loader, trainer.fit_loop.batch_idx, trainer)
            if weight != 1:
                loss.register_hook(lambda gradient: gradient * weight)

    def weight(self, loader: ResumableLoader, position: int, trainer: pl.Trainer) -> float:
        """What the mean loss of this process's share of a batch is multiplied by."""
        batches, accumulated = loader.dataset, trainer.accumulate_grad_batches
        first = position - position % accumulated
        step = range(first, min(first + accumulated, int(trainer.num_training_batches)))
        share = batches.share(position)
        return (share.stop - share.start) * batches.processes * accumulated / sum(map(batches.size, step))


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of the random number generators, as tensors and plain values."""
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "python": random.getstate(),
    }


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """The inverse of `random_state`. A state of CUDA is of use on a GPU only."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy(), *rest))
    random.setstate(state["python"])


def logged_results(trainer: pl.Trainer) -> dict[str, Any]:
    """Lightning's records of the values that are logged once a training epoch, by name."""
    results = trainer.fit_loop.epoch_loop._results  # there is no public way to them
    return {name: result for name, result in results.items() if result.meta.on_epoch}


def logged_so_far(trainer: pl.Trainer) -> dict[str, dict[str, Any]]:
    """What `logged_results` have accumulated, on the CPU; nothing at the end of an epoch."""
    if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
        return {}
    return {
        name: _moved((result if result.is_tensor else result.value).metric_state, torch.device("cpu"))
        for name, result in logged_results(trainer).items()
    }


def merge(result: Any, state: dict[str, Any]) -> None:
    """Put what was accumulated before an interruption before what one of `logged_results` has accumulated since."""
    state = _moved(state, result.value.device)
    if not result.is_tensor:
        with suppress(RuntimeError):  # a few metrics cannot be merged: theirs is then the value since the interruption
            result.value.merge_state(state)
    elif result.meta.is_mean_reduction or result.meta.is_sum_reduction:
        for name, value in state.items():
            setattr(result, name, value + getattr(result, name))
    else:
        result.value = result.meta.reduce_fx(state["value"], result.value)


def check_same_kind(what: str, given: object, here: dict[str, Any], there: dict[str, Any]) -> None:
    """Raises ValueError unless two states have the same entries."""
    missing, more = sorted(here.keys() - there.keys()), sorted(there.keys() - here.keys())
    if missing or more:
        differences = [f"without {', '.join(missing)}"] * bool(missing) + [f"with {', '.join(more)}"] * bool(more)
        raise ValueError(
            f"the checkpoint has another kind of {what} than {type(given).__name__}: {' and '.join(differences)}; "
            f"resume with the {what} that it was trained with"
        )


def _moved(state: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A copy of a metric's state, tensors or lists of them."""
    return {
        name: [item.to(device, copy=True) for item in value] if isinstance(value, list) else value.to(device, copy=True)
        for name, value in state.items()
    }
