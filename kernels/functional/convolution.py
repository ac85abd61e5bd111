"""Convolutions and transposed convolutions, named as in torch.nn.functional."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from kernels import backend, reference
from kernels.checks import (
    IntOrTuple,
    autocast,
    batched,
    check_activation,
    check_convolution,
    check_floating,
    check_int,
    check_pooling,
    check_residual,
    check_transposed_convolution,
    make_window,
    per_axis,
    pooling_window,
)
from kernels.functional.direct import as_torch
from kernels.functional.traced import hold_size
from kernels.shape import POINT, Window, shape_of

if backend.AVAILABLE:
    from kernels import ops


class Epilogue(NamedTuple):
    """What follows a convolution in the same kernel: residual, max_pool and maxout as of `conv2d`."""

    relu: bool
    residual: Tensor | None
    max_pool: IntOrTuple | Mapping[str, Any] | None
    maxout: int

    @property
    def plain(self) -> bool:
        return self.residual is None and self.max_pool is None and self.maxout == 1


def epilogue(
    op: str, activation: str | None, residual: Tensor | None = None,
    max_pool: IntOrTuple | Mapping[str, Any] | None = None, maxout: int = 1,
) -> Epilogue:  # fmt: skip
    """An Epilogue from arguments as `conv2d` takes them."""
    relu, maxout = check_activation(op, activation) == "relu", check_int(op, "maxout", maxout, least=1)
    if (residual is not None) + (max_pool is not None) + (maxout > 1) > 1:
        raise ValueError(f"{op}: at most one of residual, max_pool and maxout can be fused")
    return Epilogue(relu, residual, max_pool, maxout)


def conv1d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None,
    stride: IntOrTuple = 1, padding: IntOrTuple | str = 0, dilation: IntOrTuple = 1, groups: int = 1,
    *, activation: str | None = None, residual: Tensor | None = None,
    max_pool: IntOrTuple | Mapping[str, Any] | None = None, maxout: int = 1,
) -> Tensor:  # fmt: skip
    """`conv2d` over a grid of one axis: input [N, C, L], weight [O, C/groups, K]."""
    fused = epilogue("conv1d", activation, residual, max_pool, maxout)
    return convolve("conv1d", 1, input, weight, bias, stride, padding, dilation, groups, fused)


def conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None,
    stride: IntOrTuple = 1, padding: IntOrTuple | str = 0, dilation: IntOrTuple = 1, groups: int = 1,
    *, activation: str | None = None, residual: Tensor | None = None,
    max_pool: IntOrTuple | Mapping[str, Any] | None = None, maxout: int = 1,
) -> Tensor:  # fmt: skip
    """Convolution (as cross-correlation, Deep Learning eq. 9.6), and what is fused into it.

    Args:
        input: [N, C, H, W] or [C, H, W], in any memory layout; a channels_last one is kept.
        weight: [O, C/groups, KH, KW].
        bias: [O].
        stride, dilation: one int, or one an axis, >= 1.
        padding: ints >= 0; "valid" (none), "same" (output as large as input; stride 1) or "full" (every overlap).
        groups: partial connectivity between channels; divides C and O. As many as channels is depthwise convolution.
        activation: None or "relu", of the sum of all.
        residual: of the output's shape, or broadcast to it, added before the activation.
        max_pool: arguments of `max_pool2d` by name, or its kernel_size: the largest of each window of the output, which
            itself is never written. Where windows overlap, what they share is computed for each.
        maxout: the largest of each so many consecutive output channels, as by `cross_channel_max_pool`.
            At most one of residual, max_pool and maxout.

    Returns:
        [N, O, P, Q] (or [O, P, Q]), P = floor((H + before + after - dilation * (KH - 1) - 1) / stride) + 1, and pooled.
    """
    fused = epilogue("conv2d", activation, residual, max_pool, maxout)
    return convolve("conv2d", 2, input, weight, bias, stride, padding, dilation, groups, fused)


def conv3d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None,
    stride: IntOrTuple = 1, padding: IntOrTuple | str = 0, dilation: IntOrTuple = 1, groups: int = 1,
    *, activation: str | None = None, residual: Tensor | None = None,
    max_pool: IntOrTuple | Mapping[str, Any] | None = None, maxout: int = 1,
) -> Tensor:  # fmt: skip
    """`conv2d` over a grid of three axes: input [N, C, D, H, W], weight [O, C/groups, KD, KH, KW]."""
    fused = epilogue("conv3d", activation, residual, max_pool, maxout)
    return convolve("conv3d", 3, input, weight, bias, stride, padding, dilation, groups, fused)


def conv_transpose1d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: IntOrTuple = 1, padding: IntOrTuple = 0,
    output_padding: IntOrTuple = 0, groups: int = 1, dilation: IntOrTuple = 1, *, activation: str | None = None,
) -> Tensor:  # fmt: skip
    """`conv_transpose2d` over a grid of one axis: input [N, C, L], weight [C, O/groups, K]."""
    return _convolve_transposed(
        "conv_transpose1d", 1, input, weight, bias, stride, padding, output_padding, groups, dilation, activation
    )


def conv_transpose2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: IntOrTuple = 1, padding: IntOrTuple = 0,
    output_padding: IntOrTuple = 0, groups: int = 1, dilation: IntOrTuple = 1, *, activation: str | None = None,
) -> Tensor:  # fmt: skip
    """The transpose of the convolution with the same arguments, which spreads each input over a window of the output.

    Args:
        input: [N, C, H, W] or [C, H, W].
        weight: [C, O/groups, KH, KW].
        bias: [O].
        output_padding: rows and columns that the convolution would not have read, added after the last; less than
            the stride or the dilation.
        activation: None or "relu".

    Returns:
        [N, O, P, Q] (or [O, P, Q]), P = (H - 1) * stride - 2 * padding + dilation * (KH - 1) + output_padding + 1.
    """
    return _convolve_transposed(
        "conv_transpose2d", 2, input, weight, bias, stride, padding, output_padding, groups, dilation, activation
    )


def conv_transpose3d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: IntOrTuple = 1, padding: IntOrTuple = 0,
    output_padding: IntOrTuple = 0, groups: int = 1, dilation: IntOrTuple = 1, *, activation: str | None = None,
) -> Tensor:  # fmt: skip
    """`conv_transpose2d` over a grid of three axes: input [N, C, D, H, W], weight [C, O/groups, KD, KH, KW]."""
    return _convolve_transposed(
        "conv_transpose3d", 3, input, weight, bias, stride, padding, output_padding, groups, dilation, activation
    )


def convolve(
    op: str, axes: int, input: Tensor, weight: Tensor, bias: Tensor | None,
    stride: IntOrTuple, padding: IntOrTuple | str, dilation: IntOrTuple, groups: int, fused: Epilogue,
    tile: tuple[int, ...] = (),
) -> Tensor:  # fmt: skip
    """Check a convolution and run it. The kernels of a `tile` stand one after another in weight and bias."""
    on_triton = isinstance(input, Tensor) and backend.uses_triton(input)
    if not on_triton and not tile and fused.plain and _pads_evenly(weight, padding):
        y = as_torch(reference.CONVOLUTIONS[axes], (input, weight, bias), stride, padding, dilation, groups)
        if y is not None:
            return y.relu_() if fused.relu else y
    input, weight, bias, residual = autocast(input, weight, bias, fused.residual)
    check_floating(op, input=input, weight=weight, bias=bias, residual=residual)
    x = batched(op, input, axes)
    if weight.dim() != axes + 2:
        raise ValueError(f"{op}: weight must be [O, C/groups, *kernel] on {axes} axes, got {tuple(weight.shape)}")
    window = make_window(op, weight.shape[2:], stride, padding, dilation, groups, tile)
    shape = check_convolution(op, x, weight, bias, window)
    if residual is not None and residual.dim() == axes + 1:
        residual = residual.unsqueeze(0)
    y = run_convolution(op, x, weight, bias, residual, window, shape, fused)
    return y if x is input else y.squeeze(0)


def _pads_evenly(weight: Tensor, padding: IntOrTuple | str) -> bool:
    """Whether torch's own convolution pads as asked; it warns where "same" needs unequal sides, and knows no "full"."""
    if not isinstance(padding, str):
        return True
    return padding == "same" and isinstance(weight, Tensor) and all(extent % 2 for extent in weight.shape[2:])


