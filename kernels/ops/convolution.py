"""The operators of a convolutional layer: the convolution, its transpose and the weight gradient.

The three are closed under differentiation: the gradients of each are the other two (and the convolution is linear in
the input and in the weight, so each is its own derivative along them). Only the sign of a ReLU's output and the winner
of a maximum are taken as constants, as they are almost everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kernels import conv
from kernels.ops.pooling import max_pool_gradient
from kernels.ops.registry import operator
from kernels.reference import masked
from kernels.shape import Window, fake, in_layout, memory_format, new_channels_last, tap_dtype

Gradients = tuple[Tensor | None, ...]


@operator
def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, window: Sequence[int], relu: bool
) -> Tensor:
    """See `kernels.conv.forward`."""
    return conv.forward(x, weight, bias, residual, Window.from_flat(window), relu)


@convolution.fake
def _(x, weight, bias, residual, window, relu):
    window = Window.from_flat(window)
    shape = (x.shape[0], weight.shape[0] // window.tiles, *window.output_size(x.shape[2:]))
    return fake(x, shape, weight)


@operator
def convolution_max(
    x: Tensor, weight: Tensor, bias: Tensor | None, window: Sequence[int], relu: bool,
    pool: Sequence[int], size: Sequence[int], maxout: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `kernels.conv.forward_max`."""
    return conv.forward_max(x, weight, bias, Window.from_flat(window), relu, Window.from_flat(pool), size, maxout)


