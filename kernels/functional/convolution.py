"""Convolutions and matrix products, named as in torch.nn.functional."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from kernels import backend, reference
from kernels.checks import (
    IntOrTuple,
    batched,
    check_activation,
    check_convolution,
    check_floating,
    check_linear,
    make_window,
    refuse_forward_mode,
)
from kernels.shape import Window

if backend.AVAILABLE:
    from kernels import ops


def conv1d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None,
    stride: IntOrTuple = 1, padding: IntOrTuple | str = 0, dilation: IntOrTuple = 1, groups: int = 1,
    *, activation: str | None = None,
) -> Tensor:  # fmt: skip
    """`conv2d` over a grid of one axis: input [N, C, L], weight [O, C/groups, K]."""
    return _convolution("conv1d", 1, input, weight, bias, stride, padding, dilation, groups, activation)


def conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None,
    stride: IntOrTuple = 1, padding: IntOrTuple | str = 0, dilation: IntOrTuple = 1, groups: int = 1,
    *, activation: str | None = None,
) -> Tensor:  # fmt: skip
    """Convolution (as cross-correlation, Deep Learning eq. 9.6), with bias and ReLU fused into it.

    Args:
        input: [N, C, H, W] or [C, H, W], in any memory layout; a channels_last one is kept.
        weight: [O, C/groups, KH, KW].
        bias: [O].
        stride, dilation: one int, or one an axis, >= 1.
        padding: ints >= 0; "valid" (none), "same" (output as large as input; stride 1) or "full" (every overlap).
        groups: partial connectivity between channels; divides C and O.
        activation: None or "relu".

    Returns:
        [N, O, P, Q] (or [O, P, Q]), P = floor((H + before + after - dilation * (KH - 1) - 1) / stride) + 1.
    """
    return _convolution("conv2d", 2, input, weight, bias, stride, padding, dilation, groups, activation)


def conv3d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None,
    stride: IntOrTuple = 1, padding: IntOrTuple | str = 0, dilation: IntOrTuple = 1, groups: int = 1,
    *, activation: str | None = None,
) -> Tensor:  # fmt: skip
    """`conv2d` over a grid of three axes: input [N, C, D, H, W], weight [O, C/groups, KD, KH, KW]."""
    return _convolution("conv3d", 3, input, weight, bias, stride, padding, dilation, groups, activation)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = None) -> Tensor:
    """input [*, in] times weight [out, in] transposed, plus bias [out], ReLU fused: a convolution on a grid of no axes.

    Returns:
        [*, out].
    """
    relu = check_activation("linear", activation) == "relu"
    x, weight, bias = _autocast(input, weight, bias)
    check_floating("linear", input=x, weight=weight, bias=bias)
    check_linear(x, weight, bias)
    rows = x.reshape(prod(x.shape[:-1]), x.shape[-1])
    y = _run_convolution(rows, weight, bias, Window((), (), (), ()), relu)
    return y.view(*x.shape[:-1], weight.shape[0])


def _convolution(
    op: str, axes: int, input: Tensor, weight: Tensor, bias: Tensor | None,
    stride: IntOrTuple, padding: IntOrTuple | str, dilation: IntOrTuple, groups: int, activation: str | None,
) -> Tensor:  # fmt: skip
    relu = check_activation(op, activation) == "relu"
    input, weight, bias = _autocast(input, weight, bias)
    check_floating(op, input=input, weight=weight, bias=bias)
    x = batched(op, input, axes)
    if weight.dim() != axes + 2:
        raise ValueError(f"{op}: weight must be [O, C/groups, *kernel] on {axes} axes, got {tuple(weight.shape)}")
    window = make_window(op, weight.shape[2:], stride, padding, dilation, groups)
    check_convolution(op, x, weight, bias, window)
    y = _run_convolution(x, weight, bias, window, relu)
    return y if x is input else y.squeeze(0)


def _run_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window, relu: bool) -> Tensor:
    if not backend.uses_triton(x):
        return reference.forward(x, weight, bias, window, relu)
    refuse_forward_mode(x, weight, bias)
    return ops.convolution(x, weight, bias, window.flat, relu)


def _autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in the type that an enclosing torch.autocast asks for, as torch's own convolution casts them."""
    device = tensors[0].device.type if isinstance(tensors[0], Tensor) else "cpu"
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    castable = (torch.float16, torch.bfloat16, torch.float32)
    return tuple(t.to(dtype) if isinstance(t, Tensor) and t.dtype in castable else t for t in tensors)
