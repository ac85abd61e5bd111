"""Training with and without graphs, on a GPU or with a stand-in for them."""

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import TensorDataset
from torchvision.transforms.v2 import MixUp

from kernels import layers
from lightning_modules.captured_step import CaptureSteps
from lightning_modules.classifier import Classifier
from lightning_modules.cuda_graph import Graph, Results
from lightning_modules.data.loading import loader
from lightning_modules.dense_predictor import DensePredictor
from lightning_modules.finite import FiniteLoss
from lightning_modules.reconstruction import Reconstruction
from lightning_modules.reproducibility import ExactResume, LastCheckpoint, ShareWeights

DRAWS = torch.Generator().manual_seed(0)
IMAGES = torch.randn(22, 2, 6, 6, generator=DRAWS)
LABELS = torch.randint(3, (22,), generator=DRAWS)
MAPS = torch.randint(4, (22, 6, 6), generator=DRAWS)


class Rerun(Graph):
    """Replays by running the function again. What it returns keeps its place, and is NaN until the first replay."""

    device_type = "cpu"

    def __init__(self, function: Callable[[], Results], before: Graph | None = None) -> None:
        self.function = function
        self.results = [each if each is None else each.detach() for each in function()]
        for each in self.results:
            if each is not None:
                each.data.fill_(torch.nan)

    def replay(self) -> None:
        for static, new in zip(self.results, self.function(), strict=True):
            if static is not None:
                static.copy_(new.detach())

    @staticmethod
    def warm_up(function: Callable[[], object]) -> None:
        function()


class Outside(torch.autograd.Function):
    """Returns its input. Its backward pass must run outside of autocast, as it does without graphs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        assert not torch.is_autocast_enabled(dy.device.type)
        return dy


class Small(nn.Module):
    """A network that changes or draws something besides gradients: batch norm and dropout.

    One layer is used twice, one not at all, and two parameters have the same gradient.
    """

    input_shape = (2, 6, 6)
    classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = layers.Conv2d(2, 4, 3, padding=1), layers.BatchNorm2d(4)
        self.twice, self.drop = layers.Conv2d(4, 4, 3, padding=1), nn.Dropout(0.3)
        self.scores, self.unused = nn.Linear(4, 3), nn.Linear(2, 2)
        self.one, self.other = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.first(images)).relu()
        x = self.drop(self.twice(self.twice(x))).mean((2, 3)) + (self.one + self.other)
        return self.scores(Outside.apply(x))


class Maps(Small):
    """Scores of each pixel, in training with auxiliary ones."""

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        early = self.norm(self.first(images))
        scores = self.twice(early.relu())
        return (scores, early) if self.training else scores

    classes = 4


class Code(Small):
    """A reconstruction and a code."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        code = self.norm(self.first(images)).relu()
        return self.drop(self.twice(code))[:, :2], code


MODULES: dict[str, tuple[Callable[..., Any], Tensor]] = {
    "classifier": (lambda **options: Classifier(Small(), **options), LABELS),
    "mixing classifier": (lambda **options: Classifier(Small(), mix=MixUp(num_classes=3), **options), LABELS),
    "dense predictor": (lambda **options: DensePredictor(Maps(), ignore_index=3, **options), MAPS),
    "reconstruction": (lambda **options: Reconstruction(Code(), **options), LABELS),
}
CONFIGURED = ("optimizer", "lr_scheduler", "lr_scheduler_interval")
MOMENTUM = partial(SGD, lr=0.05, momentum=0.9, weight_decay=0.01)


def fit(path: Path, module: pl.LightningModule, targets: Tensor, callbacks: Sequence[pl.Callback], **options):
    options = {"max_epochs": 2, "accelerator": "cpu", "ckpt_path": None, **options}
    resumed = options.pop("ckpt_path")
    trainer = pl.Trainer(
        devices=1, default_root_dir=path, logger=False, num_sanity_val_steps=0, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[FiniteLoss(), ShareWeights(), ExactResume(), *callbacks], **options,
    )  # fmt: skip
    data = TensorDataset(IMAGES, targets)
    trainer.fit(module, loader(data, 5, shuffle=True), loader(data, 22), ckpt_path=resumed, weights_only=True)
    return trainer


def run(path: Path, graph: type[Graph] | None, kind: str = "classifier", callbacks: Sequence[Any] = (), **options):
    """Train, and return the last checkpoint, what was logged, and the callback that captured."""
    configured = {"optimizer": MOMENTUM, **{key: options.pop(key) for key in list(options) if key in CONFIGURED}}
    make, targets = MODULES[kind]
    for seed in (torch.manual_seed, random.seed):
        seed(3)
    options["accelerator"] = "gpu" if options.pop("on_gpu", graph is Graph) else "cpu"
    capture = CaptureSteps(graph or Rerun)
    trainer = fit(path, make(**configured), targets, [LastCheckpoint(1), *[capture][: graph is not None], *callbacks],
                  **options)  # fmt: skip
    end = torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)
    return end, dict(trainer.callback_metrics), capture
