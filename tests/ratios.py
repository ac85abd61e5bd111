"""Ratios and a difference, each measured in one run: python -m tests.ratios

- what a call of a convolution costs beyond ATen's, of which tests/dispatch.py says more;
- a 3x3 convolution of 16 to 32 channels at 8x8, 128 images, interpreted, with GPU-sized tiles over its own;
- a training step of experiments/digits.yaml, interpreted, with GPU-sized tiles over the interpreter's own tiles;
- an epoch of three recipes on the torch backend, over the same network of torch.nn's layers, both in plain Lightning.
"""

import copy
import logging
import os
import statistics
import sys
import time
import warnings
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"  # before the first import of triton

import lightning.pytorch as pl
import torch
import yaml
from torch import nn
from torch.nn import functional as F

import kernels
from experiments.recipe import data_of_recipe, network_of_recipe
from kernels.tuning import Tile, use_tile
from lightning_modules.architectures import LeNet, plain
from lightning_modules.classifier import Classifier
from tests import dispatch

with open("experiments/digits.yaml") as file:
    RECIPE = yaml.safe_load(file)
NETWORK = RECIPE["model"]["init_args"]["network"]["init_args"]
DATA = RECIPE["data"]["init_args"]
GPU_TILE = Tile(128, 64, 32)
RECIPES = [Path(f"experiments/{name}.yaml") for name in ("digits", "all_cnn", "resnet20")]
EPOCHS = 4
BATCHES = 20
PAIRS = 10


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


def epoch_seconds(network: nn.Module, recipe: Path) -> float:
    """The median epoch, of at most BATCHES steps, of a network on the data of a recipe."""
    pl.seed_everything(0, verbose=False)
    times = EpochTimes()
    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[times], limit_train_batches=BATCHES, limit_val_batches=0,
    )  # fmt: skip
    with kernels.use_backend("torch"):
        trainer.fit(Classifier(network, lambda p: torch.optim.AdamW(p, lr=1e-3)), data_of_recipe(recipe))
    return statistics.median(times.seconds[1:])


def epoch_ratio(recipe: Path) -> float:
    """The median over pairs of runs, side by side and in turning order, so that what else the machine does cancels."""
    network = network_of_recipe(recipe)
    pairs = []
    for turn in range(PAIRS):
        makers = (copy.deepcopy, plain)[:: 1 if turn % 2 else -1]
        seconds = {make: epoch_seconds(make(network), recipe) for make in makers}
        pairs.append((seconds[copy.deepcopy], seconds[plain]))
    ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(mine / its for mine, its in pairs)
    print(
        f"{recipe.stem}: an epoch on the torch backend {ours:.4f} s, in plain torch.nn {theirs:.4f} s: "
        f"median ratio {ratio:.3f}"
    )
    return ratio


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    reached = [dispatch.report(), convolution_ratio() > 1, tiles_ratio() >= 20]
    reached += [epoch_ratio(recipe) <= 1.05 for recipe in RECIPES]
    sys.exit(0 if all(reached) else 1)
