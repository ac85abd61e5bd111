"""Kernels that other batches and image sizes need beside those of a first step; printed as JSON, for test_plan.py.

python -m tests.kernels.specialisations
"""

from __future__ import annotations

import json
import os

os.environ.pop("TRITON_INTERPRET", None)  # before the first import of triton

from torch import nn  # noqa: E402

from experiments.precompile.collect import collecting  # noqa: E402
from experiments.precompile.step import Batch, run_batches  # noqa: E402
from lightning_modules.architectures import AllCNN, ResNet18, ResNet50  # noqa: E402

BATCHES = (9, 17, 33, 64, 80, 128)


def kernels_of(network: nn.Module, *shape: int) -> dict[str, str]:
    """Return the kernels of a training step and an evaluation on images [N, C, H, W]: names by their keys."""
    with collecting("sm_90") as found:
        run_batches(network, [Batch(shape, training=True), Batch(shape, training=False)], "float16")
    return {key: kernel.name for key, kernel in found.items()}


def main() -> None:
    other: dict[str, dict[str, list[str]]] = {}
    for network in (ResNet50(), ResNet18(), AllCNN()):
        channels, *size = network.input_shape
        first = kernels_of(network, 32, channels, *size)
        shapes = [(batch, channels, *size) for batch in BATCHES]
        if isinstance(network, ResNet18 | ResNet50):
            shapes += [(32, channels, side, side) for side in (160, 192, 225, 256)]
        found = other[type(network).__name__] = {"first": list(first.values())}
        for shape in shapes:
            mine = kernels_of(network, *shape)
            found["x".join(map(str, shape))] = sorted(name for key, name in mine.items() if key not in first)
    print(json.dumps(other))


if __name__ == "__main__":
    main()
