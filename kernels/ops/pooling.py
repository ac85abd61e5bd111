"""The operators of max and average pooling; each gradient is linear, and its own gradient is its transpose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels import pool, reference
from kernels.ops.registry import operator
from kernels.shape import Window, fake, in_layout, memory_format, tap_dtype


@operator
def max_pool(x: Tensor, window: Sequence[int], size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """See `kernels.pool.max_pool`."""
    return pool.max_pool(x, Window.from_flat(window), size)


@max_pool.fake
def _(x, window, size):
    y = fake(x, (*x.shape[:2], *size))
    return y, torch.empty_like(y, dtype=tap_dtype(Window.from_flat(window).taps))


@operator
def max_pool_gradient(dy: Tensor, taps: Tensor, window: Sequence[int], size: Sequence[int]) -> Tensor:
    """See `kernels.pool.max_pool_gradient`."""
    return pool.max_pool_gradient(dy, taps, Window.from_flat(window), size)


@max_pool_gradient.fake
def _(dy, taps, window, size):
    return fake(dy, (*dy.shape[:2], *size))


def _max_pool_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.window, _ = inputs
    ctx.save_for_backward(output[1])
    ctx.size, ctx.layout = x.shape[2:], memory_format(x)


def _max_pool_backward(ctx: Any, dy: Tensor, _: None) -> tuple[Tensor | None, ...]:
    (taps,) = ctx.saved_tensors
    return in_layout(ctx.layout, max_pool_gradient, dy, taps, ctx.window, ctx.size), None, None


max_pool.differentiate(_max_pool_backward, _max_pool_context)


def _max_pool_gradient_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, taps, ctx.window, ctx.size = inputs
    ctx.save_for_backward(taps)


def _max_pool_gradient_backward(ctx: Any, ddx: Tensor) -> tuple[Tensor | None, ...]:
    (taps,) = ctx.saved_tensors
    index = reference.indices(taps, Window.from_flat(ctx.window), ctx.size)
    return ddx.flatten(2).gather(2, index.flatten(2)).view(taps.shape), None, None, None


max_pool_gradient.differentiate(_max_pool_gradient_backward, _max_pool_gradient_context)


@operator
def average_pool(x: Tensor, window: Sequence[int], size: Sequence[int], divisor: int, padded: bool) -> Tensor:
    """See `kernels.pool.average_pool`."""
    return pool.average_pool(x, Window.from_flat(window), size, divisor, padded)


@operator
def average_pool_gradient(dy: Tensor, window: Sequence[int], size: Sequence[int], divisor: int, padded: bool) -> Tensor:
    """See `kernels.pool.average_pool_gradient`."""
    return pool.average_pool_gradient(dy, Window.from_flat(window), size, divisor, padded)


@average_pool.fake
@average_pool_gradient.fake
def _(x, window, size, divisor, padded):
    return fake(x, (*x.shape[:2], *size))


def _average_pool_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.window, _, ctx.divisor, ctx.padded = inputs
    ctx.size, ctx.layout = x.shape[2:], memory_format(x)


def _average_pool_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dx = in_layout(ctx.layout, average_pool_gradient, dy, ctx.window, ctx.size, ctx.divisor, ctx.padded)
    return dx, None, None, None, None


def _average_pool_gradient_backward(ctx: Any, ddx: Tensor) -> tuple[Tensor | None, ...]:
    return average_pool(ddx, ctx.window, ctx.size, ctx.divisor, ctx.padded), None, None, None, None


average_pool.differentiate(_average_pool_backward, _average_pool_context)
average_pool_gradient.differentiate(_average_pool_gradient_backward, _average_pool_context)
