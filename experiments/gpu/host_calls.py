"""Calls on next to no data, whose time is the host's: launchers, public functions beside torch's, a training step.

With each is a goal in microseconds, for Triton's launch path with a driver that does nothing (`experiments.gpu.stub`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import boxes, conv, functional, norm, norm_gradient, pool, tuning
from kernels.checks import make_window
from kernels.tile import Tile

EPS = 1e-5
STEP_GOAL = 20e-3  # seconds of a step of ResNet-50, forward and backward


class HostCall(NamedTuple):
    """A call, the microseconds that it may take (infinite of another library's), and the tile that it is made with."""

    call: Callable[[], object]
    goal: float = float("inf")
    tile: Tile | None = None

    def measured(self, seconds_of: Callable[[Callable[[], object]], float]) -> float:
        """Return what `seconds_of` measures of the call, after a first one, which compiles."""
        with tuning.use_tile(self.tile) if self.tile is not None else nullcontext():
            self.call()
            return seconds_of(self.call)


def draw(device: str, *shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    x = torch.zeros(shape, device=device, dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def launchers(device: str) -> dict[str, HostCall]:
    """Return the launchers of every kernel by name; one loads by TMA where the target has it."""
    x, weight, bias, image = (draw(device, *s) for s in ((2, 64, 8, 8), (64, 64, 3, 3), (64,), (2, 3, 16, 16)))
    stem = draw(device, 64, 3, 7, 7)
    window, wide = make_window("host", (3, 3), 1, 1, 1), make_window("host", (7, 7), 2, 3, 1)
    pooling = make_window("host", (2, 2), 2, 0, 1)
    largest, taps = pool.max_pool(x, pooling, (4, 4))
    y, mean, var = norm.batch_norm(x, bias, bias, None, None, None, None, EPS, True)

    calls = {
        "convolution": HostCall(lambda: conv.forward(x, weight, bias, None, window, True), 8),
        "convolution of 3 channels": HostCall(lambda: conv.forward(image, stem, None, None, wide, False), 16),
        "its transpose": HostCall(lambda: conv.transpose(x, weight, None, None, window, (8, 8), False), 8),
        "weight gradient": HostCall(lambda: conv.weight_gradient(x, x, None, window, False), 8),
        "weight and bias gradient": HostCall(lambda: conv.weight_gradient(x, x, None, window, True), 8),
        "max pooling": HostCall(lambda: pool.max_pool(x, pooling, (4, 4)), 8),
        "its gradient": HostCall(lambda: pool.max_pool_gradient(largest, taps, pooling, (8, 8)), 8),
        "batch norm": HostCall(lambda: norm.batch_norm(x, bias, bias, None, None, None, None, EPS, True), 16),
        "batch norm's gradient": HostCall(
            lambda: norm_gradient.batch_norm_gradient(y, x, bias, y, mean, var, EPS, True, True, False), 16
        ),
    }
    if boxes.has_tma(tuning.target()):
        by_tma = lambda: conv.forward(x, weight, None, None, window, False)  # noqa: E731
        calls["convolution by TMA"] = HostCall(by_tma, 13, Tile(128, 64, 64, 4, 3, boxes=True))
    return calls


def operators(device: str, dtype: torch.dtype = torch.float16) -> dict[str, HostCall]:
    """Return public functions beside torch's, forward and backward, by name."""
    x, weight, dy = (draw(device, *s, dtype=dtype) for s in ((2, 64, 8, 8), (64, 64, 3, 3), (2, 64, 8, 8)))
    per_channel = [draw(device, 64, dtype=torch.float32) for _ in range(4)]
    scale, shift, mean, var = per_channel
    for t in (x, weight, scale, shift):
        t.requires_grad_()

    def with_gradients(function: Callable[[], Tensor], *inputs: Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(), inputs, dy)

    ours = lambda: functional.conv2d(x, weight, None, padding=1)  # noqa: E731
    theirs = lambda: F.conv2d(x, weight, None, padding=1)  # noqa: E731
    our_norm = lambda: functional.batch_norm(x, mean, var, scale, shift, training=True)  # noqa: E731
    their_norm = lambda: F.batch_norm(x, mean, var, scale, shift, training=True)  # noqa: E731
    return {
        "conv2d": HostCall(ours, 20),
        "conv2d of torch": HostCall(theirs),
        "conv2d with gradients": HostCall(with_gradients(ours, x, weight), 75),
        "conv2d of torch with gradients": HostCall(with_gradients(theirs, x, weight)),
        "batch_norm with gradients": HostCall(with_gradients(our_norm, x, scale, shift), 130),
        "batch_norm of torch with gradients": HostCall(with_gradients(their_norm, x, scale, shift)),
    }


def resnet50_step(device: str) -> Callable[[], object]:
    """Return a forward and backward pass of ResNet-50 in half precision, on two small images."""
    from lightning_modules.architectures import ResNet50

    network = ResNet50().to(device, torch.float16).to(memory_format=torch.channels_last)
    images = draw(device, 2, 3, 32, 32)

    def step() -> None:
        network.zero_grad(set_to_none=True)
        network(images).sum().backward()

    return step
