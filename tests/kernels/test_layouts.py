"""Strides of outputs and gradients: torch's, for inputs in memory of every order."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import functional
from kernels.backend import use_backend
from kernels.shape import FORMATS
from tests.kernels.problems import lay_out


def chunk(x: Tensor) -> Tensor:
    """x as every other half of the channels of a channels_last tensor."""
    return torch.cat([x, x], 1).contiguous(memory_format=FORMATS[x.dim()]).chunk(2, 1)[1]


def crop(x: Tensor) -> Tensor:
    """x as a part of a larger channels_last tensor."""
    return F.pad(x, (1, 2)).contiguous(memory_format=FORMATS[x.dim()])[..., 1:-2]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: lambda x, name=name: lay_out(x, name) for name in ("contiguous", "channels_last", "strided", "expanded")},
    "channels_last chunk": chunk,
    "channels_last crop": crop,
    "channels_last half batch": lambda x: torch.cat([x, x]).contiguous(memory_format=FORMATS[x.dim()])[::2],
    "contiguous chunk": lambda x: torch.cat([x, x], 1).chunk(2, 1)[1],
    "transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
}


class Operation(NamedTuple):
    """An operation on two axes and its twin in torch; `weight` is the shape of a second argument for C channels."""

    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor]
    weight: Callable[[int], tuple[int, ...]] | None = None


def named(name: str, *args, weight: Callable[[int], tuple[int, ...]] | None = None) -> Operation:
    apply = lambda module: lambda x, *w: getattr(module, name)(x, *w, *args)  # noqa: E731
    return Operation(apply(functional), apply(F), weight)


def normalise(module, training: bool) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        ones = x.new_ones(x.shape[1])
        return module.batch_norm(x, ones, ones.clone(), ones, ones, training)

    return function


OPERATIONS = {
    "conv2d": named("conv2d", weight=lambda channels: (6, channels, 3, 3)),
    "conv2d 1x1": named("conv2d", weight=lambda channels: (6, channels, 1, 1)),
    "conv2d over all": named("conv2d", weight=lambda channels: (6, channels, 6, 5)),
    "conv_transpose2d": named("conv_transpose2d", weight=lambda channels: (channels, 6, 3, 3)),
    "conv2d of a channels_last weight": named("conv2d", weight=lambda channels: (6, channels, 3, 3)),
    "max_pool2d": named("max_pool2d", 2),
    "avg_pool2d": named("avg_pool2d", 2),
    "adaptive_max_pool2d": named("adaptive_max_pool2d", 2),
    "adaptive_avg_pool2d": named("adaptive_avg_pool2d", 2),
    "adaptive_max_pool2d of all": named("adaptive_max_pool2d", 1),
    "batch_norm in training": Operation(normalise(functional, True), normalise(F, True)),
    "batch_norm": Operation(normalise(functional, False), normalise(F, False)),
    "max_pool3d": named("max_pool3d", 2),
    "batch_norm over three axes": Operation(normalise(functional, True), normalise(F, True)),
}


def strides(x: Tensor) -> tuple[object, ...]:
    """Return the layout of x in a form to compare: strides of an axis with one element count nothing."""
    formats = (torch.contiguous_format, FORMATS[x.dim()])
    return *[x.is_contiguous(memory_format=f) for f in formats], *[
        s for s, extent in zip(x.stride(), x.shape, strict=True) if extent > 1 and x.shape[1] > 1
    ]


def results(function: Callable[..., Tensor], x: Tensor, *weight: Tensor) -> list[Tensor]:
    """The output, and gradients of the input from one that is contiguous and one that is channels_last."""
    x = x.detach().requires_grad_()
    y = function(x, *weight)
    dy = torch.ones(y.shape, device=y.device)
    dys = [dy.contiguous(memory_format=f) for f in (torch.contiguous_format, FORMATS[y.dim()])]
    return [y.detach(), *[torch.autograd.grad(y, x, dy, retain_graph=True)[0] for dy in dys]]


@pytest.mark.parametrize("choice", ["auto", "torch"])
@pytest.mark.parametrize("channels", [4, 1])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_strides_are_torchs(name, layout, channels, choice, device):
    operation = OPERATIONS[name]
    x = LAYOUTS[layout](
        torch.randn(2, channels, *((4,) if "3" in name or "three" in name else ()), 6, 5, device=device)
    )
    weights = [] if operation.weight is None else [torch.randn(operation.weight(channels), device=device)]
    if "channels_last weight" in name:
        weights = [w.contiguous(memory_format=torch.channels_last) for w in weights]
    with use_backend(choice):
        ours = results(operation.ours, x, *weights)
    for found, expected in zip(ours, results(operation.theirs, x, *weights), strict=True):
        torch.testing.assert_close(found, expected)
        assert strides(found) == strides(expected), (found.stride(), expected.stride())


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "last" in name])
@pytest.mark.parametrize("name", ["avg_pool3d", "adaptive_avg_pool3d", "adaptive_max_pool3d"])
def test_channels_last_is_kept_where_torch_copies(name, layout, device, triton_only):
    x = LAYOUTS[layout](torch.randn(2, 4, 4, 6, 5, device=device))
    for result in results(lambda x: getattr(functional, name)(x, 2), x):
        assert result.is_contiguous(memory_format=torch.channels_last_3d)
