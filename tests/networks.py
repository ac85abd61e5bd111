"""Whole networks: small ones to test, and the comparison of a step of training with the truth."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules import architectures
from tests.closeness import assert_as_exact_as_torch
from tests.determinism import backend_to_compare

ARCHITECTURES = [name for name in architectures.__all__ if isinstance(getattr(architectures, name), type)]

# As narrow, and with images as small, as leaves something to each layer; without dropout, to be compared.
SMALL: dict[str, dict[str, Any]] = {
    "AlexNet": {"input_shape": (3, 63, 63), "classes": 5, "dropout": 0.0, "width": 1 / 16},
    "AllCNN": {"input_shape": (3, 12, 12), "classes": 5, "dropout": (0.0, 0.0), "filters": (8, 12)},
    "CifarResNet": {"input_shape": (3, 12, 12), "classes": 5, "blocks": 1, "filters": (4, 8, 12)},
    "ConvNet": {"input_shape": (3, 12, 12), "classes": 5},
    "GoogLeNet": {"input_shape": (3, 40, 40), "classes": 5, "dropout": (0.0, 0.0), "width": 1 / 16},
    "LeNet": {"input_shape": (1, 12, 12), "classes": 5},
    "LeNet5": {"input_shape": (1, 32, 32), "classes": 5},
    "MaxoutNet": {"input_shape": (3, 12, 12), "classes": 5, "dropout": (0.0, 0.0), "filters": (4, 6, 6), "hidden": 10},
    "ResNet18": {"input_shape": (3, 40, 40), "classes": 5, "width": 1 / 8},
    "ResNet50": {"input_shape": (3, 40, 40), "classes": 5, "width": 1 / 16},
    "SmallInception": {"input_shape": (3, 12, 12), "classes": 5, "width": 1 / 8},
    "VGG11": {"input_shape": (3, 32, 32), "classes": 5, "dropout": 0.0, "width": 1 / 16},
}


def small(name: str) -> nn.Module:
    """An architecture as in SMALL, or as it is by default."""
    network: nn.Module = getattr(architectures, name)(**SMALL.get(name, {}))
    return network


def outputs_of(network: nn.Module, *inputs: Tensor, **options: Any) -> list[Tensor]:
    """What a network gives, be it one tensor or several."""
    y = network(*inputs, **options)
    return [y] if isinstance(y, Tensor) else list(y)


def run(model: nn.Module, x: Tensor, choice: str) -> dict[str, Tensor]:
    """Output, gradients of input and parameters, and buffers after a step in the mode that the model is in."""
    model = copy.deepcopy(model)
    x = x.clone().requires_grad_()
    with backend_to_compare(choice):
        y = torch.cat([output.flatten() for output in outputs_of(model, x)])
        weights = torch.linspace(-1, 1, y.numel(), device=x.device, dtype=x.dtype)
        (y * weights).sum().backward()
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    return {"output": y.detach(), "input": x.grad, **gradients, **dict(model.named_buffers())}


def joined(results: dict[str, Tensor], keys: list[str]) -> Tensor:
    return torch.cat([results[key].flatten() for key in keys])


def assert_same_step(ours: dict[str, Tensor], theirs: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    """The tolerance rule for the output, for all gradients and for all running statistics.

    The gradients are one vector: of a bias before a batch norm it is zero, and its error says nothing by itself.
    """
    assert ours.keys() == theirs.keys()
    floating = [key for key in ours if ours[key].is_floating_point()]
    assert all(torch.equal(ours[key], theirs[key]) for key in ours.keys() - set(floating))
    statistics = [key for key in floating if "running" in key]
    gradients = [key for key in floating if key != "output" and key not in statistics]
    for keys in filter(None, (["output"], gradients, statistics)):
        compared = [joined(results, keys) for results in (ours, theirs, truth)]
        assert_as_exact_as_torch(*compared, compared[-1].abs())
