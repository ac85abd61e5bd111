"""Max and average pooling, fixed and adaptive, named as in torch.nn.functional."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor

from kernels import backend, reference
from kernels.checks import (
    IntOrTuple,
    batched,
    check_divisor,
    check_floating,
    check_int,
    check_not_empty,
    check_output_size,
    check_pooling,
    make_pooling_window,
    make_window,
)
from kernels.functional.direct import as_torch
from kernels.functional.traced import hold_size
from kernels.shape import Window, shape_of

if backend.AVAILABLE:
    from kernels import ops

OutputSize = int | None | Sequence[int | None]


def max_pool1d(
    input: Tensor, kernel_size: IntOrTuple, stride: IntOrTuple | None = None, padding: IntOrTuple = 0,
    dilation: IntOrTuple = 1, ceil_mode: bool = False, return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """`max_pool2d` over a grid of one axis: input [N, C, L] or [C, L]."""
    return _fixed_max_pool("max_pool1d", 1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


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
    return _fixed_max_pool("max_pool2d", 2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool3d(
    input: Tensor, kernel_size: IntOrTuple, stride: IntOrTuple | None = None, padding: IntOrTuple = 0,
    dilation: IntOrTuple = 1, ceil_mode: bool = False, return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """`max_pool2d` over a grid of three axes: input [N, C, D, H, W] or [C, D, H, W]."""
    return _fixed_max_pool("max_pool3d", 3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def avg_pool1d(
    input: Tensor, kernel_size: IntOrTuple, stride: IntOrTuple | None = None, padding: IntOrTuple = 0,
    ceil_mode: bool = False, count_include_pad: bool = True,
) -> Tensor:  # fmt: skip
    """`avg_pool2d` over a grid of one axis, without a divisor of one's own: input [N, C, L] or [C, L]."""
    return _fixed_average_pool("avg_pool1d", 1, input, kernel_size, stride, padding, ceil_mode, count_include_pad)