@convolution_max.fake
def _(x, weight, bias, window, relu, pool, size, maxout):
    shape = (x.shape[0], weight.shape[0] // maxout, *size)
    return fake(x, shape, weight), new_channels_last(x, shape, tap_dtype(Window.from_flat(pool).taps * maxout))


@operator
def convolution_transpose(
    dy: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor | None,
    window: Sequence[int], size: Sequence[int], relu: bool,
) -> Tensor:  # fmt: skip
    """See `kernels.conv.transpose`."""
    return conv.transpose(dy, weight, bias, y, Window.from_flat(window), size, relu)


@convolution_transpose.fake
def _(dy, weight, bias, y, window, size, relu):
    return fake(dy, (dy.shape[0], weight.shape[1] * Window.from_flat(window).groups, *size), weight)


@operator
def convolution_weight_gradient(
    x: Tensor, dy: Tensor, y: Tensor | None, window: Sequence[int], bias: bool
) -> tuple[Tensor, Tensor]:
    """See `kernels.conv.weight_gradient`."""
    return conv.weight_gradient(x, dy, y, Window.from_flat(window), bias)


@convolution_weight_gradient.fake
def _(x, dy, y, window, bias):
    window = Window.from_flat(window)
    outputs = window.tiles * dy.shape[1]
    return fake(x, (outputs, x.shape[1] // window.groups, *window.kernel)), x.new_empty(outputs if bias else 0)


def _convolution_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, _, ctx.window, relu = inputs
    ctx.save_for_backward(x, weight, output if relu else None)
    ctx.bias = bias is not None


def _convolution_backward(ctx: Any, dy: Tensor) -> Gradients:
    x, weight, y = ctx.saved_tensors
    dresidual = masked(dy, y) if ctx.needs_input_grad[3] else None
    return *_gradients(ctx, x, weight, dy, y), dresidual, None, None


def _convolution_max_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, ctx.window, relu, ctx.pool, _, ctx.maxout = inputs
    y, winners = output
    ctx.mark_non_differentiable(winners)
    ctx.save_for_backward(x, weight, winners, y if relu else None)
    ctx.bias = bias is not None


def _convolution_max_backward(ctx: Any, dy: Tensor, _: None) -> Gradients:
    """The gradient of the maximum, from the winners, then of the convolution."""
    x, weight, winners, y = ctx.saved_tensors
    dy = masked(dy, y)
    if ctx.maxout == 1:
        dy = max_pool_gradient(dy, winners, ctx.pool, Window.from_flat(ctx.window).output_size(x.shape[2:]))
    else:  # along the channels, taken as a grid of one axis
        last, winners = dy.movedim(1, -1), winners.movedim(1, -1)  # [N, *size, O]
        shape, channels = last.shape[:-1], weight.shape[0]
        row = (prod(shape), 1, dy.shape[1])
        along = Window((ctx.maxout,), (ctx.maxout,), ((0, 0),), (1,))
        dy = max_pool_gradient(last.reshape(row), winners.reshape(row), along, [channels])
        dy = dy.view(*shape, channels).movedim(-1, 1)
    return *_gradients(ctx, x, weight, dy, None), *[None] * 5


def _gradients(ctx: Any, x: Tensor, weight: Tensor, dy: Tensor, y: Tensor | None) -> Gradients:
    """Gradients of a convolution's input, weight and bias, those that are needed."""
    needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
    dx = dw = db = None
    if needs_x:
        layout = memory_format(x, weight)
        dx = in_layout(layout, convolution_transpose, dy, weight, None, y, ctx.window, x.shape[2:], False)
    if needs_weight or needs_bias:
        dw, db = convolution_weight_gradient(x, dy, y, ctx.window, ctx.bias)
    return dx, dw, db if needs_bias else None


def _transpose_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dy, weight, bias, y, ctx.window, _, relu = inputs
    ctx.save_for_backward(dy, weight, y, output if relu else None)


def _transpose_backward(ctx: Any, g: Tensor) -> Gradients:
    dy, weight, y, output = ctx.saved_tensors
    needs_dy, needs_weight, needs_bias, *_ = ctx.needs_input_grad
    g = masked(g, output)
    d_dy = dw = db = None
    if needs_dy:
        layout = memory_format(dy, weight)
        d_dy = masked(in_layout(layout, convolution, g, weight, None, None, ctx.window, False), y)
    if needs_weight:
        dw, _ = convolution_weight_gradient(g, dy, y, ctx.window, False)
    if needs_bias:
        db = g.sum([axis for axis in range(g.dim()) if axis != 1])
    return d_dy, dw, db, None, None, None, None


def _weight_gradient_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, dy, y, ctx.window, ctx.bias = inputs
    ctx.save_for_backward(x, dy, y)


def _weight_gradient_backward(ctx: Any, g: Tensor | None, g_bias: Tensor | None) -> Gradients:
    x, dy, y = ctx.saved_tensors
    dx = d_dy = None
    if g is None:
        window = Window.from_flat(ctx.window)
        g = x.new_zeros((window.tiles * dy.shape[1], x.shape[1] // window.groups, *window.kernel))
    if ctx.needs_input_grad[0]:
        dx = convolution_transpose(dy, g, None, y, ctx.window, x.shape[2:], False)
    if ctx.needs_input_grad[1]:
        d_dy = masked(convolution(x, g, g_bias if ctx.bias else None, None, ctx.window, False), y)
    return dx, d_dy, None, None, None


convolution.differentiate(_convolution_backward, _convolution_context)
convolution_max.differentiate(_convolution_max_backward, _convolution_max_context)
convolution_transpose.differentiate(_transpose_backward, _transpose_context)
convolution_weight_gradient.differentiate(_weight_gradient_backward, _weight_gradient_context)


@register_flop_formula(torch.ops.convnets.convolution)
def _(x_shape, weight_shape, bias_shape, residual_shape, window, *args, **kwargs) -> int:
    return _flops(x_shape, weight_shape, window)


@register_flop_formula(torch.ops.convnets.convolution_max)
def _(x_shape, weight_shape, bias_shape, window, *args, **kwargs) -> int:
    return _flops(x_shape, weight_shape, window)  # where pooling windows overlap, what they share counts once


@register_flop_formula(torch.ops.convnets.convolution_transpose)
def _(dy_shape, weight_shape, bias_shape, y_shape, window, size, *args, **kwargs) -> int:
    return _flops((dy_shape[0], weight_shape[1] * window[-2], *size), weight_shape, window)


@register_flop_formula(torch.ops.convnets.convolution_weight_gradient)
def _(x_shape, dy_shape, y_shape, window, *args, **kwargs) -> int:
    weight_shape = (Window.from_flat(window).tiles * dy_shape[1], x_shape[1] // window[-2])
    return _flops(x_shape, weight_shape, window)


def _flops(x_shape: Sequence[int], weight_shape: Sequence[int], flat: Sequence[int]) -> int:
    window = Window.from_flat(flat)
    batch, channels, *size = x_shape
    return conv.flops(batch, channels, weight_shape[0] // window.tiles, size, window)
