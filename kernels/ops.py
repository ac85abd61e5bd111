"""The registry: every operation as a torch.library operator, with its fake, its gradient and its FLOP formula.

The schemas hold a window as flat lists (`Window.flat_padding`), since a schema knows no tuples. Gradients are
operators of their own, called only where they are needed. Autocast casts in `kernels.functional`, once, to the type
that the user chose; an operator runs in the type it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kernels import conv, pool
from kernels.shape import Window, channels_first, flat_window, lift, memory_format, new_channels_last, tap_dtype


@torch.library.custom_op("convnets::convolution", mutates_args=())
def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, relu: bool,
) -> Tensor:  # fmt: skip
    """See `kernels.conv.forward`."""
    return conv.forward(x, weight, bias, flat_window(weight.shape[2:], stride, padding, dilation, groups), relu)


@convolution.register_fake
def _(x, weight, bias, stride, padding, dilation, groups, relu):
    window = flat_window(weight.shape[2:], stride, padding, dilation, groups)
    return _fake(x, weight.shape[0], window.output_size(x.shape[2:]))


@torch.library.custom_op("convnets::convolution_transpose", mutates_args=())
def convolution_transpose(
    dy: Tensor, weight: Tensor, y: Tensor | None, size: Sequence[int],
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    """See `kernels.conv.transpose`."""
    return conv.transpose(dy, weight, y, flat_window(weight.shape[2:], stride, padding, dilation, groups), size)


@convolution_transpose.register_fake
def _(dy, weight, y, size, stride, padding, dilation, groups):
    return _fake(dy, weight.shape[1] * groups, size)


@torch.library.custom_op("convnets::convolution_weight_gradient", mutates_args=())
def convolution_weight_gradient(
    x: Tensor, dy: Tensor, y: Tensor | None, kernel: Sequence[int],
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, bias: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `kernels.conv.weight_gradient`."""
    return conv.weight_gradient(x, dy, y, flat_window(kernel, stride, padding, dilation, groups), bias)


@convolution_weight_gradient.register_fake
def _(x, dy, y, kernel, stride, padding, dilation, groups, bias):
    dw = x.new_empty((dy.shape[1], *lift(kernel), x.shape[1] // groups))
    return channels_first(dw, len(kernel), memory_format(x)), x.new_empty(dy.shape[1] if bias else 0)


@torch.library.custom_op("convnets::max_pool", mutates_args=())
def max_pool(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    ceil_mode: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `kernels.pool.max_pool`."""
    return pool.max_pool(x, flat_window(kernel, stride, padding, dilation), ceil_mode)


@max_pool.register_fake
def _(x, kernel, stride, padding, dilation, ceil_mode):
    window = flat_window(kernel, stride, padding, dilation)
    y = _fake(x, x.shape[1], window.output_size(x.shape[2:], ceil_mode))
    return y, torch.empty_like(y, dtype=tap_dtype(window))


@torch.library.custom_op("convnets::max_pool_gradient", mutates_args=())
def max_pool_gradient(
    dy: Tensor, taps: Tensor, size: Sequence[int],
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
) -> Tensor:  # fmt: skip
    """See `kernels.pool.max_pool_gradient`."""
    return pool.max_pool_gradient(dy, taps, flat_window(kernel, stride, padding, dilation), size)


@max_pool_gradient.register_fake
def _(dy, taps, size, kernel, stride, padding, dilation):
    return _fake(dy, dy.shape[1], size)


def _fake(x: Tensor, channels: int, grid: Sequence[int]) -> Tensor:
    """An output of a launcher, [N, channels, *grid] in the memory format of x, without its values."""
    return new_channels_last(x, channels, grid).contiguous(memory_format=memory_format(x))


def _convolution_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *window, relu = inputs
    ctx.save_for_backward(x, weight, output if relu else None)
    ctx.bias, ctx.window = bias is not None, window


def _convolution_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, y = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, *rest = ctx.needs_input_grad
    dx = dw = db = None
    if needs_x:
        dx = convolution_transpose(dy, weight, y, x.shape[2:], *ctx.window)
    if needs_weight or needs_bias:
        dw, db = convolution_weight_gradient(x, dy, y, weight.shape[2:], *ctx.window, ctx.bias)
    return dx, dw, db if needs_bias else None, *[None] * len(rest)


convolution.register_autograd(_convolution_backward, setup_context=_convolution_context)


def _max_pool_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, *window, _ = inputs
    ctx.save_for_backward(output[1])
    ctx.size, ctx.window = x.shape[2:], window


def _max_pool_backward(ctx: Any, dy: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    (taps,) = ctx.saved_tensors
    return max_pool_gradient(dy, taps, ctx.size, *ctx.window), *[None] * 5


max_pool.register_autograd(_max_pool_backward, setup_context=_max_pool_context)


@register_flop_formula(torch.ops.convnets.convolution)
def _(x_shape, weight_shape, bias_shape, stride, padding, dilation, groups, *args, out_shape=None, **kwargs) -> int:
    return _flops(x_shape, weight_shape, flat_window(weight_shape[2:], stride, padding, dilation, groups))


@register_flop_formula(torch.ops.convnets.convolution_transpose)
def _(dy_shape, weight_shape, y_shape, size, stride, padding, dilation, groups, *args, **kwargs) -> int:
    window = flat_window(weight_shape[2:], stride, padding, dilation, groups)
    return _flops((dy_shape[0], weight_shape[1] * groups, *size), weight_shape, window)


@register_flop_formula(torch.ops.convnets.convolution_weight_gradient)
def _(x_shape, dy_shape, y_shape, kernel, stride, padding, dilation, groups, *args, **kwargs) -> int:
    window = flat_window(kernel, stride, padding, dilation, groups)
    return _flops(x_shape, (dy_shape[1], x_shape[1] // groups, *kernel), window)


def _flops(x_shape: Sequence[int], weight_shape: Sequence[int], window: Window) -> int:
    batch, channels, *size = x_shape
    return conv.cost(batch, channels, weight_shape[0], size, window, itemsize=1).flops