def run_convolution(
    op: str, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, window: Window,
    shape: tuple[int, ...], fused: Epilogue,
) -> Tensor:  # fmt: skip
    """x [N, C, *grid] through a convolution whose tensors fit and whose output has `shape`, and its epilogue."""
    relu, _, _, maxout = fused
    residual = check_residual(op, residual, shape)
    if shape[1] // window.groups % maxout:
        raise ValueError(
            f"{op}: maxout must divide the output channels of a group, {shape[1] // window.groups}, got {maxout}"
        )
    pool, size = None, shape[2:]
    if fused.max_pool is not None:
        pool, ceil_mode = pooling_window(f"{op}: max_pool", fused.max_pool, window.axes)
        size = check_pooling(f"{op}: max_pool", shape, pool, ceil_mode)

    if weight.numel() == 0 or not backend.uses_triton(x):
        y = reference.forward(x, weight, bias, residual, window, relu)
        if pool is not None:
            y = reference.max_pool_as_torch(y, pool, size, return_indices=False)
        return reference.cross_channel_max_pool(y, maxout) if maxout > 1 else y
    backend.refuse_forward_mode(x, weight, bias, residual)
    if pool is None and maxout == 1:
        return ops.convolution(x, weight, bias, residual, window, relu)
    pool, x = pool or POINT, hold_size(op, x, window.axes)
    return ops.convolution_max(x, weight, bias, window, relu, pool, size, maxout)[0]


def _convolve_transposed(
    op: str, axes: int, input: Tensor, weight: Tensor, bias: Tensor | None, stride: IntOrTuple, padding: IntOrTuple,
    output_padding: IntOrTuple, groups: int, dilation: IntOrTuple, activation: str | None,
) -> Tensor:  # fmt: skip
    relu = check_activation(op, activation) == "relu"
    transpose = reference.TRANSPOSES[axes]
    y = as_torch(transpose, (input, weight, bias), stride, padding, output_padding, groups, dilation)
    if y is not None:
        return y.relu_() if relu else y
    input, weight, bias = autocast(input, weight, bias)
    check_floating(op, input=input, weight=weight, bias=bias)
    x = batched(op, input, axes)
    if weight.dim() != axes + 2:
        raise ValueError(f"{op}: weight must be [C, O/groups, *kernel] on {axes} axes, got {tuple(weight.shape)}")
    extra = per_axis(op, "output_padding", output_padding, axes, least=0)
    window = make_window(
        op, weight.shape[2:], stride, per_axis(op, "padding", padding, axes, least=0), dilation, groups
    )
    grid = shape_of(x)[2:]
    size = window.input_size(grid, extra)
    check_transposed_convolution(op, x, weight, bias, window, extra, size)
    window = window.fitted(size, grid)
    if weight.numel() == 0 or not backend.uses_triton(x):
        y = reference.transpose(x, weight, bias, None, window, size, relu)
    else:
        backend.refuse_forward_mode(x, weight, bias)
        y = ops.convolution_transpose(hold_size(op, x, axes), weight, bias, None, window, size, relu)
    return y if x is input else y.squeeze(0)
