"""Public functions, named as in torch.nn.functional: check, normalise, cast once, choose a backend.

Every function raises ValueError or TypeError, naming what was given and what is accepted, before anything runs.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from kernels import backend, reference
from kernels.shape import (
    IntOrTuple,
    Window,
    batched,
    check_convolution,
    check_floating,
    check_int,
    check_linear,
    check_pooling,
    make_window,
    per_axis,
)

if backend.AVAILABLE:
    from kernels import ops

ACTIVATIONS = (None, "relu")


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


def max_pool1d(
    input: Tensor, kernel_size: IntOrTuple, stride: IntOrTuple | None = None, padding: IntOrTuple = 0,
    dilation: IntOrTuple = 1, ceil_mode: bool = False, return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """`max_pool2d` over a grid of one axis: input [N, C, L] or [C, L]."""
    return _max_pool("max_pool1d", 1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool2d(
    input: Tensor, kernel_size: IntOrTuple, stride: IntOrTuple | None = None, padding: IntOrTuple = 0,
    dilation: IntOrTuple = 1, ceil_mode: bool = False, return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Largest value of each window (Deep Learning, section 9.3); ties and NaN as in torch.

    Args:
        input: [N, C, H, W] or [C, H, W].
        kernel_size, stride, padding, dilation: one int, or one an axis; stride None is kernel_size; padding (with
            minus infinity) is at most half of kernel_size.
        ceil_mode: let a last window hang over the edge, where it starts on the input or its padding before.
        return_indices: also give the index of each maximum in its flattened plane of the input, int64.

    Returns:
        [N, C, P, Q] or [C, P, Q], and the indices likewise where asked for.
    """
    return _max_pool("max_pool2d", 2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool3d(
    input: Tensor, kernel_size: IntOrTuple, stride: IntOrTuple | None = None, padding: IntOrTuple = 0,
    dilation: IntOrTuple = 1, ceil_mode: bool = False, return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """`max_pool2d` over a grid of three axes: input [N, C, D, H, W] or [C, D, H, W]."""
    return _max_pool("max_pool3d", 3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def cross_channel_max_pool(input: Tensor, pool_size: int) -> Tensor:
    """Largest of each `pool_size` consecutive channels (maxout; Goodfellow et al. 2013; Deep Learning, figure 9.9).

    Args:
        input: [N, C, *] with any number of further axes, C a multiple of pool_size.

    Returns:
        [N, C / pool_size, *], in the memory format of the input.
    """
    op = "cross_channel_max_pool"
    check_floating(op, input=input)
    pool_size = check_pool_size(op, pool_size)
    if input.dim() < 2:
        raise ValueError(f"{op}: input must be [N, C, ...], got shape {tuple(input.shape)}")
    if input.shape[1] % pool_size:
        raise ValueError(f"{op}: pool_size must divide the channels, got {pool_size} for input {tuple(input.shape)}")
    if not backend.uses_triton(input):
        return reference.cross_channel_max_pool(input, pool_size)
    last = input.movedim(1, -1)  # [N, *, C], where each position is a grid of one axis: its channels
    window = make_window(op, (pool_size,), pool_size, 0, 1)
    y, _ = _run_max_pool(last.reshape(prod(last.shape[:-1]), 1, input.shape[1]), window, False, False)
    pooled = y.view(*last.shape[:-1], input.shape[1] // pool_size).movedim(-1, 1)
    return pooled.contiguous() if input.is_contiguous() else pooled


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
    _refuse_forward_mode(x, weight, bias)
    return ops.convolution(x, weight, bias, window.stride, window.flat_padding, window.dilation, window.groups, relu)


def _max_pool(
    op: str, axes: int, input: Tensor, kernel_size: IntOrTuple, stride: IntOrTuple | None, padding: IntOrTuple,
    dilation: IntOrTuple, ceil_mode: bool, return_indices: bool,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    check_floating(op, input=input)
    x = batched(op, input, axes)
    kernel = per_axis(op, "kernel_size", kernel_size, axes, least=1)
    padding = per_axis(op, "padding", padding, axes, least=0)
    window = make_window(op, kernel, kernel if stride is None else stride, padding, dilation)
    check_pooling(op, x, window, bool(ceil_mode))
    y, index = _run_max_pool(x, window, bool(ceil_mode), return_indices)
    if x is not input:
        y, index = y.squeeze(0), index if index is None else index.squeeze(0)
    return (y, index) if return_indices else y


def _run_max_pool(x: Tensor, window: Window, ceil_mode: bool, return_indices: bool) -> tuple[Tensor, Tensor | None]:
    if not backend.uses_triton(x):
        pooled = reference.max_pool_as_torch(x, window, ceil_mode, return_indices)
        return pooled if return_indices else (pooled, None)
    _refuse_forward_mode(x)
    y, taps = ops.max_pool(x, window.kernel, window.stride, window.flat_padding, window.dilation, ceil_mode)
    return y, reference.indices(taps, window, x.shape[2:]) if return_indices else None


def check_activation(op: str, activation: str | None) -> str | None:
    """The activation, if it is one that can be fused; else ValueError."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation must be None or 'relu', got {activation!r}")
    return activation


def check_pool_size(op: str, pool_size: int) -> int:
    """The number of channels pooled into one, if it is at least 1; else ValueError."""
    return check_int(op, "pool_size", pool_size, least=1)


def _autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in the type that an enclosing torch.autocast asks for, as torch's own convolution casts them."""
    device = tensors[0].device.type if isinstance(tensors[0], Tensor) else "cpu"
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    castable = (torch.float16, torch.bfloat16, torch.float32)
    return tuple(t.to(dtype) if isinstance(t, Tensor) and t.dtype in castable else t for t in tensors)


def _refuse_forward_mode(*tensors: Tensor | None) -> None:
    """Operators of torch.library have no forward-mode derivative, and drop a tangent without a word."""
    if torch.compiler.is_compiling():
        return
    for t in tensors:
        if t is not None and torch.autograd.forward_ad.unpack_dual(t).tangent is not None:
            raise RuntimeError("forward-mode differentiation needs the torch backend: use_backend('torch')")
