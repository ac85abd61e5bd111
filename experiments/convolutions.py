"""The convolutions of an architecture, as problems to time, inspect or tune: found by running it without memory.

    for layer in convolutions_of("resnet50", batch=32, dtype=torch.float16):
        print(layer.problem, layer.names)

Importing this is quick, so that a command's help can name the architectures: torch and the kernels are imported by use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import nn

    from kernels.problem import Problem


@dataclass(frozen=True)
class Layer:
    """A problem, and the layers of an architecture that have it: their names in its state_dict, in order."""

    problem: Problem
    names: tuple[str, ...]

    @property
    def count(self) -> int:
        return len(self.names)


class Architecture(NamedTuple):
    """A network to be built, and the images that it takes: (C, H, W)."""

    build: Callable[[], nn.Module]
    input_shape: tuple[int, int, int]


def _torchvision(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from torchvision import models

        network: nn.Module = models.get_model(name, weights=None, **arguments)
        return network

    return build


def _ours(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from lightning_modules import architectures

        network: nn.Module = getattr(architectures, name)(**arguments)
        return network

    return build


ARCHITECTURES = {
    "resnet50": Architecture(_torchvision("resnet50"), (3, 224, 224)),
    "googlenet": Architecture(_torchvision("googlenet", aux_logits=True, init_weights=False), (3, 224, 224)),
    "alexnet": Architecture(_torchvision("alexnet"), (3, 224, 224)),
    "allcnn": Architecture(_ours("AllCNN"), (3, 32, 32)),
    "lenet": Architecture(_ours("LeNet", input_shape=(1, 28, 28), kernel_sizes=(5, 5)), (1, 28, 28)),
}


def convolutions_of(name: str, batch: int, dtype: torch.dtype) -> list[Layer]:
    """The distinct problems of the convolutional and linear layers of one of ARCHITECTURES, in order of appearance.

    It runs in training mode, so that GoogLeNet has its auxiliary heads. Biases and what is fused are left out.

    Raises:
        ValueError: for an architecture that is not known, or a batch < 1.
    """
    import torch

    if name not in ARCHITECTURES:
        raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {name!r}")
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    with torch.device("meta"):
        network = ARCHITECTURES[name].build()
    return convolutions_in(network, (batch, *ARCHITECTURES[name].input_shape), dtype)


def convolutions_in(network: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> list[Layer]:
    """Return the same of a network on the device "meta", for images of a shape [N, C, H, W]."""
    import torch
    from torch import nn

    import kernels

    found: dict[Problem, list[str]] = {}
    with torch.device("meta"), kernels.use_backend("torch"), torch.no_grad():
        for path, module in network.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):

                def record(module: nn.Module, inputs: tuple[torch.Tensor], _: object, path: str = path) -> None:
                    found.setdefault(_problem(module, inputs[0], dtype), []).append(path)

                module.register_forward_hook(record)
        network.train()(torch.empty(shape))
    return [Layer(problem, tuple(names)) for problem, names in found.items()]


def _problem(layer: nn.Module, x: torch.Tensor, dtype: torch.dtype) -> Problem:
    """The problem that a Conv2d has for x [N, C, H, W], or a Linear for x [*, C]."""
    from torch import nn

    from kernels.checks import make_window
    from kernels.problem import Problem
    from kernels.shape import Window

    if isinstance(layer, nn.Conv2d):
        window = make_window(
            "conv2d", layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, tile=()
        )
        return Problem(x.shape[0], x.shape[1], layer.out_channels, tuple(x.shape[2:]), window, dtype)
    assert isinstance(layer, nn.Linear)
    return Problem(x.shape[:-1].numel(), x.shape[-1], layer.out_features, (), Window((), (), (), ()), dtype)
