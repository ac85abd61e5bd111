"""What TensorBoard records while a network learns: its kernels, and how closely they resemble Gabor functions."""

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.utils import make_grid

from lightning_modules.gabor import fit_gabor, principal_kernel
from lightning_modules.metrics import MIN_WINDOW, GaborLikeness

CELL = 64  # pixels that a kernel's longer side takes at least
GAP = 4  # white pixels between kernels
COLUMNS = 8  # kernels a row
LARGEST = 12  # rows and columns shown of a layer with many channels


class KernelRecorder(pl.Callback):
    """Records the kernels of convolutions before the first step and after every n-th epoch.

    For each layer the image `kernels/<layer>`; for windows of 7x7 and more also the scalars `gabor/<layer>/mean_r2` and
    `gabor/<layer>/fraction` of `GaborLikeness`, and the image `gabor/<layer>/fits`, each kernel above its best Gabor
    function. What goes wrong while recording is warned of once and does not stop the training.

    Args:
        every_n_epochs: epochs from one record to the next.
        layers: names of the layers as in `network.named_modules()`; None takes every two-dimensional convolution.

    Raises:
        ValueError: `every_n_epochs` is not positive, or (when training is set up) a layer is no convolution.
    """

    def __init__(self, every_n_epochs: int = 1, layers: list[str] | None = None) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be at least 1, got {every_n_epochs}")
        self.every_n_epochs = every_n_epochs
        self.layers = layers
        self._warned = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        known = convolutions(pl_module)
        unknown = [name for name in self.layers or [] if name not in known]
        if unknown:
            raise ValueError(f"layers must be among {', '.join(known)}, got {', '.join(unknown)}")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            self._record(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._record(trainer, pl_module)

    @rank_zero_only
    @torch.no_grad()
    def _record(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not loggers:
            return
        step = max(trainer.global_step - 1, 0)  # of the epoch's last batch, as Lightning logs what belongs to an epoch
        try:
            for name, layer in convolutions(pl_module).items():
                if self.layers is None or name in self.layers:
                    images, scalars = picture(name, layer.weight.detach().float().cpu())
                    for logger in loggers:
                        logger.log_metrics(scalars, step=step)
                        for tag, image in images.items():
                            logger.experiment.add_image(tag, image, step)
        except Exception as error:  # a picture is not worth a training run
            if not self._warned:
                rank_zero_warn(f"KernelRecorder could not record, training goes on: {error}")
            self._warned = True


def convolutions(module: pl.LightningModule) -> dict[str, nn.Conv2d]:
    """The two-dimensional convolutions of a LightningModule by name, relative to its `network`."""
    return {
        name.removeprefix("network."): layer for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d)
    }


def picture(name: str, weight: Tensor) -> tuple[dict[str, Tensor], dict[str, float]]:
    """What there is to show of a layer with weight [O, C, kh, kw]: images [3, height, width] and scalars, by tag."""
    images = {f"kernels/{name}": kernel_grid(weight)}
    if min(weight.shape[2:]) < MIN_WINDOW:
        return images, {}
    images[f"gabor/{name}/fits"] = fit_grid(weight)
    metric = GaborLikeness(sync_on_compute=False)  # only rank zero is here
    metric.update(weight)
    score = metric.compute()
    return images, {f"gabor/{name}/{key}": float(score[key]) for key in ("mean_r2", "fraction")}


def kernel_grid(weight: Tensor) -> Tensor:
    """Kernels side by side: zero is grey, and the largest weight of each kernel black or white.

    Args:
        weight: [O, C, kh, kw]. Kernels of one channel are drawn in grey and those of three in colour. Of others each
            row is a kernel and each column a channel, up to 12 of them.

    Returns:
        [3, height, width] in 0 to 1.
    """
    cells = _in_grey(weight)
    if weight.shape[1] in (1, 3):
        return _grid(cells, COLUMNS)
    cells = cells[:LARGEST, :LARGEST]  # [rows, columns, kh, kw]
    return _grid(cells.flatten(0, 1)[:, None], cells.shape[1])


def fit_grid(weight: Tensor) -> Tensor:
    """Each kernel above the Gabor function closest to it, on one scale.

    Args:
        weight: [O, C, kh, kw]; of more channels than one their first principal component is drawn.

    Returns:
        [3, height, width] in 0 to 1.
    """
    kernels, _ = principal_kernel(weight)  # [O, kh, kw]
    window = (kernels.shape[1], kernels.shape[2])
    fits = fit_gabor(kernels).gabor.kernels(window)
    pairs = _in_grey(torch.stack([kernels, fits], dim=1).float())  # [O, 2, kh, kw]
    kernel, fit = (_enlarged(half) for half in pairs.split(1, dim=1))
    gap = kernel.new_ones(*kernel.shape[:2], GAP // 2, kernel.shape[3])
    return make_grid(torch.cat([kernel, gap, fit], dim=2), nrow=COLUMNS, padding=GAP, pad_value=1)


def _in_grey(weight: Tensor) -> Tensor:
    """Weights [N, ...] to brightness, 0 in the middle, each of the N on its own scale."""
    largest = weight.abs().flatten(1).amax(1).clamp(min=torch.finfo(weight.dtype).tiny)
    return 0.5 + weight / (2 * largest.view(-1, *[1] * (weight.ndim - 1)))


def _enlarged(cells: Tensor) -> Tensor:
    """Cells [N, C, kh, kw] with each weight as a square block of pixels."""
    return F.interpolate(cells, scale_factor=float(-(-CELL // max(cells.shape[2:]))), mode="nearest")


def _grid(cells: Tensor, columns: int) -> Tensor:
    return make_grid(_enlarged(cells), nrow=columns, padding=GAP, pad_value=1)
