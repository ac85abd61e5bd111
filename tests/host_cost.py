"""What a launch costs the host, on Triton's own launch path with a stub driver: python -m tests.host_cost

Kernels are compiled for sm_90 and none runs, so a call's time is all the host's. Operators take CPU tensors of next to
no data, as ATen's beside them do. A training step of ResNet-50 is its forward and backward pass.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

os.environ.pop("TRITON_INTERPRET", None)  # before the first import of triton

import torch
import torch.nn.functional as F
import triton
from torch import Tensor, nn

import kernels
from experiments.gpu.stub import stubbed
from kernels import backend, conv, functional, norm, pool, tuning
from kernels.checks import make_window
from kernels.tile import Tile

CALLS = 20
ROUNDS = 60
TARGET = "sm_90"


class Goal(NamedTuple):
    """A call, and the microseconds that it may take."""

    call: Callable[[], object]
    most: float


def draw(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    x = torch.zeros(shape, dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def launchers() -> dict[str, Goal]:
    """Return the launchers of every kernel by name."""
    x, weight, bias, image = draw(2, 64, 8, 8), draw(64, 64, 3, 3), draw(64), draw(2, 3, 16, 16)
    window, pooling = make_window("host_cost", (3, 3), 1, 1, 1), make_window("host_cost", (2, 2), 2, 0, 1)
    stem, weight_of_stem = make_window("host_cost", (7, 7), 2, 3, 1), draw(64, 3, 7, 7)
    largest, taps = pool.max_pool(x, pooling, (4, 4))
    y, mean, var = norm.batch_norm(x, bias, bias, None, None, None, None, 1e-5, True)

    def by_tma() -> object:
        with tuning.use_tile(Tile(128, 64, 64, 4, 3, boxes=True)):
            return conv.forward(x, weight, None, None, window, False)

    return {
        "convolution": Goal(lambda: conv.forward(x, weight, bias, None, window, True), 8),
        "convolution by TMA": Goal(by_tma, 13),
        "convolution of 3 channels": Goal(lambda: conv.forward(image, weight_of_stem, None, None, stem, False), 16),
        "its transpose": Goal(lambda: conv.transpose(x, weight, None, None, window, (8, 8), False), 8),
        "weight gradient": Goal(lambda: conv.weight_gradient(x, x, None, window, False), 8),
        "weight and bias gradient": Goal(lambda: conv.weight_gradient(x, x, None, window, True), 8),
        "max pooling": Goal(lambda: pool.max_pool(x, pooling, (4, 4)), 8),
        "max pooling's gradient": Goal(lambda: pool.max_pool_gradient(largest, taps, pooling, (8, 8)), 8),
        "batch norm": Goal(lambda: norm.batch_norm(x, bias, bias, None, None, None, None, 1e-5, True), 16),
        "batch norm's gradient": Goal(
            lambda: norm.batch_norm_gradient(y, x, bias, y, mean, var, 1e-5, True, True, False), 16
        ),
    }


def operators() -> dict[str, Goal]:
    """Return public functions beside torch's, forward and backward, by name."""
    x, weight, dy = draw(2, 64, 8, 8).requires_grad_(), draw(64, 64, 3, 3).requires_grad_(), draw(2, 64, 8, 8)
    scale, shift = (draw(64, dtype=torch.float32).requires_grad_() for _ in range(2))
    mean, var = (draw(64, dtype=torch.float32) for _ in range(2))
    conv2d = lambda module: module.conv2d(x, weight, None, padding=1)  # noqa: E731
    batch_norm = lambda module: module.batch_norm(x, mean, var, scale, shift, training=True)  # noqa: E731
    both = lambda function, module, *inputs: torch.autograd.grad(function(module), inputs, dy)  # noqa: E731
    most = float("inf")
    return {
        "conv2d": Goal(lambda: conv2d(functional), 20),
        "conv2d of ATen": Goal(lambda: conv2d(F), most),
        "conv2d and gradients": Goal(lambda: both(conv2d, functional, x, weight), 75),
        "conv2d of ATen and gradients": Goal(lambda: both(conv2d, F, x, weight), most),
        "batch_norm and gradients": Goal(lambda: both(batch_norm, functional, x, scale, shift), 130),
        "batch_norm of ATen and gradients": Goal(lambda: both(batch_norm, F, x, scale, shift), most),
    }


def microseconds(call: Callable[[], object]) -> float:
    """Return what a call takes, the least of many short rounds: what else the machine does only adds."""
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(CALLS):
            call()
        best = min(best, (time.perf_counter() - started) / CALLS)
    return best * 1e6


def resnet50_step() -> tuple[Callable[[], object], nn.Module]:
    """Return a forward and backward pass of ResNet-50 in half precision on one small image, and the network."""
    from lightning_modules.architectures import ResNet50

    net = ResNet50().half().to(memory_format=torch.channels_last)
    images = draw(2, 3, 32, 32)

    def step() -> None:
        net.zero_grad(set_to_none=True)
        net(images).sum().backward()

    return step, net


@contextmanager
def on_the_stub() -> Iterator[Any]:
    with stubbed(TARGET) as cuda, kernels.use_backend("triton"):
        yield cuda


def report() -> bool:
    """Print what launchers, operators and a step take; return True if all stay within their goals."""
    reached = True
    with on_the_stub():
        print(f"host time of a call, Triton {triton.__version__} on a stub driver, torch {torch.__version__}:")
        for name, (call, most) in (launchers() | operators()).items():
            call()
            taken = microseconds(call)
            reached &= taken <= most
            print(f"  {name:34} {taken:6.1f} us" + (f" (goal {most:.0f})" if most < float("inf") else ""))
        step, _ = resnet50_step()
        step()
        step()
        before = backend.launch_count()
        taken = min(_seconds(step) for _ in range(10))
        launches = (backend.launch_count() - before) // 10
        reached &= taken <= 20e-3
        print(f"  a step of ResNet-50: {1e3 * taken:.1f} ms (goal 20), {launches} launches")
    return reached


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    raise SystemExit(0 if report() else 1)
