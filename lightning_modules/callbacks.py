"""What TensorBoard records while a network learns: its kernels, and how closely they resemble Gabor functions."""

import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor, nn

from lightning_modules.gabor_figures import pixels, shapes
from lightning_modules.gabor_score import Likeness, likeness, not_measurable, scores
from lightning_modules.pictures import Scale, fit_grid, frame, kernel_grid, save, save_growth

MOST_FRAMES = 64  # of the animation; of more, every other one is left out
SHOWN = {  # charts of TensorBoard's custom scalars, each with a curve a layer
    "mean R2 of the best Gabor functions": "mean_r2",
    "its growth": "growth",
    "strictly Gabor-like": "fraction",
    "above the null model": "fraction_above_null",
    "orientations (1: all alike)": "orientation_entropy",
    "dead kernels": "dead",
}


class KernelRecorder(pl.Callback):
    """Records the kernels of convolutions before the first step, while they are trained, and after the last step.

    For each layer the image `kernels/<layer>`, and for windows of 7x7 and more, under `gabor/<layer>/`, the scalars of
    `gabor_score.scores` and `growth`, the mean R2 less that of the first record; histograms of r2, orientation and
    bandwidth; the image `fits`, each kernel with its best Gabor function and what is left, best first; and after the
    last step `shapes`, see `gabor_figures.shapes`. These pictures are also written to `gabor/<layer>/` in the run's
    directory, with an animation of the kernels growing. Custom scalars show all layers side by side.

    A record is worked out in a thread of its own, beside the training. Under DDP the first process writes. What goes
    wrong while recording is warned of once and does not stop the training.

    Args:
        every_n_epochs: epochs from one record to the next; None for none at the end of epochs.
        logarithmic: record after 2, 4, 8 steps and so on, too: most of the growth is early.
        layers: names of the layers as in `network.named_modules()`; None takes every two-dimensional convolution with a
            window of more than one pixel.
        scale: whether each "kernel" is drawn from black to white, or a "layer" on one scale.

    Raises:
        ValueError: `every_n_epochs` is not positive, or (when training is set up) there is no such layer, or it has no
            window.
    """

    def __init__(
        self,
        every_n_epochs: int | None = 1,
        logarithmic: bool = False,
        layers: list[str] | None = None,
        scale: Scale = "kernel",
    ) -> None:
        if every_n_epochs is not None and every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be at least 1, got {every_n_epochs}")
        if scale not in ("kernel", "layer"):
            raise ValueError(f"scale must be kernel or layer, got {scale!r}")
        self.every_n_epochs = every_n_epochs
        self.logarithmic = logarithmic
        self.layers = layers
        self.scale = scale
        self._last = -1  # steps before the last record
        self._frames: dict[str, list[Tensor]] = {}  # of each layer
        self._measured: set[str] = set()
        self._first_r2: dict[str, float] = {}  # the mean of each layer's first record
        self._found: dict[str, Likeness] = {}  # in the last record
        self._jobs: list[Future[None]] = []
        self._warned = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        check_layers(self.layers or [], pl_module)

    def state_dict(self) -> dict[str, Any]:
        if self._first_r2.keys() < self._measured:  # the first record is under way
            wait(self._jobs)
        frames = {name: list(frames) for name, frames in self._frames.items()}
        return {"last": self._last, "frames": frames, "first_r2": dict(self._first_r2)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._last, self._frames, self._first_r2 = state["last"], state["frames"], state["first_r2"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._thread = ThreadPoolExecutor(1, "KernelRecorder")
        self._prepare(trainer, pl_module)
        if trainer.global_step == 0:
            self._record(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        steps = trainer.global_step
        if self.logarithmic and steps > max(1, self._last) and steps.bit_count() == 1:
            self._record(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        due = self.every_n_epochs is not None and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if due and trainer.global_step > self._last:
            self._record(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._record(trainer, pl_module, final=True)
        self._thread.shutdown()
        self._warn()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if hasattr(self, "_thread"):
            self._thread.shutdown(cancel_futures=True)

    @rank_zero_only
    def _prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        recorded = self._recorded(pl_module)
        reasons = {name: not_measurable(window_of(layer)) for name, layer in recorded.items()}
        measured = [name for name, reason in reasons.items() if reason is None]
        charts = {
            chart: ["Multiline", [f"^gabor/{re.escape(name)}/{score}$" for name in measured]]
            for chart, score in SHOWN.items()
        }
        for logger in tensorboards(trainer):
            self._measured = set(measured)
            if measured:
                self._submit(logger.experiment.add_custom_scalars, {"Gabor-likeness": charts})
            for name, reason in reasons.items():
                if reason is not None and trainer.global_step == 0:
                    self._submit(logger.experiment.add_text, f"gabor/{name}", f"Not measured: it has {reason}.", 0)

    @rank_zero_only
    def _record(self, trainer: pl.Trainer, pl_module: pl.LightningModule, final: bool = False) -> None:
        self._warn()
        new = trainer.global_step != self._last
        self._last = trainer.global_step
        step = max(self._last - 1, 0)  # of the last batch, as Lightning logs what belongs to it
        if not tensorboards(trainer):
            return
        for name, layer in self._recorded(pl_module).items():
            weight = layer.weight.detach().float().cpu().clone()
            frames = self._frames.setdefault(name, [])
            if new:
                frames.append(frame(weight))
            if len(frames) > MOST_FRAMES:
                del frames[1::2]
            for logger in tensorboards(trainer):
                if new:
                    self._submit(self._write, logger, name, weight, step)
                if final:
                    self._submit(self._finish, logger, name, weight, list(frames), step)

    def _submit(self, work: Callable[..., None], *arguments: Any) -> None:
        self._jobs.append(self._thread.submit(work, *arguments))

    def _warn(self) -> None:
        """Warn of the first thing that went wrong, if any, and forget what is done."""
        done = [job for job in self._jobs if job.done()]
        errors = [error for job in done if (error := job.exception()) is not None]
        if errors and not self._warned:
            rank_zero_warn(f"KernelRecorder could not record, training goes on: {errors[0]}")
            self._warned = True
        self._jobs = [job for job in self._jobs if job not in done]

    def _recorded(self, pl_module: pl.LightningModule) -> dict[str, nn.Conv2d]:
        known = convolutions(pl_module)
        return {name: layer for name, layer in known.items() if self.layers is None or name in self.layers}

    @torch.no_grad()
    def _write(self, logger: TensorBoardLogger, name: str, weight: Tensor, step: int) -> None:
        """What there is to show of a layer with weight [O, C, kh, kw] at any step; in the thread."""
        board = logger.experiment
        board.add_image(f"kernels/{name}", kernel_grid(weight, self.scale), step)
        if not_measurable((weight.shape[2], weight.shape[3])):
            return
        found = self._found[name] = likeness(weight)
        table = found.table()
        values = {key: float(value) for key, value in scores(table).items()}
        values["growth"] = values["mean_r2"] - self._first_r2.setdefault(name, values["mean_r2"])
        for key, value in values.items():
            if value == value:  # none of the kernels has it, where it is NaN
                board.add_scalar(f"gabor/{name}/{key}", value, step)
        for key in ("r2", "orientation", "bandwidth"):
            finite = table[key][table[key].isfinite()]
            if len(finite):
                board.add_histogram(f"gabor/{name}/{key}", finite, step)
        board.add_image(f"gabor/{name}/fits", fit_grid(found), step)

    @torch.no_grad()
    def _finish(self, logger: TensorBoardLogger, name: str, weight: Tensor, frames: list[Tensor], step: int) -> None:
        """What there is to show after the last step; in the thread."""
        directory = Path(logger.log_dir) / "gabor" / name
        directory.mkdir(parents=True, exist_ok=True)
        save(kernel_grid(weight, self.scale), directory / "kernels.png")
        save_growth(frames, directory / "growth.gif")
        found = self._found.get(name)
        if found is None:
            return
        save(fit_grid(found), directory / "fits.png")
        image = pixels(shapes(found, name))
        save(image, directory / "shapes.png")
        logger.experiment.add_image(f"gabor/{name}/shapes", image, step)


def tensorboards(trainer: pl.Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def convolutions(module: pl.LightningModule) -> dict[str, nn.Conv2d]:
    """The two-dimensional convolutions with a window, by name relative to the `network` of a LightningModule."""
    return {
        name.removeprefix("network."): layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d) and window_of(layer) != (1, 1)
    }


def window_of(layer: nn.Conv2d) -> tuple[int, int]:
    return layer.weight.shape[2], layer.weight.shape[3]


def check_layers(names: list[str], module: pl.LightningModule) -> None:
    """Raises ValueError for the first of the layers that does not exist or has no window."""
    known = convolutions(module)
    modules = {name.removeprefix("network."): layer for name, layer in module.named_modules()}
    for name in names:
        if name not in modules:
            raise ValueError(f"layers must be among {', '.join(known)}, got {name}")
        if name not in known:
            kind = type(modules[name]).__name__
            raise ValueError(f"layers must be among {', '.join(known)}: {name}, a {kind}, has no window to show")