def avg_pool2d(
    input: Tensor, kernel_size: IntOrTuple, stride: IntOrTuple | None = None, padding: IntOrTuple = 0,
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None,
) -> Tensor:  # fmt: skip
    """Mean of each window.

    Args:
        input: [N, C, H, W] or [C, H, W].
        kernel_size, stride, padding: one int, or one an axis; stride None is kernel_size; padding (with zeros) is at
            most half of kernel_size.
        ceil_mode: let a last window hang over the edge, where it starts on the input or its padding before.
        count_include_pad: count the padding, too, in what a sum is divided by; never what is beyond it.
        divisor_override: divide every sum by this instead.

    Returns:
        [N, C, P, Q] or [C, P, Q].
    """
    return _fixed_average_pool(
        "avg_pool2d", 2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


def avg_pool3d(
    input: Tensor, kernel_size: IntOrTuple, stride: IntOrTuple | None = None, padding: IntOrTuple = 0,
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None,
) -> Tensor:  # fmt: skip
    """`avg_pool2d` over a grid of three axes: input [N, C, D, H, W] or [C, D, H, W]."""
    return _fixed_average_pool(
        "avg_pool3d", 3, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


def adaptive_max_pool1d(
    input: Tensor, output_size: OutputSize, return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """`adaptive_max_pool2d` over a grid of one axis: input [N, C, L] or [C, L]."""
    return _adaptive_max_pool("adaptive_max_pool1d", 1, input, output_size, return_indices)


def adaptive_max_pool2d(
    input: Tensor, output_size: OutputSize, return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Largest value of each of the windows that divide the grid as evenly as whole numbers can.

    Args:
        input: [N, C, H, W] or [C, H, W].
        output_size: P and Q, or one int for both; None is the extent of the input.
        return_indices: also give the index of each maximum in its flattened plane of the input, int64.

    Returns:
        [N, C, P, Q] or [C, P, Q], and the indices likewise where asked for. Row p is of the rows from floor(p * H / P)
        up to, and without, ceil((p + 1) * H / P).
    """
    return _adaptive_max_pool("adaptive_max_pool2d", 2, input, output_size, return_indices)


def adaptive_max_pool3d(
    input: Tensor, output_size: OutputSize, return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """`adaptive_max_pool2d` over a grid of three axes: input [N, C, D, H, W] or [C, D, H, W]."""
    return _adaptive_max_pool("adaptive_max_pool3d", 3, input, output_size, return_indices)


def adaptive_avg_pool1d(input: Tensor, output_size: OutputSize) -> Tensor:
    """`adaptive_avg_pool2d` over a grid of one axis: input [N, C, L] or [C, L]."""
    return _adaptive_average_pool("adaptive_avg_pool1d", 1, input, output_size)


def adaptive_avg_pool2d(input: Tensor, output_size: OutputSize) -> Tensor:
    """Mean of each of the windows of `adaptive_max_pool2d`; an output_size of 1 is global average pooling."""
    return _adaptive_average_pool("adaptive_avg_pool2d", 2, input, output_size)


def adaptive_avg_pool3d(input: Tensor, output_size: OutputSize) -> Tensor:
    """`adaptive_avg_pool2d` over a grid of three axes: input [N, C, D, H, W] or [C, D, H, W]."""
    return _adaptive_average_pool("adaptive_avg_pool3d", 3, input, output_size)


def cross_channel_max_pool(input: Tensor, pool_size: int) -> Tensor:
    """Largest of each `pool_size` consecutive channels (maxout; Goodfellow et al. 2013; Deep Learning, figure 9.9).

    Args:
        input: [N, C, *] with any number of further axes, C a multiple of pool_size.

    Returns:
        [N, C / pool_size, *], in the memory format of the input.
    """
    op = "cross_channel_max_pool"
    check_floating(op, input=input)
    pool_size = check_int(op, "pool_size", pool_size, least=1)
    if input.dim() < 2:
        raise ValueError(f"{op}: input must be [N, C, ...], got shape {tuple(input.shape)}")
    if input.shape[1] % pool_size:
        raise ValueError(f"{op}: pool_size must divide the channels, got {pool_size} for input {tuple(input.shape)}")
    if not backend.uses_triton(input):
        return reference.cross_channel_max_pool(input, pool_size)
    last = input.movedim(1, -1)  # [N, *, C], where each position is a grid of one axis: its channels
    window = make_window(op, (pool_size,), pool_size, 0, 1)
    size = (shape_of(input)[1] // pool_size,)
    y, _ = _run_max_pool(last.reshape(prod(last.shape[:-1]), 1, input.shape[1]), window, size, False)
    pooled = y.view(*last.shape[:-1], *size).movedim(-1, 1)
    return pooled.contiguous() if input.is_contiguous() else pooled


def _fixed_max_pool(
    op: str, axes: int, input: Tensor, kernel_size: IntOrTuple, stride: IntOrTuple | None, padding: IntOrTuple,
    dilation: IntOrTuple, ceil_mode: bool, return_indices: bool,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    if dilation == 1:  # with more, torch takes windows that step over the whole grid
        pool = reference.MAX_POOLS[axes]
        y = as_torch(pool, (input,), kernel_size, stride, padding, dilation, ceil_mode, return_indices)
        if y is not None:
            return y
    problem = _fixed(op, axes, input, kernel_size, stride, padding, dilation, ceil_mode)
    return _max_pool(input, *problem, return_indices)


def _fixed_average_pool(
    op: str, axes: int, input: Tensor, kernel_size: IntOrTuple, stride: IntOrTuple | None, padding: IntOrTuple,
    ceil_mode: bool, padded: bool, *divisor: int | None,
) -> Tensor:  # fmt: skip
    y = as_torch(reference.AVERAGE_POOLS[axes], (input,), kernel_size, stride, padding, ceil_mode, padded, *divisor)
    if y is not None:
        return y
    number = check_divisor(op, *divisor) if divisor else 0  # torch has none on one axis
    problem = _fixed(op, axes, input, kernel_size, stride, padding, 1, ceil_mode)
    return _average_pool(input, *problem, number, padded)


def _adaptive_max_pool(
    op: str, axes: int, input: Tensor, output_size: OutputSize, return_indices: bool
) -> Tensor | tuple[Tensor, Tensor]:
    return _max_pool(input, *_adaptive(op, axes, input, output_size), return_indices)


def _adaptive_average_pool(op: str, axes: int, input: Tensor, output_size: OutputSize) -> Tensor:
    return _average_pool(input, *_adaptive(op, axes, input, output_size), 0, True)


def _fixed(
    op: str, axes: int, input: Tensor, kernel_size: IntOrTuple, stride: IntOrTuple | None, padding: IntOrTuple,
    dilation: IntOrTuple, ceil_mode: bool,
) -> tuple[Tensor, Window, tuple[int, ...]]:  # fmt: skip
    """The input [N, C, *grid], the window that slides over it, and the extents of the output."""
    check_floating(op, input=input)
    x = hold_size(op, batched(op, input, axes), axes)
    window = make_pooling_window(op, axes, kernel_size, stride, padding, dilation)
    return x, window, check_pooling(op, shape_of(x), window, bool(ceil_mode))


def _adaptive(op: str, axes: int, input: Tensor, output_size: OutputSize) -> tuple[Tensor, Window, tuple[int, ...]]:
    """The input [N, C, *grid], the window that divides it, and the extents of the output."""
    check_floating(op, input=input)
    x = batched(op, input, axes)
    if x is not input and x.shape[1] == 0:  # as torch, which takes the channels of one sample for a batch
        x = input.unsqueeze(1)
    shape = shape_of(x)
    check_not_empty(op, shape)
    size = check_output_size(op, output_size, shape[2:])
    if backend.uses_triton(x) or output_size is None or (isinstance(output_size, Sequence) and None in output_size):
        x = hold_size(op, x, axes)
    return x, Window.dividing(shape[2:], size), size


def _max_pool(
    input: Tensor, x: Tensor, window: Window, size: Sequence[int], return_indices: bool
) -> Tensor | tuple[Tensor, Tensor]:
    y, index = _run_max_pool(x, window, size, return_indices)
    if x is not input:
        y, index = y.flatten(0, 1), index if index is None else index.flatten(0, 1)
    return (y, index) if return_indices else y


def _run_max_pool(x: Tensor, window: Window, size: Sequence[int], return_indices: bool) -> tuple[Tensor, Tensor | None]:
    if not backend.uses_triton(x):
        pooled = reference.max_pool_as_torch(x, window, size, return_indices)
        return pooled if return_indices else (pooled, None)
    backend.refuse_forward_mode(x)
    y, taps = ops.max_pool(x, window, size)
    return y, reference.indices(taps, window, x.shape[2:]) if return_indices else None


def _average_pool(input: Tensor, x: Tensor, window: Window, size: Sequence[int], divisor: int, padded: bool) -> Tensor:
    if not backend.uses_triton(x):
        y = reference.average_pool(x, window, size, divisor, bool(padded))
    else:
        backend.refuse_forward_mode(x)
        y = ops.average_pool(x, window, size, divisor, bool(padded))
    return y if x is input else y.flatten(0, 1)
