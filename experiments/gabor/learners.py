"""What kernels are learned by: two recipes, chance, and the covariance of pixels."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from experiments.gabor.layers import first_layer, read_state
from experiments.recipe import data_of_recipe, network_of_recipe
from experiments.results import recipe
from experiments.results.records import Job
from experiments.results.training import trained
from lightning_modules.data.patches import PATCHES

AUTOENCODER = "autoencoder"
RECIPES = {"sparse autoencoder": AUTOENCODER, "supervised": "gabor_supervised"}

Learner = Callable[[int], Tensor]


def learners() -> dict[str, Learner]:
    """By name, what gives a first layer's weight [O, C, kh, kw] for a seed.

    Raises:
        ValueError: there is no such recipe.
    """
    found: dict[str, Learner] = {}
    for name, file in RECIPES.items():
        found[name] = partial(after_training, recipe(file))
        found[f"{name}, untrained"] = partial(before_training, recipe(file))
    return found | {"principal components": partial(principal_components, recipe(AUTOENCODER))}


def after_training(path: Path, seed: int) -> Tensor:
    """The weight of a recipe's first layer after its last epoch, on the torch backend.

    Raises:
        ValueError: the training failed, or keeps no checkpoint of that.
        KeyboardInterrupt: when interrupted, after the training has ended.
    """
    directory = Path(tempfile.mkdtemp(prefix="convnets-gabor-"))
    trained(Job(path, "ours", seed), directory)  # of what failed it can be read why
    weight = first_layer(read_state(directory / "run" / "checkpoints" / "last.ckpt"))
    shutil.rmtree(directory)
    return weight


def before_training(path: Path, seed: int) -> Tensor:
    """The weight that the training of a recipe starts from."""
    pl.seed_everything(seed, verbose=False)
    return first_layer(network_of_recipe(path).state_dict())


def principal_components(path: Path, seed: int) -> Tensor:
    """As many principal components as the first layer of a recipe has kernels, of patches of their size.

    They are those of largest variance, of the recipe's photographs as they are; the seed says which patches.
    """
    kernels, _, *window = before_training(path, seed).shape
    data = data_of_recipe(path, whitening="none", size=window[0], batch_size=PATCHES, train_samples=PATCHES)
    data.setup("fit")
    pl.seed_everything(seed, verbose=False)
    patches, _ = next(iter(data.train_dataloader()))  # [N, C, kh, kw]
    components = PCA(kernels).fit(patches.flatten(1).numpy()).components_
    return torch.from_numpy(components).view(kernels, *patches.shape[1:])
