"""Callbacks for a run to give the same weights, interrupted or not, and however its batches are divided."""

import copy
import os
import random
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint, StochasticWeightAveraging
from torch import Tensor, distributed

from lightning_modules.data.loading import ResumableLoader

KEY = "processes"  # of a checkpoint: what each process adds to it
OPTIMIZER, SCHEDULE, SEED = "--model.optimizer", "--model.lr_scheduler", "--seed_everything"
HYPER_PARAMETERS = "hyper_parameters_of_training"  # of a checkpoint: those that the run was started with


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

    The optimizer, the schedule and the seed of a checkpoint take the place of the configured ones, and so must be the
    same. Callbacks keep their own settings: Lightning's EarlyStopping would take its patience from the checkpoint.

    Raises:
        ValueError: when resuming, the optimizer, the schedule or the seed is another than the checkpoint's.
    """

    def __init__(self) -> None:
        self._checkpoint: dict[str, Any] = {}  # while resuming
        self._random: dict[str, Any] | None = None
        self._hyper_parameters: dict[str, Any] = {}
        self._logged: dict[str, dict[str, Any]] = {}  # until the first step

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        mine = {"random": random_state(pl_module.device), "logged": logged_so_far(trainer)}
        everyones: list[Any] = [mine] * trainer.world_size
        if trainer.world_size > 1:
            distributed.all_gather_object(everyones, mine)
        checkpoint[KEY] = everyones
        checkpoint[HYPER_PARAMETERS] = self._hyper_parameters

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn == "fit":
            self._checkpoint = checkpoint
            everyones = checkpoint.get(KEY, [])
            if trainer.global_rank < len(everyones):
                self._random = everyones[trainer.global_rank]["random"]
                self._logged = everyones[trainer.global_rank]["logged"]
            for callback in trainer.early_stopping_callbacks:
                if callback.state_key in checkpoint["callbacks"]:
                    checkpoint["callbacks"][callback.state_key]["patience"] = callback.patience

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before Lightning restores the optimizer."""
        schedules = [(each.scheduler, each.interval) for each in trainer.lr_scheduler_configs]
        self._hyper_parameters = hyper_parameters(trainer.optimizers, schedules)
        if self._checkpoint:
            averages = any(isinstance(each, StochasticWeightAveraging) for each in cast(Any, trainer).callbacks)
            if not averages or schedules:  # it takes the schedule away once it averages
                check_hyper_parameters(self._checkpoint, self._hyper_parameters)
            self._hyper_parameters = self._checkpoint.get(HYPER_PARAMETERS, self._hyper_parameters)
        # Where steps are limited, Lightning would restore a finished epoch as an unfinished one.
        self._max_steps, trainer.fit_loop.epoch_loop.max_steps = trainer.max_steps, -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.fit_loop.epoch_loop.max_steps = self._max_steps
        if self._random is not None:
            restore_random_state(self._random, pl_module.device)
        self._checkpoint, self._random = {}, None

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


def hyper_parameters(
    optimizers: Iterable[torch.optim.Optimizer], schedules: Iterable[tuple[Any, str]]
) -> dict[str, Any]:
    """Return what training is started with, and a resumed run takes from its checkpoint, by the options that set it.

    Args:
        optimizers: new ones.
        schedules: of their learning rates, with the intervals at which they are stepped.
    """
    groups = [
        {"class_path": _path(each), **group, "lr": group.get("initial_lr", group["lr"])}  # before the schedule
        for each in optimizers
        for group in each.param_groups
    ]
    states = [{"class_path": _path(each), **each.state_dict(), "interval": interval} for each, interval in schedules]
    found = copy.deepcopy(_by_option(groups, states))
    seed = os.environ.get("PL_GLOBAL_SEED")  # where Lightning keeps it
    return found if seed is None else {**found, SEED: int(seed)}


def check_hyper_parameters(checkpoint: dict[str, Any], here: dict[str, Any]) -> None:
    """Hold what a run is resumed with to what it was started with.

    Args:
        checkpoint: of the run. One that `ExactResume` has not written tells kinds of optimizer apart, and no values.
        here: the `hyper_parameters` that are configured now.

    Raises:
        ValueError: they differ; the first difference is named.
    """
    there = checkpoint.get(HYPER_PARAMETERS)
    if there is None:
        groups = [group for state in checkpoint["optimizer_states"] for group in state["param_groups"]]
        there = dict.fromkeys(_by_option(groups, checkpoint["lr_schedulers"]), "given")
        more = ("class_path", "interval", SEED)
        here = {name: "given" for name in here if not name.endswith(more)}
    elif bool(checkpoint["lr_schedulers"]) != any(name.startswith(SCHEDULE) for name in there):
        raise ValueError("the checkpoint is damaged: it has lost the state of its schedule")
    elif SEED not in here or SEED not in there:
        here, there = ({name: value for name, value in each.items() if name != SEED} for each in (here, there))
    for name in here | there:
        ours, theirs = (each.get(name, "missing") for each in (here, there))
        if ours != theirs:
            raise ValueError(
                f"{name} is {ours} here and {theirs} in the checkpoint, from which a resumed run takes it: "
                f"give the same, or --resume weights to start anew from its weights"
            )


def _by_option(groups: list[dict[str, Any]], states: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what groups of optimizers and states of schedules hold, by the options that set it."""
    found: dict[str, Any] = {}
    for option, entries in ((OPTIMIZER, groups), (SCHEDULE, states)):
        for number, entry in enumerate(entries):
            place = f"{option}[{number}]" if number else option
            options = entry.keys() - {"params", "initial_lr"}
            found |= {f"{place}.{name}": value for name, value in entry.items() if name in options}
    return found


def _path(made: object) -> str:
    return f"{type(made).__module__}.{type(made).__qualname__}"


def _moved(state: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A copy of a metric's state, tensors or lists of them."""
    return {
        name: [item.to(device, copy=True) for item in value] if isinstance(value, list) else value.to(device, copy=True)
        for name, value in state.items()
    }
