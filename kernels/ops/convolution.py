"""The operators of a convolutional layer: the convolution, its transpose and the weight gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kernels import conv
from kernels.shape import Window, channels_first, fake, lift, memory_format


@torch.library.custom_op("convnets::convolution", mutates_args=())
def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None,
    window: Sequence[int], relu: bool,
) -> Tensor:  # fmt: skip
    """See `kernels.conv.forward`."""
    return conv.forward(x, weight, bias, Window.from_flat(window), relu)


@convolution.register_fake
def _(x, weight, bias, window, relu):
    window = Window.from_flat(window)
    return fake(x, weight.shape[0], window.output_size(x.shape[2:]))


@torch.library.custom_op("convnets::convolution_transpose", mutates_args=())
def convolution_transpose(
    dy: Tensor, weight: Tensor, y: Tensor | None, size: Sequence[int], window: Sequence[int],
) -> Tensor:  # fmt: skip
    """See `kernels.conv.transpose`."""
    return conv.transpose(dy, weight, y, Window.from_flat(window), size)


@convolution_transpose.register_fake
def _(dy, weight, y, size, window):
    return fake(dy, weight.shape[1] * Window.from_flat(window).groups, size)


@torch.library.custom_op("convnets::convolution_weight_gradient", mutates_args=())
def convolution_weight_gradient(
    x: Tensor, dy: Tensor, y: Tensor | None, window: Sequence[int], bias: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `kernels.conv.weight_gradient`."""
    return conv.weight_gradient(x, dy, y, Window.from_flat(window), bias)


@convolution_weight_gradient.register_fake
def _(x, dy, y, window, bias):
    window = Window.from_flat(window)
    dw = x.new_empty((dy.shape[1], *lift(window.kernel), x.shape[1] // window.groups))
    return channels_first(dw, window.axes, memory_format(x)), x.new_empty(dy.shape[1] if bias else 0)


def _convolution_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, window, relu = inputs
    ctx.save_for_backward(x, weight, output if relu else None)
    ctx.bias, ctx.window = bias is not None, window


def _convolution_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, y = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, *rest = ctx.needs_input_grad
    dx = dw = db = None
    if needs_x:
        dx = convolution_transpose(dy, weight, y, x.shape[2:], ctx.window)
    if needs_weight or needs_bias:
        dw, db = convolution_weight_gradient(x, dy, y, ctx.window, ctx.bias)
    return dx, dw, db if needs_bias else None, *[None] * len(rest)


convolution.register_autograd(_convolution_backward, setup_context=_convolution_context)


@register_flop_formula(torch.ops.convnets.convolution)
def _(x_shape, weight_shape, bias_shape, window, *args, out_shape=None, **kwargs) -> int:
    return _flops(x_shape, weight_shape, Window.from_flat(window))


@register_flop_formula(torch.ops.convnets.convolution_transpose)
def _(dy_shape, weight_shape, y_shape, size, window, *args, **kwargs) -> int:
    window = Window.from_flat(window)
    return _flops((dy_shape[0], weight_shape[1] * window.groups, *size), weight_shape, window)


@register_flop_formula(torch.ops.convnets.convolution_weight_gradient)
def _(x_shape, dy_shape, y_shape, window, *args, **kwargs) -> int:
    window = Window.from_flat(window)
    return _flops(x_shape, (dy_shape[1], x_shape[1] // window.groups, *window.kernel), window)


def _flops(x_shape: Sequence[int], weight_shape: Sequence[int], window: Window) -> int:
    batch, channels, *size = x_shape
    return conv.cost(batch, channels, weight_shape[0], size, window, itemsize=1).flops
