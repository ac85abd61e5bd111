"""Three ratios and a difference, each measured in one run: python -m tests.ratios

- what a call of a convolution costs beyond ATen's, of which tests/dispatch.py says more;
- a 3x3 convolution of 16 to 32 channels at 8x8, 128 images, interpreted, with GPU-sized tiles over its own;
- a training step of experiments/digits.yaml, interpreted, with GPU-sized tiles over the interpreter's own tiles;
- an epoch of it on the torch backend, over the same network written in plain torch.nn, both in plain Lightning.
"""

import logging
import os
import statistics
import sys
import time
import warnings

os.environ["TRITON_INTERPRET"] = "1"  # before the first import of triton

import lightning.pytorch as pl
import torch
import yaml
from torch import nn
from torch.nn import functional as F

import kernels
from kernels.tuning import Tile, use_tile
from lightning_modules.architectures import LeNet
from lightning_modules.classifier import Classifier
from lightning_modules.data import DigitsDataModule
from tests import dispatch

with open("experiments/digits.yaml") as file:
    RECIPE = yaml.safe_load(file)
NETWORK = RECIPE["model"]["init_args"]["network"]["init_args"]
DATA = RECIPE["data"]["init_args"]
GPU_TILE = Tile(128, 64, 32)
EPOCHS = 8
PAIRS = 10


class Maxout(nn.Module):
    def __init__(self, pool_size: int) -> None:
        super().__init__()
        self.pool_size = pool_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(1, (-1, self.pool_size)).max(2).values


def plain_network() -> nn.Sequential:
    """The recipe's LeNet, layer by layer in torch.nn."""
    channels, height, width = NETWORK["input_shape"]
    (first, second), maxout = NETWORK["filters"], NETWORK["maxout"]
    net = nn.Sequential(
        nn.Conv2d(channels, first, NETWORK["kernel_sizes"][0], padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second * maxout, NETWORK["kernel_sizes"][1], padding="same"),
        Maxout(maxout),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * (height // 4) * (width // 4), NETWORK["hidden"]),
        nn.ReLU(),
        nn.Linear(NETWORK["hidden"], NETWORK["classes"]),
    )
    net.input_shape, net.classes = NETWORK["input_shape"], NETWORK["classes"]
    return net


def step_seconds(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    started = time.perf_counter()
    F.cross_entropy(net(images), labels).backward()
    return time.perf_counter() - started


def convolution_ratio() -> float:
    x, weight = torch.randn(128, 16, 8, 8), torch.randn(32, 16, 3, 3)

    def seconds() -> float:
        started = time.perf_counter()
        kernels.functional.conv2d(x, weight, padding=1)
        return time.perf_counter() - started

    with kernels.use_backend("triton"):
        own = statistics.median(seconds() for _ in range(11))
        with use_tile(GPU_TILE):
            gpu = statistics.median(seconds() for _ in range(5))
    print(
        f"a convolution with the interpreter's tiles {1e3 * own:.1f} ms, with GPU-sized ones {1e3 * gpu:.0f} ms:",
        end="",
    )
    print(f" ratio {gpu / own:.1f}")
    return gpu / own


def tiles_ratio() -> float:
    net = LeNet(**NETWORK)
    size, classes = DATA["batch_size"], NETWORK["classes"]
    images, labels = torch.randn(size, *NETWORK["input_shape"]), torch.randint(classes, (size,))
    with kernels.use_backend("triton"):
        step_seconds(net, images, labels)
        own = statistics.median(step_seconds(net, images, labels) for _ in range(5))
        with use_tile(GPU_TILE):
            gpu = statistics.median(step_seconds(net, images, labels) for _ in range(3))
    print(f"a step with the interpreter's tiles {own:.3f} s, with GPU-sized ones {gpu:.2f} s: ratio {gpu / own:.1f}")
    return gpu / own


class EpochTimes(pl.Callback):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds.append(time.perf_counter() - self.started)


def epoch_seconds(network: nn.Module) -> list[float]:
    pl.seed_everything(0, verbose=False)
    times = EpochTimes()
    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[times], limit_val_batches=0,
    )  # fmt: skip
    with kernels.use_backend("torch"):
        trainer.fit(Classifier(network, lambda p: torch.optim.AdamW(p, lr=0.015)), DigitsDataModule(**DATA))
    return times.seconds[2:]


def epoch_ratio() -> float:
    """The median over pairs of runs, side by side and in turning order, so that what else the machine does cancels."""
    pairs = []
    for turn in range(PAIRS):
        builders = (lambda: LeNet(**NETWORK), plain_network)[:: 1 if turn % 2 else -1]
        seconds = {builder: statistics.median(epoch_seconds(builder())) for builder in builders}
        plain = seconds.pop(plain_network)
        pairs.append((*seconds.values(), plain))
    ours, plain = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(mine / theirs for mine, theirs in pairs)
    print(f"an epoch on the torch backend {ours:.4f} s, in plain torch.nn {plain:.4f} s: median ratio {ratio:.3f}")
    return ratio


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    reached = [dispatch.report(), convolution_ratio() > 1, tiles_ratio() >= 20, epoch_ratio() <= 1.05]
    sys.exit(0 if all(reached) else 1)
