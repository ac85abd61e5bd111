"""What TensorBoard records while a network learns: its kernels, and how closely they resemble Gabor functions."""

import gc
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from lightning_modules.files import replace
from lightning_modules.gabor_figures import pixels, shapes
from lightning_modules.gabor_score import Likeness, likeness, not_measurable, scores
from lightning_modules.pictures import Scale, fit_grid, frame, kernel_grid, png, save_growth

MOST_FRAMES = 64  # of the animation; of more, every other one is left out
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
    bandwidth; the image `fits`, each kernel with its best Gabor function and what is left, best first; and, at the end
    of epochs and of the training, the image `shapes`, see `gabor_figures.shapes`. The last pictures are also written to
    `gabor/<layer>/` in the run's directory, with an animation of the kernels growing. Custom scalars show all layers
    side by side. The null model is white and 1/f noise; `convnets gabor` adds phase-scrambled kernels.

    Under DDP the first process writes. What goes wrong while recording is warned of once and does not stop the
    training. One that is interrupted leaves what TensorBoard has until then.

    Args:
        every_n_epochs: epochs from one record to the next; None for none at the end of epochs.
        logarithmic: record after 10, 100, 1,000 steps and so on: most of the growth is early. The animation then has a
            frame after 2, 5, 10, 20, 50 steps and so on.
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
        self._milestone = 1
        self._reset()

    def _reset(self) -> None:
        self._last = -1  # steps before the last record
        self._frames: dict[str, list[Tensor]] = {}  # of each layer
        self._framed = -1  # steps before the last moment that might have had a frame
        self._seen = 0  # such moments; every `_stride`-th one has a frame
        self._stride = 1
        self._first_r2: dict[str, float] = {}  # the mean of each layer's first record
        self._found: dict[str, Likeness] = {}  # of each layer that is measured, in the last record
        self._drawn: dict[str, dict[str, bytes]] = {}  # of each layer, the pictures of the last record by title
        self._warned = False

    @property
    def state_key(self) -> str:
        options = (self.every_n_epochs, self.logarithmic, self.layers, self.scale)
        return f"{type(self).__qualname__}{options}"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        check_layers(self.layers or [], pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {
            "last": self._last, "framed": self._framed, "seen": self._seen, "stride": self._stride,
            "first_r2": dict(self._first_r2), "frames": {name: list(frames) for name, frames in self._frames.items()},
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._reset()
        self._framed = state.get("framed", -1)  # older checkpoints have none
        self._last, self._seen, self._stride = state["last"], state["seen"], state["stride"]
        self._first_r2, self._frames = state["first_r2"], state["frames"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        steps = trainer.global_step
        self._milestone = milestone(steps)
        if steps == 0:
            self._reset()
        self._introduce(trainer, pl_module)
        if steps == 0:
            self._record(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        reached = milestone(trainer.global_step)
        if self.logarithmic and reached > self._milestone:
            if str(reached).startswith("1"):
                self._record(trainer, pl_module)
            else:
                self._add_frames(trainer.global_step, pl_module)
            self._milestone = reached

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.every_n_epochs is not None and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._record(trainer, pl_module, with_shapes=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._add_frames(trainer.global_step, pl_module, certainly=True)
        self._record(trainer, pl_module, with_shapes=True)
        self._write_files(trainer)

    @rank_zero_only
    def _introduce(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lay out the page of custom scalars, and say why some layers are not measured."""
        reasons = {name: not_measurable(window_of(layer)) for name, layer in self._recorded(pl_module).items()}
        measured = [name for name, reason in reasons.items() if reason is None]
        charts = {
            chart: ["Multiline", [f"^gabor/{re.escape(name)}/{score}$" for name in measured]]
            for chart, score in SHOWN.items()
        }
        for logger in tensorboards(trainer):
            with self._tolerance():
                if measured:
                    logger.experiment.add_custom_scalars({"Gabor-likeness": charts})
                for name, reason in reasons.items():
                    if reason is not None and trainer.global_step == 0:
                        logger.experiment.add_text(f"gabor/{name}", f"Not measured: it has {reason}.", 0)

    @rank_zero_only
    @torch.no_grad()
    def _record(self, trainer: pl.Trainer, pl_module: pl.LightningModule, with_shapes: bool = False) -> None:
        """Show the layers as they are; once a step, though `shapes` may follow."""
        with self._tolerance():
            boards = [logger.experiment for logger in tensorboards(trainer)]
            if boards and trainer.global_step != self._last:
                self._last = trainer.global_step
                self._found, self._drawn = {}, {}
                self._add_frames(self._last, pl_module)
                for name, layer in self._recorded(pl_module).items():
                    with self._tolerance():
                        self._show(boards, name, layer.weight.detach().float().cpu())
            for name, found in self._found.items():
                if with_shapes and "shapes" not in self._drawn[name]:
                    with self._tolerance(), without_collection():
                        self._show_picture(boards, name, "shapes", pixels(shapes(found, name)))

    def _show(self, boards: list[SummaryWriter], name: str, weight: Tensor) -> None:
        """Show what there is of a layer with weight [O, C, kh, kw] in every record."""
        self._show_picture(boards, name, "kernels", kernel_grid(weight, self.scale))
        if not_measurable((weight.shape[2], weight.shape[3])):
            return
        found = self._found[name] = likeness(weight, scrambled=False)
        table = found.table()
        values = {key: float(value) for key, value in scores(table).items()}
        values["growth"] = values["mean_r2"] - self._first_r2.setdefault(name, values["mean_r2"])
        for board in boards:
            for key, value in values.items():
                if math.isfinite(value):  # none of the kernels has it, where it is NaN
                    board.add_scalar(f"gabor/{name}/{key}", value, self._step)
            for key in ("r2", "orientation", "bandwidth"):
                finite = table[key][table[key].isfinite()]
                if len(finite):
                    board.add_histogram(f"gabor/{name}/{key}", finite, self._step)
        self._show_picture(boards, name, "fits", fit_grid(found))

    def _show_picture(self, boards: list[SummaryWriter], name: str, title: str, image: Tensor) -> None:
        """Show a picture of a layer as it is: SummaryWriter.add_image would make colours of its greys."""
        encoded = self._drawn.setdefault(name, {})[title] = png(image)
        tag = f"kernels/{name}" if title == "kernels" else f"gabor/{name}/{title}"
        channels, height, width = image.shape
        picture = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=encoded)
        for board in boards:
            board._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=picture)]), self._step)

    @rank_zero_only
    def _write_files(self, trainer: pl.Trainer) -> None:
        for logger, (name, drawn) in product(tensorboards(trainer), self._drawn.items()):
            with self._tolerance():
                directory = Path(logger.log_dir) / "gabor" / name
                directory.mkdir(parents=True, exist_ok=True)
                for title, encoded in drawn.items():
                    replace(directory / f"{title}.png", encoded)
                save_growth(self._frames[name], directory / "growth.gif")

    @rank_zero_only
    def _add_frames(self, steps: int, pl_module: pl.LightningModule, certainly: bool = False) -> None:
        """Add to the animations, once a step; when they are long, every other time only, and so on."""
        again, self._framed = steps == self._framed, steps
        self._seen += not again
        due = (self._seen - 1) % self._stride == 0
        if (again and due) or not (due or certainly):
            return
        with self._tolerance():
            for name, layer in self._recorded(pl_module).items():
                self._frames.setdefault(name, []).append(frame(layer.weight.detach().float().cpu()))
        if max(map(len, self._frames.values()), default=0) > MOST_FRAMES:
            self._stride *= 2
            self._frames = {name: frames[::2] for name, frames in self._frames.items()}

    @property
    def _step(self) -> int:
        """The step of the last batch, to which Lightning logs what belongs to it."""
        return max(self._last - 1, 0)

    @contextmanager
    def _tolerance(self) -> Iterator[None]:
        """What goes wrong is warned of, the first time, and training goes on."""
        try:
            yield
        except Exception as error:
            if not self._warned:
                rank_zero_warn(f"KernelRecorder could not record, training goes on: {error}")
            self._warned = True

    def _recorded(self, pl_module: pl.LightningModule) -> dict[str, nn.Conv2d]:
        known = convolutions(pl_module)
        return {name: layer for name, layer in known.items() if self.layers is None or name in self.layers}


@contextmanager
def without_collection() -> Iterator[None]:
    """A figure's many objects set off Python's garbage collector, which takes 0.2 s where PyTorch is loaded."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def milestone(steps: int) -> int:
    """The largest of 1, 2, 5, 10, 20, 50 and so on that so many steps have reached; 1 for none."""
    power = 10 ** (len(str(steps)) - 1)
    return max(factor for factor in (1, 2, 5) if factor * power <= max(steps, 1)) * power


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
    layers, known = named_layers(module), convolutions(module)
    accepted = ", ".join(known) or "none: no layer has a window"
    for name in names:
        if name not in layers:
            raise ValueError(f"layers must be among {accepted}, got {name}")
        if name not in known:
            raise ValueError(f"layers must be among {accepted}: {name}, a {type(layers[name]).__name__}, has no window")
