"""What TensorBoard records while a network learns: its kernels, and how closely they resemble Gabor functions."""

import math
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor, nn

from lightning_modules.gabor_figures import pixels, shapes
from lightning_modules.gabor_score import Likeness, likeness, not_measurable, scores
from lightning_modules.pictures import Scale, fit_grid, frame, kernel_grid, png, save_growth

MOST_FRAMES = 64  # of the animation; of more, every other one is left out
MOST_WAITING = 8  # pieces of work that wait for the thread; the training waits rather than to add to them
SHOWN = {  # charts of TensorBoard's custom scalars, each with a curve a layer
    "mean R2 of the best Gabor functions": "mean_r2",
    "its growth": "growth",
    "strictly Gabor-like": "fraction",
    "above the null model": "fraction_above_null",
    "entropy of orientations (1: all equally frequent)": "orientation_entropy",
    "dead kernels": "dead",
}


class KernelRecorder(pl.Callback):
    """Records the kernels of convolutions before the first step, while they are trained, and after the last step.

    For each layer the image `kernels/<layer>`, and for windows of 7x7 and more, under `gabor/<layer>/`, the scalars of
    `gabor_score.scores` and `growth`, the mean R2 less that of the first record; histograms of r2, orientation and
    bandwidth; the image `fits`, each kernel with its best Gabor function and what is left, best first; and before the
    first and after the last step `shapes`, see `gabor_figures.shapes`. These pictures are also written to
    `gabor/<layer>/` in the run's directory, with an animation of the kernels growing. Custom scalars show all layers
    side by side. The null model is white and 1/f noise; `convnets gabor` adds phase-scrambled kernels.

    A record is worked out in a thread of its own, beside the training; of 48 kernels of 11x11 it takes 0.1 s. Under DDP
    the first process writes. What goes wrong while recording is warned of once and does not stop the training.

    Args:
        every_n_epochs: epochs from one record to the next; None for none at the end of epochs.
        logarithmic: record after 4, 16, 64 steps and so on: most of the growth is early. The animation then has a frame
            after 2, 4, 8 steps and so on.
        layers: names of the layers as in `network.named_modules()`; None takes every two-dimensional convolution with a
            window of more than one pixel.
        scale: whether each "kernel" is drawn from black to white, or a "layer" on one scale.

    Raises:
        ValueError: `every_n_epochs` is not positive, or (when training is set up) there is no such layer, or it has no
            window.
    """

    def __init__(
        self,
        every_n_epochs: int | None = None,
        logarithmic: bool = True,
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
        self._thread: ThreadPoolExecutor | None = None
        self._reset()

    def _reset(self) -> None:
        self._last = -1  # steps before the last record
        self._frames: dict[str, list[Tensor]] = {}  # of each layer
        self._framed = -1  # steps before the last frame that is beside the records
        self._seen = 0  # moments that might have had a frame; every `_stride`-th one has
        self._stride = 1
        self._measured: set[str] = set()
        self._first_r2: dict[str, float] = {}  # the mean of each layer's first record
        self._found: dict[str, Likeness] = {}  # in the last record
        self._drawn: dict[str, dict[str, bytes]] = {}  # each layer's pictures of the last record, by title
        self._jobs: list[Future[None]] = []
        self._warned = False

    @property
    def state_key(self) -> str:
        options = (self.every_n_epochs, self.logarithmic, self.layers, self.scale)
        return f"{type(self).__qualname__}{options}"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        check_layers(self.layers or [], pl_module)

    def state_dict(self) -> dict[str, Any]:
        if self._first_r2.keys() < self._measured:  # the first record is under way
            wait(self._jobs)
        return {
            "last": self._last, "seen": self._seen, "stride": self._stride, "first_r2": dict(self._first_r2),
            "frames": {name: list(frames) for name, frames in self._frames.items()},
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._last, self._seen, self._stride = state["last"], state["seen"], state["stride"]
        self._first_r2, self._frames = state["first_r2"], state["frames"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            self._reset()
        self._thread = ThreadPoolExecutor(1, "KernelRecorder")
        self._prepare(trainer, pl_module)
        if trainer.global_step == 0:
            self._record(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        steps = trainer.global_step
        if self.logarithmic and steps > max(1, self._last) and steps.bit_count() == 1:
            if steps.bit_length() % 2:  # a power of four
                self._record(trainer, pl_module)
            elif steps != self._framed:
                self._framed = steps
                self._add_frames(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        due = self.every_n_epochs is not None and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if due and trainer.global_step > self._last:
            self._record(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._record(trainer, pl_module, final=True)
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop(cancel=True)

    def _stop(self, cancel: bool = False) -> None:
        """Wait for the thread, or for what it is just doing if the rest is cancelled."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=cancel)
        self._thread = None
        self._jobs = [job for job in self._jobs if not job.cancelled()]
        self._warn()

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
        if new:
            self._add_frames(pl_module, final)
        for name, layer in self._recorded(pl_module).items():
            weight = layer.weight.detach().float().cpu().clone()
            for logger in tensorboards(trainer):
                if new:
                    self._submit(self._write, logger, name, weight, step)
                if final:
                    self._submit(self._finish, logger, name, list(self._frames[name]), step)

    @rank_zero_only
    def _add_frames(self, pl_module: pl.LightningModule, certainly: bool = False) -> None:
        """Add to the animations; once they are long, every other time only, and so on."""
        self._seen += 1
        if (self._seen - 1) % self._stride and not certainly:
            return
        for name, layer in self._recorded(pl_module).items():
            self._frames.setdefault(name, []).append(frame(layer.weight.detach().float().cpu()))
        if max(map(len, self._frames.values()), default=0) > MOST_FRAMES:
            self._stride *= 2
            self._frames = {name: frames[::2] for name, frames in self._frames.items()}

    def _submit(self, work: Callable[..., None], *arguments: Any) -> None:
        assert self._thread is not None
        waiting = [job for job in self._jobs if not job.done()]
        if len(waiting) >= MOST_WAITING:
            wait(waiting[: len(waiting) - MOST_WAITING + 1])
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
        self._found.pop(name, None)
        drawn = self._drawn[name] = {"kernels": png(kernel_grid(weight, self.scale))}
        add_png(logger, f"kernels/{name}", drawn["kernels"], step)
        if not_measurable((weight.shape[2], weight.shape[3])):
            return
        found = self._found[name] = likeness(weight, scrambled=False)
        table = found.table()
        values = {key: float(value) for key, value in scores(table).items()}
        values["growth"] = values["mean_r2"] - self._first_r2.setdefault(name, values["mean_r2"])
        for key, value in values.items():
            if math.isfinite(value):  # none of the kernels has it, where it is NaN
                board.add_scalar(f"gabor/{name}/{key}", value, step)
        for key in ("r2", "orientation", "bandwidth"):
            finite = table[key][table[key].isfinite()]
            if len(finite):
                board.add_histogram(f"gabor/{name}/{key}", finite, step)
        drawn["fits"] = png(fit_grid(found))
        add_png(logger, f"gabor/{name}/fits", drawn["fits"], step)
        if step == 0:
            add_png(logger, f"gabor/{name}/shapes", png(pixels(shapes(found, name))), step)

    @torch.no_grad()
    def _finish(self, logger: TensorBoardLogger, name: str, frames: list[Tensor], step: int) -> None:
        """What there is to show after the last step; in the thread."""
        drawn = dict(self._drawn[name])
        if name in self._found:
            drawn["shapes"] = png(pixels(shapes(self._found[name], name)))
            add_png(logger, f"gabor/{name}/shapes", drawn["shapes"], step)
        directory = Path(logger.log_dir) / "gabor" / name
        directory.mkdir(parents=True, exist_ok=True)
        for title, image in drawn.items():
            (directory / f"{title}.png").write_bytes(image)
        save_growth(frames, directory / "growth.gif")


def add_png(logger: TensorBoardLogger, tag: str, image: bytes, step: int) -> None:
    """Add an image as it is; SummaryWriter.add_image would make colours of greys and compress it once more."""
    shown = Summary.Value(tag=tag, image=Summary.Image(encoded_image_string=image))
    logger.experiment.file_writer.add_summary(Summary(value=[shown]), step)


def tensorboards(trainer: pl.Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def convolutions(module: pl.LightningModule) -> dict[str, nn.Conv2d]:
    """The two-dimensional convolutions with a window, by name relative to the `network` of a LightningModule."""
    layers = named_layers(module)
    return {name: each for name, each in layers.items() if isinstance(each, nn.Conv2d) and window_of(each) != (1, 1)}


def named_layers(module: pl.LightningModule) -> dict[str, nn.Module]:
    """All modules of a LightningModule by name relative to its `network`, which torch.compile may have wrapped."""
    return {re.sub(r"^network\.(_orig_mod\.)?", "", name): layer for name, layer in module.named_modules()}


def window_of(layer: nn.Conv2d) -> tuple[int, int]:
    height, width = layer.kernel_size
    return height, width


def check_layers(names: list[str], module: pl.LightningModule) -> None:
    """Raises ValueError for the first of the layers that does not exist or has no window."""
    layers, known = named_layers(module), ", ".join(convolutions(module)) or "none: no layer has a window"
    for name in names:
        if name not in layers:
            raise ValueError(f"layers must be among {known}, got {name}")
        if name not in convolutions(module):
            raise ValueError(f"layers must be among {known}: {name}, a {type(layers[name]).__name__}, has no window")
