"""Ratios and a difference, each measured in one run: python -m tests.ratios

- what launches, calls of functions and a training step cost the host, by tests/host_cost.py, and their goals;
- what a call of a layer costs on the torch backend beyond torch.nn's;
- a 3x3 convolution of 16 to 32 channels at 8x8, 128 images, interpreted, with GPU-sized tiles over its own;
- a training step of experiments/digits.yaml, interpreted, with GPU-sized tiles over the interpreter's own tiles;
- an epoch of three recipes on the torch backend, over the same network of torch.nn's layers, both in plain Lightning;
- SciPy's least squares with 8 starts over our batched fit of Gabor functions, 64 kernels of 11x11, and its R2;
- the training of experiments/autoencoder.yaml with its KernelRecorder over that without.
"""

import copy
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # before the first import of triton

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.nn import functional as F

import kernels
from experiments.recipe import data_of_recipe, network_of_recipe
from kernels import layers
from kernels.tuning import Tile, use_tile
from lightning_modules.architectures import LeNet, plain
from lightning_modules.callbacks import KernelRecorder
from lightning_modules.classifier import Classifier
from lightning_modules.gabor import fit_gabor
from lightning_modules.gabor_score import white_noise
from lightning_modules.reconstruction import Reconstruction
from tests.lightning_modules.test_gabor import WINDOW, noisy, random_gabors, scipy_r2

with open("experiments/digits.yaml") as file:
    RECIPE = yaml.safe_load(file)
NETWORK = RECIPE["model"]["init_args"]["network"]["init_args"]
DATA = RECIPE["data"]["init_args"]
GPU_TILE = Tile(128, 64, 32)
RECIPES = [Path(f"experiments/{name}.yaml") for name in ("digits", "all_cnn", "resnet20")]
EPOCHS = 4
BATCHES = 20
PAIRS = 10
AUTOENCODER = Path("experiments/autoencoder.yaml")


def host_cost() -> bool:
    """In a process of its own, as it does not interpret; True if all goals are reached."""
    return subprocess.run([sys.executable, "-m", "tests.host_cost"], check=False).returncode == 0


def call_difference() -> float:
    """Microseconds of a convolution's call on the torch backend beyond torch.nn's, in short rounds that take turns."""
    ours, theirs = (kind(4, 4, 3, padding=1).requires_grad_(False) for kind in (layers.Conv2d, nn.Conv2d))
    x = torch.randn(2, 4, 8, 8)
    least = {ours: float("inf"), theirs: float("inf")}
    with kernels.use_backend("torch"):
        for _ in range(150):
            for layer in least:
                started = time.perf_counter()
                for _ in range(50):
                    layer(x)
                least[layer] = min(least[layer], (time.perf_counter() - started) / 50 * 1e6)
    difference = least[ours] - least[theirs]
    print(f"a call on the torch backend: {difference:.1f} us over torch.nn's {least[theirs]:.1f} us")
    return difference


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


def gabor_ratio() -> bool:
    """Half of the kernels are Gabor functions in noise of half their energy, half are noise."""
    gabors = noisy(random_gabors(32, seed=1).kernels(WINDOW), 0.5, seed=2)
    windows = torch.cat([gabors, white_noise(32, WINDOW, torch.Generator().manual_seed(3))])
    fit_gabor(windows)
    ours = []
    for _ in range(7):
        started = time.perf_counter()
        r2 = fit_gabor(windows).r2.mean().item()
        ours.append(time.perf_counter() - started)
    started = time.perf_counter()
    theirs_r2 = scipy_r2(windows).mean().item()
    own, theirs = statistics.median(ours), time.perf_counter() - started
    print(
        f"64 Gabor fits of 11x11 {own:.3f} s, SciPy's {theirs:.2f} s: ratio {theirs / own:.0f}; "
        f"mean R2 {r2:.4f} and {theirs_r2:.4f}"
    )
    return own <= 0.2 and theirs >= 20 * own and abs(r2 - theirs_r2) <= 0.005


def recording_ratio() -> float:
    """Training of the sparse autoencoder's network with TensorBoard and its KernelRecorder, over the same without.

    What the recorder takes is the time in its hooks, between which it does nothing: pairs of trainings, of 20 s each,
    differ by more.
    """
    with open(AUTOENCODER) as file:
        recipe = yaml.safe_load(file)
    options = next(
        callback["init_args"]
        for callback in recipe["trainer"]["callbacks"]
        if "KernelRecorder" in callback["class_path"]
    )
    recorder, spent = KernelRecorder(**options), []

    def timed(hook: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            started = time.perf_counter()
            hook(*arguments)
            spent.append(time.perf_counter() - started)

        return call

    for hook in ("on_train_start", "on_train_batch_end", "on_train_epoch_end", "on_train_end"):
        setattr(recorder, hook, timed(getattr(recorder, hook)))
    pl.seed_everything(0, verbose=False)
    rate = recipe["model"]["init_args"]["optimizer"]["init_args"]["lr"]
    module = Reconstruction(network_of_recipe(AUTOENCODER), lambda p: torch.optim.Adam(p, lr=rate))
    with tempfile.TemporaryDirectory() as directory:
        trainer = pl.Trainer(
            max_epochs=recipe["trainer"]["max_epochs"], accelerator="cpu", logger=TensorBoardLogger(directory),
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[recorder],
        )  # fmt: skip
        data = data_of_recipe(AUTOENCODER)
        data.setup("fit")
        started = time.perf_counter()
        with kernels.use_backend("torch"):
            trainer.fit(module, data)
        training = time.perf_counter() - started
    ratio = training / (training - sum(spent))
    print(
        f"training of the sparse autoencoder {training:.2f} s, of which its kernels took {sum(spent):.2f} s to record: "
        f"ratio {ratio:.3f}"
    )
    return ratio


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    reached = [host_cost(), call_difference() <= 10, convolution_ratio() > 1, tiles_ratio() >= 20]
    reached += [epoch_ratio(recipe) <= 1.05 for recipe in RECIPES]
    reached += [gabor_ratio(), recording_ratio() <= 1.03]
    sys.exit(0 if all(reached) else 1)
